// SPDX-License-Identifier: Apache-2.0
/* cmd_talk.c - cowvm console and exec-qmp. */
#include "tools/cowfs_tool.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/machine.h"
#include "tools/cowvm/process.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

/* ---- console ---- */

static const char console_help[] =
    "Usage: cowvm console [OPTION]... NAME\n"
    "Connects to the serial line of a running VM; Ctrl-] leaves it. All that the guest wrote\n"
    "before is in serial.log in its directory in /run/cowvm. One console at a time is served,\n"
    "a second one waits.\n"
    "\n"
    "  -w, --wait MS  if the input is no terminal: after its end, go on until the guest has\n"
    "                 been silent for so long (default 200)\n"
    "  -h, --help     show this help\n";

enum { ESCAPE = 0x1d };

static int connect_console(struct vm *vm)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!runtime_pid(vm)) {
        tool_error("%s: does not run", vm->path);
        return -1;
    }
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/console", vm->run_fd);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    tool_error("%s: console: %s", vm->path, g_strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool write_all(int fd, const char *from, size_t length)
{
    while (length) {
        ssize_t done = write(fd, from, length);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return false;
        from += done;
        length -= (size_t)done;
    }
    return true;
}

/* False at the end of either side. */
static bool pass_on(int from, int to, bool watch_escape, bool *escaped)
{
    char buffer[4096];
    ssize_t got = read(from, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR)
        return true;
    if (got <= 0)
        return false;
    const char *end = watch_escape ? memchr(buffer, ESCAPE, (size_t)got) : NULL;
    if (end) {
        *escaped = true;
        got = end - buffer;
    }
    return write_all(to, buffer, (size_t)got) && !end;
}

static void talk(int socket_fd, bool tty, int wait_ms)
{
    struct pollfd fds[2] = {{.fd = socket_fd, .events = POLLIN},
                            {.fd = STDIN_FILENO, .events = POLLIN}};
    bool escaped = false;
    for (;;) {
        int ready = poll(fds, 2, fds[1].fd < 0 ? wait_ms : -1);
        if (ready == 0 || (ready < 0 && errno != EINTR))
            return;
        if (ready < 0)
            continue;
        if (fds[0].revents && !pass_on(socket_fd, STDOUT_FILENO, false, &escaped))
            return;
        if (fds[1].revents && !pass_on(STDIN_FILENO, socket_fd, tty, &escaped)) {
            if (escaped || tty)
                return;
            fds[1].fd = -1;
        }
    }
}

int cmd_console(int argc, char **argv)
{
    static const struct option options[] = {
        {"wait", required_argument, NULL, 'w'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    int option, wait_ms = 200;
    while ((option = tool_getopt(argc, argv, "w:h", options)) != -1) {
        if (option == 'h')
            return tool_help(console_help);
        if (option != 'w')
            return EXIT_MISUSED;
        if (!parse_number("--wait", optarg, 0, 86400000, &wait_ms))
            return EXIT_MISUSED;
    }
    if (argc - optind != 1)
        return tool_misused("exactly one VM is needed");
    struct vm vm = VM_INIT;
    int fd = vm_open(&vm, argv[optind]) ? connect_console(&vm) : -1;
    if (fd >= 0) {
        struct termios old, raw;
        bool tty = tcgetattr(STDIN_FILENO, &old) == 0;
        if (tty) {
            raw = old;
            cfmakeraw(&raw);
            tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
        }
        talk(fd, tty, wait_ms);
        if (tty) {
            tcsetattr(STDIN_FILENO, TCSADRAIN, &old);
            fputs("\n", stderr);
        }
        close(fd);
    }
    vm_close(&vm);
    return fd >= 0 ? EXIT_DONE : EXIT_FAILED;
}

/* ---- exec-qmp ---- */

static const char qmp_help[] =
    "Usage: cowvm exec-qmp NAME COMMAND [ARGUMENTS]\n"
    "Has the VM's QEMU execute a command of its machine protocol (QMP) and prints what it\n"
    "returns, as JSON. ARGUMENTS is a JSON object.\n"
    "\n"
    "  -h, --help  show this help\n"
    "\n"
    "Examples:\n"
    "  cowvm exec-qmp golden query-status\n"
    "  cowvm exec-qmp golden human-monitor-command '{\"command-line\": \"info network\"}'\n";

static bool exec_qmp(struct vm *vm, const char *command, json_t *arguments)
{
    struct qmp *q = qemu_connect(vm);
    json_t *answer = q ? qmp_execute(q, command, json_incref(arguments)) : NULL;
    if (q && !answer)
        tool_error("%s: %s: %s", vm->path, command, qmp_error(q));
    qmp_close(q);
    if (!answer)
        return false;
    json_dumpf(answer, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    putchar('\n');
    json_decref(answer);
    return true;
}

int cmd_exec_qmp(int argc, char **argv)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {0}};
    json_error_t reason;
    int option;
    while ((option = tool_getopt(argc, argv, "h", options)) != -1)
        return option == 'h' ? tool_help(qmp_help) : EXIT_MISUSED;
    if (argc - optind < 2 || argc - optind > 3)
        return tool_misused("a VM and a command are needed");
    json_t *arguments =
        argc - optind == 3 ? json_loads(argv[optind + 2], 0, &reason) : json_object();
    if (!json_is_object(arguments))
        return tool_misused("the arguments are no JSON object: %s", reason.text);
    struct vm vm = VM_INIT;
    bool ok = vm_open(&vm, argv[optind]) && runtime_lock(&vm) &&
              exec_qmp(&vm, argv[optind + 1], arguments);
    vm_close(&vm);
    json_decref(arguments);
    return tool_finish(ok ? EXIT_DONE : EXIT_FAILED);
}
