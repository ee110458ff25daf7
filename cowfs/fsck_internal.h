// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_internal.h - what the files of fsck share.
 *
 *   fsck.c          the order of the phases, opening and closing
 *   fsck_report.c   kinds of damage, findings
 *   fsck_scan.c     reading the database: cursors, records of no known type
 *   fsck_tally.c    compact counters
 *   fsck_meta.c     the store's own counters
 *   fsck_segment.c  segment records and files
 *   fsck_inode.c    the table of inodes; what hangs on them: orphans, xattrs
 *   fsck_names.c    directories: entries, links, the tree
 *   fsck_size.c     maps that reach behind the end of their file
 *   fsck_home.c     files that claim to lie flat in a segment
 *   fsck_node.c     the table of nodes: who refers to whom
 *   fsck_blame.c    where references to missing and misplaced nodes come from
 *   fsck_chunk.c    owners of chunks
 *   fsck_index.c    the content index and the data of sealed chunks
 *
 * Order: whatever refers comes before what it refers to, so that a table is
 * complete when it is compared with the recorded counts.
 *
 * Two rules keep one damage one finding:
 *  1. Where records that refer to something are missing or cannot be read, the
 *     counts made here are lower bounds: "too low" is still sound, "too high"
 *     and "unreachable" are not reported (refs_incomplete).
 *  2. A sum (of a segment, of the store) is wrong only if it fits neither the
 *     recorded counts nor those made here.
 */
#ifndef COWFS_FSCK_INTERNAL_H
#define COWFS_FSCK_INTERNAL_H

#ifndef G_LOG_DOMAIN
#define G_LOG_DOMAIN "cowfs"
#endif

#include "chunkstore/keys.h"
#include "chunkstore/metadb.h"
#include "chunkstore/refcount.h"
#include "chunkstore/segment.h"
#include "chunkstore/superblock.h"
#include "cowfs/fsck.h"
#include "cowfs/meta.h"
#include "cowfs/node.h"

#include <glib.h>

struct fsck;

/* ---- fsck_report.c ---- */

