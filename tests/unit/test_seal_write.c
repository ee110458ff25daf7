// SPDX-License-Identifier: Apache-2.0
/*
 * test_seal_write.c - a write in place and the sealer's exchange, at the same time.
 *
 * The writer has seen which chunk its file has, and not yet whether that is its file's alone.
 * Then the sealer exchanges it, so that it is a clone's alone, and a commit makes that durable.
 * Now it is exclusive, but to the clone.
 */
#include "tests/unit/content_fixture.h"

#include "cowfs/sealer.h"

#include <semaphore.h>

enum { CHUNKS = 20, WRITTEN = 5 };

static sem_t compared, looked_up, exchanged;
static _Thread_local bool pause_before_counts;

/* The linker's --wrap puts the first in place of the second. */
int __wrap_counts_exclusive_run(struct counts *c, uint64_t first, uint32_t n, bool *exclusive,
                                uint32_t *alike);
int __real_counts_exclusive_run(struct counts *c, uint64_t first, uint32_t n, bool *exclusive,
                                uint32_t *alike);

int __wrap_counts_exclusive_run(struct counts *c, uint64_t first, uint32_t n, bool *exclusive,
                                uint32_t *alike)
{
    if (pause_before_counts) {
        struct timespec until;
        pause_before_counts = false;
        sem_post(&looked_up);
        /* More than the sealer needs, if nothing keeps it from exchanging. */
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec++;
        sem_timedwait(&exchanged, &until);
    }
    return __real_counts_exclusive_run(c, first, n, exclusive, alike);
}

/* The sealer has found the equals, and is about to exchange. */
static void wait_for_writer(void *unused, bool locks)
{
    (void)unused;
    if (locks) {
        sem_post(&compared);
        sem_wait(&looked_up);
    }
}

static void *seal_and_commit(void *unused)
{
    struct seal_result result;
    (void)unused;
    ck_assert_int_eq(seal_file_part(fs, file, 0, CHUNKS, false,
                                    &(struct seal_pace){.fn = wait_for_writer}, &result),
                     0);
    ck_assert_uint_eq(result.hashed_chunks, CHUNKS);
    commit();
    sem_post(&exchanged);
    return NULL;
}

START_TEST(a_chunk_that_was_exchanged_is_not_overwritten)
{
    struct cowfs_ioc_seal total;
    struct inode *equal = make(fs, ROOT_INO, "equal", S_IFREG | 0644);
    pthread_t thread;
    ck_assert_int_eq(sem_init(&compared, 0, 0) | sem_init(&looked_up, 0, 0), 0);
    ck_assert_int_eq(sem_init(&exchanged, 0, 0), 0);
    write_filled(equal, CHUNKS * CHUNK, 0, 1);
    seal_all(equal, &total);
    write_filled(file, CHUNKS * CHUNK, 0, 1);
    struct inode *clone = clone_as(file, "clone");
    write_filled(file, CHUNK, CHUNKS * CHUNK, 2); /* a leaf of its own */
    commit();
    ck_assert_int_eq(pthread_create(&thread, NULL, seal_and_commit, NULL), 0);
    sem_wait(&compared);
    pause_before_counts = true;
    write_filled(file, CHUNK, WRITTEN * CHUNK, 3);
    ck_assert(!pause_before_counts);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    assert_filled(clone, CHUNKS * CHUNK, 0, 1);
    assert_filled(file, WRITTEN * CHUNK, 0, 1);
    assert_filled(file, CHUNK, WRITTEN * CHUNK, 3);
    inode_put(clone);
    inode_put(equal);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("seal_write");
    TCase *tc = tcase_create("seal_write");
    tcase_add_checked_fixture(tc, setup_content, teardown_content);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_chunk_that_was_exchanged_is_not_overwritten);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
