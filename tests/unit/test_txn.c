// SPDX-License-Identifier: Apache-2.0
/* Commits that fail: what a store does with errors of the disk below. */
#include "fs_fixture.h"

#include "cowfs/file.h"
#include "tests/unit/suite.h"

#include <stdatomic.h>

/* In front of libc's: the segments are synced by it. Not static: it has to be found. */
static atomic_int fdatasync_errno;
int fdatasync(int fd)
{
    int error = atomic_exchange(&fdatasync_errno, 0);
    if (!error)
        return fsync(fd);
    errno = error;
    return -1;
}

static void write_bytes(struct fs *fs, uint64_t ino, const char *text)
{
    struct inode *inode = get(fs, ino);
    ck_assert_int_eq(file_write(inode, text, strlen(text), 0, (struct file_write_flags){0}),
                     (ssize_t)strlen(text));
    inode_put(inode);
}

/* The kernel may have dropped the pages: no later commit may call them safe, and
 * nobody may go on as if one would. */
static void nothing_more_is_accepted(int error)
{
    struct fs *fs =
        open_store_with((struct fs_config){.create = true, .commit_interval_ms = 3600000});
    uint64_t ino = make_file(fs, ROOT_INO, "a");
    ck_assert_int_eq(fs_commit(fs), 0);
    write_bytes(fs, ino, "lost");
    atomic_store(&fdatasync_errno, error);
    ck_assert_int_eq(fs_commit(fs), -error);
    ck_assert_int_lt(fs_commit(fs), 0);
    ck_assert_int_eq(fs_may_change(fs), -EIO);
    ck_assert_int_eq(fs_commit(fs), -EIO);
    ck_assert_int_eq(fs_close(fs), -EIO);
    /* The last commit stands. */
    fs = open_store();
    ck_assert_int_eq(look_up(fs, ROOT_INO, "a"), (int64_t)ino);
    ck_assert_int_eq(stat_of(fs, ino).st_size, 0);
    close_store(fs);
    assert_sound();
}

START_TEST(an_io_error_of_fdatasync_is_final)
{
    nothing_more_is_accepted(EIO);
}
END_TEST

START_TEST(so_is_a_full_disk_that_only_fdatasync_notices)
{
    nothing_more_is_accepted(ENOSPC);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("txn");
    TCase *tcase = tcase_create("txn");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, an_io_error_of_fdatasync_is_final);
    tcase_add_test(tcase, so_is_a_full_disk_that_only_fdatasync_notices);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
