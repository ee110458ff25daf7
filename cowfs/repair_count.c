// SPDX-License-Identifier: Apache-2.0
/*
 * repair_count.c - owners of nodes and chunks, and segments, counted again from
 * the maps, which are sound by now.
 *
 * Three things are walked side by side in the order of chunk numbers: the
 * counters made from the maps (a window of segments at a time), the recorded
 * counts, and the recorded hashes. What the maps cannot tell of a chunk is kept
 * from its record where that can be read: whether it is sealed, and how many of
 * its owners came by deduplication. A chunk is sealed only with a hash; without
 * the mark nothing is wrong, it is just sealed again some day.
 */
#include "cowfs/repair_internal.h"

#include <errno.h>
#include <inttypes.h>

enum { GROUP_SHIFT = 23, SEGMENT_FORMAT = 1 };

/* ---- nodes ---- */

/* Puts the record of a group if it is not what is there. */
static bool put_counts(struct repair *r, enum key_type type, uint64_t group,
                       const struct count_info info[COUNT_GROUP], const uint8_t *old,
                       size_t old_len)
{
    struct wbuf record = {0};
    counts_encode(info, &record);
    bool same = record.len == old_len && (old_len == 0 || memcmp(record.data, old, old_len) == 0);
    if (!same && record.len)
        repair_put(r, type, group, &record);
    else if (!same)
        repair_delete(r, type, group);
    wbuf_free(&record);
    return !same;
}

