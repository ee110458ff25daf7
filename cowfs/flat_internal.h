// SPDX-License-Identifier: Apache-2.0
/* flat_internal.h - between flat.c and pack.c. */
#ifndef COWFS_FLAT_INTERNAL_H
#define COWFS_FLAT_INTERNAL_H

#include "cowfs/flat.h"

/* flat_verdict of an inode whose map_lock is held, in whatever way. */
enum flat_verdict flat_verdict_locked(struct inode *inode);

#endif
