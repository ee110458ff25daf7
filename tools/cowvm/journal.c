// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/journal.h"
#include "tools/cowfs_tool.h"
#include "tools/cowvm/notify.h"
#include "tools/cowvm/process.h"
#include "tools/cowvm/qmp.h"
#include "tools/cowvm/runtime.h"
#include "tools/cowvm/state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a journal holds: an operation, whether the VM was running ('r') or not
 * ('p'), and for JOURNAL_RESET what takes the VM's place: the number of its
 * hidden name, and of its inode. */
struct entry {
    char op, was_running;
    unsigned number;
    uint64_t inode;
};

static bool write_entry(const struct vm *vm, const struct entry *e)
{
    char text[64];
    int length = snprintf(text, sizeof(text), "%c%c %u %" PRIu64, e->op, e->was_running, e->number,
                          e->inode);
    int fd = openat(vm->run_fd, "journal.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, text, (size_t)length) == length;
    if (fd >= 0)
        close(fd);
    ok = ok && renameat(vm->run_fd, "journal.new", vm->run_fd, "journal") == 0;
    if (!ok)
        tool_error("%s: journal: %s", vm->path, g_strerror(errno));
    return ok;
}

/* False: there is none that this cowvm has written. */
static bool read_entry(const struct vm *vm, struct entry *e)
{
    char text[64] = {0};
    int fd = openat(vm->run_fd, "journal", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t got = read(fd, text, sizeof(text) - 1);
    close(fd);
    g_auto(GStrv) words = g_strsplit(text, " ", 3);
    if (got <= 0 || g_strv_length(words) != 3 || strlen(words[0]) != 2)
        return false;
    e->op = words[0][0];
    e->was_running = words[0][1];
    e->number = (unsigned)g_ascii_strtoull(words[1], NULL, 10);
    e->inode = g_ascii_strtoull(words[2], NULL, 10);
    return true;
}

/* ---- putting right ---- */

static bool go_on(struct vm *vm)
{
    g_autofree char *reason = NULL;
    struct qmp *q = qmp_connect(vm->run_fd, "qmp", 5000, &reason);
    bool ok = q && state_cancel(vm, q) && qmp_do(q, "cont", NULL);
    if (!ok)
        tool_error("%s: cannot be continued: %s", vm->path, q ? qmp_error(q) : reason);
    qmp_close(q);
    return ok;
}

/* What takes the VM's place is whole: forward. */
static bool finish_reset(struct vm *vm, const struct entry *e)
{
    struct stat st;
    g_autofree char *hidden = hidden_name(vm, e->number);
    /* Another one has that name: the two were exchanged. */
    if (fstatat(vm->parent_fd, hidden, &st, AT_SYMLINK_NOFOLLOW) != 0 || st.st_ino != e->inode)
        return true;
    if (!runtime_kill(vm))
        return false;
    if (renameat2(vm->parent_fd, hidden, vm->parent_fd, vm->name, RENAME_EXCHANGE) != 0) {
        tool_error("%s: %s", vm->path, g_strerror(errno));
        return false;
    }
    return vm_reopen(vm);
}

/* See journal.h. */
static bool recover_machine(struct vm *vm, const struct entry *e)
{
    enum journal_op op = (enum journal_op)e->op;
    bool was_running = e->was_running == 'r';
    if (op == JOURNAL_RESET)
        return finish_reset(vm, e);
    if (op == JOURNAL_BUILD || !runtime_pid(vm))
        return vm->dir_fd < 0 || vm_unlink(vm, VM_STATE_NEW);
    if (op == JOURNAL_MOVE && vm_has(vm, VM_STATE))
        return runtime_kill(vm);
    bool ok = vm_unlink(vm, VM_STATE) && vm_unlink(vm, VM_STATE_NEW) && (!was_running || go_on(vm));
    /* Perhaps once more. */
    if (ok && op == JOURNAL_MOVE && was_running)
        notify_guest(vm, "resume", vm->name);
    return ok;
}

/* Was the VM to be made, or to be removed? Then nobody else tidies up. */
static bool is_nobodys(struct vm *vm)
{
    struct stat st;
    return vm->disposable ||
           (fstatat(vm->parent_fd, vm->name, &st, AT_SYMLINK_NOFOLLOW) != 0 && !runtime_pid(vm));
}

bool journal_recover(struct vm *vm)
{
    struct entry e;
    if (!read_entry(vm, &e))
        return true;
    bool ok = recover_machine(vm, &e);
    /* Forward only: what takes its place stays until it has. */
    if (!ok && e.op == JOURNAL_RESET)
        return false;
    ok = runtime_discard_own(vm) && ok;
    if (ok)
        unlinkat(vm->run_fd, "journal", 0);
    return ok;
}

/* ---- the journal and its guard ---- */

/* The guard: waits until the command has ended, which closes the pipe. */
static void __attribute__((noreturn)) guard(struct vm *vm, int pipe_fd)
{
    char word;
    ssize_t got;
    const int keep[] = {vm->parent_fd, vm->dir_fd, vm->run_fd, vm->lock_fd, pipe_fd};
    process_detach(keep, G_N_ELEMENTS(keep));
    do
        got = read(pipe_fd, &word, 1);
    while (got < 0 && errno == EINTR);
    /* Killed while it removed the runtime directory, the journal may be gone already. */
    if (got == 0 && journal_recover(vm) && is_nobodys(vm))
        runtime_remove(vm);
    _exit(0);
}

bool journal_begin(struct vm *vm, enum journal_op op, bool was_running)
{
    int ends[2];
    const struct entry e = {.op = (char)op, .was_running = was_running ? 'r' : 'p'};
    if (!write_entry(vm, &e))
        return false;
    if (pipe2(ends, O_CLOEXEC) != 0) {
        tool_error("%s: journal: %s", vm->path, g_strerror(errno));
        return false;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[1]);
        /* Its name from the first moment. */
        prctl(PR_SET_NAME, "cowvm-guard");
        /* Once more, so that nobody has to wait for it. */
        if (fork() != 0)
            _exit(0);
        guard(vm, ends[0]);
    }
    close(ends[0]);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    vm->guard_fd = ends[1];
    return pid > 0;
}

bool journal_reset(struct vm *vm, unsigned number, const struct vm *by)
{
    struct stat st;
    if (fstat(by->dir_fd, &st) != 0) {
        tool_error("%s: %s", by->path, g_strerror(errno));
        return false;
    }
    const struct entry e = {
        .op = JOURNAL_RESET, .was_running = 'p', .number = number, .inode = st.st_ino};
    return write_entry(vm, &e);
}

void journal_end(struct vm *vm)
{
    if (vm->guard_fd < 0)
        return;
    unlinkat(vm->run_fd, "journal", 0);
    ssize_t sent = write(vm->guard_fd, "d", 1);
    (void)sent; /* a guard that was killed needs no word */
    close(vm->guard_fd);
    vm->guard_fd = -1;
}
