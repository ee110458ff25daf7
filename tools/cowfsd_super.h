// SPDX-License-Identifier: Apache-2.0
/*
 * cowfsd_super.h - the supervisor: the process that mounts, keeps the connection to the
 * kernel, and starts a daemon anew whenever it dies.
 */
#ifndef COWFSD_SUPER_H
#define COWFSD_SUPER_H

#include "cowfs/fuse_session.h"

struct supervise_config {
    struct fuse_mount_point point, view; /* view.path NULL: there is none */
    const char *store_path;
    char **daemon_argv; /* NULL-terminated: how cowfsd is started to serve */
    bool optional;      /* nobody has asked for it: what it takes may be missing */
    /* Called once: the mount can be used (NULL), or why it will not be. */
    void (*tell)(void *arg, const char *reason);
    void *arg;
};

/* Mounts, and returns the exit status when all is over. -1: the kernel cannot do it (or something
 * else is missing, if that is optional); this is said, and nothing has been done. No threads may be there; blocks signals for good. */
int supervise(const struct supervise_config *config);

#endif
