// SPDX-License-Identifier: Apache-2.0
/* process.h - what /proc tells of a process, and numbers in texts. */
#ifndef COWVM_PROCESS_H
#define COWVM_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* In clock ticks (sysconf(_SC_CLK_TCK)): processor time it has used, and when
 * it was started, since boot. False: it is gone. */
bool process_times(pid_t pid, uint64_t *used, uint64_t *started);

/* A whole number from min to max; false: it is not that, which has been said,
 * with the option's name. */
bool parse_number(const char *option, const char *text, int min, int max, int *out);

#endif
