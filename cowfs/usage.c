// SPDX-License-Identifier: Apache-2.0
/*
 * usage.c - what files consist of, and what a store saves: stat and df.
 * du, which asks who else holds something, is usage_du.c.
 */
#include "cowfs/clone.h"

#include <errno.h>
#include <glib.h>

struct stat_walk {
    struct fs *fs;
    struct cowfs_ioc_stat *out;
    uint64_t end_chunk, end_index;
};

static int stat_extent(void *arg, const struct extent *e)
{
    struct stat_walk *w = arg;
    uint64_t chunk_bytes = w->fs->chunk_bytes;
    if (e->chunk != w->end_chunk || e->index != w->end_index)
        w->out->extents++;
    w->end_chunk = e->chunk + e->count;
    w->end_index = e->index + e->count;
    w->out->mapped += e->count * chunk_bytes;
    if (e->reserved)
        w->out->reserved_bytes += e->count * chunk_bytes;
    for (uint64_t done = 0; done < e->count;) {
        struct count_info info;
        uint32_t n;
        int error = counts_alike_run(w->fs->chunk_counts, e->chunk + done,
                                     (uint32_t)(e->count - done), &info, &n);
        if (error)
            return error;
        uint64_t bytes = n * chunk_bytes;
        if (info.sealed)
            w->out->sealed_bytes += bytes;
        if (info.count > 1)
            w->out->shared_bytes += bytes;
        else if (!info.sealed)
            w->out->private_bytes += bytes;
        done += n;
    }
    return 0;
}

/* A chunk with one owner whose node has several is shared all the same: walks
 * the tree and corrects what stat_extent took for private. */
static int find_shared(struct fs *fs, uint64_t id, unsigned level, bool shared,
                       uint64_t *shared_private)
{
    struct count_info info;
    struct node *n;
    int error = counts_get(fs->node_counts, id, &info);
    if (!error)
        error = node_get(fs->nodes, id, level, &n);
    if (error)
        return error;
    shared = shared || info.count > 1;
    for (unsigned i = 0, alike; i < NODE_ENTRIES && !error; i += alike) {
        uint64_t value = node_run(n, i, NODE_ENTRIES, &alike);
        if (value == 0)
            continue;
        if (level > 1) {
            for (unsigned k = 0; k < alike && !error; k++)
                error = find_shared(fs, value + k, level - 1, shared, shared_private);
            continue;
        }
        if (!shared)
            continue;
        for (unsigned done = 0; done < alike && !error;) {
            uint32_t same;
            error = counts_alike_run(fs->chunk_counts, ENTRY_CHUNK(value) + done, alike - done,
                                     &info, &same);
            if (!error && info.count == 1)
                shared_private[info.sealed] += same;
            done += error ? 0 : same;
        }
    }
    node_put(n);
    return error;
}

int usage_stat(struct fs *fs, uint64_t ino, struct cowfs_ioc_stat *out)
{
    struct inode *inode;
    int error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    if (!S_ISREG(inode_mode(inode))) {
        inode_put(inode);
        return -EINVAL;
    }
    *out = (struct cowfs_ioc_stat){
        .version = out->version,
        .chunk_bytes = fs->chunk_bytes,
        .ino = ino,
    };
    struct stat_walk walk = {.fs = fs, .out = out};
    uint64_t shared_private[2] = {0};
    pthread_rwlock_rdlock(&inode->map_lock);
    struct map map = inode->attr.map;
    out->size = inode->attr.size_bytes;
    out->levels = map.levels;
    error = map_each(fs->nodes, &map, 0, map_capacity(map.levels), stat_extent, &walk);
    if (!error && map.levels)
        error = find_shared(fs, map.root, map.levels, false, shared_private);
    pthread_rwlock_unlock(&inode->map_lock);
    inode_put(inode);
    /* Other files change between the two walks; their counts, too. */
    uint64_t moved = (shared_private[0] + shared_private[1]) * fs->chunk_bytes;
    out->shared_bytes = min_u64(out->shared_bytes + moved, out->mapped);
    out->private_bytes -= min_u64(shared_private[0] * fs->chunk_bytes, out->private_bytes);
    uint64_t span = round_up_u64(out->size, fs->chunk_bytes);
    out->holes = span > out->mapped ? span - out->mapped : 0;
    return error;
}

/* Chunks mapped below each node, so that a tree that is shared by a thousand
 * clones is counted once. */
struct df_walk {
    struct fs *fs;
    GHashTable *mapped; /* node id -> chunks + 1 */
};

