// SPDX-License-Identifier: Apache-2.0
/*
 * fs.c - opening and closing a store.
 *
 * Layers are opened from the bottom upwards and closed in the opposite order.
 * The states of a store, as the flag `clean` of its meta record tells them:
 *
 *   absent --fs_open, create--> unfinished --first commit--> in use (clean 0)
 *   closed (clean 1) --fs_open--> in use --fs_close--> closed
 *   in use --crash--> unclean: clean 0, but nobody holds the lock
 *
 * "In use" is durable before fs_open returns: bytes in segments that no commit
 * knows of may exist only in a store that is marked so, for only such a store
 * is searched for them at the next opening (segments_reclaim).
 *
 * A store is unfinished if it has a superblock but neither a database nor any
 * segment: the machine went down while it was made. It is made anew.
 */
#include "cowfs/fs.h"

#include "cowfs/damage.h"
#include "cowfs/journal_internal.h"
#include "cowfs/meta.h"
#include "cowfs/reap.h"
#include "cowfs/sealer.h"
#include "cowfs/slots.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    COMMIT_INTERVAL_MS = 5000,
    FREE_DELAY_MS = 200,
    SEAL_DELAY_MS = 30000,
    REAP_AT_CLOSE_MS = 5000,
    /* Numbers skipped after an unclean end: the kernel of a mount that lives
     * on may know inodes that the last commit did not. */
    INO_GAP = 1 << 20,
};
static const uint64_t cache_bytes_default = UINT64_C(64) << 20;
static const uint64_t dirty_limit_bytes = UINT64_C(32) << 20;

uint64_t fs_chunks_live(struct fs *fs)
{
    struct counts_stats stats;
    counts_stats(fs->chunk_counts, &stats);
    return fs->base_live + stats.live; /* a delta, which may be "negative" */
}

uint64_t fs_merges(struct fs *fs)
{
    struct counts_stats stats;
    counts_stats(fs->chunk_counts, &stats);
    return fs->base_merges + stats.merges;
}

/* For the transaction, after nodes and inodes. */
static void meta_flip(void *arg)
{
    struct fs *fs = arg;
    struct meta meta = {
        .clean = fs->closing,
        .next_ino = inode_cache_next_ino(fs->inodes),
        .next_node_id = node_cache_next_id(fs->nodes),
        .inode_count = atomic_load(&fs->inode_count),
        .chunks_live = fs_chunks_live(fs),
        .merges = fs_merges(fs),
        .domains = atomic_load(&fs->has_domains),
        .has_public = atomic_load(&fs->has_public),
        .journal_seq = journal_flip(fs->journal, fs->txn),
    };
    /* A store that was closed in order has nothing to be done again. */
    meta.journal = fs->closing ? 0 : journal_id(fs->journal);
    struct wbuf record = {0};
    meta_encode(&meta, &record);
    if (record.len == fs->meta_written.len &&
        memcmp(record.data, fs->meta_written.data, record.len) == 0) {
        wbuf_free(&record);
        return;
    }
    uint8_t key = KEY_META;
    metadb_put(fs->db, &key, 1, record.data, record.len);
    wbuf_free(&fs->meta_written);
    fs->meta_written = record;
}

static void meta_durable(void *arg)
{
    struct fs *fs = arg;
    journal_durable(fs->journal);
}

static void nodes_flip(void *arg)
{
    node_cache_flip(arg);
}

static void inodes_flip(void *arg)
{
    inode_cache_flip(arg);
}

/* Reads (or first makes) the superblock, takes the lock. */
static int open_superblock(struct fs *fs, const char *path, struct errmsg *err)
{
    bool absent = false;
    const struct fs_config *config = &fs->config;
    if (config->create && !config->read_only) {
        int error = superblock_store_is_absent(path, &absent, err);
        if (error)
            return error;
    }
    if (absent) {
        uint32_t chunk_bytes = config->chunk_bytes ? config->chunk_bytes : CHUNK_BYTES_DEFAULT;
        int error = superblock_create(path, chunk_bytes, err);
        if (error && error != -EEXIST) /* somebody was faster: see what the lock says */
            return error;
    }
    int error = superblock_read(path, config->read_only, &fs->sb, err);
    if (error)
        return error;
    fs->chunk_bytes = fs->sb.chunk_bytes;
    fs->store_path = realpath(path, NULL);
    if (!fs->store_path)
        return errmsg_set(err, -errno, "%s: %s", path, g_strerror(errno));
    int fd =
        config->lock_fd ? store_lock_shared(path, config->lock_fd, err) : store_lock(path, err);
    if (fd < 0)
        return fd;
    fs->lock_fd = fd;
    return 0;
}

