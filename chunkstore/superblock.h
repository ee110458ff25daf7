// SPDX-License-Identifier: Apache-2.0
/*
 * superblock.h - what a store is: format version, features, geometry, secret.
 *
 * The file STORE/superblock is written once, when the store is made
 * (temporary name, fsync, rename, fsync of the directory), and never changed
 * by daily work. Its layout is in docs/FORMAT.md: fixed 4096 bytes, magic,
 * version, three sets of feature bits as in ext4 (compat: may be ignored;
 * ro_compat: read-only use is possible; incompat: refuse), checksum.
 *
 * The lock of a store is an flock on STORE/lock, held as long as it is open.
 */
#ifndef CHUNKSTORE_SUPERBLOCK_H
#define CHUNKSTORE_SUPERBLOCK_H

#include "chunkstore/errmsg.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SUPERBLOCK_BYTES = 4096,
    SUPERBLOCK_VERSION = 1,
    HASH_SECRET_BYTES = 192, /* what XXH3 wants as a custom secret (>= 136) */
    CHUNK_BYTES_MIN = 4096,
    CHUNK_BYTES_MAX = 65536,
    CHUNK_BYTES_DEFAULT = 4096,
    SEGMENT_SLOTS = 1 << 20, /* chunks a segment has room for */
};

struct superblock {
    uint32_t version;
    uint64_t features_compat;
    uint64_t features_ro_compat;
    uint64_t features_incompat;
    uint8_t uuid[16];
    uint32_t chunk_bytes; /* power of two, CHUNK_BYTES_MIN..MAX */
    uint64_t created_s;   /* seconds since 1970 */
    uint8_t hash_secret[HASH_SECRET_BYTES];
};

/* True if the directory `path` is missing or empty (or has lost+found only),
 * so that a store may be made there. Negative errno on other trouble. */
int superblock_store_is_absent(const char *path, bool *absent, struct errmsg *err);

/* Makes the directory if it is missing, and a new superblock with a random
 * uuid and secret. -EEXIST if there is one already; -ENOTEMPTY if there is
 * something else in the directory; -EINVAL for a chunk size that is no power of
 * two in range. */
int superblock_create(const char *path, uint32_t chunk_bytes, struct errmsg *err);

/*
 * Reads and checks it. -ENOENT: no store there; -EMEDIUMTYPE: a file that is
 * no cowfs superblock; -EUCLEAN: truncated or damaged; -ENOTSUP: a version or
 * an incompat feature that this program does not know (named in err);
 * -EROFS: an unknown ro_compat feature and !read_only.
 */
int superblock_read(const char *path, bool read_only, struct superblock *out, struct errmsg *err);

/* Takes the lock; waits for half a second, and for up to a minute if who has it says that he is
 * closing the store. Returns a descriptor to be closed, or
 * -EBUSY (err names the process that holds it, where that is known). Children
 * share it: after a fork it is held until the last copy is closed. The process
 * named is the one that called, so call it after going into the background. */
int store_lock(const char *path, struct errmsg *err);
/* The same for one whose lock another process has taken, and shares: lock_fd remains the
 * caller's. -ESTALE if that is not the lock of this store. */
int store_lock_shared(const char *path, int lock_fd, struct errmsg *err);
/* Tells whoever waits in store_lock that the store is being closed. */
void store_lock_closing(const char *path, int lock_fd);

#endif
