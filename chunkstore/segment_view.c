// SPDX-License-Identifier: Apache-2.0
/*
 * segment_view.c - segment files on tmpfs, mapped: large transfers without a system call.
 *
 * On tmpfs a file's pages are memory, and what pwrite(2) and pread(2) do for each 4 KiB
 * of them (find, lock, mark, copy through the cache) costs two to four times as much as moving
 * the bytes. Large transfers therefore copy from and to a mapping, writes with stores that
 * bypass the cache: who wrote 1 MiB does not want it back from our cache.
 *
 * Only what is there: a touch of a hole would give it a page. So views are for chunks that
 * have an owner, from the file's beginning to its end; whatever a view cannot do (false)
 * the system call does, and tells the error.
 *
 * Nothing is mapped for good. A mapping lives as long as its descriptor (segment_fd.c), in
 * units of 1 GiB, and of all units together at most `view_limit` bytes have page table
 * entries: they are counted by grains of 64 KiB when they are made, and all dropped when there
 * are too many, or nobody has used one for a while; while there are too many, and somebody uses
 * them all the time, no more are made.
 *
 * If somebody cuts a segment's file while we copy, a touch of what is missing is a SIGBUS, which
 * ends the copy and not the process.
 */
#include "chunkstore/segment_internal.h"

#include <linux/magic.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum {
    UNIT_SHIFT = 30,
    GRAIN_SHIFT = 16,
    UNITS_MAX = 64, /* of one segment; what lies behind goes by system calls */
    GRAINS = 1 << (UNIT_SHIFT - GRAIN_SHIFT),
    WORD_BITS = 64,
    LIMIT_SHARE = 16, /* of the machine's memory */
    IDLE_S = 30,
};

/* 1 GiB of a segment's file. */
struct view_unit {
    uint8_t *base;
    atomic_uint_fast64_t present[GRAINS / WORD_BITS]; /* grains that have page table entries */
};

struct segment_view {
    _Atomic(struct view_unit *) unit[UNITS_MAX];
};

/* ---- copying what may not be there ---- */

static _Thread_local sigjmp_buf *volatile guarded;
static struct sigaction before;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)info;
    (void)context;
    if (guarded)
        siglongjmp(*guarded, 1);
    /* Not ours: it comes again, to whom it came before. */
    sigaction(number, &before, NULL);
}

/* A signal's handler is the process's, whoever asks for it: the one thing here that two stores
 * have in common. */
static void catch_bus_errors(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

/* Guests may write and read the same bytes at once, as with any file: no race of ours. */
#if defined(__clang__) || defined(__GNUC__)
#define NO_SANITIZE __attribute__((no_sanitize("address", "thread"), noinline))
#else
#define NO_SANITIZE
#endif

#ifdef __SSE2__
NO_SANITIZE static void copy_plain(uint8_t *to, const uint8_t *from, size_t bytes)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

/* Past the cache, but for the edges. */
NO_SANITIZE static void copy_out(uint8_t *to, const uint8_t *from, size_t bytes)
{
    size_t head = MIN(bytes, -(uintptr_t)to % CACHE_LINE);
    copy_plain(to, from, head);
    to += head, from += head, bytes -= head;
    for (; bytes >= CACHE_LINE; to += CACHE_LINE, from += CACHE_LINE, bytes -= CACHE_LINE) {
        __m128i *d = (__m128i *)(void *)to;
        const __m128i *s = (const __m128i *)(const void *)from;
        __m128i a = _mm_loadu_si128(s), b = _mm_loadu_si128(s + 1);
        __m128i c = _mm_loadu_si128(s + 2), e = _mm_loadu_si128(s + 3);
        _mm_stream_si128(d, a);
        _mm_stream_si128(d + 1, b);
        _mm_stream_si128(d + 2, c);
        _mm_stream_si128(d + 3, e);
    }
    copy_plain(to, from, bytes);
    _mm_sfence();
}
#else
NO_SANITIZE static void copy_plain(uint8_t *to, const uint8_t *from, size_t bytes)
{
    memcpy(to, from, bytes);
}
#define copy_out copy_plain
#endif

static bool copy_guarded(uint8_t *to, const uint8_t *from, size_t bytes, bool out)
{
    sigjmp_buf here;
    if (sigsetjmp(here, 0)) {
        guarded = NULL;
        return false;
    }
    guarded = &here;
    if (out)
        copy_out(to, from, bytes);
    else
        copy_plain(to, from, bytes);
    guarded = NULL;
    return true;
}

/* ---- what is mapped ---- */

static uint64_t now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    return (uint64_t)ts.tv_sec;
}

