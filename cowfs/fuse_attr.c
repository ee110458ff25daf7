// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_attr.c - attributes of inodes, and those of the whole file system.
 *
 * With the writeback cache the kernel is the owner of size, mtime and ctime of
 * regular files: it ignores what we answer for them, and sends them by setattr
 * when it writes an inode back. Access times are set by utimensat(2) only: cached
 * reads never get here, so a half-true atime is all that there could be.
 */
#include "cowfs/file.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/opens.h"

#include <errno.h>
#include <linux/stat.h>
#include <string.h>
#include <sys/sysmacros.h>

void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct inode *inode;
    int error = mount_inode(mount_of(req), ino, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    struct stat st;
    inode_stat(inode, &st);
    inode_put(inode);
    fuse_reply_attr(req, &st, mount_of(req)->timeout_s);
}

/* All but the size, inside the gate, with the attr_lock. */
static void set_attributes(struct inode *inode, const struct stat *attr, int to_set, bool outsider)
{
    struct inode_attr *a = &inode->attr;
    struct timespec now;

    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (to_set & FUSE_SET_ATTR_MODE)
        a->mode = (a->mode & S_IFMT) | (attr->st_mode & 07777);
    if (to_set & FUSE_SET_ATTR_UID)
        a->uid = attr->st_uid;
    if (to_set & FUSE_SET_ATTR_GID)
        a->gid = attr->st_gid;
    /* Sent with every chown, and with a truncation by one without CAP_FSETID
     * (the protocol's FATTR_KILL_SUIDGID). */
    if (to_set & FUSE_SET_ATTR_KILL_SUID)
        mount_kill_suidgid_locked(inode, outsider);
    if (to_set & FUSE_SET_ATTR_ATIME_NOW)
        a->atime = now;
    else if (to_set & FUSE_SET_ATTR_ATIME)
        a->atime = attr->st_atim;
    if (to_set & FUSE_SET_ATTR_MTIME_NOW)
        a->mtime = now;
    else if (to_set & FUSE_SET_ATTR_MTIME)
        a->mtime = attr->st_mtim;
    a->ctime = to_set & FUSE_SET_ATTR_CTIME ? attr->st_ctim : now;
}

/* The size is changed. truncate(2) to the size that a file has leaves its times alone,
 * ftruncate(2), which comes with a handle, does not. */
static int set_size(struct inode *inode, const struct stat *attr, bool by_handle)
{
    if (attr->st_size < 0)
        return -EINVAL;
    if (!by_handle && file_is_cut(inode, (uint64_t)attr->st_size))
        return fs_may_change(inode->fs);
    return file_truncate(inode, (uint64_t)attr->st_size);
}

static void set_attr(fuse_req_t req, fuse_ino_t ino, const struct stat *attr, int to_set,
                     bool by_handle)
{
    struct mount *m = mount_of(req);
    struct fs *fs = m->fs;
    struct inode *inode = NULL;

    int error = fs_may_change(fs);
    if (error == 0)
        error = mount_inode(m, ino, &inode);
    /* The kernel asks to set nothing when neither owner nor group is to be changed, which counts
     * as a change all the same, and drops setuid and setgid (FUSE says nothing of that: it is
     * known by the ctime, if the kernel has that), or when a write has changed a file that has
     * capabilities. */
    bool nothing = (to_set & ~FUSE_SET_ATTR_CTIME) == 0;
    if (nothing && to_set)
        to_set |= FUSE_SET_ATTR_KILL_SUID;
    if (error == 0 && to_set & FUSE_SET_ATTR_SIZE) {
        error = set_size(inode, attr, by_handle);
        to_set &= ~FUSE_SET_ATTR_SIZE;
    }
    if (error) {
        inode_put(inode);
        reply_status(req, error);
        return;
    }
    if (to_set || nothing) {
        bool outsider = to_set & FUSE_SET_ATTR_KILL_SUID && mount_is_outsider(req, inode);
        txn_enter(fs->txn);
        pthread_mutex_lock(&inode->attr_lock);
        set_attributes(inode, attr, to_set, outsider);
        pthread_mutex_unlock(&inode->attr_lock);
        /* The kernel sends the times of its cached writes before each fsync. */
        if (to_set &
            (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID | FUSE_SET_ATTR_KILL_SUID))
            inode_mark_attr(inode);
        else
            inode_mark_times(inode);
        txn_exit(fs->txn);
    }
    struct stat st;
    inode_stat(inode, &st);
    inode_put(inode);
    fuse_reply_attr(req, &st, m->timeout_s);
}

