// SPDX-License-Identifier: Apache-2.0
/*
 * The public calls of metadb, and the two overlays.
 *
 * Why overlays, when RocksDB has write batches with an index: a commit takes
 * a synced write, and meanwhile the next transaction must be able to grow and
 * all readers must see both. Flipping a pointer is the whole price of that.
 *
 *   RUNNING    changed by metadb_put and metadb_delete
 *   COMMITTING made by metadb_flip, dropped by metadb_commit, never changed
 *
 * metadb_commit drops COMMITTING only after RocksDB has the batch, so at any
 * moment the newest value of a key is in at least one layer, and a reader who
 * looks from the top to the bottom cannot miss it (invariant 6).
 */
#include "chunkstore/metadb_internal.h"

#include <errno.h>
#include <string.h>

void writer_first_rwlock_init(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(lock, &attr);
    pthread_rwlockattr_destroy(&attr);
}

int metadb_open(const char *path, const struct metadb_options *options, struct metadb **out,
                struct errmsg *err)
{
    struct metadb *db = g_new0(struct metadb, 1);
    *out = NULL;
    if (options->in_memory) {
        db->durable = overlay_new();
    } else {
        int error = rocks_open(path, options, &db->rocks, err);
        if (error) {
            g_free(db);
            return error;
        }
    }
    db->path = g_strdup(path);
    db->read_only = options->read_only;
    db->running = overlay_new();
    writer_first_rwlock_init(&db->lock);
    *out = db;
    return 0;
}

void metadb_close(struct metadb *db)
{
    if (!db)
        return;
    overlay_free(db->running);
    overlay_free(db->committing);
    overlay_free(db->durable);
    rocks_close(db->rocks);
    pthread_rwlock_destroy(&db->lock);
    g_free(db->path);
    g_free(db);
}

/* The newest record in memory; NULL if RocksDB has to be asked. Under the lock. */
static const struct record *newest(struct metadb *db, uint64_t hash, const void *key,
                                   size_t key_len)
{
    const struct record *record = overlay_lookup(db->running, hash, key, key_len);
    if (!record && db->committing)
        record = overlay_lookup(db->committing, hash, key, key_len);
    return record;
}

static const struct record *newest_of_all(struct metadb *db, uint64_t hash, const void *key,
                                          size_t key_len)
{
    const struct record *record = newest(db, hash, key, key_len);
    if (!record && db->durable)
        record = overlay_lookup(db->durable, hash, key, key_len);
    return record;
}

int metadb_get(struct metadb *db, const void *key, size_t key_len, struct metadb_value *out)
{
    *out = (struct metadb_value){0};
    uint64_t hash = overlay_hash(key, key_len);
    int error = -ENOENT;
    pthread_rwlock_rdlock(&db->lock);
    const struct record *record = newest_of_all(db, hash, key, key_len);
    const uint8_t *value = record ? record_value(record, &out->len) : NULL;
    if (value) {
        error = 0;
        out->data = g_malloc(out->len ? out->len : 1);
        memcpy(out->data, value, out->len);
    }
    pthread_rwlock_unlock(&db->lock);
    if (!record && db->rocks)
        error = rocks_get(db->rocks, key, key_len, out);
    return error;
}

void metadb_value_free(struct metadb_value *value)
{
    g_free(value->data);
    *value = (struct metadb_value){0};
}

/* How many keys are hashed, and their slots prefetched, before the lock is
 * taken for them. */
enum { KEYS_AT_ONCE = 256 };

static void answer(struct metadb_query *query, const struct record *record)
{
    const uint8_t *value = record_value(record, &query->value_len);
    query->error = value ? 0 : -ENOENT;
    if (value)
        memcpy(query->value, value, MIN(query->value_len, query->value_room));
}

void metadb_get_many(struct metadb *db, struct metadb_query *queries, size_t n,
                     enum metadb_scope scope)
{
    uint64_t hashes[KEYS_AT_ONCE];
    bool below = scope == METADB_ALL && db->rocks;
    size_t unanswered = 0;
    for (size_t done = 0, part; done < n; done += part) {
        struct metadb_query *q = queries + done;
        part = MIN(n - done, (size_t)KEYS_AT_ONCE);
        for (size_t i = 0; i < part; i++)
            hashes[i] = overlay_hash(q[i].key, q[i].key_len);
        pthread_rwlock_rdlock(&db->lock);
        for (size_t i = 0; i < part; i++) {
            overlay_prefetch(db->running, hashes[i]);
            if (db->committing)
                overlay_prefetch(db->committing, hashes[i]);
        }
        for (size_t i = 0; i < part; i++) {
            const struct record *record = scope == METADB_ALL
                                              ? newest_of_all(db, hashes[i], q[i].key, q[i].key_len)
                                              : newest(db, hashes[i], q[i].key, q[i].key_len);
            q[i].error = below ? -EAGAIN : -ENOENT;
            if (record)
                answer(&q[i], record);
            unanswered += !record;
        }
        pthread_rwlock_unlock(&db->lock);
    }
    if (below && unanswered)
        rocks_get_many(db->rocks, queries, n);
}

