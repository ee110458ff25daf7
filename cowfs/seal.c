// SPDX-License-Identifier: Apache-2.0
/*
 * seal.c - sealing a part of a file.
 *
 *   1. mark   under the file's lock, exclusively: chunks that are not sealed
 *             are marked as sealed. From here on nobody overwrites them.
 *   2. hash   without locks, in a read section (somebody may free them).
 *   3. compare with what the index has for that hash, byte for byte: in the domain
 *             of the file's owner, then in the public one (domain.h). An equal
 *             that is alive and sealed when looked at inside the read section
 *             cannot change, and its slot is never used for anything else.
 *   4. share  under the file's lock, shared, and the leaf's: if the entry still
 *             has the chunk, it is exchanged for its equal, in place, even in
 *             a leaf that several files share: the bytes are the same. Or, if
 *             there is no equal, the chunk enters the index.
 *
 * The chunks of a flat file (flat.h) are not exchanged if that is to stay flat: they
 * only enter the index, so that others find them. Exchanging one marks its segment
 * in the same transaction (segments_home_take).
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
#include "cowfs/domain.h"
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
    bool sealed;   /* it was before, and is in the index; here to be exchanged */
    bool entered;  /* it is in the index, or will be when this transaction ends */
};

struct batch {
    struct fs *fs;
    struct inode *inode;
    uint32_t domain; /* in which equals are looked for, as it was when the chunks were marked */
    bool keep_flat;
    struct item *items;
    struct content_query *queries; /* as many as items, and so are the entries */
    struct content_entry *entries;
    unsigned entry_count;         /* to be added to the index */
    uint8_t *data;                /* of all items, so that twins can be compared */
    uint8_t *work;                /* what they are compared with */
    chunk_t chunk_min, chunk_max; /* of all items */
    unsigned count, max;
    const struct seal_pace *pace; /* may be NULL */
};

enum {
    BATCH_CHUNKS = NODE_ENTRIES, /* of 4 KiB: what a leaf maps, so that it stays one run */
    BATCH_BYTES = BATCH_CHUNKS * 4096,
    COMPARE_CHUNKS_MIN = 4,  /* read at once to be compared: at first, */
    COMPARE_CHUNKS_MAX = 32, /* and when it goes well */
    LOOKUPS_MAX = 64,        /* hashes looked up at once */
};

/* A sealed chunk that may have been left where it is so that its file stayed flat? */
static bool was_kept(const struct batch *b, const struct extent *e)
{
    struct segment_home home;
    return b->fs->config.keep_flat && !b->keep_flat &&
           segments_home_get(b->fs->segments, (uint32_t)(e->chunk >> 32), &home) == 0 &&
           !home.packed;
}

