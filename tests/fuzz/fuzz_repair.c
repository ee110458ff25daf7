// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_repair.c - fsck and repair on a small store with any records changed,
 * removed, or added: fsck comes to a verdict, and repair to a store in which
 * fsck finds nothing.
 */
#include "tests/fuzz/fuzz.h"

#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "cowfs/names.h"
#include "cowfs/repair_internal.h"

#include <inttypes.h>

static const char *path;
static struct superblock sb;
static GPtrArray *keys, *values; /* GBytes: the records of the good store */

static struct inode *make(struct fs *fs, uint64_t dir, const char *name, uint32_t mode)
{
    static const struct caller root = {.umask = 0};
    struct inode *inode;
    FUZZ_ASSERT(
        names_create(fs, dir, name, mode, 0, S_ISLNK(mode) ? "target" : NULL, &root, &inode) == 0);
    return inode;
}

static void fill(struct inode *inode, size_t bytes, uint64_t offset, uint8_t seed)
{
    uint8_t *data = g_malloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)(i / 4096 + seed);
    FUZZ_ASSERT(file_write(inode, data, bytes, offset, (struct file_write_flags){0}) ==
                (ssize_t)bytes);
    g_free(data);
}

static void fill_store(struct fs *fs)
{
    struct cowfs_ioc_clone clone = {.version = COWFS_IOCTL_VERSION};
    struct cowfs_ioc_seal seal = {.version = COWFS_IOCTL_VERSION, .length = 16 << 20};
    static const struct caller root = {.umask = 0};
    struct inode *dir = make(fs, ROOT_INO, "dir", S_IFDIR | 0755);
    struct inode *a = make(fs, dir->ino, "a", S_IFREG | 0644);
    struct inode *b = make(fs, ROOT_INO, "b", S_IFREG | 0644);
    fill(a, 600 * 4096, 0, 1);
    fill(b, 40 * 4096, UINT64_C(1) << 31, 3);
    FUZZ_ASSERT(seal_range(fs, b->ino, &seal) == 0);
    FUZZ_ASSERT(clone_tree(fs, dir->ino, ROOT_INO, "copy", &root, &clone) == 0);
    fill(a, 4096, 4096, 200);
    FUZZ_ASSERT(xattr_set(fs, a->ino, "user.x", "y", 1, 0) == 0);
    FUZZ_ASSERT(file_fallocate(b, 1, UINT64_C(3) << 31, 10 * 4096) == 0);
    inode_put(make(fs, dir->ino, "link", S_IFLNK | 0777));
    inode_put(dir);
    inode_put(a);
    inode_put(b);
}

static void read_records(void)
{
    g_autofree char *db_path = g_build_filename(path, FS_METADB_DIR, NULL);
    struct metadb_options options = {.read_only = true};
    struct metadb *db;
    FUZZ_ASSERT(metadb_open(db_path, &options, &db, NULL) == 0);
    struct metadb_iter *it = metadb_iter_new(db, "", 0, NULL, 0);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *value = metadb_iter_value(it, &len);
        g_ptr_array_add(keys, g_bytes_new(key, key_len));
        g_ptr_array_add(values, g_bytes_new(value, len));
    }
    metadb_iter_free(it);
    metadb_close(db);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    struct fs_config config = {.create = true};
    struct errmsg err;
    struct fs *fs;
    path = make_scratch();
    FUZZ_ASSERT(fs_open(path, &config, &fs, &err) == 0);
    fill_store(fs);
    FUZZ_ASSERT(fs_close(fs) == 0);
    FUZZ_ASSERT(superblock_read(path, true, &sb, &err) == 0);
    keys = g_ptr_array_new();
    values = g_ptr_array_new();
    read_records();
    return 0;
}

static struct metadb *good_store(void)
{
    struct metadb_options options = {.in_memory = true, .create = true};
    struct metadb *db;
    FUZZ_ASSERT(metadb_open("", &options, &db, NULL) == 0);
    for (guint i = 0; i < keys->len; i++) {
        size_t key_len, len;
        const void *key = g_bytes_get_data(keys->pdata[i], &key_len);
        const void *value = g_bytes_get_data(values->pdata[i], &len);
        metadb_put(db, key, key_len, value, len);
    }
    return db;
}

/* One record becomes another, or goes. */
static void damage(struct metadb *db, struct rbuf *r)
{
    guint which = (guint)(take(r, 2) % keys->len);
    unsigned what = (unsigned)take(r, 1);
    size_t key_len, len, n = take(r, 1) % 24;
    uint8_t *key =
        g_memdup2(g_bytes_get_data(keys->pdata[which], NULL), g_bytes_get_size(keys->pdata[which]));
    const uint8_t *value = g_bytes_get_data(values->pdata[which], &len);
    struct wbuf changed = {0};
    key_len = g_bytes_get_size(keys->pdata[which]);
    wbuf_put_bytes(&changed, value, len);
    if (what & 1)
        metadb_delete(db, key, key_len);
    if (what & 2) /* of something else */
        key[take(r, 1) % key_len] = (uint8_t)take(r, 1);
    if (what & 4 && len)
        changed.data[take(r, 2) % len] = (uint8_t)take(r, 1);
    if (what & 8)
        changed.len = take(r, 2) % (len + 1);
    if (what & 16)
        wbuf_reset(&changed);
    if (what & 24)
        for (size_t i = 0; i < n; i++)
            wbuf_put_u8(&changed, (uint8_t)take(r, 1));
    if (!(what & 1) || what & 2)
        metadb_put(db, key, key_len, changed.data, changed.len);
    wbuf_free(&changed);
    g_free(key);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rbuf in = rbuf_of(data, size);
    struct repair_options options = {.memory_bytes = 1 << 20};
    struct repair_report report = {.actions = 0};
    struct errmsg err = {""};
    struct repair r = {.options = &options,
                       .report = &report,
                       .path = path,
                       .sb = sb,
                       .next_ino = 2,
                       .next_node = 1};
    r.db = good_store();
    for (unsigned i = 0; i < 16 && rbuf_left(&in) >= 4; i++)
        damage(r.db, &in);
    int error = repair_database(&r, &err);
    if (error)
        fprintf(stderr, "repair: %d %s\n", error, err.text);
    FUZZ_ASSERT(error == 0);
    if (r.void_segment) {
        g_autofree char *file = g_strdup_printf("%s/segments/%08" PRIx32, path, r.void_segment);
        FUZZ_ASSERT(unlink(file) == 0);
    }
    metadb_close(r.db);
    return 0;
}
