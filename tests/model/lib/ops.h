// SPDX-License-Identifier: Apache-2.0
/*
 * ops.h - random operations on a few files, on a store and on a model of it.
 *
 * What operation number i is follows from the seed, i, and the model's state
 * alone, never from the store. So a process that knows no more than how far
 * another one came can go the same way with its own model, and knows what has
 * to be in the store.
 */
#ifndef TESTS_MODEL_OPS_H
#define TESTS_MODEL_OPS_H

#include "cowfs/fs.h"
#include "tests/model/lib/rng.h"
#include "tests/model/lib/sparse.h"

enum { SLOTS = 8 };

/* A place for a file. */
struct slot {
    char name[8];
    struct sparse *content; /* NULL: there is no file */
    bool nameless;          /* unlinked, but still open */
    struct inode *held;     /* that inode, where there is a store */
    /* Since the last commit that is known of: */
    bool touched;        /* changed */
    bool committed;      /* there was a file (versions[0]) */
    GPtrArray *versions; /* of struct sparse: the committed state, and all since */
};

struct world {
    uint64_t seed;
    uint32_t chunk_bytes;
    bool track; /* keep versions */
    bool verbose;
    struct slot slots[SLOTS];
    char text[256]; /* the operation that is under way */
};

void world_init(struct world *w, uint64_t seed, uint32_t chunk_bytes);
void world_clear(struct world *w);

/* Does operation `number`; fs NULL: to the model only. *committed is set if it
 * was an fs_commit. */
void world_step(struct world *w, struct fs *fs, uint64_t number, bool *committed);
/* All that was done so far is durable: older versions are forgotten. */
void world_committed(struct world *w);
/* The store was closed: files without a name are gone. */
void world_close(struct world *w, struct fs *fs);
/* After a crash and the check of it: touched files are removed, so that model
 * and store agree again. */
void world_drop_touched(struct world *w, struct fs *fs);

/* Every file, whole. after_crash: touched ones need only be made of what
 * they could be. */
void world_check(struct world *w, struct fs *fs, bool after_crash);
/* Removes all files; then nothing may be left in the store. */
void world_remove_all(struct world *w, struct fs *fs);

#endif
