// SPDX-License-Identifier: Apache-2.0
/*
 * Random operations on names, two ways: alone, each compared with the kernel,
 * which does the same to a directory tree of its own (tmpfs or whatever /tmp
 * is): same errors, same tree, same links; and in many threads at once, where
 * fsck says whether what is left fits together.
 */
#include "fs_fixture.h"
#include "tests/unit/suite.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sys/syscall.h>

/* ---- compared with the kernel ---- */

static struct fs *fs;
static char *mirror; /* the kernel's tree */
static GRand *dice;

static const char *const alphabet[] = {"a", "b", "c", "d", "e"};

static const char *some_name(void)
{
    return alphabet[g_rand_int_range(dice, 0, G_N_ELEMENTS(alphabet))];
}

/* A random path of up to three names that exist as directories in the store. */
static uint64_t some_dir(GString *path)
{
    uint64_t dir = ROOT_INO;
    g_string_assign(path, mirror);
    for (int depth = g_rand_int_range(dice, 0, 4); depth > 0; depth--) {
        const char *name = some_name();
        int64_t next = look_up(fs, dir, name);
        if (next < 0 || !S_ISDIR(stat_of(fs, (uint64_t)next).st_mode))
            break;
        dir = (uint64_t)next;
        g_string_append_printf(path, "/%s", name);
    }
    return dir;
}

static char *below(const GString *dir, const char *name)
{
    return g_build_filename(dir->str, name, NULL);
}

static int ours_create(uint64_t dir, const char *name, uint32_t mode)
{
    struct inode *inode;
    int error =
        names_create(fs, dir, name, mode, 0, S_ISLNK(mode) ? "target" : NULL, &root_caller, &inode);
    inode_put(inode);
    return error;
}

static int theirs(int result)
{
    return result < 0 ? -errno : 0;
}

/* One operation, here and there. */
static void step(unsigned number)
{
    static const unsigned flags[] = {0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE};
    g_autoptr(GString) path = g_string_new("");
    g_autoptr(GString) new_path = g_string_new("");
    uint64_t dir = some_dir(path), new_dir = some_dir(new_path);
    const char *name = some_name(), *new_name = some_name();
    g_autofree char *at = below(path, name), *new_at = below(new_path, new_name);
    const char *what = NULL;
    int here = 0, there = 0;
    switch (g_rand_int_range(dice, 0, 9)) {
    case 0:
        what = "create";
        here = ours_create(dir, name, S_IFREG | 0600);
        there = theirs(mknod(at, S_IFREG | 0600, 0));
        break;
    case 1:
    case 2:
        what = "mkdir";
        here = ours_create(dir, name, S_IFDIR | 0700);
        there = theirs(mkdir(at, 0700));
        break;
    case 3:
        what = "symlink";
        here = ours_create(dir, name, S_IFLNK | 0777);
        there = theirs(symlink("target", at));
        break;
    case 4: {
        what = "link";
        int64_t ino = look_up(fs, dir, name);
        here = ino < 0 ? (int)ino : link_as(fs, (uint64_t)ino, new_dir, new_name);
        there = theirs(linkat(AT_FDCWD, at, AT_FDCWD, new_at, 0));
        break;
    }
    case 5:
        what = "unlink";
        here = names_unlink(fs, dir, name);
        there = theirs(unlink(at));
        break;
    case 6:
        what = "rmdir";
        here = names_rmdir(fs, dir, name);
        there = theirs(rmdir(at));
        break;
    default: {
        unsigned flag = flags[g_rand_int_range(dice, 0, G_N_ELEMENTS(flags))];
        what = flag == RENAME_EXCHANGE ? "exchange" : flag ? "rename-noreplace" : "rename";
        here = names_rename(fs, dir, name, new_dir, new_name, flag);
        there = theirs((int)syscall(SYS_renameat2, AT_FDCWD, at, AT_FDCWD, new_at, flag));
        break;
    }
    }
    ck_assert_msg(here == there, "%u: %s %s %s: %d, the kernel says %d", number, what, at, new_at,
                  here, there);
}

static int count_one(void *arg, const struct dir_entry *entry)
{
    (void)entry;
    ++*(unsigned *)arg;
    return 0;
}

