// SPDX-License-Identifier: Apache-2.0
/*
 * Segments: bytes come back, slots are handed out once, freed space returns at
 * the right moment and not before, and every crash leaves a usable store.
 *
 * A crash is closing everything without a commit and opening the metadata as
 * the last commit left it (`committed`).
 */
#include "chunkstore/keys.h"
#include "chunkstore/segment.h"
#include "chunkstore/superblock.h"
#include "tests/quiet_log.h"
#include "tests/unit/remove_tree.h"
#include "tests/unit/suite.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 4096, GROUPS_PER_SEGMENT = SEGMENT_SLOTS / SLOT_GROUP };

static char *store;
static struct metadb *db;
static struct metadb *committed;
static struct segments *s;
static struct errmsg err;

/* ---- Scaffold ---- */

static struct metadb *db_new(void)
{
    struct metadb_options options = {.create = true, .in_memory = true};
    struct metadb *made;
    ck_assert_int_eq(metadb_open("unused", &options, &made, &err), 0);
    return made;
}

static struct metadb *db_copy(struct metadb *from)
{
    struct metadb *to = db_new();
    struct metadb_iter *it = metadb_iter_new(from, "", 0, NULL, 0);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, value_len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *value = metadb_iter_value(it, &value_len);
        metadb_put(to, key, key_len, value, value_len);
    }
    ck_assert_int_eq(metadb_iter_status(it), 0);
    metadb_iter_free(it);
    ck_assert_int_eq(metadb_flip(to), 0);
    ck_assert_int_eq(metadb_commit(to), 0);
    return to;
}

static void open_segments(void)
{
    int error = segments_open(store, CHUNK, 0, false, db, &s, &err);
    ck_assert_msg(error == 0, "%s", err.text);
}

static void setup(void)
{
    /* tmpfs, where it is known what a punched chunk gives back. */
    store = g_strdup("/dev/shm/cowfs-segment-XXXXXX");
    if (!g_mkdtemp(store)) {
        g_free(store);
        store = g_dir_make_tmp("cowfs-segment-XXXXXX", NULL);
    }
    ck_assert_ptr_nonnull(store);
    db = db_new();
    committed = db_new();
    open_segments();
}

static void teardown(void)
{
    segments_close(s);
    metadb_close(db);
    metadb_close(committed);
    remove_tree(store);
    g_free(store);
}

static void flip(void)
{
    segments_flip(s);
    ck_assert_int_eq(metadb_flip(db), 0);
}

static void make_durable(void)
{
    ck_assert_int_eq(segments_sync(s), 0);
    ck_assert_int_eq(metadb_commit(db), 0);
    metadb_close(committed);
    committed = db_copy(db);
    segments_durable(s);
}

static void commit(void)
{
    flip();
    make_durable();
}

static void crash(void)
{
    segments_close(s);
    s = NULL;
    metadb_close(db);
    db = db_copy(committed);
}

static void crash_and_reopen(void)
{
    crash();
    open_segments();
}

static chunk_t alloc(void)
{
    chunk_t first;
    ck_assert_int_eq(segments_alloc_group(s, &first), 0);
    ck_assert_uint_eq(first % SLOT_GROUP, 0);
    ck_assert_uint_ne(first, 0);
    return first;
}

static uint32_t id_of(chunk_t chunk)
{
    return (uint32_t)(chunk >> 32);
}

static void path_of(char *path, size_t size, uint32_t id)
{
    snprintf(path, size, "%s/segments/%08x", store, id);
}

/* -1 if there is no such file. */
static int64_t blocks_of(uint32_t id)
{
    char path[4096];
    struct stat st;
    path_of(path, sizeof(path), id);
    return stat(path, &st) == 0 ? st.st_blocks * (int64_t)512 : -1;
}

static int64_t size_of(uint32_t id)
{
    char path[4096];
    struct stat st;
    path_of(path, sizeof(path), id);
    return stat(path, &st) == 0 ? st.st_size : -1;
}

/* What a chunk holds is told by its number and a generation. */
static void fill(uint8_t *bytes, chunk_t chunk, uint64_t generation)
{
    for (unsigned i = 0; i < CHUNK; i += 8) {
        uint64_t word = (chunk * 0x9e3779b97f4a7c15u + i + 1) ^ generation << 48;
        memcpy(bytes + i, &word, 8);
    }
}

static void write_chunks(chunk_t first, unsigned count)
{
    uint8_t *bytes = g_malloc((size_t)count * CHUNK);
    for (unsigned i = 0; i < count; i++)
        fill(bytes + (size_t)i * CHUNK, first + i, 0);
    ck_assert_int_eq(segments_write(s, first, 0, bytes, (size_t)count * CHUNK), 0);
    g_free(bytes);
}

static bool chunk_is_right(chunk_t chunk)
{
    uint8_t want[CHUNK], got[CHUNK];
    fill(want, chunk, 0);
    return segments_read(s, chunk, 0, got, CHUNK) == 0 && memcmp(want, got, CHUNK) == 0;
}

static bool chunk_is_zero(chunk_t chunk)
{
    uint8_t got[CHUNK];
    return segments_read(s, chunk, 0, got, CHUNK) == 0 && bytes_are_zero(got, CHUNK);
}

