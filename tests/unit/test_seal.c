// SPDX-License-Identifier: Apache-2.0
/* Sealing: equal chunks become one wherever they are, different ones never do,
 * whatever their hash, and the index forgets what is gone. */
#include "tests/unit/content_fixture.h"

#include "chunkstore/content_index.h"
#include "cowfs/sealer.h"

#include <linux/falloc.h>
#include <semaphore.h>
#include <sys/syscall.h>

enum { CHUNKS = 600 }; /* more than a leaf, more than a batch */

static struct inode *second;

static void setup_seal(void)
{
    setup_content();
    second = make(fs, ROOT_INO, "second", S_IFREG | 0644);
}

static void teardown_seal(void)
{
    inode_put(second);
    teardown_content();
}

static uint64_t records(enum key_type type)
{
    uint8_t lower = (uint8_t)type, upper = (uint8_t)(type + 1);
    uint64_t n = 0;
    struct metadb_iter *it = metadb_iter_new(fs->db, &lower, 1, &upper, 1);
    for (; metadb_iter_valid(it); metadb_iter_next(it))
        n++;
    ck_assert_int_eq(metadb_iter_status(it), 0);
    metadb_iter_free(it);
    return n;
}

static void clean_index(void)
{
    bool more = true;
    while (more) {
        txn_enter(fs->txn);
        ck_assert_int_eq(content_index_clean(fs->db, 100, &more), 0);
        txn_exit(fs->txn);
    }
}

START_TEST(equal_files_are_stored_once)
{
    struct cowfs_ioc_seal first, other;
    write_filled(file, CHUNKS * CHUNK - 100, 0, 1);
    write_filled(second, CHUNKS * CHUNK - 100, 0, 1);
    seal_all(file, &first);
    ck_assert_uint_eq(first.hashed, (uint64_t)CHUNKS * CHUNK);
    ck_assert_uint_eq(first.deduplicated, 0);
    seal_all(second, &other);
    ck_assert_uint_eq(other.hashed, (uint64_t)CHUNKS * CHUNK);
    ck_assert_uint_eq(other.deduplicated, (uint64_t)CHUNKS * CHUNK);
    ck_assert_uint_eq(live(), CHUNKS);
    ck_assert_uint_eq(fs_merges(fs), CHUNKS);
    ck_assert_uint_eq(usage_of(file).sealed_bytes, (uint64_t)CHUNKS * CHUNK);
    ck_assert_uint_eq(usage_of(second).extents, usage_of(file).extents);
    assert_filled(file, CHUNKS * CHUNK - 100, 0, 1);
    assert_filled(second, CHUNKS * CHUNK - 100, 0, 1);
    /* Sealed once is enough. */
    seal_all(file, &first);
    ck_assert_uint_eq(first.hashed, 0);
    inode_put(second);
    reopen();
    second = open_file("second");
    ck_assert_uint_eq(fs_merges(fs), CHUNKS);
    assert_filled(second, CHUNKS * CHUNK - 100, 0, 1);
}
END_TEST

START_TEST(equal_chunks_of_one_file_are_stored_once)
{
    struct cowfs_ioc_seal total;
    for (unsigned i = 0; i < CHUNKS; i++)
        write_filled(file, CHUNK, (uint64_t)i * CHUNK, i % 3);
    ck_assert_uint_eq(live(), CHUNKS);
    seal_all(file, &total);
    ck_assert_uint_eq(total.deduplicated, (CHUNKS - 3) * CHUNK);
    ck_assert_uint_eq(live(), 3);
    for (unsigned i = 0; i < CHUNKS; i++)
        assert_filled(file, CHUNK, (uint64_t)i * CHUNK, i % 3);
    /* More owners by merges than one count can tell; none is left at the end. */
    ck_assert_int_eq(file_truncate(file, 0), 0);
    ck_assert_uint_eq(live(), 0);
    ck_assert_uint_eq(fs_merges(fs), 0);
}
END_TEST

START_TEST(equals_are_found_at_other_offsets_and_later)
{
    struct cowfs_ioc_seal total;
    write_filled(file, 100 * CHUNK, 0, 1);
    seal_all(file, &total);
    g_autofree uint8_t *data = g_malloc(100 * CHUNK);
    fill(data, 100 * CHUNK, 1);
    write_at(second, data + 40 * CHUNK, 20 * CHUNK, UINT64_C(1) << 31);
    seal_all(second, &total);
    ck_assert_uint_eq(total.deduplicated, 20 * CHUNK);
    ck_assert_uint_eq(live(), 100);
    assert_bytes(second, data + 40 * CHUNK, 20 * CHUNK, UINT64_C(1) << 31);
}
END_TEST

