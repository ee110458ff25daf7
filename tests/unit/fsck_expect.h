// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_expect.h - runs fsck on a store, and says what it must find.
 */
#ifndef TESTS_FSCK_EXPECT_H
#define TESTS_FSCK_EXPECT_H

#include "cowfs/fsck.h"
#include "tests/unit/fsck_store.h"

#include <check.h>

/* Asserts that the check came to a verdict. Findings go to `log` (may be NULL). */
struct fsck_report fsck_expect_run(const struct fsck_store *s, bool check_data, GString *log);
/* Exactly these kinds; the first of them exactly n times, if n is not 0. */
void fsck_expect_kinds(const struct fsck_store *s, bool check_data, const enum fsck_kind *kinds,
                       size_t count, uint64_t n);
#define fsck_expect(s, check_data, ...)                                     \
    fsck_expect_kinds(s, check_data, (const enum fsck_kind[]){__VA_ARGS__}, \
                      sizeof((enum fsck_kind[]){__VA_ARGS__}) / sizeof(enum fsck_kind), 0)
/* Has it repaired: a dry run changes nothing, and after the real one fsck finds
 * nothing, a second one has nothing to do, and the store can be used. */
void fsck_expect_repair(const struct fsck_store *s, const char *what);
void fsck_expect_clean(const struct fsck_store *s, bool check_data);

/*
 * One way of damaging a store: `make` changes records between fsck_store_edit
 * and fsck_store_commit.
 */
struct damage {
    const char *name;
    void (*make)(struct fsck_store *s);
    uint64_t n;              /* findings of the first kind, 0: any number */
    enum fsck_kind kinds[4]; /* FSCK_KINDS ends the list */
};
#define DAMAGE(function, n, ...)    \
    {                               \
#function, function, n,     \
        {                           \
            __VA_ARGS__, FSCK_KINDS \
        }                           \
    }
/* Makes a store, damages it, runs fsck; then repairs it. */
void fsck_expect_damage(const struct damage *damage);

#endif
