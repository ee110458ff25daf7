// SPDX-License-Identifier: Apache-2.0
/* Clones of files and trees: what is in them, who may take them, and that
 * there is all of one or nothing. (That each is one point in time under
 * writers: tests/model/model_threads.c.) */
#include "tests/unit/content_fixture.h"

static uint64_t tree, subdir; /* a directory with all kinds of things, one in it */

enum { BIG = 600 * CHUNK };

static void put_content(uint64_t ino, size_t n, unsigned seed)
{
    struct inode *inode = get(fs, ino);
    write_filled(inode, n, 0, seed);
    inode_put(inode);
}

static void set_attr(uint64_t ino, uint32_t mode, uint32_t uid, time_t time)
{
    struct inode *inode = get(fs, ino);
    txn_enter(fs->txn);
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.mode = (inode->attr.mode & S_IFMT) | mode;
    inode->attr.uid = inode->attr.gid = uid;
    inode->attr.mtime = inode->attr.atime = (struct timespec){.tv_sec = time};
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_dirty(inode);
    txn_exit(fs->txn);
    inode_put(inode);
}

static void make_other(uint64_t dir, const char *name, uint32_t mode)
{
    inode_put(make(fs, dir, name, mode));
}

static void setup_tree(void)
{
    setup_content();
    tree = make_dir(fs, ROOT_INO, "tree");
    subdir = make_dir(fs, tree, "sub");
    make_dir(fs, tree, "empty");
    uint64_t disk = make_file(fs, tree, "disk"), memory = make_file(fs, subdir, "memory");
    put_content(disk, BIG, 1);
    put_content(memory, BIG, 2);
    make_file(fs, tree, "nothing");
    make_other(tree, "link", S_IFLNK | 0777);
    make_other(tree, "api.sock", S_IFSOCK | 0600);
    make_other(subdir, "fifo", S_IFIFO | 0600);
    make_other(subdir, "null", S_IFCHR | 0600);
    /* One more name in the tree, one outside. */
    ck_assert_int_eq(link_as(fs, disk, subdir, "disk too"), 0);
    ck_assert_int_eq(link_as(fs, memory, ROOT_INO, "outside"), 0);
    ck_assert_int_eq(xattr_set(fs, disk, "user.kind", "disk", 4, 0), 0);
    ck_assert_int_eq(xattr_set(fs, subdir, "user.kind", "dir", 3, 0), 0);
    set_attr(disk, 0640, 7, 1000000);
    set_attr(tree, 0750, 7, 2000000);
    set_attr(subdir, 0755, 7, 3000000);
}

static int clone_by(const struct caller *caller, uint64_t src, uint64_t dir, const char *name,
                    struct cowfs_ioc_clone *io)
{
    *io = (struct cowfs_ioc_clone){.version = COWFS_IOCTL_VERSION};
    return clone_tree(fs, src, dir, name, caller, io);
}

static int try_clone(uint64_t src, uint64_t dir, const char *name)
{
    struct cowfs_ioc_clone io;
    return clone_by(&root_caller, src, dir, name, &io);
}

static uint64_t child(uint64_t dir, const char *name)
{
    int64_t ino = look_up(fs, dir, name);
    ck_assert_msg(ino > 0, "%s: %" PRId64, name, ino);
    return (uint64_t)ino;
}

static void assert_content(uint64_t ino, size_t n, unsigned seed)
{
    struct inode *inode = get(fs, ino);
    ck_assert_uint_eq(size_of(inode), n);
    assert_filled(inode, n, 0, seed);
    inode_put(inode);
}

/* ---- what is in a clone ---- */

START_TEST(a_clone_of_a_tree_has_all_but_what_belongs_to_a_process)
{
    struct cowfs_ioc_clone io;
    uint64_t before = live();
    ck_assert_int_eq(clone_by(&root_caller, tree, ROOT_INO, "clone", &io), 0);
    ck_assert_uint_eq(io.files, 4); /* names */
    ck_assert_uint_eq(io.directories, 3);
    ck_assert_uint_eq(io.symlinks, 1);
    ck_assert_uint_eq(io.left_out, 3);
    ck_assert_uint_eq(live(), before);

    uint64_t clone = child(ROOT_INO, "clone"), sub = child(clone, "sub");
    ck_assert_uint_ne(clone, tree);
    assert_content(child(clone, "disk"), BIG, 1);
    assert_content(child(sub, "memory"), BIG, 2);
    assert_content(child(clone, "nothing"), 0, 0);
    ck_assert_int_eq(look_up(fs, clone, "api.sock"), -ENOENT);
    ck_assert_int_eq(look_up(fs, sub, "fifo"), -ENOENT);
    ck_assert_int_eq(look_up(fs, sub, "null"), -ENOENT);
    ck_assert_uint_eq(child(sub, ".."), clone);
    ck_assert_uint_eq(child(clone, ".."), ROOT_INO);
    struct inode *link = get(fs, child(clone, "link"));
    ck_assert_str_eq(link->attr.target, "target");
    inode_put(link);
    ck_assert_uint_eq(stat_of(fs, clone).st_nlink, 4);
    ck_assert_int_eq(names_rmdir(fs, clone, "empty"), 0);
    ck_assert_int_eq(names_rmdir(fs, clone, "sub"), -ENOTEMPTY);
    child(tree, "empty");
}
END_TEST

