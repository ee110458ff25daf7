// SPDX-License-Identifier: Apache-2.0
/*
 * segment_free.c - giving space back to the file system below.
 *
 * Chunks without an owner wait for the commit in which they have none, then
 * for the readers who may still look at them, and are punched in long runs.
 */
#include "chunkstore/segment_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

void segment_free_init(struct segments *s)
{
    s->dead = aligned_alloc(CACHE_LINE, SHARDS * sizeof(*s->dead));
    g_assert(s->dead);
    for (unsigned i = 0; i < SHARDS; i++) {
        pthread_mutex_init(&s->dead[i].lock, NULL);
        s->dead[i].runs = g_array_new(FALSE, FALSE, sizeof(struct chunk_run));
    }
    s->committing = g_array_new(FALSE, FALSE, sizeof(struct chunk_run));
    s->punchable = g_array_new(FALSE, FALSE, sizeof(struct chunk_run));
    s->released = g_array_new(FALSE, FALSE, sizeof(chunk_t));
    s->deleting = g_ptr_array_new();
    s->unlinkable = g_ptr_array_new();
    pthread_mutex_init(&s->free_lock, NULL);
}

void segment_free_fini(struct segments *s)
{
    for (unsigned i = 0; i < SHARDS; i++) {
        pthread_mutex_destroy(&s->dead[i].lock);
        g_array_unref(s->dead[i].runs);
    }
    free(s->dead);
    g_array_unref(s->committing);
    g_array_unref(s->punchable);
    g_array_unref(s->released);
    g_ptr_array_unref(s->deleting);
    g_ptr_array_unref(s->unlinkable);
    pthread_mutex_destroy(&s->free_lock);
}

void segments_durable(struct segments *s)
{
    pthread_mutex_lock(&s->free_lock);
    if (s->committing->len > 0)
        g_array_append_vals(s->punchable, s->committing->data, s->committing->len);
    for (unsigned i = 0; i < s->deleting->len; i++)
        g_ptr_array_add(s->unlinkable, g_ptr_array_index(s->deleting, i));
    pthread_mutex_unlock(&s->free_lock);
    g_array_set_size(s->committing, 0);
    g_ptr_array_set_size(s->deleting, 0);
}

/* ---- Punching ---- */

static int compare_runs(const void *a, const void *b)
{
    const struct chunk_run *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

static void punch_run(struct segments *s, struct segment *seg, uint64_t slot, uint64_t count)
{
    if (atomic_load(&s->punch_unsupported) && !(atomic_load(&seg->flags) & SEGMENT_HOME))
        return;
    int fd = segment_fd_get(s, seg);
    if (fd < 0) /* logged there; if the file is missing, so are the chunks */
        return;
    int error;
    do {
        error = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          (off_t)(slot * s->chunk_bytes), (off_t)(count * s->chunk_bytes)) < 0
                    ? -errno
                    : 0;
    } while (error == -EINTR);
    segment_fd_put(seg);
    if (error == -EOPNOTSUPP) {
        /* Readers of a home segment's file would see the bytes in holes. */
        if (atomic_load(&seg->flags) & SEGMENT_HOME) {
            atomic_store(&seg->unowned, true);
            segment_mark_changed(s, seg);
        }
        if (!atomic_exchange(&s->punch_unsupported, true))
            g_warning("the file system below '%s' cannot punch holes: freed space comes back "
                      "only with whole segments",
                      s->path);
    } else if (error) {
        g_warning("cannot free %" G_GINT64_MODIFIER "u chunks of segment %08x in '%s': %s", count,
                  seg->id, s->path, g_strerror(-error));
        /* Not tried again and again: a flagged segment is looked through when
         * the store is opened the next time. */
        atomic_store(&seg->unowned, true);
        segment_mark_changed(s, seg);
    }
}

