// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_ioctl.c - the requests of ioctl.h.
 *
 * FUSE gives a daemon only what the command number says ("restricted" ioctls):
 * the struct goes in and comes back whole, so no pointers and at most 16 KiB.
 */
#include "cowfs/caller.h"
#include "cowfs/clone.h"
#include "cowfs/delete.h"
#include "cowfs/domain.h"
#include "cowfs/flat.h"
#include "cowfs/fuse_backing.h"
#include "cowfs/fuse_loop.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/fuse_pool.h"
#include "cowfs/handover.h"
#include "cowfs/journal.h"
#include "cowfs/opens.h"
#include "cowfs/reap.h"
#include "cowfs/scrub.h"

#include <errno.h>
#include <linux/fuse.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    MANY_MS = 20, /* a worker's time for requests of many names */
    /* So many ioctls of plain users that may take long are served at once by a mount; the
     * others wait, and those who make other requests do not. */
    COSTLY_AT_ONCE = 2,
};

/* What a handler gets: the caller's struct, a copy that goes back to him. */
struct call {
    struct fuse_job job;
    const struct handler *handler;
    fuse_req_t req;
    struct mount *mount;
    struct fs *fs;
    uint64_t ino;
    uint64_t fh; /* how the handle is served: open_kind_of */
    void *io;
    bool handed_over; /* io and the answer: to another thread */
    /* An earlier daemon has done it, or some of its names, and died before it could say so. */
    bool done_before;
    struct journal_completion before;
    uint64_t unique; /* journal_request_begin */
    bool resent;     /* fuse_loop_is_resent */
    gid_t groups[CALLER_GROUPS_MAX];
};

static int do_token(struct call *c)
{
    struct cowfs_ioc_token *io = c->io;
    return token_give(c->mount->service->tokens, c->ino, io->token);
}

static struct caller caller_of(struct call *c)
{
    struct caller caller;
    mount_caller_rights(c->req, &caller, c->groups);
    return caller;
}

/* The kernel knows nothing of a new entry: names that are absent it does not cache, but it does
 * the directory's times and size. */
static void forget_attributes(const struct call *c, uint64_t dir)
{
    fuse_lowlevel_notify_inval_inode(c->mount->session, dir, -1, 0);
}

/* The directory in which names are to be made or removed. For an ioctl the kernel does not
 * ask whether the mount through which a directory was opened is read-only. Where we cannot
 * tell either, the caller has to show a file that he has made there by O_TMPFILE, for which
 * the kernel did ask. */
static int target_directory(struct call *c, uint64_t *dir)
{
    struct inode *inode;
    int error = mount_inode(c->mount, c->ino, &inode);
    if (error)
        return error;
    pthread_mutex_lock(&inode->attr_lock);
    bool is_dir = S_ISDIR(inode->attr.mode);
    /* With a name, somebody else could have opened it. */
    bool nameless = inode->attr.nlink == 0 && inode->attr.linkable;
    pthread_mutex_unlock(&inode->attr_lock);
    *dir = is_dir ? c->ino : atomic_load(&inode->made_in);
    inode_put(inode);
    if (is_dir)
        return mount_is_writable_for(c->req) ? 0 : -ENOKEY;
    return *dir && nameless && open_kind_of(c->fh) == OPEN_WRITER ? 0 : -ENOTDIR;
}

static int do_clone(struct call *c)
{
    struct cowfs_ioc_clone *io = c->io;
    uint64_t source, dir;

    if (!memchr(io->name, '\0', sizeof(io->name)))
        return -ENAMETOOLONG;
    if (c->done_before) {
        io->files = c->before.counts.files;
        io->directories = c->before.counts.directories;
        io->symlinks = c->before.counts.symlinks;
        io->left_out = c->before.counts.left_out;
        if (target_directory(c, &dir) == 0)
            forget_attributes(c, dir);
        return 0;
    }
    /* The token was perhaps an earlier daemon's: ESTALE, and the caller asks anew. */
    int error = token_find(c->mount->service->tokens, io->token, &source);
    if (error == 0)
        error = target_directory(c, &dir);
    if (error)
        return error;
    struct caller caller = caller_of(c);
    error = clone_tree(c->fs, source, dir, io->name, &caller, io);
    if (error == 0)
        forget_attributes(c, dir);
    return error;
}

