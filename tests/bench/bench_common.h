// SPDX-License-Identifier: Apache-2.0
/*
 * bench_common.h - what the helpers of scripts/bench share.
 *
 * Each helper does one measured thing in C, because Python's own cost (fork of
 * a big process, a call per 4 KiB) would be part of the figure. They print
 * "name value" lines, which scripts/benchlib/measure.py reads. Any failure
 * ends the helper with status 1: a figure of a half-done job is worse than
 * none.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK_BYTES = 4096, BIG_BYTES = 1 << 20 };

static inline double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
    int error = errno;
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, ": %s\n", strerror(error));
    exit(1);
}

__attribute__((noreturn)) static inline void misused(const char *usage)
{
    fprintf(stderr, "usage: %s\n", usage);
    exit(2);
}

static inline uint64_t parse_u64(const char *text, const char *usage)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-')
        misused(usage);
    return value;
}

/* splitmix64: fast, seedable, and its output does not compress. */
static inline uint64_t rng_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Seeds that differ by one would give shifted copies of one stream (the state
 * is a counter), and a deduplicating file system would notice: mix first. */
static inline uint64_t rng_seed(uint64_t seed)
{
    uint64_t state = seed ^ 0x5851f42d4c957f2du;
    return rng_next(&state);
}

static inline void rng_fill(void *buffer, size_t bytes, uint64_t *state)
{
    uint64_t *words = buffer;
    for (size_t i = 0; i < bytes / sizeof(*words); i++)
        words[i] = rng_next(state);
}

static inline void *aligned_buffer(size_t bytes)
{
    void *buffer = NULL;
    int error = posix_memalign(&buffer, BLOCK_BYTES, bytes);
    if (error) {
        errno = error;
        die("%zu bytes of memory", bytes);
    }
    memset(buffer, 0, bytes);
    return buffer;
}

/*
 * Draws block numbers below block_count, each at most once, in random order:
 * so "N writes" are N blocks, and N cold reads are N misses. The caller asks
 * for at most block_count of them; near that it gets slow.
 */
struct block_picker {
    uint64_t block_count;
    uint64_t state;
    uint8_t *taken;
};

static inline struct block_picker block_picker_new(uint64_t block_count, uint64_t seed)
{
    if (block_count == 0) {
        errno = EINVAL;
        die("a file of less than one block");
    }
    struct block_picker p = {block_count, rng_seed(seed), calloc(block_count / 8 + 1, 1)};
    if (!p.taken)
        die("a bitmap of %llu blocks", (unsigned long long)block_count);
    return p;
}

static inline uint64_t block_picker_next(struct block_picker *p)
{
    for (;;) {
        uint64_t block = rng_next(&p->state) % p->block_count;
        uint8_t bit = (uint8_t)(1u << (block % 8));
        if (!(p->taken[block / 8] & bit)) {
            p->taken[block / 8] |= bit;
            return block;
        }
    }
}

static inline void block_picker_free(struct block_picker *p)
{
    free(p->taken);
}

#endif
