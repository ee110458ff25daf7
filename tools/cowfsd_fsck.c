// SPDX-License-Identifier: Apache-2.0
/* cowfsd_fsck.c - cowfs fsck: the front of cowfs/fsck.h. */
#include "cowfs/fsck.h"
#include "tools/cowfs_tool.h"
#include "tools/cowfsd.h"
#include "tools/cowfsd_log.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* fsck(8). */
enum { FSCK_CLEAN = 0, FSCK_ERRORS = 4, FSCK_FAILED = 8, FSCK_MISUSED = 16, FSCK_CANCELLED = 32 };

static const char help[] =
    "Usage: cowfs fsck [OPTION]... STORE\n"
    "Checks the structure of a store that is not mounted: every count, every reference, the\n"
    "names, the content index. Tells damage apart by kind. Changes nothing, unless told to "
    "repair.\n"
    "A store that was not closed in order is checked as of its last commit.\n"
    "\n"
    "  -c, --check-data  also read all sealed chunks and compare them with their hashes\n"
    "  -r, --repair      make it sound again: count what can be counted, give a name in "
    "/lost+found\n"
    "                    to what has lost its own, make an error (EIO) of what is lost, never\n"
    "                    zeros. All in one commit, and only if nothing would be wrong afterwards\n"
    "  -n, --dry-run     with --repair: only tell what would be done\n"
    "  -l, --log FILE    with --repair: write what was done, and every record that was removed,\n"
    "                    to FILE (default: STORE.repair-TIME.log)\n"
    "  -v, --verbose     all findings, not only the first of each kind; progress\n"
    "  -j, --json        report as JSON\n"
    "  -h, --help        show this help\n"
    "  -a, -f, -p, -y are accepted, for fsck(8), and change nothing\n"
    "\n"
    "Leaks are leftovers that cost space but show nobody wrong bytes; they are told, and leave\n"
    "the exit status alone.\n"
    "\n"
    "Exit status: 0 no errors, 1 errors repaired, 4 errors found and not repaired, 8 the check\n"
    "could not be made, 16 misused, 32 cancelled.\n"
    "\n"
    "Example:\n"
    "  cowfs umount /var/lib/vms && cowfs fsck /srv/vms.cowfs\n";

struct front {
    bool as_json, verbose, progress;
    json_t *findings;
    gint64 shown_us;
};

static void clear_progress(struct front *f)
{
    if (f->progress && f->shown_us)
        fputs("\r\033[K", stderr);
}

static void on_message(void *arg, enum fsck_kind kind, const char *text)
{
    struct front *f = arg;
    clear_progress(f);
    if (f->as_json) {
        g_autofree char *valid = g_utf8_make_valid(text, -1);
        json_t *o = json_object();
        json_object_set_new(o, "kind", json_string(fsck_kind_id(kind)));
        json_object_set_new(o, "text", json_string(valid));
        json_array_append_new(f->findings, o);
    } else {
        printf("%s: %s: %s\n", fsck_kind_is_leak(kind) ? "leak" : "error", fsck_kind_id(kind),
               text);
    }
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

static void on_signal(int number)
{
    static const char text[] = "\ncowfs fsck: cancelled\n";
    (void)number;
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
        _exit(FSCK_FAILED);
    _exit(FSCK_CANCELLED); /* a repair is one commit: it is done, or nothing is */
}

static void set(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, tool_json_u64(value));
}

static json_t *to_json(const struct fsck_report *r, const char *store, struct front *f)
{
    g_autofree char *valid = g_utf8_make_valid(store, -1);
    json_t *o = json_object(), *kinds = json_object();
    for (int kind = 0; kind < FSCK_KINDS; kind++)
        if (r->count[kind])
            set(kinds, fsck_kind_id(kind), r->count[kind]);
    json_object_set_new(o, "store", json_string(valid));
    json_object_set_new(o, "clean", json_boolean(r->errors == 0 && r->leaks == 0));
    set(o, "errors", r->errors);
    set(o, "leaks", r->leaks);
    json_object_set_new(o, "complete", json_boolean(r->complete));
    json_object_set_new(o, "leaks_unchecked", json_boolean(r->leaks_unchecked));
    json_object_set_new(o, "kinds", kinds);
    json_object_set(o, "findings", f->findings);
    set(o, "inodes", r->inodes);
    set(o, "files", r->files);
    set(o, "directories", r->directories);
    set(o, "names", r->names);
    set(o, "xattrs", r->xattrs);
    set(o, "orphans", r->orphans);
    set(o, "nodes", r->nodes);
    set(o, "segments", r->segments);
    set(o, "chunks", r->chunks);
    set(o, "stored_bytes", r->bytes);
    set(o, "sealed_chunks", r->sealed_chunks);
    set(o, "checked_bytes", r->checked_bytes);
    set(o, "damaged_chunks", r->damaged_chunks);
    return o;
}