/* Was anything ever stored? */
static int has_segments(struct fs *fs, bool *has)
{
    g_autofree char *path = g_build_filename(fs->store_path, "segments", NULL);
    DIR *dir = opendir(path);
    *has = false;
    if (!dir)
        return errno == ENOENT ? 0 : -errno;
    const struct dirent *d;
    while (!*has && (d = readdir(dir)))
        *has = d->d_name[0] != '.';
    closedir(dir);
    return 0;
}

/* -EUCLEAN if the store cannot be an unfinished one. */
static int check_unfinished(struct fs *fs, const char *what, struct errmsg *err)
{
    bool has = false;
    int error = has_segments(fs, &has);
    if (error)
        return errmsg_set(err, error, "%s/segments: %s", fs->store_path, g_strerror(-error));
    if (has)
        return errmsg_set(err, -EUCLEAN, "%s: the store has data, but %s", fs->store_path, what);
    if (fs->config.read_only)
        return errmsg_set(err, -EROFS, "%s: the store was never finished: open it for writing",
                          fs->store_path);
    return 0;
}

static int open_metadb(struct fs *fs, struct errmsg *err)
{
    g_autofree char *path = g_build_filename(fs->store_path, FS_METADB_DIR, NULL);
    struct metadb_options options = {
        .read_only = fs->config.read_only,
        .block_cache_bytes = fs->config.cache_bytes / 8,
    };
    int error = metadb_open(path, &options, &fs->db, err);
    if (error != -ENOENT)
        return error;
    errmsg_set(err, 0, "%s", "");
    error = check_unfinished(fs, "its database (" FS_METADB_DIR ") is missing", err);
    if (error)
        return error;
    options.create = true;
    return metadb_open(path, &options, &fs->db, err);
}

/* *fresh: there is none yet. */
static int read_meta(struct fs *fs, struct meta *meta, bool *fresh, struct errmsg *err)
{
    uint8_t key = KEY_META;
    struct metadb_value value;
    int error = metadb_get(fs->db, &key, 1, &value);
    *fresh = error == -ENOENT;
    if (*fresh) {
        *meta = (struct meta){.clean = true, .next_ino = ROOT_INO, .next_node_id = 1};
        return check_unfinished(fs, "its database has no meta record", err);
    }
    if (!error)
        error = meta_decode(value.data, value.len, meta);
    metadb_value_free(&value);
    if (error)
        return errmsg_set(err, error, "%s: the meta record cannot be read: %s", fs->store_path,
                          g_strerror(-error));
    return 0;
}

/* What the file system below keeps for metadata, so that a full one can be
 * emptied again: deleting needs a commit. */
static uint64_t reserve_bytes(const char *path)
{
    struct statvfs v;
    const uint64_t min = UINT64_C(4) << 20, max = UINT64_C(64) << 20;
    if (statvfs(path, &v))
        return min;
    return CLAMP((uint64_t)v.f_blocks * v.f_frsize / 64, min, max);
}

/* How many numbers from `first` on, the beginning of a group of counts, have no
 * record of counts; at most n. */
static int unrecorded_run(struct fs *fs, chunk_t first, uint32_t n, uint32_t *run)
{
    uint8_t lower[KEY_MAX], upper[KEY_MAX];
    size_t lower_len = key_u64(lower, KEY_CHUNK_COUNTS, first / COUNT_GROUP);
    size_t upper_len = key_u64(upper, KEY_CHUNK_COUNTS, div_round_up_u64(first + n, COUNT_GROUP));
    struct metadb_iter *it = metadb_iter_new(fs->db, lower, lower_len, upper, upper_len);
    *run = n;
    if (metadb_iter_valid(it)) {
        size_t len;
        const uint8_t *key = metadb_iter_key(it, &len);
        if (len == lower_len)
            *run = (uint32_t)(max_u64(get_be64(key + 1) * COUNT_GROUP, first) - first);
    }
    int error = metadb_iter_status(it);
    metadb_iter_free(it);
    return error;
}