void metadb_change_many(struct metadb *db, const struct metadb_change *changes, size_t n)
{
    uint64_t hashes[KEYS_AT_ONCE];
    for (size_t done = 0, part; done < n; done += part) {
        const struct metadb_change *c = changes + done;
        part = MIN(n - done, (size_t)KEYS_AT_ONCE);
        for (size_t i = 0; i < part; i++)
            hashes[i] = overlay_hash(c[i].key, c[i].key_len);
        pthread_rwlock_wrlock(&db->lock);
        for (size_t i = 0; i < part; i++)
            overlay_prefetch(db->running, hashes[i]);
        for (size_t i = 0; i < part; i++)
            overlay_set(db->running, hashes[i], c[i].key, c[i].key_len, c[i].value, c[i].value_len);
        atomic_store(&db->running_bytes, overlay_bytes(db->running));
        pthread_rwlock_unlock(&db->lock);
    }
}

static void set_running(struct metadb *db, const void *key, size_t key_len, const void *value,
                        size_t value_len)
{
    uint64_t hash = overlay_hash(key, key_len);
    pthread_rwlock_wrlock(&db->lock);
    overlay_set(db->running, hash, key, key_len, value, value_len);
    atomic_store(&db->running_bytes, overlay_bytes(db->running));
    pthread_rwlock_unlock(&db->lock);
}

void metadb_put(struct metadb *db, const void *key, size_t key_len, const void *value,
                size_t value_len)
{
    /* NULL with length 0 is an empty value, not a tombstone. */
    set_running(db, key, key_len, value ? value : "", value_len);
}

void metadb_delete(struct metadb *db, const void *key, size_t key_len)
{
    set_running(db, key, key_len, NULL, 0);
}

int metadb_flip(struct metadb *db)
{
    int error = -EBUSY;
    pthread_rwlock_wrlock(&db->lock);
    if (!db->committing) {
        db->committing = db->running;
        db->running = overlay_new();
        atomic_store(&db->running_bytes, 0);
        error = 0;
    }
    pthread_rwlock_unlock(&db->lock);
    return error;
}

/* For each record of COMMITTING, under the write lock. Tombstones stay: an
 * overlay forgets no key, and this one is for tests. */
static void move_to_durable(void *context, const struct record *record)
{
    struct overlay *durable = context;
    size_t key_len, value_len;
    const uint8_t *key = record_key(record, &key_len);
    const uint8_t *value = record_value(record, &value_len);
    overlay_set(durable, overlay_hash(key, key_len), key, key_len, value, value_len);
}

int metadb_commit(struct metadb *db)
{
    struct overlay *committing = db->committing;
    if (!committing)
        return 0;
    if (db->read_only)
        return -EROFS;
    if (db->rocks && overlay_count(committing) > 0) {
        int error = rocks_write(db->rocks, committing);
        if (error)
            return error;
    }
    pthread_rwlock_wrlock(&db->lock);
    if (db->durable)
        overlay_each_sorted(committing, move_to_durable, db->durable);
    db->committing = NULL;
    pthread_rwlock_unlock(&db->lock);
    /* Outside the lock: it may be much memory. */
    overlay_free(committing);
    return 0;
}

bool metadb_commit_pending(struct metadb *db)
{
    pthread_rwlock_rdlock(&db->lock);
    bool pending = db->committing != NULL;
    pthread_rwlock_unlock(&db->lock);
    return pending;
}

uint64_t metadb_running_bytes(struct metadb *db)
{
    return atomic_load(&db->running_bytes);
}

uint64_t metadb_disk_bytes(struct metadb *db)
{
    return db->rocks ? db_dir_bytes(db->path) : 0;
}

int metadb_compact(struct metadb *db)
{
    if (db->read_only)
        return -EROFS;
    return db->rocks ? rocks_compact(db->rocks) : 0;
}

bool metadb_lost_commits(const struct metadb *db)
{
    return db->rocks && rocks_lost_commits(db->rocks);
}
