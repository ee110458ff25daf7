// SPDX-License-Identifier: Apache-2.0
/* Repair: what can be counted is right again, what is lost is an error or in
 * lost+found, and never zeros in the place of data. That each single damage of
 * test_fsck_* can be repaired is tested there. */
#include "tests/unit/fsck_expect.h"

#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "cowfs/names.h"
#include "cowfs/repair.h"
#include "tests/unit/suite.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdlib.h>
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

static int run_with(const struct repair_options *options, struct repair_report *report)
{
    struct errmsg err = {""};
    int error = repair_run(s->path, options, report, &err);
    ck_assert_msg((error == 0) == (err.text[0] == 0), "%d: %s", error, err.text);
    return error;
}

static void repair(void)
{
    struct repair_options options = {0};
    struct repair_report report;
    ck_assert_int_eq(run_with(&options, &report), 0);
    ck_assert(report.committed);
    fsck_expect_clean(s, false);
}

/* What the store had before it was damaged. */
static GBytes *content_of(struct fs *fs, uint64_t ino)
{
    struct inode *inode;
    ck_assert_int_eq(inode_get(fs->inodes, ino, &inode), 0);
    size_t size = (size_t)inode->attr.size_bytes;
    uint8_t *data = g_malloc(size + 1);
    ck_assert_int_eq(file_read(inode, data, size, 0), (ssize_t)size);
    inode_put(inode);
    return g_bytes_new_take(data, size);
}

static GBytes *content_before(uint64_t ino)
{
    struct fs *fs = fsck_store_open(s);
    GBytes *content = content_of(fs, ino);
    ck_assert_int_eq(fs_close(fs), 0);
    return content;
}

/* The file reads as `expected`, but for [from, to), which is an error. */
static void assert_content(struct fs *fs, uint64_t ino, GBytes *expected, uint64_t from,
                           uint64_t to)
{
    struct inode *inode;
    size_t size;
    const uint8_t *bytes = g_bytes_get_data(expected, &size);
    uint8_t chunk[STORE_CHUNK];
    ck_assert_int_eq(inode_get(fs->inodes, ino, &inode), 0);
    ck_assert_uint_eq(inode->attr.size_bytes, size);
    for (uint64_t at = 0; at < size; at += STORE_CHUNK) {
        size_t want = (size_t)min_u64(STORE_CHUNK, size - at);
        ssize_t n = file_read(inode, chunk, STORE_CHUNK, at);
        if (at >= from && at < to) {
            ck_assert_msg(n == -EIO, "at %d: %zd", (int)(at / STORE_CHUNK), n);
        } else {
            ck_assert_msg(n == (ssize_t)want, "at %d: %zd", (int)(at / STORE_CHUNK), n);
            ck_assert(memcmp(chunk, bytes + at, want) == 0);
        }
    }
    inode_put(inode);
}

/* The inode at lost+found/#number; 0: there is none. */
static uint64_t in_lost_found(struct fs *fs, uint64_t number)
{
    struct inode *dir, *inode;
    g_autofree char *name = g_strdup_printf("#%" G_GUINT64_FORMAT, number);
    if (names_lookup(fs, ROOT_INO, "lost+found", &dir))
        return 0;
    int error = names_lookup(fs, dir->ino, name, &inode);
    inode_put(dir);
    if (error)
        return 0;
    uint64_t ino = inode->ino;
    inode_put(inode);
    return ino;
}

/* ---- good stores ---- */

START_TEST(a_good_store_is_left_alone)
{
    struct repair_options options = {0};
    struct repair_report report;
    ck_assert_int_eq(run_with(&options, &report), 0);
    ck_assert_uint_eq(report.actions, 0);
    ck_assert(!report.committed);
}
END_TEST

START_TEST(a_store_in_use_is_refused)
{
    struct repair_options options = {0};
    struct repair_report report;
    struct fs *fs = fsck_store_open(s);
    ck_assert_int_eq(run_with(&options, &report), -EBUSY);
    ck_assert_int_eq(fs_close(fs), 0);
    g_autofree char *none = fsck_store_file(s, "nothing");
    ck_assert_int_lt(repair_run(none, &options, &report, NULL), 0);
}
END_TEST

