// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs_scrub.c - cowfs scrub: read all that is sealed, compare it with its
 * hashes, and name the files that have what is damaged.
 *
 * The daemon reads a step at a time; the pauses between, which make the rate,
 * are made here. Chunks have many owners and do not know them: only if there is
 * damage are the files of the mount asked, one by one, whether they have it.
 */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* As of fsck(8). */
enum {
    SCRUB_CLEAN = 0,
    SCRUB_ERRORS = 4,
    SCRUB_FAILED = 8,
    SCRUB_MISUSED = 16,
    SCRUB_CANCELLED = 32
};

#define STEP_BYTES (UINT64_C(4) << 20)
#define RATE_DEFAULT (UINT64_C(256) << 20)
enum { STEPS_PER_SECOND = 20 };

static const char help[] =
    "Usage: cowfs scrub [OPTION]... MOUNTPOINT\n"
    "Reads every sealed chunk of a mounted store from its disk and compares it with its hash.\n"
    "Damage is told by file and range, for all files that share it. Reading those ranges gives\n"
    "an error (EIO) from then on, after the next mount, too; everything else works. Writing over\n"
    "a damaged range, or a later scrub that finds it right, makes it good again.\n"
    "What was written of late is not sealed yet, has no hash and cannot be checked: 'cowfs seal'\n"
    "seals it now. What has been damaged since an earlier scrub is told again.\n"
    "\n"
    "  -r, --rate SIZE  read at most so much a second (default 256M; 0: no limit)\n"
    "  -q, --quiet      no progress, and no report if all is well\n"
    "  -j, --json       report as JSON\n"
    "  -h, --help       show this help\n"
    "\n"
    "Exit status: 0 no damage, 4 damage found, 8 failed, 16 misused, 32 cancelled.\n"
    "\n"
    "Example:\n"
    "  cowfs scrub --rate 50M /var/lib/vms\n";

struct scrub {
    const char *path; /* the mountpoint */
    int fd;
    uint64_t rate;
    bool progress, as_json;
    uint64_t checked, damaged, total;
    uint64_t unsealed; /* bytes that have no hash */
    json_t *chunks, *files;
    GHashTable *seen;    /* inodes with several names that were asked */
    uint64_t file_count; /* with damage */
    uint64_t damaged_bytes;
    gint64 started_us, shown_us;
};

static volatile sig_atomic_t cancelled;

static void on_signal(int number)
{
    (void)number;
    cancelled = 1;
}

static void clear_progress(const struct scrub *s)
{
    if (s->progress && s->shown_us)
        fputs("\r\033[K", stderr);
}

static void show_progress(struct scrub *s)
{
    gint64 now = g_get_monotonic_time();
    if (!s->progress || now - s->shown_us < 200000)
        return;
    s->shown_us = now;
    fprintf(stderr, "\r\033[K%3.0f %%  %s of %s read, %" PRIu64 " damaged chunks ",
            s->total ? 100.0 * (double)MIN(s->checked, s->total) / (double)s->total : 100.0,
            tool_size(s->checked).s, tool_size(s->total).s, s->damaged);
}

/* Sleeps until no more than the rate was read since the start. */
static void keep_rate(const struct scrub *s)
{
    if (!s->rate)
        return;
    double due_us = (double)s->checked / (double)s->rate * 1e6;
    while (!cancelled) {
        double left_us = due_us - (double)(g_get_monotonic_time() - s->started_us);
        if (left_us <= 0)
            return;
        g_usleep((gulong)MIN(left_us, 200000.0));
    }
}

