// SPDX-License-Identifier: Apache-2.0
/* cowfsd_repair.c - cowfs fsck --repair: the front of cowfs/repair.h. */
#include "cowfs/repair.h"
#include "tools/cowfs_tool.h"
#include "tools/cowfsd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* fsck(8). */
enum { CLEAN = 0, CORRECTED = 1, LEFT = 4, FAILED = 8 };

struct front {
    const struct repair_front *ask;
    char *log_path;
    FILE *log; /* opened with the first line */
    int log_error;
    bool progress;
    json_t *actions, *findings;
    gint64 shown_us;
};

static void clear_progress(struct front *f)
{
    if (f->progress && f->shown_us)
        fputs("\r\033[K", stderr);
}

/* "STORE.repair-20260102T030405.log", beside the store. */
static char *default_log_path(const char *store)
{
    g_autofree char *base = g_strdup(store);
    for (size_t n = strlen(base); n > 1 && base[n - 1] == '/'; n--)
        base[n - 1] = '\0';
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *time = g_date_time_format(now, "%Y%m%dT%H%M%SZ");
    return g_strdup_printf("%s.repair-%s.log", base, time);
}

static void write_log(struct front *f, const char *line)
{
    if (f->ask->dry_run || f->log_error)
        return;
    if (!f->log) {
        int fd = open(f->log_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        f->log = fd < 0 ? NULL : fdopen(fd, "w");
        if (!f->log) {
            f->log_error = -errno;
            if (fd >= 0)
                close(fd);
            return;
        }
    }
    if (fprintf(f->log, "%s\n", line) < 0)
        f->log_error = -EIO;
}

static void on_message(void *arg, enum fsck_kind kind, const char *text)
{
    struct front *f = arg;
    g_autofree char *line = g_strdup_printf(
        "%s: %s: %s", fsck_kind_is_leak(kind) ? "leak" : "error", fsck_kind_id(kind), text);
    clear_progress(f);
    write_log(f, line);
    if (!f->ask->as_json) {
        printf("%s\n", line);
        return;
    }
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    json_t *o = json_object();
    json_object_set_new(o, "kind", json_string(fsck_kind_id(kind)));
    json_object_set_new(o, "text", json_string(valid));
    json_array_append_new(f->findings, o);
}

static void on_action(void *arg, const char *text)
{
    struct front *f = arg;
    g_autofree char *line =
        g_strdup_printf("%s: %s", f->ask->dry_run ? "would repair" : "repair", text);
    clear_progress(f);
    write_log(f, line);
    if (f->ask->as_json) {
        g_autofree char *valid = g_utf8_make_valid(text, -1);
        json_array_append_new(f->actions, json_string(valid));
    } else {
        printf("%s\n", line);
    }
}

/* What will be done is written down before it is done. */
static int on_commit(void *arg)
{
    struct front *f = arg;
    if (!f->log_error && f->log && (fflush(f->log) != 0 || fsync(fileno(f->log)) != 0))
        f->log_error = -errno;
    if (f->log_error)
        tool_error("%s: %s", f->log_path, g_strerror(-f->log_error));
    return f->log_error;
}

static void on_progress(void *arg, const char *phase, uint64_t done, uint64_t total)
{
    struct front *f = arg;
    gint64 now = g_get_monotonic_time();
    if (!f->progress || now - f->shown_us < 200000)
        return;
    f->shown_us = now;
    if (total)
        fprintf(stderr, "\r\033[K%s: %.0f %%", phase, 100.0 * (double)done / (double)total);
    else
        fprintf(stderr, "\r\033[K%s: %" PRIu64, phase, done);
}

static int report(struct front *f, const struct repair_report *r, const char *store)
{
    if (f->ask->as_json) {
        g_autofree char *valid = g_utf8_make_valid(store, -1);
        json_t *o = json_object();
        json_object_set_new(o, "store", json_string(valid));
        json_object_set_new(o, "dry_run", json_boolean(f->ask->dry_run));
        json_object_set_new(o, "errors", tool_json_u64(r->before.errors));
        json_object_set_new(o, "leaks", tool_json_u64(r->before.leaks));
        json_object_set_new(o, "repaired", json_boolean(r->committed));
        json_object_set(o, "findings", f->findings);
        json_object_set(o, "actions", f->actions);
        if (r->committed) {
            g_autofree char *path = g_utf8_make_valid(f->log_path, -1);
            json_object_set_new(o, "log", json_string(path));
        }
        return tool_print_json(o);
    }
    if (r->actions == 0)
        printf("%s: clean, nothing to repair\n", store);
    else if (f->ask->dry_run)
        printf("%s: %" PRIu64 " errors, %" PRIu64 " leaks; nothing was changed\n", store,
               r->before.errors, r->before.leaks);
    else
        printf("%s: %" PRIu64 " errors, %" PRIu64 " leaks repaired; %s has what was done\n", store,
               r->before.errors, r->before.leaks, f->log_path);
    return tool_finish(EXIT_DONE);
}

int repair_store(const char *store, const struct repair_front *ask)
{
    struct front f = {
        .ask = ask,
        .log_path = ask->log_path ? g_strdup(ask->log_path) : default_log_path(store),
        .progress = isatty(STDERR_FILENO),
        .actions = json_array(),
        .findings = json_array(),
    };
    struct repair_options options = {
        .dry_run = ask->dry_run,
        .message = on_message,
        .action = on_action,
        .before_commit = on_commit,
        .progress = on_progress,
        .arg = &f,
    };
    struct repair_report r;
    struct errmsg err = {""};
    int status = FAILED;
    int error = repair_run(store, &options, &r, &err);
    clear_progress(&f);
    if (error) {
        tool_error("%s", err.text[0] ? err.text : g_strerror(-error));
        write_log(&f, err.text);
        status = error == -EUCLEAN ? LEFT : FAILED;
    } else if (report(&f, &r, store) == EXIT_DONE) {
        if (r.committed)
            write_log(&f, "committed");
        status = r.actions == 0 ? CLEAN : ask->dry_run ? LEFT : CORRECTED;
    }
    if (f.log)
        fclose(f.log);
    json_decref(f.actions);
    json_decref(f.findings);
    g_free(f.log_path);
    return status;
}
