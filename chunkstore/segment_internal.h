// SPDX-License-Identifier: Apache-2.0
/*
 * segment_internal.h - the structs behind segment.h.
 *
 * Files: segment.c (open, table, statistics), segment_fd.c (descriptors),
 * segment_io.c (bytes), segment_alloc.c (slots, free space, accounting),
 * segment_record.c (what is durable), segment_free.c (giving space back),
 * segment_section.c (read sections), segment_home.c (home segments), segment_view.c
 * (mapped).
 *
 * The life of a segment, and who moves it on:
 *
 *     segments_alloc_group           current: groups are handed out
 *     segments_alloc_group (next)    full: no more groups, still written to
 *     segments_account_dead,
 *       _group_done, _punch          empty: no owner, no held group, no garbage
 *     segments_flip                  DELETING: record deleted, commit under way
 *     segments_durable, _punch       GONE: file unlinked
 *
 * The file goes after its record, never before: a crash between the two leaves
 * a file that no record knows, and segments_open unlinks such files.
 *
 * The life of a dead run of chunks:
 *
 *     segments_account_dead -> RUNNING  (struct dead_shard)
 *     segments_flip         -> COMMITTING
 *     segments_durable      -> punchable
 *     segments_punch        -> back to the file system below
 */
#ifndef CHUNKSTORE_SEGMENT_INTERNAL_H
#define CHUNKSTORE_SEGMENT_INTERNAL_H

#include "chunkstore/keys.h"
#include "chunkstore/segment.h"
#include "chunkstore/superblock.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

/* pthread mutexes, not GLib's: ThreadSanitizer does not see into the latter. */

enum {
    CACHE_LINE = 64,
    SHARDS = 32, /* of counters and lists that many threads touch */
    OPEN_FILES_MAX = 1024,
    SEGMENTS_PER_LEAF = 1 << 16,
    SEGMENT_LEAVES = 1 << 16,
};

/* Flags of a segment record (docs/FORMAT.md). */
enum {
    SEGMENT_RECORD_FORMAT = 1,
    SEGMENT_UNOWNED = 1 << 0, /* may hold bytes in slots without an owner */
    SEGMENT_HOME = 1 << 1,    /* slot i is chunk i of a file */
    SEGMENT_FILLING = 1 << 2, /* that file may still fill its holes */
    SEGMENT_BROKEN = 1 << 3,  /* no file is flat by it */
    SEGMENT_PACKED = 1 << 4,  /* sealing takes no chunk out of it */
    SEGMENT_HOME_FLAGS = SEGMENT_HOME | SEGMENT_FILLING | SEGMENT_BROKEN | SEGMENT_PACKED,
    SEGMENT_FLAGS_KNOWN = SEGMENT_UNOWNED | SEGMENT_HOME_FLAGS,
};

struct segment_view;

struct segment_record {
    uint64_t flags; /* (no padding: records are compared as bytes) */
    uint32_t live;
    uint32_t cursor;
    uint64_t home_bytes; /* of a home segment that is not being filled, else 0 */
};

enum segment_state { SEGMENT_LIVE, SEGMENT_DELETING, SEGMENT_GONE };

/*
 * Invariants:
 *  1. live <= cursor <= segment_slots(seg); cursor is a multiple of SLOT_GROUP
 *     and never falls.
 *  2. `unsynced` is set, and the segment is in unsynced_list, from before
 *     segments_write returns until the fdatasync that covers it has begun.
 *  3. `changed` is set, and the segment is in changed_list, from when its
 *     record differs from the one last put until the flip that puts it.
 *  4. fd >= 0 stays so while users > 0. users < 0 only while fd_lock is held
 *     by one who closes the descriptor.
 *  5. state leaves SEGMENT_LIVE only in segments_flip, when it is not the
 *     current one, nor being filled, nor pinned, and live, held_groups and
 *     garbage are all 0; no new chunk can appear in it then, since only held
 *     groups, and home segments that are being filled, have fresh slots.
 *  6. flags: HOME never changes. FILLING is set by the one who holds the segment,
 *     and never again once it is cleared; BROKEN and PACKED are never cleared.
 *     They change inside the gate; BROKEN and pins under home_lock.
 * The struct itself stays until segments_close, so that a pointer to it needs
 * no reference: some 200 bytes for every 4 GiB ever written by this process.
 */
