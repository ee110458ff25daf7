// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_segment.c - segment records, and the files that they speak of.
 */
#include "cowfs/fsck_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SEGMENT_RECORD_FORMAT = 1,
    FLAG_HOME = 1 << 1,
    FLAG_FILLING = 1 << 2,
    FLAG_BROKEN = 1 << 3,
    FLAG_PACKED = 1 << 4,
    HOME_FLAGS = FLAG_HOME | FLAG_FILLING | FLAG_BROKEN | FLAG_PACKED,
    SEGMENT_FLAGS = 1 | HOME_FLAGS,
};

/*
 * The fields of docs/FORMAT.md, "Segments". The daemon refuses a record whose
 * numbers contradict each other; here they are wanted, to say what is wrong.
 */
static bool decode(const uint8_t *record, size_t len, uint64_t *flags_out, uint64_t *live,
                   uint64_t *cursor)
{
    struct rbuf r = rbuf_of(record, len);
    uint64_t format = rbuf_get_varint(&r);
    uint64_t flags = rbuf_get_varint(&r);
    *live = rbuf_get_varint(&r);
    *cursor = rbuf_get_varint(&r);
    bool home = flags & FLAG_HOME;
    uint64_t slots = home ? SEGMENT_HOME_SLOTS : SEGMENT_SLOTS;
    if (home)
        rbuf_get_varint(&r); /* the size of its file: not to be told from others */
    *flags_out = flags;
    return !r.bad && rbuf_left(&r) == 0 && format == SEGMENT_RECORD_FORMAT &&
           (flags & ~(uint64_t)SEGMENT_FLAGS) == 0 && (home || (flags & HOME_FLAGS) == 0) &&
           *live <= slots && *cursor <= slots && *cursor % SLOT_GROUP == 0;
}

/* Record 0 is no segment: the lowest id that was never given to one. */
static bool next_id_valid(const uint8_t *record, size_t len)
{
    struct rbuf r = rbuf_of(record, len);
    uint64_t format = rbuf_get_varint(&r);
    uint64_t id = rbuf_get_varint(&r);
    return !r.bad && rbuf_left(&r) == 0 && format == SEGMENT_RECORD_FORMAT && id > 0 &&
           id <= UINT32_MAX;
}

static char *file_name(const struct fsck *f, uint32_t id)
{
    return g_strdup_printf("%s/segments/%08" PRIx32, f->path, id);
}

/* 0 also if there is no file. */
static int look_at_file(struct fsck *f, struct fsck_segment *segment)
{
    char *name = file_name(f, segment->id);
    struct stat st;
    int error = 0;
    if (lstat(name, &st) < 0) {
        segment->file_missing = errno == ENOENT;
        error = segment->file_missing ? 0 : -errno;
    } else if (!S_ISREG(st.st_mode)) {
        segment->file_missing = true;
    } else {
        uint64_t size = (uint64_t)st.st_size, chunk_bytes = f->sb.chunk_bytes;
        segment->file_slots =
            segment->home ? div_round_up_u64(size, chunk_bytes) : size / chunk_bytes;
    }
    g_free(name);
    return error;
}

bool fsck_has_segment_files(struct fsck *f)
{
    char *path = g_build_filename(f->path, "segments", NULL);
    GDir *dir = g_dir_open(path, 0, NULL);
    bool has = dir && g_dir_read_name(dir);
    if (dir)
        g_dir_close(dir);
    g_free(path);
    return has;
}

int fsck_open_segment(struct fsck *f, uint32_t id)
{
    char *name = file_name(f, id);
    int fd = open(name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    int error = fd < 0 ? -errno : fd;
    if (fd >= 0)
        posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    g_free(name);
    return error;
}

/* All that it can have; if the record does not tell what kind it is, all that its file
 * has, at least. */
static unsigned count_groups(const struct fsck_segment *segment)
{
    uint64_t slots = segment->home ? segment->cursor : SEGMENT_SLOTS;
    if (segment->undecodable)
        slots = max_u64(slots, min_u64(segment->file_slots, SEGMENT_HOME_SLOTS));
    return (unsigned)div_round_up_u64(slots, COUNT_GROUP);
}

int fsck_load_segments(struct fsck *f)
{
    struct cursor c;
    int error = 0;
    fsck_phase(f, "segments", 0);
    cursor_open(&c, f, KEY_SEGMENT);
    while (!error && cursor_next(&c)) {
        uint64_t flags, live, cursor;
        if (c.a == 0) {
            if (!next_id_valid(c.value, c.value_len))
                fsck_undecodable(f, &c);
            continue;
        }
        bool good = decode(c.value, c.value_len, &flags, &live, &cursor);
        if (!good || c.a > UINT32_MAX)
            fsck_undecodable(f, &c);
        if (c.a > UINT32_MAX)
            continue;
        struct fsck_segment segment = {
            .id = (uint32_t)c.a,
            .undecodable = !good,
            .live = good ? (uint32_t)live : 0,
            .cursor = good ? (uint32_t)cursor : SEGMENT_SLOTS,
            .home = good && flags & FLAG_HOME,
            .home_filling = good && flags & FLAG_FILLING,
            .home_broken = good && flags & FLAG_BROKEN,
        };
        error = look_at_file(f, &segment);
        segment.groups = count_groups(&segment);
        g_array_append_val(f->segments, segment);
    }
    f->report->segments = f->segments->len;
    int status = cursor_close(&c);
    return error ? error : status;
}

struct fsck_segment *fsck_find_segment(struct fsck *f, uint32_t id)
{
    struct fsck_segment *segments = (struct fsck_segment *)(void *)f->segments->data;
    size_t from = 0, to = f->segments->len;
    /* Chunks come in runs: mostly it is the same as the last time. */
    if (f->last_segment < to && segments[f->last_segment].id == id)
        return &segments[f->last_segment];
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (segments[middle].id == id) {
            f->last_segment = middle;
            return &segments[middle];
        }
        if (segments[middle].id < id)
            from = middle + 1;
        else
            to = middle;
    }
    return NULL;
}

void fsck_check_segments(struct fsck *f)
{
    for (guint i = 0; i < f->segments->len; i++) {
        const struct fsck_segment *s = &g_array_index(f->segments, struct fsck_segment, i);
        if (s->undecodable || s->live_unknown || s->live == s->live_recorded ||
            s->live == s->live_counted)
            continue;
        fsck_found(f, FSCK_SEGMENT_LIVE, 1,
                   "segment %08" PRIx32 " has %" PRIu32
                   " chunks with an owner, but records %" PRIu32,
                   s->id, s->live_recorded, s->live);
    }
}
