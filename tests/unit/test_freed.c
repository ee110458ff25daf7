// SPDX-License-Identifier: Apache-2.0
/*
 * Freed space shows no old bytes. A file full of one byte that nobody else writes loses it by
 * every road there is; then it is neither in what files show, also of parts that were never
 * written, nor anywhere in the segments' files.
 */
#include "tests/unit/content_fixture.h"

#include "cowfs/delete.h"
#include "cowfs/flat.h"
#include "cowfs/journal.h"
#include "tests/model/disk/disk.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { SECRET = 0xA7, LABEL = 8, PIECE = 3001 };

/* Of the store, and of the secret file: with and without a segment of its own, each with an end
 * inside a chunk. */
static const struct shape {
    uint32_t chunk_bytes;
    uint64_t bytes;
} shapes[] = {{4096, 300001}, {4096, (3 << 20) + 777}, {16384, 300001}, {65536, 300001}};
static const struct shape *shape;

/* The names that files have here. */
static const char *const names[] = {"file",  "clone", "other", "short", "grown",
                                    "given", "steps", "large", "over"};

static uint64_t count_in(const void *data, uint64_t bytes)
{
    const uint8_t *p = data;
    uint64_t n = 0;
    for (uint64_t i = 0; i < bytes; i++)
        n += p[i] == SECRET;
    return n;
}

/* Chunks that are not equal, but for who fills them twice. */
static uint8_t *secret_new(uint64_t bytes)
{
    uint8_t *data = g_malloc(bytes);
    memset(data, SECRET, bytes);
    for (uint64_t at = 0; at + LABEL < bytes; at += 4096) {
        char label[LABEL + 1];
        snprintf(label, sizeof(label), "%08x", (unsigned)(at / 4096));
        memcpy(data + at, label, LABEL);
    }
    return data;
}

static void fill_secret(struct inode *inode)
{
    g_autofree uint8_t *data = secret_new(shape->bytes);
    for (uint64_t at = 0; at < shape->bytes; at += 128 << 10)
        write_at(inode, data + at, MIN(shape->bytes - at, 128 << 10), at);
}

/* Random bytes, but for the one. */
static void fill_other(struct inode *inode, uint64_t bytes)
{
    g_autofree uint8_t *data = g_malloc(bytes);
    fill(data, bytes, 7);
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = data[i] == SECRET ? 'x' : data[i];
    write_at(inode, data, bytes, 0);
}

static uint64_t secret_bytes(void)
{
    g_autofree uint8_t *data = secret_new(shape->bytes);
    return count_in(data, shape->bytes);
} /* NOLINT(clang-analyzer-unix.Malloc): freed by g_autofree */

/* ---- where it must not be ---- */

/* In the files below, whether a chunk is there has an owner or not. */
static uint64_t count_below(void)
{
    static uint8_t data[1 << 16];
    g_autofree char *path = g_build_filename(store_path, "segments", NULL);
    GDir *dir = g_dir_open(path, 0, NULL);
    ck_assert_ptr_nonnull(dir);
    uint64_t total = 0;
    for (const char *name; (name = g_dir_read_name(dir));) {
        g_autofree char *segment = g_build_filename(path, name, NULL);
        int fd = open(segment, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue; /* unlinked meanwhile */
        off_t at = 0;
        while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
            ssize_t n = pread(fd, data, sizeof(data), at);
            ck_assert_int_gt(n, 0);
            total += count_in(data, (uint64_t)n);
            at += n;
        }
        close(fd);
    }
    g_dir_close(dir);
    return total;
}

static void settle(void)
{
    reaper_wait(fs->reaper);
    commit();
    txn_wait_reclaim(fs->txn);
}

/* As who maps the file itself sees it, up to the end of the last page. */
static uint64_t count_flat(struct inode *inode)
{
    int fd;
    uint32_t home;
    if (flat_pin(inode, &fd, &home) != 0)
        return 0;
    uint64_t bytes = (size_of(inode) + 4095) / 4096 * 4096;
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(map, MAP_FAILED);
    uint64_t n = count_in(map, bytes);
    munmap(map, bytes);
    flat_unpin(fs, home);
    return n;
}

static uint64_t count_read(const char *name)
{
    struct inode *inode;
    if (names_lookup(fs, ROOT_INO, name, &inode) != 0)
        return 0;
    uint64_t size = size_of(inode);
    g_autofree uint8_t *data = g_malloc(size + 4096);
    /* Asked for more than there is. */
    ck_assert_int_eq(file_read(inode, data, size + 4096, 0), (ssize_t)size);
    uint64_t n = count_in(data, size) + count_flat(inode);
    inode_put(inode);
    return n;
}

