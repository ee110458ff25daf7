// SPDX-License-Identifier: Apache-2.0
/*
 * gate.h - a lock that is held shared all the time, by many threads for a moment
 * each, and exclusively every few seconds.
 *
 * With a rwlock each entry and each exit writes to one cache line, which all
 * processors then pull from each other. Here a thread counts itself in a line that
 * it shares with few others, and whoever closes the gate looks at all of them (the
 * kernel's percpu_rw_semaphore is the model).
 *
 * Threads: any. A thread is inside one gate at a time, once. gate_close and gate_open
 * are called by one thread at a time. No call fails.
 */
#ifndef CHUNKSTORE_GATE_H
#define CHUNKSTORE_GATE_H

struct gate;

struct gate *gate_new(void);
void gate_free(struct gate *gate); /* nobody is inside */

void gate_enter(struct gate *gate); /* waits while it is closed */
void gate_exit(struct gate *gate);

/* Returns when all have left; who wants to enter then waits for gate_open. */
void gate_close(struct gate *gate);
void gate_open(struct gate *gate);

#endif
