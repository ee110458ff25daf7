// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/suite.h"

#include <stdio.h>
#include <stdlib.h>

int run_suite(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    /* What a test prints comes before its process may abort. */
    setbuf(stdout, NULL);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
