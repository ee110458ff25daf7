// SPDX-License-Identifier: Apache-2.0
/* The superblock: made once, refused when anything about it is wrong. */
#include "chunkstore/superblock.h"
#include "tests/unit/remove_tree.h"
#include "tests/unit/suite.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

static char *scratch; /* a directory of each test's own */
static char *store;   /* in it, not made yet */
static char *file;    /* the store's superblock */
static struct errmsg err;

static void setup(void)
{
    scratch = g_dir_make_tmp("cowfs-superblock-XXXXXX", NULL);
    ck_assert_ptr_nonnull(scratch);
    store = g_build_filename(scratch, "store", NULL);
    file = g_build_filename(store, "superblock", NULL);
    err.text[0] = '\0';
}

static void teardown(void)
{
    remove_tree(scratch);
    g_free(scratch);
    g_free(store);
    g_free(file);
}

static void put_file(const char *dir, const char *name, const void *data, size_t n)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    ck_assert(g_file_set_contents(path, data, (gssize)n, NULL));
}

static bool store_is_absent(const char *path)
{
    bool absent;
    ck_assert_int_eq(superblock_store_is_absent(path, &absent, &err), 0);
    return absent;
}

static void create(void)
{
    int error = superblock_create(store, 4096, &err);
    ck_assert_msg(error == 0, "%s", err.text);
}

/* The 4096 bytes, to be changed and put back. */
static void load(uint8_t *image)
{
    g_autofree char *data = NULL;
    gsize n;
    ck_assert(g_file_get_contents(file, &data, &n, NULL));
    ck_assert_uint_eq(n, SUPERBLOCK_BYTES);
    memcpy(image, data, n);
}

static void save(const uint8_t *image, size_t n)
{
    FILE *f = fopen(file, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(image, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

static void seal(uint8_t *image)
{
    uint64_t sum = GUINT64_TO_LE(XXH3_64bits(image + 16, SUPERBLOCK_BYTES - 16));
    memcpy(image + 8, &sum, 8);
}

START_TEST(what_is_created_can_be_read)
{
    struct superblock a, b;
    time_t before = time(NULL);
    create();
    ck_assert_int_eq(superblock_read(store, false, &a, &err), 0);
    ck_assert_uint_eq(a.version, SUPERBLOCK_VERSION);
    ck_assert_uint_eq(a.chunk_bytes, 4096);
    ck_assert_int_ge((int64_t)a.created_s, before);
    ck_assert_int_le((int64_t)a.created_s, time(NULL));

    /* Each store has an identity and a secret of its own. */
    g_autofree char *other = g_build_filename(scratch, "other", NULL);
    ck_assert_int_eq(superblock_create(other, 65536, &err), 0);
    ck_assert_int_eq(superblock_read(other, true, &b, &err), 0);
    ck_assert_uint_eq(b.chunk_bytes, 65536);
    ck_assert_mem_ne(a.uuid, b.uuid, sizeof(a.uuid));
    ck_assert_mem_ne(a.hash_secret, b.hash_secret, sizeof(a.hash_secret));

    /* The secret is not for others. */
    struct stat st;
    ck_assert_int_eq(stat(file, &st), 0);
    ck_assert_uint_eq(st.st_mode & 077, 0);
}
END_TEST

START_TEST(chunk_sizes_out_of_range_are_refused)
{
    static const uint32_t bad[] = {0, 1, 2048, 4095, 4097, 12288, 131072, UINT32_MAX};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
        ck_assert_int_eq(superblock_create(store, bad[i], &err), -EINVAL);
    ck_assert(store_is_absent(store));
}
END_TEST

START_TEST(an_existing_store_is_never_overwritten)
{
    struct superblock before, after;
    ck_assert(store_is_absent(store));
    create();
    ck_assert(!store_is_absent(store));
    ck_assert_int_eq(superblock_read(store, false, &before, &err), 0);
    ck_assert_int_eq(superblock_create(store, 8192, &err), -EEXIST);
    ck_assert_ptr_nonnull(strstr(err.text, store));
    ck_assert_int_eq(superblock_read(store, false, &after, &err), 0);
    ck_assert_mem_eq(&before, &after, sizeof(before));
}
END_TEST

START_TEST(foreign_directories_are_refused)
{
    ck_assert_int_eq(g_mkdir(store, 0755), 0);
    ck_assert(store_is_absent(store));
    put_file(store, "holiday.jpg", "x", 1);
    ck_assert(!store_is_absent(store));
    ck_assert_int_eq(superblock_create(store, 4096, &err), -ENOTEMPTY);
    ck_assert_ptr_nonnull(strstr(err.text, "holiday.jpg"));
    ck_assert_int_eq(g_access(file, F_OK), -1);

    /* Something that is no directory, and one that cannot be made. */
    put_file(scratch, "plain", "x", 1);
    g_autofree char *plain = g_build_filename(scratch, "plain", NULL);
    bool absent;
    ck_assert_int_eq(superblock_store_is_absent(plain, &absent, &err), -ENOTDIR);
    ck_assert_int_eq(superblock_create(plain, 4096, &err), -ENOTDIR);
    g_autofree char *deep = g_build_filename(scratch, "no", "such", NULL);
    ck_assert_int_eq(superblock_create(deep, 4096, &err), -ENOENT);
}
END_TEST

START_TEST(fresh_file_systems_and_interrupted_creations_are_fine)
{
    g_autofree char *lost = g_build_filename(store, "lost+found", NULL);
    ck_assert_int_eq(g_mkdir(store, 0755), 0);
    ck_assert_int_eq(g_mkdir(lost, 0700), 0);
    put_file(store, "superblock.tmp-12345", "half a super", 12);
    ck_assert(store_is_absent(store));
    int lock = store_lock(store, &err);
    ck_assert_int_ge(lock, 0);
    ck_assert(store_is_absent(store));
    create();
    close(lock);
}
END_TEST

struct racer {
    pthread_t thread;
    int result;
};

static void *race(void *arg)
{
    struct racer *r = arg;
    r->result = superblock_create(store, 4096, NULL);
    return NULL;
}

START_TEST(of_several_creators_one_wins)
{
    struct racer racers[4];
    int won = 0;
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&racers[i].thread, NULL, race, &racers[i]), 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(racers[i].thread, NULL);
        won += racers[i].result == 0;
    }
    ck_assert_int_eq(won, 1);
    struct superblock sb;
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), 0);
}
END_TEST

