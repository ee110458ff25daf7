// SPDX-License-Identifier: Apache-2.0
/*
 * Iteration over RUNNING, COMMITTING and RocksDB at once.
 *
 * The iterator moves in windows. For each window it
 *
 *   1. collects up to `window_records` records of the overlays, tombstones
 *      included, from the cursor on, under the lock (references, no copies);
 *   2. scans RocksDB over exactly the range that step 1 covers, with a RocksDB
 *      iterator made after step 1, and merges the two;
 *   3. sets the cursor behind the last key looked at.
 *
 * Between windows nothing is held: no lock, no RocksDB iterator (so RocksDB
 * can be closed and opened again under a live metadb_iter), only the cursor.
 *
 * Why no key is lost: changes only move down, RUNNING to COMMITTING to
 * RocksDB. A key that exists all the while is either found in step 1 or was in
 * RocksDB already at that time, and then still is at step 2, whatever flips
 * and commits happened in between. The other order would miss a key that was
 * only in COMMITTING when the RocksDB iterator was made and no longer there
 * when the overlays were read. Why none is doubled: the cursor only grows.
 */
#include "chunkstore/bytes.h"
#include "chunkstore/metadb_internal.h"

#include <string.h>

/* Most iterations are short (the entries of one directory's hash), so begin
 * small; the largest bounds the time that writers wait for step 1. */
enum { WINDOW_RECORDS_MIN = 16, WINDOW_RECORDS_MAX = 512, WINDOW_BYTES_MAX = 256 * 1024 };

/* RUNNING and COMMITTING; or these and in_memory's durable level. */
enum { SOURCES_MAX = 3 };

struct metadb_iter {
    struct metadb *db;
    struct wbuf cursor; /* the least key not yet looked at */
    uint8_t *upper;     /* NULL: no bound */
    size_t upper_len;
    GPtrArray *collected; /* step 1: struct record, referenced */
    GPtrArray *window;    /* what the caller walks through: the same */
    guint position;       /* in window */
    guint merged;         /* how much of collected is in window already */
    guint window_records;
    size_t window_bytes; /* copied from RocksDB into this window */
    bool exhausted;      /* nothing beyond this window */
    bool cut;            /* this window ended before the collected range did */
    int status;
};

static void set_cursor_behind(struct metadb_iter *it, const void *key, size_t key_len)
{
    /* The least key greater than `key` is `key` with a zero byte added. */
    wbuf_reset(&it->cursor);
    wbuf_put_bytes(&it->cursor, key, key_len);
    wbuf_put_u8(&it->cursor, 0);
}

static bool below_upper(const struct metadb_iter *it, const struct record *record)
{
    return !it->upper || key_compare(record->key, record->key_len, it->upper, it->upper_len) < 0;
}

static int compare_records(const struct record *a, const struct record *b)
{
    return key_compare(a->key, a->key_len, b->key, b->key_len);
}

/* The record with the least key at the heads of the sources, the first
 * source's if several have it; steps all of these forward. NULL at the end. */
static struct record *take_least(GTreeNode **heads, unsigned source_count)
{
    struct record *least = NULL;
    for (unsigned i = 0; i < source_count; i++)
        if (heads[i] && (!least || compare_records(overlay_record(heads[i]), least) < 0))
            least = overlay_record(heads[i]);
    for (unsigned i = 0; i < source_count; i++)
        if (heads[i] && compare_records(overlay_record(heads[i]), least) == 0)
            heads[i] = overlay_next(heads[i]);
    return least;
}

/* Step 1. True if the overlays have no more records below upper after these. */
static bool collect(struct metadb_iter *it)
{
    struct metadb *db = it->db;
    GTreeNode *heads[SOURCES_MAX];
    unsigned source_count = 0;
    bool at_end = false;

    g_ptr_array_set_size(it->collected, 0);
    pthread_rwlock_rdlock(&db->lock);
    const struct overlay *sources[SOURCES_MAX] = {db->running, db->committing, db->durable};
    for (unsigned i = 0; i < SOURCES_MAX; i++)
        if (sources[i])
            heads[source_count++] = overlay_seek(sources[i], it->cursor.data, it->cursor.len);
    while (!at_end && it->collected->len < it->window_records) {
        struct record *record = take_least(heads, source_count);
        if (record && below_upper(it, record))
            g_ptr_array_add(it->collected, record_ref(record));
        else
            at_end = true;
    }
    pthread_rwlock_unlock(&db->lock);
    return at_end;
}

/* Moves collected records below `key` (NULL: all) to the window. Returns true
 * if the next one, also used up then, has the very key. */
