// SPDX-License-Identifier: Apache-2.0
/*
 * blockmap.c - looking up, and changing entries with copy on write of the
 * path. Sharing, releasing and comparing whole trees: blockmap_tree.c.
 */
#include "cowfs/blockmap.h"
#include "cowfs/blockmap_internal.h"

#include <errno.h>
#include <glib.h>

/* A run of nodes or chunks whose path is exclusive so far? */
static int node_exclusive(struct node_cache *cache, uint64_t id, bool *exclusive)
{
    struct count_info info;
    int error = counts_get(node_cache_env(cache)->node_counts, id, &info);
    *exclusive = !error && info.count == 1 && !info.was_shared;
    return error;
}

static int leaf_extent(struct node *leaf, unsigned at, unsigned limit, bool want_exclusive,
                       struct extent *out)
{
    uint64_t entry;
    unsigned alike;
    int error = 0;
    out->exclusive = false;
    if (want_exclusive)
        error = node_exclusive_run(leaf, at, limit, &entry, &alike, &out->exclusive);
    else
        entry = node_run(leaf, at, limit, &alike);
    if (error)
        return error;
    out->chunk = ENTRY_CHUNK(entry);
    out->reserved = entry & ENTRY_RESERVED;
    out->count = alike;
    return 0;
}

int map_lookup(struct node_cache *cache, const struct map *map, uint64_t index, uint64_t limit,
               bool want_exclusive, struct extent *out)
{
    g_assert(limit > 0);
    *out = (struct extent){.index = index, .count = limit};
    if (index >= map_capacity(map->levels))
        return 0;
    uint64_t id = map->root;
    bool path_exclusive = true;
    for (unsigned level = map->levels;; level--) {
        struct node *n;
        unsigned shift = NODE_SHIFT * (level - 1);
        unsigned at = (index >> shift) % NODE_ENTRIES;
        unsigned alike;
        int error = 0;
        if (want_exclusive && path_exclusive)
            error = node_exclusive(cache, id, &path_exclusive);
        if (!error)
            error = node_get(cache, id, level, &n);
        if (error)
            return error;
        if (level == 1) {
            error = leaf_extent(n, at, (unsigned)min_u64(limit, NODE_ENTRIES),
                                want_exclusive && path_exclusive, out);
            node_put(n);
            return error;
        }
        uint64_t entry = node_run(n, at, NODE_ENTRIES, &alike);
        node_put(n);
        if (entry == 0) {
            /* A hole up to the end of the run of empty entries. */
            uint64_t end = ((index >> shift) + alike) << shift;
            out->count = min_u64(limit, end - index);
            return 0;
        }
        id = entry;
    }
}

int map_seek(struct node_cache *cache, const struct map *map, uint64_t index, uint64_t end,
             bool data, uint64_t *out)
{
    while (index < end) {
        struct extent e;
        int error = map_lookup(cache, map, index, end - index, false, &e);
        if (error)
            return error;
        if ((e.chunk != 0) == data) {
            *out = index;
            return 0;
        }
        index += e.count;
    }
    *out = end;
    return data ? -ENXIO : 0;
}

/* The same within [lo, hi) of one node, from the right. */
static int seek_last(struct node_cache *cache, uint64_t id, unsigned level, uint64_t lo,
                     uint64_t hi, uint64_t *out)
{
    unsigned shift = NODE_SHIFT * (level - 1);
    uint64_t span = UINT64_C(1) << shift;
    struct node *n;
    int error = node_get(cache, id, level, &n);
    if (error)
        return error;
    error = -ENXIO;
    for (uint64_t i = (hi - 1) >> shift; error == -ENXIO; i--) {
        uint64_t entry = node_entry(n, (unsigned)i), start = i * span;
        if (entry && level == 1) {
            *out = i + 1;
            error = 0;
        } else if (entry) {
            error = seek_last(cache, entry, level - 1, max_u64(lo, start) - start,
                              min_u64(hi, start + span) - start, out);
            *out += error ? 0 : start;
        }
        if (start <= lo)
            break;
    }
    node_put(n);
    return error;
}

int map_seek_last(struct node_cache *cache, const struct map *map, uint64_t begin, uint64_t end,
                  uint64_t *out)
{
    *out = 0;
    end = min_u64(end, map_capacity(map->levels));
    if (begin >= end)
        return -ENXIO;
    return seek_last(cache, map->root, map->levels, begin, end, out);
}

