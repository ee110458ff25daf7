// SPDX-License-Identifier: Apache-2.0
/*
 * standby.h - a VM's standby: a frame (clone.h) with a QEMU in it that waits, so
 * that the next fork need not start one.
 *
 * It is a hidden directory of the VM's (runtime.h, HIDDEN_STANDBY), made as a
 * clone in the making and renamed when its QEMU is ready. A fork renames it back
 * and has a clone in the making like any other. So there is no moment at which
 * an interrupted command leaves more than either of the two.
 *
 * Its keeper, a process, makes another one some moments after it was taken, when
 * the copy has had the processors for itself, and removes it when the VM ends.
 * But for write-back it waits for events only: the end of the VM's QEMU, and files removed from the
 * VM's runtime directory, as every command does with its journal. If the keeper
 * is killed, the standby stays as long as the VM runs and is not made again.
 *
 * The frame has what lay in the VM's directory when it was made. If vm.json, kernel or initrd
 * have changed since, a fork starts a QEMU of its own; of other files the copy has the older ones.
 *
 * The VM's lock is held where nothing else is said. False: said so already.
 */
#ifndef COWVM_STANDBY_H
#define COWVM_STANDBY_H

#include "tools/cowvm/vm.h"

#include <sys/types.h>

/* From now on, as long as it runs and is not reset, the VM has one; it has when
 * this returns.
 * `write_back`: its keeper also has the kernel write the guest's changed pages
 * back ten times a second, so that a fork has little left to flush. */
bool standby_begin(struct vm *vm, bool write_back);
/* It has none any more. */
bool standby_end(struct vm *vm);

/* The standby becomes the clone in the making `hidden`, and *out, which is
 * called `path` in messages. The VM's journal is open. False: there is none that
 * can be used; nothing is said. */
bool standby_take(struct vm *vm, const char *hidden, const char *path, struct vm *out);

/* The pid of its QEMU, 0 if there is none. The lock need not be held. */
pid_t standby_pid(struct vm *vm);

#endif
