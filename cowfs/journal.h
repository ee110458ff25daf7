// SPDX-License-Identifier: Apache-2.0
/*
 * journal.h - the redo journal: what was changed since the last durable commit,
 * in memory that outlives the process (a memfd), but not the machine.
 *
 * docs/DESIGN.md, "When the daemon dies", has the reasons, the order of things and
 * the crash windows. In short: each transaction's changes of metadata are gathered
 * by its thread and published as a whole when it leaves the gate; fs_open of the
 * next process replays what no durable commit has. The bytes of files need no
 * journal: they are in the page cache of the segments.
 *
 * Life of a journal: somebody who outlives the daemon makes the memory
 * (journal_memory_new, or any memfd: an empty one is set up by fs_open), and gives
 * the descriptor to each process as fs_config.journal_fd. One process at a time.
 * A journal that belongs to another store, or to a store that was opened without it
 * in between, is thrown away by fs_open, with a message. fs_close leaves it empty.
 *
 * Every function takes NULL for "no journal" (fs->journal when there is none) and does
 * nothing then. Threads: any.
 */
#ifndef COWFS_JOURNAL_H
#define COWFS_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct journal;

/* A memfd for a journal, not inherited by exec unless that is changed (FD_CLOEXEC);
 * negative errno. The caller's. */
int journal_memory_new(void);

/*
 * ---- Requests that may come twice ----
 *
 * The kernel sends requests again that were not answered when the daemon died, and
 * they may have been done. So whoever serves a request tells its number before, and
 * operations that must not be done twice (create, mkdir, mknod, symlink, tmpfile, link,
 * unlink, rmdir, rename, clone, copy_file_range, set and remove of xattrs) note their
 * result in the transaction of their last change: the note is there exactly if the change
 * is. Other changing operations (write, truncate, fallocate, setattr) give the same when
 * they are done twice. An operation that fails, or changes nothing, leaves no note.
 */

/* The calling thread serves that request from here to _end. unique is not 0; the
 * caller takes out the kernel's mark of a repeated one (bit 63). */
void journal_request_begin(uint64_t unique);
void journal_request_end(void);
uint64_t journal_request_current(void); /* 0: none */

/* What a clone or a deletion had: the numbers that its caller is told. */
struct journal_counts {
    uint64_t files, directories, symlinks, left_out;
};

struct journal_completion {
    uint64_t unique;
    int64_t result; /* 0, or bytes (copy_file_range) */
    uint64_t ino;   /* of the inode that was made or linked, else 0 */
    uint64_t step;  /* notes of the request with this one: names, in a request of many */
    struct journal_counts counts; /* of all of them */
};

/* Notes the result of the current request, if there is one: inside the gate, in the
 * transaction that has the operation's last change. The last note of a request counts.
 * counts may be NULL: none. */
void journal_complete(struct journal *j, int64_t result, uint64_t ino,
                      const struct journal_counts *counts);

/* Was it done, by this process or an earlier one with this journal? The last
 * JOURNAL_COMPLETIONS are known, whatever was committed since. */
enum { JOURNAL_COMPLETIONS = 8192 };
bool journal_find_completed(struct journal *j, uint64_t unique, struct journal_completion *out);
/* Forgets them all: a new connection numbers its requests anew. */
void journal_forget_completed(struct journal *j);

/*
 * ---- Since when a file has had no links ----
 *
 * Whether the kernel still knows such a file can be asked some time after the last answer that
 * named it (fuse_notify.c): where daemons die faster than that time goes by, each would leave files
 * that nobody knows to the next one. So the memory has it, of some thousands.
 */

/* Since when (us, as g_get_monotonic_time) it is known that the inode has no links: now_us, if it
 * was not known yet, and from then on that is what it says. Never too early. */
int64_t journal_orphan_since(struct journal *j, uint64_t ino, int64_t now_us);
/* The inode gets a link, or the kernel is told of it: what was known does not count. */
void journal_orphan_again(struct journal *j, uint64_t ino);

#endif
