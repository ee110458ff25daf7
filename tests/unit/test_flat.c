// SPDX-License-Identifier: Apache-2.0
/* Flat files: which files become so and stay so, what their readers see who bypass
 * the map, packing, and what sealing may not do to them. */
#include "tests/unit/content_fixture.h"

#include "cowfs/flat.h"
#include "cowfs/sealer.h"

#include <linux/falloc.h>
#include <sys/stat.h>

#define LEAF ((uint64_t)512 * CHUNK)
#define BIG (3 * LEAF) /* of most files here */

/* Who reads the home's file sees what who reads the file sees. */
static void assert_same_bytes(struct inode *inode, int fd)
{
    struct stat st;
    uint64_t size = size_of(inode), piece = 1 << 20;
    g_autofree uint8_t *a = g_malloc(piece), *b = g_malloc(piece);
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, size);
    for (uint64_t at = 0; at < size; at += piece) {
        ssize_t n = file_read(inode, a, piece, at);
        ck_assert_int_eq(pread(fd, b, piece, (off_t)at), n);
        ck_assert_msg(memcmp(a, b, (size_t)n) == 0, "bytes at %" PRIu64, at);
    }
} /* NOLINT(clang-analyzer-unix.Malloc): freed by g_autofree */

static uint32_t assert_flat(struct inode *inode)
{
    int fd;
    uint32_t home;
    enum flat_verdict verdict = flat_verdict(inode);
    ck_assert_msg(verdict == FLAT_YES, "%s", flat_verdict_text(verdict));
    ck_assert_int_eq(flat_pin(inode, &fd, &home), 0);
    assert_same_bytes(inode, fd);
    flat_unpin(fs, home);
    return home;
}

static void assert_not_flat(struct inode *inode, enum flat_verdict expected)
{
    int fd;
    uint32_t home;
    ck_assert_int_eq(flat_verdict(inode), expected);
    ck_assert_str_ne(flat_verdict_text(expected), "unknown");
    ck_assert_int_eq(flat_pin(inode, &fd, &home), -EINVAL);
}

/* As cp writes. */
static void import(struct inode *inode, uint64_t bytes, unsigned seed)
{
    g_autofree uint8_t *data = g_malloc(bytes);
    fill(data, bytes, seed);
    for (uint64_t at = 0; at < bytes; at += 128 << 10)
        write_at(inode, data + at, MIN(bytes - at, 128 << 10), at);
}

static struct inode *make_name(const char *name)
{
    return make(fs, ROOT_INO, name, S_IFREG | 0644);
}

static void pack(struct inode *inode, uint64_t *moved)
{
    uint64_t next = 0, part;
    *moved = 0;
    do {
        ck_assert_int_eq(flat_pack_part(inode, next, LEAF / 2, &next, &part), 0);
        *moved += part;
    } while (next);
}

/* ---- becoming flat ---- */

START_TEST(what_is_written_in_order_is_flat)
{
    import(file, BIG, 1);
    assert_flat(file);
    ck_assert_uint_eq(live(), BIG / CHUNK);
    reopen();
    assert_flat(file);
    assert_filled(file, BIG, 0, 1);
    /* And goes on where it was. */
    write_filled(file, 2 * LEAF, BIG, 2);
    assert_flat(file);
    assert_filled(file, BIG, 0, 1);
    assert_filled(file, 2 * LEAF, BIG, 2);
}
END_TEST

START_TEST(one_large_write_is_flat)
{
    write_filled(file, BIG, 0, 1);
    assert_flat(file);
    ck_assert_uint_eq(usage_of(file).extents, 1);
}
END_TEST

START_TEST(one_leaf_is_too_small)
{
    assert_not_flat(file, FLAT_SMALL);
    import(file, LEAF, 1);
    assert_not_flat(file, FLAT_SMALL);
    write_filled(file, 1, LEAF, 2);
    assert_flat(file);
    assert_filled(file, LEAF, 0, 1);
}
END_TEST

