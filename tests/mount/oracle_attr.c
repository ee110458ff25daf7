// SPDX-License-Identifier: Apache-2.0
/* oracle_attr.c - modes, owners, times, extended attributes: as root and as nobody. */
#include "tests/mount/oracle.h"

#include <grp.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>

enum { NOBODY = 65534, GROUP = 4321 };

static struct stat look(int dir, const char *name)
{
    struct stat st = {0};
    SYS(fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW));
    return st;
}

static void say_mode(int dir, const char *what, const char *name)
{
    struct stat st = look(dir, name);
    printf("%s: %s has mode %o, owner %u:%u\n", what, name, st.st_mode & 07777, st.st_uid,
           st.st_gid);
}

/* As nobody, with one more group; the output stays in order. */
static void as_nobody(void (*fn)(int dir), int dir)
{
    int status;
    fflush(stdout);
    pid_t pid = SYS_INT(fork());
    if (pid == 0) {
        SYS(setgroups(1, &(gid_t){GROUP}));
        SYS(setgid(NOBODY));
        SYS(setuid(NOBODY));
        fn(dir);
        fflush(stdout);
        _exit(0);
    }
    SYS(waitpid(pid, &status, 0));
    CHECK(status == 0, "the part that runs as nobody failed");
}

/* ---- modes and owners ---- */

static void chmod_and_chown(int dir)
{
    static const char *const names[] = {"mine", "group", "roots", "link", "dir"};
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const char *name = names[i];
        printf("%s\n", name);
        TRY(fchmodat(dir, name, 0640, 0));
        TRY(fchmodat(dir, name, 06755, 0));
        say_mode(dir, "after chmod", name);
        TRY(fchownat(dir, name, -1, -1, AT_SYMLINK_NOFOLLOW));
        say_mode(dir, "after chown to nobody new", name);
        TRY(fchownat(dir, name, NOBODY, -1, AT_SYMLINK_NOFOLLOW));
        TRY(fchownat(dir, name, -1, GROUP, AT_SYMLINK_NOFOLLOW));
        say_mode(dir, "after chown", name);
        TRY(fchownat(dir, name, -1, NOBODY, AT_SYMLINK_NOFOLLOW));
        TRY(fchownat(dir, name, -1, 77, AT_SYMLINK_NOFOLLOW));
        TRY(fchownat(dir, name, 1, -1, AT_SYMLINK_NOFOLLOW));
    }
}

static void case_owners(int dir)
{
    SYS(fchmod(dir, 0777));
    close(oracle_make(dir, "mine", 0644));
    close(oracle_make(dir, "group", 0666));
    close(oracle_make(dir, "roots", 0644));
    SYS(symlinkat("roots", dir, "link"));
    SYS(mkdirat(dir, "dir", 0755));
    SYS(fchownat(dir, "mine", NOBODY, NOBODY, 0));
    SYS(fchownat(dir, "group", NOBODY, GROUP, 0));
    SYS(fchownat(dir, "dir", NOBODY, 77, 0));
    as_nobody(chmod_and_chown, dir);
    chmod_and_chown(dir);
    TRY(fchmodat(dir, "link", 0600, AT_SYMLINK_NOFOLLOW));
    say_mode(dir, "by lchmod", "link");
}

static void make_in(int dir)
{
    struct stat st;
    close(SYS_INT(openat(dir, "d/file", O_CREAT | O_WRONLY, 06777)));
    say_mode(dir, "made", "d/file");
    SYS(mkdirat(dir, "d/dir", 01777));
    say_mode(dir, "made", "d/dir");
    SYS(mknodat(dir, "d/fifo", S_IFIFO | 06666, 0));
    say_mode(dir, "made", "d/fifo");
    SYS(symlinkat("x", dir, "d/link"));
    say_mode(dir, "made", "d/link");
    int fd = SYS_INT(openat(dir, "d", O_TMPFILE | O_RDWR, 02777));
    SYS(fstat(fd, &st));
    printf("tmpfile: mode %o, group %u\n", st.st_mode & 07777, st.st_gid);
    close(fd);
    SYS(unlinkat(dir, "d/file", 0));
    SYS(unlinkat(dir, "d/dir", AT_REMOVEDIR));
    SYS(unlinkat(dir, "d/fifo", 0));
    SYS(unlinkat(dir, "d/link", 0));
}