/* Before anything is changed: all counts are in their records. */
static int slots_owned(void *arg, chunk_t first, uint32_t limit, bool *owned, uint32_t *alike)
{
    struct fs *fs = arg;
    struct count_info info;
    int error = counts_alike_run(fs->chunk_counts, first, limit, &info, alike);
    *owned = !error && info.count > 0;
    /* Home segments of sparse files have millions of groups without a record. */
    if (!error && !*owned && *alike < limit && (first + *alike) % COUNT_GROUP == 0) {
        uint32_t more;
        error = unrecorded_run(fs, first + *alike, limit - *alike, &more);
        *alike += error ? 0 : more;
    }
    return error;
}

static int reclaim(struct fs *fs, struct errmsg *err)
{
    int error = segments_reclaim(fs->segments, fs->opened_unclean, slots_owned, fs);
    return error ? errmsg_set(err, error, "%s: cannot release what the last run left over: %s",
                              fs->store_path, g_strerror(-error))
                 : 0;
}

/* What the last process left in the journal. */
struct left_over {
    struct journal *journal;
    bool any;
    GArray *segments; /* struct segment_known */
    uint64_t next_ino;
};

static int open_journal(struct fs *fs, const struct meta *meta, struct left_over *left,
                        struct errmsg *err)
{
    struct journal_state state = {
        .uuid = fs->sb.uuid,
        .clean = meta->clean,
        .id = meta->journal,
        .seq = meta->journal_seq,
    };
    if (fs->config.journal_fd <= 0 || fs->config.read_only)
        return 0;
    int error = journal_open(fs->config.journal_fd, &state, &left->journal, err);
    if (!error) {
        left->any = !journal_is_empty(left->journal);
        error = replay_scan(left->journal, left->segments, &left->next_ino, err);
    }
    return error;
}

static int open_chunks(struct fs *fs, const struct left_over *left, struct errmsg *err)
{
    const struct fs_config *config = &fs->config;
    int error = segments_open_known(
        fs->store_path, fs->chunk_bytes, reserve_bytes(fs->store_path), config->read_only, fs->db,
        (const struct segment_known *)(const void *)left->segments->data, left->segments->len,
        &fs->segments, err);
    if (error)
        return error;
    segments_use_views(fs->segments, config->view_bytes);
    fs->chunk_counts = counts_new(fs->db, KEY_CHUNK_COUNTS, config->cache_bytes / 4);
    fs->node_counts = counts_new(fs->db, KEY_NODE_COUNTS, config->cache_bytes / 8);
    if (config->read_only)
        return 0;
    /* Cheap after a clean end: it looks at flagged segments only. Where a journal is to be done
     * again, owners are known afterwards only. */
    return left->any ? 0 : reclaim(fs, err);
}

static void open_caches(struct fs *fs, const struct meta *meta, uint64_t next_ino)
{
    const struct fs_config *config = &fs->config;
    struct txn_config txn_config = {
        .commit_interval_ms = config->commit_interval_ms,
        .free_delay_ms = FREE_DELAY_MS,
        .dirty_limit_bytes = dirty_limit_bytes,
    };
    fs->txn = txn_new(fs->db, fs->segments, fs->chunk_counts, fs->node_counts, &txn_config);
    struct node_env env = {
        .db = fs->db,
        .node_counts = fs->node_counts,
        .chunk_counts = fs->chunk_counts,
        .segments = fs->segments,
        .txn = fs->txn,
    };
    fs->nodes = node_cache_new(&env, meta->next_node_id, config->cache_bytes / 2);
    fs->inodes = inode_cache_new(fs, next_ino + (fs->opened_unclean ? INO_GAP : 0));
    fs->streams = slot_streams_new(fs->segments);
    txn_add_participant(fs->txn, &(struct txn_participant){.arg = fs->nodes, .flip = nodes_flip});
    txn_add_participant(fs->txn, &(struct txn_participant){.arg = fs->inodes, .flip = inodes_flip});
    txn_add_participant(
        fs->txn, &(struct txn_participant){.arg = fs, .flip = meta_flip, .durable = meta_durable});
    if (fs->config.journal_fd > 0) {
        txn_set_publish(fs->txn, journal_publish, fs);
        txn_set_data_failed(fs->txn, journal_data_failed, fs);
    }
}

/* The journal was done again, and that is durable. What it mapped has owners now. */
static int settle_replayed(struct fs *fs, struct errmsg *err)
{
    txn_wait_reclaim(fs->txn);
    segments_replayed(fs->segments);
    return reclaim(fs, err);
}

