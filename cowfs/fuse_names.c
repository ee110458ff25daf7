// SPDX-License-Identifier: Apache-2.0
/* fuse_names.c - operations on names, and the forgetting of inodes. */
#include "cowfs/fuse_ops.h"
#include "cowfs/journal.h"
#include "cowfs/names.h"

#include <errno.h>
#include <string.h>

/* "." and ".." come as names only from those who hold a file handle of an
 * inode that the kernel has forgotten (FUSE_CAP_EXPORT_SUPPORT). */
static int lookup_dot(struct mount *m, fuse_ino_t ino, bool parent, struct inode **out)
{
    struct inode *inode;
    int error = mount_inode(m, ino, &inode);
    if (error)
        return error;
    pthread_mutex_lock(&inode->attr_lock);
    bool deleted = inode->attr.nlink == 0;
    pthread_mutex_unlock(&inode->attr_lock);
    if (deleted) {
        /* On its way to the reaper: nobody may come back to it. */
        inode_put(inode);
        return -ESTALE;
    }
    if (!parent) {
        *out = inode;
        return 0;
    }
    pthread_mutex_lock(&inode->attr_lock);
    bool is_directory = S_ISDIR(inode->attr.mode);
    uint64_t parent_ino = inode->attr.parent;
    pthread_mutex_unlock(&inode->attr_lock);
    if (ino == ROOT_INO)
        parent_ino = ROOT_INO;
    inode_put(inode);
    if (!is_directory)
        return -ENOTDIR;
    return mount_inode(m, parent_ino, out);
}

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct mount *m = mount_of(req);
    struct inode *inode = NULL;
    int error;

    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        error = lookup_dot(m, parent, name[1] == '.', &inode);
    else
        error = names_lookup(m->fs, parent, name, &inode);
    reply_entry(req, error, inode);
}

void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    mount_forget(mount_of(req), ino, nlookup);
    fuse_reply_none(req);
}

void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        mount_forget(mount_of(req), forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
}

/* If the inode was made, or linked, by an earlier daemon: replies with it. */
static bool replied_entry_before(fuse_req_t req)
{
    struct journal_completion done;
    struct inode *inode = NULL;
    if (!mount_done_before(req, &done))
        return false;
    int error = mount_inode(mount_of(req), done.ino, &inode);
    reply_entry(req, error, inode);
    return true;
}

static void make(fuse_req_t req, fuse_ino_t parent, const char *name, uint32_t mode, uint64_t rdev,
                 const char *target)
{
    struct fs *fs = mount_of(req)->fs;
    struct caller caller = mount_caller(req);
    struct inode *inode = NULL;

    if (!mount_is_writable(req) || replied_entry_before(req))
        return;
    int error = names_create(fs, parent, name, mode, rdev, target, &caller, &inode);
    reply_entry(req, error, inode);
}

void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
    make(req, parent, name, mode & S_IFMT ? mode : mode | S_IFREG, rdev, NULL);
}

void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    make(req, parent, name, (mode & 07777) | S_IFDIR, 0, NULL);
}

void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    make(req, parent, name, S_IFLNK | 0777, 0, target);
}

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    if (mount_is_writable(req) && !mount_replied_before(req))
        reply_status(req, names_unlink(mount_of(req)->fs, parent, name));
}

void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    if (mount_is_writable(req) && !mount_replied_before(req))
        reply_status(req, names_rmdir(mount_of(req)->fs, parent, name));
}

void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
               const char *new_name, unsigned flags)
{
    struct fs *fs = mount_of(req)->fs;
    if (mount_is_writable(req) && !mount_replied_before(req))
        reply_status(req, names_rename(fs, parent, name, new_parent, new_name, flags));
}

void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name)
{
    struct inode *inode = NULL;
    if (!mount_is_writable(req) || replied_entry_before(req))
        return;
    int error = names_link(mount_of(req)->fs, ino, new_parent, new_name, &inode);
    reply_entry(req, error, inode);
}

void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct inode *inode;
    int error = mount_inode(mount_of(req), ino, &inode);
    if (error) {
        reply_status(req, error);
        return;
    }
    /* A target is set when the link is made and never changes. */
    if (S_ISLNK(inode->attr.mode) && inode->attr.target)
        fuse_reply_readlink(req, inode->attr.target);
    else
        fuse_reply_err(req, EINVAL);
    inode_put(inode);
}