START_TEST(a_file_that_ends_within_a_chunk)
{
    import(file, BIG + 1000, 1);
    assert_flat(file);
    /* The home's file is as long now: reading the last chunk, appending to it. */
    assert_filled(file, BIG + 1000, 0, 1);
    write_filled(file, 100, BIG + 1000, 2);
    assert_flat(file);
    write_filled(file, 100, BIG + 3 * CHUNK + 5, 3);
    assert_flat(file);
    assert_filled(file, 100, BIG + 1000, 2);
    assert_zeros(file, 3 * CHUNK + 5 - 1100, BIG + 1100);
    assert_filled(file, 100, BIG + 3 * CHUNK + 5, 3);
    struct cowfs_ioc_seal sealed;
    seal_all(file, &sealed);
    assert_flat(file);
    reopen();
    assert_flat(file);
}
END_TEST

/* A snapshot that is mapped: the size first, then pages in any order. */
START_TEST(what_is_filled_in_any_order_is_flat)
{
    enum { CHUNKS = 1700 };
    g_autoptr(GRand) random = g_rand_new_with_seed(7);
    bool written[CHUNKS] = {false};
    ck_assert_int_eq(file_truncate(file, CHUNKS * CHUNK), 0);
    for (int i = 0; i < 3000; i++) {
        unsigned at = (unsigned)g_rand_int_range(random, 0, CHUNKS);
        write_filled(file, CHUNK, at * CHUNK, at + 1);
        written[at] = true;
        if (i == 1000)
            commit();
        if (i == 2000)
            reopen();
    }
    assert_flat(file);
    for (unsigned at = 0; at < CHUNKS; at++) {
        if (written[at])
            assert_filled(file, CHUNK, at * CHUNK, at + 1);
        else
            assert_zeros(file, CHUNK, at * CHUNK);
    }
    /* Pages that were written again have not moved. */
    write_filled(file, 5 * CHUNK + 7, 3 * CHUNK + 3, 5);
    assert_flat(file);
}
END_TEST

START_TEST(what_is_reserved_is_flat)
{
    ck_assert_int_eq(file_fallocate(file, 0, 0, BIG), 0);
    assert_flat(file);
    write_filled(file, LEAF, LEAF / 2, 1);
    assert_flat(file);
    /* Zeros stay where they were reserved. */
    g_autofree uint8_t *zeros = g_malloc0(LEAF);
    write_at(file, zeros, LEAF, LEAF / 2);
    assert_flat(file); /* NOLINT(clang-analyzer-unix.Malloc): freed by g_autofree */
    /* What is reserved behind the end would be cut off. */
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_KEEP_SIZE, BIG, LEAF), 0);
    assert_not_flat(file, FLAT_ELSEWHERE);
    ck_assert_int_eq(file_truncate(file, BIG + LEAF), 0);
    assert_flat(file);
}
END_TEST

START_TEST(a_sparse_file_of_8_tib)
{
    uint64_t far = (uint64_t)8 << 40;
    write_filled(file, CHUNK, 5, 1);
    write_filled(file, 2 * CHUNK, ((uint64_t)5 << 30) + 17, 2);
    write_filled(file, 100, far, 3);
    int fd;
    uint32_t home;
    ck_assert_int_eq(flat_pin(file, &fd, &home), 0);
    struct stat st;
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, far + 100);
    uint8_t there[2 * CHUNK], expected[2 * CHUNK];
    fill(expected, sizeof(expected), 2);
    ck_assert_int_eq(pread(fd, there, sizeof(there), ((off_t)5 << 30) + 17), sizeof(there));
    ck_assert(memcmp(there, expected, sizeof(there)) == 0);
    flat_unpin(fs, home);
    commit();
    assert_filled(file, 100, far, 3);
    reopen();
    ck_assert_int_eq(flat_verdict(file), FLAT_YES);
}
END_TEST

START_TEST(beyond_what_a_home_has_slots_for)
{
    import(file, BIG, 1);
    write_filled(file, CHUNK, (uint64_t)UINT32_MAX * CHUNK, 2);
    assert_not_flat(file, FLAT_ELSEWHERE);
    assert_filled(file, BIG, 0, 1);
    assert_filled(file, CHUNK, (uint64_t)UINT32_MAX * CHUNK, 2);
    uint64_t next, moved;
    ck_assert_int_eq(flat_pack_part(file, 0, LEAF, &next, &moved), -EFBIG);
}
END_TEST

