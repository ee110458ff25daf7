// SPDX-License-Identifier: Apache-2.0
/*
 * Writing to RocksDB, in a way that survives a full file system.
 *
 * RocksDB refuses all writes after one failed, until it is closed and opened
 * again; and opening writes files. So on a full file system a failed commit
 * could make the store unreadable. Against this, rocks_open_when_full tries, in
 * this order:
 *
 *   RESCUED    Opening replays the log into a memtable and then flushes that
 *              to a table, which may take megabytes. Without the flush, and
 *              with a memtable that no log fills, it takes some 20 KiB.
 *   RESCUED    again, in the room that the reserve file leaves (metadb_files.c).
 *   READ_ONLY  Writes nothing at all, so always works. Reads go on.
 *
 * Transitions (all in rocks_write, but for rocks_open's):
 *
 *   OPEN, RESCUED -> any   a write failed: reopen()
 *   RESCUED -> OPEN        a write succeeded: end_rescue()
 *   READ_ONLY -> any       the next rocks_write begins with reopen()
 *   CLOSED -> any          the same; reads return open_error meanwhile
 */
#include "chunkstore/metadb_rocks.h"

#include <string.h>

enum { FLUSH_WAITS = 1 };

/* rocksdb::BottommostLevelCompaction::kForceOptimized: also rewrite the lowest
 * level, where the deleted records are, but no file twice. */
enum { BOTTOMMOST_FORCE_OPTIMIZED = 3 };

int rocks_open_when_full(struct rocks *rocks, struct errmsg *err)
{
    int error = rocks_open_handle(rocks, ROCKS_RESCUED, err);
    if (error == -ENOSPC && reserve_drop(rocks->path)) {
        rocks->has_reserve = false;
        error = rocks_open_handle(rocks, ROCKS_RESCUED, err);
    }
    /* If there is no database yet, this fails, too, and -ENOSPC is the news. */
    if (error == -ENOSPC && rocks_open_handle(rocks, ROCKS_READ_ONLY, NULL) == 0)
        error = 0;
    return error;
}

static bool is_writable(const struct rocks *rocks)
{
    return rocks->state == ROCKS_OPEN || rocks->state == ROCKS_RESCUED;
}

/* Closes and opens again after the failed write that began at `mark`. */
static int reopen(struct rocks *rocks, const struct wal_mark *mark)
{
    struct errmsg err;
    /* A compaction by hand holds the lock for long: make it give up. */
    if (rocks->handle)
        rocksdb_disable_manual_compaction(rocks->handle);
    pthread_rwlock_wrlock(&rocks->lock);
    rocks_close_handle(rocks);
    int error = mark ? wal_mark_roll_back(rocks->path, mark) : 0;
    if (error)
        g_warning("metadata database %s: cutting back the log: %s", rocks->path, strerror(-error));
    error = rocks_open_handle(rocks, ROCKS_OPEN, &err);
    if (error == -ENOSPC)
        error = rocks_open_when_full(rocks, &err);
    pthread_rwlock_unlock(&rocks->lock);
    if (error)
        g_critical("%s", err.text);
    return error;
}

static void end_rescue(struct rocks *rocks)
{
    const char *name = "write_buffer_size";
    g_autofree char *text = g_strdup_printf("%u", MEMTABLE_BYTES);
    const char *value = text;
    char *error_text = NULL;
    rocksdb_set_options(rocks->handle, 1, &name, &value, &error_text);
    db_dir_tidy(rocks->path);
    if (rocks_take_error(error_text, rocks->path, "setting the memtable's limit") != 0)
        return;
    pthread_rwlock_wrlock(&rocks->lock);
    rocks->state = ROCKS_OPEN;
    pthread_rwlock_unlock(&rocks->lock);
}

static void add_to_batch(void *context, const struct record *record)
{
    rocksdb_writebatch_t *batch = context;
    size_t key_len, value_len;
    const char *key = (const char *)record_key(record, &key_len);
    const char *value = (const char *)record_value(record, &value_len);
    if (value)
        rocksdb_writebatch_put(batch, key, key_len, value, value_len);
    else
        rocksdb_writebatch_delete(batch, key, key_len);
}

/* On failure the handle has been opened again as well as can be. */
static int try_write(struct rocks *rocks, rocksdb_writebatch_t *batch)
{
    char *error_text = NULL;
    int error = is_writable(rocks) ? 0 : reopen(rocks, NULL);
    if (!error && !is_writable(rocks))
        error = -ENOSPC;
    if (!error && rocks->mark.number == 0)
        error = wal_mark_take(rocks->path, &rocks->mark);
    if (error)
        return error;
    rocksdb_write(rocks->handle, rocks->write_options, batch, &error_text);
    error = rocks_take_error(error_text, rocks->path, "writing a commit");
    if (error)
        reopen(rocks, &rocks->mark);
    else if (!wal_mark_advance(rocks->path, &rocks->mark))
        rocks->mark.number = 0; /* RocksDB has begun a new log */
    return error;
}

int rocks_write(struct rocks *rocks, const struct overlay *overlay)
{
    rocksdb_writebatch_t *batch = rocksdb_writebatch_create();
    overlay_each_sorted(overlay, add_to_batch, batch);
    int error = try_write(rocks, batch);
    if (error == -ENOSPC) {
        /* Small commits get through in the room of the reserve, and among
         * these are those that delete files: the way out of "full". */
        reserve_drop(rocks->path);
        rocks->has_reserve = false;
        error = try_write(rocks, batch);
    }
    rocksdb_writebatch_destroy(batch);
    if (!error)
        durable_note(rocks->durable_fd, rocksdb_get_latest_sequence_number(rocks->handle));
    if (!error && rocks->state == ROCKS_RESCUED)
        end_rescue(rocks);
    /* After a failure, too: the log was cut back, and others who want space
     * must not get what the next attempt will need. */
    if (!rocks->has_reserve)
        rocks->has_reserve = reserve_make(rocks->path) == 0;
    return error;
}

int rocks_compact(struct rocks *rocks)
{
    char *error_text = NULL;
    pthread_rwlock_rdlock(&rocks->lock);
    int error = rocks->open_error;
    if (!error && !is_writable(rocks))
        error = -ENOSPC;
    if (!error) {
        /* Compaction would flush by itself, but cannot tell of an error. */
        rocksdb_flushoptions_t *flush_options = rocksdb_flushoptions_create();
        rocksdb_flushoptions_set_wait(flush_options, FLUSH_WAITS);
        rocksdb_flush(rocks->handle, flush_options, &error_text);
        rocksdb_flushoptions_destroy(flush_options);
        error = rocks_take_error(error_text, rocks->path, "flushing before a compaction");
    }
    if (!error) {
        rocksdb_compactoptions_t *compact_options = rocksdb_compactoptions_create();
        rocksdb_compactoptions_set_exclusive_manual_compaction(compact_options, 0);
        rocksdb_compactoptions_set_bottommost_level_compaction(compact_options,
                                                               BOTTOMMOST_FORCE_OPTIMIZED);
        rocksdb_compact_range_opt(rocks->handle, compact_options, NULL, 0, NULL, 0);
        rocksdb_compactoptions_destroy(compact_options);
    }
    pthread_rwlock_unlock(&rocks->lock);
    return error;
}
