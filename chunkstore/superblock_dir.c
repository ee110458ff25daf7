// SPDX-License-Identifier: Apache-2.0
/*
 * superblock_dir.c - the store's directory: may a store be made here, and who
 * is using it.
 */
#include "chunkstore/superblock_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LOCK_FILE_MAX_BYTES = 64,
    POLL_MS = 5,
    UNMOUNT_WAIT_MS = 500,   /* until a daemon has noticed that it is not mounted any more */
    CLOSING_WAIT_MS = 60000, /* its last commit */
};

#define CLOSING " closing" /* behind the process id in the lock file */

/*
 * May `name` lie in a directory where a store is to be made? lost+found comes
 * with every fresh ext4. The other two are what we leave ourselves when a
 * creation is interrupted, or when the lock is taken before the creation.
 */
static bool is_harmless(int dir_fd, const char *name)
{
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, "lost+found") == 0)
        return true;
    if (g_str_has_prefix(name, SUPERBLOCK_TEMPORARY))
        return true;
    if (strcmp(name, LOCK_NAME) == 0) {
        struct stat st;
        return fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
               st.st_size <= LOCK_FILE_MAX_BYTES;
    }
    return false;
}

/* Finds the first entry that is not harmless; a superblock goes before all
 * others, because it decides what the directory is. *name is NULL if there is
 * none, else to be freed. */
static int find_content(int dir_fd, char **name)
{
    *name = NULL;
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    DIR *dir = fdopendir(fd);
    if (!dir) {
        int error = -errno;
        close(fd);
        return error;
    }
    int error = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (!entry) {
            error = -errno;
            break;
        }
        bool is_superblock = strcmp(entry->d_name, SUPERBLOCK_NAME) == 0;
        if (is_harmless(dir_fd, entry->d_name) || (*name && !is_superblock))
            continue;
        g_free(*name);
        *name = g_strdup(entry->d_name);
        if (is_superblock)
            break;
    }
    closedir(dir);
    if (error) {
        g_free(*name);
        *name = NULL;
    }
    return error;
}

int superblock_store_is_absent(const char *path, bool *absent, struct errmsg *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT) {
            *absent = true;
            return 0;
        }
        return errmsg_set(err, -errno, "cannot open '%s': %s", path, g_strerror(errno));
    }
    char *content;
    int error = find_content(fd, &content);
    close(fd);
    if (error)
        return errmsg_set(err, error, "cannot list '%s': %s", path, g_strerror(-error));
    *absent = content == NULL;
    g_free(content);
    return 0;
}

/* Makes a new name in the parent of `path` durable. */
static int sync_parent(const char *path)
{
    char *parent = g_path_get_dirname(path);
    int error = 0;
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        error = -errno;
    if (fd >= 0)
        close(fd);
    g_free(parent);
    return error;
}

int superblock_prepare_dir(const char *path, int *dir_fd, struct errmsg *err)
{
    /* 0700: what guests keep on their disks is nobody else's business. */
    if (mkdir(path, 0700) == 0) {
        int error = sync_parent(path);
        if (error)
            return errmsg_set(err, error, "cannot sync the parent of '%s': %s", path,
                              g_strerror(-error));
    } else if (errno != EEXIST) {
        return errmsg_set(err, -errno, "cannot make '%s': %s", path, g_strerror(errno));
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errmsg_set(err, -errno, "cannot open '%s': %s", path, g_strerror(errno));

    char *content;
    int error = find_content(fd, &content);
    if (error) {
        errmsg_set(err, error, "cannot list '%s': %s", path, g_strerror(-error));
    } else if (content && strcmp(content, SUPERBLOCK_NAME) == 0) {
        error = errmsg_set(err, -EEXIST, "'%s' is a cowfs store already", path);
    } else if (content) {
        error = errmsg_set(err, -ENOTEMPTY,
                           "'%s' is no cowfs store and not empty (there is '%s' in it); "
                           "a new store needs an empty directory",
                           path, content);
    }
    g_free(content);
    if (error) {
        close(fd);
        return error;
    }
    *dir_fd = fd;
    return 0;
}

/* The process id in the lock file, 0 if there is none; and whether that process is closing. */
static long read_holder(int fd, bool *closing)
{
    char text[LOCK_FILE_MAX_BYTES] = "";
    ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
    *closing = n > 0 && strstr(text, CLOSING);
    return n > 0 ? strtol(text, NULL, 10) : 0;
}

/* For the message about a store in use, and for who waits for its end: on a full disk the lock
 * counts, the text does not. */
static void note_holder(int fd, const char *path, const char *state)
{
    char text[LOCK_FILE_MAX_BYTES];
    int n = snprintf(text, sizeof(text), "%ld%s\n", (long)getpid(), state);
    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) != n)
        g_debug("cannot write the process id into the lock file of '%s'", path);
}

