// SPDX-License-Identifier: Apache-2.0
/*
 * usage_du.c - du: what would come back if a tree were deleted.
 *
 * A node or chunk belongs to the tree alone if all its owners lie in the tree.
 * Owners are counted level by level from the top: a root's owners are inodes of
 * the tree; if they are all there are (the count says so), the node is ours,
 * and it is an owner of its children, and so on down to the chunks. What lies
 * below a node that is not ours is shared, whatever its own count.
 */
#include "cowfs/clone.h"

#include "cowfs/caller.h"
#include "cowfs/names.h"

#include <errno.h>
#include <glib.h>

enum { TRIES = 8 };

struct du {
    struct fs *fs;
    const struct caller *caller; /* or NULL: may all */
    struct cowfs_ioc_du *out;
    GHashTable *seen_inodes;
    /* Owners found so far: node id -> count, for each level; at [0] chunks with
     * several owners. A chunk with one owner is met once, in its leaf, and is
     * only counted: a table of all chunks of a large tree would not fit into
     * memory. */
    GHashTable *owners[NODE_LEVEL_MAX + 1];
    GHashTable *visited_shared; /* nodes whose content was counted as shared */
    GHashTable *shared_chunks;  /* set of those with several owners */
    uint64_t exclusive_chunks;
    uint64_t shared_single; /* chunks with one owner, a leaf that is shared */
};

static void count_owner(GHashTable *table, uint64_t id)
{
    gpointer key = (gpointer)(uintptr_t)id;
    uintptr_t n = (uintptr_t)g_hash_table_lookup(table, key);
    g_hash_table_insert(table, key, (gpointer)(n + 1));
}

static int mapped_extent(void *arg, const struct extent *e)
{
    *(uint64_t *)arg += e->count;
    return 0;
}

static int du_file(struct du *d, struct inode *inode)
{
    uint64_t chunks = 0;
    int error = 0;
    pthread_rwlock_rdlock(&inode->map_lock);
    struct map map = inode->attr.map;
    d->out->files++;
    d->out->apparent += inode->attr.size_bytes;
    if (map.levels) {
        count_owner(d->owners[map.levels], map.root);
        error = map_each(d->fs->nodes, &map, 0, map_capacity(map.levels), mapped_extent, &chunks);
    }
    pthread_rwlock_unlock(&inode->map_lock);
    d->out->mapped += chunks * d->fs->chunk_bytes;
    return error;
}

struct listing {
    GArray *inos;
};

static int list_entry(void *arg, const struct dir_entry *entry)
{
    struct listing *l = arg;
    if (strcmp(entry->name, ".") != 0 && strcmp(entry->name, "..") != 0)
        g_array_append_val(l->inos, entry->ino);
    return 0;
}

static int du_tree(struct du *d, uint64_t top)
{
    GArray *todo = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    g_array_append_val(todo, top);
    int error = 0;
    for (unsigned i = 0; i < todo->len && !error; i++) {
        uint64_t ino = g_array_index(todo, uint64_t, i);
        struct inode *inode;
        if (!g_hash_table_add(d->seen_inodes, (gpointer)(uintptr_t)ino))
            continue; /* another name of a file that was counted */
        error = inode_get(d->fs->inodes, ino, &inode);
        if (error == -ENOENT) {
            error = 0; /* deleted meanwhile */
            continue;
        }
        if (error)
            break;
        uint32_t mode = inode_mode(inode);
        if (S_ISREG(mode)) {
            error = du_file(d, inode);
        } else if (S_ISDIR(mode) && d->caller &&
                   !caller_may(d->caller, inode, MAY_READ | MAY_EXEC)) {
            error = -EACCES;
        } else if (S_ISDIR(mode)) {
            struct listing l = {.inos = todo};
            d->out->directories++;
            error = names_list(d->fs, ino, 0, list_entry, &l);
            error = error == -ENOENT ? 0 : error;
        }
        inode_put(inode);
    }
    g_array_free(todo, TRUE);
    return error;
}