static int mapped_below(struct df_walk *w, uint64_t id, unsigned level, uint64_t *chunks)
{
    gpointer known = g_hash_table_lookup(w->mapped, (gpointer)(uintptr_t)id);
    if (known) {
        *chunks = (uintptr_t)known - 1;
        return 0;
    }
    struct node *n;
    uint64_t sum = 0;
    int error = node_get(w->fs->nodes, id, level, &n);
    if (error)
        return error;
    for (unsigned i = 0, alike; i < NODE_ENTRIES && !error; i += alike) {
        uint64_t value = node_run(n, i, NODE_ENTRIES, &alike);
        if (value == 0)
            continue;
        if (level == 1) {
            sum += alike;
            continue;
        }
        for (unsigned k = 0; k < alike && !error; k++) {
            uint64_t below = 0;
            error = mapped_below(w, value + k, level - 1, &below);
            sum += below;
        }
    }
    node_put(n);
    if (!error)
        g_hash_table_insert(w->mapped, (gpointer)(uintptr_t)id, (gpointer)(uintptr_t)(sum + 1));
    *chunks = sum;
    return error;
}

static int df_inode(struct df_walk *w, uint64_t ino, struct cowfs_ioc_df *out)
{
    struct inode *inode;
    int error = inode_get(w->fs->inodes, ino, &inode);
    if (error)
        return error == -ENOENT ? 0 : error; /* deleted meanwhile */
    /* One that is deleted but open still has space, but no name to count it by. */
    if (S_ISREG(inode_mode(inode)) && inode_nlink(inode) > 0) {
        uint64_t chunks = 0;
        pthread_rwlock_rdlock(&inode->map_lock);
        uint64_t size = inode->attr.size_bytes;
        if (inode->attr.map.levels)
            error = mapped_below(w, inode->attr.map.root, inode->attr.map.levels, &chunks);
        pthread_rwlock_unlock(&inode->map_lock);
        uint64_t bytes = chunks * w->fs->chunk_bytes;
        uint64_t span = round_up_u64(size, w->fs->chunk_bytes);
        out->files++;
        out->logical += size;
        out->mapped += bytes;
        out->holes += span > bytes ? span - bytes : 0;
    }
    inode_put(inode);
    return error;
}

static int df_inodes(struct fs *fs, struct cowfs_ioc_df *out)
{
    struct df_walk w = {.fs = fs, .mapped = g_hash_table_new(NULL, NULL)};
    uint8_t lower = KEY_INODE, upper = KEY_INODE + 1;
    struct metadb_iter *it = metadb_iter_new(fs->db, &lower, 1, &upper, 1);
    int error = 0;
    for (; metadb_iter_valid(it) && !error; metadb_iter_next(it)) {
        size_t len;
        const uint8_t *key = metadb_iter_key(it, &len);
        if (len == 9)
            error = df_inode(&w, get_be64(key + 1), out);
    }
    if (!error)
        error = metadb_iter_status(it);
    metadb_iter_free(it);
    g_hash_table_destroy(w.mapped);
    return error;
}

static void add_sealed(void *arg, uint32_t first, uint32_t n, struct count_info info)
{
    (void)first;
    if (info.sealed)
        *(uint64_t *)arg += n;
}

/* Nobody keeps a sum: counted as of the last commit. */
static int df_sealed(struct fs *fs, struct cowfs_ioc_df *out)
{
    uint8_t lower = KEY_CHUNK_COUNTS, upper = KEY_CHUNK_COUNTS + 1;
    uint64_t chunks = 0;
    struct metadb_iter *it = metadb_iter_new(fs->db, &lower, 1, &upper, 1);
    int error = 0;
    for (; metadb_iter_valid(it) && !error; metadb_iter_next(it)) {
        size_t len;
        const uint8_t *record = metadb_iter_value(it, &len);
        error = counts_decode(record, len, add_sealed, &chunks);
    }
    if (!error)
        error = metadb_iter_status(it);
    metadb_iter_free(it);
    out->sealed = chunks * fs->chunk_bytes;
    return error;
}

int usage_df(struct fs *fs, struct cowfs_ioc_df *out)
{
    *out = (struct cowfs_ioc_df){.version = out->version, .chunk_bytes = fs->chunk_bytes};
    /* Inodes that were never committed have no record yet. */
    int error = fs_commit(fs);
    if (error && error != -ENOSPC)
        return error;
    error = df_inodes(fs, out);
    if (!error)
        error = df_sealed(fs, out);
    if (error)
        return error;
    struct segments_stats stats;
    error = segments_stats(fs->segments, &stats);
    if (error)
        return error;
    out->inodes = atomic_load(&fs->inode_count);
    out->stored = fs_chunks_live(fs) * fs->chunk_bytes;
    out->saved_by_dedup = fs_merges(fs) * fs->chunk_bytes;
    uint64_t saved = out->mapped > out->stored ? out->mapped - out->stored : 0;
    /* Owners are counted per leaf, and a leaf that a clone shares is one:
     * what dedup saved cannot be more than all that is saved. */
    out->saved_by_dedup = min_u64(out->saved_by_dedup, saved);
    out->saved_by_cloning = saved - out->saved_by_dedup;
    out->metadata = metadb_disk_bytes(fs->db);
    out->segments_allocated = stats.allocated_bytes;
    out->pending_free = segments_garbage_bytes(fs->segments);
    out->fs_total = stats.fs_total_bytes;
    out->fs_free = stats.fs_free_bytes;
    memcpy(out->uuid, fs->sb.uuid, sizeof(out->uuid));
    return 0;
}
