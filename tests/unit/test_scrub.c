// SPDX-License-Identifier: Apache-2.0
/* Bytes that rot below the store: scrub and checked reads find them, they are
 * an error wherever they are read, and never spread. */
#include "tests/unit/content_fixture.h"

#include "cowfs/scrub.h"

enum { CHUNKS = 600 }; /* more than a leaf, more than a batch */

static struct cowfs_ioc_seal sealed;

static void setup_sealed(void)
{
    setup_content();
    write_filled(file, CHUNKS * CHUNK - 100, 0, 1);
    seal_all(file, &sealed);
    commit();
}

/* Flips a bit of the chunk at `index` of the file, below the store. */
static void flip(struct inode *inode, uint64_t index)
{
    struct extent e;
    int fd;
    uint64_t offset;
    uint8_t byte;
    ck_assert_int_eq(map_lookup(fs->nodes, &inode->attr.map, index, 1, false, &e), 0);
    ck_assert_int_eq(segments_locate(fs->segments, e.chunk, &fd, &offset), 0);
    ck_assert_int_eq(pread(fd, &byte, 1, (off_t)offset + 1000), 1);
    byte ^= 0x10;
    ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)offset + 1000), 1);
}

struct outcome {
    uint64_t checked, damaged, met, calls;
};

static struct outcome scrub_by(uint64_t length)
{
    struct cowfs_ioc_scrub io = {.version = COWFS_IOCTL_VERSION, .length = length};
    struct outcome o = {0};
    do {
        ck_assert_int_eq(scrub_step(fs, &io), 0);
        ck_assert(io.next == 0 || io.next > io.position);
        o.checked += io.checked;
        o.damaged = io.damaged;
        o.met += io.count;
        o.calls++;
        io.position = io.next;
    } while (io.next);
    return o;
}

static struct outcome scrub(void)
{
    return scrub_by(UINT64_C(4) << 20);
}

static struct cowfs_ioc_damage damage_of(struct inode *inode)
{
    struct cowfs_ioc_damage io = {.version = COWFS_IOCTL_VERSION};
    ck_assert_int_eq(scrub_file_damage(fs, inode->ino, &io), 0);
    ck_assert_uint_eq(io.next, 0);
    return io;
}

static ssize_t read_at(struct inode *inode, size_t n, uint64_t offset)
{
    g_autofree uint8_t *data = g_malloc(n);
    return file_read(inode, data, n, offset);
}

static void reopen_with(struct fs_config config)
{
    inode_put(file);
    close_store(fs);
    fs = open_store_with(config);
    file = open_file("file");
}

START_TEST(nothing_is_wrong_with_a_good_store)
{
    write_filled(file, 50 * CHUNK, (CHUNKS + 100) * CHUNK, 2); /* not sealed: not looked at */
    struct outcome o = scrub();
    ck_assert_uint_eq(o.checked, CHUNKS * CHUNK);
    ck_assert_uint_eq(o.damaged, 0);
    ck_assert_uint_eq(damage_of(file).count, 0);
    /* In small steps the same. */
    o = scrub_by(10 * CHUNK);
    ck_assert_uint_eq(o.checked, CHUNKS * CHUNK);
    ck_assert_uint_ge(o.calls, CHUNKS / 10);
    ck_assert_uint_eq(scrub_by(0).checked, CHUNKS * CHUNK);
}
END_TEST

START_TEST(a_flipped_bit_is_an_error_in_all_who_have_it)
{
    struct inode *clone = clone_as(file, "clone");
    flip(file, 7);
    flip(file, CHUNKS - 1);
    struct outcome o = scrub();
    ck_assert_uint_eq(o.damaged, 2);
    ck_assert_uint_eq(o.met, 2);
    ck_assert_uint_eq(o.checked, CHUNKS * CHUNK);
    for (unsigned i = 0; i < 2; i++) {
        struct inode *inode = i ? clone : file;
        struct cowfs_ioc_damage io = damage_of(inode);
        ck_assert_uint_eq(io.count, 2);
        ck_assert_uint_eq(io.range[0].offset, 7 * CHUNK);
        ck_assert_uint_eq(io.range[0].length, CHUNK);
        ck_assert_uint_eq(io.range[1].offset, (CHUNKS - 1) * CHUNK);
        ck_assert_uint_eq(io.range[1].length, CHUNK - 100);
        ck_assert_int_eq(read_at(inode, 1, 7 * CHUNK), -EIO);
        ck_assert_int_eq(read_at(inode, 3 * CHUNK, 6 * CHUNK), -EIO);
        ck_assert_int_eq(read_at(inode, 1, CHUNKS * CHUNK - 101), -EIO);
        assert_filled(inode, 7 * CHUNK, 0, 1);
        ck_assert_int_eq(read_at(inode, (CHUNKS - 9) * CHUNK, 8 * CHUNK), (CHUNKS - 9) * CHUNK);
    }
    /* It is told again, and known after the next opening. */
    ck_assert_uint_eq(scrub().met, 2);
    inode_put(clone);
    reopen_with((struct fs_config){0});
    clone = open_file("clone");
    ck_assert_int_eq(read_at(clone, 1, 7 * CHUNK), -EIO);
    ck_assert_uint_eq(damage_of(file).count, 2);
    /* Whoever writes over it has good bytes again; the other has not. */
    write_filled(file, 2 * CHUNK, 6 * CHUNK, 3);
    assert_filled(file, 2 * CHUNK, 6 * CHUNK, 3);
    ck_assert_int_eq(read_at(clone, 1, 7 * CHUNK), -EIO);
    ck_assert_int_eq(file_truncate(file, 100 * CHUNK), 0);
    ck_assert_uint_eq(damage_of(file).count, 0);
    /* The marks go with the last owner. */
    inode_put(clone);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "clone"), 0);
    reaper_wait(fs->reaper);
    ck_assert_uint_eq(scrub().damaged, 0);
}
END_TEST

