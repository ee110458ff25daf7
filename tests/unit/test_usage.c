// SPDX-License-Identifier: Apache-2.0
/* What stat, du and df say about files that were cloned and sealed. */
#include "fs_fixture.h"

#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "tests/unit/suite.h"

enum { CHUNK = 4096, CHUNKS = 2000 };

static struct fs *fs;

static void setup_store(void)
{
    setup();
    fs = open_store();
}

static void teardown_store(void)
{
    close_store(fs);
    assert_sound();
    teardown();
}

/* A file of that many chunks, each of other content. */
static uint64_t write_file(const char *name, unsigned chunks, unsigned seed)
{
    uint64_t ino = make_file(fs, ROOT_INO, name);
    struct inode *inode = get(fs, ino);
    uint8_t *data = g_malloc0((size_t)chunks * CHUNK);
    for (unsigned i = 0; i < chunks; i++)
        snprintf((char *)data + (size_t)i * CHUNK, CHUNK, "%u %u", seed, i);
    ck_assert_int_eq(
        file_write(inode, data, (size_t)chunks * CHUNK, 0, (struct file_write_flags){0}),
        (ssize_t)chunks * CHUNK);
    g_free(data);
    inode_put(inode);
    return ino;
}

static uint64_t clone_of(uint64_t src, uint64_t dir, const char *name)
{
    struct cowfs_ioc_clone io = {0};
    ck_assert_int_eq(clone_tree(fs, src, dir, name, &root_caller, &io), 0);
    return (uint64_t)look_up(fs, dir, name);
}

static void seal(uint64_t ino)
{
    struct cowfs_ioc_seal io = {.length = UINT64_MAX};
    ck_assert_int_eq(seal_range(fs, ino, &io), 0);
    ck_assert_uint_eq(io.next, 0);
}

static void assert_du(uint64_t ino, uint64_t exclusive, uint64_t shared)
{
    struct cowfs_ioc_du du = {0};
    ck_assert_int_eq(usage_du(fs, ino, NULL, &du), 0);
    ck_assert_uint_eq(du.exclusive, exclusive * CHUNK);
    ck_assert_uint_eq(du.shared, shared * CHUNK);
}

START_TEST(du_tells_what_a_tree_holds_alone)
{
    uint64_t dir = make_dir(fs, ROOT_INO, "dir");
    uint64_t a = write_file("a", CHUNKS, 1);
    assert_du(a, CHUNKS, 0);
    uint64_t b = clone_of(a, dir, "b");
    assert_du(a, 0, CHUNKS);
    assert_du(b, 0, CHUNKS);
    assert_du(ROOT_INO, CHUNKS, 0);

    /* One chunk of its own: the others of that leaf have two owners now, those
     * of other leaves one, a leaf that both share. */
    struct inode *inode = get(fs, b);
    ck_assert_int_eq(file_write(inode, "new", 3, 5 * CHUNK, (struct file_write_flags){0}), 3);
    inode_put(inode);
    assert_du(b, 1, CHUNKS - 1);
    assert_du(a, 1, CHUNKS - 1);
    assert_du(ROOT_INO, CHUNKS + 1, 0);

    /* A clone of the clone, beside it: together they hold no more. */
    clone_of(b, dir, "c");
    assert_du(dir, 1, CHUNKS - 1);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "a"), 0);
    reaper_wait(fs->reaper);
    assert_du(dir, CHUNKS, 0);
}
END_TEST

START_TEST(equal_chunks_of_one_tree_are_its_own)
{
    uint64_t a = write_file("a", CHUNKS, 1), b = write_file("b", CHUNKS, 1);
    seal(a);
    seal(b);
    assert_du(a, 0, CHUNKS);
    assert_du(b, 0, CHUNKS);
    assert_du(ROOT_INO, CHUNKS, 0);
}
END_TEST

START_TEST(df_counts_what_is_sealed)
{
    struct cowfs_ioc_df df = {0};
    uint64_t a = write_file("a", CHUNKS, 1);
    write_file("b", 100, 2);
    ck_assert_int_eq(usage_df(fs, &df), 0);
    ck_assert_uint_eq(df.sealed, 0);
    ck_assert_uint_eq(df.stored, (CHUNKS + 100) * CHUNK);
    seal(a);
    ck_assert_int_eq(usage_df(fs, &df), 0);
    ck_assert_uint_eq(df.sealed, CHUNKS * CHUNK);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("usage");
    TCase *tcase = tcase_create("usage");
    tcase_add_checked_fixture(tcase, setup_store, teardown_store);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, du_tells_what_a_tree_holds_alone);
    tcase_add_test(tcase, equal_chunks_of_one_tree_are_its_own);
    tcase_add_test(tcase, df_counts_what_is_sealed);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
