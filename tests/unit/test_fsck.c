// SPDX-License-Identifier: Apache-2.0
/*
 * fsck of whole stores: good ones, ones in use, foreign ones, and ones whose
 * files were damaged. Damage of single records: test_fsck_maps, _names.
 */
#include "tests/unit/fsck_expect.h"

#include "cowfs/names.h"
#include "tests/quiet_log.h"
#include "tests/unit/suite.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct fsck_store *s;

static void setup(void)
{
    s = fsck_store_make();
}

static void teardown(void)
{
    fsck_store_remove(s);
}

/* ---- good stores ---- */

START_TEST(test_clean)
{
    fsck_expect_clean(s, false);
    struct fsck_report report = fsck_expect_run(s, true, NULL);
    ck_assert(report.complete && report.clean && !report.leaks_unchecked);
    ck_assert_uint_eq(report.errors + report.leaks, 0);
    ck_assert_uint_eq(report.inodes, 15);
    ck_assert_uint_eq(report.directories, 3);
    ck_assert_uint_eq(report.files, 10);
    ck_assert_uint_eq(report.names, 15); /* the root has none, hard1 two */
    ck_assert_uint_eq(report.xattrs, 1);
    ck_assert_uint_eq(report.sealed_chunks, SEALED_CHUNKS); /* s2 shares those of s1 */
    ck_assert_uint_eq(report.checked_bytes, SEALED_CHUNKS * STORE_CHUNK);
    /* a, one of b, small, hard, s1, reserved, sparse */
    ck_assert_uint_eq(report.chunks, A_CHUNKS + 1 + 3 + 2 + SEALED_CHUNKS + 100 + 1);
    ck_assert_uint_eq(report.bytes, report.chunks * STORE_CHUNK);
    /* a: 1 + 3; b: its root and one leaf; 5 files of one leaf; sparse */
    ck_assert_uint_eq(report.nodes, 4 + 2 + 5 + 4);
}
END_TEST

START_TEST(test_used_again)
{
    struct fs *fs = fsck_store_open(s);
    ck_assert_int_eq(names_unlink(fs, s->dir, "a"), 0);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "s1"), 0);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "s2"), 0);
    ck_assert_int_eq(fs_close(fs), 0);
    fsck_expect_clean(s, true);
}
END_TEST

/* In a child, since RocksDB's threads do not live on in one: whoever forks must
 * not have opened a store. */
static void leave_unclean(const char *path)
{
    struct inode *inode;
    struct fsck_store made = {.path = g_strdup(path)};
    struct fs *fs = fsck_store_open(&made);
    fsck_store_fill(fs, &made);
    if (inode_get(fs->inodes, made.c, &inode) || names_unlink(fs, made.dir, "c") ||
        names_unlink(fs, ROOT_INO, "hard1") || fs_commit(fs))
        _exit(1);
    _exit(0);
}

/* A daemon that was killed: the last commit counts, and an unlinked file that
 * was open has an orphan record. */
START_TEST(test_unclean)
{
    char *path = g_dir_make_tmp("cowfs-fsck-XXXXXX", NULL);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        leave_unclean(path);
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    s = g_new0(struct fsck_store, 1);
    s->path = path;
    fsck_expect_clean(s, true);
    struct fsck_report report = fsck_expect_run(s, false, NULL);
    ck_assert(!report.clean && report.complete);
    ck_assert_uint_eq(report.orphans, 1);
    fsck_store_remove(s);
}
END_TEST

/* Interrupted while it was made. */
START_TEST(test_unfinished)
{
    struct fsck_store unfinished = {.path = g_build_filename(s->path, "new", NULL)};
    ck_assert_int_eq(superblock_create(unfinished.path, STORE_CHUNK, NULL), 0);
    fsck_expect_clean(&unfinished, false);
    ck_assert(fsck_expect_run(&unfinished, false, NULL).complete);
    g_free(unfinished.path);
}
END_TEST

/* ---- no verdict ---- */

