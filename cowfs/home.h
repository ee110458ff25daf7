// SPDX-License-Identifier: Apache-2.0
/*
 * home.h - the home of a file: the segment in which its chunk i lies in slot i.
 *
 * An inode has `home` (a home segment's id, 0: none) and two flags. They belong to
 * the map: changed under map_lock exclusively, inside the gate.
 *
 *                     home_choose               home_share (cloned)
 *     no home, at most ----------> filling ------------------------> frozen: the
 *     one leaf            |           |                              same for all
 *        ^                |           | home_leave                   its clones
 *        |                |           v                                |
 *        |     flat_pack  '------> no home <---------------------------'
 *        '--- truncate to 0 ----------'           home_leave
 *
 * Invariants, for an inode with home h that is not packing:
 *  1. Each entry i of its map is a hole or (h, i).
 *  2. Where it is a hole, slot i of h reads as zeros, if it is below the size.
 *  3. filling: h has no other inode, and a slot i of h that has no owner never had
 *     one: what is a hole can be filled from it. h is being filled
 *     (segments_home_begin) exactly as long as one inode is filling.
 *  4. Not filling: the map has all that h's filler had mapped when it was frozen,
 *     up to the inode's size. So all that are as long as h have the same content.
 * While packing, 1 does not hold: chunks lie elsewhere, too, and these have slots
 * in h that were never used. Elsewhere may be another slot of h, if sealing found an
 * equal there.
 *
 * Who would break one of these makes the inode leave its home (home_leave), in the
 * same transaction. So a map is changed only by content_map and content_unmap, or
 * by one who leaves (or has no home) himself.
 *
 * map_lock is held exclusively by all callers, but where said.
 */
#ifndef COWFS_HOME_H
#define COWFS_HOME_H

#include "cowfs/fs.h"

/* [index, index + count) are holes about to be filled. Gives the file a home if it
 * is going to be longer than one leaf, has no home yet, and nothing but one leaf of
 * its own: which is moved. Outside the gate. Without one, or if that fails, the
 * file is as good as before. */
void home_choose(struct inode *inode, uint64_t index, uint64_t count);

/* Where new data for [index, index + *count) goes in the home, and how much of it;
 * 0: elsewhere. hole: nothing is mapped there. Outside the gate; the inode may leave
 * its home here. */
int home_slots(struct inode *inode, uint64_t index, bool hole, uint64_t *count, chunk_t *first);

/* Whether an extent of the file lies in its own slots of the home. */
bool home_has(const struct inode *inode, const struct extent *e);

/* Inside the gate. unowned: bytes may have been written to slots of the home that
 * are not mapped. No home: nothing happens. */
void home_leave(struct inode *inode, bool unowned);
/* The same outside the gate. */
void home_leave_now(struct inode *inode, bool unowned);

/* dst, whose map is a clone of all of src's now, gets its home. Both are locked;
 * inside the gate. */
void home_share(struct inode *src, struct inode *dst);
/* src has a home that a copy of a part of it can have, too: nobody fills it any
 * more. 0 if not. Inside the gate. */
uint32_t home_freeze(struct inode *src);
/* The size is about to become that; inside the gate, before it does. */
void home_resize(struct inode *inode, uint64_t size_bytes);

/* Inside the gate: map_set and map_punch of the file's map. */
int content_map(struct inode *inode, uint64_t index, uint64_t n, chunk_t first, bool reserved);
int content_unmap(struct inode *inode, uint64_t index, uint64_t n);

#endif
