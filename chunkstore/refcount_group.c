// SPDX-License-Identifier: Apache-2.0
/*
 * refcount_group.c - the two forms of a group and its codec.
 *
 * Record: runs until the record ends; what is left of the 512 is zero.
 *   varint  length of the run - 1
 *   varint  count << 1 | has_flags
 *   u8      flags, if has_flags: 0x80 sealed, low 7 bits merges
 */
#include "chunkstore/refcount_internal.h"

#include <errno.h>

void group_make_dirty(struct count_group *g)
{
    if (g->shared_running)
        return;
    g->shared_running = g_new0(uint64_t, BITMAP_WORDS);
    if (!g->counts) {
        if (g->count > 1)
            memset(g->shared_running, 0xff, BITMAP_WORDS * sizeof(uint64_t));
        return;
    }
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        if (g->counts[i] > 1)
            g->shared_running[i / 64] |= UINT64_C(1) << (i % 64);
}

void group_expand_counts(struct count_group *g)
{
    if (g->counts)
        return;
    g->counts = g_new(uint32_t, COUNT_GROUP);
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        g->counts[i] = g->count;
}

void group_expand_flags(struct count_group *g)
{
    if (g->flags)
        return;
    g->flags = g_malloc(COUNT_GROUP);
    memset(g->flags, g->flag, COUNT_GROUP);
}

void group_compact(struct count_group *g)
{
    if (g->counts &&
        memcmp(g->counts, g->counts + 1, (COUNT_GROUP - 1) * sizeof(*g->counts)) == 0) {
        g->count = g->counts[0];
        g_clear_pointer(&g->counts, g_free);
    }
    if (g->flags && memcmp(g->flags, g->flags + 1, COUNT_GROUP - 1) == 0) {
        g->flag = g->flags[0];
        g_clear_pointer(&g->flags, g_free);
    }
}

size_t group_bytes(const struct count_group *g)
{
    size_t bitmap = BITMAP_WORDS * sizeof(uint64_t);
    return sizeof(*g) + 48 /* its place in the hash table */ +
           (g->counts ? COUNT_GROUP * sizeof(uint32_t) : 0) + (g->flags ? COUNT_GROUP : 0) +
           (g->shared_running ? bitmap : 0) + (g->shared_committing ? bitmap : 0);
}

void group_clear(struct count_group *g)
{
    g_clear_pointer(&g->counts, g_free);
    g_clear_pointer(&g->flags, g_free);
    g_clear_pointer(&g->shared_running, g_free);
    g_clear_pointer(&g->shared_committing, g_free);
}

static unsigned run_end(const struct count_group *g, unsigned i)
{
    if (!g->counts && !g->flags)
        return COUNT_GROUP;
    unsigned j = i + 1;
    while (j < COUNT_GROUP && group_count(g, j) == group_count(g, i) &&
           group_flag(g, j) == group_flag(g, i))
        j++;
    return j;
}

void group_encode(const struct count_group *g, struct wbuf *out)
{
    for (unsigned i = 0, j; i < COUNT_GROUP; i = j) {
        uint32_t count = group_count(g, i);
        uint8_t flags = group_flag(g, i);
        j = run_end(g, i);
        if (j == COUNT_GROUP && count == 0 && flags == 0)
            return;
        wbuf_put_varint(out, j - i - 1);
        wbuf_put_varint(out, (uint64_t)count << 1 | (flags != 0));
        if (flags)
            wbuf_put_u8(out, flags);
    }
}

void counts_encode(const struct count_info info[COUNT_GROUP], struct wbuf *out)
{
    uint32_t counts[COUNT_GROUP];
    uint8_t flags[COUNT_GROUP];
    struct count_group g = {.counts = counts, .flags = flags};
    for (unsigned i = 0; i < COUNT_GROUP; i++) {
        counts[i] = info[i].count;
        flags[i] = (uint8_t)((info[i].sealed ? FLAG_SEALED : 0) | (info[i].merges & MERGES_MAX));
    }
    group_encode(&g, out);
}

int counts_decode(const void *record, size_t len,
                  void (*fn)(void *arg, uint32_t first, uint32_t n, struct count_info info),
                  void *arg)
{
    struct rbuf r = rbuf_of(record, len);
    uint32_t at = 0;
    while (rbuf_left(&r) > 0) {
        uint64_t n = rbuf_get_varint(&r);
        uint64_t word = rbuf_get_varint(&r);
        uint8_t flags = word & 1 ? rbuf_get_u8(&r) : 0;
        uint64_t count = word >> 1;
        if (r.bad || n >= COUNT_GROUP - at || count > UINT32_MAX || (count == 0 && flags != 0))
            return -EUCLEAN;
        struct count_info info = {
            .count = (uint32_t)count,
            .sealed = flags & FLAG_SEALED,
            .merges = flags & MERGES_MAX,
        };
        fn(arg, at, (uint32_t)n + 1, info);
        at += (uint32_t)n + 1;
        if (at == COUNT_GROUP && rbuf_left(&r) > 0)
            return -EUCLEAN;
    }
    return r.bad ? -EUCLEAN : 0;
}

static void store_run(void *arg, uint32_t first, uint32_t n, struct count_info info)
{
    struct count_group *g = arg;
    uint8_t flags = (uint8_t)((info.sealed ? FLAG_SEALED : 0) | info.merges);
    if (first == 0 && n == COUNT_GROUP) {
        g->count = info.count;
        g->flag = flags;
        return;
    }
    if (info.count) {
        group_expand_counts(g);
        for (uint32_t i = 0; i < n; i++)
            g->counts[first + i] = info.count;
    }
    if (flags) {
        group_expand_flags(g);
        memset(g->flags + first, flags, n);
    }
}

int group_decode(struct count_group *g, const void *record, size_t len)
{
    g->count = 0;
    g->flag = 0;
    return counts_decode(record, len, store_run, g);
}
