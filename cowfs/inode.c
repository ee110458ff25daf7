// SPDX-License-Identifier: Apache-2.0
/*
 * inode.c - the cache of inodes.
 *
 * Inodes are spread over shards by number (numbers are handed out in turn, so
 * the spread is even). Each shard is a hash table under a mutex, with a list
 * of the changed ones and an LRU of those that nobody needs. A record is read
 * while the shard's mutex is held: two readers of one inode must not make two
 * of it, nor may one be read while its newer state is evicted.
 *
 *   inode_new ----> changed <------ inode_mark_dirty ------.
 *                      | inode_cache_flip                  |
 *                      v                                   |
 *   inode_get ----> cached: refs or nlookup > 0 -----------'
 *                      |  ^ inode_get
 *   inode_put, forget  v  |
 *                    in the LRU ---- evict ----> record only
 *
 * An unlinked inode that nobody uses is in one of these states, too; it is
 * the queue of the reaper that knows of it, and the record KEY_ORPHAN.
 */
#include "cowfs/fs.h"
#include "cowfs/journal_internal.h"
#include "cowfs/reap.h"

#include <errno.h>
#include <inttypes.h>

enum {
    SHARDS = 64,
    UNUSED_MAX = 16384, /* inodes kept that nobody uses */
    UNUSED_PER_SHARD = UNUSED_MAX / SHARDS,
    /* What a changed inode costs until its commit: itself, its record. */
    DIRTY_BYTES = sizeof(struct inode) + 128,
};

struct shard {
    _Alignas(64) pthread_mutex_t lock;
    GHashTable *inodes; /* number -> inode; 64 bits fit into a pointer */
    GQueue dirty;
    GQueue lru;            /* head: used last */
    GHashTable *forgotten; /* numbers of orphans that kernels forgot which went on with an
                              earlier process's mounts -> these mounts, a bit each */
};

struct inode_cache {
    struct fs *fs;
    atomic_uint_fast64_t next_ino;
    uint64_t resumed_before; /* numbers below are of earlier processes */
    atomic_uint resumed;     /* mounts, a bit each, whose kernel may know of them what we do not */
    struct shard shards[SHARDS];
};

static struct shard *shard_of(struct inode_cache *cache, uint64_t ino)
{
    return &cache->shards[ino % SHARDS];
}

struct inode_cache *inode_cache_new(struct fs *fs, uint64_t next_ino)
{
    struct inode_cache *cache = g_aligned_alloc0(1, sizeof(*cache), 64);
    cache->fs = fs;
    atomic_init(&cache->next_ino, next_ino);
    cache->resumed_before = next_ino;
    atomic_init(&cache->resumed, fs->config.resumed);
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &cache->shards[i];
        pthread_mutex_init(&s->lock, NULL);
        s->inodes = g_hash_table_new(NULL, NULL);
        s->forgotten = g_hash_table_new(NULL, NULL);
        g_queue_init(&s->dirty);
        g_queue_init(&s->lru);
    }
    return cache;
}

static struct inode *inode_alloc(struct inode_cache *cache, uint64_t ino)
{
    struct inode *inode = g_new0(struct inode, 1);
    inode->ino = ino;
    inode->fs = cache->fs;
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&inode->map_lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    pthread_mutex_init(&inode->attr_lock, NULL);
    inode->lru_link.data = inode;
    inode->dirty_link.data = inode;
    atomic_init(&inode->refs, 1);
    return inode;
}

static void inode_free(struct inode *inode)
{
    pthread_rwlock_destroy(&inode->map_lock);
    pthread_mutex_destroy(&inode->attr_lock);
    g_free(inode->attr.target);
    g_free(inode);
}

void inode_cache_free(struct inode_cache *cache)
{
    if (!cache)
        return;
    uint64_t leaked = 0;
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &cache->shards[i];
        GHashTableIter it;
        gpointer value;
        g_hash_table_iter_init(&it, s->inodes);
        while (g_hash_table_iter_next(&it, NULL, &value)) {
            struct inode *inode = value;
            leaked += atomic_load(&inode->refs) != 0;
            inode_free(inode);
        }
        g_hash_table_destroy(s->inodes);
        g_hash_table_destroy(s->forgotten);
        pthread_mutex_destroy(&s->lock);
    }
    if (leaked)
        g_warning("%" PRIu64 " inodes were still referenced at the end", leaked);
    g_aligned_free(cache);
}

