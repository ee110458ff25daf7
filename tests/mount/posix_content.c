// SPDX-License-Identifier: Apache-2.0
/* posix_content.c - the bytes of files, and all the ways to them. */
#include "tests/mount/mount_common.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/wait.h>

enum { KIB = 1024, MIB = 1024 * 1024 };

static int make(int dir, const char *name)
{
    return SYS_INT(openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
}

/* The whole file must be these bytes; through a new descriptor with those flags. */
static void check_whole(int dir, const char *name, const void *wanted, size_t bytes, int flags)
{
    int fd = SYS_INT(openat(dir, name, O_RDONLY | O_CLOEXEC | flags));
    EQUAL(size_of(fd), bytes);
    char *got = check_alloc(bytes);
    read_all(fd, got, bytes, 0);
    check_same(got, wanted, bytes, name, 0);
    free(got);
    close(fd);
}

static char *random_bytes(size_t bytes, uint64_t seed)
{
    char *data = check_alloc(bytes);
    fill_random(data, bytes, &seed);
    return data;
}

static void test_truncate(int dir)
{
    enum { BYTES = 3 * MIB + 123 };
    char *data = random_bytes(BYTES, 1);
    static const size_t sizes[] = {BYTES - 1, 3 * MIB, 2 * MIB + 4095, 2 * MIB + 1, 2 * MIB,
                                   4097,      4096,    4095,           1,           0};
    int fd = make(dir, "f");
    write_all(fd, data, BYTES, 0);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        /* What was cut off does not come back. */
        SYS(ftruncate(fd, (off_t)sizes[i]));
        EQUAL(size_of(fd), sizes[i]);
        SYS(ftruncate(fd, BYTES));
        memset(data + sizes[i], 0, BYTES - sizes[i]);
        if (i % 2)
            SYS(fsync(fd));
        check_whole(dir, "f", data, BYTES, i % 3 ? 0 : O_DIRECT);
    }
    /* Zeros between the old end and a write behind it. */
    SYS(ftruncate(fd, 10));
    write_all(fd, "end", 3, 2 * MIB);
    memset(data, 0, BYTES);
    memcpy(data + 2 * MIB, "end", 3);
    check_whole(dir, "f", data, 2 * MIB + 3, 0);
    FAILS(ftruncate(fd, -1), EINVAL);
    int readonly = SYS_INT(openat(dir, "f", O_RDONLY));
    FAILS(ftruncate(readonly, 0), EINVAL);
    close(readonly);
    close(fd);
    free(data);
}

static void test_fallocate(int dir)
{
    enum { BYTES = 2 * MIB };
    char *data = random_bytes(2 * BYTES, 2);
    int fd = make(dir, "f");
    memset(data + BYTES, 0, BYTES);
    write_all(fd, data, BYTES, 0);

    SYS(fallocate(fd, 0, BYTES - 100, 5000));
    check_whole(dir, "f", data, BYTES + 4900, 0);
    SYS(fallocate(fd, FALLOC_FL_KEEP_SIZE, BYTES + 4900, MIB));
    check_whole(dir, "f", data, BYTES + 4900, 0);
    SYS(ftruncate(fd, 2 * BYTES));
    check_whole(dir, "f", data, 2 * BYTES, 0);

    static const struct {
        size_t offset, length;
    } ranges[] = {{0, 4096},           {8192, 4096},      {20000, 1},
                  {30000, 30000},      {4096 * 20, 4},    {MIB - 1, 2},
                  {MIB + 1, 2 * 4096}, {BYTES - 1, 4096}, {MIB + 65536, 65536}};
    for (unsigned i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        int mode = i % 2 ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
        SYS(fallocate(fd, mode, (off_t)ranges[i].offset, (off_t)ranges[i].length));
        memset(data + ranges[i].offset, 0, ranges[i].length);
        check_whole(dir, "f", data, 2 * BYTES, i % 3 ? 0 : O_DIRECT);
    }
    /* ZERO_RANGE makes a file longer, unless told not to; PUNCH_HOLE never. */
    SYS(ftruncate(fd, BYTES));
    SYS(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, BYTES - 10, 20));
    memset(data + BYTES - 10, 0, 10);
    check_whole(dir, "f", data, BYTES, 0);
    SYS(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BYTES, BYTES));
    check_whole(dir, "f", data, BYTES, 0);
    SYS(fallocate(fd, FALLOC_FL_ZERO_RANGE, BYTES - 10, 20));
    check_whole(dir, "f", data, BYTES + 10, 0);

    FAILS(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), EOPNOTSUPP);
    FAILS(fallocate(fd, FALLOC_FL_INSERT_RANGE, 0, 4096), EOPNOTSUPP);
    FAILS(fallocate(fd, 0, 0, 0), EINVAL);
    FAILS(fallocate(fd, 0, -1, 10), EINVAL);
    EQUAL(posix_fallocate(fd, 0, 3 * MIB), 0);
    check_whole(dir, "f", data, 3 * MIB, 0);
    close(fd);
    free(data);
}

