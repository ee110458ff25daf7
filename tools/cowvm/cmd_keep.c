// SPDX-License-Identifier: Apache-2.0
/* cmd_keep.c - cowvm snapshot and reset. A moment kept is a VM of its own, NAME@TAG. */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"
#include "tools/cowvm/clone.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/machine.h"
#include "tools/cowvm/standby.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char snapshot_help[] =
    "Usage: cowvm snapshot NAME TAG\n"
    "Keeps this moment of a VM, running or not, as NAME@TAG beside it: its disk, and its memory\n"
    "if it runs or is hibernated. A running VM stands still for some tens of milliseconds.\n"
    "'cowvm reset' goes back to it; 'cowvm run --rm NAME@TAG' starts throw-away VMs from it;\n"
    "'cowvm rm NAME@TAG' removes it.\n"
    "\n"
    "  -h, --help  show this help\n";

static const char reset_help[] =
    "Usage: cowvm reset NAME TAG\n"
    "Takes a VM back to a moment kept with 'cowvm snapshot': what it did since is lost. It keeps\n"
    "its identity. If it runs, it runs on from that moment.\n"
    "\n"
    "  -h, --help  show this help\n";

/* The two arguments, and NAME@TAG beside the VM. */
static int parse(int argc, char **argv, const char *help, struct vm *vm, struct vm *kept)
{
    static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {0}};
    int option;
    while ((option = tool_getopt(argc, argv, "h", options)) != -1)
        return option == 'h' ? tool_help(help) : EXIT_MISUSED;
    if (argc - optind != 2)
        return tool_misused("a VM and a tag are needed");
    const char *tag = argv[optind + 1];
    if (!*tag || strpbrk(tag, "/@"))
        return tool_misused("'%s': is no tag", tag);
    if (!vm_open(vm, argv[optind]))
        return EXIT_FAILED;
    g_autofree char *name = g_strdup_printf("%s@%s", vm->name, tag);
    return vm_locate_inside(kept, vm, name) ? EXIT_DONE : EXIT_FAILED;
}

/* ---- snapshot ---- */

static bool clone_at_rest(struct vm *vm, const char *name)
{
    return journal_begin(vm, JOURNAL_BUILD, false) && vm_flush(vm) &&
           clone_directory(vm->dir_fd, vm->path, vm->parent_fd, vm->parent, name);
}

static bool snapshot(struct vm *vm, const struct vm *kept)
{
    struct stat st;
    if (!runtime_lock(vm))
        return false;
    if (fstatat(kept->parent_fd, kept->name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        tool_error("%s: exists already", kept->path);
        return false;
    }
    runtime_sweep(vm);
    g_autofree char *hidden = hidden_name(vm, HIDDEN_FIRST);
    bool ok = runtime_pid(vm) ? machine_clone_running(vm, hidden) : clone_at_rest(vm, hidden);
    if (ok &&
        renameat2(vm->parent_fd, hidden, kept->parent_fd, kept->name, RENAME_NOREPLACE) != 0) {
        tool_error("%s: %s", kept->path, g_strerror(errno));
        ok = false;
    }
    if (!ok)
        runtime_discard(vm->parent_fd, vm->parent, hidden);
    journal_end(vm);
    return ok;
}

int cmd_snapshot(int argc, char **argv)
{
    struct vm vm = VM_INIT, kept = VM_INIT;
    int status = parse(argc, argv, snapshot_help, &vm, &kept);
    if (status == EXIT_DONE && kept.name && !snapshot(&vm, &kept))
        status = EXIT_FAILED;
    vm_close(&kept);
    vm_close(&vm);
    return status;
}

/* ---- reset ---- */

/* The kept one's machine with this one's identity; only the generation is new:
 * the guest must not draw the same random numbers a second time. */
static bool take_identity(struct vm *now, const struct vm *vm)
{
    static const char *const keys[] = {"uuid", "mac"};
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++)
        json_object_set(now->config, keys[i], json_object_get(vm->config, keys[i]));
    vm_renew_generation(now);
    return vm_write_config(now);
}

static bool swap(struct vm *vm, const char *hidden)
{
    if (renameat2(vm->parent_fd, hidden, vm->parent_fd, vm->name, RENAME_EXCHANGE) != 0) {
        tool_error("%s: %s", vm->path, g_strerror(errno));
        return false;
    }
    /* What it was until now. */
    int error = tree_remove(vm->parent_fd, hidden);
    if (error)
        tool_error("%s/%s: cannot be removed: %s", vm->parent, hidden, g_strerror(-error));
    return true;
}

static bool reset(struct vm *vm, const struct vm *kept)
{
    struct vm now = VM_INIT;
    struct qemu_options o = {0};
    if (!runtime_lock(vm))
        return false;
    runtime_sweep(vm);
    bool was_running = runtime_pid(vm) != 0;
    g_autofree char *hidden = hidden_name(vm, HIDDEN_FIRST);
    int fd = openat(kept->parent_fd, kept->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        tool_error("%s: %s", kept->path,
                   errno == ENOENT ? "there is no such moment" : g_strerror(errno));
        return false;
    }
    bool ok = journal_begin(vm, JOURNAL_BUILD, false) &&
              clone_directory(fd, kept->path, vm->parent_fd, vm->parent, hidden) &&
              vm_locate_inside(&now, vm, hidden) && vm_open_located(&now) &&
              take_identity(&now, vm) && standby_end(vm);
    close(fd);
    ok = ok && journal_reset(vm, HIDDEN_FIRST, &now);
    bool forward = ok;
    ok = ok && runtime_kill(vm) && swap(vm, hidden);
    if (forward && !ok) {
        /* Clone and journal stay: the guard tries again, and the next command. */
        vm_close(&now);
        return false;
    }
    if (!ok)
        runtime_discard(vm->parent_fd, vm->parent, hidden);
    journal_end(vm);
    if (ok && was_running) {
        g_free(now.name);
        g_free(now.path);
        now.name = g_strdup(vm->name);
        now.path = g_strdup(vm->path);
        /* The runtime directory is the same, and so is the lock: also for the guard. */
        now.lock_fd = vm->lock_fd;
        vm->lock_fd = -1;
        ok = runtime_open(&now) && journal_begin(&now, JOURNAL_MOVE, true) &&
             machine_start(&now, &o, true);
        journal_end(&now);
    }
    vm_close(&now);
    return ok;
}

int cmd_reset(int argc, char **argv)
{
    struct vm vm = VM_INIT, kept = VM_INIT;
    int status = parse(argc, argv, reset_help, &vm, &kept);
    if (status == EXIT_DONE && kept.name && !reset(&vm, &kept))
        status = EXIT_FAILED;
    vm_close(&kept);
    vm_close(&vm);
    return status;
}
