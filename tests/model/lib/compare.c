// SPDX-License-Identifier: Apache-2.0
#include "tests/model/lib/compare.h"

#include "chunkstore/bytes.h"
#include "cowfs/flat.h"
#include "cowfs/fsck.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { BLOCK = 1 << 16 };

static const char *context = "";

void fail_context(const char *text)
{
    context = text;
}

void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "FAILED: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n  in %s\n", context);
    va_end(args);
    /* Not exit: other threads are at work, and the store must stay as it is. */
    _exit(1);
}

uint64_t file_size(struct inode *inode)
{
    struct stat st;
    inode_stat(inode, &st);
    return (uint64_t)st.st_size;
}

static void read_exactly(struct inode *inode, uint8_t *buffer, size_t n, uint64_t offset,
                         const char *name)
{
    ssize_t got = file_read(inode, buffer, n, offset);
    if (got != (ssize_t)n)
        fail("%s: reading %zu bytes at %" PRIu64 " gave %zd", name, n, offset, got);
}

/* Is each of the bytes at `offset` that of one of the versions? */
static void check_bytes(const uint8_t *got, size_t n, uint64_t offset,
                        struct sparse *const *versions, unsigned count, const char *name)
{
    static _Thread_local uint8_t buffer[BLOCK];
    uint8_t *expected = buffer;
    bool *good = g_new0(bool, n);
    size_t left = n;
    g_assert(n <= BLOCK);
    for (unsigned v = count; v-- > 0 && left;) {
        sparse_read(versions[v], expected, n, offset);
        if (left == n && memcmp(expected, got, n) == 0) {
            left = 0;
            break;
        }
        for (size_t i = 0; i < n; i++)
            if (!good[i] && got[i] == expected[i]) {
                good[i] = true;
                left--;
            }
    }
    if (left) {
        size_t at = 0;
        while (good[at])
            at++;
        sparse_read(versions[count - 1], expected, n, offset);
        fail("%s: byte %" PRIu64 " is %02x, expected %02x (%u versions; %zu wrong in this block of "
             "%zu, size %" PRIu64 ")",
             name, offset + at, got[at], expected[at], count, left, n, versions[count - 1]->size);
    }
    g_free(good);
}

void compare_range(struct inode *inode, const struct sparse *expected, uint64_t offset, size_t n,
                   const char *name)
{
    static _Thread_local uint8_t buffer[BLOCK];
    struct sparse *versions[1] = {(struct sparse *)(uintptr_t)expected};
    n = offset < expected->size ? min_u64(n, expected->size - offset) : 0;
    while (n > 0) {
        size_t part = MIN(n, BLOCK);
        read_exactly(inode, buffer, part, offset, name);
        check_bytes(buffer, part, offset, versions, 1, name);
        offset += part;
        n -= part;
    }
}

struct walk {
    struct inode *inode;
    struct sparse *const *versions;
    unsigned count;
    const char *name;
    uint64_t size;
    GArray *pages; /* that are not zero in some version */
    guint next;    /* the first of them not passed yet */
};

/* A hole: bytes there read as zeros, so they have to be. */
static void walk_hole(struct walk *w, uint64_t from, uint64_t to)
{
    static const uint8_t zeros[BLOCK];
    static _Thread_local uint8_t buffer[BLOCK];
    while (w->next < w->pages->len) {
        uint64_t page = g_array_index(w->pages, uint64_t, w->next) * SPARSE_PAGE;
        uint64_t first = max_u64(page, from);
        uint64_t end = min_u64(page + SPARSE_PAGE, to);
        if (page >= to)
            break;
        if (first < end)
            check_bytes(zeros, end - first, first, w->versions, w->count, w->name);
        if (page + SPARSE_PAGE > to)
            break;
        w->next++;
    }
    /* And do they read as zeros? Its ends are the places to look at. */
    size_t n = min_u64(to - from, BLOCK);
    read_exactly(w->inode, buffer, n, from, w->name);
    if (memcmp(buffer, zeros, n) != 0)
        fail("%s: the hole at %" PRIu64 " does not read as zeros", w->name, from);
    read_exactly(w->inode, buffer, n, to - n, w->name);
    if (memcmp(buffer, zeros, n) != 0)
        fail("%s: the hole before %" PRIu64 " does not read as zeros", w->name, to);
}

static void walk_data(struct walk *w, uint64_t from, uint64_t to)
{
    static _Thread_local uint8_t buffer[BLOCK];
    for (uint64_t at = from; at < to;) {
        size_t n = min_u64(to - at, BLOCK);
        read_exactly(w->inode, buffer, n, at, w->name);
        check_bytes(buffer, n, at, w->versions, w->count, w->name);
        at += n;
    }
    while (w->next < w->pages->len &&
           (g_array_index(w->pages, uint64_t, w->next) + 1) * SPARSE_PAGE <= to)
        w->next++;
}

