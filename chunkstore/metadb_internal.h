// SPDX-License-Identifier: Apache-2.0
/*
 * metadb_internal.h - what the files of metadb share with each other.
 *
 *   metadb.c          the public calls, the states RUNNING and COMMITTING
 *   metadb_iter.c     iteration over all layers
 *   metadb_overlay.c  tables of records in memory, ordered when that is asked for
 *   metadb_rocks.c    RocksDB: options, errors, opening, reading
 *   metadb_write.c    RocksDB: writing, and recovery from failed writes
 *   metadb_files.c    the database's directory: size, reserve file, WAL marks
 *   metadb_durable.c  how far the database had come, in a file of its own
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

/* The byte order of keys that RocksDB's default comparator uses, too. */
int key_compare(const void *a, size_t a_len, const void *b, size_t b_len);

/* A key with its value or tombstone. Belongs to its overlay. */
struct record;

const uint8_t *record_key(const struct record *record, size_t *len);
/* NULL: a tombstone; not NULL for an empty value. */
const uint8_t *record_value(const struct record *record, size_t *len);

/* A table of records. Has no lock of its own. */
struct overlay;

struct overlay *overlay_new(void);
void overlay_free(struct overlay *overlay);
/* Memory that the records take, about. 0 if there are none. */
uint64_t overlay_bytes(const struct overlay *overlay);
uint64_t overlay_count(const struct overlay *overlay);

/* What the calls below want to know of a key; computed outside of locks. */
uint64_t overlay_hash(const void *key, size_t key_len);
/* Has the processor fetch what the next two will look at first. */
void overlay_prefetch(const struct overlay *overlay, uint64_t hash);
/* Adds or replaces; copies. `value` NULL makes a tombstone. */
void overlay_set(struct overlay *overlay, uint64_t hash, const void *key, size_t key_len,
                 const void *value, size_t value_len);
/* NULL if the overlay says nothing about the key. */
const struct record *overlay_lookup(const struct overlay *overlay, uint64_t hash, const void *key,
                                    size_t key_len);

/*
 * Order is made only when somebody asks for it, by the keys' first bytes (their
 * types). overlay_order brings records of these types in order, at most *budget,
 * which it lowers; true if none is left. It changes what overlay_seek and
 * overlay_step read, so it counts as a change for the lock, but nothing that
 * the other functions read: the commit may run overlay_each_sorted meanwhile.
 */
bool overlay_order(struct overlay *overlay, unsigned first_type, unsigned last_type,
                   uint64_t *budget);
bool overlay_is_ordered(const struct overlay *overlay, unsigned first_type, unsigned last_type);

/* Walks in order, through types that are in order. */
struct overlay_cursor {
    const struct overlay *overlay;
    GTreeNode *node;
    unsigned type;
    unsigned last_type;
};

/* At the first record at or after `key` whose type is at most last_type. */
void overlay_seek(struct overlay_cursor *cursor, const struct overlay *overlay, const void *key,
                  size_t key_len, unsigned last_type);
/* NULL at the end. */
const struct record *overlay_at(const struct overlay_cursor *cursor);
void overlay_step(struct overlay_cursor *cursor);

/* All records, in order, whether or not that was made. */
typedef void (*overlay_visit)(void *context, const struct record *record);
void overlay_each_sorted(const struct overlay *overlay, overlay_visit visit, void *context);

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
/* After a write: the same, if that went to the log of the mark, else false. Spares
 * listing the directory at each commit. */
bool wal_mark_advance(const char *path, struct wal_mark *mark);
int wal_mark_roll_back(const char *path, const struct wal_mark *mark);
bool reserve_exists(const char *path);
/* 0 if it is there now. */
int reserve_make(const char *path);
/* True if space was freed. */
bool reserve_drop(const char *path);

/* ---- the number of the last commit (metadb_durable.c) ---- */

/* A descriptor, or a negative errno, which the other calls take for "nothing". */
int durable_open(const char *path, bool read_only);
/* 0: nothing is known. */
uint64_t durable_read(int fd);
void durable_note(int fd, uint64_t sequence);
void durable_close(int fd);

/* ---- RocksDB (metadb_rocks.c, metadb_write.c) ---- */

struct rocks;

int rocks_open(const char *path, const struct metadb_options *options, struct rocks **out,
               struct errmsg *err);
void rocks_close(struct rocks *rocks);
int rocks_get(struct rocks *rocks, const void *key, size_t key_len, struct metadb_value *out);
/* Answers the queries whose error is -EAGAIN. */
void rocks_get_many(struct rocks *rocks, struct metadb_query *queries, size_t n);

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
/* Commits that were durable are missing (and options allowed that). */
bool rocks_lost_commits(const struct rocks *rocks);

/* ---- the public object (metadb.c) ---- */

/*
 * Invariants besides the header's:
 *  4. `lock` guards the overlay pointers, the contents of `running` and
 *     `durable`, and the order of all three; no I/O is done under it.
 *     `committing`, but for its order, is read without it by metadb_commit,
 *     because only flip and commit replace it (serialised).
 *  5. Exactly one of `rocks` and `durable` is not NULL.
 *  6. A reader looks at the layers from the newest to the oldest. A change
 *     only ever moves down, so one that is on its way is met at least once.
 */
struct metadb {
    char *path;
    bool read_only;
    pthread_rwlock_t lock;
    struct overlay *running;
    atomic_uint_fast64_t running_bytes; /* asked for by each write: not under the lock */
    struct overlay *committing;         /* NULL: none */
    struct overlay *durable;            /* in_memory's stand-in for RocksDB */
    struct rocks *rocks;
};

/* A lock that lets a waiting writer pass before new readers: with glibc's
 * default a stream of readers starves metadb_put. */
void writer_first_rwlock_init(pthread_rwlock_t *lock);

#endif
