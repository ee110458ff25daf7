// SPDX-License-Identifier: Apache-2.0
/*
 * file_space.c - truncate and fallocate.
 *
 * Behind the end of a file there are the rest of its last chunk and chunks that
 * were reserved. Both are zero as long as all goes well. But appending to the
 * last chunk, or to reserved ones, may overwrite in place, and a crash before
 * the next commit then leaves the bytes there and the size as it was. So they
 * are not relied upon: who makes a file longer zeros what it will show
 * (content_extend). Chunks that are not reserved never lie behind the end.
 */
#include "cowfs/file_internal.h"
#include "cowfs/home.h"
#include "cowfs/journal_internal.h"
#include "cowfs/sealer.h"
#include "cowfs/slots.h"

#include <errno.h>
#include <linux/falloc.h>

/* Chunks punched or reserved in one transaction, so that a commit need not
 * wait long for the gate: 1 GiB of 4 KiB chunks. */
#define STEP_CHUNKS (UINT64_C(1) << 18)
/* The same, where each leaf is made. */
enum { RESERVE_STEP = 16 * NODE_ENTRIES };

static int punch_chunks(struct inode *inode, uint64_t from, uint64_t to)
{
    struct fs *fs = inode->fs;
    int error = 0;
    while (from < to && !error) {
        /* Jump over what is not there: sparse files are large. */
        error = map_seek(fs->nodes, &inode->attr.map, from, to, true, &from);
        if (error)
            return error == -ENXIO ? 0 : error;
        uint64_t end = min_u64(to, round_down_u64(from, STEP_CHUNKS) + STEP_CHUNKS);
        txn_enter(fs->txn);
        error = content_unmap(inode, from, end - from);
        txn_exit(fs->txn);
        from = end;
    }
    return error;
}

int content_zero(struct inode *inode, uint64_t from, uint64_t to)
{
    static const uint8_t zeros[CHUNK_BYTES_MAX];
    uint64_t chunk_bytes = inode->fs->chunk_bytes;
    uint64_t first_whole = div_round_up_u64(from, chunk_bytes), end_whole = to / chunk_bytes;
    int error = 0;
    if (from >= to)
        return 0;
    if (first_whole > end_whole) /* within one chunk */
        return content_write(inode, zeros, to - from, from, false);
    if (from % chunk_bytes)
        error = content_write(inode, zeros, first_whole * chunk_bytes - from, from, false);
    if (!error)
        error = punch_chunks(inode, first_whole, end_whole);
    if (!error && to % chunk_bytes)
        error = content_write(inode, zeros, to % chunk_bytes, end_whole * chunk_bytes, false);
    return error;
}

int content_extend(struct inode *inode, uint64_t to)
{
    static const uint8_t zeros[CHUNK_BYTES_MAX];
    struct fs *fs = inode->fs;
    uint64_t at = inode->attr.size_bytes, chunk_bytes = fs->chunk_bytes;
    while (at < to) {
        /* Holes are zero. In place where possible: what is reserved stays so. */
        uint64_t index;
        int error = map_seek(fs->nodes, &inode->attr.map, at / chunk_bytes,
                             div_round_up_u64(to, chunk_bytes), true, &index);
        if (error)
            return error == -ENXIO ? 0 : error;
        at = max_u64(at, index * chunk_bytes);
        uint64_t end = min_u64(to, index * chunk_bytes + chunk_bytes);
        error = content_write(inode, zeros, end - at, at, true);
        if (error)
            return error;
        at = end;
    }
    return 0;
}

/* To zero: the whole map goes at once, however large. */
static int truncate_all(struct inode *inode)
{
    struct fs *fs = inode->fs;
    txn_enter(fs->txn);
    home_leave(inode, false);
    struct map map = inode->attr.map;
    inode->attr.map = (struct map){0};
    journal_drop(inode);
    file_set_size(inode, 0);
    int error = file_drop_map(fs, &map);
    txn_exit(fs->txn);
    return error;
}

