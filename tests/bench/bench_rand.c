// SPDX-License-Identifier: Apache-2.0
/*
 * bench_rand - 4 KiB at random places, for a time, with latencies.
 *
 *     bench_rand read|write|fsync direct|buffered MILLISECONDS SEED FILE...
 *     bench_rand twice direct|buffered COUNT SEED FILE
 *
 * One thread for each FILE named (a file may be named more than once). "fsync"
 * is a write and an fsync behind each. Writes are unlike any other bytes: they
 * are neither zero nor found to be there already. per_s of "write" counts the
 * fsync at the end as part of the time. The first and the last third of the
 * time are told apart: what gets slower shows there.
 *
 * "twice" writes COUNT different blocks, and then the same ones again: on a
 * fresh clone the first is a write to what is shared, the second is not.
 */
#include <pthread.h>
#include <stdbool.h>

#include "bench_file.h"
#include "bench_latency.h"

static const char usage[] =
    "bench_rand read|write|fsync direct|buffered MILLISECONDS SEED FILE...\n"
    "       bench_rand twice direct|buffered COUNT SEED FILE";

enum kind { READ, WRITE, FSYNC };
enum { POOL_BLOCKS = 256 };

struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    const char *path;
    enum kind kind;
    int open_flags;
    double seconds;
    uint64_t seed;
    /* Results. */
    struct latencies latencies;
    uint64_t ops_in_third[3];
    double started_us, ended_us; /* of all, an fsync at the end included */
};

/* Blocks of noise; each is stamped anew before it is written. */
static char *noise_pool(uint64_t *state)
{
    char *pool = aligned_buffer((size_t)POOL_BLOCKS * BLOCK_BYTES);
    rng_fill(pool, (size_t)POOL_BLOCKS * BLOCK_BYTES, state);
    return pool;
}

static const char *next_block(char *pool, uint64_t *state)
{
    uint64_t draw = rng_next(state);
    char *block = pool + draw % POOL_BLOCKS * BLOCK_BYTES;
    memcpy(block + draw / POOL_BLOCKS % 500 * 8, &draw, sizeof(draw));
    return block;
}

static void one_request(const struct worker *w, int fd, char *pool, uint64_t block, uint64_t *state)
{
    off_t offset = (off_t)(block * BLOCK_BYTES);
    ssize_t done = w->kind == READ ? pread(fd, pool, BLOCK_BYTES, offset)
                                   : pwrite(fd, next_block(pool, state), BLOCK_BYTES, offset);
    if (done != BLOCK_BYTES)
        die("%s of %s", w->kind == READ ? "read" : "write", w->path);
    if (w->kind == FSYNC && fsync(fd) != 0)
        die("fsync of %s", w->path);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    int fd = open_or_die(w->path, w->open_flags);
    uint64_t block_count = size_of(fd, w->path) / BLOCK_BYTES, state = rng_seed(w->seed);
    if (block_count == 0)
        misused(usage);
    /* Without this, readahead turns 4 KiB reads into 128 KiB ones. */
    if (w->kind == READ && !(w->open_flags & O_DIRECT))
        posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    char *pool = noise_pool(&state);
    pthread_barrier_wait(w->start);
    w->started_us = now_us();
    double now = w->started_us, length = w->seconds * 1e6;
    while (now - w->started_us < length) {
        one_request(w, fd, pool, rng_next(&state) % block_count, &state);
        double after = now_us();
        latencies_add(&w->latencies, after - now);
        int third = (int)((after - w->started_us) / length * 3);
        w->ops_in_third[third < 2 ? third : 2]++;
        now = after;
    }
    if (w->kind == WRITE && fsync(fd) != 0)
        die("fsync of %s", w->path);
    w->ended_us = now_us();
    free(pool);
    close(fd);
    return NULL;
}

