// SPDX-License-Identifier: Apache-2.0
/*
 * file_write.c - writing.
 *
 * A range is cut into pieces of whole chunks and at most two edges. What
 * happens to a piece depends on what is mapped there:
 *
 *   its data is zero        -> hole                          (put_zero)
 *   exclusive chunks        -> overwritten in place          (put_in_place)
 *   shared or sealed chunks -> compared; only those that differ are written
 *                              to new, packed slots          (put_shared)
 *   a hole                  -> slots of the leaf's own group (put_hole)
 *
 * Overwriting in place needs the map lock shared only, since nothing in the
 * map changes: that is the fast path, tried first.
 */
#include "cowfs/damage.h"
#include "cowfs/file_internal.h"
#include "cowfs/home.h"
#include "cowfs/sealer.h"
#include "cowfs/slots.h"

#include <errno.h>
#include <glib.h>

/* A write on its way. */
struct job {
    struct inode *inode;
    struct fs *fs;
    const uint8_t *data;
    uint64_t offset, end; /* bytes */
    bool grow;            /* may make the file longer */
};

/* Bytes of the job that lie in chunk `index`. */
struct edge {
    uint64_t from, to; /* within the chunk */
    const uint8_t *data;
};

static struct edge edge_of(const struct job *j, uint64_t index)
{
    uint64_t start = index * j->fs->chunk_bytes;
    uint64_t from = max_u64(start, j->offset), to = min_u64(start + j->fs->chunk_bytes, j->end);
    return (struct edge){
        .from = from - start, .to = to - start, .data = j->data + (from - j->offset)};
}

static bool is_whole(const struct job *j, const struct edge *e)
{
    return e->to - e->from == j->fs->chunk_bytes;
}

/* How many whole chunks from `index` are alike in being zero or not; *zero
 * tells which. 0 if the chunk at index is an edge. */
static uint64_t whole_run(const struct job *j, uint64_t index, bool *zero)
{
    uint64_t n = 0, chunk_bytes = j->fs->chunk_bytes;
    for (uint64_t end = j->end / chunk_bytes; index + n < end; n++) {
        struct edge e = edge_of(j, index + n);
        if (!is_whole(j, &e))
            break;
        bool z = bytes_are_zero(e.data, chunk_bytes);
        if (n == 0)
            *zero = z;
        else if (z != *zero)
            break;
    }
    return n;
}

enum { PROBE_BYTES = 256 }; /* of a chunk, compared first */

/* The first chunks of a file are packed: most files are small, and a group of
 * slots for each would scatter them over the segments. */
enum { SMALL_FILE_CHUNKS = 16 };

/* Inside the gate: the file reaches to the end of chunk `end_index` - 1, or to
 * where the job ends. */
static void grow_to(struct job *j, uint64_t end_index)
{
    uint64_t end = min_u64(end_index * j->fs->chunk_bytes, j->end);
    if (j->grow && end > j->inode->attr.size_bytes)
        file_set_size(j->inode, end);
}

/* Slots for new data of [index, index + *got): in the file's home, in the leaf's
 * own group, or packed ones. */
static int take_slots(struct job *j, uint64_t index, bool hole, chunk_t *first, uint64_t *got)
{
    struct fs *fs = j->fs;
    int error = home_slots(j->inode, index, hole, got, first);
    if (error || *first)
        return error;
    if (hole && index + *got > SMALL_FILE_CHUNKS) {
        txn_enter(fs->txn);
        error = map_fill_slots(fs->nodes, &j->inode->attr.map, index, *got, first, got);
        inode_mark_dirty(j->inode);
        txn_exit(fs->txn);
    }
    if (!error && *first == 0)
        error = slots_take(fs->streams, j->inode->ino, *got, first, got);
    return error;
}

/* Writes data to new slots and maps them. `data` is whole chunks. */
static int put_new(struct job *j, uint64_t index, uint64_t count, const uint8_t *data, bool hole)
{
    struct fs *fs = j->fs;
    int error = segments_check_space(fs->segments, count * fs->chunk_bytes);
    if (hole && !error)
        home_choose(j->inode, index, count);
    while (count > 0 && !error) {
        chunk_t first = 0;
        uint64_t got = count;
        error = take_slots(j, index, hole, &first, &got);
        if (error)
            break;
        error = segments_write(fs->segments, first, 0, data, got * fs->chunk_bytes);
        if (error && first >> 32 == j->inode->attr.home) {
            home_leave_now(j->inode, true);
            if (error == -EFBIG) {
                /* The file below cannot be that long: elsewhere, then. */
                error = 0;
                continue;
            }
        }
        if (!error) {
            txn_enter(fs->txn);
            error = content_map(j->inode, index, got, first, false);
            /* Now, not later: no commit has data behind the end of a file. */
            if (!error)
                grow_to(j, index + got);
            txn_exit(fs->txn);
        }
        index += got;
        count -= got;
        data += got * fs->chunk_bytes;
    }
    return error;
}

