// SPDX-License-Identifier: Apache-2.0
/*
 * clone.h - what ioctls ask for, without FUSE: clone of a file or tree, usage,
 * diff. The structs are ioctl.h's; `version` was checked by the caller.
 */
#ifndef COWFS_CLONE_H
#define COWFS_CLONE_H

#include "cowfs/fs.h"
#include "cowfs/ioctl.h"

/* Makes dir/name a clone of `src` (see COWFS_IOC_CLONE). Atomic: one point in
 * time over all files, one commit. Fills the counters of `io`. */
int clone_tree(struct fs *fs, uint64_t src, uint64_t dir, const char *name,
               const struct caller *caller, struct cowfs_ioc_clone *io);

/* The same of the child `src_name` of a directory, which the caller has open; an empty name:
 * of the directory itself. */
int clone_child(struct fs *fs, uint64_t src_dir, const char *src_name, uint64_t dir,
                const char *name, const struct caller *caller, struct cowfs_ioc_clone *io);

int usage_stat(struct fs *fs, uint64_t ino, struct cowfs_ioc_stat *out);
/* -EAGAIN if the tree changes so much that no answer was found; -EACCES if the caller
 * (NULL: may all) may not list all of it. */
int usage_du(struct fs *fs, uint64_t ino, const struct caller *caller, struct cowfs_ioc_du *out);
int usage_df(struct fs *fs, struct cowfs_ioc_df *out);
int diff_files(struct fs *fs, uint64_t a, uint64_t b, struct cowfs_ioc_diff *io);
int seal_range(struct fs *fs, uint64_t ino, struct cowfs_ioc_seal *io);

#endif
