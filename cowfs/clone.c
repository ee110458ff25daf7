// SPDX-License-Identifier: Apache-2.0
/*
 * clone.c - a clone of a file or of a directory with all in it, atomically.
 *
 * Steps, all under ns_lock (so that names stand still):
 *   1. plan    walk the tree, reference its inodes, check the caller's rights
 *   2. lock    the content of all regular files, ascending by inode number:
 *              from here on no write gets through, so the clone is one point
 *              in time over all files, not just within each
 *   3. build   in one transaction: new inodes, maps that share the roots,
 *              names; the name of the whole comes last
 *
 * Each file costs a few microseconds, whatever its size. If building fails
 * midway, what was made becomes orphans, and nothing can be seen.
 */
#include "cowfs/clone.h"

#include "cowfs/caller.h"
#include "cowfs/file.h"
#include "cowfs/journal_internal.h"
#include "cowfs/names.h"
#include "cowfs/sealer.h"

#include <errno.h>
#include <glib.h>

/* Something to be cloned. */
struct plan_item {
    struct inode *src;  /* referenced */
    struct inode *made; /* referenced, from step 3 on */
    char *name;         /* in its parent; NULL for the root of the clone */
    unsigned parent;    /* index in the plan */
    uint32_t mode;
};

struct plan {
    struct fs *fs;
    const struct caller *caller;
    GArray *items;      /* struct plan_item, parents before children */
    GPtrArray *locked;  /* inodes whose map_lock we hold */
    GHashTable *by_ino; /* ino of a file with several names -> index + 1 */
    struct cowfs_ioc_clone *io;
    unsigned walking; /* item whose directory is being read */
    int error;
};

static struct plan_item *item_at(struct plan *p, unsigned i)
{
    return &g_array_index(p->items, struct plan_item, i);
}

static int plan_add(struct plan *p, struct inode *src, const char *name, unsigned parent)
{
    struct plan_item item = {.src = src, .name = g_strdup(name), .parent = parent};
    pthread_mutex_lock(&src->attr_lock);
    item.mode = src->attr.mode;
    pthread_mutex_unlock(&src->attr_lock);
    g_array_append_val(p->items, item); /* owns the reference from here on */
    unsigned want = S_ISDIR(item.mode) ? MAY_READ | MAY_EXEC : MAY_READ;
    if (!S_ISLNK(item.mode) && !caller_may(p->caller, src, want))
        return -EACCES;
    if (S_ISDIR(item.mode))
        p->io->directories++;
    else if (S_ISLNK(item.mode))
        p->io->symlinks++;
    else
        p->io->files++;
    return 0;
}

static int plan_entry(void *arg, uint64_t ino, uint32_t type, const char *name)
{
    struct plan *p = arg;
    struct inode *src;
    if (!S_ISREG(type) && !S_ISDIR(type) && !S_ISLNK(type)) {
        /* Sockets and fifos belong to a running process. */
        p->io->left_out++;
        return 0;
    }
    int error = inode_get(p->fs->inodes, ino, &src);
    if (error)
        return error == -ENOENT ? -EUCLEAN : error;
    return plan_add(p, src, name, p->walking);
}

/* Step 1, breadth first: the plan is its own queue. */
static int plan_tree(struct plan *p)
{
    int error = 0;
    for (unsigned i = 0; i < p->items->len && !error; i++) {
        uint8_t lower[KEY_MAX], upper[KEY_MAX];
        uint64_t ino = item_at(p, i)->src->ino;
        if (!S_ISDIR(item_at(p, i)->mode))
            continue;
        p->walking = i;
        size_t lower_len = key_u64(lower, KEY_DIRENT, ino);
        size_t upper_len = key_u64(upper, KEY_DIRENT, ino + 1);
        struct metadb_iter *it = metadb_iter_new(p->fs->db, lower, lower_len, upper, upper_len);
        for (; metadb_iter_valid(it) && !error; metadb_iter_next(it)) {
            size_t len;
            const uint8_t *record = metadb_iter_value(it, &len);
            error = names_decode(record, len, plan_entry, p);
        }
        if (!error)
            error = metadb_iter_status(it);
        metadb_iter_free(it);
    }
    return error;
}

static int compare_ino(const void *a, const void *b)
{
    const struct inode *x = *(struct inode *const *)a, *y = *(struct inode *const *)b;
    return x->ino < y->ino ? -1 : x->ino > y->ino;
}

/* Step 2. */
static void lock_files(struct plan *p)
{
    GPtrArray *files = g_ptr_array_new();
    for (unsigned i = 0; i < p->items->len; i++)
        if (S_ISREG(item_at(p, i)->mode))
            g_ptr_array_add(files, item_at(p, i)->src);
    g_ptr_array_sort(files, compare_ino);
    for (unsigned i = 0; i < files->len; i++) {
        struct inode *inode = files->pdata[i];
        if (i > 0 && inode == files->pdata[i - 1])
            continue; /* a hard link within the tree */
        pthread_rwlock_wrlock(&inode->map_lock);
        g_ptr_array_add(p->locked, inode);
    }
    g_ptr_array_free(files, TRUE);
}

