// SPDX-License-Identifier: Apache-2.0
/*
 * bench_file.h - opening, and the page cache of one file: how much of it is
 * there, and dropping it.
 */
#ifndef BENCH_FILE_H
#define BENCH_FILE_H

#include "bench_common.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static inline int open_or_die(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0)
        die("%s", path);
    return fd;
}

static inline uint64_t size_of(int fd, const char *path)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        die("%s", path);
    return (uint64_t)st.st_size;
}

static inline uint64_t resident_pages(int fd, const char *path, uint64_t bytes)
{
    size_t page_count = (size_t)((bytes + BLOCK_BYTES - 1) / BLOCK_BYTES);
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        die("mmap of %s", path);
    unsigned char *seen = malloc(page_count);
    if (!seen || mincore(map, bytes, seen) != 0)
        die("mincore of %s", path);
    uint64_t resident = 0;
    for (size_t i = 0; i < page_count; i++)
        resident += seen[i] & 1;
    free(seen);
    munmap(map, bytes);
    return resident;
}

/* What could not be dropped is printed: a read of it would be a warm one. */
static inline void drop_cache(const char *path)
{
    int fd = open_or_die(path, O_RDONLY);
    uint64_t bytes = size_of(fd, path);
    /* Dirty pages cannot be dropped. */
    if (fsync(fd) != 0)
        die("fsync of %s", path);
    int error = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (error) {
        errno = error;
        die("dropping the pages of %s", path);
    }
    printf("resident_pages %llu\n", (unsigned long long)resident_pages(fd, path, bytes));
    close(fd);
}

#endif
