// SPDX-License-Identifier: Apache-2.0
/*
 * mount_torture MOUNT KILLS [SECONDS_BETWEEN_MAX_MS [SEED]]
 *
 * Processes that use a mount with a supervisor and know exactly what each call has to
 * give, while this one kills the daemon with SIGKILL at random moments. None of them may
 * see an error, a wrong byte, an operation that is lost or done twice. Prints the pauses:
 * from the kill until a request that was made after it is answered; and of that, until the
 * process was gone, which is the kernel's doing. Of each hundred kills, too: pauses must not grow
 * with the number of daemons that have died.
 *
 * MOUNT is the root of the mount; what is made lies in MOUNT/torture.
 */
#include "tests/mount/mount_common.h"

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>

enum {
    BLOCK = 4096,
    BLOCKS = 2048, /* of the files that are written: 8 MiB */
    ENTRIES = 300,
    JOBS_MAX = 32,
    LONG_PAUSE_MS = 500,
    TOLD_TOGETHER = 100, /* kills */
};

struct shared {
    atomic_bool stop;
    atomic_uint_fast64_t rounds[JOBS_MAX];
};
static struct shared *shared;
static unsigned job_number;

/* Whether there is to be another round; all of a job's rounds end with a state that is known. */
static bool go_on(void)
{
    atomic_fetch_add(&shared->rounds[job_number], 1);
    return !atomic_load(&shared->stop);
}

/* ---- jobs: each has a directory of its own ---- */

static void stamp(uint8_t *block, uint64_t index, uint64_t version)
{
    uint64_t state = index * 1000003 + version;
    if (version == 0)
        memset(block, 0, BLOCK);
    else
        fill_random(block, BLOCK, &state);
}

