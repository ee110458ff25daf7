// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_notify.c - telling the kernel of names that an ioctl has deleted behind its back.
 *
 * To drop a name the kernel takes the lock of its directory, and somebody who holds that may be
 * waiting for one of our workers: so a worker must not wait for it, and a thread of its own
 * does. The ioctl is answered when it is through, since who deletes a name expects it to be gone.
 *
 * Told are the names, and with them the kernel drops all that it knows below; then the
 * attributes of what lives on (it is open, or has another name), for the number of links; then
 * the directory.
 *
 * The same thread asks the kernel, some time after an earlier daemon's death, which of the files
 * without links it still knows: what the dead one was told of forgetting is lost, and how often it
 * had told the kernel of which file, too.
 *
 * And that of a view has its kernel forget what was deleted in the other mount: that keeps names
 * for as long as it likes, and with them the file and its space, until somebody asks for the name.
 */
#include "cowfs/fuse_flush.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/handover.h"
#include "cowfs/journal.h"
#include "cowfs/reap.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

/*
 * Who has got his answer from the last daemon has run by then, and told the kernel of his file.
 * Of what has had no links for as long as that, the kernel can be asked at once: else daemons that
 * die before would pass on ever more files, and each looks through them before it serves.
 */
#define ASK_AFTER_US INT64_C(10000000)
enum { ASK_FIRST_MS = 10, ASK_AGAIN_S = 1, ASK_ANEW_S = 30, VIEW_EVERY_S = 1 };

struct notifier {
    struct mount *mount;
    int64_t ask_us;    /* when to ask what is known; 0: not */
    int64_t begun_us;  /* what the last daemon has answered it has answered before */
    unsigned early_ms; /* until it is tried again, where that was too early for all */
    bool left;         /* of a view: there are deleted files that its kernel knew of */
    bool no_prune;     /* it cannot be told to forget (before Linux 6.18) */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    GQueue deletions; /* struct deletion */
    bool stop;        /* when there is nothing left */
};

/* As g_get_monotonic_time. */
static int64_t in_s(int seconds)
{
    return g_get_monotonic_time() + (int64_t)seconds * G_USEC_PER_SEC;
}

/* ino 0: not known. With a supervisor the flusher does it: it may have to wait in the kernel. */
static void drop_name(struct mount *m, uint64_t dir, uint64_t ino, const char *name)
{
    if (m->handover && flusher_drop_name(m->flush_fd, dir, ino, name) != -EPIPE)
        return;
    if (ino)
        fuse_lowlevel_notify_delete(m->session, dir, ino, name, strlen(name));
    else
        fuse_lowlevel_notify_inval_entry(m->session, dir, name, strlen(name));
}

static void tell_deletion(struct mount *m, struct deletion *d)
{
    const char *name = d->io->names;
    for (guint i = 0; i < d->tops->len; i++) {
        drop_name(m, d->dir, g_array_index(d->tops, uint64_t, i), name);
        name += strlen(name) + 1;
    }
    for (guint i = 0; i < d->inos->len; i++) {
        uint64_t ino = g_array_index(d->inos, uint64_t, i);
        if (inode_is_known(m->fs->inodes, ino, m->slot))
            fuse_lowlevel_notify_inval_inode(m->session, ino, -1, 0);
    }
    fuse_lowlevel_notify_inval_inode(m->session, d->dir, -1, 0);
    fuse_reply_ioctl(d->req, 0, d->io, sizeof(*d->io));
}

static void deletion_free(struct deletion *d)
{
    g_array_free(d->tops, TRUE);
    g_array_free(d->inos, TRUE);
    g_free(d->io);
    g_free(d);
}

struct asking {
    struct notifier *notifier;
    bool quiet; /* no requests are left that are served for the second time */
    int64_t now_us;
};

/* Whether all who were told of that file have told the kernel by now. */
static bool may_ask(const struct asking *a, uint64_t ino)
{
    struct mount *m = a->notifier->mount;
    int64_t since_us = journal_orphan_since(m->fs->journal, ino, a->now_us);
    if (a->now_us - a->notifier->begun_us >= ASK_AFTER_US)
        return true;
    return a->now_us - since_us >= ASK_AFTER_US && !inode_is_known(m->fs->inodes, ino, m->slot);
}

static bool forget_unknown(void *arg, uint64_t ino)
{
    const struct asking *a = arg;
    struct mount *m = a->notifier->mount;
    if (fuse_session_exited(m->session))
        return false;
    /* Not by ourselves: the kernel may be about to drop it, and wait for us with that. */
    if (may_ask(a, ino) && a->quiet && flusher_inval(m->flush_fd, ino, -1, 0) == -ENOENT)
        mount_forget(m, ino, 0);
    return true;
}

/* False: it is too early for any of them. */
static bool ask_what_is_known(struct notifier *n)
{
    struct mount *m = n->mount;
    struct pollfd queue = {.fd = fuse_session_fd(m->session), .events = POLLIN};
    bool all_read = atomic_load(&m->resent_over) || poll(&queue, 1, 0) == 0;
    struct asking a = {
        .notifier = n,
        .quiet = all_read && !atomic_load(&m->resent_in_service),
        .now_us = g_get_monotonic_time(),
    };
    reaper_each_orphan(m->fs, forget_unknown, &a);
    return a.quiet;
}

