// SPDX-License-Identifier: Apache-2.0
/*
 * delete.c - a tree goes in one step, as a clone comes (clone.c).
 *
 *   1. plan    under ns_lock, so that names stand still: walk the tree, reference its
 *              inodes, check the caller's rights; nothing can fail after that
 *   2. delete  in one transaction: records of names, link counts, orphan records
 *
 * The content is released later, by the reaper, inode by inode, as after unlink(2).
 */
#include "cowfs/delete.h"

#include "cowfs/caller.h"
#include "cowfs/journal_internal.h"
#include "cowfs/names_internal.h"

#include <errno.h>

/* Something that loses a name. */
struct victim {
    struct inode *inode; /* referenced */
    bool is_dir;
    int entries, subdirs; /* of a directory, counted */
};

/* A record of names, by its key. */
struct record {
    uint64_t dir, hash;
};

struct plan {
    struct fs *fs;
    const struct caller *caller;
    GArray *victims; /* struct victim, the top first, parents before children */
    GArray *records; /* struct record: below the top */
    unsigned walking;
};

static struct victim *victim_at(struct plan *p, unsigned i)
{
    return &g_array_index(p->victims, struct victim, i);
}

/* Takes over the reference. */
static void plan_add(struct plan *p, struct inode *inode)
{
    struct victim victim = {.inode = inode, .is_dir = S_ISDIR(inode_mode(inode))};
    g_array_append_val(p->victims, victim);
}

static int plan_entry(void *arg, uint64_t ino, uint32_t type, const char *name)
{
    struct plan *p = arg;
    struct victim *dir = victim_at(p, p->walking);
    struct inode *inode;
    (void)name;
    if (p->victims->len >= DELETE_NAMES_MAX)
        return -E2BIG;
    if (!caller_may(p->caller, dir->inode, MAY_READ | MAY_WRITE | MAY_EXEC))
        return -EACCES;
    int error = inode_get(p->fs->inodes, ino, &inode);
    if (error)
        return error == -ENOENT ? -EUCLEAN : error;
    if (!caller_may_remove(p->caller, dir->inode, inode)) {
        inode_put(inode);
        return -EPERM;
    }
    dir->entries++;
    dir->subdirs += S_ISDIR(type) ? 1 : 0;
    plan_add(p, inode);
    return 0;
}

static int plan_records(struct plan *p, uint64_t dir)
{
    uint8_t lower[KEY_MAX], upper[KEY_MAX];
    size_t lower_len = key_u64(lower, KEY_DIRENT, dir);
    size_t upper_len = key_u64(upper, KEY_DIRENT, dir + 1);
    struct metadb_iter *it = metadb_iter_new(p->fs->db, lower, lower_len, upper, upper_len);
    int error = 0;
    for (; !error && metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *value = metadb_iter_value(it, &len);
        struct record record = {.dir = dir};
        if (key_len == lower_len + sizeof(record.hash)) {
            record.hash = get_be64(key + lower_len);
            g_array_append_val(p->records, record);
            error = names_decode(value, len, plan_entry, p);
        } else {
            error = -EUCLEAN;
        }
    }
    if (!error)
        error = metadb_iter_status(it);
    metadb_iter_free(it);
    return error;
}

/* Step 1, breadth first: the plan is its own queue. */
static int plan_tree(struct plan *p)
{
    int error = 0;
    for (p->walking = 0; p->walking < p->victims->len && !error; p->walking++)
        if (victim_at(p, p->walking)->is_dir)
            error = plan_records(p, victim_at(p, p->walking)->inode->ino);
    return error;
}

/* Step 2. */
static void delete_planned(struct plan *p, struct inode *dir, struct dirent_slot *slot,
                           struct cowfs_ioc_delete *io, GArray *inos)
{
    struct journal_counts counts = {0};
    txn_enter(p->fs->txn);
    dirent_remove(p->fs, slot);
    names_dir_changed(dir, -1, victim_at(p, 0)->is_dir ? -1 : 0);
    for (guint i = 0; i < p->records->len; i++) {
        const struct record *r = &g_array_index(p->records, struct record, i);
        uint8_t key[KEY_MAX];
        journal_delete(p->fs, key, key_u64_u64(key, KEY_DIRENT, r->dir, r->hash));
    }
    for (unsigned i = 0; i < p->victims->len; i++) {
        const struct victim *v = victim_at(p, i);
        if (v->entries)
            names_dir_changed(v->inode, -v->entries, -v->subdirs);
        names_drop_link(v->inode);
        g_array_append_val(inos, v->inode->ino);
        if (v->is_dir)
            counts.directories++;
        else
            counts.files++;
    }
    io->directories += counts.directories;
    io->files += counts.files;
    journal_complete(p->fs->journal, 0, 0, &counts);
    txn_exit(p->fs->txn);
}

static void plan_free(struct plan *p)
{
    for (unsigned i = 0; i < p->victims->len; i++)
        inode_put(victim_at(p, i)->inode);
    g_array_free(p->victims, TRUE);
    g_array_free(p->records, TRUE);
}

/* The rights and the victim; under ns_lock. */
static int plan_top(struct plan *p, struct inode *dir, const char *name, struct dirent_slot *slot)
{
    struct inode *top;
    if (!caller_may(p->caller, dir, MAY_EXEC))
        return -EACCES;
    int error = dirent_find(p->fs, dir->ino, name, slot);
    if (!error)
        error = slot->found ? names_get_child(p->fs, dir->ino, slot, &top) : -ENOENT;
    if (error)
        return error;
    plan_add(p, top);
    if (!caller_may(p->caller, dir, MAY_WRITE))
        return -EACCES;
    return caller_may_remove(p->caller, dir, top) ? plan_tree(p) : -EPERM;
}

int delete_tree(struct fs *fs, uint64_t dir_ino, const char *name, const struct caller *caller,
                struct cowfs_ioc_delete *io, GArray *inos)
{
    struct inode *dir = NULL;
    struct dirent_slot slot = {0};
    int error = names_check(name);
    if (!error && name_is_dots(name))
        error = -EINVAL;
    if (!error)
        error = fs_may_change(fs);
    if (error)
        return error;
    struct plan p = {
        .fs = fs,
        .caller = caller,
        .victims = g_array_new(FALSE, FALSE, sizeof(struct victim)),
        .records = g_array_new(FALSE, FALSE, sizeof(struct record)),
    };
    pthread_rwlock_wrlock(&fs->ns_lock);
    error = names_get_dir(fs, dir_ino, &dir);
    if (!error)
        error = plan_top(&p, dir, name, &slot);
    if (!error)
        delete_planned(&p, dir, &slot, io, inos);
    pthread_rwlock_unlock(&fs->ns_lock);
    dirent_slot_free(&slot);
    plan_free(&p);
    inode_put(dir);
    return error;
}