static void expect_error(const char *path, int expected)
{
    struct fsck_report report;
    struct errmsg err = {""};
    ck_assert_int_eq(fsck_run(path, NULL, &report, &err), expected);
    ck_assert_msg(strstr(err.text, path) != NULL, "'%s' does not name %s", err.text, path);
    ck_assert(!report.complete);
    ck_assert_uint_eq(report.errors, 0);
}

START_TEST(test_in_use)
{
    struct fs *fs = fsck_store_open(s);
    expect_error(s->path, -EBUSY);
    ck_assert_int_eq(fs_close(fs), 0);
    fsck_expect_clean(s, false);
}
END_TEST

START_TEST(test_no_store)
{
    char *path = fsck_store_file(s, "nothing");
    expect_error(path, -ENOENT);
    ck_assert_int_eq(g_mkdir(path, 0700), 0);
    expect_error(path, -ENOENT);
    /* Somebody else's file of that name. */
    char *foreign = g_build_filename(path, "superblock", NULL);
    ck_assert(g_file_set_contents(foreign, "some other program's", -1, NULL));
    expect_error(path, -EMEDIUMTYPE);
    ck_assert_int_eq(g_unlink(foreign), 0);
    g_free(foreign);
    g_free(path);
}
END_TEST

/* ---- files ---- */

static void flip_byte(const char *name, off_t at)
{
    char *path = fsck_store_file(s, name);
    uint8_t byte;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
    byte ^= 0x10;
    ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
    g_free(path);
}

static void truncate_file(const char *name, off_t size)
{
    char *path = fsck_store_file(s, name);
    ck_assert_int_eq(truncate(path, size), 0);
    g_free(path);
}

START_TEST(test_superblock)
{
    static const off_t places[] = {0, 9, 16, 20, 40, 60, 100, 263, 264, 4095};
    for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
        flip_byte("superblock", places[i]);
        fsck_expect(s, false, FSCK_SUPERBLOCK);
        flip_byte("superblock", places[i]);
    }
    fsck_expect_clean(s, false);
    truncate_file("superblock", 1000);
    fsck_expect(s, false, FSCK_SUPERBLOCK);
    truncate_file("superblock", 0);
    fsck_expect(s, false, FSCK_SUPERBLOCK);
    ck_assert(!fsck_expect_run(s, false, NULL).complete);
}
END_TEST

START_TEST(test_segment_file_missing)
{
    char *path = fsck_store_file(s, "segments/00000001");
    ck_assert_int_eq(g_unlink(path), 0);
    fsck_expect(s, false, FSCK_SEGMENT_FILE_MISSING);
    fsck_expect(s, true, FSCK_SEGMENT_FILE_MISSING);
    /* Something else by that name is no segment file either. */
    ck_assert_int_eq(g_mkdir(path, 0700), 0);
    fsck_expect(s, true, FSCK_SEGMENT_FILE_MISSING);
    g_free(path);
}
END_TEST

START_TEST(test_segment_file_short)
{
    fsck_store_edit(s);
    uint64_t live = segment_record(s, 1).live;
    metadb_close(s->db);
    s->db = NULL;
    char *path = fsck_store_file(s, "segments/00000001");
    struct stat st;
    ck_assert_int_eq(stat(path, &st), 0);
    /* Half of the last chunk is gone. */
    truncate_file("segments/00000001", st.st_size - (off_t)STORE_CHUNK / 2);
    fsck_expect(s, true, FSCK_SEGMENT_FILE_SHORT);
    ck_assert_uint_eq(fsck_expect_run(s, false, NULL).count[FSCK_SEGMENT_FILE_SHORT], 1);
    truncate_file("segments/00000001", 0);
    fsck_expect(s, true, FSCK_SEGMENT_FILE_SHORT);
    struct fsck_report report = fsck_expect_run(s, false, NULL);
    ck_assert_uint_eq(report.count[FSCK_SEGMENT_FILE_SHORT], live);
    g_free(path);
}
END_TEST