/* A group that is written, owned and not held any more. */
static chunk_t put_group(void)
{
    chunk_t first = alloc();
    write_chunks(first, SLOT_GROUP);
    segments_account_live(s, first, SLOT_GROUP);
    segments_group_done(s, first);
    return first;
}

/* Uses up the rest of the current segment (without bytes). */
static void finish_segment(void)
{
    for (;;) {
        chunk_t first = alloc();
        segments_group_done(s, first);
        if ((uint32_t)first == SEGMENT_SLOTS - SLOT_GROUP)
            return;
    }
}

/* ---- Bytes ---- */

START_TEST(bytes_come_back)
{
    chunk_t first = alloc();
    uint8_t data[3 * CHUNK], got[3 * CHUNK];
    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7 + i / 251 + 1);

    ck_assert_int_eq(segments_write(s, first + 5, 0, data, sizeof(data)), 0);
    ck_assert_int_eq(segments_read(s, first + 5, 0, got, sizeof(got)), 0);
    ck_assert_mem_eq(data, got, sizeof(data));
    /* A part, across a chunk border. */
    ck_assert_int_eq(segments_read(s, first + 5, CHUNK - 3, got, 10), 0);
    ck_assert_mem_eq(got, data + CHUNK - 3, 10);
    ck_assert_int_eq(segments_write(s, first + 6, 100, "hello", 5), 0);
    ck_assert_int_eq(segments_read(s, first + 5, CHUNK + 98, got, 9), 0);
    memcpy(data + CHUNK + 100, "hello", 5);
    ck_assert_mem_eq(got, data + CHUNK + 98, 9);
    /* What lies before was never written. */
    ck_assert(chunk_is_zero(first));
    ck_assert_int_eq(segments_read(s, first, 0, got, 0), 0);
    ck_assert_uint_eq(segments_chunk_bytes(s), CHUNK);

    /* What segments_locate tells is the same bytes. */
    int fd;
    uint64_t offset;
    ck_assert_int_eq(segments_locate(s, first + 5, &fd, &offset), 0);
    ck_assert_int_eq(pread(fd, got, CHUNK, (off_t)offset), CHUNK);
    ck_assert_mem_eq(data, got, CHUNK);
}
END_TEST

START_TEST(numbers_that_lead_nowhere_are_errors)
{
    chunk_t first = alloc();
    chunk_t last = (first | (SEGMENT_SLOTS - 1));
    uint8_t data[2 * CHUNK] = {1};
    ck_assert_int_eq(segments_read(s, 0, 0, data, CHUNK), -EIO);
    ck_assert_int_eq(segments_read(s, (chunk_t)99 << 32, 0, data, CHUNK), -EIO);
    ck_assert_int_eq(segments_read(s, UINT64_MAX, 0, data, CHUNK), -EIO);
    ck_assert_int_eq(segments_read(s, last, 0, data, 2 * CHUNK), -EIO);
    ck_assert_int_eq(segments_read(s, last, UINT64_MAX - 5, data, CHUNK), -EIO);
    ck_assert_int_eq(segments_read(s, last + 1, 0, data, 1), -EIO);
    ck_assert_int_eq(segments_write(s, last, 1, data, CHUNK), -EIO);
    ck_assert_int_eq(segments_reserve(s, last, 2), -EIO);
    ck_assert_int_eq(segments_reserve(s, first, UINT64_MAX), -EIO);
    /* A slot that exists and whose bytes are beyond the end of the file. */
    ck_assert_int_eq(segments_read(s, first + 1, 0, data, CHUNK), -EIO);
    ck_assert_int_eq(size_of(id_of(first)), 0);
}
END_TEST

START_TEST(a_truncated_file_is_an_io_error)
{
    char path[4096];
    chunk_t first = put_group();
    path_of(path, sizeof(path), id_of(first));
    ck_assert_int_eq(truncate(path, 10 * CHUNK + 100), 0);
    uint8_t got[2 * CHUNK];
    ck_assert(chunk_is_right(first + 9));
    ck_assert_int_eq(segments_read(s, first + 10, 0, got, CHUNK), -EIO);
    ck_assert_int_eq(segments_read(s, first + 9, 0, got, 2 * CHUNK), -EIO);
    ck_assert_int_eq(segments_read(s, first + 11, 0, got, CHUNK), -EIO);

    /* A file that somebody removed: found out when it is opened. */
    commit();
    ck_assert_int_eq(g_unlink(path), 0);
    crash_and_reopen();
    ck_assert_int_eq(segments_read(s, first, 0, got, CHUNK), -EIO);
    ck_assert_uint_ne(id_of(alloc()), id_of(first));
}
END_TEST

START_TEST(reserved_space_is_taken_and_reads_as_zeros)
{
    chunk_t first = alloc();
    ck_assert_int_eq(segments_reserve(s, first + 2, 100), 0);
    ck_assert_int_eq(blocks_of(id_of(first)), 100 * CHUNK);
    ck_assert(chunk_is_zero(first + 2));
    ck_assert(chunk_is_zero(first + 101));
    write_chunks(first + 50, 1);
    ck_assert_int_eq(blocks_of(id_of(first)), 100 * CHUNK);
    ck_assert(chunk_is_right(first + 50));
    ck_assert_int_eq(segments_reserve(s, first, 0), 0);
}
END_TEST

/* ---- Threads ---- */