START_TEST(what_is_sealed_is_never_overwritten_in_place)
{
    struct cowfs_ioc_seal total;
    write_filled(file, 10 * CHUNK, 0, 1);
    write_filled(second, 10 * CHUNK, 0, 1);
    seal_all(file, &total);
    seal_all(second, &total);
    commit();
    write_filled(file, 10, 3 * CHUNK + 7, 2);
    ck_assert_uint_eq(live(), 11);
    assert_filled(second, 10 * CHUNK, 0, 1);
    /* The same bytes again: all stays as it is. */
    write_filled(second, 10 * CHUNK, 0, 1);
    ck_assert_uint_eq(live(), 11);
    ck_assert_uint_eq(usage_of(second).sealed_bytes, 10 * CHUNK);
    /* Its only owner does not do so either: the index has its hash. */
    ck_assert_int_eq(file_truncate(second, 0), 0);
    commit();
    write_filled(file, 10, 5 * CHUNK + 7, 2);
    ck_assert_uint_eq(usage_of(file).sealed_bytes, 8 * CHUNK);
}
END_TEST

/* ---- clones ---- */

START_TEST(a_leaf_that_clones_share_is_exchanged_for_all_of_them)
{
    struct counts_stats before, after;
    struct cowfs_ioc_seal total;
    write_filled(file, 100 * CHUNK, 0, 1);
    seal_all(file, &total);
    write_filled(second, 100 * CHUNK, 0, 1);
    struct inode *a = clone_as(second, "a"), *b = clone_as(second, "b");
    commit();
    counts_stats(fs->node_counts, &before);
    seal_all(a, &total);
    counts_stats(fs->node_counts, &after);
    ck_assert_uint_eq(total.deduplicated, 100 * CHUNK);
    ck_assert_uint_eq(live(), 100);
    ck_assert_uint_eq(after.live, before.live);
    seal_all(b, &total);
    seal_all(second, &total);
    ck_assert_uint_eq(total.hashed, 0);
    assert_filled(second, 100 * CHUNK, 0, 1);
    assert_filled(b, 100 * CHUNK, 0, 1);
    write_filled(a, CHUNK, 5 * CHUNK, 7);
    assert_filled(b, 100 * CHUNK, 0, 1);
    assert_filled(file, 100 * CHUNK, 0, 1);
    inode_put(a);
    inode_put(b);
}
END_TEST

START_TEST(equals_of_a_clone_that_went_its_own_way_are_found_too)
{
    struct cowfs_ioc_seal total;
    write_filled(file, 100 * CHUNK, 0, 1);
    seal_all(file, &total);
    /* Two leaves of the same chunks. */
    write_filled(second, 100 * CHUNK, 0, 1);
    struct inode *clone = clone_as(second, "clone");
    write_filled(clone, CHUNK, 300 * CHUNK, 9);
    ck_assert_uint_eq(live(), 201);
    seal_all(second, &total);
    seal_all(clone, &total);
    ck_assert_uint_eq(live(), 101);
    assert_filled(second, 100 * CHUNK, 0, 1);
    assert_filled(clone, 100 * CHUNK, 0, 1);
    clean_index();
    ck_assert_uint_eq(records(KEY_CHUNK_HASH), 101);
    inode_put(clone);
}
END_TEST

/* ---- hashes that collide ---- */

/* Half of the chunks have the same hash. */
static struct content_hash weak_hash(const void *data, size_t bytes,
                                     const uint8_t secret[HASH_SECRET_BYTES])
{
    const uint8_t *p = data;
    (void)bytes;
    (void)secret;
    return (struct content_hash){.bytes = {1, 2, 3, 4, 5, 6, 7, p[0] & 2}};
}

