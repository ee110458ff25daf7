// SPDX-License-Identifier: Apache-2.0
/*
 * metadb.h - the ordered key/value store under all metadata. The only module
 * that knows RocksDB.
 *
 * States of a change:
 *
 *     metadb_put/delete      metadb_flip         metadb_commit
 *   ------------------> RUNNING ------> COMMITTING ------> RocksDB (durable)
 *
 * RUNNING and COMMITTING are two tables in memory ("overlays").
 * Reads and iterators see RUNNING over COMMITTING over RocksDB, so a caller
 * always sees the newest value. A process that dies loses both overlays and
 * finds the last commit.
 *
 * Invariants:
 *  1. At most one COMMITTING overlay exists. metadb_flip fails with -EBUSY
 *     while one is there (a failed commit leaves it there; commit again).
 *  2. A COMMITTING overlay is never changed.
 *  3. An overlay is written as one synced WriteBatch: all of it or nothing.
 *
 * Threads: every function may be called from any thread at any time, except
 * flip and commit, which the caller serialises (txn.c), and close.
 * Errors: 0 or negative errno. A RocksDB I/O error is mapped to -ENOSPC where
 * its text or the last errno says so, else to -EIO; corruption is -EUCLEAN.
 */
#ifndef CHUNKSTORE_METADB_H
#define CHUNKSTORE_METADB_H

#include "chunkstore/errmsg.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes in a key, at most. */
#define METADB_KEY_MAX 65535

struct metadb;
struct metadb_iter;

struct metadb_options {
    bool create;              /* make the database if it is missing */
    bool read_only;           /* open without writing anything (fsck) */
    bool in_memory;           /* no RocksDB below: for unit tests */
    bool accept_loss;         /* open although durable commits are missing (repair) */
    size_t block_cache_bytes; /* 0: a small default */
};

/* A value handed to the caller, who frees it with metadb_value_free. */
struct metadb_value {
    uint8_t *data;
    size_t len;
};

/* Opens the database in directory `path`. -ENOENT if it is missing and
 * `create` is off, -EUCLEAN if it is damaged, -EBUSY if it is open already.
 * Not before a fork: RocksDB's threads do not survive one. */
int metadb_open(const char *path, const struct metadb_options *options, struct metadb **out,
                struct errmsg *err);
/* Durable commits are missing: the database's log is damaged. Only with accept_loss;
 * else such a database is refused, -EUCLEAN. */
bool metadb_lost_commits(const struct metadb *db);
/* Drops what was not committed, closes, frees. NULL is allowed. */
void metadb_close(struct metadb *db);

/* -ENOENT if the key is absent. */
int metadb_get(struct metadb *db, const void *key, size_t key_len, struct metadb_value *out);
void metadb_value_free(struct metadb_value *value);

/* One of many look-ups: the value is copied to where the caller has room. */
struct metadb_query {
    const void *key;
    size_t key_len;
    void *value;
    size_t value_room;
    size_t value_len; /* out: the value's whole length, also if that is more than value_room */
    int error;        /* out: as of metadb_get */
};

enum metadb_scope {
    METADB_ALL,
    METADB_UNCOMMITTED, /* RUNNING and COMMITTING only; absent there is -ENOENT */
};

/* Many look-ups under one lock: cheaper than as many metadb_get. */
void metadb_get_many(struct metadb *db, struct metadb_query *queries, size_t n,
                     enum metadb_scope scope);

/* Into the RUNNING overlay. Key and value are copied. Cannot fail. */
void metadb_put(struct metadb *db, const void *key, size_t key_len, const void *value,
                size_t value_len);
void metadb_delete(struct metadb *db, const void *key, size_t key_len);

struct metadb_change {
    const void *key;
    size_t key_len;
    const void *value; /* NULL: delete */
    size_t value_len;
};

/* Many puts and deletes under one lock, which makes no reader wait long if
 * there are some hundred at most. */
void metadb_change_many(struct metadb *db, const struct metadb_change *changes, size_t n);

/*
 * Iterates keys in [lower, upper) in byte order; upper_len 0: no upper bound.
 * Not a snapshot: changes made meanwhile may or may not be seen, but a key
 * that exists all the while is seen exactly once. key/value are valid until
 * the next call on the iterator.
 */
struct metadb_iter *metadb_iter_new(struct metadb *db, const void *lower, size_t lower_len,
                                    const void *upper, size_t upper_len);
bool metadb_iter_valid(const struct metadb_iter *it);
void metadb_iter_next(struct metadb_iter *it);
const uint8_t *metadb_iter_key(const struct metadb_iter *it, size_t *len);
const uint8_t *metadb_iter_value(const struct metadb_iter *it, size_t *len);
/* 0, or the error that made the iteration end early. */
int metadb_iter_status(const struct metadb_iter *it);
void metadb_iter_free(struct metadb_iter *it);

/* RUNNING becomes COMMITTING. -EBUSY while a COMMITTING overlay exists. */
int metadb_flip(struct metadb *db);
/*
 * Writes COMMITTING, synced, and drops it. On error it stays, reads go on
 * seeing it, and the call may be repeated; after an error RocksDB itself is
 * closed and opened again inside (it stays failed otherwise: facts). Reads
 * from other threads wait for that. On a full file system, -ENOSPC, they go
 * on: RocksDB is then open for reading only until a later call succeeds.
 * A small commit gets through in the room of a reserve file, so a full store
 * can still delete. 0 if there is nothing to commit; -EROFS if read_only.
 */
int metadb_commit(struct metadb *db);
bool metadb_commit_pending(struct metadb *db);

/* Memory that the RUNNING overlay takes, about: keys, values, what finds them,
 * and values that were replaced by larger ones. 0 if nothing is in it. */
uint64_t metadb_running_bytes(struct metadb *db);
/* Bytes that the database takes below (allocated blocks of its files). */
uint64_t metadb_disk_bytes(struct metadb *db);
/* Asks RocksDB to drop deleted and superseded records now (after mass
 * deletes), so that their space returns to the file system. Slow. */
int metadb_compact(struct metadb *db);

#endif
