// SPDX-License-Identifier: Apache-2.0
/*
 * bench_vms - many small VMs, in one process: directories 0, 1, 2, … with the
 * files disk, memory.snap and snapshot.snap.
 *
 *     bench_vms create DIR COUNT FILE_BYTES
 *     bench_vms clone cowfs|cowfs-many|reflink FROM TO COUNT
 *         FROM/N to TO/N: a directory by one ioctl, many directories by one, or
 *         mkdir and FICLONE for each file
 *     bench_vms remove DIR COUNT
 *     bench_vms remove-many DIR COUNT
 *         the same by ioctls that delete many directories each
 *
 * DIR and TO exist. Each ends with a syncfs, which is part of the time.
 */
#include <linux/fs.h>
#include <stdbool.h>
#include <sys/ioctl.h>

#include "bench_file.h"
#include "cowfs/ioctl.h"

static const char usage[] = "bench_vms create DIR COUNT FILE_BYTES\n"
                            "       bench_vms clone cowfs|cowfs-many|reflink FROM TO COUNT\n"
                            "       bench_vms remove|remove-many DIR COUNT";

static const char *const files[] = {"disk", "memory.snap", "snapshot.snap"};
enum { FILE_COUNT = sizeof(files) / sizeof(files[0]), NAME_BYTES = 24 };

static void name_vm(char name[NAME_BYTES], uint64_t number)
{
    snprintf(name, NAME_BYTES, "%llu", (unsigned long long)number);
}

static int open_at(int dir, const char *name, int flags)
{
    int fd = openat(dir, name, flags | O_CLOEXEC, 0644);
    if (fd < 0)
        die("%s", name);
    return fd;
}

static int make_vm(int dir, const char *name)
{
    if (mkdirat(dir, name, 0755) != 0)
        die("mkdir of %s", name);
    return open_at(dir, name, O_RDONLY | O_DIRECTORY);
}

static void create(int dir, uint64_t count, uint64_t file_bytes)
{
    uint64_t state = rng_seed(count);
    char *data = aligned_buffer(file_bytes);
    for (uint64_t i = 0; i < count; i++) {
        char name[NAME_BYTES];
        name_vm(name, i);
        int vm = make_vm(dir, name);
        for (size_t f = 0; f < FILE_COUNT; f++) {
            int fd = open_at(vm, files[f], O_CREAT | O_EXCL | O_WRONLY);
            rng_fill(data, file_bytes, &state);
            if (write(fd, data, file_bytes) != (ssize_t)file_bytes || close(fd) != 0)
                die("write to %s/%s", name, files[f]);
        }
        close(vm);
    }
    free(data);
}

static void clone_by_ioctl(int from, int to, const char *name)
{
    int vm = open_at(from, name, O_RDONLY | O_DIRECTORY);
    struct cowfs_ioc_token token = {.version = COWFS_IOCTL_VERSION};
    struct cowfs_ioc_clone clone = {.version = COWFS_IOCTL_VERSION};
    if (ioctl(vm, COWFS_IOC_TOKEN, &token) != 0)
        die("the token of %s", name);
    memcpy(clone.token, token.token, sizeof(clone.token));
    memcpy(clone.name, name, strlen(name));
    if (ioctl(to, COWFS_IOC_CLONE, &clone) != 0)
        die("the clone of %s", name);
    close(vm);
}

/* Appends the name if there is room for it and `more` after it. */
static bool add_name(char names[COWFS_NAMES_BYTES], size_t *used, const char *name, size_t more)
{
    size_t bytes = strlen(name) + 1;
    if (*used + bytes + more > COWFS_NAMES_BYTES)
        return false;
    memcpy(names + *used, name, bytes);
    *used += bytes;
    return true;
}

static void clone_many(int from, int to, uint64_t count)
{
    struct cowfs_ioc_token token = {.version = COWFS_IOCTL_VERSION};
    if (ioctl(from, COWFS_IOC_TOKEN, &token) != 0)
        die("a token");
    for (uint64_t next = 0; next < count;) {
        struct cowfs_ioc_clone_many io = {.version = COWFS_IOCTL_VERSION};
        char name[NAME_BYTES];
        size_t used = 0;
        memcpy(io.token, token.token, sizeof(io.token));
        for (; next + io.count < count; io.count++) {
            name_vm(name, next + io.count);
            if (!add_name(io.names, &used, name, strlen(name) + 1))
                break;
            add_name(io.names, &used, name, 0);
        }
        if (ioctl(to, COWFS_IOC_CLONE_MANY, &io) != 0 || io.error)
            die("clones from %llu on: %d", (unsigned long long)next, io.error);
        next += io.done;
    }
}