enum { THREADS = 8, GROUPS_PER_THREAD = 64 };

static void *fill_groups(void *arg)
{
    chunk_t *groups = arg;
    for (unsigned g = 0; g < GROUPS_PER_THREAD; g++) {
        groups[g] = alloc();
        for (unsigned i = 0; i < SLOT_GROUP; i += 64)
            write_chunks(groups[g] + i, 2);
        segments_account_live(s, groups[g], SLOT_GROUP);
        if (g % 3 == 0)
            segments_account_dead(s, groups[g], SLOT_GROUP);
        segments_group_done(s, groups[g]);
    }
    return NULL;
}

static int compare_chunks(const void *a, const void *b)
{
    chunk_t x = *(const chunk_t *)a, y = *(const chunk_t *)b;
    return x < y ? -1 : x > y;
}

START_TEST(threads_never_get_the_same_slot)
{
    static chunk_t groups[THREADS][GROUPS_PER_THREAD];
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, fill_groups, groups[i]), 0);
    /* The commit's calls that need no gate, meanwhile. */
    for (unsigned i = 0; i < 20; i++) {
        ck_assert_int_eq(segments_sync(s), 0);
        segments_punch(s);
        segments_have_garbage(s);
        struct segments_stats stats;
        ck_assert_int_eq(segments_stats(s, &stats), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    commit();
    segments_punch(s);

    for (unsigned t = 0; t < THREADS; t++)
        for (unsigned g = 0; g < GROUPS_PER_THREAD; g++)
            for (unsigned i = 0; i < SLOT_GROUP; i += 64)
                ck_assert(g % 3 == 0 ? chunk_is_zero(groups[t][g] + i)
                                     : chunk_is_right(groups[t][g] + i));
    qsort(groups, THREADS * GROUPS_PER_THREAD, sizeof(chunk_t), compare_chunks);
    const chunk_t *sorted = &groups[0][0];
    for (unsigned i = 1; i < THREADS * GROUPS_PER_THREAD; i++)
        ck_assert_uint_lt(sorted[i - 1], sorted[i]);

    struct segments_stats stats;
    ck_assert_int_eq(segments_stats(s, &stats), 0);
    unsigned dead_groups = (GROUPS_PER_THREAD + 2) / 3;
    ck_assert_uint_eq(stats.live_chunks, THREADS * (GROUPS_PER_THREAD - dead_groups) * SLOT_GROUP);
    ck_assert_uint_eq(stats.segment_count, 1);
    ck_assert(!segments_have_garbage(s));
}
END_TEST

/* An object that is replaced, waited for, and only then spoiled. */
static _Atomic(int *) published;
static atomic_bool stop_reading;
static atomic_uint sections_read;

static void *read_published(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop_reading)) {
        unsigned token = segments_read_enter(s);
        const int *object = atomic_load(&published);
        for (int i = 0; i < 50; i++)
            if (*(const volatile int *)object != 1)
                abort();
        segments_read_exit(s, token);
        atomic_fetch_add(&sections_read, 1);
    }
    return NULL;
}

START_TEST(a_read_section_keeps_what_was_looked_up_in_it)
{
    enum { OBJECTS = 300, READERS = 6 };
    static int objects[OBJECTS];
    pthread_t threads[READERS];
    objects[0] = 1;
    atomic_store(&published, &objects[0]);
    for (unsigned i = 0; i < READERS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, read_published, NULL), 0);
    for (unsigned i = 1; i < OBJECTS; i++) {
        objects[i] = 1;
        atomic_store(&published, &objects[i]);
        segments_synchronize(s);
        objects[i - 1] = 0; /* a plain write: ThreadSanitizer checks the order, too */
    }
    while (atomic_load(&sections_read) < 1000)
        g_usleep(1000);
    atomic_store(&stop_reading, true);
    for (unsigned i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
}
END_TEST

static void *punch_in_thread(void *arg)
{
    atomic_bool *done = arg;
    segments_punch(s);
    atomic_store(done, true);
    return NULL;
}

START_TEST(punching_waits_for_readers)
{
    chunk_t first = put_group();
    commit();
    unsigned token = segments_read_enter(s);
    segments_account_dead(s, first, SLOT_GROUP);
    commit();
    static atomic_bool done;
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, punch_in_thread, &done), 0);
    g_usleep(30 * 1000);
    ck_assert(chunk_is_right(first + 17));
    ck_assert(!atomic_load(&done));
    /* One who comes now is not waited for. */
    unsigned late = segments_read_enter(s);
    segments_read_exit(s, token);
    pthread_join(thread, NULL);
    ck_assert(chunk_is_zero(first + 17));
    segments_read_exit(s, late);
}
END_TEST

/* ---- Space ---- */

