// SPDX-License-Identifier: Apache-2.0
/* Names: what each operation does to directories, links and times. Which error
 * it gives is compared with the kernel's in test_names_random.c. */
#include "fs_fixture.h"
#include "tests/unit/suite.h"

#include <linux/fs.h>

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

/* ---- times, links, owners ---- */

/* Sets the times of an inode to the distant past. */
static void make_old(uint64_t ino)
{
    struct inode *inode = get(fs, ino);
    struct timespec past = {1000, 0};
    txn_enter(fs->txn);
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.atime = inode->attr.mtime = inode->attr.ctime = past;
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_dirty(inode);
    txn_exit(fs->txn);
    inode_put(inode);
}

/* Which times were changed since make_old: some of "mc". */
static const char *touched(uint64_t ino)
{
    struct stat st = stat_of(fs, ino);
    bool m = st.st_mtim.tv_sec != 1000, c = st.st_ctim.tv_sec != 1000;
    ck_assert_int_eq(st.st_atim.tv_sec, 1000);
    return m ? (c ? "mc" : "m") : (c ? "c" : "");
}

static unsigned links(uint64_t ino)
{
    return (unsigned)stat_of(fs, ino).st_nlink;
}

static uint64_t entries(uint64_t ino)
{
    struct inode *inode = get(fs, ino);
    uint64_t n = inode->attr.size_bytes;
    inode_put(inode);
    return n;
}

START_TEST(creating_and_removing_touch_the_directory)
{
    uint64_t dir = make_dir(fs, ROOT_INO, "dir");
    ck_assert_uint_eq(links(ROOT_INO), 3);
    make_old(dir);
    uint64_t file = make_file(fs, dir, "file");
    ck_assert_str_eq(touched(dir), "mc");
    ck_assert_uint_eq(links(dir), 2);
    ck_assert_uint_eq(entries(dir), 1);

    make_old(dir);
    make_old(file);
    ck_assert_int_eq(link_as(fs, file, dir, "second"), 0);
    ck_assert_str_eq(touched(dir), "mc");
    ck_assert_str_eq(touched(file), "c");
    ck_assert_uint_eq(links(file), 2);

    make_old(dir);
    make_old(file);
    ck_assert_int_eq(names_unlink(fs, dir, "file"), 0);
    ck_assert_str_eq(touched(dir), "mc");
    ck_assert_str_eq(touched(file), "c");
    ck_assert_uint_eq(links(file), 1);

    make_old(dir);
    make_dir(fs, dir, "sub");
    ck_assert_str_eq(touched(dir), "mc");
    ck_assert_uint_eq(links(dir), 3);
    make_old(dir);
    ck_assert_int_eq(names_rmdir(fs, dir, "sub"), 0);
    ck_assert_str_eq(touched(dir), "mc");
    ck_assert_uint_eq(links(dir), 2);
    ck_assert_uint_eq(entries(dir), 1);
}
END_TEST

START_TEST(a_look_up_or_a_failure_touches_nothing)
{
    uint64_t dir = make_dir(fs, ROOT_INO, "dir");
    uint64_t file = make_file(fs, dir, "file");
    make_old(dir);
    make_old(file);
    ck_assert_int_eq(look_up(fs, dir, "file"), (int64_t)file);
    ck_assert_int_eq(names_rmdir(fs, dir, "file"), -ENOTDIR);
    ck_assert_int_eq(names_rename(fs, dir, "file", dir, "file", 0), 0);
    ck_assert_int_eq(link_as(fs, file, dir, "file"), -EEXIST);
    ck_assert_str_eq(touched(dir), "");
    ck_assert_str_eq(touched(file), "");
}
END_TEST

static struct stat create_as(uint64_t dir, const char *name, uint32_t mode, uint32_t uid,
                             uint32_t gid)
{
    struct caller caller = {.uid = uid, .gid = gid};
    struct inode *inode;
    struct stat st;
    ck_assert_int_eq(names_create(fs, dir, name, mode, 0, NULL, &caller, &inode), 0);
    inode_stat(inode, &st);
    inode_put(inode);
    return st;
}

