// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs_diff.c - cowfs diff: where two files differ.
 *
 * The daemon compares the maps, and shared parts are equal unseen. What it gives
 * are ranges of different chunks, whose bytes may still be equal: those, and
 * only those, are read and compared here.
 */
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20, EXIT_DIFFER = 1, EXIT_TROUBLE = 2 };

static const char help[] =
    "Usage: cowfs diff [OPTION]... A B\n"
    "Prints the byte ranges in which two files of one cowfs mount differ, a line each: offset\n"
    "and length, in bytes. Nothing is printed if they are equal. What the files share is known\n"
    "to be equal without being read. Where one is longer, the rest of it is a range.\n"
    "\n"
    "  -b, --block SIZE  whole blocks of this size, a power of two (default 1: single bytes)\n"
    "  -q, --quiet       print nothing; exit status 0: equal, 1: different, 2: trouble (as cmp)\n"
    "  -j, --json        as JSON\n"
    "  -h, --help        show this help\n"
    "\n"
    "Exit status without --quiet: 0 done (whether equal or not), 1 failed, 2 misused.\n"
    "\n"
    "Example: pages of a guest's memory that have changed since it was cloned\n"
    "  cowfs diff --block 4K golden/memory.snap vm17/memory.snap\n";

struct diff {
    const char *path[2];
    int fd[2];
    uint64_t size[2];
    uint64_t block;
    bool quiet;
    json_t *ranges; /* NULL: lines of text */
    uint8_t *buffer[2];
    uint64_t start, end; /* the range that grows, empty if equal */
    uint64_t differing;  /* bytes in ranges */
};

static void flush_range(struct diff *d)
{
    uint64_t length = d->end - d->start;
    if (length == 0)
        return;
    d->differing += length;
    if (d->ranges) {
        json_t *range = json_object();
        json_object_set_new(range, "offset_bytes", tool_json_u64(d->start));
        json_object_set_new(range, "length_bytes", tool_json_u64(length));
        json_array_append_new(d->ranges, range);
    } else if (!d->quiet) {
        printf("%" PRIu64 " %" PRIu64 "\n", d->start, length);
    }
    d->start = d->end;
}

/* [from, to) differs; calls come in rising order. */
static void differs(struct diff *d, uint64_t from, uint64_t to)
{
    uint64_t limit = MAX(d->size[0], d->size[1]);
    from -= from % d->block;
    to = MIN(limit, (to + d->block - 1) / d->block * d->block);
    if (from > d->end || d->start == d->end) {
        flush_range(d);
        d->start = from;
    }
    d->end = MAX(d->end, to);
}

/* Bytes beyond the end of a file that shrinks meanwhile count as zeros. */
static bool read_all(const struct diff *d, int which, uint64_t offset, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t got =
            pread(d->fd[which], d->buffer[which] + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            tool_error("%s: %s", d->path[which], g_strerror(errno));
            return false;
        }
        if (got == 0) {
            memset(d->buffer[which] + done, 0, bytes - done);
            break;
        }
        done += (size_t)got;
    }
    return true;
}

static void compare_buffers(struct diff *d, uint64_t offset, size_t bytes)
{
    enum { STEP = 4096 };
    const uint8_t *a = d->buffer[0], *b = d->buffer[1];
    for (size_t i = 0; i < bytes;) {
        size_t step = MIN(STEP, bytes - i);
        if (memcmp(a + i, b + i, step) == 0) {
            i += step;
            continue;
        }
        for (size_t end = i + step; i < end;) {
            while (i < end && a[i] == b[i])
                i++;
            size_t from = i;
            while (i < end && a[i] != b[i])
                i++;
            if (i > from)
                differs(d, offset + from, offset + i);
        }
    }
}

/* Where both have bytes. */
static bool compare_range(struct diff *d, uint64_t offset, uint64_t length)
{
    uint64_t common = MIN(d->size[0], d->size[1]);
    if (offset >= common)
        return true;
    uint64_t end = offset + MIN(length, common - offset);
    while (offset < end) {
        size_t bytes = (size_t)MIN(BUFFER_BYTES, end - offset);
        if (!read_all(d, 0, offset, bytes) || !read_all(d, 1, offset, bytes))
            return false;
        compare_buffers(d, offset, bytes);
        if (d->quiet && d->end > d->start)
            return true;
        offset += bytes;
    }
    return true;
}

