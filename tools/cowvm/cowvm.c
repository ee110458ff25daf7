// SPDX-License-Identifier: Apache-2.0
/*
 * cowvm.c - the command line: finds the command.
 *
 * cowvm drives QEMU on VMs that are directories in a mount of cowfs. It is a
 * user of cowfs like any other: the file system knows nothing of it.
 */
#include "tools/cowvm/cowvm.h"
#include "tools/cowfs_tool.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct command {
    const char *name, *full_name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
    {"create", "cowvm create", cmd_create, "make a VM from a disk image of any format"},
    {"start", "cowvm start", cmd_start, "switch it on, or take it up where it was saved"},
    {"stop", "cowvm stop", cmd_stop, "shut it down, or switch it off"},
    {"rm", "cowvm rm", cmd_rm, "remove it"},
    {"ls", "cowvm ls", cmd_ls, "the VMs, their state and what they take"},
    {"console", "cowvm console", cmd_console, "talk to its serial line"},
    {"exec-qmp", "cowvm exec-qmp", cmd_exec_qmp, "have its QEMU execute a command"},
    {"run", "cowvm run", cmd_run, "run a throw-away clone of it"},
    {"fork", "cowvm fork", cmd_fork, "copy it with its memory while it runs; both run on"},
    {"standby", "cowvm standby", cmd_standby, "keep a QEMU ready for its next fork"},
    {"hibernate", "cowvm hibernate", cmd_hibernate, "its memory to the store, its process gone"},
    {"resume", "cowvm resume", cmd_resume, "take it up where it was hibernated"},
    {"snapshot", "cowvm snapshot", cmd_snapshot, "keep a moment of it"},
    {"reset", "cowvm reset", cmd_reset, "go back to a moment that was kept"},
};

static void print_help(FILE *out)
{
    fputs("Usage: cowvm COMMAND [OPTION]... ARGUMENT...\n"
          "Virtual machines on a cowfs mount: copied while they run, thrown away, put to sleep.\n"
          "A VM is a directory with its disk, its memory and its description.\n"
          "\n"
          "Commands:\n",
          out);
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fputs("\n"
          "'cowvm COMMAND --help' tells more. A NAME without a slash is a VM in $COWVM_DIR or\n"
          "/var/lib/vms, and else a path. What there is of running VMs (sockets, logs) is in\n"
          "$COWVM_RUN or /run/cowvm. $COWVM_QEMU may name another QEMU.\n"
          "\n"
          "Examples:\n"
          "  cowvm create golden --disk debian-12-generic-amd64.qcow2 --memory 1G\n"
          "  cowvm start golden; cowvm console golden\n"
          "  cowvm fork golden copy --count 16\n"
          "  cowvm run --rm golden@clean\n"
          "\n"
          "Exit status: 0 done, 1 failed, 2 misused (run: that of QEMU).\n",
          out);
}

int main(int argc, char **argv)
{
    tool_set_name("cowvm");
    /* A QEMU or a guard that is gone is told by the failed write. */
    signal(SIGPIPE, SIG_IGN);
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
        printf("cowvm %s\n", COWFS_VERSION);
        return tool_finish(EXIT_DONE);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(name, commands[i].name) == 0) {
            tool_set_name(commands[i].full_name);
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    return tool_misused("unknown command '%s'", name);
}
