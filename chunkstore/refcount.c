// SPDX-License-Identifier: Apache-2.0
/*
 * refcount.c - the table of groups: cache, changes, commit.
 *
 * Groups are spread over shards by a hash of their id, so that neighbouring
 * groups (one large file) do not meet in one mutex. A shard keeps its groups in
 * a hash table and in a queue for eviction by second chance (CLOCK).
 */
#include "chunkstore/refcount_internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

enum { SHARDS = 64, EVICT_TRIES = 16 };

struct shard {
    _Alignas(64) pthread_mutex_t lock;
    GHashTable *groups; /* id -> group; 64 bits fit into a pointer */
    GQueue clock;
    GPtrArray *dirty;      /* groups with shared_running */
    GPtrArray *committing; /* groups with shared_committing */
    size_t bytes;
};

struct counts {
    struct metadb *db;
    enum key_type type;
    size_t shard_bytes_max;
    atomic_int_fast64_t live;
    atomic_int_fast64_t merges;
    struct shard shards[SHARDS];
};

struct counts *counts_new(struct metadb *db, enum key_type type, size_t cache_bytes)
{
    struct counts *c = g_aligned_alloc0(1, sizeof(*c), 64);
    c->db = db;
    c->type = type;
    c->shard_bytes_max = cache_bytes / SHARDS;
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &c->shards[i];
        pthread_mutex_init(&s->lock, NULL);
        s->groups = g_hash_table_new(NULL, NULL);
        g_queue_init(&s->clock);
        s->dirty = g_ptr_array_new();
        s->committing = g_ptr_array_new();
    }
    return c;
}

static void group_free(struct count_group *g)
{
    group_clear(g);
    g_free(g);
}

void counts_free(struct counts *c)
{
    if (!c)
        return;
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &c->shards[i];
        GList *l;
        while ((l = g_queue_pop_head_link(&s->clock)))
            group_free(l->data);
        g_hash_table_destroy(s->groups);
        g_ptr_array_free(s->dirty, TRUE);
        g_ptr_array_free(s->committing, TRUE);
        pthread_mutex_destroy(&s->lock);
    }
    g_aligned_free(c);
}

static struct shard *shard_of(struct counts *c, uint64_t group_id)
{
    return &c->shards[(group_id * UINT64_C(0x9e3779b97f4a7c15)) >> 58];
}

static void evict(struct shard *s, size_t bytes_max)
{
    for (unsigned tries = 0; s->bytes > bytes_max && tries < EVICT_TRIES; tries++) {
        GList *l = g_queue_pop_head_link(&s->clock);
        if (!l)
            return;
        struct count_group *g = l->data;
        if (g->referenced || g->shared_running || g->shared_committing) {
            g->referenced = false;
            g_queue_push_tail_link(&s->clock, l);
            continue;
        }
        s->bytes -= group_bytes(g);
        g_hash_table_remove(s->groups, GSIZE_TO_POINTER(g->id));
        group_free(g);
    }
}

/* The group, loaded if need be. The shard's lock is held. */
static int shard_get(struct counts *c, struct shard *s, uint64_t group_id, struct count_group **out)
{
    struct count_group *g = g_hash_table_lookup(s->groups, GSIZE_TO_POINTER(group_id));
    if (!g) {
        uint8_t key[KEY_MAX];
        struct metadb_value value;
        g = g_new0(struct count_group, 1);
        g->id = group_id;
        int error = metadb_get(c->db, key, key_u64(key, c->type, group_id), &value);
        if (error == 0) {
            error = group_decode(g, value.data, value.len);
            if (error)
                g_critical("record of counts %c/%" G_GUINT64_FORMAT " is damaged", c->type,
                           group_id);
            metadb_value_free(&value);
        } else if (error == -ENOENT) {
            error = 0;
        }
        if (error) {
            group_free(g);
            return error;
        }
        evict(s, c->shard_bytes_max);
        g_hash_table_insert(s->groups, GSIZE_TO_POINTER(g->id), g);
        g->link.data = g;
        g_queue_push_tail_link(&s->clock, &g->link);
        s->bytes += group_bytes(g);
    }
    g->referenced = true;
    *out = g;
    return 0;
}

