// SPDX-License-Identifier: Apache-2.0
/*
 * content_index.h - content hash -> chunk, and back.
 *
 * The hash is XXH3-128 with the store's secret: fast, and without the secret
 * nobody can make two contents collide. It is a hint all the same: the index
 * is keyed by its first 8 bytes, and who finds a chunk here compares the bytes
 * before he shares it. If two contents collide, the first keeps the entry and
 * the second stays sealed without one.
 *
 *   KEY_CONTENT    domain, first 8 bytes of hash -> chunk   to find an equal
 *   KEY_CHUNK_HASH chunk -> hash, domain                    scrub; to clean up
 *   KEY_DEAD_SEALED first chunk -> count                    freed, not yet removed
 *
 * Each content that can be found belongs to a *domain*, and is found by those who
 * look in that domain only. Domains are numbers; which there are is the caller's affair.
 * In KEY_CONTENT the domain is mixed into the 8 bytes, so that one chunk found there
 * which has the very bytes that were looked for is of the very domain, too.
 *
 * A chunk that is freed leaves its records behind (removing them costs two
 * random deletes a chunk, too slow for deleting a file); the run is noted as
 * dead in the same commit, and content_index_clean removes them afterwards.
 * Until then a look-up may give a chunk without owner: check its count.
 *
 * Threads: any. Changes inside a transaction.
 */
#ifndef CHUNKSTORE_CONTENT_INDEX_H
#define CHUNKSTORE_CONTENT_INDEX_H

#include "chunkstore/segment.h"
#include "chunkstore/superblock.h"

struct content_hash {
    uint8_t bytes[16]; /* XXH128 canonical (big-endian) form */
};

enum {
    CONTENT_DOMAIN_DEFAULT = 0, /* what is not recorded with a domain */
};

/* The record of a sealed chunk. */
struct content_record {
    struct content_hash hash;
    uint32_t domain;
};
enum { CONTENT_RECORD_BYTES_MAX = 20 };

/* -EUCLEAN if it is damaged. */
int content_record_decode(const void *value, size_t len, struct content_record *out);
/* Under which number KEY_CONTENT would have it. */
uint64_t content_record_number(const struct content_record *record);

typedef struct content_hash (*content_hash_fn)(const void *data, size_t bytes,
                                               const uint8_t secret[HASH_SECRET_BYTES]);

/* The real one; tests put a weaker one in its place to make collisions. */
struct content_hash content_hash_xxh3(const void *data, size_t bytes,
                                      const uint8_t secret[HASH_SECRET_BYTES]);

/* -ENOENT if there is none in that domain. */
int content_index_find(struct metadb *db, const struct content_record *content, chunk_t *chunk);

/* The same for many at once, which is several times cheaper. */
struct content_query {
    const struct content_hash *hash;
    uint32_t domain;
    chunk_t found; /* out; 0: there is none */
};
/* With METADB_UNCOMMITTED what was added of late is seen, and nothing else. */
int content_index_find_many(struct metadb *db, struct content_query *queries, unsigned n,
                            enum metadb_scope scope);

/* Records the hashes of sealed chunks. */
struct content_entry {
    struct content_record content;
    chunk_t chunk;
    bool findable; /* as the one to be found for this content: there is no other living one */
};
void content_index_add_many(struct metadb *db, const struct content_entry *entries, unsigned n);

/* What is recorded of `n` neighbouring chunks; has[i]: there is something. */
int content_index_records(struct metadb *db, chunk_t first, unsigned n, struct content_record *out,
                          bool *has);

/* The chunk, of which that is recorded, shall be found in another domain, and not any more in
 * the one where it is. Not while somebody else moves or cleans. */
int content_index_move(struct metadb *db, chunk_t chunk, const struct content_record *now,
                       uint32_t domain);

/* Removes records of dead chunks, about `limit` of them; *more if some are
 * left. */
int content_index_clean(struct metadb *db, uint64_t limit, bool *more);

#endif
