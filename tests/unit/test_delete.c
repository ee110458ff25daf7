// SPDX-License-Identifier: Apache-2.0
/* Trees that are deleted in one step: what goes, what lives on, who may, and that there is all
 * of it or nothing after a crash. */
#include "tests/unit/content_fixture.h"

#include "cowfs/delete.h"

static const struct caller user = {.uid = 50, .gid = 51};

static uint64_t tree, subdir, disk;

static void fill_tree(void)
{
    tree = make_dir(fs, ROOT_INO, "tree");
    subdir = make_dir(fs, tree, "sub");
    disk = make_file(fs, tree, "disk");
    struct inode *inode = get(fs, disk);
    write_filled(inode, 40 * CHUNK, 0, 1);
    inode_put(inode);
    make_file(fs, subdir, "memory");
    inode_put(make(fs, subdir, "link", S_IFLNK | 0777));
    inode_put(make(fs, subdir, "socket", S_IFSOCK | 0600));
    ck_assert_int_eq(link_as(fs, disk, subdir, "disk too"), 0);
    ck_assert_int_eq(xattr_set(fs, disk, "user.kind", "disk", 4, 0), 0);
}

static void setup_tree(void)
{
    setup_content();
    fill_tree();
}

static void set_owner(uint64_t ino, uint32_t mode, uint32_t uid)
{
    struct inode *inode = get(fs, ino);
    txn_enter(fs->txn);
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.mode = (inode->attr.mode & S_IFMT) | mode;
    inode->attr.uid = uid;
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_dirty(inode);
    txn_exit(fs->txn);
    inode_put(inode);
}

static int delete_by(const struct caller *caller, const char *name)
{
    struct cowfs_ioc_delete io = {0};
    GArray *inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    int error = delete_tree(fs, ROOT_INO, name, caller, &io, inos);
    ck_assert_uint_eq(inos->len, io.files + io.directories);
    ck_assert(!error || inos->len == 0);
    g_array_free(inos, TRUE);
    return error;
}

static void assert_whole(void)
{
    ck_assert_int_eq(look_up(fs, ROOT_INO, "tree"), (int64_t)tree);
    ck_assert_int_eq(look_up(fs, tree, "disk"), (int64_t)disk);
    ck_assert_int_eq(look_up(fs, subdir, "disk too"), (int64_t)disk);
    ck_assert_int_gt(look_up(fs, subdir, "memory"), 0);
    ck_assert_uint_eq(stat_of(fs, disk).st_nlink, 2);
    ck_assert_uint_eq(stat_of(fs, tree).st_nlink, 3);
}

START_TEST(all_of_it_goes_and_its_space_comes_back)
{
    struct cowfs_ioc_delete io = {0};
    GArray *inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    nlink_t links = stat_of(fs, ROOT_INO).st_nlink;
    ck_assert_int_eq(delete_tree(fs, ROOT_INO, "tree", &root_caller, &io, inos), 0);
    ck_assert_uint_eq(io.directories, 2);
    ck_assert_uint_eq(io.files, 5);
    ck_assert_uint_eq(inos->len, 7);
    ck_assert_uint_eq(g_array_index(inos, uint64_t, 0), tree);
    g_array_free(inos, TRUE);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "tree"), -ENOENT);
    ck_assert_int_eq(look_up(fs, tree, "disk"), -ENOENT);
    ck_assert_uint_eq(stat_of(fs, ROOT_INO).st_nlink, links - 1);
    reaper_wait(fs->reaper);
    ck_assert_uint_eq(live(), 0);
    ck_assert_int_eq(delete_by(&root_caller, "tree"), -ENOENT);
    reopen();
    ck_assert_int_eq(look_up(fs, ROOT_INO, "tree"), -ENOENT);
}
END_TEST

START_TEST(what_is_open_or_has_another_name_lives_on)
{
    struct inode *open = get(fs, disk), *dir = get(fs, subdir);
    int64_t memory = look_up(fs, subdir, "memory");
    ck_assert_int_eq(link_as(fs, (uint64_t)memory, ROOT_INO, "outside"), 0);
    ck_assert_int_eq(delete_by(&root_caller, "tree"), 0);
    reaper_wait(fs->reaper);
    assert_filled(open, 40 * CHUNK, 0, 1);
    ck_assert_uint_eq(stat_of(fs, disk).st_nlink, 0);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "outside"), memory);
    ck_assert_uint_eq(stat_of(fs, (uint64_t)memory).st_nlink, 1);
    /* A directory that somebody stands in takes no new names. */
    struct inode *made;
    ck_assert_int_eq(names_create(fs, subdir, "new", S_IFREG | 0644, 0, NULL, &root_caller, &made),
                     -ENOENT);
    inode_put(open);
    inode_put(dir);
}
END_TEST