static void make_dirty(struct shard *s, struct count_group *g)
{
    if (!g->shared_running) {
        group_make_dirty(g);
        g_ptr_array_add(s->dirty, g);
    }
}

/* One group's part of a run of numbers. */
struct part {
    uint64_t group_id;
    unsigned index;
    unsigned n;
};

static struct part part_of(uint64_t first, uint32_t n)
{
    unsigned index = first % COUNT_GROUP;
    return (struct part){
        .group_id = first / COUNT_GROUP,
        .index = index,
        .n = n < COUNT_GROUP - index ? n : COUNT_GROUP - index,
    };
}

/* Calls fn for the maximal runs in [from, to) for which pick() holds. */
static void report(struct count_group *g, unsigned from, unsigned to, const uint64_t *picked,
                   counts_run_fn fn, void *arg, const uint64_t *sealed)
{
    for (unsigned i = from, j; i < to; i = j) {
        j = i + 1;
        if (!bitmap_test(picked, i))
            continue;
        while (j < to && bitmap_test(picked, j) && bitmap_test(sealed, j) == bitmap_test(sealed, i))
            j++;
        fn(arg, g->id * COUNT_GROUP + i, j - i, bitmap_test(sealed, i));
    }
}

static void bitmap_set(uint64_t *bits, unsigned i)
{
    bits[i / 64] |= UINT64_C(1) << (i % 64);
}

static int inc_part(struct counts *c, struct count_group *g, struct part p, counts_run_fn born,
                    void *arg)
{
    /* A whole group that is all alike stays so: the common case of a leaf
     * that is one run, shared by a copy of its node. */
    if (!g->counts && p.n == COUNT_GROUP) {
        if (g->count == UINT32_MAX)
            return -EOVERFLOW;
        if (++g->count == 1) {
            atomic_fetch_add(&c->live, COUNT_GROUP);
            if (born)
                born(arg, g->id * COUNT_GROUP, COUNT_GROUP, false);
        } else {
            memset(g->shared_running, 0xff, BITMAP_WORDS * sizeof(uint64_t));
        }
        return 0;
    }
    for (unsigned i = p.index; i < p.index + p.n; i++)
        if (group_count(g, i) == UINT32_MAX)
            return -EOVERFLOW;
    group_expand_counts(g);
    uint64_t born_bits[BITMAP_WORDS] = {0};
    unsigned born_count = 0;
    for (unsigned i = p.index; i < p.index + p.n; i++) {
        if (++g->counts[i] == 1) {
            bitmap_set(born_bits, i);
            born_count++;
        } else {
            bitmap_set(g->shared_running, i);
        }
    }
    if (born_count) {
        atomic_fetch_add(&c->live, born_count);
        if (born)
            report(g, p.index, p.index + p.n, born_bits, born, arg, NULL);
    }
    return 0;
}

int counts_inc(struct counts *c, uint64_t first, uint32_t n, counts_run_fn born, void *arg)
{
    uint32_t done = 0;
    while (done < n) {
        struct part p = part_of(first + done, n - done);
        struct shard *s = shard_of(c, p.group_id);
        struct count_group *g;
        pthread_mutex_lock(&s->lock);
        int error = shard_get(c, s, p.group_id, &g);
        if (!error) {
            size_t before = group_bytes(g);
            make_dirty(s, g);
            error = inc_part(c, g, p, born, arg);
            s->bytes += group_bytes(g) - before;
        }
        pthread_mutex_unlock(&s->lock);
        if (error) {
            /* Numbers that were born stay a leak of this failed operation;
             * those that only got one owner more are put back. */
            if (done && !born)
                counts_dec(c, first, done, NULL, NULL);
            return error;
        }
        done += p.n;
    }
    return 0;
}

