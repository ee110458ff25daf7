// SPDX-License-Identifier: Apache-2.0
/*
 * journal_internal.h - what the library itself does with a journal.
 *
 *   journal.c         the memory: areas, publishing, completions
 *   journal_orphans.c since when files have had no links
 *   journal_record.c  the records: gathering, encoding, decoding
 *   replay.c          doing again what is in it
 */
#ifndef COWFS_JOURNAL_INTERNAL_H
#define COWFS_JOURNAL_INTERNAL_H

#include "cowfs/inode.h"
#include "cowfs/journal.h"

struct fs;

/* ---- the memory (journal.c) ---- */

/* What the last durable commit says of journals. */
struct journal_state {
    const uint8_t *uuid; /* of the store, 16 bytes */
    bool clean;          /* it was closed in order */
    uint64_t id, seq;    /* of struct meta */
};

/* Maps the memory, sets it up if it is empty. What no commit has is there for
 * journal_each. -EINVAL if the memory is something else. */
int journal_open(int fd, const struct journal_state *state, struct journal **out,
                 struct errmsg *err);
void journal_close(struct journal *j); /* the memory stays as it is; NULL is allowed */
uint64_t journal_id(const struct journal *j);
/* txn_set_data_failed's: for the processes to come, until the store has been closed. */
void journal_data_failed(void *fs);
bool journal_has_data_failed(const struct journal *j);
/* Calls fn with what was published, in order, a piece of whole records at a time. A non-zero
 * return ends it. */
int journal_each(struct journal *j, int (*fn)(void *arg, const uint8_t *records, size_t bytes),
                 void *arg);
bool journal_is_empty(const struct journal *j); /* nothing for journal_each */

/* Under the closed gate: the number up to which the commit that begins here has all. */
uint64_t journal_flip(struct journal *j, struct txn *txn);
/* That commit is durable. */
void journal_durable(struct journal *j);
/* txn_exit's. */
void journal_publish(void *fs);

/* Of the inode with that number (0: none): since when it has had no links. In the memory; all zero
 * at first. */
struct journal_orphan {
    _Atomic uint64_t ino;
    _Atomic int64_t since_us;
};
enum { JOURNAL_ORPHANS = 4096 };
struct journal_orphan *journal_orphans(const struct journal *j);

/* ---- the records (journal_record.c) ---- */

enum journal_kind {
    JOURNAL_MAP = 1, /* map_set */
    JOURNAL_UNMAP,   /* map_punch */
    JOURNAL_CLONE,   /* dst's map becomes a clone of src's */
    JOURNAL_SHARE,   /* map_share */
    JOURNAL_DROP,    /* the map becomes empty */
    JOURNAL_ATTR,
    JOURNAL_REMOVE, /* the inode is gone, with all it had */
    JOURNAL_PUT,
    JOURNAL_DELETE,
    JOURNAL_HOME,
};

/* Attributes, by who excludes others from them while a transaction lasts. A snapshot has
 * them all; only these are taken from it, for others may be half changed by somebody
 * else, whose transaction may never be published. */
enum {
    JOURNAL_OWN = 1 << 0,     /* attr_lock: owner, mode, times, flags of xattrs; one step */
    JOURNAL_NAMES = 1 << 1,   /* ns_lock: nlink, parent, entries */
    JOURNAL_CONTENT = 1 << 2, /* map_lock: size, home */
    JOURNAL_NEW = 1 << 3,     /* nobody else knows it: all */
};

enum journal_home {
    JOURNAL_HOME_BEGIN = 1,
    JOURNAL_HOME_FREEZE,
    JOURNAL_HOME_LEAVE,
    JOURNAL_HOME_PACK
};

struct journal_record {
    enum journal_kind kind;
    uint64_t ino;     /* CLONE, SHARE: the destination's */
    uint64_t src_ino; /* CLONE, SHARE */
    uint64_t index, src_index, count;
    chunk_t first;
    bool reserved;
    unsigned mask;          /* ATTR */
    struct inode_attr attr; /* ATTR: the target is the receiver's (g_free) */
    const uint8_t *key;     /* PUT, DELETE; in the journal's memory */
    const uint8_t *value;   /* PUT */
    size_t key_len, value_len;
    enum journal_home home;
    uint32_t segment;  /* HOME */
    uint64_t argument; /* HOME: size_bytes of FREEZE, unowned of LEAVE */
};

/* The next one; false at the end, *error is -EUCLEAN if what follows is no record. */
bool journal_decode(struct rbuf *r, struct journal_record *out, int *error);

/* All inside the gate, and under the lock that orders such changes, which is not released
 * before txn_exit. Without a journal nothing happens. */
void journal_map(struct inode *inode, uint64_t index, uint64_t n, chunk_t first, bool reserved);
void journal_unmap(struct inode *inode, uint64_t index, uint64_t n);
void journal_clone(struct inode *src, struct inode *dst);
void journal_share(struct inode *src, uint64_t src_index, struct inode *dst, uint64_t dst_index,
                   uint64_t n);
void journal_drop(struct inode *inode);
void journal_home(struct fs *fs, enum journal_home what, uint32_t segment, uint64_t argument);
void journal_remove(struct inode *inode);
/* Its attributes as they are at txn_exit. */
void journal_attr(struct inode *inode, unsigned mask);
/* metadb_put and metadb_delete, with a record. */
void journal_put(struct fs *fs, const void *key, size_t key_len, const void *value,
                 size_t value_len);
void journal_delete(struct fs *fs, const void *key, size_t key_len);

/* What the calling thread has gathered in this transaction. */
struct gathered_inode {
    struct inode *inode; /* referenced */
    unsigned mask;
};
struct gather {
    struct wbuf records;
    GArray *inodes; /* struct gathered_inode */
    bool completed;
    struct journal_completion completion;
};
/* NULL: nothing. */
struct gather *journal_gathered(void);
/* The calling thread's, made if there is none. */
struct gather *journal_gather(void);
void journal_encode_attr(struct wbuf *out, struct inode *inode, unsigned mask,
                         struct wbuf *scratch);

/* ---- doing it again (replay.c) ---- */

/* What segments_open_known has to know; GArray of struct segment_known. *next_ino: raised
 * above all that occur. */
int replay_scan(struct journal *j, GArray *known, uint64_t *next_ino, struct errmsg *err);
/* On a store that is open, but not in use; one transaction of metadata, not committed. */
int replay_run(struct fs *fs, struct journal *j, struct errmsg *err);

#endif
