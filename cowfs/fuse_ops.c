// SPDX-License-Identifier: Apache-2.0
/* fuse_ops.c - the table of operations, what is agreed with the kernel, helpers. */
#include "cowfs/caller.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/fuse_loop.h"
#include "cowfs/fuse_rings.h"
#include "cowfs/journal.h"
#include "cowfs/opens.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

/* More background requests (read-ahead, write-back, asynchronous direct I/O)
 * than threads, so that none waits for the kernel to hand out the next. */
enum { BACKGROUND_REQUESTS = 128, CONGESTION_REQUESTS = 96 };

/* Returns whether it will be so. (fuse_get_feature_flag tells what the kernel could do, not
 * what is wanted.) */
static bool want(struct fuse_conn_info *conn, uint64_t flag, bool on)
{
    if (on)
        return fuse_set_feature_flag(conn, flag);
    fuse_unset_feature_flag(conn, flag);
    return false;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    struct mount *m = userdata;

    conn->max_write = FUSE_IO_BYTES;
    conn->max_read = m->max_read_bytes;
    conn->max_background = BACKGROUND_REQUESTS;
    conn->congestion_threshold = CONGESTION_REQUESTS;
    conn->time_gran = 1;
    /* Requests are short; an interrupted caller waits for his answer, as on a
     * disk. Saves a lock and two list operations for every request. */
    conn->no_interrupt = 1;

    m->writeback = want(conn, FUSE_CAP_WRITEBACK_CACHE, m->writeback);

    want(conn, FUSE_CAP_ASYNC_READ, true);
    want(conn, FUSE_CAP_ASYNC_DIO, true);
    want(conn, FUSE_CAP_PARALLEL_DIROPS, true);
    want(conn, FUSE_CAP_ATOMIC_O_TRUNC, true);
    /* Useless where the kernel may not keep what it is told with the names. */
    want(conn, FUSE_CAP_READDIRPLUS, !m->view);
    want(conn, FUSE_CAP_READDIRPLUS_AUTO, !m->view);
    want(conn, FUSE_CAP_IOCTL_DIR, true);
    want(conn, FUSE_CAP_CACHE_SYMLINKS, true);
    /* Inode numbers are durable and never used twice, which is all that file
     * handles (NFS, name_to_handle_at) ask for. */
    want(conn, FUSE_CAP_EXPORT_SUPPORT, true);
    /* Who opens with O_DIRECT may get FOPEN_DIRECT_IO (fuse_io.c) and can mmap
     * that descriptor all the same. */
    want(conn, FUSE_CAP_DIRECT_IO_ALLOW_MMAP, true);
    /* Without it the kernel asks for security.capability before every write. */
    want(conn, FUSE_CAP_HANDLE_KILLPRIV_V2, true);
    /* The kernel is told of every change because it makes them. A changed mtime
     * (which, write-through, it did not set itself) is no reason to drop all
     * cached pages of a file. But a view sees what the other mount changed. */
    want(conn, FUSE_CAP_AUTO_INVAL_DATA, m->view);
    want(conn, FUSE_CAP_EXPLICIT_INVAL_DATA, !m->view);
    /* Splicing was measured to cost more than copying (docs/DESIGN.md). */
    want(conn, FUSE_CAP_SPLICE_READ, false);
    want(conn, FUSE_CAP_SPLICE_WRITE, false);
    want(conn, FUSE_CAP_SPLICE_MOVE, false);
    /* The kernel forbids it together with the writeback cache. Files below must not
     * lie on a stacked file system themselves, but another may be stacked on us. */
    m->passthrough = want(conn, FUSE_CAP_PASSTHROUGH, m->passthrough);
    conn->max_backing_stack_depth = FUSE_BACKING_STACKED_UNDER;
    /* libfuse's own io_uring: not used (fuse_rings.h). */
    want(conn, FUSE_CAP_OVER_IO_URING, false);
    if (m->rings)
        rings_init(m->rings, fuse_get_feature_flag(conn, FUSE_CAP_OVER_IO_URING));

    sem_post(&m->initialised);
}

int mount_inode(struct mount *m, fuse_ino_t ino, struct inode **out)
{
    int error = inode_get(m->fs->inodes, ino, out);
    return error == -ENOENT ? -ESTALE : error;
}

struct caller mount_caller(fuse_req_t req)
{
    const struct fuse_ctx *context = fuse_req_ctx(req);
    return (struct caller){
        .uid = context->uid,
        .gid = context->gid,
        .pid = (uint32_t)context->pid,
        .umask = context->umask,
    };
}

void mount_fill_entry(struct mount *m, struct inode *inode, struct fuse_entry_param *entry)
{
    *entry = (struct fuse_entry_param){
        .ino = inode->ino,
        .generation = 1, /* numbers are never used twice */
        .attr_timeout = m->timeout_s,
        .entry_timeout = m->timeout_s,
    };
    inode_stat(inode, &entry->attr);
    inode_lookup_inc(inode, m->slot);
    if (entry->attr.st_nlink == 0)
        journal_orphan_again(m->fs->journal, inode->ino);
}

void mount_forget(struct mount *m, uint64_t ino, uint64_t nlookup)
{
    bool gone = inode_forget(m->fs->inodes, ino, m->slot, nlookup);
    if (gone && m->service->opens)
        opens_forgotten(m->service->opens, m->slot, ino);
}

