// SPDX-License-Identifier: Apache-2.0
/*
 * metadb_fixture.h - what the tests of metadb share: a directory for each
 * test, short names for keys of text and of numbers.
 */
#ifndef TESTS_UNIT_METADB_FIXTURE_H
#define TESTS_UNIT_METADB_FIXTURE_H

#include "chunkstore/bytes.h"
#include "chunkstore/metadb.h"
#include "tests/unit/remove_tree.h"

#include <check.h>
#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>

/* RocksDB is not built with the sanitizer, which then does not see how its
 * threads synchronise, but does see its calls of memcpy. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "ignore_noninstrumented_modules=1";
}

static char *scratch; /* a directory of each test's own */
static char *path;    /* the database in it */

static inline void setup(void)
{
    scratch = g_dir_make_tmp("cowfs-metadb-XXXXXX", NULL);
    ck_assert_ptr_nonnull(scratch);
    path = g_build_filename(scratch, "meta", NULL);
}

static inline void teardown(void)
{
    umount2(scratch, MNT_DETACH); /* some tests mount a small tmpfs there */
    remove_tree(scratch);
    g_free(scratch);
    g_free(path);
}

/* ---- small helpers ---- */

enum { ROCKS, IN_MEMORY, MODES };

static inline struct metadb *open_db(int mode)
{
    struct metadb_options options = {.create = true, .in_memory = mode == IN_MEMORY};
    struct metadb *db;
    struct errmsg err = {""};
    int error = metadb_open(path, &options, &db, &err);
    ck_assert_msg(error == 0, "open: %d %s", error, err.text);
    return db;
}

static inline int try_open(bool create, bool read_only, struct metadb **db, struct errmsg *err)
{
    struct metadb_options options = {.create = create, .read_only = read_only};
    *err = (struct errmsg){""};
    return metadb_open(path, &options, db, err);
}

static inline void put(struct metadb *db, const char *key, const char *value)
{
    metadb_put(db, key, strlen(key), value, strlen(value));
}

static inline void del(struct metadb *db, const char *key)
{
    metadb_delete(db, key, strlen(key));
}

/* expected NULL: absent. */
static inline void assert_value(struct metadb *db, const char *key, const char *expected)
{
    struct metadb_value value;
    int error = metadb_get(db, key, strlen(key), &value);
    if (!expected) {
        ck_assert_msg(error == -ENOENT, "%s: %d, should be absent", key, error);
        return;
    }
    ck_assert_msg(error == 0, "%s: %d", key, error);
    ck_assert_uint_eq(value.len, strlen(expected));
    ck_assert_mem_eq(value.data, expected, value.len);
    metadb_value_free(&value);
}

static inline void commit(struct metadb *db)
{
    ck_assert_int_eq(metadb_flip(db), 0);
    ck_assert_int_eq(metadb_commit(db), 0);
}

/* "key=value key=value" of all in [lower, upper). */
static inline void assert_listing(struct metadb *db, const char *lower, const char *upper,
                                  const char *expected)
{
    g_autoptr(GString) text = g_string_new("");
    struct metadb_iter *it = metadb_iter_new(db, lower, strlen(lower), upper, strlen(upper));
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len;
        size_t value_len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *value = metadb_iter_value(it, &value_len);
        g_string_append_printf(text, "%s%.*s=%.*s", text->len ? " " : "", (int)key_len, key,
                               (int)value_len, value);
    }
    ck_assert_int_eq(metadb_iter_status(it), 0);
    metadb_iter_free(it);
    ck_assert_str_eq(text->str, expected);
}

static inline void put_number(struct metadb *db, uint64_t n, const void *value, size_t len)
{
    uint8_t key[9] = {'n'};
    put_be64(key + 1, n);
    metadb_put(db, key, sizeof(key), value, len);
}

static inline void delete_number(struct metadb *db, uint64_t n)
{
    uint8_t key[9] = {'n'};
    put_be64(key + 1, n);
    metadb_delete(db, key, sizeof(key));
}

static inline int get_number(struct metadb *db, uint64_t n, struct metadb_value *value)
{
    uint8_t key[9] = {'n'};
    put_be64(key + 1, n);
    return metadb_get(db, key, sizeof(key), value);
}

/* Does not compress: LZ4 must not make the space tests too easy. */
static inline void random_bytes(GRand *rand, uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)g_rand_int(rand);
}

static inline double seconds(void)
{
    return (double)g_get_monotonic_time() / 1e6;
}

static inline unsigned count_files(const char *suffix)
{
    unsigned count = 0;
    GDir *entries = g_dir_open(path, 0, NULL);
    const char *name;
    while ((name = g_dir_read_name(entries)))
        count += g_str_has_suffix(name, suffix);
    g_dir_close(entries);
    return count;
}

enum { MANY = 100000, VALUE_BYTES = 100 };

static inline void put_many(struct metadb *db, GRand *rand)
{
    uint8_t value[VALUE_BYTES];
    for (uint64_t n = 0; n < MANY; n++) {
        random_bytes(rand, value, sizeof(value));
        put_number(db, n, value, sizeof(value));
    }
}

#endif
