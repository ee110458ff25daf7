// SPDX-License-Identifier: Apache-2.0
/* oracle_names.c - what calls on names answer, and which times they change. */
#include "tests/mount/oracle.h"

#include <dirent.h>
#include <limits.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

static void made(int dir, const char *name)
{
    close(oracle_make(dir, name, 0644));
}

static void case_open(int dir)
{
    static char name[300], path[5000];
    memset(name, 'n', 256);
    name[255] = '\0';
    OPEN(openat(dir, name, O_CREAT | O_RDWR, 0644));
    TRY(unlinkat(dir, name, 0));
    name[255] = 'n';
    OPEN(openat(dir, name, O_CREAT | O_RDWR, 0644));
    OPEN(openat(dir, name, O_RDONLY));
    TRY(mkdirat(dir, name, 0755));
    TRY(symlinkat("x", dir, name));
    TRY(mknodat(dir, name, S_IFIFO | 0644, 0));
    TRY(unlinkat(dir, name, 0));
    TRY(renameat(dir, name, dir, "x"));
    memset(path, '/', 4096);
    path[0] = '.';
    path[4095] = '\0';
    OPEN(openat(dir, path, O_RDONLY));
    path[4095] = '/';
    OPEN(openat(dir, path, O_RDONLY));
    made(dir, "f");
    SYS(mkdirat(dir, "d", 0755));
    SYS(symlinkat("f", dir, "s"));
    SYS(symlinkat("nowhere", dir, "dangling"));
    SYS(symlinkat("loop", dir, "loop"));
    SYS(mknodat(dir, "fifo", S_IFIFO | 0644, 0));
    oracle_heading("f: a file, d: a directory, s: a symlink to f");
    OPEN(openat(dir, "f", O_CREAT | O_EXCL | O_RDWR, 0644));
    OPEN(openat(dir, "d", O_CREAT | O_EXCL | O_RDWR, 0644));
    OPEN(openat(dir, "dangling", O_CREAT | O_EXCL | O_RDWR, 0644));
    OPEN(openat(dir, "s", O_NOFOLLOW | O_RDONLY));
    OPEN(openat(dir, "s", O_NOFOLLOW | O_PATH));
    OPEN(openat(dir, "loop", O_RDONLY));
    OPEN(openat(dir, "f", O_DIRECTORY | O_RDONLY));
    OPEN(openat(dir, "d", O_CREAT | O_DIRECTORY | O_RDONLY, 0755));
    OPEN(openat(dir, "d", O_RDWR));
    OPEN(openat(dir, "d", O_CREAT | O_RDONLY, 0644));
    OPEN(openat(dir, "d", O_TRUNC | O_RDONLY));
    OPEN(openat(dir, "f/", O_RDONLY));
    OPEN(openat(dir, "f/x", O_RDONLY));
    OPEN(openat(dir, "new/", O_CREAT | O_RDWR, 0644));
    OPEN(openat(dir, "", O_RDONLY));
    OPEN(openat(dir, ".", O_TMPFILE | O_RDWR, 0644));
    OPEN(openat(dir, "f", O_TMPFILE | O_RDWR, 0644));
    OPEN(openat(dir, ".", O_TMPFILE | O_RDONLY, 0644));
    OPEN(openat(dir, "fifo", O_WRONLY | O_NONBLOCK));
    OPEN(openat(dir, "f", O_RDWR | O_DIRECT));
    OPEN(openat(dir, "f", O_RDWR | O_SYNC | O_NOATIME));
    OPEN(openat(dir, "f", 3));
    OPEN(openat(dir, "dangling", O_CREAT | O_RDWR, 0644));
    TRY(faccessat(dir, "nowhere", F_OK, 0));
}

