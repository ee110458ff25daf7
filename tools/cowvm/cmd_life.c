// SPDX-License-Identifier: Apache-2.0
/* cmd_life.c - cowvm start, stop, rm, hibernate and resume. */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/machine.h"
#include "tools/cowvm/process.h"
#include "tools/cowvm/standby.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- one VM after the other ---- */

struct choice {
    bool flag;
    int number;
};
typedef bool (*vm_fn)(struct vm *vm, const struct choice *choice);

static bool with_vm(const char *name, vm_fn fn, const struct choice *choice)
{
    struct vm vm = VM_INIT;
    bool ok = vm_open(&vm, name) && runtime_lock(&vm) && fn(&vm, choice);
    vm_close(&vm);
    return ok;
}

static int each_vm(int argc, char **argv, vm_fn fn, const struct choice *choice)
{
    int status = EXIT_DONE;
    if (optind >= argc)
        return tool_misused("the name of a VM is missing");
    for (int i = optind; i < argc; i++)
        if (!with_vm(argv[i], fn, choice))
            status = EXIT_FAILED;
    return tool_finish(status);
}

/* ---- start and resume ---- */

static const char start_help[] =
    "Usage: cowvm start [OPTION]... NAME...\n"
    "Switches VMs on. One that was hibernated goes on where it was.\n"
    "\n"
    "  -c, --cold  switch it on all the same: what its memory held is lost\n"
    "  -h, --help  show this help\n";

static const char resume_help[] = "Usage: cowvm resume NAME...\n"
                                  "Lets hibernated VMs go on where they were.\n"
                                  "\n"
                                  "  -h, --help  show this help\n";

static bool start(struct vm *vm, const struct choice *choice)
{
    struct qemu_options o = {0};
    if (runtime_pid(vm)) {
        tool_error("%s: runs already", vm->path);
        return false;
    }
    /* What is left of it from the run before. */
    if (!standby_end(vm) || !vm_unlink(vm, VM_STATE_NEW) ||
        (choice->flag && !vm_unlink(vm, VM_STATE)) || !journal_begin(vm, JOURNAL_MOVE, true))
        return false;
    bool ok = machine_start(vm, &o, true);
    journal_end(vm);
    return ok;
}

static bool resume(struct vm *vm, const struct choice *choice)
{
    if (!runtime_pid(vm) && !vm_has(vm, VM_STATE)) {
        tool_error("%s: was not hibernated ('cowvm start' switches it on)", vm->path);
        return false;
    }
    return start(vm, choice);
}

