// SPDX-License-Identifier: Apache-2.0
/* Inodes: their records, their cache, and what becomes of them when deleted. */
#include "fs_fixture.h"

#include "cowfs/file.h"
#include "cowfs/meta.h"
#include "tests/unit/suite.h"

/* ---- the record ---- */

static const uint32_t types[] = {S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK};

static struct inode_attr sample(uint32_t type)
{
    struct inode_attr attr = {
        .mode = type | 07654,
        .uid = UINT32_MAX,
        .gid = 4711,
        .nlink = 3,
        .size_bytes = 12345678901,
        .btime = {1700000000, 999999999},
        .mtime = {-5, 0},
        .ctime = {1700000007, 1},
        .atime = {INT64_MAX, 2},
        .has_xattrs = true,
        .linkable = S_ISREG(type),
    };
    if (S_ISREG(type))
        attr.map = (struct map){.root = UINT64_MAX, .levels = NODE_LEVEL_MAX};
    if (S_ISDIR(type))
        attr.parent = 77;
    if (S_ISCHR(type) || S_ISBLK(type))
        attr.rdev = 0xfedcba9876543210;
    if (S_ISLNK(type)) {
        attr.target = g_strdup("../somewhere else");
        attr.size_bytes = strlen(attr.target);
    }
    return attr;
}

static void assert_time_eq(struct timespec a, struct timespec b)
{
    ck_assert_int_eq(a.tv_sec, b.tv_sec);
    ck_assert_int_eq(a.tv_nsec, b.tv_nsec);
}

static void assert_attr_eq(const struct inode_attr *a, const struct inode_attr *b)
{
    ck_assert_uint_eq(a->mode, b->mode);
    ck_assert_uint_eq(a->uid, b->uid);
    ck_assert_uint_eq(a->gid, b->gid);
    ck_assert_uint_eq(a->nlink, b->nlink);
    ck_assert_uint_eq(a->rdev, b->rdev);
    ck_assert_uint_eq(a->size_bytes, b->size_bytes);
    assert_time_eq(a->atime, b->atime);
    assert_time_eq(a->mtime, b->mtime);
    assert_time_eq(a->ctime, b->ctime);
    assert_time_eq(a->btime, b->btime);
    ck_assert_uint_eq(a->parent, b->parent);
    ck_assert_uint_eq(a->map.root, b->map.root);
    ck_assert_uint_eq(a->map.levels, b->map.levels);
    ck_assert_int_eq(a->has_capability, b->has_capability);
    ck_assert_int_eq(a->has_xattrs, b->has_xattrs);
    ck_assert_int_eq(a->linkable, b->linkable);
    ck_assert_pstr_eq(a->target, b->target);
}

START_TEST(a_record_comes_back_as_it_was)
{
    struct inode_attr attr = sample(types[_i]), back;
    struct wbuf record = {0};
    inode_encode(&attr, &record);
    ck_assert_int_eq(inode_decode(record.data, record.len, &back), 0);
    assert_attr_eq(&attr, &back);
    g_free(back.target);
    g_free(attr.target);
    wbuf_free(&record);
}
END_TEST

START_TEST(a_young_file_has_a_short_record)
{
    struct timespec now = {1790000000, 123456789};
    struct inode_attr attr = {.mode = S_IFREG | 0644,
                              .uid = 1000,
                              .gid = 1000,
                              .nlink = 1,
                              .atime = now,
                              .mtime = now,
                              .ctime = now,
                              .btime = now};
    struct wbuf record = {0};
    inode_encode(&attr, &record);
    ck_assert_uint_le(record.len, 40);
    wbuf_free(&record);
}
END_TEST