static void case_make(int dir)
{
    static char target[PATH_MAX + 1];
    char got[PATH_MAX];
    struct stat st;
    made(dir, "f");
    SYS(mkdirat(dir, "d", 0755));
    made(dir, "d/inside");
    SYS(symlinkat("f", dir, "s"));
    TRY(mkdirat(dir, "f", 0755));
    TRY(mkdirat(dir, "d", 0755));
    TRY(mkdirat(dir, ".", 0755));
    TRY(mkdirat(dir, "..", 0755));
    TRY(mkdirat(dir, "f/x", 0755));
    TRY(mkdirat(dir, "none/x", 0755));
    TRY(mkdirat(dir, "e/", 0755));
    TRY(mkdirat(dir, "mode", 07777));
    SYS(fstatat(dir, "mode", &st, 0));
    OF(st.st_mode);
    TRY(mknodat(dir, "plain", S_IFREG | 06777, 0));
    SYS(fstatat(dir, "plain", &st, 0));
    OF(st.st_mode);
    TRY(mknodat(dir, "socket", S_IFSOCK | 0644, 0));
    TRY(mknodat(dir, "null", S_IFCHR | 0644, makedev(1, 3)));
    SYS(fstatat(dir, "null", &st, 0));
    OF(st.st_rdev);
    TRY(mknodat(dir, "block", S_IFBLK | 0644, makedev(255, 65535)));
    SYS(fstatat(dir, "block", &st, 0));
    OF(st.st_rdev);
    TRY(mknodat(dir, "x", S_IFDIR | 0755, 0));
    TRY(mknodat(dir, "x", S_IFLNK | 0755, 0));
    TRY(mknodat(dir, "x", 0110000 | 0644, 0));
    TRY(symlinkat("", dir, "empty"));
    TRY(symlinkat("x", dir, "f"));
    memset(target, 't', PATH_MAX);
    target[1023] = '\0';
    TRY(symlinkat(target, dir, "1023"));
    OF(readlinkat(dir, "1023", got, sizeof(got)));
    OF(readlinkat(dir, "1023", got, 10));
    TRY(readlinkat(dir, "1023", got, 0));
    target[1023] = 't';
    target[1024] = '\0';
    TRY(symlinkat(target, dir, "1024"));
    target[1024] = 't';
    target[4095] = '\0';
    TRY(symlinkat(target, dir, "4095"));
    target[4095] = 't';
    TRY(symlinkat(target, dir, "4096"));
    TRY(readlinkat(dir, "f", got, sizeof(got)));
    TRY(readlinkat(dir, "d", got, sizeof(got)));
    SYS(fstatat(dir, "s", &st, AT_SYMLINK_NOFOLLOW));
    OF(st.st_size);
    OF(st.st_mode);
    oracle_heading("removal: d is not empty, e is");
    TRY(unlinkat(dir, "d", 0));
    TRY(unlinkat(dir, "d", AT_REMOVEDIR));
    TRY(unlinkat(dir, "f", AT_REMOVEDIR));
    TRY(unlinkat(dir, "s/", 0));
    TRY(unlinkat(dir, "f/", 0));
    TRY(unlinkat(dir, "e/.", AT_REMOVEDIR));
    TRY(unlinkat(dir, "e/..", AT_REMOVEDIR));
    TRY(unlinkat(dir, "none", 0));
    TRY(unlinkat(dir, "e", AT_REMOVEDIR));
    TRY(unlinkat(dir, "f", 0x100000));
}

