// SPDX-License-Identifier: Apache-2.0
/* posix_attr.c - what files have besides content: modes, owners, times, extended
 * attributes, locks. */
#include "tests/mount/mount_common.h"

#include <sys/file.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>

enum { NOBODY = 65534 };

static int make(int dir, const char *name, mode_t mode)
{
    int fd = SYS_INT(openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode));
    SYS(fchmod(fd, mode));
    return fd;
}

static struct stat stat_fd(int fd)
{
    struct stat st;
    SYS(fstat(fd, &st));
    return st;
}

/* Runs fn in a process that is nobody, with no capabilities. */
static void as_nobody(void (*fn)(int dir), int dir)
{
    int status;
    pid_t pid = SYS_INT(fork());
    if (pid == 0) {
        SYS(setgid(NOBODY));
        SYS(setuid(NOBODY));
        fn(dir);
        _exit(0);
    }
    EQUAL(waitpid(pid, &status, 0), pid);
    CHECK(status == 0, "the part that runs as nobody failed");
}

static void nobody_and_modes(int dir)
{
    FAILS(openat(dir, "secret", O_RDONLY), EACCES);
    FAILS(openat(dir, "readable", O_WRONLY), EACCES);
    SYS(close(SYS_INT(openat(dir, "readable", O_RDONLY))));
    FAILS(fchmodat(dir, "readable", 0777, 0), EPERM);
    FAILS(fchownat(dir, "readable", NOBODY, NOBODY, 0), EPERM);
    FAILS(openat(dir, "new", O_RDWR | O_CREAT, 0644), EACCES);
    FAILS(unlinkat(dir, "readable", 0), EACCES);
    FAILS(openat(dir, "closed/x", O_RDONLY), EACCES);
    FAILS(unlinkat(dir, "sticky/roots", 0), EPERM);
    SYS(close(SYS_INT(openat(dir, "sticky/mine", O_RDWR | O_CREAT | O_EXCL, 0644))));
    SYS(unlinkat(dir, "sticky/mine", 0));
    FAILS(truncate("/dev/null/x", 0), ENOTDIR);
    /* Writing takes the setuid and setgid bits of a program away. */
    int fd = SYS_INT(openat(dir, "setuid", O_WRONLY));
    EQUAL(pwrite(fd, "x", 1, 0), 1);
    EQUAL(stat_fd(fd).st_mode & 07777, 0777);
    SYS(close(fd));
    SYS(close(SYS_INT(openat(dir, "setuid2", O_WRONLY | O_TRUNC))));
}

static void test_modes(int dir)
{
    SYS(fchmod(dir, 0755));
    int fd = make(dir, "readable", 0644);
    for (mode_t mode = 0; mode <= 07777; mode += 0111) {
        SYS(fchmod(fd, mode));
        EQUAL(stat_fd(fd).st_mode & 07777, mode & 07777);
    }
    SYS(fchmod(fd, 0644));
    close(fd);
    close(make(dir, "secret", 0600));
    close(make(dir, "setuid", 06777));
    close(make(dir, "setuid2", 06777));
    SYS(mkdirat(dir, "closed", 0700));
    SYS(mkdirat(dir, "sticky", 0777));
    SYS(fchmodat(dir, "sticky", 01777, 0));
    close(make(dir, "sticky/roots", 0666));
    as_nobody(nobody_and_modes, dir);
    struct stat st;
    SYS(fstatat(dir, "setuid2", &st, 0));
    EQUAL(st.st_mode & 07777, 0777);
}

