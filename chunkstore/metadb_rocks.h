// SPDX-License-Identifier: Apache-2.0
/*
 * metadb_rocks.h - what metadb_rocks.c (open, read) and metadb_write.c share.
 */
#ifndef CHUNKSTORE_METADB_ROCKS_H
#define CHUNKSTORE_METADB_ROCKS_H

#include "chunkstore/metadb_internal.h"

#include <rocksdb/c.h>

/* Bounds the log, too, and so what a quiet store costs on tmpfs. */
#define MEMTABLE_BYTES (4u << 20)

enum rocks_state {
    ROCKS_CLOSED, /* handle is NULL, open_error says why */
    ROCKS_OPEN,
    ROCKS_RESCUED,   /* open, with rescue_options */
    ROCKS_READ_ONLY, /* as asked for, or because no file could be written */
};

/*
 * Invariants:
 *  1. `lock` is held for reading around every use of `handle`, `state` and
 *     `open_error`, and for writing while they are changed.
 *  2. Only rocks_write changes `handle` and `state` once rocks_open is through,
 *     and its calls are serialised, so it may look at them without the lock.
 */
struct rocks {
    pthread_rwlock_t lock;
    enum rocks_state state;
    rocksdb_t *handle;
    int open_error;
    bool has_reserve;
    bool lost_commits;
    int durable_fd;       /* metadb_durable.c */
    struct wal_mark mark; /* for the next write, serialised as in 2; number 0: to be taken */
    char *path;
    rocksdb_options_t *options;
    rocksdb_options_t *rescue_options;
    rocksdb_readoptions_t *read_options;
    rocksdb_writeoptions_t *write_options;
    rocksdb_cache_t *block_cache;
};

/* Frees RocksDB's error text, after logging it, and returns its code; 0 if it
 * is NULL. */
int rocks_take_error(char *text, const char *path, const char *what);
/* Opens for `state`, which becomes rocks->state; on failure that is CLOSED and
 * the error is returned. */
int rocks_open_handle(struct rocks *rocks, enum rocks_state state, struct errmsg *err);
/* The same, in the best state that a full file system allows. */
int rocks_open_when_full(struct rocks *rocks, struct errmsg *err);
void rocks_close_handle(struct rocks *rocks);

#endif
