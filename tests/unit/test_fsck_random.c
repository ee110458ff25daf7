// SPDX-License-Identifier: Apache-2.0
/*
 * fsck as judge: whatever is done to a store, and wherever the daemon is
 * killed, its structure is right. COWFS_TEST_SEED repeats a run.
 */
#include "tests/unit/fsck_expect.h"

#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "cowfs/names.h"
#include "cowfs/sealer.h"
#include "tests/unit/suite.h"

#include <errno.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NAMES = 12, WRITE_MAX = 3 << 20, THREADS = 3 };

static const struct caller caller = {.umask = 0};
static uint8_t *noise;
static struct fsck_store *s;

/* Sizes that nodes end at, and a bit beside them. */
static uint64_t some_offset(GRand *random)
{
    static const uint64_t bases[] = {
        0, 0, UINT64_C(2) << 20, UINT64_C(4) << 20, UINT64_C(1) << 30, UINT64_C(1) << 39};
    uint64_t base = bases[g_rand_int_range(random, 0, G_N_ELEMENTS(bases))];
    uint64_t offset = base + (uint64_t)g_rand_int_range(random, 0, 600) * STORE_CHUNK;
    return g_rand_boolean(random) ? offset : offset + (uint64_t)g_rand_int_range(random, 0, 5000);
}

static uint64_t some_length(GRand *random)
{
    uint64_t length =
        (uint64_t)g_rand_int_range(random, 1, g_rand_boolean(random) ? 20000 : WRITE_MAX);
    return g_rand_boolean(random) ? length : round_up_u64(length, STORE_CHUNK);
}

static void some_name(GRand *random, char name[8])
{
    g_snprintf(name, 8, "f%d", (int)g_rand_int_range(random, 0, NAMES));
}

static void change_content(struct inode *inode, GRand *random)
{
    uint64_t offset = some_offset(random), length = some_length(random);
    static const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_ZERO_RANGE};
    switch (g_rand_int_range(random, 0, 6)) {
    case 0:
        file_truncate(inode, offset);
        break;
    case 1:
        file_fallocate(inode, modes[g_rand_int_range(random, 0, 4)], offset, length);
        break;
    default:
        /* Often the same bytes again, at a multiple of a chunk: to be merged. */
        file_write(inode, noise + g_rand_int_range(random, 0, 64) * STORE_CHUNK,
                   (size_t)min_u64(length, WRITE_MAX - 64 * STORE_CHUNK), offset,
                   (struct file_write_flags){0});
    }
}

static void change_two(struct fs *fs, struct inode *inode, GRand *random)
{
    char name[8], other_name[8];
    struct inode *other;
    some_name(random, name);
    some_name(random, other_name);
    switch (g_rand_int_range(random, 0, 6)) {
    case 0: {
        struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
        clone_tree(fs, inode->ino, ROOT_INO, name, &caller, &io);
        break;
    }
    case 1:
        if (names_link(fs, inode->ino, ROOT_INO, name, &other) == 0)
            inode_put(other);
        break;
    case 2:
        names_rename(fs, ROOT_INO, name, ROOT_INO, other_name, 0);
        break;
    case 3:
        xattr_set(fs, inode->ino, "user.x", noise, 10, 0);
        break;
    default:
        if (names_lookup(fs, ROOT_INO, name, &other) == 0) {
            if (other != inode)
                file_copy_range(other, some_offset(random), inode, some_offset(random),
                                some_length(random));
            inode_put(other);
        }
    }
}

static void step(struct fs *fs, GRand *random)
{
    char name[8];
    struct inode *inode;
    some_name(random, name);
    if (names_lookup(fs, ROOT_INO, name, &inode) &&
        names_create(fs, ROOT_INO, name, S_IFREG | 0644, 0, NULL, &caller, &inode))
        return;
    int what = g_rand_int_range(random, 0, 20);
    if (what < 10) {
        change_content(inode, random);
    } else if (what < 15) {
        change_two(fs, inode, random);
    } else if (what < 17) {
        names_unlink(fs, ROOT_INO, name);
        if (g_rand_boolean(random))
            change_content(inode, random); /* open, without a name */
    } else if (what < 19) {
        struct seal_result result;
        seal_file_part(fs, inode, some_offset(random) / STORE_CHUNK, 1024, false, NULL, &result);
    } else {
        fs_commit(fs);
    }
    inode_put(inode);
}

struct worker {
    struct fs *fs;
    guint32 seed;
    unsigned steps; /* 0: for ever */
};

static void *work(void *arg)
{
    struct worker *w = arg;
    GRand *random = g_rand_new_with_seed(w->seed);
    for (unsigned i = 0; w->steps == 0 || i < w->steps; i++)
        step(w->fs, random);
    g_rand_free(random);
    return NULL;
}

