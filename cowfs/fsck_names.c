// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_names.c - directories: each entry, the links of each inode, the tree.
 *
 * The tree is right if each directory but the root has exactly one name, in
 * the directory that it calls its parent, and if going up by these ends at the
 * root. Each directory is visited once: a walk up stops where an earlier one
 * has been (walk_up).
 */
#include "cowfs/fsck_internal.h"

#include "cowfs/names.h"

#include <errno.h>
#include <inttypes.h>

/* One record of entries, while it is decoded. */
struct entry_scan {
    struct fsck *f;
    const struct fs *hash_env; /* names_hash wants the store's secret alone */
    uint64_t dir_ino, hash;
    struct fsck_dir *dir; /* NULL: entries of nothing */
    GPtrArray *seen;      /* names in this record */
    uint64_t entries;
};

static struct fsck_dir *dir_of(struct fsck *f, const struct fsck_inode *inode)
{
    if (!inode || inode->type != S_IFDIR >> 12)
        return NULL;
    return &g_array_index(f->dirs, struct fsck_dir, inode->dir);
}

static bool name_possible(const char *name)
{
    size_t len = strlen(name);
    return len >= 1 && len <= NAMES_NAME_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static bool seen_before(struct entry_scan *s, const char *name)
{
    for (guint i = 0; i < s->seen->len; i++)
        if (strcmp(s->seen->pdata[i], name) == 0)
            return true;
    g_ptr_array_add(s->seen, g_strdup(name));
    return false;
}

static void check_name(struct entry_scan *s, const char *name)
{
    struct fsck *f = s->f;
    /* Names are what guests chose: not for a terminal as they are. */
    char *quoted = g_strescape(name, NULL);
    if (!name_possible(name))
        fsck_found(f, FSCK_DIRENT_NAME, 1, "directory %" PRIu64 ": '%s' is no possible name",
                   s->dir_ino, quoted);
    if (names_hash(s->hash_env, name, strlen(name)) != s->hash)
        fsck_found(f, FSCK_DIRENT_HASH, 1,
                   "directory %" PRIu64 ": '%s' is filed under a wrong hash", s->dir_ino, quoted);
    if (seen_before(s, name))
        fsck_found(f, FSCK_DIRENT_DUPLICATE, 1, "directory %" PRIu64 ": '%s' exists twice",
                   s->dir_ino, quoted);
    g_free(quoted);
}

/* An entry whose inode is a directory. */
static void link_dir(struct entry_scan *s, struct fsck_dir *child, const char *quoted)
{
    struct fsck *f = s->f;
    s->dir->subdirs++;
    if (child->holder || child->ino == ROOT_INO)
        fsck_found(f, FSCK_DIR_TWO_NAMES, 1,
                   "directory %" PRIu64 " has another name in directory %" PRIu64 ": '%s'",
                   child->ino, s->dir_ino, quoted);
    /* Of two, the one that the directory itself knows is the right one. */
    if (!child->holder || child->parent == s->dir_ino)
        child->holder = s->dir_ino;
}

static void link_entry(struct entry_scan *s, uint64_t ino, uint32_t type, const char *name)
{
    struct fsck *f = s->f;
    struct fsck_inode *inode = fsck_find_inode(f, ino);
    char *quoted = g_strescape(name, NULL);
    if (!inode) {
        fsck_found(f, FSCK_DIRENT_INODE_MISSING, 1,
                   "directory %" PRIu64 ": '%s' is inode %" PRIu64 ", which is missing", s->dir_ino,
                   quoted, ino);
        f->maps_incomplete = true;
        s->dir->subdirs += type == S_IFDIR;
    } else {
        inode->names++;
        if (!(inode->flags & INODE_BAD)) {
            if (type >> 12 != inode->type)
                fsck_found(f, FSCK_DIRENT_TYPE, 1,
                           "directory %" PRIu64 ": '%s' is of type 0%" PRIo32 ", but inode %" PRIu64
                           " of 0%o",
                           s->dir_ino, quoted, type, ino, (unsigned)inode->type << 12);
            struct fsck_dir *child = dir_of(f, inode);
            if (child)
                link_dir(s, child, quoted);
        } else if (type == S_IFDIR) {
            s->dir->subdirs++;
        }
    }
    g_free(quoted);
}

static int take_entry(void *arg, uint64_t ino, uint32_t type, const char *name)
{
    struct entry_scan *s = arg;
    s->entries++;
    s->f->report->names++;
    check_name(s, name);
    if (s->dir) {
        s->dir->entries++;
        link_entry(s, ino, type, name);
    } else {
        /* They keep nothing alive, but explain why something has no name. */
        struct fsck_inode *inode = fsck_find_inode(s->f, ino);
        if (inode)
            inode->names++;
    }
    return 0;
}

/* Entries of what is no directory, or of a removed one. */
static void check_holder(struct entry_scan *s, const struct fsck_inode *inode)
{
    if (inode && inode->flags & INODE_BAD)
        return;
    const char *why = !inode              ? "is missing"
                      : !s->dir           ? "is no directory"
                      : inode->nlink == 0 ? "was removed"
                                          : NULL;
    if (why)
        fsck_found(s->f, FSCK_DIRENT_STRAY, s->entries,
                   "%" PRIu64 " entries of directory %" PRIu64 ", which %s", s->entries, s->dir_ino,
                   why);
}

int fsck_check_names(struct fsck *f)
{
    struct cursor c;
    struct fs *hash_env = g_new0(struct fs, 1);
    hash_env->sb = f->sb;
    hash_env->name_hash_mask = UINT64_MAX;
    struct entry_scan s = {
        .f = f, .hash_env = hash_env, .seen = g_ptr_array_new_with_free_func(g_free)};
    const struct fsck_inode *holder = NULL;

    fsck_phase(f, "names", 0);
    cursor_open(&c, f, KEY_DIRENT);
    while (cursor_next(&c)) {
        if (c.a != s.dir_ino || c.a == 0) {
            holder = fsck_find_inode(f, c.a);
            s.dir = dir_of(f, holder);
        }
        s.dir_ino = c.a;
        s.hash = c.b;
        s.entries = 0;
        g_ptr_array_set_size(s.seen, 0);
        int error = names_decode(c.value, c.value_len, take_entry, &s);
        if (error) {
            fsck_undecodable(f, &c);
            f->names_incomplete = true;
            if (s.dir)
                s.dir->entries_unknown = true;
        }
        check_holder(&s, holder);
    }
    g_ptr_array_free(s.seen, TRUE);
    g_free(hash_env);
    return cursor_close(&c);
}

/* ---- links ---- */

static void check_inode(struct fsck *f, const struct fsck_inode *inode)
{
    struct fsck_dir *dir = dir_of(f, inode);
    if (inode->flags & INODE_BAD)
        return;
    if (inode->names == 0 && inode->ino != ROOT_INO) {
        /* An unlinked file that was open at the end, or whose space is not
         * released yet. */
        if (inode->flags & INODE_ORPHAN)
            return;
        if (!f->names_incomplete)
            fsck_found(f, FSCK_INODE_UNREACHABLE, 1,
                       "inode %" PRIu64 " (%" PRIu32 " links) has no name and no orphan record",
                       inode->ino, inode->nlink);
        return;
    }
    uint64_t links = dir ? (uint64_t)dir->subdirs + 2 : inode->names;
    bool unsure = f->names_incomplete && inode->nlink > links;
    if (inode->nlink != links && !unsure)
        fsck_found(f, FSCK_INODE_NLINK, 1,
                   "inode %" PRIu64 " has %" PRIu64 " links, but records %" PRIu32, inode->ino,
                   links, inode->nlink);
    uint64_t parent = inode->ino == ROOT_INO ? ROOT_INO : dir ? dir->holder : 0;
    if (dir && parent && dir->parent != parent)
        fsck_found(f, FSCK_DIR_PARENT, 1,
                   "directory %" PRIu64 " is in %" PRIu64 ", but calls %" PRIu64 " its parent",
                   dir->ino, parent, dir->parent);
    if (dir && dir->size != dir->entries && !dir->entries_unknown)
        fsck_found(f, FSCK_INODE_SIZE, 1,
                   "directory %" PRIu64 " has %" PRIu64 " entries, but records %" PRIu64, dir->ino,
                   dir->entries, dir->size);
}

static struct fsck_dir *dir_by_ino(struct fsck *f, uint64_t ino)
{
    return ino ? dir_of(f, fsck_find_inode(f, ino)) : NULL;
}

/* Where does the way up from `dir` end? All on the way get the answer. */
static void walk_up(struct fsck *f, struct fsck_dir *dir, GPtrArray *way)
{
    enum dir_state end = DIR_UNKNOWN;
    g_ptr_array_set_size(way, 0);
    struct fsck_dir *d = dir;
    while (end == DIR_UNKNOWN) {
        if (!d) {
            end = DIR_LOST; /* told by check_inode already, at the topmost one */
        } else if (d->ino == ROOT_INO) {
            d->state = end = DIR_GOOD;
        } else if (d->state == DIR_ON_PATH) {
            fsck_found(f, FSCK_DIR_CYCLE, 1, "directory %" PRIu64 " contains itself", d->ino);
            end = DIR_LOST;
        } else if (d->state != DIR_UNKNOWN) {
            end = (enum dir_state)d->state;
        } else {
            d->state = DIR_ON_PATH;
            g_ptr_array_add(way, d);
            d = dir_by_ino(f, d->holder);
        }
    }
    for (guint i = 0; i < way->len; i++)
        ((struct fsck_dir *)way->pdata[i])->state = (uint8_t)end;
}

void fsck_check_links(struct fsck *f)
{
    fsck_phase(f, "links", f->inodes->len);
    for (guint i = 0; i < f->inodes->len; i++) {
        check_inode(f, &g_array_index(f->inodes, struct fsck_inode, i));
        fsck_step(f, 1);
    }
    GPtrArray *way = g_ptr_array_new();
    for (guint i = 0; i < f->dirs->len; i++)
        walk_up(f, &g_array_index(f->dirs, struct fsck_dir, i), way);
    g_ptr_array_free(way, TRUE);
}
