// SPDX-License-Identifier: Apache-2.0
/*
 * Overlays: records in memory, found by key, and in order when that is asked for.
 *
 *   slots    a hash table, open addressing: look-ups and replacements
 *   arena    the bytes of all records, freed with the overlay and not before
 *   orders   for each first byte of a key (its type): a tree, and a list of
 *            records that are not in it yet
 *
 * Order is made late, because most keys never need it in memory: sealing adds
 * half a million a second of types that nobody iterates over meanwhile. An
 * iterator has the types that it walks over put in order first; the commit
 * sorts an array, which is many times cheaper than a tree.
 *
 * A record's key never moves and never changes, so slots, trees and lists
 * point to the same record however often its value is replaced.
 */
#include "chunkstore/metadb_internal.h"

#include "chunkstore/bytes.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    SLOTS_MIN = 64, /* a power of two, as all sizes of the table */
    BLOCK_BYTES_MIN = 4096,
    BLOCK_BYTES_MAX = 256 * 1024,
    TYPES = 256,
};

#define NO_VALUE UINT32_MAX

struct record {
    struct record *next_unordered;
    uint8_t *value;     /* behind the key, or, once it outgrew that, elsewhere */
    uint32_t value_len; /* NO_VALUE: a tombstone */
    uint32_t value_room;
    uint16_t key_len;
    uint8_t key[];
};

struct slot {
    uint64_t hash;
    struct record *record; /* NULL: free */
};

struct order {
    GTree *tree; /* struct record -> itself; NULL: empty */
    struct record *unordered;
    uint32_t count; /* records in both */
};

struct block {
    struct block *next;
    uint8_t bytes[];
};

struct overlay {
    struct slot *slots;
    uint64_t slot_count;
    uint64_t record_count;
    struct block *blocks; /* the newest first */
    uint8_t *free_bytes;  /* in the newest block */
    size_t free_count;
    size_t block_bytes; /* of the next block */
    uint64_t bytes;
    struct order orders[TYPES];
};

int key_compare(const void *a, size_t a_len, const void *b, size_t b_len)
{
    size_t common = a_len < b_len ? a_len : b_len;
    int order = common ? memcmp(a, b, common) : 0;
    if (order != 0)
        return order;
    return (a_len > b_len) - (a_len < b_len);
}

/* ---- the arena ---- */

static void *arena_alloc(struct overlay *overlay, size_t bytes)
{
    bytes = (bytes + 7) & ~(size_t)7;
    if (bytes > overlay->free_count) {
        size_t size = MAX(overlay->block_bytes, bytes + sizeof(struct block));
        struct block *block = g_malloc(size);
        block->next = overlay->blocks;
        overlay->blocks = block;
        overlay->free_bytes = block->bytes;
        overlay->free_count = size - sizeof(*block);
        overlay->block_bytes = MIN(overlay->block_bytes * 2, (size_t)BLOCK_BYTES_MAX);
    }
    void *result = overlay->free_bytes;
    overlay->free_bytes += bytes;
    overlay->free_count -= bytes;
    overlay->bytes += bytes;
    return result;
}

struct overlay *overlay_new(void)
{
    struct overlay *overlay = g_new0(struct overlay, 1);
    overlay->slot_count = SLOTS_MIN;
    overlay->slots = g_new0(struct slot, SLOTS_MIN);
    overlay->block_bytes = BLOCK_BYTES_MIN;
    return overlay;
}

void overlay_free(struct overlay *overlay)
{
    if (!overlay)
        return;
    for (unsigned i = 0; i < TYPES; i++)
        if (overlay->orders[i].tree)
            g_tree_unref(overlay->orders[i].tree);
    for (struct block *block = overlay->blocks, *next; block; block = next) {
        next = block->next;
        g_free(block);
    }
    g_free(overlay->slots);
    g_free(overlay);
}

uint64_t overlay_bytes(const struct overlay *overlay)
{
    return overlay->bytes;
}

uint64_t overlay_count(const struct overlay *overlay)
{
    return overlay->record_count;
}

/* ---- records ---- */

