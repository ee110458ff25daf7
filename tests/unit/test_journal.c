// SPDX-License-Identifier: Apache-2.0
/* A crash of the process loses nothing that had ended: the next one does it again from the
 * journal. (Random operations, killed at any moment: model_core --journal.) */
#include "tests/unit/fs_fixture.h"

#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "cowfs/journal_internal.h"
#include "tests/unit/suite.h"

#include <linux/falloc.h>
#include <linux/xattr.h>
#include <string.h>
#include <sys/mman.h>

enum { CHUNK = 4096 };

static int journal_fd;
/* What a child tells: numbers of inodes. */
static uint64_t *told;

static void journal_setup(void)
{
    setup();
    journal_fd = journal_memory_new();
    ck_assert_int_gt(journal_fd, 0);
    told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(told, MAP_FAILED);
}

static void journal_teardown(void)
{
    munmap(told, 4096);
    close(journal_fd);
    teardown();
}

/* No commit but those that are asked for. */
static struct fs *open_journaled(bool resumed)
{
    return open_store_with((struct fs_config){.create = true,
                                              .commit_interval_ms = 3600 * 1000,
                                              .journal_fd = journal_fd,
                                              .resumed = resumed});
}

static bool sync_fails;
int __real_segments_sync(struct segments *s);
int __wrap_segments_sync(struct segments *s);
int __wrap_segments_sync(struct segments *s)
{
    return sync_fails ? -EIO : __real_segments_sync(s);
}

static void write_at(struct inode *inode, char c, size_t bytes, uint64_t offset)
{
    g_autofree char *data = g_malloc(bytes);
    memset(data, c, bytes);
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): freed by g_autofree */
    ssize_t done = file_write(inode, data, bytes, offset, (struct file_write_flags){0});
    ck_assert_int_eq(done, (ssize_t)bytes);
}

static void assert_bytes(struct inode *inode, char c, size_t bytes, uint64_t offset)
{
    g_autofree char *data = g_malloc(bytes);
    ck_assert_int_eq(file_read(inode, data, bytes, offset), (ssize_t)bytes);
    size_t same = 0;
    while (same < bytes && data[same] == c)
        same++;
    ck_assert_uint_eq(same, bytes);
}

static struct inode *named(struct fs *fs, uint64_t dir, const char *name)
{
    struct inode *inode;
    ck_assert_int_eq(names_lookup(fs, dir, name, &inode), 0);
    return inode;
}

/* ---- all kinds of changes ---- */

static void change_all(struct fs *fs)
{
    struct inode *a = make(fs, ROOT_INO, "a", S_IFREG | 0640);
    struct inode *b = make(fs, ROOT_INO, "b", S_IFREG | 0600);
    uint64_t dir = make_dir(fs, ROOT_INO, "dir");
    inode_put(make(fs, dir, "link", S_IFLNK | 0777));
    write_at(a, 'a', 5 * CHUNK + 100, 0);
    write_at(b, 'b', (size_t)3 << 20, 0); /* gets a home */
    ck_assert_int_eq(file_copy_range(a, CHUNK, b, CHUNK, 2 * CHUNK), 2 * CHUNK);
    ck_assert_int_eq(
        file_fallocate(b, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8 * CHUNK, 4 * CHUNK), 0);
    ck_assert_int_eq(file_fallocate(a, 0, 100 * CHUNK, 10 * CHUNK), 0);
    ck_assert_int_eq(xattr_set(fs, a->ino, "user.x", "yes", 3, 0), 0);
    ck_assert_int_eq(xattr_set(fs, a->ino, "user.y", "no", 2, 0), 0);
    ck_assert_int_eq(xattr_remove(fs, a->ino, "user.y"), 0);
    ck_assert_int_eq(link_as(fs, a->ino, dir, "a2"), 0);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "a", dir, "a", 0), 0);
    struct cowfs_ioc_clone io = {0};
    ck_assert_int_eq(clone_tree(fs, dir, ROOT_INO, "copy", &root_caller, &io), 0);
    write_at(a, 'A', CHUNK, 0); /* the copy has not got that */
    ck_assert_int_eq(file_truncate(b, (2 << 20) + 5), 0);
    make_file(fs, ROOT_INO, "gone");
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "gone"), 0);
    inode_put(a);
    inode_put(b);
}

