// SPDX-License-Identifier: Apache-2.0
/*
 * disk_calls.c - the functions of the C library that change files.
 *
 * Which file a descriptor is of is asked of the kernel each time, so that no
 * close or dup needs to be followed. One lock over recording and doing: the
 * order of the log is the order in which things happened. A sync gives the
 * lock up while it lasts.
 */
#include "tests/model/disk/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool armed;
static struct disk_log *recording; /* may be NULL */
static GHashTable *files;          /* st_ino -> number of the file + 1 */
static uint32_t next_file;
static dev_t device;

static struct {
    uint64_t first, count, calls, failed;
    int error;
} fault;

/* ---- which file ---- */

static bool file_of(const struct stat *st, uint32_t *file)
{
    gpointer found = NULL;
    if (st->st_dev == device)
        found = g_hash_table_lookup(files, GSIZE_TO_POINTER(st->st_ino));
    *file = GPOINTER_TO_UINT(found) - 1;
    return found != NULL;
}

static bool file_of_fd(int fd, uint32_t *file)
{
    struct stat st;
    return fstat(fd, &st) == 0 && file_of(&st, file);
}

static uint32_t add_file(const struct stat *st)
{
    g_hash_table_insert(files, GSIZE_TO_POINTER(st->st_ino), GUINT_TO_POINTER(next_file + 1));
    return next_file++;
}

/* The directory in which `path` is a name, and the name; false if that is none
 * of ours. */
static bool dir_of_path(int dir_fd, const char *path, uint32_t *dir, const char **name)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    if (!slash)
        return (dir_fd == AT_FDCWD ? stat(".", &st) : fstat(dir_fd, &st)) == 0 && file_of(&st, dir);
    g_autofree char *parent = g_strndup(path, slash == path ? 1 : (gsize)(slash - path));
    return fstatat(dir_fd, parent, &st, 0) == 0 && file_of(&st, dir);
}

/* ---- recording ---- */

static uint64_t add(const struct disk_op *op, const void *payload)
{
    return recording ? disk_log_add(recording, op, payload) : 0;
}

static void add_name(enum disk_kind kind, uint32_t file, uint32_t dir, const char *name)
{
    struct disk_op op = {.kind = kind, .file = file, .dir = dir, .payload_bytes = strlen(name) + 1};
    add(&op, name);
}

static void add_bytes(uint32_t file, const void *data, size_t n, uint64_t offset)
{
    struct disk_op op = {
        .kind = DISK_WRITE, .file = file, .offset = offset, .length = n, .payload_bytes = n};
    add(&op, data);
}

static void add_sync(uint32_t file)
{
    uint64_t begin = add(&(struct disk_op){.kind = DISK_SYNC_BEGIN, .file = file}, NULL);
    add(&(struct disk_op){.kind = DISK_SYNC_END, .file = file, .offset = begin}, NULL);
}

/* What is there at the beginning. */
static void add_tree(const char *path, uint32_t dir)
{
    static uint8_t buffer[1 << 20];
    DIR *d = opendir(path);
    g_assert(d);
    for (const struct dirent *e; (e = readdir(d));) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        g_autofree char *name = g_build_filename(path, e->d_name, NULL);
        g_assert(lstat(name, &st) == 0);
        uint32_t file = add_file(&st);
        add_name(S_ISDIR(st.st_mode) ? DISK_MKDIR : DISK_CREATE, file, dir, e->d_name);
        if (S_ISDIR(st.st_mode)) {
            add_tree(name, file);
            continue;
        }
        int fd = (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
        g_assert(fd >= 0);
        for (off_t data = 0, hole; (data = lseek(fd, data, SEEK_DATA)) >= 0; data = hole) {
            hole = lseek(fd, data, SEEK_HOLE);
            for (off_t at = data; at < hole;) {
                ssize_t n = pread(fd, buffer, MIN((size_t)(hole - at), sizeof(buffer)), at);
                g_assert(n > 0);
                add_bytes(file, buffer, (size_t)n, (uint64_t)at);
                at += n;
            }
        }
        syscall(SYS_close, fd);
        add(&(struct disk_op){.kind = DISK_SIZE, .file = file, .length = (uint64_t)st.st_size},
            NULL);
        add_sync(file);
    }
    closedir(d);
    add_sync(dir);
}

void disk_record(struct disk_log *log, const char *root)
{
    struct stat st;
    g_assert(stat(root, &st) == 0);
    recording = log;
    device = st.st_dev;
    next_file = 0;
    files = g_hash_table_new(NULL, NULL);
    add_tree(root, add_file(&st));
    atomic_store(&armed, true);
}

