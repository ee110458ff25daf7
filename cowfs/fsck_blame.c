// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_blame.c - who refers to nodes that are missing or of a wrong level.
 *
 * The table of nodes knows that there are such references, not where. Only
 * when there are any are inodes and nodes read a second time.
 */
#include "cowfs/fsck_internal.h"

#include "cowfs/inode.h"

#include <errno.h>
#include <inttypes.h>

enum { VISITED_MAX = 1 << 20 };

/* Puts the children of a node that were not seen yet on the stack. */
static int push_children(struct fsck *f, uint64_t id, GArray *stack, GHashTable *seen)
{
    struct metadb_value value;
    uint64_t entries[NODE_ENTRIES];
    unsigned level;
    int error = fsck_get(f, KEY_NODE, id, &value);
    if (error)
        return error == -ENOENT ? 0 : error;
    if (node_decode(value.data, value.len, &level, entries) == 0 && level > 1) {
        for (unsigned i = 0; i < NODE_ENTRIES; i++) {
            if (!entries[i] || g_hash_table_contains(seen, &entries[i]))
                continue;
            g_hash_table_add(seen, g_memdup2(&entries[i], sizeof(entries[i])));
            g_array_append_val(stack, entries[i]);
        }
    }
    metadb_value_free(&value);
    return 0;
}

/* Does a walk down from `from` come to `target`? Given up when it gets long:
 * then it is called a reference of a wrong level, which it is, too. */
static int leads_to(struct fsck *f, uint64_t from, uint64_t target, bool *out)
{
    GArray *stack = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    GHashTable *seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    int error = 0;
    *out = from == target;
    g_array_append_val(stack, from);
    while (!error && !*out && stack->len > 0 && g_hash_table_size(seen) < VISITED_MAX) {
        uint64_t id = g_array_index(stack, uint64_t, stack->len - 1);
        g_array_set_size(stack, stack->len - 1);
        error = push_children(f, id, stack, seen);
        *out = g_hash_table_contains(seen, &target);
    }
    g_array_free(stack, TRUE);
    g_hash_table_destroy(seen);
    return error;
}

/* A reference to `id` as of `level`, from node `parent` (0: from a map).
 * `where` names it for the message. */
static int judge(struct fsck *f, uint64_t id, unsigned level, uint64_t parent, const char *where)
{
    unsigned actual = node_table_group(&f->nodes, id)->level[id % COUNT_GROUP];
    if (actual == level || actual == NODE_LEVEL_BAD)
        return 0;
    if (!actual) {
        fsck_found(f, FSCK_NODE_MISSING, 1, "%s: node %" PRIu64 " is missing", where, id);
        return 0;
    }
    bool cycle = false;
    /* On a cycle some reference does not lead down. */
    if (parent && actual > level) {
        int error = leads_to(f, id, parent, &cycle);
        if (error)
            return error;
    }
    if (cycle)
        fsck_found(f, FSCK_NODE_CYCLE, 1, "%s: node %" PRIu64 " leads back to it", where, id);
    else
        fsck_found(f, FSCK_NODE_LEVEL, 1,
                   "%s: node %" PRIu64 " is of level %u where one of level %u belongs", where, id,
                   actual, level);
    return 0;
}

static int blame_maps(struct fsck *f, GHashTable *bad)
{
    struct cursor c;
    int error = 0;
    cursor_open(&c, f, KEY_INODE);
    while (!error && cursor_next(&c)) {
        struct inode_attr attr;
        if (inode_decode(c.value, c.value_len, &attr))
            continue;
        if (attr.map.levels && g_hash_table_contains(bad, &attr.map.root)) {
            char *where = g_strdup_printf("map of inode %" PRIu64, c.a);
            error = judge(f, attr.map.root, attr.map.levels, 0, where);
            g_free(where);
        }
        g_free(attr.target);
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

static int blame_nodes(struct fsck *f, GHashTable *bad)
{
    struct cursor c;
    int error = 0;
    cursor_open(&c, f, KEY_NODE);
    while (!error && cursor_next(&c)) {
        uint64_t entries[NODE_ENTRIES];
        unsigned level;
        if (node_decode(c.value, c.value_len, &level, entries) || level == 1)
            continue;
        for (unsigned i = 0; !error && i < NODE_ENTRIES; i++) {
            if (!entries[i] || !g_hash_table_contains(bad, &entries[i]))
                continue;
            char *where = g_strdup_printf("node %" PRIu64 ", entry %u", c.a, i);
            error = judge(f, entries[i], level - 1, c.a, where);
            g_free(where);
        }
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

int fsck_blame_references(struct fsck *f, GHashTable *bad)
{
    fsck_phase(f, "references to bad nodes", 0);
    int error = blame_maps(f, bad);
    return error ? error : blame_nodes(f, bad);
}