START_TEST(runs_that_are_equal_in_parts_are_shared_in_these_parts)
{
    struct cowfs_ioc_seal total;
    for (unsigned i = 0; i < 700; i++)
        write_filled(file, CHUNK, (uint64_t)i * CHUNK, i);
    seal_all(file, &total);
    uint64_t before = live();
    /* The same, 13 chunks later; every 50th one differs, and a piece in the middle has moved. */
    for (unsigned i = 0; i < 700; i++) {
        unsigned seed = i % 50 == 49 ? 5000 + i : i >= 300 && i < 340 ? i + 100 : i;
        write_filled(second, CHUNK, (uint64_t)(i + 13) * CHUNK, seed);
    }
    seal_all(second, &total);
    ck_assert_uint_eq(total.deduplicated, (700 - 14) * CHUNK);
    ck_assert_uint_eq(live(), before + 14);
    for (unsigned i = 0; i < 700; i++) {
        unsigned seed = i % 50 == 49 ? 5000 + i : i >= 300 && i < 340 ? i + 100 : i;
        assert_filled(second, CHUNK, (uint64_t)(i + 13) * CHUNK, seed);
        assert_filled(file, CHUNK, (uint64_t)i * CHUNK, i);
    }
}
END_TEST

/* Structure only: the recorded hashes are not what fsck would compute. */
static void assert_structure(void)
{
    struct fsck_report report;
    struct fsck_options options = {.message = print_finding};
    ck_assert_int_eq(fsck_run(store_path, &options, &report, NULL), 0);
    ck_assert_uint_eq(report.errors, 0);
    ck_assert_uint_eq(report.leaks, 0);
}

static void seal_with_collisions(bool one_batch)
{
    struct cowfs_ioc_seal total;
    fs->hash = weak_hash;
    for (unsigned i = 0; i < 50; i++)
        write_filled(file, CHUNK, (uint64_t)i * CHUNK, i % 10);
    for (unsigned i = 0; i < 50; i++) {
        write_filled(second, CHUNK, (uint64_t)i * CHUNK, (i + 5) % 20);
        if (!one_batch) {
            struct cowfs_ioc_seal io = {.offset = (uint64_t)i * CHUNK, .length = CHUNK};
            ck_assert_int_eq(seal_range(fs, second->ino, &io), 0);
        }
    }
    seal_all(file, &total);
    seal_all(second, &total);
}

START_TEST(contents_with_one_hash_are_both_kept)
{
    seal_with_collisions(_i);
    /* Some were shared, by comparing; all say what they said. */
    ck_assert_uint_lt(live(), 100);
    ck_assert_uint_ge(live(), 20);
    for (unsigned i = 0; i < 50; i++) {
        assert_filled(file, CHUNK, (uint64_t)i * CHUNK, i % 10);
        assert_filled(second, CHUNK, (uint64_t)i * CHUNK, (i + 5) % 20);
    }
    inode_put(file);
    inode_put(second);
    close_store(fs);
    assert_structure();
    fs = open_store();
    fs->hash = weak_hash;
    file = open_file("file");
    second = open_file("second");
    /* Cleaning up behind one of them must not take the entry of the other. */
    ck_assert_int_eq(file_truncate(file, 0), 0);
    clean_index();
    commit();
    struct cowfs_ioc_seal total;
    write_filled(file, 50 * CHUNK, 0, 3);
    seal_all(file, &total);
    for (unsigned i = 0; i < 50; i++)
        assert_filled(second, CHUNK, (uint64_t)i * CHUNK, (i + 5) % 20);
    assert_filled(file, 50 * CHUNK, 0, 3);
    ck_assert_int_eq(file_truncate(file, 0), 0);
    ck_assert_int_eq(file_truncate(second, 0), 0);
    clean_index();
    ck_assert_uint_eq(records(KEY_CONTENT) + records(KEY_CHUNK_HASH), 0);
}
END_TEST

/* ---- the index and what is gone ---- */

START_TEST(the_index_forgets_freed_chunks)
{
    struct cowfs_ioc_seal total;
    write_filled(file, CHUNKS * CHUNK, 0, 1);
    seal_all(file, &total);
    ck_assert_uint_eq(records(KEY_CONTENT), CHUNKS);
    ck_assert_uint_eq(records(KEY_CHUNK_HASH), CHUNKS);
    ck_assert_int_eq(file_truncate(file, 10 * CHUNK), 0);
    ck_assert_uint_ge(records(KEY_DEAD_SEALED), 1);
    commit();
    clean_index();
    ck_assert_uint_eq(records(KEY_CONTENT), 10);
    ck_assert_uint_eq(records(KEY_CHUNK_HASH), 10);
    ck_assert_uint_eq(records(KEY_DEAD_SEALED), 0);
}
END_TEST

