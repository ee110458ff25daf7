// SPDX-License-Identifier: Apache-2.0
/* cowfs_seal.c - cowfs seal: hash and deduplicate now. */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes a request looks at: long enough to be efficient, short enough for the
 * progress to move and for Ctrl-C. */
#define STEP_BYTES (UINT64_C(32) << 20)

static const char help[] =
    "Usage: cowfs seal [OPTION]... PATH...\n"
    "Hashes the chunks of files, and of all files in directories, and has those that exist\n"
    "elsewhere in the store share their space. Equal hashes are only a hint: bytes are compared\n"
    "before anything is shared. The daemon does this by itself for files that came to rest\n"
    "(mount option seal); this command does it now, as after the import of images.\n"
    "\n"
    "  -q, --quiet  no progress and no report\n"
    "  -j, --json   report as JSON\n"
    "  -h, --help   show this help\n"
    "\n"
    "Example:\n"
    "  cowfs seal /var/lib/vms/images\n";

struct sealing {
    bool progress;
    uint64_t files, hashed, saved;
    uint64_t done_bytes, total_bytes; /* of file sizes, for the progress */
    gint64 started_us, shown_us;
};

static double seconds(const struct sealing *s)
{
    return (double)(g_get_monotonic_time() - s->started_us) / 1e6;
}

static void show_progress(struct sealing *s, uint64_t in_file)
{
    gint64 now = g_get_monotonic_time();
    if (!s->progress || now - s->shown_us < 200000)
        return;
    s->shown_us = now;
    uint64_t done = s->done_bytes + in_file;
    fprintf(stderr, "\r%3.0f %%  %s of %s looked at, %s hashed, %s saved ",
            s->total_bytes ? 100.0 * (double)MIN(done, s->total_bytes) / (double)s->total_bytes : 0,
            tool_size(done).s, tool_size(s->total_bytes).s, tool_size(s->hashed).s,
            tool_size(s->saved).s);
}

static void end_progress(const struct sealing *s)
{
    if (s->progress && s->shown_us)
        fputs("\r\033[K", stderr);
}

static bool seal_file(void *arg, int fd, const char *path)
{
    struct sealing *s = arg;
    struct stat st;
    uint64_t offset = 0;

    if (!tool_flush(fd, path) || fstat(fd, &st) != 0)
        return false;
    do {
        struct cowfs_ioc_seal io = {.offset = offset, .length = STEP_BYTES};
        int error = tool_try_ioctl(fd, COWFS_IOC_SEAL, &io);
        if (error) {
            end_progress(s);
            tool_error("%s: %s", path, tool_ioctl_reason(error));
            return false;
        }
        s->hashed += io.hashed;
        s->saved += io.deduplicated;
        offset = io.next;
        show_progress(s, offset);
    } while (offset);
    s->files++;
    s->done_bytes += (uint64_t)st.st_size;
    return true;
}

static bool seal_path(struct sealing *s, const char *path, bool count_only)
{
    bool is_directory = false;
    struct stat st;
    int fd = tool_open(path, &is_directory);
    if (fd < 0)
        return false;
    bool ok;
    if (count_only && is_directory)
        ok = tree_walk(fd, path, tree_add_size, &s->total_bytes);
    else if (count_only)
        ok = fstat(fd, &st) == 0 && tree_add_size(&s->total_bytes, -1, NULL, path, &st);
    else if (is_directory)
        ok = tree_walk_files(fd, path, seal_file, s);
    else
        ok = seal_file(s, fd, path);
    close(fd);
    return ok;
}

static int report(const struct sealing *s, bool as_json)
{
    double took = seconds(s);
    double rate = took > 0 ? (double)s->hashed / took : 0;
    if (as_json) {
        json_t *o = json_object();
        json_object_set_new(o, "files", tool_json_u64(s->files));
        json_object_set_new(o, "size_bytes", tool_json_u64(s->done_bytes));
        json_object_set_new(o, "hashed_bytes", tool_json_u64(s->hashed));
        json_object_set_new(o, "saved_bytes", tool_json_u64(s->saved));
        json_object_set_new(o, "seconds", json_real(took));
        json_object_set_new(o, "bytes_per_second", json_real(rate));
        return tool_print_json(o);
    }
    printf("%" PRIu64 " files, %s: hashed %s in %.1f s (%.2f GB/s), saved %s\n", s->files,
           tool_size(s->done_bytes).s, tool_size(s->hashed).s, took, rate / 1e9,
           tool_size(s->saved).s);
    return tool_finish(EXIT_DONE);
}

int cmd_seal(int argc, char **argv)
{
    static const struct option options[] = {
        {"quiet", no_argument, NULL, 'q'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct sealing s = {.started_us = g_get_monotonic_time()};
    bool as_json = false, quiet = false;
    int option, status = EXIT_DONE;

    while ((option = tool_getopt(argc, argv, "qjh", options)) != -1) {
        switch (option) {
        case 'q':
            quiet = true;
            break;
        case 'j':
            as_json = true;
            break;
        case 'h':
            return tool_help(help);
        default:
            return EXIT_MISUSED;
        }
    }
    if (optind == argc)
        return tool_misused("no file or directory given");
    s.progress = !quiet && isatty(STDERR_FILENO);
    for (int i = optind; s.progress && i < argc; i++)
        if (!seal_path(&s, argv[i], true))
            return EXIT_FAILED;
    for (int i = optind; i < argc; i++)
        if (!seal_path(&s, argv[i], false))
            status = EXIT_FAILED;
    end_progress(&s);
    if (quiet)
        return status;
    int printed = report(&s, as_json);
    return status ? status : printed;
}