void segments_use_views(struct segments *s, size_t min_bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct statfs fs;
    if (min_bytes == 0 || s->read_only || fstatfs(s->dir_fd, &fs) < 0 || fs.f_type != TMPFS_MAGIC)
        return;
    pthread_once(&once, catch_bus_errors);
    s->view_min_bytes = min_bytes;
    s->view_limit = (uint64_t)sysconf(_SC_PHYS_PAGES) / LIMIT_SHARE * (uint64_t)getpagesize();
}

/* The caller keeps the descriptor. NULL: no memory, or no address space. */
static struct view_unit *unit_of(struct segment *seg, int fd, uint64_t number)
{
    struct segment_view *view = atomic_load(&seg->view);
    if (!view) {
        struct segment_view *fresh = g_new0(struct segment_view, 1);
        if (atomic_compare_exchange_strong(&seg->view, &view, fresh))
            view = fresh;
        else
            g_free(fresh);
    }
    struct view_unit *unit = atomic_load(&view->unit[number]);
    if (unit)
        return unit;
    void *base = mmap(NULL, (size_t)1 << UNIT_SHIFT, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_NORESERVE, fd, (off_t)(number << UNIT_SHIFT));
    if (base == MAP_FAILED)
        return NULL;
    /* A core of the daemon is not to be one of the store. */
    madvise(base, (size_t)1 << UNIT_SHIFT, MADV_DONTDUMP);
    struct view_unit *fresh = g_new0(struct view_unit, 1);
    fresh->base = base;
    if (atomic_compare_exchange_strong(&view->unit[number], &unit, fresh))
        return fresh;
    munmap(base, (size_t)1 << UNIT_SHIFT);
    g_free(fresh);
    return unit;
}

/* Makes the page table entries of a range, if they are not known to be there. */
static bool make_present(struct segments *s, struct view_unit *unit, uint64_t at, size_t bytes)
{
    uint64_t first = at >> GRAIN_SHIFT, last = (at + bytes - 1) >> GRAIN_SHIFT;
    bool all = true;
    for (uint64_t g = first; g <= last && all; g++)
        all = atomic_load_explicit(&unit->present[g / WORD_BITS], memory_order_relaxed) >>
                  (g % WORD_BITS) &
              1;
    if (all)
        return true;
    if (atomic_load_explicit(&s->view_bytes, memory_order_relaxed) > s->view_limit)
        return false; /* until there is nobody who uses what is mapped (drop_entries) */
    uint64_t page = at & ~(uint64_t)(getpagesize() - 1);
    if (madvise(unit->base + page, (size_t)(at + bytes - page), MADV_POPULATE_READ) != 0)
        return false;
    uint64_t made = 0;
    for (uint64_t g = first; g <= last; g++) {
        uint64_t bit = UINT64_C(1) << (g % WORD_BITS);
        bool whole = g << GRAIN_SHIFT >= at && (g + 1) << GRAIN_SHIFT <= at + bytes;
        bool counted = whole && (atomic_fetch_or(&unit->present[g / WORD_BITS], bit) & bit);
        if (!counted) /* or perhaps counted before, in part: then it is dropped earlier */
            made += 1 << GRAIN_SHIFT;
    }
    atomic_fetch_add(&s->view_bytes, made);
    return true;
}

/* Where the range is, or NULL. */
static uint8_t *find(struct segments *s, struct segment *seg, int fd, uint64_t offset, size_t bytes)
{
    uint64_t number = offset >> UNIT_SHIFT, at = offset & ((1u << UNIT_SHIFT) - 1);
    struct stat st;
    if (!s->view_min_bytes || bytes < s->view_min_bytes || number >= UNITS_MAX ||
        at + bytes > (uint64_t)1 << UNIT_SHIFT)
        return NULL;
    /* Bytes in the last page behind the end of the file would not count. */
    if (fstat(fd, &st) != 0 || (uint64_t)st.st_size < offset + bytes)
        return NULL;
    struct view_unit *unit = unit_of(seg, fd, number);
    if (!unit || !make_present(s, unit, at, bytes))
        return NULL;
    uint64_t now = now_s();
    if (atomic_load_explicit(&s->view_used_s, memory_order_relaxed) != now)
        atomic_store_explicit(&s->view_used_s, now, memory_order_relaxed);
    return unit->base + at;
}

