// SPDX-License-Identifier: Apache-2.0
/* qemu.h - QEMU's command line for a VM, and starting it. */
#ifndef COWVM_QEMU_H
#define COWVM_QEMU_H

#include "tools/cowvm/qmp.h"
#include "tools/cowvm/vm.h"

#include <sys/types.h>

struct qemu_options {
    bool incoming;      /* waits for the state of its devices */
    bool attached;      /* serial line on stdin and stdout, ends with this process */
    bool disposable;    /* its disk need not survive a power cut */
    char *const *extra; /* more of QEMU's options, or NULL */
};

/* Starts it, stopped; the VM's runtime directory is open. Its pid, or 0: said
 * so already. The caller may connect at once. */
pid_t qemu_start(struct vm *vm, const struct qemu_options *o);

/* Connects to one that has just been started; if that fails, its own words. */
struct qmp *qemu_connect_new(struct vm *vm);
/* ... to one that should run. NULL: said so already. */
struct qmp *qemu_connect(struct vm *vm);

/* "kvm" or "tcg": the best that works here. */
const char *qemu_best_accelerator(void);

/* {"22": 40001}: ports of the guest's, and those of this machine that lead there.
 * The caller frees it. */
json_t *qemu_forwards(const struct vm *vm, struct qmp *q);

#endif