static void test_owners(int dir)
{
    int fd = make(dir, "f", 0755);
    EQUAL(stat_fd(fd).st_uid, 0);
    SYS(fchown(fd, 1234, 5678));
    EQUAL(stat_fd(fd).st_uid, 1234);
    EQUAL(stat_fd(fd).st_gid, 5678);
    SYS(fchown(fd, (uid_t)-1, 99));
    EQUAL(stat_fd(fd).st_uid, 1234);
    EQUAL(stat_fd(fd).st_gid, 99);
    SYS(fchown(fd, UINT32_MAX - 1, 0));
    EQUAL(stat_fd(fd).st_uid, UINT32_MAX - 1);
    /* chown takes setuid and setgid away from a program. */
    SYS(fchmod(fd, 06755));
    SYS(fchown(fd, 1, 1));
    EQUAL(stat_fd(fd).st_mode & 07777, 0755);
    SYS(symlinkat("f", dir, "s"));
    SYS(fchownat(dir, "s", 7, 8, AT_SYMLINK_NOFOLLOW));
    struct stat st;
    SYS(fstatat(dir, "s", &st, AT_SYMLINK_NOFOLLOW));
    EQUAL(st.st_uid, 7);
    EQUAL(stat_fd(fd).st_uid, 1);
    /* A directory with setgid gives its group, and the bit to directories. */
    SYS(mkdirat(dir, "d", 0755));
    SYS(fchownat(dir, "d", 0, 4321, 0));
    SYS(fchmodat(dir, "d", 02755, 0));
    close(make(dir, "d/f", 0644));
    SYS(mkdirat(dir, "d/e", 0755));
    SYS(fstatat(dir, "d/f", &st, 0));
    EQUAL(st.st_gid, 4321);
    SYS(fstatat(dir, "d/e", &st, 0));
    EQUAL(st.st_gid, 4321);
    CHECK(st.st_mode & S_ISGID, "setgid is not inherited");
    close(fd);
}

