// SPDX-License-Identifier: Apache-2.0
/* fuse_io.c - the content of files, but for reading and writing (fuse_content.h). */
#include "cowfs/file.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/journal.h"

#include <errno.h>

/* Also fsyncdir: there is one commit for all. */
void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)fi;
    struct inode *inode;
    int error = mount_inode(mount_of(req), ino, &inode);
    if (error == 0) {
        error = fs_sync_file(inode, datasync != 0);
        inode_put(inode);
    }
    reply_status(req, error);
}

void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                  struct fuse_file_info *fi)
{
    (void)fi;
    struct inode *inode;
    if (!mount_is_writable(req))
        return;
    int error = mount_inode(mount_of(req), ino, &inode);
    if (error == 0) {
        error = file_fallocate(inode, mode, (uint64_t)offset, (uint64_t)length);
        if (error == 0)
            mount_kill_suidgid(req, inode);
        inode_put(inode);
    }
    /* ENOSYS would switch fallocate off for the whole mount. */
    reply_status(req, error == -ENOSYS ? -EOPNOTSUPP : error);
}

void op_copy_file_range(fuse_req_t req, fuse_ino_t in, off_t in_offset,
                        struct fuse_file_info *in_fi, fuse_ino_t out, off_t out_offset,
                        struct fuse_file_info *out_fi, size_t length, int flags)
{
    (void)in_fi;
    (void)out_fi;
    (void)flags; /* none is defined */
    struct mount *m = mount_of(req);
    struct inode *source = NULL, *target = NULL;
    struct journal_completion before;
    if (!mount_is_writable(req))
        return;
    if (mount_done_before(req, &before)) {
        fuse_reply_write(req, (size_t)before.result);
        return;
    }
    ssize_t done = mount_inode(m, in, &source);
    if (done == 0)
        done = mount_inode(m, out, &target);
    if (done == 0)
        done = file_copy_range(source, (uint64_t)in_offset, target, (uint64_t)out_offset, length);
    if (done > 0)
        mount_kill_suidgid(req, target);
    inode_put(source);
    inode_put(target);
    if (done >= 0) {
        mount_debug_die(req);
        fuse_reply_write(req, (size_t)done);
    } else {
        reply_status(req, done == -ENOSYS ? -EOPNOTSUPP : (int)done); /* as above */
    }
}
