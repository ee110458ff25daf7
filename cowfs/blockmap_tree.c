// SPDX-License-Identifier: Apache-2.0
/*
 * blockmap_tree.c - whole trees: clone, share, release, compare.
 */
#include "cowfs/blockmap_internal.h"

#include <errno.h>
#include <glib.h>

int map_clone(struct node_cache *cache, const struct map *src, struct map *dst)
{
    if (src->levels) {
        int error = counts_inc(node_cache_env(cache)->node_counts, src->root, 1, NULL, NULL);
        if (error)
            return error;
    }
    *dst = *src;
    return 0;
}

/* The id of the node of `level` over `index` in the map; 0: nothing there. */
static int find_node(struct node_cache *cache, const struct map *map, uint64_t index,
                     unsigned level, uint64_t *id)
{
    *id = 0;
    if (index >= map_capacity(map->levels) || level > map->levels)
        return 0;
    uint64_t at_id = map->root;
    for (unsigned l = map->levels; l > level && at_id; l--) {
        struct node *n;
        int error = node_get(cache, at_id, l, &n);
        if (error)
            return error;
        at_id = node_entry(n, (index >> (NODE_SHIFT * (l - 1))) % NODE_ENTRIES);
        node_put(n);
    }
    *id = at_id;
    return 0;
}

int map_find_leaf(struct node_cache *cache, const struct map *map, uint64_t index,
                  struct node **out)
{
    uint64_t id;
    *out = NULL;
    int error = find_node(cache, map, index, 1, &id);
    return error || id == 0 ? error : node_get(cache, id, 1, out);
}

/* Links the node of `level` over src_index of src into dst. Both indexes are
 * aligned to what such a node spans. */
static int share_subtree(struct node_cache *cache, const struct map *src, uint64_t src_index,
                         struct map *dst, uint64_t dst_index, unsigned level)
{
    uint64_t span = map_capacity(level), id, old;
    struct node *parent;
    int error = find_node(cache, src, src_index, level, &id);
    if (error)
        return error;
    if (id == 0)
        return map_punch(cache, dst, dst_index, span);
    /* dst must be one level higher, to have an entry to link it to. Growing
     * goes by index; an index just beyond this level's span forces it. */
    if (dst->levels <= level) {
        struct node *top;
        error = map_own_path(cache, dst, max_u64(dst_index, span), level + 1, true, &top);
        if (error)
            return error;
        node_put(top);
    }
    error = map_own_path(cache, dst, dst_index, level + 1, true, &parent);
    if (error)
        return error;
    unsigned at = (dst_index >> (NODE_SHIFT * level)) % NODE_ENTRIES;
    old = node_entry(parent, at);
    if (old != id) {
        error = counts_inc(node_cache_env(cache)->node_counts, id, 1, NULL, NULL);
        if (!error) {
            node_set_run(parent, at, 1, id);
            if (old)
                error = node_unref(cache, old, level);
        }
    }
    node_put(parent);
    return error;
}

/* The highest level whose nodes can be shared whole at these indexes; 0: none. */
static unsigned shareable_level(const struct map *src, uint64_t src_index, uint64_t dst_index,
                                uint64_t n)
{
    unsigned level = 0;
    while (level + 1 < NODE_LEVEL_MAX && level + 1 <= src->levels) {
        uint64_t span = map_capacity(level + 1);
        if (src_index % span || dst_index % span || n < span)
            break;
        level++;
    }
    return level;
}

/* Entry by entry, as far as the chunks at src_index are neighbours. The sealer may
 * exchange them meanwhile, so they get an owner more while the leaf is locked: one
 * that was just looked up may be nobody's already. */
static int share_chunks(struct node_cache *cache, const struct map *src, uint64_t src_index,
                        struct map *dst, uint64_t dst_index, uint64_t limit, uint64_t *done)
{
    struct node *leaf;
    uint64_t entry = 0;
    unsigned at = src_index % NODE_ENTRIES, alike = 0;
    int error = map_find_leaf(cache, src, src_index, &leaf);
    if (error)
        return error;
    g_assert(leaf);
    error = node_ref_chunks(leaf, at, (unsigned)min_u64(limit, NODE_ENTRIES - at), &entry, &alike);
    node_put(leaf);
    if (error)
        return error;
    *done = alike;
    error = map_set(cache, dst, dst_index, alike, ENTRY_CHUNK(entry), false);
    int lost = node_unref_chunks(cache, entry, alike);
    return error ? error : lost;
}

