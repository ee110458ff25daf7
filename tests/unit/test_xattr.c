// SPDX-License-Identifier: Apache-2.0
/* Extended attributes: as setxattr(2), getxattr(2) and listxattr(2) have them. */
#include "fs_fixture.h"
#include "tests/unit/suite.h"

#include <linux/limits.h>
#include <linux/xattr.h>

static struct fs *fs;
static uint64_t file;

static void setup_store(void)
{
    setup();
    fs = open_store();
    file = make_file(fs, ROOT_INO, "file");
}

static void teardown_store(void)
{
    close_store(fs);
    assert_sound();
    teardown();
}

static void assert_value(uint64_t ino, const char *name, const char *value)
{
    char buffer[64];
    ssize_t len = xattr_get(fs, ino, name, buffer, sizeof(buffer));
    ck_assert_int_eq(len, (ssize_t)strlen(value));
    ck_assert_mem_eq(buffer, value, strlen(value));
}

START_TEST(values_are_set_changed_and_removed)
{
    ck_assert_int_eq(xattr_get(fs, file, "user.a", NULL, 0), -ENODATA);
    ck_assert_int_eq(xattr_remove(fs, file, "user.a"), -ENODATA);
    ck_assert_int_eq(xattr_set(fs, file, "user.a", "one", 3, XATTR_REPLACE), -ENODATA);
    ck_assert_int_eq(xattr_set(fs, file, "user.a", "one", 3, XATTR_CREATE), 0);
    ck_assert_int_eq(xattr_set(fs, file, "user.a", "two", 3, XATTR_CREATE), -EEXIST);
    assert_value(file, "user.a", "one");
    ck_assert_int_eq(xattr_set(fs, file, "user.a", "three", 5, XATTR_REPLACE), 0);
    ck_assert_int_eq(xattr_set(fs, file, "user.ab", NULL, 0, 0), 0);
    ck_assert_int_eq(xattr_set(fs, ROOT_INO, "trusted.t", "root", 4, 0), 0);
    close_store(fs);
    assert_sound();
    fs = open_store();
    assert_value(file, "user.a", "three");
    assert_value(file, "user.ab", "");
    assert_value(ROOT_INO, "trusted.t", "root");
    ck_assert_int_eq(xattr_remove(fs, file, "user.a"), 0);
    ck_assert_int_eq(xattr_get(fs, file, "user.a", NULL, 0), -ENODATA);
    assert_value(file, "user.ab", "");
}
END_TEST

START_TEST(sizes_are_asked_for_and_checked)
{
    char buffer[8];
    ck_assert_int_eq(xattr_set(fs, file, "user.a", "12345", 5, 0), 0);
    ck_assert_int_eq(xattr_get(fs, file, "user.a", NULL, 0), 5);
    ck_assert_int_eq(xattr_get(fs, file, "user.a", buffer, 4), -ERANGE);
    ck_assert_int_eq(xattr_get(fs, file, "user.a", buffer, 5), 5);
    ck_assert_int_eq(xattr_list(fs, file, NULL, 0), 7);
    ck_assert_int_eq(xattr_list(fs, file, buffer, 6), -ERANGE);
    ck_assert_int_eq(xattr_list(fs, file, buffer, 7), 7);
    ck_assert_str_eq(buffer, "user.a");
    ck_assert_int_eq(xattr_list(fs, ROOT_INO, NULL, 0), 0);

    g_autofree char *large = g_malloc0(XATTR_SIZE_MAX + 1);
    ck_assert_int_eq(xattr_set(fs, file, "user.b", large, XATTR_SIZE_MAX + 1, 0), -E2BIG);
    ck_assert_int_eq(xattr_set(fs, file, "user.b", large, XATTR_SIZE_MAX, 0), 0);
    ck_assert_int_eq(xattr_get(fs, file, "user.b", NULL, 0), XATTR_SIZE_MAX);
}
END_TEST

