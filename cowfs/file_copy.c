// SPDX-License-Identifier: Apache-2.0
/*
 * file_copy.c - copy_file_range: sharing where it can, copying where it must.
 *
 * The kernel does not lock the source. Its map is cloned first, under its
 * lock: one consistent root, whatever is written to it meanwhile.
 */
#include "cowfs/file_internal.h"
#include "cowfs/home.h"
#include "cowfs/journal_internal.h"
#include "cowfs/sealer.h"

#include <errno.h>
#include <glib.h>

/* Bytes moved by hand in one call at the most (the caller gets a short count
 * and comes again), so that a signal is seen in time. */
#define BYTE_COPY_MAX (UINT64_C(64) << 20)
/* Chunks shared in one transaction, not counting whole subtrees. */
#define SHARE_STEP (UINT64_C(1) << 18)

struct copy {
    struct fs *fs;
    struct inode *holder; /* of the source's map, as it was at the start */
    struct map map;       /* that map */
    uint64_t src_size;
    struct inode *dst;
    uint64_t dst_end; /* where the copy ends there */
};

/* The first byte at or after `at`, but before `end`, that the source maps; `end`
 * if there is none. */
static int next_data(struct copy *c, uint64_t at, uint64_t end, uint64_t *out)
{
    uint64_t chunk_bytes = c->fs->chunk_bytes, index;
    int error = map_seek(c->fs->nodes, &c->map, at / chunk_bytes,
                         div_round_up_u64(end, chunk_bytes), true, &index);
    *out = error ? end : min_u64(end, max_u64(at, index * chunk_bytes));
    return error == -ENXIO ? 0 : error;
}

/* Makes [from, to) of the destination what a hole of the source is. */
static int copy_hole(struct copy *c, uint64_t from, uint64_t to)
{
    struct inode *dst = c->dst;
    uint64_t end = round_up_u64(dst->attr.size_bytes, c->fs->chunk_bytes);
    int error = content_zero(dst, from, min_u64(to, max_u64(end, from)));
    return error ? error : content_extend(dst, to);
}

/* Copies at least one byte, and up to BYTE_COPY_MAX where there is data. */
static int copy_bytes(struct copy *c, uint64_t src, uint64_t dst, uint64_t bytes, uint64_t *done)
{
    uint8_t *buffer = g_malloc(WORK_BYTES);
    uint64_t moved = 0;
    int error = 0;
    *done = 0;
    while (*done < bytes && moved < BYTE_COPY_MAX && !error) {
        uint64_t data, left = bytes - *done;
        error = next_data(c, src, src + left, &data);
        if (error)
            break;
        uint64_t part = data - src;
        if (part) {
            error = copy_hole(c, dst, dst + part);
        } else {
            part = min_u64(left, WORK_BYTES - dst % c->fs->chunk_bytes);
            ssize_t n = content_read(c->fs, &c->map, c->src_size, buffer, part, src);
            if (n != (ssize_t)part)
                error = n < 0 ? (int)n : -EIO;
            else
                error = content_write(c->dst, buffer, part, dst, true);
            moved += part;
        }
        src += part;
        dst += part;
        *done += error ? 0 : part;
    }
    g_free(buffer);
    return error;
}

/* One step, in one transaction; the size grows with it. */
static int share_step(struct copy *c, uint64_t src_index, uint64_t dst_index, uint64_t count)
{
    struct inode *dst = c->dst;
    txn_enter(c->fs->txn);
    home_leave(dst, false);
    int error = map_share(c->fs->nodes, &c->map, src_index, &dst->attr.map, dst_index, count);
    journal_share(c->holder, src_index, dst, dst_index, count);
    uint64_t end = min_u64((dst_index + count) * c->fs->chunk_bytes, c->dst_end);
    if (!error && end > dst->attr.size_bytes)
        file_set_size(dst, end);
    inode_mark_dirty(dst);
    txn_exit(c->fs->txn);
    return error;
}