static void print_words(const struct fsck_report *r, const char *store, const struct errmsg *err)
{
    for (int kind = 0; kind < FSCK_KINDS; kind++)
        if (r->count[kind])
            printf("%8" PRIu64 "  %-26s %s%s\n", r->count[kind], fsck_kind_id(kind),
                   fsck_kind_text(kind), fsck_kind_is_leak(kind) ? " (leak)" : "");
    printf("%s: %" PRIu64 " inodes, %" PRIu64 " names, %" PRIu64 " nodes, %" PRIu64
           " chunks (%s) in %" PRIu64 " segments",
           store, r->inodes, r->names, r->nodes, r->chunks, tool_size(r->bytes).s, r->segments);
    if (r->checked_bytes)
        printf(", %s read and hashed", tool_size(r->checked_bytes).s);
    printf("\n%s: ", store);
    if (r->errors == 0 && r->leaks == 0)
        printf("clean\n");
    else
        printf("%" PRIu64 " errors, %" PRIu64 " leaks\n", r->errors, r->leaks);
    if (r->damaged_chunks)
        printf("%s: %" PRIu64 " chunks are known to be damaged and cannot be read (cowfs scrub"
               " tells the files)\n",
               store, r->damaged_chunks);
    if (!r->complete)
        printf("%s: damage ended the check early (%s): there may be more\n", store,
               err->text[0] ? err->text : "no reason given");
    if (r->leaks_unchecked)
        printf("%s: leaks could not all be looked for\n", store);
}

static int check(const char *store, bool check_data, struct front *f)
{
    struct fsck_options options = {
        .check_data = check_data,
        .verbose = f->verbose,
        .message = on_message,
        .progress = on_progress,
        .arg = f,
    };
    struct fsck_report report = {0};
    struct errmsg err = {0};
    int error = fsck_run(store, &options, &report, &err);
    clear_progress(f);
    if (error) {
        tool_error("%s", err.text[0] ? err.text : g_strerror(-error));
        return FSCK_FAILED;
    }
    int printed = EXIT_DONE;
    if (f->as_json)
        printed = tool_print_json(to_json(&report, store, f));
    else
        print_words(&report, store, &err);
    if (printed != EXIT_DONE || tool_finish(EXIT_DONE) != EXIT_DONE)
        return FSCK_FAILED;
    return report.errors ? FSCK_ERRORS : FSCK_CLEAN;
}

int cmd_fsck(int argc, char **argv)
{
    static const struct option options[] = {
        {"check-data", no_argument, NULL, 'c'}, {"repair", no_argument, NULL, 'r'},
        {"dry-run", no_argument, NULL, 'n'},    {"log", required_argument, NULL, 'l'},
        {"verbose", no_argument, NULL, 'v'},    {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},       {0},
    };
    struct front f = {0};
    struct repair_front ask = {.as_json = false};
    bool check_data = false, repair = false;
    int option;

    while ((option = tool_getopt(argc, argv, "crnl:vjhafpy", options)) != -1) {
        switch (option) {
        case 'c':
            check_data = true;
            break;
        case 'r':
            repair = true;
            break;
        case 'n':
            ask.dry_run = true;
            break;
        case 'l':
            ask.log_path = optarg;
            break;
        case 'v':
            f.verbose = true;
            break;
        case 'j':
            f.as_json = true;
            break;
        case 'h':
            return tool_help(help);
        case 'a':
        case 'f':
        case 'p':
        case 'y':
            break;
        default:
            return FSCK_MISUSED;
        }
    }
    if (argc - optind != 1) {
        tool_misused("exactly one store is needed");
        return FSCK_MISUSED;
    }
    if (repair && check_data) {
        tool_misused("--check-data and --repair: one after the other");
        return FSCK_MISUSED;
    }
    f.progress = isatty(STDERR_FILENO) && (f.verbose || isatty(STDOUT_FILENO));
    f.findings = json_array();
    log_to_stderr(G_LOG_LEVEL_WARNING);
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    ask.as_json = f.as_json;
    int status = repair ? repair_store(argv[optind], &ask) : check(argv[optind], check_data, &f);
    json_decref(f.findings);
    return status;
}
