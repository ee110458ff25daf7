// SPDX-License-Identifier: Apache-2.0
/*
 * replay.c - doing again what the journal has and no durable commit.
 *
 * Through the same functions that did it first, in the order of the journal, so counts and
 * nodes come out by themselves. What was not journaled need not come again: partial
 * releases of orphans (the reaper goes on from where the commit is), chunks exchanged by
 * sealing (the exchanged ones are there: nothing is punched before its commit is durable),
 * slots handed out and not mapped (they are found without owner and punched).
 *
 * Nothing of it is committed before all of it is done, and that commit says how far the
 * journal is contained in it: so a crash in the middle of a replay, or of that commit,
 * lets the next one begin where this one did.
 */
#include "cowfs/fs.h"
#include "cowfs/journal_internal.h"
#include "cowfs/names.h"

#include "cowfs/file_internal.h"

#include <errno.h>
#include <inttypes.h>

/* ---- What has to be known before segments are opened ---- */

struct scan {
    GHashTable *segments; /* id -> struct segment_known */
    uint64_t next_ino;
};

static struct segment_known *known_of(struct scan *s, uint32_t id)
{
    struct segment_known *known = g_hash_table_lookup(s->segments, GUINT_TO_POINTER(id));
    if (!known) {
        known = g_new0(struct segment_known, 1);
        known->id = id;
        g_hash_table_insert(s->segments, GUINT_TO_POINTER(id), known);
    }
    return known;
}

static int scan_piece(void *arg, const uint8_t *records, size_t bytes)
{
    struct scan *s = arg;
    struct rbuf r = rbuf_of(records, bytes);
    struct journal_record rec;
    int error;
    while (journal_decode(&r, &rec, &error)) {
        g_free(rec.attr.target);
        s->next_ino = max_u64(s->next_ino, rec.ino + 1);
        if (rec.kind == JOURNAL_MAP) {
            struct segment_known *known = known_of(s, (uint32_t)(rec.first >> 32));
            known->slots = max_u64(known->slots, (uint32_t)rec.first + rec.count);
        } else if (rec.kind == JOURNAL_HOME && rec.home == JOURNAL_HOME_BEGIN) {
            known_of(s, rec.segment)->home = true;
        }
    }
    return error;
}

int replay_scan(struct journal *j, GArray *known, uint64_t *next_ino, struct errmsg *err)
{
    struct scan s = {.next_ino = *next_ino};
    s.segments = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    int error = journal_each(j, scan_piece, &s);
    GHashTableIter it;
    gpointer value;
    g_hash_table_iter_init(&it, s.segments);
    while (g_hash_table_iter_next(&it, NULL, &value))
        g_array_append_vals(known, value, 1);
    g_hash_table_destroy(s.segments);
    *next_ino = s.next_ino;
    return error ? errmsg_set(err, error, "the journal cannot be read: %s", g_strerror(-error)) : 0;
}

/* ---- Doing it ---- */

struct replay {
    struct fs *fs;
    uint64_t records;
    struct journal_record last; /* for the message */
};

static int again_clone(struct fs *fs, struct inode *dst, uint64_t src_ino)
{
    struct inode *src;
    int error = inode_get(fs->inodes, src_ino, &src);
    if (error)
        return error;
    struct map map, old = dst->attr.map;
    error = map_clone(fs->nodes, &src->attr.map, &map);
    inode_put(src);
    if (error)
        return error;
    dst->attr.map = map;
    return file_drop_map(fs, &old);
}

static int again_share(struct fs *fs, struct inode *dst, const struct journal_record *rec)
{
    struct inode *src;
    int error = inode_get(fs->inodes, rec->src_ino, &src);
    if (error)
        return error;
    error = map_share(fs->nodes, &src->attr.map, rec->src_index, &dst->attr.map, rec->index,
                      rec->count);
    inode_put(src);
    return error;
}

static int again_drop(struct fs *fs, struct inode *inode)
{
    struct map old = inode->attr.map;
    inode->attr.map = (struct map){0};
    return file_drop_map(fs, &old);
}

/* Takes the target over where it is wanted. */
static void again_attr(struct inode *inode, struct journal_record *rec)
{
    struct inode_attr *to = &inode->attr, *from = &rec->attr;
    bool is_new = rec->mask & JOURNAL_NEW;
    if (is_new) {
        g_free(to->target);
        to->target = from->target;
        from->target = NULL;
        to->rdev = from->rdev;
        to->btime = from->btime;
        to->size_bytes = from->size_bytes;
    }
    if (is_new || rec->mask & JOURNAL_OWN) {
        to->mode = from->mode;
        to->uid = from->uid;
        to->gid = from->gid;
        to->atime = from->atime;
        to->mtime = from->mtime;
        to->ctime = from->ctime;
        to->has_capability = from->has_capability;
        to->has_xattrs = from->has_xattrs;
    }
    if (is_new || rec->mask & JOURNAL_NAMES) {
        to->nlink = from->nlink;
        to->parent = from->parent;
        to->linkable = from->linkable;
        if (S_ISDIR(from->mode))
            to->size_bytes = from->size_bytes;
    }
    if ((is_new || rec->mask & JOURNAL_CONTENT) && S_ISREG(from->mode)) {
        to->size_bytes = from->size_bytes;
        to->home = from->home;
        to->home_filling = from->home_filling;
        to->packing = from->packing;
    }
}

