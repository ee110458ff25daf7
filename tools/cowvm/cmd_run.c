// SPDX-License-Identifier: Apache-2.0
/*
 * cmd_run.c - cowvm run: a clone that lives as long as the command.
 *
 * The clone keeps a hidden name. Its guard (journal.h) removes it when this
 * process is gone, however that came about; QEMU dies with this process by the
 * kernel's doing.
 */
#include "tools/cowfs_tool.h"
#include "tools/cowvm/clone.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static const char help[] =
    "Usage: cowvm run --rm GOLDEN [-- QEMU-OPTION...]\n"
    "Runs a clone of a VM that does not run, with its serial line on the terminal, and removes\n"
    "it when it ends: when the guest powers off, with Ctrl-C, or with this command, however it\n"
    "ends. A VM that was hibernated, or a moment kept with 'cowvm snapshot' (NAME@TAG), goes on\n"
    "where it was; else the clone boots.\n"
    "\n"
    "      --rm    remove the clone at the end (the only way there is)\n"
    "  -h, --help  show this help\n"
    "\n"
    "With the store on a tmpfs nothing of it touches a disk.\n"
    "\n"
    "Exit status: that of QEMU; 1 if it could not be started; 128 and the signal's number if a\n"
    "signal ended it.\n";

static volatile sig_atomic_t interrupted_by;
static volatile sig_atomic_t machine_pid;

static void end_machine(int number)
{
    interrupted_by = number;
    if (machine_pid > 0)
        kill(machine_pid, SIGTERM);
}

static void catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    struct sigaction action = {.sa_handler = end_machine};
    for (size_t i = 0; i < G_N_ELEMENTS(signals); i++)
        sigaction(signals[i], &action, NULL);
}

/* ---- the clone ---- */

static bool clone_golden(const char *golden_name, struct vm *vm)
{
    struct vm golden = VM_INIT;
    bool ok = vm_open(&golden, golden_name) && runtime_lock(&golden);
    if (ok && runtime_pid(&golden)) {
        tool_error("%s: runs ('cowvm snapshot' keeps a moment of it that can be run)", golden.path);
        ok = false;
    }
    if (ok) {
        vm->config = json_deep_copy(golden.config);
        vm->disposable = true;
        vm_renew_identity(vm);
        g_autofree char *hidden = hidden_name(vm, HIDDEN_OWNER);
        ok = vm_locate_inside(vm, &golden, hidden);
        runtime_sweep(&golden);
        ok = ok && runtime_lock(vm) && journal_begin(vm, JOURNAL_BUILD, false) &&
             vm_flush(&golden) &&
             clone_directory(golden.dir_fd, golden.path, golden.parent_fd, golden.parent, hidden);
    }
    if (ok) {
        vm->dir_fd = openat(vm->parent_fd, vm->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        ok = vm->dir_fd >= 0 && vm_write_config(vm);
    }
    vm_close(&golden);
    return ok;
}

/* ---- running it ---- */

/* Its exit status as a shell tells it. */
static int wait_for(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return EXIT_FAILED;
    if (interrupted_by)
        return 128 + interrupted_by;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run(struct vm *vm, char *const *extra)
{
    struct qemu_options o = {
        .incoming = vm_has(vm, VM_STATE), .attached = true, .disposable = true, .extra = extra};
    pid_t pid = qemu_start(vm, &o);
    if (!pid)
        return EXIT_FAILED;
    machine_pid = pid;
    if (interrupted_by || !machine_take_up(vm, o.incoming, false)) {
        kill(pid, SIGKILL);
        wait_for(pid);
        return interrupted_by ? 128 + interrupted_by : EXIT_FAILED;
    }
    return wait_for(pid);
}

static int run_disposable(const char *golden, char *const *extra)
{
    struct vm vm = VM_INIT;
    struct termios terminal;
    bool tty = tcgetattr(STDIN_FILENO, &terminal) == 0;
    int status = EXIT_FAILED;
    catch_signals();
    if (clone_golden(golden, &vm) && !interrupted_by)
        status = run(&vm, extra);
    if (vm.name)
        runtime_discard(vm.parent_fd, vm.parent, vm.name);
    journal_end(&vm);
    vm_close(&vm);
    /* A QEMU that was killed has left it raw. */
    if (tty)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &terminal);
    return interrupted_by ? 128 + interrupted_by : status;
}

int cmd_run(int argc, char **argv)
{
    enum { OPTION_RM = 256 };
    static const struct option options[] = {
        {"rm", no_argument, NULL, OPTION_RM},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    bool remove = false;
    int option;
    while ((option = tool_getopt(argc, argv, "h", options)) != -1) {
        if (option == 'h')
            return tool_help(help);
        if (option != OPTION_RM)
            return EXIT_MISUSED;
        remove = true;
    }
    if (!remove)
        return tool_misused(
            "only throw-away VMs are run so: say --rm ('cowvm start' is for others)");
    if (optind >= argc)
        return tool_misused("the name of a VM is missing");
    return run_disposable(argv[optind], argv + optind + 1);
}