static void note_chunks(struct scrub *s, const struct cowfs_ioc_scrub *io)
{
    for (uint32_t i = 0; i < MIN(io->count, COWFS_SCRUB_CHUNKS); i++) {
        uint64_t number = io->chunk[i].number;
        int error = io->chunk[i].error;
        g_autofree char *segment = g_strdup_printf("%08" PRIx64, number >> 32);
        uint32_t slot = (uint32_t)number;
        const char *why = error ? g_strerror(error) : "the bytes do not have the recorded hash";
        if (s->as_json) {
            json_t *o = json_object();
            json_object_set_new(o, "segment", json_string(segment));
            json_object_set_new(o, "slot", tool_json_u64(slot));
            json_object_set_new(o, "reason", json_string(why));
            json_array_append_new(s->chunks, o);
        } else {
            clear_progress(s);
            printf("damaged: segment %s, slot %" PRIu32 ": %s\n", segment, slot, why);
        }
    }
}

static int read_all(struct scrub *s)
{
    struct cowfs_ioc_scrub io = {.position = 0};
    uint64_t step = STEP_BYTES;
    if (s->rate && s->rate / STEPS_PER_SECOND < step)
        step = MAX(s->rate / STEPS_PER_SECOND, 65536);
    do {
        io.length = step;
        int error = tool_try_ioctl(s->fd, COWFS_IOC_SCRUB, &io);
        if (error) {
            clear_progress(s);
            tool_error("%s: %s", s->path, tool_ioctl_reason(error));
            return SCRUB_FAILED;
        }
        s->checked += io.checked;
        s->damaged = io.damaged;
        note_chunks(s, &io);
        io.position = io.next;
        show_progress(s);
        if (io.next)
            keep_rate(s);
    } while (io.next && !cancelled);
    return cancelled ? SCRUB_CANCELLED : SCRUB_CLEAN;
}

/* ---- which files ---- */

static void tell_range(struct scrub *s, json_t *ranges, const char *path, uint64_t offset,
                       uint64_t length)
{
    s->damaged_bytes += length;
    if (ranges) {
        json_t *o = json_object();
        json_object_set_new(o, "offset_bytes", tool_json_u64(offset));
        json_object_set_new(o, "length_bytes", tool_json_u64(length));
        json_array_append_new(ranges, o);
        return;
    }
    /* Names are what guests chose: not for a terminal as they are. */
    g_autofree char *quoted = g_strescape(path, NULL);
    printf("error: %s: %" PRIu64 " bytes from %" PRIu64 " on are damaged\n", quoted, length,
           offset);
}

static bool ask_file(struct scrub *s, int fd, const char *path)
{
    struct cowfs_ioc_damage io = {.offset = 0};
    json_t *ranges = s->as_json ? json_array() : NULL;
    uint64_t before = s->damaged_bytes;
    uint64_t offset = 0, length = 0; /* the range that may go on in the next call */
    bool ok;
    do {
        ok = tool_ioctl(fd, path, COWFS_IOC_DAMAGE, &io);
        for (uint32_t i = 0; ok && i < MIN(io.count, COWFS_DAMAGE_RANGES); i++) {
            if (length && io.range[i].offset == offset + length) {
                length += io.range[i].length;
                continue;
            }
            if (length)
                tell_range(s, ranges, path, offset, length);
            offset = io.range[i].offset;
            length = io.range[i].length;
        }
        io.offset = io.next;
    } while (ok && io.next);
    if (length)
        tell_range(s, ranges, path, offset, length);
    if (s->damaged_bytes > before) {
        s->file_count++;
        if (ranges) {
            g_autofree char *valid = g_utf8_make_valid(path, -1);
            json_t *o = json_object();
            json_object_set_new(o, "path", json_string(valid));
            json_object_set(o, "ranges", ranges);
            json_array_append_new(s->files, o);
        }
    }
    json_decref(ranges);
    return ok;
}

static bool visit(void *arg, int dir_fd, const char *name, const char *path, const struct stat *st)
{
    struct scrub *s = arg;
    guint64 ino = st->st_ino;
    if (!S_ISREG(st->st_mode) || cancelled)
        return !cancelled;
    if (st->st_nlink > 1 && !g_hash_table_add(s->seen, g_memdup2(&ino, sizeof(ino))))
        return true;
    int fd = tree_open_file(dir_fd, name, path);
    if (fd < 0)
        return true; /* deleted meanwhile, or said so already */
    bool ok = ask_file(s, fd, path);
    close(fd);
    return ok;
}