/* Makes node `id` of that level the caller's alone, pinned in *out. If it is
 * shared, a copy takes its place: *id changes, and the caller links it. */
static int own_node(struct node_cache *cache, uint64_t *id, unsigned level, struct node **out)
{
    struct count_info info;
    int error = counts_get(node_cache_env(cache)->node_counts, *id, &info);
    if (!error)
        error = node_get(cache, *id, level, out);
    if (error || info.count == 1)
        return error;
    struct node *copy;
    error = node_copy(cache, *out, &copy);
    node_put(*out);
    if (error)
        return error;
    uint64_t old = *id;
    *id = node_id(copy);
    *out = copy;
    /* The copy raised the children's counts first, so this cannot free what
     * the copy holds. An error here is a leak, not a failure of the caller. */
    node_unref(cache, old, level);
    return 0;
}

/* Puts roots on top until the map holds `index`. */
static int grow(struct node_cache *cache, struct map *map, uint64_t index)
{
    while (index >= map_capacity(map->levels)) {
        unsigned levels = map->levels + 1;
        if (levels > NODE_LEVEL_MAX)
            return -EFBIG;
        if (map->levels == 0 && index >= map_capacity(levels)) {
            /* Nothing below: go to the right height at once. */
            while (index >= map_capacity(levels))
                if (++levels > NODE_LEVEL_MAX)
                    return -EFBIG;
        }
        struct node *root;
        int error = node_new(cache, levels, &root);
        if (error)
            return error;
        if (map->levels)
            node_set_run(root, 0, 1, map->root);
        map->root = node_id(root);
        map->levels = levels;
        node_put(root);
    }
    return 0;
}

int map_own_path(struct node_cache *cache, struct map *map, uint64_t index, unsigned level,
                 bool create, struct node **out)
{
    *out = NULL;
    if (index >= map_capacity(map->levels)) {
        if (!create)
            return 0;
        int error = grow(cache, map, index);
        if (error)
            return error;
    }
    g_assert(level <= map->levels);
    struct node *n;
    uint64_t id = map->root;
    int error = own_node(cache, &id, map->levels, &n);
    if (error)
        return error;
    map->root = id;
    for (unsigned l = map->levels; l > level; l--) {
        struct node *child;
        unsigned at = (index >> (NODE_SHIFT * (l - 1))) % NODE_ENTRIES;
        uint64_t entry = node_entry(n, at);
        uint64_t child_id = entry;
        if (entry) {
            error = own_node(cache, &child_id, l - 1, &child);
        } else if (create) {
            error = node_new(cache, l - 1, &child);
            child_id = error ? 0 : node_id(child);
        } else {
            node_put(n);
            return 0;
        }
        if (error) {
            node_put(n);
            return error;
        }
        if (child_id != entry)
            node_set_run(n, at, 1, child_id);
        node_put(n);
        n = child;
    }
    *out = n;
    return 0;
}

static void chunk_born(void *arg, uint64_t first, uint32_t n, bool sealed)
{
    const struct node_env *env = arg;
    (void)sealed;
    segments_account_live(env->segments, first, n);
}

/* Sets entries of an own leaf and moves the counts. */
static int leaf_set(struct node_cache *cache, struct node *leaf, unsigned at, unsigned n,
                    uint64_t first_entry)
{
    const struct node_env *env = node_cache_env(cache);
    if (first_entry) {
        int error = counts_inc(env->chunk_counts, ENTRY_CHUNK(first_entry), n, chunk_born,
                               (void *)(uintptr_t)env);
        if (error)
            return error;
    }
    /* Old owners are given up last, so that replacing a chunk by itself does
     * not free it. */
    struct {
        uint64_t entry;
        unsigned n;
    } old[NODE_ENTRIES];
    unsigned olds = 0;
    for (unsigned i = at, alike; i < at + n; i += alike) {
        uint64_t entry = node_run(leaf, i, at + n - i, &alike);
        if (entry) {
            old[olds].entry = entry;
            old[olds++].n = alike;
        }
    }
    node_set_run(leaf, at, n, first_entry);
    int result = 0;
    for (unsigned i = 0; i < olds; i++) {
        int error = node_unref_chunks(cache, old[i].entry, old[i].n);
        result = error ? error : result;
    }
    return result;
}