/* Lowers the merges of number i so that they stay below its count. */
static void clamp_merges(struct counts *c, struct count_group *g, unsigned i)
{
    uint8_t flags = group_flag(g, i);
    uint8_t merges = flags & MERGES_MAX;
    uint32_t count = group_count(g, i);
    uint8_t limit = count == 0 ? 0 : (uint8_t)min_u64(count - 1, MERGES_MAX);
    uint8_t kept = count == 0 ? 0 : (uint8_t)((flags & FLAG_SEALED) | MIN(merges, limit));
    if (kept == flags)
        return;
    atomic_fetch_sub(&c->merges, merges - (kept & MERGES_MAX));
    group_expand_flags(g);
    g->flags[i] = kept;
}

static int dec_part(struct counts *c, struct count_group *g, struct part p, counts_run_fn dead,
                    void *arg)
{
    if (!g->counts && !g->flags && p.n == COUNT_GROUP && g->count > 0 &&
        (g->flag & MERGES_MAX) == 0) {
        if (--g->count == 0) {
            bool sealed = g->flag & FLAG_SEALED;
            g->flag = 0;
            atomic_fetch_sub(&c->live, COUNT_GROUP);
            if (dead)
                dead(arg, g->id * COUNT_GROUP, COUNT_GROUP, sealed);
        }
        return 0;
    }
    int error = 0;
    group_expand_counts(g);
    uint64_t dead_bits[BITMAP_WORDS] = {0}, sealed_bits[BITMAP_WORDS] = {0};
    unsigned dead_count = 0;
    for (unsigned i = p.index; i < p.index + p.n; i++) {
        if (g->counts[i] == 0) {
            g_critical("count of %c/%" G_GUINT64_FORMAT " would fall below zero", c->type,
                       g->id * COUNT_GROUP + i);
            error = -EUCLEAN;
            continue;
        }
        if (--g->counts[i] == 0) {
            bitmap_set(dead_bits, i);
            if (group_flag(g, i) & FLAG_SEALED)
                bitmap_set(sealed_bits, i);
            dead_count++;
        }
        if (g->flags || g->flag)
            clamp_merges(c, g, i);
    }
    if (dead_count) {
        atomic_fetch_sub(&c->live, dead_count);
        if (dead)
            report(g, p.index, p.index + p.n, dead_bits, dead, arg, sealed_bits);
    }
    return error;
}

int counts_dec(struct counts *c, uint64_t first, uint32_t n, counts_run_fn dead, void *arg)
{
    int result = 0;
    for (uint32_t done = 0; done < n;) {
        struct part p = part_of(first + done, n - done);
        struct shard *s = shard_of(c, p.group_id);
        struct count_group *g;
        pthread_mutex_lock(&s->lock);
        int error = shard_get(c, s, p.group_id, &g);
        if (!error) {
            size_t before = group_bytes(g);
            make_dirty(s, g);
            error = dec_part(c, g, p, dead, arg);
            s->bytes += group_bytes(g) - before;
        }
        pthread_mutex_unlock(&s->lock);
        if (error)
            result = error;
        done += p.n;
    }
    return result;
}

int counts_get(struct counts *c, uint64_t id, struct count_info *out)
{
    uint32_t alike;
    return counts_alike_run(c, id, 1, out, &alike);
}

int counts_alike_run(struct counts *c, uint64_t first, uint32_t n, struct count_info *info,
                     uint32_t *alike)
{
    struct part p = part_of(first, n);
    struct shard *s = shard_of(c, p.group_id);
    struct count_group *g;
    pthread_mutex_lock(&s->lock);
    int error = shard_get(c, s, p.group_id, &g);
    if (!error) {
        unsigned i = p.index, j = i + 1;
        uint8_t flags = group_flag(g, i);
        *info = (struct count_info){
            .count = group_count(g, i),
            .sealed = flags & FLAG_SEALED,
            .merges = flags & MERGES_MAX,
            .was_shared = group_was_shared(g, i),
        };
        while (j < p.index + p.n && group_count(g, j) == info->count &&
               ((group_flag(g, j) ^ flags) & FLAG_SEALED) == 0)
            j++;
        *alike = j - i;
    }
    pthread_mutex_unlock(&s->lock);
    return error;
}

