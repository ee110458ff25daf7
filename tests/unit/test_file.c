// SPDX-License-Identifier: Apache-2.0
/* The content of one file: what becomes a hole, what stays shared, where a file
 * ends, what is reserved, which requests are refused. */
#include "tests/unit/content_fixture.h"

#include "chunkstore/segment_internal.h"

#include <linux/falloc.h>
#include <signal.h>
#include <sys/resource.h>

/* ---- zeros are holes ---- */

START_TEST(zeros_written_become_a_hole)
{
    uint8_t data[5 * CHUNK] = {0};
    uint64_t found;
    write_filled(file, sizeof(data), 0, 1);
    ck_assert_uint_eq(live(), 5);
    write_at(file, data, 2 * CHUNK, CHUNK);
    ck_assert_uint_eq(live(), 3);
    ck_assert_uint_eq(usage_of(file).holes, 2 * CHUNK);
    assert_zeros(file, 2 * CHUNK, CHUNK);
    ck_assert_int_eq(file_seek(file, 0, SEEK_HOLE, &found), 0);
    ck_assert_uint_eq(found, CHUNK);
    ck_assert_int_eq(file_seek(file, CHUNK, SEEK_DATA, &found), 0);
    ck_assert_uint_eq(found, 3 * CHUNK);
    /* Zeros into a hole, and a new file of zeros: nothing at all. */
    struct inode *other = make(fs, ROOT_INO, "zeros", S_IFREG | 0644);
    write_at(other, data, sizeof(data), 100);
    ck_assert_uint_eq(size_of(other), sizeof(data) + 100);
    ck_assert_uint_eq(usage_of(other).mapped, 0);
    ck_assert_uint_eq(live(), 3);
    inode_put(other);
}
END_TEST

START_TEST(a_chunk_that_becomes_zero_by_its_edges_is_a_hole)
{
    static const uint8_t zeros[CHUNK];
    /* Shared, so that the rest has to be read; written in two parts. */
    write_filled(file, CHUNK, 0, 1);
    struct inode *clone = clone_as(file, "clone");
    write_at(clone, zeros, 1000, 0);
    ck_assert_uint_eq(live(), 2);
    commit();
    struct inode *second = clone_as(clone, "second");
    write_at(second, zeros, CHUNK - 1000, 1000);
    ck_assert_uint_eq(usage_of(second).mapped, 0);
    assert_filled(file, CHUNK, 0, 1);
    assert_zeros(clone, 1000, 0);
    inode_put(clone);
    inode_put(second);
}
END_TEST

START_TEST(punching_gives_whole_chunks_back_and_zeros_the_edges)
{
    write_filled(file, 8 * CHUNK, 0, 1);
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    ck_assert_int_eq(file_fallocate(file, mode, CHUNK / 2, 3 * CHUNK), 0);
    ck_assert_uint_eq(live(), 6);
    assert_zeros(file, 3 * CHUNK, CHUNK / 2);
    uint8_t first[CHUNK / 2];
    fill(first, sizeof(first), 1);
    assert_bytes(file, first, sizeof(first), 0);
    ck_assert_uint_eq(size_of(file), 8 * CHUNK);
    /* The last chunk goes whole though the file ends within it. */
    ck_assert_int_eq(file_truncate(file, 8 * CHUNK - 100), 0);
    ck_assert_int_eq(file_fallocate(file, mode, 7 * CHUNK, CHUNK - 100), 0);
    ck_assert_uint_eq(live(), 5);
    ck_assert_uint_eq(size_of(file), 8 * CHUNK - 100);
}
END_TEST

START_TEST(punched_space_returns_without_waiting_for_the_next_regular_commit)
{
    inode_put(file);
    close_store(fs);
    fs = open_store_with((struct fs_config){.create = true, .commit_interval_ms = 3600 * 1000});
    file = open_file("file");
    struct segments_stats stats;
    write_filled(file, 1 << 20, 0, 1);
    commit();
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 20),
                     0);
    for (unsigned tries = 0; tries < 600; tries++) { /* ends early, or fails by the hour above */
        ck_assert_int_eq(segments_stats(fs->segments, &stats), 0);
        if (stats.allocated_bytes == 0)
            return;
        g_usleep(100000);
    }
    ck_abort_msg("%" PRIu64 " bytes are still allocated", stats.allocated_bytes);
}
END_TEST

