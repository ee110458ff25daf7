// SPDX-License-Identifier: Apache-2.0
/*
 * fsck.h - checks the structure of a store that is not mounted.
 *
 * Everything is counted again from the records themselves (no cache of the
 * daemon takes part) and compared with what is written down: owners of nodes
 * and chunks, links of inodes, live chunks of segments, the content index, the
 * store's counters. Nothing is changed; a store that was not closed cleanly is
 * checked as of its last commit.
 *
 * Threads: independent calls may run at the same time. Not for one store: the
 * store's lock is held.
 */
#ifndef COWFS_FSCK_H
#define COWFS_FSCK_H

#include "chunkstore/errmsg.h"

#include <stdbool.h>
#include <stdint.h>

/*
 * Kinds of damage. Some are *leaks*: leftovers that cost space or time but can
 * never show a reader wrong bytes (fsck_kind_is_leak); all others are errors.
 * Counts that are too low are the most dangerous ones: what is still in use
 * would be freed, or overwritten in place although it is shared.
 */
enum fsck_kind {
    /* The store as a whole */
    FSCK_SUPERBLOCK,         /* truncated or damaged */
    FSCK_DATABASE,           /* RocksDB's files are damaged */
    FSCK_RECORD_UNDECODABLE, /* a record's value or key cannot be understood */
    FSCK_RECORD_UNKNOWN,     /* a record of no known type */
    FSCK_META_MISSING,       /* the record of the store's counters is missing */
    FSCK_META_NEXT,          /* a number that is in use would be given out again */
    FSCK_META_DOMAINS,       /* what one owner has could be shared with another */
    FSCK_META_COUNTERS,      /* totals of inodes, chunks or merges are wrong (for df) */

    /* Nodes of block maps */
    FSCK_NODE_MISSING,     /* referenced, but there is no record */
    FSCK_NODE_LEVEL,       /* referenced from where another level belongs */
    FSCK_NODE_CYCLE,       /* referenced from below itself */
    FSCK_NODE_UNREACHABLE, /* leak: no map and no node refers to it */
    FSCK_NODE_COUNT_LOW,   /* fewer owners recorded than there are */
    FSCK_NODE_COUNT_HIGH,  /* leak: more owners recorded than there are */

    /* Chunks and segments */
    FSCK_CHUNK_COUNT_LOW,
    FSCK_CHUNK_COUNT_HIGH,     /* leak */
    FSCK_CHUNK_MERGES,         /* leak: more deduplicated owners than owners (for df) */
    FSCK_CHUNK_BEYOND_CURSOR,  /* in slots that were never handed out */
    FSCK_SEGMENT_MISSING,      /* chunks are mapped in a segment that has no record */
    FSCK_SEGMENT_FILE_MISSING, /* a segment with chunks has no file */
    FSCK_SEGMENT_FILE_SHORT,   /* chunks behind the end of the segment file */
    FSCK_SEGMENT_LIVE,         /* the count of live chunks is wrong */
    FSCK_SEGMENT_HOME,         /* leak: kept for a file that does not fill it */
    FSCK_SEGMENT_STRAY_COUNTS, /* leak: counts of chunks in a segment that has no record */
    FSCK_CHUNK_DATA,           /* the bytes do not have the recorded hash (check_data) */
    FSCK_CHUNK_UNREADABLE,     /* reading the bytes failed (check_data) */

