// SPDX-License-Identifier: Apache-2.0
/*
 * segment_io.c - bytes in and out of segment files, and their fdatasync.
 */
#include "chunkstore/segment_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ZEROS_BYTES = 64 * 1024 };

/* A byte range of one segment file. */
struct range {
    struct segment *seg;
    int fd;
    off_t offset;
};

/* Chunk numbers come from the block map, which comes from a disk: one that
 * leads nowhere is an I/O error and no reason to die. */
static int range_get(struct segments *s, chunk_t first, uint64_t skip_bytes, uint64_t bytes,
                     struct range *out)
{
    uint64_t offset = (uint64_t)chunk_slot(first) * s->chunk_bytes;

    out->seg = segment_find(s, chunk_segment(first));
    if (!out->seg)
        return -EIO;
    uint64_t segment_bytes = segment_slots(out->seg) * s->chunk_bytes;
    if (offset >= segment_bytes || skip_bytes > segment_bytes - offset ||
        bytes > segment_bytes - offset - skip_bytes)
        return -EIO;
    int fd = segment_fd_get(s, out->seg);
    if (fd < 0)
        return fd;
    out->fd = fd;
    out->offset = (off_t)(offset + skip_bytes);
    return 0;
}

static void range_put(struct range *r)
{
    segment_fd_put(r->seg);
}

/* The file of a home segment may end within a chunk (segments_home_pin): zeros
 * from there to the end of the chunk, but not further. */
static bool ends_in_chunk(struct segments *s, const struct range *r, size_t bytes)
{
    struct stat st;
    return atomic_load(&r->seg->flags) & SEGMENT_HOME && fstat(r->fd, &st) == 0 &&
           (uint64_t)r->offset + bytes <= round_up_u64((uint64_t)st.st_size, s->chunk_bytes);
}

int segments_read(struct segments *s, chunk_t first, uint64_t skip_bytes, void *buffer,
                  size_t bytes)
{
    struct range r;
    int error = range_get(s, first, skip_bytes, bytes, &r);
    if (error)
        return error;
    uint8_t *p = buffer;
    while (bytes > 0) {
        ssize_t n = pread(r.fd, p, bytes, r.offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0 && ends_in_chunk(s, &r, bytes)) {
            memset(p, 0, bytes);
            break;
        }
        if (n <= 0) {
            error = n < 0 ? -errno : -EIO;
            break;
        }
        p += n;
        bytes -= (size_t)n;
        r.offset += n;
    }
    range_put(&r);
    return error;
}

static int write_all(const struct range *r, const uint8_t *p, size_t bytes)
{
    off_t offset = r->offset;
    while (bytes > 0) {
        ssize_t n = pwrite(r->fd, p, bytes, offset);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (n == 0)
            return -EIO; /* not seen on any regular file; but never spin */
        p += n;
        bytes -= (size_t)n;
        offset += n;
    }
    return 0;
}

static int write_range(struct segments *s, chunk_t first, uint64_t skip_bytes, const void *buffer,
                       size_t bytes, bool over)
{
    if (s->read_only)
        return -EROFS;
    struct range r;
    int error = range_get(s, first, skip_bytes, bytes, &r);
    if (error)
        return error;
    if (!over || !segment_view_write(s, r.seg, r.fd, (uint64_t)r.offset, buffer, bytes))
        error = write_all(&r, buffer, bytes);
    /* After an error, too: some of it may have been written. */
    segment_mark_unsynced(s, r.seg);
    range_put(&r);
    segments_bound_views(s);
    return error;
}

int segments_write(struct segments *s, chunk_t first, uint64_t skip_bytes, const void *buffer,
                   size_t bytes)
{
    return write_range(s, first, skip_bytes, buffer, bytes, false);
}

int segments_overwrite(struct segments *s, chunk_t first, uint64_t skip_bytes, const void *buffer,
                       size_t bytes)
{
    return write_range(s, first, skip_bytes, buffer, bytes, true);
}

