// SPDX-License-Identifier: Apache-2.0
/*
 * fork.h - copies of a running VM, with its memory.
 *
 * The first copy is made in two steps (clone.h): its frame, in which its QEMU
 * starts while the source's dirty pages are being flushed; then, with the source
 * stopped, its content. So neither waits for the other, and the source stands
 * still only while the state of its devices is saved and two files are shared.
 * Further copies are clones of the first before that goes on: all of one moment,
 * and the source has long been running by then.
 *
 * If the source has a standby (standby.h), that is the frame, with its QEMU.
 *
 * A copy is made and started under a hidden name and gets its own when its guest
 * runs and has a network card with its own address, so an interrupted fork leaves
 * none, or whole ones.
 */
#ifndef COWVM_FORK_H
#define COWVM_FORK_H

#include "tools/cowvm/qmp.h"
#include "tools/cowvm/vm.h"

/* When each step ended, g_get_monotonic_time; 0: not done. From `restored` on:
 * of the first copy, but for all_on and carded. */
struct steps {
    gint64 begin, flushed, started, stopped, saved, cloned, source_on, restored, on, all_on, carded;
};

struct fork_copy {
    struct vm target; /* where it is to be */
    struct vm vm;     /* what it is */
    char *hidden;
    struct qmp *q; /* while it is being taken up */
    json_t *forwards;
    bool made, alive, done;
};

/* The caller has located the source, which runs, locked it, and located the
 * targets and given them hidden names; it frees all of these. */
struct fork {
    struct vm source;
    struct fork_copy *copies;
    int count;
    bool keep_card;
    struct steps steps;
};

/* False: not all copies were made; said so already. */
bool fork_run(struct fork *f);

#endif