START_TEST(freed_space_returns_after_the_commit_and_not_before)
{
    chunk_t first = put_group();
    uint32_t id = id_of(first);
    commit();
    ck_assert_int_eq(blocks_of(id), SLOT_GROUP * CHUNK);
    ck_assert(!segments_have_garbage(s));

    /* Neighbours freed out of order, a hole in the middle kept. */
    segments_account_dead(s, first + 300, 212);
    segments_account_dead(s, first, 100);
    segments_account_dead(s, first + 100, 100);
    ck_assert(segments_have_garbage(s));
    ck_assert_uint_eq(segments_garbage_bytes(s), 412 * CHUNK);
    ck_assert_uint_eq(segments_punch(s), 0);
    flip();
    segments_account_dead(s, first + 200, 10); /* belongs to the next commit */
    ck_assert_uint_eq(segments_punch(s), 0);
    ck_assert_int_eq(segments_sync(s), 0);
    ck_assert_uint_eq(segments_punch(s), 0);
    ck_assert_int_eq(blocks_of(id), SLOT_GROUP * CHUNK);
    ck_assert(chunk_is_right(first + 5));

    make_durable();
    ck_assert_uint_eq(segments_punch(s), 412 * CHUNK);
    ck_assert_int_eq(blocks_of(id), 100 * CHUNK);
    ck_assert(chunk_is_zero(first + 199));
    ck_assert(chunk_is_right(first + 200));
    ck_assert(chunk_is_right(first + 299));
    ck_assert(chunk_is_zero(first + 300));
    ck_assert_uint_eq(segments_garbage_bytes(s), 10 * CHUNK);

    commit();
    ck_assert_uint_eq(segments_punch(s), 10 * CHUNK);
    ck_assert(!segments_have_garbage(s));
    ck_assert_uint_eq(segments_garbage_bytes(s), 0);
}
END_TEST

START_TEST(empty_segments_disappear)
{
    chunk_t a = put_group();
    finish_segment();
    chunk_t b = put_group();
    ck_assert_uint_eq(id_of(b), id_of(a) + 1);
    commit();
    segments_account_dead(s, a, SLOT_GROUP);
    commit();
    ck_assert_uint_gt(segments_punch(s), 0);
    ck_assert_int_eq(blocks_of(id_of(a)), 0);
    /* The record goes with the next commit, then the file. */
    ck_assert(segments_have_garbage(s));
    flip();
    ck_assert_uint_eq(segments_punch(s), 0);
    ck_assert_int_eq(blocks_of(id_of(a)), 0);
    ck_assert(segments_have_garbage(s));
    make_durable();
    segments_punch(s);
    ck_assert_int_eq(blocks_of(id_of(a)), -1);
    ck_assert(!segments_have_garbage(s));

    uint8_t got[CHUNK];
    ck_assert_int_eq(segments_read(s, a, 0, got, CHUNK), -EIO);
    ck_assert(chunk_is_right(b));
    crash_and_reopen();
    ck_assert(chunk_is_right(b));
    struct segments_stats stats;
    ck_assert_int_eq(segments_stats(s, &stats), 0);
    ck_assert_uint_eq(stats.segment_count, 1);
}
END_TEST

START_TEST(a_segment_with_a_held_group_stays)
{
    chunk_t held = alloc();
    finish_segment();
    put_group();
    for (int i = 0; i < 3; i++) {
        commit();
        segments_punch(s);
    }
    /* Its holder may write as late as he likes. */
    write_chunks(held, 1);
    segments_account_live(s, held, 1);
    segments_group_done(s, held);
    commit();
    ck_assert(chunk_is_right(held));
    crash_and_reopen();
    ck_assert(chunk_is_right(held));

    segments_account_dead(s, held, 1);
    commit();
    segments_punch(s);
    commit();
    segments_punch(s);
    ck_assert_int_eq(blocks_of(id_of(held)), -1);
}
END_TEST

START_TEST(segment_ids_are_never_used_again)
{
    uint32_t highest = 0;
    for (int round = 0; round < 3; round++) {
        chunk_t chunk = put_group();
        ck_assert_uint_gt(id_of(chunk), highest);
        highest = id_of(chunk);
        finish_segment();
        segments_account_dead(s, chunk, SLOT_GROUP);
        for (int i = 0; i < 2; i++) {
            commit();
            segments_punch(s);
        }
        ck_assert_int_eq(blocks_of(highest), -1);
        crash_and_reopen();
    }
}
END_TEST

struct seen {
    unsigned count;
    uint32_t last_id;
    uint64_t live;
};

static int see(void *arg, const struct segment_info *info)
{
    struct seen *seen = arg;
    ck_assert_uint_gt(info->id, seen->last_id);
    ck_assert_uint_eq(info->file_missing, info->id == 2);
    if (info->id == 1)
        ck_assert_uint_eq(info->cursor_slots, SEGMENT_SLOTS);
    seen->last_id = info->id;
    seen->count++;
    seen->live += info->live_chunks;
    return info->id == 99;
}

START_TEST(segments_can_be_listed)
{
    for (int i = 0; i < 3; i++) {
        put_group();
        if (i < 2)
            finish_segment();
    }
    char path[4096];
    path_of(path, sizeof(path), 2);
    ck_assert_int_eq(g_unlink(path), 0);
    struct seen seen = {0};
    ck_assert_int_eq(segments_each(s, see, &seen), 0);
    ck_assert_uint_eq(seen.count, 3);
    ck_assert_uint_eq(seen.live, 3 * SLOT_GROUP);
    struct segments_stats stats;
    ck_assert_int_eq(segments_stats(s, &stats), 0);
    ck_assert_uint_eq(stats.segment_count, 3);
    ck_assert_uint_eq(stats.live_chunks, 3 * SLOT_GROUP);
    ck_assert_uint_eq(stats.allocated_bytes, 2 * SLOT_GROUP * CHUNK);
    ck_assert_uint_ge(stats.fs_total_bytes, stats.fs_free_bytes);
}
END_TEST

