// SPDX-License-Identifier: Apache-2.0
/*
 * mount_tool.c - small things that the shell cannot do.
 *
 *   mount_tool dirty FILE OFFSET TEXT   puts TEXT there through a shared mapping, prints "ready",
 *                                       keeps file and mapping until stdin ends
 *   mount_tool map FILE                 data ranges by SEEK_DATA and SEEK_HOLE: "offset length"
 *   mount_tool direct FILE BYTES        writes that many random bytes with O_DIRECT; prints how
 *                                       many were written; status 28 for ENOSPC
 *   mount_tool direct_read FILE OFFSET BYTES   to stdout, not through the cache; status 5 for EIO
 *   mount_tool scattered FILE COUNT SEED       4 KiB writes at random places
 *   mount_tool orphan FILE BYTES        makes it that long, with data, deletes it, prints
 *                                       "ready", holds it open until stdin ends
 *   mount_tool seeks FILE               writes to the cache and asks SEEK_DATA at once, without end;
 *                                       status 0 when that gives an error
 *   mount_tool clone SRC DIR NAME       the clone ioctl alone; status: errno
 *   mount_tool ioctl FILE               what a fuzzer would try; prints "good"
 */
#include "tests/mount/mount_common.h"

#include <sys/mman.h>

static int open_file(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);
    CHECK(fd >= 0, "%s: %s", path, strerror(errno));
    return fd;
}

static void wait_for_stdin(void)
{
    char buffer[64];
    puts("ready");
    fflush(stdout);
    while (read(STDIN_FILENO, buffer, sizeof(buffer)) > 0)
        ;
}

static int run_dirty(char **argv)
{
    int fd = open_file(argv[0], O_RDWR);
    size_t size = size_of(fd), offset = strtoull(argv[1], NULL, 10), length = strlen(argv[2]);
    CHECK(offset + length <= size, "the file ends before that");
    char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    memcpy(map + offset, argv[2], length);
    wait_for_stdin();
    return 0;
}

static int run_map(char **argv)
{
    int fd = open_file(argv[0], O_RDONLY);
    int64_t at = 0;
    while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
        int64_t end = SYS(lseek(fd, at, SEEK_HOLE));
        CHECK(end > at, "SEEK_HOLE went from %" PRId64 " to %" PRId64, at, end);
        printf("%" PRId64 " %" PRId64 "\n", at, end - at);
        at = end;
    }
    CHECK(errno == ENXIO, "SEEK_DATA: %s", strerror(errno));
    return 0;
}

static int run_direct(char **argv)
{
    enum { STEP = 1 << 20 };
    int fd = open_file(argv[0], O_RDWR | O_CREAT | O_DIRECT);
    uint64_t bytes = strtoull(argv[1], NULL, 10), done = 0, rng = 1;
    char *data = check_alloc(STEP);
    int status = 0;
    while (done < bytes && status == 0) {
        fill_random(data, STEP, &rng);
        ssize_t written = pwrite(fd, data, STEP, (off_t)done);
        if (written < 0)
            status = errno;
        else
            done += (uint64_t)written;
    }
    printf("%" PRIu64 "\n", done);
    free(data);
    return status;
}

static int run_direct_read(char **argv)
{
    int fd = open_file(argv[0], O_RDONLY | O_DIRECT);
    size_t bytes = strtoull(argv[2], NULL, 10);
    char *data = check_alloc(bytes);
    ssize_t got = pread(fd, data, bytes, (off_t)strtoull(argv[1], NULL, 10));
    int status = got < 0 ? errno : 0;
    if (got > 0)
        fwrite(data, 1, (size_t)got, stdout);
    free(data);
    return status;
}

static int run_scattered(char **argv)
{
    int fd = open_file(argv[0], O_RDWR);
    uint64_t blocks = size_of(fd) / 4096, rng = strtoull(argv[2], NULL, 10);
    char block[4096];
    for (uint64_t i = strtoull(argv[1], NULL, 10); i > 0; i--) {
        fill_random(block, sizeof(block), &rng);
        write_all(fd, block, sizeof(block), rng_below(&rng, blocks) * 4096);
    }
    return 0;
}

static int run_orphan(char **argv)
{
    int fd = open_file(argv[0], O_RDWR | O_CREAT);
    uint64_t bytes = strtoull(argv[1], NULL, 10), rng = 1;
    char block[65536];
    for (uint64_t at = 0; at < bytes; at += sizeof(block)) {
        fill_random(block, sizeof(block), &rng);
        write_all(fd, block, sizeof(block), at);
    }
    SYS(unlink(argv[0]));
    SYS(fsync(fd));
    wait_for_stdin();
    return 0;
}

static int run_seeks(char **argv)
{
    enum { BYTES = 8 << 20 };
    int fd = open_file(argv[0], O_RDWR | O_CREAT);
    uint64_t rng = 1;
    char *data = check_alloc(BYTES);
    fill_random(data, BYTES, &rng);
    while (ftruncate(fd, 0) == 0 && ftruncate(fd, 8L * BYTES) == 0 &&
           pwrite(fd, data, BYTES, BYTES) > 0 && lseek(fd, 0, SEEK_DATA) == BYTES)
        ;
    free(data);
    return 0;
}

