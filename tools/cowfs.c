// SPDX-License-Identifier: Apache-2.0
/* cowfs.c - the command line: finds the subcommand. */
#include "tools/cowfs_tool.h"

#include <stdio.h>
#include <string.h>

#ifndef COWFS_VERSION
#define COWFS_VERSION "unknown"
#endif

static const struct command {
    const char *name;
    const char *full_name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"mount", "cowfs mount", cmd_mount, "mount a store (makes it if there is none)"},
    {"umount", "cowfs umount", cmd_umount, "commit, unmount, wait until the store is closed"},
    {"clone", "cowfs clone", cmd_clone, "clone a file or a whole directory in one atomic step"},
    {"stat", "cowfs stat", cmd_stat, "what a file consists of"},
    {"du", "cowfs du", cmd_du, "what files and trees hold alone, and what they share"},
    {"df", "cowfs df", cmd_df, "the store as a whole"},
    {"seal", "cowfs seal", cmd_seal, "hash and deduplicate now"},
    {"diff", "cowfs diff", cmd_diff, "the byte ranges in which two files differ"},
    {"fsck", "cowfs fsck", cmd_fsck, "check the structure of an unmounted store"},
};

static void print_help(FILE *out)
{
    fputs("Usage: cowfs COMMAND [OPTION]... ARGUMENT...\n"
          "A copy-on-write file system for virtual machine images: a clone of a file, or of a\n"
          "directory full of them, costs nothing until one of the two is changed.\n"
          "\n"
          "Commands:\n",
          out);
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fputs("\n"
          "'cowfs COMMAND --help' tells more. Plain cp, cp -r and cp -a clone as well.\n"
          "\n"
          "Examples:\n"
          "  cowfs mount /srv/vms.cowfs /var/lib/vms\n"
          "  cowfs clone /var/lib/vms/golden /var/lib/vms/vm17\n"
          "  cowfs umount /var/lib/vms\n"
          "\n"
          "Exit status: 0 done, 1 failed, 2 misused (fsck and the mount helper: their own).\n",
          out);
}

static bool called_as_helper(const char *program)
{
    const char *base = strrchr(program, '/');
    base = base ? base + 1 : program;
    return strcmp(base, "mount.fuse.cowfs") == 0 || strcmp(base, "mount.cowfs") == 0;
}

int main(int argc, char **argv)
{
    if (called_as_helper(argc ? argv[0] : ""))
        return mount_helper(argc, argv);
    if (argc < 2) {
        print_help(stderr);
        return EXIT_MISUSED;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return tool_finish(EXIT_DONE);
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("cowfs %s\n", COWFS_VERSION);
        return tool_finish(EXIT_DONE);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(name, commands[i].name) == 0) {
            tool_set_name(commands[i].full_name);
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    /* mount.fuse3 runs "cowfs STORE MOUNTPOINT -o OPTIONS". */
    if (strchr(name, '/'))
        return mount_helper(argc, argv);
    return tool_misused("unknown command '%s'", name);
}