/* What is in the store's directory was made by an opening that may have failed,
 * or died, before it could sync the names; and nobody else does. */
static int sync_names(const struct fs *fs, struct errmsg *err)
{
    int fd = open(fs->store_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    if (error)
        return errmsg_set(err, error, "cannot sync the directory '%s': %s", fs->store_path,
                          g_strerror(-error));
    return 0;
}

/* Marks the store as in use; makes the root directory of a new one. */
static int begin_use(struct fs *fs, bool fresh, bool replayed, struct errmsg *err)
{
    int error = sync_names(fs, err);
    txn_start(fs->txn);
    if (error)
        return error;
    if (fresh) {
        txn_enter(fs->txn);
        struct inode *root = inode_new(fs->inodes, S_IFDIR | 0755, geteuid(), getegid(), 0);
        g_assert(root->ino == ROOT_INO);
        pthread_mutex_lock(&root->attr_lock);
        root->attr.parent = ROOT_INO;
        pthread_mutex_unlock(&root->attr_lock);
        txn_exit(fs->txn);
        inode_put(root);
    }
    error = txn_commit(fs->txn);
    if (journal_has_data_failed(fs->journal)) {
        /* Open all the same: it can be read, and unmounted. */
        g_critical(
            "%s: an earlier sync of data failed: nothing can be changed until it is unmounted"
            " and mounted again",
            fs->store_path);
        return 0;
    }
    if (error == -ENOSPC && !fresh) {
        /* Open all the same: somebody has to delete. Until a commit gets
         * through, writing finds no space either. */
        g_warning("%s: no space to commit; only deleting will work", fs->store_path);
        return 0;
    }
    if (error)
        return errmsg_set(err, error, "%s: the first commit failed: %s", fs->store_path,
                          g_strerror(-error));
    if (replayed)
        error = settle_replayed(fs, err);
    /* Bytes that the last process wrote in place are in the page cache: whoever asks for an
     * fsync wants these, too. */
    if (fs->opened_unclean && fs->journal)
        segments_mark_all_unsynced(fs->segments);
    return error;
}

/* Before the reaper looks: nobody else knows them. */
static void hold_on(struct fs *fs)
{
    const GArray *inos = fs->config.held;
    fs->held = g_ptr_array_new_with_free_func((GDestroyNotify)inode_put);
    for (guint i = 0; inos && i < inos->len; i++) {
        struct inode *inode;
        if (inode_get(fs->inodes, g_array_index(inos, uint64_t, i), &inode) == 0)
            g_ptr_array_add(fs->held, inode);
    }
    fs->config.held = NULL;
}

static int start_workers(struct fs *fs, struct errmsg *err)
{
    hold_on(fs);
    int error = reaper_start(fs, &fs->reaper);
    if (error)
        return errmsg_set(err, error, "cannot start the reaper: %s", g_strerror(-error));
    error = sealer_start(fs, &fs->sealer);
    if (error) {
        reaper_stop(fs->reaper, 0);
        fs->reaper = NULL;
        return errmsg_set(err, error, "cannot start the sealer: %s", g_strerror(-error));
    }
    return 0;
}

static void fs_free(struct fs *fs)
{
    slot_streams_free(fs->streams);
    if (fs->held)
        g_ptr_array_free(fs->held, TRUE);
    if (fs->txn)
        txn_stop(fs->txn);
    inode_cache_free(fs->inodes);
    if (fs->nodes)
        node_cache_free(fs->nodes);
    txn_free(fs->txn);
    damage_free(fs->damage);
    counts_free(fs->chunk_counts);
    counts_free(fs->node_counts);
    if (fs->segments)
        segments_close(fs->segments);
    metadb_close(fs->db);
    journal_close(fs->journal);
    if (fs->lock_fd >= 0)
        close(fs->lock_fd);
    pthread_rwlock_destroy(&fs->ns_lock);
    pthread_mutex_destroy(&fs->index_lock);
    wbuf_free(&fs->meta_written);
    free(fs->store_path); /* realpath's */
    g_free(fs);
}

static struct fs *fs_new(const struct fs_config *config)
{
    struct fs *fs = g_new0(struct fs, 1);
    fs->config = *config;
    if (!fs->config.cache_bytes)
        fs->config.cache_bytes = cache_bytes_default;
    if (!fs->config.commit_interval_ms)
        fs->config.commit_interval_ms = COMMIT_INTERVAL_MS;
    fs->lock_fd = -1;
    if (!fs->config.seal_delay_ms)
        fs->config.seal_delay_ms = SEAL_DELAY_MS;
    fs->hash = content_hash_xxh3;
    fs->name_hash_mask = UINT64_MAX;
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&fs->ns_lock, &attr);
    pthread_mutex_init(&fs->index_lock, NULL);
    pthread_rwlockattr_destroy(&attr);
    return fs;
}

