// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_store.h - a small real store, and means to damage it record by record.
 *
 * The store is made by the library, as the daemon would, and closed. Changes
 * of records are gathered in `db` and written by fsck_store_commit; all
 * functions assert that they succeed.
 */
#ifndef TESTS_FSCK_STORE_H
#define TESTS_FSCK_STORE_H

#include "chunkstore/keys.h"
#include "chunkstore/metadb.h"
#include "cowfs/fs.h"
#include "cowfs/meta.h"

/* Wide, so that products of it are. */
#define STORE_CHUNK UINT64_C(4096)
enum { A_CHUNKS = 1536, SEALED_CHUNKS = 64 };

/*
 * /dir/a      1536 chunks: two levels, three leaves
 * /dir/b      a clone of a with one chunk written: shares two leaves
 * /dir/c      a clone of a: shares the root
 * /dir/sub/   with `small` in it, which has an attribute
 * /hard1, /hard2  one inode
 * /sym /pipe /empty
 * /s1, /s2    64 equal chunks, sealed
 * /reserved   one chunk, and reserved ones behind its end
 * /sparse     one chunk at 3 TiB
 */
struct fsck_store {
    char *path;
    uint64_t dir, a, b, c, sub, small, hard, sym, pipe, empty, s1, s2, reserved, sparse;
    struct superblock sb;
    struct metadb *db; /* open while records are changed */
};

struct fsck_store *fsck_store_make(void);
void fsck_store_remove(struct fsck_store *s);
/* The same tree in a store that is open already. */
void fsck_store_fill(struct fs *fs, struct fsck_store *s);
struct fs *fsck_store_open(const struct fsck_store *s);
/* A path below the store's directory, to be freed. */
char *fsck_store_file(const struct fsck_store *s, const char *name);

void fsck_store_edit(struct fsck_store *s);
void fsck_store_commit(struct fsck_store *s);

/* A record by a key of one number. get: it must be there; free it. */
struct metadb_value record_get(struct fsck_store *s, enum key_type type, uint64_t a);
void record_put(struct fsck_store *s, enum key_type type, uint64_t a, const void *data, size_t len);
void record_delete(struct fsck_store *s, enum key_type type, uint64_t a);

struct inode_attr inode_record(struct fsck_store *s, uint64_t ino); /* free target */
void inode_record_put(struct fsck_store *s, uint64_t ino, const struct inode_attr *attr);
struct meta meta_record(struct fsck_store *s);
void meta_record_put(struct fsck_store *s, const struct meta *meta);

unsigned node_record(struct fsck_store *s, uint64_t id, uint64_t entries[NODE_ENTRIES]);
void node_record_put(struct fsck_store *s, uint64_t id, unsigned level,
                     const uint64_t entries[NODE_ENTRIES]);
/* The map's root of a file, and node below a node. */
uint64_t root_of(struct fsck_store *s, uint64_t ino);
uint64_t child_of(struct fsck_store *s, uint64_t node, unsigned entry);
/* The chunk at that index of a file. */
chunk_t chunk_at(struct fsck_store *s, uint64_t ino, uint64_t index);

/* Counts of a node or chunk (KEY_NODE_COUNTS, KEY_CHUNK_COUNTS). */
struct count_info count_of(struct fsck_store *s, enum key_type type, uint64_t id);
/* A chunk of segment 1 that was handed out, but has no owner and no hash. */
chunk_t unowned_chunk(struct fsck_store *s);
/* A group of counts with owners, none of them of a sealed chunk. */
uint64_t unsealed_group(struct fsck_store *s);
void count_put(struct fsck_store *s, enum key_type type, uint64_t id, struct count_info info);

struct segment_fields {
    uint64_t flags, live, cursor;
};
struct segment_fields segment_record(struct fsck_store *s, uint32_t id);
void segment_record_put(struct fsck_store *s, uint32_t id, const struct segment_fields *fields);

/* A record of directory entries. */
struct entry_spec {
    const char *name;
    uint64_t ino;
    uint32_t type;
};
uint64_t hash_of(const struct fsck_store *s, const char *name);
void entries_put(struct fsck_store *s, uint64_t dir, uint64_t hash,
                 const struct entry_spec *entries, size_t n);
void entries_delete(struct fsck_store *s, uint64_t dir, uint64_t hash);

#endif
