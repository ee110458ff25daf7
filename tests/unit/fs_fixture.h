// SPDX-License-Identifier: Apache-2.0
/*
 * fs_fixture.h - what the tests of whole stores share: a store in memory for
 * each test, crashes, short names for operations that have to succeed, and
 * fsck as the judge.
 */
#ifndef TESTS_UNIT_FS_FIXTURE_H
#define TESTS_UNIT_FS_FIXTURE_H

#include "cowfs/fsck.h"
#include "cowfs/names.h"
#include "cowfs/reap.h"
#include "tests/unit/remove_tree.h"

#include <check.h>
#include <errno.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* RocksDB is not built with the sanitizer, which then does not see how its
 * threads synchronise, but does see its calls of memcpy. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "ignore_noninstrumented_modules=1";
}

static char *scratch;    /* a directory of each test's own, in memory */
static char *store_path; /* the store in it */
static const struct caller root_caller = {0};

static inline void setup(void)
{
    char template[] = "/dev/shm/cowfs-test-XXXXXX";
    scratch = g_mkdtemp(template) ? g_strdup(template) : g_dir_make_tmp("cowfs-XXXXXX", NULL);
    ck_assert_ptr_nonnull(scratch);
    store_path = g_build_filename(scratch, "store", NULL);
}

static inline void teardown(void)
{
    remove_tree(scratch);
    g_free(scratch);
    g_free(store_path);
}

static inline struct fs *open_store_with(struct fs_config config)
{
    struct errmsg err = {""};
    struct fs *fs;
    int error = fs_open(store_path, &config, &fs, &err);
    ck_assert_msg(error == 0, "open: %d %s", error, err.text);
    return fs;
}

static inline struct fs *open_store(void)
{
    return open_store_with((struct fs_config){.create = true});
}

static inline void close_store(struct fs *fs)
{
    ck_assert_int_eq(fs_close(fs), 0);
}

static inline void print_finding(void *arg, enum fsck_kind kind, const char *text)
{
    (void)arg;
    fprintf(stderr, "fsck: %s: %s\n", fsck_kind_id(kind), text);
}

/* The store, which nobody has open, has no damage and no leak. */
static inline void assert_sound(void)
{
    struct fsck_report report;
    struct errmsg err = {""};
    struct fsck_options options = {.check_data = true, .message = print_finding};
    int error = fsck_run(store_path, &options, &report, &err);
    ck_assert_msg(error == 0, "fsck: %d %s", error, err.text);
    ck_assert_uint_eq(report.errors, 0);
    ck_assert_uint_eq(report.leaks, 0);
}

/*
 * Runs fn in a process of its own, which has to say that all is well by
 * exiting with 0. fn may end it at any point (a crash of the daemon). To be
 * called only by a process that has not opened a store itself: RocksDB's
 * threads do not live on in a child.
 */
static inline void in_child(void (*fn)(void *arg), void *arg)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        fn(arg);
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child: status %d", status);
}

/* ---- operations that have to succeed ---- */

static inline struct inode *make(struct fs *fs, uint64_t dir, const char *name, uint32_t mode)
{
    struct inode *inode;
    int error =
        names_create(fs, dir, name, mode, 0, S_ISLNK(mode) ? "target" : NULL, &root_caller, &inode);
    ck_assert_msg(error == 0, "create %s: %d", name, error);
    return inode;
}

static inline uint64_t make_file(struct fs *fs, uint64_t dir, const char *name)
{
    struct inode *inode = make(fs, dir, name, S_IFREG | 0644);
    uint64_t ino = inode->ino;
    inode_put(inode);
    return ino;
}

static inline uint64_t make_dir(struct fs *fs, uint64_t dir, const char *name)
{
    struct inode *inode = make(fs, dir, name, S_IFDIR | 0755);
    uint64_t ino = inode->ino;
    inode_put(inode);
    return ino;
}

static inline struct inode *get(struct fs *fs, uint64_t ino)
{
    struct inode *inode;
    int error = inode_get(fs->inodes, ino, &inode);
    ck_assert_msg(error == 0, "inode %" PRIu64 ": %d", ino, error);
    return inode;
}

static inline struct stat stat_of(struct fs *fs, uint64_t ino)
{
    struct stat st;
    struct inode *inode = get(fs, ino);
    inode_stat(inode, &st);
    inode_put(inode);
    return st;
}

/* The inode number of a name, or a negative errno. */
static inline int64_t look_up(struct fs *fs, uint64_t dir, const char *name)
{
    struct inode *inode;
    int error = names_lookup(fs, dir, name, &inode);
    if (error)
        return error;
    int64_t ino = (int64_t)inode->ino;
    inode_put(inode);
    return ino;
}

static inline int link_as(struct fs *fs, uint64_t ino, uint64_t dir, const char *name)
{
    struct inode *inode;
    int error = names_link(fs, ino, dir, name, &inode);
    inode_put(inode);
    return error;
}

#endif
