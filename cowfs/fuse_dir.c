// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_dir.c - listing directories.
 *
 * A position in a listing is the hash of a name, so nothing is kept between two
 * calls, and an entry that is there all the while is listed exactly once.
 *
 * Listings are not cached by the kernel (cache_readdir): a clone made by ioctl
 * adds an entry behind its back.
 */
#include "cowfs/fuse_ops.h"
#include "cowfs/names.h"

#include <errno.h>
#include <string.h>

/* Kernels ask for a page or, lately, up to 128 KiB and more; an answer may be
 * shorter. */
enum { LISTING_BYTES_MAX = 256 * 1024 };

struct listing {
    fuse_req_t req;
    struct mount *mount;
    char *buffer;
    size_t size, used;
    bool plus;
    GArray *looked_up; /* plus: inodes whose lookup count was raised */
    int error;
};

void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fi->fh = 0;
    fi->cache_readdir = 0;
    fi->keep_cache = 0;
    fuse_reply_open(req, fi);
}

static bool is_dot(const char *name)
{
    return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

static size_t add_plain(struct listing *l, const struct dir_entry *e)
{
    struct stat st = {.st_ino = e->ino, .st_mode = e->type};
    return fuse_add_direntry(l->req, l->buffer + l->used, l->size - l->used, e->name, &st,
                             (off_t)e->cookie);
}

/* The room is checked before the inode is fetched, so that a count is raised
 * only for an entry that is delivered. */
static size_t add_plus(struct listing *l, const struct dir_entry *e)
{
    struct fuse_entry_param entry = {.attr = {.st_ino = e->ino, .st_mode = e->type}};
    size_t need = fuse_add_direntry_plus(l->req, NULL, 0, e->name, NULL, 0);
    if (need > l->size - l->used)
        return need;

    /* Node id 0 in the answer: a name and a type, no inode. So it is for "."
     * and "..", and for what was removed a moment ago. */
    struct inode *inode;
    if (!is_dot(e->name)) {
        int error = inode_get(l->mount->fs->inodes, e->ino, &inode);
        if (error == 0) {
            mount_fill_entry(l->mount, inode, &entry);
            g_array_append_val(l->looked_up, inode->ino);
            inode_put(inode);
        } else if (error != -ENOENT) {
            /* One damaged inode must not hide all its neighbours. */
            g_warning("inode %" G_GUINT64_FORMAT " (%s): %s", (guint64)e->ino, e->name,
                      g_strerror(-error));
        }
    }
    return fuse_add_direntry_plus(l->req, l->buffer + l->used, l->size - l->used, e->name, &entry,
                                  (off_t)e->cookie);
}

static int add_entry(void *arg, const struct dir_entry *e)
{
    struct listing *l = arg;
    size_t need = l->plus ? add_plus(l, e) : add_plain(l, e);
    if (need > l->size - l->used)
        return 1;
    l->used += need;
    return 0;
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, bool plus)
{
    struct mount *m = mount_of(req);
    struct listing l = {
        .req = req,
        .mount = m,
        .size = MIN(size, LISTING_BYTES_MAX),
        .plus = plus,
    };
    l.buffer = g_malloc(l.size);
    if (plus)
        l.looked_up = g_array_new(FALSE, FALSE, sizeof(uint64_t));

    int error = names_list(m->fs, ino, (uint64_t)offset, add_entry, &l);
    /* What was listed before an error is delivered; the error comes next time. */
    bool failed = false;
    if (error < 0 && l.used == 0)
        reply_status(req, error);
    else
        failed = fuse_reply_buf(req, l.buffer, l.used) != 0;

    if (plus) {
        for (guint i = 0; failed && i < l.looked_up->len; i++)
            mount_forget(m, g_array_index(l.looked_up, uint64_t, i), 1);
        g_array_free(l.looked_up, TRUE);
    }
    g_free(l.buffer);
}

void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                struct fuse_file_info *fi)
{
    (void)fi;
    list(req, ino, size, offset, false);
}

void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    (void)fi;
    list(req, ino, size, offset, true);
}
