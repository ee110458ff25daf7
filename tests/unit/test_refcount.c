// SPDX-License-Identifier: Apache-2.0
/*
 * Counts: right after any sequence of changes and commits, and the rule for
 * overwriting in place never says yes where a roll-back could tell the tale.
 */
#include "chunkstore/refcount_internal.h"
#include "tests/unit/suite.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>

enum { NUMBERS = 3 * COUNT_GROUP };
static const uint64_t base = UINT64_C(7) << 32; /* as a chunk number looks */

static struct metadb *db;
static struct counts *counts;

static void setup(void)
{
    struct metadb_options options = {.create = true, .in_memory = true};
    ck_assert_int_eq(metadb_open("unused", &options, &db, NULL), 0);
    counts = counts_new(db, KEY_CHUNK_COUNTS, 0);
}

static void teardown(void)
{
    counts_free(counts);
    metadb_close(db);
}

static void flip(void)
{
    counts_flip(counts);
    ck_assert_int_eq(metadb_flip(db), 0);
}

static void make_durable(void)
{
    ck_assert_int_eq(metadb_commit(db), 0);
    counts_durable(counts);
}

static void commit(void)
{
    flip();
    make_durable();
}

/* What a process that starts now would find. */
static void reload(void)
{
    counts_free(counts);
    counts = counts_new(db, KEY_CHUNK_COUNTS, 0);
}

/* All of the range, whatever of it is sealed already. */
static void seal(uint64_t first, uint32_t n)
{
    for (uint32_t done, at = 0; at < n; at += done + 1)
        ck_assert_int_eq(counts_seal(counts, first + at, n - at, &done), 0);
}

static bool is_exclusive(uint64_t id)
{
    bool exclusive;
    uint32_t alike;
    ck_assert_int_eq(counts_exclusive_run(counts, id, 1, &exclusive, &alike), 0);
    ck_assert_uint_eq(alike, 1);
    return exclusive;
}

static void inc(uint64_t id, uint32_t n)
{
    ck_assert_int_eq(counts_inc(counts, id, n, NULL, NULL), 0);
}

static void dec(uint64_t id, uint32_t n)
{
    ck_assert_int_eq(counts_dec(counts, id, n, NULL, NULL), 0);
}

START_TEST(a_new_chunk_is_exclusive)
{
    inc(base, 1);
    ck_assert(is_exclusive(base));
    commit();
    ck_assert(is_exclusive(base));
    reload();
    ck_assert(is_exclusive(base));
}
END_TEST

START_TEST(a_chunk_without_owner_is_not)
{
    ck_assert(!is_exclusive(base));
}
END_TEST

START_TEST(shared_and_back_is_not_exclusive_before_a_commit)
{
    /* Clone A to B, delete A, write to B: the count is 1 at both ends, and at
     * the last commit, but a roll-back would give the chunk to A. */
    inc(base, 1);
    commit();
    inc(base, 1);
    dec(base, 1);
    ck_assert(!is_exclusive(base));
    flip();
    ck_assert_msg(!is_exclusive(base), "the flip alone makes nothing durable");
    make_durable();
    ck_assert(is_exclusive(base));
}
END_TEST

START_TEST(shared_at_the_last_commit_is_not_exclusive)
{
    inc(base, 2);
    inc(base, 1);
    commit();
    dec(base, 1);
    ck_assert(!is_exclusive(base));
    ck_assert_msg(is_exclusive(base + 1), "its neighbour never was shared");
    commit();
    ck_assert(is_exclusive(base));
}
END_TEST

START_TEST(a_failed_commit_counts_for_nothing)
{
    inc(base, 2);
    commit();
    inc(base, 2);
    commit();
    dec(base, 2);
    flip(); /* and the write fails: it stays the committing one */
    ck_assert(!is_exclusive(base));
    inc(base + 1, 1);
    dec(base + 1, 1);
    make_durable(); /* tried again */
    ck_assert(is_exclusive(base));
    ck_assert_msg(!is_exclusive(base + 1), "it was shared after the flip");
    commit();
    ck_assert(is_exclusive(base + 1));
}
END_TEST

