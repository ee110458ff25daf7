// SPDX-License-Identifier: Apache-2.0
/*
 * segment.h - chunks in segment files: where a chunk number points to.
 *
 * chunk number = segment id << 32 | slot; segment ids start at 1, so that no
 * chunk has number 0. Segment files are STORE/segments/<id, 8 hex digits>;
 * slot s lies at byte s * chunk_bytes. The files are sparse.
 *
 * Slots are handed out in groups of 512, aligned to 512, by a cursor that
 * only moves forward: a slot number is never used twice. A hole costs nothing
 * in the file system below, so there is no free-space search and no cleaner:
 * freed chunks are punched out (which is what returns the space), and a
 * segment whose last chunk is gone is unlinked. This also means that space
 * freed since the last commit cannot be overwritten by accident.
 *
 * What is durable: per segment a record (KEY_SEGMENT) with its live chunk
 * count, its cursor, and the flag "may hold bytes in slots without an owner"
 * (set while it is being filled or has punches outstanding). After an unclean
 * end the store truncates each segment to its cursor and punches the unowned
 * slots of the flagged ones (segments_reclaim).
 *
 * A *home segment* belongs to one file: chunk i of the file lies in slot i, so
 * the segment's file has the file's bytes from offset 0 on (flat.h). It has room
 * for SEGMENT_HOME_SLOTS chunks, its slots are chosen by its file, not handed out
 * in turn, and its file may end within its last chunk: what is behind the end
 * reads as zeros.
 *
 * Threads: all functions from any thread, except where said. Data I/O holds
 * no lock. Errors: 0 or negative errno; -EIO also for a read that ends early
 * (a segment file that was truncated by somebody).
 */
#ifndef CHUNKSTORE_SEGMENT_H
#define CHUNKSTORE_SEGMENT_H

#include "chunkstore/errmsg.h"
#include "chunkstore/metadb.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { SLOT_GROUP = 512 };

/* The last group of the numbers is left out, so that no run of chunks goes on in
 * the next segment. */
#define SEGMENT_HOME_SLOTS (UINT32_MAX - SLOT_GROUP + 1)

typedef uint64_t chunk_t; /* chunk number; 0 means: no chunk */

struct segment;
struct segments;

/*
 * Opens the segments of the store directory `path`. The directory
 * `path`/segments is made if it is missing. reserve_bytes: keep that much free
 * on the file system below for metadata; allocation fails with -ENOSPC before
 * it is eaten up. Does not own `db`.
 */
int segments_open(const char *path, uint32_t chunk_bytes, uint64_t reserve_bytes, bool read_only,
                  struct metadb *db, struct segments **out, struct errmsg *err);
/*
 * The same after a crash of the process, not of the machine. `known` says what a journal
 * knows of segments that no record says yet: their files are not removed, nor cut, nor are
 * their slots handed out again. All of it is to be synced by the first commit.
 */
struct segment_known {
    uint32_t id;
    bool home;      /* made since, as a home segment; filled from here on (segments_home_begin) */
    uint64_t slots; /* in use below this */
};
int segments_open_known(const char *path, uint32_t chunk_bytes, uint64_t reserve_bytes,
                        bool read_only, struct metadb *db, const struct segment_known *known,
                        size_t known_count, struct segments **out, struct errmsg *err);
void segments_close(struct segments *s);

uint32_t segments_chunk_bytes(const struct segments *s);

/* Hands out a group of 512 fresh slots; *first is a multiple of 512 (in its
 * slot part). Nothing is durable or counted yet: slots that are not used are
 * simply never used. -ENOSPC when the file system below is down to its
 * reserve. (Slots are free of charge, so allocation of a group checks only;
 * segments_check_space is what write paths ask per write.) */
int segments_alloc_group(struct segments *s, chunk_t *first);

/* The holder of that group will neither write to its fresh slots nor give them
 * their first owner any more (segments_account_live comes before). Exactly once
 * for each group; until then its segment, even if empty, is not unlinked, and
 * stays flagged. At segments_close all groups are given up. */
void segments_group_done(struct segments *s, chunk_t first);
/* The same for a holder whose writers take a slot, write it and account for it
 * inside one read section: those that have begun are waited for (at the next
 * segments_punch), then the group is done. */
void segments_group_release(struct segments *s, chunk_t first);

/* -ENOSPC if writing `bytes` more would eat up the reserve. Cheap: looks at
 * statfs again only after a good part of the last known free space is used,
 * or when the answer would be no. */