static void check_seek(int fd, int whence, int64_t from, int64_t wanted)
{
    int64_t got = lseek(fd, from, whence);
    if (wanted < 0)
        CHECK(got < 0 && errno == ENXIO, "%s from %" PRId64 ": %" PRId64 ", not ENXIO",
              whence == SEEK_DATA ? "SEEK_DATA" : "SEEK_HOLE", from, got);
    else
        CHECK(got == wanted, "%s from %" PRId64 ": %" PRId64 ", not %" PRId64,
              whence == SEEK_DATA ? "SEEK_DATA" : "SEEK_HOLE", from, got, wanted);
}

static void test_seek(int dir)
{
    enum { CHUNK = 65536 }; /* the largest: so the same for all sizes of chunks */
    char *data = random_bytes(MIB, 3);
    int fd = make(dir, "f");
    check_seek(fd, SEEK_DATA, 0, -1);
    check_seek(fd, SEEK_HOLE, 0, -1);
    SYS(ftruncate(fd, 100 * MIB));
    check_seek(fd, SEEK_DATA, 0, -1);
    check_seek(fd, SEEK_HOLE, 0, 0);
    /* At once after the write, while it is in the cache alone. */
    write_all(fd, data, CHUNK, 10 * MIB);
    check_seek(fd, SEEK_DATA, 0, 10 * MIB);
    check_seek(fd, SEEK_DATA, 10 * MIB + 7, 10 * MIB + 7);
    check_seek(fd, SEEK_HOLE, 10 * MIB, 10 * MIB + CHUNK);
    check_seek(fd, SEEK_HOLE, 0, 0);
    check_seek(fd, SEEK_DATA, 10 * MIB + CHUNK, -1);
    SYS(fsync(fd));
    check_seek(fd, SEEK_DATA, 0, 10 * MIB);
    check_seek(fd, SEEK_HOLE, 10 * MIB, 10 * MIB + CHUNK);
    /* Through a mapping. */
    char *map = mmap(NULL, 100 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    memcpy(map + 50 * MIB, data, CHUNK);
    check_seek(fd, SEEK_DATA, 20 * MIB, 50 * MIB);
    check_seek(fd, SEEK_HOLE, 50 * MIB, 50 * MIB + CHUNK);
    SYS(munmap(map, 100 * MIB));
    /* Zeros are no data. */
    memset(data, 0, CHUNK);
    write_all(fd, data, CHUNK, 10 * MIB);
    SYS(fsync(fd));
    check_seek(fd, SEEK_DATA, 0, 50 * MIB);
    SYS(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 50 * MIB, CHUNK));
    check_seek(fd, SEEK_DATA, 0, -1);
    /* The end of the file is a hole, and behind it is nothing. */
    write_all(fd, data + CHUNK, CHUNK, 100 * MIB - CHUNK);
    check_seek(fd, SEEK_HOLE, 100 * MIB - CHUNK, 100 * MIB);
    check_seek(fd, SEEK_DATA, 100 * MIB, -1);
    check_seek(fd, SEEK_HOLE, 100 * MIB, -1);
    check_seek(fd, SEEK_HOLE, 200 * MIB, -1);
    close(fd);
    free(data);
}