START_TEST(a_file_that_begins_anew_gets_a_new_home)
{
    import(file, BIG, 1);
    uint32_t first = assert_flat(file);
    ck_assert_int_eq(file_truncate(file, 0), 0);
    assert_not_flat(file, FLAT_SMALL);
    import(file, BIG, 2);
    ck_assert_uint_ne(assert_flat(file), first);
    assert_filled(file, BIG, 0, 2);
}
END_TEST

/* What is shared or sealed stays where it is. */
START_TEST(a_cloned_beginning_is_not_moved)
{
    import(file, LEAF, 1);
    struct inode *clone = clone_as(file, "clone");
    write_filled(file, LEAF, LEAF, 2);
    assert_not_flat(file, FLAT_ELSEWHERE);
    ck_assert_uint_eq(live(), 2 * LEAF / CHUNK);
    assert_filled(clone, LEAF, 0, 1);
    inode_put(clone);
}
END_TEST

/* ---- clones ---- */

START_TEST(clones_share_the_home)
{
    import(file, BIG + 10, 1);
    uint32_t home = assert_flat(file);
    struct inode *a = clone_as(file, "a"), *b = clone_as(a, "b");
    ck_assert_uint_eq(assert_flat(a), home);
    ck_assert_uint_eq(assert_flat(b), home);
    ck_assert_uint_eq(assert_flat(file), home);
    /* Who is written goes his own way, the others do not notice. */
    write_filled(a, 100, LEAF + 5, 2);
    assert_not_flat(a, FLAT_ELSEWHERE);
    assert_filled(b, BIG + 10, 0, 1);
    ck_assert_uint_eq(assert_flat(b), home);
    /* Nor when the first one goes. */
    inode_put(file);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "file"), 0);
    reaper_wait(fs->reaper);
    commit();
    commit();
    ck_assert_uint_eq(assert_flat(b), home);
    write_filled(a, 100, 5, 3);
    ck_assert_uint_eq(assert_flat(b), home);
    inode_put(a);
    file = b;
}
END_TEST

/* Its holes are the clone's, too: nobody fills them where the clone would see it. */
START_TEST(holes_are_not_filled_after_a_clone)
{
    ck_assert_int_eq(file_truncate(file, BIG), 0);
    write_filled(file, CHUNK, LEAF, 1);
    struct inode *clone = clone_as(file, "clone");
    uint32_t home = assert_flat(file);
    write_filled(file, CHUNK, 2 * LEAF, 2);
    assert_not_flat(file, FLAT_ELSEWHERE);
    ck_assert_uint_eq(assert_flat(clone), home);
    assert_zeros(clone, CHUNK, 2 * LEAF);
    /* The clone alone does not fill it either: it is only a clone. */
    write_filled(clone, CHUNK, 2 * LEAF + CHUNK, 3);
    assert_not_flat(clone, FLAT_ELSEWHERE);
    inode_put(clone);
}
END_TEST

START_TEST(a_clone_that_changes_its_size_is_not_flat)
{
    import(file, BIG + 10, 1);
    struct inode *longer = clone_as(file, "longer"), *shorter = clone_as(file, "shorter");
    ck_assert_int_eq(file_truncate(longer, BIG + 2 * LEAF), 0);
    assert_not_flat(longer, FLAT_ELSEWHERE);
    ck_assert_int_eq(file_truncate(shorter, LEAF + 10), 0);
    assert_not_flat(shorter, FLAT_ELSEWHERE);
    ck_assert_int_eq(file_truncate(shorter, BIG + 10), 0);
    assert_not_flat(shorter, FLAT_ELSEWHERE);
    assert_zeros(shorter, BIG - LEAF, LEAF + 10);
    assert_flat(file);
    inode_put(longer);
    inode_put(shorter);
}
END_TEST

START_TEST(a_copy_of_the_whole_is_flat)
{
    struct inode *dst = make_name("dst");
    import(file, BIG + 10, 1);
    import(dst, BIG, 2);
    ck_assert_int_eq(file_copy_range(file, 0, dst, 0, FILE_SIZE_MAX), (ssize_t)(BIG + 10));
    ck_assert_uint_eq(assert_flat(dst), assert_flat(file));
    assert_filled(dst, BIG + 10, 0, 1);
    inode_put(dst);
}
END_TEST