/* ---- the same again keeps the sharing ---- */

enum { SHARED = 700 }; /* chunks: more than a leaf */

START_TEST(writing_what_is_there_keeps_it_shared)
{
    write_filled(file, SHARED * CHUNK, 0, 1);
    struct inode *clone = clone_as(file, "clone");
    write_filled(clone, SHARED * CHUNK, 0, 1);
    ck_assert_uint_eq(live(), SHARED);
    ck_assert_uint_eq(usage_of(clone).shared_bytes, (uint64_t)SHARED * CHUNK);
    ck_assert_uint_eq(usage_of(clone).private_bytes, 0);
    /* One chunk differs, in the midst of a large write. */
    g_autofree uint8_t *data = g_malloc((size_t)SHARED * CHUNK);
    fill(data, (size_t)SHARED * CHUNK, 1);
    data[300 * CHUNK + 17] ^= 2;
    write_at(clone, data, (size_t)SHARED * CHUNK, 0);
    ck_assert_uint_eq(live(), SHARED + 1);
    assert_bytes(clone, data, (size_t)SHARED * CHUNK, 0);
    assert_filled(file, (size_t)SHARED * CHUNK, 0, 1);
    ck_assert_uint_eq(usage_of(clone).private_bytes, CHUNK);
    inode_put(clone);
}
END_TEST

START_TEST(a_small_write_to_a_shared_chunk_copies_that_chunk_alone)
{
    uint8_t same;
    write_filled(file, 20 * CHUNK, 0, 1);
    struct inode *clone = clone_as(file, "clone");
    ck_assert_int_eq(file_read(clone, &same, 1, 5 * CHUNK + 7), 1);
    write_at(clone, &same, 1, 5 * CHUNK + 7);
    ck_assert_uint_eq(live(), 20);
    uint8_t changed = same ^ 0x40;
    write_at(clone, &changed, 1, 5 * CHUNK + 7);
    ck_assert_uint_eq(live(), 21);
    assert_filled(file, 20 * CHUNK, 0, 1);
    assert_bytes(clone, &changed, 1, 5 * CHUNK + 7);
    inode_put(clone);
}
END_TEST

START_TEST(a_private_chunk_is_overwritten_in_place)
{
    write_filled(file, 20 * CHUNK, 0, 1);
    commit();
    uint64_t extents = usage_of(file).extents;
    write_filled(file, 3 * CHUNK + 5, 7 * CHUNK - 3, 2);
    ck_assert_uint_eq(live(), 20);
    ck_assert_uint_eq(usage_of(file).extents, extents);
    assert_filled(file, 3 * CHUNK + 5, 7 * CHUNK - 3, 2);
}
END_TEST

START_TEST(a_file_filled_out_of_order_ends_as_one_extent)
{
    /* The small chunks at the start of a file are packed instead. */
    for (unsigned i = 0; i < 512; i++)
        write_filled(file, CHUNK, (uint64_t)(512 + i * 85 % 512) * CHUNK, i);
    ck_assert_uint_eq(usage_of(file).extents, 1);
}
END_TEST

/* ---- the end of a file ---- */

START_TEST(what_was_cut_off_does_not_come_back)
{
    write_filled(file, 5000, 0, 1);
    ck_assert_int_eq(file_truncate(file, 4500), 0);
    ck_assert_int_eq(file_truncate(file, 3 * CHUNK), 0);
    assert_zeros(file, 3 * CHUNK - 4500, 4500);
    assert_filled(file, 4500, 0, 1);
    ck_assert_uint_eq(live(), 2);
}
END_TEST

START_TEST(cutting_a_clone_leaves_the_original)
{
    write_filled(file, 5000, 0, 1);
    struct inode *clone = clone_as(file, "clone");
    ck_assert_int_eq(file_truncate(clone, 4500), 0);
    ck_assert_int_eq(file_truncate(clone, 5000), 0);
    assert_zeros(clone, 500, 4500);
    assert_filled(file, 5000, 0, 1);
    inode_put(clone);
}
END_TEST

