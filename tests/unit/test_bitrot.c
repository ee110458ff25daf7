// SPDX-License-Identifier: Apache-2.0
/*
 * One bit flips in some file of a store: in the database's files, the
 * superblock, the segments. Then it is refused, or found by fsck or verify, or
 * harmless; but what is read without an error is what was written.
 */
#include "tests/unit/content_fixture.h"

#include "chunkstore/superblock.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>

enum { FILES = 4, BYTES = 300 * 4096 - 77 };

/* One of each kind of file, all sealed; then some changes that are in the log
 * alone. */
static void make_store(void)
{
    fs = open_store();
    for (unsigned i = 0; i < FILES; i++) {
        g_autofree char *name = g_strdup_printf("f%u", i);
        struct cowfs_ioc_seal total;
        struct inode *inode = make(fs, ROOT_INO, name, S_IFREG | 0644);
        write_filled(inode, BYTES, 0, i / 2 + 1); /* pairs of equal ones */
        seal_all(inode, &total);
        inode_put(inode);
        commit();
        if (i == 1)
            ck_assert_int_eq(metadb_compact(fs->db), 0);
    }
    file = open_file("f0");
    inode_put(clone_as(file, "clone"));
    inode_put(file);
    close_store(fs);
}

/* True if all is there, and right; false if something said that it is not. */
static bool all_is_right(void)
{
    struct fs_config config = {.verify = true};
    struct errmsg err = {""};
    bool right = true;
    if (fs_open(store_path, &config, &fs, &err)) {
        ck_assert(err.text[0]);
        return false;
    }
    for (unsigned i = 0; i <= FILES && right; i++) {
        g_autofree char *name = i < FILES ? g_strdup_printf("f%u", i) : g_strdup("clone");
        g_autofree uint8_t *data = g_malloc(BYTES), *expected = g_malloc(BYTES);
        struct inode *inode;
        int error = names_lookup(fs, ROOT_INO, name, &inode);
        /* A name that is gone without an error would be wrong. */
        ck_assert_msg(error == 0 || error == -EUCLEAN || error == -EIO, "%s: %d", name, error);
        right = error == 0;
        if (!right)
            break;
        ssize_t n = file_read(inode, data, BYTES, 0);
        inode_put(inode);
        ck_assert_msg(n == BYTES || n == -EIO || n == -EUCLEAN, "%s: %zd", name, n);
        right = n == BYTES;
        if (!right)
            break;
        fill(expected, BYTES, i < FILES ? i / 2 + 1 : 1);
        ck_assert_msg(memcmp(data, expected, BYTES) == 0, "%s: wrong bytes without an error", name);
    }
    fs_close(fs);
    return right;
}

static GPtrArray *victims;

static int note_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)ftw;
    if (type == FTW_F && st->st_size > 0)
        g_ptr_array_add(victims, g_strdup(path));
    return 0;
}

static void copy_tree(const char *from, const char *to)
{
    g_autofree char *command =
        g_strdup_printf("rm -rf '%s' && cp -a --sparse=always '%s' '%s'", to, from, to);
    ck_assert_int_eq(system(command), 0); /* NOLINT: a test, with paths of its own */
}

/* The bytes that a file really has: a segment is mostly holes. */
static off_t choose_offset(int fd, GRand *random)
{
    struct stat st;
    ck_assert_int_eq(fstat(fd, &st), 0);
    off_t at = (off_t)(g_rand_double(random) * (double)st.st_size);
    off_t data = lseek(fd, at, SEEK_DATA);
    return data < 0 ? at : MAX(at, data);
}

static void flip_a_bit(const char *name, GRand *random, char **what)
{
    int fd = open(name, O_RDWR | O_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    off_t at = choose_offset(fd, random);
    unsigned bit = (unsigned)g_rand_int_range(random, 0, 8);
    uint8_t byte;
    ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
    byte ^= (uint8_t)(1 << bit);
    ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
    *what = g_strdup_printf("%s, byte %lld, bit %u", name, (long long)at, bit);
}

/* RocksDB's threads do not live on in a child, so each look has its own. */
static void look(void *arg)
{
    (void)arg;
    _exit(all_is_right() ? 0 : 1);
}

static void child_main(void (*fn)(void *arg))
{
    pid_t pid = fork();
    if (pid == 0) {
        fn(NULL);
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) <= 1, "status %d", status);
}

static void make_in_child(void *arg)
{
    (void)arg;
    make_store();
    _exit(0);
}

enum { FLIPS = 20 };

START_TEST(a_flipped_bit_is_found_or_harmless)
{
    const char *env = g_getenv("COWFS_TEST_SEED");
    GRand *random = g_rand_new_with_seed((guint32)_i + (env ? (guint32)atoi(env) * 100 : 0) + 1);
    g_autofree char *good = g_build_filename(scratch, "good", NULL);
    child_main(make_in_child);
    copy_tree(store_path, good);
    victims = g_ptr_array_new_with_free_func(g_free);
    ck_assert_int_eq(nftw(store_path, note_file, 8, FTW_PHYS), 0);
    for (unsigned i = 0; i < FLIPS; i++) {
        g_autofree char *what = NULL;
        flip_a_bit(victims->pdata[i % victims->len], random, &what);
        pid_t pid = fork();
        if (pid == 0)
            look(NULL);
        int status;
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) <= 1, "%s: status %d", what, status);
        copy_tree(good, store_path);
    }
    g_ptr_array_free(victims, TRUE);
    g_rand_free(random);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bitrot");
    TCase *tests = tcase_create("bitrot");
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, a_flipped_bit_is_found_or_harmless, 0, 3);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
