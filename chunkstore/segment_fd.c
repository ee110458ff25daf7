// SPDX-License-Identifier: Apache-2.0
/*
 * segment_fd.c - descriptors of segment files: opened when first needed, kept,
 * and closed only when there are too many of them.
 *
 * The usual path (the file is open) is one atomic increment and one decrement.
 * A closer claims an idle descriptor by swapping `users` from 0 to a large
 * negative number; whoever arrives meanwhile sees that, and waits for fd_lock,
 * which the closer holds.
 *
 * Never closed to make room: a descriptor that was given away (`pinned`), and
 * one with writes that are not synced yet: an error of their writeback is
 * reported to descriptors that were open at that time. So the bound is soft;
 * segments_sync comes back to it.
 */
#include "chunkstore/segment_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { CLOSING = -(1 << 30) };

bool segment_fd_claim(struct segment *seg)
{
    int idle = 0;
    return atomic_compare_exchange_strong(&seg->users, &idle, CLOSING);
}

void segment_fd_unclaim(struct segment *seg)
{
    atomic_fetch_sub(&seg->users, CLOSING);
}

/* Under fd_lock. Closes the descriptor if nobody uses it and `force` is set or
 * it may be closed to make room. Does not touch open_list. */
static bool try_close(struct segment *seg, bool force)
{
    if (!segment_fd_claim(seg))
        return false;
    /* Looked at after the claim: whoever sets these is a user while he does. */
    bool may = force || (!atomic_load(&seg->pinned) && !atomic_load(&seg->unsynced));
    if (may) {
        segment_view_free(seg);
        close(atomic_exchange(&seg->fd, -1));
    }
    segment_fd_unclaim(seg);
    return may;
}

/* Under fd_lock: the clock algorithm, an LRU without a list to be kept. */
static bool evict_one(struct segments *s)
{
    for (unsigned steps = 2 * s->open_list->len; steps > 0; steps--) {
        if (s->clock_hand >= s->open_list->len)
            s->clock_hand = 0;
        struct segment *seg = g_ptr_array_index(s->open_list, s->clock_hand);
        if (!atomic_exchange(&seg->recent, false) && try_close(seg, false)) {
            g_ptr_array_remove_index_fast(s->open_list, s->clock_hand);
            return true;
        }
        s->clock_hand++;
    }
    return false;
}

static int open_file(struct segments *s, struct segment *seg)
{
    char name[SEGMENT_NAME_BYTES];
    segment_name(seg->id, name);
    int flags = (s->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOFOLLOW;
    for (;;) {
        int fd = openat(s->dir_fd, name, flags);
        if (fd >= 0)
            return fd;
        if (errno == EINTR)
            continue;
        if ((errno == EMFILE || errno == ENFILE) && evict_one(s))
            continue;
        int error = -errno;
        if (!atomic_exchange(&seg->warned, true))
            g_warning("cannot open segment file '%s/%s': %s", s->path, name, g_strerror(-error));
        return error == -ENOENT ? -EIO : error;
    }
}

static int get_slowly(struct segments *s, struct segment *seg)
{
    pthread_mutex_lock(&s->fd_lock);
    int fd = atomic_load(&seg->fd);
    if (fd < 0) {
        while (s->open_list->len >= s->open_files_max && evict_one(s))
            ;
        fd = open_file(s, seg);
        if (fd >= 0) {
            g_ptr_array_add(s->open_list, seg);
            atomic_store(&seg->fd, fd);
        } else {
            atomic_fetch_sub(&seg->users, 1);
        }
    }
    pthread_mutex_unlock(&s->fd_lock);
    return fd;
}

int segment_fd_get(struct segments *s, struct segment *seg)
{
    if (atomic_fetch_add(&seg->users, 1) >= 0) {
        int fd = atomic_load(&seg->fd);
        if (fd >= 0) {
            if (!atomic_load_explicit(&seg->recent, memory_order_relaxed))
                atomic_store_explicit(&seg->recent, true, memory_order_relaxed);
            return fd;
        }
    }
    return get_slowly(s, seg);
}

void segment_fd_put(struct segment *seg)
{
    atomic_fetch_sub(&seg->users, 1);
}

void segment_fd_install(struct segments *s, struct segment *seg, int fd)
{
    pthread_mutex_lock(&s->fd_lock);
    while (s->open_list->len >= s->open_files_max && evict_one(s))
        ;
    g_ptr_array_add(s->open_list, seg);
    atomic_store(&seg->fd, fd);
    pthread_mutex_unlock(&s->fd_lock);
}

void segment_fd_trim(struct segments *s)
{
    pthread_mutex_lock(&s->fd_lock);
    while (s->open_list->len > s->open_files_max && evict_one(s))
        ;
    pthread_mutex_unlock(&s->fd_lock);
}

bool segment_fd_close(struct segments *s, struct segment *seg)
{
    pthread_mutex_lock(&s->fd_lock);
    bool closed = true;
    if (atomic_load(&seg->fd) >= 0) {
        closed = try_close(seg, true);
        if (closed)
            g_ptr_array_remove_fast(s->open_list, seg);
    }
    pthread_mutex_unlock(&s->fd_lock);
    return closed;
}
