// SPDX-License-Identifier: Apache-2.0
/*
 * segment_alloc.c - handing out slots, watching free space, counting owners.
 */
#include "chunkstore/segment_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* Look at the file system at least that often: others write to it, too. */
static const int64_t space_budget_max = INT64_C(256) << 20;

/* ---- Slots ---- */

/* Under alloc_lock. The file's name becomes durable in segments_sync, that is,
 * before the first commit that can know the segment. */
int segment_make(struct segments *s, unsigned flags, struct segment **out)
{
    char name[SEGMENT_NAME_BYTES];
    uint32_t id;
    int fd;
    do {
        id = atomic_load(&s->next_id);
        if (id == UINT32_MAX)
            return -ENOSPC;
        segment_name(id, name);
        fd = openat(s->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0 && errno != EEXIST && errno != EINTR)
            return -errno;
        /* An id whose name is taken (by a file that could not be unlinked at
         * open) is passed over. */
        if (fd >= 0 || errno == EEXIST)
            atomic_store(&s->next_id, id + 1);
    } while (fd < 0);
    atomic_store(&s->next_id_changed, true);
    atomic_store(&s->directory_unsynced, true);

    struct segment *seg = segment_new(id);
    atomic_store(&seg->flags, flags);
    if (flags & SEGMENT_HOME)
        atomic_store(&seg->held_groups, 1);
    segment_fd_install(s, seg, fd);
    segment_insert(s, seg);
    *out = seg;
    return 0;
}

int segments_alloc_group(struct segments *s, chunk_t *first)
{
    if (s->read_only)
        return -EROFS;
    int error = segments_check_space(s, 0);
    if (error)
        return error;

    pthread_mutex_lock(&s->alloc_lock);
    struct segment *seg = atomic_load(&s->current);
    if (!seg || atomic_load(&seg->cursor) == SEGMENT_SLOTS) {
        error = segment_make(s, 0, &seg);
        if (error)
            goto out;
        atomic_store(&s->current, seg);
    }
    /* Held before the cursor moves: see segment_is_empty. */
    atomic_fetch_add(&seg->held_groups, 1);
    uint32_t slot = atomic_fetch_add(&seg->cursor, SLOT_GROUP);
    segment_mark_changed(s, seg);
    *first = chunk_of(seg->id, slot);
out:
    pthread_mutex_unlock(&s->alloc_lock);
    return error;
}

void segments_group_done(struct segments *s, chunk_t first)
{
    struct segment *seg = segment_find(s, chunk_segment(first));
    g_assert(seg && chunk_slot(first) % SLOT_GROUP == 0);
    unsigned before = atomic_fetch_sub(&seg->held_groups, 1);
    g_assert(before > 0);
    if (before == 1)
        segment_mark_changed(s, seg); /* may be empty, may need its flag no more */
}

/* ---- Free space ---- */

/* Takes `bytes` from the budget; what is taken in vain is put right when the
 * budget is set anew. */
static bool take_budget(struct segments *s, int64_t bytes)
{
    return atomic_fetch_sub(&s->space_budget, bytes) > bytes;
}

/*
 * The budget is half of what is left above the reserve, so that the looks
 * become denser as it shrinks, and the answer no is always a fresh one. What
 * other threads have asked for and not written yet is not seen by statvfs:
 * close to the limit the reserve may be touched by that much.
 */
int segments_check_space(struct segments *s, uint64_t bytes)
{
    int64_t want = (int64_t)MIN(bytes, (uint64_t)1 << 60);
    if (take_budget(s, want))
        return 0;

    pthread_mutex_lock(&s->space_lock);
    int error = 0;
    /* Somebody else may have looked while we waited for the lock. */
    if (!take_budget(s, want)) {
        struct statvfs fs;
        int64_t budget = 0;
        if (fstatvfs(s->dir_fd, &fs) < 0) {
            error = -errno;
        } else {
            uint64_t avail = (uint64_t)fs.f_bavail * fs.f_frsize;
            uint64_t spare = avail > s->reserve_bytes ? avail - s->reserve_bytes : 0;
            if (spare == 0 || spare < bytes)
                error = -ENOSPC;
            else
                budget = (int64_t)MIN((spare - bytes) / 2, (uint64_t)space_budget_max);
        }
        atomic_store(&s->space_budget, budget);
    }
    pthread_mutex_unlock(&s->space_lock);
    return error;
}

/* ---- Owners ---- */

void segments_account_live(struct segments *s, chunk_t first, uint32_t count)
{
    if (count == 0)
        return;
    struct segment *seg = segment_find(s, chunk_segment(first));
    g_assert(seg && atomic_load(&seg->state) == SEGMENT_LIVE);
    g_assert((uint64_t)chunk_slot(first) + count <= atomic_load(&seg->cursor));
    atomic_fetch_add(&seg->live, count);
    segment_mark_changed(s, seg);
}

/*
 * Fewer live chunks than lose their owner: the metadata is damaged. A segment
 * of which that is true must not be thought empty: one chunk too many in it
 * keeps it for good (fsck tells the difference).
 */
static void take_live(struct segments *s, struct segment *seg, uint32_t count)
{
    uint32_t live = atomic_load(&seg->live);
    uint32_t left;
    do {
        left = live >= count ? live - count : 1;
    } while (!atomic_compare_exchange_weak(&seg->live, &live, left));
    if (live < count)
        g_critical("segment %08x in '%s' counts %u live chunks, and %u lost their owner: "
                   "run fsck",
                   seg->id, s->path, live, count);
}

void segments_account_dead(struct segments *s, chunk_t first, uint32_t count)
{
    if (count == 0)
        return;
    struct segment *seg = segment_find(s, chunk_segment(first));
    if (!seg || (uint64_t)chunk_slot(first) + count > segment_slots(seg)) {
        g_critical("chunk %" G_GINT64_MODIFIER "x, which lost its owner, is in no segment of "
                   "'%s': run fsck",
                   first, s->path);
        return;
    }
    if (!atomic_load_explicit(&s->freed_any, memory_order_relaxed))
        atomic_store(&s->freed_any, true);
    /* Garbage before not live: see segment_is_empty. */
    atomic_fetch_add(&seg->garbage, count);
    atomic_fetch_add(&s->garbage_chunks, count);
    take_live(s, seg, count);
    segment_mark_changed(s, seg);

    struct dead_shard *shard = &s->dead[segment_shard()];
    pthread_mutex_lock(&shard->lock);
    /* Mass deletes come in order: keep the list short. */
    struct chunk_run *last =
        shard->runs->len ? &g_array_index(shard->runs, struct chunk_run, shard->runs->len - 1)
                         : NULL;
    if (last && last->first + last->count == first && chunk_segment(last->first) == seg->id) {
        last->count += count;
    } else {
        struct chunk_run run = {.first = first, .count = count};
        g_array_append_val(shard->runs, run);
    }
    pthread_mutex_unlock(&shard->lock);
}
