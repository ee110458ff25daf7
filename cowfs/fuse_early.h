// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_early.h - has the kernel write a file back while somebody is still making it.
 *
 * Left to itself the kernel begins when the writer closes the file, or when a tenth of all memory
 * is dirty: so a file is first copied into the page cache, and then out of it, one after the other.
 * Who makes a large file in one go (cp, tar, qemu-img) gains from having both at once.
 *
 * So a process looks after files that are being made (created, or emptied when they were opened):
 * if one has grown, the kernel is asked to start writing what is dirty of it. Only growth counts:
 * pages that are overwritten again and again are better left alone.
 *
 * It is a process and not a thread because it waits in the kernel for the daemon (fuse_guard.h).
 * It sees the files through a mount of its own that has no place in the tree: open files in the
 * visible one would make umount(8) say "busy". While it has that, and somebody unmounts the visible
 * one, the file system ends when it lets go: at once, since then nobody has a file open any more.
 */
#ifndef COWFS_FUSE_EARLY_H
#define COWFS_FUSE_EARLY_H

#include <stdint.h>
#include <sys/types.h>

struct early;

/* Forks, with the same rules as guard_start. `mount_point`: absolute. NULL if that failed: things
 * are slower, that is all. */
struct early *early_start(const char *mount_point);
/* The device number of the mount; nothing is looked after before. NULL is allowed, here and below. */
void early_watch(struct early *e, dev_t dev);
/* Any thread; these wait for nobody. A handle by which a file is being made, and its end. */
void early_opened(struct early *e, uint64_t ino);
void early_closed(struct early *e, uint64_t ino);
/* After the connection to the kernel has ended. */
void early_stop(struct early *e);

#endif