START_TEST(a_copy_in_pieces_is_flat_when_it_is_complete)
{
    struct inode *dst = make_name("dst");
    import(file, BIG + 10, 1);
    for (uint64_t at = 0; at < BIG + 10; at += LEAF + CHUNK) {
        assert_not_flat(dst, size_of(dst) ? FLAT_ELSEWHERE : FLAT_SMALL);
        ck_assert_int_gt(file_copy_range(file, at, dst, at, LEAF + CHUNK), 0);
    }
    ck_assert_uint_eq(assert_flat(dst), assert_flat(file));
    assert_filled(dst, BIG + 10, 0, 1);
    inode_put(dst);

    /* Half of it, made as long: the home has more than it. */
    dst = make_name("half");
    ck_assert_int_eq(file_copy_range(file, 0, dst, 0, LEAF), (ssize_t)LEAF);
    ck_assert_int_eq(file_truncate(dst, BIG + 10), 0);
    assert_not_flat(dst, FLAT_ELSEWHERE);
    assert_zeros(dst, BIG + 10 - LEAF, LEAF);
    inode_put(dst);

    /* The source has changed in between. */
    dst = make_name("changed");
    ck_assert_int_eq(file_copy_range(file, 0, dst, 0, LEAF), (ssize_t)LEAF);
    write_filled(file, 10, 2 * LEAF, 2);
    ck_assert_int_gt(file_copy_range(file, LEAF, dst, LEAF, FILE_SIZE_MAX), 0);
    assert_not_flat(dst, FLAT_ELSEWHERE);
    assert_filled(dst, 10, 2 * LEAF, 2);
    inode_put(dst);
}
END_TEST

START_TEST(a_part_that_is_copied_in_is_not_flat)
{
    struct inode *dst = make_name("dst");
    import(file, BIG, 1);
    import(dst, BIG, 2);
    ck_assert_int_eq(file_copy_range(file, LEAF, dst, LEAF, LEAF), (ssize_t)LEAF);
    assert_not_flat(dst, FLAT_ELSEWHERE);
    assert_flat(file);
    inode_put(dst);
}
END_TEST

/* ---- ceasing to be flat ---- */

static void punch(void)
{
    ck_assert_int_eq(
        file_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, LEAF, 10 * CHUNK), 0);
}

static void zero(void)
{
    g_autofree uint8_t *zeros = g_malloc0(10 * CHUNK);
    write_at(file, zeros, 10 * CHUNK, LEAF);
} /* NOLINT(clang-analyzer-unix.Malloc): freed by g_autofree */

static void cut(void)
{
    ck_assert_int_eq(file_truncate(file, LEAF), 0);
    ck_assert_int_eq(file_truncate(file, BIG), 0);
}

static void (*const holes[])(void) = {punch, zero, cut};

START_TEST(a_hole_where_something_was)
{
    import(file, BIG, 1);
    holes[_i]();
    assert_not_flat(file, FLAT_ELSEWHERE);
    assert_zeros(file, 10 * CHUNK, LEAF);
    /* Filled again, with the old bytes still about in the segment. */
    write_filled(file, 3 * CHUNK, LEAF + 1, 2);
    commit();
    commit();
    txn_wait_reclaim(fs->txn);
    assert_filled(file, 3 * CHUNK, LEAF + 1, 2);
    assert_filled(file, LEAF, 0, 1);
}
END_TEST

/* A hole that is cut, punched or zeroed was one before. */
START_TEST(holes_stay_holes)
{
    ck_assert_int_eq(file_truncate(file, BIG), 0);
    write_filled(file, CHUNK, 0, 1);
    for (unsigned i = 0; i < G_N_ELEMENTS(holes); i++)
        holes[i]();
    assert_flat(file);
    write_filled(file, CHUNK, 2 * LEAF, 2);
    assert_flat(file);
}
END_TEST

/* ---- crashes ---- */

static void crash_while_filling(void *arg)
{
    (void)arg;
    fs = open_store();
    file = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    ck_assert_int_eq(file_truncate(file, BIG + 100), 0);
    for (unsigned i = 0; i < BIG / CHUNK; i += 3)
        write_filled(file, CHUNK, i * CHUNK, 1);
    commit();
    /* Below and above what the commit knows. */
    for (unsigned i = 1; i < BIG / CHUNK; i += 3)
        write_filled(file, CHUNK, i * CHUNK, 2);
    write_filled(file, LEAF, BIG, 3);
}