START_TEST(test_data)
{
    fsck_store_edit(s);
    chunk_t sealed = chunk_at(s, s->s1, 20), unsealed = chunk_at(s, s->small, 1);
    metadb_close(s->db);
    s->db = NULL;
    flip_byte("segments/00000001", (off_t)((uint32_t)unsealed * STORE_CHUNK + 99));
    fsck_expect_clean(s, true);
    flip_byte("segments/00000001", (off_t)((uint32_t)sealed * STORE_CHUNK + 99));
    fsck_expect_clean(s, false);
    fsck_expect(s, true, FSCK_CHUNK_DATA);
    ck_assert_uint_eq(fsck_expect_run(s, true, NULL).count[FSCK_CHUNK_DATA], 1);
}
END_TEST

/* ---- the database's files ---- */

START_TEST(test_database_missing)
{
    char *path = fsck_store_file(s, FS_METADB_DIR), *away = fsck_store_file(s, "away");
    ck_assert_int_eq(g_rename(path, away), 0);
    fsck_expect(s, false, FSCK_DATABASE);
    ck_assert_int_eq(g_rename(away, path), 0);
    char *current = g_build_filename(path, "CURRENT", NULL);
    ck_assert_int_eq(g_unlink(current), 0);
    fsck_expect(s, false, FSCK_DATABASE);
    ck_assert(!fsck_expect_run(s, false, NULL).complete);
    g_free(current);
    g_free(path);
    g_free(away);
}
END_TEST

/* Whatever byte is damaged: a verdict or an error with a text, never a crash.
 * A flip may go unnoticed (in a file that RocksDB does not read, or at the end
 * of a log), but most are seen. */
static unsigned flip_all_over(const char *name, off_t size, unsigned flips)
{
    unsigned seen = 0;
    for (unsigned i = 0; i < flips; i++) {
        struct fsck_report report;
        struct errmsg err = {""};
        off_t at = (off_t)((uint64_t)size * i / flips);
        flip_byte(name, at);
        int error = fsck_run(s->path, NULL, &report, &err);
        ck_assert(error == 0 || err.text[0]);
        seen += error != 0 || report.errors > 0;
        flip_byte(name, at);
    }
    return seen;
}

static unsigned flip_files(const char *suffix, unsigned *files)
{
    char *path = fsck_store_file(s, FS_METADB_DIR);
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *entry;
    unsigned seen = 0;
    *files = 0;
    while ((entry = g_dir_read_name(dir))) {
        struct stat st;
        char *file = g_build_filename(path, entry, NULL);
        char *name = g_build_filename(FS_METADB_DIR, entry, NULL);
        if (g_str_has_suffix(entry, suffix) && stat(file, &st) == 0 && st.st_size > 0) {
            seen += flip_all_over(name, st.st_size, 40);
            ++*files;
        }
        g_free(name);
        g_free(file);
    }
    g_dir_close(dir);
    g_free(path);
    return seen;
}

START_TEST(test_database_flips)
{
    unsigned files;
    guint handler = g_log_set_handler("cowfs", G_LOG_LEVEL_MASK, log_nothing, NULL);
    /* First all is in a log, then in tables. */
    flip_files(".log", &files);
    ck_assert_uint_gt(files, 0);
    fsck_expect_clean(s, false);
    fsck_store_edit(s);
    ck_assert_int_eq(metadb_compact(s->db), 0);
    fsck_store_commit(s);
    unsigned seen = flip_files(".sst", &files);
    ck_assert_uint_gt(files, 0);
    ck_assert_uint_gt(seen, 20);
    flip_files("", &files);
    fsck_expect_clean(s, false);
    g_log_remove_handler("cowfs", handler);
}
END_TEST

/* ---- any record ---- */

struct record_copy {
    uint8_t key[64];
    size_t key_len, len;
    uint8_t *value;
};

static GArray *copy_records(void)
{
    GArray *records = g_array_new(FALSE, FALSE, sizeof(struct record_copy));
    struct metadb_iter *it = metadb_iter_new(s->db, "", 0, NULL, 0);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        struct record_copy copy;
        const uint8_t *key = metadb_iter_key(it, &copy.key_len);
        const uint8_t *value = metadb_iter_value(it, &copy.len);
        ck_assert_uint_le(copy.key_len, sizeof(copy.key));
        memcpy(copy.key, key, copy.key_len);
        copy.value = g_memdup2(value, copy.len);
        g_array_append_val(records, copy);
    }
    ck_assert_int_eq(metadb_iter_status(it), 0);
    metadb_iter_free(it);
    return records;
}