/* Downwards in steps; each leaves a file that is whole and a bit shorter. */
static int truncate_down(struct inode *inode, uint64_t size_bytes)
{
    struct fs *fs = inode->fs;
    uint64_t keep = div_round_up_u64(size_bytes, fs->chunk_bytes);
    uint64_t end = div_round_up_u64(inode->attr.size_bytes, fs->chunk_bytes);
    /* What was reserved beyond the end (FALLOC_FL_KEEP_SIZE). */
    int error = punch_chunks(inode, end, map_capacity(inode->attr.map.levels));
    while (end > keep && !error) {
        error = map_seek_last(fs->nodes, &inode->attr.map, keep, end, &end);
        if (error)
            break;
        uint64_t from = max_u64(keep, round_down_u64(end - 1, STEP_CHUNKS));
        txn_enter(fs->txn);
        error = content_unmap(inode, from, end - from);
        file_set_size(inode, max_u64(size_bytes, from * fs->chunk_bytes));
        txn_exit(fs->txn);
        end = from;
    }
    if (error == -ENXIO) /* nothing but a hole is left to cut off */
        error = 0;
    if (!error && size_bytes % fs->chunk_bytes)
        error = content_zero(inode, size_bytes, keep * fs->chunk_bytes);
    /* A shared chunk would have to be copied. On a full disk cutting must work
     * all the same: what makes the file longer again does it (see above). */
    return error == -ENOSPC ? 0 : error;
}

int content_cut(struct inode *inode, uint64_t size_bytes)
{
    struct fs *fs = inode->fs;
    if (size_bytes >= inode->attr.size_bytes)
        return 0;
    int error = truncate_down(inode, size_bytes);
    if (!error) {
        txn_enter(fs->txn);
        file_set_size(inode, size_bytes);
        txn_exit(fs->txn);
    }
    return error;
}

bool file_is_cut(struct inode *inode, uint64_t size_bytes)
{
    pthread_rwlock_rdlock(&inode->map_lock);
    /* An empty file may have reserved space, which cutting gives back. */
    bool same = inode->attr.size_bytes == size_bytes && (size_bytes || !inode->attr.map.levels);
    pthread_rwlock_unlock(&inode->map_lock);
    return same;
}

int file_truncate(struct inode *inode, uint64_t size_bytes)
{
    struct fs *fs = inode->fs;
    int error = fs_may_change(fs);
    if (error)
        return error;
    if (size_bytes > (uint64_t)FILE_SIZE_MAX)
        return -EFBIG;
    pthread_rwlock_wrlock(&inode->map_lock);
    uint64_t old = inode->attr.size_bytes;
    if (size_bytes == 0 && inode->attr.map.levels)
        error = truncate_all(inode);
    else if (size_bytes < old)
        error = truncate_down(inode, size_bytes);
    else
        error = content_extend(inode, size_bytes);
    if (error && size_bytes > old)
        content_cut(inode, old);
    if (!error) {
        txn_enter(fs->txn);
        file_set_size(inode, size_bytes);
        pthread_mutex_lock(&inode->attr_lock);
        inode_touch_mtime(inode);
        pthread_mutex_unlock(&inode->attr_lock);
        inode_mark_dirty(inode);
        txn_exit(fs->txn);
    }
    pthread_rwlock_unlock(&inode->map_lock);
    return error;
}

/* Slots for the hole [index, index + *count), in a read section (slots.h). */
static int take_slots(struct inode *inode, uint64_t index, uint64_t *count, chunk_t *first)
{
    struct fs *fs = inode->fs;
    int error = home_slots(inode, index, true, count, first);
    if (error || *first)
        return error;
    txn_enter(fs->txn);
    error = map_fill_slots(fs->nodes, &inode->attr.map, index, *count, first, count);
    inode_mark_dirty(inode);
    txn_exit(fs->txn);
    if (!error && *first == 0)
        error = slots_take(fs->streams, inode->ino, *count, first, count);
    return error;
}

/* Reserves the hole [index, index + count): a piece of it, *done chunks. */
static int reserve_hole(struct inode *inode, uint64_t index, uint64_t count, uint64_t *done)
{
    struct fs *fs = inode->fs;
    chunk_t first = 0;
    home_choose(inode, index, count);
    *done = min_u64(count, RESERVE_STEP);
    unsigned section = segments_read_enter(fs->segments);
    int error = take_slots(inode, index, done, &first);
    if (!error) {
        error = segments_reserve(fs->segments, first, *done);
        if (error && first >> 32 == inode->attr.home) {
            home_leave_now(inode, true);
            if (error == -EFBIG) /* the file below cannot be that long: elsewhere */
                error = *done = 0;
        }
    }
    if (!error && *done) {
        txn_enter(fs->txn);
        error = content_map(inode, index, *done, first, true);
        txn_exit(fs->txn);
    }
    segments_read_exit(fs->segments, section);
    return error;
}

