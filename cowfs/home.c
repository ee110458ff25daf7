// SPDX-License-Identifier: Apache-2.0
/* home.c - see home.h. */
#include "cowfs/home.h"

#include "cowfs/file_internal.h"
#include "cowfs/journal_internal.h"

#include <errno.h>
#include <glib.h>

static chunk_t home_slot(const struct inode *inode, uint64_t index)
{
    return (chunk_t)inode->attr.home << 32 | index;
}

void home_leave(struct inode *inode, bool unowned)
{
    struct inode_attr *a = &inode->attr;
    if (!a->home)
        return;
    if (a->home_filling) {
        segments_home_leave(inode->fs->segments, a->home, unowned);
        journal_home(inode->fs, JOURNAL_HOME_LEAVE, a->home, unowned);
    }
    a->home = 0;
    a->home_filling = a->packing = false;
    inode_mark_dirty(inode);
}

void home_leave_now(struct inode *inode, bool unowned)
{
    if (!inode->attr.home)
        return;
    txn_enter(inode->fs->txn);
    home_leave(inode, unowned);
    txn_exit(inode->fs->txn);
}

uint32_t home_freeze(struct inode *src)
{
    struct inode_attr *a = &src->attr;
    if (a->packing)
        home_leave(src, false); /* neither is flat then */
    if (a->home_filling) {
        segments_home_freeze(src->fs->segments, a->home, a->size_bytes);
        journal_home(src->fs, JOURNAL_HOME_FREEZE, a->home, a->size_bytes);
        a->home_filling = false;
        inode_mark_dirty(src);
    }
    return a->home;
}

void home_share(struct inode *src, struct inode *dst)
{
    g_assert(!dst->attr.home);
    dst->attr.home = home_freeze(src);
    inode_mark_dirty(dst);
}

void home_resize(struct inode *inode, uint64_t size_bytes)
{
    const struct inode_attr *a = &inode->attr;
    if (a->home && !a->home_filling && size_bytes != a->size_bytes)
        home_leave(inode, false);
}

/* ---- Changing the map ---- */

bool home_has(const struct inode *inode, const struct extent *e)
{
    return e->chunk == home_slot(inode, e->index);
}

/* Its slot in the home is used up. While packing, what lies elsewhere has never had
 * one; else all chunks have, even those that sealing has exchanged since. */
static int has_used_slot(void *arg, const struct extent *e)
{
    const struct inode *inode = arg;
    return !inode->attr.packing || home_has(inode, e);
}

int content_map(struct inode *inode, uint64_t index, uint64_t n, chunk_t first, bool reserved)
{
    struct inode_attr *a = &inode->attr;
    if (a->home && first != home_slot(inode, index))
        home_leave(inode, false);
    g_assert(!a->home || a->home_filling);
    int error = map_set(inode->fs->nodes, &a->map, index, n, first, reserved);
    journal_map(inode, index, n, first, reserved);
    if (error)
        home_leave(inode, true);
    inode_mark_dirty(inode);
    return error;
}

int content_unmap(struct inode *inode, uint64_t index, uint64_t n)
{
    struct inode_attr *a = &inode->attr;
    /* After an error, too: something may have gone. */
    if (a->home && map_each(inode->fs->nodes, &a->map, index, index + n, has_used_slot, inode))
        home_leave(inode, false);
    int error = map_punch(inode->fs->nodes, &a->map, index, n);
    journal_unmap(inode, index, n);
    inode_mark_dirty(inode);
    return error;
}

/* ---- Getting a home ---- */

/* What is mapped in leaf 0, if all of it may be moved. */
struct first_leaf {
    struct inode *inode;
    uint32_t home;
    GArray *extents; /* struct extent */
};

static int find_extents(struct first_leaf *leaf)
{
    struct inode *inode = leaf->inode;
    struct extent e;
    for (uint64_t i = 0; i < NODE_ENTRIES; i += e.count) {
        int error = map_lookup(inode->fs->nodes, &inode->attr.map, i, NODE_ENTRIES - i, true, &e);
        if (error)
            return error;
        if (e.chunk && !e.exclusive)
            return -EBUSY; /* shared, or sealed: it stays where it is */
        if (e.chunk)
            g_array_append_val(leaf->extents, e);
    }
    return 0;
}