static void check_all(struct fs *fs)
{
    struct inode *b = named(fs, ROOT_INO, "b");
    uint64_t dir = (uint64_t)look_up(fs, ROOT_INO, "dir");
    uint64_t copy = (uint64_t)look_up(fs, ROOT_INO, "copy");
    struct inode *a = named(fs, dir, "a"), *a2 = named(fs, copy, "a");
    char value[8];
    ck_assert_int_eq(look_up(fs, ROOT_INO, "a"), -ENOENT);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "gone"), -ENOENT);
    ck_assert_int_eq(look_up(fs, dir, "a2"), (int64_t)a->ino);
    ck_assert_uint_eq(stat_of(fs, a->ino).st_mode, S_IFREG | 0640);
    ck_assert_uint_eq(stat_of(fs, a->ino).st_nlink, 2);
    ck_assert_int_eq(stat_of(fs, a->ino).st_size, 110 * CHUNK);
    ck_assert_uint_eq(stat_of(fs, ROOT_INO).st_nlink, 4);
    assert_bytes(a, 'A', CHUNK, 0);
    assert_bytes(a, 'a', 4 * CHUNK + 100, CHUNK);
    assert_bytes(a2, 'a', 5 * CHUNK + 100, 0);
    ck_assert_int_eq(stat_of(fs, b->ino).st_size, (2 << 20) + 5);
    assert_bytes(b, 'b', CHUNK, 0);
    assert_bytes(b, 'a', 2 * CHUNK, CHUNK);
    assert_bytes(b, 0, 4 * CHUNK, 8 * CHUNK);
    assert_bytes(b, 'b', (2 << 20) + 5 - 12 * CHUNK, 12 * CHUNK);
    ck_assert_int_eq(xattr_get(fs, a->ino, "user.x", value, sizeof(value)), 3);
    ck_assert_int_eq(xattr_get(fs, a->ino, "user.y", value, sizeof(value)), -ENODATA);
    ck_assert_int_eq(xattr_get(fs, a2->ino, "user.x", value, sizeof(value)), 3);
    inode_put(a);
    inode_put(a2);
    inode_put(b);
}

static void crash_changed(void *arg)
{
    const bool *commit = arg;
    struct fs *fs = open_journaled(false);
    change_all(fs);
    if (commit && *commit)
        ck_assert_int_eq(fs_commit(fs), 0);
    _exit(0);
}

static void crash_opened(void *arg)
{
    (void)arg;
    check_all(open_journaled(false));
    _exit(0);
}

START_TEST(test_all)
{
    in_child(crash_changed, NULL);
    in_child(crash_opened, NULL);
    struct fs *fs = open_journaled(false);
    check_all(fs);
    close_store(fs);
    assert_sound();
    /* Closed in order: the journal has nothing, and is as good as before. */
    fs = open_journaled(false);
    check_all(fs);
    close_store(fs);
    assert_sound();
}
END_TEST

START_TEST(test_committed)
{
    bool commit = true;
    in_child(crash_changed, &commit);
    struct fs *fs = open_journaled(false);
    check_all(fs);
    close_store(fs);
    assert_sound();
}
END_TEST

static void crash_unjournaled(void *arg)
{
    (void)arg;
    struct fs *fs = open_store();
    make_file(fs, ROOT_INO, "other");
    ck_assert_int_eq(fs_commit(fs), 0);
    _exit(0);
}

START_TEST(test_foreign)
{
    /* Somebody used the store without the journal in between: it must not be replayed. */
    in_child(crash_changed, NULL);
    in_child(crash_unjournaled, NULL);
    struct fs *fs = open_journaled(false);
    ck_assert_int_gt(look_up(fs, ROOT_INO, "other"), 0);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "dir"), -ENOENT);
    close_store(fs);
    assert_sound();
}
END_TEST

/* ---- a disk that fails ---- */

static void crash_after_failed_sync(void *arg)
{
    (void)arg;
    struct fs *fs = open_journaled(false);
    struct inode *a = make(fs, ROOT_INO, "a", S_IFREG | 0644);
    write_at(a, 'a', CHUNK, 0);
    ck_assert_int_eq(fs_commit(fs), 0);
    write_at(a, 'b', CHUNK, CHUNK);
    sync_fails = true;
    ck_assert_int_eq(fs_sync_file(a, true), -EIO);
    _exit(0);
}