static int64_t ns(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void test_times(int dir)
{
    int fd = make(dir, "f", 0644);
    /* Before 1970, to the nanosecond, beyond 2038. */
    const struct timespec times[][2] = {
        {{1, 123456789}, {2, 987654321}},
        {{-86400, 1}, {-1, 999999999}},
        {{INT64_C(1) << 33, 5}, {(INT64_C(1) << 32) + 1, 6}},
    };
    for (unsigned i = 0; i < 3; i++) {
        SYS(futimens(fd, times[i]));
        EQUAL(ns(stat_fd(fd).st_atim), ns(times[i][0]));
        EQUAL(ns(stat_fd(fd).st_mtim), ns(times[i][1]));
    }
    struct stat before = stat_fd(fd);
    const struct timespec only_mtime[2] = {{0, UTIME_OMIT}, {77, 7}};
    SYS(futimens(fd, only_mtime));
    EQUAL(ns(stat_fd(fd).st_atim), ns(before.st_atim));
    EQUAL(ns(stat_fd(fd).st_mtim), ns(only_mtime[1]));
    CHECK(ns(stat_fd(fd).st_ctim) >= ns(before.st_ctim), "ctime went back");

    /* Writing changes mtime, also once the cache has been written back. */
    write_all(fd, "x", 1, 0);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    CHECK(llabs(ns(stat_fd(fd).st_mtim) - ns(now)) < INT64_C(60000000000), "mtime is not now");
    SYS(fsync(fd));
    CHECK(llabs(ns(stat_fd(fd).st_mtim) - ns(now)) < INT64_C(60000000000), "mtime is not now");
    /* A time set after a write that is still in the cache stays. */
    write_all(fd, "y", 1, 0);
    SYS(futimens(fd, times[0]));
    SYS(fsync(fd));
    EQUAL(ns(stat_fd(fd).st_mtim), ns(times[0][1]));
    close(fd);
    fd = SYS_INT(openat(dir, "f", O_RDONLY));
    EQUAL(ns(stat_fd(fd).st_mtim), ns(times[0][1]));
    close(fd);

    /* Making a name changes the directory's mtime. */
    SYS(futimens(dir, times[0]));
    close(make(dir, "g", 0644));
    CHECK(ns(stat_fd(dir).st_mtim) > ns(times[0][1]), "the directory's mtime stays");
    SYS(futimens(dir, times[0]));
    SYS(unlinkat(dir, "g", 0));
    CHECK(ns(stat_fd(dir).st_mtim) > ns(times[0][1]), "the directory's mtime stays");
    /* A link changes the file's ctime. */
    struct stat st;
    SYS(fstatat(dir, "f", &before, 0));
    SYS(linkat(dir, "f", dir, "h", 0));
    SYS(fstatat(dir, "f", &st, 0));
    CHECK(ns(st.st_ctim) >= ns(before.st_ctim), "ctime went back");
    EQUAL(ns(st.st_mtim), ns(before.st_mtim));
}

static void test_xattrs(int dir)
{
    static char big[65537], got[65537];
    char name[300], list[16384];
    int fd = make(dir, "f", 0644);
    FAILS(fgetxattr(fd, "user.none", got, sizeof(got)), ENODATA);
    EQUAL(flistxattr(fd, list, sizeof(list)), 0);
    SYS(fsetxattr(fd, "user.a", "value", 5, 0));
    EQUAL(fgetxattr(fd, "user.a", NULL, 0), 5);
    EQUAL(fgetxattr(fd, "user.a", got, sizeof(got)), 5);
    check_same(got, "value", 5, "user.a", 0);
    FAILS(fgetxattr(fd, "user.a", got, 4), ERANGE);
    FAILS(fsetxattr(fd, "user.a", "x", 1, XATTR_CREATE), EEXIST);
    FAILS(fsetxattr(fd, "user.b", "x", 1, XATTR_REPLACE), ENODATA);
    SYS(fsetxattr(fd, "user.a", "", 0, XATTR_REPLACE));
    EQUAL(fgetxattr(fd, "user.a", got, sizeof(got)), 0);
    SYS(fsetxattr(fd, "trusted.t", "T", 1, 0));
    EQUAL(fgetxattr(fd, "trusted.t", got, sizeof(got)), 1);

    /* As large, and with as long a name, as Linux has them. */
    uint64_t rng = 1;
    fill_random(big, sizeof(big), &rng);
    SYS(fsetxattr(fd, "user.big", big, 65536, 0));
    EQUAL(fgetxattr(fd, "user.big", got, sizeof(got)), 65536);
    check_same(got, big, 65536, "user.big", 0);
    FAILS(fsetxattr(fd, "user.big", big, 65537, 0), E2BIG);
    memset(name, 'n', sizeof(name));
    memcpy(name, "user.", 5);
    name[255] = '\0';
    SYS(fsetxattr(fd, name, "long", 4, 0));
    EQUAL(fgetxattr(fd, name, got, sizeof(got)), 4);
    SYS(fremovexattr(fd, name));
    FAILS(fgetxattr(fd, name, got, sizeof(got)), ENODATA);
    FAILS(fremovexattr(fd, name), ENODATA);

    for (unsigned i = 0; i < 200; i++) {
        snprintf(name, sizeof(name), "user.many.%u", i);
        SYS(fsetxattr(fd, name, name, strlen(name), XATTR_CREATE));
    }
    ssize_t bytes = SYS(flistxattr(fd, list, sizeof(list)));
    unsigned count = 0;
    for (ssize_t at = 0; at < bytes; at += (ssize_t)strlen(list + at) + 1)
        count += strncmp(list + at, "user.many.", 10) == 0;
    EQUAL(count, 200);
    EQUAL(flistxattr(fd, NULL, 0), bytes);
    FAILS(flistxattr(fd, list, 10), ERANGE);

    SYS(fsetxattr(dir, "user.dir", "D", 1, 0));
    EQUAL(fgetxattr(dir, "user.dir", got, sizeof(got)), 1);
    SYS(fremovexattr(dir, "user.dir"));
    SYS(close(fd));
    fd = SYS_INT(openat(dir, "f", O_RDONLY));
    EQUAL(fgetxattr(fd, "user.big", got, sizeof(got)), 65536);
    close(fd);
}

static void test_statfs(int dir)
{
    struct statvfs before, after;
    enum { BYTES = 64 << 20 };
    SYS(fstatvfs(dir, &before));
    CHECK(before.f_bsize > 0 && before.f_frsize > 0, "no block size");
    CHECK(before.f_blocks >= before.f_bfree && before.f_bfree >= before.f_bavail,
          "more free than there is");
    CHECK(before.f_bavail > 0, "nothing free");
    EQUAL(before.f_namemax, 255);
    int fd = make(dir, "f", 0644);
    uint64_t rng = 1;
    char *data = check_alloc(BYTES);
    fill_random(data, BYTES, &rng);
    write_all(fd, data, BYTES, 0);
    SYS(fsync(fd));
    SYS(fstatvfs(dir, &after));
    uint64_t taken = (before.f_bavail - after.f_bavail) * after.f_frsize;
    CHECK(before.f_bavail > after.f_bavail && taken >= BYTES * 9 / 10 &&
              taken < 2 * (uint64_t)BYTES,
          "writing %d bytes took %" PRIu64, BYTES, taken);
    free(data);
    close(fd);
}

/* ---- locks ---- */

static int lock_ofd(int fd, int command, short type, off_t start, off_t length)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &lock);
}