int segments_check_space(struct segments *s, uint64_t bytes);

/*
 * Data I/O of `count` neighbouring chunks from `first`, or a byte range that
 * begins `skip_bytes` into `first`. The range may not leave its segment.
 * Whole transfers or an error. Writing marks the segment as needing a sync,
 * after the bytes are written and before the call returns.
 */
int segments_read(struct segments *s, chunk_t first, uint64_t skip_bytes, void *buffer,
                  size_t bytes);
int segments_write(struct segments *s, chunk_t first, uint64_t skip_bytes, const void *buffer,
                   size_t bytes);
/* The same for bytes that have been written before, or reserved: of chunks that have an owner. */
int segments_overwrite(struct segments *s, chunk_t first, uint64_t skip_bytes, const void *buffer,
                       size_t bytes);

/*
 * Where a byte range lies in memory, if the store is on a tmpfs (segment_view.c), for transfers
 * that are large enough (segments_use_views). The chunks have an owner, or a read section is open; it is
 * valid until segments_view_end. Touching it may be a SIGBUS, if somebody has cut the file: let
 * the kernel do it (EFAULT), or segments_view_copy. False: read it.
 */
struct segments_view {
    struct segment *seg;
    uint8_t *data;
};
bool segments_view(struct segments *s, chunk_t first, uint64_t skip_bytes, size_t bytes,
                   struct segments_view *out);
void segments_view_end(struct segments_view *view);
/* From a view. False: read it. */
bool segments_view_copy(const void *data, void *to, size_t bytes);
/* For transfers of at least so much; 0: for none. Before any I/O; without it there are none. */
void segments_use_views(struct segments *s, size_t min_bytes);
/* Gives the page tables of views back: if they have not been used for a while, or now. Those of
 * segments that somebody uses just now stay. */
void segments_drop_views(struct segments *s, bool now);
/* The same if there are too many. By who has just ended a transfer, without anything of it. */
void segments_bound_views(struct segments *s);

/* Whole chunks from the medium itself, past the page cache where the file system
 * below can do that. `buffer` is aligned to 4096 bytes. Slower; for scrub. */
int segments_read_direct(struct segments *s, chunk_t first, void *buffer, size_t bytes);
/* Reserves space below for `count` chunks that read as zeros (fallocate). */
int segments_reserve(struct segments *s, chunk_t first, uint64_t count);
/* The file and offset of a chunk, for passthrough and splice. The descriptor
 * stays the segment's and is valid while the chunk is owned. */
int segments_locate(struct segments *s, chunk_t chunk, int *fd, uint64_t *offset_bytes);

/*
 * A read section: chunks that were looked up inside it are not punched before
 * it ends, even if they lose their last owner meanwhile (a sleepable RCU read
 * section, as in the kernel's srcu.c, with two counters). Sections may not
 * last longer than one request. Returns a token for _exit.
 */
unsigned segments_read_enter(struct segments *s);
void segments_read_exit(struct segments *s, unsigned token);
/* Waits until all sections that had begun before the call have ended. */
void segments_synchronize(struct segments *s);

/* Accounting, inside a transaction: `count` chunks from `first` got their
 * first owner (live) / lost their last (dead). The run stays in one segment. */
void segments_account_live(struct segments *s, chunk_t first, uint32_t count);
/* Dead runs are remembered and punched after the commit that they belong to
 * is durable: segments_flip hands them over, segments_durable releases them to
 * segments_punch. */
void segments_account_dead(struct segments *s, chunk_t first, uint32_t count);

/* Commit, called by txn.c in this order, one commit at a time. */
void segments_flip(struct segments *s);    /* under the exclusive gate: writes changed records
                                              to the metadb's running overlay */
int segments_sync(struct segments *s);     /* fdatasync of written segments; on error the
                                              segment stays marked and -EIO/... is returned */
void segments_durable(struct segments *s); /* that flip's commit is durable */

/* Punches what became free by durable commits, neighbouring runs as one;
 * unlinks empty segments. Calls segments_synchronize first. Slow; called by
 * the reclaim thread (one at a time). Returns the bytes given back. */
uint64_t segments_punch(struct segments *s);
bool segments_punch_waits(struct segments *s);  /* it would find something to do */
bool segments_have_garbage(struct segments *s); /* something waits for flip or punch */
uint64_t segments_garbage_bytes(struct segments *s);

