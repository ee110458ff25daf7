// SPDX-License-Identifier: Apache-2.0
/*
 * fs.h - one open store as a file system: what all files of cowfs/ share.
 *
 * Order of locks (an arrow means: may be taken while holding the former):
 *
 *   fs->ns_lock -> inode map_lock (ascending ino) -> transaction gate -> index_lock
 *     -> { inode attr_lock, node lock -> counts shard, inode cache lock,
 *          metadb overlay lock, segment locks }
 *
 *   fs->ns_lock   rwlock over all names: directory entries, parents, link
 *                 counts. Shared to look up and list, exclusive to change.
 *                 No data I/O happens under it. It prefers writers, so nobody
 *                 takes it shared twice.
 *
 * Nothing of cowfs/ but fuse_*.c knows FUSE.
 */
#ifndef COWFS_FS_H
#define COWFS_FS_H

#include "chunkstore/content_index.h"
#include "chunkstore/errmsg.h"
#include "chunkstore/superblock.h"
#include "cowfs/inode.h"

struct sealer;
struct reaper;
struct slot_streams;
struct damage;
struct journal;

struct fs_config {
    bool read_only;
    bool create;                 /* make the store if absent */
    uint32_t chunk_bytes;        /* for a new store; 0: default */
    uint64_t cache_bytes;        /* metadata in memory, unchanged part; 0: default 64 MiB */
    unsigned commit_interval_ms; /* 0: default 5000 */
    bool seal_background;
    unsigned seal_delay_ms;   /* a file is sealed when unwritten for so long; 0: 30000 */
    uint64_t seal_rate_bytes; /* per second, 0: unlimited */
    bool verify;              /* check the hash of sealed chunks at each read */
    size_t
        view_bytes; /* transfers of so much by mappings, on tmpfs (segments_use_views); 0: none */
    int lock_fd;    /* the store's lock, taken before by another process; 0: take it. Remains
                    the caller's */
    bool keep_flat; /* sealing in the background leaves flat files flat (flat.h) */
    /* Memory that outlives the process (journal.h); 0 or negative: none. The caller's; it
     * stays open until fs_close. What an earlier process did after the last durable
     * commit is done again by fs_open. */
    int journal_fd;
    /* Mounts, a bit each, that an earlier process served, and the kernel goes on with: inodes
     * without links are kept until it forgets them (inode_forget), even such as this process
     * never told it of. */
    unsigned resumed;
    /* What an earlier process held by file_hold_map and is to be held on: uint64_t inode
     * numbers, or NULL. */
    const GArray *held;
};

struct fs {
    struct superblock sb;
    char *store_path; /* absolute */
    int lock_fd;
    struct fs_config config;
    uint32_t chunk_bytes;
    content_hash_fn hash; /* content_hash_xxh3, but in tests of collisions */
    struct metadb *db;
    struct segments *segments;
    struct counts *chunk_counts;
    struct counts *node_counts;
    struct txn *txn;
    struct node_cache *nodes;
    struct inode_cache *inodes;
    struct slot_streams *streams; /* packed slots for copy on write (slots.h) */
    struct sealer *sealer;
    atomic_uint_fast64_t seal_batches_begun, seal_batches_ended; /* seal.c */
    struct reaper *reaper;
    GPtrArray *held;           /* of fs_config.held what is there: struct inode, referenced */
    struct journal *journal;   /* NULL: none */
    struct damage *damage;     /* chunks that are known to be wrong (damage.h) */
    atomic_bool reads_checked; /* chunks_read has more to do than to read */
    /* Content may be recorded with a domain, and as public (domain.h); never unset. In the
     * KEY_META record. */
    atomic_bool has_domains, has_public;
    atomic_bool orphaned; /* a file has lost its last name; a view looks at that (fuse_notify.c) */
    pthread_mutex_t index_lock; /* who moves content between domains, or cleans the index */
    pthread_rwlock_t ns_lock;
    /* Durable counters, in the KEY_META record (meta.h). */
    atomic_uint_fast64_t inode_count;
    uint64_t base_live, base_merges; /* at the last opening; now: fs_chunks_live, fs_merges */
    bool opened_unclean;
    bool closing;             /* the next commit is the last (changed inside the gate) */
    struct wbuf meta_written; /* the KEY_META record as of the last flip */
    uint64_t name_hash_mask;  /* all ones; tests narrow it so that names collide */
};

/* The database of a store is the directory STORE/metadb. */
#define FS_METADB_DIR "metadb"

/* Opens (or makes) the store; err tells what is wrong. Threads are started:
 * call after any fork. */
int fs_open(const char *store_path, const struct fs_config *config, struct fs **out,
            struct errmsg *err);
/* Commits, stops threads, closes. Returns the last commit's error, if any. */
int fs_close(struct fs *fs);

/* All that was acknowledged so far is durable on return. */
int fs_commit(struct fs *fs);
/* The same for what was written to one file. data_only: as fdatasync(2), which
 * needs no commit if no chunk was mapped since the last one. */
int fs_sync_file(struct inode *inode, bool data_only);

/* Chunks that have an owner, and how many owners came by deduplication. */
uint64_t fs_chunks_live(struct fs *fs);
uint64_t fs_merges(struct fs *fs);

/* -EROFS when mounted read-only, the error of the last commit if that failed
 * (but for -ENOSPC: deleting must go on then), else 0. Every changing
 * operation asks first; it also throttles (txn_throttle), so call it before
 * any lock. */
int fs_may_change(struct fs *fs);

/* The caller of an operation, for permission checks that the kernel does not
 * do for us (ioctls) and for the owner of new inodes. */
struct caller {
    uint32_t uid, gid;
    uint32_t pid;
    uint32_t umask;
    const uint32_t *groups; /* supplementary; may be NULL */
    unsigned group_count;
    bool powerless; /* uid 0 without the rights of the machine's root (caller.h) */
};

#endif
