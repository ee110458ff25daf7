// SPDX-License-Identifier: Apache-2.0
/*
 * segment_section.c - read sections: nobody punches what a reader looks at.
 *
 * A sleepable RCU as in the kernel's srcu.c. Each shard counts the sections
 * that are open, separately for phase 0 and phase 1; a reader adds itself under
 * the phase that it sees. Whoever wants to wait cannot simply wait until all
 * counters are 0, since new readers come all the time. He waits for the phase
 * that new readers do not use to run empty, lets them use it from now on, and
 * waits for the other one, which gets no new readers any more.
 *
 * Why both waits: a reader may look at the phase, sleep, and add itself to that
 * phase's counter after somebody has turned it. Such a late reader is missed by
 * the wait that follows the turn, rightly so: his section begins after the call
 * and sees what was done before it. But he is a reader that the *next* call has
 * to wait for, in a phase that this next call would not look at if it only
 * waited for the phase that it turns away from. That is what the first wait is
 * for.
 *
 * Unlike in srcu.c a section ends in the shard where it began (the token says
 * which), wherever its thread runs by then; so one counter per phase is exact,
 * and each shard may be looked at by itself. The kernel has to add up all its
 * per-CPU counters because a section may end on another CPU.
 */
#include "chunkstore/segment_internal.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The CPU rather than the thread: nothing to keep, and two threads that meet
 * in a shard run on CPUs that are as near as can be. */
unsigned segment_shard(void)
{
    int cpu = sched_getcpu();
    return cpu < 0 ? 0 : (unsigned)cpu % SHARDS;
}

void segment_sections_init(struct segments *s)
{
    s->sections = aligned_alloc(CACHE_LINE, SHARDS * sizeof(*s->sections));
    g_assert(s->sections);
    for (unsigned i = 0; i < SHARDS; i++) {
        atomic_init(&s->sections[i].open[0], 0);
        atomic_init(&s->sections[i].open[1], 0);
    }
    atomic_init(&s->phase, 0);
    pthread_mutex_init(&s->synchronize_lock, NULL);
}

void segment_sections_fini(struct segments *s)
{
    for (unsigned i = 0; i < SHARDS; i++)
        g_assert(atomic_load(&s->sections[i].open[0]) + atomic_load(&s->sections[i].open[1]) == 0);
    free(s->sections);
    pthread_mutex_destroy(&s->synchronize_lock);
}

unsigned segments_read_enter(struct segments *s)
{
    unsigned shard = segment_shard();
    unsigned phase = atomic_load(&s->phase) & 1;
    /* Sequentially consistent: either a waiter sees this, or what we look up
     * from here on is newer than the waiter's call. */
    atomic_fetch_add(&s->sections[shard].open[phase], 1);
    return shard << 1 | phase;
}

void segments_read_exit(struct segments *s, unsigned token)
{
    g_assert(token >> 1 < SHARDS);
    unsigned before = atomic_fetch_sub(&s->sections[token >> 1].open[token & 1], 1);
    g_assert(before > 0);
}

/* Waits until each shard has been seen without open sections of `phase`.
 * Sections last as long as an I/O, and the waiter is a background thread: a
 * sleep that grows is good enough and costs the readers nothing. */
static void wait_phase(struct segments *s, unsigned phase)
{
    const long pause_max_ns = 1000000;
    long pause_ns = 20000;
    for (unsigned i = 0; i < SHARDS; i++) {
        while (atomic_load(&s->sections[i].open[phase]) != 0) {
            struct timespec pause = {.tv_nsec = pause_ns};
            nanosleep(&pause, NULL);
            pause_ns = MIN(pause_ns * 2, pause_max_ns);
        }
    }
}

void segments_synchronize(struct segments *s)
{
    pthread_mutex_lock(&s->synchronize_lock);
    unsigned phase = atomic_load(&s->phase) & 1;
    wait_phase(s, phase ^ 1);
    atomic_store(&s->phase, phase ^ 1);
    wait_phase(s, phase);
    pthread_mutex_unlock(&s->synchronize_lock);
}
