// SPDX-License-Identifier: Apache-2.0
/*
 * scrub.h - compares the bytes of sealed chunks with their hashes, a bounded
 * step at a time, while the store is in use.
 *
 * No lock is held while chunks are read: a read section keeps those that lose
 * their last owner meanwhile from being punched, and sealed ones do not change.
 * Chunks that are not sealed have no hash; nothing can be said of them.
 */
#ifndef COWFS_SCRUB_H
#define COWFS_SCRUB_H

#include "cowfs/damage.h"
#include "cowfs/ioctl.h"

/* One step; see COWFS_IOC_SCRUB. An error is one that has nothing to do with
 * the chunks (of memory, of the database). */
int scrub_step(struct fs *fs, struct cowfs_ioc_scrub *io);
/* See COWFS_IOC_DAMAGE. -EINVAL if it is no regular file. */
int scrub_file_damage(struct fs *fs, uint64_t ino, struct cowfs_ioc_damage *io);

#endif
