// SPDX-License-Identifier: Apache-2.0
/* content_fixture.h - a store that is open for the whole of a test, and short
 * names for reading, writing and looking at the content of its files. */
#ifndef TESTS_UNIT_CONTENT_FIXTURE_H
#define TESTS_UNIT_CONTENT_FIXTURE_H

#include "tests/unit/fs_fixture.h"

#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "tests/unit/suite.h"

#define CHUNK ((size_t)4096)

static struct fs *fs;
static struct inode *file; /* in most tests the only one */

static inline void setup_content(void)
{
    setup();
    fs = open_store();
    file = make(fs, ROOT_INO, "file", S_IFREG | 0644);
}

/* Whatever a test did: the store is sound, and can be opened again. */
static inline void teardown_content(void)
{
    inode_put(file);
    close_store(fs);
    assert_sound();
    teardown();
}

static inline struct inode *open_file(const char *name)
{
    struct inode *inode;
    ck_assert_int_eq(names_lookup(fs, ROOT_INO, name, &inode), 0);
    return inode;
}

/* Pseudo-random bytes that depend on `seed` alone; never a zero byte. */
static inline void fill(void *data, size_t n, unsigned seed)
{
    uint8_t *p = data;
    uint32_t state = seed * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        p[i] = (uint8_t)(state >> 24) | 1;
    }
}

static inline ssize_t try_write(struct inode *inode, const void *data, size_t n, uint64_t offset)
{
    return file_write(inode, data, n, offset, (struct file_write_flags){false, false});
}

static inline void write_at(struct inode *inode, const void *data, size_t n, uint64_t offset)
{
    ssize_t done = try_write(inode, data, n, offset);
    ck_assert_msg(done == (ssize_t)n, "write: %zd", done);
}

static inline void write_filled(struct inode *inode, size_t n, uint64_t offset, unsigned seed)
{
    g_autofree uint8_t *data = g_malloc(n);
    fill(data, n, seed);
    write_at(inode, data, n, offset);
}

static inline uint64_t size_of(struct inode *inode)
{
    struct stat st;
    inode_stat(inode, &st);
    return (uint64_t)st.st_size;
}

static inline void assert_bytes(struct inode *inode, const void *expected, size_t n,
                                uint64_t offset)
{
    if (n == 0)
        return;
    g_autofree uint8_t *data = g_malloc(n);
    ck_assert_int_eq(file_read(inode, data, n, offset), (ssize_t)n);
    ck_assert(memcmp(data, expected, n) == 0);
}

static inline void assert_filled(struct inode *inode, size_t n, uint64_t offset, unsigned seed)
{
    g_autofree uint8_t *data = g_malloc(n);
    fill(data, n, seed);
    assert_bytes(inode, data, n, offset);
}

static inline void assert_zeros(struct inode *inode, size_t n, uint64_t offset)
{
    uint8_t *zeros = g_malloc0(n);
    assert_bytes(inode, zeros, n, offset);
    g_free(zeros);
}

static inline struct inode *clone_as(struct inode *src, const char *name)
{
    struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
    ck_assert_int_eq(clone_tree(fs, src->ino, ROOT_INO, name, &root_caller, &io), 0);
    return open_file(name);
}

static inline struct cowfs_ioc_stat usage_of(struct inode *inode)
{
    struct cowfs_ioc_stat st = {.version = COWFS_IOCTL_VERSION};
    ck_assert_int_eq(usage_stat(fs, inode->ino, &st), 0);
    return st;
}

static inline uint64_t live(void)
{
    return fs_chunks_live(fs);
}

static inline void commit(void)
{
    ck_assert_int_eq(fs_commit(fs), 0);
}

static inline void reopen(void)
{
    inode_put(file);
    close_store(fs);
    assert_sound();
    fs = open_store();
    file = open_file("file");
}

static inline void seal_all(struct inode *inode, struct cowfs_ioc_seal *total)
{
    struct cowfs_ioc_seal io = {.version = COWFS_IOCTL_VERSION, .length = 1 << 20};
    *total = io;
    do {
        ck_assert_int_eq(seal_range(fs, inode->ino, &io), 0);
        total->hashed += io.hashed;
        total->deduplicated += io.deduplicated;
        io.offset = io.next;
    } while (io.next);
}

#endif
