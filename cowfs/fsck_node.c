// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_node.c - the table of nodes, filled from inodes and nodes, then compared
 * with the recorded counts.
 *
 * Every node record refers to its children, whether it is reachable itself or
 * not: that is how the daemon counts. So a node that nobody refers to is one
 * finding, not one for each node below it. And since a child is one level
 * below its parent, no walk from the roots is needed: a cycle has at least one
 * reference that is of a wrong level.
 */
#include "cowfs/fsck_internal.h"

#include <errno.h>
#include <inttypes.h>

static void group_free(void *arg)
{
    struct node_group *g = arg;
    tally_clear(&g->refs);
    g_free(g);
}

void node_table_init(struct node_table *t)
{
    t->groups = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, group_free);
}

void node_table_clear(struct node_table *t)
{
    g_clear_pointer(&t->groups, g_hash_table_destroy);
}

struct node_group *node_table_group(struct node_table *t, uint64_t node_id)
{
    uint64_t id = node_id / COUNT_GROUP;
    struct node_group *g = g_hash_table_lookup(t->groups, &id);
    if (!g) {
        g = g_new0(struct node_group, 1);
        g->id = id;
        g_hash_table_insert(t->groups, &g->id, g);
    }
    return g;
}

void node_table_refer(struct node_table *t, uint64_t node_id, unsigned level)
{
    struct node_group *g = node_table_group(t, node_id);
    unsigned i = node_id % COUNT_GROUP;
    tally_add(&g->refs, i, 1);
    g->wanted[i] |= (uint8_t)(1u << level);
}

/* ---- reading ---- */

static void count_leaf(struct fsck *f, uint64_t node, const uint64_t entries[NODE_ENTRIES])
{
    for (unsigned i = 0, j; i < NODE_ENTRIES; i = j) {
        chunk_t first = ENTRY_CHUNK(entries[i]);
        j = i + 1;
        if (!first)
            continue;
        while (j < NODE_ENTRIES && ENTRY_CHUNK(entries[j]) == first + (j - i))
            j++;
        fsck_count_chunks(f, first, j - i, node);
    }
}

int fsck_scan_nodes(struct fsck *f)
{
    struct cursor c;
    fsck_phase(f, "nodes", 0);
    cursor_open(&c, f, KEY_NODE);
    while (cursor_next(&c)) {
        uint64_t entries[NODE_ENTRIES];
        unsigned level;
        struct node_group *g = node_table_group(&f->nodes, c.a);
        f->report->nodes++;
        f->nodes.highest = max_u64(f->nodes.highest, c.a);
        if (c.a == 0 || node_decode(c.value, c.value_len, &level, entries)) {
            fsck_undecodable(f, &c);
            g->level[c.a % COUNT_GROUP] = NODE_LEVEL_BAD;
            f->nodes_incomplete = true;
            continue;
        }
        g->level[c.a % COUNT_GROUP] = (uint8_t)level;
        if (level == 1) {
            count_leaf(f, c.a, entries);
            continue;
        }
        for (unsigned i = 0; i < NODE_ENTRIES; i++)
            if (entries[i])
                node_table_refer(&f->nodes, entries[i], level - 1);
    }
    return cursor_close(&c);
}

int fsck_recount_chunks(struct fsck *f)
{
    struct cursor c;
    fsck_phase(f, "nodes again", f->report->nodes);
    cursor_open(&c, f, KEY_NODE);
    while (cursor_next(&c)) {
        uint64_t entries[NODE_ENTRIES];
        unsigned level;
        /* Damage was told the first time. */
        if (c.a && node_decode(c.value, c.value_len, &level, entries) == 0 && level == 1)
            count_leaf(f, c.a, entries);
    }
    return cursor_close(&c);
}

/* ---- comparing ---- */

