// SPDX-License-Identifier: Apache-2.0
/*
 * file.c - reading, seeking, and the attributes that follow the content.
 */
#include "cowfs/damage.h"
#include "cowfs/file.h"
#include "cowfs/file_internal.h"
#include "cowfs/home.h"
#include "cowfs/journal_internal.h"
#include "cowfs/names.h"
#include "cowfs/sealer.h"

#include <errno.h>
#include <unistd.h>

enum { VIEWS_MAX = FILE_PIECES_MAX / 2 }; /* of one request; the rest is read */

/* What a reader gets, in pieces: in his buffer, or where it lies. */
struct pieces {
    struct iovec iov[FILE_PIECES_MAX];
    unsigned count;
    struct segments_view view[VIEWS_MAX];
    unsigned view_count;
};

static void add_piece(struct pieces *p, void *data, size_t bytes)
{
    struct iovec *last = p->count ? &p->iov[p->count - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == data)
        last->iov_len += bytes;
    else
        p->iov[p->count++] = (struct iovec){data, bytes};
}

static void end_views(struct pieces *p)
{
    while (p->view_count > 0)
        segments_view_end(&p->view[--p->view_count]);
    p->count = 0;
}

static int read_extent(struct fs *fs, const struct extent *e, uint64_t skip, uint8_t *out,
                       size_t bytes, struct pieces *p)
{
    int error = 0;
    if (p && e->chunk && p->view_count < VIEWS_MAX &&
        !atomic_load_explicit(&fs->reads_checked, memory_order_relaxed) &&
        segments_view(fs->segments, e->chunk, skip, bytes, &p->view[p->view_count])) {
        add_piece(p, p->view[p->view_count++].data, bytes);
        return 0;
    }
    if (e->chunk)
        error = chunks_read(fs, e->chunk, skip, out, bytes);
    else
        memset(out, 0, bytes);
    if (p && !error)
        add_piece(p, out, bytes);
    return error;
}

/* Inside a read section. With `p`, not all of it comes to the buffer. */
static ssize_t read_range(struct fs *fs, const struct map *map, uint64_t size_bytes, uint8_t *out,
                          size_t bytes, uint64_t offset_bytes, struct pieces *p)
{
    if (offset_bytes >= size_bytes)
        return 0;
    bytes = min_u64(bytes, size_bytes - offset_bytes);
    size_t done = 0;
    while (done < bytes) {
        uint64_t at = offset_bytes + done;
        uint64_t index = at / fs->chunk_bytes, skip = at % fs->chunk_bytes;
        uint64_t want = div_round_up_u64(skip + (bytes - done), fs->chunk_bytes);
        struct extent e;
        int error = map_lookup(fs->nodes, map, index, want, false, &e);
        if (error)
            return error;
        size_t part = min_u64(bytes - done, e.count * fs->chunk_bytes - skip);
        error = read_extent(fs, &e, skip, out + done, part, p);
        if (error)
            return error;
        done += part;
    }
    return (ssize_t)done;
}

ssize_t content_read(struct fs *fs, const struct map *map, uint64_t size_bytes, void *buffer,
                     size_t bytes, uint64_t offset_bytes)
{
    /* What is looked up here may lose its last owner to the sealer, which
     * exchanges chunks in shared leaves; the read section keeps its bytes. */
    unsigned section = segments_read_enter(fs->segments);
    ssize_t n = read_range(fs, map, size_bytes, buffer, bytes, offset_bytes, NULL);
    segments_read_exit(fs->segments, section);
    return n;
}

ssize_t file_read_send(struct inode *inode, void *buffer, size_t bytes, uint64_t offset_bytes,
                       file_send_fn send, void *arg)
{
    struct fs *fs = inode->fs;
    struct pieces p;
    p.count = p.view_count = 0;
    pthread_rwlock_rdlock(&inode->map_lock);
    unsigned section = segments_read_enter(fs->segments);
    ssize_t n =
        read_range(fs, &inode->attr.map, inode->attr.size_bytes, buffer, bytes, offset_bytes, &p);
    if (n >= 0 && !send(arg, p.iov, p.count, (size_t)n))
        n = read_range(fs, &inode->attr.map, inode->attr.size_bytes, buffer, bytes, offset_bytes,
                       NULL);
    end_views(&p);
    segments_read_exit(fs->segments, section);
    pthread_rwlock_unlock(&inode->map_lock);
    segments_bound_views(fs->segments);
    if (n == -EIO)
        damage_tell(inode, offset_bytes, bytes);
    return n;
}

/* Brings all to the buffer that is not there. */
static bool gather(void *arg, const struct iovec *iov, unsigned count, size_t bytes)
{
    uint8_t *to = arg;
    (void)bytes;
    for (unsigned i = 0; i < count; to += iov[i++].iov_len)
        if (iov[i].iov_base != to && !segments_view_copy(iov[i].iov_base, to, iov[i].iov_len))
            return false;
    return true;
}

ssize_t file_read(struct inode *inode, void *buffer, size_t bytes, uint64_t offset_bytes)
{
    return file_read_send(inode, buffer, bytes, offset_bytes, gather, buffer);
}