/* ---- Full ---- */

START_TEST(a_full_file_system_is_told_before_the_reserve_is_gone)
{
    /* In a mount namespace of its own: it goes with this process, whatever happens. */
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", store, "tmpfs", 0, "size=8m") < 0) {
        printf("skipped: cannot mount a tmpfs (%s)\n", g_strerror(errno));
        return;
    }
    const uint64_t reserve = 2 << 20;
    segments_close(s);
    metadb_close(db);
    db = db_new();
    ck_assert_int_eq(segments_open(store, CHUNK, reserve, false, db, &s, &err), 0);

    /* More than there is: no, and at once. */
    ck_assert_int_eq(segments_check_space(s, 7 << 20), -ENOSPC);
    ck_assert_int_eq(segments_check_space(s, UINT64_MAX), -ENOSPC);

    chunk_t fresh = alloc(), groups[8];
    ck_assert_uint_eq(alloc(), fresh + SLOT_GROUP);
    unsigned written = 0;
    for (; written < 4000; written++) {
        if (segments_check_space(s, CHUNK) != 0)
            break;
        if (written % SLOT_GROUP == 0)
            groups[written / SLOT_GROUP] = alloc();
        write_chunks(groups[written / SLOT_GROUP] + written % SLOT_GROUP, 1);
    }
    /* 6 MiB could be written, no less (a page or two is the tmpfs' own) and no more. */
    ck_assert_uint_le(written, 6 * 256);
    ck_assert_uint_ge(written, 6 * 256 - 8);
    chunk_t group;
    ck_assert_int_eq(segments_check_space(s, CHUNK), -ENOSPC);
    if (segments_check_space(s, 0) == -ENOSPC)
        ck_assert_int_eq(segments_alloc_group(s, &group), -ENOSPC);

    /* Who writes without asking gets the error of the file system. */
    uint8_t *big = g_malloc0(3 << 20);
    ck_assert_int_eq(segments_write(s, fresh, 0, big, 3 << 20), -ENOSPC);
    ck_assert_int_eq(segments_reserve(s, fresh, 1024), -ENOSPC);
    g_free(big);

    /* What is given back is seen by the next who asks. */
    segments_account_live(s, groups[0], 2 * SLOT_GROUP);
    commit();
    segments_account_dead(s, groups[0], 2 * SLOT_GROUP);
    commit();
    ck_assert_uint_eq(segments_punch(s), 2 * SLOT_GROUP * CHUNK);
    ck_assert_int_eq(segments_check_space(s, 1 << 20), 0);
    alloc();

    segments_close(s);
    s = NULL;
    umount2(store, MNT_DETACH);
}
END_TEST

/* ---- Descriptors ---- */

enum { MANY = 24 };
static chunk_t many[MANY];

static void *read_many(void *arg)
{
    uint64_t random = (uintptr_t)arg;
    for (int i = 0; i < 3000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        chunk_t chunk = many[(random >> 33) % MANY] + (random >> 50) % 8;
        if (random >> 62 == 0)
            write_chunks(chunk, 1); /* the same bytes */
        else if (!chunk_is_right(chunk))
            return (void *)1;
    }
    return NULL;
}

START_TEST(more_segments_than_descriptors)
{
    struct rlimit limit;
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    rlim_t usual = limit.rlim_cur;
    limit.rlim_cur = 16; /* then at most 8 are kept */
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    segments_close(s);
    open_segments();
    limit.rlim_cur = usual;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);

    for (unsigned i = 0; i < MANY; i++) {
        many[i] = alloc();
        write_chunks(many[i], 8);
        segments_account_live(s, many[i], 8);
        segments_group_done(s, many[i]);
        finish_segment();
    }
    commit();
    int fd, again;
    uint64_t offset;
    ck_assert_int_eq(segments_locate(s, many[0], &fd, &offset), 0);

    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, read_many, (void *)(i + 1)), 0);
    for (unsigned i = 0; i < 10; i++) {
        g_usleep(2000);
        ck_assert_int_eq(segments_sync(s), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        void *bad;
        pthread_join(threads[i], &bad);
        ck_assert_ptr_null(bad);
    }
    /* Once no write is waiting for its sync, the bound holds. */
    ck_assert_int_eq(segments_sync(s), 0);
    for (unsigned i = 1; i < MANY; i++)
        ck_assert(chunk_is_right(many[i]));
    unsigned open_files = 0;
    GDir *fds = g_dir_open("/proc/self/fd", 0, NULL);
    const char *name;
    while (fds && (name = g_dir_read_name(fds))) {
        g_autofree char *link = g_build_filename("/proc/self/fd", name, NULL);
        g_autofree char *target = g_file_read_link(link, NULL);
        open_files += target && g_str_has_prefix(target, store) && !g_str_has_suffix(target, "s");
    }
    if (fds)
        g_dir_close(fds);
    ck_assert_uint_le(open_files, 8);
    /* The one that was given away is still the same and good. */
    uint8_t got[CHUNK], want[CHUNK];
    fill(want, many[0], 0);
    ck_assert_int_eq(pread(fd, got, CHUNK, (off_t)offset), CHUNK);
    ck_assert_mem_eq(got, want, CHUNK);
    ck_assert_int_eq(segments_locate(s, many[0] + 1, &again, &offset), 0);
    ck_assert_int_eq(fd, again);
    ck_assert_uint_eq(offset, CHUNK);
}
END_TEST

