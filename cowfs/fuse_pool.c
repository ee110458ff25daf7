// SPDX-License-Identifier: Apache-2.0
#include "cowfs/fuse_pool.h"

#include <glib.h>
#include <pthread.h>

struct fuse_pool {
    unsigned max_threads;
    void (*run)(struct fuse_job *job);
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t wake;
    struct fuse_job *first, **last; /* the queue */
    unsigned queued, idle, thread_count;
    bool stop; /* when the queue is empty */
    pthread_t threads[];
};

static void *pool_main(void *arg)
{
    struct fuse_pool *pool = arg;
    pthread_setname_np(pthread_self(), "cowfs-pool");
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct fuse_job *job = pool->first;
        if (job) {
            pool->first = job->next;
            if (!job->next)
                pool->last = &pool->first;
            pool->queued--;
            pthread_mutex_unlock(&pool->lock);
            pool->run(job);
            pthread_mutex_lock(&pool->lock);
        } else if (pool->stop) {
            break;
        } else {
            pool->idle++;
            pthread_cond_wait(&pool->wake, &pool->lock);
            pool->idle--;
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

struct fuse_pool *fuse_pool_new(unsigned max_threads, void (*run)(struct fuse_job *job))
{
    struct fuse_pool *pool = g_malloc0(sizeof(*pool) + max_threads * sizeof(pool->threads[0]));
    pool->max_threads = max_threads;
    pool->run = run;
    pool->last = &pool->first;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    return pool;
}

bool fuse_pool_add(struct fuse_pool *pool, struct fuse_job *job)
{
    pthread_mutex_lock(&pool->lock);
    /* One that has been woken is idle until it runs: so the queue counts, too. */
    if (pool->queued >= pool->idle && pool->thread_count < pool->max_threads &&
        pthread_create(&pool->threads[pool->thread_count], NULL, pool_main, pool) == 0)
        pool->thread_count++;
    bool taken = pool->thread_count > 0;
    if (taken) {
        job->next = NULL;
        *pool->last = job;
        pool->last = &job->next;
        pool->queued++;
        pthread_cond_signal(&pool->wake);
    }
    pthread_mutex_unlock(&pool->lock);
    return taken;
}

void fuse_pool_free(struct fuse_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    g_free(pool);
}
