// SPDX-License-Identifier: Apache-2.0
/* metadb: databases that are missing, in use or damaged; full file systems. */
#include "tests/unit/metadb_fixture.h"
#include "tests/unit/suite.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- opening what cannot be opened ---- */

START_TEST(missing_database)
{
    struct metadb *db;
    struct errmsg err;
    ck_assert_int_eq(try_open(false, false, &db, &err), -ENOENT);
    ck_assert_ptr_null(db);
    ck_assert_ptr_nonnull(strstr(err.text, path));
    ck_assert_int_eq(try_open(true, true, &db, &err), -ENOENT);
    /* Asking must not have made it. */
    ck_assert_int_eq(access(path, F_OK), -1);
    /* An empty directory is none either. */
    ck_assert_int_eq(mkdir(path, 0700), 0);
    ck_assert_int_eq(try_open(false, false, &db, &err), -ENOENT);
    ck_assert_int_eq(rmdir(path), 0);

    g_autofree char *orphan = g_build_filename(scratch, "no", "such", NULL);
    struct metadb_options options = {.create = true};
    ck_assert_int_eq(metadb_open(orphan, &options, &db, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, orphan));
    /* A NULL errmsg is allowed. */
    ck_assert_int_eq(metadb_open(orphan, &options, &db, NULL), -ENOENT);
}
END_TEST

START_TEST(database_in_use)
{
    /* First the other process: RocksDB must not be open when it is forked. */
    int ready[2];
    int done[2];
    char byte = 0;
    ck_assert_int_eq(pipe(ready), 0);
    ck_assert_int_eq(pipe(done), 0);
    pid_t child = fork();
    if (child == 0) {
        close(done[1]);
        struct metadb *held = open_db(ROCKS);
        ck_assert_int_eq(write(ready[1], &byte, 1), 1);
        ck_assert_int_eq(read(done[0], &byte, 1), 0);
        metadb_close(held);
        _exit(0);
    }
    close(done[0]);
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    struct metadb *db;
    struct metadb *second;
    struct errmsg err;
    ck_assert_int_eq(try_open(true, false, &second, &err), -EBUSY);
    ck_assert_ptr_nonnull(strstr(err.text, path));
    ck_assert_ptr_nonnull(strstr(err.text, "in use"));
    close(done[1]);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);

    /* Its owner gone, it opens; then the same process, twice. */
    db = open_db(ROCKS);
    ck_assert_int_eq(try_open(true, false, &second, &err), -EBUSY);
    ck_assert_ptr_nonnull(strstr(err.text, path));
    metadb_close(db);
    metadb_close(open_db(ROCKS));
}
END_TEST

static int compare_lines(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names, sizes and times of all files, to see whether anything was touched. */
static char *fingerprint(void)
{
    GString *text = g_string_new("");
    g_autoptr(GPtrArray) lines = g_ptr_array_new_with_free_func(g_free);
    GDir *entries = g_dir_open(path, 0, NULL);
    const char *name;
    while ((name = g_dir_read_name(entries))) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        struct stat st;
        ck_assert_int_eq(stat(file, &st), 0);
        g_ptr_array_add(lines, g_strdup_printf("%s %lld %lld.%09ld", name, (long long)st.st_size,
                                               (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec));
    }
    g_dir_close(entries);
    g_ptr_array_sort(lines, compare_lines);
    for (unsigned i = 0; i < lines->len; i++)
        g_string_append_printf(text, "%s\n", (char *)g_ptr_array_index(lines, i));
    return g_string_free(text, FALSE);
}

START_TEST(read_only_writes_nothing)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(6);
    struct metadb *db = open_db(ROCKS);
    put_many(db, rand);
    commit(db);
    put(db, "in the log", "yes");
    commit(db);
    metadb_close(db);

    g_autofree char *before = fingerprint();
    struct errmsg err;
    ck_assert_int_eq(try_open(false, true, &db, &err), 0);
    assert_value(db, "in the log", "yes");
    struct metadb_value value;
    ck_assert_int_eq(get_number(db, 77777, &value), 0);
    metadb_value_free(&value);
    /* Changes stay in memory: fsck may try out a repair. */
    put(db, "a", "1");
    assert_listing(db, "", "b", "a=1");
    ck_assert_int_eq(metadb_flip(db), 0);
    ck_assert_int_eq(metadb_commit(db), -EROFS);
    ck_assert_int_eq(metadb_compact(db), -EROFS);
    metadb_close(db);
    g_autofree char *after = fingerprint();
    ck_assert_str_eq(before, after);
}
END_TEST

