// SPDX-License-Identifier: Apache-2.0
/*
 * machine.h - what several commands do with a machine. The VM's lock is held,
 * and a journal is open where a step may be interrupted (journal.h).
 *
 * All functions: false: said so already.
 */
#ifndef COWVM_MACHINE_H
#define COWVM_MACHINE_H

#include "tools/cowvm/journal.h"
#include "tools/cowvm/qemu.h"
#include "tools/cowvm/runtime.h"
#include "tools/cowvm/vm.h"

/* One that was started (qemu_start) gets its state, if it has one, and runs. */
bool machine_take_up(struct vm *vm, bool incoming, bool durable);
/* Starts it: from its saved state, or switches it on. */
bool machine_start(struct vm *vm, struct qemu_options *o, bool durable);

/* Starts a QEMU, waiting for its state, in the clone in the making `hidden`
 * beside `other`; `path` is what it is called in messages. Opens *vm. */
bool machine_launch(struct vm *vm, const struct vm *other, const char *hidden, const char *path);

/* The connection to a running VM, for a command that stops it for a moment and
 * lets it go on; its journal is open from here on. NULL: said so already. */
struct qmp *machine_reach(struct vm *vm, bool *was_running);
bool machine_stop(struct vm *vm, struct qmp *q);
/* However it went; `was_running`: one that its user has stopped stays stopped. */
bool machine_let_go(struct vm *vm, struct qmp *q, bool was_running);

/* Clones the running VM with its memory to `name` in its parent directory,
 * stopping it for a moment. The clone is a saved VM. */
bool machine_clone_running(struct vm *vm, const char *name);

/* Running: saves it for good and ends its QEMU. */
bool machine_save(struct vm *vm);

/* Gives the machine a network card with its own address, since the one it woke
 * up with has its origin's. The guest sees one go and one come. In two parts,
 * so that several guests do it at once; `q` must be the same in both. */
bool machine_drop_card(struct vm *vm, struct qmp *q);
bool machine_give_card(struct vm *vm, struct qmp *q);
bool machine_has_card(const struct vm *vm);

#endif
