// SPDX-License-Identifier: Apache-2.0
/*
 * node_internal.h - the inside of a node, for node*.c only.
 *
 * Invariants:
 *  1. entries == NULL: the node is affine: entry i is base + (i - lo) for
 *     lo <= i < hi, else a hole; lo == hi: empty.
 *  2. dirty: the node is in its shard's dirty array, exactly once, and stays
 *     allocated until the flip even if it dies before.
 *  3. pins has the bit DEAD (node.c): it is in no hash table; nobody but those
 *     who pin it sees it.
 */
#ifndef COWFS_NODE_INTERNAL_H
#define COWFS_NODE_INTERNAL_H

#include "cowfs/node.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

/* The group of slots that a leaf is being filled from (node_fill_slots). */
struct fill_group {
    chunk_t base;
    uint64_t used[NODE_ENTRIES / 64];
};

struct node {
    uint64_t id;
    struct node_cache *cache;
    atomic_int pins;
    uint8_t level;
    bool dirty, persisted;
    atomic_bool referenced;
    uint16_t lo, hi;
    uint64_t base;
    uint64_t *entries;
    struct fill_group *fill;
    pthread_rwlock_t lock;
    GList link; /* clock queue of the shard; data NULL while not in it */
};

void node_init_affine(struct node *n);
size_t node_bytes(const struct node *n);
/* The same as node_run, the lock being held or not needed. */
uint64_t node_run_unlocked(const struct node *n, unsigned index, unsigned limit, unsigned *alike);
void node_set_run_unlocked(struct node *n, unsigned index, unsigned count, uint64_t first);
void node_copy_entries(const struct node *from, struct node *to);
/* Back to the affine form where the entries allow it. */
void node_compact(struct node *n);
void node_encode(const struct node *n, struct wbuf *out);

#endif
