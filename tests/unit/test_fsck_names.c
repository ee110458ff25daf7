// SPDX-License-Identifier: Apache-2.0
/*
 * fsck finds each kind of damage of inodes, names and attributes as that kind
 * and no other.
 */
#include "tests/unit/fsck_expect.h"
#include "tests/unit/suite.h"

#include <stdlib.h>

/* ---- inodes ---- */

static void delete_inode(struct fsck_store *s, uint64_t ino)
{
    struct metadb_value value = record_get(s, KEY_INODE, ino);
    metadb_value_free(&value);
    record_delete(s, KEY_INODE, ino);
}

static void delete_root(struct fsck_store *s)
{
    delete_inode(s, ROOT_INO);
}

static void delete_pipe(struct fsck_store *s)
{
    delete_inode(s, s->pipe);
}

static void delete_file(struct fsck_store *s)
{
    delete_inode(s, s->a);
}

static void spoil_mode(struct fsck_store *s)
{
    struct inode_attr attr = inode_record(s, s->small);
    attr.mode = 0170644;
    inode_record_put(s, s->small, &attr);
}

static void raise_nlink(struct fsck_store *s, uint64_t ino, int delta)
{
    struct inode_attr attr = inode_record(s, ino);
    attr.nlink = (uint32_t)((int)attr.nlink + delta);
    inode_record_put(s, ino, &attr);
    g_free(attr.target);
}

static void change_nlink(struct fsck_store *s)
{
    raise_nlink(s, s->hard, -1);
    raise_nlink(s, s->dir, 1);
    raise_nlink(s, s->sym, 1);
}

static void zero_nlink(struct fsck_store *s)
{
    raise_nlink(s, s->pipe, -1);
}

static void change_dir_size(struct fsck_store *s, uint64_t dir, int delta)
{
    struct inode_attr attr = inode_record(s, dir);
    attr.size_bytes += (uint64_t)(int64_t)delta;
    inode_record_put(s, dir, &attr);
}

static void spoil_dir_size(struct fsck_store *s)
{
    change_dir_size(s, s->dir, 1);
}

static void delete_entry(struct fsck_store *s)
{
    entries_delete(s, ROOT_INO, hash_of(s, "pipe"));
    change_dir_size(s, ROOT_INO, -1);
}

static void shorten_file(struct fsck_store *s)
{
    struct inode_attr attr = inode_record(s, s->a);
    attr.size_bytes = (A_CHUNKS - 1) * STORE_CHUNK;
    inode_record_put(s, s->a, &attr);
    attr = inode_record(s, s->c);
    attr.size_bytes = 1;
    inode_record_put(s, s->c, &attr);
}

static void orphan_linked(struct fsck_store *s)
{
    record_put(s, KEY_ORPHAN, s->a, "", 0);
}

static void orphan_missing(struct fsck_store *s)
{
    record_put(s, KEY_ORPHAN, 999, "", 0);
}

/* ---- names ---- */

static void put_one(struct fsck_store *s, uint64_t dir, const char *name, uint64_t hash,
                    uint64_t ino, uint32_t type)
{
    entries_put(s, dir, hash, &(struct entry_spec){name, ino, type}, 1);
}

static void change_type(struct fsck_store *s)
{
    put_one(s, ROOT_INO, "pipe", hash_of(s, "pipe"), s->pipe, S_IFSOCK);
}

static void change_hash(struct fsck_store *s)
{
    entries_delete(s, ROOT_INO, hash_of(s, "pipe"));
    put_one(s, ROOT_INO, "pipe", 12345, s->pipe, S_IFIFO);
}

static void spoil_name(struct fsck_store *s)
{
    entries_delete(s, ROOT_INO, hash_of(s, "pipe"));
    put_one(s, ROOT_INO, "..", hash_of(s, ".."), s->pipe, S_IFIFO);
}

static void double_name(struct fsck_store *s)
{
    struct entry_spec entries[] = {{"pipe", s->pipe, S_IFIFO}, {"pipe", s->sym, S_IFLNK}};
    entries_put(s, ROOT_INO, hash_of(s, "pipe"), entries, 2);
    change_dir_size(s, ROOT_INO, 1);
    raise_nlink(s, s->sym, 1);
}

static void entry_in_missing(struct fsck_store *s)
{
    put_one(s, 999, "x", hash_of(s, "x"), s->pipe, S_IFIFO);
    raise_nlink(s, s->pipe, 1);
}

static void entry_in_file(struct fsck_store *s)
{
    put_one(s, s->a, "x", hash_of(s, "x"), s->pipe, S_IFIFO);
    raise_nlink(s, s->pipe, 1);
}