/* The ranges from `offset` on. A token lives for some minutes, and in one daemon: a new one then. */
static bool next_ranges(struct diff *d, uint64_t offset, struct cowfs_ioc_token *token,
                        struct cowfs_ioc_diff *io)
{
    int error = -ESTALE;
    for (int attempt = 0; error == -ESTALE && attempt < 3; attempt++) {
        if ((attempt > 0 || !token->token[0]) &&
            !tool_ioctl(d->fd[1], d->path[1], COWFS_IOC_TOKEN, token))
            return false;
        *io = (struct cowfs_ioc_diff){
            .token = {token->token[0], token->token[1]},
            .offset = offset,
        };
        error = tool_try_ioctl(d->fd[0], COWFS_IOC_DIFF, io);
    }
    if (error)
        tool_error("%s: %s", d->path[0], tool_ioctl_reason(error));
    return error == 0;
}

static bool compare(struct diff *d)
{
    struct cowfs_ioc_token token = {0};
    uint64_t offset = 0;
    do {
        struct cowfs_ioc_diff io;
        if (!next_ranges(d, offset, &token, &io))
            return false;
        for (uint32_t i = 0; i < MIN(io.count, COWFS_DIFF_RANGES); i++) {
            if (!compare_range(d, io.range[i].offset, io.range[i].length))
                return false;
            if (d->quiet && d->end > d->start)
                return true;
        }
        offset = io.next;
    } while (offset);
    if (d->size[0] != d->size[1])
        differs(d, MIN(d->size[0], d->size[1]), MAX(d->size[0], d->size[1]));
    flush_range(d);
    return true;
}

static bool open_files(struct diff *d)
{
    struct stat st[2];
    for (int i = 0; i < 2; i++) {
        bool is_directory = false;
        d->fd[i] = tool_open(d->path[i], &is_directory);
        if (d->fd[i] < 0)
            return false;
        if (is_directory) {
            tool_error("%s: is a directory", d->path[i]);
            return false;
        }
        /* After the flush, so that maps and sizes agree. */
        if (!tool_flush(d->fd[i], d->path[i]))
            return false;
        if (fstat(d->fd[i], &st[i]) != 0) {
            tool_error("%s: %s", d->path[i], g_strerror(errno));
            return false;
        }
        d->size[i] = (uint64_t)st[i].st_size;
    }
    if (st[0].st_dev != st[1].st_dev) {
        tool_error("%s: is not in the same mount as %s", d->path[1], d->path[0]);
        return false;
    }
    return true;
}

static int print_json(struct diff *d)
{
    g_autofree char *a = g_utf8_make_valid(d->path[0], -1);
    g_autofree char *b = g_utf8_make_valid(d->path[1], -1);
    json_t *o = json_object();
    json_object_set_new(o, "a", json_string(a));
    json_object_set_new(o, "b", json_string(b));
    json_object_set_new(o, "equal", json_boolean(d->differing == 0));
    json_object_set_new(o, "differing_bytes", tool_json_u64(d->differing));
    json_object_set(o, "ranges", d->ranges);
    return tool_print_json(o);
}

int cmd_diff(int argc, char **argv)
{
    static const struct option options[] = {
        {"block", required_argument, NULL, 'b'},
        {"quiet", no_argument, NULL, 'q'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct diff d = {.fd = {-1, -1}, .block = 1};
    bool as_json = false;
    int option;

    while ((option = tool_getopt(argc, argv, "b:qjh", options)) != -1) {
        switch (option) {
        case 'b':
            if (!tool_parse_size(optarg, &d.block) || d.block == 0 || (d.block & (d.block - 1)))
                return tool_misused("--block: '%s' is no power of two", optarg);
            break;
        case 'q':
            d.quiet = true;
            break;
        case 'j':
            as_json = true;
            break;
        case 'h':
            return tool_help(help);
        default:
            return EXIT_MISUSED;
        }
    }
    if (argc - optind != 2)
        return tool_misused("exactly two files are needed");
    if (as_json && d.quiet)
        return tool_misused("--json and --quiet contradict each other");
    d.path[0] = argv[optind];
    d.path[1] = argv[optind + 1];
    d.ranges = as_json ? json_array() : NULL;
    d.buffer[0] = g_malloc(BUFFER_BYTES);
    d.buffer[1] = g_malloc(BUFFER_BYTES);

    bool ok = open_files(&d) && compare(&d);
    bool different = d.differing || d.end > d.start;
    int status = ok ? EXIT_DONE : EXIT_FAILED;
    if (d.quiet)
        status = !ok ? EXIT_TROUBLE : different ? EXIT_DIFFER : EXIT_DONE;
    else if (ok && as_json)
        status = print_json(&d);
    json_decref(d.ranges);
    for (int i = 0; i < 2; i++) {
        if (d.fd[i] >= 0)
            close(d.fd[i]);
        g_free(d.buffer[i]);
    }
    return tool_finish(status);
}
