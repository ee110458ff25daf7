// SPDX-License-Identifier: Apache-2.0
/*
 * names.c - operations on names, but for rename (names_rename.c).
 *
 * Each change has the same shape:
 *
 *   fs_may_change -> ns_lock exclusively -> read and check all there is
 *     -> gate: change, nothing can fail any more -> unlock -> put inodes
 *
 * Errors come in the order in which Linux' VFS finds them, so that a caller
 * who bypasses the kernel's checks (an ioctl, a test) sees the same.
 */
#include "cowfs/journal.h"
#include "cowfs/names_internal.h"

#include <errno.h>
#include <inttypes.h>

int names_get_dir(struct fs *fs, uint64_t ino, struct inode **out)
{
    int error = inode_get(fs->inodes, ino, out);
    if (error)
        return error;
    if (!S_ISDIR(inode_mode(*out)))
        error = -ENOTDIR;
    else if ((*out)->attr.nlink == 0)
        error = -ENOENT;
    if (error) {
        inode_put(*out);
        *out = NULL;
    }
    return error;
}

int names_get_child(struct fs *fs, uint64_t dir, const struct dirent_slot *slot, struct inode **out)
{
    int error = inode_get(fs->inodes, slot->ino, out);
    if (error == -ENOENT) {
        g_critical("directory %" PRIu64 " names inode %" PRIu64 ", which does not exist", dir,
                   slot->ino);
        error = -EUCLEAN;
    }
    return error;
}

void names_dir_changed(struct inode *dir, int entries, int subdirs)
{
    pthread_mutex_lock(&dir->attr_lock);
    dir->attr.size_bytes += (uint64_t)(int64_t)entries;
    dir->attr.nlink += (uint32_t)subdirs;
    inode_touch_mtime(dir);
    pthread_mutex_unlock(&dir->attr_lock);
    inode_mark_names(dir);
}

void names_drop_link(struct inode *inode)
{
    pthread_mutex_lock(&inode->attr_lock);
    struct inode_attr *attr = &inode->attr;
    if (S_ISDIR(attr->mode))
        attr->nlink = 0;
    else if (attr->nlink > 0)
        attr->nlink--;
    bool orphan = attr->nlink == 0;
    inode_touch_ctime(inode);
    pthread_mutex_unlock(&inode->attr_lock);
    if (orphan)
        inode_mark_orphan(inode);
    inode_mark_names(inode);
}

int names_lookup(struct fs *fs, uint64_t dir_ino, const char *name, struct inode **out)
{
    struct inode *dir;
    struct dirent_slot slot = {0};
    *out = NULL;
    int error = names_check(name);
    if (error)
        return error;
    pthread_rwlock_rdlock(&fs->ns_lock);
    error = names_get_dir(fs, dir_ino, &dir);
    if (error)
        goto out;
    if (name_is_dots(name)) {
        error = inode_get(fs->inodes, name[1] ? dir->attr.parent : dir_ino, out);
    } else {
        error = dirent_find(fs, dir_ino, name, &slot);
        if (!error)
            error = slot.found ? names_get_child(fs, dir_ino, &slot, out) : -ENOENT;
    }
    dirent_slot_free(&slot);
    inode_put(dir);
out:
    pthread_rwlock_unlock(&fs->ns_lock);
    return error;
}

int names_find_locked(struct fs *fs, uint64_t dir, const char *name, uint64_t *ino, uint32_t *type)
{
    struct dirent_slot slot;
    int error = names_check(name);
    if (error)
        return error;
    error = dirent_find(fs, dir, name, &slot);
    if (!error && !slot.found)
        error = -ENOENT;
    if (!error) {
        *ino = slot.ino;
        *type = slot.type;
    }
    dirent_slot_free(&slot);
    return error;
}

/* The place for a new name in dir, or the reason why there is none. */
static int find_free(struct fs *fs, struct inode *dir, const char *name, bool is_dir,
                     struct dirent_slot *slot)
{
    int error = dirent_find(fs, dir->ino, name, slot);
    if (error)
        return error;
    if (slot->found)
        return -EEXIST;
    if (is_dir && dir->attr.nlink >= NAMES_LINK_MAX)
        return -EMLINK;
    return dirent_may_insert(slot);
}

