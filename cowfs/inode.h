// SPDX-License-Identifier: Apache-2.0
/*
 * inode.h - inodes: attributes, the map of regular files, the cache of them.
 *
 * An inode number is durable, never used twice, and is the FUSE node id; the
 * root directory is 1. File handles carry no state: a handle is the inode.
 *
 * Locks of an inode, in this order (and see fs.h for the whole order):
 *   map_lock   (rwlock) the content: map, size. Shared by readers and by
 *              writers that overwrite in place, exclusive for whoever changes
 *              the map or the size, and for one who takes a clone (so that the
 *              clone is one point in time). Several: ascending by number.
 *   [the transaction gate]
 *   attr_lock  (mutex, leaf) all fields of struct inode_attr but the map and
 *              the home. One who sets the size holds map_lock exclusively AND
 *              attr_lock; map and home are changed under map_lock exclusively,
 *              inside the gate.
 *
 * Invariants:
 *  1. refs counts pointers in the daemon; nlookup counts what the kernel
 *     knows, for each mount (lookup count of fuse_lowlevel.h). An inode stays
 *     cached while any of them is > 0 or it is changed and not flipped.
 *  2. nlink == 0 (a directory too: removed) and refs == all nlookup == 0: its
 *     content is released by the reaper (reap.h); the record KEY_ORPHAN stands
 *     from the unlink on, in the same commit, so that a crash loses nothing.
 *     Once claimed by the reaper (`reaping`) it cannot be referenced again.
 *  3. Attributes change only inside the transaction gate, followed by
 *     inode_mark_dirty. nlink, parent, and size_bytes of directories change
 *     only with fs->ns_lock held exclusively besides: who holds ns_lock in any
 *     way may read them without attr_lock.
 *  4. An inode is in its shard's LRU exactly if it is not dirty, not reaping,
 *     and refs == all nlookup == 0.
 *
 * map_lock prefers writers (a stream of readers must not starve one): nobody
 * takes it shared twice.
 */
#ifndef COWFS_INODE_H
#define COWFS_INODE_H

#include "cowfs/blockmap.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>

enum { ROOT_INO = 1 };

/* So many mounts may show one store at the same time, each with lookup counts
 * of its own: the kernel forgets for each mount alone, and when one of them ends
 * the counts of the other go on. */
enum { INODE_MOUNTS = 2 };

struct inode_attr {
    uint32_t mode; /* type and permissions */
    uint32_t uid, gid;
    uint32_t nlink;
    uint64_t rdev;
    uint64_t size_bytes; /* regular: content; symlink: length of target; directory: entries */
    struct timespec atime, mtime, ctime, btime;
    uint64_t parent;     /* directories: the inode of "..", else 0 */
    struct map map;      /* regular files */
    uint32_t home;       /* regular files: segment with chunk i in slot i (home.h), 0: none */
    bool home_filling;   /* this inode alone fills holes from its home */
    bool packing;        /* has a home that not all of it has been moved to yet */
    char *target;        /* symlinks, owned */
    bool has_capability; /* has a security.capability xattr, removed by writing */
    bool has_xattrs;     /* may have xattrs: if not, none is looked for */
    bool linkable;       /* O_TMPFILE that has not got a name yet: link(2) may give it one */
};

struct inode {
    uint64_t ino;
    struct fs *fs;
    pthread_rwlock_t map_lock;
    pthread_mutex_t attr_lock;
    struct inode_attr attr;
    atomic_int_fast64_t refs;
    uint64_t nlookup[INODE_MOUNTS]; /* under the cache's lock */
    atomic_bool dirty; /* in the list of changed inodes; set under the cache's lock inside
                              the gate, cleared at the flip */
    atomic_uint_fast64_t changed_in; /* the commit of the last change that fdatasync(2) covers */
    bool reaping;                    /* claimed by the reaper; cache's lock */
    atomic_bool unsealed;            /* has been written since the sealer was through with it */
    atomic_int_fast64_t written_ms;  /* CLOCK_MONOTONIC, last write (for the sealer) */
    atomic_int_fast64_t
        seal_wait_ms; /* how long it has to rest, if longer than others (sealer.h) */
    GList lru_link;   /* inode.c's own: in the shard's LRU while evictable */
    GList dirty_link;
    bool in_lru;
    atomic_uint_fast64_t made_in; /* the directory of O_TMPFILE, in this daemon; else 0 */
    uint64_t packed_chunks;       /* while packing: all before lies in the home; map_lock */
};

struct inode_cache;

struct inode_cache *inode_cache_new(struct fs *fs, uint64_t next_ino);
void inode_cache_free(struct inode_cache *cache);

