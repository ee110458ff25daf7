// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/state.h"
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MIGRATION_TIMEOUT_MS = 60000 };

static bool failed(const struct vm *vm, const struct qmp *q, const char *doing)
{
    tool_error("%s: %s: %s", vm->path, doing, qmp_error(q));
    return false;
}

static json_t *capability(const char *name)
{
    return json_pack("{s:s,s:b}", "capability", name, "state", 1);
}

/* Events say when a migration is through, so nothing is polled. */
static bool set_capabilities(struct vm *vm, struct qmp *q)
{
    json_t *list = json_pack("[o,o]", capability("x-ignore-shared"), capability("events"));
    return qmp_do(q, "migrate-set-capabilities", json_pack("{s:o}", "capabilities", list)) ||
           failed(vm, q, "migrate-set-capabilities");
}

static bool wait_migrated(struct vm *vm, struct qmp *q, const char *doing)
{
    json_t *event;
    while ((event = qmp_wait_event(q, "MIGRATION", MIGRATION_TIMEOUT_MS))) {
        const char *status =
            json_string_value(json_object_get(json_object_get(event, "data"), "status"));
        bool done = g_strcmp0(status, "completed") == 0;
        bool bad = g_strcmp0(status, "failed") == 0 || g_strcmp0(status, "cancelled") == 0;
        json_decref(event);
        if (done)
            return true;
        if (bad) {
            json_t *info = qmp_execute(q, "query-migrate", NULL);
            const char *reason = json_string_value(json_object_get(info, "error-desc"));
            tool_error("%s: %s: %s", vm->path, doing, reason ? reason : "QEMU gives no reason");
            json_decref(info);
            return false;
        }
    }
    return failed(vm, q, doing);
}

/* ---- saving ---- */

/* "completed" is told a moment before QEMU can be continued. */
static bool wait_finished(struct vm *vm, struct qmp *q)
{
    bool finished = false;
    for (int waited_ms = 0; !finished && waited_ms < MIGRATION_TIMEOUT_MS; waited_ms++) {
        json_t *status = qmp_execute(q, "query-status", NULL);
        if (!status)
            return failed(vm, q, "query-status");
        const char *name = json_string_value(json_object_get(status, "status"));
        finished = g_strcmp0(name, "finish-migrate") != 0;
        json_decref(status);
        if (!finished)
            poll(NULL, 0, 1);
    }
    if (!finished)
        tool_error("%s: saving its state: QEMU does not come to an end", vm->path);
    return finished;
}

static bool is_saving(struct qmp *q)
{
    static const char *const at_work[] = {"setup",          "active",     "device",
                                          "pre-switchover", "cancelling", NULL};
    json_t *info = qmp_execute(q, "query-migrate", NULL);
    const char *status = json_string_value(json_object_get(info, "status"));
    bool saving = status && g_strv_contains(at_work, status);
    json_decref(info);
    return saving;
}

bool state_cancel(struct vm *vm, struct qmp *q)
{
    for (int waited_ms = 0; is_saving(q) && waited_ms < MIGRATION_TIMEOUT_MS; waited_ms++) {
        if (!qmp_do(q, "migrate_cancel", NULL))
            return failed(vm, q, "migrate_cancel");
        poll(NULL, 0, 1);
    }
    return wait_finished(vm, q);
}

bool state_prepare(struct vm *vm, struct qmp *q, const struct vm *to)
{
    int fd = openat(to->dir_fd, VM_STATE_NEW, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        tool_error("%s/%s: %s", to->path, VM_STATE_NEW, g_strerror(errno));
        return false;
    }
    /* Its default speed is meant for networks. */
    bool ok =
        set_capabilities(vm, q) &&
        (qmp_do(q, "migrate-set-parameters", json_pack("{s:i}", "max-bandwidth", 2000000000)) ||
         failed(vm, q, "migrate-set-parameters")) &&
        (qmp_send_fd(q, "state", fd) || failed(vm, q, "getfd"));
    close(fd);
    return ok;
}

bool state_save(struct vm *vm, struct qmp *q)
{
    /* While QEMU writes its state, the kernel writes back what is dirty. */
    if (!qmp_do(q, "migrate", json_pack("{s:s}", "uri", "fd:state")))
        return failed(vm, q, "migrate");
    bool flushed = vm_flush(vm);
    /* Once more: the state file, and what saving it has touched. */
    return wait_migrated(vm, q, "saving its state") && wait_finished(vm, q) && flushed &&
           vm_flush(vm);
}

bool state_keep(const struct vm *to)
{
    if (renameat(to->dir_fd, VM_STATE_NEW, to->dir_fd, VM_STATE) == 0)
        return true;
    tool_error("%s/%s: %s", to->path, VM_STATE, g_strerror(errno));
    return false;
}

bool state_drop(struct vm *vm)
{
    bool ok = vm_unlink(vm, VM_STATE);
    return vm_unlink(vm, VM_STATE_NEW) && ok;
}

/* ---- taking it up ---- */

bool state_expect(struct vm *vm, struct qmp *q)
{
    return set_capabilities(vm, q);
}

bool state_expect_quietly(struct vm *vm, struct qmp *q)
{
    /* Not at all would be right, but with 0 QEMU 7.2 crashes when the card is reset. */
    return qmp_do(q, "migrate-set-parameters", json_pack("{s:i}", "announce-rounds", 1)) ||
           failed(vm, q, "migrate-set-parameters");
}

bool state_load_begin(struct vm *vm, struct qmp *q)
{
    int fd = openat(vm->dir_fd, VM_STATE, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        tool_error("%s/%s: %s", vm->path, VM_STATE, g_strerror(errno));
        return false;
    }
    bool ok = (qmp_send_fd(q, "state", fd) || failed(vm, q, "getfd")) &&
              (qmp_do(q, "migrate-incoming", json_pack("{s:s}", "uri", "fd:state")) ||
               failed(vm, q, "migrate-incoming"));
    close(fd);
    return ok;
}

bool state_load_end(struct vm *vm, struct qmp *q)
{
    return wait_migrated(vm, q, "taking up its state");
}

bool state_load(struct vm *vm, struct qmp *q)
{
    return state_load_begin(vm, q) && state_load_end(vm, q);
}

bool state_go_on(struct vm *vm, struct qmp *q, bool durable)
{
    if (!vm_unlink(vm, VM_STATE))
        return false;
    if (durable && fsync(vm->dir_fd) != 0) {
        tool_error("%s: %s", vm->path, g_strerror(errno));
        return false;
    }
    return qmp_do(q, "cont", NULL) || failed(vm, q, "cont");
}
