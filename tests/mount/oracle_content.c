// SPDX-License-Identifier: Apache-2.0
/* oracle_content.c - what calls on the bytes of files answer. */
#include "tests/mount/oracle.h"

#include <limits.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { KIB = 1024, MIB = 1024 * 1024 };

static int opened(int dir, const char *name, int flags)
{
    return SYS_INT(openat(dir, name, flags | O_CLOEXEC));
}

/* A file of 100000 bytes, open for all. */
static int filled(int dir, const char *name)
{
    static char bytes[100000];
    memset(bytes, 'b', sizeof(bytes));
    int fd = oracle_make(dir, name, 0644);
    write_all(fd, bytes, sizeof(bytes), 0);
    return fd;
}

static void case_fallocate(int dir)
{
    static const int modes[] = {
        0,
        FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_ZERO_RANGE,
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_COLLAPSE_RANGE,
        FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_INSERT_RANGE,
        FALLOC_FL_UNSHARE_RANGE,
        0x200,
    };
    static const struct {
        off_t offset, length;
    } ranges[] = {{0, 4096},  {-1, 10},     {0, 0},         {0, -1},        {100, 100},
                  {99999, 2}, {200000, 10}, {0, LLONG_MAX}, {LLONG_MAX, 1}, {LLONG_MAX - 1, 1}};
    const int refused = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE | FALLOC_FL_UNSHARE_RANGE;
    int fd = filled(dir, "f"), readonly = opened(dir, "f", O_RDONLY);
    for (unsigned m = 0; m < sizeof(modes) / sizeof(modes[0]); m++) {
        for (unsigned r = 0; r < sizeof(ranges) / sizeof(ranges[0]); r++) {
            /* One that reserves the whole address space does so, or has no room. */
            if (ranges[r].length == LLONG_MAX && !(modes[m] & FALLOC_FL_PUNCH_HOLE))
                continue;
            /* One range is enough for what is refused. */
            if (modes[m] & refused && r > 0)
                continue;
            SYS(ftruncate(fd, 100000));
            errno = 0;
            int result = fallocate(fd, modes[m], ranges[r].offset, ranges[r].length);
            printf("fallocate %#x at %lld of %lld: %s, then %lld bytes\n", modes[m],
                   (long long)ranges[r].offset, (long long)ranges[r].length,
                   result ? strerrorname_np(errno) : "ok", (long long)size_of(fd));
        }
        errno = 0;
        int result = fallocate(readonly, modes[m], 0, 4096);
        printf("fallocate %#x read-only: %s\n", modes[m], result ? strerrorname_np(errno) : "ok");
    }
    close(readonly);
    SYS(mknodat(dir, "fifo", S_IFIFO | 0644, 0));
    int fifo = opened(dir, "fifo", O_RDWR);
    TRY(fallocate(fifo, 0, 0, 10));
    TRY(ftruncate(fifo, 0));
    TRY(fsync(fifo));
    TRY(copy_file_range(fd, NULL, fifo, NULL, 10, 0));
    close(fifo);
    close(fd);
}

static void case_copy(int dir)
{
    off_t from = 0, to = 0;
    int a = filled(dir, "a"), b = filled(dir, "b");
    int readonly = opened(dir, "a", O_RDONLY), writeonly = opened(dir, "b", O_WRONLY);
    int append = opened(dir, "b", O_WRONLY | O_APPEND);
    int path = opened(dir, "a", O_PATH);
    OF(copy_file_range(a, (from = 0, &from), b, (to = 0, &to), 4096, 0));
    OF(from);
    OF(to);
    OF(copy_file_range(a, (from = 99000, &from), b, (to = 1, &to), 4096, 0));
    OF(copy_file_range(a, (from = 100000, &from), b, (to = 0, &to), 4096, 0));
    OF(copy_file_range(a, (from = 200000, &from), b, (to = 0, &to), 4096, 0));
    OF(copy_file_range(a, (from = 0, &from), b, (to = 150001, &to), 4096, 0));
    OF(size_of(b));
    OF(copy_file_range(a, (from = 0, &from), b, (to = 0, &to), 0, 0));
    TRY(copy_file_range(a, (from = 0, &from), a, (to = 0, &to), 4096, 0));
    TRY(copy_file_range(a, (from = 0, &from), a, (to = 4095, &to), 4096, 0));
    OF(copy_file_range(a, (from = 0, &from), a, (to = 4096, &to), 4096, 0));
    OF(copy_file_range(a, (from = 99000, &from), a, (to = 100000, &to), 4096, 0));
    TRY(copy_file_range(a, (from = -1, &from), b, (to = 0, &to), 10, 0));
    TRY(copy_file_range(a, (from = 0, &from), b, (to = -1, &to), 10, 0));
    TRY(copy_file_range(a, (from = 0, &from), b, (to = LLONG_MAX - 5, &to), 10, 0));
    TRY(copy_file_range(a, (from = LLONG_MAX - 5, &from), b, (to = 0, &to), 10, 0));
    TRY(copy_file_range(a, (from = 0, &from), b, (to = 0, &to), 10, 1));
    TRY(copy_file_range(readonly, NULL, readonly, NULL, 10, 0));
    TRY(copy_file_range(writeonly, NULL, b, NULL, 10, 0));
    TRY(copy_file_range(a, NULL, append, NULL, 10, 0));
    TRY(copy_file_range(path, NULL, b, NULL, 10, 0));
    TRY(copy_file_range(dir, NULL, b, NULL, 10, 0));
    TRY(copy_file_range(a, NULL, dir, NULL, 10, 0));
    TRY(copy_file_range(-1, NULL, b, NULL, 10, 0));
    OF(copy_file_range(a, NULL, b, NULL, SIZE_MAX, 0) > 0);
    close(a), close(b), close(readonly), close(writeonly), close(append), close(path);
}

