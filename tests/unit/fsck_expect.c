// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/fsck_expect.h"

/* Check cannot pass on longer ones. */
enum { LOG_MAX = 2000 };

static void collect(void *arg, enum fsck_kind kind, const char *text)
{
    if (arg && ((GString *)arg)->len < LOG_MAX)
        g_string_append_printf(arg, "  %s: %s\n", fsck_kind_id(kind), text);
}

struct fsck_report fsck_expect_run(const struct fsck_store *s, bool check_data, GString *log)
{
    struct fsck_report report;
    struct errmsg err = {""};
    struct fsck_options options = {
        .check_data = check_data, .verbose = true, .message = collect, .arg = log};
    int error = fsck_run(s->path, &options, &report, &err);
    ck_assert_msg(error == 0, "%d: %s", error, err.text);
    return report;
}

static void expect(const struct fsck_store *s, bool check_data, const char *what,
                   const enum fsck_kind *kinds, size_t count, uint64_t n)
{
    GString *log = g_string_new(NULL);
    struct fsck_report report = fsck_expect_run(s, check_data, log);
    uint64_t errors = 0, leaks = 0;
    for (enum fsck_kind kind = 0; kind < FSCK_KINDS; kind++) {
        bool expected = false;
        for (size_t i = 0; i < count; i++)
            expected |= kinds[i] == kind;
        ck_assert_msg((report.count[kind] > 0) == expected, "%s: %s: %s %s\n%s", what,
                      fsck_kind_id(kind), fsck_kind_text(kind),
                      expected ? "was not found" : "was found", log->str);
        *(fsck_kind_is_leak(kind) ? &leaks : &errors) += report.count[kind];
    }
    if (n)
        ck_assert_msg(report.count[kinds[0]] == n, "%s: %s: found %d times, not %d\n%s", what,
                      fsck_kind_id(kinds[0]), (int)report.count[kinds[0]], (int)n, log->str);
    ck_assert_uint_eq(report.errors, errors);
    ck_assert_uint_eq(report.leaks, leaks);
    g_string_free(log, TRUE);
}

void fsck_expect_kinds(const struct fsck_store *s, bool check_data, const enum fsck_kind *kinds,
                       size_t count, uint64_t n)
{
    expect(s, check_data, "store", kinds, count, n);
}

void fsck_expect_clean(const struct fsck_store *s, bool check_data)
{
    expect(s, check_data, "store", NULL, 0, 0);
}

void fsck_expect_damage(const struct damage *damage)
{
    size_t count = 0;
    while (damage->kinds[count] != FSCK_KINDS)
        count++;
    struct fsck_store *s = fsck_store_make();
    fsck_store_edit(s);
    damage->make(s);
    fsck_store_commit(s);
    expect(s, false, damage->name, damage->kinds, count, damage->n);
    fsck_store_remove(s);
}
