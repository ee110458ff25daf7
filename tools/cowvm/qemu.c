// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/qemu.h"
#include "tools/cowfs_tool.h"
#include "tools/cowvm/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { NEW_TIMEOUT_MS = 30000, OLD_TIMEOUT_MS = 10000 };

/* ---- the command line ---- */

static void add(GPtrArray *words, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(GPtrArray *words, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_ptr_array_add(words, g_strdup_vprintf(format, args));
    va_end(args);
}

static void add_pair(GPtrArray *words, const char *option, const char *value)
{
    add(words, "%s", option);
    add(words, "%s", value);
}

static void add_kernel(GPtrArray *words, const struct vm *vm)
{
    if (!vm_has(vm, VM_KERNEL))
        return;
    add_pair(words, "-kernel", VM_KERNEL);
    if (vm_has(vm, VM_INITRD))
        add_pair(words, "-initrd", VM_INITRD);
    const char *append = vm_string(vm, "append");
    if (append)
        add_pair(words, "-append", append);
}

/* The card sits on a port of its own, where it can be exchanged: a fork gets
 * one with another address. */
static void add_network(GPtrArray *words, const struct vm *vm)
{
    size_t i;
    json_t *port;
    if (!json_is_true(json_object_get(vm->config, "network")))
        return;
    GString *user = g_string_new("user,id=net0");
    json_array_foreach(json_object_get(vm->config, "forward"), i, port)
    {
        /* Port 0 here: the kernel chooses a free one. */
        g_string_append_printf(user, ",hostfwd=tcp:127.0.0.1:0-:%d", (int)json_integer_value(port));
    }
    add_pair(words, "-netdev", user->str);
    g_string_free(user, TRUE);
    add_pair(words, "-device", "pcie-root-port,id=port0,chassis=1");
    add(words, "-device");
    add(words, "virtio-net-pci,id=nic0,netdev=net0,bus=port0,romfile=,mac=%s",
        vm_string(vm, "mac"));
}

/* Where the guest is told who it is now (notify.h). A machine that was saved
 * without that device cannot be taken up with it. */
static void add_notify(GPtrArray *words, const struct vm *vm)
{
    if (!notify_wanted(vm))
        return;
    add(words, "-chardev");
    add(words, "pipe,id=notify,path=/proc/self/fd/%d/" NOTIFY_PIPE, vm->run_fd);
    add_pair(words, "-device", "virtio-serial-pci,id=serial0,max_ports=2");
    add_pair(words, "-device", "virtserialport,bus=serial0.0,chardev=notify,name=" NOTIFY_PORT);
}

/* Relative names: the process is in the VM's directory, wherever that moves. */
static GPtrArray *command_line(const struct vm *vm, const struct qemu_options *o, int qmp_fd,
                               int console_fd)
{
    GPtrArray *words = g_ptr_array_new_with_free_func(g_free);
    int64_t memory = vm_number(vm, "memory_mib", VM_DEFAULT_MEMORY_MIB);
    const char *program = getenv("COWVM_QEMU");
    size_t i;
    json_t *word;

    add(words, "%s", program && *program ? program : "qemu-system-x86_64");
    add(words, "-name");
    add(words, "%s", vm->name);
    add_pair(words, "-uuid", vm_uuid(vm));
    add(words, "-nodefaults");
    add(words, "-no-user-config");
    add_pair(words, "-display", "none");
    add(words, "-S");
    add_pair(words, "-machine", "q35,memory-backend=ram");
    add_pair(words, "-accel", vm_string(vm, "accel") ? vm_string(vm, "accel") : "tcg");
    if (g_strcmp0(vm_string(vm, "accel"), "kvm") == 0)
        add_pair(words, "-cpu", "host");
    add(words, "-smp");
    add(words, "%" PRId64, vm_number(vm, "cpus", VM_DEFAULT_CPUS));
    add(words, "-m");
    add(words, "%" PRId64 "M", memory);
    add(words, "-object");
    add(words, "memory-backend-file,id=ram,size=%" PRId64 "M,mem-path=" VM_MEMORY ",share=on",
        memory);
    add(words, "-drive");
    add(words, "file=" VM_DISK ",if=none,id=disk,format=raw,discard=unmap,cache=%s",
        o->disposable ? "unsafe" : "writeback");
    add_pair(words, "-device", "virtio-blk-pci,drive=disk,bootindex=1");
    add(words, "-device");
    add(words, "vmgenid,id=generation,guid=%s", vm_string(vm, "generation"));
    add_pair(words, "-device", "virtio-rng-pci");
    add_kernel(words, vm);
    add_network(words, vm);
    add_notify(words, vm);
    add(words, "-chardev");
    add(words, "socket,id=qmp,fd=%d,server=on,wait=off", qmp_fd);
    add_pair(words, "-mon", "chardev=qmp,mode=control");
    add(words, "-chardev");
    if (o->attached)
        add(words, "stdio,id=console,signal=on");
    else
        add(words,
            "socket,id=console,fd=%d,server=on,wait=off,logfile=/proc/self/fd/%d/serial.log,"
            "logappend=on",
            console_fd, vm->run_fd);
    add_pair(words, "-serial", "chardev:console");
    if (o->incoming)
        add_pair(words, "-incoming", "defer");
    json_array_foreach(json_object_get(vm->config, "qemu_options"), i, word)
    {
        add(words, "%s", json_string_value(word));
    }
    for (char *const *extra = o->extra; extra && *extra; extra++)
        add(words, "%s", *extra);
    g_ptr_array_add(words, NULL);
    return words;
}

/* ---- the process ---- */

/* Made by the process that will be QEMU: who connects is told its pid. That it
 * listens before QEMU is there saves waiting for it. */
static int listen_at(int dir_fd, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", dir_fd, name);
    unlinkat(dir_fd, name, 0);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
        listen(fd, 8) == 0)
        return fd;
    return -1;
}

