// SPDX-License-Identifier: Apache-2.0
/* copy_file_range: what is shared, what is copied, what is one point in time. */
#include "tests/unit/content_fixture.h"

#include <linux/falloc.h>

enum { CHUNKS = 1100 }; /* of the source: two leaves and a bit */
#define SOURCE_BYTES ((uint64_t)CHUNKS * CHUNK - 1000)

static struct inode *dst;

static void setup_copy(void)
{
    setup_content();
    write_filled(file, SOURCE_BYTES, 0, 1);
    dst = make(fs, ROOT_INO, "dst", S_IFREG | 0644);
}

static void teardown_copy(void)
{
    inode_put(dst);
    teardown_content();
}

static void copy(uint64_t from, uint64_t to, uint64_t n)
{
    ck_assert_int_eq(file_copy_range(file, from, dst, to, n), (ssize_t)n);
}

/* [to, to + n) of dst is [from, from + n) of the source. */
static void assert_copied(uint64_t from, uint64_t to, size_t n)
{
    g_autofree uint8_t *source = g_malloc(SOURCE_BYTES);
    fill(source, SOURCE_BYTES, 1);
    assert_bytes(dst, source + from, n, to);
}

START_TEST(a_whole_file_costs_no_chunk_and_no_node)
{
    struct counts_stats before, after;
    counts_stats(fs->node_counts, &before);
    ck_assert_int_eq(file_copy_range(file, 0, dst, 0, (uint64_t)FILE_SIZE_MAX),
                     (ssize_t)SOURCE_BYTES);
    counts_stats(fs->node_counts, &after);
    ck_assert_uint_eq(live(), CHUNKS);
    ck_assert_uint_eq(after.live, before.live);
    ck_assert_uint_eq(size_of(dst), SOURCE_BYTES);
    assert_copied(0, 0, SOURCE_BYTES);
    /* And they are two files. */
    write_filled(dst, 100, 5, 2);
    assert_filled(file, SOURCE_BYTES, 0, 1);
}
END_TEST

START_TEST(a_whole_file_replaces_what_was_there)
{
    write_filled(dst, 3 * CHUNK, 0, 2);
    copy(0, 0, SOURCE_BYTES);
    ck_assert_uint_eq(live(), CHUNKS);
    assert_copied(0, 0, SOURCE_BYTES);
    /* A longer destination keeps its tail. */
    write_filled(dst, 100, SOURCE_BYTES + 5000, 3);
    write_filled(dst, SOURCE_BYTES, 0, 4);
    copy(0, 0, SOURCE_BYTES);
    ck_assert_uint_eq(size_of(dst), SOURCE_BYTES + 5100);
    assert_copied(0, 0, SOURCE_BYTES);
    assert_zeros(dst, 5000, SOURCE_BYTES);
    assert_filled(dst, 100, SOURCE_BYTES + 5000, 3);
}
END_TEST

START_TEST(aligned_parts_are_shared)
{
    copy(10 * CHUNK, 600 * CHUNK, 700 * CHUNK);
    ck_assert_uint_eq(live(), CHUNKS);
    assert_copied(10 * CHUNK, 600 * CHUNK, 700 * CHUNK);
    assert_zeros(dst, 600 * CHUNK, 0);
    ck_assert_uint_eq(usage_of(dst).shared_bytes, 700 * CHUNK);
}
END_TEST

START_TEST(alike_aligned_leaves_are_shared_whole)
{
    struct counts_stats before, after;
    /* Something above the two leaves to be shared. */
    write_filled(dst, CHUNK, UINT64_C(3) << 30, 2);
    counts_stats(fs->node_counts, &before);
    copy(0, UINT64_C(512) * CHUNK, UINT64_C(1024) * CHUNK);
    counts_stats(fs->node_counts, &after);
    ck_assert_uint_eq(after.live, before.live + 1); /* the node over them */
    assert_copied(0, UINT64_C(512) * CHUNK, 1024 * CHUNK);
}
END_TEST

START_TEST(only_the_edges_of_a_congruent_range_are_copied)
{
    copy(3 * CHUNK + 100, 50 * CHUNK + 100, 20 * CHUNK);
    ck_assert_uint_eq(live(), CHUNKS + 2);
    assert_copied(3 * CHUNK + 100, 50 * CHUNK + 100, 20 * CHUNK);
    assert_zeros(dst, 50 * CHUNK + 100, 0);
}
END_TEST

