// SPDX-License-Identifier: Apache-2.0
#include "cowfs/damage.h"

#include "chunkstore/keys.h"
#include "cowfs/names.h"

#include <errno.h>
#include <inttypes.h>

enum {
    CHECK_AT_ONCE = 64, /* chunks whose hashes are looked up at once */
    CHUNKS_TOLD = 64,   /* to the log: a whole lost segment would flood it */
};

struct damage {
    pthread_rwlock_t lock;
    GHashTable *chunks; /* number -> was told to the log */
    char *last_path;    /* of the file that was told of last: */
    uint64_t last_ino;
};

static gpointer key_of(chunk_t chunk)
{
    return (gpointer)(uintptr_t)chunk;
}

static void put_record(struct fs *fs, chunk_t chunk, bool there)
{
    uint8_t key[KEY_MAX];
    size_t len = key_u64(key, KEY_DAMAGED, chunk);
    if (fs->config.read_only)
        return;
    txn_enter(fs->txn);
    if (there)
        metadb_put(fs->db, key, len, "", 0);
    else
        metadb_delete(fs->db, key, len);
    txn_exit(fs->txn);
}

/* ---- the set ---- */

static bool has_owner(struct fs *fs, chunk_t chunk)
{
    struct count_info info;
    return counts_get(fs->chunk_counts, chunk, &info) != 0 || info.count > 0;
}

int damage_load(struct fs *fs, struct damage **out)
{
    uint8_t lower = KEY_DAMAGED, upper = KEY_DAMAGED + 1;
    struct damage *d = g_new0(struct damage, 1);
    GArray *stray = g_array_new(FALSE, FALSE, sizeof(chunk_t));
    pthread_rwlock_init(&d->lock, NULL);
    d->chunks = g_hash_table_new(NULL, NULL);
    struct metadb_iter *it = metadb_iter_new(fs->db, &lower, 1, &upper, 1);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t len;
        const uint8_t *key = metadb_iter_key(it, &len);
        chunk_t chunk = len == 9 ? get_be64(key + 1) : 0;
        if (chunk && has_owner(fs, chunk))
            g_hash_table_insert(d->chunks, key_of(chunk), NULL);
        else if (chunk)
            g_array_append_val(stray, chunk);
    }
    int error = metadb_iter_status(it);
    metadb_iter_free(it);
    for (unsigned i = 0; i < stray->len && !error; i++)
        put_record(fs, g_array_index(stray, chunk_t, i), false);
    g_array_free(stray, TRUE);
    if (error) {
        damage_free(d);
        return error;
    }
    unsigned n = g_hash_table_size(d->chunks);
    if (n)
        g_warning("%s: %u chunks are known to be damaged (cowfs scrub tells the files)",
                  fs->store_path, n);
    atomic_store(&fs->reads_checked, n > 0 || fs->config.verify);
    *out = d;
    return 0;
}

void damage_drop_freed(struct fs *fs)
{
    GHashTableIter it;
    gpointer key;
    GArray *freed = g_array_new(FALSE, FALSE, sizeof(chunk_t));
    pthread_rwlock_rdlock(&fs->damage->lock);
    g_hash_table_iter_init(&it, fs->damage->chunks);
    while (g_hash_table_iter_next(&it, &key, NULL)) {
        chunk_t chunk = (uintptr_t)key;
        if (!has_owner(fs, chunk))
            g_array_append_val(freed, chunk);
    }
    pthread_rwlock_unlock(&fs->damage->lock);
    for (unsigned i = 0; i < freed->len; i++)
        damage_remove(fs, g_array_index(freed, chunk_t, i));
    g_array_free(freed, TRUE);
}

void damage_free(struct damage *d)
{
    if (!d)
        return;
    pthread_rwlock_destroy(&d->lock);
    g_hash_table_destroy(d->chunks);
    g_free(d->last_path);
    g_free(d);
}

void damage_add(struct fs *fs, chunk_t chunk)
{
    struct damage *d = fs->damage;
    pthread_rwlock_wrlock(&d->lock);
    bool fresh = !g_hash_table_contains(d->chunks, key_of(chunk));
    if (fresh)
        g_hash_table_insert(d->chunks, key_of(chunk), NULL);
    unsigned n = g_hash_table_size(d->chunks);
    atomic_store(&fs->reads_checked, true);
    pthread_rwlock_unlock(&d->lock);
    if (!fresh)
        return;
    if (n <= CHUNKS_TOLD)
        g_warning("segment %08" PRIx32 ", slot %" PRIu32
                  ": damaged; reading it gives an error from now on%s",
                  (uint32_t)(chunk >> 32), (uint32_t)chunk,
                  n == CHUNKS_TOLD ? " (no more are told; cowfs scrub knows all)" : "");
    put_record(fs, chunk, true);
}