START_TEST(setgid_directories_hand_down_their_group)
{
    struct stat st = create_as(ROOT_INO, "dir", S_IFDIR | S_ISGID | 0775, 10, 20);
    ck_assert_uint_eq(st.st_uid, 10);
    ck_assert_uint_eq(st.st_gid, 20);
    uint64_t dir = st.st_ino;
    st = create_as(dir, "file", S_IFREG | 0644, 11, 21);
    ck_assert_uint_eq(st.st_uid, 11);
    ck_assert_uint_eq(st.st_gid, 20);
    ck_assert_uint_eq(st.st_mode, S_IFREG | 0644);
    st = create_as(dir, "sub", S_IFDIR | 0755, 11, 21);
    ck_assert_uint_eq(st.st_gid, 20);
    ck_assert_uint_eq(st.st_mode, S_IFDIR | S_ISGID | 0755);
}
END_TEST

/* ---- names and targets ---- */

START_TEST(names_have_limits)
{
    char name[258];
    memset(name, 'n', sizeof(name));
    name[256] = 0;
    ck_assert_int_eq(look_up(fs, ROOT_INO, name), -ENAMETOOLONG);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, name), -ENAMETOOLONG);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "x", ROOT_INO, name, 0), -ENAMETOOLONG);
    name[255] = 0;
    uint64_t ino = make_file(fs, ROOT_INO, name);
    ck_assert_int_eq(look_up(fs, ROOT_INO, name), (int64_t)ino);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, ""), -EINVAL);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "a/b"), -EINVAL);
    ck_assert_int_eq(look_up(fs, ROOT_INO, ".."), ROOT_INO);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "."), -EISDIR);
}
END_TEST

START_TEST(symlinks_keep_their_target)
{
    char target[4097];
    memset(target, 't', sizeof(target));
    target[4096] = 0;
    struct inode *inode;
    ck_assert_int_eq(
        names_create(fs, ROOT_INO, "l", S_IFLNK | 0777, 0, target, &root_caller, &inode),
        -ENAMETOOLONG);
    target[4095] = 0;
    ck_assert_int_eq(
        names_create(fs, ROOT_INO, "l", S_IFLNK | 0777, 0, target, &root_caller, &inode), 0);
    ck_assert_str_eq(inode->attr.target, target);
    ck_assert_int_eq(stat_of(fs, inode->ino).st_size, 4095);
    inode_put(inode);
}
END_TEST

/* ---- removed directories, nameless files ---- */

START_TEST(nothing_is_made_in_a_removed_directory)
{
    struct inode *dir = make(fs, ROOT_INO, "dir", S_IFDIR | 0755), *inode;
    uint64_t file = make_file(fs, ROOT_INO, "file");
    ck_assert_int_eq(names_rmdir(fs, ROOT_INO, "dir"), 0);
    ck_assert_uint_eq(links(dir->ino), 0);
    ck_assert_int_eq(names_create(fs, dir->ino, "x", S_IFREG, 0, NULL, &root_caller, &inode),
                     -ENOENT);
    ck_assert_int_eq(names_tmpfile(fs, dir->ino, S_IFREG, &root_caller, &inode), -ENOENT);
    ck_assert_int_eq(link_as(fs, file, dir->ino, "x"), -ENOENT);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "file", dir->ino, "x", 0), -ENOENT);
    ck_assert_int_eq(look_up(fs, dir->ino, "x"), -ENOENT);
    ck_assert_int_eq(names_list(fs, dir->ino, 0, NULL, NULL), -ENOENT);
    inode_put(dir);
}
END_TEST

START_TEST(a_nameless_file_may_get_a_name)
{
    struct inode *inode;
    ck_assert_int_eq(names_tmpfile(fs, ROOT_INO, S_IFREG | 0600, &root_caller, &inode), 0);
    ck_assert_uint_eq(links(inode->ino), 0);
    ck_assert_int_eq(link_as(fs, inode->ino, ROOT_INO, "name"), 0);
    ck_assert_uint_eq(links(inode->ino), 1);
    /* One that lost its last name may not. */
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "name"), 0);
    ck_assert_int_eq(link_as(fs, inode->ino, ROOT_INO, "name"), -ENOENT);
    inode_put(inode);
    ck_assert_int_eq(names_tmpfile(fs, ROOT_INO, S_IFREG | 0600, &root_caller, &inode), 0);
    ck_assert_int_eq(link_as(fs, inode->ino, ROOT_INO, "name"), 0);
    inode_put(inode);
}
END_TEST

