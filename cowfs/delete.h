// SPDX-License-Identifier: Apache-2.0
/*
 * delete.h - what COWFS_IOC_DELETE asks for, without FUSE: a name goes, with all below it,
 * in one step.
 */
#ifndef COWFS_DELETE_H
#define COWFS_DELETE_H

#include "cowfs/fs.h"
#include "cowfs/ioctl.h"

/* The most names that go in one step: they are in memory, and ns_lock is held meanwhile. */
enum { DELETE_NAMES_MAX = 65536 };

/*
 * Deletes dir/name; a directory with all in it. Atomic: one commit has all of it or nothing.
 * Adds to the counters of `io`, and appends to `inos` (uint64_t) every inode that has lost a
 * name, the named one first, some perhaps several times. What is open lives on without a name,
 * as after unlink(2).
 *
 * -ENOENT; -EINVAL for "." and ".."; -EACCES or -EPERM (sticky bit) where `rm -r` would get
 * them, anywhere in the tree: nothing is deleted then; -E2BIG beyond DELETE_NAMES_MAX.
 */
int delete_tree(struct fs *fs, uint64_t dir, const char *name, const struct caller *caller,
                struct cowfs_ioc_delete *io, GArray *inos);

#endif
