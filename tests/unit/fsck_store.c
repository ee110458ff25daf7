// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/fsck_store.h"

#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "cowfs/names.h"
#include "cowfs/sealer.h"

#include <check.h>
#include <errno.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* RocksDB is not built for ThreadSanitizer, which cannot see its locks. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "ignore_noninstrumented_modules=1";
}

/* ---- making ---- */

static const struct caller root_caller = {.umask = 0};

/* Chunks that differ from all of another seed. */
static void write_chunks(struct inode *inode, uint64_t seed, uint64_t index, uint64_t n)
{
    uint64_t words[STORE_CHUNK / 8];
    for (uint64_t i = index; i < index + n; i++) {
        for (unsigned k = 0; k < G_N_ELEMENTS(words); k++)
            words[k] = (seed << 40 | i << 10 | k) * UINT64_C(0x9e3779b97f4a7c15) | 1;
        ck_assert_int_eq(
            file_write(inode, words, sizeof(words), i * STORE_CHUNK, (struct file_write_flags){0}),
            (ssize_t)sizeof(words));
    }
}

static struct inode *make(struct fs *fs, uint64_t dir, const char *name, uint32_t mode)
{
    struct inode *inode;
    const char *target = S_ISLNK(mode) ? "dir/a" : NULL;
    ck_assert_int_eq(names_create(fs, dir, name, mode, 0, target, &root_caller, &inode), 0);
    return inode;
}

static uint64_t make_file(struct fs *fs, uint64_t dir, const char *name, uint64_t seed,
                          uint64_t index, uint64_t n)
{
    struct inode *inode = make(fs, dir, name, S_IFREG | 0644);
    uint64_t ino = inode->ino;
    write_chunks(inode, seed, index, n);
    inode_put(inode);
    return ino;
}

static uint64_t make_other(struct fs *fs, uint64_t dir, const char *name, uint32_t mode)
{
    struct inode *inode = make(fs, dir, name, mode);
    uint64_t ino = inode->ino;
    inode_put(inode);
    return ino;
}

static uint64_t make_clone(struct fs *fs, uint64_t src, uint64_t dir, const char *name)
{
    struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
    struct inode *inode;
    ck_assert_int_eq(clone_tree(fs, src, dir, name, &root_caller, &io), 0);
    ck_assert_int_eq(names_lookup(fs, dir, name, &inode), 0);
    uint64_t ino = inode->ino;
    inode_put(inode);
    return ino;
}

static struct inode *get(struct fs *fs, uint64_t ino)
{
    struct inode *inode;
    ck_assert_int_eq(inode_get(fs->inodes, ino, &inode), 0);
    return inode;
}

static void seal(struct fs *fs, uint64_t ino)
{
    struct inode *inode = get(fs, ino);
    struct seal_result result;
    ck_assert_int_eq(seal_file_part(fs, inode, 0, UINT64_MAX, false, NULL, &result), 0);
    ck_assert_uint_eq(result.hashed_chunks, SEALED_CHUNKS);
    inode_put(inode);
}

void fsck_store_fill(struct fs *fs, struct fsck_store *s)
{
    struct inode *inode;
    s->sb = fs->sb;
    s->dir = make_other(fs, ROOT_INO, "dir", S_IFDIR | 0755);
    s->sub = make_other(fs, s->dir, "sub", S_IFDIR | 0755);
    s->a = make_file(fs, s->dir, "a", 1, 0, A_CHUNKS);
    s->b = make_clone(fs, s->a, s->dir, "b");
    s->c = make_clone(fs, s->a, s->dir, "c");
    inode = get(fs, s->b);
    write_chunks(inode, 2, 700, 1);
    inode_put(inode);
    s->small = make_file(fs, s->sub, "small", 3, 0, 3);
    ck_assert_int_eq(xattr_set(fs, s->small, "user.colour", "blue", 4, 0), 0);
    s->hard = make_file(fs, ROOT_INO, "hard1", 4, 0, 2);
    ck_assert_int_eq(names_link(fs, s->hard, ROOT_INO, "hard2", &inode), 0);
    inode_put(inode);
    s->sym = make_other(fs, ROOT_INO, "sym", S_IFLNK | 0777);
    s->pipe = make_other(fs, ROOT_INO, "pipe", S_IFIFO | 0644);
    s->empty = make_other(fs, ROOT_INO, "empty", S_IFREG | 0644);
    s->s1 = make_file(fs, ROOT_INO, "s1", 5, 0, SEALED_CHUNKS);
    s->s2 = make_file(fs, ROOT_INO, "s2", 5, 0, SEALED_CHUNKS);
    seal(fs, s->s1);
    seal(fs, s->s2);
    s->reserved = make_file(fs, ROOT_INO, "reserved", 6, 0, 1);
    inode = get(fs, s->reserved);
    ck_assert_int_eq(file_fallocate(inode, FALLOC_FL_KEEP_SIZE, 0, 100 * STORE_CHUNK), 0);
    inode_put(inode);
    s->sparse = make_file(fs, ROOT_INO, "sparse", 7, (UINT64_C(3) << 40) / STORE_CHUNK, 1);
}