START_TEST(a_freed_chunk_that_the_index_still_knows_is_not_shared)
{
    struct cowfs_ioc_seal total;
    write_filled(file, 10 * CHUNK, 0, 1);
    seal_all(file, &total);
    ck_assert_int_eq(file_truncate(file, 0), 0);
    commit();
    txn_wait_reclaim(fs->txn); /* its bytes are gone */
    write_filled(second, 10 * CHUNK, 0, 1);
    seal_all(second, &total);
    ck_assert_uint_eq(total.deduplicated, 0);
    assert_filled(second, 10 * CHUNK, 0, 1);
    /* The new ones took the place of the old ones, for good. */
    clean_index();
    write_filled(file, 10 * CHUNK, 0, 1);
    seal_all(file, &total);
    ck_assert_uint_eq(total.deduplicated, 10 * CHUNK);
    ck_assert_uint_eq(live(), 10);
}
END_TEST

/* ---- what is sealed, and how far ---- */

START_TEST(reserved_chunks_and_holes_are_passed_over)
{
    struct cowfs_ioc_seal total;
    ck_assert_int_eq(file_fallocate(file, 0, 0, 20 * CHUNK), 0);
    write_filled(file, CHUNK, 5 * CHUNK, 1);
    write_filled(file, 3 * CHUNK, UINT64_C(1) << 50, 2);
    seal_all(file, &total);
    ck_assert_uint_eq(total.hashed, 3 * CHUNK);
    /* What is reserved may be written in place still. */
    uint64_t before = live();
    commit();
    write_filled(file, 5 * CHUNK, 3 * CHUNK, 3);
    ck_assert_uint_eq(live(), before);
}
END_TEST

START_TEST(a_part_is_sealed_and_told_where_to_go_on)
{
    write_filled(file, 100 * CHUNK, 0, 1);
    struct cowfs_ioc_seal io = {.offset = 10 * CHUNK, .length = 30 * CHUNK};
    ck_assert_int_eq(seal_range(fs, file->ino, &io), 0);
    ck_assert_uint_eq(io.hashed, 30 * CHUNK);
    ck_assert_uint_eq(io.next, 40 * CHUNK);
    ck_assert_uint_eq(usage_of(file).sealed_bytes, 30 * CHUNK);
    io = (struct cowfs_ioc_seal){.offset = 1000 * CHUNK, .length = CHUNK};
    ck_assert_int_eq(seal_range(fs, file->ino, &io), 0);
    ck_assert_uint_eq(io.next, 0);
    ck_assert_uint_eq(io.hashed, 0);
    ck_assert_int_eq(seal_range(fs, ROOT_INO, &io), -EINVAL);
    ck_assert_int_eq(seal_range(fs, 4711, &io), -ENOENT);
}
END_TEST

/* ---- in the background ---- */

static void open_with_sealer(void)
{
    inode_put(file);
    inode_put(second);
    close_store(fs);
    fs = open_store_with((struct fs_config){.seal_background = true, .seal_delay_ms = 1});
    file = open_file("file");
    second = open_file("second");
}

/* Ends early, or fails by the limit of Check. */
static void wait_sealed(struct inode *inode, uint64_t bytes)
{
    while (usage_of(inode).sealed_bytes != bytes || records(KEY_UNSEALED))
        g_usleep(10000);
}

START_TEST(files_written_before_the_last_closing_are_sealed)
{
    write_filled(file, CHUNKS * CHUNK, 0, 1);
    write_filled(second, CHUNKS * CHUNK, 0, 1);
    ck_assert_uint_eq(records(KEY_UNSEALED), 2);
    open_with_sealer();
    wait_sealed(file, (uint64_t)CHUNKS * CHUNK);
    wait_sealed(second, (uint64_t)CHUNKS * CHUNK);
    ck_assert_uint_eq(live(), CHUNKS);
    assert_filled(file, CHUNKS * CHUNK, 0, 1);
    assert_filled(second, CHUNKS * CHUNK, 0, 1);
}
END_TEST

START_TEST(a_sealed_file_that_is_written_is_sealed_again)
{
    open_with_sealer();
    write_filled(file, 20 * CHUNK, 0, 1);
    wait_sealed(file, 20 * CHUNK);
    write_filled(file, CHUNK, 3 * CHUNK, 2);
    write_filled(file, CHUNK, 30 * CHUNK, 3);
    wait_sealed(file, 21 * CHUNK);
    /* A clone of what is not sealed yet. */
    write_filled(file, CHUNK, 5 * CHUNK, 4);
    struct inode *clone = clone_as(file, "clone");
    wait_sealed(clone, 21 * CHUNK);
    inode_put(clone);
}
END_TEST

