// SPDX-License-Identifier: Apache-2.0
#include "cowfs/scrub.h"

#include "chunkstore/keys.h"

#include <errno.h>
#include <unistd.h>

enum {
    BATCH_BYTES = 1 << 20, /* read in one section */
    STEP_BYTES_MAX = 8 << 20,
    BUFFER_ALIGN = 4096, /* for O_DIRECT */
};
/* Chunk indexes that one call for a file's damage goes through. */
static const uint64_t damage_step = UINT64_C(1) << 20;

struct item {
    chunk_t chunk;
    struct content_hash hash;
};

/* A batch of chunks with hashes, in the order of their numbers. */
struct batch {
    struct fs *fs;
    struct cowfs_ioc_scrub *io;
    struct item *items;
    unsigned count, max;
    uint8_t *data;
};

/* Takes what is on record from io->next on, which moves on; 0 at the end. */
static int collect(struct batch *b)
{
    uint8_t lower[KEY_MAX], upper = KEY_CHUNK_HASH + 1;
    size_t lower_len = key_u64(lower, KEY_CHUNK_HASH, b->io->next);
    struct metadb_iter *it = metadb_iter_new(b->fs->db, lower, lower_len, &upper, 1);
    b->count = 0;
    b->io->next = 0;
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *value = metadb_iter_value(it, &len);
        chunk_t chunk = key_len == 9 ? get_be64(key + 1) : 0;
        if (b->count == b->max) {
            b->io->next = chunk;
            break;
        }
        struct content_record record;
        if (chunk == 0 || content_record_decode(value, len, &record) != 0)
            continue; /* fsck's business */
        b->items[b->count++] = (struct item){.chunk = chunk, .hash = record.hash};
    }
    int error = metadb_iter_status(it);
    metadb_iter_free(it);
    return error;
}

static bool is_sealed(struct fs *fs, chunk_t chunk)
{
    struct count_info info;
    return counts_get(fs->chunk_counts, chunk, &info) == 0 && info.count > 0 && info.sealed;
}

/* Errors that are the medium's, and not of the moment. */
static bool is_medium_error(int error)
{
    return error == -EIO || error == -EUCLEAN || error == -ENODATA || error == -EILSEQ ||
           error == -EBADMSG || error == -EREMOTEIO;
}

static void found_damaged(struct batch *b, chunk_t chunk, int error)
{
    struct cowfs_ioc_scrub *io = b->io;
    damage_add(b->fs, chunk);
    io->chunk[io->count].number = chunk;
    io->chunk[io->count++].error = -error;
}

static bool has_hash(const struct batch *b, const struct item *it, const uint8_t *data)
{
    struct fs *fs = b->fs;
    struct content_hash now = fs->hash(data, fs->chunk_bytes, fs->sb.hash_secret);
    return memcmp(now.bytes, it->hash.bytes, sizeof(now.bytes)) == 0;
}

/* A chunk by itself. A first look that came out badly gets a second one. */
static int check_one(struct batch *b, const struct item *it, uint8_t *data)
{
    struct fs *fs = b->fs;
    int error = segments_read_direct(fs->segments, it->chunk, data, fs->chunk_bytes);
    if (error && !is_medium_error(error))
        return error;
    if (!error && has_hash(b, it, data)) {
        if (damage_has(fs, it->chunk))
            damage_remove(fs, it->chunk);
    } else if (is_sealed(fs, it->chunk)) {
        found_damaged(b, it->chunk, error);
    }
    b->io->checked += fs->chunk_bytes;
    return 0;
}

/* Chunks that lie one behind the other. */
static int check_run(struct batch *b, unsigned from, unsigned n)
{
    struct fs *fs = b->fs;
    const struct item *items = b->items + from;
    int error =
        segments_read_direct(fs->segments, items[0].chunk, b->data, (size_t)n * fs->chunk_bytes);
    if (error && !is_medium_error(error))
        return error;
    uint8_t *again = b->data + BATCH_BYTES;
    for (unsigned i = 0; i < n; i++) {
        const uint8_t *data = b->data + (size_t)i * fs->chunk_bytes;
        if (!error && has_hash(b, &items[i], data) && !damage_has(fs, items[i].chunk)) {
            b->io->checked += fs->chunk_bytes;
            continue;
        }
        int failed = check_one(b, &items[i], again);
        if (failed)
            return failed;
        if (b->io->count == COWFS_SCRUB_CHUNKS) { /* no room for more: from here again */
            b->io->next = items[i].chunk + 1;
            b->count = from + i + 1;
            return 0;
        }
    }
    return 0;
}