/* ---- Crashes ---- */

/* The test's own idea of who is owned: chunks of one set. */
static int owned_by_set(void *arg, chunk_t first, uint32_t limit, bool *owned, uint32_t *alike)
{
    GHashTable *set = arg;
    *owned = g_hash_table_contains(set, &first);
    for (*alike = 1; *alike < limit; ++*alike) {
        chunk_t next = first + *alike;
        if (g_hash_table_contains(set, &next) != *owned)
            break;
    }
    return 0;
}

static void own(GHashTable *set, chunk_t first, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        chunk_t *chunk = g_new(chunk_t, 1);
        *chunk = first + i;
        g_hash_table_add(set, chunk);
    }
}

static int owned_fails(void *arg, chunk_t first, uint32_t limit, bool *owned, uint32_t *alike)
{
    (void)arg, (void)first, (void)limit, (void)owned, (void)alike;
    return -EUCLEAN;
}

START_TEST(an_unclean_end_leaves_no_garbage)
{
    g_autoptr(GHashTable) set = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    chunk_t kept = put_group();
    own(set, kept, SLOT_GROUP);
    chunk_t partly = alloc();
    write_chunks(partly, 10);
    segments_account_live(s, partly, 10);
    own(set, partly, 10);
    chunk_t freed = put_group();
    commit();
    uint32_t id = id_of(kept);

    /* Freed, committed, but not punched any more. */
    segments_account_dead(s, freed, SLOT_GROUP);
    commit();
    /* After the last commit: in a group that the commit knows, in one that it
     * does not, and a free that never happened. */
    write_chunks(partly + 10, 20);
    segments_account_live(s, partly + 10, 20);
    chunk_t lost = put_group();
    segments_account_dead(s, kept, 5);
    ck_assert_uint_eq(id_of(lost), id);
    crash_and_reopen();

    /* The unknown group is cut off; the rest is for segments_reclaim. */
    ck_assert_int_eq(size_of(id), (int64_t)(uint32_t)lost * CHUNK);
    ck_assert_int_eq(blocks_of(id), (2 * SLOT_GROUP + 30) * CHUNK);
    ck_assert_int_eq(segments_reclaim(s, true, owned_fails, NULL), -EUCLEAN);
    ck_assert_int_eq(segments_reclaim(s, true, owned_by_set, set), 0);
    ck_assert_int_eq(blocks_of(id), (SLOT_GROUP + 10) * CHUNK);
    for (unsigned i = 0; i < SLOT_GROUP; i++)
        ck_assert(chunk_is_right(kept + i));
    for (unsigned i = 0; i < 10; i++)
        ck_assert(chunk_is_right(partly + i));
    ck_assert(chunk_is_zero(partly + 10));
    ck_assert(chunk_is_zero(freed));

    /* The number may come again: nothing durable knew it, and it is zeros. */
    chunk_t again = alloc();
    ck_assert_uint_eq(again, lost);
    write_chunks(again + 1, 1);
    ck_assert(chunk_is_zero(again));
    struct segments_stats stats;
    ck_assert_int_eq(segments_stats(s, &stats), 0);
    ck_assert_uint_eq(stats.live_chunks, SLOT_GROUP + 10);
}
END_TEST

START_TEST(unflagged_segments_are_left_alone_unless_they_are_too_large)
{
    g_autoptr(GHashTable) set = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    chunk_t a = put_group();
    finish_segment();
    chunk_t b = put_group();
    own(set, a, SLOT_GROUP);
    own(set, b, SLOT_GROUP);
    commit();
    crash_and_reopen();
    /* Segment a is full and clean: nobody asks who owns its chunks. */
    ck_assert_int_eq(segments_reclaim(s, true, owned_by_set, set), 0);

    char path[4096];
    path_of(path, sizeof(path), id_of(a));
    int fd = open(path, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, "garbage", 7, 1000 * CHUNK), 7);
    close(fd);
    crash_and_reopen();
    ck_assert_int_eq(blocks_of(id_of(a)), (SLOT_GROUP + 1) * CHUNK);
    ck_assert_int_eq(segments_reclaim(s, true, owned_by_set, set), 0);
    ck_assert_int_eq(blocks_of(id_of(a)), SLOT_GROUP * CHUNK);
    ck_assert(chunk_is_right(a + 511));
}
END_TEST

/* Bit 0 of the flags in the record as the last commit has it. */
static bool is_flagged(uint32_t id)
{
    uint8_t key[KEY_MAX];
    struct metadb_value value;
    size_t key_len = key_u64(key, KEY_SEGMENT, id);
    ck_assert_int_eq(metadb_get(committed, key, key_len, &value), 0);
    ck_assert_uint_ge(value.len, 4);
    bool flagged = value.data[1] & 1;
    metadb_value_free(&value);
    return flagged;
}

/* On a file system that compresses, sizes tell nothing: the flag has to be
 * durable before there can be bytes without an owner. */