START_TEST(what_is_right_again_can_be_read_again)
{
    flip(file, 7);
    ck_assert_uint_eq(scrub().damaged, 1);
    ck_assert_int_eq(read_at(file, 1, 7 * CHUNK), -EIO);
    flip(file, 7);
    ck_assert_int_eq(read_at(file, 1, 7 * CHUNK), -EIO);
    ck_assert_uint_eq(scrub().damaged, 0);
    assert_filled(file, CHUNKS * CHUNK - 100, 0, 1);
    reopen_with((struct fs_config){0});
    assert_filled(file, CHUNKS * CHUNK - 100, 0, 1);
}
END_TEST

START_TEST(more_damage_than_one_answer_can_hold)
{
    for (unsigned i = 0; i < 300; i++)
        flip(file, 2 * i);
    struct outcome o = scrub();
    ck_assert_uint_eq(o.damaged, 300);
    ck_assert_uint_eq(o.met, 300);
    ck_assert_uint_eq(o.checked, CHUNKS * CHUNK);
    struct cowfs_ioc_damage io = {.version = COWFS_IOCTL_VERSION};
    unsigned ranges = 0;
    do {
        ck_assert_int_eq(scrub_file_damage(fs, file->ino, &io), 0);
        for (unsigned i = 0; i < io.count; i++)
            ck_assert_uint_eq(io.range[i].offset, 2 * ranges++ * CHUNK);
        io.offset = io.next;
    } while (io.next);
    ck_assert_uint_eq(ranges, 300);
    ck_assert_int_eq(file_truncate(file, 0), 0);
}
END_TEST

START_TEST(a_lost_segment_file_is_damage)
{
    g_autofree char *name = g_build_filename(store_path, "segments", "00000001", NULL);
    inode_put(file);
    close_store(fs);
    ck_assert_int_eq(truncate(name, 100 * CHUNK), 0);
    fs = open_store();
    file = open_file("file");
    ck_assert_uint_eq(scrub().damaged, CHUNKS - 100);
    ck_assert_int_eq(read_at(file, 1, 100 * CHUNK), -EIO);
    assert_filled(file, 100 * CHUNK, 0, 1);
    ck_assert_int_eq(file_truncate(file, 100 * CHUNK), 0);
    ck_assert_uint_eq(scrub().damaged, 0);
}
END_TEST

START_TEST(with_verify_each_read_is_checked)
{
    write_filled(file, 10 * CHUNK, (CHUNKS + 100) * CHUNK, 2); /* not sealed */
    reopen_with((struct fs_config){.verify = true});
    assert_filled(file, 5 * CHUNK + 5, 0, 1);
    flip(file, 7);
    flip(file, CHUNKS + 101);
    ck_assert_int_eq(read_at(file, 1, 7 * CHUNK), -EIO);
    ck_assert_int_eq(read_at(file, 100, 7 * CHUNK + 2000), -EIO);
    ck_assert_int_eq(read_at(file, 20 * CHUNK, 5), -EIO);
    assert_filled(file, 7 * CHUNK, 0, 1);
    /* What is not sealed has no hash, and nobody can tell. */
    ck_assert_int_eq(read_at(file, CHUNK, (CHUNKS + 101) * CHUNK), CHUNK);
    ck_assert_uint_eq(damage_of(file).count, 1);
    ck_assert_int_eq(file_truncate(file, 0), 0);
}
END_TEST

START_TEST(unaligned_reads_give_the_same_bytes_with_verify)
{
    g_autofree uint8_t *data = g_malloc(CHUNKS * CHUNK);
    fill(data, CHUNKS * CHUNK, 1);
    reopen_with((struct fs_config){.verify = true});
    write_at(file, data + 100, 3000, 100); /* the same bytes: stays sealed */
    write_filled(file, CHUNK, 300 * CHUNK, 9);
    fill(data + 300 * CHUNK, CHUNK, 9);
    for (unsigned i = 0; i < 400; i++) {
        size_t from = i * 5003 % (CHUNKS * CHUNK / 2), n = 1 + i * 7919 % 70000;
        assert_bytes(file, data + from, n, from);
    }
    assert_bytes(file, data, CHUNKS * CHUNK - 100, 0);
}
END_TEST