static int share_chunks(struct copy *c, uint64_t src_index, uint64_t dst_index, uint64_t count)
{
    uint64_t chunk_bytes = c->fs->chunk_bytes;
    bool aligned = src_index % SHARE_STEP == dst_index % SHARE_STEP;
    int error = 0;
    while (count > 0 && !error) {
        /* Jump over holes; where subtrees can be shared, up to where one
         * begins. */
        uint64_t data;
        error = next_data(c, src_index * chunk_bytes, (src_index + count) * chunk_bytes, &data);
        if (error)
            break;
        data /= chunk_bytes;
        if (aligned && data < src_index + count)
            data = round_down_u64(data, SHARE_STEP);
        uint64_t part = data > src_index ? data - src_index : 0;
        if (part) {
            error = copy_hole(c, dst_index * chunk_bytes,
                              min_u64((dst_index + part) * chunk_bytes, c->dst_end));
        } else {
            /* Whole aligned subtrees are one entry each: let large aligned
             * parts through, cut others. */
            part = min_u64(count, aligned ? SHARE_STEP - dst_index % SHARE_STEP : SHARE_STEP / 64);
            error = share_step(c, src_index, dst_index, part);
        }
        src_index += part;
        dst_index += part;
        count -= part;
    }
    return error;
}

/* The whole source over all of dst: dst's map becomes the clone. O(1). Both
 * are locked. */
static int take_whole(struct inode *src, struct inode *dst)
{
    struct fs *fs = src->fs;
    struct map map, old = dst->attr.map;
    txn_enter(fs->txn);
    int error = map_clone(fs->nodes, &src->attr.map, &map);
    if (!error) {
        home_leave(dst, false);
        dst->attr.map = map;
        journal_clone(src, dst);
        file_set_size(dst, src->attr.size_bytes);
        home_share(src, dst);
        int lost = file_drop_map(fs, &old);
        if (lost)
            /* The copy is whole; what could not be freed is a leak for fsck. */
            g_warning("inode %" G_GUINT64_FORMAT ": old content could not be freed: %s", dst->ino,
                      g_strerror(-lost));
    }
    txn_exit(fs->txn);
    return error;
}

static ssize_t copy_locked(struct copy *c, uint64_t src, uint64_t dst, uint64_t bytes)
{
    uint64_t chunk_bytes = c->fs->chunk_bytes;
    uint64_t dst_size = c->dst->attr.size_bytes, done;
    int error = 0;
    if (src % chunk_bytes != dst % chunk_bytes) {
        error = copy_bytes(c, src, dst, bytes, &done);
        return error ? error : (ssize_t)done;
    }
    uint64_t end = dst + bytes;
    uint64_t head_end = min_u64(end, round_up_u64(dst, chunk_bytes));
    uint64_t whole_end = round_down_u64(end, chunk_bytes);
    /* The last chunk of the source can be shared whole where the destination
     * ends there, too. */
    bool tail_shared =
        end % chunk_bytes && src + bytes == c->src_size && end >= dst_size && whole_end >= head_end;
    c->dst_end = end;
    if (tail_shared)
        whole_end += chunk_bytes;
    if (dst < head_end)
        error = copy_bytes(c, src, dst, head_end - dst, &done);
    if (!error && whole_end > head_end)
        error = share_chunks(c, (src + (head_end - dst)) / chunk_bytes, head_end / chunk_bytes,
                             (whole_end - head_end) / chunk_bytes);
    if (!error && whole_end < end && whole_end >= head_end)
        error = copy_bytes(c, src + (whole_end - dst), whole_end, end - whole_end, &done);
    return error ? error : (ssize_t)bytes;
}

static void lock_both(struct inode *a, struct inode *b)
{
    if (a == b) {
        pthread_rwlock_wrlock(&a->map_lock);
    } else {
        pthread_rwlock_wrlock(a->ino < b->ino ? &a->map_lock : &b->map_lock);
        pthread_rwlock_wrlock(a->ino < b->ino ? &b->map_lock : &a->map_lock);
    }
}

/* The home that dst has when [offset, offset + bytes) of src has been shared: src's,
 * if dst is what src is up to there (a copy in pieces); 0: none. Both are locked. */