static int compare_ids(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int count_nodes(struct repair *r, struct fsck *f)
{
    GArray *groups = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    GHashTableIter it;
    gpointer key;
    struct cursor c;
    uint64_t changed = 0;
    int error = 0;
    /* Groups that have a record, but no node, too. */
    cursor_open(&c, f, KEY_NODE_COUNTS);
    while (cursor_next(&c)) {
        if (c.a <= UINT64_MAX / COUNT_GROUP)
            node_table_group(&f->nodes, c.a * COUNT_GROUP);
        else
            repair_delete(r, KEY_NODE_COUNTS, c.a);
    }
    error = cursor_close(&c);
    g_hash_table_iter_init(&it, f->nodes.groups);
    while (g_hash_table_iter_next(&it, &key, NULL))
        g_array_append_vals(groups, key, 1);
    g_array_sort(groups, compare_ids);
    for (guint k = 0; k < groups->len && !error; k++) {
        uint64_t id = g_array_index(groups, uint64_t, k);
        const struct node_group *g = node_table_group(&f->nodes, id * COUNT_GROUP);
        struct count_info info[COUNT_GROUP] = {{0}};
        struct metadb_value old = {0};
        for (unsigned i = 0; i < COUNT_GROUP; i++)
            info[i].count = tally_get(&g->refs, i);
        error = fsck_get(f, KEY_NODE_COUNTS, id, &old);
        if (!error || error == -ENOENT) {
            changed += put_counts(r, KEY_NODE_COUNTS, id, info, old.data, old.len);
            error = 0;
        }
        metadb_value_free(&old);
    }
    g_array_free(groups, TRUE);
    if (changed)
        repair_did(r, "owners of nodes counted again: %" PRIu64 " records were wrong", changed);
    return error;
}

/* ---- chunks ---- */

struct counting {
    struct repair *r;
    struct fsck *f;
    struct cursor counts, hashes;
    bool more_counts, more_hashes;
    GHashTable *marked; /* &chunk: known to be damaged */
    /* Of the segment: */
    uint64_t changed, live, end_slot;
};

static bool is_marked(const struct counting *n, chunk_t chunk)
{
    return (n->r->void_segment && chunk >> 32 == n->r->void_segment) ||
           g_hash_table_contains(n->marked, &chunk);
}

static void drop_hash(struct counting *n, chunk_t chunk)
{
    repair_delete(n->r, KEY_CHUNK_HASH, chunk);
    n->changed++;
}

/* Hashes of chunks before `group`: nobody owns those. */
static void skip_hashes(struct counting *n, uint64_t group)
{
    for (; n->more_hashes && n->hashes.a / COUNT_GROUP < group;
         n->more_hashes = cursor_next(&n->hashes))
        if (!fsck_is_dead(n->f, n->hashes.a))
            drop_hash(n, n->hashes.a);
}

/* What is known of a chunk that has `count` owners. */
static struct count_info judge(struct counting *n, chunk_t chunk, uint32_t count, bool hashed,
                               const struct counts_group *old, unsigned i)
{
    struct count_info info = {.count = count};
    /* No bytes have this hash, or next to none. */
    static const uint8_t no_hash[16] = "no bytes at all";
    bool marked = is_marked(n, chunk);
    if (marked)
        info.sealed = true;
    else if (hashed && !fsck_is_dead(n->f, chunk))
        /* An unsealed chunk may have been overwritten since. */
        info.sealed = old && old->count[i] ? old->sealed[i] : true;
    if (old)
        info.merges = (uint8_t)min_u64(old->merges[i], count - 1);
    if (marked && !hashed) {
        struct wbuf hash = {0};
        wbuf_put_bytes(&hash, no_hash, sizeof(no_hash));
        repair_put(n->r, KEY_CHUNK_HASH, chunk, &hash);
        wbuf_free(&hash);
        n->changed++;
    }
    if (marked && !g_hash_table_contains(n->marked, &chunk)) {
        struct wbuf empty = {0};
        repair_put(n->r, KEY_DAMAGED, chunk, &empty);
        n->changed++;
    }
    if (hashed && !info.sealed)
        drop_hash(n, chunk);
    return info;
}

/* One group of a segment; `first` is its first chunk. */
static void count_group(struct counting *n, chunk_t first, const struct tally *tally,
                        const uint8_t *old_record, size_t old_len)
{
    struct count_info info[COUNT_GROUP] = {{0}};
    bool hashed[COUNT_GROUP] = {false};
    uint32_t counted[COUNT_GROUP];
    struct counts_group *old = g_new(struct counts_group, 1);
    if (counts_group_decode(old, old_record, old_len))
        g_clear_pointer(&old, g_free);
    tally_expand(tally, counted);
    skip_hashes(n, first / COUNT_GROUP);
    for (; n->more_hashes && n->hashes.a / COUNT_GROUP == first / COUNT_GROUP;
         n->more_hashes = cursor_next(&n->hashes))
        hashed[n->hashes.a % COUNT_GROUP] = true;
    for (unsigned i = 0; i < COUNT_GROUP; i++) {
        if (counted[i]) {
            info[i] = judge(n, first + i, counted[i], hashed[i], old, i);
            n->live++;
            n->end_slot = (uint32_t)first + i + 1;
        } else if (hashed[i] && !fsck_is_dead(n->f, first + i)) {
            drop_hash(n, first + i);
        }
    }
    n->changed +=
        put_counts(n->r, KEY_CHUNK_COUNTS, first / COUNT_GROUP, info, old_record, old_len);
    g_free(old);
}

/* Counts of groups before this one that no segment has. */
static void skip_counts(struct counting *n, uint64_t group)
{
    for (; n->more_counts && n->counts.a < group; n->more_counts = cursor_next(&n->counts)) {
        repair_did(n->r, "removed the counts of chunks %" PRIu64 " and following: there are none",
                   n->counts.a * COUNT_GROUP);
        repair_delete(n->r, KEY_CHUNK_COUNTS, n->counts.a);
    }
}

static void count_segment(struct counting *n, const struct fsck_segment *segment)
{
    n->changed = n->live = n->end_slot = 0;
    for (unsigned k = 0; k < segment->groups; k++) {
        uint64_t group = (uint64_t)segment->id << GROUP_SHIFT | k;
        const struct tally *t = &segment->tallies[k];
        const uint8_t *old = NULL;
        size_t old_len = 0;
        skip_counts(n, group);
        if (n->more_counts && n->counts.a == group) {
            old = n->counts.value;
            old_len = n->counts.value_len;
        }
        if (old || t->all || t->small || t->wide)
            count_group(n, (chunk_t)group * COUNT_GROUP, t, old, old_len);
        if (old)
            n->more_counts = cursor_next(&n->counts);
    }
}

/* ---- segments ---- */

void repair_put_segment(struct repair *r, uint64_t id, const struct fsck_segment_record *record)
{
    struct wbuf value = {0};
    wbuf_put_varint(&value, SEGMENT_FORMAT);
    wbuf_put_varint(&value, record->flags);
    wbuf_put_varint(&value, record->live);
    wbuf_put_varint(&value, record->cursor);
    if (record->flags & FSCK_SEGMENT_FLAG_HOME)
        wbuf_put_varint(&value, record->home_bytes);
    repair_put(r, KEY_SEGMENT, id, &value);
    wbuf_free(&value);
}

/* Of a segment whose kind is not known any more: it may have been any file's home, but
 * is none now. */
static const uint64_t flags_unknown =
    FSCK_SEGMENT_FLAG_UNOWNED | FSCK_SEGMENT_FLAG_HOME | FSCK_SEGMENT_FLAG_BROKEN;

static int write_segment(struct counting *n, const struct fsck_segment *s)
{
    struct metadb_value value;
    struct fsck_segment_record old = {.flags = flags_unknown};
    int error = fsck_get(n->f, KEY_SEGMENT, s->id, &value);
    if (error)
        return error;
    if (!s->undecodable)
        fsck_segment_decode(value.data, value.len, &old);
    metadb_value_free(&value);
    /* What lies behind the cursor is cut off at the next opening. */
    uint64_t end = s->undecodable ? max_u64(n->end_slot, s->file_slots) : n->end_slot;
    uint64_t slots = old.flags & FSCK_SEGMENT_FLAG_HOME ? SEGMENT_HOME_SLOTS : SEGMENT_SLOTS;
    struct fsck_segment_record now = {
        /* Chunks that lost their owner here are still to be punched. */
        .flags = old.flags | (n->changed ? FSCK_SEGMENT_FLAG_UNOWNED : 0),
        .live = n->live,
        .cursor = max_u64(old.cursor, min_u64(round_up_u64(end, SLOT_GROUP), slots)),
        .home_bytes = old.home_bytes,
    };
    bool same = !s->undecodable && now.live == old.live && now.cursor == old.cursor &&
                now.flags == old.flags;
    if (same && !n->changed)
        return 0;
    repair_did(n->r,
               "segment %08" PRIx32 ": counted again: %" PRIu64 " chunks have an owner, recorded "
               "were %" PRIu64 "; %" PRIu64 " records of its chunks were wrong",
               s->id, n->live, old.live, n->changed);
    if (!same)
        repair_put_segment(n->r, s->id, &now);
    return 0;
}

/* Segments that are mapped, have a file, but no record. */
static bool make_lost_segments(struct repair *r, struct fsck *f)
{
    GHashTableIter it;
    gpointer key;
    bool any = false;
    g_hash_table_iter_init(&it, f->lost_segments);
    while (g_hash_table_iter_next(&it, &key, NULL)) {
        uint32_t id = GPOINTER_TO_UINT(key);
        repair_did(r, "segment %08" PRIx32 " has no record, but a file: made one", id);
        struct fsck_segment_record record = {
            .flags = flags_unknown,
            .cursor = round_up_u64(fsck_segment_file_slots(f, id), SLOT_GROUP),
        };
        repair_put_segment(r, id, &record);
        any = true;
    }
    return any;
}

/* Record 0, the lowest number that was never used, and keys that are too large. */
static int write_next_segment(struct repair *r, struct fsck *f)
{
    struct cursor c;
    uint64_t highest = 0, recorded = 0;
    cursor_open(&c, f, KEY_SEGMENT);
    while (cursor_next(&c)) {
        if (c.a > UINT32_MAX) {
            repair_did(r, "removed the record of segment %" PRIx64 ", which cannot be", c.a);
            repair_delete(r, KEY_SEGMENT, c.a);
        } else if (c.a == 0) {
            struct rbuf b = rbuf_of(c.value, c.value_len);
            bool good = rbuf_get_varint(&b) == SEGMENT_FORMAT;
            uint64_t next = rbuf_get_varint(&b);
            if (good && !b.bad && rbuf_left(&b) == 0 && next <= UINT32_MAX)
                recorded = next;
        }
        if (c.a <= UINT32_MAX)
            highest = c.a;
    }
    int error = cursor_close(&c);
    if (error || recorded > highest || highest == 0)
        return error;
    struct wbuf record = {0};
    wbuf_put_varint(&record, SEGMENT_FORMAT);
    wbuf_put_varint(&record, min_u64(highest + 1, UINT32_MAX));
    repair_put(r, KEY_SEGMENT, 0, &record);
    wbuf_free(&record);
    repair_did(r, "the next segment is %08" PRIx64, highest + 1);
    return 0;
}

static int load_marks(struct counting *n)
{
    struct cursor c;
    cursor_open(&c, n->f, KEY_DAMAGED);
    while (cursor_next(&c))
        g_hash_table_add(n->marked, g_memdup2(&c.a, sizeof(c.a)));
    return cursor_close(&c);
}

static int count_chunks(struct repair *r, struct fsck *f)
{
    struct counting n = {
        .r = r,
        .f = f,
        .marked = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL),
    };
    int error = load_marks(&n);
    cursor_open(&n.counts, f, KEY_CHUNK_COUNTS);
    cursor_open(&n.hashes, f, KEY_CHUNK_HASH);
    n.more_counts = cursor_next(&n.counts);
    n.more_hashes = cursor_next(&n.hashes);
    for (guint i = 0; i < f->segments->len && !error; i++) {
        if (i >= f->window_end) {
            fsck_window_open(f, i);
            error = fsck_recount_chunks(f);
        }
        if (error)
            break;
        const struct fsck_segment *s = &g_array_index(f->segments, struct fsck_segment, i);
        count_segment(&n, s);
        error = write_segment(&n, s);
    }
    n.changed = 0;
    if (!error) {
        skip_counts(&n, UINT64_MAX);
        skip_hashes(&n, UINT64_MAX);
    }
    if (n.changed)
        repair_did(r, "removed %" PRIu64 " hashes of chunks that nobody owns", n.changed);
    int status = cursor_close(&n.counts);
    error = error ? error : status;
    status = cursor_close(&n.hashes);
    g_hash_table_destroy(n.marked);
    return error ? error : status;
}

int repair_counts(struct repair *r)
{
    int error = 0;
    bool again = true;
    while (again && !error) {
        struct fsck *f = repair_reader_new(r, "repairing counts");
        error = write_next_segment(r, f);
        if (!error)
            error = fsck_load_segments(f);
        if (!error)
            error = fsck_load_dead(f);
        if (!error)
            error = fsck_load_inodes(f);
        if (!error) {
            fsck_window_open(f, 0);
            error = fsck_scan_nodes(f);
        }
        again = !error && make_lost_segments(r, f);
        if (!error && !again)
            error = count_nodes(r, f);
        if (!error && !again)
            error = count_chunks(r, f);
        fsck_window_close(f);
        repair_reader_free(f);
    }
    return error;
}
