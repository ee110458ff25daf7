// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/runtime.h"
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"
#include "tools/cowvm/journal.h"
#include "tools/cowvm/qmp.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEFAULT_RUN "/run/cowvm"
#define HIDDEN_PREFIX ".cowvm-"
enum { UUID_LENGTH = 36, LOCK_WAIT_MS = 20000, LOCK_STEP_MS = 20, KILL_WAIT_MS = 30000 };

static const char *run_root(void)
{
    const char *root = getenv("COWVM_RUN");
    return root && *root ? root : DEFAULT_RUN;
}

/* ---- the directory and the lock ---- */

static int open_run_directory(const char *uuid, bool create)
{
    g_autofree char *path = g_build_filename(run_root(), uuid, NULL);
    if (create && (g_mkdir_with_parents(run_root(), 0755) != 0 || mkdir(path, 0700) != 0) &&
        errno != EEXIST) {
        tool_error("%s: %s", path, g_strerror(errno));
        return -1;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && create)
        tool_error("%s: %s", path, g_strerror(errno));
    return fd;
}

bool runtime_open(struct vm *vm)
{
    if (vm->run_fd < 0)
        vm->run_fd = open_run_directory(vm_uuid(vm), true);
    return vm->run_fd >= 0;
}

/* 1: taken; 0: somebody has it; negative errno. A lock file that was removed
 * while it was waited for protects nothing. */
static int try_lock(int run_fd, int flags, int *lock_fd)
{
    struct stat held, named;
    int fd = openat(run_fd, "lock", O_RDWR | O_CLOEXEC | flags, 0600);
    if (fd < 0)
        return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int error = errno;
        close(fd);
        return error == EWOULDBLOCK ? 0 : -error;
    }
    if (fstat(fd, &held) != 0 || fstatat(run_fd, "lock", &named, 0) != 0 ||
        held.st_ino != named.st_ino) {
        close(fd);
        return 0;
    }
    *lock_fd = fd;
    return 1;
}

/* While the lock was waited for, a reset may have put another directory in the
 * VM's place. */
static bool follow_name(struct vm *vm)
{
    struct stat held, named;
    if (vm->dir_fd < 0 || fstat(vm->dir_fd, &held) != 0 ||
        fstatat(vm->parent_fd, vm->name, &named, AT_SYMLINK_NOFOLLOW) != 0 ||
        (held.st_dev == named.st_dev && held.st_ino == named.st_ino) || !S_ISDIR(named.st_mode))
        return true;
    g_autofree char *uuid = g_strdup(vm_uuid(vm));
    if (!vm_reopen(vm))
        return false;
    if (strcmp(uuid, vm_uuid(vm)) == 0)
        return true;
    tool_error("%s: is another VM now", vm->path);
    return false;
}

bool runtime_lock(struct vm *vm)
{
    if (!runtime_open(vm))
        return false;
    for (int waited = 0;; waited += LOCK_STEP_MS) {
        int got = try_lock(vm->run_fd, O_CREAT, &vm->lock_fd);
        if (got > 0)
            break;
        if (got < 0 && got != -ENOENT) {
            tool_error("%s: cannot be locked: %s", vm->path, g_strerror(-got));
            return false;
        }
        if (waited >= LOCK_WAIT_MS) {
            tool_error("%s: another cowvm command is at work on it", vm->path);
            return false;
        }
        poll(NULL, 0, LOCK_STEP_MS);
        /* Its directory was removed, by an rm or a run that has ended? */
        struct stat st;
        if (fstat(vm->run_fd, &st) == 0 && st.st_nlink == 0) {
            close(vm->run_fd);
            vm->run_fd = -1;
            if (!runtime_open(vm))
                return false;
        }
    }
    return follow_name(vm) && journal_recover(vm);
}

static bool has_name(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_nlink > 0;
}

bool runtime_lock_while(struct vm *vm, int wish)
{
    int got = 0;
    while (has_name(wish) && (got = try_lock(vm->run_fd, 0, &vm->lock_fd)) == 0)
        poll(NULL, 0, LOCK_STEP_MS);
    /* The last one to have had the lock may have removed it. */
    if (got > 0 && has_name(wish) && follow_name(vm) && journal_recover(vm))
        return true;
    if (vm->lock_fd >= 0)
        close(vm->lock_fd);
    vm->lock_fd = -1;
    return false;
}