START_TEST(damaged_records_are_refused)
{
    struct inode_attr attr = sample(types[_i]), back;
    struct wbuf record = {0};
    inode_encode(&attr, &record);
    /* Cut anywhere; a symlink's target is the one thing whose length is elsewhere. */
    for (size_t len = 0; len < record.len; len++) {
        g_autofree uint8_t *cut = g_malloc(len + 1); /* exactly that long, for ASan */
        memcpy(cut, record.data, len);
        ck_assert_int_eq(inode_decode(cut, len, &back), -EUCLEAN);
        ck_assert_ptr_null(back.target);
    }
    wbuf_put_u8(&record, 0);
    ck_assert_int_eq(inode_decode(record.data, record.len, &back), -EUCLEAN);
    record.len--;
    /* Any byte, any value: decoded or refused, but nothing worse. */
    GRand *rand = g_rand_new_with_seed(1);
    for (int i = 0; i < 20000; i++) {
        g_autofree uint8_t *bad = g_memdup2(record.data, record.len);
        bad[g_rand_int_range(rand, 0, (gint32)record.len)] = (uint8_t)g_rand_int(rand);
        int error = inode_decode(bad, record.len, &back);
        ck_assert(error == 0 || error == -EUCLEAN);
        g_free(back.target);
    }
    g_rand_free(rand);
    g_free(attr.target);
    wbuf_free(&record);
}
END_TEST

START_TEST(the_meta_record_comes_back_as_it_was)
{
    struct meta meta = {.clean = _i,
                        .next_ino = UINT64_MAX,
                        .next_node_id = 2,
                        .inode_count = 3,
                        .chunks_live = 1 << 20,
                        .domains = _i,
                        .has_public = !_i,
                        .merges = 5};
    struct meta back;
    struct wbuf record = {0};
    meta_encode(&meta, &record);
    ck_assert_int_eq(meta_decode(record.data, record.len, &back), 0);
    ck_assert_int_eq(meta.clean, back.clean);
    ck_assert_int_eq(meta.domains, back.domains);
    ck_assert_int_eq(meta.has_public, back.has_public);
    ck_assert_uint_eq(meta.next_ino, back.next_ino);
    ck_assert_uint_eq(meta.next_node_id, back.next_node_id);
    ck_assert_uint_eq(meta.inode_count, back.inode_count);
    ck_assert_uint_eq(meta.chunks_live, back.chunks_live);
    ck_assert_uint_eq(meta.merges, back.merges);
    for (size_t len = 0; len < record.len; len++)
        ck_assert_int_eq(meta_decode(record.data, len, &back), -EUCLEAN);
    wbuf_free(&record);
}
END_TEST

/* ---- the cache ---- */

START_TEST(attributes_survive_closing)
{
    struct fs *fs = open_store();
    struct inode_attr want[G_N_ELEMENTS(types)];
    uint64_t ino[G_N_ELEMENTS(types)];
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        g_autofree char *name = g_strdup_printf("inode%zu", i);
        struct inode *inode = make(fs, ROOT_INO, name, types[i] | 0640);
        ino[i] = inode->ino;
        want[i] = inode->attr;
        want[i].target = g_strdup(inode->attr.target);
        inode_put(inode);
    }
    close_store(fs);
    assert_sound();
    fs = open_store();
    ck_assert(!fs->opened_unclean);
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        struct inode *inode = get(fs, ino[i]);
        assert_attr_eq(&want[i], &inode->attr);
        inode_put(inode);
        g_free(want[i].target);
    }
    struct inode *next = make(fs, ROOT_INO, "next", S_IFREG);
    ck_assert_uint_eq(next->ino, ino[G_N_ELEMENTS(types) - 1] + 1);
    inode_put(next);
    close_store(fs);
}
END_TEST

START_TEST(missing_and_damaged_inodes_give_errors)
{
    struct fs *fs = open_store();
    struct inode *inode = (struct inode *)fs;
    ck_assert_int_eq(inode_get(fs->inodes, 4711, &inode), -ENOENT);
    ck_assert_ptr_null(inode);
    uint8_t key[KEY_MAX];
    metadb_put(fs->db, key, key_u64(key, KEY_INODE, 4711), "nonsense", 8);
    ck_assert_int_eq(inode_get(fs->inodes, 4711, &inode), -EUCLEAN);
    close_store(fs);
}
END_TEST