START_TEST(the_last_chunk_is_shared_where_both_end)
{
    copy(1000 * CHUNK, 7 * CHUNK, SOURCE_BYTES - 1000 * CHUNK);
    ck_assert_uint_eq(live(), CHUNKS);
    ck_assert_uint_eq(size_of(dst), 7 * CHUNK + SOURCE_BYTES - 1000 * CHUNK);
    /* Growing one shows zeros, and does not touch the other. */
    ck_assert_int_eq(file_truncate(dst, size_of(dst) + 1000), 0);
    assert_zeros(dst, 1000, size_of(dst) - 1000);
    write_filled(file, 1000, SOURCE_BYTES, 9);
    assert_zeros(dst, 1000, size_of(dst) - 1000);
}
END_TEST

START_TEST(the_last_chunk_is_copied_where_the_destination_goes_on)
{
    write_filled(dst, 200 * CHUNK, 0, 2);
    copy(1000 * CHUNK, 7 * CHUNK, SOURCE_BYTES - 1000 * CHUNK);
    assert_copied(1000 * CHUNK, 7 * CHUNK, SOURCE_BYTES - 1000 * CHUNK);
    uint8_t rest[200 * CHUNK];
    uint64_t end = 7 * CHUNK + SOURCE_BYTES - 1000 * CHUNK;
    fill(rest, sizeof(rest), 2);
    assert_bytes(dst, rest + end, sizeof(rest) - end, end);
}
END_TEST

START_TEST(other_ranges_are_copied_byte_by_byte)
{
    copy(3 * CHUNK + 100, 50 * CHUNK + 101, 20 * CHUNK);
    assert_copied(3 * CHUNK + 100, 50 * CHUNK + 101, 20 * CHUNK);
    copy(17, 0, 5);
    assert_copied(17, 0, 5);
}
END_TEST

START_TEST(holes_are_copied_as_holes)
{
    static const unsigned shift[] = {0, 1};
    int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    ck_assert_int_eq(file_fallocate(file, punch, 100 * CHUNK, 600 * CHUNK), 0);
    write_filled(dst, SOURCE_BYTES, 0, 2);
    ck_assert_int_eq(file_copy_range(file, 50 * CHUNK, dst, 50 * CHUNK + shift[_i], 800 * CHUNK),
                     800 * CHUNK);
    assert_copied(50 * CHUNK, 50 * CHUNK + shift[_i], 50 * CHUNK);
    assert_zeros(dst, 600 * CHUNK, 100 * CHUNK + shift[_i]);
    assert_copied(700 * CHUNK, 700 * CHUNK + shift[_i], 150 * CHUNK);
    ck_assert_uint_ge(usage_of(dst).holes, (600 - 1) * CHUNK);
}
END_TEST

START_TEST(a_huge_sparse_file_is_copied_at_once)
{
    /* At once: reading 2^60 bytes of zeros would not end. */
    static const uint64_t tos[] = {CHUNK, CHUNK + 1, 0};
    uint64_t size = UINT64_C(1) << 60, done = 0;
    uint64_t to = tos[_i];
    write_filled(file, 1, size - 1, 5);
    if (to == 0) /* else the map would be taken whole */
        write_filled(dst, 1, size + 1, 6);
    while (done < size) {
        ssize_t n = file_copy_range(file, done, dst, to + done, size - done);
        ck_assert_int_gt(n, 0);
        done += (uint64_t)n;
    }
    assert_filled(dst, 1, to + size - 1, 5);
    assert_copied(0, to, SOURCE_BYTES);
    assert_zeros(dst, 10000, to + (UINT64_C(1) << 50));
}
END_TEST

START_TEST(ranges_of_one_file)
{
    g_autofree uint8_t *source = g_malloc(SOURCE_BYTES);
    fill(source, SOURCE_BYTES, 1);
    ck_assert_int_eq(file_copy_range(file, 0, file, 5, 10), -EINVAL);
    ck_assert_int_eq(file_copy_range(file, 5 * CHUNK, file, 0, 6 * CHUNK), -EINVAL);
    ck_assert_int_eq(file_copy_range(file, 0, file, 0, 1), -EINVAL);
    assert_filled(file, SOURCE_BYTES, 0, 1);
    /* Neighbours do not overlap. */
    ck_assert_int_eq(file_copy_range(file, 0, file, 6 * CHUNK, 6 * CHUNK), 6 * CHUNK);
    assert_bytes(file, source, 6 * CHUNK, 6 * CHUNK);
    assert_bytes(file, source, 6 * CHUNK, 0);
    ck_assert_uint_eq(live(), CHUNKS - 6);
    /* Over the rest of the file, as leaves. */
    ck_assert_int_eq(file_copy_range(file, 0, file, 512 * CHUNK, 512 * CHUNK), 512 * CHUNK);
    assert_bytes(file, source, 6 * CHUNK, 518 * CHUNK);
    assert_bytes(file, source + 12 * CHUNK, 500 * CHUNK, 524 * CHUNK);
    write_filled(file, 10, 512 * CHUNK, 3);
    assert_bytes(file, source, 6 * CHUNK, 0);
}
END_TEST

