// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_open.c - opening and closing files: who is served by the daemon, who past it.
 *
 * The rules are in opens.h. A reader gets what they give him at once. A writer may
 * have to wait until a passthrough handle is closed whose RELEASE is under way; that
 * happens in a thread of its own (fuse_wait.c), so that workers are there to take it.
 */
#include "cowfs/file.h"
#include "cowfs/flat.h"
#include "cowfs/fuse_early.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/journal.h"
#include "cowfs/names.h"
#include "cowfs/opens.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

enum { REFUSAL_LOG_S = 10 }; /* between two messages about a file that is in use */

static bool is_for_writing(const struct fuse_file_info *fi)
{
    return (fi->flags & O_ACCMODE) != O_RDONLY || fi->flags & O_TRUNC;
}

/* What the kernel is told about a handle that the daemon serves. */
static void set_cached(const struct mount *m, struct fuse_file_info *fi, enum open_kind kind)
{
    fi->fh = kind;
    /* All changes come through this kernel, so its pages stay valid. But those of a view
     * are not told of what the other mount changes: so each open begins afresh. */
    fi->keep_cache = !m->view;
    /*
     * The kernel makes one O_DIRECT write of a file wait for the other, unless
     * they are submitted asynchronously. FOPEN_DIRECT_IO with parallel writes
     * lifts that (5 times the writes per second for four threads), but then the
     * kernel does not touch the mtime, and with the writeback cache it does not
     * take ours either: a backup by mtime would miss a changed disk. So it is
     * for mounts without that cache.
     */
    if ((fi->flags & O_DIRECT) && !m->writeback)
        fi->direct_io = 1;
    fi->parallel_direct_writes = 1;
}

void mount_close(struct mount *m, uint64_t ino, uint64_t fh)
{
    struct service *s = m->service;
    if (s->opens && fh != OPEN_UNCOUNTED && opens_close(s->opens, m->slot, ino, (enum open_kind)fh))
        opener_tidy_soon(s->opener);
}

static void reply_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct mount *m = mount_of(req);
    struct early *early = fi->flags & O_TRUNC ? m->service->early : NULL;
    early_opened(early, ino);
    if (fuse_reply_open(req, fi) != 0) {
        early_closed(early, ino);
        mount_close(m, ino, fi->fh);
    }
}

static void open_for_reading(struct waiting *w, int error)
{
    (void)error;
    struct mount *m = mount_of(w->req);
    struct fuse_file_info *fi = &w->fi;
    fuse_ino_t ino = w->ino;
    enum open_kind kind = OPEN_UNCOUNTED;
    int id = 0;
    if (m->service->opens)
        kind = opens_read(m->service->opens, m->slot, ino, &id);
    if (kind == OPEN_PASSTHROUGH) {
        /* No keep_cache: the kernel would refuse the two together. */
        fi->fh = kind;
        fi->backing_id = id;
    } else {
        set_cached(m, fi, kind);
    }
    reply_open(w->req, ino, fi);
}

/* Whether only a writer keeps the file from being read past the daemon, perhaps one who
 * has closed it a moment ago: whoever writes an image and then starts a VM from it does
 * not want to have all its memory twice for that. (One who has it open, but has not
 * written, costs a reader a moment.) */
static bool seems_written(const struct mount *m, struct inode *inode)
{
    if (!m->passthrough || m->no_passthrough)
        return false;
    struct opens_counts n = opens_look(m->service->opens, m->slot, inode->ino);
    return n.writers > 0 && n.readers == 0 && flat_verdict(inode) == FLAT_YES;
}

/* The log names the reason, but not a thousand times. */
void mount_refuse_write(fuse_req_t req, fuse_ino_t ino, int error)
{
    static atomic_int_fast64_t last_s;
    int_fast64_t now = g_get_monotonic_time() / G_USEC_PER_SEC + REFUSAL_LOG_S;
    int_fast64_t last = atomic_load(&last_s);
    if (error == -ETXTBSY && now - last >= REFUSAL_LOG_S &&
        atomic_compare_exchange_strong(&last_s, &last, now))
        g_message("inode %" G_GUINT64_FORMAT ": not opened for writing (ETXTBSY) by process %d: it"
                  " is open for reading past the daemon (passthrough)",
                  (guint64)ino, (int)fuse_req_ctx(req)->pid);
    reply_status(req, error);
}

