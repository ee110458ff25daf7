// SPDX-License-Identifier: Apache-2.0
/*
 * names_rename.c - rename(2) and renameat2(2).
 *
 * The checks follow the kernel's do_renameat2 and vfs_rename, in their order.
 * Directories have one name, so the walk from a directory to the root by
 * `parent` is the only way up; under ns_lock exclusively it stands still.
 */
#include "cowfs/journal.h"
#include "cowfs/names_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/fs.h>

/* One of the two places of a rename. */
struct place {
    struct inode *dir;
    const char *name;
    struct dirent_slot slot;
    struct inode *child; /* what stands there, or NULL */
    bool is_dir;
};

static int place_open(struct fs *fs, uint64_t dir, const char *name, struct place *p)
{
    p->name = name;
    int error = names_get_dir(fs, dir, &p->dir);
    if (!error)
        error = dirent_find(fs, dir, name, &p->slot);
    if (!error && p->slot.found)
        error = names_get_child(fs, dir, &p->slot, &p->child);
    p->is_dir = p->child && S_ISDIR(p->slot.type);
    return error;
}

static void place_close(struct place *p)
{
    dirent_slot_free(&p->slot);
    inode_put(p->child);
    inode_put(p->dir);
}

/* Is `dir` the directory `ancestor`, or below it? 1, 0 or an error. */
static int is_within(struct fs *fs, uint64_t dir, uint64_t ancestor)
{
    /* Brent's way to notice a circle, which only damage could have made. */
    uint64_t mark = 0, steps = 0, limit = 1;
    while (dir != ancestor) {
        if (dir == ROOT_INO)
            return 0;
        struct inode *inode;
        int error = inode_get(fs->inodes, dir, &inode);
        if (error)
            return error == -ENOENT ? -EUCLEAN : error;
        dir = inode->attr.parent;
        inode_put(inode);
        if (dir == mark) {
            g_critical("directory %" PRIu64 " is not connected to the root", dir);
            return -EUCLEAN;
        }
        if (++steps == limit) {
            mark = dir;
            steps = 0;
            limit *= 2;
        }
    }
    return 1;
}

/* No directory may come to lie within itself. */
static int check_loops(struct fs *fs, struct place *from, struct place *to, bool exchange)
{
    if (from->dir == to->dir)
        return 0;
    if (from->is_dir) {
        int within = is_within(fs, to->dir->ino, from->child->ino);
        if (within)
            return within < 0 ? within : -EINVAL;
    }
    if (to->is_dir) {
        int within = is_within(fs, from->dir->ino, to->child->ino);
        if (within)
            return within < 0 ? within : exchange ? -EINVAL : -ENOTEMPTY;
    }
    return 0;
}

static bool has_link_room(const struct inode *dir)
{
    return dir->attr.nlink < NAMES_LINK_MAX;
}

/* Checks beyond the loops, for two places that are not the same inode. */
static int check_kinds(struct place *from, struct place *to, bool exchange)
{
    bool moves = from->dir != to->dir;
    if (exchange) {
        if (moves && from->is_dir && !to->is_dir && !has_link_room(to->dir))
            return -EMLINK;
        if (moves && to->is_dir && !from->is_dir && !has_link_room(from->dir))
            return -EMLINK;
        return 0;
    }
    if (to->child && from->is_dir != to->is_dir)
        return from->is_dir ? -ENOTDIR : -EISDIR;
    if (moves && from->is_dir && !to->is_dir && !has_link_room(to->dir))
        return -EMLINK;
    if (to->is_dir && to->child->attr.size_bytes)
        return -ENOTEMPTY;
    return to->child ? 0 : dirent_may_insert(&to->slot);
}

/* Inside the gate: the inode now stands in dir. */
static void moved(struct inode *inode, struct inode *dir)
{
    pthread_mutex_lock(&inode->attr_lock);
    if (S_ISDIR(inode->attr.mode))
        inode->attr.parent = dir->ino;
    inode_touch_ctime(inode);
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_names(inode);
}

/* After the record of `from` was changed: `to` may stand in the same. It is in
 * memory now, so this cannot fail for want of a disk. */
static void refresh(struct fs *fs, const struct place *from, struct place *to)
{
    if (memcmp(from->slot.key, to->slot.key, from->slot.key_len) != 0)
        return;
    int error = dirent_find_again(fs, to->name, &to->slot);
    g_assert(error == 0);
}

static void do_exchange(struct fs *fs, struct place *from, struct place *to)
{
    dirent_replace(fs, &from->slot, from->name, to->child->ino, to->slot.type);
    uint32_t from_type = from->slot.type;
    refresh(fs, from, to);
    dirent_replace(fs, &to->slot, to->name, from->child->ino, from_type);
    moved(from->child, to->dir);
    moved(to->child, from->dir);
    names_dir_changed(from->dir, 0, (int)to->is_dir - (int)from->is_dir);
    names_dir_changed(to->dir, 0, (int)from->is_dir - (int)to->is_dir);
}

static void do_rename(struct fs *fs, struct place *from, struct place *to)
{
    dirent_remove(fs, &from->slot);
    refresh(fs, from, to);
    if (to->child) {
        dirent_replace(fs, &to->slot, to->name, from->child->ino, from->slot.type);
        names_drop_link(to->child);
    } else {
        dirent_insert(fs, &to->slot, to->name, from->child->ino, from->slot.type);
    }
    moved(from->child, to->dir);
    names_dir_changed(from->dir, -1, -(int)from->is_dir);
    names_dir_changed(to->dir, to->child ? 0 : 1, (int)from->is_dir - (int)to->is_dir);
}

static int rename_locked(struct fs *fs, struct place *from, struct place *to, unsigned flags)
{
    bool exchange = flags & RENAME_EXCHANGE;
    if (!from->child)
        return -ENOENT;
    if ((flags & RENAME_NOREPLACE) && to->child)
        return -EEXIST;
    if (exchange && !to->child)
        return -ENOENT;
    int error = check_loops(fs, from, to, exchange);
    if (error)
        return error;
    if (from->child == to->child)
        return 0; /* two names of one file: nothing happens, says POSIX */
    error = check_kinds(from, to, exchange);
    if (error)
        return error;
    txn_enter(fs->txn);
    if (exchange)
        do_exchange(fs, from, to);
    else
        do_rename(fs, from, to);
    journal_complete(fs->journal, 0, 0, NULL);
    txn_exit(fs->txn);
    return 0;
}

int names_rename(struct fs *fs, uint64_t dir, const char *name, uint64_t new_dir,
                 const char *new_name, unsigned flags)
{
    struct place from = {0}, to = {0};
    if ((flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) ||
        flags == (RENAME_NOREPLACE | RENAME_EXCHANGE))
        return -EINVAL;
    int error = names_check(name);
    if (!error)
        error = names_check(new_name);
    if (!error && name_is_dots(name))
        error = -EBUSY;
    if (!error && name_is_dots(new_name))
        error = flags & RENAME_NOREPLACE ? -EEXIST : -EBUSY;
    if (!error)
        error = fs_may_change(fs);
    if (error)
        return error;
    pthread_rwlock_wrlock(&fs->ns_lock);
    error = place_open(fs, dir, name, &from);
    if (!error)
        error = place_open(fs, new_dir, new_name, &to);
    if (!error)
        error = rename_locked(fs, &from, &to, flags);
    pthread_rwlock_unlock(&fs->ns_lock);
    place_close(&from);
    place_close(&to);
    return error;
}
