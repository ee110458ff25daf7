// SPDX-License-Identifier: Apache-2.0
#include "cowfs/unmount.h"

#include <errno.h>
#include <glib.h>
#include <string.h>
#include <sys/mount.h>

/* A set-user-ID program lets users unmount what they have mounted. */
static int by_fusermount(const char *path, bool lazy)
{
    const char *arguments[] = {"fusermount3",      "-u", lazy ? "-z" : "--", lazy ? "--" : path,
                               lazy ? path : NULL, NULL};
    g_autofree char *said = NULL;
    int status = 0;
    if (!g_spawn_sync("/", (char **)(uintptr_t)arguments, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL, &said,
                      &status, NULL))
        return -EPERM;
    if (g_spawn_check_wait_status(status, NULL))
        return 0;
    /* It does not translate its messages. */
    return said && strstr(said, "busy") ? -EBUSY : -EPERM;
}

int unmount_path(const char *path, bool lazy)
{
    if (umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
        return 0;
    return errno == EPERM ? by_fusermount(path, lazy) : -errno;
}