/* A new inode of that mode, nlink 1 (directories 2), all times now, referenced.
 * Inside the gate. Its record is written at the flip. */
struct inode *inode_new(struct inode_cache *cache, uint32_t mode, uint32_t uid, uint32_t gid,
                        uint64_t rdev);
/* For replay, before anybody else uses the store: as inode_get, but one that is missing is
 * made, with no attributes at all, which the caller then sets. */
int inode_get_or_make(struct inode_cache *cache, uint64_t ino, struct inode **out);
/* References the inode. -ENOENT if there is none or it is being reaped
 * (-ESTALE's business is the caller's). -EUCLEAN if its record is damaged.
 * May be called inside the gate and under ns_lock. */
int inode_get(struct inode_cache *cache, uint64_t ino, struct inode **out);
struct inode *inode_ref(struct inode *inode);
void inode_put(struct inode *inode); /* NULL is allowed. May hand it to the reaper. */

/* Kernel lookup counts of a mount (0 ... INODE_MOUNTS - 1). After a restart under a mount
 * (fs_config.resumed) the kernel's counts are higher than ours by an unknown number: an inode
 * of earlier times counts as known until a _forget brings our count to 0 (the kernel forgets
 * all at once). If it has no links then it goes to the reaper; before, it does not. What the
 * kernel never knew (clone --replace may unlink such), or what it told the last process too
 * late, is kept until the mount ends. */
void inode_lookup_inc(struct inode *inode, unsigned mount);
/* True if that mount's kernel does not know the inode any more. */
bool inode_forget(struct inode_cache *cache, uint64_t ino, unsigned mount, uint64_t nlookup);
void inode_forget_all(struct inode_cache *cache, unsigned mount); /* at its unmount */
/* Whether that mount's kernel knows the inode just now. */
bool inode_is_known(struct inode_cache *cache, uint64_t ino, unsigned mount);

/* Inside the gate, after a change, by whose locks it lasts (journal_internal.h):
 * content and all of one's own with map_lock exclusively */
void inode_mark_dirty(struct inode *inode);
/* nlink, parent, entries, under ns_lock exclusively (and what needs attr_lock alone) */
void inode_mark_names(struct inode *inode);
/* what needs attr_lock alone */
void inode_mark_attr(struct inode *inode);
/* the same when only times have changed, which fdatasync(2) leaves out */
void inode_mark_times(struct inode *inode);
/* and when nothing has, but the bytes: the next commit is to have them */
void inode_mark_bytes(struct inode *inode);
/* ctime (and mtime) = now; attr_lock held, inside the gate. */
void inode_touch_ctime(struct inode *inode);
void inode_touch_mtime(struct inode *inode);

/* Type and permissions; the latter may change at any time. */
static inline uint32_t inode_mode(struct inode *inode)
{
    pthread_mutex_lock(&inode->attr_lock);
    uint32_t mode = inode->attr.mode;
    pthread_mutex_unlock(&inode->attr_lock);
    return mode;
}

/* For one who does not hold ns_lock. */
static inline uint32_t inode_nlink(struct inode *inode)
{
    pthread_mutex_lock(&inode->attr_lock);
    uint32_t nlink = inode->attr.nlink;
    pthread_mutex_unlock(&inode->attr_lock);
    return nlink;
}

/* A consistent copy of what stat(2) shows. */
void inode_stat(struct inode *inode, struct stat *st);

/* For the transaction: writes changed inodes to the metadb (exclusive gate). */
void inode_cache_flip(struct inode_cache *cache);
uint64_t inode_cache_next_ino(const struct inode_cache *cache);
uint64_t inode_cache_count(struct inode_cache *cache);

/* Sets nlink 0's consequences inside the gate: KEY_ORPHAN. clear: a nameless
 * inode (linkable) got a name. */
void inode_mark_orphan(struct inode *inode);
void inode_clear_orphan(struct inode *inode);

/*
 * For the reaper. claim: the inode with `reaping` set and one reference, if
 * nobody uses it and it has no links; -EBUSY if it is in use or has links,
 * -ENOENT if there is none. Then either
 *   delete_claimed  inside the gate, when its content is gone: drops records
 *                   and inode, lowers fs->inode_count; or
 *   unclaim         an error came in between; the orphan record stands.
 */
int inode_claim_orphan(struct inode_cache *cache, uint64_t ino, struct inode **out);
void inode_delete_claimed(struct inode *inode);
void inode_unclaim(struct inode *inode);

/* The codec (inode_codec.c), for fsck and unit tests too. decode: -EUCLEAN if
 * damaged; the target is allocated (g_free). */
void inode_encode(const struct inode_attr *attr, struct wbuf *out);
int inode_decode(const void *record, size_t len, struct inode_attr *out);

#endif