static struct fs *open_store(void)
{
    struct errmsg err = {""};
    struct fs_config config = {.create = true,
                               .chunk_bytes = STORE_CHUNK,
                               .commit_interval_ms = 50,
                               .seal_background = true,
                               .seal_delay_ms = 50};
    struct fs *fs;
    int error = fs_open(s->path, &config, &fs, &err);
    ck_assert_msg(error == 0, "%s", err.text);
    return fs;
}

/* Chunks that were written over while they were being sealed, or whose sealing
 * a crash ended, may be sealed without a hash. */
static void expect_sound(void)
{
    GString *log = g_string_new(NULL);
    struct fsck_report report = fsck_expect_run(s, true, log);
    ck_assert(report.complete && !report.leaks_unchecked);
    ck_assert_msg(report.errors == 0 && report.leaks == report.count[FSCK_SEALED_WITHOUT_HASH],
                  "%d errors, %d leaks\n%s", (int)report.errors, (int)report.leaks, log->str);
    g_string_free(log, TRUE);
}

static void run_workers(struct fs *fs, guint32 seed, unsigned threads, unsigned steps)
{
    pthread_t ids[THREADS];
    struct worker workers[THREADS];
    for (unsigned i = 0; i < threads; i++) {
        workers[i] = (struct worker){.fs = fs, .seed = seed + i, .steps = steps};
        ck_assert_int_eq(pthread_create(&ids[i], NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
}

static guint32 first_seed(void)
{
    const char *seed = getenv("COWFS_TEST_SEED");
    return seed ? (guint32)strtoul(seed, NULL, 10) : 1;
}

static void setup(void)
{
    noise = g_malloc(WRITE_MAX);
    GRand *random = g_rand_new_with_seed(0);
    for (size_t i = 0; i < WRITE_MAX; i += 4) {
        guint32 word = g_rand_int(random);
        memcpy(noise + i, &word, 4);
    }
    memset(noise + WRITE_MAX / 2, 0, WRITE_MAX / 8);
    g_rand_free(random);
    s = g_new0(struct fsck_store, 1);
    s->path = g_dir_make_tmp("cowfs-fsck-XXXXXX", NULL);
}

static void teardown(void)
{
    fsck_store_remove(s);
    g_free(noise);
}

START_TEST(test_one_thread)
{
    for (guint32 seed = first_seed(); seed < first_seed() + 10; seed++) {
        struct fs *fs = open_store();
        run_workers(fs, seed * 100, 1, 150);
        ck_assert_int_eq(fs_close(fs), 0);
        expect_sound();
    }
}
END_TEST

START_TEST(test_threads)
{
    for (guint32 seed = first_seed(); seed < first_seed() + 5; seed++) {
        struct fs *fs = open_store();
        run_workers(fs, seed * 100, THREADS, 150);
        ck_assert_int_eq(fs_close(fs), 0);
        expect_sound();
    }
}
END_TEST

/* Opening a store starts threads, which do not live on in a child: whoever
 * forks must not have opened one. fn is called in a child, which ends with 0
 * if it returns; after kill_us (0: never) it is killed. */
static void in_child(void (*fn)(guint32 seed), guint32 seed, gulong kill_us)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        fn(seed);
        _exit(0);
    }
    if (kill_us) {
        g_usleep(kill_us);
        ck_assert_int_eq(kill(pid, SIGKILL), 0);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    if (kill_us)
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    else
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "seed %u", seed);
}

static void work_for_ever(guint32 seed)
{
    run_workers(open_store(), seed, THREADS, 0);
}

static void check_after_kill(guint32 seed)
{
    struct fsck_report report;
    (void)seed;
    /* It may have been killed before there was a store. */
    if (fsck_run(s->path, NULL, &report, NULL) != -ENOENT)
        expect_sound();
}

static void reopen(guint32 seed)
{
    (void)seed;
    ck_assert_int_eq(fs_close(open_store()), 0);
    expect_sound();
}

/* The page cache outlives the daemon, so this is not a power cut; but the
 * metadata goes back to the last commit all the same. */
START_TEST(test_killed)
{
    GRand *random = g_rand_new_with_seed(first_seed());
    for (guint32 round = 0; round < 12; round++) {
        in_child(work_for_ever, first_seed() * 100 + round * 10,
                 (gulong)g_rand_int_range(random, 20000, 400000));
        in_child(check_after_kill, round, 0);
    }
    in_child(reopen, 0, 0);
    g_rand_free(random);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fsck_random");
    TCase *t = tcase_create("random");
    tcase_set_timeout(t, 240);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_one_thread);
    tcase_add_test(t, test_threads);
    tcase_add_test(t, test_killed);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