static void remove_run_directory(const char *uuid)
{
    int root = open(run_root(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root >= 0) {
        tree_remove(root, uuid);
        close(root);
    }
}

void runtime_remove(struct vm *vm)
{
    remove_run_directory(vm_uuid(vm));
}

/* ---- what runs ---- */

pid_t runtime_pid(struct vm *vm)
{
    if (vm->run_fd < 0)
        vm->run_fd = open_run_directory(vm_uuid(vm), false);
    return vm->run_fd < 0 ? 0 : qmp_peer(vm->run_fd, "qmp");
}

int runtime_handle(struct vm *vm)
{
    pid_t pid = runtime_pid(vm);
    int handle = pid ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
    /* Still the one that has the socket: the number was not given to another
     * process meanwhile. */
    if (handle >= 0 && runtime_pid(vm) != pid) {
        close(handle);
        handle = -1;
    }
    return handle;
}

bool runtime_wait_gone(int handle, int timeout_ms)
{
    gint64 until = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    for (;;) {
        gint64 left_ms = MAX(until - g_get_monotonic_time(), 0) / 1000;
        struct pollfd p = {.fd = handle, .events = POLLIN};
        int ready = poll(&p, 1, (int)left_ms);
        if (ready >= 0 || errno != EINTR)
            return ready > 0;
    }
}

bool runtime_kill(struct vm *vm)
{
    int handle = runtime_handle(vm);
    if (handle >= 0) {
        if (syscall(SYS_pidfd_send_signal, handle, SIGKILL, NULL, 0) == 0)
            runtime_wait_gone(handle, KILL_WAIT_MS);
        close(handle);
    }
    pid_t pid = runtime_pid(vm);
    if (pid)
        tool_error("%s: its QEMU (process %d) cannot be ended", vm->path, (int)pid);
    return pid == 0;
}

static bool wants_standby(int run_fd)
{
    return faccessat(run_fd, "standby", F_OK, 0) == 0 && qmp_peer(run_fd, "qmp") != 0;
}

bool runtime_wants_standby(struct vm *vm)
{
    return runtime_pid(vm) != 0 && wants_standby(vm->run_fd);
}

const char *runtime_state(struct vm *vm)
{
    if (runtime_pid(vm))
        return "running";
    return vm_has(vm, VM_STATE) ? "saved" : "off";
}

/* ---- clones in the making ---- */

char *hidden_name(const struct vm *owner, unsigned number)
{
    return g_strdup_printf(HIDDEN_PREFIX "%s-%u", vm_uuid(owner), number);
}

/* The uuid of the VM whose command makes it; NULL if it is no such name. */
static char *owner_of(const char *name)
{
    size_t prefix = strlen(HIDDEN_PREFIX);
    if (!g_str_has_prefix(name, HIDDEN_PREFIX) || strlen(name) < prefix + UUID_LENGTH + 1)
        return NULL;
    char *uuid = g_strndup(name + prefix, UUID_LENGTH);
    if (!g_uuid_string_is_valid(uuid))
        g_clear_pointer(&uuid, g_free);
    return uuid;
}

static unsigned long number_of(const char *name)
{
    return strtoul(name + strlen(HIDDEN_PREFIX) + UUID_LENGTH + 1, NULL, 10);
}

static bool is_owners_home(const char *name)
{
    return number_of(name) == HIDDEN_OWNER;
}

/* What runs in it is ended first. But a clone that nobody has used yet has its
 * origin's identity, and one that is to take its owner's place (reset) has his:
 * that QEMU is none of its business. */
static void end_machine(int parent_fd, const char *parent, const char *name, const char *owner)
{
    struct vm vm = VM_INIT;
    vm.parent = g_strdup(parent);
    vm.name = g_strdup(name);
    vm.path = g_build_filename(parent, name, NULL);
    vm.dir_fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = vm.dir_fd < 0 ? -1 : openat(vm.dir_fd, "vm.json", O_RDONLY | O_CLOEXEC);
    vm.config = fd < 0 ? NULL : json_loadfd(fd, 0, NULL);
    if (fd >= 0)
        close(fd);
    const char *uuid = vm.config ? vm_uuid(&vm) : NULL;
    if (uuid && g_uuid_string_is_valid(uuid) && !vm_is_foreign(&vm) &&
        (!owner || strcmp(uuid, owner) != 0 || is_owners_home(name))) {
        runtime_kill(&vm);
        /* The owner's has the journal in it, which stays until all else is gone. */
        if (!is_owners_home(name))
            runtime_remove(&vm);
    }
    vm_close(&vm);
}

bool runtime_discard(int parent_fd, const char *parent, const char *name)
{
    g_autofree char *owner = owner_of(name);
    end_machine(parent_fd, parent, name, owner);
    int error = tree_remove(parent_fd, name);
    if (error && error != -ENOENT)
        tool_error("%s/%s: cannot be removed: %s", parent, name, g_strerror(-error));
    else if (owner && is_owners_home(name))
        remove_run_directory(owner);
    return !error || error == -ENOENT;
}

/* Those of one owner, or all whose owners are not at work (owner NULL). */
static bool discard_hidden(int parent_fd, const char *parent, const char *owner)
{
    int fd = openat(parent_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    bool ok = true;
    if (!directory) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    while ((entry = readdir(directory))) {
        g_autofree char *uuid = owner_of(entry->d_name);
        int run_fd = -1, lock_fd = -1;
        if (!uuid || (owner && strcmp(uuid, owner) != 0))
            continue;
        run_fd = open_run_directory(uuid, false);
        bool at_work = !owner && run_fd >= 0 && try_lock(run_fd, O_CREAT, &lock_fd) == 0;
        bool standby =
            run_fd >= 0 && number_of(entry->d_name) == HIDDEN_STANDBY && wants_standby(run_fd);
        if (!at_work && !standby)
            ok = runtime_discard(parent_fd, parent, entry->d_name) && ok;
        if (lock_fd >= 0)
            close(lock_fd);
        if (run_fd >= 0)
            close(run_fd);
    }
    closedir(directory);
    return ok;
}

bool runtime_discard_own(const struct vm *vm)
{
    return discard_hidden(vm->parent_fd, vm->parent, vm_uuid(vm));
}

void runtime_sweep(const struct vm *vm)
{
    /* Its own, too: a command that could not even remove them has ended in order. */
    if (vm->lock_fd >= 0)
        runtime_discard_own(vm);
    discard_hidden(vm->parent_fd, vm->parent, NULL);
}
