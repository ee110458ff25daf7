// SPDX-License-Identifier: Apache-2.0
/*
 * cowfsd.c - the program with the file system in it. Not called by people:
 * `cowfs mount`, `cowfs fsck` and the mount helper become it, with their own
 * command line.
 */
#include "tools/cowfsd.h"
#include "tools/cowfs_tool.h"

#include <string.h>

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    if (strcmp(name, "mount") == 0) {
        tool_set_name("cowfs mount");
        return cmd_mount(argc - 1, argv + 1);
    }
    if (strcmp(name, "serve") == 0) {
        tool_set_name("cowfs mount");
        return cmd_serve(argc - 1, argv + 1);
    }
    if (strcmp(name, "fsck") == 0) {
        tool_set_name("cowfs fsck");
        return cmd_fsck(argc - 1, argv + 1);
    }
    if (strcmp(name, "mount-helper") == 0) {
        tool_set_name("mount.fuse.cowfs");
        return mount_helper(argc - 1, argv + 1);
    }
    tool_set_name("cowfsd");
    tool_error("is started by 'cowfs mount' and 'cowfs fsck'");
    return EXIT_MISUSED;
}