/* The same tree there as here; inos: the kernel's numbers -> ours. */
static void compare(uint64_t dir, const char *path, GHashTable *inos)
{
    unsigned ours = 0, kernels = 0;
    ck_assert_int_eq(names_list(fs, dir, 0, count_one, &ours), 0);
    DIR *d = opendir(path);
    ck_assert_ptr_nonnull(d);
    for (const struct dirent *e; (e = readdir(d)); kernels++) {
        if (e->d_name[0] == '.')
            continue;
        g_autofree char *child = g_build_filename(path, e->d_name, NULL);
        struct stat there;
        ck_assert_int_eq(lstat(child, &there), 0);
        int64_t ino = look_up(fs, dir, e->d_name);
        ck_assert_msg(ino > 0, "%s is missing", child);
        struct stat here = stat_of(fs, (uint64_t)ino);
        ck_assert_uint_eq(here.st_mode, there.st_mode);
        ck_assert_msg(here.st_nlink == there.st_nlink, "%s: %u links, the kernel says %u", child,
                      (unsigned)here.st_nlink, (unsigned)there.st_nlink);
        gpointer known = g_hash_table_lookup(inos, GSIZE_TO_POINTER(there.st_ino));
        ck_assert(!known || GPOINTER_TO_SIZE(known) == (gsize)ino);
        g_hash_table_insert(inos, GSIZE_TO_POINTER(there.st_ino), GSIZE_TO_POINTER(ino));
        if (S_ISDIR(there.st_mode)) {
            ck_assert_int_eq(look_up(fs, (uint64_t)ino, ".."), (int64_t)dir);
            compare((uint64_t)ino, child, inos);
        }
    }
    closedir(d);
    ck_assert_uint_eq(ours, kernels);
}

START_TEST(random_operations_do_what_the_kernel_does)
{
    enum { ROUNDS = 12, STEPS = 2500 };
    dice = g_rand_new_with_seed((guint32)_i);
    mirror = g_build_filename(scratch, "mirror", NULL);
    ck_assert_int_eq(mkdir(mirror, 0700), 0);
    umask(0);
    fs = open_store();
    for (unsigned round = 0; round < ROUNDS; round++) {
        fs->name_hash_mask = _i % 2 ? 7 : UINT64_MAX; /* all entries in a few records */
        for (unsigned i = 0; i < STEPS; i++) {
            step(round * STEPS + i);
            if (i % 500 == 0)
                ck_assert_int_eq(fs_commit(fs), 0);
        }
        GHashTable *inos = g_hash_table_new(NULL, NULL);
        compare(ROOT_INO, mirror, inos);
        reaper_wait(fs->reaper);
        ck_assert_uint_eq(atomic_load(&fs->inode_count), g_hash_table_size(inos) + 1);
        g_hash_table_destroy(inos);
        if (round % 4 == 0) {
            close_store(fs);
            fs = open_store();
        }
    }
    close_store(fs);
    if (_i % 2 == 0)
        assert_sound();
    g_free(mirror);
    g_rand_free(dice);
}
END_TEST

/* ---- many threads ---- */

enum { THREADS = 8, SHARED_DIRS = 4 };

struct worker {
    pthread_t thread;
    unsigned number;
    uint64_t own;                 /* a directory that only this one changes */
    uint64_t shared[SHARED_DIRS]; /* directories that all change */
    unsigned steps;
};

static int look_at(void *arg, const struct dir_entry *entry)
{
    struct inode *inode;
    unsigned *left = arg;
    if (inode_get(fs->inodes, entry->ino, &inode) == 0) {
        struct stat st;
        inode_stat(inode, &st);
        ck_assert_uint_eq(st.st_mode & S_IFMT, entry->type);
        inode_put(inode);
    }
    return --*left == 0;
}

