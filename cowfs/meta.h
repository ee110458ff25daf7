// SPDX-License-Identifier: Apache-2.0
/*
 * meta.h - the record KEY_META: what a store knows about itself as a whole
 * (docs/FORMAT.md, "Meta record"). Written with every commit that changes it.
 */
#ifndef COWFS_META_H
#define COWFS_META_H

#include "chunkstore/bytes.h"

struct meta {
    bool clean;            /* closed in order; nobody has it open */
    uint64_t next_ino;     /* inode numbers from here on were never used */
    uint64_t next_node_id; /* the same of block map nodes */
    uint64_t inode_count;
    uint64_t chunks_live; /* chunks with an owner */
    uint64_t merges;      /* owners that came by deduplication */
    bool domains;         /* records of content with a domain may exist (domain.h) */
    bool has_public;      /* so may such of public content */
    uint64_t journal;     /* the redo journal in use (journal.h), 0: none */
    uint64_t journal_seq; /* up to here what is in it is in this commit, too */
};

void meta_encode(const struct meta *meta, struct wbuf *out);
/* -EUCLEAN if the record is damaged or of an unknown version. */
int meta_decode(const void *record, size_t len, struct meta *out);

#endif