/* What others make afterwards, of parts of chunks, and of parts that nobody writes. */
static void use_again(void)
{
    uint64_t end = shape->bytes + 10000;
    struct inode *f = make(fs, ROOT_INO, "short", S_IFREG | 0644);
    for (uint64_t at = 1; at < end; at += 10007)
        write_at(f, "xxx", 1 + at % 3, at);
    inode_put(f);
    f = make(fs, ROOT_INO, "grown", S_IFREG | 0644);
    write_at(f, "x", 1, 0);
    ck_assert_int_eq(file_truncate(f, end + 1), 0);
    write_at(f, "x", 1, end + 5000);
    inode_put(f);
    f = make(fs, ROOT_INO, "given", S_IFREG | 0644);
    ck_assert_int_eq(file_fallocate(f, 0, 0, end), 0);
    for (uint64_t at = 5; at < end; at += 70001)
        write_at(f, "xx", 2, at);
    ck_assert_int_eq(file_fallocate(f, FALLOC_FL_ZERO_RANGE, 333, end), 0);
    inode_put(f);
    f = make(fs, ROOT_INO, "steps", S_IFREG | 0644);
    for (uint64_t size = 0; size < end / 4; size += 5003) {
        write_at(f, "x", 1, size);
        ck_assert_int_eq(file_truncate(f, size + 5003), 0);
    }
    inode_put(f);
    /* With a segment of its own, of whose file not all is written. */
    f = make(fs, ROOT_INO, "large", S_IFREG | 0644);
    for (uint64_t at = 0; at < (3 << 20); at += 200003)
        write_at(f, "xxx", 3, at);
    inode_put(f);
}

static void assert_nowhere(void)
{
    settle();
    ck_assert_uint_eq(count_below(), 0);
    use_again();
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        ck_assert_msg(count_read(names[i]) == 0, "'%s' shows it", names[i]);
    settle();
    ck_assert_uint_eq(count_below(), 0);
}

/* ---- the roads ---- */

static void overwrite(struct inode *inode)
{
    char data[PIECE];
    memset(data, 'x', sizeof(data));
    for (uint64_t at = 0; at < shape->bytes; at += PIECE)
        write_at(inode, data, MIN(shape->bytes - at, PIECE), at);
}

static void unlink_name(const char *name)
{
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, name), 0);
}

static void by_overwriting(void)
{
    overwrite(file);
}

static void by_overwriting_clones(void)
{
    struct inode *clone = clone_as(file, "clone");
    overwrite(clone);
    settle();
    ck_assert_uint_eq(count_below(), secret_bytes());
    overwrite(file);
    inode_put(clone);
}

static void by_copying_over(void)
{
    struct inode *other = make(fs, ROOT_INO, "other", S_IFREG | 0644);
    fill_other(other, shape->bytes);
    /* Aligned, and not. */
    uint64_t half = shape->bytes / 2;
    ck_assert_int_eq(file_copy_range(other, 0, file, 0, half), (ssize_t)half);
    ck_assert_int_eq(file_copy_range(other, 1, file, half, shape->bytes - half),
                     (ssize_t)(shape->bytes - half));
    inode_put(other);
}

static void in_pieces(int mode)
{
    for (uint64_t at = 0; at < shape->bytes; at += PIECE)
        ck_assert_int_eq(file_fallocate(file, mode | FALLOC_FL_KEEP_SIZE, at, PIECE), 0);
}

static void by_punching(void)
{
    in_pieces(FALLOC_FL_PUNCH_HOLE);
}

static void by_zeroing(void)
{
    in_pieces(FALLOC_FL_ZERO_RANGE);
}

static void by_punching_at_once(void)
{
    ck_assert_int_eq(
        file_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, shape->bytes), 0);
}

static void by_truncating(void)
{
    /* Each time what is behind the end is gone, however it comes back. */
    for (uint64_t size = shape->bytes; size > 100000; size -= size / 3) {
        ck_assert_int_eq(file_truncate(file, size), 0);
        if (size % 2)
            ck_assert_int_eq(file_truncate(file, shape->bytes), 0);
        else
            write_at(file, "x", 1, shape->bytes - 1);
        g_autofree uint8_t *data = g_malloc(shape->bytes);
        ck_assert_int_eq(file_read(file, data, shape->bytes, 0), (ssize_t)shape->bytes);
        ck_assert_uint_eq(count_in(data + size, shape->bytes - size), 0);
    }
    ck_assert_int_eq(file_truncate(file, 1000), 0);
    /* In the chunk that is left there are the file's bytes only. */
    settle();
    ck_assert_uint_eq(count_below(), 1000 - LABEL);
    ck_assert_int_eq(file_fallocate(file, 0, 0, shape->bytes), 0);
    fill_other(file, 1000);
    ck_assert_int_eq(file_truncate(file, 0), 0);
    ck_assert_int_eq(file_truncate(file, shape->bytes), 0);
}