/* Returns how many chunks they were. */
static uint64_t punch_runs(struct segments *s, GArray *runs)
{
    uint64_t total = 0;
    g_array_sort(runs, compare_runs);
    for (unsigned i = 0; i < runs->len;) {
        struct chunk_run run = g_array_index(runs, struct chunk_run, i++);
        while (i < runs->len) {
            const struct chunk_run *next = &g_array_index(runs, struct chunk_run, i);
            if (next->first != run.first + run.count ||
                chunk_segment(next->first) != chunk_segment(run.first))
                break;
            run.count += next->count;
            i++;
        }
        /* Garbage keeps a segment from being unlinked, so it is there. */
        struct segment *seg = segment_find(s, chunk_segment(run.first));
        g_assert(seg);
        punch_run(s, seg, chunk_slot(run.first), run.count);
        uint64_t before = atomic_fetch_sub(&seg->garbage, run.count);
        g_assert(before >= run.count);
        if (before == run.count)
            segment_mark_changed(s, seg); /* may be empty, may need its flag no more */
        atomic_fetch_sub(&s->garbage_chunks, run.count);
        total += run.count;
    }
    return total;
}

/* False if somebody is in the middle of an I/O on it (which cannot matter to
 * him; but his descriptor must not become another file's). */
static bool unlink_segment(struct segments *s, struct segment *seg)
{
    atomic_store(&seg->state, SEGMENT_GONE);
    if (!segment_fd_close(s, seg))
        return false;
    char name[SEGMENT_NAME_BYTES];
    segment_name(seg->id, name);
    if (unlinkat(s->dir_fd, name, 0) < 0 && errno != ENOENT)
        g_warning("cannot remove '%s/%s': %s", s->path, name, g_strerror(errno));
    atomic_fetch_sub(&s->pending_unlinks, 1);
    return true;
}

void segments_group_release(struct segments *s, chunk_t first)
{
    pthread_mutex_lock(&s->free_lock);
    g_array_append_val(s->released, first);
    pthread_mutex_unlock(&s->free_lock);
}

/* Under free_lock. */
static bool punch_waits(const struct segments *s)
{
    return s->punchable->len > 0 || s->unlinkable->len > 0 || s->released->len > 0;
}

bool segments_punch_waits(struct segments *s)
{
    pthread_mutex_lock(&s->free_lock);
    bool waits = punch_waits(s);
    pthread_mutex_unlock(&s->free_lock);
    return waits;
}

uint64_t segments_punch(struct segments *s)
{
    pthread_mutex_lock(&s->free_lock);
    GArray *runs = s->punchable;
    GPtrArray *unlinks = s->unlinkable;
    GArray *released = s->released;
    bool none = !punch_waits(s);
    if (!none) {
        s->released = g_array_new(FALSE, FALSE, sizeof(chunk_t));
        s->punchable = g_array_new(FALSE, FALSE, sizeof(struct chunk_run));
        s->unlinkable = g_ptr_array_new();
    }
    pthread_mutex_unlock(&s->free_lock);
    if (none)
        return 0;

    segments_synchronize(s);
    for (unsigned i = 0; i < released->len; i++)
        segments_group_done(s, g_array_index(released, chunk_t, i));
    g_array_unref(released);
    uint64_t chunks = punch_runs(s, runs);
    for (unsigned i = 0; i < unlinks->len; i++) {
        struct segment *seg = g_ptr_array_index(unlinks, i);
        if (!unlink_segment(s, seg)) {
            pthread_mutex_lock(&s->free_lock);
            g_ptr_array_add(s->unlinkable, seg);
            pthread_mutex_unlock(&s->free_lock);
        }
    }
    g_array_unref(runs);
    g_ptr_array_unref(unlinks);
    return chunks * s->chunk_bytes;
}

uint64_t segments_garbage_bytes(struct segments *s)
{
    return atomic_load(&s->garbage_chunks) * s->chunk_bytes;
}