START_TEST(the_flag_is_up_while_unowned_bytes_are_possible)
{
    chunk_t held = alloc();
    chunk_t a = put_group();
    uint32_t id = id_of(a);
    commit();
    ck_assert(is_flagged(id)); /* being filled */
    finish_segment();
    chunk_t b = put_group();
    commit();
    ck_assert(is_flagged(id)); /* a group is held */
    segments_group_done(s, held);
    commit();
    ck_assert(!is_flagged(id));
    ck_assert(is_flagged(id_of(b)));

    segments_account_dead(s, a, 3);
    commit();
    ck_assert(is_flagged(id)); /* dead in this commit, and not punched */
    segments_account_dead(s, a + 3, 3);
    commit();
    segments_punch(s);
    commit();
    ck_assert(!is_flagged(id));

    /* A flag that an earlier process left goes when the segment was looked at. */
    segments_account_dead(s, a + 6, 3);
    commit();
    crash_and_reopen();
    chunk_t c = put_group();
    segments_group_done(s, alloc());
    commit();
    ck_assert_uint_ne(id_of(c), id);
    ck_assert(is_flagged(id));
    g_autoptr(GHashTable) set = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    own(set, a + 9, SLOT_GROUP - 9);
    own(set, b, SLOT_GROUP);
    ck_assert_int_eq(segments_reclaim(s, true, owned_by_set, set), 0);
    commit();
    ck_assert(!is_flagged(id));
}
END_TEST

START_TEST(files_without_a_record_are_removed)
{
    chunk_t a = put_group();
    commit();
    finish_segment();
    chunk_t b = put_group(); /* its file is made, its record not committed */
    ck_assert_uint_ne(id_of(a), id_of(b));
    char path[4096];
    snprintf(path, sizeof(path), "%s/segments/README", store);
    ck_assert(g_file_set_contents(path, "not ours", -1, NULL));
    crash();

    /* Only looking leaves everything as it is. */
    ck_assert_int_eq(segments_open(store, CHUNK, 0, true, db, &s, &err), 0);
    ck_assert(chunk_is_right(a));
    ck_assert_int_ge(size_of(id_of(b)), 0);
    chunk_t none;
    ck_assert_int_eq(segments_alloc_group(s, &none), -EROFS);
    ck_assert_int_eq(segments_write(s, a, 0, "x", 1), -EROFS);
    ck_assert_int_eq(segments_reclaim(s, true, owned_fails, NULL), -EROFS);
    segments_close(s);

    open_segments();
    ck_assert(chunk_is_right(a));
    ck_assert_int_eq(size_of(id_of(b)), -1);
    ck_assert_int_eq(g_access(path, F_OK), 0);
    ck_assert_uint_eq(id_of(put_group()), id_of(a));
}
END_TEST

START_TEST(crashes_around_the_removal_of_a_segment)
{
    chunk_t a = put_group();
    finish_segment();
    chunk_t b = put_group();
    commit();
    segments_account_dead(s, a, SLOT_GROUP);
    commit();
    segments_punch(s);
    flip(); /* deletes the record; never becomes durable */
    crash_and_reopen();
    ck_assert_int_eq(blocks_of(id_of(a)), 0);
    ck_assert(segments_have_garbage(s));

    commit(); /* durable now, but the file stays */
    ck_assert_int_eq(blocks_of(id_of(a)), 0);
    crash_and_reopen();
    ck_assert_int_eq(blocks_of(id_of(a)), -1);
    ck_assert(!segments_have_garbage(s));
    ck_assert(chunk_is_right(b));
}
END_TEST

START_TEST(held_groups_are_given_up_with_the_process)
{
    chunk_t held = alloc();
    finish_segment();
    put_group();
    commit();
    crash_and_reopen();
    commit();
    segments_punch(s);
    ck_assert_int_eq(size_of(id_of(held)), -1);
}
END_TEST

START_TEST(wrong_sums_do_no_harm)
{
    /* More frees than owners: the segment is not thought empty. */
    chunk_t a = put_group();
    finish_segment();
    put_group();
    commit();
    segments_account_dead(s, a, 300);
    segments_account_dead(s, a, 300);
    segments_account_dead(s, (chunk_t)77 << 32, 1);
    for (int i = 0; i < 3; i++) {
        commit();
        segments_punch(s);
    }
    ck_assert(chunk_is_right(a + 511));

    /* And after the next unclean end the sum is right again. */
    g_autoptr(GHashTable) set = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    own(set, a + 300, 212);
    crash_and_reopen();
    put_group(); /* what is new meanwhile is not touched */
    ck_assert_int_eq(segments_reclaim(s, true, owned_by_set, set), 0);
    ck_assert(chunk_is_right(a + 300));
    ck_assert(chunk_is_right(a + 511));
}
END_TEST

