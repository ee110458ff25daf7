// SPDX-License-Identifier: Apache-2.0
/*
 * Views: what is written by a mapping is there for whoever reads the file, and the other way
 * round; a file that somebody cuts is an error and no death; and what is deleted is not kept
 * by a mapping.
 */
#include "tests/unit/content_fixture.h"

#include "tests/quiet_log.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

enum { BYTES = 3 << 20 }; /* two leaves, so it has a home */

static uint8_t *back;

static void setup_view(void)
{
    setup();
    fs = open_store_with((struct fs_config){.create = true, .view_bytes = 1});
    file = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    back = g_malloc(BYTES);
}

static void teardown_view(void)
{
    g_free(back);
    teardown_content();
}

static bool on_tmpfs(void)
{
    struct statfs st;
    return statfs(scratch, &st) == 0 && st.f_type == TMPFS_MAGIC;
}

static struct extent extent_at(uint64_t index)
{
    struct extent e;
    ck_assert_int_eq(map_lookup(fs->nodes, &file->attr.map, index, 1, false, &e), 0);
    ck_assert_uint_ne(e.chunk, 0);
    return e;
}

/* The segment file with that chunk. */
static int open_segment(chunk_t chunk)
{
    char name[32];
    snprintf(name, sizeof(name), "%08x", (unsigned)(chunk >> 32));
    g_autofree char *path = g_build_filename(store_path, "segments", name, NULL);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    return fd;
}

/* Of the store. */
static unsigned mapped_files(bool deleted)
{
    g_autofree char *maps = NULL;
    unsigned n = 0;
    ck_assert(g_file_get_contents("/proc/self/maps", &maps, NULL, NULL));
    g_auto(GStrv) lines = g_strsplit(maps, "\n", -1);
    for (char **line = lines; *line; line++)
        n += strstr(*line, scratch) && (!deleted || strstr(*line, "(deleted)"));
    return n;
}

START_TEST(bytes_come_back)
{
    write_filled(file, BYTES, 0, 1);
    ck_assert_uint_eq(mapped_files(false), 0); /* new chunks are written by a system call */
    write_filled(file, BYTES, 0, 2);
    if (on_tmpfs())
        ck_assert_uint_ge(mapped_files(false), 1);
    assert_filled(file, BYTES, 0, 2);
    /* As others read the segment's file: scrub, passthrough, the next daemon. */
    struct extent e = extent_at(0);
    ck_assert_int_eq(segments_read(fs->segments, e.chunk, 0, back, 4 * CHUNK), 0);
    write_at(file, back, 4 * CHUNK, 100 * CHUNK);
    assert_bytes(file, back, 4 * CHUNK, 100 * CHUNK);
    /* Edges in the middle of chunks, of each alignment. */
    for (unsigned i = 1; i < 70; i++) {
        size_t n = 3 * CHUNK - 5 * i;
        fill(back, n, i);
        write_at(file, back, n, 200 * CHUNK + i);
        assert_bytes(file, back, n, 200 * CHUNK + i);
    }
}
END_TEST

START_TEST(dropping_takes_nothing_away)
{
    write_filled(file, BYTES, 0, 1);
    write_filled(file, BYTES, 0, 2);
    segments_drop_views(fs->segments, true);
    assert_filled(file, BYTES, 0, 2);
    struct segments_view view;
    if (!segments_view(fs->segments, extent_at(0).chunk, 0, CHUNK, &view))
        return;
    segments_drop_views(fs->segments, true);
    ck_assert(segments_view_copy(view.data, back, CHUNK));
    segments_view_end(&view);
    assert_bytes(file, back, CHUNK, 0);
}
END_TEST

/* The last chunk of a flat file may end before its page does. */
START_TEST(nothing_is_written_behind_the_end_of_the_segments_file)
{
    write_filled(file, BYTES, 0, 1);
    write_filled(file, BYTES, 0, 2);
    uint64_t last = BYTES / CHUNK - 1;
    int fd = open_segment(extent_at(last).chunk);
    struct stat st;
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_int_eq(ftruncate(fd, BYTES - 1000), 0);
    write_filled(file, CHUNK, last * CHUNK, 3);
    assert_filled(file, CHUNK, last * CHUNK, 3);
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_int_eq(st.st_size, BYTES);
    close(fd);
}
END_TEST

