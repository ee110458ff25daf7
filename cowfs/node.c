// SPDX-License-Identifier: Apache-2.0
/*
 * node.c - the cache of nodes: find, make, copy, change, give up.
 */
#include "cowfs/node_internal.h"

#include <errno.h>

enum {
    SHARDS = 64,
    EVICT_TRIES = 16,
    DEAD = 1 << 30, /* in pins: out of the table; the last pin frees it */
};

struct shard {
    _Alignas(64) pthread_mutex_t lock;
    GHashTable *nodes; /* id -> node; 64 bits fit into a pointer */
    GQueue clock;      /* eviction by second chance */
    GPtrArray *dirty;
    uint64_t flips; /* that wrote nodes of this shard */
    size_t bytes;
};

struct node_cache {
    struct node_env env;
    size_t shard_bytes_max;
    atomic_uint_fast64_t next_id;
    atomic_uint_fast64_t hits, misses;
    struct shard shards[SHARDS];
};

struct node_cache *node_cache_new(const struct node_env *env, uint64_t next_id, size_t cache_bytes)
{
    struct node_cache *cache = g_aligned_alloc0(1, sizeof(*cache), 64);
    cache->env = *env;
    cache->shard_bytes_max = cache_bytes / SHARDS;
    cache->next_id = next_id;
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &cache->shards[i];
        pthread_mutex_init(&s->lock, NULL);
        s->nodes = g_hash_table_new(NULL, NULL);
        g_queue_init(&s->clock);
        s->dirty = g_ptr_array_new();
    }
    return cache;
}

static void node_free(struct node *n)
{
    if (n->fill)
        segments_group_release(n->cache->env.segments, n->fill->base);
    pthread_rwlock_destroy(&n->lock);
    g_free(n->entries);
    g_free(n->fill);
    g_free(n);
}

void node_cache_free(struct node_cache *cache)
{
    if (!cache)
        return;
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &cache->shards[i];
        for (unsigned k = 0; k < s->dirty->len; k++) {
            struct node *n = s->dirty->pdata[k];
            if (atomic_load(&n->pins) & DEAD)
                node_free(n);
        }
        GList *l;
        while ((l = g_queue_pop_head_link(&s->clock)))
            node_free(l->data);
        g_hash_table_destroy(s->nodes);
        g_ptr_array_free(s->dirty, TRUE);
        pthread_mutex_destroy(&s->lock);
    }
    g_aligned_free(cache);
}

uint64_t node_cache_next_id(const struct node_cache *cache)
{
    return cache->next_id;
}

const struct node_env *node_cache_env(const struct node_cache *cache)
{
    return &cache->env;
}

static struct shard *shard_of(struct node_cache *cache, uint64_t id)
{
    return &cache->shards[(id * UINT64_C(0x9e3779b97f4a7c15)) >> 58];
}

static void evict(struct shard *s, size_t bytes_max)
{
    for (unsigned tries = 0; s->bytes > bytes_max && tries < EVICT_TRIES; tries++) {
        GList *l = g_queue_pop_head_link(&s->clock);
        if (!l)
            return;
        struct node *n = l->data;
        if (n->dirty || atomic_load(&n->pins) > 0 || atomic_exchange(&n->referenced, false)) {
            g_queue_push_tail_link(&s->clock, l);
            continue;
        }
        s->bytes -= node_bytes(n);
        g_hash_table_remove(s->nodes, GSIZE_TO_POINTER(n->id));
        node_free(n);
    }
}

static struct node *node_alloc(struct node_cache *cache, uint64_t id, unsigned level)
{
    struct node *n = g_new0(struct node, 1);
    n->id = id;
    n->cache = cache;
    n->level = (uint8_t)level;
    n->pins = 1;
    pthread_rwlock_init(&n->lock, NULL);
    return n;
}

static void shard_insert(struct shard *s, struct node *n, size_t bytes_max)
{
    evict(s, bytes_max);
    g_hash_table_insert(s->nodes, GSIZE_TO_POINTER(n->id), n);
    n->link.data = n;
    g_queue_push_tail_link(&s->clock, &n->link);
    s->bytes += node_bytes(n);
}

static int load(struct node_cache *cache, uint64_t id, struct node **out)
{
    uint8_t key[KEY_MAX];
    struct metadb_value value;
    int error = metadb_get(cache->env.db, key, key_u64(key, KEY_NODE, id), &value);
    if (error)
        return error;
    struct node *n = node_alloc(cache, id, 0);
    uint64_t *entries = g_new(uint64_t, NODE_ENTRIES);
    unsigned level;
    error = node_decode(value.data, value.len, &level, entries);
    metadb_value_free(&value);
    n->entries = entries;
    if (error) {
        node_free(n);
        return error;
    }
    n->level = (uint8_t)level;
    n->persisted = true;
    node_compact(n);
    *out = n;
    return 0;
}