START_TEST(the_cache_is_bounded_but_for_what_is_in_use)
{
    enum { N = 40000, KNOWN = 2000 };
    struct fs *fs = open_store();
    uint64_t dir = make_dir(fs, ROOT_INO, "dir");
    uint64_t first = 0, last = 0;
    for (int i = 0; i < N; i++) {
        char name[16];
        snprintf(name, sizeof(name), "%d", i);
        last = make_file(fs, dir, name);
        first = first ? first : last;
    }
    for (uint64_t ino = first; ino < first + KNOWN; ino++) {
        struct inode *inode = get(fs, ino);
        inode_lookup_inc(inode, 0);
        inode_lookup_inc(inode, 0);
        inode_put(inode);
    }
    ck_assert_int_eq(fs_commit(fs), 0);
    for (uint64_t ino = first; ino <= last; ino++)
        inode_put(get(fs, ino));
    ck_assert_uint_le(inode_cache_count(fs->inodes), 16384 + KNOWN);
    ck_assert_uint_ge(inode_cache_count(fs->inodes), KNOWN);
    /* One look-up is left of each, then none; too many do no harm. */
    for (int round = 0; round < 3; round++)
        for (uint64_t ino = first; ino < first + KNOWN; ino++)
            inode_forget(fs->inodes, ino, 0, round + 1);
    inode_forget(fs->inodes, UINT64_C(1) << 40, 0, 1);
    ck_assert_uint_le(inode_cache_count(fs->inodes), 16384);
    close_store(fs);
}
END_TEST

START_TEST(each_mount_has_lookup_counts_of_its_own)
{
    struct fs *fs = open_store();
    struct inode *inode = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    uint64_t ino = inode->ino;
    inode_lookup_inc(inode, 0);
    inode_lookup_inc(inode, 1);
    inode_lookup_inc(inode, 1);
    inode_put(inode);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "file"), 0);
    ck_assert(!inode_forget(fs->inodes, ino, 1, 1));
    ck_assert(inode_forget(fs->inodes, ino, 0, 1));
    ck_assert(!inode_is_known(fs->inodes, ino, 0));
    ck_assert(inode_is_known(fs->inodes, ino, 1));
    /* One mount ends: what the other knows stays. */
    inode_forget_all(fs->inodes, 0);
    reaper_wait(fs->reaper);
    ck_assert_uint_eq(stat_of(fs, ino).st_nlink, 0);
    inode_forget_all(fs->inodes, 1);
    reaper_wait(fs->reaper);
    ck_assert_int_eq(inode_get(fs->inodes, ino, &inode), -ENOENT);
    close_store(fs);
}
END_TEST

START_TEST(stat_shows_dense_files)
{
    struct fs *fs = open_store();
    struct inode *inode = make(fs, ROOT_INO, "sparse", S_IFREG | 0644);
    ck_assert_int_eq(file_truncate(inode, 1000001), 0);
    struct stat st;
    inode_stat(inode, &st);
    ck_assert_int_eq(st.st_size, 1000001);
    ck_assert_int_ge(st.st_blocks * 512, st.st_size);
    ck_assert_int_eq(st.st_nlink, 1);
    inode_put(inode);
    st = stat_of(fs, ROOT_INO);
    ck_assert_int_gt(st.st_size, 0);
    ck_assert_uint_eq(st.st_nlink, 2);
    close_store(fs);
}
END_TEST

/* ---- deleted inodes ---- */

static void write_scattered(struct inode *inode, unsigned n)
{
    uint8_t chunk[4096];
    memset(chunk, 'x', sizeof(chunk));
    for (unsigned i = 0; i < n; i++) {
        memcpy(chunk, &i, sizeof(i));
        ssize_t done = file_write(inode, chunk, sizeof(chunk), UINT64_C(4096) * 700 * i,
                                  (struct file_write_flags){0});
        ck_assert_int_eq(done, sizeof(chunk));
    }
}

START_TEST(an_unlinked_inode_lives_until_its_last_user_is_gone)
{
    bool by_kernel = _i;
    struct fs *fs = open_store();
    struct inode *inode = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    uint64_t ino = inode->ino;
    write_scattered(inode, 10);
    ck_assert_int_eq(xattr_set(fs, ino, "user.a", "b", 1, 0), 0);
    inode_lookup_inc(inode, 0);
    if (by_kernel)
        inode_put(inode);
    else
        inode_forget(fs->inodes, ino, 0, 1);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "file"), 0);
    reaper_wait(fs->reaper);
    ck_assert_int_eq(fs_commit(fs), 0);
    ck_assert_uint_eq(stat_of(fs, ino).st_nlink, 0);
    ck_assert_uint_eq(fs_chunks_live(fs), 10);
    reaper_wait(fs->reaper); /* stat_of used it for a moment */

    if (by_kernel)
        inode_forget(fs->inodes, ino, 0, 1);
    else
        inode_put(inode);
    reaper_wait(fs->reaper);
    ck_assert_int_eq(inode_get(fs->inodes, ino, &inode), -ENOENT);
    ck_assert_uint_eq(fs_chunks_live(fs), 0);
    ck_assert_uint_eq(atomic_load(&fs->inode_count), 1);
    close_store(fs);
    assert_sound();
}
END_TEST

