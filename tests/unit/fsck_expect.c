// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/fsck_expect.h"

#include "cowfs/file.h"
#include "cowfs/repair.h"

#include <errno.h>

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

static void note_action(void *arg, const char *text)
{
    g_string_append_printf(arg, "  %s\n", text);
    if (g_getenv("COWFS_TEST_TELL"))
        g_printerr("  %s\n", text);
}

static struct repair_report repair(const struct fsck_store *s, const char *what, bool dry_run,
                                   GString *log)
{
    struct repair_options options = {.dry_run = dry_run, .action = note_action, .arg = log};
    struct repair_report report;
    struct errmsg err = {""};
    int error = repair_run(s->path, &options, &report, &err);
    ck_assert_msg(error == 0, "%s: repair: %d %s\n%s", what, error, err.text, log->str);
    return report;
}

/* Whatever can be read can be, and what cannot is an error, not a crash. */
static void use_all(const struct fsck_store *s)
{
    struct fs *fs = fsck_store_open(s);
    GArray *inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    uint8_t *buffer = g_malloc(1 << 20);
    uint8_t lower = KEY_INODE, upper = KEY_INODE + 1;
    struct metadb_iter *it = metadb_iter_new(fs->db, &lower, 1, &upper, 1);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t len;
        uint64_t ino = get_be64(metadb_iter_key(it, &len) + 1);
        g_array_append_val(inos, ino);
    }
    metadb_iter_free(it);
    for (guint i = 0; i < inos->len; i++) {
        struct inode *inode;
        if (inode_get(fs->inodes, g_array_index(inos, uint64_t, i), &inode))
            continue;
        if (S_ISREG(inode_mode(inode))) {
            for (unsigned k = 0; k < 8; k++) {
                ssize_t n = file_read(inode, buffer, 1 << 20, (uint64_t)k << 20);
                ck_assert_msg(n >= 0 || n == -EIO, "read: %zd", n);
            }
            ssize_t n = file_write(inode, "new", 3, 5000, (struct file_write_flags){false, false});
            ck_assert_msg(n == 3 || n == -EIO, "write: %zd", n);
        }
        inode_put(inode);
    }
    g_free(buffer);
    g_array_free(inos, TRUE);
    ck_assert_int_eq(fs_close(fs), 0);
}

void fsck_expect_repair(const struct fsck_store *s, const char *what)
{
    GString *log = g_string_new(NULL);
    struct fsck_report before = fsck_expect_run(s, false, NULL);
    repair(s, what, true, log);
    struct fsck_report still = fsck_expect_run(s, false, NULL);
    ck_assert_mem_eq(before.count, still.count, sizeof(before.count));
    repair(s, what, false, log);
    expect(s, false, what, NULL, 0, 0);
    g_string_truncate(log, 0);
    struct repair_report again = repair(s, what, false, log);
    ck_assert_msg(again.actions == 0 && !again.committed, "%s: repaired twice:\n%s", what,
                  log->str);
    use_all(s);
    expect(s, false, what, NULL, 0, 0);
    g_string_free(log, TRUE);
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
    fsck_expect_repair(s, damage->name);
    fsck_store_remove(s);
}
