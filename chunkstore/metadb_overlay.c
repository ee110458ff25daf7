// SPDX-License-Identifier: Apache-2.0
/* Records, and ordered tables of records in memory. */
#include "chunkstore/metadb_internal.h"

#include <string.h>

struct record *record_new(const void *key, size_t key_len, const void *value, size_t value_len)
{
    struct record *record = g_malloc(sizeof(*record) + key_len + value_len);
    record->key = record->bytes;
    record->key_len = key_len;
    record->value = value ? record->bytes + key_len : NULL;
    record->value_len = value ? value_len : 0;
    atomic_init(&record->refs, 1);
    if (key_len)
        memcpy(record->bytes, key, key_len);
    if (record->value_len)
        memcpy(record->bytes + key_len, value, value_len);
    return record;
}

struct record *record_ref(struct record *record)
{
    atomic_fetch_add_explicit(&record->refs, 1, memory_order_relaxed);
    return record;
}

void record_unref(void *data)
{
    struct record *record = data;
    if (record && atomic_fetch_sub_explicit(&record->refs, 1, memory_order_acq_rel) == 1)
        g_free(record);
}

bool record_is_tombstone(const struct record *record)
{
    return record->value == NULL;
}

int key_compare(const void *a, size_t a_len, const void *b, size_t b_len)
{
    size_t common = a_len < b_len ? a_len : b_len;
    int order = common ? memcmp(a, b, common) : 0;
    if (order != 0)
        return order;
    return (a_len > b_len) - (a_len < b_len);
}

static int compare_records(const void *a, const void *b, void *unused)
{
    const struct record *left = a;
    const struct record *right = b;
    (void)unused;
    return key_compare(left->key, left->key_len, right->key, right->key_len);
}

struct overlay *overlay_new(void)
{
    struct overlay *overlay = g_new0(struct overlay, 1);
    overlay->tree = g_tree_new_full(compare_records, NULL, record_unref, NULL);
    return overlay;
}

void overlay_free(struct overlay *overlay)
{
    if (!overlay)
        return;
    g_tree_unref(overlay->tree);
    g_free(overlay);
}

struct record *overlay_lookup(const struct overlay *overlay, const void *key, size_t key_len)
{
    struct record probe = {.key = key, .key_len = key_len};
    return g_tree_lookup(overlay->tree, &probe);
}

void overlay_set(struct overlay *overlay, struct record *record)
{
    const struct record *old = g_tree_lookup(overlay->tree, record);
    if (old)
        overlay->bytes -= old->key_len + old->value_len;
    overlay->bytes += record->key_len + record->value_len;
    /* Replace, not insert: GTree's insert keeps the old key, and here the key
     * is the record. */
    g_tree_replace(overlay->tree, record, record);
}

void overlay_forget(struct overlay *overlay, const void *key, size_t key_len)
{
    struct record probe = {.key = key, .key_len = key_len};
    const struct record *old = g_tree_lookup(overlay->tree, &probe);
    if (!old)
        return;
    overlay->bytes -= old->key_len + old->value_len;
    g_tree_remove(overlay->tree, &probe);
}

GTreeNode *overlay_seek(const struct overlay *overlay, const void *key, size_t key_len)
{
    struct record probe = {.key = key, .key_len = key_len};
    return g_tree_lower_bound(overlay->tree, &probe);
}

GTreeNode *overlay_first(const struct overlay *overlay)
{
    return g_tree_node_first(overlay->tree);
}

GTreeNode *overlay_next(GTreeNode *node)
{
    return g_tree_node_next(node);
}

struct record *overlay_record(GTreeNode *node)
{
    return g_tree_node_key(node);
}