static int reserve(struct inode *inode, uint64_t from, uint64_t to)
{
    struct fs *fs = inode->fs;
    uint64_t index = from / fs->chunk_bytes, end = div_round_up_u64(to, fs->chunk_bytes);
    /* First ask for all of it, so that what cannot fit fails before it has
     * filled the disk. */
    uint64_t missing = 0;
    struct extent e;
    int error = 0;
    for (uint64_t i = index; i < end && !error; i += e.count) {
        error = map_lookup(fs->nodes, &inode->attr.map, i, end - i, false, &e);
        missing += error || e.chunk ? 0 : e.count;
    }
    if (!error && missing > UINT64_MAX / fs->chunk_bytes)
        error = -ENOSPC;
    if (!error)
        error = segments_check_space(fs->segments, missing * fs->chunk_bytes);
    while (index < end && !error) {
        uint64_t done;
        error = map_lookup(fs->nodes, &inode->attr.map, index, end - index, false, &e);
        if (error)
            break;
        done = e.count;
        if (!e.chunk)
            error = reserve_hole(inode, index, e.count, &done);
        index += done;
    }
    return error;
}

/* Zeros what of [from, to) lies within the file. */
static int zero_within(struct inode *inode, uint64_t from, uint64_t to)
{
    uint64_t size = inode->attr.size_bytes;
    if (from >= size)
        return 0;
    /* The rest of the last chunk goes too: it can then be punched whole. */
    if (to >= size)
        to = round_up_u64(size, inode->fs->chunk_bytes);
    return content_zero(inode, from, to);
}

int file_fallocate(struct inode *inode, int mode, uint64_t offset_bytes, uint64_t length_bytes)
{
    bool keep_size = mode & FALLOC_FL_KEEP_SIZE;
    int what = mode & ~FALLOC_FL_KEEP_SIZE;
    if (what != 0 && what != FALLOC_FL_ZERO_RANGE && what != FALLOC_FL_PUNCH_HOLE)
        return -EOPNOTSUPP;
    if (what == FALLOC_FL_PUNCH_HOLE && !keep_size)
        return -EOPNOTSUPP;
    if (length_bytes == 0)
        return -EINVAL;
    /* "All from here on": behind the largest file there is nothing to punch. */
    if (what == FALLOC_FL_PUNCH_HOLE && length_bytes <= INT64_MAX && offset_bytes <= INT64_MAX) {
        if (offset_bytes >= (uint64_t)FILE_SIZE_MAX)
            return 0;
        length_bytes = min_u64(length_bytes, (uint64_t)FILE_SIZE_MAX - offset_bytes);
    }
    if (!file_range_ok(offset_bytes, length_bytes))
        return -EFBIG;
    int error = fs_may_change(inode->fs);
    if (error)
        return error;
    uint64_t end = offset_bytes + length_bytes;
    pthread_rwlock_wrlock(&inode->map_lock);
    uint64_t old_size = inode->attr.size_bytes;
    if (!keep_size)
        error = content_extend(inode, end);
    if (error) {
        /* Nothing more to do. */
    } else if (what == 0) {
        error = reserve(inode, offset_bytes, end);
    } else {
        error = zero_within(inode, offset_bytes, end);
        /* Behind the end of the file all is zero, but may be reserved:
         * punching gives that back. */
        if (!error && what == FALLOC_FL_PUNCH_HOLE)
            error = punch_chunks(inode,
                                 div_round_up_u64(max_u64(offset_bytes, inode->attr.size_bytes),
                                                  inode->fs->chunk_bytes),
                                 end / inode->fs->chunk_bytes);
    }
    if (error)
        content_cut(inode, old_size);
    else
        content_changed(inode, keep_size ? 0 : end, 0);
    pthread_rwlock_unlock(&inode->map_lock);
    return error;
}