static uint32_t home_of_copy(struct inode *src, uint64_t src_offset, struct inode *dst,
                             uint64_t dst_offset, uint64_t bytes)
{
    const struct inode_attr *s = &src->attr, *d = &dst->attr;
    uint32_t chunk_bytes = src->fs->chunk_bytes;
    uint64_t end = src_offset + bytes;
    if (!s->home || s->packing || src == dst || src_offset != dst_offset ||
        dst_offset != d->size_bytes || dst_offset % chunk_bytes ||
        (end % chunk_bytes && end != s->size_bytes))
        return 0;
    if (d->size_bytes ? d->home != s->home : d->map.levels > 0)
        return 0;
    txn_enter(src->fs->txn);
    uint32_t home = home_freeze(src);
    txn_exit(src->fs->txn);
    return home;
}

/* dst has all of [0, end) from there. */
static void take_home(struct inode *dst, uint32_t home)
{
    struct fs *fs = dst->fs;
    txn_enter(fs->txn);
    home_leave(dst, false);
    dst->attr.home = home;
    inode_mark_dirty(dst);
    txn_exit(fs->txn);
}

/* By parts, from a map that is held. dst is locked. */
static ssize_t copy_parts(struct inode *holder, uint64_t src_offset, struct inode *dst,
                          uint64_t dst_offset, uint64_t bytes)
{
    struct copy c = {
        .fs = dst->fs,
        .holder = holder,
        .map = holder->attr.map,
        .src_size = holder->attr.size_bytes,
        .dst = dst,
    };
    uint64_t old_size = dst->attr.size_bytes;
    ssize_t result = content_extend(dst, dst_offset);
    if (result == 0)
        result = copy_locked(&c, src_offset, dst_offset, bytes);
    if (result < 0)
        content_cut(dst, old_size); /* no part of it behind the old end */
    if (result >= 0)
        journal_complete(dst->fs->journal, result, 0, NULL); /* with the change that follows */
    content_changed(dst, result > 0 ? dst_offset + (uint64_t)result : 0, 0);
    return result;
}

ssize_t file_copy_range(struct inode *src, uint64_t src_offset, struct inode *dst,
                        uint64_t dst_offset, uint64_t bytes)
{
    struct fs *fs = src->fs;
    struct inode *holder = NULL;
    uint32_t home = 0;
    ssize_t result = fs_may_change(fs);
    if (result)
        return result;
    if (!file_range_ok(src_offset, 0) || !file_range_ok(dst_offset, 0))
        return -EFBIG;
    lock_both(src, dst);
    uint64_t src_size = src->attr.size_bytes;
    bytes = src_offset < src_size ? min_u64(bytes, src_size - src_offset) : 0;
    bytes = min_u64(bytes, FILE_SIZE_MAX - dst_offset);
    bool whole =
        src_offset == 0 && dst_offset == 0 && bytes == src_size && dst->attr.size_bytes <= bytes;
    if (bytes > 0 && src == dst && src_offset < dst_offset + bytes &&
        dst_offset < src_offset + bytes) {
        result = -EINVAL;
    } else if (bytes > 0 && whole) {
        result = take_whole(src, dst);
        if (result == 0)
            journal_complete(fs->journal, (int64_t)bytes, 0,
                             NULL); /* with the change that follows */
        if (result == 0)
            content_changed(dst, bytes, atomic_load(&src->unsealed) ? 0 : CHANGED_NO_SEAL);
        result = result ? result : (ssize_t)bytes;
    } else if (bytes > 0) {
        home = home_of_copy(src, src_offset, dst, dst_offset, bytes);
        result = file_hold_map(src, &holder);
    }
    if (src != dst)
        pthread_rwlock_unlock(&src->map_lock);
    if (holder)
        result = copy_parts(holder, src_offset, dst, dst_offset, bytes);
    if (holder && home && result == (ssize_t)bytes)
        take_home(dst, home);
    pthread_rwlock_unlock(&dst->map_lock);
    file_release_hold(holder);
    return result;
}