/* Whether the kernel of any mount knows it. Under the shard's lock. */
static bool looked_up(const struct inode *inode)
{
    uint64_t any = 0;
    for (unsigned mount = 0; mount < INODE_MOUNTS; mount++)
        any |= inode->nlookup[mount];
    return any;
}

/* Invariant 4, restored after refs, nlookup, dirty or reaping fell. Under the
 * shard's lock; the inode may be gone afterwards. Returns true if the reaper
 * should hear of it. */
static bool settle(struct shard *s, struct inode *inode)
{
    if (atomic_load(&inode->refs) || looked_up(inode) || inode->reaping)
        return false;
    /* Nobody else has the inode: nlink needs no lock. */
    bool orphan = inode->attr.nlink == 0;
    if (atomic_load(&inode->dirty) || inode->in_lru)
        return orphan;
    inode->in_lru = true;
    g_queue_push_head_link(&s->lru, &inode->lru_link);
    while (g_queue_get_length(&s->lru) > UNUSED_PER_SHARD) {
        struct inode *victim = g_queue_pop_tail_link(&s->lru)->data;
        g_hash_table_remove(s->inodes, GSIZE_TO_POINTER(victim->ino));
        inode_free(victim);
    }
    return orphan;
}

static void leave_lru(struct shard *s, struct inode *inode)
{
    if (inode->in_lru) {
        g_queue_unlink(&s->lru, &inode->lru_link);
        inode->in_lru = false;
    }
}

/* Reads the record. Under the shard's lock. The new inode has one reference. */
static int load(struct inode_cache *cache, struct shard *s, uint64_t ino, struct inode **out)
{
    uint8_t key[KEY_MAX];
    struct metadb_value value;
    struct inode_attr attr;
    int error = metadb_get(cache->fs->db, key, key_u64(key, KEY_INODE, ino), &value);
    if (error)
        return error;
    error = inode_decode(value.data, value.len, &attr);
    metadb_value_free(&value);
    if (error) {
        g_critical("the record of inode %" PRIu64 " is damaged", ino);
        return error;
    }
    struct inode *inode = inode_alloc(cache, ino);
    inode->attr = attr;
    g_hash_table_insert(s->inodes, GSIZE_TO_POINTER(inode->ino), inode);
    *out = inode;
    return 0;
}

/* Under the shard's lock. */
static int find_or_load(struct inode_cache *cache, struct shard *s, uint64_t ino,
                        struct inode **out)
{
    struct inode *inode = g_hash_table_lookup(s->inodes, GSIZE_TO_POINTER(ino));
    if (!inode)
        return load(cache, s, ino, out);
    if (inode->reaping)
        return -ENOENT;
    leave_lru(s, inode);
    atomic_fetch_add(&inode->refs, 1);
    *out = inode;
    return 0;
}

int inode_get(struct inode_cache *cache, uint64_t ino, struct inode **out)
{
    struct shard *s = shard_of(cache, ino);
    *out = NULL;
    pthread_mutex_lock(&s->lock);
    int error = find_or_load(cache, s, ino, out);
    pthread_mutex_unlock(&s->lock);
    return error;
}

struct inode *inode_ref(struct inode *inode)
{
    int64_t before = atomic_fetch_add(&inode->refs, 1);
    g_assert(before > 0);
    return inode;
}

void inode_put(struct inode *inode)
{
    if (!inode)
        return;
    int_fast64_t refs = atomic_load(&inode->refs);
    while (refs > 1)
        if (atomic_compare_exchange_weak(&inode->refs, &refs, refs - 1))
            return;
    /* Only under the lock does the count fall to 0, so that nobody finds the
     * inode in between. */
    struct fs *fs = inode->fs;
    uint64_t ino = inode->ino;
    struct shard *s = shard_of(fs->inodes, ino);
    bool orphan = false;
    pthread_mutex_lock(&s->lock);
    int64_t before = atomic_fetch_sub(&inode->refs, 1);
    g_assert(before > 0);
    if (before == 1)
        orphan = settle(s, inode);
    pthread_mutex_unlock(&s->lock);
    if (orphan)
        reaper_queue(fs->reaper, ino);
}

