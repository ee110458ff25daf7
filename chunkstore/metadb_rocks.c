// SPDX-License-Identifier: Apache-2.0
/*
 * RocksDB behind metadb: its options, its errors, opening and reading.
 * Writing, and the states of the handle, are in metadb_write.c.
 */
#include "chunkstore/metadb_rocks.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define BLOCK_CACHE_BYTES_DEFAULT (16u << 20)
#define BLOOM_BITS_PER_KEY 10

/*
 * One above rocksdb::HEADER_LEVEL, the highest: nothing is written to RocksDB's
 * LOG, which stays empty. RocksDB asserts that a LOG is never written to again
 * after a write to it failed, and then does just that; Debian builds it with
 * assertions, so on a full file system the LOG aborts the process. There is no
 * way in the C API to have no LOG. What goes wrong is in our log.
 *
 * A side effect is that RocksDB has no name for this level and gives up writing
 * its OPTIONS file (which nothing needs), but leaves the beginnings of it:
 * db_dir_tidy.
 */
enum { INFO_LOG_LEVEL_NONE = 6 };

/* A table with this many deletions in a row of this many records is compacted
 * soon, else the space of a removed clone returns only by chance. */
enum { DELETION_WINDOW = 1024, DELETION_TRIGGER = 512 };

/*
 * - allow_fallocate, manifest_preallocation_size: no setters in the C API;
 *   without them an empty database takes 76 MB on tmpfs.
 * - max_total_wal_size has no effect with one column family in 7.8 (logs live
 *   as long as their memtables), but says what is wanted.
 * - max_file_opening_threads: else opening starts 15 threads, and waits for each, which costs more
 *   than it saves with our few tables: a mount whose daemon died waits for that.
 * - ttl: superseded records of quiet key ranges go within the hour.
 */
static const char options_text[] = "allow_fallocate=false;"
                                   "manifest_preallocation_size=65536;"
                                   "max_manifest_file_size=1048576;"
                                   "max_total_wal_size=8388608;"
                                   "max_write_buffer_number=2;"
                                   "memtable_prefix_bloom_size_ratio=0.1;"
                                   "memtable_whole_key_filtering=true;"
                                   "target_file_size_base=4194304;"
                                   "max_bytes_for_level_base=16777216;"
                                   "level0_file_num_compaction_trigger=4;"
                                   "level_compaction_dynamic_level_bytes=true;"
                                   "ttl=3600;"
                                   "compression=kLZ4Compression;"
                                   "max_background_jobs=2;"
                                   "max_open_files=256;"
                                   "max_file_opening_threads=1;"
                                   "paranoid_checks=true;"
                                   "keep_log_file_num=1;"
                                   "stats_dump_period_sec=0;"
                                   "stats_persist_period_sec=0;";

/* What makes opening take next to no space (metadb_write.c). Not for every
 * day, because then each session leaves its log behind until the next flush. */
static const char rescue_text[] = "avoid_flush_during_recovery=true;"
                                  "write_buffer_size=1073741824;";

/* ---- errors ---- */

