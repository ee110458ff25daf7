// SPDX-License-Identifier: Apache-2.0
/*
 * txn.c - the gate, the committer thread and the reclaim thread.
 *
 * A commit has a number. Whoever wants his changes durable needs a commit whose
 * flip comes after them: commit number `flips + 1` at the time of the call.
 * One thread at a time does the work (commit_lock); the others that wait for
 * the same number find it done when they get the lock: that is how concurrent
 * fsyncs share one commit.
 */
#include "chunkstore/txn.h"

#include "chunkstore/gate.h"

#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum {
    PARTICIPANTS_MAX = 8,
    BACKGROUND_SHARE = 2, /* of the dirty limit: what background work may use is 1 / this */
};

struct txn {
    struct metadb *db;
    struct segments *segments;
    struct counts *chunk_counts;
    struct counts *node_counts;
    struct txn_config config;
    struct txn_participant participants[PARTICIPANTS_MAX];
    unsigned participant_count;
    void (*publish)(void *arg); /* NULL: nobody wants to know */
    void *publish_arg;
    void (*data_failed)(void *arg); /* NULL: nobody wants to know */
    void *data_failed_arg;

    struct gate *gate;
    atomic_int_fast64_t dirty_bytes;
    atomic_bool freed; /* since the last flip: a commit has been asked for */

    pthread_mutex_t commit_lock;        /* held by the one who commits */
    atomic_uint_fast64_t flips;         /* flips done (under commit_lock) */
    atomic_uint_fast64_t synced_flips;  /* flips whose data is durable (under commit_lock) */
    atomic_uint_fast64_t durable_flips; /* flips whose commit is durable (under commit_lock) */
    pthread_mutex_t sync_lock;          /* held by the one who syncs the segments */
    atomic_uint_fast64_t syncs;         /* begun (under sync_lock) */
    uint64_t syncs_done;                /* of these, the last that succeeded (sync_lock) */
    atomic_int last_error;
    atomic_int sync_error; /* sticky: data may be lost below */

    /* The two threads and what they wait for. */
    pthread_mutex_t lock;
    pthread_cond_t wake; /* committer: deadline moved, or stop */
    pthread_cond_t wake_reclaim;
    pthread_cond_t progress; /* a commit was tried, or reclaim is through */
    int64_t deadline_ms;     /* when the committer acts; INT64_MAX: idle */
    uint64_t reclaim_wanted, reclaim_done;
    uint64_t attempts; /* commits tried, for throttled waiters */
    bool started, stop;
    pthread_t committer, reclaimer;
};

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

struct txn *txn_new(struct metadb *db, struct segments *segments, struct counts *chunk_counts,
                    struct counts *node_counts, const struct txn_config *config)
{
    struct txn *t = g_new0(struct txn, 1);
    t->db = db;
    t->segments = segments;
    t->chunk_counts = chunk_counts;
    t->node_counts = node_counts;
    t->config = *config;
    t->deadline_ms = INT64_MAX;

    t->gate = gate_new();
    pthread_mutex_init(&t->commit_lock, NULL);
    pthread_mutex_init(&t->sync_lock, NULL);
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&t->wake, &clock);
    pthread_cond_init(&t->wake_reclaim, &clock);
    pthread_cond_init(&t->progress, &clock);
    pthread_condattr_destroy(&clock);
    return t;
}

void txn_add_participant(struct txn *t, const struct txn_participant *participant)
{
    g_assert(t->participant_count < PARTICIPANTS_MAX && !t->started);
    t->participants[t->participant_count++] = *participant;
}

void txn_enter(struct txn *t)
{
    gate_enter(t->gate);
}

void txn_set_publish(struct txn *t, void (*publish)(void *arg), void *arg)
{
    g_assert(!t->started);
    t->publish = publish;
    t->publish_arg = arg;
}

void txn_set_data_failed(struct txn *t, void (*failed)(void *arg), void *arg)
{
    g_assert(!t->started);
    t->data_failed = failed;
    t->data_failed_arg = arg;
}

void txn_fail_data(struct txn *t)
{
    atomic_store(&t->sync_error, -EIO);
}

void txn_exit(struct txn *t)
{
    if (t->publish)
        t->publish(t->publish_arg);
    gate_exit(t->gate);
}

static int64_t dirty_now(struct txn *t)
{
    return atomic_load(&t->dirty_bytes) + (int64_t)metadb_running_bytes(t->db);
}

void txn_note_dirty(struct txn *t, int64_t bytes)
{
    atomic_fetch_add(&t->dirty_bytes, bytes);
}

/* Under t->lock. */
static void kick_locked(struct txn *t, unsigned delay_ms)
{
    int64_t at = now_ms() + delay_ms;
    if (at < t->deadline_ms) {
        t->deadline_ms = at;
        pthread_cond_signal(&t->wake);
    }
}

