// SPDX-License-Identifier: Apache-2.0
/*
 * node.h - nodes of the block map, and the cache of them.
 *
 * A node is a page table page: 512 entries, level 1 maps chunks (a *leaf*),
 * level 2 and above map nodes one level below. Entry 0 is a hole at any
 * level. Node ids are never used twice.
 *
 * In memory a node is *affine* (entries lo..hi-1 are base, base+1, ..., the
 * rest holes; no array, some 150 bytes) or has an array of 4 KiB. On disk it
 * is a list of runs (docs/FORMAT.md).
 *
 * Invariants:
 *  1. A node is changed only by one who holds its owner's map lock exclusively
 *     and knows that node and path have one owner; or, for leaves, by the
 *     sealer, which replaces a chunk by one of equal bytes under node->lock.
 *  2. Entries of a leaf are therefore read under its lock (the functions here
 *     take it); interior nodes need none.
 *  3. A changed node stays in the cache until its flip.
 *
 * Threads: any. Locks: cache shard mutex, then nothing; node->lock is a leaf
 * lock under which only counts may be changed.
 */
#ifndef COWFS_NODE_H
#define COWFS_NODE_H

#include "chunkstore/refcount.h"
#include "chunkstore/segment.h"
#include "chunkstore/txn.h"

enum {
    NODE_SHIFT = 9,
    NODE_ENTRIES = 1 << NODE_SHIFT,
    NODE_LEVEL_MAX = 6, /* 6 * 9 + 12 bits: beyond what off_t can hold */
};

/* A leaf entry is a chunk number with, in the top bit, the flag that
 * fallocate reserved it: zeros written there stay allocated. */
#define ENTRY_RESERVED (UINT64_C(1) << 63)
#define ENTRY_CHUNK(e) ((chunk_t)((e) & ~ENTRY_RESERVED))

struct node;
struct node_cache;

struct node_env {
    struct metadb *db;
    struct counts *node_counts;
    struct counts *chunk_counts;
    struct segments *segments;
    struct txn *txn;
};

/* next_id: the first id never used. cache_bytes bounds unchanged nodes. */
struct node_cache *node_cache_new(const struct node_env *env, uint64_t next_id, size_t cache_bytes);
void node_cache_free(struct node_cache *cache);
/* For the transaction: writes changed nodes to the metadb (exclusive gate). */
void node_cache_flip(struct node_cache *cache);
uint64_t node_cache_next_id(const struct node_cache *cache);
const struct node_env *node_cache_env(const struct node_cache *cache);

/* Pins the node in memory. -EUCLEAN if it is missing or damaged, or not of
 * the level expected. */
int node_get(struct node_cache *cache, uint64_t id, unsigned level, struct node **out);
void node_put(struct node *node); /* NULL is allowed */
/* A copy of the entries, for one who holds no lock of a file that has the node
 * and must reckon with it changing or vanishing: -ENOENT if there is no such
 * node of that level (any more). */
int node_peek(struct node_cache *cache, uint64_t id, unsigned level, uint64_t *entries);

uint64_t node_id(const struct node *node);
unsigned node_level(const struct node *node);

/* The entry at index, and for how many entries (at most limit, >= 1) it goes
 * on: holes, or values that rise by one. */
uint64_t node_run(struct node *node, unsigned index, unsigned limit, unsigned *alike);
static inline uint64_t node_entry(struct node *node, unsigned index)
{
    unsigned alike;
    return node_run(node, index, 1, &alike);
}

/* The same for a leaf, and whether these chunks are exclusive (counts_exclusive_run); *alike
 * is for how many both is so. Atomic against the sealer's exchange: a chunk that it has taken
 * out of the leaf may be exclusive to another file a moment later. */
int node_exclusive_run(struct node *leaf, unsigned index, unsigned limit, uint64_t *entry,
                       unsigned *alike, bool *exclusive);

/* A new empty node with one owner (the caller, who links it). Pinned. */
int node_new(struct node_cache *cache, unsigned level, struct node **out);
/* A new node with the entries of `node`, whose children get one owner more;
 * one owner (the caller). Pinned. */
int node_copy(struct node_cache *cache, struct node *node, struct node **out);

/* Sets count entries from index to first, first+1, ... (0: holes). The caller
 * moves the counts. The node must be changeable (invariant 1). */
void node_set_run(struct node *n, unsigned index, unsigned count, uint64_t first);
/* The sealer's exchange: replaces `count` entries from `index` on by `value`,
 * `value` + 1, ... if all still are `expected`, `expected` + 1, ... Returns whether
 * it did. */
bool node_exchange(struct node *n, unsigned index, unsigned count, uint64_t expected,
                   uint64_t value);

/* One owner less for a node of that level; the last one frees it and, in
 * turn, all that it alone owns. Errors leave counts too high (a leak that
 * fsck finds), never too low. */
int node_unref(struct node_cache *cache, uint64_t id, unsigned level);
/* One owner more for the chunks of a leaf from index on, for the caller, who drops them
 * with node_unref_chunks. *entry and *alike: as node_run gives them. Atomic against
 * the sealer's exchange. */
int node_ref_chunks(struct node *leaf, unsigned index, unsigned limit, uint64_t *entry,
                    unsigned *alike);
/* Drops the chunks of a run of leaf entries. */
int node_unref_chunks(struct node_cache *cache, uint64_t first_entry, unsigned n);

/*
 * Slots for chunks that fill holes of this leaf: index i of a leaf that is
 * filled bit by bit always gets the slot base + i of one fresh group, so that
 * the leaf ends as one run in whatever order it is written. Returns the chunk
 * numbers for [index, index+count), *got of them. For leaves only, map lock held
 * exclusively. Slots are used at most once; 0 and *got if the group's slots
 * for this range are used up: the caller then takes packed slots. The caller
 * is in a read section (segment.h) until the slots are mapped or given up.
 */
int node_fill_slots(struct node *n, unsigned index, unsigned count, chunk_t *first, unsigned *got);

/* The codec, for fsck: decodes a record into level and 512 entries, and back. */
void node_encode_entries(unsigned level, uint64_t entries[NODE_ENTRIES], struct wbuf *out);
int node_decode(const void *record, size_t len, unsigned *level, uint64_t entries[NODE_ENTRIES]);

struct node_cache_stats {
    uint64_t nodes, bytes, hits, misses;
};
void node_cache_stats(struct node_cache *cache, struct node_cache_stats *out);

#endif