static void case_seek(int dir)
{
    int fd = filled(dir, "f");
    static const off_t offsets[] = {-1, 0, 4096, 99999, 100000, 100001, LLONG_MAX};
    for (unsigned i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        printf("at %lld\n", (long long)offsets[i]);
        OF(lseek(fd, offsets[i], SEEK_SET));
        OF(lseek(fd, offsets[i], SEEK_DATA));
        OF(lseek(fd, offsets[i], SEEK_HOLE));
        SYS(lseek(fd, 10, SEEK_SET));
        OF(lseek(fd, offsets[i], SEEK_CUR));
        OF(lseek(fd, offsets[i], SEEK_END));
    }
    SYS(ftruncate(fd, 0));
    OF(lseek(fd, 0, SEEK_DATA));
    OF(lseek(fd, 0, SEEK_HOLE));
    SYS(ftruncate(fd, 10 * MIB));
    OF(lseek(fd, 0, SEEK_DATA));
    OF(lseek(fd, 0, SEEK_HOLE));
    OF(lseek(fd, 10 * MIB - 1, SEEK_HOLE));
    close(fd);
}

static void case_size(int dir)
{
    static char text[] = "text";
    static const off_t sizes[] = {-1, 0, 1, 100000, INT64_C(1) << 40, INT64_C(1) << 43};
    int fd = filled(dir, "f"), readonly = opened(dir, "f", O_RDONLY);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        printf("size %lld\n", (long long)sizes[i]);
        OF(ftruncate(fd, sizes[i]));
        OF(size_of(fd));
    }
    SYS(ftruncate(fd, 0));
    TRY(ftruncate(readonly, 0));
    TRY(ftruncate(dir, 0));
    TRY(pwrite(readonly, text, 4, 0));
    TRY(pwrite(fd, text, 4, -1));
    TRY(pread(fd, text, 4, -1));
    OF(pread(fd, text, 4, LLONG_MAX - 4));
    TRY(pread(fd, text, 4, LLONG_MAX));
    TRY(pwrite(fd, text, 4, LLONG_MAX));
    TRY(pwrite(fd, text, 4, LLONG_MAX - 2));
    OF(pwrite(fd, text, 4, INT64_C(1) << 42));
    OF(size_of(fd));
    SYS(ftruncate(fd, 0));
    /* A limit of the process. */
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, limit;
    SYS(getrlimit(RLIMIT_FSIZE, &old));
    limit = (struct rlimit){1000, old.rlim_max};
    SYS(setrlimit(RLIMIT_FSIZE, &limit));
    OF(pwrite(fd, text, 4, 998));
    TRY(pwrite(fd, text, 4, 1000));
    TRY(ftruncate(fd, 1001));
    OF(ftruncate(fd, 999));
    TRY(fallocate(fd, 0, 0, 1001));
    TRY(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1001));
    TRY(copy_file_range(fd, &(off_t){0}, fd, &(off_t){1000}, 100, 0));
    SYS(setrlimit(RLIMIT_FSIZE, &old));
    OF(size_of(fd));
    close(fd), close(readonly);
}