struct fs *fsck_store_open(const struct fsck_store *s)
{
    struct errmsg err = {""};
    struct fs_config config = {.create = true, .chunk_bytes = STORE_CHUNK};
    struct fs *fs;
    int error = fs_open(s->path, &config, &fs, &err);
    ck_assert_msg(error == 0, "%s", err.text);
    return fs;
}

struct fsck_store *fsck_store_make(void)
{
    struct fsck_store *s = g_new0(struct fsck_store, 1);
    s->path = g_dir_make_tmp("cowfs-fsck-XXXXXX", NULL);
    ck_assert_ptr_nonnull(s->path);
    struct fs *fs = fsck_store_open(s);
    fsck_store_fill(fs, s);
    ck_assert_int_eq(fs_close(fs), 0);
    return s;
}

static void remove_tree(const char *path)
{
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;
    while (dir && (name = g_dir_read_name(dir))) {
        char *child = g_build_filename(path, name, NULL);
        remove_tree(child);
        g_free(child);
    }
    if (dir)
        g_dir_close(dir);
    ck_assert_int_eq(remove(path), 0);
}

void fsck_store_remove(struct fsck_store *s)
{
    ck_assert_ptr_null(s->db);
    remove_tree(s->path);
    g_free(s->path);
    g_free(s);
}

char *fsck_store_file(const struct fsck_store *s, const char *name)
{
    return g_build_filename(s->path, name, NULL);
}

/* ---- records ---- */

void fsck_store_edit(struct fsck_store *s)
{
    struct errmsg err = {""};
    struct metadb_options options = {0};
    char *path = fsck_store_file(s, FS_METADB_DIR);
    int error = metadb_open(path, &options, &s->db, &err);
    ck_assert_msg(error == 0, "%s", err.text);
    g_free(path);
}

void fsck_store_commit(struct fsck_store *s)
{
    ck_assert_int_eq(metadb_flip(s->db), 0);
    ck_assert_int_eq(metadb_commit(s->db), 0);
    metadb_close(s->db);
    s->db = NULL;
}

struct metadb_value record_get(struct fsck_store *s, enum key_type type, uint64_t a)
{
    uint8_t key[KEY_MAX];
    struct metadb_value value;
    size_t len = type == KEY_META ? 1 : 9;
    key_u64(key, type, a);
    int error = metadb_get(s->db, key, len, &value);
    ck_assert_msg(error == 0, "record %c/%" G_GUINT64_FORMAT ": %d", type, a, error);
    return value;
}

void record_put(struct fsck_store *s, enum key_type type, uint64_t a, const void *data, size_t len)
{
    uint8_t key[KEY_MAX];
    key_u64(key, type, a);
    metadb_put(s->db, key, type == KEY_META ? 1 : 9, data, len);
}

void record_delete(struct fsck_store *s, enum key_type type, uint64_t a)
{
    uint8_t key[KEY_MAX];
    key_u64(key, type, a);
    metadb_delete(s->db, key, type == KEY_META ? 1 : 9);
}

struct inode_attr inode_record(struct fsck_store *s, uint64_t ino)
{
    struct inode_attr attr;
    struct metadb_value value = record_get(s, KEY_INODE, ino);
    ck_assert_int_eq(inode_decode(value.data, value.len, &attr), 0);
    metadb_value_free(&value);
    return attr;
}

