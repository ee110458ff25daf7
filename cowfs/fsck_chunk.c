// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_chunk.c - owners of chunks: counted from the leaves, compared with the
 * recorded counts.
 *
 * Counters of a large store do not all fit into memory. So they are made for a
 * window of neighbouring segments at a time; the first window is filled by the
 * first reading of the nodes, each further one by another. The records of
 * counts and of content hashes are walked once, beside the windows.
 */
#include "cowfs/fsck_internal.h"

#include <errno.h>
#include <inttypes.h>

#define WINDOW_BYTES_DEFAULT (UINT64_C(1) << 30)

enum {
    GROUP_SHIFT = 23, /* group number of a chunk -> segment id: 32 - 9 bits */
    GROUP_MASK = (1 << GROUP_SHIFT) - 1,
    /* A group whose counters all take a byte. */
    GROUP_TALLY_BYTES = sizeof(struct tally) + COUNT_GROUP + 2 * sizeof(void *),
};

static struct fsck_segment *segment_at(struct fsck *f, size_t index)
{
    return &g_array_index(f->segments, struct fsck_segment, index);
}

/* ---- windows ---- */

static void leave_window(struct fsck *f)
{
    for (size_t i = f->window_first; i < f->window_end; i++) {
        struct fsck_segment *segment = segment_at(f, i);
        for (unsigned k = 0; k < segment->groups; k++)
            tally_clear(&segment->tallies[k]);
        g_clear_pointer(&segment->tallies, g_free);
    }
}

void fsck_window_open(struct fsck *f, size_t first)
{
    uint64_t bytes = f->options->memory_bytes ? f->options->memory_bytes : WINDOW_BYTES_DEFAULT;
    uint64_t groups = 0;
    leave_window(f);
    f->window_first = f->window_end = first;
    while (f->window_end < f->segments->len) {
        struct fsck_segment *segment = segment_at(f, f->window_end);
        groups += segment->groups;
        if (f->window_end > first && groups > bytes / GROUP_TALLY_BYTES)
            break;
        segment->tallies = g_new0(struct tally, segment->groups);
        f->window_end++;
    }
}

void fsck_window_close(struct fsck *f)
{
    leave_window(f);
    f->window_first = f->window_end = 0;
}

/* ---- counting ---- */

static void note_lost(struct fsck *f, uint32_t id, unsigned n)
{
    gpointer key = GUINT_TO_POINTER(id);
    gsize seen = GPOINTER_TO_SIZE(g_hash_table_lookup(f->lost_segments, key));
    g_hash_table_insert(f->lost_segments, key, GSIZE_TO_POINTER(seen + n));
}

/* Chunks of one group. */
static void count_part(struct fsck *f, chunk_t first, unsigned n, uint64_t node)
{
    const struct fsck_segment *segment = fsck_find_segment(f, (uint32_t)(first >> 32));
    uint32_t slot = (uint32_t)first;
    if (!segment) {
        if (f->window_first == 0)
            note_lost(f, (uint32_t)(first >> 32), n);
    } else if (!segment->tallies) {
        return;
    } else if (slot / COUNT_GROUP >= segment->groups) {
        fsck_found(f, FSCK_CHUNK_BEYOND_CURSOR, n,
                   "node %" PRIu64 " maps slot %" PRIu32 " of segment %08" PRIx32
                   ", which it does not have",
                   node, slot, segment->id);
    } else {
        tally_add(&segment->tallies[slot / COUNT_GROUP], slot % COUNT_GROUP, n);
    }
}

void fsck_count_chunks(struct fsck *f, chunk_t first, unsigned n, uint64_t node)
{
    while (n > 0) {
        unsigned room = COUNT_GROUP - first % COUNT_GROUP;
        unsigned part = n < room ? n : room;
        count_part(f, first, part, node);
        first += part;
        n -= part;
    }
}

/* ---- comparing ---- */

enum verdict {
    COUNT_LOW = 1 << 0,
    COUNT_HIGH = 1 << 1,
    BAD_MERGES = 1 << 2,
    BEYOND_CURSOR = 1 << 3,
    BEYOND_FILE = 1 << 4,
};

/* What is wrong with a chunk, as bits of enum verdict. */
static unsigned judge(const struct fsck *f, const struct fsck_segment *segment, uint32_t slot,
                      uint32_t counted, uint32_t recorded, uint8_t merges)
{
    unsigned verdict = 0;
    if (recorded < counted)
        verdict |= COUNT_LOW;
    if (recorded > counted && !f->nodes_incomplete)
        verdict |= COUNT_HIGH;
    if (merges > 0 && merges >= recorded)
        verdict |= BAD_MERGES;
    if ((recorded || counted) && !segment->undecodable && slot >= segment->cursor)
        verdict |= BEYOND_CURSOR;
    else if (counted && !segment->file_missing && slot >= segment->file_slots)
        verdict |= BEYOND_FILE;
    return verdict;
}

