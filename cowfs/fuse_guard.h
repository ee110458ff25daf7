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
 * A daemon with a supervisor has no such thread (fuse_flush.h), and no guard.
 */
#ifndef COWFS_FUSE_GUARD_H
#define COWFS_FUSE_GUARD_H

#include <sys/types.h>

struct guard;

/* Forks: call it in the process's first thread, before there are others and before descriptors are
 * opened that a child must not keep. NULL if that failed: things are as they would be without. */
struct guard *guard_start(void);
/* What to guard: the device number of the mount. */
void guard_watch(struct guard *g, dev_t dev);
/* The connection has ended in order. NULL is allowed. */
void guard_stop(struct guard *g);

#endif
