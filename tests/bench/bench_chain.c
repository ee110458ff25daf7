// SPDX-License-Identifier: Apache-2.0
/*
 * bench_chain - makes the files that rows 2 and 3 of scripts/bench look at.
 *
 *     bench_chain chain FIRST PREFIX COUNT WRITES SEED
 *         clones FIRST to PREFIX1, that to PREFIX2, … PREFIX<COUNT>, and puts
 *         WRITES random 4 KiB blocks into each before it is cloned on
 *     bench_chain tile SRC DST TIMES
 *         DST is SRC, TIMES over, one behind the other
 *
 * Everything is cloned with copy_file_range, as cp does it: on a file system
 * that shares, no data moves. Whether it really shared, the caller sees in the
 * space that was used.
 */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench_common.h"

static const char usage[] = "bench_chain chain FIRST PREFIX COUNT WRITES SEED\n"
                            "       bench_chain tile SRC DST TIMES";

static int open_source(const char *path, uint64_t *bytes)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0)
        die("%s", path);
    *bytes = (uint64_t)st.st_size;
    return fd;
}

static int create(const char *path)
{
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);
    if (fd < 0)
        die("%s", path);
    return fd;
}

static void copy_range(int from, int to, const char *to_path, uint64_t bytes, uint64_t to_offset)
{
    off_t in = 0, out = (off_t)to_offset;
    while (bytes) {
        ssize_t done = copy_file_range(from, &in, to, &out, bytes, 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            die("copy_file_range to %s", to_path);
        bytes -= (uint64_t)done;
    }
}

static void write_blocks(int fd, const char *path, uint64_t bytes, uint64_t count, uint64_t seed)
{
    struct block_picker picker = block_picker_new(bytes / BLOCK_BYTES, seed);
    uint64_t state = rng_seed(~seed);
    char *buffer = aligned_buffer(BLOCK_BYTES);
    for (uint64_t i = 0; i < count; i++) {
        rng_fill(buffer, BLOCK_BYTES, &state);
        off_t offset = (off_t)(block_picker_next(&picker) * BLOCK_BYTES);
        if (pwrite(fd, buffer, BLOCK_BYTES, offset) != BLOCK_BYTES)
            die("write to %s", path);
    }
    block_picker_free(&picker);
    free(buffer);
}

static void make_chain(const char *first, const char *prefix, uint64_t count, uint64_t writes,
                       uint64_t seed)
{
    uint64_t bytes;
    int from = open_source(first, &bytes);
    double started = now_us();
    for (uint64_t n = 1; n <= count; n++) {
        char *path = NULL;
        if (asprintf(&path, "%s%llu", prefix, (unsigned long long)n) < 0)
            die("memory for a name");
        int to = create(path);
        copy_range(from, to, path, bytes, 0);
        if (writes)
            write_blocks(to, path, bytes, writes, seed + n);
        close(from);
        from = to;
        free(path);
    }
    /* The last one is durable; the caller syncs the mount for the others. */
    if (fsync(from) != 0)
        die("fsync of the last clone of %s", first);
    close(from);
    printf("chain_us %.1f\n", now_us() - started);
}

static void tile(const char *source, const char *target, uint64_t times)
{
    uint64_t bytes;
    int from = open_source(source, &bytes), to = create(target);
    double started = now_us();
    for (uint64_t n = 0; n < times; n++)
        copy_range(from, to, target, bytes, n * bytes);
    if (fsync(to) != 0)
        die("fsync of %s", target);
    close(to);
    close(from);
    printf("tile_us %.1f\n", now_us() - started);
}

int main(int argc, char **argv)
{
    if (argc == 7 && strcmp(argv[1], "chain") == 0)
        make_chain(argv[2], argv[3], parse_u64(argv[4], usage), parse_u64(argv[5], usage),
                   parse_u64(argv[6], usage));
    else if (argc == 5 && strcmp(argv[1], "tile") == 0)
        tile(argv[2], argv[3], parse_u64(argv[4], usage));
    else
        misused(usage);
    return 0;
}