static void test_sync(int dir)
{
    int fd = make(dir, "f");
    write_all(fd, "x", 1, 0);
    SYS(fsync(fd));
    SYS(fdatasync(fd));
    SYS(fsync(dir));
    SYS(fdatasync(dir));
    SYS(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER));
    SYS(syncfs(fd));
    close(fd);
    fd = SYS_INT(openat(dir, "s", O_RDWR | O_CREAT | O_SYNC, 0644));
    write_all(fd, "sync", 4, 0);
    check_whole(dir, "s", "sync", 4, 0);
    close(fd);
}

/* O_DIRECT, the cache and mappings see one file. */
static void test_direct(int dir)
{
    enum { BYTES = 4 * MIB };
    char *data = random_bytes(BYTES, 4), *got = check_alloc(BYTES);
    int buffered = make(dir, "f");
    int direct = SYS_INT(openat(dir, "f", O_RDWR | O_DIRECT));
    write_all(direct, data, BYTES, 0);
    EQUAL(size_of(buffered), BYTES);
    check_whole(dir, "f", data, BYTES, 0);
    check_whole(dir, "f", data, BYTES, O_DIRECT);
    char *map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, buffered, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    check_same(map, data, BYTES, "mapping", 0);

    uint64_t rng = 5;
    for (unsigned i = 0; i < 300; i++) {
        size_t at = (size_t)rng_below(&rng, BYTES / 4096) * 4096, bytes = 4096;
        char *block = random_bytes(bytes, rng_next(&rng));
        memcpy(data + at, block, bytes);
        switch (i % 3) {
        case 0:
            write_all(direct, block, bytes, at);
            break;
        case 1:
            write_all(buffered, block, bytes, at);
            break;
        default:
            memcpy(map + at, block, bytes);
        }
        free(block);
        at = (size_t)rng_below(&rng, BYTES / 4096) * 4096;
        switch (rng_below(&rng, 3)) {
        case 0:
            read_all(direct, got, bytes, at);
            break;
        case 1:
            read_all(buffered, got, bytes, at);
            break;
        default:
            memcpy(got, map + at, bytes);
        }
        check_same(got, data + at, bytes, "mixed access", at);
    }
    SYS(munmap(map, BYTES));
    check_whole(dir, "f", data, BYTES, O_DIRECT);
    /* The last part of a file, and behind it. */
    SYS(ftruncate(buffered, 10000));
    EQUAL(pread(direct, got, 65536, 8192), 10000 - 8192);
    EQUAL(pread(direct, got, 4096, 12288), 0);
    write_all(direct, data, 4096, 12288);
    EQUAL(size_of(buffered), 16384);
    close(direct);
    close(buffered);
    free(data);
    free(got);
}

/* Lines of several processes follow each other whole. */
static void append_lines(int dir, int flags)
{
    enum { WRITERS = 4, LINES = 500, LINE = 512 };
    close(make(dir, "log"));
    for (int w = 0; w < WRITERS; w++) {
        if (SYS_INT(fork()) != 0)
            continue;
        int fd = SYS_INT(openat(dir, "log", O_WRONLY | O_APPEND | flags));
        char *line = check_alloc(LINE);
        for (int i = 0; i < LINES; i++) {
            memset(line, 'a' + w, LINE);
            memcpy(line, &i, sizeof(i));
            EQUAL(write(fd, line, LINE), LINE);
        }
        _exit(0);
    }
    int status;
    for (int w = 0; w < WRITERS; w++) {
        SYS(wait(&status));
        EQUAL(status, 0);
    }
    int fd = SYS_INT(openat(dir, "log", O_RDONLY));
    EQUAL(size_of(fd), WRITERS * LINES * LINE);
    char line[LINE];
    int next[WRITERS] = {0}, number;
    for (unsigned i = 0; i < WRITERS * LINES; i++) {
        read_all(fd, line, LINE, (uint64_t)i * LINE);
        int w = line[LINE - 1] - 'a';
        CHECK(w >= 0 && w < WRITERS, "line %u is torn", i);
        for (unsigned j = sizeof(number); j < LINE; j++)
            CHECK(line[j] == 'a' + w, "line %u is torn", i);
        memcpy(&number, line, sizeof(number));
        EQUAL(number, next[w]);
        next[w]++;
    }
    close(fd);
    SYS(unlinkat(dir, "log", 0));
}

