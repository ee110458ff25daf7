// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/clone.h"
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static int clone_on_cowfs(int source_fd, int parent_fd, const char *name)
{
    int error = -ESTALE;
    /* The daemon may have lost the token: once more then. */
    for (int attempt = 0; error == -ESTALE && attempt < 3; attempt++) {
        struct cowfs_ioc_token token = {0};
        error = tool_try_ioctl(source_fd, COWFS_IOC_TOKEN, &token);
        if (error)
            return error;
        struct cowfs_ioc_clone io = {.token = {token.token[0], token.token[1]}};
        if (g_strlcpy(io.name, name, sizeof(io.name)) >= sizeof(io.name))
            return -ENAMETOOLONG;
        error = tool_try_ioctl(parent_fd, COWFS_IOC_CLONE, &io);
    }
    return error;
}

/* ---- elsewhere ---- */

/* Holes stay holes. */
static int copy_data(int in, int out, off_t size)
{
    off_t at = 0;
    if (ftruncate(out, size) != 0)
        return -errno;
    while (at < size) {
        off_t data = lseek(in, at, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO ? 0 : -errno;
        off_t end = lseek(in, data, SEEK_HOLE);
        if (end < 0)
            return -errno;
        for (loff_t from = data, to = data; from < end;) {
            ssize_t done = copy_file_range(in, &from, out, &to, (size_t)(end - from), 0);
            if (done == 0)
                return 0;
            if (done < 0 && errno != EINTR)
                return -errno;
        }
        at = end;
    }
    return 0;
}

static int copy_file(int from_dir, int to_dir, const char *name, const struct stat *st)
{
    int in = openat(from_dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    int out = openat(to_dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, st->st_mode & 0777);
    int error = in < 0 || out < 0 ? -errno : 0;
    if (!error && ioctl(out, FICLONE, in) != 0)
        error = copy_data(in, out, st->st_size);
    if (in >= 0)
        close(in);
    if (out >= 0 && close(out) != 0 && !error)
        error = -errno;
    return error;
}

static int copy_files(int source_fd, int target_fd)
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
        if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
            error = copy_file(fd, target_fd, entry->d_name, &st);
    }
    closedir(directory);
    return error;
}

static int clone_elsewhere(int source_fd, int parent_fd, const char *name)
{
    if (mkdirat(parent_fd, name, 0755) != 0)
        return -errno;
    int target_fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = target_fd < 0 ? -errno : copy_files(source_fd, target_fd);
    if (target_fd >= 0)
        close(target_fd);
    if (error)
        tree_remove(parent_fd, name);
    return error;
}

bool clone_directory(int source_fd, const char *source, int parent_fd, const char *parent,
                     const char *name)
{
    struct stat from = {0}, to = {0};
    int error = fstat(source_fd, &from) != 0 || fstat(parent_fd, &to) != 0 ? -errno : 0;
    if (!error && from.st_dev != to.st_dev) {
        tool_error("%s: is not in the same mount as %s", parent, source);
        return false;
    }
    if (!error)
        error = clone_on_cowfs(source_fd, parent_fd, name);
    if (error == -ENOTTY || error == -ENOSYS || error == -EOPNOTSUPP)
        error = clone_elsewhere(source_fd, parent_fd, name);
    if (error)
        tool_error("%s: cannot be cloned: %s", source,
                   error == -EEXIST ? g_strerror(EEXIST) : tool_ioctl_reason(error));
    return error == 0;
}
