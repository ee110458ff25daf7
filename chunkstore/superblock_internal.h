// SPDX-License-Identifier: Apache-2.0
/*
 * superblock_internal.h - what superblock.c and superblock_dir.c share.
 */
#ifndef CHUNKSTORE_SUPERBLOCK_INTERNAL_H
#define CHUNKSTORE_SUPERBLOCK_INTERNAL_H

#include "chunkstore/superblock.h"

#define SUPERBLOCK_NAME "superblock"
#define SUPERBLOCK_TEMPORARY "superblock.tmp-"
#define LOCK_NAME "lock"

/* Feature bits that this program understands, and those a new store gets. No
 * feature has been needed since version 1; each bit will be a constant in
 * superblock.h and a line of docs/FORMAT.md. */
#define SUPERBLOCK_COMPAT_NEW UINT64_C(0)
#define SUPERBLOCK_RO_COMPAT_NEW UINT64_C(0)
#define SUPERBLOCK_INCOMPAT_NEW UINT64_C(0)
#define SUPERBLOCK_RO_COMPAT_KNOWN UINT64_C(0)
#define SUPERBLOCK_INCOMPAT_KNOWN UINT64_C(0)

/* Makes the directory if it is missing, checks that a store may be made in it,
 * and opens it. -EEXIST: there is a store; -ENOTEMPTY: there is something else. */
int superblock_prepare_dir(const char *path, int *dir_fd, struct errmsg *err);

#endif
