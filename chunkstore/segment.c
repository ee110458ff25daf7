// SPDX-License-Identifier: Apache-2.0
/*
 * segment.c - opening and closing the segments of a store, finding them by id,
 * and telling about them. segment_internal.h has the whole picture.
 */
#include "chunkstore/segment_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SEGMENTS_DIR "segments"

void segment_name(uint32_t id, char name[SEGMENT_NAME_BYTES])
{
    snprintf(name, SEGMENT_NAME_BYTES, "%08x", id);
}

/* ---- The table ---- */

static struct segment *table_get(const struct segments *s, uint64_t id)
{
    segment_slot *leaf = atomic_load(&s->leaves[id / SEGMENTS_PER_LEAF]);
    return leaf ? atomic_load(&leaf[id % SEGMENTS_PER_LEAF]) : NULL;
}

struct segment *segment_find(const struct segments *s, uint32_t id)
{
    struct segment *seg = table_get(s, id);
    return seg && atomic_load(&seg->state) != SEGMENT_GONE ? seg : NULL;
}

struct segment *segment_next(const struct segments *s, uint64_t *id)
{
    uint64_t highest = atomic_load(&s->highest_id);
    while (*id <= highest) {
        if (!atomic_load(&s->leaves[*id / SEGMENTS_PER_LEAF])) {
            *id = (*id / SEGMENTS_PER_LEAF + 1) * SEGMENTS_PER_LEAF;
            continue;
        }
        struct segment *seg = table_get(s, (*id)++);
        if (seg)
            return seg;
    }
    return NULL;
}

struct segment *segment_new(uint32_t id)
{
    struct segment *seg = aligned_alloc(CACHE_LINE, sizeof(*seg));
    g_assert(seg);
    memset(seg, 0, sizeof(*seg));
    seg->id = id;
    atomic_init(&seg->state, SEGMENT_LIVE);
    atomic_init(&seg->fd, -1);
    return seg;
}

void segment_insert(struct segments *s, struct segment *seg)
{
    segment_slot *leaf = atomic_load(&s->leaves[seg->id / SEGMENTS_PER_LEAF]);
    if (!leaf) {
        leaf = calloc(SEGMENTS_PER_LEAF, sizeof(*leaf));
        g_assert(leaf);
        atomic_store(&s->leaves[seg->id / SEGMENTS_PER_LEAF], leaf);
    }
    g_assert(atomic_load(&leaf[seg->id % SEGMENTS_PER_LEAF]) == NULL);
    atomic_store(&leaf[seg->id % SEGMENTS_PER_LEAF], seg);
    if (seg->id > atomic_load(&s->highest_id))
        atomic_store(&s->highest_id, seg->id);
}

static void table_free(struct segments *s)
{
    uint64_t id = 0;
    for (struct segment *seg; (seg = segment_next(s, &id));)
        free(seg);
    for (unsigned i = 0; i < SEGMENT_LEAVES; i++)
        free(atomic_load(&s->leaves[i]));
    free(s->leaves);
}

/* ---- Open and close ---- */

/* A new directory is synced by the first segments_sync; its own name now. */
static int open_directory(struct segments *s, const char *store, struct errmsg *err)
{
    if (!s->read_only) {
        if (mkdir(s->path, 0700) == 0) {
            int fd = open(store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            int error = fd < 0 || fsync(fd) < 0 ? -errno : 0;
            if (fd >= 0)
                close(fd);
            if (error)
                return errmsg_set(err, error, "cannot sync '%s': %s", store, g_strerror(-error));
        } else if (errno != EEXIST) {
            return errmsg_set(err, -errno, "cannot make '%s': %s", s->path, g_strerror(errno));
        }
    }
    s->dir_fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir_fd < 0)
        return errmsg_set(err, -errno, "cannot open '%s': %s", s->path, g_strerror(errno));
    return 0;
}

static unsigned open_files_limit(void)
{
    /* The usual limit of a process is 1024 descriptors; others want some. */
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur / 2 > OPEN_FILES_MAX)
        return OPEN_FILES_MAX;
    return MAX((unsigned)limit.rlim_cur / 2, 8);
}

