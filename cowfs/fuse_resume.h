// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_resume.h - a session on a mount that is there already: the supervisor has made it,
 * and earlier daemons may have served it.
 *
 * Threads: one, before the workers.
 */
#ifndef COWFS_FUSE_RESUME_H
#define COWFS_FUSE_RESUME_H

#include "cowfs/fuse_ops.h"
#include "cowfs/fuse_session.h"

/*
 * For the supervisor: mounts, and takes the kernel's first message into link->init. *session
 * is libfuse's, and only good for fuse_premount_end; *fuse_fd is for the daemons. The
 * kernel gets its answer from the first daemon.
 */
int fuse_premount(const struct fuse_mount_point *point, struct handover_link *link,
                  struct fuse_session **session, int *fuse_fd, struct errmsg *err);
/* Unmounts, unless that has been done; whoever uses it gets errors from now on. */
void fuse_premount_end(struct fuse_session *session);

/* The daemon's session (mount->session), as if the kernel's first message had just come;
 * it is answered by the first daemon alone. -EPROTO if this program would answer otherwise
 * than the first one has. */
int fuse_resume(const struct fuse_mount_point *point, struct mount *mount, struct errmsg *err);

/* Whether fuse_resume would succeed; nothing is changed. */
int fuse_resume_check(const struct fuse_mount_point *point, struct mount *mount,
                      struct errmsg *err);

/* Has the kernel send again what was not answered. */
void fuse_resume_ask(struct fuse_session *session);

#endif