START_TEST(reading_ends_with_the_file)
{
    uint8_t buffer[100];
    write_filled(file, 5000, 0, 1);
    ck_assert_int_eq(file_read(file, buffer, 100, 4950), 50);
    ck_assert_int_eq(file_read(file, buffer, 100, 5000), 0);
    ck_assert_int_eq(file_read(file, buffer, 100, UINT64_C(1) << 61), 0);
    ck_assert_int_eq(file_read(file, buffer, 0, 0), 0);
}
END_TEST

START_TEST(a_huge_sparse_file_is_cut_at_once)
{
    /* At once: stepping through 2^62 bytes would not end. */
    write_filled(file, 1, (uint64_t)FILE_SIZE_MAX - 1, 1);
    write_filled(file, 1, UINT64_C(1) << 39, 2);
    ck_assert_uint_eq(size_of(file), (uint64_t)FILE_SIZE_MAX);
    ck_assert_int_eq(file_truncate(file, (UINT64_C(1) << 39) + 1), 0);
    assert_filled(file, 1, UINT64_C(1) << 39, 2);
    ck_assert_uint_eq(live(), 1);
    ck_assert_int_eq(file_truncate(file, 1), 0);
    ck_assert_uint_eq(live(), 0);
    assert_zeros(file, 1, 0);
}
END_TEST

START_TEST(seeking_tells_data_and_holes)
{
    uint64_t found;
    write_filled(file, 100, 10 * CHUNK + 50, 1);
    ck_assert_int_eq(file_seek(file, 0, SEEK_DATA, &found), 0);
    ck_assert_uint_eq(found, 10 * CHUNK);
    ck_assert_int_eq(file_seek(file, 10 * CHUNK + 60, SEEK_DATA, &found), 0);
    ck_assert_uint_eq(found, 10 * CHUNK + 60);
    ck_assert_int_eq(file_seek(file, 5, SEEK_HOLE, &found), 0);
    ck_assert_uint_eq(found, 5);
    /* Every file ends in a hole. */
    ck_assert_int_eq(file_seek(file, 10 * CHUNK + 60, SEEK_HOLE, &found), 0);
    ck_assert_uint_eq(found, 10 * CHUNK + 150);
    ck_assert_int_eq(file_seek(file, 10 * CHUNK + 150, SEEK_HOLE, &found), -ENXIO);
    ck_assert_int_eq(file_seek(file, 10 * CHUNK + 150, SEEK_DATA, &found), -ENXIO);
    ck_assert_int_eq(file_truncate(file, 20 * CHUNK), 0);
    ck_assert_int_eq(file_seek(file, 11 * CHUNK, SEEK_DATA, &found), -ENXIO);
    ck_assert_int_eq(file_seek(file, 0, SEEK_SET, &found), -EINVAL);
}
END_TEST

/* ---- reserved space ---- */

START_TEST(reserved_space_reads_as_zeros_and_stays_when_zeros_are_written)
{
    static const uint8_t zeros[4 * CHUNK];
    struct segments_stats stats;
    ck_assert_int_eq(file_fallocate(file, 0, 100, 50 * CHUNK), 0);
    ck_assert_uint_eq(size_of(file), 50 * CHUNK + 100);
    ck_assert_uint_eq(usage_of(file).reserved_bytes, 51 * CHUNK);
    ck_assert_int_eq(segments_stats(fs->segments, &stats), 0);
    ck_assert_uint_ge(stats.allocated_bytes, 51 * CHUNK);
    assert_zeros(file, 50 * CHUNK + 100, 0);
    write_at(file, zeros, sizeof(zeros), CHUNK);
    write_filled(file, CHUNK, 10 * CHUNK, 1);
    write_at(file, zeros, CHUNK, 10 * CHUNK);
    assert_zeros(file, CHUNK, 10 * CHUNK);
    ck_assert_uint_eq(usage_of(file).reserved_bytes, 51 * CHUNK);
    reopen();
    ck_assert_uint_eq(usage_of(file).reserved_bytes, 51 * CHUNK);
}
END_TEST

