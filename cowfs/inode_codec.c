// SPDX-License-Identifier: Apache-2.0
/*
 * inode_codec.c - the record of an inode (docs/FORMAT.md, "Inodes").
 *
 * Varints throughout: a record of a young file takes some 35 bytes. Times are
 * kept relative to the birth time, since most are close to it. The sums wrap,
 * so any 64-bit time survives.
 */
#include "cowfs/inode.h"

#include "cowfs/file.h"

#include <errno.h>

enum {
    INODE_RECORD_VERSION = 1,
    FLAG_CAPABILITY = 1 << 0,
    FLAG_XATTRS = 1 << 1,
    FLAG_LINKABLE = 1 << 2,
    FLAG_HOME = 1 << 3,
    FLAG_HOME_FILLING = 1 << 4,
    FLAG_PACKING = 1 << 5,
    FLAGS_KNOWN = FLAG_CAPABILITY | FLAG_XATTRS | FLAG_LINKABLE | FLAG_HOME | FLAG_HOME_FILLING |
                  FLAG_PACKING,
    NSEC_PER_SEC = 1000000000,
    TARGET_MAX = 4095, /* PATH_MAX less the NUL */
};

static void put_time(struct wbuf *out, const struct timespec *ts, const struct timespec *base)
{
    uint64_t delta = (uint64_t)ts->tv_sec - (base ? (uint64_t)base->tv_sec : 0);
    wbuf_put_svarint(out, (int64_t)delta);
    wbuf_put_varint(out, (uint64_t)ts->tv_nsec);
}

void inode_encode(const struct inode_attr *attr, struct wbuf *out)
{
    uint64_t flags = (attr->has_capability ? FLAG_CAPABILITY : 0) |
                     (attr->has_xattrs ? FLAG_XATTRS : 0) | (attr->linkable ? FLAG_LINKABLE : 0) |
                     (attr->home ? FLAG_HOME : 0) | (attr->home_filling ? FLAG_HOME_FILLING : 0) |
                     (attr->packing ? FLAG_PACKING : 0);
    wbuf_put_u8(out, INODE_RECORD_VERSION);
    wbuf_put_varint(out, flags);
    wbuf_put_varint(out, attr->mode);
    wbuf_put_varint(out, attr->uid);
    wbuf_put_varint(out, attr->gid);
    wbuf_put_varint(out, attr->nlink);
    wbuf_put_varint(out, attr->size_bytes);
    put_time(out, &attr->btime, NULL);
    put_time(out, &attr->mtime, &attr->btime);
    put_time(out, &attr->ctime, &attr->btime);
    put_time(out, &attr->atime, &attr->btime);
    switch (attr->mode & S_IFMT) {
    case S_IFREG:
        wbuf_put_varint(out, attr->map.levels);
        if (attr->map.levels)
            wbuf_put_varint(out, attr->map.root);
        if (attr->home)
            wbuf_put_varint(out, attr->home);
        break;
    case S_IFDIR:
        wbuf_put_varint(out, attr->parent);
        break;
    case S_IFLNK:
        /* Its length is the size. */
        g_assert(strlen(attr->target) == attr->size_bytes);
        wbuf_put_bytes(out, attr->target, attr->size_bytes);
        break;
    case S_IFCHR:
    case S_IFBLK:
        wbuf_put_varint(out, attr->rdev);
        break;
    default:
        break;
    }
}

static uint32_t get_u32(struct rbuf *r)
{
    uint64_t v = rbuf_get_varint(r);
    if (v > UINT32_MAX)
        r->bad = true;
    return (uint32_t)v;
}

static struct timespec get_time(struct rbuf *r, const struct timespec *base)
{
    uint64_t delta = (uint64_t)rbuf_get_svarint(r);
    uint64_t nsec = rbuf_get_varint(r);
    if (nsec >= NSEC_PER_SEC)
        r->bad = true;
    return (struct timespec){
        .tv_sec = (time_t)(delta + (base ? (uint64_t)base->tv_sec : 0)),
        .tv_nsec = (long)nsec,
    };
}

static void get_map(struct rbuf *r, struct map *map)
{
    uint64_t levels = rbuf_get_varint(r);
    if (levels > NODE_LEVEL_MAX) {
        r->bad = true;
        return;
    }
    map->levels = (unsigned)levels;
    if (levels) {
        map->root = rbuf_get_varint(r);
        if (!map->root)
            r->bad = true;
    }
}

static char *get_target(struct rbuf *r, uint64_t len)
{
    if (len == 0 || len > TARGET_MAX || len > rbuf_left(r)) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *p = rbuf_get_bytes(r, len);
    if (memchr(p, 0, len)) {
        r->bad = true;
        return NULL;
    }
    return g_strndup((const char *)p, len);
}

int inode_decode(const void *record, size_t len, struct inode_attr *out)
{
    struct rbuf r = rbuf_of(record, len);
    *out = (struct inode_attr){0};
    if (rbuf_get_u8(&r) != INODE_RECORD_VERSION)
        return -EUCLEAN;
    uint64_t flags = rbuf_get_varint(&r);
    if (flags & ~(uint64_t)FLAGS_KNOWN)
        return -EUCLEAN;
    out->has_capability = flags & FLAG_CAPABILITY;
    out->has_xattrs = flags & FLAG_XATTRS;
    out->linkable = flags & FLAG_LINKABLE;
    out->mode = get_u32(&r);
    out->uid = get_u32(&r);
    out->gid = get_u32(&r);
    out->nlink = get_u32(&r);
    out->size_bytes = rbuf_get_varint(&r);
    out->btime = get_time(&r, NULL);
    out->mtime = get_time(&r, &out->btime);
    out->ctime = get_time(&r, &out->btime);
    out->atime = get_time(&r, &out->btime);
    if (r.bad || (out->mode & ~(uint32_t)(S_IFMT | 07777)) || out->size_bytes > FILE_SIZE_MAX)
        return -EUCLEAN;
    switch (out->mode & S_IFMT) {
    case S_IFREG:
        get_map(&r, &out->map);
        if (flags & FLAG_HOME) {
            out->home = get_u32(&r);
            out->home_filling = flags & FLAG_HOME_FILLING;
            out->packing = flags & FLAG_PACKING;
            if (!out->home || (out->packing && !out->home_filling))
                r.bad = true;
        }
        break;
    case S_IFDIR:
        out->parent = rbuf_get_varint(&r);
        if (!out->parent)
            r.bad = true;
        break;
    case S_IFLNK:
        out->target = get_target(&r, out->size_bytes);
        break;
    case S_IFCHR:
    case S_IFBLK:
        out->rdev = rbuf_get_varint(&r);
        break;
    case S_IFIFO:
    case S_IFSOCK:
        break;
    default:
        r.bad = true;
    }
    if (flags & FLAG_HOME ? !S_ISREG(out->mode) : flags & (FLAG_HOME_FILLING | FLAG_PACKING))
        r.bad = true;
    if (r.bad || rbuf_left(&r)) {
        g_free(out->target);
        out->target = NULL;
        return -EUCLEAN;
    }
    return 0;
}