const uint8_t *record_key(const struct record *record, size_t *len)
{
    *len = record->key_len;
    return record->key;
}

const uint8_t *record_value(const struct record *record, size_t *len)
{
    if (record->value_len == NO_VALUE) {
        *len = 0;
        return NULL;
    }
    *len = record->value_len;
    return record->value;
}

static void set_value(struct overlay *overlay, struct record *record, const void *value,
                      size_t value_len)
{
    if (!value) {
        record->value_len = NO_VALUE;
        return;
    }
    if (value_len > record->value_room) {
        record->value = arena_alloc(overlay, value_len);
        record->value_room = (uint32_t)value_len;
    }
    record->value_len = (uint32_t)value_len;
    if (value_len)
        memcpy(record->value, value, value_len);
}

/* ---- the hash table ---- */

uint64_t overlay_hash(const void *key, size_t key_len)
{
    return XXH3_64bits(key, key_len);
}

void overlay_prefetch(const struct overlay *overlay, uint64_t hash)
{
    __builtin_prefetch(&overlay->slots[hash & (overlay->slot_count - 1)]);
}

/* The slot of the key, or the free one where it would be. */
static struct slot *find_slot(const struct overlay *overlay, uint64_t hash, const void *key,
                              size_t key_len)
{
    for (uint64_t i = hash;; i++) {
        struct slot *slot = &overlay->slots[i & (overlay->slot_count - 1)];
        if (!slot->record)
            return slot;
        if (slot->hash == hash && slot->record->key_len == key_len &&
            memcmp(slot->record->key, key, key_len) == 0)
            return slot;
    }
}

static void grow(struct overlay *overlay)
{
    struct slot *old = overlay->slots;
    uint64_t old_count = overlay->slot_count;
    overlay->slot_count *= 2;
    overlay->slots = g_new0(struct slot, overlay->slot_count);
    for (uint64_t i = 0; i < old_count; i++) {
        if (!old[i].record)
            continue;
        uint64_t at = old[i].hash;
        while (overlay->slots[at & (overlay->slot_count - 1)].record)
            at++;
        overlay->slots[at & (overlay->slot_count - 1)] = old[i];
    }
    g_free(old);
}

const struct record *overlay_lookup(const struct overlay *overlay, uint64_t hash, const void *key,
                                    size_t key_len)
{
    return find_slot(overlay, hash, key, key_len)->record;
}

static unsigned type_of(const uint8_t *key, size_t key_len)
{
    return key_len ? key[0] : 0;
}

static void add(struct overlay *overlay, struct slot *slot, uint64_t hash, const void *key,
                size_t key_len, const void *value, size_t value_len)
{
    struct order *order = &overlay->orders[type_of(key, key_len)];
    struct record *record =
        arena_alloc(overlay, offsetof(struct record, key) + key_len + value_len);
    record->key_len = (uint16_t)key_len;
    if (key_len)
        memcpy(record->key, key, key_len);
    record->value = record->key + key_len;
    record->value_room = (uint32_t)value_len;
    set_value(overlay, record, value, value_len);
    record->next_unordered = order->unordered;
    order->unordered = record;
    order->count++;
    *slot = (struct slot){.hash = hash, .record = record};
    overlay->record_count++;
    /* At most two thirds full, so on average half. */
    overlay->bytes += 2 * sizeof(struct slot);
    if (overlay->record_count > overlay->slot_count / 3 * 2)
        grow(overlay);
}

void overlay_set(struct overlay *overlay, uint64_t hash, const void *key, size_t key_len,
                 const void *value, size_t value_len)
{
    g_assert(key_len <= METADB_KEY_MAX && value_len < NO_VALUE);
    struct slot *slot = find_slot(overlay, hash, key, key_len);
    if (!value)
        value_len = 0;
    if (slot->record)
        set_value(overlay, slot->record, value, value_len);
    else
        add(overlay, slot, hash, key, key_len, value, value_len);
}

/* ---- order ---- */

static int compare_records(const void *a, const void *b, void *unused)
{
    const struct record *left = a;
    const struct record *right = b;
    (void)unused;
    return key_compare(left->key, left->key_len, right->key, right->key_len);
}