START_TEST(a_file_that_is_cut_is_an_error)
{
    struct segments_view view;
    write_filled(file, BYTES, 0, 1);
    int fd = open_segment(extent_at(0).chunk);
    if (segments_view(fs->segments, extent_at(0).chunk, 0, 16 * CHUNK, &view)) {
        ck_assert_int_eq(ftruncate(fd, 0), 0);
        ck_assert(!segments_view_copy(view.data, back, 16 * CHUNK));
        segments_view_end(&view);
    }
    ck_assert_int_eq(ftruncate(fd, 0), 0);
    ck_assert_int_eq(file_read(file, back, BYTES, 0), -EIO);
    write_filled(file, BYTES, 0, 2);
    assert_filled(file, BYTES, 0, 2);
    close(fd);
}
END_TEST

static bool see_pieces(void *arg, const struct iovec *iov, unsigned count, size_t bytes)
{
    size_t sum = 0;
    for (unsigned i = 0; i < count; i++) {
        memcpy(back + sum, iov[i].iov_base, iov[i].iov_len);
        sum += iov[i].iov_len;
    }
    ck_assert_uint_eq(sum, bytes);
    (*(unsigned *)arg)++;
    return true;
}

START_TEST(pieces_are_the_file)
{
    unsigned sent = 0;
    g_autofree uint8_t *buffer = g_malloc(BYTES), *whole = g_malloc(BYTES);
    write_filled(file, BYTES, 0, 1);
    inode_put(clone_as(file, "clone"));
    for (unsigned i = 0; i < 60; i++) /* scattered: more pieces than there is room for */
        write_filled(file, CHUNK, (3 + 7 * i) * CHUNK, i + 2);
    ck_assert_int_eq(file_fallocate(file, 3, 20 * CHUNK, 2 * CHUNK), 0); /* a hole */
    ck_assert_int_eq(file_read(file, whole, BYTES, 0), BYTES);
    ck_assert_int_eq(file_read_send(file, buffer, BYTES, 0, see_pieces, &sent), BYTES);
    ck_assert_uint_eq(sent, 1);
    ck_assert_mem_eq(back, whole, BYTES);
    ck_assert_int_eq(file_read_send(file, buffer, BYTES, BYTES - 10, see_pieces, &sent), 10);
    ck_assert_mem_eq(back, whole + BYTES - 10, 10);
    ck_assert_int_eq(file_read_send(file, buffer, BYTES, BYTES, see_pieces, &sent), 0);
    ck_assert_uint_eq(sent, 3);
}
END_TEST

START_TEST(a_mapping_keeps_no_space)
{
    struct stat st;
    write_filled(file, BYTES, 0, 1);
    write_filled(file, BYTES, 0, 2);
    int fd = open_segment(extent_at(BYTES / CHUNK - 1).chunk);
    ck_assert_int_eq(file_truncate(file, 0), 0);
    do {
        ck_assert_int_eq(fs_commit(fs), 0);
        g_usleep(10000);
        ck_assert_int_eq(fstat(fd, &st), 0);
    } while (st.st_nlink > 0 || mapped_files(true) > 0);
    close(fd);
}
END_TEST

static atomic_bool stop;

static void *drop_main(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop))
        segments_drop_views(fs->segments, true);
    return NULL;
}

START_TEST(views_are_dropped_under_readers_and_writers)
{
    pthread_t dropper;
    atomic_store(&stop, false);
    write_filled(file, BYTES, 0, 1);
    ck_assert_int_eq(pthread_create(&dropper, NULL, drop_main, NULL), 0);
    for (unsigned i = 2; i < 12; i++) {
        write_filled(file, BYTES, 0, i);
        assert_filled(file, BYTES, 0, i);
    }
    atomic_store(&stop, true);
    pthread_join(dropper, NULL);
}
END_TEST

/* The warnings are expected here, and only hide what is not. */
int main(void)
{
    g_log_set_default_handler(log_nothing, NULL);
    Suite *suite = suite_create("view");
    TCase *tc = tcase_create("view");
    tcase_add_checked_fixture(tc, setup_view, teardown_view);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, bytes_come_back);
    tcase_add_test(tc, dropping_takes_nothing_away);
    tcase_add_test(tc, nothing_is_written_behind_the_end_of_the_segments_file);
    tcase_add_test(tc, a_file_that_is_cut_is_an_error);
    tcase_add_test(tc, pieces_are_the_file);
    tcase_add_test(tc, a_mapping_keeps_no_space);
    tcase_add_test(tc, views_are_dropped_under_readers_and_writers);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
