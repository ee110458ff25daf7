// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_home.c - files that claim to lie flat in a segment of their own.
 *
 * Readers of such a file may bypass the map, so the map has to agree: chunk i in
 * slot i. Clones share their nodes, so it is remembered of each node that was found
 * good, and for which home and place.
 */
#include "cowfs/fsck_internal.h"

#include "cowfs/inode.h"

#include <errno.h>
#include <inttypes.h>

/* A node all of whose entries are where they belong. */
struct good_node {
    uint64_t id; /* the hash key */
    uint64_t base;
    uint32_t home;
};

struct home_check {
    struct fsck *f;
    GHashTable *good; /* &good->id -> good */
    uint32_t home;
};

static bool is_known(const struct home_check *h, uint64_t id, uint64_t base)
{
    const struct good_node *good = g_hash_table_lookup(h->good, &id);
    return good && good->home == h->home && good->base == base;
}

static void remember(struct home_check *h, uint64_t id, uint64_t base)
{
    struct good_node *good = g_new(struct good_node, 1);
    *good = (struct good_node){.id = id, .base = base, .home = h->home};
    g_hash_table_replace(h->good, &good->id, good);
}

/* Finds the first chunk index, from `base` on, that the node maps elsewhere;
 * UINT64_MAX: none. Missing and damaged nodes were told already. */
static int find_elsewhere(struct home_check *h, uint64_t id, unsigned level, uint64_t base,
                          uint64_t *index)
{
    struct metadb_value value;
    uint64_t entries[NODE_ENTRIES];
    unsigned actual;
    uint64_t below = UINT64_C(1) << (NODE_SHIFT * (level - 1)); /* chunks of an entry */
    *index = UINT64_MAX;
    if (is_known(h, id, base))
        return 0;
    int error = fsck_get(h->f, KEY_NODE, id, &value);
    if (error)
        return error == -ENOENT ? 0 : error;
    error = node_decode(value.data, value.len, &actual, entries);
    metadb_value_free(&value);
    /* The check of levels also makes the recursion end. */
    if (error || actual != level)
        return 0;
    for (unsigned i = 0; i < NODE_ENTRIES && *index == UINT64_MAX && !error; i++) {
        uint64_t at = base + i * below;
        if (!entries[i])
            continue;
        if (level > 1)
            error = find_elsewhere(h, entries[i], level - 1, at, index);
        else if (at >= SEGMENT_HOME_SLOTS ||
                 ENTRY_CHUNK(entries[i]) != ((uint64_t)h->home << 32 | at))
            *index = at;
    }
    if (!error && *index == UINT64_MAX)
        remember(h, id, base);
    return error;
}

static int check_map(struct home_check *h, uint64_t ino, const struct inode_attr *attr)
{
    uint64_t index;
    h->home = attr->home;
    int error = find_elsewhere(h, attr->map.root, attr->map.levels, 0, &index);
    if (!error && index != UINT64_MAX)
        fsck_found(h->f, FSCK_INODE_HOME, 1,
                   "inode %" PRIu64 " is said to lie in segment %08" PRIx32 ", but chunk %" PRIu64
                   " does not",
                   ino, attr->home, index);
    return error;
}

static int check_inode(struct home_check *h, uint64_t ino, const struct inode_attr *attr)
{
    struct fsck_segment *segment = fsck_find_segment(h->f, attr->home);
    if (!segment || segment->undecodable) {
        /* What it maps there is told elsewhere. A segment that ran empty is gone. */
        if (!segment && attr->home_filling)
            fsck_found(h->f, FSCK_INODE_HOME, 1,
                       "inode %" PRIu64 " is filled from segment %08" PRIx32
                       ", which has no record",
                       ino, attr->home);
        return 0;
    }
    if (attr->home_filling && segment->filler) {
        fsck_found(h->f, FSCK_INODE_HOME, 1,
                   "inodes %" PRIu64 " and %" PRIu64 " are both filled from segment %08" PRIx32,
                   segment->filler, ino, attr->home);
    } else if (attr->home_filling != segment->home_filling || !segment->home) {
        fsck_found(h->f, FSCK_INODE_HOME, 1, "inode %" PRIu64 " %s segment %08" PRIx32 ", which %s",
                   ino, attr->home_filling ? "is filled from" : "lies in", attr->home,
                   !segment->home          ? "is a shared one"
                   : segment->home_filling ? "another one fills"
                                           : "is not filled any more");
        return 0;
    }
    if (attr->home_filling)
        segment->filler = ino;
    /* Sealing has exchanged chunks, or not all of them have moved in: nobody says
     * that it is flat. */
    if (segment->home_broken || attr->packing || !attr->map.levels)
        return 0;
    return check_map(h, ino, attr);
}

/* Segments that wait for more of a file that is not there: never given back. */
static void check_fillers(struct fsck *f)
{
    for (guint i = 0; i < f->segments->len && !f->maps_incomplete; i++) {
        const struct fsck_segment *s = &g_array_index(f->segments, struct fsck_segment, i);
        if (s->home_filling && !s->filler)
            fsck_found(f, FSCK_SEGMENT_HOME, 1,
                       "segment %08" PRIx32 " is kept for a file that does not fill it", s->id);
    }
}

int fsck_check_homes(struct fsck *f)
{
    struct cursor c;
    struct home_check h = {
        .f = f, .good = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free)};
    int error = 0;
    fsck_phase(f, "flat files", f->report->inodes);
    cursor_open(&c, f, KEY_INODE);
    while (!error && cursor_next(&c)) {
        struct inode_attr attr;
        if (inode_decode(c.value, c.value_len, &attr))
            continue;
        if (attr.home)
            error = check_inode(&h, c.a, &attr);
        g_free(attr.target);
    }
    g_hash_table_destroy(h.good);
    int status = cursor_close(&c);
    error = error ? error : status;
    if (!error)
        check_fillers(f);
    return error;
}