/*
 * Takes the lock, also from somebody who is about to give it up: umount(8) has returned before
 * the daemon knows of it, and whoever mounts again, or checks the store, at once should not have
 * to know that. 0, or a negative errno; -EWOULDBLOCK: it is in use.
 */
static int take_lock(int fd)
{
    int64_t begin = g_get_monotonic_time();
    bool closing;
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EINTR)
            continue;
        if (errno != EWOULDBLOCK)
            return -errno;
        read_holder(fd, &closing);
        int64_t patience_ms = closing ? CLOSING_WAIT_MS : UNMOUNT_WAIT_MS;
        if (g_get_monotonic_time() - begin > patience_ms * G_TIME_SPAN_MILLISECOND)
            return -EWOULDBLOCK;
        g_usleep(POLL_MS * G_TIME_SPAN_MILLISECOND);
    }
    return 0;
}

int store_lock(const char *path, struct errmsg *err)
{
    char *name = g_build_filename(path, LOCK_NAME, NULL);
    bool writable = true;
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 && (errno == EROFS || errno == EACCES)) {
        /* Looking at a store on a read-only medium: flock works there, too. */
        writable = false;
        fd = open(name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    }
    if (fd < 0) {
        int error = errmsg_set(err, -errno, "cannot open '%s': %s", name, g_strerror(errno));
        g_free(name);
        return error;
    }
    g_free(name);

    int error = take_lock(fd);
    if (error == -EWOULDBLOCK) {
        bool closing;
        long holder = read_holder(fd, &closing);
        error = holder > 0 ? errmsg_set(err, -EBUSY, "the store '%s' is in use by process %ld%s",
                                        path, holder, closing ? ", which is closing it" : "")
                           : errmsg_set(err, -EBUSY, "the store '%s' is in use", path);
    } else if (error) {
        errmsg_set(err, error, "cannot lock the store '%s': %s", path, g_strerror(-error));
    }
    if (error) {
        close(fd);
        return error;
    }
    if (writable)
        note_holder(fd, path, "");
    return fd;
}

int store_lock_shared(const char *path, int lock_fd, struct errmsg *err)
{
    g_autofree char *name = g_build_filename(path, LOCK_NAME, NULL);
    struct stat there, here;
    if (stat(name, &there) != 0)
        return errmsg_set(err, -errno, "cannot open '%s': %s", name, g_strerror(errno));
    if (fstat(lock_fd, &here) != 0 || here.st_dev != there.st_dev || here.st_ino != there.st_ino)
        return errmsg_set(err, -ESTALE, "the store '%s' is not the one that was mounted", path);
    int fd = fcntl(lock_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return errmsg_set(err, -errno, "'%s': %s", name, g_strerror(errno));
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
        note_holder(fd, path, "");
    return fd;
}

void store_lock_closing(const char *path, int lock_fd)
{
    if ((fcntl(lock_fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
        note_holder(lock_fd, path, CLOSING);
}
