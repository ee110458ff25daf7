// SPDX-License-Identifier: Apache-2.0
/* Nodes: the two forms say the same, records come back, nothing is lost to
 * eviction, and who owns what is counted. */
#include "cowfs/node_internal.h"
#include "tests/unit/map_fixture.h"

static void check_entries(struct node *n, const uint64_t *expected)
{
    for (unsigned i = 0; i < NODE_ENTRIES; i++)
        ck_assert_uint_eq(node_entry(n, i), expected[i]);
    /* Runs cover all of it, and rise by one or are holes throughout. */
    for (unsigned i = 0, alike; i < NODE_ENTRIES; i += alike) {
        uint64_t value = node_run(n, i, NODE_ENTRIES, &alike);
        ck_assert_uint_ge(alike, 1);
        for (unsigned k = 0; k < alike; k++)
            ck_assert_uint_eq(expected[i + k], value ? value + k : 0);
    }
}

static void random_set(struct node *n, uint64_t *expected)
{
    unsigned at = (unsigned)rand() % NODE_ENTRIES;
    unsigned count = 1 + (unsigned)rand() % (rand() % 3 ? 8 : NODE_ENTRIES);
    count = MIN(count, NODE_ENTRIES - at);
    uint64_t first = 0;
    if (rand() % 3)
        first = (UINT64_C(3) << 32) + (rand() % 2 ? at : (unsigned)rand() % 100000);
    if (first && rand() % 8 == 0)
        first |= ENTRY_RESERVED;
    node_set_run(n, at, count, first);
    for (unsigned i = 0; i < count; i++)
        expected[at + i] = first ? first + i : 0;
}

START_TEST(random_changes_match_an_array)
{
    uint64_t expected[NODE_ENTRIES] = {0};
    struct node *n;
    srand((unsigned)_i + 1);
    ck_assert_int_eq(node_new(nodes, 1, &n), 0);
    uint64_t id = node_id(n);
    for (unsigned step = 0; step < 300; step++) {
        random_set(n, expected);
        if (step % 20 == 0) {
            check_entries(n, expected);
            /* Through the database and back: nothing unchanged stays cached. */
            node_put(n);
            commit();
            ck_assert_int_eq(node_get(nodes, id, 1, &n), 0);
            check_entries(n, expected);
        }
        if (rand() % 60 == 0) {
            node_set_run(n, 0, NODE_ENTRIES, 0);
            memset(expected, 0, sizeof(expected));
        }
    }
    check_entries(n, expected);
    node_put(n);
}
END_TEST

START_TEST(records_come_back)
{
    srand((unsigned)_i + 100);
    struct node n = {.level = 1};
    uint64_t expected[NODE_ENTRIES], decoded[NODE_ENTRIES];
    struct wbuf record = {0};
    unsigned level;
    n.entries = g_new0(uint64_t, NODE_ENTRIES);
    for (unsigned step = 0; step < 200; step++) {
        node_set_run_unlocked(&n, (unsigned)rand() % NODE_ENTRIES, 1,
                              1 + (uint64_t)rand() * (uint64_t)rand());
        memcpy(expected, n.entries, sizeof(expected));
        wbuf_reset(&record);
        node_encode(&n, &record);
        ck_assert_int_eq(node_decode(record.data, record.len, &level, decoded), 0);
        ck_assert_uint_eq(level, 1);
        ck_assert_mem_eq(decoded, expected, sizeof(expected));
        /* Cut anywhere, it is refused or is another valid one, never a crash. */
        for (size_t cut = 0; cut < record.len; cut += 1 + record.len / 7) {
            int error = node_decode(record.data, cut, &level, decoded);
            ck_assert(error == 0 || error == -EUCLEAN);
        }
    }
    wbuf_free(&record);
    g_free(n.entries);
}
END_TEST

START_TEST(a_leaf_of_one_run_is_short_and_one_change_adds_little)
{
    struct node n = {.level = 1};
    struct wbuf record = {0};
    node_set_run_unlocked(&n, 0, NODE_ENTRIES, UINT64_C(5) << 32);
    ck_assert_ptr_null(n.entries);
    node_encode(&n, &record);
    ck_assert_uint_le(record.len, 12);
    size_t before = record.len;
    node_set_run_unlocked(&n, 200, 1, (UINT64_C(9) << 32) + 12345);
    wbuf_reset(&record);
    node_encode(&n, &record);
    ck_assert_uint_le(record.len, before + 14);
    wbuf_free(&record);
    g_free(n.entries);
}
END_TEST