START_TEST(reserving_leaves_data_alone)
{
    write_filled(file, 3 * CHUNK, 5 * CHUNK, 1);
    ck_assert_int_eq(file_fallocate(file, 0, 0, 20 * CHUNK), 0);
    assert_filled(file, 3 * CHUNK, 5 * CHUNK, 1);
    assert_zeros(file, 5 * CHUNK, 0);
    assert_zeros(file, 12 * CHUNK, 8 * CHUNK);
    ck_assert_uint_eq(usage_of(file).reserved_bytes, 17 * CHUNK);
}
END_TEST

START_TEST(space_may_be_reserved_behind_the_end)
{
    write_filled(file, 100, 0, 1);
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_KEEP_SIZE, 0, 10 * CHUNK), 0);
    ck_assert_uint_eq(size_of(file), 100);
    ck_assert_uint_eq(usage_of(file).mapped, 10 * CHUNK);
    /* A write into it takes what is reserved. */
    write_filled(file, CHUNK, 4 * CHUNK, 2);
    ck_assert_uint_eq(live(), 10);
    assert_zeros(file, 4 * CHUNK - 100, 100);
    /* Cutting the file gives it back, though it lies behind both ends. */
    ck_assert_int_eq(file_truncate(file, 200), 0);
    ck_assert_uint_eq(live(), 1);
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_KEEP_SIZE, CHUNK, 10 * CHUNK), 0);
    ck_assert_int_eq(
        file_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, CHUNK, 10 * CHUNK), 0);
    ck_assert_uint_eq(live(), 1);
}
END_TEST

START_TEST(more_than_there_is_cannot_be_reserved)
{
    uint64_t much = UINT64_C(1) << 50;
    write_filled(file, 5000, 0, 1);
    ck_assert_int_eq(file_fallocate(file, 0, 1000, much), -ENOSPC);
    ck_assert_uint_eq(size_of(file), 5000);
    ck_assert_uint_eq(live(), 2);
    assert_filled(file, 5000, 0, 1);
}
END_TEST

START_TEST(zeroing_a_range)
{
    write_filled(file, 10 * CHUNK, 0, 1);
    ck_assert_int_eq(
        file_fallocate(file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 9 * CHUNK, 5 * CHUNK), 0);
    ck_assert_uint_eq(size_of(file), 10 * CHUNK);
    assert_zeros(file, CHUNK, 9 * CHUNK);
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_ZERO_RANGE, 8 * CHUNK + 5, 5 * CHUNK), 0);
    ck_assert_uint_eq(size_of(file), 13 * CHUNK + 5);
    assert_zeros(file, 5 * CHUNK, 8 * CHUNK + 5);
    uint8_t kept[8 * CHUNK + 5];
    fill(kept, sizeof(kept), 1);
    assert_bytes(file, kept, sizeof(kept), 0);
}
END_TEST

/* ---- what is refused ---- */

START_TEST(limits_and_bad_arguments)
{
    uint64_t max = (uint64_t)FILE_SIZE_MAX;
    int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    ck_assert_int_eq(try_write(file, "x", 1, max), -EFBIG);
    ck_assert_int_eq(try_write(file, "xy", 2, max - 1), -EFBIG);
    ck_assert_int_eq(try_write(file, "x", 1, UINT64_MAX), -EFBIG);
    ck_assert_int_eq(try_write(file, "x", 1, max - 1), 1);
    ck_assert_int_eq(try_write(file, "", 0, 5), 0);
    ck_assert_int_eq(file_truncate(file, max + 1), -EFBIG);
    ck_assert_int_eq(file_fallocate(file, 0, max, 1), -EFBIG);
    ck_assert_int_eq(file_fallocate(file, punch, 1, UINT64_MAX), -EFBIG);
    ck_assert_int_eq(file_fallocate(file, 0, 0, 0), -EINVAL);
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_PUNCH_HOLE, 0, 1), -EOPNOTSUPP);
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_COLLAPSE_RANGE, 0, CHUNK), -EOPNOTSUPP);
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_INSERT_RANGE, 0, CHUNK), -EOPNOTSUPP);
    ck_assert_int_eq(file_copy_range(file, 0, file, max + 1, 1), -EFBIG);
}
END_TEST