static bool is_exclusive(const struct count_group *g, unsigned i)
{
    return group_count(g, i) == 1 && !(group_flag(g, i) & FLAG_SEALED) && !group_was_shared(g, i);
}

int counts_exclusive_run(struct counts *c, uint64_t first, uint32_t n, bool *exclusive,
                         uint32_t *alike)
{
    struct part p = part_of(first, n);
    struct shard *s = shard_of(c, p.group_id);
    struct count_group *g;
    pthread_mutex_lock(&s->lock);
    int error = shard_get(c, s, p.group_id, &g);
    if (!error) {
        unsigned i = p.index, j = i + 1;
        *exclusive = is_exclusive(g, i);
        while (j < p.index + p.n && is_exclusive(g, j) == *exclusive)
            j++;
        *alike = j - i;
    }
    pthread_mutex_unlock(&s->lock);
    return error;
}

/* Up to the first that is sealed already. */
static unsigned seal_part(struct shard *s, struct count_group *g, struct part p)
{
    unsigned n = 0;
    while (n < p.n && !(group_flag(g, p.index + n) & FLAG_SEALED))
        n++;
    if (n == 0)
        return 0;
    size_t before = group_bytes(g);
    make_dirty(s, g);
    if (n == COUNT_GROUP && !g->flags && !g->counts && g->count > 0) {
        g->flag |= FLAG_SEALED;
    } else {
        group_expand_flags(g);
        for (unsigned i = p.index; i < p.index + n; i++)
            if (group_count(g, i) > 0)
                g->flags[i] |= FLAG_SEALED;
    }
    s->bytes += group_bytes(g) - before;
    return n;
}

int counts_seal(struct counts *c, uint64_t first, uint32_t n, uint32_t *sealed)
{
    *sealed = 0;
    while (*sealed < n) {
        struct part p = part_of(first + *sealed, n - *sealed);
        struct shard *s = shard_of(c, p.group_id);
        struct count_group *g;
        unsigned done = 0;
        pthread_mutex_lock(&s->lock);
        int error = shard_get(c, s, p.group_id, &g);
        if (!error)
            done = seal_part(s, g, p);
        pthread_mutex_unlock(&s->lock);
        if (error)
            return error;
        *sealed += done;
        if (done < p.n)
            break;
    }
    return 0;
}

static void unseal_part(struct shard *s, struct count_group *g, struct part p)
{
    size_t before = group_bytes(g);
    for (unsigned i = p.index; i < p.index + p.n; i++) {
        /* With merges it was found by its content, so it is in the index. */
        if (group_flag(g, i) != FLAG_SEALED)
            continue;
        make_dirty(s, g);
        group_expand_flags(g);
        g->flags[i] = 0;
    }
    s->bytes += group_bytes(g) - before;
}

int counts_unseal(struct counts *c, uint64_t first, uint32_t n)
{
    int result = 0;
    for (uint32_t done = 0; done < n;) {
        struct part p = part_of(first + done, n - done);
        struct shard *s = shard_of(c, p.group_id);
        struct count_group *g;
        pthread_mutex_lock(&s->lock);
        int error = shard_get(c, s, p.group_id, &g);
        if (error)
            result = error;
        else
            unseal_part(s, g, p);
        pthread_mutex_unlock(&s->lock);
        done += p.n;
    }
    return result;
}

/* Half of the range is kept free, so that copying a node that holds many merged
 * chunks cannot overflow. */
