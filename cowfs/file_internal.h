// SPDX-License-Identifier: Apache-2.0
/* file_internal.h - between the file*.c: content below the locks. */
#ifndef COWFS_FILE_INTERNAL_H
#define COWFS_FILE_INTERNAL_H

#include "cowfs/file.h"

enum { WORK_BYTES = 128 * 1024 }; /* buffers for comparing and copying */

/* Reads from a map as if the file were `size_bytes` long; map_lock held, or
 * the map is a private clone. */
ssize_t content_read(struct fs *fs, const struct map *map, uint64_t size_bytes, void *buffer,
                     size_t bytes, uint64_t offset_bytes);

/* Writes all bytes; map_lock held exclusively, space not yet checked. Does not
 * touch times. grow: the size grows with what is written, so that a commit in
 * between finds no data behind the end; else the range must lie within the
 * chunks that the file has. Enters the gate as it needs. */
int content_write(struct inode *inode, const uint8_t *data, size_t bytes, uint64_t offset_bytes,
                  bool grow);

/* Zeros [from, to): punches whole chunks, writes zeros to the edges. map_lock
 * held exclusively. Does not touch size or times; `to` may not lie beyond the
 * last chunk of the file unless both are whole chunks. */
int content_zero(struct inode *inode, uint64_t from, uint64_t to);

/* Before the file grows beyond its end by other bytes than those that follow
 * it: makes all zero from there up to `to` (see file_space.c). map_lock held
 * exclusively. May grow the file, not beyond `to`. */
int content_extend(struct inode *inode, uint64_t to);

/* Cuts the file to size_bytes if it is longer. map_lock held exclusively. */
int content_cut(struct inode *inode, uint64_t size_bytes);

enum {
    CHANGED_KEEP_TIMES = 1, /* the kernel keeps mtime (writeback of its cache) */
    CHANGED_KILL_SUID = 2,  /* clear setuid/setgid */
    CHANGED_NO_SEAL = 4,    /* nothing in it that the sealer has not seen */
};
/* After a change of content, map_lock held exclusively (or shared, and
 * size_bytes is not beyond the size): the size becomes at least size_bytes,
 * times are set, and the sealer is told. Enters the gate. */
void content_changed(struct inode *inode, uint64_t size_bytes, unsigned flags);

/* Sets the size, map_lock held exclusively, inside the gate. */
void file_set_size(struct inode *inode, uint64_t size_bytes);

/* Gives up a map that belongs to nobody any more, inside the gate: at once if
 * that is little work, else by an orphan inode that the reaper releases. */
int file_drop_map(struct fs *fs, struct map *map);

/* A second reference to the content as it is now, for use over several
 * transactions: *holder's map, and its size. The holder is an orphan inode, so
 * that a crash in between leaks nothing. src's map_lock is held exclusively
 * (nobody may be about to overwrite in place what becomes shared here). Enters
 * the gate. */
int file_hold_map(struct inode *src, struct inode **holder);
void file_release_hold(struct inode *holder); /* NULL is allowed */

/* True if [offset, offset + bytes) is a range of a file. */
static inline bool file_range_ok(uint64_t offset_bytes, uint64_t bytes)
{
    return offset_bytes <= (uint64_t)FILE_SIZE_MAX && bytes <= FILE_SIZE_MAX - offset_bytes;
}

#endif