/* The names of a request of many, one after the other. */
struct name_list {
    const char *at, *end;
};

static struct name_list name_list(const char names[COWFS_NAMES_BYTES])
{
    return (struct name_list){names, names + COWFS_NAMES_BYTES};
}

/* NULL if the list ends before. */
static const char *next_name(struct name_list *l)
{
    const char *name = l->at, *nul = memchr(name, '\0', (size_t)(l->end - name));
    if (!nul)
        return NULL;
    l->at = nul + 1;
    return name;
}

static int clone_pair(struct call *c, const struct caller *caller, uint64_t source, uint64_t dir,
                      struct name_list *names)
{
    struct cowfs_ioc_clone_many *io = c->io;
    struct cowfs_ioc_clone one;
    const char *from = next_name(names), *to = from ? next_name(names) : NULL;
    if (!to)
        return -EINVAL;
    int error = clone_child(c->fs, source, from, dir, to, caller, &one);
    if (error)
        return error;
    io->files += one.files;
    io->directories += one.directories;
    io->symlinks += one.symlinks;
    io->left_out += one.left_out;
    io->done++;
    return 0;
}

static int do_clone_many(struct call *c)
{
    struct cowfs_ioc_clone_many *io = c->io;
    struct caller caller = caller_of(c);
    struct name_list names = name_list(io->names);
    int64_t until_us = g_get_monotonic_time() + MANY_MS * INT64_C(1000);
    uint64_t source, dir;
    if (c->done_before) {
        /* The rest he asks for again. */
        io->done = (uint32_t)c->before.step;
        io->error = 0;
        io->files = c->before.counts.files;
        io->directories = c->before.counts.directories;
        io->symlinks = c->before.counts.symlinks;
        io->left_out = c->before.counts.left_out;
        if (target_directory(c, &dir) == 0)
            forget_attributes(c, dir);
        return 0;
    }
    int error = token_find(c->mount->service->tokens, io->token, &source);
    if (error == 0)
        error = target_directory(c, &dir);
    if (error)
        return error;
    io->files = io->directories = io->symlinks = io->left_out = 0;
    io->done = 0;
    while (!error && io->done < io->count && (io->done == 0 || g_get_monotonic_time() < until_us))
        error = clone_pair(c, &caller, source, dir, &names);
    io->error = -error;
    if (io->done)
        forget_attributes(c, dir);
    return 0;
}

/* What an earlier daemon has deleted, and perhaps not told the kernel. Of what it was nobody
 * knows the numbers any more. */
static void deleted_before(struct call *c, struct deletion *d)
{
    const uint64_t unknown = 0;
    struct cowfs_ioc_delete *io = c->io;
    io->done = (uint32_t)c->before.step;
    io->files = c->before.counts.files;
    io->directories = c->before.counts.directories;
    for (uint32_t i = 0; i < io->done; i++)
        g_array_append_val(d->tops, unknown);
}

static int do_delete(struct call *c)
{
    struct cowfs_ioc_delete *io = c->io;
    struct caller caller = caller_of(c);
    struct name_list names = name_list(io->names);
    int64_t until_us = g_get_monotonic_time() + MANY_MS * INT64_C(1000);
    uint64_t dir;
    int error = target_directory(c, &dir);
    if (error)
        return error;
    struct deletion d = {
        .req = c->req,
        .dir = dir,
        .io = io,
        .tops = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
        .inos = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
    };
    io->files = io->directories = 0;
    io->done = 0;
    if (c->done_before)
        deleted_before(c, &d);
    while (!error && !c->done_before && io->done < io->count &&
           (io->done == 0 || g_get_monotonic_time() < until_us)) {
        const char *name = next_name(&names);
        guint before = d.inos->len;
        error = name ? delete_tree(c->fs, dir, name, &caller, io, d.inos) : -EINVAL;
        if (error)
            break;
        g_array_append_val(d.tops, g_array_index(d.inos, uint64_t, before));
        io->done++;
    }
    io->error = -error;
    c->handed_over = true;
    mount_debug_die(c->req);
    notifier_deleted(c->mount->notifier, &d);
    return 0;
}