START_TEST(a_crash_leaves_holes_empty)
{
    setup();
    in_child(crash_while_filling, NULL);
    fs = open_store();
    file = open_file("file");
    ck_assert_uint_eq(size_of(file), BIG + 100);
    assert_flat(file);
    for (unsigned i = 0; i < BIG / CHUNK; i++) {
        if (i % 3)
            assert_zeros(file, CHUNK, i * CHUNK);
        else
            assert_filled(file, CHUNK, i * CHUNK, 1);
    }
    write_filled(file, CHUNK, CHUNK, 4);
    assert_flat(file);
    teardown_content();
}
END_TEST

static void crash_after_leaving(void *arg)
{
    (void)arg;
    crash_while_filling(NULL);
    commit();
    /* None of this has been: a clone, a hole, new data there. */
    struct inode *clone = clone_as(file, "clone");
    write_filled(clone, CHUNK, 0, 5);
    write_filled(file, CHUNK, 2 * CHUNK, 5);
    punch();
    write_filled(file, CHUNK, LEAF, 6);
}

START_TEST(a_crash_returns_to_the_last_commit)
{
    setup();
    in_child(crash_after_leaving, NULL);
    fs = open_store();
    file = open_file("file");
    assert_flat(file);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "clone"), -ENOENT);
    assert_zeros(file, CHUNK, 2 * CHUNK);
    assert_filled(file, LEAF, BIG, 3);
    write_filled(file, CHUNK, 2 * CHUNK, 7);
    assert_flat(file);
    teardown_content();
}
END_TEST

static void crash_while_packing(void *arg)
{
    uint64_t next, moved;
    (void)arg;
    fs = open_store();
    file = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    import(file, BIG, 1);
    punch();
    ck_assert_int_eq(flat_pack_part(file, 0, LEAF, &next, &moved), 0);
    ck_assert_uint_gt(next, 0);
    commit();
    ck_assert_int_eq(flat_pack_part(file, next, LEAF, &next, &moved), 0);
    ck_assert_uint_gt(next, 0);
}

START_TEST(a_crash_while_packing)
{
    uint64_t next, moved;
    setup();
    in_child(crash_while_packing, NULL);
    fs = open_store();
    file = open_file("file");
    assert_not_flat(file, FLAT_PACKING);
    assert_filled(file, LEAF, 0, 1);
    ck_assert_int_eq(flat_pack_part(file, LEAF, LEAF, &next, &moved), -EAGAIN);
    pack(file, &moved);
    ck_assert_uint_lt(moved, BIG - LEAF + CHUNK); /* goes on where it was */
    assert_flat(file);
    teardown_content();
}
END_TEST

/* ---- packing ---- */

/* Something of everything: shared chunks, holes, packed slots, reserved ones. */
static void scatter(void)
{
    g_autoptr(GRand) random = g_rand_new_with_seed(3);
    import(file, BIG + 5, 1);
    struct inode *clone = clone_as(file, "other");
    for (unsigned i = 0; i < 100; i++)
        write_filled(file, CHUNK, g_rand_int_range(random, 0, BIG / CHUNK) * CHUNK, i);
    punch();
    ck_assert_int_eq(file_fallocate(file, 0, LEAF, 3 * CHUNK), 0);
    inode_put(clone);
}

START_TEST(packing)
{
    uint64_t moved;
    scatter();
    assert_not_flat(file, FLAT_ELSEWHERE);
    g_autofree uint8_t *before = g_malloc(BIG + 5);
    ck_assert_int_eq(file_read(file, before, BIG + 5, 0), (ssize_t)(BIG + 5));
    pack(file, &moved);
    ck_assert_uint_eq(moved, BIG - 6 * CHUNK);
    assert_flat(file);
    assert_bytes(file, before, BIG + 5, 0);
    /* What was reserved still is. */
    struct cowfs_ioc_stat usage = usage_of(file);
    ck_assert_uint_eq(usage.mapped, BIG - 6 * CHUNK);
    /* A second time nothing moves. */
    pack(file, &moved);
    ck_assert_uint_eq(moved, 0);
    struct inode *clone = clone_as(file, "clone");
    assert_flat(clone);
    pack(clone, &moved);
    ck_assert_uint_eq(moved, 0);
    inode_put(clone);
    reopen();
    assert_flat(file);
}
END_TEST

