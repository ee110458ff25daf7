// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/clone.h"
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"
#include "tools/cowvm/vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* ---- file by file ---- */

enum selection {
    ALL,
    FRAME, /* the guest's memory and disk with their size only */
    FILL,  /* into a frame: what a running VM changes */
};

static bool is_one_of(const char *name, const char *const *names)
{
    for (; *names; names++)
        if (strcmp(name, *names) == 0)
            return true;
    return false;
}

/* Large, raw, and written all the while. */
static const char *const content[] = {VM_MEMORY, VM_DISK, NULL};
/* Never written while the VM runs, or not the clone's. */
static const char *const settled[] = {VM_KERNEL, VM_INITRD,    VM_CONFIG, VM_CONFIG_NEW,
                                      VM_STATE,  VM_STATE_NEW, NULL};

static int copy_range(int in, int out, loff_t at, off_t end)
{
    for (loff_t from = at, to = at; from < end;) {
        ssize_t done = copy_file_range(in, &from, out, &to, (size_t)(end - from), 0);
        if (done == 0)
            break;
        if (done < 0 && errno != EINTR)
            return -errno;
    }
    return 0;
}

/* Holes stay holes. */
static int copy_data(int in, int out, off_t size)
{
    off_t at = 0;
    int error = ftruncate(out, size) != 0 ? -errno : 0;
    while (!error && at < size) {
        off_t data = lseek(in, at, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? 0 : -errno;
        off_t end = lseek(in, data, SEEK_HOLE);
        if (end < 0)
            return -errno;
        error = copy_range(in, out, data, end);
        at = end;
    }
    return error;
}

/* Of cowfs one call for all of it is one step; others would fill the holes. */
static int share_data(int in, int out, off_t size)
{
    struct statfs fs;
    if (fstatfs(in, &fs) != 0)
        return -errno;
    if (fs.f_type != FUSE_SUPER_MAGIC)
        return ioctl(out, FICLONE, in) == 0 ? 0 : copy_data(in, out, size);
    int error = copy_range(in, out, 0, size);
    if (!error && size == 0)
        error = ftruncate(out, 0) != 0 ? -errno : 0;
    return error;
}

static int copy_file(int from_dir, int to_dir, const char *name, enum selection selection)
{
    struct stat st;
    bool is_content = is_one_of(name, content);
    int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (selection == FILL ? 0 : O_EXCL);
    int in = openat(from_dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (in < 0)
        return -errno;
    int error = fstat(in, &st) != 0 ? -errno : 0;
    int out = error ? -1 : openat(to_dir, name, flags, st.st_mode & 0777);
    if (!error && out < 0)
        error = -errno;
    /* What QEMU has mapped keeps its size. */
    if (!error && selection == FILL && !is_content && ftruncate(out, 0) != 0)
        error = -errno;
    if (!error && selection == FRAME && is_content)
        error = ftruncate(out, st.st_size) != 0 ? -errno : 0;
    else if (!error)
        error = share_data(in, out, st.st_size);
    close(in);
    if (out >= 0 && close(out) != 0 && !error)
        error = -errno;
    return error;
}

static int copy_files(int source_fd, int target_fd, enum selection selection)
{
    int fd = openat(source_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    int error = 0;
    if (!directory) {
        error = -errno;
        if (fd >= 0)
            close(fd);
        return error;
    }
    while (!error && (entry = readdir(directory))) {
        struct stat st;
        bool left_out = selection == FILL && is_one_of(entry->d_name, settled);
        if (!left_out && fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(st.st_mode))
            error = copy_file(fd, target_fd, entry->d_name, selection);
    }
    closedir(directory);
    return error;
}

static int clone_elsewhere(int source_fd, int parent_fd, const char *name, enum selection selection)
{
    if (mkdirat(parent_fd, name, 0755) != 0)
        return -errno;
    int target_fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = target_fd < 0 ? -errno : copy_files(source_fd, target_fd, selection);
    if (target_fd >= 0)
        close(target_fd);
    if (error)
        tree_remove(parent_fd, name);
    return error;
}

/* ---- clones ---- */

/* Nothing of what is in them is shared: the source's next writes are in place. */
static int empty_content(int parent_fd, const char *name)
{
    int dir_fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = 0;
    if (dir_fd < 0)
        return -errno;
    for (const char *const *file = content; *file && !error; file++) {
        struct stat st;
        int fd = openat(dir_fd, *file, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) != 0 || ftruncate(fd, 0) != 0 ||
            ftruncate(fd, st.st_size) != 0)
            error = -errno;
        if (fd >= 0)
            close(fd);
    }
    close(dir_fd);
    if (error)
        tree_remove(parent_fd, name);
    return error;
}

static bool clone_as(int source_fd, const char *source, int parent_fd, const char *parent,
                     const char *name, enum selection selection)
{
    struct stat from = {0}, to = {0};
    int error = fstat(source_fd, &from) != 0 || fstat(parent_fd, &to) != 0 ? -errno : 0;
    if (!error && from.st_dev != to.st_dev) {
        tool_error("%s: is not in the same mount as %s", parent, source);
        return false;
    }
    struct cowfs_ioc_clone io;
    if (!error)
        error = tool_clone(source_fd, parent_fd, name, &io);
    if (error == -ENOTTY || error == -ENOSYS || error == -EOPNOTSUPP)
        error = clone_elsewhere(source_fd, parent_fd, name, selection);
    else if (!error && selection == FRAME)
        error = empty_content(parent_fd, name);
    if (error)
        tool_error("%s: cannot be cloned: %s", source,
                   error == -EEXIST ? g_strerror(EEXIST) : tool_ioctl_reason(error));
    return error == 0;
}

bool clone_directory(int source_fd, const char *source, int parent_fd, const char *parent,
                     const char *name)
{
    return clone_as(source_fd, source, parent_fd, parent, name, ALL);
}

bool clone_frame(int source_fd, const char *source, int parent_fd, const char *parent,
                 const char *name)
{
    return clone_as(source_fd, source, parent_fd, parent, name, FRAME);
}

bool clone_fill(int source_fd, const char *source, int frame_fd)
{
    int error = copy_files(source_fd, frame_fd, FILL);
    if (error)
        tool_error("%s: cannot be cloned: %s", source, tool_ioctl_reason(error));
    return error == 0;
}