START_TEST(a_file_goes_too_and_dots_do_not)
{
    ck_assert_int_eq(delete_by(&root_caller, "file"), 0);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "file"), -ENOENT);
    ck_assert_int_eq(delete_by(&root_caller, "."), -EINVAL);
    ck_assert_int_eq(delete_by(&root_caller, ".."), -EINVAL);
    ck_assert_int_eq(delete_by(&root_caller, "tree/disk"), -EINVAL);
    ck_assert_int_eq(delete_by(&root_caller, ""), -EINVAL);
    assert_whole();
}
END_TEST

START_TEST(users_need_the_rights_of_rm)
{
    /* The directory it is in. */
    set_owner(tree, 0755, user.uid);
    set_owner(subdir, 0755, user.uid);
    set_owner(ROOT_INO, 0755, 0);
    ck_assert_int_eq(delete_by(&user, "tree"), -EACCES);
    /* Sticky: only his own. */
    set_owner(ROOT_INO, 01777, 0);
    set_owner(tree, 0777, 0);
    ck_assert_int_eq(delete_by(&user, "tree"), -EPERM);
    set_owner(tree, 0755, user.uid);
    /* A directory deep in it that he may not change, list, or enter. */
    static const uint32_t too_little[] = {0555, 0333, 0666};
    for (size_t i = 0; i < G_N_ELEMENTS(too_little); i++) {
        set_owner(subdir, too_little[i], user.uid);
        ck_assert_int_eq(delete_by(&user, "tree"), -EACCES);
    }
    set_owner(subdir, 01777, 0);
    ck_assert_int_eq(delete_by(&user, "tree"), -EPERM);
    assert_whole();
    set_owner(subdir, 0777, 0);
    ck_assert_int_eq(delete_by(&user, "tree"), 0);
}
END_TEST

START_TEST(an_empty_directory_needs_no_rights_of_its_own)
{
    uint64_t empty = make_dir(fs, ROOT_INO, "empty");
    set_owner(empty, 0, 0);
    set_owner(ROOT_INO, 0777, 0);
    ck_assert_int_eq(delete_by(&user, "empty"), 0);
}
END_TEST

START_TEST(more_names_than_go_in_one_step_stay)
{
    char name[16];
    for (unsigned i = 0; i < DELETE_NAMES_MAX; i++) {
        snprintf(name, sizeof(name), "%u", i);
        make_file(fs, tree, name);
    }
    ck_assert_int_eq(delete_by(&root_caller, "tree"), -E2BIG);
    assert_whole();
}
END_TEST

/* ---- crashes ---- */

static void delete_and_die(void *arg)
{
    bool committed = arg != NULL;
    fs = open_store();
    ck_assert_int_eq(delete_by(&root_caller, "tree"), 0);
    if (committed)
        ck_assert_int_eq(fs_commit(fs), 0);
    _exit(0);
}

static void make_and_close(void *arg)
{
    (void)arg;
    fs = open_store();
    file = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    fill_tree();
    inode_put(file);
    close_store(fs);
}

static void look_after_crash(void *arg)
{
    fs = open_store();
    tree = (uint64_t)look_up(fs, ROOT_INO, "tree");
    if (arg) {
        ck_assert_int_eq((int64_t)tree, -ENOENT);
        reaper_wait(fs->reaper);
        ck_assert_uint_eq(live(), 0);
    } else if ((int64_t)tree > 0) {
        /* The store may have lost its last moments: then all of the tree is there. */
        disk = (uint64_t)look_up(fs, tree, "disk");
        subdir = (uint64_t)look_up(fs, tree, "sub");
        assert_whole();
    }
    close_store(fs);
}

START_TEST(after_a_crash_there_is_all_of_it_or_nothing)
{
    char committed[] = "committed";
    in_child(make_and_close, NULL);
    in_child(delete_and_die, NULL);
    in_child(look_after_crash, NULL);
    assert_sound();
    remove_tree(store_path);
    in_child(make_and_close, NULL);
    in_child(delete_and_die, committed);
    in_child(look_after_crash, committed);
    assert_sound();
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("delete");
    TCase *tc = tcase_create("delete");
    tcase_add_checked_fixture(tc, setup_tree, teardown_content);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, all_of_it_goes_and_its_space_comes_back);
    tcase_add_test(tc, what_is_open_or_has_another_name_lives_on);
    tcase_add_test(tc, a_file_goes_too_and_dots_do_not);
    tcase_add_test(tc, users_need_the_rights_of_rm);
    tcase_add_test(tc, an_empty_directory_needs_no_rights_of_its_own);
    tcase_add_test(tc, more_names_than_go_in_one_step_stay);
    suite_add_tcase(suite, tc);
    TCase *crash = tcase_create("crash");
    tcase_add_checked_fixture(crash, setup, teardown);
    tcase_set_timeout(crash, 120);
    tcase_add_test(crash, after_a_crash_there_is_all_of_it_or_nothing);
    suite_add_tcase(suite, crash);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
