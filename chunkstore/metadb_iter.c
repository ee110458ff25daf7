// SPDX-License-Identifier: Apache-2.0
/*
 * Iteration over RUNNING, COMMITTING and RocksDB at once.
 *
 * The iterator moves in windows. For each window it
 *
 *   1. copies up to `window_records` records of the overlays, tombstones
 *      included, from the cursor on, under the lock;
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

/* Records put in order while the lock is held at first. Then twice as many each
 * time, so that the iterator wins against whoever adds more. */
enum { ORDER_AT_ONCE = 1024 };

/* A copy of a record, in the iterator's `bytes`. */
struct copy {
    size_t key_at;
    size_t key_len;
    size_t value_at;
    size_t value_len;
    bool tombstone;
};

struct metadb_iter {
    struct metadb *db;
    struct wbuf cursor; /* the least key not yet looked at */
    uint8_t *upper;     /* NULL: no bound */
    size_t upper_len;
    unsigned last_type; /* the last first byte that a key below upper can have */
    struct wbuf bytes;  /* of both, collected and window */
    GArray *collected;  /* step 1: struct copy */
    GArray *window;     /* what the caller walks through: the same */
    guint position;     /* in window */
    guint merged;       /* how much of collected is in window already */
    guint window_records;
    bool exhausted; /* nothing beyond this window */
    bool cut;       /* this window ended before the collected range did */
    int status;
};

static struct copy *copy_at(GArray *copies, guint i)
{
    return &g_array_index(copies, struct copy, i);
}

static void add_copy(struct metadb_iter *it, GArray *to, const void *key, size_t key_len,
                     const void *value, size_t value_len)
{
    struct copy copy = {.key_len = key_len, .value_len = value_len, .tombstone = !value};
    copy.key_at = it->bytes.len;
    wbuf_put_bytes(&it->bytes, key, key_len);
    copy.value_at = it->bytes.len;
    if (value_len)
        wbuf_put_bytes(&it->bytes, value, value_len);
    g_array_append_val(to, copy);
}

static void set_cursor_behind(struct metadb_iter *it, const void *key, size_t key_len)
{
    /* The least key greater than `key` is `key` with a zero byte added. */
    wbuf_reset(&it->cursor);
    wbuf_put_bytes(&it->cursor, key, key_len);
    wbuf_put_u8(&it->cursor, 0);
}

static unsigned first_type(const struct metadb_iter *it)
{
    return it->cursor.len ? it->cursor.data[0] : 0;
}

static unsigned last_type_below(const uint8_t *upper, size_t upper_len)
{
    if (upper_len == 0)
        return UINT8_MAX;
    /* An upper bound of one byte excludes all keys that begin with it. */
    return upper_len == 1 && upper[0] > 0 ? upper[0] - 1u : upper[0];
}

struct sources {
    struct overlay *overlays[SOURCES_MAX]; /* the newest first */
    struct overlay_cursor heads[SOURCES_MAX];
    unsigned count;
};

static void find_sources(struct metadb *db, struct sources *s)
{
    struct overlay *all[SOURCES_MAX] = {db->running, db->committing, db->durable};
    s->count = 0;
    for (unsigned i = 0; i < SOURCES_MAX; i++)
        if (all[i])
            s->overlays[s->count++] = all[i];
}

static bool sources_are_ordered(const struct metadb_iter *it, const struct sources *s)
{
    for (unsigned i = 0; i < s->count; i++)
        if (!overlay_is_ordered(s->overlays[i], first_type(it), it->last_type))
            return false;
    return true;
}

/* Takes the lock, for reading if all is in order, else for writing, and sees
 * to it that it is. */
static void lock_ordered(struct metadb_iter *it, struct sources *s)
{
    struct metadb *db = it->db;
    pthread_rwlock_rdlock(&db->lock);
    find_sources(db, s);
    if (sources_are_ordered(it, s))
        return;
    for (uint64_t at_once = ORDER_AT_ONCE;; at_once *= 2) {
        uint64_t budget = at_once;
        unsigned ordered = 0;
        pthread_rwlock_unlock(&db->lock);
        pthread_rwlock_wrlock(&db->lock);
        find_sources(db, s);
        while (ordered < s->count &&
               overlay_order(s->overlays[ordered], first_type(it), it->last_type, &budget))
            ordered++;
        if (ordered == s->count)
            return;
    }
}

/* The record with the least key at the heads of the sources, the first
 * source's if several have it; steps all of these forward. NULL at the end. */
static const struct record *take_least(struct sources *s)
{
    const struct record *least = NULL;
    const uint8_t *least_key = NULL;
    size_t least_len = 0;
    bool has_least[SOURCES_MAX] = {false};
    for (unsigned i = 0; i < s->count; i++) {
        const struct record *record = overlay_at(&s->heads[i]);
        if (!record)
            continue;
        size_t len;
        const uint8_t *key = record_key(record, &len);
        int order = least ? key_compare(key, len, least_key, least_len) : -1;
        if (order < 0) {
            least = record;
            least_key = key;
            least_len = len;
            for (unsigned k = 0; k < i; k++)
                has_least[k] = false;
        }
        has_least[i] = order <= 0;
    }
    for (unsigned i = 0; i < s->count; i++)
        if (has_least[i])
            overlay_step(&s->heads[i]);
    return least;
}