START_TEST(whole_groups_keep_the_rule)
{
    inc(base, COUNT_GROUP);
    commit();
    inc(base, COUNT_GROUP);
    dec(base, COUNT_GROUP);
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        ck_assert(!is_exclusive(base + i));
    commit();
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        ck_assert(is_exclusive(base + i));
}
END_TEST

START_TEST(sealed_is_never_exclusive)
{
    struct count_info info;
    inc(base, 2);
    seal(base, 1);
    ck_assert(!is_exclusive(base));
    ck_assert(is_exclusive(base + 1));
    commit();
    reload();
    ck_assert(!is_exclusive(base));
    ck_assert_int_eq(counts_get(counts, base, &info), 0);
    ck_assert(info.sealed);
}
END_TEST

START_TEST(no_chunk_is_marked_by_two)
{
    uint32_t done;
    inc(base, 8);
    ck_assert_int_eq(counts_seal(counts, base + 3, 2, &done), 0);
    ck_assert_uint_eq(done, 2);
    /* Another one, who looked before: he gets what is before the first's. */
    ck_assert_int_eq(counts_seal(counts, base, 8, &done), 0);
    ck_assert_uint_eq(done, 3);
    ck_assert_int_eq(counts_seal(counts, base + 4, 4, &done), 0);
    ck_assert_uint_eq(done, 0);
    ck_assert_int_eq(counts_seal(counts, base + 5, 3, &done), 0);
    ck_assert_uint_eq(done, 3);
}
END_TEST

START_TEST(a_mark_can_be_taken_back_until_somebody_relied_on_it)
{
    struct count_info info;
    uint32_t merged;
    inc(base, 2);
    seal(base, 2);
    ck_assert_int_eq(counts_unseal(counts, base, 1), 0);
    ck_assert_int_eq(counts_unseal(counts, base + 2, 1), 0); /* has no owner */
    ck_assert(is_exclusive(base));
    ck_assert_int_eq(counts_merge(counts, base + 1, 1, &merged), 0);
    ck_assert_int_eq(counts_unseal(counts, base + 1, 1), 0);
    ck_assert_int_eq(counts_get(counts, base + 1, &info), 0);
    ck_assert(info.sealed && info.merges == 1);
    commit();
    reload();
    ck_assert_int_eq(counts_get(counts, base, &info), 0);
    ck_assert(!info.sealed && info.count == 1);
}
END_TEST

struct seen {
    uint64_t first[8];
    uint32_t n[8];
    bool sealed[8];
    unsigned runs;
};

static void note_run(void *arg, uint64_t first, uint32_t n, bool sealed)
{
    struct seen *seen = arg;
    ck_assert_uint_lt(seen->runs, 8);
    seen->first[seen->runs] = first;
    seen->n[seen->runs] = n;
    seen->sealed[seen->runs++] = sealed;
}

START_TEST(births_and_deaths_are_told_once_by_runs)
{
    struct seen born = {0}, dead = {0};
    uint64_t first = base + COUNT_GROUP - 10;
    ck_assert_int_eq(counts_inc(counts, first, 20, note_run, &born), 0);
    ck_assert_uint_eq(born.runs, 2); /* cut where the groups meet */
    ck_assert_uint_eq(born.n[0] + born.n[1], 20);
    ck_assert_int_eq(counts_inc(counts, first + 5, 1, note_run, &born), 0);
    ck_assert_uint_eq(born.runs, 2);
    seal(first, 2);
    ck_assert_int_eq(counts_dec(counts, first, 10, note_run, &dead), 0);
    ck_assert_uint_eq(dead.runs, 3);
    ck_assert(dead.sealed[0] && dead.n[0] == 2 && dead.first[0] == first);
    ck_assert(!dead.sealed[1] && dead.n[1] == 3);
    ck_assert(dead.first[2] == first + 6 && dead.n[2] == 4);
}
END_TEST

