// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_mount.h - the life of one mount of a store (there may be two, fuse_session.c).
 *
 *   attached   mounted_attach: /dev/fuse is open, mount(2) done (with a supervisor it was)
 *   serving    mounted_serve: workers run, the kernel's INIT has been answered
 *   ended      by umount(8) (ended_fd tells), or mounted_end
 *   detached   mounted_detach
 *
 * Threads: one, which owns the mount; the workers are inside.
 */
#ifndef COWFS_FUSE_MOUNT_H
#define COWFS_FUSE_MOUNT_H

#include "cowfs/fuse_ops.h"
#include "cowfs/fuse_session.h"

struct mounted {
    struct mount mount; /* slot, view, writeback, passthrough, ... are the caller's to set */
    const struct fuse_mount_point *point;
    struct fuse_loop *loop;
    int ended_fd;      /* eventfd: the session is over */
    dev_t dev;         /* 0: not known */
    uint64_t mount_id; /* never used again (Linux 6.8); 0: not known */
};

/* Mounts. On failure nothing is left behind. */
int mounted_attach(struct mounted *m, const struct fuse_mount_point *point, struct errmsg *err);

/* A session of libfuse, mounted at `where`: point->path, or "/dev/fd/N". */
int fuse_session_open(const struct fuse_mount_point *point, const char *where, struct mount *mount,
                      struct fuse_session **out, struct errmsg *err);

/* Of a mount that an earlier daemon has served, before mounted_serve: whether it has passthrough. */
void mounted_find_passthrough(struct mounted *m);

/* Serves from now on. After a failure: mounted_detach. */
int mounted_serve(struct mounted *m, const struct fuse_mount_config *config, struct errmsg *err);

/* Ends it for a reason of our own: has the kernel write its dirty pages, unmounts, and
 * if it is in use lets it be cut off after all. Served all the while. A signal that
 * comes in at signal_fd cuts the waiting short. */
void mounted_end(struct mounted *m, int signal_fd);

/* Stops serving, and unmounts if it still is. What the mount's kernel knew is forgotten.
 * Returns 0 or the negative errno that ended the session. Allowed in any state. */
int mounted_detach(struct mounted *m);

#endif