static void by_unlinking(void)
{
    inode_put(clone_as(file, "clone"));
    unlink_name("clone");
    unlink_name("file");
}

static void by_renaming_over(void)
{
    inode_put(make(fs, ROOT_INO, "over", S_IFREG | 0644));
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "over", ROOT_INO, "file", 0), 0);
}

static void by_delete_tree(void)
{
    struct cowfs_ioc_delete io = {0};
    g_autoptr(GArray) inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    uint64_t dir = make_dir(fs, ROOT_INO, "dir");
    ck_assert_int_eq(names_rename(fs, ROOT_INO, "file", dir, "file", 0), 0);
    ck_assert_int_eq(delete_tree(fs, ROOT_INO, "dir", &root_caller, &io, inos), 0);
}

static void by_packing(void)
{
    struct inode *other = make(fs, ROOT_INO, "other", S_IFREG | 0644);
    uint64_t next = 0, moved;
    g_autofree uint8_t *data = secret_new(shape->bytes);
    /* Behind a clone's chunks, so it is elsewhere than in order. */
    fill_other(other, shape->bytes);
    struct inode *clone = clone_as(other, "clone");
    write_at(clone, data, shape->bytes, 0);
    by_punching_at_once();
    do {
        ck_assert_int_eq(flat_pack_part(clone, next, 1 << 20, &next, &moved), 0);
    } while (next);
    settle();
    ck_assert_uint_eq(count_below(), secret_bytes());
    unlink_name("clone");
    unlink_name("other");
    inode_put(clone);
    inode_put(other);
}

static void by_sealing(void)
{
    struct cowfs_ioc_seal total;
    struct inode *other = make(fs, ROOT_INO, "other", S_IFREG | 0644);
    fill_secret(other);
    settle();
    ck_assert_uint_eq(count_below(), 2 * secret_bytes());
    seal_all(file, &total);
    seal_all(other, &total);
    settle();
    ck_assert_uint_eq(count_below(), secret_bytes());
    overwrite(other);
    by_punching();
    inode_put(other);
}

static const struct road {
    const char *name;
    void (*fn)(void);
} roads[] = {
    {"overwriting", by_overwriting},
    {"overwriting clones", by_overwriting_clones},
    {"copying over", by_copying_over},
    {"punching", by_punching},
    {"punching at once", by_punching_at_once},
    {"zeroing", by_zeroing},
    {"truncating", by_truncating},
    {"unlinking", by_unlinking},
    {"renaming over", by_renaming_over},
    {"deleting", by_delete_tree},
    {"packing", by_packing},
    {"sealing", by_sealing},
};

static struct fs *open_shaped(int journal_fd)
{
    return open_store_with((struct fs_config){.create = true,
                                              .chunk_bytes = shape->chunk_bytes,
                                              .commit_interval_ms = 3600 * 1000,
                                              .journal_fd = journal_fd});
}

static void open_with_file(int journal_fd)
{
    fs = open_shaped(journal_fd);
    file = make(fs, ROOT_INO, "file", S_IFREG | 0644);
}

static void end(void)
{
    close_store(fs);
    assert_sound();
    ck_assert_uint_eq(count_below(), 0);
}

/* Committed before, or never. */
static void take_road(const struct road *road, bool committed)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(shapes); i++) {
        shape = &shapes[i];
        fprintf(stderr, "%s, %u, %" PRIu64 "\n", road->name, shape->chunk_bytes, shape->bytes);
        open_with_file(-1);
        fill_secret(file);
        if (committed)
            commit();
        /* More where the beginning was moved to a segment of the file's own. */
        ck_assert_uint_ge(count_below(), secret_bytes());
        road->fn();
        inode_put(file);
        assert_nowhere();
        end();
        remove_tree(store_path);
    }
}

START_TEST(committed_and_freed)
{
    take_road(&roads[_i], true);
}
END_TEST

START_TEST(freed_before_any_commit)
{
    take_road(&roads[_i], false);
}
END_TEST

/* ---- crashes ---- */

static int journal_fd;

static void reopened_shows_nothing(void)
{
    fs = open_shaped(journal_fd);
    assert_nowhere();
    end();
}

/* Nothing is recorded that the next process would do again. */
static void nothing_after(void (*crash)(void *arg), const struct shape *of)
{
    journal_fd = -1;
    shape = of;
    in_child(crash, NULL);
    reopened_shows_nothing();
}

/* The commit has only the end of "file": so the segment is one that stays, and the slots below
 * are of a group that is in use. */
