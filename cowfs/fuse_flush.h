// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_flush.h - a process that asks the kernel to write and drop pages of a file.
 *
 * The kernel answers that question when the daemon has written the pages. A daemon that is
 * killed while a thread of its own waits there cannot die, keeps its locks, and the next
 * one, who would write the pages, cannot begin. So another process waits: it has nothing
 * but the descriptor of /dev/fuse.
 */
#ifndef COWFS_FUSE_FLUSH_H
#define COWFS_FUSE_FLUSH_H

#include <stdint.h>
#include <sys/types.h>

/* Forks that process. It ends when all other ends of *socket_fd (the caller's, to be given to
 * daemons) are closed. Returns its pid, or a negative errno. */
pid_t flusher_start(int fuse_fd, int *socket_fd);

/* The daemon's side: as fuse_lowlevel_notify_inval_inode. One thread at a time. 0, or a
 * negative errno; -EPIPE if the flusher is gone. */
int flusher_inval(int socket_fd, uint64_t ino, int64_t offset, int64_t length);

#endif
