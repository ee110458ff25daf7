// SPDX-License-Identifier: Apache-2.0
/*
 * names_record.c - records of directory entries: codec, look-up, listing
 * (docs/FORMAT.md, "Directories").
 *
 * One record holds all names of a directory that share a hash of 63 bits, that
 * is, practically always one. It is a version byte, then per entry a varint
 * (inode number << 4 | type), a length byte and the name.
 */
#include "cowfs/names_internal.h"
#include "cowfs/journal_internal.h"

#include <errno.h>
#include <inttypes.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

enum { DIRENT_RECORD_VERSION = 1, TYPE_SHIFT = 12, TYPE_BITS = 4 };

struct entry {
    uint64_t ino;
    uint32_t type;
    const char *name; /* not terminated */
    size_t name_len;
};

uint64_t names_hash(const struct fs *fs, const char *name, size_t len)
{
    uint64_t hash = XXH3_64bits_withSecret(name, len, fs->sb.hash_secret, HASH_SECRET_BYTES);
    /* A position is an off_t, so 63 bits; the largest is left to mean "end". */
    hash &= fs->name_hash_mask & INT64_MAX;
    if (hash < POSITION_FIRST)
        return hash + POSITION_FIRST;
    return hash == INT64_MAX ? INT64_MAX - 1 : hash;
}

int names_check(const char *name)
{
    size_t len = strlen(name);
    if (len == 0 || strchr(name, '/'))
        return -EINVAL;
    return len > NAMES_NAME_MAX ? -ENAMETOOLONG : 0;
}

static bool type_is_valid(uint32_t type)
{
    return S_ISREG(type) || S_ISDIR(type) || S_ISLNK(type) || S_ISCHR(type) || S_ISBLK(type) ||
           S_ISFIFO(type) || S_ISSOCK(type);
}

/* False at the end and for a damaged record (r->bad). */
static bool next_entry(struct rbuf *r, struct entry *out)
{
    if (r->bad || rbuf_left(r) == 0)
        return false;
    uint64_t v = rbuf_get_varint(r);
    out->ino = v >> TYPE_BITS;
    out->type = (uint32_t)(v & ((1 << TYPE_BITS) - 1)) << TYPE_SHIFT;
    out->name_len = rbuf_get_u8(r);
    out->name = (const char *)rbuf_get_bytes(r, out->name_len);
    if (r->bad || !out->ino || !type_is_valid(out->type) || out->name_len == 0 ||
        memchr(out->name, 0, out->name_len) || memchr(out->name, '/', out->name_len)) {
        r->bad = true;
        return false;
    }
    return true;
}

static struct rbuf begin_record(const void *record, size_t len)
{
    struct rbuf r = rbuf_of(record, len);
    if (rbuf_get_u8(&r) != DIRENT_RECORD_VERSION || rbuf_left(&r) == 0)
        r.bad = true; /* a record without entries does not exist */
    return r;
}

int names_decode(const void *record, size_t len,
                 int (*fn)(void *arg, uint64_t ino, uint32_t type, const char *name), void *arg)
{
    char name[NAMES_NAME_MAX + 1];
    struct rbuf r = begin_record(record, len);
    struct entry e;
    while (next_entry(&r, &e)) {
        memcpy(name, e.name, e.name_len);
        name[e.name_len] = 0;
        int result = fn(arg, e.ino, e.type, name);
        if (result)
            return result;
    }
    return r.bad ? -EUCLEAN : 0;
}

/* Fills the slot from its record. */
static int search_record(const char *name, struct dirent_slot *slot)
{
    size_t name_len = strlen(name);
    struct rbuf r = begin_record(slot->record.data, slot->record.len);
    struct entry e;
    const uint8_t *at = r.p;
    while (next_entry(&r, &e)) {
        slot->entries++;
        if (e.name_len == name_len && memcmp(e.name, name, name_len) == 0) {
            slot->found = true;
            slot->at = (size_t)(at - slot->record.data);
            slot->len = (size_t)(r.p - at);
            slot->ino = e.ino;
            slot->type = e.type;
        }
        at = r.p;
    }
    if (!r.bad)
        return 0;
    g_critical("a record of directory %" PRIu64 " is damaged", get_be64(slot->key + 1));
    slot->found = false;
    return -EUCLEAN;
}

int dirent_find_again(struct fs *fs, const char *name, struct dirent_slot *slot)
{
    metadb_value_free(&slot->record);
    slot->found = false;
    slot->entries = 0;
    int error = metadb_get(fs->db, slot->key, slot->key_len, &slot->record);
    if (error)
        return error == -ENOENT ? 0 : error;
    return search_record(name, slot);
}

int dirent_find(struct fs *fs, uint64_t dir, const char *name, struct dirent_slot *slot)
{
    *slot = (struct dirent_slot){0};
    slot->key_len = key_u64_u64(slot->key, KEY_DIRENT, dir, names_hash(fs, name, strlen(name)));
    return dirent_find_again(fs, name, slot);
}

void dirent_slot_free(struct dirent_slot *slot)
{
    metadb_value_free(&slot->record);
}

int dirent_may_insert(const struct dirent_slot *slot)
{
    return slot->entries < NAMES_PER_HASH_MAX ? 0 : -ENOSPC;
}