int names_add_locked(struct fs *fs, struct inode *dir, const char *name, struct inode *child)
{
    struct dirent_slot slot = {0};
    uint32_t mode = inode_mode(child);
    bool is_dir = S_ISDIR(mode);
    int error = names_check(name);
    if (!error && name_is_dots(name))
        error = -EEXIST;
    if (!error && dir->attr.nlink == 0)
        error = -ENOENT;
    if (!error)
        error = find_free(fs, dir, name, is_dir, &slot);
    if (!error) {
        dirent_insert(fs, &slot, name, child->ino, mode);
        names_dir_changed(dir, 1, is_dir);
    }
    dirent_slot_free(&slot);
    return error;
}

/* Group and setgid bit of what is made in dir (Linux' inode_init_owner; what
 * depends on the caller's capabilities the kernel has done). */
static uint32_t owner_group(struct inode *dir, const struct caller *caller, uint32_t *mode)
{
    uint32_t gid = caller->gid;
    pthread_mutex_lock(&dir->attr_lock);
    if (dir->attr.mode & S_ISGID) {
        gid = dir->attr.gid;
        if (S_ISDIR(*mode))
            *mode |= S_ISGID;
    }
    pthread_mutex_unlock(&dir->attr_lock);
    return gid;
}

/* Inside the gate. */
static struct inode *make_inode(struct fs *fs, struct inode *dir, uint32_t mode, uint64_t rdev,
                                const char *target, const struct caller *caller)
{
    uint32_t gid = owner_group(dir, caller, &mode);
    struct inode *inode = inode_new(fs->inodes, mode, caller->uid, gid, rdev);
    pthread_mutex_lock(&inode->attr_lock);
    if (S_ISDIR(mode))
        inode->attr.parent = dir->ino;
    if (target) {
        inode->attr.target = g_strdup(target);
        inode->attr.size_bytes = strlen(target);
    }
    pthread_mutex_unlock(&inode->attr_lock);
    return inode;
}

int names_create(struct fs *fs, uint64_t dir_ino, const char *name, uint32_t mode, uint64_t rdev,
                 const char *target, const struct caller *caller, struct inode **out)
{
    struct inode *dir = NULL;
    struct dirent_slot slot = {0};
    bool is_dir = S_ISDIR(mode);
    *out = NULL;
    int error = names_check(name);
    if (error)
        return error;
    size_t target_len = target ? strlen(target) : 0;
    if (S_ISLNK(mode) && target_len == 0)
        return -ENOENT; /* symlink("", ...) */
    if (!S_ISLNK(mode) && target)
        return -EINVAL;
    if (target_len > NAMES_TARGET_MAX)
        return -ENAMETOOLONG;
    error = fs_may_change(fs);
    if (error)
        return error;
    pthread_rwlock_wrlock(&fs->ns_lock);
    error = names_get_dir(fs, dir_ino, &dir);
    if (!error && name_is_dots(name))
        error = -EEXIST;
    if (!error)
        error = find_free(fs, dir, name, is_dir, &slot);
    if (error)
        goto out;
    txn_enter(fs->txn);
    *out = make_inode(fs, dir, mode, rdev, target, caller);
    dirent_insert(fs, &slot, name, (*out)->ino, mode);
    names_dir_changed(dir, 1, is_dir);
    journal_complete(fs->journal, 0, (*out)->ino, NULL);
    txn_exit(fs->txn);
out:
    pthread_rwlock_unlock(&fs->ns_lock);
    dirent_slot_free(&slot);
    inode_put(dir);
    return error;
}

int names_tmpfile(struct fs *fs, uint64_t dir_ino, uint32_t mode, const struct caller *caller,
                  struct inode **out)
{
    struct inode *dir = NULL;
    *out = NULL;
    if (!S_ISREG(mode))
        return -EINVAL;
    int error = fs_may_change(fs);
    if (error)
        return error;
    /* Shared will do: nobody can find the new inode by a name. */
    pthread_rwlock_rdlock(&fs->ns_lock);
    error = names_get_dir(fs, dir_ino, &dir);
    if (!error) {
        txn_enter(fs->txn);
        *out = make_inode(fs, dir, mode, 0, NULL, caller);
        pthread_mutex_lock(&(*out)->attr_lock);
        (*out)->attr.nlink = 0;
        (*out)->attr.linkable = true;
        pthread_mutex_unlock(&(*out)->attr_lock);
        inode_mark_orphan(*out);
        journal_complete(fs->journal, 0, (*out)->ino, NULL);
        txn_exit(fs->txn);
    }
    pthread_rwlock_unlock(&fs->ns_lock);
    inode_put(dir);
    return error;
}