/* The kernel takes the pages for clean now, so the next process's sync would succeed. It must not
 * make durable what says that the bytes are there; and the one after it as little. */
static void assert_failed(struct fs *fs)
{
    struct inode *a = named(fs, ROOT_INO, "a");
    assert_bytes(a, 'a', CHUNK, 0);
    ck_assert_int_eq(fs_sync_file(a, true), -EIO);
    ck_assert_int_eq(fs_commit(fs), -EIO);
    ck_assert_int_eq(file_write(a, "c", 1, 0, (struct file_write_flags){0}), -EIO);
    inode_put(a);
}

static void crash_failed_again(void *arg)
{
    (void)arg;
    assert_failed(open_journaled(true));
    _exit(0);
}

START_TEST(test_failed_sync)
{
    in_child(crash_after_failed_sync, NULL);
    in_child(crash_failed_again, NULL);
    struct fs *fs = open_journaled(true);
    assert_failed(fs);
    ck_assert_int_eq(fs_close(fs), -EIO);
    /* Mounted again: a journal of its own, and what is durable. */
    fs = open_store();
    ck_assert_int_eq(fs_commit(fs), 0);
    struct inode *a = named(fs, ROOT_INO, "a");
    assert_bytes(a, 'a', CHUNK, 0);
    ck_assert_int_eq(stat_of(fs, a->ino).st_size, CHUNK);
    write_at(a, 'c', CHUNK, 0);
    inode_put(a);
    close_store(fs);
    assert_sound();
}
END_TEST

/* ---- whole transactions, and requests ---- */

static void crash_inside(void *arg)
{
    (void)arg;
    struct fs *fs = open_journaled(false);
    journal_request_begin(7);
    told[0] = make_file(fs, ROOT_INO, "whole");
    journal_request_end();
    journal_request_begin(9);
    txn_enter(fs->txn);
    inode_put(inode_new(fs->inodes, S_IFREG | 0644, 0, 0, 0));
    journal_complete(fs->journal, 0, 0, NULL);
    _exit(0); /* still inside */
}

START_TEST(test_inside)
{
    struct journal_completion done;
    in_child(crash_inside, NULL);
    struct fs *fs = open_journaled(false);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "whole"), (int64_t)told[0]);
    ck_assert_uint_eq(atomic_load(&fs->inode_count), 2);
    ck_assert(journal_find_completed(fs->journal, 7, &done));
    ck_assert_int_eq(done.result, 0);
    ck_assert_uint_eq(done.ino, told[0]);
    ck_assert(!journal_find_completed(fs->journal, 9, &done));
    ck_assert(!journal_find_completed(fs->journal, 8, &done));
    /* Whatever is committed since. */
    for (unsigned i = 0; i < 5; i++) {
        make_file(fs, ROOT_INO, (char[]){'f', (char)('0' + i), 0});
        ck_assert_int_eq(fs_commit(fs), 0);
    }
    ck_assert(journal_find_completed(fs->journal, 7, &done));
    journal_forget_completed(fs->journal);
    ck_assert(!journal_find_completed(fs->journal, 7, &done));
    close_store(fs);
    assert_sound();
}
END_TEST

/* Done by one process, which dies before it can say so. */
static void crash_unanswered(void *arg)
{
    (void)arg;
    struct fs *fs = open_journaled(false);
    told[0] = make_file(fs, ROOT_INO, "a");
    journal_request_begin(7);
    ck_assert_int_eq(link_as(fs, told[0], ROOT_INO, "b"), 0);
    /* Of several names, as the ioctls of many. */
    journal_request_begin(9);
    struct cowfs_ioc_clone io = {0};
    ck_assert_int_eq(clone_tree(fs, told[0], ROOT_INO, "c", &root_caller, &io), 0);
    ck_assert_int_eq(clone_tree(fs, told[0], ROOT_INO, "d", &root_caller, &io), 0);
    _exit(0);
}

/* So do those that follow it, right after they have done the journal again. */
static void crash_replayed(void *arg)
{
    (void)arg;
    open_journaled(true);
    _exit(0);
}