START_TEST(below_zero_is_damage_and_touches_nothing_else)
{
    struct count_info info;
    inc(base, 1);
    inc(base + 2, 1);
    ck_assert_int_eq(counts_dec(counts, base, 3, NULL, NULL), -EUCLEAN);
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_int_eq(counts_get(counts, base + i, &info), 0);
        ck_assert_uint_eq(info.count, 0);
    }
}
END_TEST

START_TEST(merging_goes_by_runs_and_stops_at_what_is_not_sealed)
{
    struct count_info info;
    uint64_t first = base + COUNT_GROUP - 3;
    uint32_t merged;
    inc(first, 8);
    seal(first, 5);
    ck_assert_int_eq(counts_merge(counts, first + 1, 7, &merged), 0);
    ck_assert_uint_eq(merged, 4);
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_int_eq(counts_get(counts, first + i, &info), 0);
        ck_assert_uint_eq(info.count, i >= 1 && i < 5 ? 2 : 1);
    }
    ck_assert_int_eq(counts_unseal(counts, first, 8), 0);
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_int_eq(counts_get(counts, first + i, &info), 0);
        ck_assert(info.sealed == (i >= 1 && i < 5));
    }
}
END_TEST

START_TEST(merging_takes_living_sealed_chunks_only)
{
    struct count_info info;
    struct counts_stats stats;
    uint32_t merged;
    ck_assert_int_eq(counts_merge(counts, base, 1, &merged), -ENOENT);
    inc(base, 1);
    ck_assert_int_eq(counts_merge(counts, base, 1, &merged), -ENOENT);
    seal(base, 1);
    ck_assert_int_eq(counts_merge(counts, base, 1, &merged), 0);
    ck_assert_int_eq(counts_merge(counts, base, 1, &merged), 0);
    ck_assert_int_eq(counts_get(counts, base, &info), 0);
    ck_assert_uint_eq(info.count, 3);
    ck_assert_uint_eq(info.merges, 2);
    commit();
    reload();
    /* Owners that go are taken for clones first, so merges stay below. */
    dec(base, 1);
    ck_assert_int_eq(counts_get(counts, base, &info), 0);
    ck_assert_uint_eq(info.merges, 1);
    dec(base, 1);
    dec(base, 1);
    ck_assert_int_eq(counts_merge(counts, base, 1, &merged), -ENOENT);
    counts_stats(counts, &stats);
    ck_assert_int_eq((int64_t)stats.merges, -2); /* two were there when it was loaded */
}
END_TEST

/* ---- Against a plain model ---- */

struct model {
    uint32_t count[NUMBERS];
    bool sealed[NUMBERS];
    bool shared_running[NUMBERS], shared_committing[NUMBERS];
};

static void check_model(const struct model *m)
{
    for (unsigned i = 0; i < NUMBERS; i++) {
        struct count_info info;
        ck_assert_int_eq(counts_get(counts, base + i, &info), 0);
        ck_assert_uint_eq(info.count, m->count[i]);
        ck_assert_int_eq(info.sealed, m->sealed[i]);
        bool exclusive =
            m->count[i] == 1 && !m->sealed[i] && !m->shared_running[i] && !m->shared_committing[i];
        ck_assert_int_eq(is_exclusive(base + i), exclusive);
    }
}

static void note_flip(struct model *m)
{
    memcpy(m->shared_committing, m->shared_running, sizeof(m->shared_running));
    for (unsigned i = 0; i < NUMBERS; i++)
        m->shared_running[i] = m->count[i] > 1;
}

static void change(struct model *m, unsigned first, unsigned n)
{
    switch (rand() % 4) {
    case 0:
    case 1:
        inc(base + first, n);
        for (unsigned i = first; i < first + n; i++)
            if (++m->count[i] > 1)
                m->shared_running[i] = true;
        break;
    case 2:
        for (unsigned i = first; i < first + n; i++)
            if (m->count[i] == 0)
                return;
        dec(base + first, n);
        for (unsigned i = first; i < first + n; i++)
            if (--m->count[i] == 0)
                m->sealed[i] = false;
        break;
    default:
        seal(base + first, n);
        for (unsigned i = first; i < first + n; i++)
            m->sealed[i] |= m->count[i] > 0;
    }
}