/* Counts `n` findings of a kind, and tells the first of them to the caller. */
void fsck_found(struct fsck *f, enum fsck_kind kind, uint64_t n, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void fsck_phase(struct fsck *f, const char *phase, uint64_t total);
/* So much more of the phase is done. */
void fsck_step(struct fsck *f, uint64_t n);
void fsck_finish_report(struct fsck *f);

/* ---- fsck_tally.c ---- */

/*
 * Counters of 512 neighbouring numbers: one value while they are all alike,
 * else a byte each, else four bytes each. Zero-initialise.
 */
struct tally {
    uint32_t all; /* used if small and wide are NULL */
    uint8_t *small;
    uint32_t *wide;
};

/* Adds 1 to n counters from `first`; they stop at UINT32_MAX. */
void tally_add(struct tally *t, unsigned first, unsigned n);
uint32_t tally_get(const struct tally *t, unsigned i);
void tally_expand(const struct tally *t, uint32_t out[COUNT_GROUP]);
void tally_clear(struct tally *t);

/* A decoded group record of counts. */
struct counts_group {
    uint32_t count[COUNT_GROUP];
    uint8_t merges[COUNT_GROUP];
    bool sealed[COUNT_GROUP];
};
/* -EUCLEAN if damaged; *g then is all zero. NULL record: all zero. */
int counts_group_decode(struct counts_group *g, const uint8_t *record, size_t len);

/* ---- fsck_scan.c ---- */

/*
 * Walks the records of one type in ascending order of their keys. Keys of a
 * wrong length are reported and skipped.
 *
 *     cursor_open(&c, f, KEY_INODE);
 *     while (cursor_next(&c))
 *         ... c.a, c.value ...
 *     error = cursor_close(&c);
 */
struct cursor {
    struct fsck *f;
    struct metadb_iter *it;
    enum key_type type;
    bool begun, valid;
    uint64_t a, b;       /* the integers of the key */
    const uint8_t *name; /* what follows them (xattrs) */
    size_t name_len;
    const uint8_t *value;
    size_t value_len;
};

void cursor_open(struct cursor *c, struct fsck *f, enum key_type type);
bool cursor_next(struct cursor *c);
/* The error that ended the walk early, or 0. */
int cursor_close(struct cursor *c);

/* A record by its number. -ENOENT if it is not there. */
int fsck_get(struct fsck *f, enum key_type type, uint64_t a, struct metadb_value *out);
int fsck_scan_unknown(struct fsck *f);
bool fsck_database_is_empty(struct fsck *f);
/* Reports the record under a cursor as undecodable. */
void fsck_undecodable(struct fsck *f, const struct cursor *c);

/* ---- fsck_segment.c ---- */

/* As in docs/FORMAT.md, "Segments". */
enum {
    FSCK_SEGMENT_FLAG_UNOWNED = 1 << 0,
    FSCK_SEGMENT_FLAG_HOME = 1 << 1,
    FSCK_SEGMENT_FLAG_FILLING = 1 << 2,
    FSCK_SEGMENT_FLAG_BROKEN = 1 << 3,
    FSCK_SEGMENT_FLAG_PACKED = 1 << 4,
};
struct fsck_segment_record {
    uint64_t flags, live, cursor, home_bytes;
};
bool fsck_segment_decode(const uint8_t *record, size_t len, struct fsck_segment_record *out);

struct fsck_segment {
    uint32_t id;
    bool undecodable; /* live and cursor are not known */
    bool file_missing;
    bool missing_told;
    bool live_unknown; /* a record of counts is damaged */
    bool home, home_filling, home_broken;
    uint32_t live, cursor;
    uint64_t filler;        /* inode that fills it, 0: none seen */
    uint64_t file_slots;    /* whole chunks in the file; of a home segment also a part at its end */
    unsigned groups;        /* of slots that can be counted */
    uint32_t live_recorded; /* chunks with an owner by the records of counts */
    uint32_t live_counted;  /* by the maps */
    struct tally *tallies;  /* `groups` of them, while it is in the window */
};

int fsck_load_segments(struct fsck *f);
/* Chunks that a segment's file has by its size; 0 without a file. One that it ends
 * within counts, unless the record says that it is a shared segment. */
uint64_t fsck_segment_file_slots(struct fsck *f, uint32_t id);
/* NULL if there is none. */
struct fsck_segment *fsck_find_segment(struct fsck *f, uint32_t id);
/* After the counts: live chunks. */
void fsck_check_segments(struct fsck *f);
/* Was anything ever stored? */
bool fsck_has_segment_files(struct fsck *f);
/* Opens the file of a segment for reading; negative errno. */
int fsck_open_segment(struct fsck *f, uint32_t id);

/* ---- fsck_inode.c ---- */

enum {
    INODE_BAD = 1 << 0,    /* the record cannot be decoded: nothing else is known */
    INODE_ORPHAN = 1 << 1, /* has an orphan record */
    INODE_XATTRS = 1 << 2, /* knows that it may have xattrs */
    INODE_CAPABILITY = 1 << 3,
};

/* Small, since there is one for each inode of the store. */
struct fsck_inode {
    uint64_t ino;
    uint32_t nlink;
    uint32_t names; /* entries that point here */
    uint32_t dir;   /* index in f->dirs, for directories */
    uint8_t type;   /* S_IFMT >> 12, 0 if bad */
    uint8_t flags;
};

enum dir_state { DIR_UNKNOWN, DIR_ON_PATH, DIR_GOOD, DIR_LOST };

struct fsck_dir {
    uint64_t ino;
    uint64_t parent; /* as its record says */
    uint64_t holder; /* the directory that has its name, 0: none */
    uint64_t size, entries;
    uint32_t subdirs;
    uint8_t state;        /* enum dir_state */
    bool entries_unknown; /* a record of entries is damaged */
};

int fsck_load_inodes(struct fsck *f);
/* NULL if there is none. The pointer is good as long as f. */
struct fsck_inode *fsck_find_inode(struct fsck *f, uint64_t ino);
int fsck_check_orphans(struct fsck *f);
int fsck_check_xattrs(struct fsck *f);
int fsck_check_unsealed(struct fsck *f);

/* ---- fsck_names.c ---- */

int fsck_check_names(struct fsck *f);
/* After names and orphan records are known. */
void fsck_check_links(struct fsck *f);

/* ---- fsck_size.c ---- */

int fsck_check_sizes(struct fsck *f);

/* ---- fsck_home.c ---- */

/* After the segments and the inodes. */
int fsck_check_homes(struct fsck *f);

/* ---- fsck_node.c ---- */

enum { NODE_LEVEL_BAD = 0xff };

/* What is known of 512 neighbouring node ids. */
struct node_group {
    uint64_t id;                 /* node id / 512; the hash key */
    uint8_t level[COUNT_GROUP];  /* of the record; 0: none, NODE_LEVEL_BAD: damaged */
    uint8_t wanted[COUNT_GROUP]; /* bit L: somebody refers to it as of level L */
    struct tally refs;
};

struct node_table {
    GHashTable *groups; /* &group->id -> group */
    uint64_t highest;   /* id of a record or a count */
};

void node_table_init(struct node_table *t);
void node_table_clear(struct node_table *t);
/* Makes it if it is not there. */
struct node_group *node_table_group(struct node_table *t, uint64_t node_id);
/* A reference from a map or an entry. */
void node_table_refer(struct node_table *t, uint64_t node_id, unsigned level);

/* Fills the table from the nodes, and counts the chunks of the window. */
int fsck_scan_nodes(struct fsck *f);
/* Compares the table with records and counts. */
int fsck_check_nodes(struct fsck *f);

/* ---- fsck_blame.c ---- */

/* Finds out who refers to the nodes in `bad` (a set of &node_id). */
int fsck_blame_references(struct fsck *f, GHashTable *bad);

/* ---- fsck_chunk.c ---- */

/* Counts an owner of each of n chunks; a part that is in no segment is noted. */
void fsck_count_chunks(struct fsck *f, chunk_t first, unsigned n, uint64_t node);
/* Chunks are counted for segments from index `first` on, as many as fit. */
void fsck_window_open(struct fsck *f, size_t first);
void fsck_window_close(struct fsck *f);
/* Reads the nodes once more, for the chunks of the window alone. */
int fsck_recount_chunks(struct fsck *f);
/* Compares counts, window by window, and walks the hashes beside them. */
int fsck_check_chunks(struct fsck *f);

/* ---- fsck_index.c ---- */

int fsck_load_dead(struct fsck *f);
/* Is the chunk recorded as freed, with its index records still to be removed? */
bool fsck_is_dead(const struct fsck *f, chunk_t chunk);

/* Goes through the hashes of chunks beside the walk over their counts. */
struct hash_walk;
struct hash_walk *hash_walk_new(struct fsck *f);
/* Groups come in ascending order. `counts` NULL: nothing can be said of this
 * one, else `segment` is the one that it is in. */
int hash_walk_group(struct hash_walk *w, const struct fsck_segment *segment, uint64_t group,
                    const struct counts_group *counts);
/* Looks at the rest, unless `error` ended the walk, and frees. */
int hash_walk_finish(struct hash_walk *w, int error);
/* hash -> chunk, one look-up each. */
int fsck_check_content(struct fsck *f);

/* ---- fsck_meta.c ---- */

/* Before all else. *unfinished: nothing was ever stored, not even the root. */
int fsck_load_meta(struct fsck *f, bool *unfinished);
/* Last: compares with what the other phases have counted. */
void fsck_check_meta(struct fsck *f);

/* ---- fsck.c ---- */

struct dead_run {
    chunk_t first;
    uint64_t count;
};

struct fsck {
    const struct fsck_options *options;
    struct fsck_report *report;
    const char *path;
    struct superblock sb;
    struct meta meta;
    bool has_meta;
    struct metadb *db;

    const char *phase;
    uint64_t done, told, total; /* of the phase; `done` when progress was told last */
    uint64_t told_of[FSCK_KINDS];

    GArray *segments;                /* struct fsck_segment, by id */
    size_t last_segment;             /* index that was found last */
    size_t window_first, window_end; /* the segments that chunks are counted of */
    GHashTable *lost_segments;       /* ids that are mapped, without a record */
    GArray *inodes;                  /* struct fsck_inode, by ino */
    GArray *dirs;                    /* struct fsck_dir */
    struct node_table nodes;
    GArray *dead; /* struct dead_run, by first: freed, still in the index */

    /* Rule 1: not all that refers to inodes / nodes / chunks could be read. */
    bool names_incomplete;
    bool maps_incomplete;
    bool nodes_incomplete;
    bool counts_unknown; /* chunks of which it is not known whether they are owned */

    uint64_t chunks_counted; /* with an owner, by the maps */
    uint64_t merges;         /* recorded */
    bool has_domains;        /* content with a domain was met, */
    bool has_public;         /* and such that is public */
    uint64_t highest_ino;
};

/* Tables of a zeroed *f, whose options, report, path and sb the caller fills in. */
void fsck_init(struct fsck *f);
void fsck_clear(struct fsck *f); /* closes f->db */
/* All that is in f->db. */
int fsck_check_database(struct fsck *f);

#endif