void disk_mark(uint32_t what, uint64_t number)
{
    pthread_mutex_lock(&lock);
    add(&(struct disk_op){.kind = DISK_MARK, .file = what, .offset = number}, NULL);
    pthread_mutex_unlock(&lock);
}

void disk_stop(void)
{
    pthread_mutex_lock(&lock);
}

/* ---- failing ---- */

void disk_fail(uint64_t first, uint64_t count, int error)
{
    pthread_mutex_lock(&lock);
    fault.first = first;
    fault.count = count;
    fault.error = error;
    fault.calls = fault.failed = 0;
    pthread_mutex_unlock(&lock);
}

uint64_t disk_calls(uint64_t *failed)
{
    pthread_mutex_lock(&lock);
    uint64_t calls = fault.calls;
    if (failed)
        *failed = fault.failed;
    pthread_mutex_unlock(&lock);
    return calls;
}

/* Under the lock: is this call one that fails? With errno set. */
static bool fails(bool takes_space)
{
    if (!fault.error || (fault.error == ENOSPC && !takes_space))
        return false;
    uint64_t call = fault.calls++;
    if (call < fault.first || call - fault.first >= fault.count)
        return false;
    fault.failed++;
    errno = fault.error;
    return true;
}

static bool begin(void)
{
    if (!atomic_load_explicit(&armed, memory_order_relaxed))
        return false;
    pthread_mutex_lock(&lock);
    return true;
}

