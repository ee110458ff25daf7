// SPDX-License-Identifier: Apache-2.0
/*
 * reap.c - see reap.h.
 *
 * One inode goes through these steps, each whole in one transaction:
 *
 *   claimed ---> map shrunk, recorded (repeated while there is more)
 *           ---> rest of the map, xattrs and all records gone
 *
 * An error (a damaged node, say) leaves the orphan as it is: it holds space,
 * which fsck reports, and it is tried again at the next opening only.
 */
#include "cowfs/reap.h"

#include "cowfs/fs.h"
#include "cowfs/home.h"
#include "cowfs/names.h"

#include <errno.h>
#include <inttypes.h>

enum {
    QUEUE_MAX = 65536, /* numbers: 512 KiB */
    SCAN_BATCH = 1024, /* orphan records per look at the database */
    GATHER_MS = 5,     /* between the first number and the work: rm -r brings many */
    COMMIT_DELAY_MS = 200,
};

struct reaper {
    struct fs *fs;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* something was queued while the thread was idle, or stop */
    pthread_cond_t idle; /* the queue is empty and nothing is in work */
    GArray *queue;       /* numbers not taken yet */
    bool scan;           /* walk over KEY_ORPHAN after the queue */
    bool busy;
    bool stop;
    bool released; /* the thread's own: space was freed since the last kick */
};

static bool is_idle(struct reaper *r)
{
    return !r->busy && r->queue->len == 0 && !r->scan;
}

/* Releases a part of the inode's map. *done: the inode is gone (deleted). */
static int release_step(struct reaper *r, struct inode *inode, bool *done)
{
    struct fs *fs = r->fs;
    bool more = false;
    int error = 0;
    txn_throttle(fs->txn);
    pthread_rwlock_wrlock(&inode->map_lock);
    txn_enter(fs->txn);
    home_leave(inode, false);
    struct map map = inode->attr.map;
    if (map.levels) {
        error = map_release(fs->nodes, &map, &more);
        r->released = true;
        /* Also after an error: what was released is released. */
        pthread_mutex_lock(&inode->attr_lock);
        inode->attr.map = map;
        pthread_mutex_unlock(&inode->attr_lock);
        inode_mark_dirty(inode);
    }
    if (!error && !more && inode->attr.has_xattrs)
        error = xattr_drop_all(fs, inode->ino);
    *done = !error && !more;
    pthread_rwlock_unlock(&inode->map_lock);
    if (*done)
        inode_delete_claimed(inode);
    txn_exit(fs->txn);
    return error;
}

static bool must_stop(struct reaper *r)
{
    pthread_mutex_lock(&r->lock);
    bool stop = r->stop;
    pthread_mutex_unlock(&r->lock);
    return stop;
}

static void reap(struct reaper *r, uint64_t ino)
{
    struct inode *inode;
    bool done = false;
    int error = inode_claim_orphan(r->fs->inodes, ino, &inode);
    if (error)
        return; /* in use (again), or gone: it was queued twice */
    while (!error && !done && !must_stop(r))
        error = release_step(r, inode, &done);
    if (error)
        g_critical("the space of deleted inode %" PRIu64 " cannot be released: %s", ino,
                   g_strerror(-error));
    if (!done)
        inode_unclaim(inode);
}

/* The numbers of some, from *from on, which is moved behind them; none: that was all. */
static GArray *orphans_next(struct fs *fs, uint64_t *from)
{
    GArray *inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    uint8_t lower[KEY_MAX], upper[KEY_MAX];
    size_t lower_len = key_u64(lower, KEY_ORPHAN, *from);
    upper[0] = KEY_ORPHAN + 1;
    struct metadb_iter *it = metadb_iter_new(fs->db, lower, lower_len, upper, 1);
    for (; metadb_iter_valid(it) && inos->len < SCAN_BATCH; metadb_iter_next(it)) {
        size_t len;
        const uint8_t *key = metadb_iter_key(it, &len);
        uint64_t ino = len == 9 ? get_be64(key + 1) : 0;
        if (ino)
            g_array_append_val(inos, ino);
    }
    int error = metadb_iter_status(it);
    metadb_iter_free(it);
    if (error)
        g_critical("cannot read the orphan records: %s", g_strerror(-error));
    if (inos->len)
        *from = g_array_index(inos, uint64_t, inos->len - 1) + 1;
    return inos;
}