START_TEST(small_files_can_be_packed)
{
    uint64_t moved;
    write_filled(file, 100, 0, 1);
    pack(file, &moved);
    ck_assert_uint_eq(moved, CHUNK);
    assert_flat(file);
    struct inode *empty = make_name("empty");
    pack(empty, &moved);
    ck_assert_uint_eq(moved, 0);
    inode_put(empty);
}
END_TEST

START_TEST(a_file_is_used_while_it_is_packed)
{
    uint64_t next, moved;
    scatter();
    ck_assert_int_eq(flat_pack_part(file, 0, LEAF, &next, &moved), 0);
    assert_not_flat(file, FLAT_PACKING);
    /* In what was packed, and in what was not: data, over shared data, over holes. */
    write_filled(file, 3 * CHUNK, 5, 50);
    write_filled(file, 20 * CHUNK, LEAF - CHUNK + 5, 51);
    write_filled(file, 3 * CHUNK, 2 * LEAF + 5, 52);
    /* Holes where nothing was packed yet. */
    ck_assert_int_eq(file_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                    2 * LEAF + 50 * CHUNK, 50 * CHUNK),
                     0);
    write_filled(file, CHUNK, 2 * LEAF + 60 * CHUNK, 53);
    write_filled(file, LEAF, BIG, 54);
    while (next)
        ck_assert_int_eq(flat_pack_part(file, next, LEAF, &next, &moved), 0);
    assert_flat(file);
    assert_filled(file, 3 * CHUNK, 5, 50);
    assert_filled(file, 20 * CHUNK, LEAF - CHUNK + 5, 51);
    assert_filled(file, 3 * CHUNK, 2 * LEAF + 5, 52);
    assert_zeros(file, 10 * CHUNK, 2 * LEAF + 50 * CHUNK);
    assert_filled(file, CHUNK, 2 * LEAF + 60 * CHUNK, 53);
    assert_filled(file, LEAF, BIG, 54);
}
END_TEST

START_TEST(packing_begins_again_after_a_clone_or_a_cut)
{
    uint64_t next, other, moved;
    scatter();
    ck_assert_int_eq(flat_pack_part(file, 1, LEAF, &next, &moved), -EINVAL);
    ck_assert_int_eq(flat_pack_part(file, CHUNK, LEAF, &next, &moved), -EAGAIN);
    ck_assert_int_eq(flat_pack_part(file, 0, LEAF, &next, &moved), 0);
    struct inode *clone = clone_as(file, "clone");
    ck_assert_int_eq(flat_pack_part(file, next, LEAF, &other, &moved), -EAGAIN);
    assert_not_flat(file, FLAT_ELSEWHERE);
    assert_not_flat(clone, FLAT_ELSEWHERE);
    ck_assert_int_eq(flat_pack_part(file, 0, LEAF, &next, &moved), 0);
    ck_assert_int_eq(file_truncate(file, LEAF / 4), 0);
    ck_assert_int_eq(flat_pack_part(file, next, LEAF, &other, &moved), -EAGAIN);
    pack(file, &moved);
    assert_flat(file);
    pack(clone, &moved);
    assert_flat(clone);
    ck_assert_uint_eq(size_of(clone), BIG + 5);
    inode_put(clone);
}
END_TEST

START_TEST(what_is_reserved_while_a_file_is_packed)
{
    uint64_t next, other, moved;
    scatter();
    ck_assert_int_eq(flat_pack_part(file, 0, LEAF, &next, &moved), 0);
    ck_assert_int_eq(
        file_fallocate(file, FALLOC_FL_KEEP_SIZE, round_up_u64(size_of(file), CHUNK), CHUNK), 0);
    int error;
    do {
        error = flat_pack_part(file, next, LEAF, &other, &moved);
        next = other;
    } while (!error && next);
    ck_assert_int_eq(error, -EAGAIN);
    pack(file, &moved);
    assert_flat(file);
}
END_TEST

/* ---- sealing ---- */

/* `file`, flat, with the content of an older file whose chunks are in the index. */
static struct inode *make_twins(void)
{
    struct cowfs_ioc_seal sealed;
    struct inode *older = make_name("older");
    write_filled(older, BIG, 0, 1);
    seal_all(older, &sealed);
    ck_assert_uint_eq(sealed.deduplicated, 0);
    assert_flat(older);
    import(file, BIG, 1);
    return older;
}