static bool contains(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

/* RocksDB's C API has no error codes, only text. These parts of it are
 * literals of RocksDB, not of strerror, so they do not depend on the locale. */
static int code_of(const char *text)
{
    if (g_str_has_prefix(text, "Corruption"))
        return -EUCLEAN;
    if (contains(text, "No space left on device") || contains(text, strerror(EDQUOT)))
        return -ENOSPC;
    return -EIO;
}

/* The same for the errors of opening, where more can be told apart. */
static int open_code_of(const char *text)
{
    int error = code_of(text);
    if (error != -EIO)
        return error;
    if (contains(text, "While lock file") || contains(text, "lock hold by current process"))
        return -EBUSY;
    if (contains(text, strerror(EACCES)))
        return -EACCES;
    if (contains(text, strerror(EROFS)))
        return -EROFS;
    /* CURRENT is there (db_dir_inspect), so what is missing or not understood
     * is a part of a database. */
    if (contains(text, "No such file or directory") || !g_str_has_prefix(text, "IO error"))
        return -EUCLEAN;
    return -EIO;
}

int rocks_take_error(char *text, const char *path, const char *what)
{
    if (!text)
        return 0;
    int error = code_of(text);
    g_warning("metadata database %s: %s: %s", path, what, text);
    rocksdb_free(text);
    return error;
}

static int take_open_error(char *text, const char *path, struct errmsg *err)
{
    int error = open_code_of(text);
    if (error == -EBUSY)
        errmsg_set(err, error, "metadata database %s is in use by another process", path);
    else
        errmsg_set(err, error, "metadata database %s %s: %s", path,
                   error == -EUCLEAN ? "is damaged" : "cannot be opened", text);
    rocksdb_free(text);
    return error;
}

/* ---- opening and closing ---- */

/* `base` with the options of `text`, NULL if RocksDB does not take these. */
static rocksdb_options_t *derive_options(const rocksdb_options_t *base, const char *text,
                                         struct errmsg *err)
{
    char *error_text = NULL;
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_get_options_from_string(base, text, options, &error_text);
    if (error_text) {
        errmsg_set(err, -EINVAL, "RocksDB does not take our options: %s", error_text);
        rocksdb_free(error_text);
        rocksdb_options_destroy(options);
        return NULL;
    }
    return options;
}

static int make_options(struct rocks *rocks, const struct metadb_options *wanted,
                        struct errmsg *err)
{
    rocksdb_options_t *base = rocksdb_options_create();
    rocks->options = derive_options(base, options_text, err);
    rocksdb_options_destroy(base);
    if (!rocks->options)
        return -EINVAL;
    rocksdb_options_set_write_buffer_size(rocks->options, MEMTABLE_BYTES);
    rocksdb_options_set_create_if_missing(rocks->options, wanted->create && !wanted->read_only);
    rocksdb_options_set_info_log_level(rocks->options, INFO_LOG_LEVEL_NONE);
    rocksdb_options_add_compact_on_deletion_collector_factory(rocks->options, DELETION_WINDOW,
                                                              DELETION_TRIGGER);

    size_t cache_bytes = wanted->block_cache_bytes;
    rocks->block_cache =
        rocksdb_cache_create_lru(cache_bytes ? cache_bytes : BLOCK_CACHE_BYTES_DEFAULT);
    rocksdb_block_based_table_options_t *table = rocksdb_block_based_options_create();
    rocksdb_block_based_options_set_block_cache(table, rocks->block_cache);
    rocksdb_block_based_options_set_cache_index_and_filter_blocks(table, 1);
    rocksdb_block_based_options_set_pin_l0_filter_and_index_blocks_in_cache(table, 1);
    /* The table options own the policy from here on. */
    rocksdb_block_based_options_set_filter_policy(
        table, rocksdb_filterpolicy_create_bloom_full(BLOOM_BITS_PER_KEY));
    rocksdb_options_set_block_based_table_factory(rocks->options, table);
    rocksdb_block_based_options_destroy(table);
    rocks->rescue_options = derive_options(rocks->options, rescue_text, err);
    if (!rocks->rescue_options)
        return -EINVAL;

    rocks->read_options = rocksdb_readoptions_create();
    rocks->write_options = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(rocks->write_options, 1);
    /* A commit is sorted: where the last key went, the next one goes nearby. */
    rocksdb_writeoptions_set_memtable_insert_hint_per_batch(rocks->write_options, 1);
    return 0;
}

int rocks_open_handle(struct rocks *rocks, enum rocks_state state, struct errmsg *err)
{
    char *error_text = NULL;
    g_assert(!rocks->handle);
    rocks->mark = (struct wal_mark){0};
    if (state == ROCKS_READ_ONLY)
        rocks->handle = rocksdb_open_for_read_only(rocks->options, rocks->path, 0, &error_text);
    else if (state == ROCKS_RESCUED)
        rocks->handle = rocksdb_open(rocks->rescue_options, rocks->path, &error_text);
    else
        rocks->handle = rocksdb_open(rocks->options, rocks->path, &error_text);
    rocks->open_error = error_text ? take_open_error(error_text, rocks->path, err) : 0;
    rocks->state = rocks->open_error ? ROCKS_CLOSED : state;
    if (rocks->state == ROCKS_OPEN || rocks->state == ROCKS_RESCUED)
        db_dir_tidy(rocks->path);
    return rocks->open_error;
}

/* Refuses what RocksDB would wrongly accept, with better words than it has. */
static int check_directory(const char *path, const struct metadb_options *options,
                           struct errmsg *err)
{
    enum db_dir_state state;
    int error = db_dir_inspect(path, &state);
    if (error)
        return errmsg_set(err, error, "metadata database %s: %s", path, strerror(-error));
    if (state == DB_DIR_DAMAGED)
        return errmsg_set(err, -EUCLEAN, "metadata database %s is damaged: CURRENT is missing",
                          path);
    if (state == DB_DIR_PRESENT)
        return 0;
    if (!options->create || options->read_only)
        return errmsg_set(err, -ENOENT, "no metadata database in %s", path);
    /* RocksDB would make it, too, but says little if the parent is missing. */
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        error = -errno;
        return errmsg_set(err, error, "cannot make directory %s: %s", path, strerror(-error));
    }
    return 0;
}

