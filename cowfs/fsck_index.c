// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_index.c - the content index, and the bytes that it speaks of.
 *
 *   KEY_CHUNK_HASH   chunk -> hash, domain: for each sealed chunk
 *   KEY_CONTENT      both -> chunk: for one of those with the same, or none
 *   KEY_DEAD_SEALED  freed chunks whose two records are still there
 *
 * The index is a hint: whoever finds a chunk by it compares the bytes. So a
 * record too many or too few costs space; what is an error is a record that
 * says something false of a chunk in use. That a chunk is not to be found by
 * its hash is no damage: another one with the same first 8 bytes may have been.
 */
#include "cowfs/fsck_internal.h"

#include "cowfs/domain.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 20 };

/* ---- freed chunks ---- */

/* Runs come by their first chunk. Those that overlap become one, or a look-up
 * would find the later one alone. */
static void add_dead(struct fsck *f, struct dead_run run)
{
    struct dead_run *last =
        f->dead->len ? &g_array_index(f->dead, struct dead_run, f->dead->len - 1) : NULL;
    if (last && run.first - last->first < last->count)
        last->count = max_u64(last->count, run.first - last->first + run.count);
    else
        g_array_append_val(f->dead, run);
}

int fsck_load_dead(struct fsck *f)
{
    struct cursor c;
    fsck_phase(f, "freed chunks", 0);
    cursor_open(&c, f, KEY_DEAD_SEALED);
    while (cursor_next(&c)) {
        struct rbuf r = rbuf_of(c.value, c.value_len);
        struct dead_run run = {.first = c.a, .count = rbuf_get_varint(&r)};
        if (r.bad || rbuf_left(&r) || run.count == 0 || run.count > SEGMENT_SLOTS)
            fsck_undecodable(f, &c);
        else
            add_dead(f, run);
    }
    return cursor_close(&c);
}

bool fsck_is_dead(const struct fsck *f, chunk_t chunk)
{
    const struct dead_run *runs = (const struct dead_run *)(void *)f->dead->data;
    size_t from = 0, to = f->dead->len;
    /* The last run that begins at or before the chunk. */
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (runs[middle].first <= chunk)
            from = middle + 1;
        else
            to = middle;
    }
    return from > 0 && chunk - runs[from - 1].first < runs[from - 1].count;
}

/* ---- chunk -> hash, beside the counts ---- */

struct hash_walk {
    struct fsck *f;
    struct cursor c;
    bool more;
    /* check_data */
    const struct fsck_segment *segment; /* that `fd` is open for */
    int fd;
    uint8_t *buffer;
    chunk_t buffer_first;
    uint64_t buffer_chunks;
};

struct hash_walk *hash_walk_new(struct fsck *f)
{
    struct hash_walk *w = g_new0(struct hash_walk, 1);
    w->f = f;
    w->fd = -1;
    if (f->options->check_data)
        w->buffer = g_malloc(READ_BYTES);
    cursor_open(&w->c, f, KEY_CHUNK_HASH);
    w->more = cursor_next(&w->c);
    return w;
}

static int open_file(struct hash_walk *w, const struct fsck_segment *segment)
{
    if (w->segment == segment)
        return w->fd;
    if (w->fd >= 0)
        close(w->fd);
    w->segment = segment;
    w->buffer_chunks = 0;
    w->fd = fsck_open_segment(w->f, segment->id);
    return w->fd;
}

/* Reads `n` chunks from `chunk`; fewer at the end of the file. */
static int fill_buffer(struct hash_walk *w, const struct fsck_segment *segment, chunk_t chunk,
                       uint64_t n)
{
    uint32_t chunk_bytes = w->f->sb.chunk_bytes;
    size_t want = (size_t)(n * chunk_bytes), got = 0;
    int fd = open_file(w, segment);
    if (fd < 0)
        return fd;
    while (got < want) {
        off_t offset = (off_t)((uint32_t)chunk * (uint64_t)chunk_bytes + got);
        ssize_t done = pread(fd, w->buffer + got, want - got, offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && got < chunk_bytes)
            return -errno;
        if (done <= 0)
            break;
        got += (size_t)done;
    }
    if (segment->home && got % chunk_bytes) {
        /* The file ends within its last chunk, which goes on with zeros. */
        size_t whole = (size_t)round_up_u64(got, chunk_bytes);
        memset(w->buffer + got, 0, whole - got);
        got = whole;
    }
    w->buffer_first = chunk;
    w->buffer_chunks = got / chunk_bytes;
    return w->buffer_chunks ? 0 : -EIO;
}

