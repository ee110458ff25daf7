// SPDX-License-Identifier: Apache-2.0
/*
 * bench_io - fills, scatters writes over, and times reads of one file.
 *
 *     bench_io fill FILE BYTES SEED
 *     bench_io write FILE COUNT SEED
 *     bench_io read FILE random|sequential COUNT SEED buffered|direct
 *     bench_io drop FILE...
 *
 * All data is pseudo-random: nothing in it can be compressed, deduplicated or
 * taken for a hole. "write" puts 4 KiB on COUNT different blocks and ends with
 * one fsync, whose cost is told apart. "read" starts cold: the file's pages
 * are dropped first, and mincore's count of what stayed is printed, so that a
 * file system on which dropping does not work cannot look fast. COUNT 0 means
 * the whole file. "drop" does that alone.
 */
#include <stdbool.h>

#include "bench_file.h"

static const char usage[] =
    "bench_io fill FILE BYTES SEED\n"
    "       bench_io write FILE COUNT SEED\n"
    "       bench_io read FILE random|sequential COUNT SEED buffered|direct\n"
    "       bench_io drop FILE...";

static void write_all(int fd, const char *path, const void *data, size_t bytes, uint64_t offset)
{
    const char *at = data;
    while (bytes) {
        ssize_t done = pwrite(fd, at, bytes, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            die("write to %s", path);
        at += done;
        offset += (uint64_t)done;
        bytes -= (size_t)done;
    }
}

static void sync_and_tell(int fd, const char *path, double started)
{
    double written = now_us();
    if (fsync(fd) != 0)
        die("fsync of %s", path);
    printf("write_us %.1f\nfsync_us %.1f\n", written - started, now_us() - written);
    if (close(fd) != 0)
        die("close of %s", path);
}

static void fill(const char *path, uint64_t bytes, uint64_t seed)
{
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
    if (fd < 0)
        die("%s", path);
    void *buffer = aligned_buffer(BIG_BYTES);
    uint64_t state = rng_seed(seed);
    double started = now_us();
    for (uint64_t at = 0; at < bytes; at += BIG_BYTES) {
        size_t part = bytes - at < BIG_BYTES ? (size_t)(bytes - at) : BIG_BYTES;
        rng_fill(buffer, BIG_BYTES, &state);
        write_all(fd, path, buffer, part, at);
    }
    sync_and_tell(fd, path, started);
    free(buffer);
}

static void scatter(const char *path, uint64_t count, uint64_t seed)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        die("%s", path);
    uint64_t block_count = size_of(fd, path) / BLOCK_BYTES;
    if (count > block_count)
        misused(usage);
    struct block_picker picker = block_picker_new(block_count, seed);
    uint64_t state = rng_seed(~seed);
    void *buffer = aligned_buffer(BLOCK_BYTES);
    double started = now_us();
    for (uint64_t i = 0; i < count; i++) {
        rng_fill(buffer, BLOCK_BYTES, &state);
        write_all(fd, path, buffer, BLOCK_BYTES, block_picker_next(&picker) * BLOCK_BYTES);
    }
    sync_and_tell(fd, path, started);
    block_picker_free(&picker);
    free(buffer);
}

static void timed_read(const char *path, bool random, uint64_t count, uint64_t seed, bool direct)
{
    drop_cache(path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0)
        die("%s", path);
    size_t unit = random ? BLOCK_BYTES : BIG_BYTES;
    uint64_t unit_count = size_of(fd, path) / unit;
    if (count == 0)
        count = unit_count;
    if (count > unit_count)
        misused(usage);
    /* Without this, readahead turns 4 KiB reads into 128 KiB ones. */
    if (random && !direct)
        posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    struct block_picker picker = block_picker_new(unit_count, seed);
    char *buffer = aligned_buffer(unit);
    double started = now_us();
    for (uint64_t i = 0; i < count; i++) {
        uint64_t which = random ? block_picker_next(&picker) : i;
        ssize_t got = pread(fd, buffer, unit, (off_t)(which * unit));
        if (got < 0)
            die("read of %s", path);
        if ((size_t)got != unit) {
            fprintf(stderr, "%s: read %zd bytes in place of %zu\n", path, got, unit);
            exit(1);
        }
    }
    double took = now_us() - started;
    uint64_t bytes = count * unit;
    printf("read_us %.1f\nbytes %llu\n", took, (unsigned long long)bytes);
    block_picker_free(&picker);
    free(buffer);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "fill") == 0) {
        fill(argv[2], parse_u64(argv[3], usage), parse_u64(argv[4], usage));
    } else if (argc == 5 && strcmp(argv[1], "write") == 0) {
        scatter(argv[2], parse_u64(argv[3], usage), parse_u64(argv[4], usage));
    } else if (argc == 7 && strcmp(argv[1], "read") == 0) {
        bool random = strcmp(argv[3], "random") == 0, direct = strcmp(argv[6], "direct") == 0;
        if ((!random && strcmp(argv[3], "sequential") != 0) ||
            (!direct && strcmp(argv[6], "buffered") != 0))
            misused(usage);
        timed_read(argv[2], random, parse_u64(argv[4], usage), parse_u64(argv[5], usage), direct);
    } else if (argc >= 3 && strcmp(argv[1], "drop") == 0) {
        for (int i = 2; i < argc; i++)
            drop_cache(argv[i]);
    } else {
        misused(usage);
    }
    return 0;
}
