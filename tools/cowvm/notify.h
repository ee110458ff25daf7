// SPDX-License-Identifier: Apache-2.0
/*
 * notify.h - telling a guest that it was taken up from a saved state, and who it
 * is now. A guest cannot see that by itself: the uuid in its SMBIOS tables, read
 * at its start, is its origin's.
 *
 * The machine has a virtio-serial port for it (in a Linux guest
 * /dev/virtio-ports/org.cowvm.fork), fed from a fifo in the runtime directory:
 * what is written there waits until somebody in the guest opens the port. Each
 * message is one line of JSON:
 *
 *   {"event":"fork","name":"copy","uuid":"...","generation":"..."}
 *
 * event: "fork" for a copy of a running VM, "resume" for all else that goes on
 * from a saved state: a VM that was hibernated, reset, cloned while it was saved,
 * or run with --rm; also where a killed hibernate or start was put right
 * (journal.h). That uuid and generation are what they were tells a guest
 * that it is no copy, and was not taken back.
 */
#ifndef COWVM_NOTIFY_H
#define COWVM_NOTIFY_H

#include "tools/cowvm/vm.h"

#define NOTIFY_PORT "org.cowvm.fork"
#define NOTIFY_PIPE "notify" /* the names of the fifo, and of what QEMU opens for answers */
#define NOTIFY_IN NOTIFY_PIPE ".in"
#define NOTIFY_OUT NOTIFY_PIPE ".out"

/* Does the machine have that port? VMs of earlier versions have none. */
bool notify_wanted(const struct vm *vm);

/* Before QEMU is started: makes what it opens. False: said so already. */
bool notify_prepare(const struct vm *vm);

/* The guest has been let go. `name`: what the VM is called from now on. That it
 * cannot be told is said, and no reason to fail. */
void notify_guest(const struct vm *vm, const char *event, const char *name);

#endif