/* `alike`: how many sealed chunks there are from this one on. */
static void check_bytes(struct hash_walk *w, const struct fsck_segment *segment, chunk_t chunk,
                        unsigned alike, const struct content_hash *hash)
{
    struct fsck *f = w->f;
    uint32_t chunk_bytes = f->sb.chunk_bytes;
    uint32_t slot = (uint32_t)chunk;
    if (slot >= segment->file_slots)
        return; /* told by the check of counts */
    if (chunk < w->buffer_first || chunk - w->buffer_first >= w->buffer_chunks) {
        int error = fill_buffer(w, segment, chunk, min_u64(alike, READ_BYTES / chunk_bytes));
        if (error) {
            w->buffer_chunks = 0;
            fsck_found(f, FSCK_CHUNK_UNREADABLE, 1, "segment %08" PRIx32 ", slot %" PRIu32 ": %s",
                       segment->id, slot, g_strerror(-error));
            return;
        }
    }
    const uint8_t *bytes = w->buffer + (chunk - w->buffer_first) * chunk_bytes;
    struct content_hash now = content_hash_xxh3(bytes, chunk_bytes, f->sb.hash_secret);
    f->report->checked_bytes += chunk_bytes;
    if (memcmp(now.bytes, hash->bytes, sizeof(now.bytes)) != 0)
        fsck_found(f, FSCK_CHUNK_DATA, 1,
                   "segment %08" PRIx32 ", slot %" PRIu32
                   ": the bytes do not have the recorded hash",
                   segment->id, slot);
}

/* The record under the cursor. False: told that it is damaged. */
static bool read_record(struct fsck *f, const struct cursor *c, struct content_record *out)
{
    if (content_record_decode(c->value, c->value_len, out) != 0) {
        fsck_undecodable(f, c);
        return false;
    }
    f->has_domains |= out->domain != DOMAIN_ROOT;
    f->has_public |= out->domain == DOMAIN_PUBLIC;
    return true;
}

/* The record under the cursor, of a chunk that nobody owns. */
static void take_unowned(struct fsck *f, const struct cursor *c)
{
    struct content_record record;
    if (!read_record(f, c, &record))
        return;
    if (!fsck_is_dead(f, c->a))
        fsck_found(f, FSCK_INDEX_STRAY, 1, "content hash of chunk %" PRIu64 ", which nobody owns",
                   c->a);
}

static void check_freed(struct fsck *f, uint64_t group, const struct counts_group *counts)
{
    for (unsigned i = 0; i < COUNT_GROUP && f->dead->len > 0; i++)
        if (counts->count[i] && fsck_is_dead(f, group * COUNT_GROUP + i))
            fsck_found(f, FSCK_INDEX_DEAD_OWNED, 1,
                       "chunk %" PRIu64 " is recorded as freed, but has %" PRIu32 " owners",
                       group * COUNT_GROUP + i, counts->count[i]);
}

/* The record under the cursor, of chunk i of a group with known counts. */
static void take_owned(struct hash_walk *w, const struct fsck_segment *segment,
                       const struct counts_group *counts, unsigned i)
{
    struct fsck *f = w->f;
    struct content_record record;
    if (!read_record(f, &w->c, &record))
        return;
    if (!counts->sealed[i]) {
        fsck_found(f, FSCK_INDEX_UNSEALED, 1,
                   "content hash of chunk %" PRIu64 ", which is not sealed", w->c.a);
    } else if (f->options->check_data) {
        unsigned alike = 1;
        while (i + alike < COUNT_GROUP && counts->sealed[i + alike])
            alike++;
        check_bytes(w, segment, w->c.a, alike, &record.hash);
    }
}

int hash_walk_group(struct hash_walk *w, const struct fsck_segment *segment, uint64_t group,
                    const struct counts_group *counts)
{
    struct fsck *f = w->f;
    for (; w->more && w->c.a / COUNT_GROUP < group; w->more = cursor_next(&w->c))
        take_unowned(f, &w->c);
    if (counts)
        check_freed(f, group, counts);
    bool hashed[COUNT_GROUP] = {false};
    for (; w->more && w->c.a / COUNT_GROUP == group; w->more = cursor_next(&w->c)) {
        unsigned i = w->c.a % COUNT_GROUP;
        hashed[i] = true;
        if (!counts)
            continue;
        if (counts->count[i])
            take_owned(w, segment, counts, i);
        else
            take_unowned(f, &w->c);
    }
    for (unsigned i = 0; counts && i < COUNT_GROUP; i++)
        if (counts->sealed[i] && counts->count[i] && !hashed[i])
            fsck_found(f, FSCK_SEALED_WITHOUT_HASH, 1,
                       "chunk %" PRIu64 " is sealed, but has no content hash",
                       group * COUNT_GROUP + i);
    return metadb_iter_status(w->c.it);
}

