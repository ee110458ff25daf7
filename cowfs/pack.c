// SPDX-License-Identifier: Apache-2.0
/*
 * pack.c - laying a file out flat.
 *
 *   1. begin   the file gets a new home and is `packing`: holes are filled, and what
 *              is copied on write goes, to the home from here on
 *   2. move    a piece at a time, under the file's lock, from where it lies to its
 *              slot in the home; all before packed_chunks is there. In between the
 *              file is used as ever
 *   3. end     all of it is there: not packing any more, so it is flat
 *
 * Who clones or cuts the file meanwhile makes it leave the home (home.h), and the
 * packer has to begin again. A crash in between leaves a file that is packing, which
 * is as good as any other but not flat; packing it again goes on with what is left.
 * The segment counts as packed from the beginning, so that sealing does not take out
 * what has been moved.
 */
#include "cowfs/damage.h"
#include "cowfs/file_internal.h"
#include "cowfs/flat_internal.h"
#include "cowfs/home.h"
#include "cowfs/journal_internal.h"

#include <errno.h>
#include <glib.h>

struct packer {
    struct inode *inode;
    struct fs *fs;
    uint8_t *buffer; /* WORK_BYTES */
    uint64_t left_bytes, moved_bytes;
    bool done;
};

static uint64_t end_of(const struct inode *inode)
{
    return div_round_up_u64(inode->attr.size_bytes, inode->fs->chunk_bytes);
}

/* Is something reserved behind the end? It would keep the segment's file from ending where the
 * file does. */
static bool reserved_behind(const struct inode *inode)
{
    const struct map *map = &inode->attr.map;
    uint64_t found;
    return map_seek(inode->fs->nodes, map, end_of(inode), map_capacity(map->levels), true,
                    &found) != -ENXIO;
}

/* Step 1. */
static int begin(struct inode *inode)
{
    struct fs *fs = inode->fs;
    struct inode_attr *a = &inode->attr;
    uint32_t home;
    uint64_t end = end_of(inode);
    if (end > SEGMENT_HOME_SLOTS)
        return -EFBIG;
    int error = segments_home_new(fs->segments, &home);
    if (error)
        return error;
    txn_enter(fs->txn);
    home_leave(inode, false);
    error = content_unmap(inode, end, map_capacity(a->map.levels));
    if (error) {
        segments_home_drop(fs->segments, home);
    } else {
        segments_home_begin(fs->segments, home);
        segments_home_pack(fs->segments, home);
        journal_home(fs, JOURNAL_HOME_BEGIN, home, 0);
        journal_home(fs, JOURNAL_HOME_PACK, home, 0);
        a->home = home;
        a->home_filling = a->packing = true;
        inode->packed_chunks = 0;
    }
    inode_mark_dirty(inode);
    txn_exit(fs->txn);
    return error;
}

/* Step 2: the chunks of an extent that lies elsewhere, as many as the buffer holds. */
static int move(struct packer *p, const struct extent *e)
{
    struct inode *inode = p->inode;
    struct fs *fs = p->fs;
    uint64_t count = min_u64(e->count, WORK_BYTES / fs->chunk_bytes);
    uint64_t bytes = count * fs->chunk_bytes;
    chunk_t to = (chunk_t)inode->attr.home << 32 | e->index;
    int error = segments_check_space(fs->segments, bytes);
    if (!error)
        error = segments_home_reach(fs->segments, inode->attr.home, e->index + count);
    if (!error)
        error = chunks_read(fs, e->chunk, 0, p->buffer, bytes);
    if (error)
        return error;
    error = segments_write(fs->segments, to, 0, p->buffer, bytes);
    txn_enter(fs->txn);
    if (error)
        home_leave(inode, true);
    else
        error = content_map(inode, e->index, count, to, e->reserved);
    txn_exit(fs->txn);
    if (!error) {
        inode->packed_chunks = e->index + count;
        p->moved_bytes += bytes;
    }
    return error;
}

/* Looks at what comes next, at least at one chunk. */
static int move_next(struct packer *p)
{
    struct inode *inode = p->inode;
    struct fs *fs = p->fs;
    uint64_t end = end_of(inode), index = inode->packed_chunks;
    struct extent e;
    if (index >= end) {
        if (reserved_behind(inode))
            return -EAGAIN;
        txn_enter(fs->txn);
        inode->attr.packing = false;
        inode_mark_dirty(inode);
        txn_exit(fs->txn);
        p->done = true;
        return 0;
    }
    /* The sealer may exchange a chunk in a leaf that other files share. */
    unsigned section = segments_read_enter(fs->segments);
    int error = map_lookup(fs->nodes, &inode->attr.map, index, end - index, false, &e);
    if (!error && e.chunk && !home_has(inode, &e))
        error = move(p, &e);
    else if (!error)
        inode->packed_chunks = index + e.count;
    segments_read_exit(fs->segments, section);
    return error;
}

/* The file is locked: what there is to do at `index`, before anything is moved. */
static int prepare(struct packer *p, uint64_t index)
{
    struct inode *inode = p->inode;
    if (flat_verdict_locked(inode) == FLAT_YES) {
        txn_enter(p->fs->txn);
        segments_home_pack(p->fs->segments, inode->attr.home);
        journal_home(p->fs, JOURNAL_HOME_PACK, inode->attr.home, 0);
        txn_exit(p->fs->txn);
        p->done = true;
        return 0;
    }
    /* What came to be reserved since it was begun has to go, which only a new home allows. */
    if (inode->attr.packing && (index > 0 || !reserved_behind(inode)))
        return index > inode->packed_chunks ? -EAGAIN : 0;
    return index > 0 ? -EAGAIN : begin(inode);
}

/* One hold of the file's lock. *index: where to go on afterwards. */
static int pack_piece(struct packer *p, uint64_t *index)
{
    int error = fs_may_change(p->fs);
    if (error)
        return error;
    pthread_rwlock_wrlock(&p->inode->map_lock);
    error = prepare(p, *index);
    if (!error && !p->done) {
        uint64_t before = p->inode->packed_chunks;
        error = move_next(p);
        uint64_t bytes = (p->inode->packed_chunks - before) * p->fs->chunk_bytes;
        p->left_bytes -= min_u64(bytes, p->left_bytes);
        *index = p->inode->packed_chunks;
    }
    pthread_rwlock_unlock(&p->inode->map_lock);
    return error;
}

int flat_pack_part(struct inode *inode, uint64_t offset, uint64_t length, uint64_t *next,
                   uint64_t *moved_bytes)
{
    struct fs *fs = inode->fs;
    *next = *moved_bytes = 0;
    if (offset % fs->chunk_bytes || offset > (uint64_t)FILE_SIZE_MAX)
        return -EINVAL;
    struct packer p = {.inode = inode, .fs = fs, .left_bytes = max_u64(length, 1)};
    p.buffer = g_malloc(WORK_BYTES);
    uint64_t index = offset / fs->chunk_bytes;
    int error = 0;
    while (!error && !p.done && p.left_bytes > 0)
        error = pack_piece(&p, &index);
    g_free(p.buffer);
    *moved_bytes = p.moved_bytes;
    *next = p.done ? 0 : index * fs->chunk_bytes;
    return error;
}
