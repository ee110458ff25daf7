// SPDX-License-Identifier: Apache-2.0
/* metadb: what it takes on disk, and how fast it is. Prints numbers. */
#include "tests/unit/metadb_fixture.h"
#include "tests/unit/suite.h"

#include <sys/stat.h>

START_TEST(an_empty_store_is_small)
{
    struct metadb *db = open_db(ROCKS);
    put(db, "m", "superblock");
    commit(db);
    uint64_t bytes = metadb_disk_bytes(db);
    g_autofree char *reserve = g_build_filename(path, "reserve", NULL);
    struct stat st;
    ck_assert_int_eq(stat(reserve, &st), 0);
    uint64_t reserve_bytes = (uint64_t)st.st_blocks * 512;
    printf("empty store: %" PRIu64 " KiB, and %" PRIu64 " KiB of reserve\n",
           (bytes - reserve_bytes) / 1024, reserve_bytes / 1024);
    ck_assert_uint_lt(bytes - reserve_bytes, 256 * 1024);
    ck_assert_uint_lt(bytes, 600 * 1024);
    metadb_close(db);
}
END_TEST

START_TEST(space_of_deleted_records_returns)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);
    struct metadb *db = open_db(ROCKS);
    uint64_t empty = metadb_disk_bytes(db);
    put_many(db, rand);
    commit(db);
    uint64_t full = metadb_disk_bytes(db);
    for (uint64_t n = 0; n < MANY; n++)
        delete_number(db, n);
    commit(db);
    uint64_t deleted = metadb_disk_bytes(db);
    double start = seconds();
    ck_assert_int_eq(metadb_compact(db), 0);
    double took = seconds() - start;
    uint64_t compacted = metadb_disk_bytes(db);
    printf("100,000 records: %" PRIu64 " KiB empty, %" PRIu64 " full, %" PRIu64
           " after deletion, %" PRIu64 " after metadb_compact (%.0f ms)\n",
           empty / 1024, full / 1024, deleted / 1024, compacted / 1024, took * 1000);
    ck_assert_uint_gt(full, (uint64_t)MANY * VALUE_BYTES);
    ck_assert_uint_lt(compacted, 600 * 1024);
    metadb_close(db);
}
END_TEST

/* Without metadb_compact: waves of records that come and go for good. */
START_TEST(space_does_not_grow_with_history)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(2);
    struct metadb *db = open_db(ROCKS);
    uint64_t most = 0;
    unsigned most_logs = 0;
    for (int wave = 0; wave < 8; wave++) {
        uint8_t value[VALUE_BYTES];
        uint64_t first = (uint64_t)wave * MANY;
        for (uint64_t n = 0; n < MANY; n++) {
            random_bytes(rand, value, sizeof(value));
            put_number(db, first + n, value, sizeof(value));
            if (n % 10000 == 0)
                commit(db);
        }
        for (uint64_t n = 0; n < MANY; n++)
            delete_number(db, first + n);
        commit(db);
        most = MAX(most, metadb_disk_bytes(db));
        most_logs = MAX(most_logs, count_files(".log"));
    }
    /* Compaction runs behind: give it a moment, and something to wake it. */
    uint64_t rest = 0;
    for (int i = 0; i < 40; i++) {
        put_number(db, 0, "x", 1);
        commit(db);
        rest = metadb_disk_bytes(db);
        if (rest < 12 << 20)
            break;
        g_usleep(50000);
    }
    printf("8 waves of 100,000 records put and deleted: at most %" PRIu64
           " KiB and %u logs, at rest %" PRIu64 " KiB\n",
           most / 1024, most_logs, rest / 1024);
    /* 86 MB were written and deleted. */
    ck_assert_uint_lt(most, 60 << 20);
    ck_assert_uint_lt(rest, 24 << 20);
    ck_assert_uint_le(most_logs, 4);
    metadb_close(db);
}
END_TEST

START_TEST(logs_do_not_pile_up)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(3);
    uint8_t value[64 * 1024];
    for (int session = 0; session < 10; session++) {
        struct metadb *db = open_db(ROCKS);
        for (int i = 0; i < 50; i++) {
            random_bytes(rand, value, sizeof(value));
            put_number(db, (uint64_t)i, value, sizeof(value));
            commit(db);
        }
        ck_assert_uint_le(count_files(".log"), 4);
        /* The same 3 MiB of records were written 10 times. */
        ck_assert_uint_lt(metadb_disk_bytes(db), 40 << 20);
        metadb_close(db);
    }
    /* Many short lives: each opens a log, none may leave it for good. */
    for (int session = 0; session < 20; session++) {
        struct metadb *db = open_db(ROCKS);
        put(db, "a", "b");
        commit(db);
        metadb_close(db);
    }
    struct metadb *db = open_db(ROCKS);
    ck_assert_uint_le(count_files(".log"), 2);
    ck_assert_uint_eq(count_files(".dbtmp"), 0);
    metadb_close(db);
}
END_TEST

START_TEST(speed)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(5);
    struct metadb *db = open_db(_i);
    double start = seconds();
    put_many(db, rand);
    double put_done = seconds();
    commit(db);
    double commit_done = seconds();
    for (int i = 0; i < MANY; i++) {
        struct metadb_value value;
        ck_assert_int_eq(get_number(db, (uint64_t)g_rand_int_range(rand, 0, MANY), &value), 0);
        metadb_value_free(&value);
    }
    double get_done = seconds();
    unsigned seen = 0;
    struct metadb_iter *it = metadb_iter_new(db, "n", 1, "o", 1);
    for (; metadb_iter_valid(it); metadb_iter_next(it))
        seen++;
    metadb_iter_free(it);
    double iterated = seconds();
    ck_assert_uint_eq(seen, MANY);
    for (int i = 0; i < 100; i++) {
        put(db, "m", "counters");
        commit(db);
    }
    double small_commits = seconds();
    printf("%s: put %.0f k/s, commit of 100,000 %.0f ms, get %.0f k/s, iterate %.0f k/s, "
           "small commit %.2f ms\n",
           _i == ROCKS ? "RocksDB" : "in memory", MANY / (put_done - start) / 1000,
           (commit_done - put_done) * 1000, MANY / (get_done - commit_done) / 1000,
           MANY / (iterated - get_done) / 1000, (small_commits - iterated) * 10);
    metadb_close(db);
}
END_TEST
static Suite *make_suite(void)
{
    Suite *suite = suite_create("metadb_space");
    TCase *tcase = tcase_create("space");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 200);
    tcase_add_test(tcase, an_empty_store_is_small);
    tcase_add_test(tcase, space_of_deleted_records_returns);
    tcase_add_test(tcase, space_does_not_grow_with_history);
    tcase_add_test(tcase, logs_do_not_pile_up);
    tcase_add_loop_test(tcase, speed, 0, MODES);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