void inode_record_put(struct fsck_store *s, uint64_t ino, const struct inode_attr *attr)
{
    struct wbuf record = {0};
    inode_encode(attr, &record);
    record_put(s, KEY_INODE, ino, record.data, record.len);
    wbuf_free(&record);
}

struct meta meta_record(struct fsck_store *s)
{
    struct meta meta;
    struct metadb_value value = record_get(s, KEY_META, 0);
    ck_assert_int_eq(meta_decode(value.data, value.len, &meta), 0);
    metadb_value_free(&value);
    return meta;
}

void meta_record_put(struct fsck_store *s, const struct meta *meta)
{
    struct wbuf record = {0};
    meta_encode(meta, &record);
    record_put(s, KEY_META, 0, record.data, record.len);
    wbuf_free(&record);
}

unsigned node_record(struct fsck_store *s, uint64_t id, uint64_t entries[NODE_ENTRIES])
{
    unsigned level;
    struct metadb_value value = record_get(s, KEY_NODE, id);
    ck_assert_int_eq(node_decode(value.data, value.len, &level, entries), 0);
    metadb_value_free(&value);
    return level;
}

/* Not the daemon's encoder: each entry a run of its own. */
void node_record_put(struct fsck_store *s, uint64_t id, unsigned level,
                     const uint64_t entries[NODE_ENTRIES])
{
    struct wbuf record = {0};
    uint64_t predicted = 0;
    unsigned at = 0;
    wbuf_put_u8(&record, (uint8_t)level);
    for (unsigned i = 0; i < NODE_ENTRIES; i++) {
        uint64_t value = ENTRY_CHUNK(entries[i]);
        if (!value)
            continue;
        wbuf_put_varint(&record, i - at);
        wbuf_put_varint(&record, entries[i] & ENTRY_RESERVED ? 1 : 0);
        wbuf_put_svarint(&record, (int64_t)(value - predicted));
        predicted = value + 1;
        at = i + 1;
    }
    record_put(s, KEY_NODE, id, record.data, record.len);
    wbuf_free(&record);
}

uint64_t root_of(struct fsck_store *s, uint64_t ino)
{
    struct inode_attr attr = inode_record(s, ino);
    ck_assert_uint_gt(attr.map.levels, 0);
    return attr.map.root;
}

uint64_t child_of(struct fsck_store *s, uint64_t node, unsigned entry)
{
    uint64_t entries[NODE_ENTRIES];
    node_record(s, node, entries);
    ck_assert_uint_ne(entries[entry], 0);
    return entries[entry];
}

chunk_t chunk_at(struct fsck_store *s, uint64_t ino, uint64_t index)
{
    struct inode_attr attr = inode_record(s, ino);
    uint64_t at = attr.map.root;
    for (unsigned level = attr.map.levels; level > 0; level--)
        at = child_of(s, at, (unsigned)(index >> (NODE_SHIFT * (level - 1))) % NODE_ENTRIES);
    return ENTRY_CHUNK(at);
}

static void store_run(void *arg, uint32_t first, uint32_t n, struct count_info info)
{
    struct count_info *all = arg;
    for (uint32_t i = first; i < first + n; i++)
        all[i] = info;
}

static void counts_get_group(struct fsck_store *s, enum key_type type, uint64_t group,
                             struct count_info all[COUNT_GROUP])
{
    uint8_t key[KEY_MAX];
    struct metadb_value value;
    memset(all, 0, COUNT_GROUP * sizeof(*all));
    int error = metadb_get(s->db, key, key_u64(key, type, group), &value);
    if (error == -ENOENT)
        return;
    ck_assert_int_eq(error, 0);
    ck_assert_int_eq(counts_decode(value.data, value.len, store_run, all), 0);
    metadb_value_free(&value);
}

struct count_info count_of(struct fsck_store *s, enum key_type type, uint64_t id)
{
    struct count_info all[COUNT_GROUP];
    counts_get_group(s, type, id / COUNT_GROUP, all);
    return all[id % COUNT_GROUP];
}