static void case_setgid(int dir)
{
    SYS(mkdirat(dir, "d", 0777));
    static const gid_t groups[] = {0, GROUP, 77};
    for (unsigned i = 0; i < 3; i++) {
        SYS(fchownat(dir, "d", 0, groups[i], 0));
        for (mode_t setgid = 0; setgid <= 02000; setgid += 02000) {
            SYS(fchmodat(dir, "d", 0777 | setgid, 0));
            printf("group %u, setgid %o\n", groups[i], setgid);
            make_in(dir);
            as_nobody(make_in, dir);
        }
    }
}

static void sticky(int dir)
{
    TRY(unlinkat(dir, "t/roots", 0));
    TRY(renameat(dir, "t/roots", dir, "t/x"));
    TRY(renameat(dir, "t/mine", dir, "t/roots"));
    TRY(renameat2(dir, "t/mine", dir, "t/roots", RENAME_EXCHANGE));
    TRY(renameat(dir, "t/mine", dir, "t/x"));
    TRY(linkat(dir, "t/roots", dir, "t/link", 0));
    TRY(unlinkat(dir, "t/rootsdir", AT_REMOVEDIR));
    OPEN(openat(dir, "t/open", O_WRONLY | O_CREAT, 0644));
    OPEN(openat(dir, "t/open", O_WRONLY));
    TRY(unlinkat(dir, "t/x", 0));
    TRY(renameat(dir, "closed/a", dir, "t/a"));
    TRY(unlinkat(dir, "closed/a", 0));
    TRY(unlinkat(dir, "closed/none", 0));
    TRY(mkdirat(dir, "closed/a", 0755));
    TRY(mkdirat(dir, "closed/none", 0755));
    TRY(faccessat(dir, "unseen/a", F_OK, 0));
    OPEN(openat(dir, "unseen", O_RDONLY));
    TRY(renameat(dir, "mydir", dir, "t/mydir"));
}

static void case_sticky(int dir)
{
    SYS(fchmod(dir, 0777));
    SYS(mkdirat(dir, "t", 0777));
    SYS(fchmodat(dir, "t", 01777, 0));
    close(oracle_make(dir, "t/roots", 0644));
    close(oracle_make(dir, "t/mine", 0644));
    close(oracle_make(dir, "t/open", 0666));
    SYS(mkdirat(dir, "t/rootsdir", 0777));
    SYS(fchownat(dir, "t/mine", NOBODY, NOBODY, 0));
    SYS(fchownat(dir, "t/open", 77, 77, 0));
    SYS(mkdirat(dir, "closed", 0755));
    close(oracle_make(dir, "closed/a", 0666));
    SYS(mkdirat(dir, "unseen", 0700));
    SYS(mkdirat(dir, "mydir", 0500));
    SYS(fchownat(dir, "mydir", NOBODY, NOBODY, 0));
    as_nobody(sticky, dir);
}

/* ---- what takes setuid, setgid and capabilities away ---- */

static void change(int dir, unsigned how)
{
    int fd = SYS_INT(openat(dir, "program", O_RDWR | O_CLOEXEC | (how == 8 ? O_TRUNC : 0)));
    int other = SYS_INT(openat(dir, "other", O_RDWR | O_CLOEXEC));
    char *page = check_alloc(4096);
    memset(page, 'x', 4096);
    switch (how) {
    case 0:
        OF(pwrite(fd, "x", 1, 0));
        break;
    case 1:
        OF(pwrite(fd, "x", 0, 0));
        break;
    case 2:
        TRY(ftruncate(fd, 10));
        break;
    case 3:
        TRY(ftruncate(fd, 4096));
        break;
    case 4:
        TRY(fallocate(fd, 0, 0, 8192));
        break;
    case 5:
        TRY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 100));
        break;
    case 6:
        OF(copy_file_range(other, NULL, fd, NULL, 4096, 0));
        break;
    case 7:
        SYS(fcntl(fd, F_SETFL, O_DIRECT));
        OF(pwrite(fd, page, 4096, 0));
        break;
    default:
        break;
    }
    free(page);
    close(fd);
    close(other);
}

static unsigned change_how;
static void change_as_set(int dir)
{
    change(dir, change_how);
}