/* From what the last commit says to a store that could be used. */
static int open_layers(struct fs *fs, const struct meta *meta, bool fresh, struct left_over *left,
                       struct errmsg *err)
{
    left->next_ino = meta->next_ino;
    int error = open_journal(fs, meta, left, err);
    if (!error)
        error = open_chunks(fs, left, err);
    if (error)
        return error;
    open_caches(fs, meta, left->next_ino);
    error = damage_load(fs, &fs->damage);
    if (error)
        return errmsg_set(err, error, "%s: the list of damaged chunks cannot be read: %s",
                          fs->store_path, g_strerror(-error));
    if (fs->config.read_only)
        return 0;
    if (left->any)
        error = replay_run(fs, left->journal, err);
    if (error)
        return error;
    fs->journal = g_steal_pointer(&left->journal); /* from here on things are recorded */
    if (journal_has_data_failed(fs->journal))
        txn_fail_data(fs->txn);
    error = begin_use(fs, fresh, left->any, err);
    return error ? error : start_workers(fs, err);
}

int fs_open(const char *store_path, const struct fs_config *config, struct fs **out,
            struct errmsg *err)
{
    struct fs *fs = fs_new(config);
    struct meta meta = {0};
    bool fresh = false;
    *out = NULL;
    int error = open_superblock(fs, store_path, err);
    if (!error)
        error = open_metadb(fs, err);
    if (!error)
        error = read_meta(fs, &meta, &fresh, err);
    if (!error) {
        struct left_over left = {.segments =
                                     g_array_new(FALSE, FALSE, sizeof(struct segment_known))};
        fs->opened_unclean = !meta.clean;
        fs->base_live = meta.chunks_live;
        fs->base_merges = meta.merges;
        atomic_init(&fs->inode_count, meta.inode_count);
        atomic_init(&fs->has_domains, meta.domains);
        atomic_init(&fs->has_public, meta.has_public);
        if (fs->opened_unclean)
            g_message("%s: not closed in order; going on from the last commit", fs->store_path);
        error = open_layers(fs, &meta, fresh, &left, err);
        g_array_free(left.segments, TRUE);
        journal_close(left.journal);
    }
    if (error)
        fs_free(fs);
    else
        *out = fs;
    return error;
}

/* The last commits: all, then the space that freed, then the mark. */
static int end_use(struct fs *fs)
{
    int error = txn_commit(fs->txn);
    if (error)
        return error; /* stays marked as in use: the next opening has a look */
    txn_wait_reclaim(fs->txn);
    txn_enter(fs->txn);
    fs->closing = true;
    txn_exit(fs->txn);
    return txn_commit(fs->txn);
}

int fs_close(struct fs *fs)
{
    int error = 0;
    store_lock_closing(fs->store_path, fs->lock_fd);
    if (!fs->config.read_only) {
        sealer_stop(fs->sealer);
        fs->sealer = NULL;
        g_ptr_array_set_size(fs->held, 0);
        for (unsigned mount = 0; mount < INODE_MOUNTS; mount++)
            inode_forget_all(fs->inodes, mount);
        reaper_stop(fs->reaper, REAP_AT_CLOSE_MS);
        fs->reaper = NULL;
        damage_drop_freed(fs);
        error = end_use(fs);
    }
    fs_free(fs);
    return error;
}

int fs_commit(struct fs *fs)
{
    return fs->config.read_only ? 0 : txn_commit(fs->txn);
}

int fs_sync_file(struct inode *inode, bool data_only)
{
    struct fs *fs = inode->fs;
    if (!data_only || fs->config.read_only)
        return fs_commit(fs);
    return txn_sync_data(fs->txn, atomic_load(&inode->changed_in));
}

int fs_may_change(struct fs *fs)
{
    if (fs->config.read_only)
        return -EROFS;
    int error = txn_error(fs->txn);
    if (error && error != -ENOSPC)
        return error;
    txn_throttle(fs->txn);
    return 0;
}