static void case_rename(int dir)
{
    made(dir, "f");
    made(dir, "g");
    SYS(linkat(dir, "f", dir, "same", 0));
    SYS(mkdirat(dir, "d", 0755));
    SYS(mkdirat(dir, "d/e", 0755));
    SYS(mkdirat(dir, "empty", 0755));
    TRY(renameat(dir, "none", dir, "x"));
    TRY(renameat(dir, "f", dir, "d"));
    TRY(renameat(dir, "d", dir, "f"));
    TRY(renameat(dir, "empty", dir, "d"));
    TRY(renameat(dir, "d", dir, "d/e/x"));
    TRY(renameat(dir, "d/e", dir, "d"));
    TRY(renameat(dir, "d", dir, "d/e"));
    TRY(renameat(dir, ".", dir, "x"));
    TRY(renameat(dir, "d", dir, "."));
    TRY(renameat(dir, "d", dir, ".."));
    TRY(renameat(dir, "f/", dir, "x"));
    TRY(renameat(dir, "f", dir, "x/"));
    TRY(renameat(dir, "f", dir, "same"));
    TRY(faccessat(dir, "f", F_OK, 0));
    TRY(renameat(dir, "f", dir, "f"));
    TRY(renameat(dir, "d", dir, "empty"));
    TRY(renameat2(dir, "f", dir, "g", RENAME_NOREPLACE));
    TRY(renameat2(dir, "none", dir, "g", RENAME_NOREPLACE));
    TRY(renameat2(dir, "f", dir, "h", RENAME_NOREPLACE));
    TRY(renameat2(dir, "h", dir, "empty", RENAME_EXCHANGE));
    TRY(renameat2(dir, "h", dir, "none", RENAME_EXCHANGE));
    TRY(renameat2(dir, "h", dir, "h/e/x", RENAME_EXCHANGE));
    TRY(renameat2(dir, "h", dir, "h/e", RENAME_EXCHANGE));
    TRY(renameat2(dir, "h", dir, "g", RENAME_EXCHANGE | RENAME_NOREPLACE));
    TRY(renameat2(dir, "g", dir, "w", RENAME_WHITEOUT));
    TRY(renameat2(dir, "h", dir, "g", RENAME_EXCHANGE | RENAME_WHITEOUT));
    TRY(renameat2(dir, "h", dir, "g", 8));
    TRY(linkat(dir, "same", dir, "w", 0));
    TRY(linkat(dir, "h", dir, "x", 0));
    TRY(linkat(dir, "none", dir, "x", 0));
    SYS(symlinkat("same", dir, "s"));
    TRY(linkat(dir, "s", dir, "s2", 0));
    TRY(linkat(dir, "s", dir, "s3", AT_SYMLINK_FOLLOW));
    struct stat st;
    SYS(fstatat(dir, "same", &st, 0));
    OF(st.st_nlink);
    SYS(fstatat(dir, "s2", &st, AT_SYMLINK_NOFOLLOW));
    OF(st.st_nlink);
    SYS(fstatat(dir, ".", &st, 0));
    OF(st.st_nlink);
}

static void case_tmpfile(int dir)
{
    struct stat st;
    char path[64];
    int fd = (int)TRY(openat(dir, ".", O_TMPFILE | O_RDWR, 0666));
    if (fd >= 0) {
        SYS(fstat(fd, &st));
        OF(st.st_nlink);
        OF(st.st_mode);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        TRY(linkat(AT_FDCWD, path, dir, "linked", AT_SYMLINK_FOLLOW));
        TRY(linkat(fd, "", dir, "again", AT_EMPTY_PATH));
        TRY(unlinkat(dir, "linked", 0));
        TRY(unlinkat(dir, "again", 0));
        TRY(linkat(fd, "", dir, "late", AT_EMPTY_PATH));
        close(fd);
    }
    fd = (int)TRY(openat(dir, ".", O_TMPFILE | O_EXCL | O_RDWR, 0666));
    if (fd >= 0) {
        TRY(linkat(fd, "", dir, "linked", AT_EMPTY_PATH));
        close(fd);
    }
    fd = oracle_make(dir, "f", 0644);
    SYS(unlinkat(dir, "f", 0));
    SYS(fstat(fd, &st));
    OF(st.st_nlink);
    TRY(linkat(fd, "", dir, "late", AT_EMPTY_PATH));
    TRY(fchmod(fd, 0600));
    OF(pwrite(fd, "text", 4, 0));
    TRY(ftruncate(fd, 2));
    close(fd);
    SYS(mkdirat(dir, "gone", 0755));
    fd = SYS_INT(openat(dir, "gone", O_RDONLY | O_DIRECTORY));
    SYS(unlinkat(dir, "gone", AT_REMOVEDIR));
    SYS(fstat(fd, &st));
    OF(st.st_nlink);
    OPEN(openat(fd, "x", O_CREAT | O_RDWR, 0644));
    TRY(mkdirat(fd, "x", 0755));
    OPEN(openat(fd, ".", O_TMPFILE | O_RDWR, 0644));
    OPEN(openat(fd, "..", O_RDONLY));
    TRY(fchmod(fd, 0700));
    close(fd);
}

