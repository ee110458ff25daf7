// SPDX-License-Identifier: Apache-2.0
#include "cowfs/domain.h"

#include "cowfs/blockmap.h"
#include "cowfs/sealer.h"

#include <errno.h>

enum {
    AT_ONCE = 64,
    STEP_CHUNKS = 512, /* in one transaction, for which others wait */
};
/* At most so much in one call: whoever unmounts waits for it. */
static const uint64_t bytes_max = UINT64_C(64) << 20;

uint32_t domain_of(struct inode *inode)
{
    pthread_mutex_lock(&inode->attr_lock);
    uint32_t uid = inode->attr.uid;
    pthread_mutex_unlock(&inode->attr_lock);
    return uid;
}

static void set(atomic_bool *flag)
{
    if (!atomic_load(flag))
        atomic_store(flag, true);
}

void domain_note(struct fs *fs, uint32_t domain)
{
    if (domain != DOMAIN_ROOT)
        set(&fs->has_domains);
    if (domain == DOMAIN_PUBLIC)
        set(&fs->has_public);
}

int domain_visible_run(struct fs *fs, uint32_t domain, chunk_t first, uint32_t n, uint32_t *run)
{
    *run = n;
    if (!atomic_load(&fs->has_domains))
        return 0; /* all there is, is of the one domain */
    for (*run = 0; *run < n;) {
        struct content_record records[AT_ONCE];
        bool has[AT_ONCE];
        unsigned part = MIN(n - *run, (uint32_t)AT_ONCE);
        int error = content_index_records(fs->db, first + *run, part, records, has);
        if (error)
            return error;
        for (unsigned i = 0; i < part; i++, (*run)++)
            if (!has[i] || (records[i].domain != domain && records[i].domain != DOMAIN_PUBLIC))
                return 0;
    }
    return 0;
}

/* ---- what is public ---- */

struct pass {
    struct fs *fs;
    struct inode *inode;
    struct cowfs_ioc_public *io;
};

static int pass_chunk(struct pass *p, chunk_t chunk, const struct content_record *record)
{
    struct cowfs_ioc_public *io = p->io;
    uint64_t chunk_bytes = p->fs->chunk_bytes;
    bool is_public = record->domain == DOMAIN_PUBLIC;
    bool shall_be = io->action == COWFS_PUBLIC_TELL ? is_public : io->action == COWFS_PUBLIC_ON;
    int error = 0;
    if (is_public != shall_be) {
        error = content_index_move(p->fs->db, chunk, record, shall_be ? DOMAIN_PUBLIC : io->domain);
        io->changed += chunk_bytes;
    }
    if (shall_be)
        io->public_bytes += chunk_bytes;
    return error;
}

static int pass_extent(void *arg, const struct extent *e)
{
    struct pass *p = arg;
    int error = 0;
    if (e->reserved)
        return 0;
    for (uint64_t done = 0; done < e->count && !error;) {
        struct content_record records[AT_ONCE];
        bool has[AT_ONCE];
        unsigned n = (unsigned)min_u64(e->count - done, AT_ONCE);
        error = content_index_records(p->fs->db, e->chunk + done, n, records, has);
        for (unsigned i = 0; i < n && !error; i++) {
            if (has[i])
                error = pass_chunk(p, e->chunk + done + i, &records[i]);
            else
                p->io->unsealed += p->fs->chunk_bytes;
        }
        done += n;
    }
    return error;
}

/* Chunk indexes [from, to). That a chunk is mapped does not keep it alive (another file's
 * sealing may exchange it in a leaf that both have); but as long as index_lock is held its
 * records are not removed, and if it is noted as dead they will be, whatever they say. */
static int pass_part(struct pass *p, uint64_t from, uint64_t to)
{
    struct fs *fs = p->fs;
    const struct map *map = &p->inode->attr.map;
    if (p->io->action == COWFS_PUBLIC_TELL)
        return map_each(fs->nodes, map, from, to, pass_extent, p);
    txn_enter(fs->txn);
    pthread_mutex_lock(&fs->index_lock);
    int error = map_each(fs->nodes, map, from, to, pass_extent, p);
    pthread_mutex_unlock(&fs->index_lock);
    txn_exit(fs->txn);
    return error;
}

/* From *index on, which moves; UINT64_MAX at the end. */
static int step(struct pass *p, uint64_t *index)
{
    struct fs *fs = p->fs;
    uint64_t to = UINT64_MAX, from = *index;
    int error = 0;
    if (p->io->action == COWFS_PUBLIC_ON) {
        struct seal_result r;
        error = seal_file_part(fs, p->inode, from, STEP_CHUNKS, fs->config.keep_flat, NULL, &r);
        if (error)
            return error;
        to = r.next_index;
    }
    pthread_rwlock_rdlock(&p->inode->map_lock);
    uint64_t end = div_round_up_u64(p->inode->attr.size_bytes, fs->chunk_bytes);
    error = from < end ? map_seek(fs->nodes, &p->inode->attr.map, from, end, true, &from) : -ENXIO;
    if (p->io->action != COWFS_PUBLIC_ON)
        to = from + STEP_CHUNKS;
    if (!error && from < to)
        error = pass_part(p, from, min_u64(to, end));
    pthread_rwlock_unlock(&p->inode->map_lock);
    *index = error == -ENXIO || to >= end ? UINT64_MAX : to;
    return error == -ENXIO ? 0 : error;
}

static int pass_range(struct pass *p)
{
    struct fs *fs = p->fs;
    struct cowfs_ioc_public *io = p->io;
    uint64_t index = io->offset / fs->chunk_bytes;
    uint64_t limit = max_u64(min_u64(io->length, bytes_max) / fs->chunk_bytes, 1);
    int error = 0;
    if (io->action == COWFS_PUBLIC_TELL && !atomic_load(&fs->has_public))
        return 0;
    if (io->action == COWFS_PUBLIC_ON)
        domain_note(fs, DOMAIN_PUBLIC);
    for (uint64_t looked = 0; looked < limit && index != UINT64_MAX && !error;
         looked += STEP_CHUNKS) {
        error = step(p, &index);
        if (io->action != COWFS_PUBLIC_TELL)
            txn_throttle_background(fs->txn);
    }
    io->next = index == UINT64_MAX ? 0 : index * fs->chunk_bytes;
    return error;
}

int domain_public_range(struct fs *fs, uint64_t ino, struct cowfs_ioc_public *io)
{
    struct pass p = {.fs = fs, .io = io};
    int error = io->action > COWFS_PUBLIC_OFF ? -EINVAL : 0;
    if (!error && io->action != COWFS_PUBLIC_TELL)
        error = fs_may_change(fs);
    if (!error)
        error = inode_get(fs->inodes, ino, &p.inode);
    if (error)
        return error;
    io->domain = domain_of(p.inode);
    io->next = io->public_bytes = io->changed = io->unsealed = 0;
    error = S_ISREG(inode_mode(p.inode)) ? pass_range(&p) : -EINVAL;
    inode_put(p.inode);
    return error;
}