void inode_lookup_inc(struct inode *inode, unsigned mount)
{
    g_assert(mount < INODE_MOUNTS);
    struct shard *s = shard_of(inode->fs->inodes, inode->ino);
    pthread_mutex_lock(&s->lock);
    inode->nlookup[mount]++;
    pthread_mutex_unlock(&s->lock);
}

/* May a kernel know the inode that we know nothing of? */
static bool is_resumed(struct inode_cache *cache, uint64_t ino)
{
    return ino < cache->resumed_before && atomic_load(&cache->resumed);
}

static unsigned mounts_that_forgot(const struct shard *s, uint64_t ino)
{
    return GPOINTER_TO_UINT(g_hash_table_lookup(s->forgotten, GSIZE_TO_POINTER(ino)));
}

/* Such a kernel forgot it. Under the shard's lock. True if it is an orphan, which need not
 * be kept any more for that one. */
static bool forget_resumed(struct inode_cache *cache, struct shard *s, struct inode *inode,
                           uint64_t ino, unsigned mount)
{
    bool orphan;
    if (inode) {
        orphan = inode_nlink(inode) == 0;
    } else {
        uint8_t key[KEY_MAX];
        struct metadb_value value = {0};
        orphan = metadb_get(cache->fs->db, key, key_u64(key, KEY_ORPHAN, ino), &value) == 0;
        metadb_value_free(&value);
    }
    if (orphan)
        g_hash_table_insert(s->forgotten, GSIZE_TO_POINTER(ino),
                            GUINT_TO_POINTER(mounts_that_forgot(s, ino) | 1u << mount));
    return orphan;
}

/* An orphan that is kept for a kernel which may have it open. Those that we made for
 * ourselves (file_hold_map), which have no time of birth, no kernel has ever seen. */
static bool is_kept(struct inode_cache *cache, struct shard *s, const struct inode *inode)
{
    const struct timespec *btime = &inode->attr.btime;
    return is_resumed(cache, inode->ino) && (btime->tv_sec || btime->tv_nsec) &&
           atomic_load(&cache->resumed) & ~mounts_that_forgot(s, inode->ino);
}

bool inode_forget(struct inode_cache *cache, uint64_t ino, unsigned mount, uint64_t nlookup)
{
    g_assert(mount < INODE_MOUNTS);
    struct shard *s = shard_of(cache, ino);
    bool orphan = false, gone = true;
    pthread_mutex_lock(&s->lock);
    struct inode *inode = g_hash_table_lookup(s->inodes, GSIZE_TO_POINTER(ino));
    bool known = inode && inode->nlookup[mount];
    if (known) {
        inode->nlookup[mount] -= min_u64(nlookup, inode->nlookup[mount]);
        gone = inode->nlookup[mount] == 0;
    }
    if (gone && is_resumed(cache, ino))
        orphan = forget_resumed(cache, s, inode, ino, mount);
    if (known)
        orphan |= settle(s, inode);
    pthread_mutex_unlock(&s->lock);
    if (orphan)
        reaper_queue(cache->fs->reaper, ino);
    return gone;
}

bool inode_is_known(struct inode_cache *cache, uint64_t ino, unsigned mount)
{
    g_assert(mount < INODE_MOUNTS);
    struct shard *s = shard_of(cache, ino);
    pthread_mutex_lock(&s->lock);
    struct inode *inode = g_hash_table_lookup(s->inodes, GSIZE_TO_POINTER(ino));
    bool known = inode && inode->nlookup[mount] > 0;
    pthread_mutex_unlock(&s->lock);
    return known;
}