/* Changes one byte of a record, or cuts it, and makes the one before it whole
 * again. fsck must end with a verdict. */
static bool survive(const struct record_copy *record, const struct record_copy *before,
                    GRand *random)
{
    uint8_t *value = g_memdup2(record->value, record->len);
    size_t len = record->len;
    if (g_rand_int_range(random, 0, 4) == 0)
        len = (size_t)g_rand_int_range(random, 0, (gint32)len);
    else
        value[g_rand_int_range(random, 0, (gint32)len)] ^=
            (uint8_t)g_rand_int_range(random, 1, 256);
    fsck_store_edit(s);
    if (before)
        metadb_put(s->db, before->key, before->key_len, before->value, before->len);
    metadb_put(s->db, record->key, record->key_len, value, len);
    fsck_store_commit(s);
    struct fsck_report report = fsck_expect_run(s, true, NULL);
    ck_assert(report.complete);
    g_free(value);
    return report.errors + report.leaks > 0;
}

/* Times, owners and permissions of inodes may be anything; nearly all else is
 * known from another place, too. COWFS_TEST_SEED chooses other changes. */
START_TEST(test_any_record)
{
    const char *seed = getenv("COWFS_TEST_SEED");
    GRand *random = g_rand_new_with_seed(seed ? (guint32)strtoul(seed, NULL, 10) : 1);
    unsigned tried = 0, seen = 0;
    fsck_store_edit(s);
    GArray *records = copy_records();
    metadb_close(s->db);
    s->db = NULL;
    const struct record_copy *before = NULL;
    for (guint i = 0; i < records->len; i++) {
        const struct record_copy *record = &g_array_index(records, struct record_copy, i);
        if (record->len) {
            tried++;
            seen += survive(record, before, random);
            before = record;
        }
    }
    ck_assert_ptr_nonnull(before);
    fsck_store_edit(s);
    metadb_put(s->db, before->key, before->key_len, before->value, before->len);
    fsck_store_commit(s);
    fsck_expect_clean(s, true);
    ck_assert_uint_gt(tried, 150);
    ck_assert_msg(seen > tried * 3 / 4, "%u of %u changes were found", seen, tried);
    for (guint i = 0; i < records->len; i++)
        g_free(g_array_index(records, struct record_copy, i).value);
    g_array_free(records, TRUE);
    g_rand_free(random);
}
END_TEST

/* ---- many segments ---- */

/* Moves the chunks of `small` to slots of segment `id`. */
static void move_to_segment(uint32_t id)
{
    uint64_t entries[NODE_ENTRIES], leaf = root_of(s, s->small);
    unsigned level = node_record(s, leaf, entries);
    struct segment_fields first = segment_record(s, 1), fields = {.live = 3, .cursor = 1024};
    for (unsigned i = 0; i < 3; i++) {
        count_put(s, KEY_CHUNK_COUNTS, entries[i], (struct count_info){0});
        entries[i] = ((uint64_t)id << 32) + 600 + i;
        count_put(s, KEY_CHUNK_COUNTS, entries[i], (struct count_info){.count = 1});
    }
    node_record_put(s, leaf, level, entries);
    first.live -= 3;
    segment_record_put(s, 1, &first);
    segment_record_put(s, id, &fields);
    char *name = g_strdup_printf("segments/%08x", id);
    char *path = fsck_store_file(s, name);
    ck_assert(g_file_set_contents(path, "", 0, NULL));
    truncate_file(name, 1024 * STORE_CHUNK);
    g_free(name);
    g_free(path);
}

static struct fsck_report run_with_memory(uint64_t bytes)
{
    struct fsck_report report;
    struct errmsg err = {""};
    struct fsck_options options = {.memory_bytes = bytes};
    ck_assert_int_eq(fsck_run(s->path, &options, &report, &err), 0);
    return report;
}