static bool merge_collected(struct metadb_iter *it, const void *key, size_t key_len)
{
    while (it->merged < it->collected->len) {
        struct record *record = g_ptr_array_index(it->collected, it->merged);
        int order = key ? key_compare(record->key, record->key_len, key, key_len) : -1;
        if (order > 0)
            return false;
        it->merged++;
        if (!record_is_tombstone(record))
            g_ptr_array_add(it->window, record_ref(record));
        if (order == 0)
            return true;
    }
    return false;
}

/* Step 2, for each record of RocksDB. */
static bool merge_durable(void *context, const void *key, size_t key_len, const void *value,
                          size_t value_len)
{
    struct metadb_iter *it = context;
    if (!merge_collected(it, key, key_len)) {
        g_ptr_array_add(it->window, record_new(key, key_len, value, value_len));
        it->window_bytes += key_len + value_len;
    }
    if (it->window->len < it->window_records && it->window_bytes < WINDOW_BYTES_MAX)
        return true;
    set_cursor_behind(it, key, key_len);
    it->cut = true;
    return false;
}

static void fill_one_window(struct metadb_iter *it)
{
    bool at_end = collect(it);
    const struct record *last = NULL;
    it->merged = 0;
    it->window_bytes = 0;
    it->cut = false;
    if (!at_end)
        last = g_ptr_array_index(it->collected, it->collected->len - 1);

    if (it->db->rocks) {
        /* The cursor moves during the scan, so the bounds are copies. */
        g_autofree uint8_t *lower = g_memdup2(it->cursor.data, it->cursor.len);
        size_t lower_len = it->cursor.len;
        struct wbuf bound = {0};
        if (last) {
            wbuf_put_bytes(&bound, last->key, last->key_len);
            wbuf_put_u8(&bound, 0);
        } else {
            wbuf_put_bytes(&bound, it->upper, it->upper_len);
        }
        it->status =
            rocks_scan(it->db->rocks, lower, lower_len, bound.data, bound.len, merge_durable, it);
        wbuf_free(&bound);
    }
    if (it->status) {
        it->exhausted = true;
        return;
    }
    if (it->cut)
        return;
    merge_collected(it, NULL, 0);
    if (last)
        set_cursor_behind(it, last->key, last->key_len);
    else
        it->exhausted = true;
}

static void refill(struct metadb_iter *it)
{
    g_ptr_array_set_size(it->window, 0);
    it->position = 0;
    /* A window may turn out empty: all tombstones. */
    while (it->window->len == 0 && !it->exhausted) {
        fill_one_window(it);
        it->window_records = MIN(it->window_records * 4, (guint)WINDOW_RECORDS_MAX);
    }
    g_ptr_array_set_size(it->collected, 0);
}

struct metadb_iter *metadb_iter_new(struct metadb *db, const void *lower, size_t lower_len,
                                    const void *upper, size_t upper_len)
{
    struct metadb_iter *it = g_new0(struct metadb_iter, 1);
    it->db = db;
    wbuf_put_bytes(&it->cursor, lower, lower_len);
    it->upper = upper_len ? g_memdup2(upper, upper_len) : NULL;
    it->upper_len = upper_len;
    it->collected = g_ptr_array_new_with_free_func(record_unref);
    it->window = g_ptr_array_new_with_free_func(record_unref);
    it->window_records = WINDOW_RECORDS_MIN;
    refill(it);
    return it;
}

bool metadb_iter_valid(const struct metadb_iter *it)
{
    return it->position < it->window->len;
}

void metadb_iter_next(struct metadb_iter *it)
{
    g_assert(metadb_iter_valid(it));
    it->position++;
    if (it->position == it->window->len)
        refill(it);
}

static const struct record *current(const struct metadb_iter *it)
{
    g_assert(metadb_iter_valid(it));
    return g_ptr_array_index(it->window, it->position);
}

const uint8_t *metadb_iter_key(const struct metadb_iter *it, size_t *len)
{
    const struct record *record = current(it);
    *len = record->key_len;
    return record->key;
}

const uint8_t *metadb_iter_value(const struct metadb_iter *it, size_t *len)
{
    const struct record *record = current(it);
    *len = record->value_len;
    return record->value;
}

int metadb_iter_status(const struct metadb_iter *it)
{
    return it->status;
}

void metadb_iter_free(struct metadb_iter *it)
{
    if (!it)
        return;
    wbuf_free(&it->cursor);
    g_free(it->upper);
    g_ptr_array_unref(it->collected);
    g_ptr_array_unref(it->window);
    g_free(it);
}