/* Why an open for reading would not be served past the daemon by this mount; "" if it
 * would. The handle that asks does not count. */
static void passthrough_reason(const struct call *c, enum flat_verdict flat, char *out, size_t size)
{
    const struct mount *m = c->mount;
    struct opens *opens = m->service->opens;
    *out = '\0';
    if (open_kind_of(c->fh) == OPEN_PASSTHROUGH)
        return;
    if (!m->passthrough || m->no_passthrough) {
        const char *reason = "the mount was not made with the option passthrough, nor is it a view";
        if (m->no_passthrough)
            reason = backings_reason(m->no_passthrough);
        else if (m->writeback)
            reason = "this mount has the kernel's writeback cache, which excludes passthrough";
        const char *view = atomic_load(&m->service->view_path);
        g_snprintf(out, size, "%s%s%s%s", reason, !m->view && view ? "; the view at " : "",
                   !m->view && view ? view : "", !m->view && view ? " has it" : "");
        return;
    }
    struct opens_counts n = opens_look(opens, m->slot, c->ino);
    n.writers -= open_kind_of(c->fh) == OPEN_WRITER && n.writers > 0;
    n.readers -= open_kind_of(c->fh) == OPEN_READER && n.readers > 0;
    if (flat != FLAT_YES)
        g_snprintf(out, size, "%s", flat_verdict_text(flat));
    else if (n.writers)
        g_snprintf(out, size, "it is open for writing just now, by %u handles", n.writers);
    else if (n.readers)
        g_snprintf(out, size, "it is open for reading by %u handles that began without", n.readers);
}

static int do_stat(struct call *c)
{
    struct cowfs_ioc_stat *io = c->io;
    struct inode *inode;
    int error = usage_stat(c->fs, c->ino, io);
    if (error == 0)
        error = mount_inode(c->mount, c->ino, &inode);
    if (error)
        return error;
    enum flat_verdict flat = flat_verdict(inode);
    inode_put(inode);
    passthrough_reason(c, flat, io->not_passthrough, sizeof(io->not_passthrough));
    io->passthrough = io->not_passthrough[0] == '\0';
    io->flat = flat == FLAT_YES;
    return 0;
}

static int do_pack(struct call *c)
{
    struct cowfs_ioc_pack *io = c->io;
    struct inode *inode;
    /* The kernel has checked the right to write, and that it is a regular file. */
    if (open_kind_of(c->fh) != OPEN_WRITER)
        return -EBADF;
    int error = fs_may_change(c->fs);
    if (error == 0)
        error = mount_inode(c->mount, c->ino, &inode);
    if (error)
        return error;
    error = flat_pack_part(inode, io->offset, io->length, &io->next, &io->moved);
    inode_put(inode);
    return error;
}

static int do_du(struct call *c)
{
    struct caller caller = caller_of(c);
    return usage_du(c->fs, c->ino, &caller, c->io);
}

static int do_df(struct call *c)
{
    return usage_df(c->fs, c->io);
}

/* 0, or the error, if the caller may not do with the inode what `may` asks. */
static int check_rights(struct call *c, uint64_t ino,
                        bool (*may)(const struct caller *caller, struct inode *inode), int error)
{
    struct inode *inode;
    int failed = mount_inode(c->mount, ino, &inode);
    if (failed)
        return failed;
    struct caller caller = caller_of(c);
    bool allowed = may(&caller, inode);
    inode_put(inode);
    return allowed ? 0 : error;
}