bool mount_is_writable(fuse_req_t req)
{
    if (mount_may_change(mount_of(req)))
        return true;
    fuse_reply_err(req, EROFS);
    return false;
}

void reply_entry(fuse_req_t req, int error, struct inode *inode)
{
    if (error) {
        reply_status(req, error);
        return;
    }
    struct fuse_entry_param entry;
    struct mount *m = mount_of(req);
    mount_debug_die(req);
    mount_fill_entry(m, inode, &entry);
    if (fuse_reply_entry(req, &entry) != 0)
        mount_forget(m, inode->ino, 1);
    inode_put(inode);
}

bool mount_done_before(fuse_req_t req, struct journal_completion *done)
{
    return fuse_loop_is_resent() &&
           journal_find_completed(mount_of(req)->fs->journal, journal_request_current(), done);
}

void mount_debug_die(fuse_req_t req)
{
    struct mount *m = mount_of(req);
    struct journal_completion done;
    if (m->debug_faults && atomic_load(&m->debug_die) &&
        journal_find_completed(m->fs->journal, journal_request_current(), &done))
        raise(SIGKILL);
}

bool mount_replied_before(fuse_req_t req)
{
    struct journal_completion done;
    if (!mount_done_before(req, &done))
        return false;
    fuse_reply_err(req, 0);
    return true;
}

bool mount_kill_suidgid_locked(struct inode *inode, bool outsider)
{
    uint32_t mode = inode->attr.mode;
    if (S_ISDIR(mode))
        return false; /* setgid there means inheritance */
    uint32_t drop = mode & S_ISUID;
    /* setgid without group execute once meant mandatory locking; Linux leaves
     * it alone, but for outsiders. */
    if (mode & S_IXGRP || outsider)
        drop |= mode & S_ISGID;
    inode->attr.mode = mode & ~drop;
    return drop != 0;
}

bool mount_has_suidgid(struct inode *inode)
{
    pthread_mutex_lock(&inode->attr_lock);
    bool has_them = inode->attr.mode & (S_ISUID | S_ISGID);
    pthread_mutex_unlock(&inode->attr_lock);
    return has_them;
}

bool mount_is_outsider(fuse_req_t req, struct inode *inode)
{
    pthread_mutex_lock(&inode->attr_lock);
    uint32_t mode = inode->attr.mode, gid = inode->attr.gid;
    pthread_mutex_unlock(&inode->attr_lock);
    if ((mode & (S_IFMT | S_ISGID | S_IXGRP)) != (S_IFREG | S_ISGID))
        return false;
    g_autofree gid_t *groups = g_new(gid_t, CALLER_GROUPS_MAX);
    struct caller caller;
    mount_caller_rights(req, &caller, groups);
    return !caller_is_root(&caller) && !caller_in_group(&caller, gid);
}

void mount_forget_mode(struct mount *m, const struct inode *inode)
{
    /* Attributes alone: for those it waits for nobody. */
    fuse_lowlevel_notify_inval_inode(m->session, inode->ino, -1, 0);
}

void mount_kill_suidgid_now(fuse_req_t req, struct inode *inode)
{
    struct fs *fs = inode->fs;

    /* Few files have the bits: look before entering a transaction. */
    if (!mount_has_suidgid(inode))
        return;
    bool outsider = mount_is_outsider(req, inode);

    txn_enter(fs->txn);
    pthread_mutex_lock(&inode->attr_lock);
    bool changed = mount_kill_suidgid_locked(inode, outsider);
    if (changed)
        inode_touch_ctime(inode);
    pthread_mutex_unlock(&inode->attr_lock);
    if (changed)
        inode_mark_attr(inode);
    txn_exit(fs->txn);
    mount_forget_mode(mount_of(req), inode);
}

void mount_kill_suidgid(fuse_req_t req, struct inode *inode)
{
    if (fuse_req_ctx(req)->uid != 0)
        mount_kill_suidgid_now(req, inode);
}

/*
 * Not here, and why:
 *   read, write    served without libfuse (fuse_content.h)
 *   access         default_permissions: the kernel decides
 *   flush          its absence is remembered by the kernel, which saves a round
 *                  trip at each close(2); dirty pages it writes before anyway
 *   getlk, flock   the kernel keeps locks itself, which also survives a
 *                  restart of the daemon
 *   write_buf      is for splicing
 */
const struct fuse_lowlevel_ops mount_ops = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .statx = op_statx,
    .readlink = op_readlink,
    .mknod = op_mknod,
    .mkdir = op_mkdir,
    .unlink = op_unlink,
    .rmdir = op_rmdir,
    .symlink = op_symlink,
    .rename = op_rename,
    .link = op_link,
    .open = op_open,
    .create = op_create,
    .tmpfile = op_tmpfile,
    .release = op_release,
    .fsync = op_fsync,
    .fallocate = op_fallocate,
    .copy_file_range = op_copy_file_range,
    .lseek = op_lseek,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .fsyncdir = op_fsync,
    .statfs = op_statfs,
    .setxattr = op_setxattr,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .removexattr = op_removexattr,
    .ioctl = op_ioctl,
};