static bool may_merge(const struct count_group *g, unsigned i)
{
    uint32_t count = group_count(g, i);
    return count > 0 && count < UINT32_MAX / 2 && group_flag(g, i) & FLAG_SEALED;
}

static void merge_part(struct counts *c, struct shard *s, struct count_group *g, struct part p)
{
    size_t before = group_bytes(g);
    unsigned merges = 0;
    make_dirty(s, g);
    group_expand_counts(g);
    group_expand_flags(g);
    for (unsigned i = p.index; i < p.index + p.n; i++) {
        g->counts[i]++;
        bitmap_set(g->shared_running, i);
        if ((g->flags[i] & MERGES_MAX) < MERGES_MAX) {
            g->flags[i]++;
            merges++;
        }
    }
    atomic_fetch_add(&c->merges, merges);
    s->bytes += group_bytes(g) - before;
}

int counts_merge(struct counts *c, uint64_t first, uint32_t n, uint32_t *merged)
{
    int error = 0;
    *merged = 0;
    while (*merged < n && !error) {
        struct part p = part_of(first + *merged, n - *merged);
        struct shard *s = shard_of(c, p.group_id);
        struct count_group *g;
        unsigned wanted = p.n;
        pthread_mutex_lock(&s->lock);
        error = shard_get(c, s, p.group_id, &g);
        if (!error) {
            for (p.n = 0; p.n < wanted && may_merge(g, p.index + p.n); p.n++)
                ;
            if (p.n > 0)
                merge_part(c, s, g, p);
            *merged += p.n;
            error = p.n < wanted ? -ENOENT : 0;
        }
        pthread_mutex_unlock(&s->lock);
    }
    return *merged ? 0 : error;
}

void counts_flip(struct counts *c)
{
    struct wbuf record = {0};
    for (unsigned k = 0; k < SHARDS; k++) {
        struct shard *s = &c->shards[k];
        pthread_mutex_lock(&s->lock);
        g_assert(s->committing->len == 0);
        for (unsigned i = 0; i < s->dirty->len; i++) {
            struct count_group *g = s->dirty->pdata[i];
            uint8_t key[KEY_MAX];
            size_t key_len = key_u64(key, c->type, g->id);
            size_t before = group_bytes(g);
            group_compact(g);
            wbuf_reset(&record);
            group_encode(g, &record);
            if (record.len)
                metadb_put(c->db, key, key_len, record.data, record.len);
            else
                metadb_delete(c->db, key, key_len);
            g->shared_committing = g_steal_pointer(&g->shared_running);
            s->bytes += group_bytes(g) - before;
        }
        GPtrArray *swap = s->committing;
        s->committing = s->dirty;
        s->dirty = swap;
        pthread_mutex_unlock(&s->lock);
    }
    wbuf_free(&record);
}

void counts_durable(struct counts *c)
{
    for (unsigned k = 0; k < SHARDS; k++) {
        struct shard *s = &c->shards[k];
        pthread_mutex_lock(&s->lock);
        for (unsigned i = 0; i < s->committing->len; i++) {
            struct count_group *g = s->committing->pdata[i];
            size_t before = group_bytes(g);
            g_clear_pointer(&g->shared_committing, g_free);
            s->bytes += group_bytes(g) - before;
        }
        g_ptr_array_set_size(s->committing, 0);
        evict(s, c->shard_bytes_max);
        pthread_mutex_unlock(&s->lock);
    }
}

void counts_stats(struct counts *c, struct counts_stats *out)
{
    *out = (struct counts_stats){
        .live = (uint64_t)atomic_load(&c->live),
        .merges = (uint64_t)atomic_load(&c->merges),
    };
    for (unsigned k = 0; k < SHARDS; k++) {
        struct shard *s = &c->shards[k];
        pthread_mutex_lock(&s->lock);
        out->groups_cached += g_hash_table_size(s->groups);
        out->bytes_cached += s->bytes;
        pthread_mutex_unlock(&s->lock);
    }
}
