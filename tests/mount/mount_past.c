// SPDX-License-Identifier: Apache-2.0
/*
 * mount_past MAIN READ JOBS STOP
 *
 * Files that are read and mapped past the daemon while somebody kills it: JOBS processes make files
 * in MAIN, and map and read them in READ (the same mount, or its view). They know each byte. A file
 * that is open so cannot be written (ETXTBSY); when it is closed it can, and what is mapped stays
 * as it was. No error may be seen. Ends when the file STOP is there; says how many handles were past
 * the daemon.
 */
#include "tests/mount/mount_common.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { BYTES = 3 << 20, PART = 1 << 20, BLOCK = 4096, JOBS_MAX = 16 };

static struct {
    atomic_uint_fast64_t rounds, past, opened;
} * shared;

static int main_dir, read_dir;

static bool is_past(int fd)
{
    struct cowfs_ioc_stat io = {.version = COWFS_IOCTL_VERSION};
    SYS(ioctl(fd, COWFS_IOC_STAT, &io));
    atomic_fetch_add(&shared->opened, 1);
    atomic_fetch_add(&shared->past, io.passthrough);
    return io.passthrough;
}

static void make(const char *name, const uint8_t *content)
{
    int fd = SYS_INT(openat(main_dir, name, O_WRONLY | O_CREAT | O_EXCL, 0600));
    for (unsigned at = 0; at < BYTES; at += PART)
        write_all(fd, content + at, PART, at);
    SYS(fsync(fd));
    SYS(close(fd));
}

static const uint8_t *map(int fd, uint64_t *seed)
{
    int flags = rng_below(seed, 2) ? MAP_PRIVATE : MAP_SHARED;
    const uint8_t *at = mmap(NULL, BYTES, PROT_READ, flags, fd, 0);
    CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
    return at;
}

/* Right after a close of which the kernel has not told yet it may be refused. */
static int open_to_write(const char *name)
{
    for (unsigned i = 0;; i++) {
        int fd = openat(main_dir, name, O_RDWR);
        if (fd >= 0)
            return fd;
        CHECK(errno == ETXTBSY && i < 2000, "%s: %s", name, strerror(errno));
        usleep(10000);
    }
}

/* Nothing of the kernel's cache: past the daemon, or by a page that is not there yet. */
static void forget(const uint8_t *at)
{
    SYS(madvise((void *)(uintptr_t)at, BYTES, MADV_DONTNEED));
}

static void read_and_compare(const char *name, const uint8_t *content, uint8_t *buffer)
{
    int fd = SYS_INT(openat(read_dir, name, O_RDONLY));
    read_all(fd, buffer, BYTES, 0);
    check_same(buffer, content, BYTES, name, 0);
    SYS(close(fd));
}

static void one_round(unsigned job, uint64_t *seed, uint8_t *content, uint8_t *changed,
                      uint8_t *buffer)
{
    char golden[32], copy[32];
    snprintf(golden, sizeof(golden), "past-%u-golden", job);
    snprintf(copy, sizeof(copy), "past-%u-copy", job);
    fill_random(content, BYTES, seed);
    memcpy(changed, content, BYTES);
    make(golden, content);

    int fd = SYS_INT(openat(read_dir, golden, O_RDONLY));
    is_past(fd);
    const uint8_t *of_golden = map(fd, seed);
    check_same(of_golden, content, BYTES, "mapped", 0);
    /* Tokens live in one daemon. */
    int error;
    do
        error = clone_to(fd, main_dir, copy);
    while (error == -ESTALE);
    CHECK(error == 0, "clone: %s", strerror(-error));
    SYS(close(fd));

    fd = SYS_INT(openat(read_dir, copy, O_RDONLY));
    bool past = is_past(fd);
    const uint8_t *of_copy = map(fd, seed);
    usleep((useconds_t)rng_below(seed, 30000));
    if (past)
        FAILS(openat(main_dir, copy, O_RDWR), ETXTBSY);
    int second = SYS_INT(openat(read_dir, copy, O_RDONLY));
    EQUAL(is_past(second), past);
    SYS(close(fd));
    read_all(second, buffer, BYTES, 0);
    check_same(buffer, content, BYTES, "the second handle", 0);
    if (past)
        FAILS(openat(main_dir, copy, O_RDWR), ETXTBSY);
    SYS(close(second));

    fd = open_to_write(copy);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t at = rng_below(seed, BYTES / BLOCK) * BLOCK;
        fill_random(changed + at, BLOCK, seed);
        write_all(fd, changed + at, BLOCK, at);
    }
    SYS(fsync(fd));
    SYS(close(fd));
    usleep((useconds_t)rng_below(seed, 30000));
    if (past) {
        forget(of_copy);
        check_same(of_copy, content, BYTES, "a mapping of what was written since", 0);
    }
    read_and_compare(copy, changed, buffer);
    SYS(unlinkat(main_dir, golden, 0));
    /* A view's kernel keeps what it knows until it is asked for the name. */
    FAILS(faccessat(read_dir, golden, F_OK, 0), ENOENT);
    forget(of_golden);
    check_same(of_golden, content, BYTES, "a mapping of what was deleted", 0);
    SYS(munmap((void *)(uintptr_t)of_golden, BYTES));
    SYS(munmap((void *)(uintptr_t)of_copy, BYTES));
    SYS(unlinkat(main_dir, copy, 0));
    FAILS(faccessat(read_dir, copy, F_OK, 0), ENOENT);
    atomic_fetch_add(&shared->rounds, 1);
}

static pid_t start(unsigned job, const char *stop)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    uint64_t seed = (uint64_t)time(NULL) * 1000 + job;
    uint8_t *content = check_alloc(BYTES), *changed = check_alloc(BYTES),
            *buffer = check_alloc(BYTES);
    while (access(stop, F_OK) != 0)
        one_round(job, &seed, content, changed, buffer);
    exit(0);
}

int main(int argc, char **argv)
{
    pid_t pids[JOBS_MAX];
    unsigned jobs = argc == 5 ? (unsigned)atoi(argv[3]) : 0;
    if (jobs < 1 || jobs > JOBS_MAX) {
        fprintf(stderr, "usage: %s MAIN READ JOBS STOP\n", argv[0]);
        return 2;
    }
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap");
    main_dir = SYS_INT(open(argv[1], O_RDONLY | O_DIRECTORY));
    read_dir = SYS_INT(open(argv[2], O_RDONLY | O_DIRECTORY));
    for (unsigned i = 0; i < jobs; i++)
        pids[i] = start(i, argv[4]);
    bool failed = false;
    for (unsigned i = 0; i < jobs; i++) {
        int status = 0;
        failed |= waitpid(pids[i], &status, 0) < 0 || status != 0;
    }
    printf("%s: %" PRIuFAST64 " rounds, %" PRIuFAST64 " of %" PRIuFAST64
           " handles past the daemon%s\n",
           argv[1] == argv[2] || strcmp(argv[1], argv[2]) == 0 ? "passthrough" : "view",
           atomic_load(&shared->rounds), atomic_load(&shared->past), atomic_load(&shared->opened),
           failed ? ": FAILED" : "");
    return failed || atomic_load(&shared->past) == 0;
}
