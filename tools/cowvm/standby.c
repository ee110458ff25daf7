// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/standby.h"
#include "tools/cowfs_tool.h"
#include "tools/cowvm/clone.h"
#include "tools/cowvm/hot.h"
#include "tools/cowvm/journal.h"
#include "tools/cowvm/machine.h"
#include "tools/cowvm/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* How long a copy has the processors for itself; and when it has most of what it
 * needs to begin with. */
enum { LEARN_MS = 150, REST_MS = 150 };

/* How long a changed page waits, at most, with write-back. */
enum { WRITE_BACK_MS = 100 };

/* How long a keeper that is not needed any more is waited for. */
enum { KEEPER_MS = 10000, KEEPER_STEP_MS = 2 };

static bool exists(const struct vm *vm)
{
    g_autofree char *name = hidden_name(vm, HIDDEN_STANDBY);
    return faccessat(vm->parent_fd, name, F_OK, 0) == 0;
}

/* ---- made and removed ---- */

static bool make(struct vm *vm)
{
    struct vm made = VM_INIT;
    g_autofree char *making = hidden_name(vm, HIDDEN_FIRST);
    g_autofree char *name = hidden_name(vm, HIDDEN_STANDBY);
    if (!journal_begin(vm, JOURNAL_BUILD, false))
        return false;
    bool framed = clone_frame(vm->dir_fd, vm->path, vm->parent_fd, vm->parent, making);
    bool ok = framed && machine_launch(&made, vm, making, vm->path);
    struct qmp *q = ok ? qemu_connect_new(&made) : NULL;
    qmp_close(q);
    ok = q != NULL;
    if (ok && renameat2(vm->parent_fd, making, vm->parent_fd, name, RENAME_NOREPLACE) != 0) {
        tool_error("%s/%s: %s", vm->parent, name, g_strerror(errno));
        ok = false;
    }
    if (framed && !ok)
        runtime_discard(vm->parent_fd, vm->parent, making);
    vm_close(&made);
    journal_end(vm);
    return ok;
}

/* Killed in the middle: as long as "standby" is there, it is a standby; then its
 * journal's recovery removes it. */
static bool end(struct vm *vm)
{
    g_autofree char *name = hidden_name(vm, HIDDEN_STANDBY);
    bool there = exists(vm), own = there && vm->guard_fd < 0;
    if (own && !journal_begin(vm, JOURNAL_BUILD, false))
        return false;
    if (vm->run_fd >= 0)
        unlinkat(vm->run_fd, "standby", 0);
    bool ok = !there || runtime_discard(vm->parent_fd, vm->parent, name);
    if (own)
        journal_end(vm);
    return ok;
}

/* Its keeper has the VM's directory open, and so keeps a mount busy. */
static void wait_for_keeper(int wish)
{
    for (int waited = 0; waited < KEEPER_MS && flock(wish, LOCK_EX | LOCK_NB) != 0;
         waited += KEEPER_STEP_MS)
        poll(NULL, 0, KEEPER_STEP_MS);
}

bool standby_end(struct vm *vm)
{
    int wish = vm->run_fd < 0 ? -1 : openat(vm->run_fd, "standby", O_RDWR | O_CLOEXEC);
    bool ok = end(vm);
    if (wish >= 0) {
        if (ok)
            wait_for_keeper(wish);
        close(wish);
    }
    return ok;
}

/* ---- its keeper ---- */

static void give_lock_back(struct vm *vm)
{
    close(vm->lock_fd);
    vm->lock_fd = -1;
}

/* Taken: it is made again. `pid` is the QEMU of the copy that it has become, or
 * was to become. False: the keeper is not needed any more. */
static bool renew(struct vm *vm, int wish, int handle, pid_t pid)
{
    if (runtime_wait_gone(handle, LEARN_MS))
        return true;
    hot_learn(vm, pid);
    if (runtime_wait_gone(handle, REST_MS))
        return true;
    if (!runtime_lock_while(vm, wish))
        return false;
    bool ok = !runtime_wants_standby(vm) || exists(vm) || make(vm);
    if (!ok)
        end(vm);
    give_lock_back(vm);
    return ok;
}

/* The file "standby" holds one word: how. */
static bool wants_write_back(int wish)
{
    char word;
    return pread(wish, &word, 1, 0) == 1 && word == 'w';
}

static bool write_wish(int wish, bool write_back)
{
    return pwrite(wish, write_back ? "w" : "-", 1, 0) == 1;
}

/* Ends a ppoll. Not SIG_IGN, which a QEMU would inherit. */
static void wake_up(int number)
{
    (void)number;
}

