// SPDX-License-Identifier: Apache-2.0
/* The content index: finding, and cleaning up behind freed chunks. */
#include "chunkstore/content_index.h"
#include "chunkstore/keys.h"
#include "tests/unit/suite.h"

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

static struct content_record content_of(chunk_t chunk, uint32_t domain)
{
    uint8_t secret[HASH_SECRET_BYTES] = {0};
    return (struct content_record){
        .hash = content_hash_xxh3(&chunk, sizeof(chunk), secret),
        .domain = domain,
    };
}

static void add(chunk_t chunk, chunk_t content, uint32_t domain)
{
    struct content_entry entry = {
        .content = content_of(content, domain),
        .chunk = chunk,
        .findable = true,
    };
    content_index_add_many(db, &entry, 1);
}

/* 0: none. */
static chunk_t find(chunk_t content, uint32_t domain)
{
    struct content_record record = content_of(content, domain);
    chunk_t found = 0;
    int error = content_index_find(db, &record, &found);
    ck_assert(error == 0 || error == -ENOENT);
    return found;
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
        for (unsigned i = 0; i <= RUN; i++)
            add(first + i, first + i, i % 3); /* of several domains */
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
    chunk_t living = (UINT64_C(1) << 32) + RUN;
    ck_assert_uint_eq(find(living, RUN % 3), living);
    ck_assert_uint_eq(find(living - 1, (RUN - 1) % 3), 0);
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

static struct content_record record_of(chunk_t chunk)
{
    struct content_record record;
    bool has;
    ck_assert_int_eq(content_index_records(db, chunk, 1, &record, &has), 0);
    ck_assert(has);
    return record;
}

START_TEST(each_domain_finds_its_own)
{
    add(10, 1, 0);
    ck_assert_uint_eq(find(1, 1000), 0);
    add(11, 1, 1000);
    add(12, 1, UINT32_MAX);
    ck_assert_uint_eq(find(1, 0), 10);
    ck_assert_uint_eq(find(1, 1000), 11);
    ck_assert_uint_eq(find(1, UINT32_MAX), 12);
    ck_assert_uint_eq(find(1, 1001), 0);
    ck_assert_uint_eq(find(2, 1000), 0);
    ck_assert_uint_eq(record_of(11).domain, 1000);
}
END_TEST

START_TEST(a_chunk_moves_to_another_domain)
{
    add(10, 1, 0);
    add(20, 1, 7); /* the same bytes, elsewhere */
    struct content_record record = record_of(10);
    ck_assert_int_eq(content_index_move(db, 10, &record, 7), 0);
    ck_assert_uint_eq(find(1, 0), 0);
    ck_assert_uint_eq(find(1, 7), 10);
    ck_assert_uint_eq(record_of(10).domain, 7);
    /* The other one leaves what is not its own. */
    record = record_of(20);
    ck_assert_int_eq(content_index_move(db, 20, &record, 0), 0);
    ck_assert_uint_eq(find(1, 0), 20);
    ck_assert_uint_eq(find(1, 7), 10);
}
END_TEST

START_TEST(records_are_of_two_lengths)
{
    struct content_record record;
    uint8_t value[CONTENT_RECORD_BYTES_MAX + 1] = {1, [16] = 0, 0, 3, 0xe8};
    for (size_t len = 0; len <= sizeof(value); len++)
        ck_assert_int_eq(content_record_decode(value, len, &record),
                         len == 16 || len == 20 ? 0 : -EUCLEAN);
    ck_assert_int_eq(content_record_decode(value, 20, &record), 0);
    ck_assert_uint_eq(record.domain, 1000);
    value[18] = value[19] = 0;
    ck_assert_int_eq(content_record_decode(value, 20, &record), -EUCLEAN);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("content_index");
    TCase *tcase = tcase_create("content_index");
    tcase_add_checked_fixture(tcase, setup_db, teardown_db);
    tcase_add_test(tcase, cleaning_leaves_what_lives);
    tcase_add_test(tcase, one_step_of_cleaning_is_bounded);
    tcase_add_test(tcase, each_domain_finds_its_own);
    tcase_add_test(tcase, a_chunk_moves_to_another_domain);
    tcase_add_test(tcase, records_are_of_two_lengths);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
