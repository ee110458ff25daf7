// SPDX-License-Identifier: Apache-2.0
/* What a commit promises: the gate keeps it out of the middle of a change, the
 * participants hear of it in order, callers share it, and space is given back
 * only behind it. (Commits that fail: test_txn.c.) */
#include "tests/unit/map_fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { PARTICIPANTS = 3 };

/* ---- participants ---- */

struct witness {
    unsigned number;
    atomic_uint flips, durables, reclaims;
};

static struct witness witnesses[PARTICIPANTS];
static char order[64]; /* one letter a call: f0 f1 f2 d0 d1 d2 */
static atomic_uint slow_us;

static void note(char what, const struct witness *w)
{
    size_t n = strlen(order);
    if (n + 2 < sizeof(order))
        snprintf(order + n, sizeof(order) - n, "%c%u", what, w->number);
}

static void on_flip(void *arg)
{
    struct witness *w = arg;
    atomic_fetch_add(&w->flips, 1);
    note('f', w);
}

static void on_durable(void *arg)
{
    struct witness *w = arg;
    ck_assert_uint_eq(++w->durables, w->flips);
    note('d', w);
    if (atomic_load(&slow_us))
        g_usleep(atomic_load(&slow_us));
}

static void on_reclaim(void *arg)
{
    struct witness *w = arg;
    ck_assert_uint_ge(w->durables, 1);
    atomic_fetch_add(&w->reclaims, 1);
}

static void setup_witnesses(void)
{
    setup();
    for (unsigned i = 0; i < PARTICIPANTS; i++) {
        witnesses[i].number = i;
        txn_add_participant(env.txn, &(struct txn_participant){.arg = &witnesses[i],
                                                               .flip = on_flip,
                                                               .durable = on_durable,
                                                               .reclaim = on_reclaim});
    }
}

static void teardown_witnesses(void)
{
    txn_stop(env.txn);
    teardown();
}

/* The transaction anew, with another configuration. */
static void configure(struct txn_config config)
{
    txn_free(env.txn);
    env.txn = txn_new(env.db, env.segments, env.chunk_counts, env.node_counts, &config);
}

START_TEST(participants_hear_of_a_commit_in_order)
{
    ck_assert_int_eq(txn_commit(env.txn), 0);
    ck_assert_str_eq(order, "f0f1f2d0d1d2");
    ck_assert_uint_eq(txn_commits(env.txn), 1);
    ck_assert_int_eq(txn_commit(env.txn), 0);
    ck_assert_uint_eq(txn_commits(env.txn), 2);
    txn_start(env.txn);
    txn_wait_reclaim(env.txn);
    for (unsigned i = 0; i < PARTICIPANTS; i++)
        ck_assert_uint_ge(witnesses[i].reclaims, 1);
}
END_TEST

static void *commit_main(void *arg)
{
    ck_assert_int_eq(txn_commit(env.txn), 0);
    atomic_store((atomic_bool *)arg, true);
    return NULL;
}

START_TEST(a_commit_waits_for_the_end_of_a_change)
{
    pthread_t thread;
    atomic_bool done = false;
    txn_enter(env.txn);
    ck_assert_int_eq(pthread_create(&thread, NULL, commit_main, &done), 0);
    g_usleep(200000); /* were it not to wait it would be through by now */
    ck_assert_uint_eq(witnesses[0].flips, 0);
    ck_assert(!done);
    txn_exit(env.txn);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert(done);
    ck_assert_uint_eq(witnesses[0].flips, 1);
}
END_TEST

static void *commit_often(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < 30; i++)
        ck_assert_int_eq(txn_commit(env.txn), 0);
    return NULL;
}

START_TEST(those_who_wait_at_the_same_time_share_a_commit)
{
    pthread_t threads[8];
    atomic_store(&slow_us, 1000);
    for (unsigned i = 0; i < 8; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, commit_often, NULL), 0);
    for (unsigned i = 0; i < 8; i++)
        ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    ck_assert_uint_lt(txn_commits(env.txn), 8 * 30);
    ck_assert_uint_ge(txn_commits(env.txn), 30);
}
END_TEST

/* ---- the committer ---- */

static void set_something(void)
{
    txn_enter(env.txn);
    metadb_put(env.db, "x", 1, "y", 1);
    txn_exit(env.txn);
}

/* Ends early, or fails by the limit of Check. */
static void wait_commits(uint64_t n)
{
    while (txn_commits(env.txn) < n)
        g_usleep(1000);
}

START_TEST(changes_are_committed_after_the_interval)
{
    configure((struct txn_config){.commit_interval_ms = 20, .dirty_limit_bytes = 1 << 30});
    txn_start(env.txn);
    set_something();
    wait_commits(1);
    set_something();
    wait_commits(2);
}
END_TEST