static int copy_extents(struct first_leaf *leaf)
{
    struct segments *segments = leaf->inode->fs->segments;
    uint32_t chunk_bytes = leaf->inode->fs->chunk_bytes;
    uint8_t *buffer = g_malloc(WORK_BYTES);
    int error = segments_home_reach(segments, leaf->home, NODE_ENTRIES);
    for (guint k = 0; k < leaf->extents->len && !error; k++) {
        const struct extent *e = &g_array_index(leaf->extents, struct extent, k);
        uint64_t n;
        for (uint64_t i = 0; i < e->count && !error; i += n) {
            n = min_u64(e->count - i, WORK_BYTES / chunk_bytes);
            error = segments_read(segments, e->chunk + i, 0, buffer, n * chunk_bytes);
            if (!error)
                error = segments_write(segments, (chunk_t)leaf->home << 32 | (e->index + i), 0,
                                       buffer, n * chunk_bytes);
        }
    }
    g_free(buffer);
    return error;
}

/* Inside the gate. An error in the middle leaves chunks in both places. */
static int map_extents(struct first_leaf *leaf)
{
    struct inode *inode = leaf->inode;
    int error = 0;
    for (guint k = 0; k < leaf->extents->len && !error; k++) {
        const struct extent *e = &g_array_index(leaf->extents, struct extent, k);
        chunk_t first = (chunk_t)leaf->home << 32 | e->index;
        error = map_set(inode->fs->nodes, &inode->attr.map, e->index, e->count, first, e->reserved);
        journal_map(inode, e->index, e->count, first, e->reserved);
    }
    return error;
}

static void move_in(struct first_leaf *leaf)
{
    struct inode *inode = leaf->inode;
    struct fs *fs = inode->fs;
    int error = copy_extents(leaf);
    txn_enter(fs->txn);
    if (!error)
        error = map_extents(leaf);
    if (error) {
        segments_home_drop(fs->segments, leaf->home);
    } else {
        segments_home_begin(fs->segments, leaf->home);
        journal_home(fs, JOURNAL_HOME_BEGIN, leaf->home, 0);
        inode->attr.home = leaf->home;
        inode->attr.home_filling = true;
    }
    inode_mark_dirty(inode);
    txn_exit(fs->txn);
}

void home_choose(struct inode *inode, uint64_t index, uint64_t count)
{
    struct fs *fs = inode->fs;
    struct inode_attr *a = &inode->attr;
    uint64_t end = max_u64(index + count, div_round_up_u64(a->size_bytes, fs->chunk_bytes));
    if (a->home || a->map.levels > 1 || end <= NODE_ENTRIES || end > SEGMENT_HOME_SLOTS)
        return;
    struct first_leaf leaf = {.inode = inode};
    leaf.extents = g_array_new(FALSE, FALSE, sizeof(struct extent));
    if (find_extents(&leaf) == 0 && segments_home_new(fs->segments, &leaf.home) == 0)
        move_in(&leaf);
    g_array_free(leaf.extents, TRUE);
}

int home_slots(struct inode *inode, uint64_t index, bool hole, uint64_t *count, chunk_t *first)
{
    const struct inode_attr *a = &inode->attr;
    *first = 0;
    if (!a->home_filling)
        return 0;
    if (!hole) {
        /* What is replaced may lie elsewhere yet, while the file is packed. */
        struct extent e;
        if (!a->packing)
            return 0;
        int error = map_lookup(inode->fs->nodes, &a->map, index, *count, false, &e);
        if (error)
            return error;
        *count = e.count;
        if (home_has(inode, &e))
            return 0;
    }
    if (segments_home_reach(inode->fs->segments, a->home, index + *count) == 0)
        *first = home_slot(inode, index);
    else
        home_leave_now(inode, false);
    return 0;
}
