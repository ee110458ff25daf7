// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_open.c - opening and closing files: who is served by the daemon, who past it.
 *
 * The rules are in opens.h. A reader gets what they give him at once. A writer may
 * have to wait until a passthrough handle is closed whose RELEASE is under way; that
 * happens in a thread of its own (fuse_wait.c), so that workers are there to take it.
 */
#include "cowfs/book.h"
#include "cowfs/file.h"
#include "cowfs/flat.h"
#include "cowfs/fuse_early.h"
#include "cowfs/fuse_loop.h"
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

/* What the kernel is told about a handle of the kind that fi->fh says. */
static void set_served(const struct mount *m, struct fuse_file_info *fi, int id)
{
    if (open_kind_of(fi->fh) == OPEN_PASSTHROUGH) {
        /* No keep_cache: the kernel would refuse the two together. */
        fi->backing_id = id;
        return;
    }
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

static void uncount(struct mount *m, uint64_t ino, enum open_kind kind)
{
    struct service *s = m->service;
    if (s->opens && kind != OPEN_UNCOUNTED && opens_close(s->opens, m->slot, ino, kind))
        opener_tidy_soon(s->opener);
}

void mount_close(struct mount *m, uint64_t ino, uint64_t fh)
{
    struct book *book = m->service->book;
    /* Out of the book first: who comes again for the same handle ends no other. */
    if (!book || book_remove_handle(book, fh))
        uncount(m, ino, open_kind_of(fh));
}

void mount_end_write(struct mount *m, uint64_t ino)
{
    uncount(m, ino, OPEN_WRITER);
}

/* A handle of fi->fh's kind is counted; now it is entered in the book, with the number of the
 * request. False: there is no room, and it is not counted any more. */
static bool enter_handle(struct mount *m, uint64_t ino, uint64_t request, struct fuse_file_info *fi)
{
    enum open_kind kind = open_kind_of(fi->fh);
    if (!m->service->book || kind == OPEN_UNCOUNTED)
        return true;
    fi->fh = book_add_handle(m->service->book, kind, m->slot, ino, request);
    if (fi->fh)
        return true;
    uncount(m, ino, kind);
    return false;
}

/* The handle that an earlier daemon has entered for this request, which comes again; 0: none. */
static uint64_t handle_before(const struct mount *m, uint64_t ino)
{
    if (!m->service->book || !fuse_loop_is_resent())
        return 0;
    return book_find_handle(m->service->book, m->slot, ino, journal_request_current());
}

/* It is counted, and in the book, if there is one. */
static void reply_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct mount *m = mount_of(req);
    struct early *early = fi->flags & O_TRUNC ? m->service->early : NULL;
    early_opened(early, ino);
    book_reached(m->service->book, BOOK_COUNTED);
    if (fuse_reply_open(req, fi) != 0) {
        early_closed(early, ino);
        mount_close(m, ino, fi->fh);
    }
    book_reached(m->service->book, BOOK_ANSWERED);
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
    fi->fh = kind;
    if (!enter_handle(m, ino, w->unique, fi)) {
        reply_status(w->req, -ENFILE);
        return;
    }
    set_served(m, fi, id);
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

/* The writer is counted, where there is counting, and in the book. */
static void finish_writer(struct waiting *w)
{
    struct mount *m = mount_of(w->req);
    struct fuse_file_info *fi = &w->fi;
    struct inode *inode = NULL;
    int error = 0;
    if (fi->flags & O_TRUNC) {
        error = mount_inode(m, w->ino, &inode);
        if (error == 0)
            error = file_truncate(inode, 0);
        if (error == 0 && fi->kill_suidgid)
            mount_kill_suidgid_now(w->req, inode);
        inode_put(inode);
    }
    if (error) {
        mount_close(m, w->ino, fi->fh);
        reply_status(w->req, error);
        return;
    }
    set_served(m, fi, 0);
    reply_open(w->req, w->ino, fi);
}

static void open_for_writing(struct waiting *w, int error)
{
    w->fi.fh = OPEN_WRITER;
    if (error)
        mount_refuse_write(w->req, w->ino, error);
    else if (!enter_handle(mount_of(w->req), w->ino, w->unique, &w->fi))
        reply_status(w->req, -ENFILE);
    else
        finish_writer(w);
}

/* Counted by an earlier daemon, which may have answered, or not. */
static void open_again(fuse_req_t req, fuse_ino_t ino, const struct fuse_file_info *asked,
                       uint64_t fh)
{
    struct mount *m = mount_of(req);
    struct fuse_file_info fi = *asked;
    fi.fh = fh;
    if (open_kind_of(fh) == OPEN_WRITER) {
        struct waiting w = {.req = req, .ino = ino, .fi = fi};
        finish_writer(&w);
        return;
    }
    set_served(m, &fi, opens_look(m->service->opens, m->slot, ino).id);
    reply_open(req, ino, &fi);
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
    struct waiting w = {.req = req,
                        .ino = ino,
                        .fi = *fi,
                        .reads = !is_for_writing(fi),
                        .unique = journal_request_current()};
    uint64_t before = handle_before(m, ino);
    if (before) {
        inode_put(inode);
        open_again(req, ino, fi, before);
        return;
    }
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
    fi->fh = handle_before(m, inode->ino);
    if (!fi->fh) {
        /* Nobody else can have it open for reading past us yet: it is empty. */
        if (m->service->opens && opens_write(m->service->opens, m->slot, inode->ino, 0) != 0)
            g_assert_not_reached();
        fi->fh = OPEN_WRITER;
        if (!enter_handle(m, inode->ino, journal_request_current(), fi)) {
            reply_status(req, -ENFILE);
            inode_put(inode);
            return;
        }
    }
    set_served(m, fi, 0);
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
    book_reached(m->service->book, BOOK_CLOSED);
    /* Of another handle, perhaps: then nobody looks after the file any more, and that is all. */
    if ((fi->flags & O_ACCMODE) != O_RDONLY)
        early_closed(m->service->early, ino);
    fuse_reply_err(req, 0);
}