/* As if the sealer had been through with it, and then it had rested. */
static void write_after_rest(int64_t rested_ms)
{
    atomic_fetch_sub(&file->written_ms, rested_ms);
    atomic_store(&file->unsealed, false);
    write_filled(file, CHUNK, 0, 1);
}

START_TEST(what_is_written_after_sealing_rests_longer)
{
    inode_put(file);
    inode_put(second);
    close_store(fs);
    fs = open_store_with((struct fs_config){.seal_delay_ms = 60000});
    file = open_file("file");
    second = open_file("second");
    write_filled(file, CHUNK, 0, 1);
    write_filled(file, CHUNK, 0, 2);
    ck_assert_int_eq(sealer_wait_ms(fs, file), 60000);
    write_after_rest(70000);
    ck_assert_int_ge(sealer_wait_ms(fs, file), 140000);
    write_after_rest(1000); /* `cowfs seal` was asked for */
    ck_assert_int_ge(sealer_wait_ms(fs, file), 140000);
    write_after_rest(INT64_C(1) << 32);
    ck_assert_int_eq(sealer_wait_ms(fs, file), SEAL_WAIT_MAX_MS);
    ck_assert_int_eq(sealer_wait_ms(fs, second), 60000);
}
END_TEST

START_TEST(the_index_is_cleaned_in_the_background)
{
    open_with_sealer();
    write_filled(file, 20 * CHUNK, 0, 1);
    wait_sealed(file, 20 * CHUNK);
    ck_assert_int_eq(file_truncate(file, 0), 0);
    while (records(KEY_CONTENT) || records(KEY_DEAD_SEALED))
        g_usleep(10000);
}
END_TEST

/* ---- readers ---- */

static sem_t looked_up, punched;
static _Thread_local bool pause_before_reading;

/* In front of libc's: segments are read by it. Not static: it has to be found.
 * Between looking up a chunk and reading it, the time for another thread to
 * exchange it, commit, and give its space back; more than it needs, if nothing
 * keeps it from doing so. */
ssize_t pread(int fd, void *buffer, size_t n, off_t offset)
{
    if (pause_before_reading) {
        struct timespec until;
        pause_before_reading = false;
        sem_post(&looked_up);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        sem_timedwait(&punched, &until);
    }
    return syscall(SYS_pread64, fd, buffer, n, offset);
}

static void *exchange_and_punch(void *clone)
{
    struct cowfs_ioc_seal total;
    sem_wait(&looked_up);
    seal_all(clone, &total);
    ck_assert_uint_eq(total.deduplicated, 10 * CHUNK);
    commit();
    txn_wait_reclaim(fs->txn);
    sem_post(&punched);
    return NULL;
}

START_TEST(a_reader_sees_its_chunk_though_it_is_exchanged_meanwhile)
{
    struct cowfs_ioc_seal total;
    pthread_t thread;
    uint8_t expected[10 * CHUNK], data[10 * CHUNK];
    ck_assert_int_eq(sem_init(&looked_up, 0, 0) | sem_init(&punched, 0, 0), 0);
    write_filled(file, 10 * CHUNK, 0, 1);
    seal_all(file, &total);
    /* The leaf of `second` is its clone's, too, and changes with that. */
    write_filled(second, 10 * CHUNK, 0, 1);
    struct inode *clone = clone_as(second, "clone");
    commit();
    fill(expected, sizeof(expected), 1);
    ck_assert_int_eq(pthread_create(&thread, NULL, exchange_and_punch, clone), 0);
    pause_before_reading = true;
    if (_i == 0) {
        ck_assert_int_eq(file_read(second, data, sizeof(data), 0), (ssize_t)sizeof(data));
        ck_assert(memcmp(data, expected, sizeof(data)) == 0);
    } else {
        /* Reads the rest of the chunk, to write it anew. */
        write_at(second, "x", 1, 5 * CHUNK + 7);
        expected[5 * CHUNK + 7] = 'x';
    }
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    assert_bytes(second, expected, sizeof(expected), 0);
    inode_put(clone);
}
END_TEST

/* ---- copies ---- */