static int again_remove(struct fs *fs, uint64_t ino)
{
    struct inode *inode;
    bool more = true;
    /* That it was removed proves that no kernel knows it: it is not to be kept for one. */
    for (unsigned mount = 0; mount < INODE_MOUNTS; mount++)
        inode_forget(fs->inodes, ino, mount, 0);
    int error = inode_claim_orphan(fs->inodes, ino, &inode);
    if (error)
        return error == -ENOENT ? 0 : error;
    while (more && !error)
        error = map_release(fs->nodes, &inode->attr.map, &more);
    if (!error && inode->attr.has_xattrs)
        error = xattr_drop_all(fs, ino);
    if (error)
        inode_unclaim(inode);
    else
        inode_delete_claimed(inode);
    return error;
}

static int again_home(struct fs *fs, const struct journal_record *rec)
{
    struct segment_home home;
    if (segments_home_get(fs->segments, rec->segment, &home) != 0)
        return -EUCLEAN;
    switch (rec->home) {
    case JOURNAL_HOME_BEGIN:
        segments_home_begin(fs->segments, rec->segment);
        return 0;
    case JOURNAL_HOME_FREEZE:
        if (!home.filling)
            return -EUCLEAN;
        segments_home_freeze(fs->segments, rec->segment, rec->argument);
        return 0;
    case JOURNAL_HOME_LEAVE:
        if (!home.filling)
            return -EUCLEAN;
        segments_home_leave(fs->segments, rec->segment, rec->argument);
        return 0;
    case JOURNAL_HOME_PACK:
        segments_home_pack(fs->segments, rec->segment);
        return 0;
    }
    return -EUCLEAN;
}

/* What changes an inode that is there. */
static int again_inode(struct fs *fs, struct journal_record *rec)
{
    struct inode *inode;
    int error = inode_get_or_make(fs->inodes, rec->ino, &inode);
    if (error)
        return error;
    switch (rec->kind) {
    case JOURNAL_MAP:
        error =
            map_set(fs->nodes, &inode->attr.map, rec->index, rec->count, rec->first, rec->reserved);
        break;
    case JOURNAL_UNMAP:
        error = map_punch(fs->nodes, &inode->attr.map, rec->index, rec->count);
        break;
    case JOURNAL_CLONE:
        error = again_clone(fs, inode, rec->src_ino);
        break;
    case JOURNAL_SHARE:
        error = again_share(fs, inode, rec);
        break;
    case JOURNAL_DROP:
        error = again_drop(fs, inode);
        break;
    case JOURNAL_ATTR:
        again_attr(inode, rec);
        break;
    default:
        error = -EUCLEAN;
    }
    inode_mark_dirty(inode);
    inode_put(inode);
    return error;
}

static int again(struct fs *fs, struct journal_record *rec)
{
    switch (rec->kind) {
    case JOURNAL_PUT:
        metadb_put(fs->db, rec->key, rec->key_len, rec->value, rec->value_len);
        return 0;
    case JOURNAL_DELETE:
        metadb_delete(fs->db, rec->key, rec->key_len);
        return 0;
    case JOURNAL_REMOVE:
        return again_remove(fs, rec->ino);
    case JOURNAL_HOME:
        return again_home(fs, rec);
    default:
        return again_inode(fs, rec);
    }
}

static int replay_piece(void *arg, const uint8_t *records, size_t bytes)
{
    struct replay *p = arg;
    struct rbuf r = rbuf_of(records, bytes);
    struct journal_record rec;
    int error;
    while (journal_decode(&r, &rec, &error)) {
        p->records++;
        p->last = rec;
        error = again(p->fs, &rec);
        g_free(rec.attr.target);
        if (error)
            break;
    }
    return error;
}

int replay_run(struct fs *fs, struct journal *j, struct errmsg *err)
{
    struct replay p = {.fs = fs};
    txn_enter(fs->txn);
    int error = journal_each(j, replay_piece, &p);
    txn_exit(fs->txn);
    if (error)
        return errmsg_set(err, error,
                          "%s: record %" PRIu64 " of the journal (kind %d, inode %" PRIu64
                          ") cannot be done again: %s",
                          fs->store_path, p.records, (int)p.last.kind, p.last.ino,
                          g_strerror(-error));
    g_message("%s: %" PRIu64 " records of the journal were done again", fs->store_path, p.records);
    return 0;
}
