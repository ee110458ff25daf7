// SPDX-License-Identifier: Apache-2.0
/*
 * unmount.h - unmounting as root, or as the user who has mounted by fusermount3.
 *
 * The daemon uses it, and so does `cowfs umount`.
 */
#ifndef COWFS_UNMOUNT_H
#define COWFS_UNMOUNT_H

#include <stdbool.h>

/* Unmounts what is mounted at that path, which is not followed if it is a link; lazily
 * (MNT_DETACH) if asked for. 0, or a negative errno as of umount(2). Runs fusermount3 if
 * umount(2) does not permit it. */
int unmount_path(const char *path, bool lazy);

#endif