static long end(long result)
{
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

/* ---- the functions ---- */

/* The C library has them under a second name each, for 64-bit offsets. */
#define PROVIDE(name, function) \
    __asm__(".globl " #name "\n\t.type " #name ", @function\n\t.set " #name ", " #function)

ssize_t disk_pwritev(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t disk_pwrite(int fd, const void *data, size_t n, off_t offset);
ssize_t disk_write(int fd, const void *data, size_t n);
int disk_fdatasync(int fd);
int disk_fsync(int fd);
int disk_sync_file_range(int fd, off_t offset, off_t n, unsigned flags);
int disk_ftruncate(int fd, off_t size);
int disk_fallocate(int fd, int mode, off_t offset, off_t n);
int disk_posix_fallocate(int fd, off_t offset, off_t n);
int disk_openat(int dir_fd, const char *path, int flags, ...);
int disk_open(const char *path, int flags, ...);
int disk_mkdirat(int dir_fd, const char *path, mode_t mode);
int disk_mkdir(const char *path, mode_t mode);
int disk_unlinkat(int dir_fd, const char *path, int flags);
int disk_unlink(const char *path);
int disk_rmdir(const char *path);
int disk_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags);
int disk_rename(const char *from, const char *to);
int disk_linkat(int from_fd, const char *from, int to_fd, const char *to, int flags);
int disk_link(const char *from, const char *to);

PROVIDE(pwrite, disk_pwrite);
PROVIDE(pwrite64, disk_pwrite);
PROVIDE(pwritev, disk_pwritev);
PROVIDE(pwritev64, disk_pwritev);
PROVIDE(write, disk_write);
PROVIDE(fdatasync, disk_fdatasync);
PROVIDE(fsync, disk_fsync);
PROVIDE(sync_file_range, disk_sync_file_range);
PROVIDE(ftruncate, disk_ftruncate);
PROVIDE(ftruncate64, disk_ftruncate);
PROVIDE(fallocate, disk_fallocate);
PROVIDE(fallocate64, disk_fallocate);
PROVIDE(posix_fallocate, disk_posix_fallocate);
PROVIDE(posix_fallocate64, disk_posix_fallocate);
PROVIDE(openat, disk_openat);
PROVIDE(openat64, disk_openat);
PROVIDE(open, disk_open);
PROVIDE(open64, disk_open);
PROVIDE(mkdirat, disk_mkdirat);
PROVIDE(mkdir, disk_mkdir);
PROVIDE(unlinkat, disk_unlinkat);
PROVIDE(unlink, disk_unlink);
PROVIDE(rmdir, disk_rmdir);
PROVIDE(renameat2, disk_renameat2);
PROVIDE(rename, disk_rename);
PROVIDE(linkat, disk_linkat);
PROVIDE(link, disk_link);

ssize_t disk_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    uint32_t file;
    if (!begin())
        return syscall(SYS_pwritev, fd, iov, count, offset, 0);
    bool ours = file_of_fd(fd, &file);
    if (ours && fails(true))
        return end(-1);
    ssize_t done = syscall(SYS_pwritev, fd, iov, count, offset, 0);
    size_t left = done > 0 ? (size_t)done : 0;
    for (int i = 0; ours && i < count && left; i++) {
        size_t n = MIN(left, iov[i].iov_len);
        add_bytes(file, iov[i].iov_base, n, (uint64_t)offset);
        offset += (off_t)n;
        left -= n;
    }
    return end(done);
}

ssize_t disk_pwrite(int fd, const void *data, size_t n, off_t offset)
{
    uint32_t file;
    if (!begin())
        return syscall(SYS_pwrite64, fd, data, n, offset);
    bool ours = file_of_fd(fd, &file);
    if (ours && fails(true))
        return end(-1);
    ssize_t done = syscall(SYS_pwrite64, fd, data, n, offset);
    if (ours && done > 0)
        add_bytes(file, data, (size_t)done, (uint64_t)offset);
    return end(done);
}

ssize_t disk_write(int fd, const void *data, size_t n)
{
    uint32_t file;
    if (!begin())
        return syscall(SYS_write, fd, data, n);
    bool ours = file_of_fd(fd, &file);
    if (ours && fails(true))
        return end(-1);
    ssize_t done = syscall(SYS_write, fd, data, n);
    if (ours && done > 0) {
        /* Behind the bytes now, wherever they went (O_APPEND). */
        off_t at = lseek(fd, 0, SEEK_CUR);
        g_assert(at >= done);
        add_bytes(file, data, (size_t)done, (uint64_t)(at - done));
    }
    return end(done);
}

static int sync_file(int fd, long number)
{
    uint32_t file;
    if (!begin())
        return (int)syscall(number, fd);
    if (!file_of_fd(fd, &file))
        return (int)end(syscall(number, fd));
    bool failing = fails(false);
    uint64_t began = add(&(struct disk_op){.kind = DISK_SYNC_BEGIN, .file = file}, NULL);
    pthread_mutex_unlock(&lock);
    /* Others go on meanwhile, as they do while a real disk is at work. */
    int result = failing ? -1 : (int)syscall(number, fd);
    int error = failing ? EIO : errno;
    pthread_mutex_lock(&lock);
    struct disk_op op = {
        .kind = DISK_SYNC_END, .file = file, .offset = began, .error = result ? -error : 0};
    add(&op, NULL);
    errno = error;
    return (int)end(result);
}

int disk_fdatasync(int fd)
{
    return sync_file(fd, SYS_fdatasync);
}

int disk_fsync(int fd)
{
    return sync_file(fd, SYS_fsync);
}

/* Promises nothing of what a power cut leaves. */
int disk_sync_file_range(int fd, off_t offset, off_t n, unsigned flags)
{
    return (int)syscall(SYS_sync_file_range, fd, offset, n, flags);
}

static void add_size(uint32_t file, uint64_t size)
{
    add(&(struct disk_op){.kind = DISK_SIZE, .file = file, .length = size}, NULL);
}

int disk_ftruncate(int fd, off_t size)
{
    uint32_t file;
    if (!begin())
        return (int)syscall(SYS_ftruncate, fd, size);
    bool ours = file_of_fd(fd, &file);
    if (ours && fails(false))
        return (int)end(-1);
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (ours && result == 0)
        add_size(file, (uint64_t)size);
    return (int)end(result);
}

int disk_fallocate(int fd, int mode, off_t offset, off_t n)
{
    uint32_t file;
    struct stat st;
    if (!begin())
        return (int)syscall(SYS_fallocate, fd, mode, offset, n);
    bool ours = file_of_fd(fd, &file);
    bool punch = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    g_assert(!ours ||
             !(mode & ~(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)));
    if (ours && fails(!punch))
        return (int)end(-1);
    int result = (int)syscall(SYS_fallocate, fd, mode, offset, n);
    if (ours && result == 0) {
        if (punch)
            add(&(struct disk_op){.kind = DISK_PUNCH,
                                  .file = file,
                                  .offset = (uint64_t)offset,
                                  .length = (uint64_t)n},
                NULL);
        /* Only ever grows. */
        if (!(mode & FALLOC_FL_KEEP_SIZE) && fstat(fd, &st) == 0)
            add_size(file, (uint64_t)st.st_size);
    }
    return (int)end(result);
}

int disk_posix_fallocate(int fd, off_t offset, off_t n)
{
    int saved = errno;
    int result = disk_fallocate(fd, 0, offset, n) ? errno : 0;
    errno = saved;
    return result;
}

static int open_at(int dir_fd, const char *path, int flags, mode_t mode)
{
    uint32_t dir, file;
    const char *name;
    struct stat st;
    if (!(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE || !begin())
        return (int)syscall(SYS_openat, dir_fd, path, flags, mode);
    bool ours = dir_of_path(dir_fd, path, &dir, &name);
    bool existed = fstatat(dir_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
    if (ours && !existed && flags & O_CREAT && fails(true))
        return (int)end(-1);
    int fd = (int)syscall(SYS_openat, dir_fd, path, flags, mode);
    if (ours && fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        if (!existed)
            add_name(DISK_CREATE, add_file(&st), dir, name);
        else if (flags & O_TRUNC && file_of(&st, &file))
            add_size(file, 0);
    }
    return (int)end(fd);
}

static mode_t mode_of(int flags, va_list args)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(args, mode_t) : 0;
}

int disk_openat(int dir_fd, const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = mode_of(flags, args);
    va_end(args);
    return open_at(dir_fd, path, flags, mode);
}

int disk_open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = mode_of(flags, args);
    va_end(args);
    return open_at(AT_FDCWD, path, flags, mode);
}

int disk_mkdirat(int dir_fd, const char *path, mode_t mode)
{
    uint32_t dir;
    const char *name;
    struct stat st;
    if (!begin())
        return (int)syscall(SYS_mkdirat, dir_fd, path, mode);
    bool ours = dir_of_path(dir_fd, path, &dir, &name);
    if (ours && fails(true))
        return (int)end(-1);
    int result = (int)syscall(SYS_mkdirat, dir_fd, path, mode);
    if (ours && result == 0 && fstatat(dir_fd, path, &st, 0) == 0)
        add_name(DISK_MKDIR, add_file(&st), dir, name);
    return (int)end(result);
}

int disk_mkdir(const char *path, mode_t mode)
{
    return disk_mkdirat(AT_FDCWD, path, mode);
}

int disk_unlinkat(int dir_fd, const char *path, int flags)
{
    uint32_t dir;
    const char *name;
    if (!begin())
        return (int)syscall(SYS_unlinkat, dir_fd, path, flags);
    bool ours = dir_of_path(dir_fd, path, &dir, &name);
    if (ours && fails(false))
        return (int)end(-1);
    int result = (int)syscall(SYS_unlinkat, dir_fd, path, flags);
    if (ours && result == 0)
        add_name(DISK_UNLINK, 0, dir, name);
    return (int)end(result);
}

int disk_unlink(const char *path)
{
    return disk_unlinkat(AT_FDCWD, path, 0);
}

int disk_rmdir(const char *path)
{
    return disk_unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

int disk_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    uint32_t dir, to_dir, file;
    const char *name;
    const char *to_name;
    struct stat st;
    if (!begin())
        return (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    bool ours = dir_of_path(from_fd, from, &dir, &name);
    if (ours && fails(true))
        return (int)end(-1);
    int result = (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    if (ours && result == 0) {
        /* More is not needed yet. */
        bool is_dir = dir_of_path(to_fd, to, &to_dir, &to_name);
        g_assert(is_dir && to_dir == dir);
        g_autoptr(GString) names = g_string_new(name);
        g_string_append_len(names, "", 1);
        g_string_append_len(names, to_name, (gssize)strlen(to_name) + 1);
        bool known = fstatat(to_fd, to, &st, AT_SYMLINK_NOFOLLOW) == 0 && file_of(&st, &file);
        add(&(struct disk_op){.kind = DISK_RENAME,
                              .file = known ? file : DISK_UNKNOWN,
                              .dir = dir,
                              .payload_bytes = names->len},
            names->str);
    }
    return (int)end(result);
}

int disk_rename(const char *from, const char *to)
{
    return disk_renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int disk_linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    uint32_t dir, file;
    const char *name;
    struct stat st;
    if (!begin())
        return (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
    bool ours = dir_of_path(to_fd, to, &dir, &name);
    if (ours && fails(true))
        return (int)end(-1);
    int result = (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
    if (ours && result == 0 && fstatat(to_fd, to, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        file_of(&st, &file))
        add_name(DISK_CREATE, file, dir, name);
    return (int)end(result);
}

int disk_link(const char *from, const char *to)
{
    return disk_linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}