START_TEST(names_of_one_file_are_of_one_file_again)
{
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "clone"), 0);
    uint64_t clone = child(ROOT_INO, "clone"), sub = child(clone, "sub");
    uint64_t disk = child(clone, "disk");
    ck_assert_uint_eq(child(sub, "disk too"), disk);
    ck_assert_uint_ne(disk, child(tree, "disk"));
    ck_assert_uint_eq(stat_of(fs, disk).st_nlink, 2);
    /* A name outside of the tree does not count. */
    ck_assert_uint_eq(stat_of(fs, child(sub, "memory")).st_nlink, 1);
    ck_assert_uint_eq(stat_of(fs, child(subdir, "memory")).st_nlink, 2);
}
END_TEST

START_TEST(attributes_are_cloned)
{
    char value[8];
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "clone"), 0);
    uint64_t clone = child(ROOT_INO, "clone");
    struct stat st = stat_of(fs, clone), sub = stat_of(fs, child(clone, "sub"));
    struct stat disk = stat_of(fs, child(clone, "disk"));
    ck_assert_uint_eq(st.st_mode, S_IFDIR | 0750);
    ck_assert_uint_eq(st.st_uid, 7);
    ck_assert_int_eq(st.st_mtim.tv_sec, 2000000);
    ck_assert_int_eq(sub.st_mtim.tv_sec, 3000000);
    ck_assert_uint_eq(disk.st_mode, S_IFREG | 0640);
    ck_assert_int_eq(disk.st_mtim.tv_sec, 1000000);
    ck_assert_int_ne(disk.st_ctim.tv_sec, 1000000);
    ck_assert_int_eq(xattr_get(fs, child(clone, "disk"), "user.kind", value, 8), 4);
    ck_assert_int_eq(xattr_get(fs, child(clone, "sub"), "user.kind", value, 8), 3);
    ck_assert_int_eq(xattr_get(fs, child(clone, "nothing"), "user.kind", value, 8), -ENODATA);
}
END_TEST

START_TEST(a_clone_and_its_source_go_their_own_ways)
{
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "clone"), 0);
    uint64_t disk = child(tree, "disk"), cloned = child(child(ROOT_INO, "clone"), "disk");
    put_content(disk, CHUNK, 5);
    assert_content(cloned, BIG, 1);
    put_content(cloned, 10, 6);
    ck_assert_int_eq(xattr_set(fs, cloned, "user.kind", "other", 5, 0), 0);
    char value[8];
    ck_assert_int_eq(xattr_get(fs, disk, "user.kind", value, 8), 4);
    /* A clone of the clone, then both go. */
    ck_assert_int_eq(try_clone(cloned, ROOT_INO, "third"), 0);
    ck_assert_int_eq(names_unlink(fs, tree, "disk"), 0);
    ck_assert_int_eq(names_unlink(fs, subdir, "disk too"), 0);
    ck_assert_int_eq(names_unlink(fs, child(ROOT_INO, "clone"), "disk"), 0);
    reaper_wait(fs->reaper);
    commit();
    struct inode *third = open_file("third");
    assert_filled(third, 10, 0, 6);
    uint8_t rest[BIG];
    fill(rest, sizeof(rest), 1);
    assert_bytes(third, rest + 10, sizeof(rest) - 10, 10);
    inode_put(third);
}
END_TEST

START_TEST(a_clone_is_there_after_reopening)
{
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "clone"), 0);
    put_content(child(tree, "disk"), BIG, 9);
    reopen();
    assert_content(child(child(ROOT_INO, "clone"), "disk"), BIG, 1);
    assert_content(child(ROOT_INO, "outside"), BIG, 2);
}
END_TEST

START_TEST(a_directory_of_many_files)
{
    uint64_t many = make_dir(fs, ROOT_INO, "many");
    for (unsigned i = 0; i < 2000; i++) {
        char name[32];
        snprintf(name, sizeof(name), "file-%u", i);
        struct inode *inode = make(fs, many, name, S_IFREG | 0644);
        if (i % 10 == 0)
            write_filled(inode, 100, 0, i);
        inode_put(inode);
    }
    struct cowfs_ioc_clone io;
    ck_assert_int_eq(clone_by(&root_caller, many, ROOT_INO, "clone", &io), 0);
    ck_assert_uint_eq(io.files, 2000);
    uint64_t clone = child(ROOT_INO, "clone");
    for (unsigned i = 0; i < 2000; i++) {
        char name[32];
        snprintf(name, sizeof(name), "file-%u", i);
        assert_content(child(clone, name), i % 10 ? 0 : 100, i);
    }
}
END_TEST