static int start_or_resume(int argc, char **argv, const char *short_options, const char *help,
                           vm_fn fn)
{
    static const struct option options[] = {
        {"cold", no_argument, NULL, 'c'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct choice choice = {0};
    int option;
    while ((option = tool_getopt(argc, argv, short_options, options)) != -1) {
        if (option == 'h')
            return tool_help(help);
        if (option != 'c' || fn == resume)
            return EXIT_MISUSED;
        choice.flag = true;
    }
    return each_vm(argc, argv, fn, &choice);
}

int cmd_start(int argc, char **argv)
{
    return start_or_resume(argc, argv, "ch", start_help, start);
}

int cmd_resume(int argc, char **argv)
{
    return start_or_resume(argc, argv, "h", resume_help, resume);
}

/* ---- stop and rm ---- */

static const char stop_help[] =
    "Usage: cowvm stop [OPTION]... NAME...\n"
    "Presses the VMs' power buttons and waits for the guests to shut down; one that has not\n"
    "done so in time is switched off.\n"
    "\n"
    "  -t, --timeout SECONDS  how long to wait (default 60)\n"
    "  -n, --now              switch off at once, as if the cable were pulled\n"
    "  -h, --help             show this help\n";

static bool ask_to_end(struct vm *vm, bool politely)
{
    struct qmp *q = qemu_connect(vm);
    bool ok = q && (politely ? qmp_do(q, "cont", NULL) && qmp_do(q, "system_powerdown", NULL)
                             : qmp_do(q, "quit", NULL));
    qmp_close(q);
    return ok;
}

static bool stop(struct vm *vm, const struct choice *choice)
{
    enum { QUIT_WAIT_MS = 10000 };
    int handle = runtime_handle(vm);
    if (handle < 0)
        return standby_end(vm);
    bool gone = false;
    if (!choice->flag) {
        gone = ask_to_end(vm, true) && runtime_wait_gone(handle, choice->number * 1000);
        if (!gone)
            tool_error("%s: the guest has not shut down; it is switched off", vm->path);
    }
    /* In order, if it can: QEMU flushes what it holds of the disk. */
    gone = gone || (ask_to_end(vm, false) && runtime_wait_gone(handle, QUIT_WAIT_MS)) ||
           runtime_kill(vm);
    close(handle);
    return gone && standby_end(vm);
}

int cmd_stop(int argc, char **argv)
{
    static const struct option options[] = {
        {"timeout", required_argument, NULL, 't'},
        {"now", no_argument, NULL, 'n'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct choice choice = {.number = 60};
    int option;
    while ((option = tool_getopt(argc, argv, "t:nh", options)) != -1) {
        switch (option) {
        case 't':
            if (!parse_number("--timeout", optarg, 0, 86400, &choice.number))
                return EXIT_MISUSED;
            break;
        case 'n':
            choice.flag = true;
            break;
        case 'h':
            return tool_help(stop_help);
        default:
            return EXIT_MISUSED;
        }
    }
    return each_vm(argc, argv, stop, &choice);
}

static const char rm_help[] = "Usage: cowvm rm [OPTION]... NAME...\n"
                              "Removes VMs, and all that was kept of them under these names.\n"
                              "\n"
                              "  -f, --force  also those that run\n"
                              "  -h, --help   show this help\n"
                              "\n"
                              "Moments kept with 'cowvm snapshot' (NAME@TAG) are VMs of their own\n"
                              "and stay.\n";

static bool rm(struct vm *vm, const struct choice *choice)
{
    if (runtime_pid(vm) && !choice->flag) {
        tool_error("%s: runs (--force would switch it off)", vm->path);
        return false;
    }
    if (!journal_begin(vm, JOURNAL_BUILD, false))
        return false;
    /* Away in one step; whoever comes next removes what is left of it. */
    g_autofree char *hidden = hidden_name(vm, HIDDEN_OWNER);
    bool ok = standby_end(vm) && runtime_kill(vm);
    if (ok && renameat(vm->parent_fd, vm->name, vm->parent_fd, hidden) != 0) {
        tool_error("%s: %s", vm->path, g_strerror(errno));
        ok = false;
    }
    ok = ok && runtime_discard(vm->parent_fd, vm->parent, hidden);
    journal_end(vm);
    return ok;
}

int cmd_rm(int argc, char **argv)
{
    static const struct option options[] = {
        {"force", no_argument, NULL, 'f'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct choice choice = {0};
    int option;
    while ((option = tool_getopt(argc, argv, "fh", options)) != -1) {
        if (option == 'h')
            return tool_help(rm_help);
        if (option != 'f')
            return EXIT_MISUSED;
        choice.flag = true;
    }
    return each_vm(argc, argv, rm, &choice);
}

/* ---- hibernate ---- */

static const char hibernate_help[] =
    "Usage: cowvm hibernate [OPTION]... NAME...\n"
    "Saves running VMs, with their memory, and ends their processes: 'cowvm resume' lets them\n"
    "go on. What was in memory already is in the store; only what has changed is written.\n"
    "\n"
    "  -i, --idle PERCENT  only those that used less than PERCENT of one processor since this\n"
    "                      command was last called with --idle for them, and since their\n"
    "                      start. For a timer: the first call only notes\n"
    "  -h, --help          show this help\n";

/* The file "idle" is what the last call has seen: when the process was started,
 * ticks it had used, and the time in ms. */
static bool is_idle(struct vm *vm, int percent)
{
    uint64_t used, started, now_ms = (uint64_t)g_get_monotonic_time() / 1000;
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d/idle", vm->run_fd);
    g_autofree char *text = NULL;

    if (!process_times(runtime_pid(vm), &used, &started))
        return false;
    g_file_get_contents(path, &text, NULL, NULL);
    g_autofree char *line =
        g_strdup_printf("%" PRIu64 " %" PRIu64 " %" PRIu64, started, used, now_ms);
    g_file_set_contents(path, line, -1, NULL);

    g_auto(GStrv) seen = g_strsplit(text ? text : "", " ", 3);
    if (g_strv_length(seen) != 3 || g_ascii_strtoull(seen[0], NULL, 10) != started)
        return false;
    double used_s =
        (double)(used - g_ascii_strtoull(seen[1], NULL, 10)) / (double)sysconf(_SC_CLK_TCK);
    double passed_s = (double)(now_ms - g_ascii_strtoull(seen[2], NULL, 10)) / 1000;
    return passed_s > 0 && used_s * 100 < percent * passed_s;
}

static bool hibernate(struct vm *vm, const struct choice *choice)
{
    if (!runtime_pid(vm)) {
        /* A timer names all that there are. */
        if (choice->flag)
            return true;
        tool_error("%s: does not run", vm->path);
        return false;
    }
    if (choice->flag && !is_idle(vm, choice->number))
        return true;
    return machine_save(vm) && standby_end(vm);
}

int cmd_hibernate(int argc, char **argv)
{
    static const struct option options[] = {
        {"idle", required_argument, NULL, 'i'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct choice choice = {0};
    int option;
    while ((option = tool_getopt(argc, argv, "i:h", options)) != -1) {
        if (option == 'h')
            return tool_help(hibernate_help);
        if (option != 'i')
            return EXIT_MISUSED;
        choice.flag = true;
        if (!parse_number("--idle", optarg, 1, 100, &choice.number))
            return EXIT_MISUSED;
    }
    return each_vm(argc, argv, hibernate, &choice);
}
