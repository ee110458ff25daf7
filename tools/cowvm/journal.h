// SPDX-License-Identifier: Apache-2.0
/*
 * journal.h - what a command is about to do to a VM, for the case that it is
 * killed. A file in the VM's runtime directory (runtime.h), gone when the
 * command is done; the VM's lock is held all the while.
 *
 * A command that ends in the middle, by kill -9 too, leaves it. Its guard, a
 * process of its own that waits for just that, puts things right at once; if the
 * guard is killed as well, the next command that takes the lock does. What
 * "right" is:
 *
 *   - hidden directories of that command (hidden_name) are clones in the making:
 *     their QEMUs are killed and they are removed. What the user has been given
 *     has been renamed before, as the last step.
 *   - a VM that was stopped for a moment goes on; what was being saved of it is
 *     removed. If it was being saved for good (hibernate) or taken up again
 *     (start), there is one point of no return, the rename or unlink of
 *     snapshot.snap: before or after it, the VM is wholly in one state.
 *   - a reset has its point of no return when the clone that is to take the VM's
 *     place is whole (journal_reset). Before, the VM is left as it is; from
 *     there on, its QEMU is ended and the two directories are exchanged.
 *
 * The journal also stands for nothing after a reboot: then nothing runs, and
 * hidden directories are known by their names (runtime_sweep).
 */
#ifndef COWVM_JOURNAL_H
#define COWVM_JOURNAL_H

#include "tools/cowvm/vm.h"

enum journal_op {
    JOURNAL_BUILD = 'b', /* hidden directories only; the VM itself is left alone */
    JOURNAL_PAUSE = 'p', /* the same, and the VM stands still for a moment */
    JOURNAL_MOVE = 'm',  /* it is being hibernated or started */
    JOURNAL_RESET = 'x', /* another one takes its place: journal_reset */
};

/* From journal_begin to journal_end the guard watches. `was_running`: it is to
 * go on; a VM that its user has stopped stays stopped. False: said so already. */
bool journal_begin(struct vm *vm, enum journal_op op, bool was_running);
void journal_end(struct vm *vm);

/* Begun as JOURNAL_BUILD, from here on it is a reset: `by`, under the VM's hidden
 * name `number`, takes its place. False: said so already. */
bool journal_reset(struct vm *vm, unsigned number, const struct vm *by);

/* Puts right what a command before has left; the lock is held. Opens the VM anew
 * if it has been exchanged. False: said so already. */
bool journal_recover(struct vm *vm);

#endif