/* ---- report ---- */

static int report(const struct scrub *s, bool quiet)
{
    double took = (double)(g_get_monotonic_time() - s->started_us) / 1e6;
    if (s->as_json) {
        json_t *o = json_object();
        json_object_set_new(o, "clean", json_boolean(s->damaged == 0));
        json_object_set_new(o, "checked_bytes", tool_json_u64(s->checked));
        json_object_set_new(o, "unsealed_bytes", tool_json_u64(s->unsealed));
        json_object_set_new(o, "damaged_chunks", tool_json_u64(s->damaged));
        json_object_set(o, "chunks", s->chunks);
        json_object_set(o, "files", s->files);
        json_object_set_new(o, "seconds", json_real(took));
        return tool_print_json(o);
    }
    if (quiet && !s->damaged)
        return EXIT_DONE;
    printf("%s: %s read and compared in %.1f s; %s are not sealed and could not be checked\n",
           s->path, tool_size(s->checked).s, took, tool_size(s->unsealed).s);
    if (!s->damaged)
        printf("%s: no damage\n", s->path);
    else
        printf("%s: %" PRIu64 " damaged chunks; %s in %" PRIu64 " files cannot be read\n", s->path,
               s->damaged, tool_size(s->damaged_bytes).s, s->file_count);
    return tool_finish(EXIT_DONE);
}

static int run(struct scrub *s, bool quiet)
{
    struct cowfs_ioc_df df = {0};
    if (!tool_ioctl(s->fd, s->path, COWFS_IOC_DF, &df))
        return SCRUB_FAILED;
    s->total = df.sealed;
    int status = read_all(s);
    clear_progress(s);
    if (status)
        return status;
    s->unsealed = df.stored > s->checked ? df.stored - s->checked : 0;
    if (s->damaged && !tree_walk(s->fd, s->path, visit, s))
        status = cancelled ? SCRUB_CANCELLED : SCRUB_FAILED;
    if (report(s, quiet) != EXIT_DONE)
        status = SCRUB_FAILED;
    return status ? status : s->damaged ? SCRUB_ERRORS : SCRUB_CLEAN;
}

int cmd_scrub(int argc, char **argv)
{
    static const struct option options[] = {
        {"rate", required_argument, NULL, 'r'},
        {"quiet", no_argument, NULL, 'q'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct scrub s = {.rate = RATE_DEFAULT};
    bool quiet = false, is_directory = false;
    int option;

    while ((option = tool_getopt(argc, argv, "r:qjh", options)) != -1) {
        switch (option) {
        case 'r':
            if (!tool_parse_size(optarg, &s.rate)) {
                tool_misused("--rate %s: not a size, like 65536, 64K or 1.5G", optarg);
                return SCRUB_MISUSED;
            }
            break;
        case 'q':
            quiet = true;
            break;
        case 'j':
            s.as_json = true;
            break;
        case 'h':
            return tool_help(help);
        default:
            return SCRUB_MISUSED;
        }
    }
    if (argc - optind != 1) {
        tool_misused("exactly one mountpoint is needed");
        return SCRUB_MISUSED;
    }
    s.path = argv[optind];
    s.fd = tool_open(s.path, &is_directory);
    if (s.fd < 0)
        return SCRUB_FAILED;
    if (!is_directory) {
        tool_error("%s: not a directory", s.path);
        close(s.fd);
        return SCRUB_FAILED;
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    s.progress = !quiet && isatty(STDERR_FILENO);
    s.started_us = g_get_monotonic_time();
    s.chunks = json_array();
    s.files = json_array();
    s.seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    int status = run(&s, quiet);
    if (status == SCRUB_CANCELLED)
        tool_error("cancelled");
    g_hash_table_destroy(s.seen);
    json_decref(s.chunks);
    json_decref(s.files);
    close(s.fd);
    return status;
}