START_TEST(test_unanswered)
{
    struct journal_completion done;
    in_child(crash_unanswered, NULL);
    for (unsigned i = 0; i < 3; i++)
        in_child(crash_replayed, NULL);
    struct fs *fs = open_journaled(true);
    ck_assert(journal_find_completed(fs->journal, 7, &done));
    ck_assert_uint_eq(done.ino, told[0]);
    ck_assert(journal_find_completed(fs->journal, 9, &done));
    ck_assert_uint_eq(done.step, 2);
    ck_assert_uint_eq(done.counts.files, 2);
    ck_assert_uint_eq(done.counts.directories, 0);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "b"), (int64_t)told[0]);
    close_store(fs);
    assert_sound();
}
END_TEST

START_TEST(test_requests)
{
    struct journal_completion done;
    struct fs *fs = open_journaled(false);
    struct inode *a = make(fs, ROOT_INO, "a", S_IFREG | 0644);
    struct inode *b = make(fs, ROOT_INO, "b", S_IFREG | 0644);
    write_at(a, 'a', 3 * CHUNK, 0);
    journal_request_begin(1);
    ck_assert_int_eq(file_copy_range(a, 0, b, 0, 2 * CHUNK), 2 * CHUNK);
    journal_request_begin(2);
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "a", ROOT_INO, "c", 0), 0);
    journal_request_begin(3);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "nothing"), -ENOENT);
    journal_request_begin(4);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "c"), 0);
    journal_request_begin(5);
    struct cowfs_ioc_clone io = {0};
    ck_assert_int_eq(clone_tree(fs, b->ino, ROOT_INO, "d", &root_caller, &io), 0);
    journal_request_end();
    make_file(fs, ROOT_INO, "e");
    ck_assert(journal_find_completed(fs->journal, 1, &done));
    ck_assert_int_eq(done.result, 2 * CHUNK);
    ck_assert(journal_find_completed(fs->journal, 2, &done));
    ck_assert(!journal_find_completed(fs->journal, 3, &done));
    ck_assert(journal_find_completed(fs->journal, 4, &done));
    ck_assert(journal_find_completed(fs->journal, 5, &done));
    ck_assert_int_eq((int64_t)done.ino, look_up(fs, ROOT_INO, "d"));
    inode_put(a);
    inode_put(b);
    close_store(fs);
}
END_TEST

/* ---- a mount that lives on ---- */

static void crash_with_open_files(void *arg)
{
    (void)arg;
    struct fs *fs = open_journaled(false);
    struct inode *orphan = make(fs, ROOT_INO, "orphan", S_IFREG | 0644);
    struct inode *later = make(fs, ROOT_INO, "later", S_IFREG | 0644);
    inode_lookup_inc(orphan, 0);
    inode_lookup_inc(later, 0);
    write_at(orphan, 'o', 3 * CHUNK, 0);
    write_at(later, 'l', 3 * CHUNK, 0);
    told[0] = orphan->ino;
    told[1] = later->ino;
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "orphan"), 0);
    _exit(0);
}

static bool exists(struct fs *fs, uint64_t ino)
{
    struct inode *inode;
    int error = inode_get(fs->inodes, ino, &inode);
    if (!error)
        inode_put(inode);
    return !error;
}

START_TEST(test_resumed)
{
    in_child(crash_with_open_files, NULL);
    struct fs *fs = open_journaled(true);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "later"), 0);
    reaper_wait(fs->reaper);
    struct inode *orphan = get(fs, told[0]), *later = get(fs, told[1]);
    assert_bytes(orphan, 'o', 3 * CHUNK, 0);
    assert_bytes(later, 'l', 3 * CHUNK, 0);
    inode_put(orphan);
    inode_put(later);
    reaper_wait(fs->reaper);
    ck_assert(exists(fs, told[0]) && exists(fs, told[1]));
    inode_forget(fs->inodes, told[0], 0, 1);
    reaper_wait(fs->reaper);
    ck_assert(!exists(fs, told[0]));
    ck_assert(exists(fs, told[1]));
    /* Names of inodes that this process has told of count as ever. */
    later = get(fs, told[1]);
    inode_lookup_inc(later, 0);
    inode_put(later);
    inode_forget(fs->inodes, told[1], 0, 2);
    reaper_wait(fs->reaper);
    ck_assert(!exists(fs, told[1]));
    close_store(fs);
    assert_sound();
}
END_TEST

