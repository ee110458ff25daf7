// SPDX-License-Identifier: Apache-2.0
/*
 * power.h - a power cut, in so far as it matters to cowfs: bytes written to
 * segments that no fdatasync has covered may be on the disk or not, page by
 * page.
 *
 * pwrite and fdatasync of the program are those of power.c. After power_arm
 * they remember what each page held before it was first written to since the
 * last fdatasync. (RocksDB's own files are left alone: it has its own tests.)
 */
#ifndef TESTS_MODEL_POWER_H
#define TESTS_MODEL_POWER_H

#include "tests/model/lib/rng.h"

void power_arm(void);
/* Puts old bytes back into some of these pages (all, none, or by chance), and
 * ends the process. */
__attribute__((noreturn)) void power_cut(struct rng *rng);

#endif