/* Finds or loads the node, and pins it. -ENOENT if there is none. */
static int get(struct node_cache *cache, uint64_t id, struct node **out)
{
    struct shard *s = shard_of(cache, id);
    struct node *n;
    pthread_mutex_lock(&s->lock);
    while (!(n = g_hash_table_lookup(s->nodes, GSIZE_TO_POINTER(id)))) {
        /* Read without the lock; another thread may be faster. It may even
         * change the node, and have the change written and evicted: then what
         * was read here is out of date. */
        struct node *loaded;
        uint64_t flips = s->flips;
        pthread_mutex_unlock(&s->lock);
        atomic_fetch_add(&cache->misses, 1);
        int error = load(cache, id, &loaded);
        if (error)
            return error;
        pthread_mutex_lock(&s->lock);
        if (flips == s->flips && !g_hash_table_contains(s->nodes, GSIZE_TO_POINTER(id))) {
            loaded->pins = 0;
            shard_insert(s, loaded, cache->shard_bytes_max);
        } else {
            node_free(loaded);
        }
    }
    atomic_fetch_add(&n->pins, 1);
    if (!atomic_load_explicit(&n->referenced, memory_order_relaxed))
        atomic_store_explicit(&n->referenced, true, memory_order_relaxed);
    pthread_mutex_unlock(&s->lock);
    *out = n;
    return 0;
}

int node_get(struct node_cache *cache, uint64_t id, unsigned level, struct node **out)
{
    int error = get(cache, id, out);
    if (!error && (*out)->level != level) {
        g_critical("block map node %" G_GUINT64_FORMAT " has level %u where %u belongs", id,
                   (*out)->level, level);
        node_put(*out);
        return -EUCLEAN;
    }
    if (error == -ENOENT || error == -EUCLEAN) {
        g_critical("block map node %" G_GUINT64_FORMAT ": %s", id,
                   error == -ENOENT ? "missing" : "record is damaged");
        error = -EUCLEAN;
    }
    return error;
}

int node_peek(struct node_cache *cache, uint64_t id, unsigned level, uint64_t *entries)
{
    struct node *n;
    int error = get(cache, id, &n);
    if (error)
        return error;
    if (n->level == level) {
        pthread_rwlock_rdlock(&n->lock);
        for (unsigned i = 0, alike; i < NODE_ENTRIES; i += alike) {
            uint64_t value = node_run_unlocked(n, i, NODE_ENTRIES, &alike);
            for (unsigned k = 0; k < alike; k++)
                entries[i + k] = value ? value + k : 0;
        }
        pthread_rwlock_unlock(&n->lock);
    } else {
        error = -ENOENT;
    }
    node_put(n);
    return error;
}

void node_put(struct node *n)
{
    if (!n)
        return;
    int pins = atomic_load(&n->pins);
    while (!(pins & DEAD)) {
        g_assert(pins > 0);
        if (atomic_compare_exchange_weak(&n->pins, &pins, pins - 1))
            return;
    }
    /* Dead: the last pin frees it, unless the dirty array still has it. */
    struct shard *s = shard_of(n->cache, n->id);
    pthread_mutex_lock(&s->lock);
    bool last = atomic_fetch_sub(&n->pins, 1) == DEAD + 1 && !n->dirty;
    pthread_mutex_unlock(&s->lock);
    if (last)
        node_free(n);
}

uint64_t node_id(const struct node *n)
{
    return n->id;
}

unsigned node_level(const struct node *n)
{
    return n->level;
}

uint64_t node_run(struct node *n, unsigned index, unsigned limit, unsigned *alike)
{
    if (n->level > 1)
        return node_run_unlocked(n, index, limit, alike);
    pthread_rwlock_rdlock(&n->lock);
    uint64_t value = node_run_unlocked(n, index, limit, alike);
    pthread_rwlock_unlock(&n->lock);
    return value;
}

int node_exclusive_run(struct node *n, unsigned index, unsigned limit, uint64_t *entry,
                       unsigned *alike, bool *exclusive)
{
    g_assert(n->level == 1);
    int error = 0;
    *exclusive = false;
    pthread_rwlock_rdlock(&n->lock);
    *entry = node_run_unlocked(n, index, limit, alike);
    if (*entry)
        error = counts_exclusive_run(n->cache->env.chunk_counts, ENTRY_CHUNK(*entry), *alike,
                                     exclusive, alike);
    pthread_rwlock_unlock(&n->lock);
    return error;
}

/* Accounts for a change of size, and puts the node among the changed ones. */
static void mark_dirty(struct node *n, size_t bytes_before)
{
    struct shard *s = shard_of(n->cache, n->id);
    pthread_mutex_lock(&s->lock);
    if (!n->dirty) {
        n->dirty = true;
        g_ptr_array_add(s->dirty, n);
        txn_note_dirty(n->cache->env.txn, (int64_t)sizeof(*n) + NODE_ENTRIES);
    }
    s->bytes += node_bytes(n) - bytes_before;
    pthread_mutex_unlock(&s->lock);
}

