// SPDX-License-Identifier: Apache-2.0
/*
 * journal_record.c - the records of the journal: gathered by the thread that makes a
 * change, encoded and decoded.
 *
 * A record is a byte, its kind, and varints.
 */
#include "cowfs/journal_internal.h"

#include "cowfs/fs.h"

#include <errno.h>

static _Thread_local uint64_t current_request;
static _Thread_local uint64_t current_step;
static _Thread_local struct journal_counts current_counts;
static _Thread_local struct gather *gathered;

/* ---- Of each thread ---- */

static pthread_key_t gather_key; /* frees it when the thread ends */
static pthread_once_t gather_once = PTHREAD_ONCE_INIT;

static void gather_free(void *arg)
{
    struct gather *g = arg;
    wbuf_free(&g->records);
    g_array_free(g->inodes, TRUE);
    g_free(g);
    gathered = NULL;
}

static void gather_key_new(void)
{
    int error = pthread_key_create(&gather_key, gather_free);
    g_assert(error == 0);
}

struct gather *journal_gather(void)
{
    if (!gathered) {
        pthread_once(&gather_once, gather_key_new);
        gathered = g_new0(struct gather, 1);
        gathered->inodes = g_array_new(FALSE, FALSE, sizeof(struct gathered_inode));
        pthread_setspecific(gather_key, gathered);
    }
    return gathered;
}

struct gather *journal_gathered(void)
{
    struct gather *g = gathered;
    return g && (g->records.len || g->inodes->len || g->completed) ? g : NULL;
}

void journal_request_begin(uint64_t unique)
{
    current_request = unique;
    current_step = 0;
    current_counts = (struct journal_counts){0};
}

void journal_request_end(void)
{
    current_request = 0;
}

uint64_t journal_request_current(void)
{
    return current_request;
}

void journal_complete(struct journal *j, int64_t result, uint64_t ino,
                      const struct journal_counts *counts)
{
    if (!j || !current_request)
        return;
    struct gather *g = journal_gather();
    current_step++;
    if (counts) {
        current_counts.files += counts->files;
        current_counts.directories += counts->directories;
        current_counts.symlinks += counts->symlinks;
        current_counts.left_out += counts->left_out;
    }
    g->completed = true;
    g->completion =
        (struct journal_completion){current_request, result, ino, current_step, current_counts};
}

/* ---- Encoding ---- */

static struct wbuf *begin(struct fs *fs, enum journal_kind kind)
{
    if (!fs->journal)
        return NULL;
    struct wbuf *b = &journal_gather()->records;
    wbuf_put_u8(b, (uint8_t)kind);
    return b;
}

static void put_sized(struct wbuf *b, const void *data, size_t n)
{
    wbuf_put_varint(b, n);
    if (n)
        wbuf_put_bytes(b, data, n);
}

void journal_map(struct inode *inode, uint64_t index, uint64_t n, chunk_t first, bool reserved)
{
    struct wbuf *b = begin(inode->fs, JOURNAL_MAP);
    if (!b)
        return;
    wbuf_put_varint(b, inode->ino);
    wbuf_put_varint(b, index);
    wbuf_put_varint(b, n);
    wbuf_put_varint(b, first);
    wbuf_put_u8(b, reserved);
}

void journal_unmap(struct inode *inode, uint64_t index, uint64_t n)
{
    struct wbuf *b = begin(inode->fs, JOURNAL_UNMAP);
    if (!b)
        return;
    wbuf_put_varint(b, inode->ino);
    wbuf_put_varint(b, index);
    wbuf_put_varint(b, n);
}

void journal_clone(struct inode *src, struct inode *dst)
{
    struct wbuf *b = begin(src->fs, JOURNAL_CLONE);
    if (!b)
        return;
    wbuf_put_varint(b, src->ino);
    wbuf_put_varint(b, dst->ino);
}

void journal_share(struct inode *src, uint64_t src_index, struct inode *dst, uint64_t dst_index,
                   uint64_t n)
{
    struct wbuf *b = begin(src->fs, JOURNAL_SHARE);
    if (!b)
        return;
    wbuf_put_varint(b, src->ino);
    wbuf_put_varint(b, dst->ino);
    wbuf_put_varint(b, src_index);
    wbuf_put_varint(b, dst_index);
    wbuf_put_varint(b, n);
}

void journal_drop(struct inode *inode)
{
    struct wbuf *b = begin(inode->fs, JOURNAL_DROP);
    if (b)
        wbuf_put_varint(b, inode->ino);
}

void journal_home(struct fs *fs, enum journal_home what, uint32_t segment, uint64_t argument)
{
    struct wbuf *b = begin(fs, JOURNAL_HOME);
    if (!b)
        return;
    wbuf_put_u8(b, (uint8_t)what);
    wbuf_put_varint(b, segment);
    wbuf_put_varint(b, argument);
}

void journal_put(struct fs *fs, const void *key, size_t key_len, const void *value,
                 size_t value_len)
{
    metadb_put(fs->db, key, key_len, value, value_len);
    struct wbuf *b = begin(fs, JOURNAL_PUT);
    if (!b)
        return;
    put_sized(b, key, key_len);
    put_sized(b, value, value_len);
}

void journal_delete(struct fs *fs, const void *key, size_t key_len)
{
    metadb_delete(fs->db, key, key_len);
    struct wbuf *b = begin(fs, JOURNAL_DELETE);
    if (b)
        put_sized(b, key, key_len);
}