/* A commit is asked for at half the limit, and waited for at the limit. */
static void throttle(struct txn *t, int64_t limit)
{
    int64_t dirty = dirty_now(t);
    if (dirty <= limit / 2)
        return;
    if (dirty <= limit || !t->started) {
        txn_kick(t, 0);
        return;
    }
    /* Wait for one commit to be tried, not for its success: with a full disk
     * the caller gets ENOSPC from his own write, not a hang here. Looked at
     * again after `attempts`, and only then asked for: a commit that ended since
     * the first look may have left nothing to commit, and nobody would wake us. */
    pthread_mutex_lock(&t->lock);
    uint64_t seen = t->attempts;
    if (dirty_now(t) > limit) {
        kick_locked(t, 0);
        while (t->attempts == seen && !t->stop)
            pthread_cond_wait(&t->progress, &t->lock);
    }
    pthread_mutex_unlock(&t->lock);
}

void txn_throttle(struct txn *t)
{
    throttle(t, (int64_t)t->config.dirty_limit_bytes);
}

void txn_throttle_background(struct txn *t)
{
    throttle(t, (int64_t)t->config.dirty_limit_bytes / BACKGROUND_SHARE);
}

void txn_note_freed(struct txn *t)
{
    if (!atomic_load_explicit(&t->freed, memory_order_relaxed) && !atomic_exchange(&t->freed, true))
        txn_kick(t, t->config.free_delay_ms);
}

static void flip(struct txn *t)
{
    gate_close(t->gate);
    /* Participants from the top downwards: an inode's flip may look at its
     * map, a node's at its counts; counts and segments are last. */
    for (unsigned i = 0; i < t->participant_count; i++)
        if (t->participants[i].flip)
            t->participants[i].flip(t->participants[i].arg);
    counts_flip(t->node_counts);
    counts_flip(t->chunk_counts);
    segments_flip(t->segments);
    int error = metadb_flip(t->db);
    g_assert(error == 0);
    atomic_fetch_add(&t->flips, 1);
    atomic_store(&t->freed, false);
    gate_open(t->gate);
}

/* The bytes written before the call are durable on return; a sync that began
 * after the call serves as well. */
static int sync_segments(struct txn *t)
{
    uint64_t wanted = atomic_load(&t->syncs) + 1;
    pthread_mutex_lock(&t->sync_lock);
    int error = atomic_load(&t->sync_error);
    /* After an error a second fdatasync would succeed and prove nothing. */
    if (!error && t->syncs_done < wanted) {
        uint64_t number = atomic_fetch_add(&t->syncs, 1) + 1;
        error = segments_sync(t->segments);
        if (error && t->data_failed)
            t->data_failed(t->data_failed_arg);
        if (error)
            /* Never -ENOSPC, which stands for what can be tried again: this cannot,
             * so nobody may go on changing what will not become durable. */
            atomic_store(&t->sync_error, error == -ENOSPC ? -EIO : error);
        else
            t->syncs_done = number;
    }
    pthread_mutex_unlock(&t->sync_lock);
    return error;
}

static bool wants_reclaim(struct txn *t)
{
    bool wants = segments_punch_waits(t->segments);
    for (unsigned i = 0; i < t->participant_count && !wants; i++)
        wants = t->participants[i].reclaim;
    return wants;
}

/* The part after the flip; repeated until it succeeds. */
static int make_durable(struct txn *t)
{
    int error = sync_segments(t);
    if (error)
        return error;
    atomic_store(&t->synced_flips, atomic_load(&t->flips));
    error = metadb_commit(t->db);
    if (error)
        return error;
    atomic_store(&t->durable_flips, atomic_load(&t->flips));
    counts_durable(t->node_counts);
    counts_durable(t->chunk_counts);
    segments_durable(t->segments);
    for (unsigned i = 0; i < t->participant_count; i++)
        if (t->participants[i].durable)
            t->participants[i].durable(t->participants[i].arg);
    /* Most fsyncs free nothing: they need not pay for a thread's wake-up. */
    if (wants_reclaim(t)) {
        pthread_mutex_lock(&t->lock);
        t->reclaim_wanted++;
        pthread_cond_signal(&t->wake_reclaim);
        pthread_mutex_unlock(&t->lock);
    }
    return 0;
}

