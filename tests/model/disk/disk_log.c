// SPDX-License-Identifier: Apache-2.0
#include "tests/model/disk/disk.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Address space, not memory; and a bound to what a runaway can take. */
enum { OPS_MAX = 1 << 22 };
static const size_t arena_bytes = (size_t)1 << 31;

struct disk_log {
    pthread_mutex_t lock;
    atomic_uint_fast64_t count;
    size_t used;        /* of the arena */
    size_t at[OPS_MAX]; /* where each operation begins */
    _Alignas(16) uint8_t arena[];
};

struct disk_log *disk_log_new(void)
{
    struct disk_log *log = mmap(NULL, sizeof(*log) + arena_bytes, PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (log == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    pthread_mutex_init(&log->lock, NULL);
    return log;
}

void disk_log_free(struct disk_log *log)
{
    munmap(log, sizeof(*log) + arena_bytes);
}

uint64_t disk_log_count(const struct disk_log *log)
{
    return atomic_load(&log->count);
}

const struct disk_op *disk_log_op(const struct disk_log *log, uint64_t index)
{
    g_assert(index < disk_log_count(log));
    return (const struct disk_op *)(const void *)(log->arena + log->at[index]);
}

uint64_t disk_log_add(struct disk_log *log, const struct disk_op *op, const void *payload)
{
    pthread_mutex_lock(&log->lock);
    uint64_t index = atomic_load(&log->count);
    size_t bytes = (sizeof(*op) + op->payload_bytes + 15) & ~(size_t)15;
    g_assert(index < OPS_MAX && log->used + bytes <= arena_bytes);
    struct disk_op *copy = (struct disk_op *)(void *)(log->arena + log->used);
    *copy = *op;
    if (op->payload_bytes)
        memcpy(copy->payload, payload, op->payload_bytes);
    log->at[index] = log->used;
    log->used += bytes;
    atomic_store(&log->count, index + 1);
    pthread_mutex_unlock(&log->lock);
    return index;
}
