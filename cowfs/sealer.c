// SPDX-License-Identifier: Apache-2.0
/*
 * sealer.c - which files are sealed when. How: seal.c.
 */
#include "cowfs/sealer.h"

#include "chunkstore/content_index.h"
#include "cowfs/file_internal.h"
#include "cowfs/journal_internal.h"

#include <errno.h>
#include <sched.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
    PART_CHUNKS = 512, /* looked at between two pauses */
    CLEAN_STEP = 512,  /* index records removed in one transaction */
    NICE = 10,
    /* After a part, this many times as long as it took: what it costs others does not end
     * with its own time (memory bandwidth, a commit with its records, compaction). */
    REST_FACTOR = 5,
};

struct sealer {
    struct fs *fs;
    pthread_t thread;
    bool running;
    bool may_idle; /* the thread can leave SCHED_IDLE again; its own */
    pthread_mutex_t lock;
    pthread_cond_t wake; /* stop */
    bool stop;
    GHashTable *waiting; /* set of inode numbers */
    GQueue queue;        /* the same, oldest first (GSIZE_TO_POINTER would cut) */
};

static int64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static int64_t now_ms(void)
{
    return now_us() / 1000;
}

static void enqueue(struct sealer *s, uint64_t ino)
{
    pthread_mutex_lock(&s->lock);
    if (!g_hash_table_contains(s->waiting, &ino)) {
        uint64_t *item = g_memdup2(&ino, sizeof(ino));
        g_hash_table_add(s->waiting, item);
        g_queue_push_tail(&s->queue, item);
        /* Nobody is woken: it has to rest for a while, and rounds come by themselves. */
    }
    pthread_mutex_unlock(&s->lock);
}

int64_t sealer_wait_ms(const struct fs *fs, const struct inode *inode)
{
    return MAX((int64_t)fs->config.seal_delay_ms, atomic_load(&inode->seal_wait_ms));
}

/* Written again after it had been sealed. */
static void wait_longer(struct fs *fs, struct inode *inode, int64_t rested_ms)
{
    if (fs->config.seal_delay_ms >= SEAL_WAIT_GROWS_MS)
        atomic_store(&inode->seal_wait_ms,
                     MIN(MAX(2 * rested_ms, sealer_wait_ms(fs, inode)), SEAL_WAIT_MAX_MS));
}

void sealer_note_write(struct fs *fs, struct inode *inode)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts); /* on the road of each write; ms are enough */
    int64_t now = (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
    int64_t before = atomic_exchange(&inode->written_ms, now);
    /* Mostly it is so already, and then its cache line need not be taken. */
    if (atomic_load(&inode->unsealed) || atomic_exchange(&inode->unsealed, true))
        return;
    if (before) /* else it is new, or was written by an earlier daemon */
        wait_longer(fs, inode, now - before);
    uint8_t key[KEY_MAX];
    /* (That it was sealed is not in the journal: then it is looked at once more.) */
    journal_put(fs, key, key_u64(key, KEY_UNSEALED, inode->ino), NULL, 0);
    if (fs->sealer)
        enqueue(fs->sealer, inode->ino);
}

/* True if it was woken to stop. */
static bool pause_ms(struct sealer *s, int64_t ms)
{
    int64_t at = now_ms() + ms;
    struct timespec ts = {.tv_sec = at / 1000, .tv_nsec = (at % 1000) * 1000000};
    pthread_mutex_lock(&s->lock);
    while (!s->stop && now_ms() < at)
        pthread_cond_timedwait(&s->wake, &s->lock, &ts);
    bool stop = s->stop;
    pthread_mutex_unlock(&s->lock);
    return stop;
}

static void clean_index(struct sealer *s)
{
    bool more = true;
    while (more) {
        txn_enter(s->fs->txn);
        pthread_mutex_lock(&s->fs->index_lock);
        int error = content_index_clean(s->fs->db, CLEAN_STEP, &more);
        pthread_mutex_unlock(&s->fs->index_lock);
        txn_exit(s->fs->txn);
        if (error) {
            g_warning("content index: %s", g_strerror(-error));
            return;
        }
        pthread_mutex_lock(&s->lock);
        more = more && !s->stop;
        pthread_mutex_unlock(&s->lock);
        if (more)
            txn_throttle_background(s->fs->txn);
    }
}

/*
 * Virtual machines come first: hashing and comparing take only what CPU time nobody
 * else wants (SCHED_IDLE). A nice value is not enough, since it has a share even so, and
 * is not preempted at once. But while it holds locks that others wait for, the thread
 * must get on.
 */
static void pace(void *arg, bool locks)
{
    struct sealer *s = arg;
    struct sched_param none = {0};
    if (s->may_idle)
        sched_setscheduler(0, locks ? SCHED_OTHER : SCHED_IDLE, &none);
}

/* On Linux the nice value, and the policy, are a thread's. Leaving SCHED_IDLE takes the
 * right to lower one's nice value. */