static void leave_orphans(void *arg)
{
    (void)arg;
    struct fs *fs = open_store();
    for (unsigned i = 0; i < 5; i++) {
        struct inode *inode = make(fs, ROOT_INO, "file", S_IFREG | 0644);
        write_scattered(inode, 3);
        ck_assert_int_eq(xattr_set(fs, inode->ino, "user.a", "b", 1, 0), 0);
        ck_assert_int_eq(names_unlink(fs, ROOT_INO, "file"), 0);
    }
    struct inode *tmp;
    ck_assert_int_eq(names_tmpfile(fs, ROOT_INO, S_IFREG | 0600, &root_caller, &tmp), 0);
    ck_assert_int_eq(fs_commit(fs), 0);
    make_file(fs, ROOT_INO, "lost");
}

START_TEST(orphans_of_a_crash_are_released_by_the_next_opening)
{
    in_child(leave_orphans, NULL);
    struct fs *fs = open_store_with((struct fs_config){.read_only = true});
    ck_assert(fs->opened_unclean);
    ck_assert_uint_eq(atomic_load(&fs->inode_count), 7);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "x"), -EROFS);
    ck_assert_int_eq(xattr_remove(fs, ROOT_INO, "user.x"), -EROFS);
    struct inode *inode;
    ck_assert_int_eq(names_create(fs, ROOT_INO, "x", S_IFREG, 0, NULL, &root_caller, &inode),
                     -EROFS);
    close_store(fs);

    fs = open_store();
    ck_assert(fs->opened_unclean);
    reaper_wait(fs->reaper);
    ck_assert_uint_eq(atomic_load(&fs->inode_count), 1);
    ck_assert_uint_eq(fs_chunks_live(fs), 0);
    ck_assert_int_eq(look_up(fs, ROOT_INO, "lost"), -ENOENT);
    /* Nobody may see the lost one's number as another file. */
    ck_assert_uint_gt(make_file(fs, ROOT_INO, "new"), 1000);
    close_store(fs);
    assert_sound();
    fs = open_store();
    ck_assert(!fs->opened_unclean);
    close_store(fs);
}
END_TEST

/* Large enough for several transactions. */
enum { LARGE_CHUNKS = 20000 };

static void die_while_reaping(void *arg)
{
    unsigned delay_us = *(unsigned *)arg;
    struct fs *fs = open_store();
    struct inode *inode = NULL;
    if (names_lookup(fs, ROOT_INO, "large", &inode) == -ENOENT)
        _exit(0);
    inode_put(inode);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "large"), 0);
    for (gint64 end = g_get_monotonic_time() + delay_us; g_get_monotonic_time() < end;)
        ck_assert_int_eq(fs_commit(fs), 0);
}

static void write_large(void *arg)
{
    (void)arg;
    struct fs *fs = open_store();
    struct inode *inode = make(fs, ROOT_INO, "large", S_IFREG | 0644);
    write_scattered(inode, LARGE_CHUNKS);
    inode_put(inode);
    close_store(fs);
}

static void finish_reaping(void *arg)
{
    (void)arg;
    struct fs *fs = open_store();
    reaper_wait(fs->reaper);
    ck_assert_uint_eq(fs_chunks_live(fs), 0);
    ck_assert_uint_eq(atomic_load(&fs->inode_count), 1);
    close_store(fs);
    assert_sound();
}

START_TEST(a_crash_while_content_is_released_leaks_nothing)
{
    for (unsigned delay_us = 1000; delay_us < 60000; delay_us *= 3) {
        in_child(write_large, NULL);
        in_child(die_while_reaping, &delay_us);
        in_child(finish_reaping, NULL);
    }
}
END_TEST

