// SPDX-License-Identifier: Apache-2.0
/* rng.h - random numbers that a seed reproduces (splitmix64). */
#ifndef TESTS_MODEL_RNG_H
#define TESTS_MODEL_RNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct rng {
    uint64_t state;
};

static inline uint64_t rng_next(struct rng *r)
{
    uint64_t z = (r->state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Each pair of numbers has a stream of its own. */
static inline struct rng rng_of(uint64_t seed, uint64_t number)
{
    struct rng r = {seed};
    uint64_t mixed = rng_next(&r) ^ number * UINT64_C(0xd1b54a32d192ed03);
    return (struct rng){mixed};
}

/* 0 .. n - 1 */
static inline uint64_t rng_below(struct rng *r, uint64_t n)
{
    return rng_next(r) % n;
}

static inline bool rng_percent(struct rng *r, unsigned percent)
{
    return rng_below(r, 100) < percent;
}

static inline void rng_fill(struct rng *r, void *data, size_t n)
{
    uint8_t *p = data;
    while (n >= 8) {
        uint64_t v = rng_next(r);
        memcpy(p, &v, 8);
        p += 8;
        n -= 8;
    }
    uint64_t v = rng_next(r);
    memcpy(p, &v, n);
}

#endif