/* May the inode have one more name? As vfs_link. */
static int may_link(struct inode *inode)
{
    struct inode_attr *attr = &inode->attr;
    if (S_ISDIR(inode_mode(inode)))
        return -EPERM;
    if (attr->nlink == 0 && !attr->linkable)
        return -ENOENT;
    return attr->nlink >= NAMES_LINK_MAX ? -EMLINK : 0;
}

int names_link(struct fs *fs, uint64_t ino, uint64_t dir_ino, const char *name, struct inode **out)
{
    struct inode *dir = NULL, *inode = NULL;
    struct dirent_slot slot = {0};
    *out = NULL;
    int error = names_check(name);
    if (!error)
        error = fs_may_change(fs);
    if (error)
        return error;
    pthread_rwlock_wrlock(&fs->ns_lock);
    error = names_get_dir(fs, dir_ino, &dir);
    if (!error && name_is_dots(name))
        error = -EEXIST;
    if (!error)
        error = find_free(fs, dir, name, false, &slot);
    if (!error)
        error = inode_get(fs->inodes, ino, &inode);
    if (!error)
        error = may_link(inode);
    if (error)
        goto out;
    uint32_t mode = inode_mode(inode);
    txn_enter(fs->txn);
    if (inode->attr.nlink == 0) {
        inode_clear_orphan(inode);
        journal_orphan_again(fs->journal, ino);
    }
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.nlink++;
    inode->attr.linkable = false;
    inode_touch_ctime(inode);
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_names(inode);
    dirent_insert(fs, &slot, name, ino, mode);
    names_dir_changed(dir, 1, 0);
    journal_complete(fs->journal, 0, ino, NULL);
    txn_exit(fs->txn);
    *out = inode_ref(inode);
out:
    pthread_rwlock_unlock(&fs->ns_lock);
    dirent_slot_free(&slot);
    inode_put(inode);
    inode_put(dir);
    return error;
}

/* As may_delete, then what file systems check. */
static int may_remove(const struct dirent_slot *slot, const struct inode *child, bool want_dir)
{
    bool is_dir = S_ISDIR(slot->type);
    if (is_dir != want_dir)
        return want_dir ? -ENOTDIR : -EISDIR;
    return is_dir && child->attr.size_bytes ? -ENOTEMPTY : 0;
}

static int remove_name(struct fs *fs, uint64_t dir_ino, const char *name, bool want_dir)
{
    struct inode *dir = NULL, *child = NULL;
    struct dirent_slot slot = {0};
    int error = names_check(name);
    if (!error && name_is_dots(name))
        error = want_dir && name[1] ? -ENOTEMPTY : want_dir ? -EINVAL : -EISDIR;
    if (!error)
        error = fs_may_change(fs);
    if (error)
        return error;
    pthread_rwlock_wrlock(&fs->ns_lock);
    error = names_get_dir(fs, dir_ino, &dir);
    if (!error)
        error = dirent_find(fs, dir_ino, name, &slot);
    if (!error)
        error = slot.found ? names_get_child(fs, dir_ino, &slot, &child) : -ENOENT;
    if (!error)
        error = may_remove(&slot, child, want_dir);
    if (error)
        goto out;
    txn_enter(fs->txn);
    dirent_remove(fs, &slot);
    names_dir_changed(dir, -1, want_dir ? -1 : 0);
    names_drop_link(child);
    journal_complete(fs->journal, 0, 0, NULL);
    txn_exit(fs->txn);
out:
    pthread_rwlock_unlock(&fs->ns_lock);
    dirent_slot_free(&slot);
    inode_put(child);
    inode_put(dir);
    return error;
}

int names_unlink(struct fs *fs, uint64_t dir, const char *name)
{
    return remove_name(fs, dir, name, false);
}

int names_rmdir(struct fs *fs, uint64_t dir, const char *name)
{
    return remove_name(fs, dir, name, true);
}
