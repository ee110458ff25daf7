// SPDX-License-Identifier: Apache-2.0
#include "cowfs/repair_internal.h"

#include "chunkstore/content_index.h"

#include <errno.h>

enum { DUMPED_BYTES = 4096, NAME_BYTES_MAX = 255, VALUE_BYTES_MAX = 65536 };

static char *hex(const uint8_t *p, size_t n)
{
    GString *text = g_string_new(NULL);
    for (size_t i = 0; i < n && i < DUMPED_BYTES; i++)
        g_string_append_printf(text, "%02x", p[i]);
    if (n > DUMPED_BYTES)
        g_string_append(text, "...");
    return g_string_free(text, FALSE);
}

void repair_drop_record(struct repair *r, const uint8_t *key, size_t key_len, const void *value,
                        size_t value_len, const char *why)
{
    g_autofree char *key_text = hex(key, key_len);
    g_autofree char *value_text = hex(value, value_len);
    repair_did(r, "removed a record %s: key %s, value %s", why, key_text, value_text);
    metadb_delete(r->db, key, key_len);
}

void repair_put(struct repair *r, enum key_type type, uint64_t a, const struct wbuf *value)
{
    uint8_t key[KEY_MAX];
    metadb_put(r->db, key, key_u64(key, type, a), value->data, value->len);
}

void repair_delete(struct repair *r, enum key_type type, uint64_t a)
{
    uint8_t key[KEY_MAX];
    metadb_delete(r->db, key, key_u64(key, type, a));
}

void repair_put_inode(struct repair *r, uint64_t ino, const struct inode_attr *attr)
{
    struct wbuf record = {0};
    inode_encode(attr, &record);
    repair_put(r, KEY_INODE, ino, &record);
    wbuf_free(&record);
}

struct inode_attr repair_new_attr(uint32_t mode)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (struct inode_attr){
        .mode = mode, .nlink = 1, .btime = now, .mtime = now, .ctime = now, .atime = now};
}

/* How long a key of this type is; 0: no such type. */
static size_t key_bytes(uint8_t type, bool *name)
{
    *name = type == KEY_XATTR;
    switch (type) {
    case KEY_META:
        return 1;
    case KEY_DIRENT:
        return 17;
    case KEY_SEGMENT:
    case KEY_CHUNK_COUNTS:
    case KEY_NODE_COUNTS:
    case KEY_NODE:
    case KEY_INODE:
    case KEY_XATTR:
    case KEY_ORPHAN:
    case KEY_CONTENT:
    case KEY_CHUNK_HASH:
    case KEY_DEAD_SEALED:
    case KEY_UNSEALED:
    case KEY_DAMAGED:
        return 9;
    default:
        return 0;
    }
}

/* The number of an inode or node that stands in the key, 0: none does. */
static uint64_t id_in(const uint8_t *key)
{
    switch (key[0]) {
    case KEY_DIRENT:
    case KEY_NODE:
    case KEY_INODE:
    case KEY_XATTR:
    case KEY_ORPHAN:
    case KEY_UNSEALED:
    case KEY_NODE_COUNTS: /* of a group of them */
        return get_be64(key + 1);
    default:
        return 0;
    }
}

static const char *what_is_wrong(const uint8_t *key, size_t key_len, const uint8_t *value,
                                 size_t value_len)
{
    struct content_record record;
    bool name;
    size_t bytes = key_len ? key_bytes(key[0], &name) : 0;
    if (bytes == 0)
        return "of no known type";
    if (key_len < bytes || (key_len > bytes) != name || (name && key_len > bytes + NAME_BYTES_MAX))
        return "whose key has a wrong length";
    if (id_in(key) > (key[0] == KEY_NODE_COUNTS ? REPAIR_ID_MAX / COUNT_GROUP : REPAIR_ID_MAX))
        return "with a number that no store comes to";
    switch (key[0]) {
    case KEY_CONTENT:
        return value_len == 8 ? NULL : "of a damaged content hash";
    case KEY_CHUNK_HASH:
        return content_record_decode(value, value_len, &record) == 0 ? NULL
                                                                     : "of a damaged content hash";
    case KEY_XATTR:
        return value_len <= VALUE_BYTES_MAX ? NULL : "of a damaged attribute";
    default:
        return NULL;
    }
}

int repair_records(struct repair *r)
{
    uint8_t lower = 0;
    struct metadb_iter *it = metadb_iter_new(r->db, &lower, 1, NULL, 0);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, value_len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *value = metadb_iter_value(it, &value_len);
        const char *wrong = what_is_wrong(key, key_len, value, value_len);
        /* What only this one referred to is not a leak. */
        r->records_lost |= wrong && key_len >= 9 && id_in(key);
        if (wrong)
            repair_drop_record(r, key, key_len, value, value_len, wrong);
    }
    int error = metadb_iter_status(it);
    metadb_iter_free(it);
    return error;
}