/* The chunks of a leaf that is the tree's own, or is shared with others. */
static int add_leaf(struct du *d, const uint64_t *entries, bool own)
{
    for (unsigned i = 0, n; i < NODE_ENTRIES; i += n) {
        chunk_t first = ENTRY_CHUNK(entries[i]);
        struct count_info info;
        uint32_t alike;
        n = 1;
        if (first == 0)
            continue;
        while (i + n < NODE_ENTRIES && ENTRY_CHUNK(entries[i + n]) == first + n)
            n++;
        int error = counts_alike_run(d->fs->chunk_counts, first, n, &info, &alike);
        if (error)
            return error;
        n = alike;
        if (info.count <= 1) {
            *(own ? &d->exclusive_chunks : &d->shared_single) += n;
            continue;
        }
        for (unsigned k = 0; k < n; k++) {
            if (own)
                count_owner(d->owners[0], first + k);
            else
                g_hash_table_add(d->shared_chunks, (gpointer)(uintptr_t)(first + k));
        }
    }
    return 0;
}

/* All that a node shared with others maps is shared. */
static int add_shared(struct du *d, uint64_t id, unsigned level)
{
    uint64_t entries[NODE_ENTRIES];
    if (!g_hash_table_add(d->visited_shared, (gpointer)(uintptr_t)id))
        return 0;
    int error = node_peek(d->fs->nodes, id, level, entries);
    if (!error && level == 1)
        return add_leaf(d, entries, false);
    for (unsigned i = 0; i < NODE_ENTRIES && !error; i++)
        if (entries[i])
            error = add_shared(d, entries[i], level - 1);
    return error;
}

static int visit_own(struct du *d, uint64_t id, unsigned level)
{
    uint64_t entries[NODE_ENTRIES];
    int error = node_peek(d->fs->nodes, id, level, entries);
    if (!error && level == 1)
        return add_leaf(d, entries, true);
    for (unsigned i = 0; i < NODE_ENTRIES && !error; i++)
        if (entries[i])
            count_owner(d->owners[level - 1], entries[i]);
    return error;
}

static int judge_level(struct du *d, unsigned level)
{
    GHashTableIter it;
    gpointer key, found;
    int error = 0;
    g_hash_table_iter_init(&it, d->owners[level]);
    while (!error && g_hash_table_iter_next(&it, &key, &found)) {
        uint64_t id = (uintptr_t)key;
        struct count_info info;
        error = counts_get(level ? d->fs->node_counts : d->fs->chunk_counts, id, &info);
        bool own = !error && info.count <= (uintptr_t)found;
        if (error)
            break;
        if (level == 0) {
            if (own)
                d->exclusive_chunks++;
            else
                g_hash_table_add(d->shared_chunks, key);
        } else {
            error = own ? visit_own(d, id, level) : add_shared(d, id, level);
        }
    }
    return error;
}

static int judge(struct du *d)
{
    int error = 0;
    for (unsigned level = NODE_LEVEL_MAX; level > 0 && !error; level--)
        error = judge_level(d, level);
    return error ? error : judge_level(d, 0);
}

static int du_once(struct fs *fs, uint64_t ino, const struct caller *caller,
                   struct cowfs_ioc_du *out)
{
    struct du d = {
        .fs = fs,
        .caller = caller,
        .out = out,
        .seen_inodes = g_hash_table_new(NULL, NULL),
        .visited_shared = g_hash_table_new(NULL, NULL),
        .shared_chunks = g_hash_table_new(NULL, NULL),
    };
    *out = (struct cowfs_ioc_du){.version = out->version};
    for (unsigned i = 0; i <= NODE_LEVEL_MAX; i++)
        d.owners[i] = g_hash_table_new(NULL, NULL);
    int error = du_tree(&d, ino);
    if (!error)
        error = judge(&d);
    out->exclusive = d.exclusive_chunks * fs->chunk_bytes;
    out->shared = (g_hash_table_size(d.shared_chunks) + d.shared_single) * fs->chunk_bytes;
    for (unsigned i = 0; i <= NODE_LEVEL_MAX; i++)
        g_hash_table_destroy(d.owners[i]);
    g_hash_table_destroy(d.seen_inodes);
    g_hash_table_destroy(d.visited_shared);
    g_hash_table_destroy(d.shared_chunks);
    return error == -ENOENT ? -EAGAIN : error;
}

int usage_du(struct fs *fs, uint64_t ino, const struct caller *caller, struct cowfs_ioc_du *out)
{
    /* Files that change while the counts are compared may free nodes that were
     * noted before; the answer would be out of date anyway: look again. */
    int error = -EAGAIN;
    for (unsigned tries = 0; tries < TRIES && error == -EAGAIN; tries++)
        error = du_once(fs, ino, caller, out);
    return error;
}