/* The first file whose name has this prefix and suffix. */
static char *find_file(const char *prefix, const char *suffix)
{
    char *found = NULL;
    GDir *entries = g_dir_open(path, 0, NULL);
    const char *name;
    while (!found && (name = g_dir_read_name(entries)))
        if (g_str_has_prefix(name, prefix) && g_str_has_suffix(name, suffix))
            found = g_build_filename(path, name, NULL);
    g_dir_close(entries);
    ck_assert_ptr_nonnull(found);
    return found;
}

enum damage { OVERWRITE, TRUNCATE, REMOVE };

static const struct {
    const char *prefix;
    const char *suffix;
    enum damage damage;
} damages[] = {
    {"CURRENT", "", OVERWRITE},   {"CURRENT", "", REMOVE},   {"CURRENT", "", TRUNCATE},
    {"MANIFEST-", "", OVERWRITE}, {"MANIFEST-", "", REMOVE}, {"MANIFEST-", "", TRUNCATE},
    {"", ".sst", TRUNCATE},       {"", ".sst", REMOVE},
};

START_TEST(damage_is_refused_and_named)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);
    struct metadb *db = open_db(ROCKS);
    put_many(db, rand);
    commit(db);
    ck_assert_int_eq(metadb_compact(db), 0);
    metadb_close(db);

    g_autofree char *victim = find_file(damages[_i].prefix, damages[_i].suffix);
    if (damages[_i].damage == OVERWRITE) {
        int fd = open(victim, O_WRONLY);
        ck_assert_int_eq(pwrite(fd, "garbage garbage garbage", 23, 0), 23);
        close(fd);
    } else if (damages[_i].damage == TRUNCATE) {
        struct stat st;
        ck_assert_int_eq(stat(victim, &st), 0);
        ck_assert_int_eq(truncate(victim, st.st_size / 2), 0);
    } else {
        ck_assert_int_eq(unlink(victim), 0);
    }
    for (int attempt = 0; attempt < 4; attempt++) {
        struct errmsg err;
        int error = try_open(attempt & 1, attempt & 2, &db, &err);
        ck_assert_msg(error == -EUCLEAN, "%s, damage %d, attempt %d: %d %s", victim,
                      damages[_i].damage, attempt, error, err.text);
        ck_assert_ptr_nonnull(strstr(err.text, path));
        ck_assert_ptr_nonnull(strstr(err.text, "damaged"));
    }
}
END_TEST

START_TEST(flipped_bits_in_a_table_are_noticed)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(8);
    struct metadb *db = open_db(ROCKS);
    put_many(db, rand);
    commit(db);
    ck_assert_int_eq(metadb_compact(db), 0);
    metadb_close(db);
    g_autofree char *victim = find_file("", ".sst");
    int fd = open(victim, O_RDWR);
    uint8_t byte;
    ck_assert_int_eq(pread(fd, &byte, 1, 5000), 1);
    byte ^= 1;
    ck_assert_int_eq(pwrite(fd, &byte, 1, 5000), 1);
    close(fd);

    db = open_db(ROCKS);
    struct metadb_iter *it = metadb_iter_new(db, "n", 1, "o", 1);
    uint64_t seen = 0;
    for (; metadb_iter_valid(it); metadb_iter_next(it))
        seen++;
    ck_assert_uint_lt(seen, MANY);
    ck_assert_int_eq(metadb_iter_status(it), -EUCLEAN);
    metadb_iter_free(it);
    unsigned bad = 0;
    for (uint64_t n = 0; n < MANY; n++) {
        struct metadb_value value;
        int error = get_number(db, n, &value);
        ck_assert(error == 0 || error == -EUCLEAN);
        bad += error != 0;
        metadb_value_free(&value);
    }
    ck_assert_uint_gt(bad, 0);
    ck_assert_uint_lt(bad, 1000);
    metadb_close(db);
}
END_TEST