struct segment {
    _Alignas(CACHE_LINE) uint32_t id;

    atomic_int state;   /* enum segment_state */
    atomic_int users;   /* of fd */
    atomic_int fd;      /* -1: closed */
    atomic_bool pinned; /* fd was given away: keep it until the file goes */
    atomic_bool recent; /* used since the clock hand came by */
    atomic_bool warned; /* its loss has been logged */
    atomic_bool unsynced;
    atomic_bool changed;
    atomic_bool unowned; /* loaded with SEGMENT_UNOWNED, or a punch failed */

    atomic_uint live;        /* chunks with an owner */
    atomic_uint cursor;      /* slots handed out */
    atomic_uint held_groups; /* groups whose holder may still write to them */
    atomic_ullong garbage;   /* chunks in dead runs that are not punched yet */

    atomic_uint flags;        /* of SEGMENT_HOME_FLAGS */
    atomic_uint pins;         /* readers of the file that bypass us; changed under home_lock */
    atomic_ullong home_bytes; /* see struct segment_record */

    _Atomic(struct segment_view *) view; /* segment_view.c; gone before fd is closed */

    uint32_t live_at_open;
    uint32_t cursor_at_open;
    /* segments_flip alone: what was put last. */
    bool written;
    struct segment_record written_record;
};

/* How many slots it has room for. */
static inline uint64_t segment_slots(const struct segment *seg)
{
    return atomic_load_explicit(&seg->flags, memory_order_relaxed) & SEGMENT_HOME
               ? SEGMENT_HOME_SLOTS
               : SEGMENT_SLOTS;
}

struct chunk_run {
    chunk_t first;
    uint64_t count;
};

/* Dead runs of the running transaction. */
struct dead_shard {
    _Alignas(CACHE_LINE) pthread_mutex_t lock;
    GArray *runs; /* of struct chunk_run */
};

/* Sections that are open, by phase: segment_section.c. */
struct section_shard {
    _Alignas(CACHE_LINE) atomic_uint open[2];
};

typedef _Atomic(struct segment *) segment_slot;

struct segments {
    /* Constant after segments_open. */
    char *path; /* of the segments directory, for messages */
    int dir_fd;
    uint32_t chunk_bytes;
    uint64_t reserve_bytes;
    bool read_only;
    struct metadb *db;
    unsigned open_files_max;

    /* id -> segment, two levels, both made on demand; entries are only ever
     * added (by segments_open, or under alloc_lock), so looking up takes no
     * lock. */
    _Atomic(segment_slot *) *leaves;
    atomic_uint highest_id;

    /* segment_alloc.c */
    pthread_mutex_t alloc_lock; /* handing out groups, making segments */
    _Atomic(struct segment *) current;
    atomic_uint next_id;
    atomic_bool next_id_changed;
    _Alignas(CACHE_LINE) atomic_llong space_budget;
    pthread_mutex_t space_lock;

    /* segment_fd.c */
    pthread_mutex_t fd_lock;
    GPtrArray *open_list; /* of segments with fd >= 0 */
    unsigned clock_hand;

    /* segment_io.c */
    pthread_mutex_t unsynced_lock;
    GPtrArray *unsynced_list;
    atomic_bool directory_unsynced;

    /* segment_record.c */
    pthread_mutex_t changed_lock;
    GPtrArray *changed_list;

    /* segment_free.c. Of free_lock: punchable, unlinkable, released. The committing
     * lists belong to flip and durable, which are called one at a time. */
    struct dead_shard *dead;
    GArray *committing; /* struct chunk_run */
    GPtrArray *deleting;
    pthread_mutex_t free_lock;
    GArray *punchable; /* struct chunk_run */
    GPtrArray *unlinkable;
    GArray *released; /* chunk_t: groups given up, whose writers may be at it */
    atomic_ullong garbage_chunks;
    atomic_uint pending_unlinks;
    atomic_bool freed_any;
    atomic_bool punch_unsupported, punch_supported; /* both false: nobody has tried */