static sem_t hashed;
static atomic_uint to_be_hashed;

static struct content_hash hash_and_tell(const void *data, size_t bytes, const uint8_t *secret)
{
    if (atomic_fetch_sub(&to_be_hashed, 1) == 1)
        sem_post(&hashed);
    return content_hash_xxh3(data, bytes, secret);
}

static void *seal_second(void *unused)
{
    struct cowfs_ioc_seal total;
    (void)unused;
    seal_all(second, &total);
    return NULL;
}

START_TEST(a_copy_in_parts_has_its_chunks_though_the_source_is_sealed_meanwhile)
{
    enum { PART = 400 /* less than a leaf, which would be shared whole */, ROUNDS = 400 };
    static uint8_t data[(PART + 1) * CHUNK];
    struct cowfs_ioc_seal total;
    fill(data, sizeof(data), 1);
    write_at(file, data, sizeof(data), 0);
    seal_all(file, &total);
    ck_assert_int_eq(sem_init(&hashed, 0, 0), 0);
    fs->hash = hash_and_tell;
    for (unsigned round = 0; round < ROUNDS; round++) {
        pthread_t thread;
        struct inode *copy = make(fs, ROOT_INO, "copy", S_IFREG | 0644);
        /* Over what a clone has, and backwards: neighbours do not lie side by side, so that
         * all goes chunk by chunk. */
        write_filled(second, sizeof(data), 0, round + 2);
        struct inode *clone = clone_as(second, "clone");
        for (size_t i = PART + 1; i-- > 0;)
            write_at(second, data + i * CHUNK, CHUNK, i * CHUNK);
        commit();
        atomic_store(&to_be_hashed, PART + 1);
        ck_assert_int_eq(pthread_create(&thread, NULL, seal_second, NULL), 0);
        sem_wait(&hashed);
        int64_t until = g_get_monotonic_time() + round % 100 * 20;
        while (g_get_monotonic_time() < until)
            ;
        ck_assert_int_eq(file_copy_range(second, 0, copy, 0, PART * CHUNK), PART * CHUNK);
        ck_assert_int_eq(pthread_join(thread, NULL), 0);
        commit();
        txn_wait_reclaim(fs->txn);
        assert_bytes(copy, data, PART * CHUNK, 0);
        inode_put(copy);
        inode_put(clone);
        ck_assert_int_eq(names_unlink(fs, ROOT_INO, "copy"), 0);
        ck_assert_int_eq(names_unlink(fs, ROOT_INO, "clone"), 0);
        ck_assert_int_eq(file_truncate(second, 0), 0);
    }
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("seal");
    TCase *tc = tcase_create("seal");
    tcase_add_checked_fixture(tc, setup_seal, teardown_seal);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, equal_files_are_stored_once);
    tcase_add_test(tc, equal_chunks_of_one_file_are_stored_once);
    tcase_add_test(tc, equals_are_found_at_other_offsets_and_later);
    tcase_add_test(tc, what_is_sealed_is_never_overwritten_in_place);
    tcase_add_test(tc, a_leaf_that_clones_share_is_exchanged_for_all_of_them);
    tcase_add_test(tc, equals_of_a_clone_that_went_its_own_way_are_found_too);
    tcase_add_test(tc, runs_that_are_equal_in_parts_are_shared_in_these_parts);
    tcase_add_loop_test(tc, contents_with_one_hash_are_both_kept, 0, 2);
    tcase_add_test(tc, the_index_forgets_freed_chunks);
    tcase_add_test(tc, a_freed_chunk_that_the_index_still_knows_is_not_shared);
    tcase_add_test(tc, reserved_chunks_and_holes_are_passed_over);
    tcase_add_test(tc, a_part_is_sealed_and_told_where_to_go_on);
    tcase_add_test(tc, files_written_before_the_last_closing_are_sealed);
    tcase_add_test(tc, a_sealed_file_that_is_written_is_sealed_again);
    tcase_add_test(tc, what_is_written_after_sealing_rests_longer);
    tcase_add_test(tc, the_index_is_cleaned_in_the_background);
    tcase_add_loop_test(tc, a_reader_sees_its_chunk_though_it_is_exchanged_meanwhile, 0, 2);
    tcase_add_test(tc, a_copy_in_parts_has_its_chunks_though_the_source_is_sealed_meanwhile);
    suite_add_tcase(suite, tc);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