/* The database's log, which nothing has flushed yet, of five commits. */
static char *five_commits(GBytes **durable_before)
{
    struct metadb *db = open_db(ROCKS);
    g_autofree char *durable = g_build_filename(path, "durable", NULL);
    char *before;
    gsize len;
    for (uint64_t n = 0; n < 5; n++) {
        if (n == 4) {
            ck_assert(g_file_get_contents(durable, &before, &len, NULL));
            *durable_before = g_bytes_new_take(before, len);
        }
        char value[200] = "some bytes to be long";
        put_number(db, n, value, sizeof(value));
        commit(db);
    }
    metadb_close(db);
    return find_file("", ".log");
}

START_TEST(flipped_bits_in_the_log_are_noticed)
{
    GBytes *before;
    g_autofree char *victim = five_commits(&before);
    g_autofree char *bytes = NULL;
    gsize len;
    struct errmsg err;
    struct metadb *db;
    ck_assert(g_file_get_contents(victim, &bytes, &len, NULL));
    g_bytes_unref(before);
    for (gsize at = 0; at < len; at += 41) {
        bytes[at] ^= 4;
        ck_assert(g_file_set_contents(victim, bytes, (gssize)len, NULL));
        bytes[at] ^= 4;
        /* Read-only, so that the log stays what it is. */
        int error = try_open(false, true, &db, &err);
        ck_assert_msg(error == -EUCLEAN, "at %d: %d %s", (int)at, error, err.text);
        ck_assert_ptr_nonnull(strstr(err.text, path));
    }
    /* By repair it can be opened, and what it has left is there. */
    bytes[len / 2] ^= 4;
    ck_assert(g_file_set_contents(victim, bytes, (gssize)len, NULL));
    ck_assert_int_eq(try_open(false, false, &db, &err), -EUCLEAN);
    struct metadb_options options = {.accept_loss = true};
    struct metadb_value value;
    ck_assert_int_eq(metadb_open(path, &options, &db, &err), 0);
    ck_assert(metadb_lost_commits(db));
    ck_assert_int_eq(get_number(db, 0, &value), 0);
    metadb_value_free(&value);
    ck_assert_int_eq(get_number(db, 4, &value), -ENOENT);
    /* With the next commit that is how it is. */
    put(db, "k", "v");
    commit(db);
    metadb_close(db);
    db = open_db(ROCKS);
    ck_assert(!metadb_lost_commits(db));
    assert_value(db, "k", "v");
    metadb_close(db);
}
END_TEST

/* What a power cut leaves of a commit that was not durable. */
START_TEST(a_torn_end_of_the_log_is_no_damage)
{
    GBytes *before;
    g_autofree char *victim = five_commits(&before);
    g_autofree char *durable = g_build_filename(path, "durable", NULL);
    g_autofree char *bytes = NULL;
    gsize len;
    struct metadb_value value;
    ck_assert(g_file_get_contents(victim, &bytes, &len, NULL));
    for (unsigned way = 0; way < 2; way++) {
        if (way == 1) /* all of its length, but not its bytes */
            memset(bytes + len - 100, 0x55, 100);
        ck_assert(g_file_set_contents(victim, bytes, (gssize)(way ? len : len - 10), NULL));
        ck_assert(g_file_set_contents(durable, g_bytes_get_data(before, NULL),
                                      (gssize)g_bytes_get_size(before), NULL));
        struct metadb_options options = {.read_only = true};
        struct metadb *db;
        struct errmsg err;
        ck_assert_int_eq(metadb_open(path, &options, &db, &err), 0);
        ck_assert_int_eq(get_number(db, 3, &value), 0);
        metadb_value_free(&value);
        ck_assert_int_eq(get_number(db, 4, &value), -ENOENT);
        metadb_close(db);
    }
    g_bytes_unref(before);
}
END_TEST

START_TEST(a_damaged_note_of_the_last_commit_says_nothing)
{
    GBytes *before;
    g_free(five_commits(&before));
    g_autofree char *durable = g_build_filename(path, "durable", NULL);
    gsize len;
    const char *bytes = g_bytes_get_data(before, &len);
    for (gsize at = 0; at < len; at++) {
        g_autofree char *changed = g_memdup2(bytes, len);
        changed[at] ^= 0x40;
        ck_assert(g_file_set_contents(durable, changed, (gssize)len, NULL));
        metadb_close(open_db(ROCKS));
    }
    ck_assert_int_eq(unlink(durable), 0);
    metadb_close(open_db(ROCKS));
    g_bytes_unref(before);
}
END_TEST