static void case_directory(int dir)
{
    char bytes[512];
    struct stat st;
    SYS(mkdirat(dir, "d", 0755));
    int fd = SYS_INT(openat(dir, "d", O_RDONLY | O_DIRECTORY));
    made(fd, "a");
    SYS(mkdirat(fd, "b", 0755));
    SYS(mkdirat(fd, "c", 0755));
    SYS(fstat(fd, &st));
    OF(st.st_nlink);
    OF(st.st_size > 0);
    OF(st.st_blksize);
    TRY(read(fd, bytes, sizeof(bytes)));
    TRY(write(fd, "x", 1));
    TRY(ftruncate(fd, 0));
    TRY(fsync(fd));
    TRY(fdatasync(fd));
    TRY(syncfs(fd));
    TRY(syscall(SYS_getdents64, fd, bytes, 10));
    OF(syscall(SYS_getdents64, fd, bytes, sizeof(bytes)) > 0);
    OF(syscall(SYS_getdents64, fd, bytes, sizeof(bytes)));
    OF(lseek(fd, 0, SEEK_SET));
    OF(syscall(SYS_getdents64, fd, bytes, sizeof(bytes)) > 0);
    TRY(lseek(fd, -1, SEEK_SET));
    TRY(lseek(fd, 0, SEEK_DATA));
    TRY(fallocate(fd, 0, 0, 10));
    TRY(posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED));
    TRY(fchdir(fd));
    SYS(chdir("/"));
    close(fd);
    SYS(fstatat(dir, "d/a", &st, 0));
    OF(st.st_blksize);
    OF(st.st_nlink);
    OF(fpathconf(dir, _PC_NAME_MAX));
    OF(fpathconf(dir, _PC_LINK_MAX) > 60000);
    OF(fpathconf(dir, _PC_SYMLINK_MAX));
    OF(fpathconf(dir, _PC_CHOWN_RESTRICTED));
    OF(fpathconf(dir, _PC_NO_TRUNC));
}

/* ---- times ---- */

static bool later(struct timespec a, struct timespec b)
{
    return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

static struct stat look(int dir, const char *name)
{
    struct stat st = {0};
    SYS(fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW));
    return st;
}

static void say_times(const char *call, const char *who, const struct stat *a, const struct stat *b)
{
    printf("%s: %s%s%s\n", call, who, later(b->st_mtim, a->st_mtim) ? " mtime" : "",
           later(b->st_ctim, a->st_ctim) ? " ctime" : "");
}