START_TEST(damage_does_not_spread)
{
    struct cowfs_ioc_seal total;
    struct inode *other = make(fs, ROOT_INO, "other", S_IFREG | 0644);
    flip(file, 7);
    ck_assert_uint_eq(scrub().damaged, 1);
    /* A part of the chunk cannot be changed, nor its bytes be copied. */
    ck_assert_int_eq(try_write(file, "x", 1, 7 * CHUNK), -EIO);
    ck_assert_int_eq(file_copy_range(file, 7 * CHUNK, other, 5, CHUNK), -EIO);
    ck_assert_uint_eq(size_of(other), 0);
    /* Shared whole it is as damaged there as here. */
    ck_assert_int_eq(file_copy_range(file, 7 * CHUNK, other, 0, CHUNK), CHUNK);
    ck_assert_int_eq(read_at(other, CHUNK, 0), -EIO);
    /* Good bytes of that content are not merged with it, and take its place. */
    g_autofree uint8_t *data = g_malloc(CHUNKS * CHUNK);
    fill(data, CHUNKS * CHUNK, 1);
    write_at(other, data + 7 * CHUNK, CHUNK, CHUNK);
    seal_all(other, &total);
    ck_assert_uint_eq(total.hashed, CHUNK);
    ck_assert_uint_eq(total.deduplicated, 0);
    assert_bytes(other, data + 7 * CHUNK, CHUNK, CHUNK);
    write_at(other, data + 7 * CHUNK, CHUNK, 2 * CHUNK);
    seal_all(other, &total);
    ck_assert_uint_eq(total.deduplicated, CHUNK);
    /* Written as a whole it is good again, even by the bytes that it had. */
    write_at(file, data + 7 * CHUNK, CHUNK, 7 * CHUNK);
    assert_filled(file, CHUNKS * CHUNK - 100, 0, 1);
    write_at(other, data, CHUNK, 0);
    inode_put(other);
    ck_assert_uint_eq(scrub().damaged, 0);
}
END_TEST

START_TEST(what_is_freed_meanwhile_is_no_damage)
{
    struct cowfs_ioc_scrub io = {.version = COWFS_IOCTL_VERSION, .length = 100 * CHUNK};
    ck_assert_int_eq(scrub_step(fs, &io), 0);
    ck_assert_uint_ne(io.next, 0);
    /* The hashes of what is gone stay on record for a while. */
    ck_assert_int_eq(file_truncate(file, 150 * CHUNK), 0);
    commit();
    txn_wait_reclaim(fs->txn);
    uint64_t checked = io.checked;
    while (io.next) {
        io.position = io.next;
        ck_assert_int_eq(scrub_step(fs, &io), 0);
        checked += io.checked;
    }
    ck_assert_uint_eq(io.damaged, 0);
    ck_assert_uint_eq(checked, 150 * CHUNK);
}
END_TEST

START_TEST(a_store_that_is_only_read_can_be_scrubbed)
{
    inode_put(file);
    close_store(fs);
    fs = open_store_with((struct fs_config){.read_only = true});
    file = open_file("file");
    ck_assert_uint_eq(scrub().damaged, 0);
    g_autofree char *name = g_build_filename(store_path, "segments", "00000001", NULL);
    ck_assert_int_eq(truncate(name, 100 * CHUNK), 0);
    ck_assert_uint_eq(scrub().damaged, CHUNKS - 100);
    ck_assert_int_eq(read_at(file, 1, 100 * CHUNK), -EIO);
    /* Nothing of that is on record. */
    reopen_with((struct fs_config){0});
    ck_assert_uint_eq(damage_of(file).count, 0);
    ck_assert_int_eq(file_truncate(file, 0), 0);
}
END_TEST

START_TEST(files_are_told_by_their_path)
{
    uint64_t a = make_dir(fs, ROOT_INO, "a"), b = make_dir(fs, a, "b");
    uint64_t deep = make_file(fs, b, "deep");
    g_autofree char *path = names_path_of(fs, deep);
    ck_assert_str_eq(path, "a/b/deep");
    g_autofree char *top = names_path_of(fs, file->ino);
    ck_assert_str_eq(top, "file");
    ck_assert_ptr_null(names_path_of(fs, 12345));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("scrub");
    TCase *tests = tcase_create("scrub");
    tcase_add_checked_fixture(tests, setup_sealed, teardown_content);
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, nothing_is_wrong_with_a_good_store);
    tcase_add_test(tests, a_flipped_bit_is_an_error_in_all_who_have_it);
    tcase_add_test(tests, what_is_right_again_can_be_read_again);
    tcase_add_test(tests, more_damage_than_one_answer_can_hold);
    tcase_add_test(tests, a_lost_segment_file_is_damage);
    tcase_add_test(tests, with_verify_each_read_is_checked);
    tcase_add_test(tests, unaligned_reads_give_the_same_bytes_with_verify);
    tcase_add_test(tests, damage_does_not_spread);
    tcase_add_test(tests, what_is_freed_meanwhile_is_no_damage);
    tcase_add_test(tests, a_store_that_is_only_read_can_be_scrubbed);
    tcase_add_test(tests, files_are_told_by_their_path);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