START_TEST(random_changes_match_a_model)
{
    struct model m = {0};
    bool flipped = false;
    srand((unsigned)_i + 1);
    for (unsigned step = 0; step < 3000; step++) {
        unsigned first = (unsigned)rand() % NUMBERS;
        unsigned n = rand() % 3 ? 1 + (unsigned)rand() % 8 : COUNT_GROUP;
        if (rand() % 4 == 0)
            first -= first % COUNT_GROUP;
        n = MIN(n, NUMBERS - first);
        change(&m, first, n);
        if (rand() % 50 == 0) {
            if (flipped) {
                make_durable();
                memset(m.shared_committing, 0, sizeof(m.shared_committing));
            } else {
                flip();
                note_flip(&m);
            }
            flipped = !flipped;
        }
        if (step % 200 == 0)
            check_model(&m);
    }
    check_model(&m);
    if (flipped)
        make_durable();
    commit();
    reload();
    memset(m.shared_committing, 0, sizeof(m.shared_committing));
    memset(m.shared_running, 0, sizeof(m.shared_running));
    check_model(&m);
}
END_TEST

static void ignore_run(void *arg, uint32_t first, uint32_t n, struct count_info info)
{
    (void)info;
    ck_assert_uint_le(first + n, COUNT_GROUP);
    *(unsigned *)arg += n;
}

START_TEST(damaged_records_are_refused_not_obeyed)
{
    uint8_t record[64];
    srand(4711);
    for (unsigned i = 0; i < 200000; i++) {
        size_t len = (size_t)rand() % sizeof(record);
        unsigned total = 0;
        for (size_t k = 0; k < len; k++)
            record[k] = (uint8_t)rand();
        int error = counts_decode(record, len, ignore_run, &total);
        ck_assert(error == 0 || error == -EUCLEAN);
        ck_assert_uint_le(total, COUNT_GROUP);
    }
}
END_TEST

START_TEST(unchanged_groups_leave_the_cache_and_come_back)
{
    struct counts_stats stats;
    for (unsigned i = 0; i < 5000; i++) {
        inc(base + (uint64_t)i * COUNT_GROUP, 1 + i % 3);
        if (i % 500 == 0)
            commit();
    }
    commit();
    for (unsigned i = 0; i < 5000; i++) {
        struct count_info info;
        ck_assert_int_eq(counts_get(counts, base + (uint64_t)i * COUNT_GROUP + i % 3, &info), 0);
        ck_assert_uint_eq(info.count, 1);
    }
    counts_stats(counts, &stats);
    ck_assert_uint_lt(stats.groups_cached, 5000);
    ck_assert_uint_eq(stats.live, 1 * 1667 + 2 * 1667 + 3 * 1666);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("refcount");
    TCase *tc = tcase_create("counts");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_new_chunk_is_exclusive);
    tcase_add_test(tc, a_chunk_without_owner_is_not);
    tcase_add_test(tc, shared_and_back_is_not_exclusive_before_a_commit);
    tcase_add_test(tc, shared_at_the_last_commit_is_not_exclusive);
    tcase_add_test(tc, a_failed_commit_counts_for_nothing);
    tcase_add_test(tc, whole_groups_keep_the_rule);
    tcase_add_test(tc, sealed_is_never_exclusive);
    tcase_add_test(tc, no_chunk_is_marked_by_two);
    tcase_add_test(tc, a_mark_can_be_taken_back_until_somebody_relied_on_it);
    tcase_add_test(tc, births_and_deaths_are_told_once_by_runs);
    tcase_add_test(tc, below_zero_is_damage_and_touches_nothing_else);
    tcase_add_test(tc, merging_goes_by_runs_and_stops_at_what_is_not_sealed);
    tcase_add_test(tc, merging_takes_living_sealed_chunks_only);
    tcase_add_loop_test(tc, random_changes_match_a_model, 0, 8);
    tcase_add_test(tc, damaged_records_are_refused_not_obeyed);
    tcase_add_test(tc, unchanged_groups_leave_the_cache_and_come_back);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
