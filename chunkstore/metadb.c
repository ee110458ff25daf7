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

/* The newest record in memory, with a reference; NULL if RocksDB has to be asked. */
static struct record *lookup_in_memory(struct metadb *db, const void *key, size_t key_len)
{
    pthread_rwlock_rdlock(&db->lock);
    struct record *record = overlay_lookup(db->running, key, key_len);
    if (!record && db->committing)
        record = overlay_lookup(db->committing, key, key_len);
    if (!record && db->durable)
        record = overlay_lookup(db->durable, key, key_len);
    if (record)
        record_ref(record);
    pthread_rwlock_unlock(&db->lock);
    return record;
}

int metadb_get(struct metadb *db, const void *key, size_t key_len, struct metadb_value *out)
{
    *out = (struct metadb_value){0};
    struct record *record = lookup_in_memory(db, key, key_len);
    if (!record)
        return db->rocks ? rocks_get(db->rocks, key, key_len, out) : -ENOENT;
    int error = 0;
    if (record_is_tombstone(record)) {
        error = -ENOENT;
    } else {
        out->len = record->value_len;
        out->data = g_malloc(out->len ? out->len : 1);
        memcpy(out->data, record->value, out->len);
    }
    record_unref(record);
    return error;
}

void metadb_value_free(struct metadb_value *value)
{
    g_free(value->data);
    *value = (struct metadb_value){0};
}

static void set_running(struct metadb *db, struct record *record)
{
    pthread_rwlock_wrlock(&db->lock);
    overlay_set(db->running, record);
    pthread_rwlock_unlock(&db->lock);
}

void metadb_put(struct metadb *db, const void *key, size_t key_len, const void *value,
                size_t value_len)
{
    /* NULL with length 0 is an empty value, not a tombstone. */
    set_running(db, record_new(key, key_len, value ? value : "", value_len));
}

void metadb_delete(struct metadb *db, const void *key, size_t key_len)
{
    set_running(db, record_new(key, key_len, NULL, 0));
}

int metadb_flip(struct metadb *db)
{
    int error = -EBUSY;
    pthread_rwlock_wrlock(&db->lock);
    if (!db->committing) {
        db->committing = db->running;
        db->running = overlay_new();
        error = 0;
    }
    pthread_rwlock_unlock(&db->lock);
    return error;
}

/* Under the write lock. */
static void move_to_durable(struct metadb *db)
{
    for (GTreeNode *node = overlay_first(db->committing); node; node = overlay_next(node)) {
        struct record *record = overlay_record(node);
        if (record_is_tombstone(record))
            overlay_forget(db->durable, record->key, record->key_len);
        else
            overlay_set(db->durable, record_ref(record));
    }
}

int metadb_commit(struct metadb *db)
{
    struct overlay *committing = db->committing;
    if (!committing)
        return 0;
    if (db->read_only)
        return -EROFS;
    if (db->rocks && overlay_first(committing)) {
        int error = rocks_write(db->rocks, committing);
        if (error)
            return error;
    }
    pthread_rwlock_wrlock(&db->lock);
    if (db->durable)
        move_to_durable(db);
    db->committing = NULL;
    pthread_rwlock_unlock(&db->lock);
    /* Outside the lock: it may be many records. */
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
    pthread_rwlock_rdlock(&db->lock);
    uint64_t bytes = db->running->bytes;
    pthread_rwlock_unlock(&db->lock);
    return bytes;
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
