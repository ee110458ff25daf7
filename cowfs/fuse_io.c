// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_io.c - opening files, and their content.
 *
 * A place for passthrough: op_open is where a file that is one whole flat
 * segment will get a backing id, counted per inode, if it is opened read-only
 * on a mount without the writeback cache.
 */
#include "cowfs/file.h"
#include "cowfs/fuse_loop.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/names.h"

#include <errno.h>
#include <fcntl.h>

static void set_open_flags(const struct mount *m, struct fuse_file_info *fi)
{
    fi->fh = 0;
    /* All changes come through this kernel, so its pages stay valid. */
    fi->keep_cache = 1;
    /*
     * The kernel makes one O_DIRECT write of a file wait for the other, unless
     * they are submitted asynchronously. FOPEN_DIRECT_IO with parallel writes
     * lifts that (5 times the writes per second for four threads), but then the
     * kernel does not touch the mtime, and with the writeback cache it does not
     * take ours either: a backup by mtime would miss a changed disk. So it is
     * for mounts without that cache.
     */
    if ((fi->flags & O_DIRECT) && !m->writeback)
        fi->direct_io = 1;
    fi->parallel_direct_writes = 1;
}

void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct mount *m = mount_of(req);
    struct inode *inode;

    int error = mount_inode(m, ino, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    if (fi->flags & O_TRUNC) {
        error = file_truncate(inode, 0);
        if (error == 0 && fi->kill_suidgid)
            mount_kill_suidgid_now(inode);
    }
    inode_put(inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    set_open_flags(m, fi);
    fuse_reply_open(req, fi);
}

/* Takes over the reference. */
static void reply_created(fuse_req_t req, struct inode *inode, struct fuse_file_info *fi)
{
    struct mount *m = mount_of(req);
    struct fuse_entry_param entry;

    set_open_flags(m, fi);
    mount_fill_entry(inode, &entry);
    if (fuse_reply_create(req, &entry, fi) != 0)
        inode_forget(m->fs->inodes, inode->ino, 1);
    inode_put(inode);
}

void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi)
{
    struct caller caller = mount_caller(req);
    struct inode *inode;
    int error = names_create(mount_of(req)->fs, parent, name, (mode & 07777) | S_IFREG, 0, NULL,
                             &caller, &inode);
    /* The kernel thought that there was no such name, but a clone has made it
     * since. ESTALE lets it look again, and check the permissions of what it
     * finds. */
    if (error == -EEXIST && !(fi->flags & O_EXCL))
        error = -ESTALE;
    if (error)
        reply_status(req, error);
    else
        reply_created(req, inode, fi);
}

void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi)
{
    struct caller caller = mount_caller(req);
    struct inode *inode;
    int error = names_tmpfile(mount_of(req)->fs, parent, (mode & 07777) | S_IFREG, &caller, &inode);
    if (error)
        reply_status(req, error);
    else
        reply_created(req, inode, fi);
}

void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    (void)fi;
    struct inode *inode;
    int error = mount_inode(mount_of(req), ino, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    void *buffer = fuse_loop_buffer();
    ssize_t got = file_read(inode, buffer, MIN(size, FUSE_IO_BYTES), (uint64_t)offset);
    inode_put(inode);
    if (got < 0)
        reply_status(req, (int)got);
    else
        fuse_reply_buf(req, buffer, (size_t)got);
}

void op_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
              struct fuse_file_info *fi)
{
    struct inode *inode;
    int error = mount_inode(mount_of(req), ino, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    struct file_write_flags flags = {
        .kill_suid = fi->kill_suidgid,
        .from_cache = fi->writepage,
    };
    ssize_t done = file_write(inode, data, size, (uint64_t)offset, flags);
    inode_put(inode);
    if (done < 0)
        reply_status(req, (int)done);
    else
        fuse_reply_write(req, (size_t)done);
}

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
    ssize_t done = mount_inode(m, in, &source);
    if (done == 0)
        done = mount_inode(m, out, &target);
    if (done == 0)
        done = file_copy_range(source, (uint64_t)in_offset, target, (uint64_t)out_offset, length);
    if (done > 0)
        mount_kill_suidgid(req, target);
    inode_put(source);
    inode_put(target);
    if (done >= 0)
        fuse_reply_write(req, (size_t)done);
    else
        reply_status(req, done == -ENOSYS ? -EOPNOTSUPP : (int)done); /* as above */
}