/* Step 1. */
static int mark(struct batch *b, uint64_t index, uint64_t limit, uint64_t *next)
{
    struct fs *fs = b->fs;
    int error = 0;
    pthread_rwlock_wrlock(&b->inode->map_lock);
    txn_enter(fs->txn);
    b->domain = domain_of(b->inode);
    domain_note(fs, b->domain);
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
        uint32_t taken = n;
        if (e.reserved || (info.sealed && !was_kept(b, &e))) {
            taken = 0;
        } else if (!info.sealed) {
            /* Another batch, by way of another file, may have been faster: what it has marked
             * is its own, to be entered or to be unmarked. */
            error = counts_seal(fs->chunk_counts, e.chunk, n, &taken);
            n = MAX(taken, 1);
        }
        for (uint32_t i = 0; i < taken; i++)
            b->items[b->count++] =
                (struct item){.index = index + i, .chunk = e.chunk + i, .sealed = info.sealed};
        if (taken) {
            b->chunk_min = MIN(b->chunk_min, e.chunk);
            b->chunk_max = MAX(b->chunk_max, e.chunk + taken - 1);
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

/* Is one of the n chunks from `first` on its way in this very batch? (By their range,
 * which may say yes too often.) */
static bool is_own(const struct batch *b, chunk_t first, uint64_t n)
{
    return first <= b->chunk_max && first + n > b->chunk_min;
}

/*
 * Of the n chunks from `first` on, how many are alive and sealed. `guessed`: they were
 * not found by their hashes, but follow one that was. Such a chunk may be on its way in
 * another batch, which may take its mark back (then it could be overwritten, and sealed
 * again). So a guess counts only if no other batch was under way from before the look at
 * the counts to its end; batches count themselves before they mark anything. And it may be of
 * somebody else's content.
 */
static int usable_run(struct batch *b, chunk_t first, uint32_t n, bool guessed, uint32_t *usable)
{
    struct fs *fs = b->fs;
    struct count_info info;
    uint64_t ended = atomic_load(&fs->seal_batches_ended);
    uint64_t begun = atomic_load(&fs->seal_batches_begun);
    *usable = 0;
    if (guessed && (begun != ended + 1 || is_own(b, first, n)))
        return 0;
    int error = counts_alike_run(fs->chunk_counts, first, n, &info, usable);
    if (error || info.count == 0 || !info.sealed ||
        (guessed && atomic_load(&fs->seal_batches_begun) != begun))
        *usable = 0;
    if (!error && guessed && *usable)
        error = domain_visible_run(fs, b->domain, first, *usable, usable);
    return error;
}

/*
 * Step 3 for item i, for whose hash the index has `found`, and for those that follow
 * it: what was equal to a run of chunks once mostly is so to its end, and comparing is
 * several times cheaper than looking up. *equals: for how many it has set `equal`.
 */
static int compare_with_found(struct batch *b, unsigned i, chunk_t found, unsigned *equals)
{
    struct fs *fs = b->fs;
    unsigned done = 0;
    *equals = 0;
    if (found == b->items[i].chunk)
        return 0;
    while (i + done < b->count) {
        uint32_t step = done ? CLAMP(done, COMPARE_CHUNKS_MIN, COMPARE_CHUNKS_MAX) : 1;
        uint32_t n = MIN(step, b->count - i - done), same = 0;
        int error = usable_run(b, found + done, n, done > 0, &n);
        if (error || n == 0) {
            /* Nothing lives there: a leftover of a freed chunk, to be replaced. */
            if (!error && done == 0)
                b->items[i].findable = true;
            return error;
        }
        error = chunks_read(fs, found + done, 0, b->work, n * (size_t)fs->chunk_bytes);
        if (error == -EIO && done > 0)
            break; /* one of them is damaged; which, their own look-ups will tell */
        if (error == -EIO) {
            b->items[i].findable = true; /* ours takes its place in the index */
            return 0;
        }
        if (error)
            return error;
        const uint8_t *data = b->data + (size_t)(i + done) * fs->chunk_bytes;
        while (same < n && memcmp(b->work + (size_t)same * fs->chunk_bytes,
                                  data + (size_t)same * fs->chunk_bytes, fs->chunk_bytes) == 0) {
            b->items[i + done + same].equal = found + done + same;
            b->items[i + done + same].findable = false;
            same++;
        }
        done += same;
        *equals = done;
        if (same < n)
            break;
    }
    return 0;
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

/* Looks up the hashes of `n` items from i on. */
static int look_up(struct batch *b, unsigned i, unsigned n)
{
    struct fs *fs = b->fs;
    for (unsigned k = 0; k < n; k++)
        b->queries[k] = (struct content_query){.hash = &b->items[i + k].hash, .domain = b->domain};
    int error = content_index_find_many(fs->db, b->queries, n, METADB_ALL);
    unsigned absent = 0;
    for (unsigned k = 0; k < n && !error; k++) {
        struct item *it = &b->items[i + k];
        it->found = b->queries[k].found;
        it->findable = it->found == 0;
        if (it->found == 0)
            b->queries[absent++] =
                (struct content_query){.hash = &it->hash, .domain = DOMAIN_PUBLIC};
    }
    if (error || absent == 0 || !atomic_load(&fs->has_public))
        return error;
    error = content_index_find_many(fs->db, b->queries, absent, METADB_ALL);
    absent = 0;
    for (unsigned k = 0; k < n && !error; k++)
        if (b->items[i + k].found == 0)
            b->items[i + k].found = b->queries[absent++].found;
    return error;
}

/* Step 3. Where equals were found a moment ago there will be more: then one hash at a
 * time is looked up; else more and more of them. */
static int find_equals(struct batch *b)
{
    unsigned window = 1;
    int error = 0;
    for (unsigned i = 0, end; i < b->count && !error; i = end) {
        unsigned n = MIN(window, b->count - i), hits = 0;
        error = look_up(b, i, n);
        for (end = i; end < i + n && !error;) {
            unsigned equals = 0;
            if (b->items[end].found)
                error = compare_with_found(b, end, b->items[end].found, &equals);
            hits += equals;
            end += MAX(equals, 1);
        }
        window = hits ? 1 : MIN(window * 2, (unsigned)LOOKUPS_MAX);
    }
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
            b->queries[n++] =
                (struct content_query){.hash = &b->items[i].hash, .domain = b->domain};
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

/* Twins that came before have been dealt with. */
static void resolve_twin(struct item *it)
{
    if (it->twin && it->twin->entered)
        it->equal = it->twin->chunk;
}

/* How many items from i on can be exchanged as one: neighbours in one leaf, whose
 * chunks are neighbours, and their equals too. */
static unsigned exchange_run(struct batch *b, unsigned i)
{
    struct item *it = &b->items[i];
    unsigned n = 1;
    resolve_twin(it);
    for (; it->equal && i + n < b->count; n++) {
        struct item *next = &b->items[i + n];
        if (next->twin < it)
            resolve_twin(next);
        if (next->index != it->index + n || next->index % NODE_ENTRIES == 0 ||
            next->chunk != it->chunk + n || next->equal != it->equal + n)
            break;
    }
    return n;
}

/* Step 4 for items from i on; the leaf is pinned, lock and gate are held. *n of them are
 * done with, *shared of these now share the chunks of others. */
static int share(struct batch *b, struct node *leaf, unsigned i, unsigned *n, uint64_t *shared)
{
    struct fs *fs = b->fs;
    struct item *it = &b->items[i];
    unsigned at = it->index % NODE_ENTRIES, alike;
    *shared = 0;
    *n = exchange_run(b, i);
    if (node_run(leaf, at, *n, &alike) != it->chunk) {
        *n = 1;
        return 0; /* written over meanwhile */
    }
    *n = MIN(*n, alike);
    uint32_t merged = 0;
    if (it->equal && segments_home_take(fs->segments, it->chunk, b->keep_flat) &&
        counts_merge(fs->chunk_counts, it->equal, *n, &merged) == 0) {
        *n = merged;
        if (!node_exchange(leaf, at, merged, it->chunk, it->equal))
            return node_unref_chunks(fs->nodes, it->equal, merged);
        *shared = merged;
        return node_unref_chunks(fs->nodes, it->chunk, merged);
    }
    *n = 1;
    it->entered = true;
    if (it->sealed)
        return 0;
    b->entries[b->entry_count++] = (struct content_entry){
        .content = {.hash = it->hash, .domain = b->domain},
        .chunk = it->chunk,
        .findable = it->findable,
    };
    return 0;
}

static void unmark(struct batch *b)
{
    for (unsigned i = 0, n; i < b->count; i += n) {
        n = 1;
        if (b->items[i].entered || b->items[i].sealed)
            continue;
        while (i + n < b->count && !b->items[i + n].entered && !b->items[i + n].sealed &&
               b->items[i + n].chunk == b->items[i].chunk + n)
            n++;
        /* An error leaves them sealed: that is safe. */
        counts_unseal(b->fs->chunk_counts, b->items[i].chunk, n);
    }
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
    for (unsigned i = 0, n; i < b->count && !error; i += n) {
        uint64_t index = b->items[i].index, shared = 0;
        n = 1;
        if (index / NODE_ENTRIES != leaf_index) {
            node_put(leaf);
            leaf = NULL;
            leaf_index = index / NODE_ENTRIES;
            error = map_find_leaf(fs->nodes, &b->inode->attr.map, index, &leaf);
        }
        if (error || !leaf)
            continue;
        error = share(b, leaf, i, &n, &shared);
        *shared_count += shared;
    }
    node_put(leaf);
    content_index_add_many(fs->db, b->entries, b->entry_count);
    unmark(b);
    txn_exit(fs->txn);
    pthread_rwlock_unlock(&b->inode->map_lock);
    return error;
}

static int seal_batch(struct batch *b, uint64_t limit, struct seal_result *out)
{
    struct fs *fs = b->fs;
    b->count = 0;
    b->chunk_min = UINT64_MAX;
    b->chunk_max = 0;
    atomic_fetch_add(&fs->seal_batches_begun, 1);
    unsigned section = segments_read_enter(fs->segments);
    int error = mark(b, out->next_index, MIN(limit, b->max), &out->next_index);
    if (b->pace)
        b->pace->fn(b->pace->arg, false);
    if (!error)
        error = read_and_hash(b);
    if (!error)
        error = find_equals(b);
    if (b->pace)
        b->pace->fn(b->pace->arg, true);
    if (!error) {
        error = share_all(b, &out->deduplicated_chunks);
    } else {
        txn_enter(fs->txn);
        unmark(b);
        txn_exit(fs->txn);
    }
    segments_read_exit(fs->segments, section);
    atomic_fetch_add(&fs->seal_batches_ended, 1);
    out->hashed_chunks += b->count;
    return error;
}

int seal_file_part(struct fs *fs, struct inode *inode, uint64_t index, uint64_t limit,
                   bool keep_flat, const struct seal_pace *pace, struct seal_result *out)
{
    struct batch b = {
        .fs = fs,
        .inode = inode,
        .keep_flat = keep_flat,
        .max = BATCH_BYTES / fs->chunk_bytes,
        .pace = pace,
    };
    *out = (struct seal_result){.next_index = index};
    b.items = g_new(struct item, b.max);
    b.queries = g_new(struct content_query, b.max);
    b.entries = g_new(struct content_entry, b.max);
    b.data = g_malloc(BATCH_BYTES);
    b.work = g_malloc((size_t)COMPARE_CHUNKS_MAX * fs->chunk_bytes);
    int error = 0;
    for (uint64_t looked = 0; looked < limit && out->next_index != UINT64_MAX && !error;
         looked += b.max) {
        error = seal_batch(&b, limit - looked, out);
        txn_throttle_background(fs->txn);
    }
    g_free(b.items);
    g_free(b.queries);
    g_free(b.entries);
    g_free(b.data);
    g_free(b.work);
    return error;
}