START_TEST(names_are_checked)
{
    char name[258] = "user.";
    memset(name + 5, 'n', 251);
    ck_assert_int_eq(xattr_set(fs, file, name, "", 0, 0), -ERANGE);
    name[255] = 0;
    ck_assert_int_eq(xattr_set(fs, file, name, "", 0, 0), 0);
    ck_assert_int_eq(xattr_set(fs, file, "", "", 0, 0), -ERANGE);
    ck_assert_int_eq(xattr_set(fs, file, "user.", "", 0, 0), -EINVAL);
    ck_assert_int_eq(xattr_set(fs, file, "system.posix_acl_access", "", 0, 0), -ENOTSUP);
    ck_assert_int_eq(xattr_get(fs, file, "system.posix_acl_access", NULL, 0), -ENOTSUP);
    ck_assert_int_eq(xattr_set(fs, file, "other.a", "", 0, 0), -ENOTSUP);
    ck_assert_int_eq(xattr_get(fs, 4711, "user.a", NULL, 0), -ENOENT);
}
END_TEST

static bool has_capability(struct inode *inode)
{
    return inode->attr.has_capability;
}

START_TEST(capabilities_are_known_and_dropped)
{
    struct inode *inode = get(fs, file);
    ck_assert_int_eq(xattr_set(fs, file, "user.a", "b", 1, 0), 0);
    ck_assert(!has_capability(inode));
    ck_assert_int_eq(xattr_set(fs, file, "security.capability", "b", 1, 0), 0);
    ck_assert(has_capability(inode));
    txn_enter(fs->txn);
    xattr_drop_capability(inode);
    txn_exit(fs->txn);
    ck_assert(!has_capability(inode));
    ck_assert_int_eq(xattr_get(fs, file, "security.capability", NULL, 0), -ENODATA);
    ck_assert_int_eq(xattr_list(fs, file, NULL, 0), 7);
    ck_assert_int_eq(xattr_set(fs, file, "security.capability", "b", 1, 0), 0);
    ck_assert_int_eq(xattr_remove(fs, file, "security.capability"), 0);
    ck_assert(!has_capability(inode));
    inode_put(inode);
}
END_TEST

START_TEST(all_are_copied_and_dropped_at_once)
{
    enum { N = 500 };
    uint64_t copy = make_file(fs, ROOT_INO, "copy");
    char name[32];
    for (unsigned i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "user.%u", i);
        ck_assert_int_eq(xattr_set(fs, file, name, name, strlen(name), 0), 0);
    }
    ck_assert_int_eq(xattr_set(fs, file, "security.capability", "b", 1, 0), 0);
    txn_enter(fs->txn);
    ck_assert_int_eq(xattr_copy_all(fs, file, copy, false), 0);
    ck_assert_int_eq(xattr_copy_all(fs, ROOT_INO, copy, false), 0);
    txn_exit(fs->txn);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "file"), 0);
    reaper_wait(fs->reaper);
    for (unsigned i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "user.%u", i);
        assert_value(copy, name, name);
    }
    struct inode *inode = get(fs, copy);
    ck_assert(has_capability(inode));
    inode_put(inode);
    txn_enter(fs->txn);
    ck_assert_int_eq(xattr_drop_all(fs, copy), 0);
    txn_exit(fs->txn);
    ck_assert_int_eq(xattr_list(fs, copy, NULL, 0), 0);
}
END_TEST

START_TEST(a_user_copies_only_what_he_may_set)
{
    uint64_t copy = make_file(fs, ROOT_INO, "copy");
    ck_assert_int_eq(xattr_set(fs, file, "user.a", "a", 1, 0), 0);
    ck_assert_int_eq(xattr_set(fs, file, "trusted.b", "b", 1, 0), 0);
    ck_assert_int_eq(xattr_set(fs, file, "security.capability", "c", 1, 0), 0);
    txn_enter(fs->txn);
    ck_assert_int_eq(xattr_copy_all(fs, file, copy, true), 0);
    txn_exit(fs->txn);
    assert_value(copy, "user.a", "a");
    ck_assert_int_eq(xattr_list(fs, copy, NULL, 0), 7);
    struct inode *inode = get(fs, copy);
    ck_assert(!has_capability(inode));
    inode_put(inode);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("xattr");
    TCase *tcase = tcase_create("xattr");
    tcase_add_checked_fixture(tcase, setup_store, teardown_store);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, values_are_set_changed_and_removed);
    tcase_add_test(tcase, sizes_are_asked_for_and_checked);
    tcase_add_test(tcase, names_are_checked);
    tcase_add_test(tcase, capabilities_are_known_and_dropped);
    tcase_add_test(tcase, all_are_copied_and_dropped_at_once);
    tcase_add_test(tcase, a_user_copies_only_what_he_may_set);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
