// SPDX-License-Identifier: Apache-2.0
/* scratch.h - what every model program begins and ends with. */
#ifndef TESTS_MODEL_SCRATCH_H
#define TESTS_MODEL_SCRATCH_H

#include "cowfs/fs.h"

/* A new directory below $TMPDIR, /dev/shm or /tmp; g_free. */
char *scratch_make(void);
void scratch_remove(char *path);
/* From now on a warning in the log is a failure. */
void scratch_log_is_failure(void);
/* Of a command line; ends the program if it is none. */
uint64_t scratch_number(const char *text);

/* Waits until the store is empty: that may take a while, since the sealer may
 * hold a deleted file for a moment, and what the reaper does comes back with
 * the next commit. But not for ever: fails then. */
void scratch_wait_empty(struct fs *fs);

#endif
