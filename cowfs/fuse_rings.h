// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_rings.h - requests and replies over io_uring instead of /dev/fuse
 * (Documentation/filesystems/fuse-io-uring.rst).
 *
 * Why not libfuse's own (its option io_uring, as of 3.18): its threads may be the only ones to
 * reply, since a reply from another one races with them for the submission queue (libfuse issue
 * 1443). Here fsync, ioctl, a seek that waits for pages to be written and the like must not keep
 * such a thread from serving what they wait for, and so are answered by others.
 *
 *   made     rings_new: rings and threads are there, the kernel knows of nothing
 *   agreed   rings_init: the kernel offers it, our answer to INIT will accept
 *   serving  that answer has been sent, all queues are registered. Only FORGET and
 *            INTERRUPT come over /dev/fuse from now on (fuse_loop.h), notifications go there
 *   stopped  rings_stop: no thread is left, replies are dropped
 */
#ifndef COWFS_FUSE_RINGS_H
#define COWFS_FUSE_RINGS_H

#include <stdbool.h>

struct mount;
struct rings;

/* Requests that a queue (there is one for each CPU) takes at once, each with a buffer of
 * FUSE_IO_BYTES. It takes more when all of these wait for something. */
enum { RINGS_DEPTH_DEFAULT = 8, RINGS_DEPTH_MAX = 128 };

/* For a mount whose session is there and not served yet. Up to max_threads threads besides those of
 * the queues serve what takes long. *out is its member `rings`, where replies look for it.
 * Negative errno if the system does not allow it. */
int rings_new(struct mount *mount, unsigned depth, unsigned max_threads, struct rings **out);

/* From the session's init(): whether the kernel offers it. */
void rings_init(struct rings *u, bool offered);

/* After init(): waits until all queues serve. 0 also if the kernel did not offer it; else a
 * negative errno: then the mount is of no use and has to go. */
int rings_wait(struct rings *u);

/* Whether requests come this way. */
bool rings_serves(const struct rings *u);

/* No request is being served. */
bool rings_quiet(const struct rings *u);

/* Ends the threads, each after the requests that it has. NULL is allowed in both. */
void rings_stop(struct rings *u);
void rings_free(struct rings *u); /* after the last reply */

#endif
