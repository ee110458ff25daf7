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

/* Before anything else; the guest may run. Opens the new state file. */
bool state_prepare(struct vm *vm, struct qmp *q);
/* The guest has been stopped: saves what is in QEMU, flushes what is in the
 * kernel, and gives the file its name: from now on the directory is a saved
 * VM. `sync`: and it is durable. */
bool state_save(struct vm *vm, struct qmp *q, bool sync);
/* Undoes either: no state file, under no name. */
bool state_drop(struct vm *vm);

/* Takes the state up in a QEMU that was started with `incoming`; it stays
 * stopped. */
bool state_load(struct vm *vm, struct qmp *q);
/* Lets the guest go on, for which the state file loses its name. `durable`: a
 * power cut does not bring it back beside a memory.snap that has moved on. A
 * clone needs no such care: it shares all its chunks, and none is overwritten. */
bool state_go_on(struct vm *vm, struct qmp *q, bool durable);

#endif