static int put_hole_range(struct job *j, uint64_t index, uint64_t count)
{
    struct fs *fs = j->fs;
    txn_enter(fs->txn);
    int error = content_unmap(j->inode, index, count);
    txn_exit(fs->txn);
    return error;
}

static int put_zero(struct job *j, uint64_t index, uint64_t count)
{
    struct fs *fs = j->fs;
    for (uint64_t done = 0; done < count;) {
        struct extent e;
        int error =
            map_lookup(fs->nodes, &j->inode->attr.map, index + done, count - done, true, &e);
        if (error)
            return error;
        if (e.chunk && e.reserved && e.exclusive)
            error = segments_write(fs->segments, e.chunk, 0, edge_of(j, index + done).data,
                                   e.count * fs->chunk_bytes);
        else if (e.chunk)
            error = put_hole_range(j, index + done, e.count);
        if (error)
            return error;
        done += e.count;
    }
    return 0;
}

/* One chunk, as guests write it: nearly always other bytes from the beginning on, and
 * then the rest need not be read. */
static bool differs_at_once(struct fs *fs, chunk_t chunk, const uint8_t *data)
{
    uint8_t begin[PROBE_BYTES];
    return chunks_read(fs, chunk, 0, begin, sizeof(begin)) == 0 &&
           memcmp(begin, data, sizeof(begin)) != 0;
}

/* Whole chunks over shared or sealed ones: what is equal stays shared. */
static int put_shared(struct job *j, const struct extent *e, const uint8_t *data)
{
    struct fs *fs = j->fs;
    uint64_t chunk_bytes = fs->chunk_bytes, step = WORK_BYTES / chunk_bytes;
    uint8_t old[WORK_BYTES];
    if (e->count == 1 && differs_at_once(fs, e->chunk, data))
        return put_new(j, e->index, 1, data, false);
    for (uint64_t done = 0; done < e->count; done += step) {
        uint64_t n = min_u64(step, e->count - done);
        int error = chunks_read(fs, e->chunk + done, 0, old, n * chunk_bytes);
        bool damaged = error == -EIO; /* nothing of it is kept, and the file is healed */
        if (damaged)
            error = put_new(j, e->index + done, n, data + done * chunk_bytes, false);
        for (uint64_t i = 0, k; i < n && !error && !damaged; i = k) {
            const uint8_t *new_data = data + (done + i) * chunk_bytes;
            k = i + 1;
            if (memcmp(old + i * chunk_bytes, new_data, chunk_bytes) == 0)
                continue;
            while (k < n &&
                   memcmp(old + k * chunk_bytes, data + (done + k) * chunk_bytes, chunk_bytes) != 0)
                k++;
            error = put_new(j, e->index + done + i, k - i, new_data, false);
        }
        if (error)
            return error;
    }
    return 0;
}

/* A part of one chunk that is not exclusive (or a hole): merge with what is
 * there, then treat it as a whole one. */
static int put_edge(struct job *j, const struct extent *e, const struct edge *edge)
{
    struct fs *fs = j->fs;
    uint8_t merged[CHUNK_BYTES_MAX];
    if (e->chunk) {
        int error = chunks_read(fs, e->chunk, 0, merged, fs->chunk_bytes);
        if (error)
            return error;
        if (memcmp(merged + edge->from, edge->data, edge->to - edge->from) == 0)
            return 0;
    } else {
        if (bytes_are_zero(edge->data, edge->to - edge->from))
            return 0;
        memset(merged, 0, fs->chunk_bytes);
    }
    memcpy(merged + edge->from, edge->data, edge->to - edge->from);
    if (bytes_are_zero(merged, fs->chunk_bytes))
        return put_hole_range(j, e->index, 1);
    return put_new(j, e->index, 1, merged, e->chunk == 0);
}

static int put_piece(struct job *j, uint64_t index, uint64_t *done)
{
    struct fs *fs = j->fs;
    bool zero = false;
    uint64_t count = whole_run(j, index, &zero);
    if (count && zero) {
        *done = count;
        return put_zero(j, index, count);
    }
    struct extent e;
    struct edge edge = edge_of(j, index);
    int error = map_lookup(fs->nodes, &j->inode->attr.map, index, count ? count : 1, true, &e);
    if (error)
        return error;
    *done = e.count;
    if (e.exclusive)
        return segments_overwrite(fs->segments, e.chunk, edge.from, edge.data,
                                  count ? e.count * fs->chunk_bytes : edge.to - edge.from);
    if (count == 0)
        return put_edge(j, &e, &edge);
    if (e.chunk)
        return put_shared(j, &e, edge.data);
    return put_new(j, index, e.count, edge.data, true);
}