static void lower_priority(struct sealer *s)
{
    setpriority(PRIO_PROCESS, 0, NICE + 1);
    s->may_idle = setpriority(PRIO_PROCESS, 0, NICE) == 0;
    if (s->may_idle)
        setpriority(PRIO_PROCESS, 0, 0);
}

/* Seals a file to its end; false if it is being written, or on stop. */
static bool seal_file(struct sealer *s, struct inode *inode)
{
    struct fs *fs = s->fs;
    uint64_t index = 0;
    int64_t begin_ms = atomic_load(&inode->written_ms);
    /* Cleared first: a write from now on sets it and queues the file again. */
    atomic_store(&inode->unsealed, false);
    while (index != UINT64_MAX) {
        struct seal_result r;
        int64_t t0 = now_us();
        if (fs_may_change(fs) != 0)
            return false;
        int error = seal_file_part(fs, inode, index, PART_CHUNKS, fs->config.keep_flat,
                                   &(struct seal_pace){.fn = pace, .arg = s}, &r);
        if (error) {
            g_warning("sealing inode %" G_GUINT64_FORMAT ": %s", inode->ino, g_strerror(-error));
            return true;
        }
        index = r.next_index;
        uint64_t bytes = r.hashed_chunks * fs->chunk_bytes;
        int64_t took_us = now_us() - t0, wait_us = took_us * REST_FACTOR;
        if (fs->config.seal_rate_bytes)
            wait_us =
                MAX(wait_us, (int64_t)(bytes * 1000000 / fs->config.seal_rate_bytes) - took_us);
        if (pause_ms(s, wait_us / 1000))
            return false;
        if (atomic_load(&inode->written_ms) != begin_ms)
            return false;
    }
    uint8_t key[KEY_MAX];
    size_t key_len = key_u64(key, KEY_UNSEALED, inode->ino);
    txn_enter(fs->txn);
    metadb_delete(fs->db, key, key_len);
    /* Looked at afterwards: a writer sets it first, then puts the record. */
    if (atomic_load(&inode->unsealed))
        metadb_put(fs->db, key, key_len, NULL, 0);
    txn_exit(fs->txn);
    return true;
}

/* The oldest waiting file, or 0; *wait_ms: until when to sleep. */
static uint64_t take(struct sealer *s)
{
    uint64_t ino = 0;
    pthread_mutex_lock(&s->lock);
    uint64_t *item = g_queue_pop_head(&s->queue);
    if (item) {
        ino = *item;
        g_hash_table_remove(s->waiting, item); /* frees item */
    }
    pthread_mutex_unlock(&s->lock);
    return ino;
}

/* One look at each file that waits. */
static void round_of_files(struct sealer *s)
{
    pthread_mutex_lock(&s->lock);
    unsigned left = g_queue_get_length(&s->queue);
    pthread_mutex_unlock(&s->lock);
    while (left-- > 0) {
        struct inode *inode;
        uint64_t ino = take(s);
        if (ino == 0 || inode_get(s->fs->inodes, ino, &inode) != 0)
            continue; /* deleted; the reaper drops the record */
        bool again = false;
        if (inode_nlink(inode) > 0 && S_ISREG(inode_mode(inode))) {
            bool rested =
                now_ms() - atomic_load(&inode->written_ms) >= sealer_wait_ms(s->fs, inode);
            again = !rested || !seal_file(s, inode);
            if (again) {
                atomic_store(&inode->unsealed, true);
                enqueue(s, ino);
            }
        }
        inode_put(inode);
        if (pause_ms(s, 0))
            return;
    }
}

static void *sealer_main(void *arg)
{
    struct sealer *s = arg;
    lower_priority(s);
    int64_t period = MIN(MAX(s->fs->config.seal_delay_ms / 4, 50), 5000);
    while (!pause_ms(s, period)) {
        if (s->fs->config.seal_background)
            round_of_files(s);
        clean_index(s);
        segments_drop_views(s->fs->segments, false); /* it comes by anyway */
    }
    return NULL;
}

static void load_waiting(struct sealer *s)
{
    uint8_t lower = KEY_UNSEALED, upper = KEY_UNSEALED + 1;
    struct metadb_iter *it = metadb_iter_new(s->fs->db, &lower, 1, &upper, 1);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t len;
        const uint8_t *key = metadb_iter_key(it, &len);
        if (len == 9)
            enqueue(s, get_be64(key + 1));
    }
    metadb_iter_free(it);
}

int sealer_start(struct fs *fs, struct sealer **out)
{
    struct sealer *s = g_new0(struct sealer, 1);
    s->fs = fs;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &clock);
    pthread_condattr_destroy(&clock);
    s->waiting = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    g_queue_init(&s->queue);
    *out = s;
    if (fs->config.read_only)
        return 0;
    load_waiting(s);
    int error = pthread_create(&s->thread, NULL, sealer_main, s);
    if (error) {
        *out = NULL;
        sealer_stop(s);
        return -error;
    }
    s->running = true;
    return 0;
}

void sealer_stop(struct sealer *s)
{
    if (!s)
        return;
    if (s->running) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->wake);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    g_queue_clear(&s->queue);
    g_hash_table_destroy(s->waiting);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    g_free(s);
}