static void remove_many(int dir, uint64_t count)
{
    for (uint64_t next = 0; next < count;) {
        struct cowfs_ioc_delete io = {.version = COWFS_IOCTL_VERSION};
        char name[NAME_BYTES];
        size_t used = 0;
        for (; next + io.count < count; io.count++) {
            name_vm(name, next + io.count);
            if (!add_name(io.names, &used, name, 0))
                break;
        }
        if (ioctl(dir, COWFS_IOC_DELETE, &io) != 0 || io.error)
            die("deleting from %llu on: %d", (unsigned long long)next, io.error);
        next += io.done;
    }
}

static void clone_by_reflink(int from, int to, const char *name)
{
    int vm = open_at(from, name, O_RDONLY | O_DIRECTORY), copy = make_vm(to, name);
    for (size_t f = 0; f < FILE_COUNT; f++) {
        int in = open_at(vm, files[f], O_RDONLY);
        int out = open_at(copy, files[f], O_CREAT | O_EXCL | O_WRONLY);
        if (ioctl(out, FICLONE, in) != 0)
            die("FICLONE of %s/%s", name, files[f]);
        close(in);
        close(out);
    }
    close(vm);
    close(copy);
}

static void clone_all(int from, int to, bool reflink, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        char name[NAME_BYTES];
        name_vm(name, i);
        if (reflink)
            clone_by_reflink(from, to, name);
        else
            clone_by_ioctl(from, to, name);
    }
}

static void remove_all(int dir, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        char name[NAME_BYTES];
        name_vm(name, i);
        int vm = open_at(dir, name, O_RDONLY | O_DIRECTORY);
        for (size_t f = 0; f < FILE_COUNT; f++)
            if (unlinkat(vm, files[f], 0) != 0)
                die("unlink of %s/%s", name, files[f]);
        close(vm);
        if (unlinkat(dir, name, AT_REMOVEDIR) != 0)
            die("rmdir of %s", name);
    }
}

static void sync_and_tell(int dir, double started)
{
    double worked = now_us();
    if (syncfs(dir) != 0)
        die("syncfs");
    printf("work_us %.1f\nsync_us %.1f\nall_us %.1f\n", worked - started, now_us() - worked,
           now_us() - started);
}

int main(int argc, char **argv)
{
    double started;
    int dir;
    if (argc == 5 && strcmp(argv[1], "create") == 0) {
        dir = open_or_die(argv[2], O_RDONLY | O_DIRECTORY);
        started = now_us();
        create(dir, parse_u64(argv[3], usage), parse_u64(argv[4], usage));
    } else if (argc == 6 && strcmp(argv[1], "clone") == 0) {
        bool reflink = strcmp(argv[2], "reflink") == 0;
        bool many = strcmp(argv[2], "cowfs-many") == 0;
        if (!reflink && !many && strcmp(argv[2], "cowfs") != 0)
            misused(usage);
        int from = open_or_die(argv[3], O_RDONLY | O_DIRECTORY);
        dir = open_or_die(argv[4], O_RDONLY | O_DIRECTORY);
        started = now_us();
        uint64_t count = parse_u64(argv[5], usage);
        if (many)
            clone_many(from, dir, count);
        else
            clone_all(from, dir, reflink, count);
        close(from);
    } else if (argc == 4 &&
               (strcmp(argv[1], "remove") == 0 || strcmp(argv[1], "remove-many") == 0)) {
        dir = open_or_die(argv[2], O_RDONLY | O_DIRECTORY);
        started = now_us();
        uint64_t count = parse_u64(argv[3], usage);
        if (strcmp(argv[1], "remove") == 0)
            remove_all(dir, count);
        else
            remove_many(dir, count);
    } else {
        misused(usage);
    }
    sync_and_tell(dir, started);
    close(dir);
    return 0;
}