void inode_forget_all(struct inode_cache *cache, unsigned mount)
{
    g_assert(mount < INODE_MOUNTS);
    unsigned bit = 1u << mount;
    if (atomic_fetch_and(&cache->resumed, ~bit) & bit)
        reaper_scan(cache->fs->reaper); /* what was kept for it */
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &cache->shards[i];
        pthread_mutex_lock(&s->lock);
        /* settle may evict, which the iteration does not allow. */
        GList *all = g_hash_table_get_values(s->inodes);
        GArray *orphans = g_array_new(FALSE, FALSE, sizeof(uint64_t));
        GPtrArray *known = g_ptr_array_new();
        for (GList *l = all; l; l = l->next)
            if (((struct inode *)l->data)->nlookup[mount])
                g_ptr_array_add(known, l->data);
        g_list_free(all);
        for (guint k = 0; k < known->len; k++) {
            struct inode *inode = known->pdata[k];
            uint64_t ino = inode->ino;
            inode->nlookup[mount] = 0;
            if (settle(s, inode))
                g_array_append_val(orphans, ino);
        }
        pthread_mutex_unlock(&s->lock);
        for (guint k = 0; k < orphans->len; k++)
            reaper_queue(cache->fs->reaper, g_array_index(orphans, uint64_t, k));
        g_ptr_array_free(known, TRUE);
        g_array_free(orphans, TRUE);
    }
}

static void mark_changed(struct inode *inode, unsigned journal_mask)
{
    uint64_t commit = txn_next(inode->fs->txn);
    if (atomic_load(&inode->changed_in) != commit)
        atomic_store(&inode->changed_in, commit);
    journal_attr(inode, journal_mask);
    inode_mark_bytes(inode);
}

void inode_mark_dirty(struct inode *inode)
{
    mark_changed(inode, JOURNAL_OWN | JOURNAL_CONTENT);
}

void inode_mark_names(struct inode *inode)
{
    mark_changed(inode, JOURNAL_OWN | JOURNAL_NAMES);
}

void inode_mark_attr(struct inode *inode)
{
    mark_changed(inode, JOURNAL_OWN);
}

void inode_mark_times(struct inode *inode)
{
    journal_attr(inode, JOURNAL_OWN);
    inode_mark_bytes(inode);
}

void inode_mark_bytes(struct inode *inode)
{
    /* Inside the gate it can only become true. */
    if (atomic_load(&inode->dirty))
        return;
    g_assert(!inode->fs->config.read_only);
    struct shard *s = shard_of(inode->fs->inodes, inode->ino);
    pthread_mutex_lock(&s->lock);
    bool was = atomic_exchange(&inode->dirty, true);
    if (!was)
        g_queue_push_tail_link(&s->dirty, &inode->dirty_link);
    pthread_mutex_unlock(&s->lock);
    if (!was)
        txn_note_dirty(inode->fs->txn, DIRTY_BYTES);
}

struct inode *inode_new(struct inode_cache *cache, uint32_t mode, uint32_t uid, uint32_t gid,
                        uint64_t rdev)
{
    struct inode *inode = inode_alloc(cache, atomic_fetch_add(&cache->next_ino, 1));
    struct inode_attr *attr = &inode->attr;
    attr->mode = mode;
    attr->uid = uid;
    attr->gid = gid;
    attr->nlink = S_ISDIR(mode) ? 2 : 1;
    attr->rdev = rdev;
    inode_touch_mtime(inode);
    attr->atime = attr->btime = attr->mtime;
    struct shard *s = shard_of(cache, inode->ino);
    pthread_mutex_lock(&s->lock);
    g_hash_table_insert(s->inodes, GSIZE_TO_POINTER(inode->ino), inode);
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&cache->fs->inode_count, 1);
    mark_changed(inode, JOURNAL_NEW);
    return inode;
}

int inode_get_or_make(struct inode_cache *cache, uint64_t ino, struct inode **out)
{
    int error = inode_get(cache, ino, out);
    if (error != -ENOENT)
        return error;
    struct inode *inode = *out = inode_alloc(cache, ino);
    struct shard *s = shard_of(cache, ino);
    pthread_mutex_lock(&s->lock);
    g_hash_table_insert(s->inodes, GSIZE_TO_POINTER(inode->ino), inode);
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&cache->fs->inode_count, 1);
    inode_mark_dirty(inode);
    return 0;
}