/* ---- what is refused ---- */

START_TEST(the_destination_must_be_free_and_a_name)
{
    char longest[300];
    memset(longest, 'x', sizeof(longest));
    longest[256] = 0;
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "file"), -EEXIST);
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "tree"), -EEXIST);
    ck_assert_int_eq(try_clone(file->ino, tree, "sub"), -EEXIST);
    ck_assert_int_eq(try_clone(file->ino, tree, "a/b"), -EINVAL);
    ck_assert_int_eq(try_clone(file->ino, tree, ""), -EINVAL);
    ck_assert_int_eq(try_clone(file->ino, tree, longest), -ENAMETOOLONG);
    longest[255] = 0;
    ck_assert_int_eq(try_clone(file->ino, tree, longest), 0);
    ck_assert_int_lt(try_clone(file->ino, tree, "."), 0);
    ck_assert_int_lt(try_clone(file->ino, tree, ".."), 0);
    ck_assert_int_eq(try_clone(tree, file->ino, "clone"), -ENOTDIR);
}
END_TEST

START_TEST(a_directory_cannot_be_cloned_into_itself)
{
    ck_assert_int_eq(try_clone(tree, tree, "clone"), -EINVAL);
    ck_assert_int_eq(try_clone(tree, subdir, "clone"), -EINVAL);
    ck_assert_int_eq(try_clone(ROOT_INO, ROOT_INO, "clone"), -EINVAL);
    ck_assert_int_eq(try_clone(ROOT_INO, subdir, "clone"), -EINVAL);
    ck_assert_int_eq(try_clone(subdir, tree, "clone"), 0);
    assert_content(child(child(tree, "clone"), "memory"), BIG, 2);
}
END_TEST

START_TEST(what_cannot_be_cloned)
{
    ck_assert_int_eq(try_clone(child(tree, "api.sock"), ROOT_INO, "clone"), -EINVAL);
    ck_assert_int_eq(try_clone(child(tree, "link"), ROOT_INO, "clone"), -EINVAL);
    ck_assert_int_eq(try_clone(4711, ROOT_INO, "clone"), -ENOENT);
    ck_assert_int_eq(try_clone(tree, 4711, "clone"), -ENOENT);
    /* Open, but deleted. */
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "file"), 0);
    ck_assert_int_eq(try_clone(file->ino, ROOT_INO, "clone"), -ENOENT);
    struct inode *dir = get(fs, child(tree, "empty"));
    ck_assert_int_eq(names_rmdir(fs, tree, "empty"), 0);
    ck_assert_int_eq(try_clone(tree, dir->ino, "clone"), -ENOENT);
    inode_put(dir);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "clone"), -ENOENT);
}
END_TEST

START_TEST(a_store_for_reading_only_has_no_new_clones)
{
    inode_put(file);
    close_store(fs);
    fs = open_store_with((struct fs_config){.read_only = true});
    file = open_file("file");
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "clone"), -EROFS);
}
END_TEST

/* ---- who may ---- */

static const uint32_t groups[] = {30, 40};
static const struct caller user = {.uid = 50, .gid = 51, .groups = groups, .group_count = 2};

START_TEST(users_need_to_write_the_directory_and_to_read_all_that_is_cloned)
{
    struct cowfs_ioc_clone io;
    uint64_t disk = child(tree, "disk"), home = make_dir(fs, ROOT_INO, "home");
    ck_assert_int_eq(clone_by(&user, file->ino, home, "clone", &io), -EACCES);
    set_attr(home, 0700, user.uid, 0);
    ck_assert_int_eq(clone_by(&user, file->ino, home, "clone", &io), 0);
    /* The tree is closed to him, then one directory, then one file in it. */
    ck_assert_int_eq(clone_by(&user, tree, home, "tree", &io), -EACCES);
    set_attr(tree, 0755, 7, 0);
    ck_assert_int_eq(clone_by(&user, tree, home, "tree", &io), -EACCES);
    set_attr(disk, 0644, 7, 0);
    set_attr(subdir, 0711, 7, 0);
    ck_assert_int_eq(clone_by(&user, tree, home, "tree", &io), -EACCES);
    set_attr(subdir, 0744, 7, 0);
    ck_assert_int_eq(clone_by(&user, tree, home, "tree", &io), -EACCES);
    set_attr(subdir, 0755, 7, 0);
    ck_assert_int_eq(look_up(fs, home, "tree"), -ENOENT);
    ck_assert_int_eq(clone_by(&user, tree, home, "tree", &io), 0);
    ck_assert_uint_eq(io.files, 4);
}
END_TEST