static int check_batch(struct batch *b)
{
    struct fs *fs = b->fs;
    int error = 0;
    unsigned section = segments_read_enter(fs->segments);
    for (unsigned i = 0, n; i < b->count && !error; i += n) {
        n = 1;
        if (!is_sealed(fs, b->items[i].chunk))
            continue; /* freed; its record goes later */
        while (i + n < b->count && b->items[i + n].chunk == b->items[i].chunk + n &&
               !((b->items[i + n].chunk ^ b->items[i].chunk) >> 32) &&
               is_sealed(fs, b->items[i + n].chunk))
            n++;
        error = check_run(b, i, n);
    }
    segments_read_exit(fs->segments, section);
    return error;
}

int scrub_step(struct fs *fs, struct cowfs_ioc_scrub *io)
{
    struct batch b = {.fs = fs, .io = io, .max = BATCH_BYTES / fs->chunk_bytes};
    uint64_t length = min_u64(io->length, STEP_BYTES_MAX);
    int error = 0;
    if (io->position == 0)
        damage_drop_freed(fs);
    io->count = 0;
    io->checked = 0;
    io->next = io->position;
    b.max = (unsigned)max_u64(1, min_u64(b.max, length / fs->chunk_bytes));
    b.items = g_new(struct item, b.max);
    b.data = g_aligned_alloc(1, BATCH_BYTES + CHUNK_BYTES_MAX, BUFFER_ALIGN);
    do {
        error = collect(&b);
        if (!error)
            error = check_batch(&b);
    } while (!error && io->next && io->checked < length && io->count < COWFS_SCRUB_CHUNKS);
    io->damaged = damage_count(fs);
    g_aligned_free(b.data);
    g_free(b.items);
    return error;
}

/* ---- which files ---- */

struct ranges {
    struct cowfs_ioc_damage *io;
    uint64_t chunk_bytes, size;
};

enum { RANGES_FULL = 1 };

static int add_range(void *arg, uint64_t index, uint64_t n)
{
    struct ranges *r = arg;
    uint64_t offset = index * r->chunk_bytes;
    if (offset >= r->size)
        return 0; /* reserved behind the end */
    uint64_t length = min_u64(n * r->chunk_bytes, r->size - offset);
    unsigned count = r->io->count;
    if (count > 0 && r->io->range[count - 1].offset + r->io->range[count - 1].length == offset) {
        r->io->range[count - 1].length += length;
        return 0;
    }
    if (count == COWFS_DAMAGE_RANGES) {
        r->io->next = offset;
        return RANGES_FULL;
    }
    r->io->range[count].offset = offset;
    r->io->range[count].length = length;
    r->io->count++;
    return 0;
}

int scrub_file_damage(struct fs *fs, uint64_t ino, struct cowfs_ioc_damage *io)
{
    struct inode *inode;
    uint64_t offset = io->offset;
    int error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    if (!S_ISREG(inode_mode(inode))) {
        inode_put(inode);
        return -EINVAL;
    }
    pthread_rwlock_rdlock(&inode->map_lock);
    struct ranges r = {.io = io, .chunk_bytes = fs->chunk_bytes, .size = inode->attr.size_bytes};
    const struct map *map = &inode->attr.map;
    uint64_t end = div_round_up_u64(r.size, fs->chunk_bytes), from = offset / fs->chunk_bytes;
    io->count = 0;
    io->next = 0;
    if (damage_count(fs) > 0 && from < end) {
        error = map_seek(fs->nodes, map, from, end, true, &from);
        if (!error) {
            uint64_t to = min_u64(end, from + damage_step);
            io->next = to < end ? to * fs->chunk_bytes : 0;
            error = damage_each(fs, map, from, to, add_range, &r);
        } else if (error == -ENXIO) {
            error = 0;
        }
    }
    pthread_rwlock_unlock(&inode->map_lock);
    inode_put(inode);
    return error == RANGES_FULL ? 0 : error;
}
