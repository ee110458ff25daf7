// SPDX-License-Identifier: Apache-2.0
/*
 * seal.c - sealing a part of a file.
 *
 *   1. mark   under the file's lock, exclusively: chunks that are not sealed
 *             are marked as sealed. From here on nobody overwrites them.
 *   2. hash   without locks, in a read section (somebody may free them).
 *   3. compare with what the index has for that hash, byte for byte. An equal
 *             that is alive and sealed when looked at inside the read section
 *             cannot change, and its slot is never used for anything else.
 *   4. share  under the file's lock, shared, and the leaf's: if the entry still
 *             has the chunk, it is exchanged for its equal, in place, even in
 *             a leaf that several files share: the bytes are the same. Or, if
 *             there is no equal, the chunk enters the index.
 *
 * A chunk that is marked and then does not enter the index may still have
 * owners: entries of other leaves (of a clone that went its own way), or all of
 * them after an error. The mark is taken back, so that it can be sealed by way
 * of another file, or later. A crash between 1 and 4 leaves chunks that are
 * sealed without a hash: they are immutable, just not found by deduplication.
 */
#include "cowfs/sealer.h"

#include "chunkstore/content_index.h"
#include "cowfs/blockmap_internal.h"
#include "cowfs/damage.h"
#include "cowfs/file_internal.h"

#include <errno.h>

/* A chunk on its way. */
struct item {
    uint64_t index;
    chunk_t chunk;
    chunk_t found;     /* what the index has for the hash; 0: nothing */
    chunk_t equal;     /* same bytes, alive, sealed; 0: none */
    struct item *twin; /* an earlier item of this batch with the same bytes */
    struct content_hash hash;
    bool findable; /* no living chunk in the index has this hash */
    bool entered;  /* it is in the index, or will be when this transaction ends */
};

struct batch {
    struct fs *fs;
    struct inode *inode;
    struct item *items;
    struct content_query *queries; /* as many as items, and so are the entries */
    struct content_entry *entries;
    unsigned entry_count; /* to be added to the index */
    uint8_t *data;        /* of all items, so that twins can be compared */
    unsigned count, max;
};

enum { BATCH_BYTES = 1 << 20 };

/* Step 1. */
static int mark(struct batch *b, uint64_t index, uint64_t limit, uint64_t *next)
{
    struct fs *fs = b->fs;
    int error = 0;
    pthread_rwlock_wrlock(&b->inode->map_lock);
    txn_enter(fs->txn);
    uint64_t end = div_round_up_u64(b->inode->attr.size_bytes, fs->chunk_bytes);
    uint64_t looked = 0;
    while (index < end && looked < limit && b->count < b->max && !error) {
        struct extent e;
        error = map_lookup(fs->nodes, &b->inode->attr.map, index, end - index, false, &e);
        if (error)
            break;
        if (e.chunk == 0) {
            index += e.count;
            continue;
        }
        uint32_t n = (uint32_t)min_u64(e.count, MIN(limit - looked, b->max - b->count));
        struct count_info info;
        error = counts_alike_run(fs->chunk_counts, e.chunk, n, &info, &n);
        if (error)
            break;
        if (!info.sealed && !e.reserved) {
            error = counts_seal(fs->chunk_counts, e.chunk, n);
            for (uint32_t i = 0; i < n && !error; i++)
                b->items[b->count++] = (struct item){.index = index + i, .chunk = e.chunk + i};
        }
        looked += n;
        index += n;
    }
    txn_exit(fs->txn);
    pthread_rwlock_unlock(&b->inode->map_lock);
    *next = index < end ? index : UINT64_MAX;
    return error;
}