void inode_cache_flip(struct inode_cache *cache)
{
    struct wbuf record = {0};
    uint8_t key[KEY_MAX];
    int64_t written = 0;
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &cache->shards[i];
        GList *link;
        pthread_mutex_lock(&s->lock);
        while ((link = g_queue_pop_head_link(&s->dirty))) {
            /* The gate is closed: nobody changes attributes (invariant 3). */
            struct inode *inode = link->data;
            wbuf_reset(&record);
            inode_encode(&inode->attr, &record);
            metadb_put(cache->fs->db, key, key_u64(key, KEY_INODE, inode->ino), record.data,
                       record.len);
            atomic_store(&inode->dirty, false);
            written++;
            settle(s, inode); /* an orphan is in the reaper's queue already */
        }
        pthread_mutex_unlock(&s->lock);
    }
    wbuf_free(&record);
    txn_note_dirty(cache->fs->txn, -written * DIRTY_BYTES);
}

uint64_t inode_cache_next_ino(const struct inode_cache *cache)
{
    return atomic_load(&cache->next_ino);
}

uint64_t inode_cache_count(struct inode_cache *cache)
{
    uint64_t count = 0;
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *s = &cache->shards[i];
        pthread_mutex_lock(&s->lock);
        count += g_hash_table_size(s->inodes);
        pthread_mutex_unlock(&s->lock);
    }
    return count;
}

int inode_claim_orphan(struct inode_cache *cache, uint64_t ino, struct inode **out)
{
    struct shard *s = shard_of(cache, ino);
    int error = 0;
    *out = NULL;
    pthread_mutex_lock(&s->lock);
    struct inode *inode = g_hash_table_lookup(s->inodes, GSIZE_TO_POINTER(ino));
    if (!inode) {
        error = load(cache, s, ino, &inode);
        if (!error)
            atomic_store(&inode->refs, 0);
    }
    if (!error) {
        /* refs leaves 0 only under this lock; at 0 nlink cannot change. A user
         * that there is tells the reaper when he is through (inode_put), so
         * no reference may be taken here before it is known that there is
         * none: his put would not see the last one go. */
        if (atomic_load(&inode->refs) || looked_up(inode) || inode->reaping || inode->attr.nlink ||
            is_kept(cache, s, inode)) {
            error = -EBUSY;
            settle(s, inode);
        } else {
            leave_lru(s, inode);
            inode->reaping = true;
            atomic_store(&inode->refs, 1);
            *out = inode;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return error;
}

void inode_unclaim(struct inode *inode)
{
    struct shard *s = shard_of(inode->fs->inodes, inode->ino);
    pthread_mutex_lock(&s->lock);
    inode->reaping = false;
    atomic_fetch_sub(&inode->refs, 1);
    settle(s, inode);
    pthread_mutex_unlock(&s->lock);
}

void inode_delete_claimed(struct inode *inode)
{
    struct fs *fs = inode->fs;
    struct shard *s = shard_of(fs->inodes, inode->ino);
    uint8_t key[KEY_MAX];
    journal_remove(inode);
    metadb_delete(fs->db, key, key_u64(key, KEY_INODE, inode->ino));
    metadb_delete(fs->db, key, key_u64(key, KEY_ORPHAN, inode->ino));
    metadb_delete(fs->db, key, key_u64(key, KEY_UNSEALED, inode->ino));
    atomic_fetch_sub(&fs->inode_count, 1);
    pthread_mutex_lock(&s->lock);
    g_assert(inode->reaping && atomic_load(&inode->refs) == 1);
    bool dirty = atomic_load(&inode->dirty);
    if (dirty)
        g_queue_unlink(&s->dirty, &inode->dirty_link);
    g_hash_table_remove(s->inodes, GSIZE_TO_POINTER(inode->ino));
    g_hash_table_remove(s->forgotten, GSIZE_TO_POINTER(inode->ino));
    pthread_mutex_unlock(&s->lock);
    if (dirty)
        txn_note_dirty(fs->txn, -(int64_t)DIRTY_BYTES);
    inode_free(inode);
}
