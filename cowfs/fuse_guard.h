// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_guard.h - a process that ends the connection to the kernel if the daemon dies.
 *
 * Usually the kernel does that itself, when the last descriptor of /dev/fuse is closed. But the
 * daemon has a thread that waits inside the kernel for pages to be written (fuse_seek.c), which
 * the daemon would have to do. If the daemon is killed just then, that thread cannot die before the
 * pages are written, and keeps all descriptors: so nobody ever ends the connection, everybody who
 * uses the mount hangs, unkillable, and the store stays locked.
 *
 * A daemon with a supervisor has no such thread, but there is a process that waits for it so
 * (fuse_flush.h), and has /dev/fuse. If supervisor and daemon are killed, both, it is that which keeps the
 * connection; so the supervisor has a guard, too.
 */
#ifndef COWFS_FUSE_GUARD_H
#define COWFS_FUSE_GUARD_H

#include <sys/types.h>

struct guard;

/* Forks: call it in the process's first thread, before there are others and before descriptors are
 * opened that a child must not keep. NULL if that failed: things are as they would be without. */
struct guard *guard_start(void);
/* What to guard: the mount of device number `dev`, served through `fuse_fd`. */
void guard_watch(struct guard *g, dev_t dev, int fuse_fd);
/* The connection has ended in order. NULL is allowed. */
void guard_stop(struct guard *g);

/* A connection to the kernel: 0 and -1 for none. */
struct guarded {
    dev_t dev;
    int fuse_fd;
};

/* For a supervisor, while the connections are there: forks a guard that ends those of the `count`
 * mounts (at most GUARDED_MAX) when nobody has the other end of the pipe `end_fd` open any more: supervisor and
 * daemons have it. Returns its pid, or a negative errno. To be killed, and waited for, before the
 * connections end. */
enum { GUARDED_MAX = 2 };
pid_t guard_start_for(const struct guarded *mounts, unsigned count, int end_fd);

#endif