static void crash_with_orphans(void *arg)
{
    (void)arg;
    struct fs *fs = open_journaled(false);
    struct journal *j = fs->journal;
    struct inode *inode;
    ck_assert_int_eq(names_tmpfile(fs, ROOT_INO, S_IFREG | 0600, &root_caller, &inode), 0);
    told[0] = inode->ino;
    ck_assert_int_eq(journal_orphan_since(j, inode->ino, 1000), 1000);
    ck_assert_int_eq(journal_orphan_since(j, 70, 2000), 2000);
    ck_assert_int_eq(journal_orphan_since(j, 71, 3000), 3000);
    journal_orphan_again(j, 71);
    ck_assert_int_eq(fs_commit(fs), 0);
    _exit(0);
}

/* The next processes know since when a file has had no links, but not of one that was linked, or told
 * the kernel of, in between. */
START_TEST(test_orphans)
{
    in_child(crash_with_orphans, NULL);
    struct fs *fs = open_journaled(true);
    struct journal *j = fs->journal;
    ck_assert_int_eq(journal_orphan_since(j, told[0], 9000), 1000);
    ck_assert_int_eq(journal_orphan_since(j, 70, 9000), 2000);
    ck_assert_int_eq(journal_orphan_since(j, 71, 9000), 9000);
    ck_assert_int_eq(link_as(fs, told[0], ROOT_INO, "linked"), 0);
    ck_assert_int_eq(journal_orphan_since(j, told[0], 9500), 9500);
    ck_assert_int_eq(journal_orphan_since(NULL, 70, 9500), 9500);
    /* Of two that have one place the last one counts; never is it too early. */
    uint64_t same_place = 70 + JOURNAL_ORPHANS;
    journal_orphan_again(j, same_place);
    ck_assert_int_eq(journal_orphan_since(j, 70, 9600), 2000);
    ck_assert_int_eq(journal_orphan_since(j, same_place, 9700), 9700);
    ck_assert_int_eq(journal_orphan_since(j, 70, 9800), 9800);
    close_store(fs);
    /* In order: numbers of another history may be the same. */
    fs = open_journaled(false);
    ck_assert_int_eq(journal_orphan_since(fs->journal, 70, 9900), 9900);
    close_store(fs);
}
END_TEST

static void crash_after_removal(void *arg)
{
    (void)arg;
    struct fs *fs = open_journaled(false);
    struct inode *inode = make(fs, ROOT_INO, "gone", S_IFREG | 0644);
    write_at(inode, 'g', 3 * CHUNK, 0);
    told[0] = inode->ino;
    inode_put(inode);
    ck_assert_int_eq(fs_commit(fs), 0);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "gone"), 0);
    reaper_wait(fs->reaper);
    _exit(0);
}

/* A resumed mount's kernel may know any inode, but not one that was removed. */
START_TEST(test_resumed_removed)
{
    in_child(crash_after_removal, NULL);
    struct fs *fs = open_journaled(true);
    ck_assert(!exists(fs, told[0]));
    close_store(fs);
    assert_sound();
}
END_TEST

START_TEST(test_resumed_end)
{
    in_child(crash_with_open_files, NULL);
    struct fs *fs = open_journaled(true);
    close_store(fs); /* the mount is gone: so is what was kept for it */
    fs = open_store();
    ck_assert(!exists(fs, told[0]));
    ck_assert(exists(fs, told[1]));
    close_store(fs);
    assert_sound();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("journal");
    TCase *tcase = tcase_create("journal");
    tcase_add_checked_fixture(tcase, journal_setup, journal_teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, test_all);
    tcase_add_test(tcase, test_committed);
    tcase_add_test(tcase, test_foreign);
    tcase_add_test(tcase, test_failed_sync);
    tcase_add_test(tcase, test_inside);
    tcase_add_test(tcase, test_unanswered);
    tcase_add_test(tcase, test_requests);
    tcase_add_test(tcase, test_resumed);
    tcase_add_test(tcase, test_orphans);
    tcase_add_test(tcase, test_resumed_removed);
    tcase_add_test(tcase, test_resumed_end);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