/* ---- a full file system ---- */

/* False: not permitted here. The mount is seen by this process only. */
static bool mount_small_tmpfs(const char *size)
{
    const char *fork_mode = getenv("CK_FORK");
    g_autofree char *options = g_strdup_printf("size=%s", size);
    if ((fork_mode && strcmp(fork_mode, "no") == 0) || unshare(CLONE_NEWNS) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", scratch, "tmpfs", 0, options) != 0) {
        printf("skipped: cannot mount a tmpfs here\n");
        return false;
    }
    return true;
}

/* Leaves `left` bytes of room. */
static void fill_up(uint64_t left)
{
    g_autofree char *filler = g_build_filename(scratch, "filler", NULL);
    static uint8_t block[4096];
    int fd = open(filler, O_WRONLY | O_CREAT | O_APPEND, 0600);
    struct stat st;
    while (write(fd, block, sizeof(block)) > 0)
        ;
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_int_eq(ftruncate(fd, MAX(st.st_size - (off_t)left, 0)), 0);
    close(fd);
}

static void remove_filler(void)
{
    g_autofree char *filler = g_build_filename(scratch, "filler", NULL);
    ck_assert_int_eq(unlink(filler), 0);
}

static void assert_numbers(struct metadb *db, uint64_t count, size_t len)
{
    for (uint64_t n = 0; n < count; n++) {
        struct metadb_value value;
        int error = get_number(db, n, &value);
        ck_assert_msg(error == 0, "record %" PRIu64 " of %" PRIu64 ": %d", n, count, error);
        ck_assert_uint_eq(value.len, len);
        ck_assert_uint_eq(get_be64(value.data), n);
        metadb_value_free(&value);
    }
}

struct watcher {
    struct metadb *db;
    atomic_bool stop;
    uint64_t count;
    size_t len;
};

static void *watch(void *data)
{
    struct watcher *watcher = data;
    while (!watcher->stop)
        assert_numbers(watcher->db, watcher->count, watcher->len);
    return NULL;
}

/* `_i` KiB are left when the commits are tried. */
START_TEST(full_file_system_loses_nothing)
{
    if (!mount_small_tmpfs("8m"))
        return;
    enum { FIRST = 200, SECOND = 1200, LEN = 2000 };
    g_autoptr(GRand) rand = g_rand_new_with_seed(9);
    uint8_t value[LEN];
    struct metadb *db = open_db(ROCKS);
    for (uint64_t n = 0; n < SECOND; n++) {
        if (n == FIRST) {
            commit(db);
            fill_up((uint64_t)_i * 1024);
        }
        random_bytes(rand, value, sizeof(value));
        put_be64(value, n);
        put_number(db, n, value, sizeof(value));
    }
    ck_assert_int_eq(metadb_flip(db), 0);
    put(db, "later", "running");
    struct watcher watcher = {.db = db, .count = SECOND, .len = LEN};
    pthread_t thread;
    pthread_create(&thread, NULL, watch, &watcher);
    for (int attempt = 0; attempt < 40; attempt++) {
        ck_assert_int_eq(metadb_commit(db), -ENOSPC);
        ck_assert(metadb_commit_pending(db));
        ck_assert_int_eq(metadb_flip(db), -EBUSY);
        assert_numbers(db, SECOND, LEN);
        /* Others eat what becomes free. */
        if (attempt % 2)
            fill_up(0);
    }
    assert_value(db, "later", "running");
    remove_filler();
    ck_assert_int_eq(metadb_commit(db), 0);
    watcher.stop = true;
    pthread_join(thread, NULL);
    commit(db);
    ck_assert_int_eq(metadb_compact(db), 0);
    /* The reserve is there again for the next time. */
    g_autofree char *reserve = g_build_filename(path, "reserve", NULL);
    struct stat st;
    ck_assert_int_eq(stat(reserve, &st), 0);
    ck_assert_int_gt(st.st_blocks, 0);
    metadb_close(db);
    db = open_db(ROCKS);
    assert_numbers(db, SECOND, LEN);
    assert_value(db, "later", "running");
    metadb_close(db);
}
END_TEST

