// SPDX-License-Identifier: Apache-2.0
/*
 * segment_home.c - segments whose slot i is chunk i of a file.
 *
 * Slots are never used twice here, too, although nobody hands them out: while a
 * home segment is filled, only its filler gives chunks to slots, and a filler
 * that loses a chunk of it leaves it for good (home.h). So a slot that has no
 * owner, in a segment that is being filled, never had one, and reads as zeros.
 * What a crash leaves in such slots is punched by segments_reclaim.
 */
#include "chunkstore/segment_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static struct segment *find_home(struct segments *s, uint32_t id)
{
    struct segment *seg = segment_find(s, id);
    return seg && atomic_load(&seg->flags) & SEGMENT_HOME ? seg : NULL;
}

/* The filler's and the holder's are there: that is what keeps them. */
static struct segment *get_home(struct segments *s, uint32_t id)
{
    struct segment *seg = find_home(s, id);
    g_assert(seg && atomic_load(&seg->state) == SEGMENT_LIVE);
    return seg;
}

/* Asked for once: what a home segment is good for relies on it. */
static bool can_punch(struct segments *s, struct segment *seg)
{
    if (atomic_load(&s->punch_unsupported))
        return false;
    if (atomic_load(&s->punch_supported))
        return true;
    int fd = segment_fd_get(s, seg);
    if (fd < 0)
        return false;
    bool can =
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)s->chunk_bytes) == 0 ||
        errno != EOPNOTSUPP;
    segment_fd_put(seg);
    atomic_store(can ? &s->punch_supported : &s->punch_unsupported, true);
    return can;
}

int segments_home_new(struct segments *s, uint32_t *id)
{
    if (s->read_only)
        return -EROFS;
    if (atomic_load(&s->punch_unsupported))
        return -EOPNOTSUPP;
    int error = segments_check_space(s, 0);
    if (error)
        return error;
    struct segment *seg;
    pthread_mutex_lock(&s->alloc_lock);
    error = segment_make(s, SEGMENT_HOME, &seg);
    pthread_mutex_unlock(&s->alloc_lock);
    if (error)
        return error;
    *id = seg->id;
    if (!can_punch(s, seg)) {
        segments_home_drop(s, *id);
        return -EOPNOTSUPP;
    }
    return 0;
}

void segments_home_drop(struct segments *s, uint32_t id)
{
    struct segment *seg = get_home(s, id);
    atomic_store(&seg->unowned, true);
    atomic_fetch_sub(&seg->held_groups, 1);
    segment_mark_changed(s, seg); /* is empty, but for an error of its maker */
}

void segments_home_begin(struct segments *s, uint32_t id)
{
    struct segment *seg = get_home(s, id);
    atomic_fetch_or(&seg->flags, SEGMENT_FILLING);
    atomic_fetch_sub(&seg->held_groups, 1);
    segment_mark_changed(s, seg);
}

int segments_home_reach(struct segments *s, uint32_t id, uint64_t end)
{
    struct segment *seg = get_home(s, id);
    if (end > SEGMENT_HOME_SLOTS)
        return -EFBIG;
    unsigned cursor = atomic_load(&seg->cursor);
    if (end <= cursor)
        return 0;
    /* One filler: nobody else moves it. */
    atomic_store(&seg->cursor, (unsigned)round_up_u64(end, SLOT_GROUP));
    segment_mark_changed(s, seg);
    return 0;
}

void segments_home_freeze(struct segments *s, uint32_t id, uint64_t size_bytes)
{
    struct segment *seg = get_home(s, id);
    g_assert(atomic_load(&seg->flags) & SEGMENT_FILLING);
    atomic_store(&seg->home_bytes, size_bytes);
    atomic_fetch_and(&seg->flags, ~(unsigned)SEGMENT_FILLING);
    segment_mark_changed(s, seg);
}

void segments_home_leave(struct segments *s, uint32_t id, bool unowned)
{
    struct segment *seg = get_home(s, id);
    g_assert(atomic_load(&seg->flags) & SEGMENT_FILLING);
    if (unowned)
        atomic_store(&seg->unowned, true);
    pthread_mutex_lock(&s->home_lock);
    atomic_fetch_or(&seg->flags, SEGMENT_BROKEN);
    atomic_fetch_and(&seg->flags, ~(unsigned)SEGMENT_FILLING);
    pthread_mutex_unlock(&s->home_lock);
    segment_mark_changed(s, seg);
}