int map_share(struct node_cache *cache, const struct map *src, uint64_t src_index, struct map *dst,
              uint64_t dst_index, uint64_t n)
{
    while (n > 0) {
        unsigned level = shareable_level(src, src_index, dst_index, n);
        uint64_t part;
        int error;
        if (level > 0) {
            part = map_capacity(level);
            error = share_subtree(cache, src, src_index, dst, dst_index, level);
        } else {
            /* Entry by entry, up to where whole nodes may become possible. */
            struct extent e;
            uint64_t limit = n;
            if (src_index % NODE_ENTRIES == dst_index % NODE_ENTRIES)
                limit = min_u64(n, NODE_ENTRIES - src_index % NODE_ENTRIES);
            error = map_lookup(cache, src, src_index, limit, false, &e);
            if (error)
                return error;
            part = e.count;
            error = e.chunk ? share_chunks(cache, src, src_index, dst, dst_index, e.count, &part)
                            : map_punch(cache, dst, dst_index, part);
        }
        if (error)
            return error;
        src_index += part;
        dst_index += part;
        n -= part;
    }
    return 0;
}

/* Nodes of this level and below are given up in one go: at most 513 nodes. */
enum { RELEASE_LEVEL = 2, RELEASE_STEPS = 16 };

/* Gives up one subtree of at most RELEASE_LEVEL below an own node, or one
 * shared subtree of any height. */
static int release_step(struct node_cache *cache, struct node *n, bool *empty)
{
    unsigned alike, at = 0;
    while (at < NODE_ENTRIES && node_run(n, at, NODE_ENTRIES, &alike) == 0)
        at += alike;
    *empty = at >= NODE_ENTRIES;
    if (*empty)
        return 0;
    uint64_t child_id = node_entry(n, at);
    unsigned child_level = node_level(n) - 1;
    struct count_info info;
    int error = counts_get(node_cache_env(cache)->node_counts, child_id, &info);
    if (error)
        return error;
    if (child_level > RELEASE_LEVEL && info.count == 1) {
        struct node *child;
        bool child_empty;
        error = node_get(cache, child_id, child_level, &child);
        if (error)
            return error;
        error = release_step(cache, child, &child_empty);
        node_put(child);
        if (error || !child_empty)
            return error;
    }
    node_set_run(n, at, 1, 0);
    return node_unref(cache, child_id, child_level);
}

int map_release(struct node_cache *cache, struct map *map, bool *more)
{
    *more = false;
    if (map->levels == 0)
        return 0;
    struct count_info info;
    int error = counts_get(node_cache_env(cache)->node_counts, map->root, &info);
    if (error)
        return error;
    if (info.count == 1 && map->levels > RELEASE_LEVEL) {
        struct node *root;
        bool empty = false;
        error = node_get(cache, map->root, map->levels, &root);
        if (error)
            return error;
        for (unsigned i = 0; i < RELEASE_STEPS && !empty && !error; i++)
            error = release_step(cache, root, &empty);
        node_put(root);
        if (error)
            return error;
        if (!empty) {
            *more = true;
            return 0;
        }
    }
    struct map gone = *map;
    *map = (struct map){0};
    return node_unref(cache, gone.root, gone.levels);
}

int map_each(struct node_cache *cache, const struct map *map, uint64_t index, uint64_t end,
             map_extent_fn fn, void *arg)
{
    while (index < end) {
        struct extent e;
        int error = map_lookup(cache, map, index, end - index, false, &e);
        if (error)
            return error;
        if (e.chunk) {
            int stop = fn(arg, &e);
            if (stop)
                return stop;
        }
        index += e.count;
    }
    return 0;
}

struct diff {
    struct node_cache *cache;
    uint64_t begin, end; /* chunk indexes that matter */
    map_differ_fn fn;
    void *arg;
    uint64_t run_index, run_count; /* a range that may still grow */
};

