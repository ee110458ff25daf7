// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs_umount.c - cowfs umount.
 *
 * umount(2) returns when the kernel is through with the mount; the daemon then
 * still makes its last commit. The store's lock tells when that is done.
 */
#include "cowfs/unmount.h"
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TIMEOUT_S_DEFAULT = 60, POLL_MS = 10 };

static const char help[] =
    "Usage: cowfs umount [OPTION]... MOUNTPOINT...\n"
    "Commits, unmounts, and returns when the store is closed: then it can be copied, checked\n"
    "by 'cowfs fsck', or mounted again.\n"
    "\n"
    "  -t, --timeout SECONDS  wait at most so long for the store to be closed (default 60)\n"
    "  -h, --help             show this help\n"
    "\n"
    "A view of the store (mount option view) ends with its mount; that of a view alone leaves\n"
    "the other going. A mount that is in use is left alone. umount(8) does for unmounting, too, "
    "but returns\n"
    "while the daemon is still closing the store.\n"
    "\n"
    "Example:\n"
    "  cowfs umount /var/lib/vms\n";

/* The root of a mount has another device than the directory above it. */
static bool is_mountpoint(int fd)
{
    struct stat here, above;
    return fstat(fd, &here) == 0 && fstatat(fd, "..", &above, 0) == 0 &&
           (here.st_dev != above.st_dev || here.st_ino == above.st_ino);
}

/* Whether the daemon has given up the lock in time. */
static bool wait_until_closed(const char *store, unsigned timeout_s)
{
    g_autofree char *path = g_build_filename(store, "lock", NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return true; /* the store has gone, or is out of our sight */
    bool closed = false;
    for (uint64_t waited_ms = 0; !closed && waited_ms <= timeout_s * UINT64_C(1000);
         waited_ms += POLL_MS) {
        closed = flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (!closed)
            usleep(POLL_MS * 1000);
    }
    close(fd);
    return closed;
}

/* Whether a mount of cowfs is there whose daemon is gone. Nothing can be asked
 * of such a mount, so the kernel's table has to tell. */
static bool is_dead_mount(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        return false;
    }
    if (errno != ENOTCONN && errno != ECONNABORTED)
        return false;
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    FILE *table = setmntent("/proc/self/mounts", "re");
    bool found = false;
    const struct mntent *entry;
    while (table && (entry = getmntent(table)))
        if (strcmp(entry->mnt_dir, absolute) == 0)
            found = strcmp(entry->mnt_type, "fuse.cowfs") == 0; /* the last one is on top */
    if (table)
        endmntent(table);
    return found;
}

static int umount_dead(const char *path)
{
    int error = unmount_path(path, true);
    if (error) {
        tool_error("%s: cannot unmount: %s", path, g_strerror(-error));
        return EXIT_FAILED;
    }
    tool_error("%s: unmounted, but its daemon was gone: the store is as of its last commit", path);
    return EXIT_DONE;
}

static int failed_to_unmount(const char *path, int error)
{
    if (error == -EBUSY)
        tool_error("%s: is in use ('fuser -vm %s' tells by whom)", path, path);
    else
        tool_error("%s: cannot unmount: %s", path, g_strerror(-error));
    return EXIT_FAILED;
}

/* The view first: the daemon would cut it off. And not even that, if the mount itself
 * is in use, which MNT_EXPIRE tells without unmounting it. */
static bool umount_view(const char *path, const char *view)
{
    if (umount2(path, MNT_EXPIRE | UMOUNT_NOFOLLOW) != 0 && errno == EBUSY) {
        failed_to_unmount(path, -EBUSY);
        return false;
    }
    /* It may be gone, or out of our sight: then it is the daemon's business. */
    if (unmount_path(view, false) == -EBUSY) {
        failed_to_unmount(view, -EBUSY);
        return false;
    }
    return true;
}

static int umount_one(const char *path, unsigned timeout_s)
{
    struct cowfs_ioc_info info = {0};
    struct cowfs_ioc_commit commit = {0};
    bool is_directory = false;

    if (is_dead_mount(path))
        return umount_dead(path);
    int fd = tool_open(path, &is_directory);
    if (fd < 0)
        return EXIT_FAILED;
    if (!is_directory || !is_mountpoint(fd)) {
        tool_error("%s: is not a mount point", path);
        close(fd);
        return EXIT_FAILED;
    }
    bool ok = tool_ioctl(fd, path, COWFS_IOC_INFO, &info);
    /* A commit that fails is no reason to keep the mount: the daemon tries
     * again when it closes. But what it meets then goes to its log, so the
     * failure that is seen here counts. (Dirty pages of a mount that is not in
     * use have been written: FUSE does that at close(2).) */
    bool committed = ok && tool_ioctl(fd, path, COWFS_IOC_COMMIT, &commit);
    close(fd); /* it would keep the mount busy */
    if (!ok)
        return EXIT_FAILED;

    if (!info.is_view && info.view_path[0] && !umount_view(path, info.view_path))
        return EXIT_FAILED;
    int error = unmount_path(path, false);
    if (error)
        return failed_to_unmount(path, error);
    if (info.is_view)
        return committed ? EXIT_DONE : EXIT_FAILED; /* the store stays open */
    if (info.store_path[0] && !wait_until_closed(info.store_path, timeout_s)) {
        tool_error("%s: unmounted here, but process %" PRIu32
                   " has not closed the store %s after %u seconds; another mount namespace may"
                   " have the mount as well",
                   path, info.pid, info.store_path, timeout_s);
        return EXIT_FAILED;
    }
    return committed ? EXIT_DONE : EXIT_FAILED;
}

int cmd_umount(int argc, char **argv)
{
    static const struct option options[] = {
        {"timeout", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    guint64 timeout_s = TIMEOUT_S_DEFAULT;
    int option;

    while ((option = tool_getopt(argc, argv, "t:h", options)) != -1) {
        switch (option) {
        case 't':
            if (!g_ascii_string_to_unsigned(optarg, 10, 0, 86400, &timeout_s, NULL))
                return tool_misused("--timeout: '%s' is no number of seconds", optarg);
            break;
        case 'h':
            return tool_help(help);
        default:
            return EXIT_MISUSED;
        }
    }
    if (optind == argc)
        return tool_misused("no mount point given");
    int status = EXIT_DONE;
    for (int i = optind; i < argc; i++)
        if (umount_one(argv[i], (unsigned)timeout_s) != EXIT_DONE)
            status = EXIT_FAILED;
    return status;
}