START_TEST(sealing_on_demand_takes_chunks_out)
{
    struct cowfs_ioc_seal sealed;
    struct inode *older = make_twins(), *clone = clone_as(file, "clone");
    seal_all(file, &sealed);
    ck_assert_uint_eq(sealed.deduplicated, BIG);
    ck_assert_uint_eq(live(), BIG / CHUNK);
    assert_not_flat(file, FLAT_DEDUPED);
    assert_not_flat(clone, FLAT_DEDUPED);
    assert_flat(older);
    assert_filled(clone, BIG, 0, 1);
    /* Slots that were used once are not used again. */
    punch();
    write_filled(file, 10 * CHUNK, LEAF, 2);
    commit();
    commit();
    txn_wait_reclaim(fs->txn);
    assert_filled(file, 10 * CHUNK, LEAF, 2);
    inode_put(older);
    inode_put(clone);
    reopen();
    clone = open_file("clone");
    assert_not_flat(clone, FLAT_DEDUPED);
    inode_put(clone);
}
END_TEST

static struct seal_result seal_part(bool keep_flat)
{
    struct seal_result result, total = {0};
    for (uint64_t index = 0; index != UINT64_MAX; index = result.next_index) {
        ck_assert_int_eq(seal_file_part(fs, file, index, UINT64_MAX, keep_flat, NULL, &result), 0);
        total.deduplicated_chunks += result.deduplicated_chunks;
        total.hashed_chunks += result.hashed_chunks;
    }
    return total;
}

START_TEST(sealing_that_keeps_files_flat)
{
    inode_put(file);
    close_store(fs);
    fs = open_store_with((struct fs_config){.keep_flat = true});
    file = open_file("file");
    struct inode *older = make_twins();
    struct seal_result result = seal_part(true);
    ck_assert_uint_eq(result.hashed_chunks, BIG / CHUNK);
    ck_assert_uint_eq(result.deduplicated_chunks, 0);
    assert_flat(file);
    assert_flat(older);
    /* Others find what is in it. */
    struct cowfs_ioc_seal sealed;
    struct inode *third = make_name("third");
    write_filled(third, 100 * CHUNK, 0, 1);
    seal_all(third, &sealed);
    ck_assert_uint_eq(sealed.deduplicated, 100 * CHUNK);
    assert_flat(file);
    /* Who asks for it gets it. */
    result = seal_part(false);
    ck_assert_uint_eq(result.deduplicated_chunks, BIG / CHUNK);
    assert_not_flat(file, FLAT_DEDUPED);
    assert_filled(file, BIG, 0, 1);
    inode_put(third);
    inode_put(older);
}
END_TEST

START_TEST(sealing_leaves_packed_files_alone)
{
    uint64_t moved;
    struct inode *older = make_twins();
    pack(file, &moved);
    ck_assert_uint_eq(moved, 0);
    ck_assert_uint_eq(seal_part(false).deduplicated_chunks, 0);
    assert_flat(file);
    inode_put(older);
}
END_TEST

/* What is not packed yet may have its equal in what is: in the home, but in another's slot. */
START_TEST(sealing_while_a_file_is_packed)
{
    struct cowfs_ioc_seal sealed;
    uint64_t next, moved;
    import(file, BIG, 1);
    write_filled(file, 10 * CHUNK, 0, 2);
    write_filled(file, 10 * CHUNK, 2 * LEAF, 2);
    ck_assert_int_eq(file_truncate(file, BIG - CHUNK), 0); /* no flat one to begin with */
    struct inode *clone = clone_as(file, "clone");
    write_filled(file, CHUNK, BIG - 2 * CHUNK, 3);
    ck_assert_int_eq(flat_pack_part(file, 0, LEAF, &next, &moved), 0);
    ck_assert_uint_ne(next, 0);
    seal_all(file, &sealed);
    ck_assert_uint_eq(sealed.deduplicated, 10 * CHUNK);
    while (next)
        ck_assert_int_eq(flat_pack_part(file, next, LEAF, &next, &moved), 0);
    assert_flat(file);
    assert_filled(file, 10 * CHUNK, 0, 2);
    assert_filled(file, 10 * CHUNK, 2 * LEAF, 2);
    inode_put(clone);
}
END_TEST