START_TEST(a_store_for_reading_only_refuses_changes)
{
    char byte;
    write_filled(file, CHUNK, 0, 1);
    inode_put(file);
    close_store(fs);
    fs = open_store_with((struct fs_config){.read_only = true});
    file = open_file("file");
    assert_filled(file, CHUNK, 0, 1);
    ck_assert_int_eq(file_read(file, &byte, 1, CHUNK), 0);
    ck_assert_int_eq(try_write(file, "x", 1, 0), -EROFS);
    ck_assert_int_eq(file_truncate(file, 0), -EROFS);
    ck_assert_int_eq(file_fallocate(file, 0, 0, CHUNK), -EROFS);
    ck_assert_int_eq(file_copy_range(file, 0, file, CHUNK, CHUNK), -EROFS);
}
END_TEST

/* The file system below refuses to let a segment grow. */
static void limit_files(rlim_t bytes)
{
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

START_TEST(a_write_that_fails_leaves_nothing_behind_the_old_end)
{
    write_filled(file, 5000, 0, 1);
    struct inode *clone = clone_as(file, "clone");
    commit();
    limit_files(4 << 20);
    g_autofree uint8_t *data = g_malloc(8 << 20);
    fill(data, 8 << 20, 2);
    ssize_t error = try_write(clone, data, 8 << 20, 4000);
    ck_assert_int_eq(error, -EFBIG);
    limit_files(RLIM_INFINITY);
    ck_assert_uint_eq(size_of(clone), 5000);
    ck_assert_int_eq(file_truncate(clone, 12 << 20), 0);
    assert_zeros(clone, (12 << 20) - 5000, 5000);
    assert_filled(file, 5000, 0, 1);
    /* And the disk has room again. */
    write_at(clone, data, 8 << 20, 4000);
    assert_bytes(clone, data, 8 << 20, 4000);
    inode_put(clone);
}
END_TEST

START_TEST(a_commit_that_failed_is_tried_again)
{
    write_filled(file, 100, 0, 1);
    commit();
    struct inode *clone = clone_as(file, "clone");
    limit_files(1); /* neither data nor metadata can be written */
    ck_assert_int_lt(fs_commit(fs), 0);
    ck_assert_int_lt(fs_commit(fs), 0);
    ck_assert_int_lt(fs_may_change(fs), 0);
    limit_files(RLIM_INFINITY);
    commit();
    write_filled(clone, 100, 5000, 2);
    inode_put(clone);
    reopen();
    clone = open_file("clone");
    assert_filled(clone, 100, 0, 1);
    assert_filled(clone, 100, 5000, 2);
    assert_filled(file, 100, 0, 1);
    inode_put(clone);
}
END_TEST

/* No room for data: all that is left is kept for metadata. */
static void fill_disk(void)
{
    fs->segments->reserve_bytes = UINT64_MAX / 2;
    atomic_store(&fs->segments->space_budget, 0);
}

START_TEST(on_a_full_disk_all_works_that_needs_no_new_chunk)
{
    int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    write_filled(file, 20 * CHUNK, 0, 1);
    struct inode *clone = clone_as(file, "clone");
    struct inode *own = make(fs, ROOT_INO, "own", S_IFREG | 0644);
    write_filled(own, 5 * CHUNK, 0, 2);
    commit();
    fill_disk();
    /* What needs one is refused, and nothing has happened. */
    ck_assert_int_eq(try_write(clone, "x", 1, 5), -ENOSPC);
    ck_assert_int_eq(try_write(own, "x", 1, 5 * CHUNK), -ENOSPC);
    ck_assert_int_eq(file_fallocate(own, 0, 0, 6 * CHUNK), -ENOSPC);
    ck_assert_int_eq(file_fallocate(clone, punch, 5, CHUNK), -ENOSPC);
    ck_assert_int_eq(file_copy_range(file, 1, own, 5 * CHUNK, 100), -ENOSPC);
    ck_assert_uint_eq(size_of(own), 5 * CHUNK);
    assert_filled(clone, 20 * CHUNK, 0, 1);
    assert_filled(own, 5 * CHUNK, 0, 2);
    /* The rest is not. */
    write_filled(own, CHUNK, 2 * CHUNK, 3);
    write_filled(clone, 20 * CHUNK, 0, 1);
    ck_assert_int_eq(file_fallocate(clone, punch, 5 * CHUNK, CHUNK), 0);
    ck_assert_int_eq(file_truncate(clone, 3 * CHUNK + 17), 0);
    struct inode *third = clone_as(clone, "third");
    ck_assert_int_eq(file_truncate(clone, 0), 0);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "clone"), 0);
    commit();
    inode_put(clone);
    inode_put(own);
    inode_put(third);
    reopen();
    /* With room again: what was cut off does not come back. */
    third = open_file("third");
    ck_assert_uint_eq(size_of(third), 3 * CHUNK + 17);
    ck_assert_int_eq(file_truncate(third, 4 * CHUNK), 0);
    assert_zeros(third, CHUNK - 17, 3 * CHUNK + 17);
    inode_put(third);
}
END_TEST