int hash_walk_finish(struct hash_walk *w, int error)
{
    for (; !error && w->more; w->more = cursor_next(&w->c))
        take_unowned(w->f, &w->c);
    int status = cursor_close(&w->c);
    if (w->fd >= 0)
        close(w->fd);
    g_free(w->buffer);
    g_free(w);
    return error ? error : status;
}

/* ---- hash -> chunk ---- */

/* The recorded count of one chunk. */
static int get_owner(struct fsck *f, chunk_t chunk, bool *owned, bool *sealed)
{
    struct metadb_value value;
    *owned = *sealed = false;
    int error = fsck_get(f, KEY_CHUNK_COUNTS, chunk / COUNT_GROUP, &value);
    if (error)
        return error == -ENOENT ? 0 : error;
    struct counts_group *g = g_new(struct counts_group, 1);
    if (counts_group_decode(g, value.data, value.len) == 0) {
        *owned = g->count[chunk % COUNT_GROUP] > 0;
        *sealed = g->sealed[chunk % COUNT_GROUP];
    } else {
        *owned = *sealed = true; /* not known, and told already */
    }
    g_free(g);
    metadb_value_free(&value);
    return 0;
}

/* An entry whose chunk has no hash record. */
static int judge_unhashed(struct fsck *f, uint64_t hash, chunk_t chunk)
{
    bool owned, sealed;
    if (fsck_is_dead(f, chunk))
        return 0;
    int error = get_owner(f, chunk, &owned, &sealed);
    if (error)
        return error;
    if (!owned)
        fsck_found(f, FSCK_INDEX_STRAY, 1,
                   "content hash %016" PRIx64 "... is of chunk %" PRIu64 ", which nobody owns",
                   hash, chunk);
    else if (!sealed)
        fsck_found(f, FSCK_INDEX_UNSEALED, 1,
                   "content hash %016" PRIx64 "... is of chunk %" PRIu64 ", which is not sealed",
                   hash, chunk);
    else
        fsck_found(f, FSCK_INDEX_DISAGREES, 1,
                   "content hash %016" PRIx64 "... is of chunk %" PRIu64
                   ", which has no hash recorded",
                   hash, chunk);
    return 0;
}

static int check_entry(struct fsck *f, const struct cursor *c)
{
    if (c->value_len != 8) {
        fsck_undecodable(f, c);
        return 0;
    }
    chunk_t chunk = get_be64(c->value);
    struct metadb_value value;
    int error = fsck_get(f, KEY_CHUNK_HASH, chunk, &value);
    if (error)
        return error == -ENOENT ? judge_unhashed(f, c->a, chunk) : error;
    struct content_record record;
    if (content_record_decode(value.data, value.len, &record) == 0 &&
        content_record_number(&record) != c->a)
        fsck_found(f, FSCK_INDEX_DISAGREES, 1,
                   "content hash %016" PRIx64 "... is of chunk %" PRIu64
                   ", whose hash, with its domain, is %016" PRIx64 "...",
                   c->a, chunk, content_record_number(&record));
    metadb_value_free(&value);
    return 0;
}

/* Chunks that scrub has found damaged. The marks say so; that is no news. */
static int check_damaged(struct fsck *f)
{
    struct cursor c;
    int error = 0;
    fsck_phase(f, "marks of damaged chunks", 0);
    cursor_open(&c, f, KEY_DAMAGED);
    while (!error && cursor_next(&c)) {
        bool owned, sealed;
        error = get_owner(f, c.a, &owned, &sealed);
        if (!error && !owned)
            fsck_found(f, FSCK_DAMAGED_STRAY, 1,
                       "chunk %" PRIu64 " is marked as damaged, but nobody owns it", c.a);
        else if (!error && !sealed)
            fsck_found(f, FSCK_DAMAGED_UNSEALED, 1,
                       "chunk %" PRIu64 " is marked as damaged, but is not sealed", c.a);
        else
            f->report->damaged_chunks++;
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

int fsck_check_content(struct fsck *f)
{
    struct cursor c;
    int error = 0;
    fsck_phase(f, "content index", f->report->sealed_chunks);
    cursor_open(&c, f, KEY_CONTENT);
    while (!error && cursor_next(&c))
        error = check_entry(f, &c);
    int status = cursor_close(&c);
    error = error ? error : status;
    return error ? error : check_damaged(f);
}
