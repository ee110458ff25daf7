// SPDX-License-Identifier: Apache-2.0
/*
 * repair_internal.h - what the files of repair share.
 *
 *   repair.c        the order, the verification, the commit
 *   repair_record.c records that cannot be understood; putting records
 *   repair_map.c    nodes, roots of maps, sizes; what lost its owner
 *   repair_names.c  inodes, directories, lost+found
 *   repair_count.c  owners of nodes and chunks, segments, the content index
 *
 * Each part reads records by fsck's cursors and puts what has to be different
 * into the database's running overlay, where the parts after it, and fsck at the
 * end, see it. The order is: maps (which may make nameless inodes), names (which
 * finds them), counts (of all that is left).
 */
#ifndef COWFS_REPAIR_INTERNAL_H
#define COWFS_REPAIR_INTERNAL_H

#include "cowfs/fsck_internal.h"
#include "cowfs/inode.h"
#include "cowfs/repair.h"

/* No store comes to numbers of inodes and nodes above this one: a key that has one
 * is damaged. Numbers that repair gives must be below what entries have room for
 * (ENTRY_RESERVED in nodes, the type in directories). */
#define REPAIR_ID_MAX (UINT64_C(1) << 56)

struct repair {
    const struct repair_options *options;
    struct repair_report *report;
    const char *path;
    struct superblock sb;
    struct metadb *db;
    /* Some record that refers to inodes or nodes is lost: what nothing refers to
     * is given back to the user, not freed. */
    bool records_lost;
    bool commits_lost; /* by the database: metadb_lost_commits */
    uint64_t next_ino, next_node;
    uint32_t next_segment;
    /* The segment without bytes, 0: not needed yet, and nodes of each level that
     * lead to nothing but its chunks, 0: the same. */
    uint32_t void_segment;
    uint64_t void_node[NODE_LEVEL_MAX + 1];
};

/* ---- repair.c ---- */

/* All of it, up to the commit: puts what has to be different into r->db. */
int repair_database(struct repair *r, struct errmsg *err);
/* Tells of one thing that is done. */
void repair_did(struct repair *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A reader of the database as it is now, for one part. Findings are not told. */
struct fsck *repair_reader_new(struct repair *r, const char *phase);
void repair_reader_free(struct fsck *f);

/* *next becomes larger than id, unless that is no number of a store. */
static inline void repair_use_id(uint64_t *next, uint64_t id)
{
    if (id <= REPAIR_ID_MAX && id >= *next)
        *next = id + 1;
}

/* ---- repair_record.c ---- */

/* Deletes what cannot be understood, and tells its bytes, so that they are in
 * the log. */
int repair_records(struct repair *r);
void repair_drop_record(struct repair *r, const uint8_t *key, size_t key_len, const void *value,
                        size_t value_len, const char *why);
void repair_put(struct repair *r, enum key_type type, uint64_t a, const struct wbuf *value);
void repair_delete(struct repair *r, enum key_type type, uint64_t a);
void repair_put_inode(struct repair *r, uint64_t ino, const struct inode_attr *attr);
/* Attributes of an inode that repair makes: root's, of this moment. */
struct inode_attr repair_new_attr(uint32_t mode);

/* ---- repair_map.c ---- */

int repair_maps(struct repair *r);

/* ---- repair_names.c ---- */

int repair_names(struct repair *r);

/* ---- repair_count.c ---- */

int repair_counts(struct repair *r);
void repair_put_segment(struct repair *r, uint64_t id, const struct fsck_segment_record *record);

/* ---- repair_home.c ---- */

/* After the counts, which make the records of segments. */
int repair_homes(struct repair *r);

/* ---- repair_index.c ---- */

/* The records of freed chunks, hash -> chunk, and marks, after the counts. */
int repair_index(struct repair *r);

#endif
