// SPDX-License-Identifier: Apache-2.0
/*
 * damage.h - chunks whose bytes are known to be wrong, and reading that tells.
 *
 * A sealed chunk has its hash on record. Where scrub, or a read with the mount
 * option verify, finds bytes that do not have it, the chunk is remembered, in
 * memory and by a record (KEY_DAMAGED): from then on reading it gives -EIO in
 * every file that has it, after the next opening, too. The mark goes with the
 * chunk's last owner, or when scrub finds the bytes right again.
 *
 * Only sealed chunks are marked, and those are never overwritten in place: what
 * is written over a damaged one is written elsewhere, which heals the file.
 *
 * Threads: any. Everything that reads chunks for somebody else's eyes, or to
 * copy, merge or compare them, reads them by chunks_read, outside of the gate
 * and inside a read section.
 */
#ifndef COWFS_DAMAGE_H
#define COWFS_DAMAGE_H

#include "cowfs/fs.h"

struct damage;

/* Reads the records, when the store is opened and before the workers start;
 * drops those of chunks that have no owner any more. */
int damage_load(struct fs *fs, struct damage **out);
void damage_free(struct damage *damage); /* NULL is allowed */
/* Forgets the chunks that have no owner any more. */
void damage_drop_freed(struct fs *fs);

/* Enter the gate. */
void damage_add(struct fs *fs, chunk_t chunk);
void damage_remove(struct fs *fs, chunk_t chunk);
uint64_t damage_count(struct fs *fs);
bool damage_has(struct fs *fs, chunk_t chunk);
bool damage_in_segment(struct fs *fs, uint32_t segment_id);

/* segments_read, but -EIO if one of the chunks is known to be damaged or, with
 * the option verify, is sealed and has not its hash. */
int chunks_read(struct fs *fs, chunk_t first, uint64_t skip_bytes, void *buffer, size_t bytes);

/* Ranges of chunk indexes of the file, in [index, end), that are damaged; fn's
 * non-zero return ends the walk and is returned. map_lock held. */
typedef int (*damage_range_fn)(void *arg, uint64_t index, uint64_t n);
int damage_each(struct fs *fs, const struct map *map, uint64_t index, uint64_t end,
                damage_range_fn fn, void *arg);

/* After reading a range has failed with -EIO: tells the log which part of which
 * file is damaged, once for each chunk. No lock is held. */
void damage_tell(struct inode *inode, uint64_t offset_bytes, uint64_t bytes);

#endif
