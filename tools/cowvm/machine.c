// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/machine.h"
#include "tools/cowfs_tool.h"
#include "tools/cowvm/clone.h"
#include "tools/cowvm/notify.h"
#include "tools/cowvm/state.h"

#include <signal.h>
#include <string.h>

/* A guest that is busy starting up may take a while to let go of its card. */
enum { CARD_TIMEOUT_MS = 20000 };

static bool failed(const struct vm *vm, const struct qmp *q, const char *doing)
{
    tool_error("%s: %s: %s", vm->path, doing, qmp_error(q));
    return false;
}

/* ---- starting ---- */

bool machine_take_up(struct vm *vm, bool incoming, bool durable)
{
    struct qmp *q = qemu_connect_new(vm);
    if (!q)
        return false;
    bool ok;
    if (incoming) {
        ok = state_expect(vm, q) && state_load(vm, q) && state_go_on(vm, q, durable);
        if (ok)
            notify_guest(vm, "resume", vm->name);
    } else {
        ok = qmp_do(q, "cont", NULL) || failed(vm, q, "cont");
    }
    qmp_close(q);
    return ok;
}

bool machine_start(struct vm *vm, struct qemu_options *o, bool durable)
{
    o->incoming = vm_has(vm, VM_STATE);
    bool ok = qemu_start(vm, o) && machine_take_up(vm, o->incoming, durable);
    /* Saved, it still is: nothing is lost. */
    if (!ok && (!o->incoming || vm_has(vm, VM_STATE)))
        runtime_kill(vm);
    return ok;
}

bool machine_launch(struct vm *vm, const struct vm *other, const char *hidden, const char *path)
{
    struct qemu_options o = {.incoming = true};
    if (!vm_locate_inside(vm, other, hidden) || !vm_open_located(vm))
        return false;
    g_free(vm->path);
    vm->path = g_strdup(path);
    return runtime_open(vm) && qemu_start(vm, &o);
}

/* ---- saving ---- */

static bool is_running(struct qmp *q)
{
    json_t *status = qmp_execute(q, "query-status", NULL);
    bool running = json_is_true(json_object_get(status, "running"));
    json_decref(status);
    return running;
}

struct qmp *machine_reach(struct vm *vm, bool *was_running)
{
    struct qmp *q = qemu_connect(vm);
    if (!q)
        return NULL;
    *was_running = is_running(q);
    if (journal_begin(vm, JOURNAL_PAUSE, *was_running))
        return q;
    qmp_close(q);
    return NULL;
}

bool machine_stop(struct vm *vm, struct qmp *q)
{
    return qmp_do(q, "stop", NULL) || failed(vm, q, "stop");
}

bool machine_let_go(struct vm *vm, struct qmp *q, bool was_running)
{
    return !was_running || qmp_do(q, "cont", NULL) || failed(vm, q, "cont");
}

bool machine_clone_running(struct vm *vm, const char *name)
{
    bool was_running;
    struct qmp *q = machine_reach(vm, &was_running);
    if (!q)
        return false;
    /* Most of what is dirty goes while it runs. */
    bool ok = state_prepare(vm, q, vm) && vm_flush(vm) && machine_stop(vm, q) &&
              state_save(vm, q) && state_keep(vm) &&
              clone_directory(vm->dir_fd, vm->path, vm->parent_fd, vm->parent, name);
    ok = state_drop(vm) && ok;
    ok = machine_let_go(vm, q, was_running) && ok;
    qmp_close(q);
    return ok;
}

bool machine_save(struct vm *vm)
{
    struct qmp *q = qemu_connect(vm);
    if (!q)
        return false;
    bool was_running = is_running(q);
    bool ok = journal_begin(vm, JOURNAL_MOVE, was_running);
    if (ok) {
        ok = state_prepare(vm, q, vm) && vm_flush(vm) && machine_stop(vm, q) && state_save(vm, q) &&
             vm_sync(vm) && state_keep(vm) && vm_sync(vm);
        if (!ok && state_drop(vm))
            machine_let_go(vm, q, was_running);
    }
    qmp_close(q);
    if (ok)
        ok = runtime_kill(vm);
    journal_end(vm);
    return ok;
}

/* ---- the network card ---- */

bool machine_has_card(const struct vm *vm)
{
    return json_is_true(json_object_get(vm->config, "network"));
}

bool machine_drop_card(struct vm *vm, struct qmp *q)
{
    return qmp_do(q, "device_del", json_pack("{s:s}", "id", "nic0")) ||
           failed(vm, q, "device_del nic0");
}

static bool wait_deleted(struct qmp *q, const char *id)
{
    json_t *event;
    while ((event = qmp_wait_event(q, "DEVICE_DELETED", CARD_TIMEOUT_MS))) {
        const char *device =
            json_string_value(json_object_get(json_object_get(event, "data"), "device"));
        bool found = g_strcmp0(device, id) == 0;
        json_decref(event);
        if (found)
            return true;
    }
    return false;
}

bool machine_give_card(struct vm *vm, struct qmp *q)
{
    if (!wait_deleted(q, "nic0")) {
        tool_error("%s: the guest does not let go of its network card, which has the address of "
                   "its origin's ('cowvm fork --keep-card' leaves it so): %s",
                   vm->path, qmp_error(q));
        return false;
    }
    json_t *card =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:s}", "driver", "virtio-net-pci", "id", "nic0", "netdev",
                  "net0", "bus", "port0", "romfile", "", "mac", vm_string(vm, "mac"));
    return qmp_do(q, "device_add", card) || failed(vm, q, "device_add nic0");
}