/* With next to no memory each segment is counted by a reading of its own. */
START_TEST(test_windows)
{
    static const struct segment_fields empty = {.cursor = 512};
    fsck_store_edit(s);
    move_to_segment(5);
    segment_record_put(s, 4, &empty);
    segment_record_put(s, 9, &empty);
    fsck_store_commit(s);
    fsck_expect_clean(s, true);
    ck_assert_uint_eq(run_with_memory(1).errors + run_with_memory(1).leaks, 0);
    fsck_store_edit(s);
    record_delete(s, KEY_CHUNK_COUNTS, chunk_at(s, s->small, 0) / COUNT_GROUP);
    count_put(s, KEY_CHUNK_COUNTS, chunk_at(s, s->a, 0), (struct count_info){.count = 3});
    count_put(s, KEY_CHUNK_COUNTS, (UINT64_C(9) << 32) + 3, (struct count_info){.count = 1});
    fsck_store_commit(s);
    for (uint64_t bytes = 1; bytes < 10; bytes += 8) {
        struct fsck_report report = run_with_memory(bytes << 20);
        ck_assert_uint_eq(report.count[FSCK_CHUNK_COUNT_LOW], 3);
        ck_assert_uint_eq(report.count[FSCK_CHUNK_COUNT_HIGH], 2);
        ck_assert_uint_eq(report.errors, 3);
        ck_assert_uint_eq(report.leaks, 2);
    }
}
END_TEST

/* ---- callbacks ---- */

struct heard {
    unsigned messages, phases;
};

static void hear_message(void *arg, enum fsck_kind kind, const char *text)
{
    ck_assert(kind == FSCK_ORPHAN_STRAY && text[0]);
    ((struct heard *)arg)->messages++;
}

static void hear_progress(void *arg, const char *phase, uint64_t done, uint64_t total)
{
    ck_assert(phase[0] && (total == 0 || done <= total));
    ((struct heard *)arg)->phases++;
}

START_TEST(test_callbacks)
{
    struct heard heard = {0};
    struct fsck_report report;
    struct fsck_options options = {
        .message = hear_message, .progress = hear_progress, .arg = &heard};
    fsck_store_edit(s);
    for (uint64_t ino = 1000; ino < 1100; ino++)
        record_put(s, KEY_ORPHAN, ino, "", 0);
    fsck_store_commit(s);
    ck_assert_int_eq(fsck_run(s->path, &options, &report, NULL), 0);
    ck_assert_uint_eq(report.leaks, 100);
    ck_assert_uint_gt(heard.messages, 0);
    ck_assert_uint_lt(heard.messages, 50);
    ck_assert_uint_gt(heard.phases, 5);
    heard.messages = 0;
    options.verbose = true;
    ck_assert_int_eq(fsck_run(s->path, &options, &report, NULL), 0);
    ck_assert_uint_eq(heard.messages, 100);
}
END_TEST

START_TEST(test_kinds)
{
    for (enum fsck_kind kind = 0; kind < FSCK_KINDS; kind++) {
        ck_assert(fsck_kind_text(kind)[0]);
        for (enum fsck_kind other = 0; other < kind; other++)
            ck_assert_str_ne(fsck_kind_id(kind), fsck_kind_id(other));
    }
    ck_assert(fsck_kind_is_leak(FSCK_CHUNK_COUNT_HIGH));
    ck_assert(!fsck_kind_is_leak(FSCK_CHUNK_COUNT_LOW));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fsck");
    TCase *t = tcase_create("store");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, test_clean);
    tcase_add_test(t, test_used_again);
    tcase_add_test(t, test_unfinished);
    tcase_add_test(t, test_in_use);
    tcase_add_test(t, test_no_store);
    tcase_add_test(t, test_superblock);
    tcase_add_test(t, test_segment_file_missing);
    tcase_add_test(t, test_segment_file_short);
    tcase_add_test(t, test_data);
    tcase_add_test(t, test_database_missing);
    tcase_add_test(t, test_database_flips);
    tcase_add_test(t, test_any_record);
    tcase_add_test(t, test_windows);
    tcase_add_test(t, test_callbacks);
    tcase_add_test(t, test_kinds);
    suite_add_tcase(suite, t);
    t = tcase_create("unclean");
    tcase_add_test(t, test_unclean);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