void damage_remove(struct fs *fs, chunk_t chunk)
{
    struct damage *d = fs->damage;
    pthread_rwlock_wrlock(&d->lock);
    bool was = g_hash_table_remove(d->chunks, key_of(chunk));
    atomic_store(&fs->reads_checked, g_hash_table_size(d->chunks) > 0 || fs->config.verify);
    pthread_rwlock_unlock(&d->lock);
    if (was)
        put_record(fs, chunk, false);
}

uint64_t damage_count(struct fs *fs)
{
    pthread_rwlock_rdlock(&fs->damage->lock);
    uint64_t n = g_hash_table_size(fs->damage->chunks);
    pthread_rwlock_unlock(&fs->damage->lock);
    return n;
}

/* The first of `n` chunks that is in the set, as an offset; n if none is. */
static uint64_t find_damaged(struct fs *fs, chunk_t first, uint64_t n)
{
    struct damage *d = fs->damage;
    uint64_t i = 0;
    pthread_rwlock_rdlock(&d->lock);
    if (g_hash_table_size(d->chunks) == 0)
        i = n;
    while (i < n && !g_hash_table_contains(d->chunks, key_of(first + i)))
        i++;
    pthread_rwlock_unlock(&d->lock);
    return i;
}

bool damage_has(struct fs *fs, chunk_t chunk)
{
    return find_damaged(fs, chunk, 1) == 0;
}

bool damage_in_segment(struct fs *fs, uint32_t segment_id)
{
    GHashTableIter it;
    gpointer key;
    bool found = false;
    pthread_rwlock_rdlock(&fs->damage->lock);
    g_hash_table_iter_init(&it, fs->damage->chunks);
    while (!found && g_hash_table_iter_next(&it, &key, NULL))
        found = (chunk_t)(uintptr_t)key >> 32 == segment_id;
    pthread_rwlock_unlock(&fs->damage->lock);
    return found;
}

/* ---- checked reading ---- */

/* Have these sealed chunks the hashes that are on record? */
static int check(struct fs *fs, chunk_t first, unsigned n, const uint8_t *data)
{
    struct content_record records[CHECK_AT_ONCE];
    bool has[CHECK_AT_ONCE];
    int error = content_index_records(fs->db, first, n, records, has);
    if (error)
        return error;
    for (unsigned i = 0; i < n; i++) {
        /* Without one it is just being sealed. */
        if (!has[i])
            continue;
        struct content_hash now =
            fs->hash(data + (size_t)i * fs->chunk_bytes, fs->chunk_bytes, fs->sb.hash_secret);
        if (memcmp(now.bytes, records[i].hash.bytes, sizeof(now.bytes)) != 0) {
            damage_add(fs, first + i);
            error = -EIO;
        }
    }
    return error;
}

/* A part of one chunk: all of it has to be read for its hash. */
static int verified_part(struct fs *fs, chunk_t chunk, uint64_t skip, void *buffer, size_t bytes)
{
    uint8_t *whole = g_malloc(fs->chunk_bytes);
    int error = segments_read(fs->segments, chunk, 0, whole, fs->chunk_bytes);
    if (!error)
        error = check(fs, chunk, 1, whole);
    if (!error)
        memcpy(buffer, whole + skip, bytes);
    g_free(whole);
    return error;
}

/*
 * A piece from the front of the range; *done bytes of it. Whether it is sealed
 * is asked before it is read: a chunk may be overwritten in place until then,
 * and what was read before would not have the hash of what stands there now.
 */
static int verified_piece(struct fs *fs, chunk_t chunk, uint64_t skip, uint8_t *buffer,
                          size_t bytes, size_t *done)
{
    uint64_t chunk_bytes = fs->chunk_bytes;
    uint32_t n = (uint32_t)min_u64(div_round_up_u64(skip + bytes, chunk_bytes), CHECK_AT_ONCE);
    struct count_info info;
    int error = counts_alike_run(fs->chunk_counts, chunk, n, &info, &n);
    if (error)
        return error;
    *done = min_u64(bytes, n * chunk_bytes - skip);
    if (!info.sealed)
        return segments_read(fs->segments, chunk, skip, buffer, *done);
    if (skip || *done < chunk_bytes) {
        *done = min_u64(bytes, chunk_bytes - skip);
        return verified_part(fs, chunk, skip, buffer, *done);
    }
    *done = round_down_u64(*done, chunk_bytes);
    error = segments_read(fs->segments, chunk, 0, buffer, *done);
    return error ? error : check(fs, chunk, (unsigned)(*done / chunk_bytes), buffer);
}

