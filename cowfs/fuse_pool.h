// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_pool.h - threads for requests that a thread of fuse_rings.c may not wait for.
 *
 * A thread is started when something is to be done and none is idle, and then kept.
 */
#ifndef COWFS_FUSE_POOL_H
#define COWFS_FUSE_POOL_H

#include <stdbool.h>

struct fuse_pool;

/* What is to be done is linked by its own first member: nothing is allocated. */
struct fuse_job {
    struct fuse_job *next;
};

/* `run` is called with each job, in up to max_threads threads at once. */
struct fuse_pool *fuse_pool_new(unsigned max_threads, void (*run)(struct fuse_job *job));

/* False if it has no thread and cannot start one. */
bool fuse_pool_add(struct fuse_pool *pool, struct fuse_job *job);

/* Ends when all jobs are done. NULL is allowed. */
void fuse_pool_free(struct fuse_pool *pool);

#endif
