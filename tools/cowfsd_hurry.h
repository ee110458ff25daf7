// SPDX-License-Identifier: Apache-2.0
/*
 * cowfsd_hurry.h - who uses a mount waits while its daemon begins anew: on a machine with much to do
 * that comes before all else, for a moment. Where it is not permitted things take longer.
 *
 * Threads: one.
 */
#ifndef COWFSD_HURRY_H
#define COWFSD_HURRY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A child's, kept by its parent. Zeros at first. */
struct hurry {
    int64_t until_us;                /* on the monotonic clock; 0: it is in none */
    int64_t begun_us;                /* of this one */
    int64_t window_us, in_window_us; /* how long there was one, in this window of time */
};

/* Before the fork: whether the child may call hurry_begin. It ends after most_ms, or when
 * hurry_ends_in says. */
bool hurry_allow(struct hurry *h, unsigned most_ms);
void hurry_ends_in(struct hurry *h, unsigned ms);
/* In the child: it goes first, with the threads that it starts. */
void hurry_begin(void);
/* To be called when as many ms have passed as it returns, -1: never. When it is over, all
 * threads of `child` take turns with the others' again. */
int hurry_look(struct hurry *h, pid_t child);

#endif