static void case_io(int dir)
{
    char *page = check_alloc(65536);
    memset(page, 'p', 65536);
    int fd = filled(dir, "f"), direct = opened(dir, "f", O_RDWR | O_DIRECT);
    int append = opened(dir, "f", O_RDWR | O_APPEND);
    struct iovec one = {page, 4096}, none = {page, 0}, bad = {NULL, 4096};
    OF(pread(direct, page, 4096, 0));
    OF(pread(direct, page, 4096, 98304));
    OF(pread(direct, page, 4096, 102400));
    OF(pwrite(direct, page, 4096, 4096));
    OF(pread(fd, page, 65536, 99990));
    OF(preadv2(fd, &one, 1, 0, RWF_HIPRI));
    OF(pwritev2(fd, &one, 1, 0, RWF_DSYNC));
    OF(pwritev2(fd, &one, 1, 0, RWF_SYNC));
    OF(pwritev2(fd, &one, 1, 0, RWF_APPEND));
    OF(size_of(fd));
    TRY(preadv2(fd, &one, 1, 0, 0x40000000));
    TRY(preadv2(fd, &bad, 1, 0, 0));
    TRY(pwritev2(fd, &bad, 1, 0, 0));
    OF(preadv2(fd, &none, 1, 0, 0));
    OF(pwrite(append, "end", 3, 0));
    OF(size_of(fd));
    OF(lseek(append, 0, SEEK_CUR));
    OF(write(append, "end", 3));
    OF(lseek(append, 0, SEEK_CUR));
    TRY(sync_file_range(fd, 0, 100, SYNC_FILE_RANGE_WRITE));
    TRY(sync_file_range(fd, -1, 100, SYNC_FILE_RANGE_WRITE));
    TRY(sync_file_range(fd, 0, 100, 0x100));
    TRY(readahead(fd, 0, 4096));
    TRY(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
    TRY(posix_fadvise(fd, 0, 0, 77));
    TRY(fsync(append));
    TRY(fdatasync(direct));
    close(fd), close(direct), close(append);
    free(page);
}

static void case_ioctl(int dir)
{
    int fd = filled(dir, "f"), other = filled(dir, "g"), number = 0;
    long flags = 0;
    TRY(ioctl(fd, FS_IOC_GETVERSION, &number));
    OF(ioctl(fd, FIGETBSZ, &number));
    OF(number);
    OF(ioctl(fd, FIONREAD, &number));
    OF(number);
    TRY(ioctl(fd, FIBMAP, &number));
    TRY(ioctl(fd, 0x5401, &number)); /* TCGETS */
    TRY(ioctl(fd, BLKGETSIZE64, &flags));
    TRY(ioctl(fd, FS_IOC_GETFLAGS, &flags));
    TRY(ioctl(dir, FS_IOC_GETFLAGS, &flags));
    TRY(ioctl(fd, FICLONE, other));
    TRY(ioctl(fd, FICLONE, dir));
    TRY(ioctl(fd, FICLONE, -1));
    struct fiemap map = {.fm_length = UINT64_MAX};
    TRY(ioctl(fd, FS_IOC_FIEMAP, &map));
    TRY(ioctl(fd, 0xdeadbeef, NULL));
    close(fd), close(other);
}

/* ---- mappings ---- */

/* What a process gets that touches a byte of it: 0, or the signal. */
static int touched(volatile char *byte, bool write)
{
    int status;
    fflush(stdout);
    pid_t pid = SYS_INT(fork());
    if (pid == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        if (write)
            *byte = 'w';
        else
            (void)*byte;
        _exit(0);
    }
    SYS(waitpid(pid, &status, 0));
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void *map(int fd, int protection, int flags, off_t offset)
{
    return mmap(NULL, 65536, protection, flags, fd, offset);
}

static int can_map(int fd, int protection, int flags, off_t offset)
{
    void *m = map(fd, protection, flags, offset);
    return m == MAP_FAILED ? -1 : munmap(m, 65536);
}

static void case_map(int dir)
{
    enum { RW = PROT_READ | PROT_WRITE };
    int fd = filled(dir, "f"), readonly = opened(dir, "f", O_RDONLY);
    int writeonly = opened(dir, "f", O_WRONLY), path = opened(dir, "f", O_PATH);
    TRY(can_map(readonly, RW, MAP_SHARED, 0));
    TRY(can_map(readonly, RW, MAP_PRIVATE, 0));
    TRY(can_map(writeonly, PROT_READ, MAP_SHARED, 0));
    TRY(can_map(writeonly, PROT_WRITE, MAP_SHARED, 0));
    TRY(can_map(dir, PROT_READ, MAP_SHARED, 0));
    TRY(can_map(path, PROT_READ, MAP_SHARED, 0));
    TRY(can_map(fd, PROT_READ, MAP_SHARED, 100));
    TRY(can_map(fd, RW, MAP_SHARED_VALIDATE | MAP_SYNC, 0));
    char *m = map(fd, RW, MAP_SHARED, 65536);
    CHECK(m != MAP_FAILED, "mmap: %s", strerror(errno));
    OF(touched(m, false));
    OF(touched(m + 36000, true));
    OF(touched(m + 40000, false));
    OF(touched(m + 40000, true));
    SYS(ftruncate(fd, 70000));
    OF(m[4463]);
    OF(m[4464]);
    OF(touched(m + 12288, false));
    m[5000] = 'x'; /* behind the end: it never gets to the file */
    SYS(msync(m, 65536, MS_SYNC));
    SYS(ftruncate(fd, 100000));
    OF(m[5000]);
    char byte;
    OF(pread(fd, &byte, 1, 65536 + 5000));
    OF(byte);
    TRY(msync(m, 65536, MS_SYNC | MS_ASYNC));
    TRY(msync(m + 1, 10, MS_SYNC));
    SYS(munmap(m, 65536));
    TRY(msync(m, 65536, MS_SYNC));
    m = map(fd, RW, MAP_SHARED, 0);
    TRY(madvise(m, 8192, MADV_REMOVE));
    OF(m[0]);
    OF(m[8192]);
    SYS(munmap(m, 65536));
    close(fd), close(readonly), close(writeonly), close(path);
}

/* ---- locks, leases ---- */

static void case_lock(int dir)
{
    int a = filled(dir, "f"), b = opened(dir, "f", O_RDWR), readonly = opened(dir, "f", O_RDONLY);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct flock shared = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10};
    TRY(flock(a, LOCK_EX | LOCK_NB));
    TRY(flock(b, LOCK_EX | LOCK_NB));
    TRY(flock(b, LOCK_SH | LOCK_NB));
    TRY(flock(readonly, LOCK_EX | LOCK_NB));
    TRY(flock(a, LOCK_UN));
    TRY(flock(readonly, LOCK_EX | LOCK_NB));
    TRY(flock(readonly, LOCK_UN));
    TRY(flock(dir, LOCK_EX | LOCK_NB));
    TRY(flock(dir, LOCK_UN));
    TRY(flock(a, 77));
    TRY(fcntl(a, F_OFD_SETLK, &whole));
    TRY(fcntl(b, F_OFD_SETLK, &whole));
    TRY(fcntl(b, F_OFD_SETLK, &shared));
    OF((fcntl(b, F_OFD_GETLK, &shared), shared.l_type));
    shared.l_type = F_RDLCK;
    TRY(fcntl(readonly, F_OFD_SETLK, &whole));
    whole.l_type = F_UNLCK;
    TRY(fcntl(a, F_OFD_SETLK, &whole));
    TRY(fcntl(b, F_OFD_SETLK, &shared));
    TRY(fcntl(a, F_SETLK, &shared));
    shared.l_start = -1;
    TRY(fcntl(a, F_SETLK, &shared));
    shared.l_pid = 1;
    TRY(fcntl(a, F_OFD_SETLK, &shared));
    close(b);
    TRY(fcntl(a, F_SETLEASE, F_RDLCK));
    TRY(fcntl(readonly, F_SETLEASE, F_RDLCK));
    TRY(fcntl(readonly, F_SETLEASE, F_UNLCK));
    close(a);
    TRY(fcntl(readonly, F_SETLEASE, F_RDLCK));
    OF(fcntl(readonly, F_GETLEASE));
    TRY(fcntl(readonly, F_SETLEASE, F_WRLCK));
    TRY(fcntl(readonly, F_NOTIFY, DN_CREATE));
    TRY(fcntl(dir, F_NOTIFY, DN_CREATE));
    uint64_t hint = 2;
    TRY(fcntl(readonly, F_SET_RW_HINT, &hint));
    TRY(fcntl(readonly, F_SETFL, O_DIRECT));
    TRY(fcntl(readonly, F_SETPIPE_SZ, 4096));
    close(readonly);
}

static const struct mount_case cases[] = {
    {"fallocate", case_fallocate},
    {"copy", case_copy},
    {"seek", case_seek},
    {"size", case_size},
    {"io", case_io},
    {"ioctl", case_ioctl},
    {"map", case_map},
    {"lock", case_lock},
};

int main(int argc, char **argv)
{
    umask(022);
    return run_mount_case(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
