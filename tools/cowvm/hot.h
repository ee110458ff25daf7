// SPDX-License-Identifier: Apache-2.0
/*
 * hot.h - which parts of its memory a copy needs first.
 *
 * A copy's memory is not in the page cache: each first touch waits for cowfs,
 * and the kernel then reads on for 4 MiB, as QEMU asks for huge pages. The copies
 * of one VM begin alike; so what the last one had touched some moments after it
 * began is noted in the VM's runtime directory, in the file "hot", and is read
 * for the next one while its QEMU takes up the state of the devices. It is a hint:
 * that it is missing, or wrong, costs time only.
 */
#ifndef COWVM_HOT_H
#define COWVM_HOT_H

#include "tools/cowvm/vm.h"

#include <sys/types.h>

/* Notes what the copy whose QEMU is `pid` has touched. */
void hot_learn(const struct vm *source, pid_t pid);
/* Begins to read that of the copy's memory; waits for nothing. */
void hot_fetch(const struct vm *source, const struct vm *copy);

#endif