/*
 * After an unclean end: truncate to the cursors now (at open), and punch the
 * slots without owner of flagged segments, and, if the end was `unclean`, of
 * home segments that were being filled. `owned` tells for a run of slots
 * beginning at `first` whether the first is owned, and how many after it are
 * alike (1..limit); negative errno on error. It asks only about slots that
 * earlier processes handed out. To be called before the first
 * segments_account_dead after segments_open (asserted: what is freed since has
 * no owner now, but has one in the last commit). Cheap after a clean end, too,
 * and worth it then: it clears the flags that the last process left.
 */
typedef int (*segments_owned_fn)(void *arg, chunk_t first, uint32_t limit, bool *owned,
                                 uint32_t *alike);
int segments_reclaim(struct segments *s, bool unclean, segments_owned_fn owned, void *arg);
/* What a journal had was done again, is durable, and what that freed has been punched:
 * from here on it counts as what earlier processes did, and segments_reclaim may follow. */
void segments_replayed(struct segments *s);
/* The next segments_sync syncs all segments: earlier processes may have left bytes in the
 * page cache. */
void segments_mark_all_unsynced(struct segments *s);

/*
 * Home segments (segment_home.c). The life of one:
 *
 *     segments_home_new      held: its maker writes to it
 *     segments_home_begin    filling: one file, its filler, gives chunks to slots
 *     segments_home_freeze   frozen: nobody gives a chunk to a slot any more
 *     segments_home_leave    broken: no file is flat by it
 *     last chunk gone        as any segment that is not filling
 *
 * All but _new, _drop and the pins are called inside a transaction.
 */

/* Makes one. Until _begin or _drop it is held: not deleted, but nothing of it
 * outlives a crash. -EOPNOTSUPP if the file system below cannot punch holes,
 * -ENOSPC as segments_alloc_group. */
int segments_home_new(struct segments *s, uint32_t *id);
void segments_home_begin(struct segments *s, uint32_t id);
void segments_home_drop(struct segments *s, uint32_t id);
/* The holder or filler is about to use slots below `end`. -EFBIG if there are
 * not that many. In or outside a transaction, before the slots are mapped. */
int segments_home_reach(struct segments *s, uint32_t id, uint64_t end);
/* There will be readers who rely on its holes: not filled any more. size_bytes:
 * of the file that filled it. */
void segments_home_freeze(struct segments *s, uint32_t id, uint64_t size_bytes);
/* The filler goes its own way, so no file is flat by it (there are no others
 * while it is filled). unowned: there may be bytes in slots that have no owner. */
void segments_home_leave(struct segments *s, uint32_t id, bool unowned);
/* Sealing takes no chunk out of it from now on. */
void segments_home_pack(struct segments *s, uint32_t id);
/* May sealing exchange this chunk for an equal one? True for chunks of shared
 * segments. An intact home segment is broken by that, which is refused while it is
 * packed or pinned, and if keep_flat. */
bool segments_home_take(struct segments *s, chunk_t chunk, bool keep_flat);

struct segment_home {
    bool filling, broken, packed;
    bool unowned;        /* bytes in holes of its file cannot be excluded */
    uint64_t size_bytes; /* of its file, unless filling */
};
/* -ENOENT if there is no such home segment (any more). */
int segments_home_get(struct segments *s, uint32_t id, struct segment_home *out);
/* Keeps the segment from being broken and deleted, and makes its file exactly
 * size_bytes long. *fd stays the segment's, valid until _unpin. -EINVAL if it is
 * broken or may have bytes in holes, -ENOENT if there is none. Pins are counted. */
#define HOME_SIZE_KEPT UINT64_MAX /* as size_bytes: it has been made so before */
int segments_home_pin(struct segments *s, uint32_t id, uint64_t size_bytes, int *fd);
void segments_home_unpin(struct segments *s, uint32_t id);

struct segments_stats {
    uint64_t segment_count;
    uint64_t live_chunks;
    uint64_t allocated_bytes; /* blocks of the segment files on the file system below */
    uint64_t fs_total_bytes, fs_free_bytes, fs_avail_bytes; /* of that file system */
};
int segments_stats(struct segments *s, struct segments_stats *out);

/* Iterates the known segments in order of id (fsck, df). */
struct segment_info {
    uint32_t id;
    uint64_t live_chunks;
    uint64_t cursor_slots;
    uint64_t file_bytes;
    bool file_missing;
};
int segments_each(struct segments *s, int (*fn)(void *arg, const struct segment_info *info),
                  void *arg);

#endif