static void test_flock(int dir)
{
    int a = make(dir, "f", 0644);
    int b = SYS_INT(openat(dir, "f", O_RDWR));
    SYS(flock(a, LOCK_EX));
    FAILS(flock(b, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    FAILS(flock(b, LOCK_SH | LOCK_NB), EWOULDBLOCK);
    SYS(flock(a, LOCK_SH));
    SYS(flock(b, LOCK_SH | LOCK_NB));
    FAILS(flock(a, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    SYS(flock(b, LOCK_UN));
    SYS(flock(a, LOCK_EX | LOCK_NB));
    /* One that waits gets it when the holder closes. */
    pid_t pid = SYS_INT(fork());
    if (pid == 0) {
        close(a);
        alarm(60);
        SYS(flock(b, LOCK_EX));
        _exit(0);
    }
    usleep(50000);
    close(a);
    int status;
    EQUAL(waitpid(pid, &status, 0), pid);
    EQUAL(status, 0);
    close(b);
}

static void test_range_locks(int dir)
{
    int a = make(dir, "f", 0644);
    int b = SYS_INT(openat(dir, "f", O_RDWR));
    /* Of the open file description: two opens of one process conflict. */
    SYS(lock_ofd(a, F_OFD_SETLK, F_WRLCK, 0, 100));
    FAILS(lock_ofd(b, F_OFD_SETLK, F_RDLCK, 50, 100), EAGAIN);
    SYS(lock_ofd(b, F_OFD_SETLK, F_WRLCK, 100, 100));
    struct flock probe = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 150, .l_len = 1};
    SYS(fcntl(a, F_OFD_GETLK, &probe));
    EQUAL(probe.l_type, F_WRLCK);
    EQUAL(probe.l_start, 100);
    EQUAL(probe.l_len, 100);
    SYS(lock_ofd(a, F_OFD_SETLK, F_UNLCK, 0, 50));
    SYS(lock_ofd(b, F_OFD_SETLK, F_RDLCK, 0, 50));
    FAILS(lock_ofd(b, F_OFD_SETLK, F_RDLCK, 0, 51), EAGAIN);
    close(a);
    SYS(lock_ofd(b, F_OFD_SETLK, F_WRLCK, 0, 0));
    close(b);

    /* Of the process: another process conflicts. */
    a = SYS_INT(openat(dir, "f", O_RDWR));
    SYS(lock_ofd(a, F_SETLK, F_WRLCK, 0, 10));
    pid_t pid = SYS_INT(fork());
    if (pid == 0) {
        FAILS(lock_ofd(a, F_SETLK, F_WRLCK, 0, 10), EAGAIN);
        SYS(lock_ofd(a, F_SETLK, F_WRLCK, 10, 10));
        _exit(0);
    }
    int status;
    EQUAL(waitpid(pid, &status, 0), pid);
    EQUAL(status, 0);
    close(a);
}

static const struct mount_case cases[] = {
    {"modes", test_modes},
    {"owners", test_owners},
    {"times", test_times},
    {"xattrs", test_xattrs},
    {"statfs", test_statfs},
    {"flock", test_flock},
    {"range_locks", test_range_locks},
};

int main(int argc, char **argv)
{
    return run_mount_case(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