static void tell(const struct worker *workers, size_t count)
{
    struct latencies all = {0};
    double started = workers[0].started_us, ended = workers[0].ended_us, thirds[3] = {0};
    for (size_t i = 0; i < count; i++) {
        const struct worker *w = &workers[i];
        latencies_merge(&all, &w->latencies);
        started = w->started_us < started ? w->started_us : started;
        ended = w->ended_us > ended ? w->ended_us : ended;
        for (int third = 0; third < 3; third++)
            thirds[third] += (double)w->ops_in_third[third];
    }
    double third_s = workers[0].seconds / 3;
    printf("ops %llu\nper_s %.1f\n", (unsigned long long)all.total,
           (double)all.total / ((ended - started) / 1e6));
    printf("first_third_per_s %.1f\nlast_third_per_s %.1f\n", thirds[0] / third_s,
           thirds[2] / third_s);
    latencies_print(&all, "");
}

static void run_for(enum kind kind, int flags, double seconds, uint64_t seed, char **paths,
                    size_t count)
{
    pthread_barrier_t start;
    struct worker *workers = calloc(count, sizeof(*workers));
    if (!workers || pthread_barrier_init(&start, NULL, (unsigned)count) != 0)
        die("%zu threads", count);
    for (size_t i = 0; i < count; i++) {
        workers[i].start = &start;
        workers[i].path = paths[i];
        workers[i].kind = kind;
        workers[i].open_flags = flags | (kind == READ ? O_RDONLY : O_WRONLY);
        workers[i].seconds = seconds;
        workers[i].seed = seed * 1000 + i;
        errno = pthread_create(&workers[i].thread, NULL, work, &workers[i]);
        if (errno)
            die("a thread");
    }
    for (size_t i = 0; i < count; i++)
        pthread_join(workers[i].thread, NULL);
    tell(workers, count);
    pthread_barrier_destroy(&start);
    free(workers);
}

static void write_twice(int flags, uint64_t count, uint64_t seed, const char *path)
{
    int fd = open_or_die(path, O_WRONLY | flags);
    uint64_t block_count = size_of(fd, path) / BLOCK_BYTES, state = rng_seed(~seed);
    if (count > block_count)
        misused(usage);
    char *pool = noise_pool(&state);
    for (int again = 0; again < 2; again++) {
        struct latencies l = {0};
        struct block_picker picker = block_picker_new(block_count, seed);
        double started = now_us(), now = started;
        for (uint64_t i = 0; i < count; i++) {
            off_t offset = (off_t)(block_picker_next(&picker) * BLOCK_BYTES);
            if (pwrite(fd, next_block(pool, &state), BLOCK_BYTES, offset) != BLOCK_BYTES)
                die("write to %s", path);
            double after = now_us();
            latencies_add(&l, after - now);
            now = after;
        }
        if (fsync(fd) != 0)
            die("fsync of %s", path);
        const char *prefix = again ? "again_" : "first_";
        printf("%sus %.1f\n%swith_fsync_us %.1f\n", prefix, now - started, prefix,
               now_us() - started);
        latencies_print(&l, prefix);
        block_picker_free(&picker);
    }
    free(pool);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc < 6)
        misused(usage);
    bool direct = strcmp(argv[2], "direct") == 0;
    if (!direct && strcmp(argv[2], "buffered") != 0)
        misused(usage);
    int flags = direct ? O_DIRECT : 0;
    uint64_t amount = parse_u64(argv[3], usage), seed = parse_u64(argv[4], usage);
    static const char *const kinds[] = {"read", "write", "fsync"};
    if (strcmp(argv[1], "twice") == 0 && argc == 6) {
        write_twice(flags, amount, seed, argv[5]);
        return 0;
    }
    for (enum kind kind = READ; kind <= FSYNC; kind++) {
        if (strcmp(argv[1], kinds[kind]) == 0) {
            run_for(kind, flags, (double)amount / 1e3, seed, argv + 5, (size_t)(argc - 5));
            return 0;
        }
    }
    misused(usage);
}