bool overlay_order(struct overlay *overlay, unsigned first_type, unsigned last_type,
                   uint64_t *budget)
{
    for (unsigned i = first_type; i <= last_type; i++) {
        struct order *order = &overlay->orders[i];
        if (order->unordered && !order->tree)
            order->tree = g_tree_new_full(compare_records, NULL, NULL, NULL);
        for (; order->unordered; (*budget)--) {
            struct record *record = order->unordered;
            if (*budget == 0)
                return false;
            order->unordered = record->next_unordered;
            g_tree_insert(order->tree, record, record);
        }
    }
    return true;
}

bool overlay_is_ordered(const struct overlay *overlay, unsigned first_type, unsigned last_type)
{
    for (unsigned i = first_type; i <= last_type; i++)
        if (overlay->orders[i].unordered)
            return false;
    return true;
}

/* At a type without (more) records: go on to the next one that has some. */
static void skip_empty(struct overlay_cursor *cursor)
{
    while (!cursor->node && cursor->type < cursor->last_type) {
        GTree *tree = cursor->overlay->orders[++cursor->type].tree;
        cursor->node = tree ? g_tree_node_first(tree) : NULL;
    }
}

void overlay_seek(struct overlay_cursor *cursor, const struct overlay *overlay, const void *key,
                  size_t key_len, unsigned last_type)
{
    *cursor = (struct overlay_cursor){
        .overlay = overlay,
        .type = type_of(key, key_len),
        .last_type = last_type,
    };
    GTree *tree = overlay->orders[cursor->type].tree;
    if (tree) {
        struct record *probe = g_malloc(offsetof(struct record, key) + key_len + 1);
        probe->key_len = (uint16_t)key_len;
        if (key_len)
            memcpy(probe->key, key, key_len);
        cursor->node = g_tree_lower_bound(tree, probe);
        g_free(probe);
    }
    skip_empty(cursor);
}

const struct record *overlay_at(const struct overlay_cursor *cursor)
{
    return cursor->node ? g_tree_node_key(cursor->node) : NULL;
}

void overlay_step(struct overlay_cursor *cursor)
{
    cursor->node = g_tree_node_next(cursor->node);
    skip_empty(cursor);
}

/* ---- all in order, for the commit ---- */

/* A record, and of its key what is behind the first byte, as a number: that
 * decides nearly all comparisons without looking at the key. */
struct sortable {
    uint64_t prefix;
    struct record *record;
};

static uint64_t prefix_of(const struct record *record)
{
    uint8_t bytes[8] = {0};
    if (record->key_len > 1)
        memcpy(bytes, record->key + 1, MIN(record->key_len - 1u, sizeof(bytes)));
    return get_be64(bytes);
}

static int compare_sortables(const void *a, const void *b)
{
    const struct sortable *left = a;
    const struct sortable *right = b;
    if (left->prefix != right->prefix)
        return left->prefix < right->prefix ? -1 : 1;
    return compare_records(left->record, right->record, NULL);
}

void overlay_each_sorted(const struct overlay *overlay, overlay_visit visit, void *context)
{
    if (overlay->record_count == 0)
        return;
    struct sortable *all = g_new(struct sortable, overlay->record_count);
    struct sortable *ends[TYPES];
    struct sortable *end = all;
    for (unsigned i = 0; i < TYPES; i++) {
        ends[i] = end;
        end += overlay->orders[i].count;
    }
    for (uint64_t i = 0; i < overlay->slot_count; i++) {
        struct record *record = overlay->slots[i].record;
        if (record)
            *ends[type_of(record->key, record->key_len)]++ =
                (struct sortable){.prefix = prefix_of(record), .record = record};
    }
    struct sortable *begin = all;
    for (unsigned i = 0; i < TYPES; begin = ends[i++])
        if (ends[i] > begin)
            qsort(begin, (size_t)(ends[i] - begin), sizeof(*begin), compare_sortables);
    for (struct sortable *s = all; s < end; s++)
        visit(context, s->record);
    g_free(all);
}