/* The record without the found entry (if any), into `out`. */
static void copy_others(const struct dirent_slot *slot, struct wbuf *out)
{
    if (!slot->record.len) {
        wbuf_put_u8(out, DIRENT_RECORD_VERSION);
    } else if (!slot->found) {
        wbuf_put_bytes(out, slot->record.data, slot->record.len);
    } else {
        size_t after = slot->at + slot->len;
        wbuf_put_bytes(out, slot->record.data, slot->at);
        wbuf_put_bytes(out, slot->record.data + after, slot->record.len - after);
    }
}

void names_encode(struct wbuf *record, uint64_t ino, uint32_t type, const char *name)
{
    size_t name_len = strlen(name);
    g_assert(name_len <= NAMES_NAME_MAX && ino >> (64 - TYPE_BITS) == 0);
    if (record->len == 0)
        wbuf_put_u8(record, DIRENT_RECORD_VERSION);
    wbuf_put_varint(record, ino << TYPE_BITS | (type & S_IFMT) >> TYPE_SHIFT);
    wbuf_put_u8(record, (uint8_t)name_len);
    wbuf_put_bytes(record, name, name_len);
}

static void put_entry(struct fs *fs, struct dirent_slot *slot, const char *name, uint64_t ino,
                      uint32_t type)
{
    struct wbuf record = {0};
    copy_others(slot, &record);
    names_encode(&record, ino, type, name);
    journal_put(fs, slot->key, slot->key_len, record.data, record.len);
    wbuf_free(&record);
}

void dirent_insert(struct fs *fs, struct dirent_slot *slot, const char *name, uint64_t ino,
                   uint32_t type)
{
    g_assert(!slot->found && slot->entries < NAMES_PER_HASH_MAX);
    put_entry(fs, slot, name, ino, type);
}

void dirent_replace(struct fs *fs, struct dirent_slot *slot, const char *name, uint64_t ino,
                    uint32_t type)
{
    g_assert(slot->found);
    put_entry(fs, slot, name, ino, type);
}

void dirent_remove(struct fs *fs, struct dirent_slot *slot)
{
    g_assert(slot->found);
    if (slot->entries == 1) {
        journal_delete(fs, slot->key, slot->key_len);
        return;
    }
    struct wbuf record = {0};
    copy_others(slot, &record);
    journal_put(fs, slot->key, slot->key_len, record.data, record.len);
    wbuf_free(&record);
}

/* Where a listing stands. */
struct listing {
    int (*fn)(void *arg, const struct dir_entry *entry);
    void *arg;
    uint64_t hash;
    unsigned left; /* entries of this record that are still to come */
    bool full;
};

static int count_entry(void *arg, uint64_t ino, uint32_t type, const char *name)
{
    (void)ino, (void)type, (void)name;
    ((struct listing *)arg)->left++;
    return 0;
}

static int list_entry(void *arg, uint64_t ino, uint32_t type, const char *name)
{
    struct listing *l = arg;
    l->left--;
    /* Only the last one's cookie leads past the record, so that none is
     * skipped if the buffer ends among them. */
    struct dir_entry entry = {
        .name = name, .ino = ino, .type = type, .cookie = l->left ? l->hash - 1 : l->hash};
    l->full = l->fn(l->arg, &entry) != 0;
    return l->full;
}

static int list_records(struct fs *fs, uint64_t dir, uint64_t position, struct listing *l)
{
    uint8_t lower[KEY_MAX], upper[KEY_MAX];
    size_t lower_len = key_u64_u64(lower, KEY_DIRENT, dir, position);
    size_t upper_len = key_u64(upper, KEY_DIRENT, dir + 1);
    struct metadb_iter *it = metadb_iter_new(fs->db, lower, lower_len, upper, upper_len);
    int error = 0;
    for (; !error && !l->full && metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *record = metadb_iter_value(it, &len);
        if (key_len != lower_len) {
            error = -EUCLEAN;
            break;
        }
        l->hash = get_be64(key + 9);
        l->left = 0;
        error = names_decode(record, len, count_entry, l);
        if (!error)
            error = names_decode(record, len, list_entry, l);
        if (l->full)
            error = 0;
    }
    if (!error)
        error = metadb_iter_status(it);
    metadb_iter_free(it);
    if (error == -EUCLEAN)
        g_critical("a record of directory %" PRIu64 " is damaged", dir);
    return error;
}

int names_list(struct fs *fs, uint64_t dir_ino, uint64_t cookie,
               int (*fn)(void *arg, const struct dir_entry *entry), void *arg)
{
    struct inode *dir;
    struct listing l = {.fn = fn, .arg = arg};
    pthread_rwlock_rdlock(&fs->ns_lock);
    int error = names_get_dir(fs, dir_ino, &dir);
    if (error)
        goto out;
    if (cookie < POSITION_DOT) {
        struct dir_entry dot = {".", dir_ino, S_IFDIR, POSITION_DOT};
        l.full = fn(arg, &dot) != 0;
    }
    if (!l.full && cookie < POSITION_DOTDOT) {
        struct dir_entry dotdot = {"..", dir->attr.parent, S_IFDIR, POSITION_DOTDOT};
        l.full = fn(arg, &dotdot) != 0;
    }
    if (!l.full && cookie < INT64_MAX)
        error = list_records(fs, dir_ino, max_u64(cookie + 1, POSITION_FIRST), &l);
    inode_put(dir);
out:
    pthread_rwlock_unlock(&fs->ns_lock);
    return error;
}