/* Is all there that was durable once? */
static int check_durable(struct rocks *rocks, const struct metadb_options *options,
                         struct errmsg *err)
{
    rocks->durable_fd = durable_open(rocks->path, options->read_only);
    uint64_t wanted = durable_read(rocks->durable_fd);
    uint64_t found = rocksdb_get_latest_sequence_number(rocks->handle);
    rocks->lost_commits = found < wanted;
    if (!rocks->lost_commits || options->accept_loss)
        return 0;
    return errmsg_set(err, -EUCLEAN,
                      "metadata database %s is damaged: its log ends early, and the last %llu "
                      "changes that were durable are lost",
                      rocks->path, (unsigned long long)(wanted - found));
}

bool rocks_lost_commits(const struct rocks *rocks)
{
    return rocks->lost_commits;
}

int rocks_open(const char *path, const struct metadb_options *options, struct rocks **out,
               struct errmsg *err)
{
    *out = NULL;
    int error = check_directory(path, options, err);
    if (error)
        return error;
    struct rocks *rocks = g_new0(struct rocks, 1);
    rocks->path = g_strdup(path);
    rocks->durable_fd = -1;
    writer_first_rwlock_init(&rocks->lock);
    error = make_options(rocks, options, err);
    if (!error)
        error = rocks_open_handle(rocks, options->read_only ? ROCKS_READ_ONLY : ROCKS_OPEN, err);
    /* The last process may have left a full file system behind. */
    if (error == -ENOSPC && !options->read_only)
        error = rocks_open_when_full(rocks, err);
    if (!error)
        error = check_durable(rocks, options, err);
    if (error) {
        rocks_close(rocks);
        return error;
    }
    rocks->has_reserve = reserve_exists(path);
    *out = rocks;
    return 0;
}

void rocks_close_handle(struct rocks *rocks)
{
    if (rocks->handle)
        rocksdb_close(rocks->handle);
    rocks->handle = NULL;
    rocks->state = ROCKS_CLOSED;
}

void rocks_close(struct rocks *rocks)
{
    if (!rocks)
        return;
    rocks_close_handle(rocks);
    durable_close(rocks->durable_fd);
    if (rocks->write_options)
        rocksdb_writeoptions_destroy(rocks->write_options);
    if (rocks->read_options)
        rocksdb_readoptions_destroy(rocks->read_options);
    if (rocks->block_cache)
        rocksdb_cache_destroy(rocks->block_cache);
    if (rocks->rescue_options)
        rocksdb_options_destroy(rocks->rescue_options);
    if (rocks->options)
        rocksdb_options_destroy(rocks->options);
    pthread_rwlock_destroy(&rocks->lock);
    g_free(rocks->path);
    g_free(rocks);
}