int content_write(struct inode *inode, const uint8_t *data, size_t bytes, uint64_t offset_bytes,
                  bool grow)
{
    struct fs *fs = inode->fs;
    struct job j = {
        .inode = inode,
        .fs = fs,
        .data = data,
        .offset = offset_bytes,
        .end = offset_bytes + bytes,
        .grow = grow,
    };
    uint64_t index = offset_bytes / fs->chunk_bytes;
    uint64_t end = div_round_up_u64(j.end, fs->chunk_bytes);
    while (index < end) {
        uint64_t done;
        /* From looking up to the last use: the sealer may exchange a chunk in
         * a leaf that other files share, and slots must not lose their segment
         * before they are mapped (slots.h). */
        unsigned section = segments_read_enter(fs->segments);
        int error = put_piece(&j, index, &done);
        segments_read_exit(fs->segments, section);
        if (error)
            return error;
        index += done;
        if (grow && j.end > inode->attr.size_bytes) {
            txn_enter(fs->txn);
            grow_to(&j, index);
            txn_exit(fs->txn);
        }
    }
    return 0;
}

/* All of the range may be overwritten in place, and none of it becomes a
 * hole? Then does it. map_lock held shared. */
static int write_in_place(struct inode *inode, const uint8_t *data, size_t bytes,
                          uint64_t offset_bytes, bool *done)
{
    struct fs *fs = inode->fs;
    struct job j = {inode, fs, data, offset_bytes, offset_bytes + bytes, false};
    uint64_t index = offset_bytes / fs->chunk_bytes;
    uint64_t end = div_round_up_u64(j.end, fs->chunk_bytes);
    struct {
        chunk_t chunk;
        uint64_t skip, bytes;
        const uint8_t *data;
    } io[8];
    unsigned ios = 0;
    *done = false;
    if (j.end > inode->attr.size_bytes)
        return 0;
    while (index < end) {
        struct extent e;
        int error = map_lookup(fs->nodes, &inode->attr.map, index, end - index, true, &e);
        if (error)
            return error;
        if (!e.exclusive || ios == G_N_ELEMENTS(io))
            return 0;
        for (uint64_t i = 0; i < e.count && !e.reserved; i++) {
            struct edge edge = edge_of(&j, index + i);
            if (is_whole(&j, &edge) && bytes_are_zero(edge.data, fs->chunk_bytes))
                return 0;
        }
        struct edge first = edge_of(&j, index), last = edge_of(&j, index + e.count - 1);
        io[ios].chunk = e.chunk;
        io[ios].skip = first.from;
        io[ios].data = first.data;
        io[ios++].bytes = (e.count - 1) * fs->chunk_bytes + last.to - first.from;
        index += e.count;
    }
    for (unsigned i = 0; i < ios; i++) {
        int error =
            segments_overwrite(fs->segments, io[i].chunk, io[i].skip, io[i].data, io[i].bytes);
        if (error)
            return error;
    }
    *done = true;
    return 0;
}

ssize_t file_write(struct inode *inode, const void *buffer, size_t bytes, uint64_t offset_bytes,
                   struct file_write_flags flags)
{
    if (!file_range_ok(offset_bytes, bytes))
        return -EFBIG;
    int error = fs_may_change(inode->fs);
    if (error || bytes == 0)
        return error;
    unsigned changed =
        (flags.from_cache ? CHANGED_KEEP_TIMES : 0) | (flags.kill_suid ? CHANGED_KILL_SUID : 0);
    bool done = false;
    pthread_rwlock_rdlock(&inode->map_lock);
    error = write_in_place(inode, buffer, bytes, offset_bytes, &done);
    if (done || error) /* after an error some of it may be written */
        content_changed(inode, done ? offset_bytes + bytes : 0, changed);
    pthread_rwlock_unlock(&inode->map_lock);
    if (!error && !done) {
        pthread_rwlock_wrlock(&inode->map_lock);
        uint64_t old_size = inode->attr.size_bytes;
        error = content_extend(inode, offset_bytes);
        if (!error)
            error = content_write(inode, buffer, bytes, offset_bytes, true);
        if (error)
            content_cut(inode, old_size); /* no part of it behind the old end */
        content_changed(inode, error ? 0 : offset_bytes + bytes, changed);
        pthread_rwlock_unlock(&inode->map_lock);
        if (error == -EIO)
            damage_tell(inode, offset_bytes, bytes);
    }
    return error ? error : (ssize_t)bytes;
}