static void set_parent(struct fsck_store *s, uint64_t dir, uint64_t parent)
{
    struct inode_attr attr = inode_record(s, dir);
    attr.parent = parent;
    inode_record_put(s, dir, &attr);
}

static void change_parent(struct fsck_store *s)
{
    set_parent(s, s->sub, ROOT_INO);
}

static void change_root_parent(struct fsck_store *s)
{
    set_parent(s, ROOT_INO, s->dir);
}

static void second_dir_name(struct fsck_store *s)
{
    put_one(s, ROOT_INO, "again", hash_of(s, "again"), s->sub, S_IFDIR);
    change_dir_size(s, ROOT_INO, 1);
    raise_nlink(s, ROOT_INO, 1);
}

/* `dir` is moved into its own subdirectory. */
static void make_dir_cycle(struct fsck_store *s)
{
    entries_delete(s, ROOT_INO, hash_of(s, "dir"));
    change_dir_size(s, ROOT_INO, -1);
    raise_nlink(s, ROOT_INO, -1);
    put_one(s, s->sub, "dir", hash_of(s, "dir"), s->dir, S_IFDIR);
    change_dir_size(s, s->sub, 1);
    raise_nlink(s, s->sub, 1);
    set_parent(s, s->dir, s->sub);
}

static void put_xattr(struct fsck_store *s, uint64_t ino, const char *name)
{
    struct wbuf key = {0};
    wbuf_put_u8(&key, KEY_XATTR);
    wbuf_put_be64(&key, ino);
    wbuf_put_bytes(&key, name, strlen(name));
    metadb_put(s->db, key.data, key.len, "x", 1);
    wbuf_free(&key);
}

static void xattr_of_missing(struct fsck_store *s)
{
    put_xattr(s, 999, "user.a");
    put_xattr(s, 999, "user.b");
}

static void xattr_unknown(struct fsck_store *s)
{
    put_xattr(s, s->a, "user.a");
    put_xattr(s, s->small, "security.capability");
}

static void unsealed_missing(struct fsck_store *s)
{
    record_put(s, KEY_UNSEALED, 999, "", 0);
}

/* ---- all of it ---- */

static const struct damage damages[] = {
    DAMAGE(delete_root, 1, FSCK_ROOT, FSCK_DIRENT_STRAY, FSCK_META_COUNTERS),
    DAMAGE(delete_pipe, 1, FSCK_DIRENT_INODE_MISSING),
    DAMAGE(delete_file, 1, FSCK_DIRENT_INODE_MISSING, FSCK_UNSEALED_STRAY),
    DAMAGE(spoil_mode, 1, FSCK_INODE_MODE),
    DAMAGE(change_nlink, 3, FSCK_INODE_NLINK),
    DAMAGE(zero_nlink, 1, FSCK_INODE_NLINK),
    DAMAGE(spoil_dir_size, 1, FSCK_INODE_SIZE),
    DAMAGE(delete_entry, 1, FSCK_INODE_UNREACHABLE),
    DAMAGE(shorten_file, 2, FSCK_INODE_MAP_BEYOND_SIZE),
    DAMAGE(orphan_linked, 1, FSCK_ORPHAN_LINKED),
    DAMAGE(orphan_missing, 1, FSCK_ORPHAN_STRAY),
    DAMAGE(change_type, 1, FSCK_DIRENT_TYPE),
    DAMAGE(change_hash, 1, FSCK_DIRENT_HASH),
    DAMAGE(spoil_name, 1, FSCK_DIRENT_NAME),
    DAMAGE(double_name, 1, FSCK_DIRENT_DUPLICATE),
    DAMAGE(entry_in_missing, 1, FSCK_DIRENT_STRAY),
    DAMAGE(entry_in_file, 1, FSCK_DIRENT_STRAY),
    DAMAGE(change_parent, 1, FSCK_DIR_PARENT),
    DAMAGE(change_root_parent, 1, FSCK_DIR_PARENT),
    DAMAGE(second_dir_name, 1, FSCK_DIR_TWO_NAMES),
    DAMAGE(make_dir_cycle, 1, FSCK_DIR_CYCLE),
    DAMAGE(xattr_of_missing, 2, FSCK_XATTR_STRAY),
    DAMAGE(xattr_unknown, 2, FSCK_XATTR_FLAG),
    DAMAGE(unsealed_missing, 1, FSCK_UNSEALED_STRAY),
};

START_TEST(test_damage)
{
    fsck_expect_damage(&damages[_i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fsck_names");
    TCase *t = tcase_create("damage");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test_damage, 0, G_N_ELEMENTS(damages));
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