void count_put(struct fsck_store *s, enum key_type type, uint64_t id, struct count_info info)
{
    struct count_info all[COUNT_GROUP];
    struct wbuf record = {0};
    counts_get_group(s, type, id / COUNT_GROUP, all);
    all[id % COUNT_GROUP] = info;
    for (unsigned i = 0; i < COUNT_GROUP; i++) {
        unsigned flags = (all[i].sealed ? 0x80u : 0) | all[i].merges;
        wbuf_put_varint(&record, 0);
        wbuf_put_varint(&record, (uint64_t)all[i].count << 1 | (flags != 0));
        if (flags)
            wbuf_put_u8(&record, (uint8_t)flags);
    }
    record_put(s, type, id / COUNT_GROUP, record.data, record.len);
    wbuf_free(&record);
}

static bool has_hash(struct fsck_store *s, chunk_t chunk)
{
    uint8_t key[KEY_MAX];
    struct metadb_value value;
    int error = metadb_get(s->db, key, key_u64(key, KEY_CHUNK_HASH, chunk), &value);
    metadb_value_free(&value);
    return error == 0;
}

chunk_t unowned_chunk(struct fsck_store *s)
{
    uint64_t cursor = segment_record(s, 1).cursor;
    for (uint64_t slot = cursor - 1; slot > 0; slot--) {
        chunk_t chunk = (UINT64_C(1) << 32) + slot;
        if (count_of(s, KEY_CHUNK_COUNTS, chunk).count == 0 && !has_hash(s, chunk))
            return chunk;
    }
    ck_abort_msg("all chunks are owned");
}

uint64_t unsealed_group(struct fsck_store *s)
{
    struct count_info all[COUNT_GROUP];
    uint64_t first = (UINT64_C(1) << 32) / COUNT_GROUP;
    uint64_t end = first + segment_record(s, 1).cursor / COUNT_GROUP;
    for (uint64_t group = first; group < end; group++) {
        unsigned owned = 0, sealed = 0;
        counts_get_group(s, KEY_CHUNK_COUNTS, group, all);
        for (unsigned i = 0; i < COUNT_GROUP; i++) {
            owned += all[i].count > 0;
            sealed += all[i].sealed;
        }
        if (owned && !sealed)
            return group;
    }
    ck_abort_msg("no group without sealed chunks");
}

struct segment_fields segment_record(struct fsck_store *s, uint32_t id)
{
    struct segment_fields fields;
    struct metadb_value value = record_get(s, KEY_SEGMENT, id);
    struct rbuf r = rbuf_of(value.data, value.len);
    ck_assert_uint_eq(rbuf_get_varint(&r), 1);
    fields.flags = rbuf_get_varint(&r);
    fields.live = rbuf_get_varint(&r);
    fields.cursor = rbuf_get_varint(&r);
    ck_assert(!r.bad && rbuf_left(&r) == 0);
    metadb_value_free(&value);
    return fields;
}

void segment_record_put(struct fsck_store *s, uint32_t id, const struct segment_fields *fields)
{
    struct wbuf record = {0};
    wbuf_put_varint(&record, 1);
    wbuf_put_varint(&record, fields->flags);
    wbuf_put_varint(&record, fields->live);
    wbuf_put_varint(&record, fields->cursor);
    record_put(s, KEY_SEGMENT, id, record.data, record.len);
    wbuf_free(&record);
}

uint64_t hash_of(const struct fsck_store *s, const char *name)
{
    struct fs *fs = g_new0(struct fs, 1);
    fs->sb = s->sb;
    fs->name_hash_mask = UINT64_MAX;
    uint64_t hash = names_hash(fs, name, strlen(name));
    g_free(fs);
    return hash;
}

void entries_put(struct fsck_store *s, uint64_t dir, uint64_t hash,
                 const struct entry_spec *entries, size_t n)
{
    struct wbuf record = {0};
    uint8_t key[KEY_MAX];
    wbuf_put_u8(&record, 1);
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(entries[i].name);
        wbuf_put_varint(&record, entries[i].ino << 4 | entries[i].type >> 12);
        wbuf_put_u8(&record, (uint8_t)len);
        wbuf_put_bytes(&record, entries[i].name, len);
    }
    metadb_put(s->db, key, key_u64_u64(key, KEY_DIRENT, dir, hash), record.data, record.len);
    wbuf_free(&record);
}

void entries_delete(struct fsck_store *s, uint64_t dir, uint64_t hash)
{
    uint8_t key[KEY_MAX];
    metadb_delete(s->db, key, key_u64_u64(key, KEY_DIRENT, dir, hash));
}