/* Two chunks of one batch may be equal, before any of them is in the index. */
static void find_twins(struct batch *b)
{
    GHashTable *first = g_hash_table_new(g_int64_hash, g_int64_equal);
    for (unsigned i = 0; i < b->count; i++) {
        struct item *it = &b->items[i];
        if (it->equal)
            continue;
        struct item *other = g_hash_table_lookup(first, it->hash.bytes);
        if (!other)
            g_hash_table_insert(first, it->hash.bytes, it);
        else if (memcmp(b->data + (size_t)i * b->fs->chunk_bytes,
                        b->data + (size_t)(other - b->items) * b->fs->chunk_bytes,
                        b->fs->chunk_bytes) == 0)
            it->twin = other;
        else
            it->findable = false; /* a collision: the first one is found */
    }
    g_hash_table_destroy(first);
}

static bool is_alive(struct fs *fs, chunk_t chunk)
{
    struct count_info info;
    return counts_get(fs->chunk_counts, chunk, &info) == 0 && info.count > 0 && info.sealed;
}

/* Step 3 for one chunk that has something in the index. */
static int compare_with_found(struct batch *b, struct item *it, const uint8_t *data, uint8_t *work)
{
    struct fs *fs = b->fs;
    struct count_info info;
    if (it->found == it->chunk)
        return 0;
    int error = counts_get(fs->chunk_counts, it->found, &info);
    if (error)
        return error;
    if (info.count == 0 || !info.sealed) {
        it->findable = true; /* a leftover of a freed chunk: replaced */
        return 0;
    }
    error = chunks_read(fs, it->found, 0, work, fs->chunk_bytes);
    if (error == -EIO) {
        it->findable = true; /* damaged: ours takes its place in the index */
        return 0;
    }
    if (!error && memcmp(work, data, fs->chunk_bytes) == 0)
        it->equal = it->found;
    return error;
}

/* Step 2. */
static int read_and_hash(struct batch *b)
{
    struct fs *fs = b->fs;
    int error = 0;
    for (unsigned i = 0, n; i < b->count && !error; i += n) {
        uint8_t *data = b->data + (size_t)i * fs->chunk_bytes;
        for (n = 1; i + n < b->count; n++)
            if (b->items[i + n].chunk != b->items[i].chunk + n ||
                (b->items[i + n].chunk ^ b->items[i].chunk) >> 32)
                break;
        error =
            segments_read(fs->segments, b->items[i].chunk, 0, data, (size_t)n * fs->chunk_bytes);
        for (unsigned k = i; k < i + n && !error; k++)
            b->items[k].hash = fs->hash(b->data + (size_t)k * fs->chunk_bytes, fs->chunk_bytes,
                                        fs->sb.hash_secret);
    }
    return error;
}

/* Step 3. */
static int find_equals(struct batch *b)
{
    struct fs *fs = b->fs;
    for (unsigned i = 0; i < b->count; i++)
        b->queries[i].hash = &b->items[i].hash;
    int error = content_index_find_many(fs->db, b->queries, b->count, METADB_ALL);
    uint8_t *work = g_malloc(fs->chunk_bytes);
    for (unsigned i = 0; i < b->count && !error; i++) {
        struct item *it = &b->items[i];
        it->found = b->queries[i].found;
        it->findable = it->found == 0;
        if (it->found)
            error = compare_with_found(b, it, b->data + (size_t)i * fs->chunk_bytes, work);
    }
    g_free(work);
    if (!error)
        find_twins(b);
    return error;
}

/* Somebody else may have entered an equal since step 3: his is kept. He did so
 * a moment ago, so it is enough to look at what is not committed yet; if that
 * missed one, both would be sealed, and ours the one that is found. */
static void look_again(struct batch *b)
{
    struct fs *fs = b->fs;
    unsigned n = 0;
    for (unsigned i = 0; i < b->count; i++)
        if (b->items[i].findable)
            b->queries[n++].hash = &b->items[i].hash;
    if (content_index_find_many(fs->db, b->queries, n, METADB_UNCOMMITTED) != 0)
        return;
    n = 0;
    for (unsigned i = 0; i < b->count; i++) {
        struct item *it = &b->items[i];
        chunk_t found = it->findable ? b->queries[n++].found : 0;
        if (found && found != it->found && is_alive(fs, found))
            it->findable = false;
    }
}

