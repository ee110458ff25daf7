// SPDX-License-Identifier: Apache-2.0
/*
 * state.h - the state of a guest's devices, to snapshot.snap and back. Its
 * memory is memory.snap already: QEMU leaves shared memory out of the stream
 * (x-ignore-shared), so this is some 300 KiB whatever the size of the guest.
 *
 * All functions: false: said so already.
 */
#ifndef COWVM_STATE_H
#define COWVM_STATE_H

#include "tools/cowvm/qmp.h"
#include "tools/cowvm/vm.h"

/* Before anything else; the guest may run. Opens the new state file, in the
 * directory of `to`: the VM's own, or a clone in the making. */
bool state_prepare(struct vm *vm, struct qmp *q, const struct vm *to);
/* The guest has been stopped: saves what is in QEMU, and flushes what is in the
 * kernel of memory and disk. */
bool state_save(struct vm *vm, struct qmp *q);
/* Gives the file its name, now that memory and disk beside it are what it
 * belongs to: from now on that directory is a saved VM. */
bool state_keep(const struct vm *to);
/* Undoes all of it: no state file, under no name. */
bool state_drop(struct vm *vm);

/* Waits until no saving is under way any more, whoever began it: one that comes
 * to its end stops a guest that was let go meanwhile. */
bool state_cancel(struct vm *vm, struct qmp *q);

/* Before state_load; a while before, where time counts then. */
bool state_expect(struct vm *vm, struct qmp *q);
/* ... and a guest that is a copy calls out only once, not five times as one that
 * has moved would, that its origin's network address is here now: it is to get
 * another one, and each time costs it time. */
bool state_expect_quietly(struct vm *vm, struct qmp *q);
/* Takes the state up in a QEMU that was started with `incoming`; it stays
 * stopped. */
bool state_load(struct vm *vm, struct qmp *q);
/* The same in two parts, so that several load at once. */
bool state_load_begin(struct vm *vm, struct qmp *q);
bool state_load_end(struct vm *vm, struct qmp *q);
/* Lets the guest go on, for which the state file loses its name. `durable`: a
 * power cut does not bring it back beside a memory.snap that has moved on. A
 * clone needs no such care: it shares all its chunks, and none is overwritten. */
bool state_go_on(struct vm *vm, struct qmp *q, bool durable);

#endif
