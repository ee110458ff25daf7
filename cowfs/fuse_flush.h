// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_flush.h - a process that asks the kernel to write and drop pages of a file, or to
 * drop a name.
 *
 * The kernel answers that question when the daemon has written the pages, or when those
 * who hold the directory's lock, and may wait for the daemon, are through. A daemon that is
 * killed while a thread of its own waits there cannot die, keeps its locks, and the next
 * one, who would serve that, cannot begin. So another process waits: it has nothing
 * but the descriptor of /dev/fuse.
 */
#ifndef COWFS_FUSE_FLUSH_H
#define COWFS_FUSE_FLUSH_H

#include <stdint.h>
#include <sys/types.h>

/* Forks that process. It ends when all other ends of *socket_fd (the caller's, to be given to
 * daemons) are closed. Returns its pid, or a negative errno. */
pid_t flusher_start(int fuse_fd, int *socket_fd);

/*
 * The daemon's side; any thread, one after the other. 0, or a negative errno; -EPIPE if the
 * flusher is gone. As fuse_lowlevel_notify_inval_inode; and as fuse_lowlevel_notify_delete, or
 * with child 0 (not known) _inval_entry.
 */
int flusher_inval(int socket_fd, uint64_t ino, int64_t offset, int64_t length);
int flusher_drop_name(int socket_fd, uint64_t dir, uint64_t child, const char *name);
/* Has the kernel forget an inode that nobody uses, though it has names for it in its cache. */
int flusher_prune(int socket_fd, uint64_t ino);

/* The same without a flusher. -EINVAL: the kernel cannot do that (before Linux 6.18). */
int fuse_prune(int fuse_fd, uint64_t ino);

#endif