static int run_clone(char **argv)
{
    return -clone_to(open_file(argv[0], O_RDONLY), open_file(argv[1], O_RDONLY | O_DIRECTORY),
                     argv[2]);
}

/* Wrong versions, tokens, names, lengths, objects: errors, and nothing else. */
static int run_ioctl(char **argv)
{
    int fd = open_file(argv[0], O_RDONLY);
    char *slash = strrchr(argv[0], '/');
    CHECK(slash, "a path with a directory is needed");
    *slash = '\0';
    int dir = open_file(argv[0], O_RDONLY | O_DIRECTORY);
    static const unsigned long commands[] = {
        COWFS_IOC_TOKEN, COWFS_IOC_CLONE, COWFS_IOC_STAT,   COWFS_IOC_DU,   COWFS_IOC_DF,
        COWFS_IOC_SEAL,  COWFS_IOC_DIFF,  COWFS_IOC_COMMIT, COWFS_IOC_INFO, COWFS_IOC_PACK};
    /* More than the largest struct. */
    static uint8_t space[1 << 14];
    for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        memset(space, 0, sizeof(space));
        FAILS(ioctl(fd, commands[i], space), EPROTO);
        space[0] = 99;
        FAILS(ioctl(dir, commands[i], space), EPROTO);
        FAILS(ioctl(fd, commands[i], NULL), EFAULT);
        /* The right number, with another size of struct. */
        space[0] = COWFS_IOCTL_VERSION;
        FAILS(ioctl(fd, commands[i] + (1UL << _IOC_SIZESHIFT), space), ENOTTY);
    }
    FAILS(ioctl(fd, _IOWR('c', 77, struct cowfs_ioc_token), space), ENOTTY);

    struct cowfs_ioc_clone clone = {.version = COWFS_IOCTL_VERSION, .name = "x"};
    FAILS(ioctl(dir, COWFS_IOC_CLONE, &clone), ESTALE);
    struct cowfs_ioc_token token = {.version = COWFS_IOCTL_VERSION};
    SYS(ioctl(fd, COWFS_IOC_TOKEN, &token));
    memcpy(clone.token, token.token, sizeof(clone.token));
    clone.token[0] ^= 1;
    FAILS(ioctl(dir, COWFS_IOC_CLONE, &clone), ESTALE);
    clone.token[0] ^= 1;
    FAILS(ioctl(fd, COWFS_IOC_CLONE, &clone), ENOTDIR);
    static const char *const names[] = {"", ".", "..", "a/b", "/"};
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        memset(clone.name, 0, sizeof(clone.name));
        memcpy(clone.name, names[i], strlen(names[i]));
        CHECK(ioctl(dir, COWFS_IOC_CLONE, &clone) < 0, "a clone named '%s'", names[i]);
        CHECK(errno == EINVAL || errno == ENOENT || errno == EEXIST, "'%s': %s", names[i],
              strerror(errno));
    }
    memset(clone.name, 'n', sizeof(clone.name));
    FAILS(ioctl(dir, COWFS_IOC_CLONE, &clone), ENAMETOOLONG);

    struct cowfs_ioc_seal seal = {
        .version = COWFS_IOCTL_VERSION, .offset = UINT64_MAX - 5, .length = UINT64_MAX};
    CHECK(ioctl(fd, COWFS_IOC_SEAL, &seal) < 0 || seal.next == 0, "sealing goes on for ever");
    struct cowfs_ioc_diff diff = {.version = COWFS_IOCTL_VERSION, .offset = UINT64_MAX - 5};
    memcpy(diff.token, token.token, sizeof(diff.token));
    CHECK(ioctl(fd, COWFS_IOC_DIFF, &diff) < 0 || diff.count == 0, "a file differs from itself");
    CHECK(ioctl(dir, COWFS_IOC_DIFF, &diff) < 0, "a directory has been compared with a file");
    struct cowfs_ioc_stat stat = {.version = COWFS_IOCTL_VERSION};
    CHECK(ioctl(dir, COWFS_IOC_STAT, &stat) < 0, "a directory has a block map");
    struct cowfs_ioc_commit commit = {.version = COWFS_IOCTL_VERSION, .flags = 0xff00};
    FAILS(ioctl(fd, COWFS_IOC_COMMIT, &commit), EINVAL);
    puts("good");
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int arguments;
        int (*run)(char **argv);
    } commands[] = {
        {"dirty", 3, run_dirty},         {"map", 1, run_map},
        {"direct", 2, run_direct},       {"direct_read", 3, run_direct_read},
        {"scattered", 3, run_scattered}, {"orphan", 2, run_orphan},
        {"seeks", 1, run_seeks},         {"clone", 3, run_clone},
        {"ioctl", 1, run_ioctl},
    };
    for (unsigned i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(argv[1], commands[i].name) == 0 && argc == commands[i].arguments + 2)
            return commands[i].run(argv + 2);
    fputs("usage: see mount_tool.c\n", stderr);
    return 2;
}
