// SPDX-License-Identifier: Apache-2.0
/*
 * disk.h - the disk below a store, in the hands of a test.
 *
 * Programs that are linked with this have other functions where the C library
 * has those that change files (disk_calls.c): those of cowfs, and RocksDB's as
 * well. tests/model/seam.sh looks that none is left out. For files below one
 * directory they
 *
 *   record   each change, with its bytes, in the order in which they were made,
 *            and where each sync began and ended (a log, disk_log.c);
 *   fail     with an error that the test chooses, from the k-th call on.
 *
 * From a log, a replay (disk_replay.c) makes the directory as a power cut at
 * any point of it could have left it:
 *
 *   - What a sync that had returned covers is there. A sync covers the bytes and
 *     the size of its file, or the names in its directory, in so far as they
 *     were changed before it began; nothing else.
 *   - Of everything else each page is on the disk as it was at any moment since,
 *     independent of the others; or torn between two such moments, by sectors
 *     of 512 bytes. So is the size, and each name (a rename takes place as a
 *     whole, or not; in RocksDB's directory in their order, as on a file system
 *     with a journal). A punched page is a page of zeros.
 *   - Pages that a failed sync covered are not written by a later one: the
 *     kernel takes them for clean.
 */
#ifndef TESTS_MODEL_DISK_H
#define TESTS_MODEL_DISK_H

#include "tests/model/lib/rng.h"

#include <glib.h>

enum disk_kind {
    DISK_WRITE = 1,  /* file, offset, length; the bytes */
    DISK_PUNCH,      /* file, offset, length */
    DISK_SIZE,       /* file, length: the new size */
    DISK_CREATE,     /* file, dir, name */
    DISK_MKDIR,      /* file, dir, name */
    DISK_UNLINK,     /* dir, name; a directory's as well */
    DISK_RENAME,     /* file or DISK_UNKNOWN, dir, name, second name */
    DISK_SYNC_BEGIN, /* file or directory */
    DISK_SYNC_END,   /* the same; offset: index of its beginning; error */
    DISK_MARK,       /* file: what, offset: number; of the test */
};

/* Of a file that was made in a way that is not recorded (RocksDB's text log). */
#define DISK_UNKNOWN UINT32_MAX

/* The root directory is file 0. */
struct disk_op {
    uint32_t kind;
    uint32_t file;
    uint32_t dir;
    int32_t error;
    uint64_t offset, length;
    uint64_t payload_bytes;
    uint8_t payload[]; /* bytes, or names, each with its NUL */
};

/* ---- a log: in shared memory, so that who forked can read it ---- */

struct disk_log;
struct disk_log *disk_log_new(void);
void disk_log_free(struct disk_log *log);
uint64_t disk_log_count(const struct disk_log *log);
const struct disk_op *disk_log_op(const struct disk_log *log, uint64_t index);
/* Thread-safe. payload may be NULL. Returns the index. */
uint64_t disk_log_add(struct disk_log *log, const struct disk_op *op, const void *payload);

/* ---- the functions of the C library ---- */

/* From now on, for the rest of this process. What is there already is taken
 * for durable, and recorded first. log NULL: faults only. */
void disk_record(struct disk_log *log, const char *root);
void disk_mark(uint32_t what, uint64_t number);
/* Stops the world: every later change of files below root, by any thread,
 * waits for ever. */
void disk_stop(void);

/* The calls number first .. first + count - 1 from now (0 is the next one) fail
 * with `error`, of those that can give that error: ENOSPC only where space is
 * asked for. */
void disk_fail(uint64_t first, uint64_t count, int error);
/* Calls since disk_fail that could have failed, and how many did. */
uint64_t disk_calls(uint64_t *failed);

/* ---- what is left after a cut ---- */

/* For showing that a test notices: such syncs are believed to have done nothing. */
enum disk_lie { DISK_LIE_NONE, DISK_LIE_DATA, DISK_LIE_LOG, DISK_LIE_NAMES };

struct disk_replay;
struct disk_replay *disk_replay_new(const struct disk_log *log, enum disk_lie lie);
void disk_replay_free(struct disk_replay *r);
/* The cut is before operation `index`; never back. */
void disk_replay_advance(struct disk_replay *r, uint64_t index);
/* Makes the directory `path`, which must not exist. Returns how many pages and
 * names were not as the writer had left them. */
uint64_t disk_replay_build(struct disk_replay *r, const char *path, struct rng *rng);

/* Which file an operation is about: "segments/00000001", of its first name. */
const char *disk_replay_name(const struct disk_replay *r, uint32_t file);

#endif