START_TEST(the_group_of_a_file_decides_for_its_members)
{
    struct cowfs_ioc_clone io;
    set_attr(file->ino, 0604, 40, 0); /* uid and gid 40 */
    ck_assert_int_eq(clone_by(&user, file->ino, ROOT_INO, "clone", &io), -EACCES);
    set_attr(ROOT_INO, 0777, 0, 0);
    ck_assert_int_eq(clone_by(&user, file->ino, ROOT_INO, "clone", &io), -EACCES);
    set_attr(file->ino, 0640, 40, 0);
    ck_assert_int_eq(clone_by(&user, file->ino, ROOT_INO, "clone", &io), 0);
}
END_TEST

START_TEST(clones_belong_to_who_takes_them)
{
    struct cowfs_ioc_clone io;
    set_attr(ROOT_INO, 0777, 0, 0);
    set_attr(file->ino, 06755, 7, 0);
    ck_assert_int_eq(clone_by(&user, file->ino, ROOT_INO, "his", &io), 0);
    struct stat st = stat_of(fs, child(ROOT_INO, "his"));
    ck_assert_uint_eq(st.st_uid, user.uid);
    ck_assert_uint_eq(st.st_gid, user.gid);
    ck_assert_uint_eq(st.st_mode, S_IFREG | 0755);
    ck_assert_int_eq(try_clone(file->ino, ROOT_INO, "root's"), 0);
    st = stat_of(fs, child(ROOT_INO, "root's"));
    ck_assert_uint_eq(st.st_uid, 7);
    ck_assert_uint_eq(st.st_mode, S_IFREG | 06755);
}
END_TEST

/* ---- all or nothing ---- */

/* Replaces the record of the counts of nodes, which makes sharing any map
 * fail. Nothing may have loaded it yet. Returns the old one. */
static struct metadb_value damage_counts(void)
{
    uint8_t key[KEY_MAX];
    size_t len = key_u64(key, KEY_NODE_COUNTS, 0);
    struct metadb_value old;
    ck_assert_int_eq(metadb_get(fs->db, key, len, &old), 0);
    txn_enter(fs->txn);
    metadb_put(fs->db, key, len, "\xff", 1);
    txn_exit(fs->txn);
    return old;
}

static void repair_counts(struct metadb_value *old)
{
    uint8_t key[KEY_MAX];
    txn_enter(fs->txn);
    metadb_put(fs->db, key, key_u64(key, KEY_NODE_COUNTS, 0), old->data, old->len);
    txn_exit(fs->txn);
    metadb_value_free(old);
}

START_TEST(a_clone_that_fails_midway_leaves_nothing)
{
    reopen();
    struct metadb_value counts = damage_counts();
    struct inode *root = get(fs, ROOT_INO);
    uint64_t entries = root->attr.size_bytes;
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "clone"), -EUCLEAN);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "clone"), -ENOENT);
    ck_assert_uint_eq(root->attr.size_bytes, entries);
    inode_put(root);
    repair_counts(&counts);
    /* The half that was made is released like any deleted file. */
    reaper_wait(fs->reaper);
    reopen();
    ck_assert_int_eq(try_clone(tree, ROOT_INO, "clone"), 0);
    assert_content(child(child(ROOT_INO, "clone"), "disk"), BIG, 1);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("clone");
    TCase *tc = tcase_create("clone");
    tcase_add_checked_fixture(tc, setup_tree, teardown_content);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_clone_of_a_tree_has_all_but_what_belongs_to_a_process);
    tcase_add_test(tc, names_of_one_file_are_of_one_file_again);
    tcase_add_test(tc, attributes_are_cloned);
    tcase_add_test(tc, a_clone_and_its_source_go_their_own_ways);
    tcase_add_test(tc, a_clone_is_there_after_reopening);
    tcase_add_test(tc, a_directory_of_many_files);
    tcase_add_test(tc, the_destination_must_be_free_and_a_name);
    tcase_add_test(tc, a_directory_cannot_be_cloned_into_itself);
    tcase_add_test(tc, what_cannot_be_cloned);
    tcase_add_test(tc, a_store_for_reading_only_has_no_new_clones);
    tcase_add_test(tc, users_need_to_write_the_directory_and_to_read_all_that_is_cloned);
    tcase_add_test(tc, the_group_of_a_file_decides_for_its_members);
    tcase_add_test(tc, clones_belong_to_who_takes_them);
    tcase_add_test(tc, a_clone_that_fails_midway_leaves_nothing);
    suite_add_tcase(suite, tc);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
