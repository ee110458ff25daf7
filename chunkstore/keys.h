// SPDX-License-Identifier: Apache-2.0
/*
 * keys.h - the key space of the metadata database (docs/FORMAT.md).
 *
 * A key is one type byte, then big-endian integers, then (xattrs) a name.
 */
#ifndef CHUNKSTORE_KEYS_H
#define CHUNKSTORE_KEYS_H

#include "chunkstore/bytes.h"

enum key_type {
    KEY_META = 'm',         /* the store's counters: one record */
    KEY_SEGMENT = 'g',      /* segment id -> segment record */
    KEY_CHUNK_COUNTS = 'c', /* chunk number / 512 -> counts of 512 chunks */
    KEY_NODE_COUNTS = 'k',  /* node id / 512 -> counts of 512 nodes */
    KEY_NODE = 'n',         /* node id -> block map node */
    KEY_INODE = 'i',        /* inode number -> inode */
    KEY_DIRENT = 'd',       /* directory inode, hash of name -> entries */
    KEY_XATTR = 'x',        /* inode, name -> value */
    KEY_ORPHAN = 'o',       /* inode with no links left, to be freed */
    KEY_CONTENT = 'h',      /* domain, first 8 bytes of content hash -> chunk number */
    KEY_CHUNK_HASH = 's',   /* chunk number -> content hash, domain */
    KEY_DEAD_SEALED = 'q',  /* first chunk -> count: freed, still in the index */
    KEY_UNSEALED = 'u',     /* inode that has chunks to be sealed */
    KEY_DAMAGED = 'b',      /* chunk whose bytes are known to be wrong */
};

enum { KEY_MAX = 32 };

static inline size_t key_u64(uint8_t *key, enum key_type type, uint64_t a)
{
    key[0] = (uint8_t)type;
    put_be64(key + 1, a);
    return 9;
}

static inline size_t key_u64_u64(uint8_t *key, enum key_type type, uint64_t a, uint64_t b)
{
    key[0] = (uint8_t)type;
    put_be64(key + 1, a);
    put_be64(key + 9, b);
    return 17;
}

#endif
