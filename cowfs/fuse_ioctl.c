// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_ioctl.c - the requests of ioctl.h.
 *
 * FUSE gives a daemon only what the command number says ("restricted" ioctls):
 * the struct goes in and comes back whole, so no pointers and at most 16 KiB.
 */
#include "cowfs/clone.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/reap.h"
#include "cowfs/scrub.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { GROUPS_MAX = 1024 };

/* What a handler gets: the caller's struct, a copy that goes back to him. */
struct call {
    fuse_req_t req;
    struct mount *mount;
    struct fs *fs;
    uint64_t ino;
    void *io;
};

static int do_token(struct call *c)
{
    struct cowfs_ioc_token *io = c->io;
    return token_give(c->mount->tokens, c->ino, io->token);
}

static int do_clone(struct call *c)
{
    struct cowfs_ioc_clone *io = c->io;
    struct caller caller = mount_caller(c->req);
    gid_t groups[GROUPS_MAX];
    uint64_t source;

    /* libfuse reads them from /proc, which takes longer than the clone; root may
     * do all without. If they are not to be had, only the primary group counts. */
    if (caller.uid != 0) {
        int group_count = fuse_req_getgroups(c->req, GROUPS_MAX, groups);
        caller.groups = groups;
        caller.group_count = (unsigned)CLAMP(group_count, 0, GROUPS_MAX);
    }

    if (!memchr(io->name, '\0', sizeof(io->name)))
        return -ENAMETOOLONG;
    int error = token_find(c->mount->tokens, io->token, &source);
    if (error == 0)
        error = clone_tree(c->fs, source, c->ino, io->name, &caller, io);
    /* The kernel knows nothing of the new entry: names that are absent it does
     * not cache, but it does the directory's times and size. */
    if (error == 0)
        fuse_lowlevel_notify_inval_inode(c->mount->session, c->ino, -1, 0);
    return error;
}

static int do_stat(struct call *c)
{
    return usage_stat(c->fs, c->ino, c->io);
}

static int do_du(struct call *c)
{
    return usage_du(c->fs, c->ino, c->io);
}

static int do_df(struct call *c)
{
    return usage_df(c->fs, c->io);
}

static int do_seal(struct call *c)
{
    return seal_range(c->fs, c->ino, c->io);
}

static int do_diff(struct call *c)
{
    struct cowfs_ioc_diff *io = c->io;
    uint64_t other;
    int error = token_find(c->mount->tokens, io->token, &other);
    return error ? error : diff_files(c->fs, c->ino, other, io);
}

static int do_commit(struct call *c)
{
    struct cowfs_ioc_commit *io = c->io;
    if (io->flags & ~1u)
        return -EINVAL;
    /* What was deleted is released first, so that this commit frees it. */
    if (io->flags & 1u)
        reaper_wait(c->fs->reaper);
    int error = fs_commit(c->fs);
    if (error == 0 && io->flags & 1u)
        txn_wait_reclaim(c->fs->txn);
    return error;
}

static int do_info(struct call *c)
{
    struct cowfs_ioc_info *io = c->io;
    io->pid = (uint32_t)getpid();
    g_strlcpy(io->store_path, c->fs->store_path, sizeof(io->store_path));
    return 0;
}

static int do_scrub(struct call *c)
{
    /* It reads for long, and what others have. */
    uint32_t uid = mount_caller(c->req).uid;
    if (uid != 0 && uid != geteuid())
        return -EPERM;
    return scrub_step(c->fs, c->io);
}

static int do_damage(struct call *c)
{
    return scrub_file_damage(c->fs, c->ino, c->io);
}

static const struct handler {
    unsigned command;
    int (*fn)(struct call *c);
} handlers[] = {
    {COWFS_IOC_TOKEN, do_token}, {COWFS_IOC_CLONE, do_clone},   {COWFS_IOC_STAT, do_stat},
    {COWFS_IOC_DU, do_du},       {COWFS_IOC_DF, do_df},         {COWFS_IOC_SEAL, do_seal},
    {COWFS_IOC_DIFF, do_diff},   {COWFS_IOC_COMMIT, do_commit}, {COWFS_IOC_INFO, do_info},
    {COWFS_IOC_SCRUB, do_scrub}, {COWFS_IOC_DAMAGE, do_damage},
};

_Static_assert(sizeof(gid_t) == sizeof(uint32_t), "struct caller takes the list as it is");
/* The size has 14 bits in a command. */
_Static_assert(sizeof(struct cowfs_ioc_diff) < 1 << _IOC_SIZEBITS, "too large for an ioctl");
_Static_assert(sizeof(struct cowfs_ioc_info) < 1 << _IOC_SIZEBITS, "too large for an ioctl");

static const struct handler *find_handler(unsigned command)
{
    for (size_t i = 0; i < G_N_ELEMENTS(handlers); i++)
        if (handlers[i].command == command)
            return &handlers[i];
    return NULL;
}

void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg, struct fuse_file_info *fi,
              unsigned flags, const void *in, size_t in_size, size_t out_size)
{
    (void)arg;
    (void)fi;
    (void)flags; /* compat or not: the structs have one layout */
    const struct handler *handler = find_handler(cmd);
    if (!handler) {
        /* Programs probe files with ioctls of their own (TCGETS, FIEMAP, ...). */
        fuse_reply_err(req, ENOTTY);
        return;
    }
    size_t size = _IOC_SIZE(cmd);
    if (in_size != size || out_size != size) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    uint32_t version;
    memcpy(&version, in, sizeof(version));
    if (version != COWFS_IOCTL_VERSION) {
        fuse_reply_err(req, EPROTO);
        return;
    }
    struct mount *m = mount_of(req);
    struct call call = {
        .req = req,
        .mount = m,
        .fs = m->fs,
        .ino = ino,
        .io = g_memdup2(in, size),
    };
    int error = handler->fn(&call);
    if (error)
        reply_status(req, error);
    else
        fuse_reply_ioctl(req, 0, call.io, size);
    g_free(call.io);
}
