// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_scan.c - reading the database record by record.
 *
 * Most walks follow the order of the keys, which is how RocksDB reads fastest;
 * single look-ups are left to places where damage was met, and to the content
 * index, whose two directions cannot both be in order.
 */
#include "cowfs/fsck_internal.h"

#include <errno.h>

/* In the order of their bytes. */
static const struct {
    enum key_type type;
    unsigned integers;
    bool name;
} shapes[] = {
    {KEY_DAMAGED, 1, false},     {KEY_CHUNK_COUNTS, 1, false}, {KEY_DIRENT, 2, false},
    {KEY_SEGMENT, 1, false},     {KEY_CONTENT, 1, false},      {KEY_INODE, 1, false},
    {KEY_NODE_COUNTS, 1, false}, {KEY_META, 0, false},         {KEY_NODE, 1, false},
    {KEY_ORPHAN, 1, false},      {KEY_DEAD_SEALED, 1, false},  {KEY_CHUNK_HASH, 1, false},
    {KEY_UNSEALED, 1, false},    {KEY_XATTR, 1, true},
};

static size_t shape_of(enum key_type type)
{
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++)
        if (shapes[i].type == type)
            return i;
    g_assert_not_reached();
}

/* Any key as text, for messages. */
static char *key_text(const uint8_t *key, size_t len)
{
    GString *text = g_string_new(NULL);
    for (size_t i = 0; i < len && i < 40; i++)
        g_string_append_printf(text, "%02x", key[i]);
    if (len > 40)
        g_string_append(text, "...");
    return g_string_free(text, FALSE);
}

void cursor_open(struct cursor *c, struct fsck *f, enum key_type type)
{
    uint8_t lower = (uint8_t)type;
    uint8_t upper = (uint8_t)(type + 1);
    *c = (struct cursor){.f = f, .type = type};
    c->it = metadb_iter_new(f->db, &lower, 1, &upper, 1);
}

static bool take_key(struct cursor *c, const uint8_t *key, size_t len)
{
    size_t shape = shape_of(c->type);
    size_t fixed = 1 + 8 * (size_t)shapes[shape].integers;
    if (len < fixed || (len > fixed) != shapes[shape].name) {
        char *text = key_text(key, len);
        fsck_found(c->f, FSCK_RECORD_UNDECODABLE, 1, "key %s has a wrong length", text);
        g_free(text);
        return false;
    }
    c->a = shapes[shape].integers > 0 ? get_be64(key + 1) : 0;
    c->b = shapes[shape].integers > 1 ? get_be64(key + 9) : 0;
    c->name = key + fixed;
    c->name_len = len - fixed;
    return true;
}

bool cursor_next(struct cursor *c)
{
    for (;;) {
        if (c->begun && c->valid)
            metadb_iter_next(c->it);
        c->begun = true;
        c->valid = metadb_iter_valid(c->it);
        if (!c->valid)
            return false;
        size_t len;
        const uint8_t *key = metadb_iter_key(c->it, &len);
        fsck_step(c->f, 1);
        if (!take_key(c, key, len))
            continue;
        c->value = metadb_iter_value(c->it, &c->value_len);
        return true;
    }
}

int cursor_close(struct cursor *c)
{
    int error = metadb_iter_status(c->it);
    metadb_iter_free(c->it);
    c->it = NULL;
    return error;
}

void fsck_undecodable(struct fsck *f, const struct cursor *c)
{
    static const struct {
        enum key_type type;
        const char *text;
    } names[] = {
        {KEY_META, "the store's counters"},
        {KEY_SEGMENT, "segment"},
        {KEY_CHUNK_COUNTS, "counts of chunk group"},
        {KEY_NODE_COUNTS, "counts of node group"},
        {KEY_NODE, "node"},
        {KEY_INODE, "inode"},
        {KEY_DIRENT, "entries of directory"},
        {KEY_CONTENT, "chunk of content hash"},
        {KEY_CHUNK_HASH, "content hash of chunk"},
        {KEY_DEAD_SEALED, "freed chunks from"},
        {KEY_DAMAGED, "mark of damaged chunk"},
    };
    const char *what = "record";
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        if (names[i].type == c->type)
            what = names[i].text;
    fsck_found(f, FSCK_RECORD_UNDECODABLE, 1, "%s %" G_GUINT64_FORMAT ": the record is damaged",
               what, c->a);
}

int fsck_get(struct fsck *f, enum key_type type, uint64_t a, struct metadb_value *out)
{
    uint8_t key[KEY_MAX];
    return metadb_get(f->db, key, key_u64(key, type, a), out);
}

static int scan_gap(struct fsck *f, unsigned from, unsigned to)
{
    if (from >= to)
        return 0;
    uint8_t lower = (uint8_t)from;
    uint8_t upper = (uint8_t)to;
    struct metadb_iter *it = metadb_iter_new(f->db, &lower, 1, &upper, to < 256 ? 1 : 0);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t len;
        const uint8_t *key = metadb_iter_key(it, &len);
        char *text = key_text(key, len);
        fsck_found(f, FSCK_RECORD_UNKNOWN, 1, "key %s is of no known type", text);
        g_free(text);
    }
    int error = metadb_iter_status(it);
    metadb_iter_free(it);
    return error;
}

bool fsck_database_is_empty(struct fsck *f)
{
    uint8_t lower = 0;
    struct metadb_iter *it = metadb_iter_new(f->db, &lower, 1, NULL, 0);
    bool empty = !metadb_iter_valid(it) && metadb_iter_status(it) == 0;
    metadb_iter_free(it);
    return empty;
}

int fsck_scan_unknown(struct fsck *f)
{
    unsigned from = 0;
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        int error = scan_gap(f, from, shapes[i].type);
        if (error)
            return error;
        from = shapes[i].type + 1u;
    }
    return scan_gap(f, from, 256);
}
