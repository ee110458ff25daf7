// SPDX-License-Identifier: Apache-2.0
/*
 * refcount.h - how many owners a chunk (or a block map node) has.
 *
 * The table is dm-thin's space map in our terms: one counter per number, for
 * chunks and, in a second table, for nodes. The owners of a chunk are the
 * entries of leaf nodes that hold its number; the owners of a node are the
 * entries of nodes above it and the roots of inodes. Counters live in groups
 * of 512, in memory as one value (all alike) or an array, on disk as runs, so
 * that raising the counts of a whole leaf costs one group.
 *
 * Besides the count, a chunk has two facts here:
 *   sealed      its bytes never change again, and (once hashed) its content
 *               hash is in the index;
 *   merges      how many of its owners came by deduplication (for df),
 *               saturating at 127, never more than count - 1.
 *
 * May a chunk be overwritten in place? Only if a roll-back to the last durable
 * commit could not show the new bytes through another owner. Therefore a
 * group that is changed keeps, until the commit of that change is durable, a
 * bitmap `was_shared`: the numbers that had two or more owners at any moment
 * since the last durable commit. A number is *exclusive* if count == 1, not
 * was_shared and not sealed. (Looking at the durable count alone would not do:
 * clone, delete the original, write to the clone leaves it at 1 all the time.)
 *
 * Threads: all functions from any thread, inside a transaction (txn.h) for
 * those that change. Locks: one mutex per shard of groups, leaf locks (nothing
 * is taken inside but the metadb's). Errors: negative errno from reading a
 * group; then nothing was changed.
 */
#ifndef CHUNKSTORE_REFCOUNT_H
#define CHUNKSTORE_REFCOUNT_H

#include "chunkstore/keys.h"
#include "chunkstore/metadb.h"

enum { COUNT_GROUP = 512 };

struct counts;

/* cache_bytes bounds the memory of groups that are not changed. Does not own
 * `db`. `type` is KEY_CHUNK_COUNTS or KEY_NODE_COUNTS. */
struct counts *counts_new(struct metadb *db, enum key_type type, size_t cache_bytes);
void counts_free(struct counts *c);

/* A run of numbers that changed between 0 and more owners. */
typedef void (*counts_run_fn)(void *arg, uint64_t first, uint32_t n, bool sealed);

/* One owner more for each of `n` numbers from `first`. `born` (may be NULL)
 * hears of those that had none. -EOVERFLOW if one would pass 2^32 - 1. */
int counts_inc(struct counts *c, uint64_t first, uint32_t n, counts_run_fn born, void *arg);

/* One owner less. `dead` hears of those that have none left; their sealed and
 * merges are reset. -EUCLEAN if a count was 0 already (then that number is
 * left alone, the rest is done). */
int counts_dec(struct counts *c, uint64_t first, uint32_t n, counts_run_fn dead, void *arg);

struct count_info {
    uint32_t count;
    bool sealed;
    uint8_t merges;
    bool was_shared;
};
int counts_get(struct counts *c, uint64_t id, struct count_info *out);

/* How many numbers from `first` (at most n) are exclusive, or, if the first
 * is not, how many are not: *exclusive says which. */
int counts_exclusive_run(struct counts *c, uint64_t first, uint32_t n, bool *exclusive,
                         uint32_t *alike);
/* How many numbers from `first` (at most n) have the same count and sealed as
 * the first. */
int counts_alike_run(struct counts *c, uint64_t first, uint32_t n, struct count_info *info,
                     uint32_t *alike);

/* Marks chunks that have an owner as sealed, from `first` on, up to the first that is
 * sealed already: *sealed of them, at most n. So two who seal at the same time never both
 * have marked one. On an error *sealed are marked all the same. The caller excludes
 * writers. */
int counts_seal(struct counts *c, uint64_t first, uint32_t n, uint32_t *sealed);

/* Takes the mark back from chunks that were not entered in the index, as far as
 * they still have an owner. */
int counts_unseal(struct counts *c, uint64_t first, uint32_t n);

/* Deduplication: one owner more for each number from `first` on, counted as a
 * merge, as long as they have an owner and are sealed: *merged of them, at most n.
 * -ENOENT if not even the first is. */
int counts_merge(struct counts *c, uint64_t first, uint32_t n, uint32_t *merged);

/* Commit, called by txn.c. flip: under the exclusive gate, writes changed
 * groups to the metadb's running overlay. durable: that is on disk. */
void counts_flip(struct counts *c);
void counts_durable(struct counts *c);

struct counts_stats {
    uint64_t live;   /* numbers with an owner (since counts_new: a delta) */
    uint64_t merges; /* sum of merges (delta) */
    uint64_t groups_cached;
    uint64_t bytes_cached;
};
void counts_stats(struct counts *c, struct counts_stats *out);

/* The record of a group, for repair; nothing if all counts are 0. */
struct wbuf;
void counts_encode(const struct count_info info[COUNT_GROUP], struct wbuf *out);
/* The codec of a group record, for fsck: calls fn for each run of equal
 * (count, sealed, merges). -EUCLEAN if the record is damaged. */
int counts_decode(const void *record, size_t len,
                  void (*fn)(void *arg, uint32_t first, uint32_t n, struct count_info info),
                  void *arg);

#endif