static void commit_first(void)
{
    open_with_file(-1);
    write_at(file, "xxx", 3, shape->bytes + 100000);
    commit();
}

/* What came later is undone, and so are its bytes. */
static void crash_uncommitted(void *arg)
{
    (void)arg;
    commit_first();
    fill_secret(file);
    _exit(count_below() >= secret_bytes() ? 0 : 1);
}

START_TEST(rolled_back)
{
    nothing_after(crash_uncommitted, &shapes[_i]);
}
END_TEST

/* A commit that failed counts as none. */
static void crash_failed(void *arg)
{
    (void)arg;
    disk_record(NULL, scratch);
    commit_first();
    fill_secret(file);
    disk_fail(0, UINT64_MAX, EIO);
    _exit(fs_commit(fs) < 0 ? 0 : 1);
}

START_TEST(commit_failed)
{
    nothing_after(crash_failed, &shapes[_i]);
}
END_TEST

/* What was appended to a chunk is undone, but for its bytes: those that the file shows when it grows
 * again, by whatever way, are others. */
static const char *const tails[] = {"grown", "given", "steps", "large", "over"};

static void crash_appended(void *arg)
{
    (void)arg;
    static uint8_t secret[3000];
    struct inode *f[G_N_ELEMENTS(tails)];
    memset(secret, SECRET, sizeof(secret));
    fs = open_shaped(-1);
    for (unsigned i = 0; i < G_N_ELEMENTS(tails); i++) {
        f[i] = make(fs, ROOT_INO, tails[i], S_IFREG | 0644);
        fill_other(f[i], 999);
    }
    commit();
    for (unsigned i = 0; i < G_N_ELEMENTS(tails); i++)
        write_at(f[i], secret, sizeof(secret), 999);
    _exit(count_below() == G_N_ELEMENTS(tails) * sizeof(secret) ? 0 : 1);
}

START_TEST(append_undone)
{
    shape = &shapes[_i];
    in_child(crash_appended, NULL);
    fs = open_shaped(-1);
    for (unsigned i = 0; i < G_N_ELEMENTS(tails); i++) {
        struct inode *f = open_file(tails[i]);
        uint64_t size = size_of(f);
        ck_assert_uint_eq(size, 999);
        if (i == 0)
            ck_assert_int_eq(file_truncate(f, 5000), 0);
        else if (i == 1)
            ck_assert_int_eq(file_fallocate(f, 0, 0, 5000), 0);
        else if (i == 2)
            write_at(f, "x", 1, 1500);
        else if (i == 3)
            write_at(f, "x", 1, 70000);
        else
            ck_assert_int_eq(file_copy_range(f, 10, f, 2000, 20), 20);
        inode_put(f);
        ck_assert_msg(count_read(tails[i]) == 0, "'%s' shows it", tails[i]);
    }
    close_store(fs);
    assert_sound();
}
END_TEST

/* With a journal what was freed is freed again by the next process; before, or after the commit
 * after which it is punched. */
struct death {
    const struct road *road;
    bool committed_before, committed_after;
};

static void crash_freed(void *arg)
{
    const struct death *death = arg;
    open_with_file(journal_fd);
    fill_secret(file);
    if (death->committed_before)
        commit();
    death->road->fn();
    if (death->committed_after)
        commit();
    _exit(0);
}

START_TEST(replayed)
{
    for (unsigned how = 0; how < 4; how++) {
        struct death death = {&roads[_i], how & 1, how & 2};
        /* Each road meets two of them. */
        shape = &shapes[(how + (unsigned)_i) % G_N_ELEMENTS(shapes) | 1];
        journal_fd = journal_memory_new();
        ck_assert_int_gt(journal_fd, 0);
        /* Not here, since there are threads afterwards, which the next child would not have. */
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
            in_child(crash_freed, &death);
            reopened_shows_nothing();
            _exit(0);
        }
        int status;
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_msg(status == 0, "%s, %u, %u", death.road->name, shape->chunk_bytes, how);
        close(journal_fd);
        remove_tree(store_path);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("freed");
    TCase *tc = tcase_create("freed");
    int roads_count = (int)G_N_ELEMENTS(roads), shapes_count = (int)G_N_ELEMENTS(shapes);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, committed_and_freed, 0, roads_count);
    tcase_add_loop_test(tc, freed_before_any_commit, 0, roads_count);
    tcase_add_loop_test(tc, rolled_back, 0, shapes_count);
    tcase_add_loop_test(tc, commit_failed, 0, shapes_count);
    tcase_add_loop_test(tc, append_undone, 0, shapes_count);
    tcase_add_loop_test(tc, replayed, 0, roads_count);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