void reaper_each_orphan(struct fs *fs, bool (*visit)(void *arg, uint64_t ino), void *arg)
{
    uint64_t from = 0;
    for (bool more = true; more;) {
        GArray *inos = orphans_next(fs, &from);
        more = inos->len > 0;
        for (guint i = 0; i < inos->len && more; i++)
            more = visit(arg, g_array_index(inos, uint64_t, i));
        g_array_free(inos, TRUE);
    }
}

static bool reap_unless_stopped(void *arg, uint64_t ino)
{
    struct reaper *r = arg;
    if (must_stop(r))
        return false;
    reap(r, ino);
    return true;
}

static void reap_all(struct reaper *r, GArray *inos)
{
    for (guint i = 0; i < inos->len; i++)
        if (!reap_unless_stopped(r, g_array_index(inos, uint64_t, i)))
            return;
}

static struct timespec in_ms(unsigned ms)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += ms / 1000;
    ts.tv_nsec += (long)(ms % 1000) * 1000000;
    if (ts.tv_nsec >= 1000000000) {
        ts.tv_sec++;
        ts.tv_nsec -= 1000000000;
    }
    return ts;
}

/* Being woken for each inode would cost more than reaping it. */
static void gather(struct reaper *r)
{
    struct timespec until = in_ms(GATHER_MS);
    while (!r->stop && pthread_cond_timedwait(&r->wake, &r->lock, &until) == 0)
        ;
}

static void *reaper_main(void *arg)
{
    struct reaper *r = arg;
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        if (r->queue->len == 0 && !r->scan) {
            r->busy = false;
            pthread_cond_broadcast(&r->idle);
            pthread_cond_wait(&r->wake, &r->lock);
            gather(r);
            continue;
        }
        r->busy = true;
        GArray *inos = r->queue;
        bool scan = inos->len == 0;
        r->queue = g_array_new(FALSE, FALSE, sizeof(uint64_t));
        if (scan)
            r->scan = false;
        pthread_mutex_unlock(&r->lock);
        reap_all(r, inos);
        g_array_free(inos, TRUE);
        if (scan)
            reaper_each_orphan(r->fs, reap_unless_stopped, r);
        /* The space returns only after a commit; on tmpfs it is memory that
         * somebody waits for. */
        if (r->released)
            txn_kick(r->fs->txn, COMMIT_DELAY_MS);
        r->released = false;
        pthread_mutex_lock(&r->lock);
    }
    r->busy = false;
    pthread_cond_broadcast(&r->idle);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

int reaper_start(struct fs *fs, struct reaper **out)
{
    struct reaper *r = g_new0(struct reaper, 1);
    r->fs = fs;
    r->queue = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    r->scan = true;
    r->busy = true;
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &clock);
    pthread_cond_init(&r->idle, &clock);
    pthread_condattr_destroy(&clock);
    int error = -pthread_create(&r->thread, NULL, reaper_main, r);
    if (error) {
        g_array_free(r->queue, TRUE);
        g_free(r);
        return error;
    }
    *out = r;
    return 0;
}

void reaper_stop(struct reaper *r, unsigned timeout_ms)
{
    if (!r)
        return;
    struct timespec until = in_ms(timeout_ms);
    pthread_mutex_lock(&r->lock);
    while (!is_idle(r))
        if (pthread_cond_timedwait(&r->idle, &r->lock, &until))
            break;
    r->stop = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->wake);
    pthread_cond_destroy(&r->idle);
    g_array_free(r->queue, TRUE);
    g_free(r);
}

void reaper_queue(struct reaper *r, uint64_t ino)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    if (is_idle(r))
        pthread_cond_signal(&r->wake);
    if (r->queue->len < QUEUE_MAX)
        g_array_append_val(r->queue, ino);
    else
        r->scan = true;
    pthread_mutex_unlock(&r->lock);
}

void reaper_scan(struct reaper *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    if (is_idle(r))
        pthread_cond_signal(&r->wake);
    r->scan = true;
    pthread_mutex_unlock(&r->lock);
}

void reaper_wait(struct reaper *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    while (!is_idle(r) && !r->stop)
        pthread_cond_wait(&r->idle, &r->lock);
    pthread_mutex_unlock(&r->lock);
}
