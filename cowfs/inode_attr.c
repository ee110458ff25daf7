// SPDX-License-Identifier: Apache-2.0
/*
 * inode_attr.c - attributes of an inode that is at hand: times, stat(2), the
 * mark of an orphan.
 */
#include "cowfs/fs.h"
#include "cowfs/journal_internal.h"

/* The kernel's own clock for time stamps is the coarse one: with another, a
 * file that the kernel stamps after us could look older. */
static struct timespec time_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME_COARSE, &ts);
    return ts;
}

void inode_touch_ctime(struct inode *inode)
{
    inode->attr.ctime = time_now();
}

void inode_touch_mtime(struct inode *inode)
{
    inode->attr.mtime = inode->attr.ctime = time_now();
}

void inode_stat(struct inode *inode, struct stat *st)
{
    struct inode_attr *attr = &inode->attr;
    uint32_t chunk_bytes = inode->fs->chunk_bytes;
    *st = (struct stat){.st_ino = inode->ino, .st_blksize = (blksize_t)chunk_bytes};
    pthread_mutex_lock(&inode->attr_lock);
    st->st_mode = attr->mode;
    st->st_nlink = attr->nlink;
    st->st_uid = attr->uid;
    st->st_gid = attr->gid;
    st->st_rdev = attr->rdev;
    st->st_atim = attr->atime;
    st->st_mtim = attr->mtime;
    st->st_ctim = attr->ctime;
    uint64_t size = attr->size_bytes;
    pthread_mutex_unlock(&inode->attr_lock);
    if (S_ISDIR(st->st_mode)) {
        /* Some 32 bytes an entry, in whole pages, as elsewhere. */
        size = round_up_u64(max_u64(size, 1) * 32, 4096);
    }
    st->st_size = (off_t)size;
    /* Regular files look dense whatever they are: cp takes a file with fewer
     * blocks than its size for sparse, and then reads and writes each byte
     * instead of calling copy_file_range. Real usage: `cowfs du`. */
    if (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode))
        st->st_blocks = (blkcnt_t)div_round_up_u64(size, 512);
}

void inode_mark_orphan(struct inode *inode)
{
    uint8_t key[KEY_MAX];
    journal_put(inode->fs, key, key_u64(key, KEY_ORPHAN, inode->ino), NULL, 0);
    atomic_store(&inode->fs->orphaned, true);
}

void inode_clear_orphan(struct inode *inode)
{
    uint8_t key[KEY_MAX];
    journal_delete(inode->fs, key, key_u64(key, KEY_ORPHAN, inode->ino));
}