    /* segment_view.c */
    size_t view_min_bytes; /* 0: no views; both are constant after segments_use_views */
    uint64_t view_limit;
    atomic_uint_fast64_t view_bytes, view_used_s, view_bounded_s;

    pthread_mutex_t home_lock; /* breaking against pinning; a leaf lock */

    /* segment_section.c */
    struct section_shard *sections;
    atomic_uint phase;
    pthread_mutex_t synchronize_lock;
};

static inline chunk_t chunk_of(uint32_t id, uint64_t slot)
{
    return (chunk_t)id << 32 | slot;
}

static inline uint32_t chunk_segment(chunk_t chunk)
{
    return (uint32_t)(chunk >> 32);
}

static inline uint32_t chunk_slot(chunk_t chunk)
{
    return (uint32_t)chunk;
}

/* The shard of the calling thread, for the moment. */
unsigned segment_shard(void);

/* ---- segment.c ---- */

enum { SEGMENT_NAME_BYTES = 9 };
void segment_name(uint32_t id, char name[SEGMENT_NAME_BYTES]);
/* NULL if there is none, or its file is gone. */
struct segment *segment_find(const struct segments *s, uint32_t id);
/* The next one with an id of at least *id, which is set to its id + 1; in
 * whatever state. NULL at the end. */
struct segment *segment_next(const struct segments *s, uint64_t *id);
/* Makes the struct; not yet to be found. */
struct segment *segment_new(uint32_t id);
void segment_insert(struct segments *s, struct segment *seg);

/* ---- segment_alloc.c ---- */

/* Makes a segment with these flags and its file; a home segment is held by the
 * caller. Under alloc_lock. */
int segment_make(struct segments *s, unsigned flags, struct segment **out);

/* ---- segment_fd.c ---- */

/* A descriptor that stays open until segment_fd_put. -EIO if the file is
 * missing, else what open says. */
int segment_fd_get(struct segments *s, struct segment *seg);
void segment_fd_put(struct segment *seg);
/* Takes over a descriptor of a segment that nobody else knows yet. */
void segment_fd_install(struct segments *s, struct segment *seg, int fd);
/* Closes what is open beyond the bound and may be closed by now. */
void segment_fd_trim(struct segments *s);
/* Closes it for good; false if somebody uses it just now. */
bool segment_fd_close(struct segments *s, struct segment *seg);
/* Under fd_lock: false if somebody uses it just now, else nobody does until _unclaim. */
bool segment_fd_claim(struct segment *seg);
void segment_fd_unclaim(struct segment *seg);

/* ---- segment_io.c ---- */

void segment_mark_unsynced(struct segments *s, struct segment *seg);

/* ---- segment_view.c ---- */

/* Overwrites bytes that are there already; the caller keeps the descriptor. False: nothing or
 * a part was written, and it is for pwrite(2). */
bool segment_view_write(struct segments *s, struct segment *seg, int fd, uint64_t offset,
                        const void *from, size_t bytes);
/* By who closes the descriptor. */
void segment_view_free(struct segment *seg);

/* ---- segment_record.c ---- */

int segment_records_load(struct segments *s, struct errmsg *err);
/* After that: what a journal knows besides. */
int segment_record_know(struct segments *s, const struct segment_known *known, struct errmsg *err);
/* Truncates files to their cursors, unlinks those that no record knows. */
int segment_files_tidy(struct segments *s, struct errmsg *err);
void segment_mark_changed(struct segments *s, struct segment *seg);
/* Invariant 5's condition. */
bool segment_is_empty(struct segments *s, struct segment *seg);

/* ---- segment_free.c ---- */

void segment_free_init(struct segments *s);
void segment_free_fini(struct segments *s);

/* ---- segment_section.c ---- */

void segment_sections_init(struct segments *s);
void segment_sections_fini(struct segments *s);

#endif
