// SPDX-License-Identifier: Apache-2.0
/*
 * diff.c - the ioctls that go through a file piece by piece: diff and seal.
 */
#include "cowfs/clone.h"

#include "cowfs/file_internal.h"
#include "cowfs/sealer.h"

#include <errno.h>

/* Takes the map of a regular file as it is now, with a reference. */
static int take_map(struct fs *fs, uint64_t ino, struct map *map, uint64_t *size_bytes)
{
    struct inode *inode;
    int error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    if (S_ISREG(inode->attr.mode)) {
        /* Exclusively, as for a clone: nobody may be about to overwrite in
         * place what becomes shared here. */
        pthread_rwlock_wrlock(&inode->map_lock);
        txn_enter(fs->txn);
        error = map_clone(fs->nodes, &inode->attr.map, map);
        *size_bytes = inode->attr.size_bytes;
        txn_exit(fs->txn);
        pthread_rwlock_unlock(&inode->map_lock);
    } else {
        error = -EINVAL;
    }
    inode_put(inode);
    return error;
}

static void give_back(struct fs *fs, struct map *map)
{
    txn_enter(fs->txn);
    int error = file_drop_map(fs, map);
    txn_exit(fs->txn);
    if (error)
        g_warning("a temporary reference could not be freed: %s", g_strerror(-error));
}

struct diff_fill {
    struct cowfs_ioc_diff *io;
    uint64_t chunk_bytes;
};

enum { DIFF_FULL = 1 };

static int add_range(void *arg, uint64_t index, uint64_t n)
{
    struct diff_fill *f = arg;
    if (f->io->count == COWFS_DIFF_RANGES) {
        f->io->next = index * f->chunk_bytes;
        return DIFF_FULL;
    }
    f->io->range[f->io->count].offset = index * f->chunk_bytes;
    f->io->range[f->io->count++].length = n * f->chunk_bytes;
    return 0;
}

int diff_files(struct fs *fs, uint64_t a, uint64_t b, struct cowfs_ioc_diff *io)
{
    struct map map_a = {0}, map_b = {0};
    uint64_t size_a = 0, size_b = 0;
    struct diff_fill fill = {.io = io, .chunk_bytes = fs->chunk_bytes};
    io->count = 0;
    io->next = 0;
    /* A reference is a change of counts, which a read-only store must not
     * have; there nobody writes, and the maps can be used as they are. */
    if (fs->config.read_only) {
        struct inode *x = NULL, *y = NULL;
        int error = inode_get(fs->inodes, a, &x);
        if (!error)
            error = inode_get(fs->inodes, b, &y);
        if (!error && (!S_ISREG(x->attr.mode) || !S_ISREG(y->attr.mode)))
            error = -EINVAL;
        if (!error)
            error = map_diff(fs->nodes, &x->attr.map, &y->attr.map, io->offset / fs->chunk_bytes,
                             div_round_up_u64(max_u64(x->attr.size_bytes, y->attr.size_bytes),
                                              fs->chunk_bytes),
                             add_range, &fill);
        inode_put(x);
        inode_put(y);
        return error == DIFF_FULL ? 0 : error;
    }
    int error = take_map(fs, a, &map_a, &size_a);
    if (!error)
        error = take_map(fs, b, &map_b, &size_b);
    if (!error)
        error = map_diff(fs->nodes, &map_a, &map_b, io->offset / fs->chunk_bytes,
                         div_round_up_u64(max_u64(size_a, size_b), fs->chunk_bytes), add_range,
                         &fill);
    give_back(fs, &map_a);
    give_back(fs, &map_b);
    return error == DIFF_FULL ? 0 : error;
}

int seal_range(struct fs *fs, uint64_t ino, struct cowfs_ioc_seal *io)
{
    struct inode *inode;
    struct seal_result r;
    int error = fs_may_change(fs);
    if (!error)
        error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    if (!S_ISREG(inode->attr.mode)) {
        inode_put(inode);
        return -EINVAL;
    }
    error = seal_file_part(fs, inode, io->offset / fs->chunk_bytes,
                           max_u64(io->length / fs->chunk_bytes, 1), &r);
    inode_put(inode);
    if (error)
        return error;
    io->next = r.next_index == UINT64_MAX ? 0 : r.next_index * fs->chunk_bytes;
    io->hashed = r.hashed_chunks * fs->chunk_bytes;
    io->deduplicated = r.deduplicated_chunks * fs->chunk_bytes;
    return 0;
}