START_TEST(reserve_serves_a_small_commit)
{
    if (!mount_small_tmpfs("8m"))
        return;
    struct metadb *db = open_db(ROCKS);
    put(db, "a", "1");
    commit(db);
    fill_up(0);
    /* A commit that frees space must get through: the way out of "full". */
    del(db, "a");
    for (int i = 0; i < 1000; i++)
        put_number(db, (uint64_t)i, "12345678", 8);
    commit(db);
    assert_value(db, "a", NULL);
    metadb_close(db);
    db = open_db(ROCKS);
    assert_value(db, "a", NULL);
    struct metadb_value value;
    ck_assert_int_eq(get_number(db, 999, &value), 0);
    metadb_value_free(&value);
    metadb_close(db);
}
END_TEST

/* No filler: the database itself fills the file system, so flushes and
 * compactions fail in the background as well. */
START_TEST(database_that_grows_until_full)
{
    if (!mount_small_tmpfs("24m"))
        return;
    enum { LEN = 1000, PER_COMMIT = 100 };
    g_autoptr(GRand) rand = g_rand_new_with_seed(10);
    uint8_t value[LEN];
    struct metadb *db = open_db(ROCKS);
    uint64_t count = 0;
    int error = 0;
    while (!error) {
        for (int i = 0; i < PER_COMMIT; i++, count++) {
            random_bytes(rand, value, sizeof(value));
            put_be64(value, count);
            put_number(db, count, value, sizeof(value));
        }
        ck_assert_int_eq(metadb_flip(db), 0);
        error = metadb_commit(db);
    }
    printf("24 MiB took %" PRIu64 " records of 1000 bytes\n", count);
    ck_assert_int_eq(error, -ENOSPC);
    ck_assert_uint_gt(count, 8000);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(metadb_commit(db), -ENOSPC);
        assert_numbers(db, count, LEN);
    }
    /* The daemon restarts on the full file system. */
    metadb_close(db);
    db = open_db(ROCKS);
    assert_numbers(db, count - PER_COMMIT, LEN);
    put(db, "a", "1");
    ck_assert_int_eq(metadb_flip(db), 0);
    metadb_commit(db); /* may work or not */
    assert_value(db, "a", "1");
    ck_assert_int_eq(mount(NULL, scratch, NULL, MS_REMOUNT, "size=64m"), 0);
    ck_assert_int_eq(metadb_commit(db), 0);
    for (uint64_t n = 0; n < count - PER_COMMIT; n += 2)
        delete_number(db, n);
    commit(db);
    ck_assert_int_eq(metadb_compact(db), 0);
    metadb_close(db);
    db = open_db(ROCKS);
    assert_value(db, "a", "1");
    for (uint64_t n = 0; n < count - PER_COMMIT; n++) {
        struct metadb_value out;
        ck_assert_int_eq(get_number(db, n, &out), n % 2 ? 0 : -ENOENT);
        metadb_value_free(&out);
    }
    ck_assert_uint_le(count_files(".log"), 2);
    ck_assert_uint_eq(count_files(".dbtmp"), 0);
    metadb_close(db);
}
END_TEST
static Suite *make_suite(void)
{
    Suite *suite = suite_create("metadb_failures");
    TCase *tcase = tcase_create("failures");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 200);
    tcase_add_test(tcase, missing_database);
    tcase_add_test(tcase, database_in_use);
    tcase_add_test(tcase, read_only_writes_nothing);
    tcase_add_loop_test(tcase, damage_is_refused_and_named, 0, G_N_ELEMENTS(damages));
    tcase_add_test(tcase, flipped_bits_in_a_table_are_noticed);
    tcase_add_test(tcase, flipped_bits_in_the_log_are_noticed);
    tcase_add_test(tcase, a_torn_end_of_the_log_is_no_damage);
    tcase_add_test(tcase, a_damaged_note_of_the_last_commit_says_nothing);
    tcase_add_loop_test(tcase, full_file_system_loses_nothing, 0, 1);
    tcase_add_loop_test(tcase, full_file_system_loses_nothing, 100, 101);
    tcase_add_test(tcase, reserve_serves_a_small_commit);
    tcase_add_test(tcase, database_that_grows_until_full);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