bool segment_view_write(struct segments *s, struct segment *seg, int fd, uint64_t offset,
                        const void *from, size_t bytes)
{
    uint8_t *to = find(s, seg, fd, offset, bytes);
    return to && copy_guarded(to, from, bytes, true);
}

bool segments_view(struct segments *s, chunk_t first, uint64_t skip_bytes, size_t bytes,
                   struct segments_view *out)
{
    struct segment *seg = bytes >= s->view_min_bytes && s->view_min_bytes
                              ? segment_find(s, chunk_segment(first))
                              : NULL;
    int fd = seg ? segment_fd_get(s, seg) : -1;
    if (fd < 0)
        return false;
    uint64_t offset = (uint64_t)chunk_slot(first) * s->chunk_bytes + skip_bytes;
    *out = (struct segments_view){.seg = seg, .data = find(s, seg, fd, offset, bytes)};
    if (!out->data)
        segment_fd_put(seg);
    return out->data;
}

void segments_view_end(struct segments_view *view)
{
    segment_fd_put(view->seg);
}

bool segments_view_copy(const void *data, void *to, size_t bytes)
{
    return copy_guarded(to, data, bytes, false);
}

/* ---- and no more ---- */

void segment_view_free(struct segment *seg)
{
    struct segment_view *view = atomic_exchange(&seg->view, NULL);
    for (unsigned i = 0; view && i < UNITS_MAX; i++) {
        struct view_unit *unit = atomic_load(&view->unit[i]);
        if (unit)
            munmap(unit->base, (size_t)1 << UNIT_SHIFT);
        g_free(unit);
    }
    g_free(view);
}

/* Returns how many bytes are left: all, while somebody uses the segment. Were he killed with
 * something missing that the kernel copies just then, who asked him would get an error. */
static uint64_t drop_entries(struct segment *seg)
{
    struct segment_view *view = atomic_load(&seg->view);
    uint64_t left = 0;
    bool claimed = view && segment_fd_claim(seg);
    for (unsigned i = 0; view && i < UNITS_MAX; i++) {
        struct view_unit *unit = atomic_load(&view->unit[i]);
        if (!unit)
            continue;
        for (unsigned w = 0; w < GRAINS / WORD_BITS; w++) {
            if (claimed)
                atomic_store(&unit->present[w], 0);
            else
                left += (uint64_t)__builtin_popcountll(atomic_load(&unit->present[w]))
                        << GRAIN_SHIFT;
        }
        if (claimed)
            madvise(unit->base, (size_t)1 << UNIT_SHIFT, MADV_DONTNEED);
    }
    if (claimed)
        segment_fd_unclaim(seg);
    return left;
}

void segments_drop_views(struct segments *s, bool now)
{
    if (atomic_load(&s->view_bytes) == 0 ||
        (!now && now_s() - atomic_load(&s->view_used_s) < IDLE_S))
        return;
    /* The lock keeps descriptors, and so mappings, from being closed. If somebody has it, he may
     * be dropping them. */
    if (pthread_mutex_trylock(&s->fd_lock) != 0)
        return;
    uint64_t left = 0;
    for (unsigned i = 0; i < s->open_list->len; i++)
        left += drop_entries(g_ptr_array_index(s->open_list, i));
    atomic_store(&s->view_bytes, left);
    pthread_mutex_unlock(&s->fd_lock);
}

void segments_bound_views(struct segments *s)
{
    if (atomic_load_explicit(&s->view_bytes, memory_order_relaxed) <= s->view_limit)
        return;
    uint64_t now = now_s(), last = atomic_load(&s->view_bounded_s);
    if (now != last && atomic_compare_exchange_strong(&s->view_bounded_s, &last, now))
        segments_drop_views(s, true);
}
