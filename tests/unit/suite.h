// SPDX-License-Identifier: Apache-2.0
/* suite.h - what every unit test's main ends with. */
#ifndef TESTS_UNIT_SUITE_H
#define TESTS_UNIT_SUITE_H

#include <check.h>

/* Runs all of it and frees it; the exit status. */
int run_suite(Suite *suite);

#endif
