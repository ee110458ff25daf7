// SPDX-License-Identifier: Apache-2.0
/* cowfs_upgrade.c - cowfs upgrade. */
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

enum { TIMEOUT_S = 120, POLL_MS = 5 };

static const char help[] =
    "Usage: cowfs upgrade MOUNTPOINT...\n"
    "The version of cowfs that is installed now goes on with a mount, in "
    "the place of the one that\n"
    "serves it. Files stay open, virtual machines run on: they wait for a "
    "moment. Nothing is changed\n"
    "if the new version says that it cannot. Not for mounts with the options\n"
    "nosupervise or io_uring.\n"
    "\n"
    "  -h, --help  show this help\n"
    "\n"
    "Example:\n"
    "  cmake --install build && cowfs upgrade /var/lib/vms\n";

static bool ask(int fd, const char *path, uint32_t flags, struct cowfs_ioc_upgrade *io)
{
    *io = (struct cowfs_ioc_upgrade){.flags = flags};
    return tool_ioctl(fd, path, COWFS_IOC_UPGRADE, io);
}

static int upgrade(const char *path, int fd)
{
    struct cowfs_ioc_upgrade before, now;
    if (!ask(fd, path, COWFS_UPGRADE_GO, &before))
        return EXIT_FAILED;
    if (before.reason[0]) {
        tool_error("%s: goes on as it is: %s", path, before.reason);
        return EXIT_FAILED;
    }
    for (unsigned waited_ms = 0; waited_ms < TIMEOUT_S * 1000; waited_ms += POLL_MS) {
        if (!ask(fd, path, 0, &now))
            return EXIT_FAILED;
        if (now.pid != before.pid && now.reason[0]) {
            tool_error("%s: goes on as it is: %s", path, now.reason);
            return EXIT_FAILED;
        }
        if (now.pid != before.pid) {
            printf("%s: version %s (process %" PRIu32 ") has taken over from %s (process %" PRIu32
                   ")\n",
                   path, now.program_version, now.pid, before.program_version, before.pid);
            return tool_finish(EXIT_DONE);
        }
        usleep(POLL_MS * 1000);
    }
    tool_error("%s: process %" PRIu32 " still serves it", path, before.pid);
    return EXIT_FAILED;
}

int cmd_upgrade(int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {0}};
    int option, status = EXIT_DONE;
    while ((option = tool_getopt(argc, argv, "h", options)) != -1) {
        if (option == 'h')
            return tool_help(help);
        return EXIT_MISUSED;
    }
    if (optind == argc)
        return tool_misused("no mount point given");
    for (int i = optind; i < argc; i++) {
        bool is_directory;
        int fd = tool_open(argv[i], &is_directory);
        if (fd < 0 || upgrade(argv[i], fd) != EXIT_DONE)
            status = EXIT_FAILED;
        if (fd >= 0)
            close(fd);
    }
    return status;
}
