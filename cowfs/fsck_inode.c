// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_inode.c - the table of inodes, and the records that hang on them.
 */
#include "cowfs/fsck_internal.h"

#include "cowfs/inode.h"

#include <errno.h>
#include <inttypes.h>

#define CAPABILITY_NAME "security.capability"

static bool type_known(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
        return (mode & ~(uint32_t)(S_IFMT | 07777)) == 0;
    default:
        return false;
    }
}

/* The mode of a record that inode_decode refuses: it comes third, behind
 * version and flags (docs/FORMAT.md). 0 if not even that can be read. */
static uint64_t peek_mode(const uint8_t *record, size_t len)
{
    struct rbuf r = rbuf_of(record, len);
    rbuf_get_u8(&r);
    rbuf_get_varint(&r);
    uint64_t mode = rbuf_get_varint(&r);
    return r.bad ? 0 : mode;
}

static void take_bad(struct fsck *f, const struct cursor *c)
{
    struct fsck_inode inode = {.ino = c->a, .flags = INODE_BAD};
    uint64_t mode = peek_mode(c->value, c->value_len);
    if (mode && !type_known((uint32_t)min_u64(mode, UINT32_MAX)))
        fsck_found(f, FSCK_INODE_MODE, 1, "inode %" PRIu64 " has mode 0%" PRIo64, c->a, mode);
    else
        fsck_undecodable(f, c);
    g_array_append_val(f->inodes, inode);
    f->maps_incomplete = true;
    /* It may be a directory, but names are in records of their own: nothing
     * that refers to inodes is lost. */
}

static void take_inode(struct fsck *f, const struct cursor *c, const struct inode_attr *attr)
{
    struct fsck_inode inode = {
        .ino = c->a,
        .nlink = attr->nlink,
        .type = (uint8_t)((attr->mode & S_IFMT) >> 12),
        .flags = (uint8_t)((attr->has_xattrs ? INODE_XATTRS : 0) |
                           (attr->has_capability ? INODE_CAPABILITY : 0)),
    };
    if (S_ISDIR(attr->mode)) {
        struct fsck_dir dir = {.ino = c->a, .parent = attr->parent, .size = attr->size_bytes};
        inode.dir = f->dirs->len;
        g_array_append_val(f->dirs, dir);
        f->report->directories++;
    }
    if (S_ISREG(attr->mode)) {
        f->report->files++;
        if (attr->map.levels)
            node_table_refer(&f->nodes, attr->map.root, attr->map.levels);
    }
    g_array_append_val(f->inodes, inode);
}

int fsck_load_inodes(struct fsck *f)
{
    struct cursor c;
    fsck_phase(f, "inodes", 0);
    cursor_open(&c, f, KEY_INODE);
    while (cursor_next(&c)) {
        struct inode_attr attr;
        if (inode_decode(c.value, c.value_len, &attr)) {
            take_bad(f, &c);
        } else {
            take_inode(f, &c, &attr);
            g_free(attr.target);
        }
        f->highest_ino = c.a;
    }
    f->report->inodes = f->inodes->len;
    int error = cursor_close(&c);
    if (error)
        return error;

    const struct fsck_inode *root = fsck_find_inode(f, ROOT_INO);
    if (!root)
        fsck_found(f, FSCK_ROOT, 1, "the root directory (inode %d) is missing", ROOT_INO);
    else if (!(root->flags & INODE_BAD) && root->type != S_IFDIR >> 12)
        fsck_found(f, FSCK_ROOT, 1, "inode %d is no directory", ROOT_INO);
    return 0;
}

struct fsck_inode *fsck_find_inode(struct fsck *f, uint64_t ino)
{
    struct fsck_inode *inodes = (struct fsck_inode *)(void *)f->inodes->data;
    size_t from = 0, to = f->inodes->len;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (inodes[middle].ino == ino)
            return &inodes[middle];
        if (inodes[middle].ino < ino)
            from = middle + 1;
        else
            to = middle;
    }
    return NULL;
}

int fsck_check_orphans(struct fsck *f)
{
    struct cursor c;
    fsck_phase(f, "orphan records", 0);
    cursor_open(&c, f, KEY_ORPHAN);
    while (cursor_next(&c)) {
        struct fsck_inode *inode = fsck_find_inode(f, c.a);
        f->report->orphans++;
        if (!inode) {
            fsck_found(f, FSCK_ORPHAN_STRAY, 1,
                       "orphan record of inode %" PRIu64 ", which is missing", c.a);
            continue;
        }
        inode->flags |= INODE_ORPHAN;
        /* The reaper leaves inodes with links alone: no danger, but wrong. */
        if (!(inode->flags & INODE_BAD) && inode->nlink > 0)
            fsck_found(f, FSCK_ORPHAN_LINKED, 1,
                       "orphan record of inode %" PRIu64 ", which has %" PRIu32 " links", c.a,
                       inode->nlink);
    }
    return cursor_close(&c);
}

static void check_xattr(struct fsck *f, const struct cursor *c, const struct fsck_inode *inode)
{
    char *name = g_strndup((const char *)c->name, c->name_len);
    char *quoted = g_strescape(name, NULL); /* chosen by a guest */
    if (!inode)
        fsck_found(f, FSCK_XATTR_STRAY, 1, "attribute '%s' of inode %" PRIu64 ", which is missing",
                   quoted, c->a);
    else if (inode->flags & INODE_BAD)
        ;
    else if (!(inode->flags & INODE_XATTRS))
        fsck_found(f, FSCK_XATTR_FLAG, 1,
                   "inode %" PRIu64 " is marked as without attributes, but has '%s'", c->a, quoted);
    else if (strcmp(name, CAPABILITY_NAME) == 0 && !(inode->flags & INODE_CAPABILITY))
        /* Writing to the file would not drop its privileges. */
        fsck_found(f, FSCK_XATTR_FLAG, 1,
                   "inode %" PRIu64 " is marked as without capabilities, but has some", c->a);
    g_free(quoted);
    g_free(name);
}

int fsck_check_xattrs(struct fsck *f)
{
    struct cursor c;
    fsck_phase(f, "extended attributes", 0);
    cursor_open(&c, f, KEY_XATTR);
    const struct fsck_inode *inode = NULL;
    uint64_t found = 0; /* no inode has this number */
    while (cursor_next(&c)) {
        if (c.a != found || c.a == 0)
            inode = fsck_find_inode(f, c.a);
        found = c.a;
        f->report->xattrs++;
        check_xattr(f, &c, inode);
    }
    return cursor_close(&c);
}

int fsck_check_unsealed(struct fsck *f)
{
    struct cursor c;
    cursor_open(&c, f, KEY_UNSEALED);
    while (cursor_next(&c))
        if (!fsck_find_inode(f, c.a))
            fsck_found(f, FSCK_UNSEALED_STRAY, 1,
                       "sealing record of inode %" PRIu64 ", which is missing", c.a);
    return cursor_close(&c);
}
