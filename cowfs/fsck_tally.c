// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_tally.c - compact counters, and groups of recorded ones.
 *
 * Most chunks of a store lie in leaves that are one run and fill one group, so
 * most groups need no array; most of the others have few owners per chunk.
 */
#include "cowfs/fsck_internal.h"

#include <errno.h>

static void make_small(struct tally *t)
{
    t->small = g_malloc(COUNT_GROUP);
    memset(t->small, (int)t->all, COUNT_GROUP);
}

static void make_wide(struct tally *t)
{
    t->wide = g_new(uint32_t, COUNT_GROUP);
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        t->wide[i] = t->small ? t->small[i] : t->all;
    g_clear_pointer(&t->small, g_free);
}

static void add_wide(struct tally *t, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++)
        if (t->wide[i] < UINT32_MAX)
            t->wide[i]++;
}

void tally_add(struct tally *t, unsigned first, unsigned n)
{
    g_assert(first + n <= COUNT_GROUP);
    if (!t->wide && !t->small) {
        if (n == COUNT_GROUP) {
            if (t->all < UINT32_MAX)
                t->all++;
            return;
        }
        if (t->all < UINT8_MAX)
            make_small(t);
        else
            make_wide(t);
    }
    if (t->small && memchr(t->small + first, UINT8_MAX, n))
        make_wide(t);
    if (!t->small) {
        add_wide(t, first, n);
        return;
    }
    for (unsigned i = first; i < first + n; i++)
        t->small[i]++;
    if (memcmp(t->small, t->small + 1, COUNT_GROUP - 1) == 0) {
        /* Filled up by several leaves: one value again. */
        t->all = t->small[0];
        g_clear_pointer(&t->small, g_free);
    }
}

uint32_t tally_get(const struct tally *t, unsigned i)
{
    return t->wide ? t->wide[i] : t->small ? t->small[i] : t->all;
}

void tally_expand(const struct tally *t, uint32_t out[COUNT_GROUP])
{
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        out[i] = tally_get(t, i);
}

void tally_clear(struct tally *t)
{
    g_free(t->small);
    g_free(t->wide);
    *t = (struct tally){0};
}

static void store_run(void *arg, uint32_t first, uint32_t n, struct count_info info)
{
    struct counts_group *g = arg;
    for (uint32_t i = first; i < first + n; i++) {
        g->count[i] = info.count;
        g->merges[i] = info.merges;
        g->sealed[i] = info.sealed;
    }
}

int counts_group_decode(struct counts_group *g, const uint8_t *record, size_t len)
{
    memset(g, 0, sizeof(*g));
    if (!record)
        return 0;
    int error = counts_decode(record, len, store_run, g);
    if (error)
        memset(g, 0, sizeof(*g));
    return error;
}
