// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs.c - the command line: finds the subcommand.
 *
 * mount and fsck are in a program of their own, cowfsd: it needs RocksDB, and
 * loading that takes longer than most other commands take in all.
 */
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef COWFS_VERSION
#define COWFS_VERSION "unknown"
#endif

static const struct command {
    const char *name;
    const char *full_name;
    int (*run)(int argc, char **argv); /* NULL: cowfsd does it */
    const char *summary;
} commands[] = {
    {"mount", "cowfs mount", NULL, "mount a store (makes it if there is none)"},
    {"umount", "cowfs umount", cmd_umount, "commit, unmount, wait until the store is closed"},
    {"upgrade", "cowfs upgrade", cmd_upgrade, "let the version now installed go on with a mount"},
    {"clone", "cowfs clone", cmd_clone, "clone a file or a whole directory in one atomic step"},
    {"rm", "cowfs rm", cmd_rm, "delete files and whole directories, each in one atomic step"},
    {"stat", "cowfs stat", cmd_stat, "what a file consists of"},
    {"du", "cowfs du", cmd_du, "what files and trees hold alone, and what they share"},
    {"df", "cowfs df", cmd_df, "the store as a whole"},
    {"seal", "cowfs seal", cmd_seal, "hash and deduplicate now"},
    {"public", "cowfs public", cmd_public, "let files of all owners share content with these"},
    {"pack", "cowfs pack", cmd_pack, "lay files out flat, so that clones can share their pages"},
    {"diff", "cowfs diff", cmd_diff, "the byte ranges in which two files differ"},
    {"scrub", "cowfs scrub", cmd_scrub, "read all sealed data and tell what is damaged"},
    {"import", "cowfs import", cmd_import, "bring in a disk image: qcow2, vmdk, raw, ..."},
    {"export", "cowfs export", cmd_export, "write a disk image for others: qcow2, vmdk, raw, ..."},
    {"fsck", "cowfs fsck", NULL, "check the structure of an unmounted store"},
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
    fputs(
        "\n"
        "'cowfs COMMAND --help' tells more. Plain cp, cp -r and cp -a clone as well.\n"
        "\n"
        "Examples:\n"
        "  cowfs mount /srv/vms.cowfs /var/lib/vms\n"
        "  cowfs clone /var/lib/vms/golden /var/lib/vms/vm17\n"
        "  cowfs umount /var/lib/vms\n"
        "\n"
        "Exit status: 0 done, 1 failed, 2 misused (fsck, scrub and the mount helper: their own).\n",
        out);
}

/* cowfsd is beside this program (in the build tree) or in ../libexec. */
static char *find_daemon(void)
{
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *directory = self ? g_path_get_dirname(self) : g_strdup("/usr/local/bin");
    char *path = g_build_filename(directory, "cowfsd", NULL);
    if (access(path, X_OK) != 0) {
        g_free(path);
        path = g_build_filename(directory, "..", "libexec", "cowfsd", NULL);
    }
    return path;
}

/* Becomes cowfsd. `command` stands for argv[0] there; the name of the process
 * stays cowfs. */
static int become_daemon(const char *command, int argc, char **argv)
{
    g_autofree char *path = find_daemon();
    char **words = g_new0(char *, (gsize)argc + 2);
    words[0] = (char *)(uintptr_t) "cowfs";
    words[1] = (char *)(uintptr_t)command;
    for (int i = 1; i < argc; i++)
        words[i + 1] = argv[i];
    execv(path, words);
    tool_error("%s: %s", path, g_strerror(errno));
    g_free(words);
    return EXIT_FAILED;
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
        return become_daemon("mount-helper", argc, argv);
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
            if (!commands[i].run)
                return become_daemon(name, argc - 1, argv + 1);
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    /* mount.fuse3 runs "cowfs STORE MOUNTPOINT -o OPTIONS". */
    if (strchr(name, '/'))
        return become_daemon("mount-helper", argc, argv);
    return tool_misused("unknown command '%s'", name);
}