void mount_begin_write(struct mount *m, struct waiting *w)
{
    int error = opens_write(m->service->opens, m->slot, w->ino, 0);
    if (error == -ETXTBSY)
        opener_wait(m->service->opener, w);
    else
        w->go_on(w, error);
}

/* The writer is counted, where there is counting. */
static void open_for_writing(struct waiting *w, int error)
{
    struct mount *m = mount_of(w->req);
    struct fuse_file_info *fi = &w->fi;
    struct inode *inode = NULL;
    if (error) {
        mount_refuse_write(w->req, w->ino, error);
        return;
    }
    if (fi->flags & O_TRUNC) {
        error = mount_inode(m, w->ino, &inode);
        if (error == 0)
            error = file_truncate(inode, 0);
        if (error == 0 && fi->kill_suidgid)
            mount_kill_suidgid_now(w->req, inode);
        inode_put(inode);
    }
    if (error) {
        mount_close(m, w->ino, OPEN_WRITER);
        reply_status(w->req, error);
        return;
    }
    set_cached(m, fi, OPEN_WRITER);
    reply_open(w->req, w->ino, fi);
}

void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct mount *m = mount_of(req);
    struct inode *inode;
    int error = mount_inode(m, ino, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    struct waiting w = {.req = req, .ino = ino, .fi = *fi, .reads = !is_for_writing(fi)};
    bool wait = w.reads && seems_written(m, inode);
    inode_put(inode);
    w.go_on = w.reads ? open_for_reading : open_for_writing;
    if (!w.reads && !mount_is_writable(req))
        return;
    if (wait)
        opener_wait(m->service->opener, &w);
    else if (!w.reads && m->service->opens)
        mount_begin_write(m, &w);
    else
        w.go_on(&w, 0);
}

/* Takes over the reference. */
static void reply_created(fuse_req_t req, struct inode *inode, struct fuse_file_info *fi)
{
    struct mount *m = mount_of(req);
    struct fuse_entry_param entry;

    mount_debug_die(req);
    /* Nobody else can have it open for reading past us yet: it is empty. */
    if (m->service->opens && opens_write(m->service->opens, m->slot, inode->ino, 0) != 0)
        g_assert_not_reached();
    set_cached(m, fi, OPEN_WRITER);
    mount_fill_entry(m, inode, &entry);
    early_opened(m->service->early, inode->ino);
    if (fuse_reply_create(req, &entry, fi) != 0) {
        early_closed(m->service->early, inode->ino);
        mount_close(m, inode->ino, fi->fh);
        mount_forget(m, inode->ino, 1);
    }
    inode_put(inode);
}

/* If an earlier daemon has made the file: replies with it. */
static bool replied_created_before(fuse_req_t req, struct fuse_file_info *fi)
{
    struct journal_completion done;
    struct inode *inode;
    if (!mount_done_before(req, &done))
        return false;
    int error = mount_inode(mount_of(req), done.ino, &inode);
    if (error)
        reply_status(req, error);
    else
        reply_created(req, inode, fi);
    return true;
}

void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi)
{
    struct caller caller = mount_caller(req);
    struct inode *inode;
    if (!mount_is_writable(req) || replied_created_before(req, fi))
        return;
    int error = names_create(mount_of(req)->fs, parent, name, (mode & 07777) | S_IFREG, 0, NULL,
                             &caller, &inode);
    /* The kernel thought that there was no such name, but a clone has made it
     * since. ESTALE lets it look again, and check the permissions of what it
     * finds. */
    if (error == -EEXIST && !(fi->flags & O_EXCL))
        error = -ESTALE;
    if (error)
        reply_status(req, error);
    else
        reply_created(req, inode, fi);
}

void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi)
{
    struct caller caller = mount_caller(req);
    struct inode *inode;
    if (!mount_is_writable(req) || replied_created_before(req, fi))
        return;
    int error = names_tmpfile(mount_of(req)->fs, parent, (mode & 07777) | S_IFREG, &caller, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    /* Whoever has it open has shown the kernel that he may make files there. */
    atomic_store(&inode->made_in, parent);
    reply_created(req, inode, fi);
}

void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct mount *m = mount_of(req);
    mount_close(m, ino, fi->fh);
    /* Of another handle, perhaps: then nobody looks after the file any more, and that is all. */
    if ((fi->flags & O_ACCMODE) != O_RDONLY)
        early_closed(m->service->early, ino);
    fuse_reply_err(req, 0);
}
