// SPDX-License-Identifier: Apache-2.0
/*
 * diff.c - the ioctls that go through a file piece by piece: diff and seal.
 */
#include "cowfs/clone.h"

#include "cowfs/file_internal.h"
#include "cowfs/sealer.h"

#include <errno.h>

/* The content of a regular file as it is now: as an inode that stands still. */
static int hold(struct fs *fs, uint64_t ino, struct inode **out)
{
    struct inode *inode;
    *out = NULL;
    int error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    if (!S_ISREG(inode_mode(inode))) {
        error = -EINVAL;
    } else if (fs->config.read_only) {
        /* A reference is a change of counts, which must not be; but nobody
         * writes, and the file itself will do. */
        *out = inode_ref(inode);
    } else {
        pthread_rwlock_wrlock(&inode->map_lock);
        error = file_hold_map(inode, out);
        pthread_rwlock_unlock(&inode->map_lock);
    }
    inode_put(inode);
    return error;
}

static void release(struct fs *fs, struct inode *held)
{
    if (fs->config.read_only)
        inode_put(held);
    else
        file_release_hold(held);
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
    struct inode *x = NULL, *y = NULL;
    struct diff_fill fill = {.io = io, .chunk_bytes = fs->chunk_bytes};
    io->count = 0;
    io->next = 0;
    int error = hold(fs, a, &x);
    if (!error)
        error = hold(fs, b, &y);
    if (!error)
        error = map_diff(
            fs->nodes, &x->attr.map, &y->attr.map, io->offset / fs->chunk_bytes,
            div_round_up_u64(max_u64(x->attr.size_bytes, y->attr.size_bytes), fs->chunk_bytes),
            add_range, &fill);
    release(fs, x);
    release(fs, y);
    return error == DIFF_FULL ? 0 : error;
}

/* At most so much in one call: whoever unmounts waits for it. */
#define SEAL_BYTES_MAX (UINT64_C(256) << 20)

int seal_range(struct fs *fs, uint64_t ino, struct cowfs_ioc_seal *io)
{
    struct inode *inode;
    struct seal_result r;
    int error = fs_may_change(fs);
    if (!error)
        error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    if (!S_ISREG(inode_mode(inode))) {
        inode_put(inode);
        return -EINVAL;
    }
    error = seal_file_part(fs, inode, io->offset / fs->chunk_bytes,
                           max_u64(min_u64(io->length, SEAL_BYTES_MAX) / fs->chunk_bytes, 1), false,
                           NULL, &r);
    inode_put(inode);
    if (error)
        return error;
    io->next = r.next_index == UINT64_MAX ? 0 : r.next_index * fs->chunk_bytes;
    io->hashed = r.hashed_chunks * fs->chunk_bytes;
    io->deduplicated = r.deduplicated_chunks * fs->chunk_bytes;
    return 0;
}