void node_set_run(struct node *n, unsigned index, unsigned count, uint64_t first)
{
    pthread_rwlock_wrlock(&n->lock);
    size_t before = node_bytes(n);
    node_set_run_unlocked(n, index, count, first);
    mark_dirty(n, before);
    pthread_rwlock_unlock(&n->lock);
}

bool node_exchange(struct node *n, unsigned index, unsigned count, uint64_t expected,
                   uint64_t value)
{
    unsigned alike;
    pthread_rwlock_wrlock(&n->lock);
    bool same = node_run_unlocked(n, index, count, &alike) == expected && alike == count;
    if (same) {
        size_t before = node_bytes(n);
        node_set_run_unlocked(n, index, count, value);
        mark_dirty(n, before);
    }
    pthread_rwlock_unlock(&n->lock);
    return same;
}

int node_new(struct node_cache *cache, unsigned level, struct node **out)
{
    g_assert(level >= 1 && level <= NODE_LEVEL_MAX);
    uint64_t id = atomic_fetch_add(&cache->next_id, 1);
    int error = counts_inc(cache->env.node_counts, id, 1, NULL, NULL);
    if (error)
        return error;
    struct node *n = node_alloc(cache, id, level);
    struct shard *s = shard_of(cache, id);
    pthread_mutex_lock(&s->lock);
    shard_insert(s, n, cache->shard_bytes_max);
    pthread_mutex_unlock(&s->lock);
    mark_dirty(n, node_bytes(n));
    *out = n;
    return 0;
}

static struct counts *child_counts(const struct node *n)
{
    return n->level == 1 ? n->cache->env.chunk_counts : n->cache->env.node_counts;
}

static void chunk_dead(void *arg, uint64_t first, uint32_t n, bool sealed)
{
    const struct node_env *env = arg;
    segments_account_dead(env->segments, first, n);
    txn_note_freed(env->txn);
    if (sealed) {
        /* The content index still knows these; see content_index.h. */
        uint8_t key[KEY_MAX];
        struct wbuf value = {0};
        wbuf_put_varint(&value, n);
        metadb_put(env->db, key, key_u64(key, KEY_DEAD_SEALED, first), value.data, value.len);
        wbuf_free(&value);
    }
}

int node_unref_chunks(struct node_cache *cache, uint64_t first_entry, unsigned n)
{
    return counts_dec(cache->env.chunk_counts, ENTRY_CHUNK(first_entry), n, chunk_dead,
                      &cache->env);
}

int node_ref_chunks(struct node *n, unsigned index, unsigned limit, uint64_t *entry,
                    unsigned *alike)
{
    g_assert(n->level == 1);
    int error = 0;
    pthread_rwlock_rdlock(&n->lock);
    *entry = node_run_unlocked(n, index, limit, alike);
    if (*entry)
        error = counts_inc(n->cache->env.chunk_counts, ENTRY_CHUNK(*entry), *alike, NULL, NULL);
    pthread_rwlock_unlock(&n->lock);
    return error;
}

/* One owner more (or, undoing, less) for all children below index `end`. */
static int ref_children(struct node *n, unsigned end, bool more)
{
    struct counts *counts = child_counts(n);
    for (unsigned i = 0, alike; i < end; i += alike) {
        uint64_t value = node_run_unlocked(n, i, end - i, &alike);
        if (value == 0)
            continue;
        int error = more ? counts_inc(counts, ENTRY_CHUNK(value), alike, NULL, NULL)
                         : counts_dec(counts, ENTRY_CHUNK(value), alike, NULL, NULL);
        if (error && more) {
            ref_children(n, i, false);
            return error;
        }
    }
    return 0;
}

int node_copy(struct node_cache *cache, struct node *n, struct node **out)
{
    struct node *copy;
    int error = node_new(cache, n->level, &copy);
    if (error)
        return error;
    /* Counting under the lock: the sealer must not exchange a chunk between
     * the copying of its number and the raising of its count. */
    pthread_rwlock_rdlock(&n->lock);
    error = ref_children(n, NODE_ENTRIES, true);
    if (!error) {
        struct shard *s = shard_of(cache, copy->id);
        size_t before = node_bytes(copy);
        node_copy_entries(n, copy);
        pthread_mutex_lock(&s->lock);
        s->bytes += node_bytes(copy) - before;
        pthread_mutex_unlock(&s->lock);
    }
    pthread_rwlock_unlock(&n->lock);
    if (error) {
        uint64_t id = copy->id;
        node_put(copy);
        node_unref(cache, id, n->level);
        return error;
    }
    *out = copy;
    return 0;
}

