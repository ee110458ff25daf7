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
    HOME_FLAGS = FSCK_SEGMENT_FLAG_HOME | FSCK_SEGMENT_FLAG_FILLING | FSCK_SEGMENT_FLAG_BROKEN |
                 FSCK_SEGMENT_FLAG_PACKED,
    SEGMENT_FLAGS = FSCK_SEGMENT_FLAG_UNOWNED | HOME_FLAGS,
};

/*
 * The fields of docs/FORMAT.md, "Segments". The daemon refuses a record whose
 * numbers contradict each other; here they are wanted, to say what is wrong.
 */
bool fsck_segment_decode(const uint8_t *record, size_t len, struct fsck_segment_record *out)
{
    struct rbuf r = rbuf_of(record, len);
    uint64_t format = rbuf_get_varint(&r);
    out->flags = rbuf_get_varint(&r);
    out->live = rbuf_get_varint(&r);
    out->cursor = rbuf_get_varint(&r);
    bool home = out->flags & FSCK_SEGMENT_FLAG_HOME;
    uint64_t slots = home ? SEGMENT_HOME_SLOTS : SEGMENT_SLOTS;
    out->home_bytes = home ? rbuf_get_varint(&r) : 0;
    return !r.bad && rbuf_left(&r) == 0 && format == SEGMENT_RECORD_FORMAT &&
           (out->flags & ~(uint64_t)SEGMENT_FLAGS) == 0 &&
           (home || (out->flags & HOME_FLAGS) == 0) && out->live <= slots && out->cursor <= slots &&
           out->cursor % SLOT_GROUP == 0;
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
        segment->file_slots = segment->home || segment->undecodable
                                  ? div_round_up_u64(size, chunk_bytes)
                                  : size / chunk_bytes;
    }
    g_free(name);
    return error;
}

uint64_t fsck_segment_file_slots(struct fsck *f, uint32_t id)
{
    struct fsck_segment segment = {.id = id, .undecodable = true};
    struct metadb_value value;
    if (fsck_get(f, KEY_SEGMENT, id, &value) == 0) {
        struct fsck_segment_record record;
        segment.undecodable = !fsck_segment_decode(value.data, value.len, &record);
        segment.home = !segment.undecodable && record.flags & FSCK_SEGMENT_FLAG_HOME;
        metadb_value_free(&value);
    }
    return look_at_file(f, &segment) ? 0 : min_u64(segment.file_slots, SEGMENT_HOME_SLOTS);
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
        struct fsck_segment_record record;
        if (c.a == 0) {
            if (!next_id_valid(c.value, c.value_len))
                fsck_undecodable(f, &c);
            continue;
        }
        bool good = fsck_segment_decode(c.value, c.value_len, &record);
        if (!good || c.a > UINT32_MAX)
            fsck_undecodable(f, &c);
        if (c.a > UINT32_MAX)
            continue;
        struct fsck_segment segment = {
            .id = (uint32_t)c.a,
            .undecodable = !good,
            .live = good ? (uint32_t)record.live : 0,
            .cursor = good ? (uint32_t)record.cursor : SEGMENT_SLOTS,
            .home = good && record.flags & FSCK_SEGMENT_FLAG_HOME,
            .home_filling = good && record.flags & FSCK_SEGMENT_FLAG_FILLING,
            .home_broken = good && record.flags & FSCK_SEGMENT_FLAG_BROKEN,
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