/* The newest shared segment goes on being filled. */
static void choose_current(struct segments *s)
{
    struct segment *seg = NULL;
    uint64_t id = 0;
    for (struct segment *next; (next = segment_next(s, &id));)
        if (!(atomic_load(&next->flags) & SEGMENT_HOME))
            seg = next;
    struct stat st;
    char name[SEGMENT_NAME_BYTES];
    if (!seg || s->read_only || atomic_load(&seg->cursor) == SEGMENT_SLOTS)
        return;
    segment_name(seg->id, name);
    if (fstatat(s->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
        atomic_store(&s->current, seg);
}

int segments_open(const char *path, uint32_t chunk_bytes, uint64_t reserve_bytes, bool read_only,
                  struct metadb *db, struct segments **out, struct errmsg *err)
{
    return segments_open_known(path, chunk_bytes, reserve_bytes, read_only, db, NULL, 0, out, err);
}

int segments_open_known(const char *path, uint32_t chunk_bytes, uint64_t reserve_bytes,
                        bool read_only, struct metadb *db, const struct segment_known *known,
                        size_t known_count, struct segments **out, struct errmsg *err)
{
    g_assert(chunk_bytes >= CHUNK_BYTES_MIN && chunk_bytes <= CHUNK_BYTES_MAX);
    g_assert((chunk_bytes & (chunk_bytes - 1)) == 0);

    struct segments *s = aligned_alloc(CACHE_LINE, sizeof(*s));
    g_assert(s);
    memset(s, 0, sizeof(*s));
    s->path = g_build_filename(path, SEGMENTS_DIR, NULL);
    s->dir_fd = -1;
    s->chunk_bytes = chunk_bytes;
    s->reserve_bytes = reserve_bytes;
    s->read_only = read_only;
    s->db = db;
    s->open_files_max = open_files_limit();
    s->leaves = calloc(SEGMENT_LEAVES, sizeof(*s->leaves));
    g_assert(s->leaves);
    atomic_init(&s->next_id, 1);
    pthread_mutex_init(&s->alloc_lock, NULL);
    pthread_mutex_init(&s->space_lock, NULL);
    pthread_mutex_init(&s->fd_lock, NULL);
    pthread_mutex_init(&s->unsynced_lock, NULL);
    pthread_mutex_init(&s->changed_lock, NULL);
    pthread_mutex_init(&s->home_lock, NULL);
    s->open_list = g_ptr_array_new();
    s->unsynced_list = g_ptr_array_new();
    s->changed_list = g_ptr_array_new();
    segment_free_init(s);
    segment_sections_init(s);

    int error = open_directory(s, path, err);
    if (!error)
        error = segment_records_load(s, err);
    for (size_t i = 0; i < known_count && !error; i++)
        error = segment_record_know(s, &known[i], err);
    if (!error)
        error = segment_files_tidy(s, err);
    if (error) {
        segments_close(s);
        return error;
    }
    choose_current(s);

    /* What ran empty just before the end is deleted by the next flip. */
    uint64_t id = 0;
    for (struct segment *seg; !read_only && (seg = segment_next(s, &id));)
        if (segment_is_empty(s, seg))
            segment_mark_changed(s, seg);
    *out = s;
    return 0;
}

void segments_close(struct segments *s)
{
    if (!s)
        return;
    for (unsigned i = 0; i < s->open_list->len; i++) {
        struct segment *seg = g_ptr_array_index(s->open_list, i);
        g_assert(atomic_load(&seg->users) == 0);
        segment_view_free(seg);
        close(atomic_load(&seg->fd));
    }
    segment_sections_fini(s);
    segment_free_fini(s);
    g_ptr_array_unref(s->open_list);
    g_ptr_array_unref(s->unsynced_list);
    g_ptr_array_unref(s->changed_list);
    table_free(s);
    if (s->dir_fd >= 0)
        close(s->dir_fd);
    pthread_mutex_destroy(&s->alloc_lock);
    pthread_mutex_destroy(&s->space_lock);
    pthread_mutex_destroy(&s->fd_lock);
    pthread_mutex_destroy(&s->unsynced_lock);
    pthread_mutex_destroy(&s->changed_lock);
    pthread_mutex_destroy(&s->home_lock);
    g_free(s->path);
    free(s);
}

uint32_t segments_chunk_bytes(const struct segments *s)
{
    return s->chunk_bytes;
}

/* ---- Telling ---- */

/* By name: an fstat would have to open files that nobody uses. */
static int stat_file(struct segments *s, struct segment *seg, struct stat *st, bool *missing)
{
    char name[SEGMENT_NAME_BYTES];
    segment_name(seg->id, name);
    *missing = false;
    if (fstatat(s->dir_fd, name, st, AT_SYMLINK_NOFOLLOW) == 0)
        return 0;
    if (errno != ENOENT)
        return -errno;
    *missing = true;
    memset(st, 0, sizeof(*st));
    return 0;
}

int segments_stats(struct segments *s, struct segments_stats *out)
{
    *out = (struct segments_stats){0};
    uint64_t id = 0;
    for (struct segment *seg; (seg = segment_next(s, &id));) {
        struct stat st;
        bool missing;
        if (atomic_load(&seg->state) == SEGMENT_GONE)
            continue;
        int error = stat_file(s, seg, &st, &missing);
        if (error)
            return error;
        out->segment_count++;
        out->live_chunks += atomic_load(&seg->live);
        out->allocated_bytes += (uint64_t)st.st_blocks * 512;
    }
    struct statvfs fs;
    if (fstatvfs(s->dir_fd, &fs) < 0)
        return -errno;
    out->fs_total_bytes = (uint64_t)fs.f_blocks * fs.f_frsize;
    out->fs_free_bytes = (uint64_t)fs.f_bfree * fs.f_frsize;
    /* The reserve is not for data. */
    uint64_t avail = (uint64_t)fs.f_bavail * fs.f_frsize;
    out->fs_avail_bytes = avail > s->reserve_bytes ? avail - s->reserve_bytes : 0;
    return 0;
}

int segments_each(struct segments *s, int (*fn)(void *arg, const struct segment_info *info),
                  void *arg)
{
    uint64_t id = 0;
    for (struct segment *seg; (seg = segment_next(s, &id));) {
        struct stat st;
        bool missing;
        if (atomic_load(&seg->state) != SEGMENT_LIVE)
            continue;
        int error = stat_file(s, seg, &st, &missing);
        if (error)
            return error;
        struct segment_info info = {
            .id = seg->id,
            .live_chunks = atomic_load(&seg->live),
            .cursor_slots = atomic_load(&seg->cursor),
            .file_bytes = (uint64_t)st.st_size,
            .file_missing = missing,
        };
        error = fn(arg, &info);
        if (error)
            return error;
    }
    return 0;
}