/* Anything to anything; only damage is an error. */
static void chaos(struct worker *w, GRand *rand)
{
    uint64_t dir = w->shared[g_rand_int_range(rand, 0, SHARED_DIRS)];
    uint64_t new_dir = w->shared[g_rand_int_range(rand, 0, SHARED_DIRS)];
    const char *name = alphabet[g_rand_int_range(rand, 0, G_N_ELEMENTS(alphabet))];
    const char *new_name = alphabet[g_rand_int_range(rand, 0, G_N_ELEMENTS(alphabet))];
    unsigned left = 50;
    int error = 0;
    switch (g_rand_int_range(rand, 0, 9)) {
    case 0:
        error = ours_create(dir, name, S_IFREG | 0600);
        break;
    case 1:
        error = ours_create(dir, name, S_IFDIR | 0700);
        break;
    case 2:
        error = names_unlink(fs, dir, name);
        break;
    case 3:
        error = names_rmdir(fs, dir, name);
        break;
    case 4: {
        struct inode *inode;
        error = names_lookup(fs, dir, name, &inode);
        if (error)
            break;
        inode_lookup_inc(inode, 0); /* as the kernel does */
        uint64_t ino = inode->ino;
        inode_put(inode);
        error = link_as(fs, ino, new_dir, new_name);
        inode_forget(fs->inodes, ino, 0, 1);
        break;
    }
    case 5:
        error = names_list(fs, dir, 0, look_at, &left);
        break;
    case 6: {
        int64_t ino = look_up(fs, dir, name);
        if (ino > 0)
            error = xattr_set(fs, (uint64_t)ino, "user.x", name, 1, 0);
        break;
    }
    default:
        error = names_rename(fs, dir, name, new_dir, new_name,
                             g_rand_int(rand) % 3 == 0 ? RENAME_EXCHANGE : 0);
    }
    ck_assert_msg(error != -EUCLEAN && error != -EIO && error != -EINVAL, "%d", error);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    GRand *rand = g_rand_new_with_seed(w->number);
    enum { NAMES = 64 };
    uint64_t model[NAMES] = {0};
    for (unsigned i = 0; i < w->steps; i++) {
        chaos(w, rand);
        char name[8], other[8];
        unsigned k = (unsigned)g_rand_int_range(rand, 0, NAMES);
        unsigned m = (unsigned)g_rand_int_range(rand, 0, NAMES);
        snprintf(name, sizeof(name), "n%u", k);
        snprintf(other, sizeof(other), "n%u", m);
        switch (g_rand_int_range(rand, 0, 4)) {
        case 0:
            if (!model[k])
                model[k] = make_file(fs, w->own, name);
            break;
        case 1:
            ck_assert_int_eq(names_unlink(fs, w->own, name), model[k] ? 0 : -ENOENT);
            model[k] = 0;
            break;
        case 2:
            ck_assert_int_eq(names_rename(fs, w->own, name, w->own, other, 0),
                             model[k] ? 0 : -ENOENT);
            if (model[k] && k != m) {
                model[m] = model[k];
                model[k] = 0;
            }
            break;
        default:
            ck_assert_int_eq(look_up(fs, w->own, name), model[k] ? (int64_t)model[k] : -ENOENT);
        }
    }
    g_rand_free(rand);
    return NULL;
}

START_TEST(threads_leave_a_sound_store)
{
    struct worker workers[THREADS] = {0};
    fs = open_store_with((struct fs_config){.create = true, .commit_interval_ms = 20});
    for (unsigned i = 0; i < SHARED_DIRS; i++) {
        g_autofree char *name = g_strdup_printf("shared%u", i);
        workers[0].shared[i] = make_dir(fs, ROOT_INO, name);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        g_autofree char *name = g_strdup_printf("own%u", i);
        struct worker *w = &workers[i];
        memcpy(w->shared, workers[0].shared, sizeof(w->shared));
        w->number = i;
        w->own = make_dir(fs, ROOT_INO, name);
        w->steps = 3000;
    }
    for (unsigned i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    close_store(fs);
    assert_sound();
}
END_TEST

static void churn(void *arg)
{
    struct worker w = {.number = *(unsigned *)arg};
    GRand *rand = g_rand_new_with_seed(w.number);
    fs = open_store_with((struct fs_config){.create = true, .commit_interval_ms = 3});
    for (unsigned i = 0; i < SHARED_DIRS; i++) {
        g_autofree char *name = g_strdup_printf("shared%u", i);
        int64_t ino = look_up(fs, ROOT_INO, name);
        w.shared[i] = ino > 0 ? (uint64_t)ino : make_dir(fs, ROOT_INO, name);
    }
    int steps = g_rand_int_range(rand, 0, 20000);
    for (int i = 0; i < steps; i++)
        chaos(&w, rand);
    g_rand_free(rand);
}

static void check_soundness(void *arg)
{
    (void)arg;
    assert_sound();
}

START_TEST(any_crash_leaves_a_sound_store)
{
    for (unsigned seed = 0; seed < 8; seed++) {
        in_child(churn, &seed);
        in_child(check_soundness, NULL);
    }
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("names_random");
    TCase *tcase = tcase_create("random");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 250);
    tcase_add_loop_test(tcase, random_operations_do_what_the_kernel_does, 0, 4);
    tcase_add_test(tcase, threads_leave_a_sound_store);
    tcase_add_test(tcase, any_crash_leaves_a_sound_store);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