START_TEST(no_store)
{
    struct superblock sb;
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, store));
    ck_assert_int_eq(g_mkdir(store, 0755), 0);
    ck_assert_int_eq(superblock_read(store, false, &sb, NULL), -ENOENT);
}
END_TEST

START_TEST(foreign_files_are_told_from_damage)
{
    struct superblock sb;
    uint8_t image[SUPERBLOCK_BYTES + 1];
    memset(image, 'x', sizeof(image));
    ck_assert_int_eq(g_mkdir(store, 0755), 0);
    save(image, SUPERBLOCK_BYTES);
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), -EMEDIUMTYPE);
    save(image, 3);
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), -EMEDIUMTYPE);
    ck_assert_int_eq(g_unlink(file), 0);
    ck_assert_int_eq(mkfifo(file, 0600), 0); /* and does not hang */
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), -EMEDIUMTYPE);
    ck_assert_int_eq(g_unlink(file), 0);
    ck_assert_int_eq(g_mkdir(file, 0700), 0);
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), -EMEDIUMTYPE);
    ck_assert_int_eq(g_rmdir(file), 0);
    ck_assert_int_eq(g_rmdir(store), 0);

    create();
    load(image);
    image[SUPERBLOCK_BYTES] = 0;
    for (size_t n = 0; n < SUPERBLOCK_BYTES; n += n < 300 ? 1 : 97) {
        save(image, n);
        ck_assert_int_eq(superblock_read(store, false, &sb, &err), -EUCLEAN);
    }
    save(image, SUPERBLOCK_BYTES + 1);
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), -EUCLEAN);
    save(image, SUPERBLOCK_BYTES);
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), 0);
}
END_TEST