START_TEST(a_damaged_database_is_refused)
{
    struct repair_options options = {0};
    struct repair_report report;
    g_autofree char *current = fsck_store_file(s, "metadb/CURRENT");
    ck_assert_int_eq(g_unlink(current), 0);
    ck_assert_int_eq(run_with(&options, &report), -EUCLEAN);
}
END_TEST

/* ---- maps ---- */

static void spoil(enum key_type type, uint64_t a)
{
    fsck_store_edit(s);
    record_put(s, type, a, "\xff\xff", 2);
    fsck_store_commit(s);
}

static uint64_t leaf_of(uint64_t ino, unsigned entry)
{
    fsck_store_edit(s);
    uint64_t leaf = child_of(s, root_of(s, ino), entry);
    fsck_store_commit(s);
    return leaf;
}

START_TEST(a_damaged_leaf_is_an_error_and_never_zeros)
{
    GBytes *a = content_before(s->a), *b = content_before(s->b);
    spoil(KEY_NODE, leaf_of(s->a, 1));
    repair();
    struct fs *fs = fsck_store_open(s);
    uint64_t leaf_bytes = 512 * STORE_CHUNK;
    assert_content(fs, s->a, a, leaf_bytes, 2 * leaf_bytes);
    assert_content(fs, s->c, a, leaf_bytes, 2 * leaf_bytes);
    /* b has a copy of one leaf of its own, and shares the two others. */
    struct inode *inode;
    ck_assert_int_eq(inode_get(fs->inodes, s->b, &inode), 0);
    struct cowfs_ioc_stat usage = {0};
    ck_assert_int_eq(usage_stat(fs, s->b, &usage), 0);
    ck_assert_uint_eq(usage.size, g_bytes_get_size(b));
    /* What is written there is good again, and in this file alone. */
    uint8_t chunk[STORE_CHUNK], back[STORE_CHUNK];
    memset(chunk, 7, sizeof(chunk));
    ck_assert_int_eq(inode_get(fs->inodes, s->a, &inode), 0);
    struct file_write_flags flags = {false, false};
    ck_assert_int_eq(file_write(inode, chunk, sizeof(chunk), leaf_bytes, flags), sizeof(chunk));
    ck_assert_int_eq(file_write(inode, chunk, 5, leaf_bytes + STORE_CHUNK, flags), -EIO);
    ck_assert_int_eq(file_read(inode, back, sizeof(back), leaf_bytes), sizeof(back));
    ck_assert_mem_eq(chunk, back, sizeof(back));
    inode_put(inode);
    assert_content(fs, s->c, a, leaf_bytes, 2 * leaf_bytes);
    ck_assert_int_eq(fs_close(fs), 0);
    fsck_expect_clean(s, false);
    g_bytes_unref(a);
    g_bytes_unref(b);
}
END_TEST

START_TEST(a_damaged_root_is_an_error_and_what_it_had_is_given_back)
{
    GBytes *a = content_before(s->a);
    size_t size;
    const uint8_t *bytes = g_bytes_get_data(a, &size);
    fsck_store_edit(s);
    uint64_t root = root_of(s, s->a), leaf = child_of(s, root, 0), next = meta_record(s).next_ino;
    fsck_store_commit(s);
    spoil(KEY_NODE, root);
    repair();
    struct fs *fs = fsck_store_open(s);
    assert_content(fs, s->a, a, 0, size);
    /* The leaves that nobody else has are files now. */
    bool found = false;
    for (uint64_t ino = next; ino < next + 3; ino++) {
        if (!in_lost_found(fs, ino))
            continue;
        GBytes *part = content_of(fs, ino);
        found |= g_bytes_get_size(part) == 512 * STORE_CHUNK &&
                 memcmp(g_bytes_get_data(part, NULL), bytes, 512 * STORE_CHUNK) == 0;
        found |=
            g_bytes_get_size(part) == 512 * STORE_CHUNK &&
            memcmp(g_bytes_get_data(part, NULL), bytes + 512 * STORE_CHUNK, 512 * STORE_CHUNK) == 0;
        found |= g_bytes_get_size(part) == 512 * STORE_CHUNK &&
                 memcmp(g_bytes_get_data(part, NULL), bytes + 1024 * STORE_CHUNK,
                        512 * STORE_CHUNK) == 0;
        g_bytes_unref(part);
    }
    ck_assert(found);
    (void)leaf;
    /* And all that can be deleted. */
    ck_assert_int_eq(names_unlink(fs, s->dir, "a"), 0);
    ck_assert_int_eq(names_unlink(fs, s->dir, "c"), 0);
    ck_assert_int_eq(fs_close(fs), 0);
    fsck_expect_clean(s, false);
    g_bytes_unref(a);
}
END_TEST

