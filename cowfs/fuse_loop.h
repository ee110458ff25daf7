// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_loop.h - the threads that take requests from /dev/fuse and serve them.
 *
 * Why not fuse_session_loop_mt: it takes one mutex twice for every request, it
 * ends by cancelling threads in the middle of whatever waits in the queue, and
 * it leaves no place to keep the first message (INIT) or to feed an old one to
 * a new daemon, which is what a restart under a living mount needs.
 *
 * A thread is added when a request has been taken and nobody is left to wait
 * for the next one; none is ever ended, since the next burst would want it.
 */
#ifndef COWFS_FUSE_LOOP_H
#define COWFS_FUSE_LOOP_H

#include <stdbool.h>

struct mount;
struct fuse_loop;

/* Starts the first worker. The mount's session is there; its `rings`, or NULL, are where
 * requests come from, too: stopped with the loop, they remain the caller's. `ended_fd` (an
 * eventfd) is written to when the session has come to its end (unmounted or failed). NULL if
 * no thread can be started. */
struct fuse_loop *fuse_loop_start(struct mount *mount, unsigned max_threads, int ended_fd);

/* Waits until no request is being served and none is queued, at most
 * timeout_ms. Returns whether that came true. */
bool fuse_loop_drain(struct fuse_loop *loop, unsigned timeout_ms);

/* Ends the workers (each after the request that it serves), frees the loop.
 * Returns 0 or the negative errno that ended the session. */
int fuse_loop_stop(struct fuse_loop *loop);

/* Whether the request that this thread serves is one that the kernel had sent to an earlier
 * daemon, too. */
bool fuse_loop_is_resent(void);

#endif
