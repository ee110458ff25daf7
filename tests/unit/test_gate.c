// SPDX-License-Identifier: Apache-2.0
/* The gate: many inside, or one who has closed it. */
#include "chunkstore/gate.h"
#include "tests/unit/suite.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { THREADS = 8, CLOSINGS = 300 };

static struct gate *gate;
static atomic_int inside;
static atomic_bool stop;

static void *go_in_and_out(void *unused)
{
    (void)unused;
    while (!atomic_load(&stop)) {
        gate_enter(gate);
        atomic_fetch_add(&inside, 1);
        atomic_fetch_sub(&inside, 1);
        gate_exit(gate);
    }
    return NULL;
}

START_TEST(nobody_is_inside_a_closed_gate)
{
    pthread_t threads[THREADS];
    gate = gate_new();
    atomic_store(&stop, false);
    for (unsigned i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, go_in_and_out, NULL), 0);
    for (unsigned i = 0; i < CLOSINGS; i++) {
        gate_close(gate);
        for (unsigned looks = 0; looks < 100; looks++)
            ck_assert_int_eq(atomic_load(&inside), 0);
        gate_open(gate);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    gate_free(gate);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("gate");
    TCase *tc = tcase_create("gate");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, nobody_is_inside_a_closed_gate);
    suite_add_tcase(suite, tc);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