static bool may_read(const struct caller *caller, struct inode *inode)
{
    return caller_may(caller, inode, MAY_READ);
}

/* Sealing tells how much of a file exists elsewhere. */
static int do_seal(struct call *c)
{
    int error = check_rights(c, c->ino, caller_owns_or_may_write, -EPERM);
    return error ? error : seal_range(c->fs, c->ino, c->io);
}

/* What he has open he may have open for writing only. */
static int do_diff(struct call *c)
{
    struct cowfs_ioc_diff *io = c->io;
    uint64_t other;
    int error = token_find(c->mount->service->tokens, io->token, &other);
    if (error == 0)
        error = check_rights(c, c->ino, may_read, -EACCES);
    if (error == 0)
        error = check_rights(c, other, may_read, -EACCES);
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
    const char *view_path = atomic_load(&c->mount->service->view_path);
    io->is_view = c->mount->view;
    g_strlcpy(io->view_path, view_path ? view_path : "", sizeof(io->view_path));
    return 0;
}

/* The machine's root, or the plain user whom the daemon runs as. */
static bool is_master(struct call *c)
{
    struct caller caller = caller_of(c);
    return caller_is_root(&caller) || (caller.uid != 0 && caller.uid == geteuid());
}

static int do_scrub(struct call *c)
{
    /* It reads for long, and what others have. */
    if (!is_master(c))
        return -EPERM;
    return scrub_step(c->fs, c->io);
}

static int do_public(struct call *c)
{
    struct cowfs_ioc_public *io = c->io;
    if (io->action != COWFS_PUBLIC_TELL) {
        if (c->mount->view || c->fs->config.read_only)
            return -EROFS;
        /* Who may make something public can find out who has it (domain.h). */
        if (!is_master(c))
            return -EPERM;
    }
    return domain_public_range(c->fs, c->ino, io);
}

static int do_damage(struct call *c)
{
    return scrub_file_damage(c->fs, c->ino, c->io);
}

static int do_upgrade(struct call *c)
{
    struct cowfs_ioc_upgrade *io = c->io;
    if (!is_master(c))
        return -EPERM;
    if (io->flags & ~(uint32_t)COWFS_UPGRADE_GO)
        return -EINVAL;
    bool go = io->flags & COWFS_UPGRADE_GO;
    io->pid = (uint32_t)getpid();
    io->supervisor_pid = c->mount->handover ? (uint32_t)getppid() : 0;
    g_strlcpy(io->program_version, COWFS_VERSION, sizeof(io->program_version));
    io->reason[0] = '\0';
    if (!c->mount->handover)
        g_strlcpy(
            io->reason,
            "the mount has no supervisor (nosupervise, io_uring): unmount it, and mount it again"
            " by the version that is installed now",
            sizeof(io->reason));
    else if (!go)
        upgrade_verify(io->reason, sizeof(io->reason));
    else if (upgrade_check(io->reason, sizeof(io->reason)) == 0)
        eventfd_write(c->mount->service->upgrade_fd, 1);
    return 0;
}

static const struct handler {
    unsigned command;
    int (*fn)(struct call *c);
    bool changes; /* the store, in a way that a read-only mount must not */
    bool costly;  /* may take long: it walks maps or trees, or waits for others */
} handlers[] = {
    {COWFS_IOC_TOKEN, do_token, false, false},
    {COWFS_IOC_CLONE, do_clone, true, false},
    {COWFS_IOC_STAT, do_stat, false, true},
    {COWFS_IOC_DU, do_du, false, true},
    {COWFS_IOC_DF, do_df, false, true},
    {COWFS_IOC_SEAL, do_seal, true, true},
    {COWFS_IOC_DIFF, do_diff, false, true},
    {COWFS_IOC_COMMIT, do_commit, false, true},
    {COWFS_IOC_INFO, do_info, false, false},
    {COWFS_IOC_PACK, do_pack, true, true},
    {COWFS_IOC_SCRUB, do_scrub, false, false},
    {COWFS_IOC_DAMAGE, do_damage, false, true},
    {COWFS_IOC_PUBLIC, do_public, false, true},
    {COWFS_IOC_DELETE, do_delete, true, false},
    {COWFS_IOC_CLONE_MANY, do_clone_many, true, false},
    {COWFS_IOC_UPGRADE, do_upgrade, false, true},
};

