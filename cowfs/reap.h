// SPDX-License-Identifier: Apache-2.0
/*
 * reap.h - the reaper: releases the content of inodes that have no links left
 * and that nobody uses.
 *
 * Whoever drops the last use of such an inode queues its number; the reaper's
 * thread gives up extended attributes and map, in transactions of bounded
 * size, and deletes the records. The inode record always has the map that is
 * left, so after a crash the next opening goes on where this one ended.
 *
 * The queue is bounded. If it is full the number is forgotten: the KEY_ORPHAN
 * records are the real queue, and the reaper walks over them when it has
 * emptied the one in memory (as it does at the start).
 *
 * Threads: any, except start and stop. reaper_queue takes leaf locks only.
 */
#ifndef COWFS_REAP_H
#define COWFS_REAP_H

#include <stdbool.h>
#include <stdint.h>

struct fs;
struct reaper;

/* Starts the thread, which begins with the orphans of earlier times. */
int reaper_start(struct fs *fs, struct reaper **out);
/* Waits for work that is waiting, but at most timeout_ms, stops the thread and
 * frees. What is left over is done after the next opening. NULL is allowed. */
void reaper_stop(struct reaper *reaper, unsigned timeout_ms);

/* The inode has no links and no users. NULL is allowed (read-only). */
void reaper_queue(struct reaper *reaper, uint64_t ino);

/* Orphans that could not be released before may be so now. NULL is allowed. */
void reaper_scan(struct reaper *reaper);

/* Calls visit with the number of each inode without links until it answers false. Any of them may be
 * in use, or be gone by then. */
void reaper_each_orphan(struct fs *fs, bool (*visit)(void *arg, uint64_t ino), void *arg);

/* Waits until all that was queued before the call has been released (but not
 * for the commit that makes it final). NULL is allowed. */
void reaper_wait(struct reaper *reaper);

#endif