static void __attribute__((noreturn)) fail(int report_fd)
{
    int error = errno;
    ssize_t sent = write(report_fd, &error, sizeof(error));
    (void)sent;
    _exit(127);
}

static void __attribute__((noreturn))
become_qemu(struct vm *vm, const struct qemu_options *o, int report_fd, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (o->attached) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(127);
    } else {
        setsid();
    }
    int log = openat(vm->run_fd, "qemu.log", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    int null = open("/dev/null", O_RDWR);
    if (log < 0 || null < 0)
        fail(report_fd);
    if (!o->attached) {
        dup2(null, STDIN_FILENO);
        dup2(log, STDOUT_FILENO);
        dup2(log, STDERR_FILENO);
    }
    int qmp_fd = listen_at(vm->run_fd, "qmp");
    int console_fd = o->attached ? -1 : listen_at(vm->run_fd, "console");
    if (qmp_fd < 0 || (console_fd < 0 && !o->attached) || fchdir(vm->dir_fd) != 0 ||
        fcntl(vm->run_fd, F_SETFD, 0) != 0)
        fail(report_fd);
    GPtrArray *words = command_line(vm, o, qmp_fd, console_fd);
    execvp(words->pdata[0], (char **)words->pdata);
    fail(report_fd);
}

/* A machine that is switched on finds its memory zeroed; and what it held before
 * is given back. */
static bool fresh_memory(const struct vm *vm)
{
    int fd = openat(vm->dir_fd, VM_MEMORY, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 &&
              ftruncate(fd, (off_t)vm_number(vm, "memory_mib", VM_DEFAULT_MEMORY_MIB) << 20) == 0;
    if (!ok)
        tool_error("%s/%s: %s", vm->path, VM_MEMORY, g_strerror(errno));
    if (fd >= 0)
        close(fd);
    return ok;
}

pid_t qemu_start(struct vm *vm, const struct qemu_options *o)
{
    int report[2], error = 0;
    pid_t parent = getpid();
    if (!notify_prepare(vm) || (!o->incoming && !fresh_memory(vm)))
        return 0;
    if (pipe2(report, O_CLOEXEC) != 0) {
        tool_error("%s: %s", vm->path, g_strerror(errno));
        return 0;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        become_qemu(vm, o, report[1], parent);
    close(report[1]);
    /* Closed by exec: from then on it can be connected to. */
    ssize_t got;
    do
        got = read(report[0], &error, sizeof(error));
    while (got < 0 && errno == EINTR);
    close(report[0]);
    if (pid < 0 || got > 0) {
        tool_error("%s: QEMU cannot be started: %s", vm->path,
                   error == ENOENT ? "it is not installed (package qemu-system-x86)"
                                   : g_strerror(error ? error : errno));
        return 0;
    }
    return pid;
}

/* ---- connecting ---- */

static char *last_words(const struct vm *vm)
{
    char text[2048];
    int fd = openat(vm->run_fd, "qemu.log", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    text[MAX(got, 0)] = '\0';
    return g_strdup(g_strstrip(text));
}

struct qmp *qemu_connect_new(struct vm *vm)
{
    g_autofree char *reason = NULL;
    struct qmp *q = qmp_connect(vm->run_fd, "qmp", NEW_TIMEOUT_MS, &reason);
    if (!q) {
        g_autofree char *words = last_words(vm);
        tool_error("%s: QEMU does not start: %s", vm->path, *words ? words : reason);
    }
    return q;
}

struct qmp *qemu_connect(struct vm *vm)
{
    g_autofree char *reason = NULL;
    struct qmp *q = NULL;
    if (vm->run_fd < 0)
        reason = g_strdup("it does not run");
    else
        q = qmp_connect(vm->run_fd, "qmp", OLD_TIMEOUT_MS, &reason);
    if (!q)
        tool_error("%s: %s", vm->path, reason);
    return q;
}

const char *qemu_best_accelerator(void)
{
    return access("/dev/kvm", R_OK | W_OK) == 0 ? "kvm" : "tcg";
}

/* "  TCP[HOST_FORWARD]  12  127.0.0.1 40001  10.0.2.15  6379  0  0": words for people are all
 * there is. */
json_t *qemu_forwards(const struct vm *vm, struct qmp *q)
{
    json_t *forwards = json_object(), *answer;
    if (json_array_size(json_object_get(vm->config, "forward")) == 0)
        return forwards;
    answer =
        qmp_execute(q, "human-monitor-command", json_pack("{s:s}", "command-line", "info usernet"));
    const char *text = json_string_value(answer);
    g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
    for (char **line = lines; *line; line++) {
        char *words[6] = {0}, *state = NULL;
        size_t n = 0;
        for (char *word = strtok_r(*line, " \r", &state); word && n < G_N_ELEMENTS(words);
             word = strtok_r(NULL, " \r", &state))
            words[n++] = word;
        if (n == G_N_ELEMENTS(words) && strcmp(words[0], "TCP[HOST_FORWARD]") == 0)
            json_object_set_new(forwards, words[5],
                                json_integer(g_ascii_strtoll(words[3], NULL, 10)));
    }
    json_decref(answer);
    return forwards;
}