START_TEST(a_lost_segment_file_is_an_error)
{
    GBytes *a = content_before(s->a);
    fsck_store_edit(s);
    g_autofree char *name =
        g_strdup_printf("segments/%08x", (unsigned)(chunk_at(s, s->a, 0) >> 32));
    g_autofree char *file = fsck_store_file(s, name);
    metadb_close(s->db);
    s->db = NULL;
    ck_assert_int_eq(g_unlink(file), 0);
    repair();
    struct fs *fs = fsck_store_open(s);
    assert_content(fs, s->a, a, 0, g_bytes_get_size(a));
    ck_assert_int_eq(fs_close(fs), 0);
    fsck_expect_clean(s, false);
    g_bytes_unref(a);
}
END_TEST

START_TEST(a_file_whose_inode_is_lost_is_in_lost_found)
{
    GBytes *small = content_before(s->small);
    fsck_store_edit(s);
    uint64_t next = meta_record(s).next_ino;
    record_delete(s, KEY_INODE, s->small);
    fsck_store_commit(s);
    repair();
    struct fs *fs = fsck_store_open(s);
    ck_assert_uint_eq(in_lost_found(fs, next), next);
    GBytes *found = content_of(fs, next);
    size_t size = g_bytes_get_size(small);
    ck_assert_uint_ge(g_bytes_get_size(found), size); /* to the end of its last chunk */
    ck_assert(memcmp(g_bytes_get_data(found, NULL), g_bytes_get_data(small, NULL), size) == 0);
    struct inode *none;
    ck_assert_int_eq(names_lookup(fs, s->sub, "small", &none), -ENOENT);
    ck_assert_int_eq(fs_close(fs), 0);
    fsck_expect_clean(s, false);
    g_bytes_unref(small);
    g_bytes_unref(found);
}
END_TEST

/* ---- names ---- */

START_TEST(what_has_lost_its_name_is_in_lost_found)
{
    GBytes *a = content_before(s->a);
    fsck_store_edit(s);
    entries_delete(s, s->dir, hash_of(s, "a"));
    entries_delete(s, s->dir, hash_of(s, "sub"));
    fsck_store_commit(s);
    repair();
    struct fs *fs = fsck_store_open(s);
    struct inode *inode;
    ck_assert_uint_eq(in_lost_found(fs, s->a), s->a);
    ck_assert_uint_eq(in_lost_found(fs, s->sub), s->sub);
    assert_content(fs, s->a, a, 0, 0);
    /* What is in a directory stays there. */
    ck_assert_int_eq(names_lookup(fs, s->sub, "small", &inode), 0);
    inode_put(inode);
    ck_assert_int_eq(fs_close(fs), 0);
    fsck_expect_clean(s, false);
    g_bytes_unref(a);
}
END_TEST

START_TEST(a_lost_root_is_made_anew)
{
    fsck_store_edit(s);
    record_delete(s, KEY_INODE, ROOT_INO);
    fsck_store_commit(s);
    repair();
    struct fs *fs = fsck_store_open(s);
    struct inode *inode;
    ck_assert_int_eq(names_lookup(fs, ROOT_INO, "hard1", &inode), 0);
    ck_assert_uint_eq(inode->ino, s->hard);
    inode_put(inode);
    ck_assert_int_eq(fs_close(fs), 0);
}
END_TEST

/* ---- the way there ---- */

static int refuse(void *arg)
{
    (void)arg;
    return -ECANCELED;
}