/* Which times of the directory and of name (as it is called afterwards) a call changes. */
#define TIMES(dir, before, after, call)                          \
    do {                                                         \
        struct stat d_ = look(dir, "."), f_ = look(dir, before); \
        usleep(20000);                                           \
        SYS(call);                                               \
        struct stat e_ = look(dir, "."), g_ = look(dir, after);  \
        say_times(#call, "directory", &d_, &e_);                 \
        say_times(#call, "file", &f_, &g_);                      \
    } while (0)

static int truncate_in(int dir, const char *name, off_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", dir, name);
    return truncate(path, size);
}

static void case_times(int dir)
{
    int fd = oracle_make(dir, "f", 0644);
    made(dir, "other");
    made(dir, "victim");
    SYS(linkat(dir, "victim", dir, "victim2", 0));
    SYS(mkdirat(dir, "d", 0755));
    SYS(mkdirat(dir, "dd", 0755));
    TIMES(dir, "f", "f", mkdirat(dir, "new", 0755));
    TIMES(dir, "f", "f", linkat(dir, "f", dir, "g", 0));
    TIMES(dir, "f", "f", unlinkat(dir, "g", 0));
    TIMES(dir, "f", "h", renameat(dir, "f", dir, "h"));
    TIMES(dir, "h", "f", renameat(dir, "h", dir, "f"));
    TIMES(dir, "victim2", "victim2", renameat(dir, "other", dir, "victim"));
    TIMES(dir, "d", "d", unlinkat(dir, "new", AT_REMOVEDIR));
    TIMES(dir, "d", "d", mkdirat(dir, "d/e", 0755));
    TIMES(dir, "d", "d", renameat(dir, "d/e", dir, "dd/e"));
    TIMES(dir, "dd/e", "d/e", renameat(dir, "dd/e", dir, "d/e"));
    TIMES(dir, "d", "d", renameat2(dir, "d", dir, "dd", RENAME_EXCHANGE));
    TIMES(dir, "f", "f", fchmod(fd, 0644));
    TIMES(dir, "f", "f", fchown(fd, (uid_t)-1, (gid_t)-1));
    TIMES(dir, "f", "f", fchown(fd, getuid(), (gid_t)-1));
    TIMES(dir, "f", "f", pwrite(fd, "text", 4, 0));
    TIMES(dir, "f", "f", pwrite(fd, "text", 0, 0));
    TIMES(dir, "f", "f", fsync(fd));
    TIMES(dir, "f", "f", ftruncate(fd, 4));
    TIMES(dir, "f", "f", ftruncate(fd, 3));
    TIMES(dir, "f", "f", ftruncate(fd, 30));
    TIMES(dir, "f", "f", truncate_in(dir, "f", 30));
    close(SYS_INT(openat(dir, "empty", O_CREAT | O_WRONLY, 0644)));
    TIMES(dir, "empty", "empty", close(openat(dir, "empty", O_WRONLY | O_TRUNC)));
    TIMES(dir, "f", "f", close(openat(dir, "f", O_WRONLY | O_CREAT, 0644)));
    TIMES(dir, "f", "f", close(openat(dir, "f", O_WRONLY | O_TRUNC)));
    TIMES(dir, "f", "f", fallocate(fd, 0, 0, 8192));
    TIMES(dir, "f", "f", fallocate(fd, FALLOC_FL_KEEP_SIZE, 8192, 8192));
    TIMES(dir, "f", "f", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 100));
    TIMES(dir, "f", "f", fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 100));
    TIMES(dir, "f", "f", copy_file_range(fd, &(off_t){0}, fd, &(off_t){4096}, 100, 0));
    TIMES(dir, "f", "f", fsetxattr(fd, "user.x", "v", 1, 0));
    TIMES(dir, "f", "f", fsetxattr(fd, "user.x", "v", 1, 0));
    TIMES(dir, "f", "f", fremovexattr(fd, "user.x"));
    TIMES(dir, "f", "f", futimens(fd, (struct timespec[2]){{0, UTIME_NOW}, {0, UTIME_OMIT}}));
    TIMES(dir, "f", "f", futimens(fd, (struct timespec[2]){{0, UTIME_OMIT}, {0, UTIME_OMIT}}));
    close(fd);
}

/* ---- what inotify tells ---- */

static void case_inotify(int dir)
{
    char path[64];
    static char events[65536] __attribute__((aligned(8)));
    int watch = SYS_INT(inotify_init1(IN_NONBLOCK));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", dir);
    SYS(inotify_add_watch(watch, path, IN_ALL_EVENTS));
    int fd = oracle_make(dir, "f", 0644);
    write_all(fd, "text", 4, 0);
    SYS(ftruncate(fd, 2));
    SYS(fallocate(fd, 0, 0, 100));
    close(fd);
    SYS(linkat(dir, "f", dir, "g", 0));
    SYS(renameat(dir, "g", dir, "h"));
    SYS(unlinkat(dir, "h", 0));
    SYS(mkdirat(dir, "d", 0755));
    SYS(unlinkat(dir, "d", AT_REMOVEDIR));
    SYS(symlinkat("f", dir, "s"));
    ssize_t bytes = SYS(read(watch, events, sizeof(events)));
    for (ssize_t at = 0; at < bytes;) {
        const struct inotify_event *event = (const void *)(events + at);
        printf("%s: %#x\n", event->len ? event->name : ".", event->mask);
        at += (ssize_t)(sizeof(*event) + event->len);
    }
    close(watch);
}

static const struct mount_case cases[] = {
    {"open", case_open},           {"make", case_make},   {"rename", case_rename},
    {"tmpfile", case_tmpfile},     {"times", case_times}, {"inotify", case_inotify},
    {"directory", case_directory},
};

int main(int argc, char **argv)
{
    umask(022);
    return run_mount_case(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