int txn_commit(struct txn *t)
{
    uint64_t wanted = atomic_load(&t->flips) + 1;
    int error = 0;
    pthread_mutex_lock(&t->commit_lock);
    if (atomic_load(&t->durable_flips) < wanted) {
        /* An earlier flip that failed has to get through first: its overlay
         * is still the committing one. */
        if (atomic_load(&t->durable_flips) < atomic_load(&t->flips))
            error = make_durable(t);
        if (!error) {
            flip(t);
            error = make_durable(t);
        }
        if (error && atomic_load(&t->last_error) != error)
            g_critical("commit failed, will be tried again: %s", g_strerror(-error));
        atomic_store(&t->last_error, error);
        pthread_mutex_lock(&t->lock);
        t->attempts++;
        pthread_cond_broadcast(&t->progress);
        pthread_mutex_unlock(&t->lock);
    }
    pthread_mutex_unlock(&t->commit_lock);
    int sticky = atomic_load(&t->sync_error);
    return error ? error : sticky;
}

uint64_t txn_next(struct txn *t)
{
    return atomic_load(&t->flips) + 1;
}

int txn_sync_data(struct txn *t, uint64_t number)
{
    if (atomic_load(&t->durable_flips) < number)
        return txn_commit(t);
    return sync_segments(t);
}

void txn_kick(struct txn *t, unsigned delay_ms)
{
    pthread_mutex_lock(&t->lock);
    kick_locked(t, delay_ms);
    pthread_mutex_unlock(&t->lock);
}

static void wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t at_ms)
{
    struct timespec ts = {.tv_sec = at_ms / 1000, .tv_nsec = (at_ms % 1000) * 1000000};
    pthread_cond_timedwait(cond, lock, &ts);
}

static bool has_changes(struct txn *t)
{
    return dirty_now(t) > 0 || metadb_commit_pending(t->db) || segments_have_garbage(t->segments);
}

static void *committer_main(void *arg)
{
    struct txn *t = arg;
    pthread_mutex_lock(&t->lock);
    int64_t regular_ms = now_ms() + t->config.commit_interval_ms;
    while (!t->stop) {
        int64_t now = now_ms();
        bool due = now >= t->deadline_ms || now >= regular_ms;
        if (!due) {
            wait_until(&t->wake, &t->lock, MIN(t->deadline_ms, regular_ms));
            continue;
        }
        t->deadline_ms = INT64_MAX;
        pthread_mutex_unlock(&t->lock);
        if (has_changes(t))
            txn_commit(t);
        pthread_mutex_lock(&t->lock);
        regular_ms = now_ms() + t->config.commit_interval_ms;
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static void *reclaimer_main(void *arg)
{
    struct txn *t = arg;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (t->reclaim_done == t->reclaim_wanted && !t->stop)
            pthread_cond_wait(&t->wake_reclaim, &t->lock);
        if (t->stop)
            break;
        uint64_t wanted = t->reclaim_wanted;
        pthread_mutex_unlock(&t->lock);
        segments_punch(t->segments);
        for (unsigned i = 0; i < t->participant_count; i++)
            if (t->participants[i].reclaim)
                t->participants[i].reclaim(t->participants[i].arg);
        pthread_mutex_lock(&t->lock);
        t->reclaim_done = wanted;
        pthread_cond_broadcast(&t->progress);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

void txn_start(struct txn *t)
{
    g_assert(!t->started);
    t->started = true;
    /* Thread creation fails only for want of memory or by limits that the
     * daemon cannot work under either. */
    int error = pthread_create(&t->committer, NULL, committer_main, t);
    g_assert(error == 0);
    error = pthread_create(&t->reclaimer, NULL, reclaimer_main, t);
    g_assert(error == 0);
}

void txn_stop(struct txn *t)
{
    if (!t->started)
        return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_signal(&t->wake);
    pthread_cond_signal(&t->wake_reclaim);
    pthread_cond_broadcast(&t->progress);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->committer, NULL);
    pthread_join(t->reclaimer, NULL);
    t->started = false;
}

void txn_free(struct txn *t)
{
    if (!t)
        return;
    g_assert(!t->started);
    gate_free(t->gate);
    pthread_mutex_destroy(&t->commit_lock);
    pthread_mutex_destroy(&t->sync_lock);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->wake);
    pthread_cond_destroy(&t->wake_reclaim);
    pthread_cond_destroy(&t->progress);
    g_free(t);
}

void txn_wait_reclaim(struct txn *t)
{
    pthread_mutex_lock(&t->lock);
    uint64_t wanted = t->reclaim_wanted;
    while (t->reclaim_done < wanted && t->started && !t->stop)
        pthread_cond_wait(&t->progress, &t->lock);
    pthread_mutex_unlock(&t->lock);
}

int txn_error(struct txn *t)
{
    int sticky = atomic_load(&t->sync_error);
    return sticky ? sticky : atomic_load(&t->last_error);
}

uint64_t txn_commits(struct txn *t)
{
    return atomic_load(&t->durable_flips);
}

struct txn_progress txn_progress(struct txn *t)
{
    struct txn_progress p;
    p.begun = atomic_load(&t->flips);
    p.synced = atomic_load(&t->synced_flips);
    p.durable = atomic_load(&t->durable_flips);
    return p;
}