_Static_assert((int)COSTLY_AT_ONCE <= (int)HANDOVER_JOBS, "each needs a slot");
_Static_assert(sizeof(gid_t) == sizeof(uint32_t), "struct caller takes the list as it is");
/* The size has 14 bits in a command. */
_Static_assert(sizeof(struct cowfs_ioc_diff) < 1 << _IOC_SIZEBITS, "too large for an ioctl");
_Static_assert(sizeof(struct cowfs_ioc_clone_many) < 1 << _IOC_SIZEBITS, "too large for an ioctl");
_Static_assert(sizeof(struct cowfs_ioc_info) < 1 << _IOC_SIZEBITS, "too large for an ioctl");

static const struct handler *find_handler(unsigned command)
{
    for (size_t i = 0; i < G_N_ELEMENTS(handlers); i++)
        if (handlers[i].command == command)
            return &handlers[i];
    return NULL;
}

static void run_call(struct call *call)
{
    if (call->mount->debug_du_faults && call->handler->command == COWFS_IOC_DU)
        raise(SIGSEGV);
    int error = call->handler->fn(call);
    if (!error && !call->handed_over)
        mount_debug_die(call->req);
    if (call->handed_over) {
        g_free(call);
        return;
    }
    if (error)
        reply_status(call->req, error);
    else
        fuse_reply_ioctl(call->req, 0, call->io, _IOC_SIZE(call->handler->command));
    g_free(call->io);
    g_free(call);
}

static void refuse_call(struct call *call)
{
    fuse_reply_err(call->req, EIO);
    g_free(call->io);
    g_free(call);
}

/* In a thread of the pool, which serves the request from here on. */
static void run_job(struct fuse_job *job)
{
    struct call *call = (struct call *)job;
    struct handover *h = call->mount->handover;
    unsigned slot = 0;
    bool go_on = !h || handover_job_begin(h, call->unique, FUSE_IOCTL, call->resent, &slot);
    journal_request_begin(call->unique);
    if (go_on)
        run_call(call);
    else
        refuse_call(call);
    journal_request_end();
    if (h)
        handover_request_end(h, slot);
}

struct fuse_pool *ioctl_pool_new(void)
{
    return fuse_pool_new(COSTLY_AT_ONCE, run_job);
}

/* Whether it goes there: what takes long, of plain users. */
static bool gave_to_pool(struct call *call)
{
    if (!call->handler->costly || fuse_req_ctx(call->req)->uid == 0)
        return false;
    /* Before: it may be done by the time we look again. */
    handover_request_pass_on(true);
    bool taken = fuse_pool_add(call->mount->costly, &call->job);
    if (!taken)
        handover_request_pass_on(false);
    return taken;
}

void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg, struct fuse_file_info *fi,
              unsigned flags, const void *in, size_t in_size, size_t out_size)
{
    (void)arg;
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
    if (handler->changes && (m->view || m->fs->config.read_only)) {
        fuse_reply_err(req, EROFS);
        return;
    }
    struct call *call = g_new(struct call, 1);
    *call = (struct call){
        .handler = handler,
        .req = req,
        .mount = m,
        .fs = m->fs,
        .ino = ino,
        .fh = fi->fh,
        .io = g_memdup2(in, size),
        .unique = journal_request_current(),
        .resent = fuse_loop_is_resent(),
    };
    call->done_before = mount_done_before(req, &call->before);
    if (!gave_to_pool(call))
        run_call(call);
}
