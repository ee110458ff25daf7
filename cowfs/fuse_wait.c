// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_wait.c - what has to wait for others to close a file.
 *
 * The kernel tells of a close after close(2) has returned. So somebody may open a file
 * for writing whose last reader is gone already, but not for us: the opening waits a
 * little for that news, in one thread, whatever the number of those who wait. So does
 * an opening for reading of a flat file that seems to be written. The same thread comes back to files whose mappings may outlive their handles (opens.h): of
 * their end nobody tells, so it looks, ever less often.
 */
#include "cowfs/fuse_backing.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/opens.h"

enum {
    WAIT_MS = 50,    /* for a close that is on its way */
    TIDY_MIN_MS = 5, /* after a close: the kernel is through with the file by then */
    TIDY_MAX_MS = 30000,
};

struct opener {
    struct service *service;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct waiting *first, **last; /* the queue */
    unsigned tidy_ms;              /* until the next look; 0: there is nothing */
    int64_t tidy_us;               /* when that is */
    bool busy;                     /* with one that was taken from the queue */
    bool stop;                     /* when the queue is empty */
};

static void set_tidy(struct opener *o, unsigned ms)
{
    o->tidy_ms = ms;
    o->tidy_us = g_get_monotonic_time() + ms * INT64_C(1000);
}

static void answer(struct opener *o, struct waiting *w)
{
    int64_t left_us = w->until_us - g_get_monotonic_time();
    unsigned left_ms = left_us > 0 && !o->stop ? (unsigned)(left_us / 1000) + 1 : 0;
    o->busy = true;
    pthread_mutex_unlock(&o->lock);
    const struct mount *m = mount_of(w->req);
    int error = 0;
    if (w->reads)
        opens_wait_for_writers(o->service->opens, w->ino, left_ms);
    else
        error = opens_write(o->service->opens, m->slot, w->ino, left_ms);
    w->go_on(w, error);
    g_free(w);
    pthread_mutex_lock(&o->lock);
    o->busy = false;
    pthread_cond_broadcast(&o->changed);
}

static void tidy(struct opener *o)
{
    unsigned next_ms = MIN(o->tidy_ms * 2, TIDY_MAX_MS);
    set_tidy(o, 0);
    pthread_mutex_unlock(&o->lock);
    unsigned left = opens_tidy(o->service->opens);
    left += backings_tidy(o->service->backings);
    pthread_mutex_lock(&o->lock);
    if (left && o->tidy_ms == 0)
        set_tidy(o, next_ms);
}

static void *opener_main(void *arg)
{
    struct opener *o = arg;
    pthread_setname_np(pthread_self(), "cowfs-open");
    pthread_mutex_lock(&o->lock);
    while (o->first || !o->stop) {
        struct waiting *w = o->first;
        if (w) {
            o->first = w->next;
            if (!w->next)
                o->last = &o->first;
            answer(o, w);
        } else if (o->tidy_ms && g_get_monotonic_time() >= o->tidy_us) {
            tidy(o);
        } else if (o->tidy_ms) {
            struct timespec until = {
                .tv_sec = o->tidy_us / G_USEC_PER_SEC,
                .tv_nsec = o->tidy_us % G_USEC_PER_SEC * 1000,
            };
            pthread_cond_timedwait(&o->changed, &o->lock, &until);
        } else {
            pthread_cond_wait(&o->changed, &o->lock);
        }
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

static void opener_destroy(struct opener *o)
{
    pthread_mutex_destroy(&o->lock);
    pthread_cond_destroy(&o->changed);
    g_free(o);
}

struct opener *opener_new(struct service *service)
{
    struct opener *o = g_new0(struct opener, 1);
    o->service = service;
    o->last = &o->first;
    pthread_mutex_init(&o->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC); /* as g_get_monotonic_time */
    pthread_cond_init(&o->changed, &clock);
    pthread_condattr_destroy(&clock);
    if (pthread_create(&o->thread, NULL, opener_main, o) != 0) {
        opener_destroy(o);
        return NULL;
    }
    return o;
}

void opener_free(struct opener *o)
{
    if (!o)
        return;
    pthread_mutex_lock(&o->lock);
    o->stop = true;
    pthread_cond_signal(&o->changed);
    pthread_mutex_unlock(&o->lock);
    pthread_join(o->thread, NULL);
    opener_destroy(o);
}

void opener_wait(struct opener *o, const struct waiting *w)
{
    struct waiting *copy = g_new(struct waiting, 1);
    *copy = *w;
    copy->next = NULL;
    copy->until_us = g_get_monotonic_time() + WAIT_MS * INT64_C(1000);
    pthread_mutex_lock(&o->lock);
    *o->last = copy;
    o->last = &copy->next;
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
}

void opener_drain(struct opener *o)
{
    pthread_mutex_lock(&o->lock);
    while (o->first || o->busy)
        pthread_cond_wait(&o->changed, &o->lock);
    pthread_mutex_unlock(&o->lock);
}

void opener_tidy_soon(struct opener *o)
{
    pthread_mutex_lock(&o->lock);
    if (o->tidy_ms != TIDY_MIN_MS) {
        set_tidy(o, TIDY_MIN_MS);
        pthread_cond_broadcast(&o->changed);
    }
    pthread_mutex_unlock(&o->lock);
}