START_TEST(links_have_a_limit)
{
    struct inode *inode = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    struct inode *dir = make(fs, ROOT_INO, "dir", S_IFDIR | 0755), *other;
    make_dir(fs, ROOT_INO, "sub");
    make_dir(fs, dir->ino, "old");
    uint32_t dir_links = dir->attr.nlink;
    inode->attr.nlink = dir->attr.nlink = NAMES_LINK_MAX;
    ck_assert_int_eq(link_as(fs, inode->ino, ROOT_INO, "second"), -EMLINK);
    ck_assert_int_eq(names_create(fs, dir->ino, "x", S_IFDIR, 0, NULL, &root_caller, &other),
                     -EMLINK);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "sub", dir->ino, "x", 0), -EMLINK);
    make_file(fs, dir->ino, "x");
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "sub", dir->ino, "x", RENAME_EXCHANGE), -EMLINK);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "sub", dir->ino, "old", 0), 0);
    inode->attr.nlink = 1;
    dir->attr.nlink = dir_links;
    inode_put(inode);
    inode_put(dir);
}
END_TEST

/* ---- rename ---- */

START_TEST(a_directory_moves_with_all_its_bonds)
{
    uint64_t a = make_dir(fs, ROOT_INO, "a"), b = make_dir(fs, ROOT_INO, "b");
    uint64_t dir = make_dir(fs, a, "dir");
    make_old(a);
    make_old(b);
    make_old(dir);
    ck_assert_int_eq(names_rename(fs, a, "dir", b, "new", 0), 0);
    ck_assert_str_eq(touched(a), "mc");
    ck_assert_str_eq(touched(b), "mc");
    ck_assert_str_eq(touched(dir), "c");
    ck_assert_int_eq(look_up(fs, b, "new"), (int64_t)dir);
    ck_assert_int_eq(look_up(fs, dir, ".."), (int64_t)b);
    ck_assert_uint_eq(links(a), 2);
    ck_assert_uint_eq(links(b), 3);
    ck_assert_uint_eq(entries(a), 0);
    ck_assert_uint_eq(entries(b), 1);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "b", dir, "b", 0), -EINVAL);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "b", b, "b", 0), -EINVAL);
    ck_assert_int_eq(names_rename(fs, b, "new", ROOT_INO, "b", 0), -ENOTEMPTY);
}
END_TEST

START_TEST(an_exchange_moves_both)
{
    uint64_t a = make_dir(fs, ROOT_INO, "a"), b = make_dir(fs, ROOT_INO, "b");
    uint64_t dir = make_dir(fs, a, "dir"), file = make_file(fs, b, "file");
    make_old(dir);
    make_old(file);
    ck_assert_int_eq(names_rename(fs, a, "dir", b, "file", RENAME_EXCHANGE), 0);
    ck_assert_int_eq(look_up(fs, b, "file"), (int64_t)dir);
    ck_assert_int_eq(look_up(fs, a, "dir"), (int64_t)file);
    ck_assert_int_eq(look_up(fs, dir, ".."), (int64_t)b);
    ck_assert_uint_eq(links(a), 2);
    ck_assert_uint_eq(links(b), 3);
    ck_assert_str_eq(touched(dir), "c");
    ck_assert_str_eq(touched(file), "c");
    /* Two directories: links stay, parents change. */
    uint64_t other = make_dir(fs, a, "other");
    ck_assert_int_eq(names_rename(fs, a, "other", b, "file", RENAME_EXCHANGE), 0);
    ck_assert_int_eq(look_up(fs, dir, ".."), (int64_t)a);
    ck_assert_int_eq(look_up(fs, other, ".."), (int64_t)b);
    ck_assert_uint_eq(links(a), 3);
    ck_assert_uint_eq(links(b), 3);
    /* Neither may come to lie within itself. */
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "a", a, "other", RENAME_EXCHANGE), -EINVAL);
    ck_assert_int_eq(names_rename(fs, a, "other", ROOT_INO, "a", RENAME_EXCHANGE), -EINVAL);
}
END_TEST

