// SPDX-License-Identifier: Apache-2.0
#include "tools/cowfs_tree.h"
#include "tools/cowfs_tool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { OPEN_DIR = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC };

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Its own descriptor, so that the caller's position stays. */
static DIR *open_directory(int dir_fd, const char *name)
{
    int fd = openat(dir_fd, name, OPEN_DIR);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory && fd >= 0)
        close(fd);
    return directory;
}

bool tree_walk(int fd, const char *path, tree_fn fn, void *arg)
{
    DIR *directory = open_directory(fd, ".");
    bool ok = directory != NULL;
    const struct dirent *entry;

    errno = 0;
    while (ok && (entry = readdir(directory))) {
        struct stat st;
        if (is_dot(entry->d_name))
            continue;
        g_autofree char *child = g_build_filename(path, entry->d_name, NULL);
        if (fstatat(dirfd(directory), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
            /* Removed in between: then it is not there. */
            if (errno != ENOENT) {
                tool_error("%s: %s", child, g_strerror(errno));
                ok = false;
            }
            errno = 0;
            continue;
        }
        ok = fn(arg, dirfd(directory), entry->d_name, child, &st);
        if (ok && S_ISDIR(st.st_mode)) {
            int below = openat(dirfd(directory), entry->d_name, OPEN_DIR);
            if (below >= 0) {
                ok = tree_walk(below, child, fn, arg);
                close(below);
            } else if (errno != ENOENT) {
                tool_error("%s: %s", child, g_strerror(errno));
                ok = false;
            }
        }
        errno = 0;
    }
    if (errno) {
        tool_error("%s: %s", path, g_strerror(errno));
        ok = false;
    }
    if (directory)
        closedir(directory);
    return ok;
}

int tree_open_file(int dir_fd, const char *name, const char *path)
{
    int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        tool_error("%s: %s", path, g_strerror(errno));
    return fd;
}

struct file_walk {
    tree_file_fn fn;
    void *arg;
};

static bool visit_file(void *arg, int dir_fd, const char *name, const char *path,
                       const struct stat *st)
{
    const struct file_walk *walk = arg;
    if (!S_ISREG(st->st_mode))
        return true;
    int fd = tree_open_file(dir_fd, name, path);
    if (fd < 0)
        return errno == ENOENT;
    bool ok = walk->fn(walk->arg, fd, path);
    close(fd);
    return ok;
}

bool tree_walk_files(int fd, const char *path, tree_file_fn fn, void *arg)
{
    struct file_walk walk = {.fn = fn, .arg = arg};
    return tree_walk(fd, path, visit_file, &walk);
}

bool tree_add_size(void *arg, int dir_fd, const char *name, const char *path, const struct stat *st)
{
    uint64_t *bytes = arg;
    (void)dir_fd;
    (void)name;
    (void)path;
    if (S_ISREG(st->st_mode))
        *bytes += (uint64_t)st->st_size;
    return true;
}

static void keep_first(int *first, int error)
{
    if (*first == 0)
        *first = error;
}

int tree_remove(int dir_fd, const char *name)
{
    if (unlinkat(dir_fd, name, 0) == 0)
        return 0;
    /* Linux says EISDIR for a directory, POSIX EPERM. */
    if (errno != EISDIR && errno != EPERM)
        return -errno;
    DIR *directory = open_directory(dir_fd, name);
    if (!directory)
        return -errno;
    int first = 0;
    const struct dirent *entry;
    while ((entry = readdir(directory)))
        if (!is_dot(entry->d_name))
            keep_first(&first, tree_remove(dirfd(directory), entry->d_name));
    closedir(directory);
    if (unlinkat(dir_fd, name, AT_REMOVEDIR) != 0)
        keep_first(&first, -errno);
    return first;
}