START_TEST(damaged_records_are_refused)
{
    put_group();
    commit();
    static const struct {
        const char *key;
        size_t key_len;
        const char *value;
        size_t value_len;
    } bad[] = {
        {"g\0\0\0\0\0\0\0\1", 9, "\1\0\0", 3},             /* short */
        {"g\0\0\0\0\0\0\0\1", 9, "\1\0\0\0\0", 5},         /* long */
        {"g\0\0\0\0\0\0\0\1", 9, "\2\0\0\0", 4},           /* format */
        {"g\0\0\0\0\0\0\0\1", 9, "\1\2\0\0", 4},           /* flag */
        {"g\0\0\0\0\0\0\0\1", 9, "\1\0\0\5", 4},           /* cursor within a group */
        {"g\0\0\0\0\0\0\0\1", 9, "\1\0\1\0", 4},           /* more live than slots */
        {"g\0\0\0\0\0\0\0\1", 9, "\1\0\0\200\204\100", 6}, /* cursor over the end */
        {"g\0\0\0\0\0\0\0\0", 9, "\1\0", 2},               /* next id 0 */
        {"g\0\0\0\1\0\0\0\1", 9, "\1\0\0\0", 4},           /* id over 32 bits */
        {"g\0\0\0\0\0\0\1", 8, "\1\0\0\0", 4},             /* key */
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        crash();
        metadb_put(db, bad[i].key, bad[i].key_len, bad[i].value, bad[i].value_len);
        int error = segments_open(store, CHUNK, 0, false, db, &s, &err);
        ck_assert_msg(error == -EUCLEAN, "%u: %d", i, error);
        ck_assert_ptr_nonnull(strstr(err.text, "damaged"));
        s = NULL;
    }
    crash_and_reopen();
}
END_TEST

/* Random work and crashes against a model of what the last commit owned. */
START_TEST(random_work_with_crashes)
{
    enum { SLOTS = 4096 };
    static chunk_t owned[SLOTS], durable[SLOTS];
    memset(owned, 0, sizeof(owned));
    memset(durable, 0, sizeof(durable));
    GRand *random = g_rand_new_with_seed((guint32)_i + 1);
    chunk_t group = 0;
    unsigned used = SLOT_GROUP;
    for (int step = 0; step < 6000; step++) {
        unsigned what = (unsigned)g_rand_int_range(random, 0, 1000);
        unsigned at = (unsigned)g_rand_int_range(random, 0, SLOTS);
        if (what < 700) {
            if (used == SLOT_GROUP) {
                if (group)
                    segments_group_done(s, group);
                if (step % 7 == 0)
                    finish_segment();
                group = alloc();
                used = 0;
            }
            if (owned[at])
                segments_account_dead(s, owned[at], 1);
            owned[at] = group + used++;
            write_chunks(owned[at], 1);
            segments_account_live(s, owned[at], 1);
        } else if (what < 985) {
            if (owned[at])
                segments_account_dead(s, owned[at], 1);
            owned[at] = 0;
        } else if (what < 995) {
            commit();
            memcpy(durable, owned, sizeof(owned));
            if (what % 2)
                segments_punch(s);
        } else {
            crash_and_reopen();
            memcpy(owned, durable, sizeof(owned));
            group = 0;
            used = SLOT_GROUP;
            g_autoptr(GHashTable) set =
                g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
            uint64_t live = 0;
            for (unsigned i = 0; i < SLOTS; i++)
                if (owned[i]) {
                    own(set, owned[i], 1);
                    ck_assert(chunk_is_right(owned[i]));
                    live++;
                }
            ck_assert_int_eq(segments_reclaim(s, true, owned_by_set, set), 0);
            struct segments_stats stats;
            ck_assert_int_eq(segments_stats(s, &stats), 0);
            ck_assert_uint_eq(stats.live_chunks, live);
            ck_assert_uint_eq(stats.allocated_bytes, live * CHUNK);
        }
    }
    for (unsigned i = 0; i < SLOTS; i++)
        ck_assert(!owned[i] || chunk_is_right(owned[i]));
    g_rand_free(random);
}
END_TEST

/* The warnings are expected here, and only hide what is not. */
int main(void)
{
    g_log_set_default_handler(log_nothing, NULL);
    Suite *suite = suite_create("segment");
    TCase *tc = tcase_create("segment");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, bytes_come_back);
    tcase_add_test(tc, numbers_that_lead_nowhere_are_errors);
    tcase_add_test(tc, a_truncated_file_is_an_io_error);
    tcase_add_test(tc, reserved_space_is_taken_and_reads_as_zeros);
    tcase_add_test(tc, threads_never_get_the_same_slot);
    tcase_add_test(tc, a_read_section_keeps_what_was_looked_up_in_it);
    tcase_add_test(tc, punching_waits_for_readers);
    tcase_add_test(tc, freed_space_returns_after_the_commit_and_not_before);
    tcase_add_test(tc, empty_segments_disappear);
    tcase_add_test(tc, a_segment_with_a_held_group_stays);
    tcase_add_test(tc, segment_ids_are_never_used_again);
    tcase_add_test(tc, segments_can_be_listed);
    tcase_add_test(tc, a_full_file_system_is_told_before_the_reserve_is_gone);
    tcase_add_test(tc, more_segments_than_descriptors);
    tcase_add_test(tc, an_unclean_end_leaves_no_garbage);
    tcase_add_test(tc, unflagged_segments_are_left_alone_unless_they_are_too_large);
    tcase_add_test(tc, the_flag_is_up_while_unowned_bytes_are_possible);
    tcase_add_test(tc, files_without_a_record_are_removed);
    tcase_add_test(tc, crashes_around_the_removal_of_a_segment);
    tcase_add_test(tc, held_groups_are_given_up_with_the_process);
    tcase_add_test(tc, wrong_sums_do_no_harm);
    tcase_add_test(tc, damaged_records_are_refused);
    tcase_add_loop_test(tc, random_work_with_crashes, 0, 4);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