START_TEST(space_of_deleted_files_returns_soon)
{
    struct fs *fs = open_store();
    struct inode *inode = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    write_scattered(inode, 500);
    inode_put(inode);
    ck_assert_int_eq(fs_commit(fs), 0);
    struct segments_stats before, after;
    ck_assert_int_eq(segments_stats(fs->segments, &before), 0);
    ck_assert_uint_ge(before.allocated_bytes, UINT64_C(500) * 4096);
    ck_assert_int_eq(names_unlink(fs, ROOT_INO, "file"), 0);
    gint64 start = g_get_monotonic_time();
    do {
        g_usleep(10000);
        ck_assert_int_eq(segments_stats(fs->segments, &after), 0);
    } while (after.allocated_bytes > 0 && g_get_monotonic_time() < start + 4000000);
    /* Well before the regular commit, however busy the machine is. */
    ck_assert_uint_eq(after.allocated_bytes, 0);
    close_store(fs);
}
END_TEST

/* ---- opening ---- */

START_TEST(only_one_may_have_a_store_open)
{
    struct fs *fs = open_store(), *second;
    struct errmsg err = {""};
    struct fs_config config = {.create = true};
    ck_assert_int_eq(fs_open(store_path, &config, &second, &err), -EBUSY);
    ck_assert_str_ne(err.text, "");
    close_store(fs);
    close_store(open_store());
}
END_TEST

START_TEST(a_missing_store_is_made_only_if_asked_for)
{
    struct fs *fs;
    struct errmsg err = {""};
    struct fs_config config = {0};
    ck_assert_int_eq(fs_open(store_path, &config, &fs, &err), -ENOENT);
    ck_assert_str_ne(err.text, "");
    config.create = true;
    config.chunk_bytes = 16384;
    ck_assert_int_eq(fs_open(store_path, &config, &fs, &err), 0);
    ck_assert_uint_eq(fs->chunk_bytes, 16384);
    close_store(fs);
}
END_TEST

static void remove_below(const char *name)
{
    g_autofree char *path = g_build_filename(store_path, name, NULL);
    remove_tree(path);
}

START_TEST(a_store_without_its_database_is_not_made_anew)
{
    struct fs *fs = open_store();
    struct inode *inode = make(fs, ROOT_INO, "file", S_IFREG | 0644);
    write_scattered(inode, 1);
    inode_put(inode);
    close_store(fs);
    remove_below(FS_METADB_DIR);
    struct errmsg err = {""};
    struct fs_config config = {.create = true};
    ck_assert_int_eq(fs_open(store_path, &config, &fs, &err), -EUCLEAN);
    ck_assert_ptr_nonnull(strstr(err.text, "missing"));
    /* Without data it is one whose making was cut short. */
    remove_below("segments");
    ck_assert_int_eq(fs_open(store_path, &config, &fs, &err), 0);
    ck_assert_uint_eq(atomic_load(&fs->inode_count), 1);
    close_store(fs);
    assert_sound();
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("inode");
    TCase *tcase = tcase_create("record");
    tcase_add_loop_test(tcase, a_record_comes_back_as_it_was, 0, G_N_ELEMENTS(types));
    tcase_add_test(tcase, a_young_file_has_a_short_record);
    tcase_add_loop_test(tcase, damaged_records_are_refused, 0, G_N_ELEMENTS(types));
    tcase_add_loop_test(tcase, the_meta_record_comes_back_as_it_was, 0, 2);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("cache");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, attributes_survive_closing);
    tcase_add_test(tcase, missing_and_damaged_inodes_give_errors);
    tcase_add_test(tcase, the_cache_is_bounded_but_for_what_is_in_use);
    tcase_add_test(tcase, each_mount_has_lookup_counts_of_its_own);
    tcase_add_test(tcase, stat_shows_dense_files);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("deleted");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 200);
    tcase_add_loop_test(tcase, an_unlinked_inode_lives_until_its_last_user_is_gone, 0, 2);
    tcase_add_test(tcase, orphans_of_a_crash_are_released_by_the_next_opening);
    tcase_add_test(tcase, a_crash_while_content_is_released_leaks_nothing);
    tcase_add_test(tcase, space_of_deleted_files_returns_soon);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("open");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, only_one_may_have_a_store_open);
    tcase_add_test(tcase, a_missing_store_is_made_only_if_asked_for);
    tcase_add_test(tcase, a_store_without_its_database_is_not_made_anew);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