int map_set(struct node_cache *cache, struct map *map, uint64_t index, uint64_t n, chunk_t first,
            bool reserved)
{
    while (n > 0) {
        struct node *leaf;
        unsigned at = index % NODE_ENTRIES;
        unsigned part = (unsigned)min_u64(n, NODE_ENTRIES - at);
        int error = map_own_path(cache, map, index, 1, true, &leaf);
        if (error)
            return error;
        error = leaf_set(cache, leaf, at, part, first | (reserved ? ENTRY_RESERVED : 0));
        node_put(leaf);
        if (error)
            return error;
        index += part;
        first += part;
        n -= part;
    }
    return 0;
}

int map_fill_slots(struct node_cache *cache, struct map *map, uint64_t index, uint64_t n,
                   chunk_t *first, uint64_t *got)
{
    struct node *leaf;
    unsigned at = index % NODE_ENTRIES;
    unsigned part = (unsigned)min_u64(n, NODE_ENTRIES - at);
    int error = map_own_path(cache, map, index, 1, true, &leaf);
    if (error)
        return error;
    error = node_fill_slots(leaf, at, part, first, &part);
    *got = part;
    node_put(leaf);
    return error;
}

static bool node_is_empty(struct node *n)
{
    unsigned alike;
    return node_run(n, 0, NODE_ENTRIES, &alike) == 0 && alike == NODE_ENTRIES;
}

/* Gives up entries [at, at + n) of an own node whole. */
static int drop_entries(struct node_cache *cache, struct node *node, unsigned at, unsigned n)
{
    if (node_level(node) == 1)
        return leaf_set(cache, node, at, n, 0);
    int result = 0;
    for (unsigned i = at; i < at + n; i++) {
        uint64_t entry = node_entry(node, i);
        if (entry == 0)
            continue;
        node_set_run(node, i, 1, 0);
        int error = node_unref(cache, entry, node_level(node) - 1);
        result = error ? error : result;
    }
    return result;
}

/* Punches [lo, hi), relative to the own node, that many chunks. */
static int punch_node(struct node_cache *cache, struct node *node, uint64_t lo, uint64_t hi)
{
    unsigned level = node_level(node);
    uint64_t span = UINT64_C(1) << (NODE_SHIFT * (level - 1));
    uint64_t whole_lo = round_up_u64(lo, span), whole_hi = round_down_u64(hi, span);
    if (whole_lo < whole_hi) {
        int error = drop_entries(cache, node, (unsigned)(whole_lo / span),
                                 (unsigned)((whole_hi - whole_lo) / span));
        if (error)
            return error;
    }
    /* What is left are at most two partial entries, at the ends; one, if the
     * range lies within a single entry (then whole_lo > whole_hi). */
    uint64_t edges[2][2] = {{lo, min_u64(hi, whole_lo)}, {max_u64(lo, whole_hi), hi}};
    for (unsigned k = 0; k < (whole_lo > whole_hi ? 1 : 2); k++) {
        uint64_t from = edges[k][0], to = edges[k][1];
        if (from >= to)
            continue;
        unsigned at = (unsigned)(from / span);
        uint64_t entry = node_entry(node, at), child_id = entry;
        struct node *child;
        if (entry == 0)
            continue;
        int error = own_node(cache, &child_id, level - 1, &child);
        if (error)
            return error;
        if (child_id != entry)
            node_set_run(node, at, 1, child_id);
        error = punch_node(cache, child, from - at * span, to - at * span);
        bool empty = !error && node_is_empty(child);
        node_put(child);
        if (empty) {
            node_set_run(node, at, 1, 0);
            error = node_unref(cache, child_id, level - 1);
        }
        if (error)
            return error;
    }
    return 0;
}

int map_punch(struct node_cache *cache, struct map *map, uint64_t index, uint64_t n)
{
    uint64_t capacity = map_capacity(map->levels);
    if (n == 0 || index >= capacity)
        return 0;
    uint64_t end = n > capacity - index ? capacity : index + n;
    if (index > 0 || end < capacity) {
        /* Copying a path only to find nothing there would be a waste. */
        uint64_t found;
        int error = map_seek(cache, map, index, end, true, &found);
        if (error)
            return error == -ENXIO ? 0 : error;
        struct node *root;
        uint64_t id = map->root;
        error = own_node(cache, &id, map->levels, &root);
        if (error)
            return error;
        map->root = id;
        error = punch_node(cache, root, index, end);
        bool empty = !error && node_is_empty(root);
        node_put(root);
        if (!empty)
            return error;
    }
    uint64_t root = map->root;
    unsigned levels = map->levels;
    *map = (struct map){0};
    return node_unref(cache, root, levels);
}
