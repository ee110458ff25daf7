// SPDX-License-Identifier: Apache-2.0
/*
 * slots.h - packed slots for copy on write.
 *
 * A chunk that replaces a shared one (a random write to a clone) gets the next
 * slot of a stream, so that what a clone writes lies together in the segment,
 * however scattered it is in the file: few extents below, few runs to punch
 * when the clone is deleted. (Holes that are filled take slots of their leaf's
 * own group instead: node_fill_slots.)
 *
 * Threads: any. Slots are used at most once; those of a group that is not used
 * up at the end are never used (they cost nothing).
 */
#ifndef COWFS_SLOTS_H
#define COWFS_SLOTS_H

#include "chunkstore/segment.h"

struct slot_streams;

struct slot_streams *slot_streams_new(struct segments *segments);
void slot_streams_free(struct slot_streams *streams);

/* Up to `n` neighbouring slots; *got >= 1 of them. The caller is in a read
 * section (segment.h) until they are mapped or given up. `hint` (an inode number)
 * chooses the stream. -ENOSPC as segments_alloc_group. */
int slots_take(struct slot_streams *streams, uint64_t hint, uint64_t n, chunk_t *first,
               uint64_t *got);

#endif