START_TEST(copies_end_with_the_source)
{
    ck_assert_int_eq(file_copy_range(file, SOURCE_BYTES, dst, 0, 10), 0);
    ck_assert_int_eq(file_copy_range(file, UINT64_C(1) << 61, dst, 0, 10), 0);
    ck_assert_int_eq(file_copy_range(file, SOURCE_BYTES - 3, dst, 4, 10), 3);
    ck_assert_uint_eq(size_of(dst), 7);
    assert_copied(SOURCE_BYTES - 3, 4, 3);
    /* As far as a file may reach. */
    ck_assert_int_eq(file_copy_range(file, 0, dst, (uint64_t)FILE_SIZE_MAX - 5, 10), 5);
    assert_copied(0, (uint64_t)FILE_SIZE_MAX - 5, 5);
}
END_TEST

START_TEST(reserved_chunks_may_be_shared)
{
    ck_assert_int_eq(file_truncate(file, 0), 0);
    ck_assert_int_eq(file_fallocate(file, 0, 0, 20 * CHUNK), 0);
    write_filled(file, CHUNK, 3 * CHUNK, 2);
    ck_assert_int_eq(file_copy_range(file, CHUNK, dst, 5 * CHUNK, 10 * CHUNK), 10 * CHUNK);
    write_filled(dst, CHUNK, 6 * CHUNK, 3); /* there the source is reserved */
    assert_zeros(file, 3 * CHUNK, 0);
    assert_filled(file, CHUNK, 3 * CHUNK, 2);
    assert_filled(dst, CHUNK, 6 * CHUNK, 3);
    assert_filled(dst, CHUNK, 7 * CHUNK, 2);
}
END_TEST

/* Ends the process right after a commit, whatever the other thread is at. */
static void *commit_and_die(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < 30; i++)
        commit();
    _exit(0);
}

static void copy_until_death(void *arg)
{
    pthread_t killer;
    (void)arg;
    fs = open_store();
    file = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    dst = make(fs, ROOT_INO, "dst", S_IFREG | 0644);
    write_filled(file, SOURCE_BYTES, 0, 1);
    commit();
    ck_assert_int_eq(pthread_create(&killer, NULL, commit_and_die, NULL), 0);
    /* From a leaf to the middle of others: many small steps, each of which a
     * commit may come behind. */
    for (unsigned i = 1;; i++)
        copy(0, (uint64_t)(i % 1000) * 301 * CHUNK, 700 * CHUNK);
}

START_TEST(a_crash_leaks_no_reference_of_a_copy)
{
    in_child(copy_until_death, NULL);
    fs = open_store();
    file = open_file("file");
    assert_filled(file, SOURCE_BYTES, 0, 1);
    inode_put(file);
    close_store(fs);
    assert_sound();
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("copy");
    TCase *tc = tcase_create("ranges");
    tcase_add_checked_fixture(tc, setup_copy, teardown_copy);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_whole_file_costs_no_chunk_and_no_node);
    tcase_add_test(tc, a_whole_file_replaces_what_was_there);
    tcase_add_test(tc, aligned_parts_are_shared);
    tcase_add_test(tc, alike_aligned_leaves_are_shared_whole);
    tcase_add_test(tc, only_the_edges_of_a_congruent_range_are_copied);
    tcase_add_test(tc, the_last_chunk_is_shared_where_both_end);
    tcase_add_test(tc, the_last_chunk_is_copied_where_the_destination_goes_on);
    tcase_add_test(tc, other_ranges_are_copied_byte_by_byte);
    tcase_add_loop_test(tc, holes_are_copied_as_holes, 0, 2);
    tcase_add_loop_test(tc, a_huge_sparse_file_is_copied_at_once, 0, 3);
    tcase_add_test(tc, ranges_of_one_file);
    tcase_add_test(tc, copies_end_with_the_source);
    tcase_add_test(tc, reserved_chunks_may_be_shared);
    suite_add_tcase(suite, tc);
    tc = tcase_create("crash");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_crash_leaks_no_reference_of_a_copy);
    suite_add_tcase(suite, tc);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