/* truncate(2), counted as a writer for so long. */
static void truncate_counted(struct waiting *w, int error)
{
    struct mount *m = mount_of(w->req);
    if (error) {
        mount_refuse_write(w->req, w->ino, error);
        return;
    }
    set_attr(w->req, w->ino, &w->attr, w->to_set, false);
    mount_end_write(m, w->ino);
}

void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                struct fuse_file_info *fi)
{
    struct mount *m = mount_of(req);
    if (!mount_is_writable(req))
        return;
    if (!m->service->opens || fi || !(to_set & FUSE_SET_ATTR_SIZE)) {
        /* ftruncate(2) has a handle, which is a writer's. */
        set_attr(req, ino, attr, to_set, fi != NULL);
        return;
    }
    struct waiting w = {.req = req, .ino = ino, .attr = *attr, .to_set = to_set};
    w.go_on = truncate_counted;
    mount_begin_write(m, &w);
}

static struct statx_timestamp statx_time(const struct timespec *ts)
{
    return (struct statx_timestamp){.tv_sec = ts->tv_sec, .tv_nsec = (uint32_t)ts->tv_nsec};
}

/* getattr with the time of birth. */
void op_statx(fuse_req_t req, fuse_ino_t ino, int flags, int mask, struct fuse_file_info *fi)
{
    (void)flags;
    (void)mask;
    (void)fi;
    struct inode *inode;
    int error = mount_inode(mount_of(req), ino, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    struct stat st;
    inode_stat(inode, &st);
    struct timespec birth = inode->attr.btime; /* never changes */
    inode_put(inode);

    struct statx stx = {
        .stx_mask = STATX_BASIC_STATS | STATX_BTIME,
        .stx_blksize = (uint32_t)st.st_blksize,
        .stx_nlink = (uint32_t)st.st_nlink,
        .stx_uid = st.st_uid,
        .stx_gid = st.st_gid,
        .stx_mode = (uint16_t)st.st_mode,
        .stx_ino = st.st_ino,
        .stx_size = (uint64_t)st.st_size,
        .stx_blocks = (uint64_t)st.st_blocks,
        .stx_atime = statx_time(&st.st_atim),
        .stx_mtime = statx_time(&st.st_mtim),
        .stx_ctime = statx_time(&st.st_ctim),
        .stx_btime = statx_time(&birth),
        .stx_rdev_major = major(st.st_rdev),
        .stx_rdev_minor = minor(st.st_rdev),
    };
    fuse_reply_statx(req, 0, &stx, mount_of(req)->timeout_s);
}

void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    struct fs *fs = mount_of(req)->fs;
    struct segments_stats stats;
    int error = segments_stats(fs->segments, &stats);
    if (error) {
        reply_status(req, error);
        return;
    }
    /* Nothing limits the number of inodes but the space for their records:
     * about so many bytes each, name and all. */
    enum { INODE_COST_BYTES = 256, BLOCK_BYTES = 4096 };
    uint64_t inodes = atomic_load(&fs->inode_count);
    uint64_t more = stats.fs_avail_bytes / INODE_COST_BYTES;
    struct statvfs st = {
        .f_bsize = BLOCK_BYTES,
        .f_frsize = BLOCK_BYTES,
        .f_blocks = stats.fs_total_bytes / BLOCK_BYTES,
        .f_bfree = stats.fs_free_bytes / BLOCK_BYTES,
        .f_bavail = stats.fs_avail_bytes / BLOCK_BYTES,
        .f_files = inodes + more,
        .f_ffree = more,
        .f_favail = more,
        .f_namemax = 255,
    };
    fuse_reply_statfs(req, &st);
}
