// SPDX-License-Identifier: Apache-2.0
/*
 * metadb_internal.h - what the files of metadb share with each other.
 *
 *   metadb.c          the public calls, the states RUNNING and COMMITTING
 *   metadb_iter.c     iteration over all layers
 *   metadb_overlay.c  records, and ordered tables of them in memory
 *   metadb_rocks.c    RocksDB: options, errors, opening, reading
 *   metadb_write.c    RocksDB: writing, and recovery from failed writes
 *   metadb_files.c    the database's directory: size, reserve file, WAL marks
 */
#ifndef CHUNKSTORE_METADB_INTERNAL_H
#define CHUNKSTORE_METADB_INTERNAL_H

#ifndef G_LOG_DOMAIN
#define G_LOG_DOMAIN "cowfs"
#endif

#include "chunkstore/metadb.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

/* ---- records and overlays (metadb_overlay.c) ---- */

/*
 * One key with its value or tombstone. Never changed once made, and counted,
 * so an iterator can hold what it has seen without a copy and without a lock.
 */
struct record {
    const uint8_t *key;
    const uint8_t *value; /* NULL: a tombstone; not NULL for an empty value */
    size_t key_len;
    size_t value_len;
    atomic_uint refs;
    uint8_t bytes[]; /* where key and value point to */
};

/* `value` NULL makes a tombstone. The caller owns one reference. */
struct record *record_new(const void *key, size_t key_len, const void *value, size_t value_len);
struct record *record_ref(struct record *record);
/* For GLib's sake a void pointer. */
void record_unref(void *record);
bool record_is_tombstone(const struct record *record);

/* The byte order of keys that RocksDB's default comparator uses, too. */
int key_compare(const void *a, size_t a_len, const void *b, size_t b_len);

/* An ordered table of records. Has no lock of its own. */
struct overlay {
    GTree *tree; /* struct record -> itself */
    uint64_t bytes;
};

struct overlay *overlay_new(void);
void overlay_free(struct overlay *overlay);
/* Adds or replaces; takes over the caller's reference. */
void overlay_set(struct overlay *overlay, struct record *record);
/* Removes the key itself, tombstone or not, if it is there. */
void overlay_forget(struct overlay *overlay, const void *key, size_t key_len);
/* Borrowed; NULL if the overlay says nothing about the key. */
struct record *overlay_lookup(const struct overlay *overlay, const void *key, size_t key_len);
/* The first record at or after `key`; then step by step. NULL at the end. */
GTreeNode *overlay_seek(const struct overlay *overlay, const void *key, size_t key_len);
GTreeNode *overlay_first(const struct overlay *overlay);
GTreeNode *overlay_next(GTreeNode *node);
struct record *overlay_record(GTreeNode *node);

/* ---- the database's directory (metadb_files.c) ---- */

/* The newest write-ahead log and its length: what a failed write is cut back to. */
struct wal_mark {
    uint64_t number;
    off_t size_bytes;
};

enum db_dir_state {
    DB_DIR_MISSING, /* no directory, or nothing of a database in it */
    DB_DIR_PRESENT, /* CURRENT is there */
    DB_DIR_DAMAGED, /* CURRENT is gone, but logs or tables are there */
};

/* 0 and the state, or a negative errno. */
int db_dir_inspect(const char *path, enum db_dir_state *state);
uint64_t db_dir_bytes(const char *path);
/* Removes what RocksDB forgets; only while we have it open for writing. */
void db_dir_tidy(const char *path);
int wal_mark_take(const char *path, struct wal_mark *mark);
int wal_mark_roll_back(const char *path, const struct wal_mark *mark);
bool reserve_exists(const char *path);
/* 0 if it is there now. */
int reserve_make(const char *path);
/* True if space was freed. */
bool reserve_drop(const char *path);

/* ---- RocksDB (metadb_rocks.c, metadb_write.c) ---- */

struct rocks;

int rocks_open(const char *path, const struct metadb_options *options, struct rocks **out,
               struct errmsg *err);
void rocks_close(struct rocks *rocks);
int rocks_get(struct rocks *rocks, const void *key, size_t key_len, struct metadb_value *out);

/* Called with keys in ascending order; returns false to end the scan. Must not
 * call back into `rocks`. */
typedef bool (*rocks_visit)(void *context, const void *key, size_t key_len, const void *value,
                            size_t value_len);
/* Visits [lower, upper), upper_len 0: no bound, of one moment's state. */
int rocks_scan(struct rocks *rocks, const void *lower, size_t lower_len, const void *upper,
               size_t upper_len, rocks_visit visit, void *context);
/* One synced WriteBatch. Calls are serialised by the caller. */
int rocks_write(struct rocks *rocks, const struct overlay *overlay);
int rocks_compact(struct rocks *rocks);

/* ---- the public object (metadb.c) ---- */

/*
 * Invariants besides the header's:
 *  4. `lock` guards the overlay pointers and the contents of `running` and
 *     `durable`; no I/O is done under it. `committing` is read without it by
 *     metadb_commit, because only flip and commit replace it (serialised).
 *  5. Exactly one of `rocks` and `durable` is not NULL.
 *  6. A reader looks at the layers from the newest to the oldest. A change
 *     only ever moves down, so one that is on its way is met at least once.
 */
struct metadb {
    char *path;
    bool read_only;
    pthread_rwlock_t lock;
    struct overlay *running;
    struct overlay *committing; /* NULL: none */
    struct overlay *durable;    /* in_memory's stand-in for RocksDB */
    struct rocks *rocks;
};

/* A lock that lets a waiting writer pass before new readers: with glibc's
 * default a stream of readers starves metadb_put. */
void writer_first_rwlock_init(pthread_rwlock_t *lock);

#endif
