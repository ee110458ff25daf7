// SPDX-License-Identifier: Apache-2.0
/* cmd_ls.c - cowvm ls. Waits for nobody: it takes no lock. */
#include "tools/cowfs_tool.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/machine.h"
#include "tools/cowvm/process.h"
#include "tools/cowvm/standby.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char help[] =
    "Usage: cowvm ls [OPTION]... [NAME|DIRECTORY]...\n"
    "Lists VMs: all in a directory ($COWVM_DIR or /var/lib/vms by default), or those named.\n"
    "\n"
    "  -j, --json  as JSON, with all that is known of them\n"
    "  -h, --help  show this help\n"
    "\n"
    "  STATE   running; saved: hibernated, or a moment kept; off\n"
    "  UP      since its process was started\n"
    "  OWN     bytes of the store that only this VM holds\n"
    "  SHARED  bytes that it shares with others\n";

struct listing {
    bool as_json;
    json_t *list;
    unsigned shown;
};

/* Seconds since the process was started; negative if it is gone. */
static double up_seconds(pid_t pid)
{
    struct timespec now;
    uint64_t used, started;
    if (!process_times(pid, &used, &started))
        return -1;
    clock_gettime(CLOCK_BOOTTIME, &now);
    /* Of whole ticks: a process is never younger than it is said to be. */
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9 -
           (double)started / (double)sysconf(_SC_CLK_TCK);
}

/* Asked of QEMU, if no command is at work on the VM: its socket serves one. */
static json_t *forwards_of(struct vm *vm)
{
    json_t *forwards = NULL;
    int lock = openat(vm->run_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) == 0) {
        g_autofree char *reason = NULL;
        struct qmp *q = qmp_connect(vm->run_fd, "qmp", 2000, &reason);
        if (q)
            forwards = qemu_forwards(vm, q);
        qmp_close(q);
    }
    if (lock >= 0)
        close(lock);
    return forwards ? forwards : json_object();
}

static json_t *describe(struct vm *vm)
{
    struct cowfs_ioc_du du = {0};
    pid_t pid = runtime_pid(vm);
    const char *state = pid ? "running" : vm_has(vm, VM_STATE) ? "saved" : "off";
    g_autofree char *name = g_utf8_make_valid(vm->name, -1);
    json_t *o = json_pack("{s:s,s:s,s:s,s:s*}", "name", name, "state", state, "uuid", vm_uuid(vm),
                          "mac", vm_string(vm, "mac"));
    json_object_set_new(o, "memory_mib",
                        json_integer(vm_number(vm, "memory_mib", VM_DEFAULT_MEMORY_MIB)));
    json_object_set_new(o, "cpus", json_integer(vm_number(vm, "cpus", VM_DEFAULT_CPUS)));
    if (tool_try_ioctl(vm->dir_fd, COWFS_IOC_DU, &du) == 0) {
        json_object_set_new(o, "own_bytes", tool_json_u64(du.exclusive));
        json_object_set_new(o, "shared_bytes", tool_json_u64(du.shared));
    }
    if (pid) {
        json_object_set_new(o, "pid", json_integer(pid));
        json_object_set_new(o, "up_seconds", json_real(up_seconds(pid)));
        json_object_set_new(o, "forwards", forwards_of(vm));
        uint64_t waiting;
        if (runtime_wants_standby(vm) && process_memory(standby_pid(vm), &waiting))
            json_object_set_new(o, "standby_bytes", tool_json_u64(waiting));
    }
    return o;
}

static void print_bytes(json_t *o, const char *key)
{
    json_t *value = json_object_get(o, key);
    printf(" %10s", value ? tool_size((uint64_t)json_integer_value(value)).s : "-");
}

static void print_line(struct listing *l, json_t *o)
{
    const char *key;
    json_t *value;
    char up[48] = "-";
    if (l->shown++ == 0)
        printf("%-24s %-8s %10s %10s %10s %10s\n", "NAME", "STATE", "UP", "MEMORY", "OWN",
               "SHARED");
    if ((value = json_object_get(o, "up_seconds"))) {
        long s = (long)json_real_value(value);
        snprintf(up, sizeof(up), "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    }
    printf("%-24s %-8s %10s %10s", json_string_value(json_object_get(o, "name")),
           json_string_value(json_object_get(o, "state")), up,
           tool_size((uint64_t)json_integer_value(json_object_get(o, "memory_mib")) << 20).s);
    print_bytes(o, "own_bytes");
    print_bytes(o, "shared_bytes");
    json_object_foreach(json_object_get(o, "forwards"), key, value)
    {
        printf("  %s=127.0.0.1:%d", key, (int)json_integer_value(value));
    }
    if ((value = json_object_get(o, "standby_bytes")))
        printf("  standby=%s", tool_size((uint64_t)json_integer_value(value)).s);
    putchar('\n');
}

static void show(struct listing *l, struct vm *vm)
{
    json_t *o = describe(vm);
    if (l->as_json) {
        json_array_append_new(l->list, o);
    } else {
        print_line(l, o);
        json_decref(o);
    }
}

static bool list_one(struct listing *l, const char *name)
{
    struct vm vm = VM_INIT;
    bool ok = vm_open(&vm, name);
    if (ok)
        show(l, &vm);
    vm_close(&vm);
    return ok;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static bool list_directory(struct listing *l, const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, by_name);
    bool ok = true;
    if (count < 0) {
        tool_error("%s: %s", path, g_strerror(errno));
        return false;
    }
    for (int i = 0; i < count; i++) {
        g_autofree char *child = g_build_filename(path, entries[i]->d_name, NULL);
        g_autofree char *config = g_build_filename(child, "vm.json", NULL);
        if (entries[i]->d_name[0] != '.' && access(config, F_OK) == 0)
            ok = list_one(l, child) && ok;
        free(entries[i]);
    }
    free(entries);
    return ok;
}

static bool list(struct listing *l, const char *argument)
{
    g_autofree char *config = g_build_filename(argument, "vm.json", NULL);
    if (strchr(argument, '/') && g_file_test(argument, G_FILE_TEST_IS_DIR) &&
        access(config, F_OK) != 0)
        return list_directory(l, argument);
    return list_one(l, argument);
}

int cmd_ls(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct listing l = {0};
    bool ok = true;
    int option;
    while ((option = tool_getopt(argc, argv, "jh", options)) != -1) {
        if (option == 'h')
            return tool_help(help);
        if (option != 'j')
            return EXIT_MISUSED;
        l.as_json = true;
    }
    l.list = json_array();
    if (optind == argc) {
        const char *directory = getenv("COWVM_DIR");
        ok = list_directory(&l, directory && *directory ? directory : "/var/lib/vms");
    }
    for (int i = optind; i < argc; i++)
        ok = list(&l, argv[i]) && ok;
    int status = EXIT_DONE;
    if (l.as_json)
        status = tool_print_json(l.list);
    else
        json_decref(l.list);
    return tool_finish(ok ? status : EXIT_FAILED);
}