/* Step 1. True if the overlays have no more records below upper after these. */
static bool collect(struct metadb_iter *it)
{
    struct sources s;
    bool at_end = false;
    g_array_set_size(it->collected, 0);
    lock_ordered(it, &s);
    for (unsigned i = 0; i < s.count; i++)
        overlay_seek(&s.heads[i], s.overlays[i], it->cursor.data, it->cursor.len, it->last_type);
    while (!at_end && it->collected->len < it->window_records && it->bytes.len < WINDOW_BYTES_MAX) {
        const struct record *record = take_least(&s);
        size_t key_len, value_len;
        const uint8_t *key = record ? record_key(record, &key_len) : NULL;
        if (record && (!it->upper || key_compare(key, key_len, it->upper, it->upper_len) < 0)) {
            const uint8_t *value = record_value(record, &value_len);
            add_copy(it, it->collected, key, key_len, value, value_len);
        } else {
            at_end = true;
        }
    }
    pthread_rwlock_unlock(&it->db->lock);
    return at_end;
}

/* Moves collected records below `key` (NULL: all) to the window. Returns true
 * if the next one, also used up then, has the very key. */
static bool merge_collected(struct metadb_iter *it, const void *key, size_t key_len)
{
    while (it->merged < it->collected->len) {
        const struct copy *copy = copy_at(it->collected, it->merged);
        const uint8_t *copy_key = it->bytes.data + copy->key_at;
        int order = key ? key_compare(copy_key, copy->key_len, key, key_len) : -1;
        if (order > 0)
            return false;
        it->merged++;
        if (!copy->tombstone)
            g_array_append_val(it->window, *copy);
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
    if (!merge_collected(it, key, key_len))
        add_copy(it, it->window, key, key_len, value, value_len);
    /* Twice: collected records may have used up one half. */
    if (it->window->len < it->window_records && it->bytes.len < (size_t)2 * WINDOW_BYTES_MAX)
        return true;
    set_cursor_behind(it, key, key_len);
    it->cut = true;
    return false;
}

static void fill_one_window(struct metadb_iter *it)
{
    wbuf_reset(&it->bytes);
    bool at_end = collect(it);
    struct copy last = {0};
    it->merged = 0;
    it->cut = false;
    if (!at_end)
        last = *copy_at(it->collected, it->collected->len - 1);

    if (it->db->rocks) {
        /* The cursor moves during the scan, so the bounds are copies. */
        g_autofree uint8_t *lower = g_memdup2(it->cursor.data, it->cursor.len);
        size_t lower_len = it->cursor.len;
        struct wbuf bound = {0};
        if (!at_end) {
            wbuf_put_bytes(&bound, it->bytes.data + last.key_at, last.key_len);
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
    if (!at_end)
        set_cursor_behind(it, it->bytes.data + last.key_at, last.key_len);
    else
        it->exhausted = true;
}

static void refill(struct metadb_iter *it)
{
    g_array_set_size(it->window, 0);
    it->position = 0;
    /* A window may turn out empty: all tombstones. */
    while (it->window->len == 0 && !it->exhausted) {
        fill_one_window(it);
        it->window_records = MIN(it->window_records * 4, (guint)WINDOW_RECORDS_MAX);
    }
}

struct metadb_iter *metadb_iter_new(struct metadb *db, const void *lower, size_t lower_len,
                                    const void *upper, size_t upper_len)
{
    struct metadb_iter *it = g_new0(struct metadb_iter, 1);
    it->db = db;
    wbuf_put_bytes(&it->cursor, lower, lower_len);
    it->upper = upper_len ? g_memdup2(upper, upper_len) : NULL;
    it->upper_len = upper_len;
    it->last_type = last_type_below(upper, upper_len);
    it->collected = g_array_new(FALSE, FALSE, sizeof(struct copy));
    it->window = g_array_new(FALSE, FALSE, sizeof(struct copy));
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

static const struct copy *current(const struct metadb_iter *it)
{
    g_assert(metadb_iter_valid(it));
    return copy_at(it->window, it->position);
}

const uint8_t *metadb_iter_key(const struct metadb_iter *it, size_t *len)
{
    const struct copy *copy = current(it);
    *len = copy->key_len;
    return it->bytes.data + copy->key_at;
}

const uint8_t *metadb_iter_value(const struct metadb_iter *it, size_t *len)
{
    const struct copy *copy = current(it);
    *len = copy->value_len;
    return it->bytes.data + copy->value_at;
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
    wbuf_free(&it->bytes);
    g_array_unref(it->collected);
    g_array_unref(it->window);
    g_free(it);
}