START_TEST(nothing_is_changed_before_the_commit)
{
    struct repair_options options = {.before_commit = refuse};
    struct repair_report report;
    spoil(KEY_NODE, leaf_of(s->a, 1));
    struct fsck_report before = fsck_expect_run(s, false, NULL);
    ck_assert_int_eq(run_with(&options, &report), -ECANCELED);
    ck_assert(!report.committed);
    struct fsck_report after = fsck_expect_run(s, false, NULL);
    ck_assert_mem_eq(before.count, after.count, sizeof(before.count));
    repair();
    fsck_expect_repair(s, "after one that was given up");
}
END_TEST

/* ---- many things at once ---- */

/* Damages some records, in ways that nobody has thought of. */
static void damage_at_random(GRand *random)
{
    GPtrArray *keys = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    fsck_store_edit(s);
    struct metadb_iter *it = metadb_iter_new(s->db, "", 0, NULL, 0);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t len;
        const uint8_t *key = metadb_iter_key(it, &len);
        g_ptr_array_add(keys, g_bytes_new(key, len));
    }
    metadb_iter_free(it);
    unsigned n = (unsigned)g_rand_int_range(random, 1, 8);
    for (unsigned i = 0; i < n; i++) {
        guint which = (guint)g_rand_int_range(random, 0, (gint32)keys->len);
        GBytes *key = g_ptr_array_index(keys, which);
        size_t len;
        const uint8_t *k = g_bytes_get_data(key, &len);
        struct metadb_value value;
        if (metadb_get(s->db, k, len, &value))
            continue;
        unsigned what = (unsigned)g_rand_int_range(random, 0, 4);
        if (what == 0) {
            metadb_delete(s->db, k, len);
        } else if (what == 1 && value.len > 0) {
            value.data[g_rand_int_range(random, 0, (gint32)value.len)] ^=
                (uint8_t)(1 << g_rand_int_range(random, 0, 8));
            metadb_put(s->db, k, len, value.data, value.len);
        } else if (what == 2 && value.len > 0) {
            metadb_put(s->db, k, len, value.data,
                       (size_t)g_rand_int_range(random, 0, (gint32)value.len));
        } else {
            /* A bit of the key: the record of something else. */
            g_autofree uint8_t *other = g_memdup2(k, len);
            other[g_rand_int_range(random, 0, (gint32)len)] ^=
                (uint8_t)(1 << g_rand_int_range(random, 0, 8));
            metadb_delete(s->db, k, len);
            metadb_put(s->db, other, len, value.data, value.len);
        }
        metadb_value_free(&value);
    }
    fsck_store_commit(s);
    g_ptr_array_free(keys, TRUE);
}

enum { SEEDS = 6, ROUNDS = 4 };

START_TEST(any_damage_can_be_repaired)
{
    const char *env = g_getenv("COWFS_TEST_SEED");
    guint32 seed = (guint32)_i + 1 + (env ? (guint32)strtoul(env, NULL, 10) * SEEDS : 0);
    GRand *random = g_rand_new_with_seed(seed);
    for (unsigned round = 0; round < ROUNDS; round++) {
        g_autofree char *what = g_strdup_printf("seed %u, round %u", seed, round);
        if (g_getenv("COWFS_TEST_TELL"))
            g_printerr("%s\n", what);
        damage_at_random(random);
        fsck_expect_repair(s, what);
    }
    g_rand_free(random);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("repair");
    TCase *t = tcase_create("repair");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, a_good_store_is_left_alone);
    tcase_add_test(t, a_store_in_use_is_refused);
    tcase_add_test(t, a_damaged_database_is_refused);
    tcase_add_test(t, a_damaged_leaf_is_an_error_and_never_zeros);
    tcase_add_test(t, a_damaged_root_is_an_error_and_what_it_had_is_given_back);
    tcase_add_test(t, a_lost_segment_file_is_an_error);
    tcase_add_test(t, a_file_whose_inode_is_lost_is_in_lost_found);
    tcase_add_test(t, what_has_lost_its_name_is_in_lost_found);
    tcase_add_test(t, a_lost_root_is_made_anew);
    tcase_add_test(t, nothing_is_changed_before_the_commit);
    tcase_add_loop_test(t, any_damage_can_be_repaired, 0, SEEDS);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