void journal_attr(struct inode *inode, unsigned mask)
{
    if (!inode->fs->journal)
        return;
    GArray *inodes = journal_gather()->inodes;
    /* The newest first: mostly it is that. A large transaction (a tree is cloned) may have
     * one twice, which is no harm. */
    enum { LOOK = 8 };
    for (guint i = inodes->len; i > 0 && i + LOOK > inodes->len; i--) {
        struct gathered_inode *gi = &g_array_index(inodes, struct gathered_inode, i - 1);
        if (gi->inode == inode) {
            gi->mask |= mask;
            return;
        }
    }
    struct gathered_inode gi = {.inode = inode_ref(inode), .mask = mask};
    g_array_append_val(inodes, gi);
}

void journal_remove(struct inode *inode)
{
    struct wbuf *b = begin(inode->fs, JOURNAL_REMOVE);
    if (!b)
        return;
    wbuf_put_varint(b, inode->ino);
    GArray *inodes = journal_gather()->inodes;
    for (guint i = inodes->len; i > 0; i--) {
        if (g_array_index(inodes, struct gathered_inode, i - 1).inode != inode)
            continue;
        g_array_remove_index_fast(inodes, i - 1);
        inode_put(inode);
    }
}

void journal_encode_attr(struct wbuf *out, struct inode *inode, unsigned mask, struct wbuf *scratch)
{
    const struct inode_attr *a = &inode->attr;
    wbuf_reset(scratch);
    pthread_mutex_lock(&inode->attr_lock);
    /* Not the map: roots are nothing that replay would find again. */
    struct inode_attr attr = {
        .mode = a->mode,
        .uid = a->uid,
        .gid = a->gid,
        .nlink = a->nlink,
        .rdev = a->rdev,
        .size_bytes = a->size_bytes,
        .atime = a->atime,
        .mtime = a->mtime,
        .ctime = a->ctime,
        .btime = a->btime,
        .parent = a->parent,
        .target = a->target,
        .has_capability = a->has_capability,
        .has_xattrs = a->has_xattrs,
        .linkable = a->linkable,
    };
    if (mask & (JOURNAL_CONTENT | JOURNAL_NEW)) {
        attr.home = a->home;
        attr.home_filling = a->home_filling;
        attr.packing = a->packing;
    }
    inode_encode(&attr, scratch);
    pthread_mutex_unlock(&inode->attr_lock);
    wbuf_put_u8(out, JOURNAL_ATTR);
    wbuf_put_varint(out, inode->ino);
    wbuf_put_u8(out, (uint8_t)mask);
    put_sized(out, scratch->data, scratch->len);
}

/* ---- Decoding ---- */

static const uint8_t *get_sized(struct rbuf *r, size_t *n)
{
    *n = rbuf_get_varint(r);
    return rbuf_get_bytes(r, *n);
}

static void get_attr(struct rbuf *r, struct journal_record *out)
{
    size_t n;
    out->ino = rbuf_get_varint(r);
    out->mask = rbuf_get_u8(r);
    const uint8_t *record = get_sized(r, &n);
    if (!record || inode_decode(record, n, &out->attr))
        r->bad = true;
}

static void get_record(struct rbuf *r, struct journal_record *out)
{
    switch (out->kind) {
    case JOURNAL_MAP:
        out->ino = rbuf_get_varint(r);
        out->index = rbuf_get_varint(r);
        out->count = rbuf_get_varint(r);
        out->first = rbuf_get_varint(r);
        out->reserved = rbuf_get_u8(r);
        break;
    case JOURNAL_UNMAP:
        out->ino = rbuf_get_varint(r);
        out->index = rbuf_get_varint(r);
        out->count = rbuf_get_varint(r);
        break;
    case JOURNAL_CLONE:
        out->src_ino = rbuf_get_varint(r);
        out->ino = rbuf_get_varint(r);
        break;
    case JOURNAL_SHARE:
        out->src_ino = rbuf_get_varint(r);
        out->ino = rbuf_get_varint(r);
        out->src_index = rbuf_get_varint(r);
        out->index = rbuf_get_varint(r);
        out->count = rbuf_get_varint(r);
        break;
    case JOURNAL_DROP:
    case JOURNAL_REMOVE:
        out->ino = rbuf_get_varint(r);
        break;
    case JOURNAL_ATTR:
        get_attr(r, out);
        break;
    case JOURNAL_PUT:
        out->key = get_sized(r, &out->key_len);
        out->value = get_sized(r, &out->value_len);
        break;
    case JOURNAL_DELETE:
        out->key = get_sized(r, &out->key_len);
        break;
    case JOURNAL_HOME:
        out->home = rbuf_get_u8(r);
        out->segment = (uint32_t)rbuf_get_varint(r);
        out->argument = rbuf_get_varint(r);
        break;
    default:
        r->bad = true;
    }
}

bool journal_decode(struct rbuf *r, struct journal_record *out, int *error)
{
    *error = 0;
    if (!r->bad && rbuf_left(r) == 0)
        return false;
    *out = (struct journal_record){.kind = rbuf_get_u8(r)};
    get_record(r, out);
    if (r->bad) {
        g_free(out->attr.target);
        *error = -EUCLEAN;
        return false;
    }
    return true;
}
