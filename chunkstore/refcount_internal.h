// SPDX-License-Identifier: Apache-2.0
/*
 * refcount_internal.h - a group of 512 counters, without locks or database.
 *
 * Invariants of a group:
 *  1. counts == NULL: all counters are `count`; flags == NULL: all are `flag`.
 *  2. shared_running != NULL exactly if the group was changed since the last
 *     flip (is dirty); its bits are the numbers that had two or more owners at
 *     any time since that flip, the moment of the flip included.
 *  3. shared_committing is what shared_running was at the flip, until that
 *     commit is durable.
 *  4. A number without owner has no flags.
 */
#ifndef CHUNKSTORE_REFCOUNT_INTERNAL_H
#define CHUNKSTORE_REFCOUNT_INTERNAL_H

#include "chunkstore/refcount.h"

#include <glib.h>

#define FLAG_SEALED 0x80u
#define MERGES_MAX 0x7fu

enum { BITMAP_WORDS = COUNT_GROUP / 64 };

struct count_group {
    uint64_t id; /* number / 512; the hash key */
    uint32_t count;
    uint8_t flag;
    bool referenced; /* second chance for eviction */
    uint32_t *counts;
    uint8_t *flags;
    uint64_t *shared_running;
    uint64_t *shared_committing;
    GList link; /* in the shard's clock queue */
};

static inline uint32_t group_count(const struct count_group *g, unsigned i)
{
    return g->counts ? g->counts[i] : g->count;
}

static inline uint8_t group_flag(const struct count_group *g, unsigned i)
{
    return g->flags ? g->flags[i] : g->flag;
}

static inline bool bitmap_test(const uint64_t *bits, unsigned i)
{
    return bits && (bits[i / 64] >> (i % 64) & 1);
}

static inline bool group_was_shared(const struct count_group *g, unsigned i)
{
    return bitmap_test(g->shared_running, i) || bitmap_test(g->shared_committing, i);
}

/* Before the first change since a flip. */
void group_make_dirty(struct count_group *g);
void group_expand_counts(struct count_group *g);
void group_expand_flags(struct count_group *g);
/* Back to the uniform form where all counters are alike. */
void group_compact(struct count_group *g);
size_t group_bytes(const struct count_group *g);
void group_clear(struct count_group *g); /* frees arrays */
/* An all-zero group encodes to nothing. */
void group_encode(const struct count_group *g, struct wbuf *out);
int group_decode(struct count_group *g, const void *record, size_t len);

#endif