START_TEST(a_replaced_file_is_released)
{
    uint64_t count = atomic_load(&fs->inode_count);
    make_file(fs, ROOT_INO, "old");
    uint64_t file = make_file(fs, ROOT_INO, "new");
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "new", ROOT_INO, "old", RENAME_NOREPLACE), -EEXIST);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "new", ROOT_INO, "old", 0), 0);
    reaper_wait(fs->reaper);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "old"), (int64_t)file);
    ck_assert_uint_eq(atomic_load(&fs->inode_count), count + 1);
    ck_assert_uint_eq(entries(ROOT_INO), 1);
    /* Two names of one file: both stay. */
    ck_assert_int_eq(link_as(fs, file, ROOT_INO, "link"), 0);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "link", ROOT_INO, "old", 0), 0);
    ck_assert_uint_eq(entries(ROOT_INO), 2);
    ck_assert_uint_eq(links(file), 2);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "link", ROOT_INO, "old", 1 << 2), -EINVAL);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "link", ROOT_INO, "old", 3), -EINVAL);
}
END_TEST

/* ---- listing ---- */

struct listing {
    unsigned room; /* entries that fit the buffer */
    unsigned got;
    uint64_t cookie;
    GHashTable *seen; /* name -> how often */
};

static int take(void *arg, const struct dir_entry *entry)
{
    struct listing *l = arg;
    if (l->got == l->room)
        return 1;
    l->got++;
    l->cookie = entry->cookie;
    gpointer times = g_hash_table_lookup(l->seen, entry->name);
    g_hash_table_insert(l->seen, g_strdup(entry->name),
                        GUINT_TO_POINTER(GPOINTER_TO_UINT(times) + 1));
    ck_assert(entry->type == S_IFREG || entry->type == S_IFDIR);
    return 0;
}

static GHashTable *list_all(uint64_t dir, unsigned room)
{
    struct listing l = {.room = room};
    l.seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    do {
        l.got = 0;
        ck_assert_int_eq(names_list(fs, dir, l.cookie, take, &l), 0);
    } while (l.got);
    return l.seen;
}

START_TEST(a_listing_in_pieces_is_complete)
{
    static const unsigned rooms[] = {8, 9, 50, 100000};
    enum { FILES = 3000 };
    if (_i) /* many collisions: some 3 names a hash */
        fs->name_hash_mask = 0xffff;
    unsigned made = 0;
    char name[32];
    for (unsigned i = 0; i < FILES * (_i ? 10 : 1); i++) {
        struct inode *inode;
        snprintf(name, sizeof(name), "file%u", i);
        int error = names_create(fs, ROOT_INO, name, S_IFREG, 0, NULL, &root_caller, &inode);
        ck_assert(error == 0 || (_i && error == -ENOSPC));
        made += !error;
        inode_put(inode);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(rooms); i++) {
        GHashTable *seen = list_all(ROOT_INO, rooms[i]);
        ck_assert_uint_eq(g_hash_table_size(seen), made + 2); /* "." and ".." */
        GHashTableIter it;
        gpointer times;
        g_hash_table_iter_init(&it, seen);
        while (!_i && g_hash_table_iter_next(&it, NULL, &times))
            ck_assert_uint_eq(GPOINTER_TO_UINT(times), 1);
        g_hash_table_destroy(seen);
    }
    /* Renames and removals among names that share a record. */
    for (unsigned i = 0; i < FILES; i++) {
        char new_name[32];
        snprintf(name, sizeof(name), "file%u", i);
        snprintf(new_name, sizeof(new_name), "file%u", (i * 7 + 1) % FILES);
        int64_t a = look_up(fs, ROOT_INO, name), b = look_up(fs, ROOT_INO, new_name);
        if (a < 0)
            continue;
        unsigned flags = b > 0 && i % 2 ? RENAME_EXCHANGE : 0;
        ck_assert_int_eq(names_rename(fs, ROOT_INO, name, ROOT_INO, new_name, flags), 0);
        ck_assert_int_eq(look_up(fs, ROOT_INO, new_name), a);
        ck_assert_int_eq(look_up(fs, ROOT_INO, name), flags ? b : a == b ? a : -ENOENT);
    }
    GHashTable *seen = list_all(ROOT_INO, 100);
    ck_assert_uint_eq(g_hash_table_size(seen), entries(ROOT_INO) + 2);
    GHashTableIter it;
    gpointer key;
    g_hash_table_iter_init(&it, seen);
    while (g_hash_table_iter_next(&it, &key, NULL))
        if (((char *)key)[0] != '.')
            ck_assert_int_eq(names_unlink(fs, ROOT_INO, key), 0);
    ck_assert_uint_eq(entries(ROOT_INO), 0);
    g_hash_table_destroy(seen);
}
END_TEST