int file_seek(struct inode *inode, uint64_t offset_bytes, int whence, uint64_t *out)
{
    struct fs *fs = inode->fs;
    uint64_t index = offset_bytes / fs->chunk_bytes, found;
    int error = 0;
    if (whence != SEEK_DATA && whence != SEEK_HOLE)
        return -EINVAL;
    pthread_rwlock_rdlock(&inode->map_lock);
    uint64_t size = inode->attr.size_bytes;
    if (offset_bytes >= size) {
        error = -ENXIO;
    } else {
        error = map_seek(fs->nodes, &inode->attr.map, index,
                         div_round_up_u64(size, fs->chunk_bytes), whence == SEEK_DATA, &found);
        if (!error)
            *out = min_u64(max_u64(found * fs->chunk_bytes, offset_bytes), size);
    }
    pthread_rwlock_unlock(&inode->map_lock);
    return error;
}

void file_set_size(struct inode *inode, uint64_t size_bytes)
{
    home_resize(inode, size_bytes);
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.size_bytes = size_bytes;
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_dirty(inode);
}

void content_changed(struct inode *inode, uint64_t size_bytes, unsigned flags)
{
    struct fs *fs = inode->fs;
    bool drop_capability = false;
    txn_enter(fs->txn);
    struct inode_attr *a = &inode->attr;
    bool times_only = size_bytes <= a->size_bytes, same_times = true;
    if (size_bytes > a->size_bytes)
        home_resize(inode, size_bytes);
    pthread_mutex_lock(&inode->attr_lock);
    if (size_bytes > a->size_bytes)
        a->size_bytes = size_bytes;
    if (!(flags & CHANGED_KEEP_TIMES)) {
        struct timespec mtime = a->mtime, ctime = a->ctime;
        inode_touch_mtime(inode);
        same_times = memcmp(&mtime, &a->mtime, sizeof(mtime)) == 0 &&
                     memcmp(&ctime, &a->ctime, sizeof(ctime)) == 0;
    }
    if (flags & CHANGED_KILL_SUID && a->mode & (S_ISUID | S_ISGID)) {
        times_only = false;
        a->mode &= ~(uint32_t)S_ISUID;
        if (a->mode & S_IXGRP)
            a->mode &= ~(uint32_t)S_ISGID;
    }
    /* For a write through its cache the kernel did so at write(2); one set since
     * then must not go when the pages are flushed. */
    if (a->has_capability && !(flags & CHANGED_KEEP_TIMES)) {
        a->has_capability = false;
        drop_capability = true;
        times_only = false;
    }
    pthread_mutex_unlock(&inode->attr_lock);
    if (times_only && same_times) /* the clock is a coarse one */
        inode_mark_bytes(inode);
    else if (times_only)
        inode_mark_times(inode);
    else
        inode_mark_dirty(inode);
    if (!(flags & CHANGED_NO_SEAL))
        sealer_note_write(fs, inode);
    if (drop_capability) /* as local file systems do (security/commoncap.c) */
        xattr_drop_capability(inode);
    txn_exit(fs->txn);
}

/* An inode without a name that has this map; inside the gate. When its last
 * reference goes, now or by a crash, the reaper releases it. */
static struct inode *new_orphan(struct fs *fs, struct map map, uint64_t size_bytes)
{
    struct inode *orphan = inode_new(fs->inodes, S_IFREG, 0, 0, 0);
    pthread_mutex_lock(&orphan->attr_lock);
    orphan->attr.nlink = 0;
    orphan->attr.map = map;
    orphan->attr.size_bytes = size_bytes;
    orphan->attr.btime = (struct timespec){0}; /* ours: no kernel has seen it (inode.c) */
    pthread_mutex_unlock(&orphan->attr_lock);
    inode_mark_orphan(orphan);
    return orphan;
}

int file_drop_map(struct fs *fs, struct map *map)
{
    bool more;
    int error = map_release(fs->nodes, map, &more);
    if (error || !more)
        return error;
    inode_put(new_orphan(fs, *map, 0));
    *map = (struct map){0};
    return 0;
}

int file_hold_map(struct inode *src, struct inode **holder)
{
    struct fs *fs = src->fs;
    struct map map;
    *holder = NULL;
    txn_enter(fs->txn);
    int error = map_clone(fs->nodes, &src->attr.map, &map);
    if (!error) {
        *holder = new_orphan(fs, map, src->attr.size_bytes);
        journal_clone(src, *holder);
    }
    txn_exit(fs->txn);
    return error;
}

void file_release_hold(struct inode *holder)
{
    if (!holder)
        return;
    /* Mostly this is one count less; the reaper would ask for a commit. */
    struct fs *fs = holder->fs;
    bool more = false;
    txn_enter(fs->txn);
    struct map map = holder->attr.map;
    int error = map_release(fs->nodes, &map, &more);
    journal_drop(holder);
    pthread_mutex_lock(&holder->attr_lock);
    holder->attr.map = map;
    pthread_mutex_unlock(&holder->attr_lock);
    inode_mark_dirty(holder);
    txn_exit(fs->txn);
    if (error)
        g_warning("a temporary reference could not be freed: %s", g_strerror(-error));
    inode_put(holder);
}

int file_clone_locked(struct inode *src, struct inode *dst)
{
    struct map map;
    int error = map_clone(src->fs->nodes, &src->attr.map, &map);
    if (error)
        return error;
    pthread_mutex_lock(&dst->attr_lock);
    dst->attr.map = map;
    dst->attr.size_bytes = src->attr.size_bytes;
    pthread_mutex_unlock(&dst->attr_lock);
    journal_clone(src, dst);
    home_share(src, dst);
    inode_mark_dirty(dst);
    if (atomic_load(&src->unsealed))
        sealer_note_write(src->fs, dst);
    return 0;
}
