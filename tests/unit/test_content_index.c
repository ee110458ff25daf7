// SPDX-License-Identifier: Apache-2.0
/* The content index: finding, and cleaning up behind freed chunks. */
#include "chunkstore/content_index.h"
#include "chunkstore/keys.h"

#include <check.h>
#include <errno.h>
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>

enum { RUN = 100, RUNS = 50 };

static struct metadb *db;

static void setup_db(void)
{
    struct metadb_options options = {.in_memory = true};
    struct errmsg err;
    ck_assert_int_eq(metadb_open("unused", &options, &db, &err), 0);
}

static void teardown_db(void)
{
    metadb_close(db);
}

static struct content_hash hash_of(chunk_t chunk)
{
    uint8_t secret[HASH_SECRET_BYTES] = {0};
    return content_hash_xxh3(&chunk, sizeof(chunk), secret);
}

static unsigned records_of(uint8_t type)
{
    uint8_t upper = type + 1;
    unsigned n = 0;
    struct metadb_iter *it = metadb_iter_new(db, &type, 1, &upper, 1);
    for (; metadb_iter_valid(it); metadb_iter_next(it))
        n++;
    metadb_iter_free(it);
    return n;
}

/* RUNS runs of RUN chunks with hashes, all freed; between them chunks that live. */
static void fill(void)
{
    for (unsigned r = 0; r < RUNS; r++) {
        chunk_t first = (UINT64_C(1) << 32) + (uint64_t)r * (RUN + 1);
        uint8_t key[KEY_MAX];
        struct wbuf count = {0};
        for (unsigned i = 0; i <= RUN; i++) {
            struct content_hash hash = hash_of(first + i);
            content_index_add(db, &hash, first + i, true);
        }
        wbuf_put_varint(&count, RUN);
        metadb_put(db, key, key_u64(key, KEY_DEAD_SEALED, first), count.data, count.len);
        wbuf_free(&count);
    }
}

START_TEST(cleaning_leaves_what_lives)
{
    bool more = true;
    fill();
    for (unsigned i = 0; more; i++) {
        ck_assert_uint_lt(i, RUN * RUNS);
        ck_assert_int_eq(content_index_clean(db, 77, &more), 0);
    }
    ck_assert_uint_eq(records_of(KEY_DEAD_SEALED), 0);
    ck_assert_uint_eq(records_of(KEY_CHUNK_HASH), RUNS);
    ck_assert_uint_eq(records_of(KEY_CONTENT), RUNS);
    chunk_t found, living = (UINT64_C(1) << 32) + RUN;
    struct content_hash hash = hash_of(living);
    ck_assert_int_eq(content_index_find(db, &hash, &found), 0);
    ck_assert_uint_eq(found, living);
    hash = hash_of(living - 1);
    ck_assert_int_eq(content_index_find(db, &hash, &found), -ENOENT);
}
END_TEST

START_TEST(one_step_of_cleaning_is_bounded)
{
    /* All of it is one transaction, and the store waits for that. */
    bool more;
    fill();
    unsigned before = records_of(KEY_CHUNK_HASH);
    ck_assert_int_eq(content_index_clean(db, 250, &more), 0);
    ck_assert(more);
    unsigned removed = before - records_of(KEY_CHUNK_HASH);
    ck_assert_uint_ge(removed, 200);
    ck_assert_uint_le(removed, 250);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("content_index");
    TCase *tcase = tcase_create("content_index");
    tcase_add_checked_fixture(tcase, setup_db, teardown_db);
    tcase_add_test(tcase, cleaning_leaves_what_lives);
    tcase_add_test(tcase, one_step_of_cleaning_is_bounded);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(make_suite());
    setbuf(stdout, NULL);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