START_TEST(a_kick_brings_the_commit_forward)
{
    configure((struct txn_config){.commit_interval_ms = 3600000, .dirty_limit_bytes = 1 << 30});
    txn_start(env.txn);
    set_something();
    txn_kick(env.txn, 3600000);
    txn_kick(env.txn, 10);
    wait_commits(1);
}
END_TEST

START_TEST(freed_chunks_bring_the_commit_forward)
{
    configure((struct txn_config){
        .commit_interval_ms = 3600000, .free_delay_ms = 10, .dirty_limit_bytes = 1 << 30});
    txn_start(env.txn);
    for (unsigned i = 1; i <= 3; i++) {
        txn_note_freed(env.txn);
        set_something();
        wait_commits(i);
    }
}
END_TEST

START_TEST(nobody_gets_far_ahead_of_the_commits)
{
    configure((struct txn_config){.commit_interval_ms = 3600000, .dirty_limit_bytes = 1 << 16});
    txn_start(env.txn);
    for (unsigned i = 0; i < 5000; i++) {
        char value[1000] = "";
        uint8_t key[KEY_MAX];
        txn_throttle(env.txn);
        txn_enter(env.txn);
        metadb_put(env.db, key, key_u64(key, KEY_UNSEALED, i), value, sizeof(value));
        txn_exit(env.txn);
        ck_assert_uint_lt(metadb_running_bytes(env.db), (1 << 16) + 2048);
    }
    ck_assert_uint_ge(txn_commits(env.txn), 5000000 / (1 << 16) / 2);
}
END_TEST

/* ---- space ---- */

static uint64_t allocated(void)
{
    struct segments_stats stats;
    ck_assert_int_eq(segments_stats(env.segments, &stats), 0);
    return stats.allocated_bytes;
}

static void write_chunks(chunk_t first, unsigned n)
{
    char *data = g_malloc((gsize)n * 4096);
    memset(data, 'x', (size_t)n * 4096);
    ck_assert_int_eq(segments_write(env.segments, first, 0, data, (size_t)n * 4096), 0);
    g_free(data);
}

START_TEST(space_is_given_back_behind_the_commit)
{
    struct map map = {0};
    chunk_t first = fresh_group();
    write_chunks(first, 100);
    txn_start(env.txn);
    txn_enter(env.txn);
    ck_assert_int_eq(map_set(nodes, &map, 0, 100, first, false), 0);
    txn_exit(env.txn);
    commit();
    ck_assert_uint_ge(allocated(), 100 * 4096);
    txn_enter(env.txn);
    ck_assert_int_eq(map_punch(nodes, &map, 0, 100), 0);
    txn_exit(env.txn);
    txn_wait_reclaim(env.txn);
    ck_assert_uint_ge(allocated(), 100 * 4096);
    char byte;
    ck_assert_int_eq(segments_read(env.segments, first, 0, &byte, 1), 0);
    ck_assert_int_eq(byte, 'x');
    commit();
    txn_wait_reclaim(env.txn);
    ck_assert_uint_eq(allocated(), 0);
    /* And is not handed out again under the same number. */
    ck_assert_uint_ne(fresh_group(), first);
}
END_TEST

START_TEST(a_reader_keeps_what_he_looked_up)
{
    struct map map = {0};
    chunk_t first = fresh_group();
    char byte;
    write_chunks(first, 10);
    txn_start(env.txn);
    txn_enter(env.txn);
    ck_assert_int_eq(map_set(nodes, &map, 0, 10, first, false), 0);
    txn_exit(env.txn);
    commit();
    unsigned section = segments_read_enter(env.segments);
    txn_enter(env.txn);
    ck_assert_int_eq(map_punch(nodes, &map, 0, 10), 0);
    txn_exit(env.txn);
    commit();
    g_usleep(200000); /* were it not to wait it would be punched by now */
    ck_assert_int_eq(segments_read(env.segments, first, 0, &byte, 1), 0);
    ck_assert_int_eq(byte, 'x');
    segments_read_exit(env.segments, section);
    txn_wait_reclaim(env.txn);
    ck_assert_uint_eq(allocated(), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("commit");
    TCase *tc = tcase_create("participants");
    tcase_add_checked_fixture(tc, setup_witnesses, teardown_witnesses);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, participants_hear_of_a_commit_in_order);
    tcase_add_test(tc, a_commit_waits_for_the_end_of_a_change);
    tcase_add_test(tc, those_who_wait_at_the_same_time_share_a_commit);
    suite_add_tcase(suite, tc);
    tc = tcase_create("committer");
    tcase_add_checked_fixture(tc, setup, teardown_witnesses);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, changes_are_committed_after_the_interval);
    tcase_add_test(tc, a_kick_brings_the_commit_forward);
    tcase_add_test(tc, freed_chunks_bring_the_commit_forward);
    tcase_add_test(tc, nobody_gets_far_ahead_of_the_commits);
    tcase_add_test(tc, space_is_given_back_behind_the_commit);
    tcase_add_test(tc, a_reader_keeps_what_he_looked_up);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
