// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_seek.c - SEEK_DATA and SEEK_HOLE that know of dirty pages.
 *
 * The kernel passes these on as they are; with its writeback cache (or a shared
 * mapping) it may hold data that has never been written here, which then would
 * look like a hole and be lost by whoever copies by SEEK_DATA. So where an
 * answer would rely on a hole, the kernel is first asked to invalidate its pages
 * of that hole: dirty ones are written, and what is dropped besides are zeros.
 * Pages of data stay cached. A range that has no pages costs a system call.
 *
 * That call waits for WRITE requests which other workers have to serve. If all
 * workers sat in it nobody would be left: so one thread of its own makes it, and
 * replies. (The inode lock that lseek(2) holds meanwhile is not needed for
 * writing pages back.)
 */
#include "cowfs/file.h"
#include "cowfs/fuse_flush.h"
#include "cowfs/fuse_ops.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* A writer that fills hole after hole while we look must not hold us up. */
enum { ROUNDS_MAX = 8 };

struct seek {
    fuse_req_t req;
    uint64_t ino, offset;
    int whence;
    struct seek *next;
};

struct seeker {
    struct mount *mount;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct seek *first, **last; /* the queue */
    bool stop;                  /* when the queue is empty */
};

/* A range [from, to) that has to be a hole for an answer to be true. */
struct hole {
    uint64_t from, to;
};

/* The answer by the map, and the hole that it relies on (empty: none). */
static int seek_map(struct inode *inode, uint64_t offset, int whence, uint64_t *out,
                    struct hole *hole)
{
    uint64_t next;
    int error = file_seek(inode, offset, whence, out);
    *hole = (struct hole){0};
    if (whence == SEEK_DATA) {
        if (error == 0)
            *hole = (struct hole){offset, *out};
        else if (error == -ENXIO)
            *hole = (struct hole){offset, FILE_SIZE_MAX};
    } else if (error == 0) {
        int none = file_seek(inode, *out, SEEK_DATA, &next);
        *hole = (struct hole){*out, none ? FILE_SIZE_MAX : next};
    } else if (error == -ENXIO) {
        /* Beyond the size that we know of. */
        *hole = (struct hole){offset, FILE_SIZE_MAX};
    }
    return error;
}

static void reply(fuse_req_t req, int error, uint64_t offset)
{
    if (error)
        reply_status(req, error);
    else
        fuse_reply_lseek(req, (off_t)offset);
}

static bool covers(const struct hole *known, const struct hole *needed)
{
    return needed->from >= needed->to || (known->from <= needed->from && needed->to <= known->to);
}

/* Errors: the kernel does not have the inode (then it has no pages), or a page could
 * not be written (then fsync will tell). */
static void flush_hole(struct mount *m, uint64_t ino, const struct hole *hole)
{
    off_t length = hole->to == FILE_SIZE_MAX ? 0 : (off_t)(hole->to - hole->from);
    if (m->handover && flusher_inval(m->flush_fd, ino, (off_t)hole->from, length) != -EPIPE)
        return;
    fuse_lowlevel_notify_inval_inode(m->session, ino, (off_t)hole->from, length);
}

static void seek_flushed(struct mount *m, const struct seek *s)
{
    struct inode *inode;
    uint64_t found = 0;
    int error = mount_inode(m, s->ino, &inode);
    if (error) {
        reply(s->req, error, 0);
        return;
    }
    struct hole clean = {0}, needed;
    error = seek_map(inode, s->offset, s->whence, &found, &needed);
    for (unsigned i = 0; i < ROUNDS_MAX && !covers(&clean, &needed); i++) {
        if (fuse_session_exited(m->session))
            break; /* nobody is left to serve what the kernel would ask */
        flush_hole(m, s->ino, &needed);
        clean = needed;
        error = seek_map(inode, s->offset, s->whence, &found, &needed);
    }
    inode_put(inode);
    reply(s->req, error, found);
}

static void *seeker_main(void *arg)
{
    struct seeker *seeker = arg;
    pthread_setname_np(pthread_self(), "cowfs-seek");
    pthread_mutex_lock(&seeker->lock);
    for (;;) {
        struct seek *s = seeker->first;
        if (s) {
            seeker->first = s->next;
            if (!s->next)
                seeker->last = &seeker->first;
            pthread_mutex_unlock(&seeker->lock);
            seek_flushed(seeker->mount, s);
            g_free(s);
            pthread_mutex_lock(&seeker->lock);
        } else if (seeker->stop) {
            break;
        } else {
            pthread_cond_wait(&seeker->changed, &seeker->lock);
        }
    }
    pthread_mutex_unlock(&seeker->lock);
    return NULL;
}

static void seeker_push(struct seeker *seeker, struct seek *s)
{
    pthread_mutex_lock(&seeker->lock);
    *seeker->last = s;
    seeker->last = &s->next;
    pthread_cond_signal(&seeker->changed);
    pthread_mutex_unlock(&seeker->lock);
}

static void seeker_destroy(struct seeker *seeker)
{
    pthread_mutex_destroy(&seeker->lock);
    pthread_cond_destroy(&seeker->changed);
    g_free(seeker);
}

struct seeker *seeker_new(struct mount *m)
{
    struct seeker *seeker = g_new0(struct seeker, 1);
    seeker->mount = m;
    seeker->last = &seeker->first;
    pthread_mutex_init(&seeker->lock, NULL);
    pthread_cond_init(&seeker->changed, NULL);
    if (pthread_create(&seeker->thread, NULL, seeker_main, seeker) != 0) {
        seeker_destroy(seeker);
        return NULL;
    }
    return seeker;
}

void seeker_free(struct seeker *seeker)
{
    if (!seeker)
        return;
    pthread_mutex_lock(&seeker->lock);
    seeker->stop = true;
    pthread_cond_signal(&seeker->changed);
    pthread_mutex_unlock(&seeker->lock);
    pthread_join(seeker->thread, NULL);
    seeker_destroy(seeker);
}

void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    (void)fi;
    struct mount *m = mount_of(req);
    struct inode *inode;
    struct hole needed;
    uint64_t found = 0;

    if (whence != SEEK_DATA && whence != SEEK_HOLE) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    if (offset < 0) {
        fuse_reply_err(req, ENXIO);
        return;
    }
    int error = mount_inode(m, ino, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    error = seek_map(inode, (uint64_t)offset, whence, &found, &needed);
    inode_put(inode);
    if (needed.from >= needed.to || m->fs->config.read_only || m->view) {
        reply(req, error, found);
        return;
    }
    struct seek *s = g_new(struct seek, 1);
    *s = (struct seek){.req = req, .ino = ino, .offset = (uint64_t)offset, .whence = whence};
    seeker_push(m->seeker, s);
}