/* Step 4 for one chunk; the leaf is pinned, lock and gate are held. */
static int share(struct batch *b, struct node *leaf, struct item *it, bool *shared)
{
    struct fs *fs = b->fs;
    unsigned at = it->index % NODE_ENTRIES;
    *shared = false;
    if (node_entry(leaf, at) != it->chunk)
        return 0; /* written over meanwhile */
    if (it->twin && it->twin->entered)
        it->equal = it->twin->chunk;
    if (it->equal && counts_merge(fs->chunk_counts, it->equal) == 0) {
        if (node_exchange(leaf, at, it->chunk, it->equal)) {
            *shared = true;
            return node_unref_chunks(fs->nodes, it->chunk, 1);
        }
        return node_unref_chunks(fs->nodes, it->equal, 1);
    }
    b->entries[b->entry_count++] = (struct content_entry){
        .hash = it->hash,
        .chunk = it->chunk,
        .findable = it->findable,
    };
    it->entered = true;
    return 0;
}

static void unmark(struct batch *b)
{
    for (unsigned i = 0; i < b->count; i++)
        if (!b->items[i].entered)
            /* An error leaves it sealed: that is safe. */
            counts_unseal(b->fs->chunk_counts, b->items[i].chunk);
}

/* Step 4. */
static int share_all(struct batch *b, uint64_t *shared_count)
{
    struct fs *fs = b->fs;
    int error = 0;
    pthread_rwlock_rdlock(&b->inode->map_lock);
    txn_enter(fs->txn);
    look_again(b);
    b->entry_count = 0;
    struct node *leaf = NULL;
    uint64_t leaf_index = UINT64_MAX;
    for (unsigned i = 0; i < b->count && !error; i++) {
        struct item *it = &b->items[i];
        bool shared;
        if (it->index / NODE_ENTRIES != leaf_index) {
            node_put(leaf);
            leaf = NULL;
            leaf_index = it->index / NODE_ENTRIES;
            error = map_find_leaf(fs->nodes, &b->inode->attr.map, it->index, &leaf);
        }
        if (error || !leaf)
            continue;
        error = share(b, leaf, it, &shared);
        *shared_count += shared;
    }
    node_put(leaf);
    content_index_add_many(fs->db, b->entries, b->entry_count);
    unmark(b);
    txn_exit(fs->txn);
    pthread_rwlock_unlock(&b->inode->map_lock);
    return error;
}

int seal_file_part(struct fs *fs, struct inode *inode, uint64_t index, uint64_t limit,
                   struct seal_result *out)
{
    struct batch b = {.fs = fs, .inode = inode, .max = BATCH_BYTES / fs->chunk_bytes};
    *out = (struct seal_result){.next_index = index};
    b.items = g_new(struct item, b.max);
    b.queries = g_new(struct content_query, b.max);
    b.entries = g_new(struct content_entry, b.max);
    b.data = g_malloc(BATCH_BYTES);
    int error = 0;
    uint64_t looked = 0;
    while (looked < limit && out->next_index != UINT64_MAX && !error) {
        uint64_t from = out->next_index;
        b.count = 0;
        unsigned section = segments_read_enter(fs->segments);
        error = mark(&b, from, min_u64(limit - looked, b.max), &out->next_index);
        if (!error)
            error = read_and_hash(&b);
        if (!error)
            error = find_equals(&b);
        if (!error) {
            error = share_all(&b, &out->deduplicated_chunks);
        } else {
            txn_enter(fs->txn);
            unmark(&b);
            txn_exit(fs->txn);
        }
        segments_read_exit(fs->segments, section);
        out->hashed_chunks += b.count;
        looked += b.max;
        txn_throttle(fs->txn);
    }
    g_free(b.items);
    g_free(b.queries);
    g_free(b.entries);
    g_free(b.data);
    return error;
}