/* Writes blocks and reads them back; knows the version of each. */
static void write_and_verify(int dir, uint64_t seed, int flags)
{
    uint8_t *block = check_alloc(BLOCK), *wanted = check_alloc(BLOCK);
    uint32_t *versions = calloc(BLOCKS, sizeof(*versions));
    int fd = SYS_INT(openat(dir, "data", O_RDWR | O_CREAT | O_EXCL | flags, 0600));
    SYS(ftruncate(fd, (off_t)BLOCK * BLOCKS));
    while (go_on()) {
        for (unsigned i = 0; i < 32; i++) {
            uint64_t n = rng_below(&seed, BLOCKS);
            stamp(block, n, ++versions[n]);
            write_all(fd, block, BLOCK, n * BLOCK);
        }
        if (rng_below(&seed, 16) == 0)
            SYS(fdatasync(fd));
        for (unsigned i = 0; i < 32; i++) {
            uint64_t n = rng_below(&seed, BLOCKS);
            read_all(fd, block, BLOCK, n * BLOCK);
            stamp(wanted, n, versions[n]);
            check_same(block, wanted, BLOCK, "data", n * BLOCK);
        }
    }
    /* All of it, and not what the kernel has cached. */
    SYS(fsync(fd));
    SYS(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
    for (uint64_t n = 0; n < BLOCKS; n++) {
        read_all(fd, block, BLOCK, n * BLOCK);
        stamp(wanted, n, versions[n]);
        check_same(block, wanted, BLOCK, "data at the end", n * BLOCK);
    }
    close(fd);
    free(versions);
    free(block);
    free(wanted);
}

static void job_direct(int dir, uint64_t seed)
{
    write_and_verify(dir, seed, O_DIRECT);
}

static void job_buffered(int dir, uint64_t seed)
{
    write_and_verify(dir, seed, 0);
}

/* A shared mapping, as a guest's memory. */
static void job_mapped(int dir, uint64_t seed)
{
    enum { BYTES = BLOCK * BLOCKS };
    uint8_t *model = calloc(1, BYTES), *read_back = check_alloc(BYTES);
    int fd = SYS_INT(openat(dir, "memory", O_RDWR | O_CREAT | O_EXCL, 0600));
    SYS(ftruncate(fd, BYTES));
    uint8_t *map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    while (go_on()) {
        for (unsigned i = 0; i < 64; i++) {
            uint64_t at = rng_below(&seed, BYTES - 8), value = rng_next(&seed);
            memcpy(map + at, &value, 8);
            memcpy(model + at, &value, 8);
        }
        if (rng_below(&seed, 8) == 0)
            SYS(msync(map, BYTES, MS_SYNC));
        if (rng_below(&seed, 8) == 0)
            SYS(madvise(map, BYTES, MADV_DONTNEED));
        check_same(map, model, BYTES, "memory", 0);
    }
    SYS(msync(map, BYTES, MS_SYNC));
    SYS(munmap(map, BYTES));
    SYS(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
    read_all(fd, read_back, BYTES, 0);
    check_same(read_back, model, BYTES, "memory at the end", 0);
    close(fd);
    free(model);
    free(read_back);
}

static unsigned count_entries(int dir)
{
    int fd = SYS_INT(openat(dir, ".", O_RDONLY | O_DIRECTORY));
    DIR *d = fdopendir(fd);
    unsigned n = 0;
    CHECK(d, "fdopendir: %s", strerror(errno));
    errno = 0;
    for (; readdir(d); n++)
        errno = 0;
    CHECK(errno == 0, "readdir: %s", strerror(errno));
    closedir(d);
    return n - 2;
}

static nlink_t links_of(int dir, const char *name)
{
    struct stat st;
    SYS(fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW));
    return st.st_nlink;
}

/* Each call once, exactly. */
static void job_names(int dir, uint64_t seed)
{
    char target[16];
    while (go_on()) {
        int fd = SYS_INT(openat(dir, "a", O_RDWR | O_CREAT | O_EXCL, 0600));
        close(fd);
        FAILS(openat(dir, "a", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
        SYS(mkdirat(dir, "d", 0700));
        FAILS(mkdirat(dir, "d", 0700), EEXIST);
        SYS(linkat(dir, "a", dir, "b", 0));
        EQUAL(links_of(dir, "a"), 2);
        FAILS(linkat(dir, "a", dir, "b", 0), EEXIST);
        SYS(symlinkat("there", dir, "s"));
        EQUAL(readlinkat(dir, "s", target, sizeof(target)), 5);
        SYS(mknodat(dir, "fifo", S_IFIFO | 0600, 0));
        EQUAL(count_entries(dir), 5);
        SYS(renameat(dir, "b", dir, "d/b"));
        FAILS(renameat(dir, "b", dir, "d/b"), ENOENT);
        EQUAL(links_of(dir, "d/b"), 2);
        /* Done twice, an exchange is none. */
        struct stat s, fifo, st;
        SYS(fstatat(dir, "s", &s, AT_SYMLINK_NOFOLLOW));
        SYS(fstatat(dir, "fifo", &fifo, AT_SYMLINK_NOFOLLOW));
        SYS(renameat2(dir, "s", dir, "fifo", RENAME_EXCHANGE));
        SYS(fstatat(dir, "s", &st, AT_SYMLINK_NOFOLLOW));
        EQUAL(st.st_ino, fifo.st_ino);
        EQUAL(links_of(dir, "s"), 1);
        SYS(renameat2(dir, "a", dir, "c", RENAME_NOREPLACE));
        SYS(unlinkat(dir, "d/b", 0));
        FAILS(unlinkat(dir, "d/b", 0), ENOENT);
        EQUAL(links_of(dir, "c"), 1);
        SYS(unlinkat(dir, "c", 0));
        SYS(unlinkat(dir, "s", 0));
        SYS(unlinkat(dir, "fifo", 0));
        SYS(unlinkat(dir, "d", AT_REMOVEDIR));
        FAILS(unlinkat(dir, "d", AT_REMOVEDIR), ENOENT);
        EQUAL(count_entries(dir), 0);
        (void)seed;
    }
}

static void job_xattrs(int dir, uint64_t seed)
{
    char value[64];
    int fd = SYS_INT(openat(dir, "x", O_RDWR | O_CREAT | O_EXCL, 0600));
    while (go_on()) {
        uint64_t number = rng_next(&seed);
        SYS(fsetxattr(fd, "user.a", &number, 8, XATTR_CREATE));
        FAILS(fsetxattr(fd, "user.a", &number, 8, XATTR_CREATE), EEXIST);
        number++;
        SYS(fsetxattr(fd, "user.a", &number, 8, XATTR_REPLACE));
        EQUAL(fgetxattr(fd, "user.a", value, sizeof(value)), 8);
        CHECK(memcmp(value, &number, 8) == 0, "another value of user.a");
        SYS(fremovexattr(fd, "user.a"));
        FAILS(fremovexattr(fd, "user.a"), ENODATA);
    }
    close(fd);
}

/* What is appended is there once. */
static void job_append(int dir, uint64_t seed)
{
    uint64_t count = 0, read_back;
    int fd = SYS_INT(openat(dir, "log", O_RDWR | O_CREAT | O_EXCL | O_APPEND, 0600));
    while (go_on()) {
        for (unsigned i = 0; i < 20; i++) {
            EQUAL(write(fd, &count, sizeof(count)), sizeof(count));
            count++;
        }
        EQUAL(size_of(fd), count * sizeof(count));
        uint64_t n = rng_below(&seed, count);
        read_all(fd, &read_back, sizeof(read_back), n * sizeof(count));
        EQUAL(read_back, n);
    }
    SYS(fsync(fd));
    EQUAL(size_of(fd), count * sizeof(count));
    close(fd);
}

/* Unlinked, and still in use. */
static void job_unlinked(int dir, uint64_t seed)
{
    uint8_t *block = check_alloc(BLOCK), *wanted = check_alloc(BLOCK);
    while (go_on()) {
        uint64_t version = rng_next(&seed) | 1;
        int fd = SYS_INT(openat(dir, "gone", O_RDWR | O_CREAT | O_EXCL, 0600));
        int nameless = SYS_INT(openat(dir, ".", O_RDWR | O_TMPFILE, 0600));
        stamp(block, 0, version);
        write_all(fd, block, BLOCK, 0);
        SYS(unlinkat(dir, "gone", 0));
        for (unsigned i = 1; i < 40; i++) {
            stamp(block, i, version);
            write_all(fd, block, BLOCK, (uint64_t)i * BLOCK);
            write_all(nameless, block, BLOCK, (uint64_t)i * BLOCK);
        }
        SYS(fsync(fd));
        SYS(fsync(nameless));
        usleep((useconds_t)rng_below(&seed, 60000));
        SYS(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
        SYS(posix_fadvise(nameless, 0, 0, POSIX_FADV_DONTNEED));
        for (unsigned i = 0; i < 40; i++) {
            stamp(wanted, i, version);
            read_all(fd, block, BLOCK, (uint64_t)i * BLOCK);
            check_same(block, wanted, BLOCK, "unlinked", (uint64_t)i * BLOCK);
            stamp(wanted, i, i ? version : 0);
            read_all(nameless, block, BLOCK, (uint64_t)i * BLOCK);
            check_same(block, wanted, BLOCK, "nameless", (uint64_t)i * BLOCK);
        }
        struct stat st;
        SYS(fstat(fd, &st));
        EQUAL(st.st_nlink, 0);
        close(fd);
        close(nameless);
        EQUAL(count_entries(dir), 0);
    }
    free(block);
    free(wanted);
}

/* By ioctl, by copy_file_range, and of a part; each compared. */
static void job_clones(int dir, uint64_t seed)
{
    enum { BYTES = 1 << 20 };
    uint8_t *content = check_alloc(BYTES), *got = check_alloc(BYTES);
    int fd = SYS_INT(openat(dir, "golden", O_RDWR | O_CREAT | O_EXCL, 0600));
    fill_random(content, BYTES, &seed);
    write_all(fd, content, BYTES, 0);
    while (go_on()) {
        uint64_t at = rng_below(&seed, BYTES / BLOCK) * BLOCK;
        fill_random(content + at, BLOCK, &seed);
        write_all(fd, content + at, BLOCK, at);
        int error = clone_with_any(fd, dir, "clone");
        CHECK(error == 0, "clone: %s", strerror(-error));
        int clone = SYS_INT(openat(dir, "clone", O_RDWR));
        int copy = SYS_INT(openat(dir, "copy", O_RDWR | O_CREAT | O_EXCL, 0600));
        EQUAL(copy_file_range(fd, NULL, copy, NULL, 0, 0), 0);
        off_t from = 0, to = 0;
        while (to < BYTES)
            CHECK(SYS(copy_file_range(fd, &from, copy, &to, (size_t)(BYTES - to), 0)) > 0,
                  "copy_file_range ends early");
        /* The original changes; they do not. */
        uint8_t other[BLOCK];
        fill_random(other, BLOCK, &seed);
        write_all(fd, other, BLOCK, at);
        read_all(clone, got, BYTES, 0);
        check_same(got, content, BYTES, "clone", 0);
        read_all(copy, got, BYTES, 0);
        check_same(got, content, BYTES, "copy", 0);
        memcpy(content + at, other, BLOCK);
        close(clone);
        close(copy);
        SYS(unlinkat(dir, "clone", 0));
        SYS(unlinkat(dir, "copy", 0));
        EQUAL(count_entries(dir), 1);
    }
    close(fd);
    free(content);
    free(got);
}

/* SEEK_DATA right after a write that only the kernel knows of. */
static void job_seek(int dir, uint64_t seed)
{
    enum { STEP = 1 << 20 };
    while (go_on()) {
        int fd = SYS_INT(openat(dir, "sparse", O_RDWR | O_CREAT | O_TRUNC, 0600));
        SYS(ftruncate(fd, 64 * (off_t)STEP));
        off_t at = (off_t)(1 + rng_below(&seed, 62)) * STEP;
        write_all(fd, "data", 4, (uint64_t)at);
        off_t data = (off_t)SYS(lseek(fd, 0, SEEK_DATA));
        CHECK(data <= at && data > at - STEP, "data at %jd, not %jd", (intmax_t)data, (intmax_t)at);
        off_t hole = (off_t)SYS(lseek(fd, at, SEEK_HOLE));
        CHECK(hole > at && hole <= at + STEP, "a hole at %jd", (intmax_t)hole);
        FAILS(lseek(fd, hole, SEEK_DATA), ENXIO);
        close(fd);
        SYS(unlinkat(dir, "sparse", 0));
    }
}

/* Many entries: none is listed twice, or left out. */
static void job_listing(int dir, uint64_t seed)
{
    char name[32];
    unsigned count = 0;
    for (unsigned i = 0; i < ENTRIES; i++, count++) {
        snprintf(name, sizeof(name), "entry-%u", i);
        close(SYS_INT(openat(dir, name, O_WRONLY | O_CREAT | O_EXCL, 0600)));
    }
    while (go_on()) {
        EQUAL(count_entries(dir), count);
        snprintf(name, sizeof(name), "more-%u", (unsigned)rng_below(&seed, 1000000));
        SYS(mkdirat(dir, name, 0700));
        EQUAL(count_entries(dir), count + 1);
        SYS(unlinkat(dir, name, AT_REMOVEDIR));
    }
}

/* A lock that this process holds all the while is refused to another. */
static void job_locks(int dir, uint64_t seed)
{
    int fd = SYS_INT(openat(dir, "lock", O_RDWR | O_CREAT | O_EXCL, 0600));
    (void)seed;
    SYS(flock(fd, LOCK_EX));
    while (go_on()) {
        int other = SYS_INT(openat(dir, "lock", O_RDWR));
        FAILS(flock(other, LOCK_EX | LOCK_NB), EWOULDBLOCK);
        close(other);
        usleep(2000);
    }
    close(fd);
}

static const struct job {
    const char *name;
    void (*run)(int dir, uint64_t seed);
} jobs[] = {
    {"direct", job_direct},     {"buffered", job_buffered}, {"mapped", job_mapped},
    {"names", job_names},       {"xattrs", job_xattrs},     {"append", job_append},
    {"unlinked", job_unlinked}, {"clones", job_clones},     {"seek", job_seek},
    {"listing", job_listing},   {"locks", job_locks},       {"names-2", job_names},
};
enum { JOBS = sizeof(jobs) / sizeof(jobs[0]) };

static pid_t start(int dir, unsigned number, uint64_t seed)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    job_number = number;
    SYS(mkdirat(dir, jobs[number].name, 0700));
    int own = SYS_INT(openat(dir, jobs[number].name, O_RDONLY | O_DIRECTORY));
    jobs[number].run(own, seed + number);
    exit(0);
}

/* ---- the killer ---- */

static double now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static pid_t daemon_of(int root)
{
    struct cowfs_ioc_upgrade io = {.version = COWFS_IOCTL_VERSION};
    SYS(ioctl(root, COWFS_IOC_UPGRADE, &io));
    CHECK(io.supervisor_pid, "the mount has no supervisor");
    return (pid_t)io.pid;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

struct pause {
    double all, dying; /* ms */
};

static struct pause kill_once(int root, pid_t *daemon)
{
    int process = (int)syscall(SYS_pidfd_open, *daemon, 0);
    struct pollfd gone = {.fd = process, .events = POLLIN};
    CHECK(process >= 0, "pidfd_open %d: %s", (int)*daemon, strerror(errno));
    double before = now_ms();
    SYS(kill(*daemon, SIGKILL));
    SYS(poll(&gone, 1, -1));
    struct pause pause = {.dying = now_ms() - before};
    close(process);
    *daemon = daemon_of(root);
    pause.all = now_ms() - before;
    return pause;
}

/* Sorts them. */
static void print_pauses(const char *what, double *ms, unsigned count)
{
    qsort(ms, count, sizeof(*ms), compare);
    printf("%s: median %.1f ms, 99 %% below %.1f, worst %.1f\n", what, ms[count / 2],
           ms[count * 99 / 100], ms[count - 1]);
    fflush(stdout);
}

static void print_pauses_to(unsigned done, const double *ms)
{
    double last[TOLD_TOGETHER];
    char what[64];
    memcpy(last, ms + done - TOLD_TOGETHER, sizeof(last));
    snprintf(what, sizeof(what), "kills %u to %u, pause", done - TOLD_TOGETHER + 1, done);
    print_pauses(what, last, TOLD_TOGETHER);
}

static bool all_alive(const pid_t *pids)
{
    for (unsigned i = 0; i < JOBS; i++)
        if (waitpid(pids[i], NULL, WNOHANG) != 0)
            return false;
    return true;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s MOUNT KILLS [MOST_MS_BETWEEN [SEED]]\n", argv[0]);
        return 2;
    }
    unsigned kills = (unsigned)atoi(argv[2]);
    uint64_t between_ms = argc > 3 ? strtoull(argv[3], NULL, 10) : 300;
    uint64_t seed = argc > 4 ? strtoull(argv[4], NULL, 10) : (uint64_t)time(NULL);
    pid_t pids[JOBS];
    double *pauses = calloc(kills, sizeof(*pauses)), *dying = calloc(kills, sizeof(*dying));

    printf("seed %" PRIu64 "\n", seed);
    fflush(NULL);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap");
    int root = SYS_INT(open(argv[1], O_RDONLY | O_DIRECTORY));
    SYS(mkdirat(root, "torture", 0700));
    int dir = SYS_INT(openat(root, "torture", O_RDONLY | O_DIRECTORY));
    for (unsigned i = 0; i < JOBS; i++)
        pids[i] = start(dir, i, seed);

    unsigned done = 0;
    bool failed = false;
    pid_t daemon = daemon_of(root);
    while (done < kills && !failed) {
        usleep((useconds_t)rng_below(&seed, between_ms * 1000));
        struct pause pause = kill_once(root, &daemon);
        pauses[done] = pause.all;
        dying[done++] = pause.dying;
        if (pause.all > LONG_PAUSE_MS)
            printf("kill %u: %.1f ms, until the process was gone %.1f\n", done, pause.all,
                   pause.dying);
        if (done % TOLD_TOGETHER == 0)
            print_pauses_to(done, pauses);
        failed = !all_alive(pids);
    }
    atomic_store(&shared->stop, true);
    for (unsigned i = 0; i < JOBS; i++) {
        int status = 0;
        pid_t got = waitpid(pids[i], &status, 0);
        if (got < 0 || status != 0) {
            printf("FAILED: %s%s\n", jobs[i].name, got < 0 ? " (earlier)" : "");
            failed = true;
        }
        printf("%-10s %" PRIu64 " rounds\n", jobs[i].name,
               (uint64_t)atomic_load(&shared->rounds[i]));
    }
    printf("%u kills: %s\n", done, failed ? "FAILED" : "0 errors, 0 wrong bytes");
    if (done) {
        print_pauses("pause, from the kill to the next answer", pauses, done);
        print_pauses("of that, until the process was gone", dying, done);
    }
    return failed;
}
