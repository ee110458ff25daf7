// SPDX-License-Identifier: Apache-2.0
/*
 * mount_common.h - what the helpers of the mount tests share. They run on any
 * file system; a check that fails says where and why, and ends the process.
 */
#ifndef MOUNT_COMMON_H
#define MOUNT_COMMON_H

#include "cowfs/ioctl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

__attribute__((noreturn, format(printf, 3, 4))) static inline void
check_failed(const char *file, int line, const char *format, ...)
{
    va_list args;
    fprintf(stderr, "%s:%d: ", file, line);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    /* Not exit(): other threads may still be at work. */
    fflush(NULL);
    _exit(1);
}

/* CHECK(condition, "format", ...) */
#define CHECK(condition, ...)                              \
    do {                                                   \
        if (!(condition))                                  \
            check_failed(__FILE__, __LINE__, __VA_ARGS__); \
    } while (0)

static inline int64_t check_call(int64_t result, const char *call, const char *file, int line)
{
    if (result < 0)
        check_failed(file, line, "%s: %s", call, strerror(errno));
    return result;
}
/* The value of a call that returns -1 with errno on failure. */
#define SYS(call) check_call((int64_t)(call), #call, __FILE__, __LINE__)
#define SYS_INT(call) ((int)SYS(call))

/* The call must fail with that errno. */
#define FAILS(call, wanted)                                                       \
    do {                                                                          \
        errno = 0;                                                                \
        int64_t result_ = (int64_t)(call);                                        \
        int error_ = errno;                                                       \
        CHECK(result_ < 0, "%s succeeded; %s expected", #call, strerror(wanted)); \
        CHECK(error_ == (wanted), "%s: %s; %s expected", #call, strerror(error_), \
              strerror(wanted));                                                  \
    } while (0)

#define EQUAL(a, b)                                                                 \
    do {                                                                            \
        int64_t a_ = (int64_t)(a), b_ = (int64_t)(b);                               \
        CHECK(a_ == b_, "%s is %" PRId64 ", not %" PRId64 " (%s)", #a, a_, b_, #b); \
    } while (0)

/* splitmix64: any seed is good, also 0. */
static inline uint64_t rng_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static inline uint64_t rng_below(uint64_t *state, uint64_t limit)
{
    return rng_next(state) % limit;
}

static inline void fill_random(void *buffer, size_t bytes, uint64_t *state)
{
    uint8_t *p = buffer;
    while (bytes > 0) {
        uint64_t value = rng_next(state);
        size_t part = bytes < sizeof(value) ? bytes : sizeof(value);
        memcpy(p, &value, part);
        p += part;
        bytes -= part;
    }
}

static inline void *check_alloc(size_t bytes)
{
    void *p;
    /* Fit for O_DIRECT, whatever the size of the device's blocks. */
    CHECK(posix_memalign(&p, 65536, bytes ? bytes : 1) == 0, "no memory");
    return p;
}

static inline void write_all(int fd, const void *data, size_t bytes, uint64_t offset)
{
    const uint8_t *p = data;
    while (bytes > 0) {
        ssize_t done = pwrite(fd, p, bytes, (off_t)offset);
        CHECK(done > 0, "pwrite of %zu bytes at %" PRIu64 ": %s", bytes, offset,
              done < 0 ? strerror(errno) : "nothing written");
        p += done;
        offset += (uint64_t)done;
        bytes -= (size_t)done;
    }
}

/* All of the range must lie in the file. */
static inline void read_all(int fd, void *buffer, size_t bytes, uint64_t offset)
{
    uint8_t *p = buffer;
    while (bytes > 0) {
        ssize_t got = pread(fd, p, bytes, (off_t)offset);
        CHECK(got > 0, "pread of %zu bytes at %" PRIu64 ": %s", bytes, offset,
              got < 0 ? strerror(errno) : "the end of the file");
        p += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
}

/* Says where two buffers differ first. */
static inline void check_same(const void *got, const void *wanted, size_t bytes, const char *what,
                              uint64_t base)
{
    const uint8_t *a = got, *b = wanted;
    if (memcmp(a, b, bytes) == 0)
        return;
    size_t first = 0, differing = 0;
    while (a[first] == b[first])
        first++;
    for (size_t i = first; i < bytes; i++)
        differing += a[i] != b[i];
    check_failed(what, 0, "first of %zu wrong bytes at %" PRIu64 " (0x%" PRIx64 "): %02x, not %02x",
                 differing, base + first, base + first, a[first], b[first]);
}

static inline uint64_t size_of(int fd)
{
    struct stat st;
    SYS(fstat(fd, &st));
    return (uint64_t)st.st_size;
}

/* Clones what is open as `source` to dir/name by ioctl, after flushing its dirty
 * pages as a caller has to. 0 or a negative errno. */
static inline int clone_to(int source, int dir, const char *name)
{
    struct cowfs_ioc_token token = {.version = COWFS_IOCTL_VERSION};
    struct cowfs_ioc_clone clone = {.version = COWFS_IOCTL_VERSION};
    struct stat st;

    SYS(fstat(source, &st));
    if (S_ISREG(st.st_mode))
        SYS(sync_file_range(source, 0, 0,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                SYNC_FILE_RANGE_WAIT_AFTER));
    if (ioctl(source, COWFS_IOC_TOKEN, &token) != 0)
        return -errno;
    memcpy(clone.token, token.token, sizeof(clone.token));
    snprintf(clone.name, sizeof(clone.name), "%s", name);
    return ioctl(dir, COWFS_IOC_CLONE, &clone) == 0 ? 0 : -errno;
}

/* The same where daemons may die: a token is good for one of them. */
static inline int clone_with_any(int source, int dir, const char *name)
{
    int error;
    while ((error = clone_to(source, dir, name)) == -ESTALE)
        ;
    return error;
}

/* Programs of many small cases: PROGRAM CASE DIRECTORY, with DIRECTORY empty,
 * and open as `dir`. */
struct mount_case {
    const char *name;
    void (*run)(int dir);
};

static inline int run_mount_case(int argc, char **argv, const struct mount_case *cases,
                                 size_t count)
{
    if (argc == 3) {
        for (size_t i = 0; i < count; i++) {
            if (strcmp(argv[1], cases[i].name) == 0) {
                int dir = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
                CHECK(dir >= 0, "%s: %s", argv[2], strerror(errno));
                cases[i].run(dir);
                return 0;
            }
        }
    }
    fprintf(stderr, "usage: %s CASE DIRECTORY; cases:", argv[0]);
    for (size_t i = 0; i < count; i++)
        fprintf(stderr, " %s", cases[i].name);
    fputc('\n', stderr);
    return 2;
}

#endif