/* ---- reading ---- */

int rocks_get(struct rocks *rocks, const void *key, size_t key_len, struct metadb_value *out)
{
    pthread_rwlock_rdlock(&rocks->lock);
    int error = rocks->open_error;
    if (!error) {
        char *error_text = NULL;
        size_t len;
        rocksdb_pinnableslice_t *slice =
            rocksdb_get_pinned(rocks->handle, rocks->read_options, key, key_len, &error_text);
        const char *data = slice ? rocksdb_pinnableslice_value(slice, &len) : NULL;
        error = rocks_take_error(error_text, rocks->path, "reading a record");
        if (data) {
            out->len = len;
            out->data = g_malloc(len ? len : 1);
            memcpy(out->data, data, len);
        } else if (!error) {
            error = -ENOENT;
        }
        if (slice)
            rocksdb_pinnableslice_destroy(slice);
    }
    pthread_rwlock_unlock(&rocks->lock);
    return error;
}

static int get_one(struct rocks *rocks, struct metadb_query *query)
{
    char *error_text = NULL;
    rocksdb_pinnableslice_t *slice = rocksdb_get_pinned(rocks->handle, rocks->read_options,
                                                        query->key, query->key_len, &error_text);
    const char *data = slice ? rocksdb_pinnableslice_value(slice, &query->value_len) : NULL;
    int error = rocks_take_error(error_text, rocks->path, "reading a record");
    if (data)
        memcpy(query->value, data, MIN(query->value_len, query->value_room));
    else if (!error)
        error = -ENOENT;
    if (slice)
        rocksdb_pinnableslice_destroy(slice);
    return error;
}

void rocks_get_many(struct rocks *rocks, struct metadb_query *queries, size_t n)
{
    pthread_rwlock_rdlock(&rocks->lock);
    int error = rocks->open_error;
    for (size_t i = 0; i < n; i++)
        if (queries[i].error == -EAGAIN)
            queries[i].error = error ? error : get_one(rocks, &queries[i]);
    pthread_rwlock_unlock(&rocks->lock);
}

static int scan_locked(struct rocks *rocks, rocksdb_readoptions_t *read_options, const void *lower,
                       size_t lower_len, rocks_visit visit, void *context)
{
    char *error_text = NULL;
    bool wants_more = true;
    rocksdb_iterator_t *it = rocksdb_create_iterator(rocks->handle, read_options);
    for (rocksdb_iter_seek(it, lower_len ? lower : "", lower_len);
         wants_more && rocksdb_iter_valid(it);) {
        size_t key_len;
        size_t value_len;
        const char *key = rocksdb_iter_key(it, &key_len);
        const char *value = rocksdb_iter_value(it, &value_len);
        wants_more = visit(context, key, key_len, value, value_len);
        if (wants_more)
            rocksdb_iter_next(it);
    }
    rocksdb_iter_get_error(it, &error_text);
    rocksdb_iter_destroy(it);
    return rocks_take_error(error_text, rocks->path, "iterating");
}

int rocks_scan(struct rocks *rocks, const void *lower, size_t lower_len, const void *upper,
               size_t upper_len, rocks_visit visit, void *context)
{
    /* Its own options, because of the bound. The bound is not only for
     * comfort: without it RocksDB walks over all the tombstones behind. */
    rocksdb_readoptions_t *read_options = rocksdb_readoptions_create();
    if (upper_len)
        rocksdb_readoptions_set_iterate_upper_bound(read_options, upper, upper_len);
    pthread_rwlock_rdlock(&rocks->lock);
    int error = rocks->open_error;
    if (!error)
        error = scan_locked(rocks, read_options, lower, lower_len, visit, context);
    pthread_rwlock_unlock(&rocks->lock);
    rocksdb_readoptions_destroy(read_options);
    return error;
}