/* Names the chunks of a run. */
static void tell(struct fsck *f, const struct fsck_segment *segment, uint32_t slot, unsigned n,
                 unsigned verdict, uint32_t counted, uint32_t recorded)
{
    char where[80];
    if (n == 1)
        g_snprintf(where, sizeof(where), "segment %08" PRIx32 ", slot %" PRIu32, segment->id, slot);
    else
        g_snprintf(where, sizeof(where), "segment %08" PRIx32 ", slots %" PRIu32 "-%" PRIu32,
                   segment->id, slot, slot + n - 1);
    if (verdict & COUNT_LOW)
        fsck_found(f, FSCK_CHUNK_COUNT_LOW, n, "%s: %" PRIu32 " owners, but recorded are %" PRIu32,
                   where, counted, recorded);
    if (verdict & COUNT_HIGH)
        fsck_found(f, FSCK_CHUNK_COUNT_HIGH, n, "%s: %" PRIu32 " owners, but recorded are %" PRIu32,
                   where, counted, recorded);
    if (verdict & BAD_MERGES)
        fsck_found(f, FSCK_CHUNK_MERGES, n,
                   "%s: more owners by deduplication than owners (%" PRIu32 ")", where, recorded);
    if (verdict & BEYOND_CURSOR)
        fsck_found(f, FSCK_CHUNK_BEYOND_CURSOR, n,
                   "%s: in use, but only slots below %" PRIu32 " were handed out", where,
                   segment->cursor);
    if (verdict & BEYOND_FILE)
        fsck_found(f, FSCK_SEGMENT_FILE_SHORT, n,
                   "%s: the file has whole chunks below slot %" PRIu64 " only", where,
                   segment->file_slots);
}

/* Returns how many owners came by deduplication. */
static unsigned add_up(struct fsck *f, struct fsck_segment *segment,
                       const uint32_t counted[COUNT_GROUP], const struct counts_group *recorded)
{
    unsigned live_counted = 0, live_recorded = 0, sealed = 0, merges = 0;
    for (unsigned i = 0; i < COUNT_GROUP; i++) {
        live_counted += counted[i] > 0;
        live_recorded += recorded->count[i] > 0;
        sealed += recorded->sealed[i];
        merges += recorded->merges[i];
    }
    segment->live_counted += live_counted;
    segment->live_recorded += live_recorded;
    f->chunks_counted += live_counted;
    f->merges += merges;
    f->report->chunks += live_recorded;
    f->report->sealed_chunks += sealed;
    if (live_counted && segment->file_missing && !segment->missing_told) {
        segment->missing_told = true;
        fsck_found(f, FSCK_SEGMENT_FILE_MISSING, 1, "the file of segment %08" PRIx32 " is missing",
                   segment->id);
    }
    return merges;
}

/* `first` is the first slot of the group. */
static void compare_group(struct fsck *f, struct fsck_segment *segment, uint32_t first,
                          const struct counts_group *recorded)
{
    uint32_t counted[COUNT_GROUP];
    unsigned run = 0, run_verdict = 0;
    tally_expand(&segment->tallies[first / COUNT_GROUP], counted);
    unsigned merges = add_up(f, segment, counted, recorded);
    /* Nearly all groups end here. */
    if (merges == 0 && memcmp(counted, recorded->count, sizeof(counted)) == 0 &&
        first + COUNT_GROUP <= min_u64(segment->cursor, segment->file_slots))
        return;
    for (unsigned i = 0; i < COUNT_GROUP; i++) {
        unsigned verdict =
            judge(f, segment, first + i, counted[i], recorded->count[i], recorded->merges[i]);
        bool same = i > 0 && verdict == run_verdict && counted[i] == counted[run] &&
                    recorded->count[i] == recorded->count[run];
        if (same)
            continue;
        if (run_verdict)
            tell(f, segment, first + run, i - run, run_verdict, counted[run], recorded->count[run]);
        run = i;
        run_verdict = verdict;
    }
    if (run_verdict)
        tell(f, segment, first + run, COUNT_GROUP - run, run_verdict, counted[run],
             recorded->count[run]);
}

/* Where the comparison stands: the next group to be looked at. */
struct walk {
    struct fsck *f;
    struct hash_walk *hashes;
    size_t segment; /* index */
    unsigned group; /* in the segment */
};

/* Brings the segment into the window. */
static int enter(struct walk *w, size_t segment)
{
    struct fsck *f = w->f;
    while (segment >= f->window_end) {
        fsck_window_open(f, f->window_end);
        int error = fsck_recount_chunks(f);
        if (error)
            return error;
        fsck_phase(f, "counts of chunks", 0);
    }
    return 0;
}

