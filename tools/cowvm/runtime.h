// SPDX-License-Identifier: Apache-2.0
/*
 * runtime.h - what there is of a VM beside its directory, while it runs or is
 * being worked on: $COWVM_RUN or /run/cowvm, in it a directory per VM, named by
 * its uuid:
 *
 *   lock        held (flock) by the one command that changes the VM
 *   journal     what that command does; gone when it is done
 *   qmp         QEMU's socket; a QEMU that answers there is what "runs" means
 *   console     the serial line's socket
 *   serial.log  all that the guest wrote there
 *   qemu.log    what QEMU said
 *   hot         what its copies need first of their memory (hot.h)
 *   standby     the VM is to have a standby; its keeper holds it (flock, standby.h)
 *
 * What a command that was killed leaves behind is put right by journal.h.
 *
 * The one hidden directory that is meant to stay is a standby. It is one as long
 * as its owner runs and has the file "standby"; else it is removed like others.
 */
#ifndef COWVM_RUNTIME_H
#define COWVM_RUNTIME_H

#include "tools/cowvm/vm.h"

#include <sys/types.h>

/* Makes the VM's runtime directory if need be. False: said so already. */
bool runtime_open(struct vm *vm);
/* ... and takes the lock, waiting for at most some seconds, and puts right what
 * a command before has left. vm_close releases it. */
bool runtime_lock(struct vm *vm);
/* The same for a standby's keeper: waits for as long as the open file `wish` has a
 * name, makes nothing, and says nothing. */
bool runtime_lock_while(struct vm *vm, int wish);
/* Removes the runtime directory of a VM that is gone for good. */
void runtime_remove(struct vm *vm);

/* Does the VM run and want a standby? Its runtime directory need not be open. */
bool runtime_wants_standby(struct vm *vm);

/* Where a clone is made before it gets its name; HIDDEN_OWNER is where the
 * owner itself lives (cowvm run --rm), HIDDEN_STANDBY where its standby waits.
 * The caller frees it. */
enum { HIDDEN_OWNER = 0, HIDDEN_FIRST = 1, HIDDEN_STANDBY = 1000000 };
char *hidden_name(const struct vm *owner, unsigned number);
/* Removes what interrupted commands have left in vm->parent. The VM's lock is
 * held, and its journal not yet begun. */
void runtime_sweep(const struct vm *vm);
/* ... and those of this VM's commands. False: said so already. */
bool runtime_discard_own(const struct vm *vm);
/* Kills the QEMU of the VM in parent/name, if there is one, and removes both
 * directories. */
bool runtime_discard(int parent_fd, const char *parent, const char *name);

/* The pid of the VM's QEMU; 0 if it does not run. */
pid_t runtime_pid(struct vm *vm);
/* A handle (pidfd) of that process, -1 if it does not run; and waiting until the
 * process is gone, with all its files: its socket is gone earlier. */
int runtime_handle(struct vm *vm);
bool runtime_wait_gone(int handle, int timeout_ms);
/* Ends it and waits until it is gone. */
bool runtime_kill(struct vm *vm);

/* "running", "saved" or "off". */
const char *runtime_state(struct vm *vm);

#endif