static void test_append(int dir)
{
    append_lines(dir, 0);
    append_lines(dir, O_DIRECT);
}

static void test_tmpfile(int dir)
{
    char path[64];
    int fd = SYS_INT(openat(dir, ".", O_RDWR | O_TMPFILE, 0600));
    struct stat st;
    SYS(fstat(fd, &st));
    EQUAL(st.st_nlink, 0);
    write_all(fd, "hidden", 6, 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    SYS(linkat(AT_FDCWD, path, dir, "named", AT_SYMLINK_FOLLOW));
    close(fd);
    check_whole(dir, "named", "hidden", 6, 0);
    fd = SYS_INT(openat(dir, ".", O_RDWR | O_TMPFILE | O_EXCL, 0600));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    FAILS(linkat(AT_FDCWD, path, dir, "other", AT_SYMLINK_FOLLOW), ENOENT);
    write_all(fd, "gone", 4, 0);
    close(fd);
}

static void test_mmap(int dir)
{
    enum { BYTES = 64 * MIB, PAGES = BYTES / 4096 };
    int fd = make(dir, "memory");
    SYS(ftruncate(fd, BYTES));
    char *wanted = calloc(1, BYTES);
    CHECK(wanted, "no memory");
    char *map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    uint64_t rng = 6;
    for (unsigned i = 0; i < 4000; i++) {
        size_t at = (size_t)rng_below(&rng, BYTES - 64);
        fill_random(map + at, 64, &rng);
        memcpy(wanted + at, map + at, 64);
    }
    /* Another process sees it, and what it changes is seen here. */
    pid_t pid = SYS_INT(fork());
    if (pid == 0) {
        int other = SYS_INT(openat(dir, "memory", O_RDWR));
        char *view = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
        CHECK(view != MAP_FAILED, "mmap: %s", strerror(errno));
        check_same(view, wanted, BYTES, "the other process", 0);
        memcpy(view + 12345, "from the other", 14);
        _exit(0);
    }
    int status;
    EQUAL(waitpid(pid, &status, 0), pid);
    EQUAL(status, 0);
    memcpy(wanted + 12345, "from the other", 14);
    check_same(map, wanted, BYTES, "mapping", 0);
    SYS(msync(map, BYTES, MS_SYNC));
    SYS(munmap(map, BYTES));
    check_whole(dir, "memory", wanted, BYTES, O_DIRECT);

    /* What a private mapping changes is its own. */
    map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    check_same(map, wanted, BYTES, "private mapping", 0);
    memset(map, 'p', BYTES / 2);
    SYS(munmap(map, BYTES));
    check_whole(dir, "memory", wanted, BYTES, 0);

    int readonly = SYS_INT(openat(dir, "memory", O_RDONLY));
    /* cppcheck-suppress leakReturnValNotUsed ; it has to fail */
    CHECK(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, readonly, 0) == MAP_FAILED && errno == EACCES,
          "a file opened for reading can be mapped for writing");
    close(readonly);

    /* A mapping holds a file that is closed and deleted. */
    map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    close(fd);
    SYS(unlinkat(dir, "memory", 0));
    memset(map, 'x', MIB);
    memset(wanted, 'x', MIB);
    SYS(msync(map, BYTES, MS_SYNC));
    SYS(madvise(map, BYTES, MADV_DONTNEED));
    check_same(map, wanted, BYTES, "mapping of a deleted file", 0);
    SYS(munmap(map, BYTES));

    /* Beyond the end is SIGBUS. */
    fd = make(dir, "short");
    SYS(ftruncate(fd, 4096));
    map = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    pid = SYS_INT(fork());
    if (pid == 0) {
        signal(SIGBUS, SIG_DFL); /* which the sanitizers have taken */
        _exit(((volatile char *)map)[4096]);
    }
    EQUAL(waitpid(pid, &status, 0), pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS, "no SIGBUS beyond the end");
    close(fd);
    free(wanted);
}

