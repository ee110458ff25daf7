// SPDX-License-Identifier: Apache-2.0
/* blockmap_internal.h - between blockmap.c and blockmap_tree.c. */
#ifndef COWFS_BLOCKMAP_INTERNAL_H
#define COWFS_BLOCKMAP_INTERNAL_H

#include "cowfs/blockmap.h"

/* The node of that level on the path to `index`, pinned, with all nodes on the
 * path made the map's own. Missing nodes are made if `create`, else *out is
 * NULL. The map must have at least `level` levels unless create. */
int map_own_path(struct node_cache *cache, struct map *map, uint64_t index, unsigned level,
                 bool create, struct node **out);

/* The leaf over `index`, pinned, shared or not; NULL if there is none. */
int map_find_leaf(struct node_cache *cache, const struct map *map, uint64_t index,
                  struct node **out);

#endif