static int compare_ids(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static GArray *sorted_groups(const struct node_table *t)
{
    GArray *ids = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    GHashTableIter it;
    gpointer key;
    g_hash_table_iter_init(&it, t->groups);
    while (g_hash_table_iter_next(&it, &key, NULL))
        g_array_append_vals(ids, key, 1);
    g_array_sort(ids, compare_ids);
    return ids;
}

/* Nodes that are referred to, but missing or of another level. */
static GHashTable *find_bad(struct fsck *f, const GArray *ids)
{
    GHashTable *bad = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    for (guint k = 0; k < ids->len; k++) {
        uint64_t base = g_array_index(ids, uint64_t, k) * COUNT_GROUP;
        const struct node_group *g = node_table_group(&f->nodes, base);
        for (unsigned i = 0; i < COUNT_GROUP; i++) {
            if (!g->wanted[i] || g->level[i] == NODE_LEVEL_BAD)
                continue;
            if (g->level[i] && g->wanted[i] == 1u << g->level[i])
                continue;
            uint64_t id = base + i;
            g_hash_table_add(bad, g_memdup2(&id, sizeof(id)));
            /* What the missing one refers to is not a leak for sure. */
            if (!g->level[i])
                f->nodes_incomplete = true;
        }
    }
    return bad;
}

static void compare_node(struct fsck *f, const struct node_group *g, unsigned i, uint32_t recorded)
{
    uint64_t id = g->id * COUNT_GROUP + i;
    uint32_t counted = tally_get(&g->refs, i);
    /* Who refers to nodes: maps of inodes, and nodes. */
    bool complete = !f->maps_incomplete && !f->nodes_incomplete;
    if (recorded)
        f->nodes.highest = max_u64(f->nodes.highest, id);
    if (!g->level[i] && counted)
        return; /* missing: told already */
    if (g->level[i] && !counted) {
        if (complete)
            fsck_found(f, FSCK_NODE_UNREACHABLE, 1, "nothing refers to node %" PRIu64 " (level %u)",
                       id, g->level[i]);
    } else if (recorded < counted) {
        fsck_found(f, FSCK_NODE_COUNT_LOW, 1,
                   "node %" PRIu64 " has %" PRIu32 " owners, but records %" PRIu32, id, counted,
                   recorded);
    } else if (recorded > counted && complete) {
        fsck_found(f, FSCK_NODE_COUNT_HIGH, 1,
                   "node %" PRIu64 " has %" PRIu32 " owners, but records %" PRIu32 "%s", id,
                   counted, recorded, g->level[i] ? "" : ", and does not exist");
    }
}

static void compare_group(struct fsck *f, uint64_t id, const struct counts_group *recorded)
{
    const struct node_group *g = g_hash_table_lookup(f->nodes.groups, &id);
    struct node_group none = {.id = id};
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        compare_node(f, g ? g : &none, i, recorded->count[i]);
}

/* Walks the records of counts and the table side by side, both ascending. */
static int compare_all(struct fsck *f, const GArray *ids)
{
    struct cursor c;
    struct counts_group *recorded = g_new0(struct counts_group, 1);
    guint k = 0;
    fsck_phase(f, "counts of nodes", 0);
    cursor_open(&c, f, KEY_NODE_COUNTS);
    while (cursor_next(&c)) {
        static const struct counts_group zero;
        for (; k < ids->len && g_array_index(ids, uint64_t, k) < c.a; k++)
            compare_group(f, g_array_index(ids, uint64_t, k), &zero);
        if (k < ids->len && g_array_index(ids, uint64_t, k) == c.a)
            k++;
        if (c.a > UINT64_MAX / COUNT_GROUP || counts_group_decode(recorded, c.value, c.value_len))
            fsck_undecodable(f, &c);
        else
            compare_group(f, c.a, recorded);
    }
    memset(recorded, 0, sizeof(*recorded));
    int error = cursor_close(&c);
    for (; !error && k < ids->len; k++)
        compare_group(f, g_array_index(ids, uint64_t, k), recorded);
    g_free(recorded);
    return error;
}

int fsck_check_nodes(struct fsck *f)
{
    GArray *ids = sorted_groups(&f->nodes);
    GHashTable *bad = find_bad(f, ids);
    int error = g_hash_table_size(bad) ? fsck_blame_references(f, bad) : 0;
    if (!error)
        error = compare_all(f, ids);
    g_hash_table_destroy(bad);
    g_array_free(ids, TRUE);
    return error;
}