static void check_size(const struct walk *w)
{
    uint64_t low = UINT64_MAX;
    uint64_t high = 0;
    for (unsigned v = 0; v < w->count; v++) {
        low = min_u64(low, w->versions[v]->size);
        high = max_u64(high, w->versions[v]->size);
    }
    if (w->size < low || w->size > high)
        fail("%s: size is %" PRIu64 ", expected %" PRIu64 "..%" PRIu64, w->name, w->size, low,
             high);
}

/* Bytes of the home's file, zeros behind its end. */
static void check_home(int fd, const struct walk *w, uint64_t from, uint64_t to)
{
    static _Thread_local uint8_t buffer[BLOCK];
    for (uint64_t at = from; at < to;) {
        size_t n = min_u64(to - at, BLOCK);
        ssize_t got = pread(fd, buffer, n, (off_t)at);
        if (got != (ssize_t)n)
            fail("%s: reading %zu bytes of its home at %" PRIu64 " gave %zd", w->name, n, at, got);
        check_bytes(buffer, n, at, w->versions, w->count, w->name);
        at += n;
    }
}

/* If the file is flat: who reads the home's file sees the same. */
static void walk_home(const struct walk *w)
{
    int fd;
    uint32_t home;
    if (flat_verdict(w->inode) != FLAT_YES)
        return;
    int error = flat_pin(w->inode, &fd, &home);
    if (error == -EINVAL) /* sealed in the background, or a crash left bytes behind its end */
        return;
    if (error)
        fail("%s: pin: %s", w->name, g_strerror(-error));
    off_t size = lseek(fd, 0, SEEK_END);
    if ((uint64_t)size != w->size)
        fail("%s: size is %" PRIu64 ", its home's %jd", w->name, w->size, (intmax_t)size);
    for (off_t data = 0, hole; (data = lseek(fd, data, SEEK_DATA)) >= 0; data = hole) {
        hole = lseek(fd, data, SEEK_HOLE);
        check_home(fd, w, (uint64_t)data, (uint64_t)hole);
    }
    for (guint i = 0; i < w->pages->len; i++) {
        uint64_t page = g_array_index(w->pages, uint64_t, i) * SPARSE_PAGE;
        if (page < w->size)
            check_home(fd, w, page, min_u64(page + SPARSE_PAGE, w->size));
    }
    flat_unpin(w->inode->fs, home);
}

void compare_file(struct inode *inode, struct sparse *const *versions, unsigned n, const char *name)
{
    struct walk w = {
        .inode = inode,
        .versions = versions,
        .count = n,
        .name = name,
        .size = file_size(inode),
        .pages = sparse_pages(versions, n),
    };
    check_size(&w);
    for (uint64_t at = 0; at < w.size;) {
        uint64_t data;
        uint64_t hole;
        int error = file_seek(inode, at, SEEK_DATA, &data);
        if (error == -ENXIO)
            data = w.size;
        else if (error)
            fail("%s: SEEK_DATA at %" PRIu64 ": %s", name, at, g_strerror(-error));
        if (data < at || data > w.size)
            fail("%s: SEEK_DATA at %" PRIu64 " gave %" PRIu64 ", size %" PRIu64, name, at, data,
                 w.size);
        if (data > at)
            walk_hole(&w, at, data);
        if (data == w.size)
            break;
        error = file_seek(inode, data, SEEK_HOLE, &hole);
        if (error)
            fail("%s: SEEK_HOLE at %" PRIu64 ": %s", name, data, g_strerror(-error));
        if (hole <= data || hole > w.size)
            fail("%s: SEEK_HOLE at %" PRIu64 " gave %" PRIu64 ", size %" PRIu64, name, data, hole,
                 w.size);
        walk_data(&w, data, hole);
        at = hole;
    }
    walk_home(&w);
    g_array_free(w.pages, TRUE);
}

struct findings {
    GString *text;
};

static void on_finding(void *arg, enum fsck_kind kind, const char *text)
{
    struct findings *f = arg;
    if (kind != FSCK_SEALED_WITHOUT_HASH && f->text->len < 4000)
        g_string_append_printf(f->text, "\n    %s: %s", fsck_kind_id(kind), text);
}

void check_store(const char *path)
{
    struct findings f = {g_string_new(NULL)};
    struct fsck_options options = {.check_data = true, .message = on_finding, .arg = &f};
    struct fsck_report report;
    struct errmsg err = {""};
    int error = fsck_run(path, &options, &report, &err);
    if (error)
        fail("fsck: %s (%s)", err.text, g_strerror(-error));
    if (!report.complete || report.leaks_unchecked)
        fail("fsck did not come to its end: %s", err.text);
    if (report.errors || report.leaks != report.count[FSCK_SEALED_WITHOUT_HASH])
        fail("fsck found %" PRIu64 " errors and %" PRIu64 " leaks:%s", report.errors, report.leaks,
             f.text->str);
    g_string_free(f.text, TRUE);
}