static void case_setuid(int dir)
{
    /* VFS_CAP_REVISION_2, nothing but the header that says so, and one bit. */
    static const uint8_t caps[20] = {0, 0, 0, 2, 1};
    static const mode_t modes[] = {06777, 04666, 02777, 02666, 01777};
    char page[4096] = {0}, got[64];
    SYS(fchmod(dir, 0777));
    int other = oracle_make(dir, "other", 0666);
    write_all(other, page, sizeof(page), 0);
    close(other);
    for (change_how = 0; change_how <= 8; change_how++) {
        for (unsigned m = 0; m < sizeof(modes) / sizeof(modes[0]); m++) {
            for (int root = 0; root < 2; root++) {
                int fd = oracle_make(dir, "program", 0666);
                write_all(fd, page, sizeof(page), 0);
                SYS(fsync(fd));
                SYS(fsetxattr(fd, "security.capability", caps, sizeof(caps), 0));
                SYS(fchmod(fd, modes[m]));
                close(fd);
                printf("change %u of %o by %s\n", change_how, modes[m], root ? "root" : "nobody");
                if (root)
                    change(dir, change_how);
                else
                    as_nobody(change_as_set, dir);
                say_mode(dir, "after", "program");
                fd = SYS_INT(openat(dir, "program", O_RDONLY));
                TRY(fgetxattr(fd, "security.capability", got, sizeof(got)));
                close(fd);
                SYS(unlinkat(dir, "program", 0));
            }
        }
    }
}

/* ---- times ---- */

static int set_times(int dir, const char *name, int64_t a, long ans, int64_t m, long mns)
{
    struct timespec t[2] = {{a, ans}, {m, mns}};
    return utimensat(dir, name, t, AT_SYMLINK_NOFOLLOW);
}

static void say_times(int dir, const char *name)
{
    struct stat st = look(dir, name);
    printf("%s: atime %lld.%09ld mtime %lld.%09ld\n", name, (long long)st.st_atim.tv_sec,
           st.st_atim.tv_nsec, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
}

static void times_of_all(int dir)
{
    static const char *const names[] = {"mine", "writable", "roots", "link", "dir"};
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const char *name = names[i];
        printf("%s\n", name);
        TRY(utimensat(dir, name, NULL, AT_SYMLINK_NOFOLLOW));
        TRY(set_times(dir, name, 0, UTIME_NOW, 0, UTIME_NOW));
        TRY(set_times(dir, name, 0, UTIME_OMIT, 0, UTIME_OMIT));
        TRY(set_times(dir, name, 0, UTIME_NOW, 0, UTIME_OMIT));
        TRY(set_times(dir, name, 1, 2, 3, 4));
        TRY(set_times(dir, name, 1, 2, 0, UTIME_NOW));
        TRY(set_times(dir, name, 1, 1000000000, 3, 4));
        TRY(set_times(dir, name, 1, -1, 3, 4));
    }
}

static void case_times(int dir)
{
    SYS(fchmod(dir, 0777));
    close(oracle_make(dir, "mine", 0400));
    close(oracle_make(dir, "writable", 0666));
    close(oracle_make(dir, "roots", 0644));
    SYS(symlinkat("roots", dir, "link"));
    SYS(mkdirat(dir, "dir", 0755));
    SYS(fchownat(dir, "mine", NOBODY, NOBODY, 0));
    as_nobody(times_of_all, dir);
    times_of_all(dir);
    /* Of the range that XFS has: from 1901 to 2486. */
    static const int64_t seconds[] = {0, -1, 1, -2147483647, 2147483648, 4294967296, 16299260423};
    for (unsigned i = 0; i < sizeof(seconds) / sizeof(seconds[0]); i++) {
        TRY(set_times(dir, "mine", seconds[i], 999999999, seconds[i], 1));
        say_times(dir, "mine");
    }
    struct statx stx;
    TRY(statx(dir, "mine", 0, STATX_ALL | STATX_BTIME, &stx));
    OF(stx.stx_mask & (STATX_BASIC_STATS | STATX_BTIME));
    OF(stx.stx_btime.tv_sec > 1600000000);
    OF(stx.stx_attributes);
    TRY(statx(dir, "mine", 0x10000000, STATX_ALL, &stx));
    TRY(statx(dir, "mine", 0, 0x80000000, &stx));
    OF((statx(dir, "mine", AT_STATX_FORCE_SYNC, STATX_SIZE, &stx), stx.stx_size));
}

/* ---- extended attributes ---- */