    /* Inodes and names */
    FSCK_ROOT,                  /* inode 1 is missing or no directory */
    FSCK_INODE_MODE,            /* no such type of file */
    FSCK_INODE_NLINK,           /* differs from the names that point to it */
    FSCK_INODE_UNREACHABLE,     /* no name and no orphan record */
    FSCK_INODE_SIZE,            /* a directory's count of entries is wrong */
    FSCK_INODE_MAP_BEYOND_SIZE, /* written chunks behind the end of the file */
    FSCK_INODE_HOME,            /* not where it is said to lie flat */
    FSCK_ORPHAN_LINKED,         /* an orphan record of an inode that has names */
    FSCK_ORPHAN_STRAY,          /* leak: an orphan record of a missing inode */
    FSCK_DIRENT_INODE_MISSING,  /* an entry points to a missing inode */
    FSCK_DIRENT_TYPE,           /* an entry and its inode are of different types */
    FSCK_DIRENT_HASH,           /* an entry that a look-up does not find */
    FSCK_DIRENT_NAME,           /* not a name: empty, too long, with '/', ".", ".." */
    FSCK_DIRENT_DUPLICATE,      /* two entries of one name */
    FSCK_DIRENT_STRAY,          /* entries of a missing or removed directory */
    FSCK_DIR_PARENT,            /* ".." is not the directory that has its name */
    FSCK_DIR_TWO_NAMES,         /* a directory with more than one name */
    FSCK_DIR_CYCLE,             /* directories that contain each other */
    FSCK_XATTR_STRAY,           /* leak: an attribute of a missing inode */
    FSCK_XATTR_FLAG,            /* attributes that the inode does not know of */
    FSCK_UNSEALED_STRAY,        /* leak: a sealing record of a missing inode */

    /* Content index */
    FSCK_INDEX_UNSEALED,      /* a content hash of a chunk that may be overwritten */
    FSCK_INDEX_DISAGREES,     /* hash -> chunk and chunk -> hash differ */
    FSCK_INDEX_DEAD_OWNED,    /* recorded as freed, but it has an owner */
    FSCK_INDEX_STRAY,         /* leak: a content hash of a chunk that nobody owns */
    FSCK_SEALED_WITHOUT_HASH, /* leak: cannot be found by content */
    FSCK_DAMAGED_UNSEALED,    /* marked as damaged, but may be overwritten in place */
    FSCK_DAMAGED_STRAY,       /* leak: marked as damaged, but nobody owns it */

    FSCK_KINDS
};

/* A short identifier for machines, as "node-count-low". */
const char *fsck_kind_id(enum fsck_kind kind);
/* What it means, in a few words for people. */
const char *fsck_kind_text(enum fsck_kind kind);
bool fsck_kind_is_leak(enum fsck_kind kind);

struct fsck_options {
    /* Reads all sealed chunks and compares their hash. */
    bool check_data;
    /* Reports every finding; else only the first few of a kind (all are counted). */
    bool verbose;
    /* Memory for counting chunks, 0: 1 GiB. Maps are read once more for each
     * time that this is filled (about 4 TiB of data with chunks of 4 KiB). */
    uint64_t memory_bytes;
    /* A finding. NULL is allowed. */
    void (*message)(void *arg, enum fsck_kind kind, const char *text);
    /* Called now and then. `total` is 0 where it is not known. NULL is allowed. */
    void (*progress)(void *arg, const char *phase, uint64_t done, uint64_t total);
    void *arg;
};

struct fsck_report {
    uint64_t count[FSCK_KINDS]; /* findings: records, references, chunks */
    uint64_t errors;            /* sum over the kinds that are no leaks */
    uint64_t leaks;             /* sum over the others */
    /* False: damage ended the check early, so there may be more of it. */
    bool complete;
    /* Some records could not be read or are missing, so what only they refer
     * to was not looked for among the leaks. */
    bool leaks_unchecked;
    /* The store was closed in order (false is no damage). */
    bool clean;

    uint64_t inodes, files, directories, names, xattrs, orphans;
    uint64_t nodes;
    uint64_t segments;
    uint64_t chunks;         /* with an owner, as recorded */
    uint64_t bytes;          /* the same in bytes */
    uint64_t sealed_chunks;  /* of them */
    uint64_t checked_bytes;  /* read and hashed */
    uint64_t damaged_chunks; /* known to be: reading them gives an error, which is no finding */
};

/*
 * 0 if the check came to a verdict, which is in the report (damage that ends
 * it early, as of the superblock, included; err has the reason then, too).
 * Else what kept it from one: -ENOENT no store there, -EMEDIUMTYPE something
 * else is there, -EBUSY it is mounted, -ENOTSUP made by a newer version, -EIO
 * and others of the system.
 *
 * Exit status by fsck(8): 8 if not 0; 4 if report->errors; leaks alone are
 * harmless and the caller's choice.
 */
int fsck_run(const char *store_path, const struct fsck_options *options, struct fsck_report *report,
             struct errmsg *err);

#endif