static void test_sparse(int dir)
{
    const int64_t tib = INT64_C(1) << 40;
    static const int64_t places[] = {0,
                                     4096,
                                     INT64_C(2) << 20,
                                     (INT64_C(1) << 30) - 4096,
                                     INT64_C(1) << 32,
                                     INT64_C(512) << 30,
                                     INT64_C(4) << 40,
                                     (INT64_C(8) << 40) - 4096};
    enum { COUNT = sizeof(places) / sizeof(places[0]) };
    char block[4096], got[4096];
    struct stat st;

    int fd = make(dir, "sparse");
    SYS(ftruncate(fd, 8 * tib));
    for (unsigned i = 0; i < COUNT; i++) {
        memset(block, 'a' + (int)i, sizeof(block));
        write_all(fd, block, sizeof(block), (uint64_t)places[i]);
    }
    SYS(fsync(fd));
    SYS(fstat(fd, &st));
    EQUAL(st.st_size, 8 * tib);
    /* Or cp would read and write the holes (README). */
    CHECK(st.st_blocks >= st.st_size / 512, "st_blocks is not that of a dense file");
    for (unsigned i = 0; i < COUNT; i++) {
        memset(block, 'a' + (int)i, sizeof(block));
        read_all(fd, got, sizeof(got), (uint64_t)places[i]);
        check_same(got, block, sizeof(got), "sparse", (uint64_t)places[i]);
    }
    read_all(fd, got, sizeof(got), (uint64_t)(3 * tib));
    memset(block, 0, sizeof(block));
    check_same(got, block, sizeof(got), "hole", (uint64_t)(3 * tib));
    /* All data is found, and little else. */
    int64_t data_bytes = 0, at = 0;
    unsigned found = 0;
    while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
        int64_t end = SYS(lseek(fd, at, SEEK_HOLE));
        for (unsigned i = 0; i < COUNT; i++)
            found += places[i] >= at && places[i] < end;
        data_bytes += end - at;
        at = end;
    }
    EQUAL(errno, ENXIO);
    EQUAL(found, COUNT);
    CHECK(data_bytes <= COUNT * 65536, "%" PRId64 " bytes of data", data_bytes);

    int copy = make(dir, "copy");
    off_t from = 0, to = 0;
    while (from < 8 * tib)
        CHECK(SYS(copy_file_range(fd, &from, copy, &to, (size_t)(8 * tib - from), 0)) > 0,
              "nothing copied at %" PRId64, (int64_t)from);
    EQUAL(size_of(copy), 8 * tib);
    for (unsigned i = 0; i < COUNT; i++) {
        memset(block, 'a' + (int)i, sizeof(block));
        read_all(copy, got, sizeof(got), (uint64_t)places[i]);
        check_same(got, block, sizeof(got), "copy", (uint64_t)places[i]);
    }
    SYS(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8 * tib - 4096));
    check_seek(fd, SEEK_DATA, 65536, -1);
    SYS(ftruncate(copy, 1));
    EQUAL(size_of(copy), 1);
    close(copy);
    close(fd);
}