/* Compares all groups before (segment, group), for which there is no record. */
static int advance(struct walk *w, size_t segment, unsigned group)
{
    static const struct counts_group zero;
    struct fsck *f = w->f;
    while (w->segment < segment || (w->segment == segment && w->group < group)) {
        if (w->group >= segment_at(f, w->segment)->groups) {
            w->segment++;
            w->group = 0;
            continue;
        }
        int error = enter(w, w->segment);
        if (error)
            return error;
        struct fsck_segment *at = segment_at(f, w->segment);
        const struct tally *t = &at->tallies[w->group];
        if (t->all || t->small || t->wide)
            compare_group(f, at, w->group * COUNT_GROUP, &zero);
        w->group++;
    }
    return 0;
}

/* Counts of a segment that has no record, or of slots that no segment has. */
static void take_stray(struct fsck *f, uint64_t group, const struct fsck_segment *segment,
                       const struct counts_group *recorded)
{
    unsigned n = 0;
    uint64_t id = group >> GROUP_SHIFT;
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        n += recorded->count[i] > 0;
    if (!n)
        return;
    f->counts_unknown = true;
    if (segment)
        fsck_found(f, FSCK_CHUNK_BEYOND_CURSOR, n,
                   "segment %08" PRIx64 ": owners of %u chunks in slots that it does not have", id,
                   n);
    else if (id > UINT32_MAX ||
             !g_hash_table_contains(f->lost_segments, GUINT_TO_POINTER((guint)id)))
        fsck_found(f, FSCK_SEGMENT_STRAY_COUNTS, n,
                   "owners of %u chunks in segment %08" PRIx64 ", which has no record", n, id);
}

static int take_counts(struct walk *w, const struct cursor *c, struct counts_group *recorded)
{
    struct fsck *f = w->f;
    uint64_t id = c->a >> GROUP_SHIFT;
    uint64_t group = c->a & GROUP_MASK;
    struct fsck_segment *segment = id <= UINT32_MAX ? fsck_find_segment(f, (uint32_t)id) : NULL;
    int error = counts_group_decode(recorded, c->value, c->value_len);
    if (error)
        fsck_undecodable(f, c);
    if (!segment || group >= segment->groups) {
        if (!error)
            take_stray(f, c->a, segment, recorded);
        return hash_walk_group(w->hashes, NULL, c->a, NULL);
    }
    size_t index = (size_t)(segment - segment_at(f, 0));
    int status = advance(w, index, (unsigned)group);
    if (!status)
        status = enter(w, index);
    if (status)
        return status;
    w->group = (unsigned)group + 1;
    if (error) {
        segment->live_unknown = true;
        f->counts_unknown = true;
        return hash_walk_group(w->hashes, NULL, c->a, NULL);
    }
    compare_group(f, segment, (uint32_t)group * COUNT_GROUP, recorded);
    return hash_walk_group(w->hashes, segment, c->a, recorded);
}

static int compare_ids(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void tell_lost(struct fsck *f)
{
    GArray *ids = g_array_new(FALSE, FALSE, sizeof(uint32_t));
    GHashTableIter it;
    gpointer key;
    g_hash_table_iter_init(&it, f->lost_segments);
    while (g_hash_table_iter_next(&it, &key, NULL)) {
        uint32_t id = GPOINTER_TO_UINT(key);
        g_array_append_val(ids, id);
    }
    g_array_sort(ids, compare_ids);
    f->counts_unknown |= ids->len > 0;
    for (guint i = 0; i < ids->len; i++) {
        uint32_t id = g_array_index(ids, uint32_t, i);
        gsize n = GPOINTER_TO_SIZE(g_hash_table_lookup(f->lost_segments, GUINT_TO_POINTER(id)));
        fsck_found(f, FSCK_SEGMENT_MISSING, 1,
                   "segment %08" PRIx32 " has no record, but %zu chunks are mapped in it", id, n);
    }
    g_array_free(ids, TRUE);
}

int fsck_check_chunks(struct fsck *f)
{
    struct cursor c;
    struct counts_group *recorded = g_new0(struct counts_group, 1);
    struct walk w = {.f = f, .hashes = hash_walk_new(f)};
    int error = 0;
    tell_lost(f);
    fsck_phase(f, "counts of chunks", 0);
    cursor_open(&c, f, KEY_CHUNK_COUNTS);
    while (!error && cursor_next(&c))
        error = take_counts(&w, &c, recorded);
    int status = cursor_close(&c);
    error = error ? error : status;
    if (!error)
        error = advance(&w, f->segments->len, 0);
    status = hash_walk_finish(w.hashes, error);
    g_free(recorded);
    return error ? error : status;
}