static void note_dead(void *arg, uint64_t first, uint32_t n, bool sealed)
{
    (void)first;
    (void)n;
    (void)sealed;
    *(bool *)arg = true;
}

static int unref_children(struct node *n)
{
    int result = 0;
    for (unsigned i = 0, alike; i < NODE_ENTRIES; i += alike) {
        uint64_t value = node_run(n, i, NODE_ENTRIES, &alike);
        if (value == 0)
            continue;
        int error = 0;
        if (n->level == 1) {
            error = node_unref_chunks(n->cache, value, alike);
        } else {
            for (unsigned k = 0; k < alike; k++) {
                int e = node_unref(n->cache, value + k, n->level - 1);
                error = e ? e : error;
            }
        }
        result = error ? error : result;
    }
    return result;
}

int node_unref(struct node_cache *cache, uint64_t id, unsigned level)
{
    bool dead = false;
    int error = counts_dec(cache->env.node_counts, id, 1, note_dead, &dead);
    if (error || !dead)
        return error;
    struct node *n;
    error = node_get(cache, id, level, &n);
    if (error)
        return error;
    error = unref_children(n);
    if (n->persisted) {
        uint8_t key[KEY_MAX];
        metadb_delete(cache->env.db, key, key_u64(key, KEY_NODE, id));
    }
    struct shard *s = shard_of(cache, id);
    pthread_mutex_lock(&s->lock);
    atomic_fetch_or(&n->pins, DEAD);
    g_hash_table_remove(s->nodes, GSIZE_TO_POINTER(n->id));
    g_queue_unlink(&s->clock, &n->link);
    s->bytes -= node_bytes(n);
    pthread_mutex_unlock(&s->lock);
    node_put(n);
    return error;
}

void node_cache_flip(struct node_cache *cache)
{
    struct wbuf record = {0};
    int64_t flipped = 0;
    for (unsigned k = 0; k < SHARDS; k++) {
        struct shard *s = &cache->shards[k];
        pthread_mutex_lock(&s->lock);
        for (unsigned i = 0; i < s->dirty->len; i++) {
            struct node *n = s->dirty->pdata[i];
            int pins = atomic_load(&n->pins);
            n->dirty = false;
            flipped++;
            if (pins & DEAD) {
                if (pins == DEAD)
                    node_free(n);
                continue;
            }
            uint8_t key[KEY_MAX];
            size_t before = node_bytes(n);
            /* Pinned readers may be looking at the entries of this node
             * without the gate: only compact what nobody looks at. */
            if (atomic_load(&n->pins) == 0)
                node_compact(n);
            wbuf_reset(&record);
            node_encode(n, &record);
            metadb_put(cache->env.db, key, key_u64(key, KEY_NODE, n->id), record.data, record.len);
            n->persisted = true;
            s->bytes += node_bytes(n) - before;
        }
        s->flips += s->dirty->len > 0;
        g_ptr_array_set_size(s->dirty, 0);
        evict(s, cache->shard_bytes_max);
        pthread_mutex_unlock(&s->lock);
    }
    wbuf_free(&record);
    txn_note_dirty(cache->env.txn, -flipped * ((int64_t)sizeof(struct node) + NODE_ENTRIES));
}

int node_fill_slots(struct node *n, unsigned index, unsigned count, chunk_t *first, unsigned *got)
{
    g_assert(n->level == 1 && count > 0 && index + count <= NODE_ENTRIES);
    if (!n->fill) {
        chunk_t base;
        int error = segments_alloc_group(n->cache->env.segments, &base);
        if (error)
            return error;
        struct fill_group *fill = g_new0(struct fill_group, 1);
        fill->base = base;
        struct shard *s = shard_of(n->cache, n->id);
        pthread_mutex_lock(&s->lock);
        n->fill = fill;
        s->bytes += sizeof(*fill);
        pthread_mutex_unlock(&s->lock);
    }
    uint64_t *used = n->fill->used;
    bool taken = used[index / 64] >> (index % 64) & 1;
    unsigned i = index;
    while (i < index + count && (used[i / 64] >> (i % 64) & 1) == taken) {
        used[i / 64] |= UINT64_C(1) << (i % 64);
        i++;
    }
    *first = taken ? 0 : n->fill->base + index;
    *got = i - index;
    return 0;
}

void node_cache_stats(struct node_cache *cache, struct node_cache_stats *out)
{
    *out = (struct node_cache_stats){.hits = cache->hits, .misses = cache->misses};
    for (unsigned k = 0; k < SHARDS; k++) {
        struct shard *s = &cache->shards[k];
        pthread_mutex_lock(&s->lock);
        out->nodes += g_hash_table_size(s->nodes);
        out->bytes += s->bytes;
        pthread_mutex_unlock(&s->lock);
    }
}
