// SPDX-License-Identifier: Apache-2.0
/*
 * lock_count.h - who takes which lock how often, and who waits.
 *
 * The program is linked with --wrap of pthread_mutex_lock and the two of
 * rwlocks, so the code that is measured is the very code of the daemon, which
 * knows nothing of it. A lock is tried first; if somebody has it, that is a
 * wait, and timed. A place is told by the address that the call returns to.
 */
#ifndef LOCK_COUNT_H
#define LOCK_COUNT_H

#include <stdint.h>

enum { LOCK_SITES_MAX = 128 };

struct lock_site {
    uintptr_t at; /* 0: free */
    uint64_t taken, waits;
    double wait_us, longest_us;
};

struct lock_sites {
    struct lock_site site[LOCK_SITES_MAX]; /* hashed by address */
};

/* From now on the calling thread's locks are counted there; NULL: no more. */
void lock_count_into(struct lock_sites *sites);
void lock_count_merge(struct lock_sites *into, const struct lock_sites *from);
/* "site ADDRESS TAKEN WAITS WAIT_US LONGEST_US" lines; addresses as addr2line wants them. */
void lock_count_print(const struct lock_sites *sites);

#endif