static void unlock_files(struct plan *p)
{
    for (unsigned i = 0; i < p->locked->len; i++)
        pthread_rwlock_unlock(&((struct inode *)p->locked->pdata[i])->map_lock);
    g_ptr_array_set_size(p->locked, 0);
}

/* The inode without content and name; dir: where it will get one. */
static struct inode *make_twin(struct plan *p, struct plan_item *item, struct inode *dir)
{
    struct inode *src = item->src;
    bool root = caller_is_root(p->caller);
    uint32_t dir_mode, dir_gid;
    pthread_mutex_lock(&dir->attr_lock);
    dir_mode = dir->attr.mode;
    dir_gid = dir->attr.gid;
    pthread_mutex_unlock(&dir->attr_lock);
    pthread_mutex_lock(&src->attr_lock);
    struct inode_attr a = src->attr;
    char *target = g_strdup(a.target);
    pthread_mutex_unlock(&src->attr_lock);
    /* Only root may make files of others; setuid bits do not survive a change
     * of owner, as with cp -a. */
    uint32_t uid = root ? a.uid : p->caller->uid, gid = root ? a.gid : p->caller->gid;
    uint32_t mode = a.mode;
    /* What he makes in a setgid directory belongs to its group. */
    if (!root && dir_mode & S_ISGID)
        gid = dir_gid;
    if (uid != a.uid || gid != a.gid)
        mode &= ~(uint32_t)(S_ISUID | S_ISGID);
    if (!root && dir_mode & S_ISGID && S_ISDIR(mode))
        mode |= S_ISGID;
    struct inode *twin = inode_new(p->fs->inodes, mode, uid, gid, 0);
    pthread_mutex_lock(&twin->attr_lock);
    twin->attr.atime = a.atime;
    twin->attr.mtime = a.mtime;
    if (S_ISLNK(mode)) {
        twin->attr.target = target;
        twin->attr.size_bytes = a.size_bytes;
        target = NULL;
    }
    pthread_mutex_unlock(&twin->attr_lock);
    g_free(target);
    return twin;
}

/* Links a made item into its parent's twin. */
static int link_item(struct plan *p, struct plan_item *item)
{
    struct inode *dir = item_at(p, item->parent)->made;
    if (S_ISDIR(item->mode)) {
        pthread_mutex_lock(&item->made->attr_lock);
        item->made->attr.parent = dir->ino;
        pthread_mutex_unlock(&item->made->attr_lock);
    }
    struct inode *src_dir = item_at(p, item->parent)->src;
    pthread_mutex_lock(&src_dir->attr_lock);
    struct timespec mtime = src_dir->attr.mtime;
    pthread_mutex_unlock(&src_dir->attr_lock);
    int error = names_add_locked(p->fs, dir, item->name, item->made);
    pthread_mutex_lock(&dir->attr_lock);
    dir->attr.mtime = mtime;
    pthread_mutex_unlock(&dir->attr_lock);
    return error;
}

static int build_item(struct plan *p, unsigned i, struct inode *top_dir)
{
    struct plan_item *item = item_at(p, i);
    uint64_t ino = item->src->ino;
    unsigned twin = GPOINTER_TO_UINT(g_hash_table_lookup(p->by_ino, &ino));
    int error = 0;
    if (twin) {
        item->made = inode_ref(item_at(p, twin - 1)->made);
        pthread_mutex_lock(&item->made->attr_lock);
        item->made->attr.nlink++;
        pthread_mutex_unlock(&item->made->attr_lock);
        inode_mark_dirty(item->made);
    } else {
        item->made = make_twin(p, item, i == 0 ? top_dir : item_at(p, item->parent)->made);
        if (S_ISREG(item->mode))
            error = file_clone_locked(item->src, item->made);
        if (!error)
            /* As with setuid bits: a program with file capabilities must not
             * become one of a user who could not have given it these. */
            error = xattr_copy_all(p->fs, ino, item->made->ino, !caller_is_root(p->caller));
        if (!S_ISDIR(item->mode)) {
            g_hash_table_insert(p->by_ino, g_memdup2(&ino, sizeof(ino)), GUINT_TO_POINTER(i + 1));
        }
    }
    return error || i == 0 ? error : link_item(p, item);
}

/* Building failed: what was made loses its names and becomes orphans. */
static void unbuild(struct plan *p)
{
    for (unsigned i = 0; i < p->items->len; i++) {
        struct inode *made = item_at(p, i)->made;
        if (!made)
            continue;
        if (S_ISDIR(item_at(p, i)->mode)) {
            uint8_t lower[KEY_MAX], upper[KEY_MAX];
            size_t lower_len = key_u64(lower, KEY_DIRENT, made->ino);
            size_t upper_len = key_u64(upper, KEY_DIRENT, made->ino + 1);
            struct metadb_iter *it = metadb_iter_new(p->fs->db, lower, lower_len, upper, upper_len);
            for (; metadb_iter_valid(it); metadb_iter_next(it)) {
                size_t len;
                const uint8_t *key = metadb_iter_key(it, &len);
                journal_delete(p->fs, key, len);
            }
            metadb_iter_free(it);
        }
        pthread_mutex_lock(&made->attr_lock);
        made->attr.nlink = 0;
        pthread_mutex_unlock(&made->attr_lock);
        inode_mark_orphan(made);
        inode_mark_dirty(made);
    }
}