int chunks_read(struct fs *fs, chunk_t first, uint64_t skip_bytes, void *buffer, size_t bytes)
{
    if (!atomic_load_explicit(&fs->reads_checked, memory_order_relaxed))
        return segments_read(fs->segments, first, skip_bytes, buffer, bytes);
    uint64_t n = div_round_up_u64(skip_bytes + bytes, fs->chunk_bytes);
    if (find_damaged(fs, first, n) < n)
        return -EIO;
    if (!fs->config.verify)
        return segments_read(fs->segments, first, skip_bytes, buffer, bytes);
    uint8_t *p = buffer;
    int error = 0;
    while (bytes > 0 && !error) {
        size_t done = 0;
        error = verified_piece(fs, first, skip_bytes, p, bytes, &done);
        p += done;
        bytes -= done;
        first += (skip_bytes + done) / fs->chunk_bytes;
        skip_bytes = (skip_bytes + done) % fs->chunk_bytes;
    }
    return error;
}

/* ---- where ---- */

struct each {
    struct fs *fs;
    damage_range_fn fn;
    void *arg;
};

static int each_extent(void *arg, const struct extent *e)
{
    const struct each *w = arg;
    uint64_t i = find_damaged(w->fs, e->chunk, e->count);
    while (i < e->count) {
        uint64_t from = i;
        while (i < e->count && damage_has(w->fs, e->chunk + i))
            i++;
        int stop = w->fn(w->arg, e->index + from, i - from);
        if (stop)
            return stop;
        i += find_damaged(w->fs, e->chunk + i, e->count - i);
    }
    return 0;
}

int damage_each(struct fs *fs, const struct map *map, uint64_t index, uint64_t end,
                damage_range_fn fn, void *arg)
{
    struct each w = {.fs = fs, .fn = fn, .arg = arg};
    end = min_u64(end, map_capacity(map->levels));
    if (index >= end || damage_count(fs) == 0)
        return 0;
    return map_each(fs->nodes, map, index, end, each_extent, &w);
}

/* The chunks of the range that were not told yet, as one range of indexes. */
struct untold {
    struct inode *inode;
    uint64_t from, to;
};

static int note_untold(void *arg, uint64_t index, uint64_t n)
{
    struct untold *u = arg;
    struct fs *fs = u->inode->fs;
    for (uint64_t i = index; i < index + n; i++) {
        struct extent e;
        if (map_lookup(fs->nodes, &u->inode->attr.map, i, 1, false, &e) || !e.chunk)
            continue;
        pthread_rwlock_wrlock(&fs->damage->lock);
        gpointer told;
        if (g_hash_table_lookup_extended(fs->damage->chunks, key_of(e.chunk), NULL, &told) &&
            !told) {
            g_hash_table_insert(fs->damage->chunks, key_of(e.chunk), GINT_TO_POINTER(1));
            u->from = min_u64(u->from, i);
            u->to = i + 1;
        }
        pthread_rwlock_unlock(&fs->damage->lock);
    }
    return 0;
}

/* Finding a name means a search through all of them: not twice for one file. */
static char *find_path(struct fs *fs, uint64_t ino)
{
    struct damage *d = fs->damage;
    pthread_rwlock_wrlock(&d->lock);
    char *path = d->last_ino == ino ? g_strdup(d->last_path) : NULL;
    pthread_rwlock_unlock(&d->lock);
    if (path)
        return path;
    path = names_path_of(fs, ino);
    pthread_rwlock_wrlock(&d->lock);
    g_free(d->last_path);
    d->last_path = g_strdup(path);
    d->last_ino = ino;
    pthread_rwlock_unlock(&d->lock);
    return path;
}

void damage_tell(struct inode *inode, uint64_t offset_bytes, uint64_t bytes)
{
    struct fs *fs = inode->fs;
    struct untold u = {.inode = inode, .from = UINT64_MAX};
    if (!atomic_load(&fs->reads_checked) || bytes == 0)
        return;
    pthread_rwlock_rdlock(&inode->map_lock);
    uint64_t chunk_bytes = fs->chunk_bytes, size = inode->attr.size_bytes;
    damage_each(fs, &inode->attr.map, offset_bytes / chunk_bytes,
                div_round_up_u64(offset_bytes + bytes, chunk_bytes), note_untold, &u);
    pthread_rwlock_unlock(&inode->map_lock);
    if (u.from == UINT64_MAX)
        return;
    g_autofree char *path = find_path(fs, inode->ino);
    g_autofree char *quoted = g_strescape(path ? path : "(no name)", NULL);
    g_warning("'%s' (inode %" PRIu64 "): bytes %" PRIu64 " to %" PRIu64
              " are damaged: reading them gives an error",
              quoted, inode->ino, u.from * chunk_bytes,
              max_u64(min_u64(u.to * chunk_bytes, size), 1) - 1);
}
