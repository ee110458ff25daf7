// SPDX-License-Identifier: Apache-2.0
/*
 * caller.h - what the caller of an ioctl may do with an inode. All else the
 * kernel checks (default_permissions); an ioctl it passes on unseen.
 */
#ifndef COWFS_CALLER_H
#define COWFS_CALLER_H

#include "cowfs/fs.h"

enum { MAY_READ = 4, MAY_WRITE = 2, MAY_EXEC = 1 };

/* Whether he is the machine's root, with all that root may do. */
static inline bool caller_is_root(const struct caller *caller)
{
    return caller->uid == 0 && !caller->powerless;
}

/* By his group, or a further one. */
bool caller_in_group(const struct caller *caller, uint32_t gid);

/* As the kernel's generic_permission without ACLs; root may all. */
bool caller_may(const struct caller *caller, struct inode *inode, unsigned want);
/* Whether he may remove or rename what `child` is from a directory that he may write: in
 * a sticky one only who owns one of the two. */
bool caller_may_remove(const struct caller *caller, struct inode *dir, struct inode *child);

/* Whether the inode is his, as for chmod(2), or he may write it. */
bool caller_owns_or_may_write(const struct caller *caller, struct inode *inode);

#endif