static void xattr_calls(int dir)
{
    static char name[300] = "user.", value[65537], got[70000];
    int fd = SYS_INT(openat(dir, "f", O_RDWR));
    memset(name + 5, 'n', 250);
    TRY(fsetxattr(fd, name, "v", 1, 0));
    OF(fgetxattr(fd, name, got, sizeof(got)));
    TRY(fremovexattr(fd, name));
    name[255] = 'n';
    TRY(fsetxattr(fd, name, "v", 1, 0));
    TRY(fgetxattr(fd, name, got, sizeof(got)));
    TRY(fsetxattr(fd, "user.", "v", 1, 0));
    TRY(fsetxattr(fd, "", "v", 1, 0));
    TRY(fsetxattr(fd, "nothing", "v", 1, 0));
    TRY(fsetxattr(fd, "other.x", "v", 1, 0));
    TRY(fgetxattr(fd, "other.x", got, sizeof(got)));
    TRY(fsetxattr(fd, "user.x", value, 65536, 0));
    OF(fgetxattr(fd, "user.x", got, sizeof(got)));
    OF(fgetxattr(fd, "user.x", NULL, 0));
    TRY(fgetxattr(fd, "user.x", got, 10));
    TRY(fsetxattr(fd, "user.x", value, 65537, 0));
    TRY(fsetxattr(fd, "user.x", "v", 1, XATTR_CREATE));
    TRY(fsetxattr(fd, "user.y", "v", 1, XATTR_REPLACE));
    TRY(fsetxattr(fd, "user.y", "v", 1, 8));
    TRY(fsetxattr(fd, "user.empty", NULL, 0, 0));
    OF(fgetxattr(fd, "user.empty", got, sizeof(got)));
    OF(flistxattr(fd, got, sizeof(got)));
    OF(flistxattr(fd, NULL, 0));
    TRY(flistxattr(fd, got, 3));
    TRY(fremovexattr(fd, "user.none"));
    TRY(fremovexattr(fd, "user.x"));
    TRY(fremovexattr(fd, "user.empty"));
    TRY(fsetxattr(fd, "trusted.x", "v", 1, 0));
    TRY(fgetxattr(fd, "trusted.x", got, sizeof(got)));
    OF(flistxattr(fd, got, sizeof(got)));
    TRY(fsetxattr(fd, "security.x", "v", 1, 0));
    TRY(fremovexattr(fd, "security.x"));
    TRY(fremovexattr(fd, "trusted.x"));
    TRY(fsetxattr(fd, "system.x", "v", 1, 0));
    TRY(fgetxattr(fd, "system.posix_acl_access", got, sizeof(got)));
    TRY(fsetxattr(fd, "system.posix_acl_access", "v", 1, 0));
    close(fd);
    static const char *const others[] = {"fifo", "link", "dir", "sticky", "readonly"};
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", dir, others[i]);
        printf("%s\n", others[i]);
        TRY(lsetxattr(path, "user.x", "v", 1, 0));
        TRY(lgetxattr(path, "user.x", got, sizeof(got)));
        OF(llistxattr(path, got, sizeof(got)));
        TRY(lremovexattr(path, "user.x"));
        TRY(lsetxattr(path, "trusted.x", "v", 1, 0));
        TRY(lremovexattr(path, "trusted.x"));
        TRY(lsetxattr(path, "security.x", "v", 1, 0));
        TRY(lremovexattr(path, "security.x"));
    }
}

static void case_xattrs(int dir)
{
    SYS(fchmod(dir, 0755));
    close(oracle_make(dir, "f", 0666));
    SYS(mknodat(dir, "fifo", S_IFIFO | 0666, 0));
    SYS(fchmodat(dir, "fifo", 0666, 0));
    SYS(symlinkat("f", dir, "link"));
    SYS(mkdirat(dir, "dir", 0777));
    SYS(fchmodat(dir, "dir", 0777, 0));
    SYS(mkdirat(dir, "sticky", 0777));
    SYS(fchmodat(dir, "sticky", 01777, 0));
    close(oracle_make(dir, "readonly", 0444));
    xattr_calls(dir);
    as_nobody(xattr_calls, dir);
    struct statvfs st;
    SYS(fstatvfs(dir, &st));
    OF(st.f_namemax);
    OF(st.f_bsize);
    OF(st.f_frsize);
    OF(st.f_bavail <= st.f_bfree && st.f_bfree <= st.f_blocks && st.f_blocks > 0);
    OF(st.f_ffree <= st.f_files && st.f_files > 0);
}

static const struct mount_case cases[] = {
    {"owners", case_owners}, {"setgid", case_setgid}, {"sticky", case_sticky},
    {"setuid", case_setuid}, {"times", case_times},   {"xattrs", case_xattrs},
};

int main(int argc, char **argv)
{
    umask(022);
    return run_mount_case(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
