// SPDX-License-Identifier: Apache-2.0
/* process.h - what /proc tells of a process, one that goes on by itself, and
 * numbers in texts. */
#ifndef COWVM_PROCESS_H
#define COWVM_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* In clock ticks (sysconf(_SC_CLK_TCK)): processor time it has used, and when
 * it was started, since boot. False: it is gone. */
bool process_times(pid_t pid, uint64_t *used, uint64_t *started);

/* This process, which was forked, goes on by itself: of its descriptors it keeps
 * those named, reads and writes nowhere, and is not ended by signals to the
 * command's group. */
void process_detach(const int *keep, size_t count);

/* Bytes of the machine's memory that it takes, what it shares with others counted
 * in parts (Pss). False: it is gone, or not ours to see. */
bool process_memory(pid_t pid, uint64_t *bytes);

/* A whole number from min to max; false: it is not that, which has been said,
 * with the option's name. */
bool parse_number(const char *option, const char *text, int min, int max, int *out);

#endif