/* ---- attributes that follow the content ---- */

static struct timespec set_old(struct inode *inode)
{
    struct timespec old = {.tv_sec = 1000000000, .tv_nsec = 5};
    txn_enter(fs->txn);
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.mtime = inode->attr.ctime = old;
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_dirty(inode);
    txn_exit(fs->txn);
    return old;
}

static bool mtime_is(struct inode *inode, struct timespec time)
{
    struct stat st;
    inode_stat(inode, &st);
    return st.st_mtim.tv_sec == time.tv_sec && st.st_mtim.tv_nsec == time.tv_nsec;
}

START_TEST(changes_set_the_times)
{
    struct timespec old = set_old(file);
    write_filled(file, 5000, 0, 1);
    ck_assert(!mtime_is(file, old));
    set_old(file);
    write_filled(file, 100, 200, 2); /* in place */
    ck_assert(!mtime_is(file, old));
    set_old(file);
    ck_assert_int_eq(file_truncate(file, 5000), 0);
    ck_assert(!mtime_is(file, old));
    set_old(file);
    ck_assert_int_eq(file_fallocate(file, 0, 0, CHUNK), 0);
    ck_assert(!mtime_is(file, old));
    set_old(file);
    ck_assert_int_eq(file_copy_range(file, 0, file, 2 * CHUNK, CHUNK), CHUNK);
    ck_assert(!mtime_is(file, old));
    /* The kernel keeps the time of what is in its cache. */
    set_old(file);
    struct file_write_flags flags = {.from_cache = true};
    ck_assert_int_eq(file_write(file, "x", 1, 0, flags), 1);
    ck_assert_int_eq(file_write(file, "x", 1, 1 << 20, flags), 1);
    ck_assert(mtime_is(file, old));
    char byte;
    ck_assert_int_eq(file_read(file, &byte, 1, 0), 1);
    ck_assert(mtime_is(file, old));
}
END_TEST

static void set_mode(struct inode *inode, uint32_t mode)
{
    txn_enter(fs->txn);
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.mode = mode;
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_dirty(inode);
    txn_exit(fs->txn);
}

START_TEST(writing_takes_setuid_away)
{
    struct file_write_flags flags = {.kill_suid = true};
    set_mode(file, S_IFREG | 06775);
    write_filled(file, 10, 0, 1);
    ck_assert_uint_eq(inode_mode(file), S_IFREG | 06775);
    ck_assert_int_eq(file_write(file, "x", 1, 0, flags), 1);
    ck_assert_uint_eq(inode_mode(file), S_IFREG | 0775);
    /* setgid without group execution means mandatory locking, not a right. */
    set_mode(file, S_IFREG | 02664);
    ck_assert_int_eq(file_write(file, "x", 1, 0, flags), 1);
    ck_assert_uint_eq(inode_mode(file), S_IFREG | 02664);
}
END_TEST

START_TEST(punching_goes_beyond_the_largest_file)
{
    const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    write_filled(file, 3 * CHUNK, 0, 1);
    ck_assert_int_eq(file_fallocate(file, punch, CHUNK, INT64_MAX), 0);
    assert_filled(file, CHUNK, 0, 1);
    assert_zeros(file, 2 * CHUNK, CHUNK);
    ck_assert_int_eq(file_fallocate(file, punch, FILE_SIZE_MAX, 1), 0);
    ck_assert_int_eq(file_fallocate(file, punch, INT64_MAX, 1), 0);
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_ZERO_RANGE, FILE_SIZE_MAX, 1), -EFBIG);
}
END_TEST