static void test_copy_range(int dir)
{
    enum { BYTES = 3 * MIB + 777, ROOM = 8 * MIB };
    char *data = random_bytes(ROOM, 8), *wanted = check_alloc(ROOM);
    int from = make(dir, "from"), to = make(dir, "to");
    write_all(from, data, BYTES, 0);
    memset(wanted, 'w', ROOM);
    write_all(to, wanted, ROOM, 0);
    static const struct {
        int64_t in, out;
        size_t bytes;
    } ranges[] = {{0, 0, 4096},
                  {4096, 8192, 65536},
                  {0, 4096, BYTES},
                  {1, 2, 3},
                  {4095, 4097, 70000},
                  {123, 123, 2 * MIB},
                  {MIB, 2 * MIB, MIB},
                  {BYTES - 1, 5, 1},
                  {2 * MIB, 4 * MIB, BYTES - 2 * MIB},
                  {5000, 4 * MIB - 1, 2},
                  {65536, 131072, 65536}};
    for (unsigned i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        off_t in = ranges[i].in, out = ranges[i].out;
        /* From the cache of the source, or not. */
        if (i % 2)
            SYS(fsync(from));
        size_t left = ranges[i].bytes;
        if (left > (size_t)(BYTES - in))
            left = (size_t)(BYTES - in);
        memcpy(wanted + out, data + in, left);
        while (left > 0) {
            int64_t done = SYS(copy_file_range(from, &in, to, &out, left, 0));
            CHECK(done > 0, "nothing copied");
            left -= (size_t)done;
        }
        check_whole(dir, "to", wanted, ROOM, i % 3 ? 0 : O_DIRECT);
        /* The source changes, the copy does not. */
        fill_random(data + ranges[i].in, 64, &(uint64_t){i});
        write_all(from, data + ranges[i].in, BYTES - ranges[i].in < 64 ? 1 : 64,
                  (uint64_t)ranges[i].in);
        if (BYTES - ranges[i].in < 64)
            read_all(from, data, BYTES, 0);
    }
    check_whole(dir, "from", data, BYTES, 0);
    /* At the end, behind it, and to where there was nothing. */
    off_t in = BYTES, out = 0;
    EQUAL(copy_file_range(from, &in, to, &out, 4096, 0), 0);
    in = BYTES - 100, out = ROOM + 4096;
    EQUAL(copy_file_range(from, &in, to, &out, 4096, 0), 100);
    EQUAL(size_of(to), ROOM + 4096 + 100);
    /* Inside one file. */
    in = 0, out = MIB;
    EQUAL(copy_file_range(from, &in, from, &out, MIB, 0), MIB);
    memcpy(data + MIB, data, MIB);
    check_whole(dir, "from", data, BYTES, 0);
    in = 0, out = 4096;
    FAILS(copy_file_range(from, &in, from, &out, 8192, 0), EINVAL);
    int append = SYS_INT(openat(dir, "to", O_WRONLY | O_APPEND));
    in = 0;
    FAILS(copy_file_range(from, &in, append, NULL, 4096, 0), EBADF);
    close(append);
    in = 0, out = 0;
    FAILS(copy_file_range(from, &in, dir, &out, 4096, 0), EISDIR);
    close(from);
    close(to);
    free(data);
    free(wanted);
}

static void test_sendfile(int dir)
{
    enum { BYTES = MIB + 5 };
    char *data = random_bytes(BYTES, 9);
    int from = make(dir, "from"), to = make(dir, "to");
    write_all(from, data, BYTES, 0);
    off_t at = 0;
    while (at < BYTES)
        CHECK(SYS(sendfile(to, from, &at, (size_t)(BYTES - at))) > 0, "nothing sent");
    check_whole(dir, "to", data, BYTES, 0);
    close(from);
    close(to);
    free(data);
}

static const struct mount_case cases[] = {
    {"truncate", test_truncate}, {"fallocate", test_fallocate},
    {"seek", test_seek},         {"sync", test_sync},
    {"direct", test_direct},     {"append", test_append},
    {"tmpfile", test_tmpfile},   {"mmap", test_mmap},
    {"sparse", test_sparse},     {"copy_range", test_copy_range},
    {"sendfile", test_sendfile},
};

int main(int argc, char **argv)
{
    return run_mount_case(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
