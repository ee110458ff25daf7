// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_size.c - maps that reach behind the end of their file.
 *
 * Only what fallocate reserved may lie there; a written chunk would come to
 * light again when the file grows. Clones share most of their nodes, so it is
 * remembered of each node that lies behind an end as a whole whether it holds
 * anything written; of the others only the path to the end is read.
 */
#include "cowfs/fsck_internal.h"

#include "cowfs/inode.h"

#include <errno.h>
#include <inttypes.h>

struct size_check {
    struct fsck *f;
    GHashTable *known; /* &node_id -> GINT_TO_POINTER(1 + holds written chunks) */
};

static int has_written(struct size_check *s, uint64_t id, unsigned level, uint64_t from, bool *out);

static int scan_entries(struct size_check *s, const uint64_t *entries, unsigned level,
                        uint64_t from, bool *out)
{
    uint64_t below = UINT64_C(1) << (NODE_SHIFT * (level - 1)); /* chunks of an entry */
    for (uint64_t i = from / below; i < NODE_ENTRIES && !*out; i++) {
        if (!entries[i])
            continue;
        if (level == 1) {
            *out = !(entries[i] & ENTRY_RESERVED);
            continue;
        }
        uint64_t start = i * below;
        int error = has_written(s, entries[i], level - 1, from > start ? from - start : 0, out);
        if (error)
            return error;
    }
    return 0;
}

/* Does the node hold written chunks from index `from` (within it) on? Missing
 * and damaged nodes hold none; they were told already. */
static int has_written(struct size_check *s, uint64_t id, unsigned level, uint64_t from, bool *out)
{
    if (from == 0) {
        int known = GPOINTER_TO_INT(g_hash_table_lookup(s->known, &id));
        if (known) {
            *out = known == 2;
            return 0;
        }
    }
    struct metadb_value value;
    uint64_t entries[NODE_ENTRIES];
    unsigned actual;
    *out = false;
    int error = fsck_get(s->f, KEY_NODE, id, &value);
    if (error)
        return error == -ENOENT ? 0 : error;
    error = node_decode(value.data, value.len, &actual, entries);
    metadb_value_free(&value);
    /* The check of levels also makes the recursion end. */
    if (error || actual != level)
        return 0;
    error = scan_entries(s, entries, level, from, out);
    if (!error && from == 0)
        g_hash_table_insert(s->known, g_memdup2(&id, sizeof(id)), GINT_TO_POINTER(*out ? 2 : 1));
    return error;
}

static int check_map(struct size_check *s, uint64_t ino, const struct inode_attr *attr)
{
    uint64_t end = div_round_up_u64(attr->size_bytes, s->f->sb.chunk_bytes);
    bool written = false;
    if (!attr->map.levels || end >= map_capacity(attr->map.levels))
        return 0;
    int error = has_written(s, attr->map.root, attr->map.levels, end, &written);
    if (!error && written)
        fsck_found(s->f, FSCK_INODE_MAP_BEYOND_SIZE, 1,
                   "inode %" PRIu64 " has data behind its end (%" PRIu64 " bytes)", ino,
                   attr->size_bytes);
    return error;
}

int fsck_check_sizes(struct fsck *f)
{
    struct cursor c;
    struct size_check s = {
        .f = f, .known = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL)};
    int error = 0;
    fsck_phase(f, "sizes", f->report->inodes);
    cursor_open(&c, f, KEY_INODE);
    while (!error && cursor_next(&c)) {
        struct inode_attr attr;
        if (inode_decode(c.value, c.value_len, &attr))
            continue;
        if (S_ISREG(attr.mode))
            error = check_map(&s, c.a, &attr);
        g_free(attr.target);
    }
    g_hash_table_destroy(s.known);
    int status = cursor_close(&c);
    return error ? error : status;
}
