// SPDX-License-Identifier: Apache-2.0
/*
 * repair_index.c - what refers to chunks by number or content: runs of freed
 * ones, hash -> chunk, marks. By now the counts and chunk -> hash are right.
 */
#include "cowfs/repair_internal.h"

#include "chunkstore/content_index.h"

#include <errno.h>
#include <inttypes.h>

struct index {
    struct repair *r;
    struct fsck *f;
    struct counts_group group; /* the one that was looked at last */
    uint64_t group_id;
    bool known;
};

static int is_owned(struct index *x, chunk_t chunk, bool *owned, bool *sealed)
{
    if (!x->known || x->group_id != chunk / COUNT_GROUP) {
        struct metadb_value value = {0};
        int error = fsck_get(x->f, KEY_CHUNK_COUNTS, chunk / COUNT_GROUP, &value);
        if (!error || error == -ENOENT)
            error = counts_group_decode(&x->group, value.data, value.len);
        metadb_value_free(&value);
        if (error)
            return error;
        x->group_id = chunk / COUNT_GROUP;
        x->known = true;
    }
    *owned = x->group.count[chunk % COUNT_GROUP] > 0;
    *sealed = x->group.sealed[chunk % COUNT_GROUP];
    return 0;
}

static void put_dead(struct index *x, chunk_t first, uint64_t count)
{
    struct wbuf record = {0};
    if (count == 0)
        return;
    wbuf_put_varint(&record, count);
    repair_put(x->r, KEY_DEAD_SEALED, first, &record);
    wbuf_free(&record);
}

/* A run without the chunks that have an owner. */
static int mend_dead(struct index *x, const struct dead_run *run)
{
    bool any = false, owned, sealed;
    int error = 0;
    for (uint64_t i = 0; i < run->count && !error && !any; i++) {
        error = is_owned(x, run->first + i, &owned, &sealed);
        any = !error && owned;
    }
    if (error || !any)
        return error;
    repair_did(x->r,
               "chunks from %" PRIu64 " (%" PRIu64 ") were recorded as freed; some are in use",
               run->first, run->count);
    repair_delete(x->r, KEY_DEAD_SEALED, run->first);
    uint64_t from = 0;
    for (uint64_t i = 0; i <= run->count && !error; i++) {
        owned = true;
        if (i < run->count)
            error = is_owned(x, run->first + i, &owned, &sealed);
        if (!error && owned) {
            put_dead(x, run->first + from, i - from);
            from = i + 1;
        }
    }
    return error;
}

static int mend_dead_runs(struct index *x)
{
    GArray *runs = g_array_new(FALSE, FALSE, sizeof(struct dead_run));
    struct cursor c;
    cursor_open(&c, x->f, KEY_DEAD_SEALED);
    while (cursor_next(&c)) {
        struct rbuf b = rbuf_of(c.value, c.value_len);
        struct dead_run run = {.first = c.a, .count = rbuf_get_varint(&b)};
        if (b.bad || rbuf_left(&b) || run.count == 0 || run.count > SEGMENT_SLOTS) {
            uint8_t key[KEY_MAX];
            repair_drop_record(x->r, key, key_u64(key, KEY_DEAD_SEALED, c.a), c.value, c.value_len,
                               "of freed chunks, which is damaged");
        } else {
            g_array_append_val(runs, run);
        }
    }
    int error = cursor_close(&c);
    for (guint i = 0; i < runs->len && !error; i++)
        error = mend_dead(x, &g_array_index(runs, struct dead_run, i));
    g_array_free(runs, TRUE);
    return error;
}

/* hash -> chunk is a hint: what does not agree goes. */
static int mend_content(struct index *x)
{
    struct cursor c;
    uint64_t removed = 0;
    int error = 0;
    cursor_open(&c, x->f, KEY_CONTENT);
    while (!error && cursor_next(&c)) {
        struct metadb_value value = {0};
        chunk_t chunk = c.value_len == 8 ? get_be64(c.value) : 0;
        error = fsck_get(x->f, KEY_CHUNK_HASH, chunk, &value);
        struct content_record record;
        bool good = !error && content_record_decode(value.data, value.len, &record) == 0 &&
                    content_record_number(&record) == c.a;
        metadb_value_free(&value);
        if (error == -ENOENT)
            error = 0;
        if (good || error)
            continue;
        repair_delete(x->r, KEY_CONTENT, c.a);
        removed++;
    }
    int status = cursor_close(&c);
    if (removed)
        repair_did(x->r, "removed %" PRIu64 " wrong entries of the content index", removed);
    return error ? error : status;
}

static int mend_marks(struct index *x)
{
    struct cursor c;
    int error = 0;
    cursor_open(&c, x->f, KEY_DAMAGED);
    while (!error && cursor_next(&c)) {
        bool owned, sealed;
        error = is_owned(x, c.a, &owned, &sealed);
        if (error || owned)
            continue;
        repair_did(x->r, "removed the mark of damaged chunk %" PRIu64 ", which nobody owns", c.a);
        repair_delete(x->r, KEY_DAMAGED, c.a);
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

int repair_index(struct repair *r)
{
    struct index *x = g_new0(struct index, 1);
    x->r = r;
    x->f = repair_reader_new(r, "repairing the content index");
    int error = mend_dead_runs(x);
    if (!error)
        error = mend_content(x);
    if (!error)
        error = mend_marks(x);
    repair_reader_free(x->f);
    g_free(x);
    return error;
}