static int prune(struct mount *m, uint64_t ino)
{
    int error = m->handover ? flusher_prune(m->flush_fd, ino) : -EPIPE;
    return error == -EPIPE ? fuse_prune(fuse_session_fd(m->session), ino) : error;
}

static bool forget_known(void *arg, uint64_t ino)
{
    struct notifier *n = arg;
    struct mount *m = n->mount;
    if (n->no_prune || fuse_session_exited(m->session))
        return false;
    if (inode_is_known(m->fs->inodes, ino, m->slot)) {
        n->left = true;
        n->no_prune = prune(m, ino) == -EINVAL;
    }
    return true;
}

/* A view's: whose names are left in the kernel's cache alone. Who has a file open is asked again. */
static void forget_deleted(struct notifier *n)
{
    struct fs *fs = n->mount->fs;
    if (n->no_prune || (!atomic_exchange(&fs->orphaned, false) && !n->left))
        return;
    n->left = false;
    reaper_each_orphan(fs, forget_known, n);
}

/* Under the lock, which it drops. */
static void look_after_view(struct notifier *n)
{
    pthread_mutex_unlock(&n->lock);
    forget_deleted(n);
    pthread_mutex_lock(&n->lock);
}

/* Under the lock, which it drops. */
static void ask(struct notifier *n)
{
    pthread_mutex_unlock(&n->lock);
    int64_t now_us = g_get_monotonic_time();
    bool done = ask_what_is_known(n);
    pthread_mutex_lock(&n->lock);
    if (now_us - n->begun_us >= ASK_AFTER_US) {
        /* What is deleted later is not forgotten by a kernel that has never heard of it. */
        n->ask_us = in_s(done ? ASK_ANEW_S : ASK_AGAIN_S);
        return;
    }
    n->early_ms = done ? ASK_AGAIN_S * 1000 : MIN(2 * n->early_ms, ASK_AGAIN_S * 1000);
    n->ask_us = now_us + n->early_ms * INT64_C(1000);
}

static void wait_for_work(struct notifier *n)
{
    int64_t until_us = n->ask_us;
    if (n->mount->view && !n->no_prune) {
        int64_t next_us = in_s(VIEW_EVERY_S);
        until_us = until_us ? MIN(until_us, next_us) : next_us;
    }
    struct timespec until = {
        .tv_sec = until_us / G_USEC_PER_SEC,
        .tv_nsec = until_us % G_USEC_PER_SEC * 1000,
    };
    if (until_us)
        pthread_cond_timedwait(&n->changed, &n->lock, &until);
    else
        pthread_cond_wait(&n->changed, &n->lock);
}

static void *notifier_main(void *arg)
{
    struct notifier *n = arg;
    pthread_setname_np(pthread_self(), "cowfs-notify");
    pthread_mutex_lock(&n->lock);
    for (;;) {
        struct deletion *d = g_queue_pop_head(&n->deletions);
        if (d) {
            pthread_mutex_unlock(&n->lock);
            tell_deletion(n->mount, d);
            deletion_free(d);
            pthread_mutex_lock(&n->lock);
        } else if (n->stop) {
            break;
        } else if (n->ask_us && g_get_monotonic_time() >= n->ask_us) {
            ask(n);
        } else {
            wait_for_work(n);
            if (n->mount->view && !n->stop)
                look_after_view(n);
        }
    }
    pthread_mutex_unlock(&n->lock);
    return NULL;
}

static void notifier_destroy(struct notifier *n)
{
    pthread_mutex_destroy(&n->lock);
    pthread_cond_destroy(&n->changed);
    g_free(n);
}

struct notifier *notifier_new(struct mount *m)
{
    struct notifier *n = g_new0(struct notifier, 1);
    n->mount = m;
    n->begun_us = g_get_monotonic_time();
    n->early_ms = ASK_FIRST_MS;
    if (m->link && m->link->dev) /* an earlier daemon has served it */
        n->ask_us = n->begun_us + ASK_FIRST_MS * INT64_C(1000);
    pthread_mutex_init(&n->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC); /* as g_get_monotonic_time */
    pthread_cond_init(&n->changed, &clock);
    pthread_condattr_destroy(&clock);
    if (pthread_create(&n->thread, NULL, notifier_main, n) != 0) {
        notifier_destroy(n);
        return NULL;
    }
    return n;
}

void notifier_free(struct notifier *n)
{
    if (!n)
        return;
    pthread_mutex_lock(&n->lock);
    n->stop = true;
    pthread_cond_signal(&n->changed);
    pthread_mutex_unlock(&n->lock);
    pthread_join(n->thread, NULL);
    notifier_destroy(n);
}

void notifier_deleted(struct notifier *n, const struct deletion *d)
{
    pthread_mutex_lock(&n->lock);
    g_queue_push_tail(&n->deletions, g_memdup2(d, sizeof(*d)));
    pthread_cond_signal(&n->changed);
    pthread_mutex_unlock(&n->lock);
}
