// SPDX-License-Identifier: Apache-2.0
#include "chunkstore/gate.h"

#include <glib.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum { SHARD_BITS = 6, SHARDS = 1 << SHARD_BITS, YIELDS = 100 };

struct gate_shard {
    _Alignas(64) atomic_uint inside;
};

struct gate {
    struct gate_shard shards[SHARDS];
    _Alignas(64) atomic_bool closed;
    pthread_mutex_t lock; /* of those who wait for it to open */
    pthread_cond_t opened;
};

struct gate *gate_new(void)
{
    struct gate *gate = g_aligned_alloc0(1, sizeof(*gate), 64);
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->opened, NULL);
    return gate;
}

void gate_free(struct gate *gate)
{
    if (!gate)
        return;
    for (unsigned i = 0; i < SHARDS; i++)
        g_assert(atomic_load(&gate->shards[i].inside) == 0);
    pthread_mutex_destroy(&gate->lock);
    pthread_cond_destroy(&gate->opened);
    g_aligned_free(gate);
}

/* The thread's, wherever it runs: it leaves where it has entered. */
static struct gate_shard *my_shard(struct gate *gate)
{
    static _Thread_local char mine; /* only its address matters */
    uint64_t hash = (uint64_t)(uintptr_t)&mine * UINT64_C(0x9e3779b97f4a7c15);
    return &gate->shards[hash >> (64 - SHARD_BITS)];
}

static void wait_until_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    while (atomic_load(&gate->closed))
        pthread_cond_wait(&gate->opened, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

void gate_enter(struct gate *gate)
{
    struct gate_shard *shard = my_shard(gate);
    for (;;) {
        /* Sequentially consistent, as in gate_close: either this sees that the gate is
         * closed, or the one who closes it sees this. */
        atomic_fetch_add(&shard->inside, 1);
        if (!atomic_load(&gate->closed))
            return;
        atomic_fetch_sub(&shard->inside, 1);
        wait_until_open(gate);
    }
}

void gate_exit(struct gate *gate)
{
    unsigned before = atomic_fetch_sub(&my_shard(gate)->inside, 1);
    g_assert(before > 0);
}

void gate_close(struct gate *gate)
{
    const long pause_max_ns = 1000000;
    long pause_ns = 20000;
    atomic_store(&gate->closed, true);
    for (unsigned i = 0; i < SHARDS; i++) {
        /* They stay for microseconds, mostly; some read the database inside. */
        for (unsigned tries = 0; atomic_load(&gate->shards[i].inside) != 0; tries++) {
            if (tries < YIELDS) {
                sched_yield();
                continue;
            }
            nanosleep(&(struct timespec){.tv_nsec = pause_ns}, NULL);
            pause_ns = MIN(pause_ns * 2, pause_max_ns);
        }
    }
}

void gate_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    atomic_store(&gate->closed, false);
    pthread_cond_broadcast(&gate->opened);
    pthread_mutex_unlock(&gate->lock);
}