START_TEST(cut_already)
{
    ck_assert(file_is_cut(file, 0));
    write_filled(file, 10, 0, 1);
    ck_assert(file_is_cut(file, 10));
    ck_assert(!file_is_cut(file, 9));
    ck_assert_int_eq(file_truncate(file, 0), 0);
    ck_assert(file_is_cut(file, 0));
    /* What is reserved would be given back. */
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_KEEP_SIZE, 0, CHUNK), 0);
    ck_assert(!file_is_cut(file, 0));
}
END_TEST

START_TEST(fdatasync_commits_only_what_is_mapped_anew)
{
    write_filled(file, 4 * CHUNK, 0, 1);
    ck_assert_int_eq(fs_sync_file(file, true), 0);
    uint64_t commits = txn_commits(fs->txn);
    write_filled(file, CHUNK, CHUNK, 2); /* in place */
    ck_assert_int_eq(fs_sync_file(file, true), 0);
    ck_assert_uint_eq(txn_commits(fs->txn), commits);
    ck_assert_int_eq(fs_sync_file(file, false), 0); /* times, too */
    ck_assert_uint_eq(txn_commits(fs->txn), commits + 1);
    write_filled(file, CHUNK, 4 * CHUNK, 3); /* a new chunk, a new size */
    ck_assert_int_eq(fs_sync_file(file, true), 0);
    ck_assert_uint_eq(txn_commits(fs->txn), commits + 2);
    write_filled(file, 1, 3, 4);
    ck_assert_int_eq(fs_sync_file(file, true), 0);
    ck_assert_uint_eq(txn_commits(fs->txn), commits + 2);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("file");
    TCase *tc = tcase_create("content");
    tcase_add_checked_fixture(tc, setup_content, teardown_content);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, zeros_written_become_a_hole);
    tcase_add_test(tc, a_chunk_that_becomes_zero_by_its_edges_is_a_hole);
    tcase_add_test(tc, punching_gives_whole_chunks_back_and_zeros_the_edges);
    tcase_add_test(tc, punched_space_returns_without_waiting_for_the_next_regular_commit);
    tcase_add_test(tc, writing_what_is_there_keeps_it_shared);
    tcase_add_test(tc, a_small_write_to_a_shared_chunk_copies_that_chunk_alone);
    tcase_add_test(tc, a_private_chunk_is_overwritten_in_place);
    tcase_add_test(tc, a_file_filled_out_of_order_ends_as_one_extent);
    tcase_add_test(tc, what_was_cut_off_does_not_come_back);
    tcase_add_test(tc, cutting_a_clone_leaves_the_original);
    tcase_add_test(tc, reading_ends_with_the_file);
    tcase_add_test(tc, a_huge_sparse_file_is_cut_at_once);
    tcase_add_test(tc, seeking_tells_data_and_holes);
    tcase_add_test(tc, reserved_space_reads_as_zeros_and_stays_when_zeros_are_written);
    tcase_add_test(tc, reserving_leaves_data_alone);
    tcase_add_test(tc, space_may_be_reserved_behind_the_end);
    tcase_add_test(tc, more_than_there_is_cannot_be_reserved);
    tcase_add_test(tc, zeroing_a_range);
    tcase_add_test(tc, limits_and_bad_arguments);
    tcase_add_test(tc, a_store_for_reading_only_refuses_changes);
    tcase_add_test(tc, a_write_that_fails_leaves_nothing_behind_the_old_end);
    tcase_add_test(tc, a_commit_that_failed_is_tried_again);
    tcase_add_test(tc, on_a_full_disk_all_works_that_needs_no_new_chunk);
    tcase_add_test(tc, changes_set_the_times);
    tcase_add_test(tc, writing_takes_setuid_away);
    tcase_add_test(tc, punching_goes_beyond_the_largest_file);
    tcase_add_test(tc, cut_already);
    tcase_add_test(tc, fdatasync_commits_only_what_is_mapped_anew);
    suite_add_tcase(suite, tc);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