/* `wish` is the open file "standby". */
static void __attribute__((noreturn)) keeper(struct vm *vm, int wish, int handle, int watch)
{
    int memory = openat(vm->dir_fd, VM_MEMORY, O_RDONLY | O_CLOEXEC);
    const int keep[] = {vm->parent_fd, vm->dir_fd, vm->run_fd, wish, handle, watch, memory};
    process_detach(keep, G_N_ELEMENTS(keep));
    vm->lock_fd = -1;
    /* The QEMUs that it starts are its children. */
    sigset_t child, none;
    sigemptyset(&none);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    signal(SIGCHLD, wake_up);
    pid_t waiting = standby_pid(vm);
    for (;;) {
        while (waitpid(-1, NULL, WNOHANG) > 0)
            continue;
        char events[4096];
        struct stat st;
        struct pollfd p[] = {{.fd = handle, .events = POLLIN}, {.fd = watch, .events = POLLIN}};
        const struct timespec tick = {.tv_nsec = WRITE_BACK_MS * 1000000L};
        int ready = ppoll(p, G_N_ELEMENTS(p), wants_write_back(wish) ? &tick : NULL, &none);
        if (ready < 0 && errno != EINTR)
            break;
        if (ready == 0) {
            sync_file_range(memory, 0, 0, SYNC_FILE_RANGE_WRITE);
            continue;
        }
        while (read(watch, events, sizeof(events)) > 0)
            continue;
        /* Who removes that has removed the standby, too, or is about to. */
        if (fstat(wish, &st) != 0 || st.st_nlink == 0)
            break;
        if (p[0].revents) {
            if (runtime_lock_while(vm, wish) && !runtime_pid(vm))
                end(vm);
            break;
        }
        if (!exists(vm)) {
            if (!renew(vm, wish, handle, waiting))
                break;
            waiting = standby_pid(vm);
        }
    }
    /* First what keeps the mount busy: who waits for it waits for `wish`. */
    close(memory);
    vm_close(vm);
    _exit(0);
}

static bool start_keeper(struct vm *vm, int wish)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", vm->run_fd);
    int handle = runtime_handle(vm), watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    bool ok = handle >= 0 && watch >= 0 &&
              inotify_add_watch(watch, path, IN_DELETE | IN_CLOSE_WRITE) >= 0;
    fflush(NULL);
    pid_t pid = ok ? fork() : -1;
    if (pid == 0) {
        prctl(PR_SET_NAME, "cowvm-standby");
        /* Once more, so that nobody has to wait for it. */
        if (fork() != 0)
            _exit(0);
        keeper(vm, wish, handle, watch);
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
    else
        tool_error("%s: its standby cannot be watched: %s", vm->path, g_strerror(errno));
    if (handle >= 0)
        close(handle);
    if (watch >= 0)
        close(watch);
    return pid > 0;
}

bool standby_begin(struct vm *vm, bool write_back)
{
    int wish = openat(vm->run_fd, "standby", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (wish < 0 || !write_wish(wish, write_back)) {
        tool_error("%s: standby: %s", vm->path, g_strerror(errno));
        if (wish >= 0)
            close(wish);
        return false;
    }
    /* A keeper has it locked; one that was killed has left what it kept. */
    bool kept = flock(wish, LOCK_EX | LOCK_NB) != 0;
    g_autofree char *name = hidden_name(vm, HIDDEN_STANDBY);
    bool ok = standby_pid(vm) ||
              ((!exists(vm) || runtime_discard(vm->parent_fd, vm->parent, name)) && make(vm));
    ok = ok && (kept || start_keeper(vm, wish));
    close(wish);
    if (!ok)
        standby_end(vm);
    return ok;
}

/* ---- taken ---- */

/* A disk may have grown since. */
static bool same_size(const struct vm *a, const struct vm *b, const char *file)
{
    struct stat of_a, of_b;
    return fstatat(a->dir_fd, file, &of_a, 0) == 0 && fstatat(b->dir_fd, file, &of_b, 0) == 0 &&
           of_a.st_size == of_b.st_size;
}

/* What the frame has copies of, and the source has changed or lost since. (The frame's vm.json is
 * written when it is made.) */
static bool same_machine(const struct vm *vm, const struct vm *frame)
{
    static const char *const files[] = {VM_CONFIG, VM_KERNEL, VM_INITRD};
    struct stat made, now, there;
    if (fstatat(frame->dir_fd, VM_CONFIG, &made, 0) != 0)
        return false;
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++) {
        bool is_now = fstatat(vm->dir_fd, files[i], &now, 0) == 0;
        bool was = fstatat(frame->dir_fd, files[i], &there, 0) == 0;
        if (is_now != was)
            return false;
        if (is_now && (now.st_ctim.tv_sec > made.st_ctim.tv_sec ||
                       (now.st_ctim.tv_sec == made.st_ctim.tv_sec &&
                        now.st_ctim.tv_nsec > made.st_ctim.tv_nsec)))
            return false;
    }
    return true;
}

bool standby_take(struct vm *vm, const char *hidden, const char *path, struct vm *out)
{
    g_autofree char *name = hidden_name(vm, HIDDEN_STANDBY);
    if (renameat2(vm->parent_fd, name, vm->parent_fd, hidden, RENAME_NOREPLACE) != 0)
        return false;
    bool ok = vm_locate_inside(out, vm, hidden) && vm_open_located(out) && runtime_pid(out) &&
              same_size(vm, out, VM_MEMORY) && same_size(vm, out, VM_DISK) && same_machine(vm, out);
    if (ok) {
        g_free(out->path);
        out->path = g_strdup(path);
        return true;
    }
    vm_close(out);
    runtime_discard(vm->parent_fd, vm->parent, hidden);
    return false;
}

pid_t standby_pid(struct vm *vm)
{
    struct vm standby = VM_INIT;
    g_autofree char *name = hidden_name(vm, HIDDEN_STANDBY);
    pid_t pid = 0;
    if (exists(vm) && vm_locate_inside(&standby, vm, name) && vm_open_located(&standby))
        pid = runtime_pid(&standby);
    vm_close(&standby);
    return pid;
}