bool segments_have_garbage(struct segments *s)
{
    if (atomic_load(&s->garbage_chunks) > 0 || atomic_load(&s->pending_unlinks) > 0)
        return true;
    /* A segment that the next flip will find empty. */
    bool found = false;
    pthread_mutex_lock(&s->changed_lock);
    for (unsigned i = 0; i < s->changed_list->len && !found; i++)
        found = segment_is_empty(s, g_ptr_array_index(s->changed_list, i));
    pthread_mutex_unlock(&s->changed_lock);
    return found;
}

/* ---- After an unclean end ---- */

/*
 * The flag misses no segment that had unowned bytes at the last commit, or got
 * them since in slots of a group held then, or, being filled, in any slot. More blocks than live chunks can
 * have is a second sign, true on file systems that do not compress.
 */
static bool may_have_unowned(struct segments *s, struct segment *seg, bool unclean, bool *missing)
{
    char name[SEGMENT_NAME_BYTES];
    struct stat st;
    segment_name(seg->id, name);
    *missing = fstatat(s->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0;
    if (*missing)
        return false;
    return atomic_load(&seg->unowned) || (unclean && atomic_load(&seg->flags) & SEGMENT_FILLING) ||
           (uint64_t)st.st_blocks * 512 > (uint64_t)seg->live_at_open * s->chunk_bytes;
}

/* Looks at the slots that earlier processes handed out: nobody can be about to
 * make one of these his. */
static int reclaim_segment(struct segments *s, struct segment *seg, segments_owned_fn owned,
                           void *arg)
{
    uint32_t end = seg->cursor_at_open;
    uint32_t live = 0;
    uint32_t hole_start = 0; /* the unowned slots before `slot` begin here */
    for (uint32_t slot = 0; slot < end;) {
        bool is_owned = false;
        uint32_t alike = 0;
        int error = owned(arg, chunk_of(seg->id, slot), end - slot, &is_owned, &alike);
        if (error)
            return error;
        g_assert(alike >= 1 && alike <= end - slot);
        if (is_owned) {
            if (slot > hole_start)
                punch_run(s, seg, hole_start, slot - hole_start);
            live += alike;
            hole_start = slot + alike;
        }
        slot += alike;
    }
    if (end > hole_start)
        punch_run(s, seg, hole_start, end - hole_start);

    /* Owners are the truth; the sum in the record only lets us find out when
     * there are none left. */
    if (live != seg->live_at_open) {
        g_warning("segment %08x in '%s' counted %u live chunks instead of %u: corrected", seg->id,
                  s->path, seg->live_at_open, live);
        atomic_fetch_add(&seg->live, live - seg->live_at_open);
        seg->live_at_open = live;
        segment_mark_changed(s, seg);
    }
    return 0;
}

int segments_reclaim(struct segments *s, bool unclean, segments_owned_fn owned, void *arg)
{
    if (s->read_only)
        return -EROFS;
    /* A chunk freed since then has no owner now and has one in the last
     * commit, to which we may have to return. */
    g_assert(!atomic_load(&s->freed_any));
    uint64_t id = 0;
    for (struct segment *seg; (seg = segment_next(s, &id));) {
        bool missing;
        if (atomic_load(&seg->state) != SEGMENT_LIVE || seg->cursor_at_open == 0 ||
            !may_have_unowned(s, seg, unclean, &missing))
            continue;
        /* First, so that a punch that fails can set it again. */
        atomic_store(&seg->unowned, false);
        int error = reclaim_segment(s, seg, owned, arg);
        if (error) {
            atomic_store(&seg->unowned, true);
            return error;
        }
        segment_mark_changed(s, seg);
    }
    return 0;
}

void segments_replayed(struct segments *s)
{
    uint64_t id = 0;
    for (struct segment *seg; (seg = segment_next(s, &id));) {
        seg->live_at_open = atomic_load(&seg->live);
        seg->cursor_at_open = atomic_load(&seg->cursor);
    }
    atomic_store(&s->freed_any, false);
}