/* Step 3. */
static int build(struct plan *p, struct inode *dir, const char *name)
{
    int error = 0;
    lock_files(p);
    txn_enter(p->fs->txn);
    for (unsigned i = 0; i < p->items->len && !error; i++)
        error = build_item(p, i, dir);
    if (!error) {
        struct plan_item *top = item_at(p, 0);
        if (S_ISDIR(top->mode)) {
            pthread_mutex_lock(&top->made->attr_lock);
            top->made->attr.parent = dir->ino;
            pthread_mutex_unlock(&top->made->attr_lock);
        }
        error = names_add_locked(p->fs, dir, name, top->made);
    }
    struct journal_counts counts = {p->io->files, p->io->directories, p->io->symlinks,
                                    p->io->left_out};
    if (error)
        unbuild(p);
    else
        journal_complete(p->fs->journal, 0, item_at(p, 0)->made->ino, &counts);
    txn_exit(p->fs->txn);
    unlock_files(p);
    return error;
}

/* Would the clone lie within its own source? */
static int check_inside(struct fs *fs, uint64_t src, uint64_t dir)
{
    while (dir != src && dir != ROOT_INO) {
        struct inode *inode;
        int error = inode_get(fs->inodes, dir, &inode);
        if (error)
            return error;
        dir = inode->attr.parent;
        inode_put(inode);
    }
    return dir == src ? -EINVAL : 0;
}

static int check_destination(struct plan *p, struct inode *dir, const char *name)
{
    uint64_t ino;
    uint32_t type;
    int error = names_check(name);
    if (error)
        return error;
    if (!S_ISDIR(dir->attr.mode))
        return -ENOTDIR;
    if (dir->attr.nlink == 0)
        return -ENOENT;
    if (!caller_may(p->caller, dir, MAY_WRITE | MAY_EXEC))
        return -EACCES;
    error = names_find_locked(p->fs, dir->ino, name, &ino, &type);
    return error == -ENOENT ? 0 : error ? error : -EEXIST;
}

static void plan_free(struct plan *p)
{
    for (unsigned i = 0; i < p->items->len; i++) {
        inode_put(item_at(p, i)->src);
        inode_put(item_at(p, i)->made);
        g_free(item_at(p, i)->name);
    }
    g_array_free(p->items, TRUE);
    g_ptr_array_free(p->locked, TRUE);
    g_hash_table_destroy(p->by_ino);
}

int clone_tree(struct fs *fs, uint64_t src_ino, uint64_t dir_ino, const char *name,
               const struct caller *caller, struct cowfs_ioc_clone *io)
{
    int error = fs_may_change(fs);
    if (error)
        return error;
    struct plan p = {
        .fs = fs,
        .caller = caller,
        .items = g_array_new(FALSE, FALSE, sizeof(struct plan_item)),
        .locked = g_ptr_array_new(),
        .by_ino = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL),
        .io = io,
    };
    struct inode *src = NULL, *dir = NULL;
    io->files = io->directories = io->symlinks = io->left_out = 0;
    pthread_rwlock_wrlock(&fs->ns_lock);
    error = inode_get(fs->inodes, dir_ino, &dir);
    if (!error)
        error = check_destination(&p, dir, name);
    if (!error)
        error = inode_get(fs->inodes, src_ino, &src);
    if (!error && S_ISDIR(src->attr.mode))
        error = check_inside(fs, src_ino, dir_ino);
    if (!error && !S_ISREG(src->attr.mode) && !S_ISDIR(src->attr.mode))
        error = -EINVAL;
    if (!error && src->attr.nlink == 0)
        error = -ENOENT;
    if (!error)
        error = plan_add(&p, inode_ref(src), NULL, 0);
    if (!error)
        error = plan_tree(&p);
    if (!error)
        error = build(&p, dir, name);
    pthread_rwlock_unlock(&fs->ns_lock);
    plan_free(&p);
    inode_put(src);
    inode_put(dir);
    return error;
}

int clone_child(struct fs *fs, uint64_t src_dir, const char *src_name, uint64_t dir,
                const char *name, const struct caller *caller, struct cowfs_ioc_clone *io)
{
    struct inode *parent, *src = NULL;
    if (!*src_name)
        return clone_tree(fs, src_dir, dir, name, caller, io);
    int error = inode_get(fs->inodes, src_dir, &parent);
    if (error)
        return error;
    /* That it may be opened says nothing of looking up names in it. */
    error =
        caller_may(caller, parent, MAY_EXEC) ? names_lookup(fs, src_dir, src_name, &src) : -EACCES;
    if (!error)
        error = clone_tree(fs, src->ino, dir, name, caller, io);
    inode_put(src);
    inode_put(parent);
    return error;
}