START_TEST(what_stays_is_listed_while_the_rest_is_deleted)
{
    enum { FILES = 2000 };
    char name[32];
    for (unsigned i = 0; i < FILES; i++) {
        snprintf(name, sizeof(name), "%s%u", i % 2 ? "stays" : "goes", i);
        make_file(fs, ROOT_INO, name);
    }
    struct listing l = {.room = 10};
    l.seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    unsigned next = 0;
    do {
        l.got = 0;
        ck_assert_int_eq(names_list(fs, ROOT_INO, l.cookie, take, &l), 0);
        for (unsigned n = 0; n < 10 && next < FILES; n++, next += 2) {
            snprintf(name, sizeof(name), "goes%u", next);
            ck_assert_int_eq(names_unlink(fs, ROOT_INO, name), 0);
            snprintf(name, sizeof(name), "comes%u", next);
            make_file(fs, ROOT_INO, name);
        }
    } while (l.got);
    for (unsigned i = 1; i < FILES; i += 2) {
        snprintf(name, sizeof(name), "stays%u", i);
        ck_assert_uint_eq(GPOINTER_TO_UINT(g_hash_table_lookup(l.seen, name)), 1);
    }
    g_hash_table_destroy(l.seen);
}
END_TEST

START_TEST(large_directories_are_fast)
{
    enum { FILES = 100000 };
    uint64_t dir = make_dir(fs, ROOT_INO, "large");
    char name[32];
    gint64 start = g_get_monotonic_time();
    for (unsigned i = 0; i < FILES; i++) {
        snprintf(name, sizeof(name), "file%u", i);
        make_file(fs, dir, name);
    }
    gint64 created = g_get_monotonic_time();
    GHashTable *seen = list_all(dir, 100);
    ck_assert_uint_eq(g_hash_table_size(seen), FILES + 2);
    g_hash_table_destroy(seen);
    gint64 listed = g_get_monotonic_time();
    for (unsigned i = 0; i < FILES; i++) {
        snprintf(name, sizeof(name), "file%u", i);
        ck_assert_int_eq(names_unlink(fs, dir, name), 0);
    }
    gint64 removed = g_get_monotonic_time();
    printf("100,000 entries: created in %.2f s, listed in %.2f s, removed in %.2f s\n",
           (double)(created - start) / 1e6, (double)(listed - created) / 1e6,
           (double)(removed - listed) / 1e6);
    ck_assert_int_eq(names_rmdir(fs, ROOT_INO, "large"), 0);
    reaper_wait(fs->reaper);
    ck_assert_uint_eq(atomic_load(&fs->inode_count), 1);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("names");
    TCase *tcase = tcase_create("names");
    tcase_add_checked_fixture(tcase, setup_store, teardown_store);
    tcase_set_timeout(tcase, 250);
    tcase_add_test(tcase, creating_and_removing_touch_the_directory);
    tcase_add_test(tcase, a_look_up_or_a_failure_touches_nothing);
    tcase_add_test(tcase, setgid_directories_hand_down_their_group);
    tcase_add_test(tcase, names_have_limits);
    tcase_add_test(tcase, symlinks_keep_their_target);
    tcase_add_test(tcase, nothing_is_made_in_a_removed_directory);
    tcase_add_test(tcase, a_nameless_file_may_get_a_name);
    tcase_add_test(tcase, links_have_a_limit);
    tcase_add_test(tcase, a_directory_moves_with_all_its_bonds);
    tcase_add_test(tcase, an_exchange_moves_both);
    tcase_add_test(tcase, a_replaced_file_is_released);
    tcase_add_loop_test(tcase, a_listing_in_pieces_is_complete, 0, 2);
    tcase_add_test(tcase, what_stays_is_listed_while_the_rest_is_deleted);
    tcase_add_test(tcase, large_directories_are_fast);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