void segments_home_pack(struct segments *s, uint32_t id)
{
    struct segment *seg = find_home(s, id);
    if (!seg || atomic_load(&seg->flags) & SEGMENT_PACKED)
        return;
    pthread_mutex_lock(&s->home_lock);
    atomic_fetch_or(&seg->flags, SEGMENT_PACKED);
    pthread_mutex_unlock(&s->home_lock);
    segment_mark_changed(s, seg);
}

bool segments_home_take(struct segments *s, chunk_t chunk, bool keep_flat)
{
    struct segment *seg = find_home(s, chunk_segment(chunk));
    if (!seg || atomic_load(&seg->flags) & SEGMENT_BROKEN)
        return true;
    if (keep_flat)
        return false;
    pthread_mutex_lock(&s->home_lock);
    bool may = atomic_load(&seg->pins) == 0 && !(atomic_load(&seg->flags) & SEGMENT_PACKED);
    if (may)
        atomic_fetch_or(&seg->flags, SEGMENT_BROKEN);
    pthread_mutex_unlock(&s->home_lock);
    if (may)
        segment_mark_changed(s, seg);
    return may;
}

int segments_home_get(struct segments *s, uint32_t id, struct segment_home *out)
{
    struct segment *seg = find_home(s, id);
    if (!seg)
        return -ENOENT;
    unsigned flags = atomic_load(&seg->flags);
    *out = (struct segment_home){
        .filling = flags & SEGMENT_FILLING,
        .broken = flags & SEGMENT_BROKEN,
        .packed = flags & SEGMENT_PACKED,
        .unowned = atomic_load(&seg->unowned) || atomic_load(&s->punch_unsupported),
        .size_bytes = atomic_load(&seg->home_bytes),
    };
    return 0;
}

/* What lies in the last chunk behind the end of its file is zero, but for what was
 * written there before a crash. Such a chunk may be sealed, and others may have it,
 * so nothing of it may be cut off. */
static bool tail_is_zero(struct segments *s, int fd, uint64_t size_bytes)
{
    uint8_t tail[CHUNK_BYTES_MAX];
    size_t bytes = (size_t)(round_up_u64(size_bytes, s->chunk_bytes) - size_bytes);
    ssize_t n = pread(fd, tail, bytes, (off_t)size_bytes);
    return n >= 0 && bytes_are_zero(tail, (size_t)n);
}

static int set_file_size(struct segments *s, int fd, uint64_t size_bytes)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size == size_bytes)
        return 0;
    if (s->read_only)
        return -EROFS;
    if ((uint64_t)st.st_size > size_bytes && !tail_is_zero(s, fd, size_bytes))
        return -EINVAL;
    return ftruncate(fd, (off_t)size_bytes) < 0 ? -errno : 0;
}

int segments_home_pin(struct segments *s, uint32_t id, uint64_t size_bytes, int *fd)
{
    struct segment *seg = find_home(s, id);
    if (!seg)
        return -ENOENT;
    pthread_mutex_lock(&s->home_lock);
    bool intact = !(atomic_load(&seg->flags) & SEGMENT_BROKEN) && !atomic_load(&seg->unowned) &&
                  atomic_load(&seg->state) == SEGMENT_LIVE;
    if (intact) {
        atomic_fetch_add(&seg->pins, 1);
        atomic_store(&seg->pinned, true); /* before the descriptor is looked up */
    }
    pthread_mutex_unlock(&s->home_lock);
    if (!intact)
        return -EINVAL;
    int error = segment_fd_get(s, seg);
    if (error >= 0) {
        *fd = error;
        error = size_bytes == HOME_SIZE_KEPT ? 0 : set_file_size(s, *fd, size_bytes);
        segment_fd_put(seg);
    }
    if (error < 0)
        segments_home_unpin(s, id);
    return error;
}

void segments_home_unpin(struct segments *s, uint32_t id)
{
    struct segment *seg = find_home(s, id);
    g_assert(seg);
    pthread_mutex_lock(&s->home_lock);
    unsigned before = atomic_fetch_sub(&seg->pins, 1);
    g_assert(before > 0);
    if (before == 1)
        atomic_store(&seg->pinned, false);
    pthread_mutex_unlock(&s->home_lock);
    if (before == 1)
        segment_mark_changed(s, seg); /* may be empty */
}