START_TEST(sealing_leaves_pinned_files_alone)
{
    int fd;
    uint32_t home;
    struct inode *older = make_twins();
    ck_assert_int_eq(flat_pin(file, &fd, &home), 0);
    ck_assert_uint_eq(seal_part(false).deduplicated_chunks, 0);
    assert_same_bytes(file, fd);
    flat_unpin(fs, home);
    assert_flat(file);
    inode_put(older);
}
END_TEST

/* ---- pins ---- */

START_TEST(a_pinned_file_can_be_removed)
{
    int fd;
    uint32_t home;
    import(file, BIG, 1);
    struct inode *clone = clone_as(file, "clone");
    ck_assert_int_eq(flat_pin(file, &fd, &home), 0);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "file"), 0);
    write_filled(clone, BIG, 0, 2);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "clone"), 0);
    inode_put(clone);
    reaper_wait(fs->reaper);
    commit();
    commit();
    txn_wait_reclaim(fs->txn);
    assert_same_bytes(file, fd);
    flat_unpin(fs, home);
    inode_put(file);
    file = NULL;
    reaper_wait(fs->reaper);
    for (int i = 0; i < 3; i++) {
        commit();
        txn_wait_reclaim(fs->txn);
    }
    struct segments_stats stats;
    ck_assert_int_eq(segments_stats(fs->segments, &stats), 0);
    ck_assert_uint_le(stats.segment_count, 1);
    ck_assert_uint_eq(live(), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("flat");
    TCase *t = tcase_create("becoming");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup_content, teardown_content);
    tcase_add_test(t, what_is_written_in_order_is_flat);
    tcase_add_test(t, one_large_write_is_flat);
    tcase_add_test(t, one_leaf_is_too_small);
    tcase_add_test(t, a_file_that_ends_within_a_chunk);
    tcase_add_test(t, what_is_filled_in_any_order_is_flat);
    tcase_add_test(t, what_is_reserved_is_flat);
    tcase_add_test(t, a_sparse_file_of_8_tib);
    tcase_add_test(t, beyond_what_a_home_has_slots_for);
    tcase_add_test(t, a_file_that_begins_anew_gets_a_new_home);
    tcase_add_test(t, a_cloned_beginning_is_not_moved);
    suite_add_tcase(suite, t);
    t = tcase_create("clones");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup_content, teardown_content);
    tcase_add_test(t, clones_share_the_home);
    tcase_add_test(t, holes_are_not_filled_after_a_clone);
    tcase_add_test(t, a_clone_that_changes_its_size_is_not_flat);
    tcase_add_test(t, a_copy_of_the_whole_is_flat);
    tcase_add_test(t, a_copy_in_pieces_is_flat_when_it_is_complete);
    tcase_add_test(t, a_part_that_is_copied_in_is_not_flat);
    tcase_add_loop_test(t, a_hole_where_something_was, 0, (int)G_N_ELEMENTS(holes));
    tcase_add_test(t, holes_stay_holes);
    tcase_add_test(t, a_pinned_file_can_be_removed);
    suite_add_tcase(suite, t);
    t = tcase_create("packing");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup_content, teardown_content);
    tcase_add_test(t, packing);
    tcase_add_test(t, small_files_can_be_packed);
    tcase_add_test(t, a_file_is_used_while_it_is_packed);
    tcase_add_test(t, packing_begins_again_after_a_clone_or_a_cut);
    tcase_add_test(t, what_is_reserved_while_a_file_is_packed);
    suite_add_tcase(suite, t);
    t = tcase_create("sealing");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup_content, teardown_content);
    tcase_add_test(t, sealing_on_demand_takes_chunks_out);
    tcase_add_test(t, sealing_that_keeps_files_flat);
    tcase_add_test(t, sealing_leaves_packed_files_alone);
    tcase_add_test(t, sealing_while_a_file_is_packed);
    tcase_add_test(t, sealing_leaves_pinned_files_alone);
    suite_add_tcase(suite, t);
    t = tcase_create("crashes");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, a_crash_leaves_holes_empty);
    tcase_add_test(t, a_crash_returns_to_the_last_commit);
    tcase_add_test(t, a_crash_while_packing);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
