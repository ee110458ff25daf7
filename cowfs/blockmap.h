// SPDX-License-Identifier: Apache-2.0
/*
 * blockmap.h - the map of one file: chunk index in the file -> chunk number.
 *
 * A radix tree of the shape of a page table (node.h). A map is a root node id
 * and a number of levels; levels 0 means all holes. Copying the pair and
 * raising the root's count is a clone.
 *
 * Locking is the caller's: functions that only look want the file's map lock
 * shared, those that change want it exclusive, and a transaction (txn.h).
 * Errors: negative errno; on an error of a changing function the map is
 * valid, and the part of the range that was done stays done.
 */
#ifndef COWFS_BLOCKMAP_H
#define COWFS_BLOCKMAP_H

#include "cowfs/node.h"

struct map {
    uint64_t root; /* node id, 0 if levels is 0 */
    unsigned levels;
};

/* Chunk indexes that a map of `levels` can hold. */
static inline uint64_t map_capacity(unsigned levels)
{
    return levels ? UINT64_C(1) << (NODE_SHIFT * levels) : 0;
}

struct extent {
    uint64_t index; /* first chunk index in the file */
    uint64_t count; /* chunks */
    chunk_t chunk;  /* first chunk number (without flags), 0: hole */
    bool reserved;  /* ENTRY_RESERVED */
    bool exclusive; /* may be overwritten in place (only if asked for) */
};

/* The extent at `index`, at most `limit` chunks. want_exclusive: fill
 * `exclusive` too (it costs looking at counts). */
int map_lookup(struct node_cache *cache, const struct map *map, uint64_t index, uint64_t limit,
               bool want_exclusive, struct extent *out);

/* The first index >= `index` that is mapped (data) or a hole; indexes beyond
 * `end` count as holes. -ENXIO if there is no such data before `end`. */
int map_seek(struct node_cache *cache, const struct map *map, uint64_t index, uint64_t end,
             bool data, uint64_t *out);

/* One more than the last index in [begin, end) that is mapped. -ENXIO if there
 * is none. */
int map_seek_last(struct node_cache *cache, const struct map *map, uint64_t begin, uint64_t end,
                  uint64_t *out);

/* Maps [index, index+n) to chunks first, first+1, ..., which get one owner
 * more each (new chunks their first). What was mapped there loses one. */
int map_set(struct node_cache *cache, struct map *map, uint64_t index, uint64_t n, chunk_t first,
            bool reserved);

/* Makes [index, index+n) a hole. n may reach to UINT64_MAX - index. */
int map_punch(struct node_cache *cache, struct map *map, uint64_t index, uint64_t n);

/* Slots to write new data for [index, index+n) to: in the leaf's own group
 * where the range is a hole there (see node_fill_slots), else 0 in *first.
 * *got: how many of the n. Makes the path to the leaf exclusive. */
int map_fill_slots(struct node_cache *cache, struct map *map, uint64_t index, uint64_t n,
                   chunk_t *first, uint64_t *got);

/* Makes [dst_index, +n) of dst share what [src_index, +n) of src maps, by
 * whole subtrees where alignment allows, by entries elsewhere. src and dst
 * may have the same root (dst holds its own reference). */
int map_share(struct node_cache *cache, const struct map *src, uint64_t src_index, struct map *dst,
              uint64_t dst_index, uint64_t n);

/* A second map with the same content: O(1). */
int map_clone(struct node_cache *cache, const struct map *src, struct map *dst);

/* Gives up the map; *more is set if it was too large for one transaction: call
 * again (in another). Work per call is bounded. */
int map_release(struct node_cache *cache, struct map *map, bool *more);

/* Calls fn for each maximal mapped extent in [index, end). fn's non-zero
 * return ends the walk and is returned. */
typedef int (*map_extent_fn)(void *arg, const struct extent *extent);
int map_each(struct node_cache *cache, const struct map *map, uint64_t index, uint64_t end,
             map_extent_fn fn, void *arg);

/* Calls fn for each range of indexes in which the maps have different chunk
 * numbers (not: different bytes), in order, from chunk index begin up to
 * end; shared subtrees are skipped unseen. */
typedef int (*map_differ_fn)(void *arg, uint64_t index, uint64_t n);
int map_diff(struct node_cache *cache, const struct map *a, const struct map *b, uint64_t begin,
             uint64_t end, map_differ_fn fn, void *arg);

#endif
