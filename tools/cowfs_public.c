// SPDX-License-Identifier: Apache-2.0
/* cowfs_public.c - cowfs public: content that all owners' sealing may find. */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes a request looks at: short enough for Ctrl-C. */
#define STEP_BYTES (UINT64_C(32) << 20)

enum { TRIES = 3 };

static const char help[] =
    "Usage: cowfs public [--off] [OPTION]... PATH...\n"
    "Makes the content of files, and of all files in directories, public: files of other owners\n"
    "that have equal content come to share its space when they are sealed. Else sealing finds\n"
    "only what files of the same owner have, so that nobody learns what others have. Meant for\n"
    "golden images: whoever may read such a file can see whether any of it is shared.\n"
    "\n"
    "What is public is the content as it is now: after changing an image, call this again.\n"
    "'cowfs stat' tells how much of a file is. For root, and the user who runs the daemon.\n"
    "\n"
    "      --off    no more: what is shared stays shared, and nothing new comes to it\n"
    "  -q, --quiet  no report\n"
    "  -j, --json   report as JSON\n"
    "  -h, --help   show this help\n"
    "\n"
    "Example:\n"
    "  cowfs public /var/lib/vms/golden\n";

struct publishing {
    uint32_t action;
    uint64_t files, public_bytes, changed, unsealed;
};

/* One pass over the file. */
static bool pass(const struct publishing *p, int fd, const char *path, struct cowfs_ioc_public *sum)
{
    uint64_t offset = 0;
    *sum = (struct cowfs_ioc_public){0};
    do {
        struct cowfs_ioc_public io = {
            .action = p->action,
            .offset = offset,
            .length = STEP_BYTES,
        };
        int error = tool_try_ioctl(fd, COWFS_IOC_PUBLIC, &io);
        if (error) {
            tool_error("%s: %s", path, tool_ioctl_reason(error));
            return false;
        }
        sum->public_bytes += io.public_bytes;
        sum->changed += io.changed;
        sum->unsealed += io.unsealed;
        offset = io.next;
    } while (offset);
    return true;
}

static bool publish_file(void *arg, int fd, const char *path)
{
    struct publishing *p = arg;
    struct cowfs_ioc_public sum;
    if (!tool_flush(fd, path))
        return false;
    /* What somebody else is just sealing is done the next time. */
    for (unsigned try = 0; try < TRIES; try++) {
        if (!pass(p, fd, path, &sum))
            return false;
        p->changed += sum.changed;
        if (sum.unsealed == 0 || p->action == COWFS_PUBLIC_OFF)
            break;
    }
    p->public_bytes += sum.public_bytes;
    p->unsealed += sum.unsealed;
    p->files++;
    return true;
}

/* All of it, so that it outlives the daemon and the machine; *pid: of the daemon that then was
 * there. */
static bool publish_all(struct publishing *p, int fd, bool is_directory, const char *path,
                        uint32_t *pid)
{
    struct cowfs_ioc_commit commit = {0};
    struct cowfs_ioc_info info = {0};
    bool ok = is_directory ? tree_walk_files(fd, path, publish_file, p) : publish_file(p, fd, path);
    ok = tool_ioctl(fd, path, COWFS_IOC_COMMIT, &commit) &&
         tool_ioctl(fd, path, COWFS_IOC_INFO, &info) && ok;
    *pid = info.pid;
    return ok;
}

static bool publish_path(struct publishing *p, const char *path)
{
    const struct publishing before = *p;
    struct cowfs_ioc_info info = {0};
    bool is_directory = false;
    int fd = tool_open(path, &is_directory);
    bool ok = fd >= 0 && tool_ioctl(fd, path, COWFS_IOC_INFO, &info);
    /* A daemon that was started anew meanwhile may not know what the last one did. */
    for (uint32_t pid = info.pid + 1; ok && pid != info.pid;) {
        pid = info.pid;
        *p = before;
        ok = publish_all(p, fd, is_directory, path, &info.pid);
    }
    if (fd >= 0)
        close(fd);
    return ok;
}

static int report(const struct publishing *p, bool as_json)
{
    if (as_json) {
        json_t *o = json_object();
        json_object_set_new(o, "files", tool_json_u64(p->files));
        json_object_set_new(o, "public_bytes", tool_json_u64(p->public_bytes));
        json_object_set_new(o, "changed_bytes", tool_json_u64(p->changed));
        json_object_set_new(o, "unsealed_bytes", tool_json_u64(p->unsealed));
        return tool_print_json(o);
    }
    if (p->action == COWFS_PUBLIC_OFF)
        printf("%" PRIu64 " files: %s are not public any more\n", p->files,
               tool_size(p->changed).s);
    else
        printf("%" PRIu64 " files: %s are public, %s of that since now\n", p->files,
               tool_size(p->public_bytes).s, tool_size(p->changed).s);
    if (p->unsealed && p->action == COWFS_PUBLIC_ON)
        printf("%s are not: they could not be sealed just now\n", tool_size(p->unsealed).s);
    return tool_finish(EXIT_DONE);
}

int cmd_public(int argc, char **argv)
{
    static const struct option options[] = {
        {"off", no_argument, NULL, 'o'},
        {"quiet", no_argument, NULL, 'q'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct publishing p = {.action = COWFS_PUBLIC_ON};
    bool as_json = false, quiet = false;
    int option, status = EXIT_DONE;

    while ((option = tool_getopt(argc, argv, "qjh", options)) != -1) {
        switch (option) {
        case 'o':
            p.action = COWFS_PUBLIC_OFF;
            break;
        case 'q':
            quiet = true;
            break;
        case 'j':
            as_json = true;
            break;
        case 'h':
            return tool_help(help);
        default:
            return EXIT_MISUSED;
        }
    }
    if (optind == argc)
        return tool_misused("no file or directory given");
    for (int i = optind; i < argc; i++)
        if (!publish_path(&p, argv[i]))
            status = EXIT_FAILED;
    if (quiet)
        return status;
    int printed = report(&p, as_json);
    return status ? status : printed;
}
