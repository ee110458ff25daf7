// SPDX-License-Identifier: Apache-2.0
/*
 * file_copy.c - copy_file_range: sharing where it can, copying where it must.
 *
 * The kernel does not lock the source. Its map is cloned first, under its
 * lock: one consistent root, whatever is written to it meanwhile.
 */
#include "cowfs/file_internal.h"
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
    struct map map; /* the source's map, our own reference */
    uint64_t src_size;
    struct inode *dst;
    bool all_shared; /* no bytes were copied */
};

static int copy_bytes(struct copy *c, uint64_t src, uint64_t dst, uint64_t bytes)
{
    uint8_t *buffer = g_malloc(WORK_BYTES);
    int error = 0;
    while (bytes > 0 && !error) {
        size_t part = min_u64(bytes, WORK_BYTES - dst % c->fs->chunk_bytes);
        ssize_t n = content_read(c->fs, &c->map, c->src_size, buffer, part, src);
        if (n != (ssize_t)part)
            error = n < 0 ? (int)n : -EIO;
        else
            error = content_write(c->dst, buffer, part, dst);
        src += part;
        dst += part;
        bytes -= part;
    }
    g_free(buffer);
    return error;
}

static int share_chunks(struct copy *c, uint64_t src_index, uint64_t dst_index, uint64_t count)
{
    struct fs *fs = c->fs;
    int error = 0;
    while (count > 0 && !error) {
        /* Whole aligned subtrees are one entry each: let large aligned parts
         * through, cut others. */
        uint64_t to_boundary = SHARE_STEP - dst_index % SHARE_STEP;
        bool aligned = src_index % SHARE_STEP == dst_index % SHARE_STEP;
        uint64_t part = min_u64(count, aligned ? to_boundary : SHARE_STEP / 64);
        txn_enter(fs->txn);
        error = map_share(fs->nodes, &c->map, src_index, &c->dst->attr.map, dst_index, part);
        inode_mark_dirty(c->dst);
        txn_exit(fs->txn);
        src_index += part;
        dst_index += part;
        count -= part;
    }
    return error;
}

/* The whole source over all of dst: dst's map becomes the clone. O(1). */
static int take_whole(struct copy *c)
{
    struct inode *dst = c->dst;
    txn_enter(c->fs->txn);
    struct map old = dst->attr.map;
    dst->attr.map = c->map;
    c->map = (struct map){0};
    c->all_shared = true;
    file_set_size(dst, c->src_size);
    int error = file_drop_map(c->fs, &old);
    if (error)
        /* The copy is whole; what could not be freed is a leak for fsck. */
        g_warning("inode %" G_GUINT64_FORMAT ": old content could not be freed: %s", dst->ino,
                  g_strerror(-error));
    txn_exit(c->fs->txn);
    return 0;
}

static ssize_t copy_locked(struct copy *c, uint64_t src, uint64_t dst, uint64_t bytes)
{
    uint64_t chunk_bytes = c->fs->chunk_bytes;
    uint64_t dst_size = c->dst->attr.size_bytes;
    int error = 0;
    if (src == 0 && dst == 0 && bytes == c->src_size && dst_size <= bytes)
        return take_whole(c) ? -EIO : (ssize_t)bytes;
    if (src % chunk_bytes != dst % chunk_bytes) {
        bytes = min_u64(bytes, BYTE_COPY_MAX);
        error = copy_bytes(c, src, dst, bytes);
        return error ? error : (ssize_t)bytes;
    }
    uint64_t end = dst + bytes;
    uint64_t head_end = min_u64(end, round_up_u64(dst, chunk_bytes));
    uint64_t whole_end = round_down_u64(end, chunk_bytes);
    /* The last chunk of the source has zeros behind its end, so it can be
     * shared whole where the destination ends there, too. */
    bool tail_shared = end % chunk_bytes && src + bytes == c->src_size && end >= dst_size &&
                       whole_end >= head_end;
    if (tail_shared)
        whole_end += chunk_bytes;
    if (dst < head_end)
        error = copy_bytes(c, src, dst, head_end - dst);
    if (!error && whole_end > head_end)
        error = share_chunks(c, (src + (head_end - dst)) / chunk_bytes, head_end / chunk_bytes,
                             (whole_end - head_end) / chunk_bytes);
    if (!error && whole_end < end && whole_end >= head_end)
        error = copy_bytes(c, src + (whole_end - dst), whole_end, end - whole_end);
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

ssize_t file_copy_range(struct inode *src, uint64_t src_offset, struct inode *dst,
                        uint64_t dst_offset, uint64_t bytes)
{
    struct fs *fs = src->fs;
    int error = fs_may_change(fs);
    if (error)
        return error;
    if (!file_range_ok(src_offset, 0) || !file_range_ok(dst_offset, 0))
        return -EFBIG;
    lock_both(src, dst);
    struct copy c = {.fs = fs, .src_size = src->attr.size_bytes, .dst = dst};
    bool src_unsealed = atomic_load(&src->unsealed);
    ssize_t result = 0;
    bytes = src_offset < c.src_size ? min_u64(bytes, c.src_size - src_offset) : 0;
    if (bytes > (uint64_t)FILE_SIZE_MAX - dst_offset)
        bytes = FILE_SIZE_MAX - dst_offset;
    if (src == dst && bytes > 0 && src_offset < dst_offset + bytes &&
        dst_offset < src_offset + bytes)
        result = -EINVAL;
    if (result == 0 && bytes > 0) {
        txn_enter(fs->txn);
        result = map_clone(fs->nodes, &src->attr.map, &c.map);
        txn_exit(fs->txn);
    }
    if (src != dst)
        pthread_rwlock_unlock(&src->map_lock);
    if (result == 0 && bytes > 0) {
        result = copy_locked(&c, src_offset, dst_offset, bytes);
        if (result > 0)
            content_changed(dst, dst_offset + (uint64_t)result,
                            c.all_shared && !src_unsealed ? CHANGED_NO_SEAL : 0);
        txn_enter(fs->txn);
        error = file_drop_map(fs, &c.map);
        txn_exit(fs->txn);
        if (error)
            g_warning("inode %" G_GUINT64_FORMAT ": a temporary reference could not be freed: %s",
                      src->ino, g_strerror(-error));
    }
    pthread_rwlock_unlock(&dst->map_lock);
    return result;
}