START_TEST(each_flipped_byte_is_found)
{
    uint8_t image[SUPERBLOCK_BYTES];
    create();
    load(image);
    for (unsigned i = 0; i < SUPERBLOCK_BYTES; i++) {
        static const uint8_t flips[] = {0x01, 0x80, 0xff};
        for (unsigned k = 0; k < (i < 300 ? 3 : 1); k++) {
            struct superblock sb;
            memset(&sb, 0xee, sizeof(sb));
            struct superblock untouched = sb;
            image[i] ^= flips[k];
            save(image, sizeof(image));
            int error = superblock_read(store, true, &sb, &err);
            ck_assert_msg(error == -EUCLEAN, "byte %u: %d", i, error);
            ck_assert_mem_eq(&sb, &untouched, sizeof(sb));
            image[i] ^= flips[k];
        }
    }
}
END_TEST

START_TEST(features_of_the_future)
{
    struct superblock sb;
    uint8_t original[SUPERBLOCK_BYTES], image[SUPERBLOCK_BYTES];
    create();
    load(original);

    memcpy(image, original, sizeof(image)); /* compat: ignored, but told */
    image[31] = 0x40;
    seal(image);
    save(image, sizeof(image));
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), 0);
    ck_assert_uint_eq(sb.features_compat, (uint64_t)0x40 << 56);

    memcpy(image, original, sizeof(image)); /* ro_compat: look, do not touch */
    image[32] = 0x02;
    seal(image);
    save(image, sizeof(image));
    ck_assert_int_eq(superblock_read(store, false, &sb, &err), -EROFS);
    ck_assert_ptr_nonnull(strstr(err.text, "0x2"));
    ck_assert_int_eq(superblock_read(store, true, &sb, &err), 0);

    memcpy(image, original, sizeof(image)); /* incompat: hands off */
    image[40] = 0x04;
    seal(image);
    save(image, sizeof(image));
    ck_assert_int_eq(superblock_read(store, true, &sb, &err), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(err.text, "0x4"));

    memcpy(image, original, sizeof(image)); /* version */
    image[16] = SUPERBLOCK_VERSION + 1;
    seal(image);
    save(image, sizeof(image));
    ck_assert_int_eq(superblock_read(store, true, &sb, &err), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(err.text, "version 2"));

    memcpy(image, original, sizeof(image)); /* a checksum does not make sense true */
    image[21] = 0x11;
    seal(image);
    save(image, sizeof(image));
    ck_assert_int_eq(superblock_read(store, true, &sb, &err), -EUCLEAN);
}
END_TEST

START_TEST(the_lock_is_exclusive_and_dies_with_its_holder)
{
    create();
    int ready[2];
    ck_assert_int_eq(pipe(ready), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        bool ok = store_lock(store, NULL) >= 0;
        if (write(ready[1], ok ? "y" : "n", 1) == 1)
            pause();
        _exit(0);
    }
    char answer;
    ck_assert_int_eq(read(ready[0], &answer, 1), 1);
    ck_assert_int_eq(answer, 'y');

    ck_assert_int_eq(store_lock(store, &err), -EBUSY);
    g_autofree char *pid = g_strdup_printf("process %d", (int)child);
    ck_assert_msg(strstr(err.text, pid), "%s", err.text);

    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    int fd = store_lock(store, &err);
    ck_assert_int_ge(fd, 0);
    /* Also against another part of the same process. */
    ck_assert_int_eq(store_lock(store, &err), -EBUSY);
    close(fd);
    fd = store_lock(store, &err);
    ck_assert_int_ge(fd, 0);
    close(fd);
    close(ready[0]);
    close(ready[1]);
    ck_assert_int_eq(store_lock(scratch, NULL) >= 0, 1);
    g_autofree char *nowhere = g_build_filename(scratch, "nowhere", NULL);
    ck_assert_int_eq(store_lock(nowhere, &err), -ENOENT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("superblock");
    TCase *tc = tcase_create("superblock");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, what_is_created_can_be_read);
    tcase_add_test(tc, chunk_sizes_out_of_range_are_refused);
    tcase_add_test(tc, an_existing_store_is_never_overwritten);
    tcase_add_test(tc, foreign_directories_are_refused);
    tcase_add_test(tc, fresh_file_systems_and_interrupted_creations_are_fine);
    tcase_add_test(tc, of_several_creators_one_wins);
    tcase_add_test(tc, no_store);
    tcase_add_test(tc, foreign_files_are_told_from_damage);
    tcase_add_test(tc, each_flipped_byte_is_found);
    tcase_add_test(tc, features_of_the_future);
    tcase_add_test(tc, the_lock_is_exclusive_and_dies_with_its_holder);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
