// SPDX-License-Identifier: Apache-2.0
/*
 * bench_latency.h - a histogram of durations: constant memory, one increment
 * a sample, percentiles to about 3 %. One thread a histogram; add them up
 * when the threads are through.
 */
#ifndef BENCH_LATENCY_H
#define BENCH_LATENCY_H

#include "bench_common.h"

enum { LATENCY_STEPS = 32, LATENCY_BUCKETS = 60 * LATENCY_STEPS };

struct latencies {
    uint64_t count[LATENCY_BUCKETS];
    uint64_t total;
    double worst_us;
};

/* Below 32 ns a bucket a nanosecond, above it 32 buckets a power of two. */
static inline unsigned latency_bucket(uint64_t ns)
{
    if (ns < LATENCY_STEPS)
        return (unsigned)ns;
    unsigned power = 63 - (unsigned)__builtin_clzll(ns); /* at least 5 */
    return (power - 4) * LATENCY_STEPS + (unsigned)((ns >> (power - 5)) % LATENCY_STEPS);
}

static inline double latency_of_bucket_us(unsigned bucket)
{
    if (bucket < LATENCY_STEPS)
        return bucket / 1e3;
    unsigned power = bucket / LATENCY_STEPS + 4;
    uint64_t ns = (uint64_t)(LATENCY_STEPS + bucket % LATENCY_STEPS) << (power - 5);
    return (double)ns / 1e3;
}

static inline void latencies_add(struct latencies *l, double us)
{
    unsigned bucket = latency_bucket((uint64_t)(us * 1e3));
    l->count[bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1]++;
    l->total++;
    if (us > l->worst_us)
        l->worst_us = us;
}

static inline void latencies_merge(struct latencies *into, const struct latencies *from)
{
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++)
        into->count[i] += from->count[i];
    into->total += from->total;
    if (from->worst_us > into->worst_us)
        into->worst_us = from->worst_us;
}

/* share: 0.5 for the median. */
static inline double latencies_at_us(const struct latencies *l, double share)
{
    uint64_t rank = (uint64_t)(share * (double)l->total), seen = 0;
    for (unsigned i = 0; i < LATENCY_BUCKETS; i++) {
        seen += l->count[i];
        if (seen > rank)
            return latency_of_bucket_us(i);
    }
    return l->worst_us;
}

static inline void latencies_print(const struct latencies *l, const char *prefix)
{
    printf("%sp50_us %.2f\n%sp99_us %.2f\n%sp999_us %.2f\n%sworst_us %.2f\n", prefix,
           latencies_at_us(l, 0.5), prefix, latencies_at_us(l, 0.99), prefix,
           latencies_at_us(l, 0.999), prefix, l->worst_us);
}

#endif