static int diff_flush(struct diff *d)
{
    if (d->run_count == 0)
        return 0;
    uint64_t n = d->run_count;
    d->run_count = 0;
    return d->fn(d->arg, d->run_index, n);
}

static int diff_add(struct diff *d, uint64_t index, uint64_t n)
{
    uint64_t from = max_u64(index, d->begin), to = min_u64(index + n, d->end);
    if (from >= to)
        return 0;
    if (d->run_count && d->run_index + d->run_count == from) {
        d->run_count += to - from;
        return 0;
    }
    int stop = diff_flush(d);
    d->run_index = from;
    d->run_count = to - from;
    return stop;
}

static int diff_nodes(struct diff *d, uint64_t a, uint64_t b, unsigned level, uint64_t base);

/* One side is a hole: all that the other maps differs. */
static int diff_one(struct diff *d, uint64_t id, unsigned level, uint64_t base)
{
    struct map map = {.root = id, .levels = level};
    uint64_t span = map_capacity(level), index = d->begin > base ? d->begin - base : 0;
    while (index < span && base + index < d->end) {
        struct extent e;
        int error = map_lookup(d->cache, &map, index, span - index, false, &e);
        if (!error && e.chunk)
            error = diff_add(d, base + index, e.count);
        if (error)
            return error;
        index += e.count;
    }
    return 0;
}

static int diff_leaves(struct diff *d, struct node *a, struct node *b, uint64_t base)
{
    for (unsigned i = 0, n; i < NODE_ENTRIES; i += n) {
        unsigned alike_a, alike_b;
        uint64_t ea = node_run(a, i, NODE_ENTRIES, &alike_a);
        uint64_t eb = node_run(b, i, NODE_ENTRIES, &alike_b);
        n = alike_a < alike_b ? alike_a : alike_b;
        if (ENTRY_CHUNK(ea) != ENTRY_CHUNK(eb)) {
            int stop = diff_add(d, base + i, n);
            if (stop)
                return stop;
        }
    }
    return 0;
}

static int diff_nodes(struct diff *d, uint64_t a, uint64_t b, unsigned level, uint64_t base)
{
    if (a == b || base >= d->end || base + map_capacity(level) <= d->begin)
        return 0;
    if (a == 0 || b == 0)
        return diff_one(d, a ? a : b, level, base);
    struct node *na, *nb;
    int error = node_get(d->cache, a, level, &na);
    if (error)
        return error;
    error = node_get(d->cache, b, level, &nb);
    if (error) {
        node_put(na);
        return error;
    }
    if (level == 1) {
        error = diff_leaves(d, na, nb, base);
    } else {
        for (unsigned i = 0; i < NODE_ENTRIES && !error; i++)
            error = diff_nodes(d, node_entry(na, i), node_entry(nb, i), level - 1,
                               base + i * map_capacity(level - 1));
    }
    node_put(na);
    node_put(nb);
    return error;
}

int map_diff(struct node_cache *cache, const struct map *a, const struct map *b, uint64_t begin,
             uint64_t end, map_differ_fn fn, void *arg)
{
    struct diff d = {.cache = cache, .begin = begin, .end = end, .fn = fn, .arg = arg};
    const struct map *tall = a->levels >= b->levels ? a : b;
    const struct map *low = tall == a ? b : a;
    /* First what both heights cover; then, level by level, what only the
     * taller one has. */
    int error = 0;
    uint64_t id = 0;
    if (low->levels)
        error = find_node(cache, tall, 0, low->levels, &id);
    if (!error && low->levels)
        error = diff_nodes(&d, id, low->root, low->levels, 0);
    for (unsigned level = low->levels + 1; level <= tall->levels && !error; level++) {
        struct node *n;
        error = find_node(cache, tall, 0, level, &id);
        if (error || id == 0)
            continue;
        if (level == 1) {
            error = diff_one(&d, id, 1, 0);
            continue;
        }
        error = node_get(cache, id, level, &n);
        if (error)
            break;
        for (unsigned i = 1; i < NODE_ENTRIES && !error; i++)
            error = diff_nodes(&d, node_entry(n, i), 0, level - 1, i * map_capacity(level - 1));
        node_put(n);
    }
    return error ? error : diff_flush(&d);
}