START_TEST(random_bytes_are_no_node)
{
    uint8_t record[80];
    uint64_t entries[NODE_ENTRIES];
    unsigned level;
    srand(99);
    for (unsigned i = 0; i < 100000; i++) {
        size_t len = (size_t)rand() % sizeof(record);
        for (size_t k = 0; k < len; k++)
            record[k] = (uint8_t)(rand() % 4 ? rand() % 8 : rand());
        int error = node_decode(record, len, &level, entries);
        ck_assert(error == 0 || error == -EUCLEAN);
        for (unsigned k = 0; error == 0 && level > 1 && k < NODE_ENTRIES; k++)
            ck_assert_msg(!(entries[k] & ENTRY_RESERVED), "a node id with a flag");
    }
}
END_TEST

START_TEST(a_copy_owns_the_same_chunks)
{
    struct node *n, *copy;
    chunk_t first = fresh_group();
    ck_assert_int_eq(node_new(nodes, 1, &n), 0);
    ck_assert_int_eq(counts_inc(env.chunk_counts, first, 100, NULL, NULL), 0);
    segments_account_live(env.segments, first, 100);
    node_set_run(n, 7, 100, first);
    ck_assert_int_eq(node_copy(nodes, n, &copy), 0);
    uint64_t id = node_id(n), copy_id = node_id(copy);
    node_put(n);
    node_put(copy);
    ck_assert_int_eq(node_unref(nodes, id, 1), 0);
    ck_assert_uint_eq(live_chunks(), 100);
    commit();
    ck_assert_int_eq(node_get(nodes, id, 1, &n), -EUCLEAN);
    ck_assert_int_eq(node_get(nodes, copy_id, 2, &n), -EUCLEAN);
    ck_assert_int_eq(node_unref(nodes, copy_id, 1), 0);
    ck_assert_uint_eq(live_chunks(), 0);
    ck_assert_uint_eq(live_nodes(), 0);
}
END_TEST

START_TEST(an_exchange_wants_what_it_expects)
{
    struct node *n;
    ck_assert_int_eq(node_new(nodes, 1, &n), 0);
    node_set_run(n, 0, 4, 1000);
    ck_assert(!node_exchange(n, 2, 1, 1001, 5000));
    ck_assert(node_exchange(n, 2, 1, 1002, 5000));
    ck_assert_uint_eq(node_entry(n, 1), 1001);
    ck_assert_uint_eq(node_entry(n, 2), 5000);
    ck_assert_uint_eq(node_entry(n, 3), 1003);
    ck_assert(!node_exchange(n, 0, 3, 1000, 6000)); /* all or none */
    ck_assert_uint_eq(node_entry(n, 0), 1000);
    ck_assert(node_exchange(n, 0, 2, 1000, 6000));
    ck_assert_uint_eq(node_entry(n, 1), 6001);
    node_put(n);
}
END_TEST

START_TEST(fill_slots_follow_the_index_and_are_used_once)
{
    struct node *n;
    chunk_t a, b, again;
    unsigned got;
    ck_assert_int_eq(node_new(nodes, 1, &n), 0);
    ck_assert_int_eq(node_fill_slots(n, 100, 10, &a, &got), 0);
    ck_assert_uint_eq(got, 10);
    ck_assert_int_eq(node_fill_slots(n, 0, 1, &b, &got), 0);
    ck_assert_uint_eq(a, b + 100);
    ck_assert_uint_eq(b % NODE_ENTRIES, 0);
    ck_assert_int_eq(node_fill_slots(n, 95, 10, &again, &got), 0);
    ck_assert_uint_eq(again, b + 95);
    ck_assert_uint_eq(got, 5);
    ck_assert_int_eq(node_fill_slots(n, 100, 20, &again, &got), 0);
    ck_assert_uint_eq(again, 0);
    ck_assert_uint_eq(got, 10);
    node_put(n);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("node");
    TCase *tc = tcase_create("node");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, random_changes_match_an_array, 0, 8);
    tcase_add_loop_test(tc, records_come_back, 0, 4);
    tcase_add_test(tc, a_leaf_of_one_run_is_short_and_one_change_adds_little);
    tcase_add_test(tc, random_bytes_are_no_node);
    tcase_add_test(tc, a_copy_owns_the_same_chunks);
    tcase_add_test(tc, an_exchange_wants_what_it_expects);
    tcase_add_test(tc, fill_slots_follow_the_index_and_are_used_once);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