int segments_reserve(struct segments *s, chunk_t first, uint64_t count)
{
    if (s->read_only)
        return -EROFS;
    if (count == 0)
        return 0;
    if (count > SEGMENT_HOME_SLOTS)
        return -EIO;
    uint64_t bytes = count * s->chunk_bytes;
    struct range r;
    int error = range_get(s, first, 0, bytes, &r);
    if (error)
        return error;
    do {
        error = fallocate(r.fd, 0, r.offset, (off_t)bytes) < 0 ? -errno : 0;
    } while (error == -EINTR);
    if (error == -EOPNOTSUPP) {
        uint8_t *zeros = g_malloc0(ZEROS_BYTES);
        error = 0;
        while (bytes > 0 && !error) {
            size_t n = MIN(bytes, ZEROS_BYTES);
            error = write_all(&r, zeros, n);
            r.offset += (off_t)n;
            bytes -= n;
        }
        g_free(zeros);
    }
    segment_mark_unsynced(s, r.seg);
    range_put(&r);
    return error;
}

int segments_locate(struct segments *s, chunk_t chunk, int *fd, uint64_t *offset_bytes)
{
    struct range r;
    int error = range_get(s, chunk, 0, s->chunk_bytes, &r);
    if (error)
        return error;
    /* While we are a user, so that a closer either sees it or has not come
     * to this descriptor yet. */
    atomic_store(&r.seg->pinned, true);
    *fd = r.fd;
    *offset_bytes = (uint64_t)r.offset;
    range_put(&r);
    return 0;
}

/*
 * An exchange, not a look first: it must not be reordered before the write.
 * Then either segments_sync's exchange comes later and its fdatasync sees the
 * bytes, or it came earlier and we are the ones who enter the list again.
 */
void segment_mark_unsynced(struct segments *s, struct segment *seg)
{
    if (atomic_exchange(&seg->unsynced, true))
        return;
    pthread_mutex_lock(&s->unsynced_lock);
    g_ptr_array_add(s->unsynced_list, seg);
    pthread_mutex_unlock(&s->unsynced_lock);
}

/* The segment has been taken off unsynced_list. */
static int sync_segment(struct segments *s, struct segment *seg)
{
    if (atomic_load(&seg->state) == SEGMENT_GONE) {
        atomic_store(&seg->unsynced, false);
        return 0;
    }
    int fd = segment_fd_get(s, seg);
    /* Cleared while we are a user (no closer may come in between), and before
     * the fdatasync, so that a write during it counts for the next one. */
    atomic_exchange(&seg->unsynced, false);
    int error = fd < 0 ? fd : 0;
    while (!error && fdatasync(fd) < 0) {
        if (errno != EINTR)
            error = -errno;
    }
    if (error && atomic_load(&seg->state) == SEGMENT_GONE)
        error = 0; /* unlinked under our hands: nobody owns what was in it */
    if (error)
        segment_mark_unsynced(s, seg);
    if (fd >= 0)
        segment_fd_put(seg);
    return error;
}

void segments_mark_all_unsynced(struct segments *s)
{
    uint64_t id = 0;
    for (struct segment *seg; (seg = segment_next(s, &id));)
        if (atomic_load(&seg->state) == SEGMENT_LIVE && atomic_load(&seg->live) > 0 &&
            !atomic_load(&seg->warned)) /* its file is missing */
            segment_mark_unsynced(s, seg);
}

int segments_sync(struct segments *s)
{
    pthread_mutex_lock(&s->unsynced_lock);
    GPtrArray *list = s->unsynced_list;
    s->unsynced_list = g_ptr_array_new();
    pthread_mutex_unlock(&s->unsynced_lock);

    int first_error = 0;
    for (unsigned i = 0; i < list->len; i++) {
        struct segment *seg = g_ptr_array_index(list, i);
        int error = sync_segment(s, seg);
        if (error) {
            g_warning("cannot sync segment %08x in '%s': %s", seg->id, s->path, g_strerror(-error));
            first_error = error;
            break; /* nothing will be committed after this; it has to be known at once */
        }
    }
    g_ptr_array_unref(list);
    segment_fd_trim(s);

    /* The names of new segments, before a commit refers to them. */
    if (atomic_exchange(&s->directory_unsynced, false) && fsync(s->dir_fd) < 0) {
        int error = -errno;
        atomic_store(&s->directory_unsynced, true);
        g_warning("cannot sync the directory '%s': %s", s->path, g_strerror(-error));
        if (!first_error)
            first_error = error;
    }
    return first_error;
}
