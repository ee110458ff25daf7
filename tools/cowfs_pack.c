// SPDX-License-Identifier: Apache-2.0
/* cowfs_pack.c - cowfs pack: lay files out flat. */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes a request looks at: see cowfs_seal.c. */
#define STEP_BYTES (UINT64_C(32) << 20)
/* A file that is cloned or cut while it is packed is begun anew, so often. */
enum { ATTEMPTS = 5 };

static const char help[] =
    "Usage: cowfs pack [OPTION]... PATH...\n"
    "Lays out files, and all files in directories, flat: each as one segment of the store, byte "
    "for\n"
    "byte. A mount with passthrough, or a view, then serves them past the daemon when they are\n"
    "opened read-only, and all clones made from now on that have not been written share one copy\n"
    "in memory, however often they are mapped. Files are read and written as ever meanwhile; what\n"
    "is flat already is not moved. Writing to a packed file takes it apart again; a clone that is\n"
    "written leaves the others flat. Small files (up to 512 chunks) stay as they are.\n"
    "\n"
    "  -q, --quiet  no progress and no report\n"
    "  -j, --json   report as JSON\n"
    "  -h, --help   show this help\n"
    "\n"
    "'cowfs stat FILE' tells whether a file is served so, and why not. Needs the right to write.\n"
    "\n"
    "Example:\n"
    "  cowfs pack /var/lib/vms/golden/memory.snap\n";

struct packing {
    bool progress, failed;
    uint64_t files, flat_files;       /* looked at; of these, nothing was to be moved */
    uint64_t moved;                   /* bytes */
    uint64_t done_bytes, total_bytes; /* of file sizes, for the progress */
    gint64 shown_us;
};

static void show_progress(struct packing *p, uint64_t in_file)
{
    gint64 now = g_get_monotonic_time();
    if (!p->progress || now - p->shown_us < 200000)
        return;
    p->shown_us = now;
    uint64_t done = p->done_bytes + in_file;
    fprintf(stderr, "\r%3.0f %%  %s of %s looked at, %s moved ",
            p->total_bytes ? 100.0 * (double)MIN(done, p->total_bytes) / (double)p->total_bytes : 0,
            tool_size(done).s, tool_size(p->total_bytes).s, tool_size(p->moved).s);
}

static void end_progress(struct packing *p)
{
    if (p->progress && p->shown_us)
        fputs("\r\033[K", stderr);
    p->shown_us = 0;
}

static void fail(struct packing *p, const char *path, const char *reason)
{
    end_progress(p);
    tool_error("%s: %s", path, reason);
    p->failed = true;
}

static const char *reason_of(int error)
{
    if (error == -EAGAIN)
        return "is being cloned or cut all the time";
    return tool_ioctl_reason(error);
}

static int pack_once(struct packing *p, int fd)
{
    uint64_t offset = 0;
    int error;
    do {
        struct cowfs_ioc_pack io = {.offset = offset, .length = STEP_BYTES};
        error = tool_try_ioctl(fd, COWFS_IOC_PACK, &io);
        if (error == 0) {
            p->moved += io.moved;
            offset = io.next;
            show_progress(p, offset);
        }
    } while (error == 0 && offset);
    return error;
}

static void pack_file(struct packing *p, int fd, const char *path)
{
    struct stat st;
    uint64_t moved_before = p->moved;
    int error = -EAGAIN;
    if (!tool_flush(fd, path) || fstat(fd, &st) != 0) {
        p->failed = true;
        return;
    }
    for (unsigned i = 0; i < ATTEMPTS && error == -EAGAIN; i++)
        error = pack_once(p, fd);
    if (error) {
        fail(p, path, reason_of(error));
        return;
    }
    p->files++;
    p->flat_files += p->moved == moved_before;
    p->done_bytes += (uint64_t)st.st_size;
}

/* Links are followed that somebody named, not those that a walk comes across. */
static int open_flags(int dir_fd)
{
    return O_NONBLOCK | O_CLOEXEC | O_NOCTTY | (dir_fd == AT_FDCWD ? 0 : O_NOFOLLOW);
}

/* Whoever reads a file past the daemon keeps others from writing it; but then it is flat,
 * and nothing is to be done. */
static bool is_flat(int dir_fd, const char *name)
{
    struct cowfs_ioc_stat io = {0};
    int fd = openat(dir_fd, name, O_RDONLY | open_flags(dir_fd));
    bool flat = fd >= 0 && tool_try_ioctl(fd, COWFS_IOC_STAT, &io) == 0 && io.flat;
    if (fd >= 0)
        close(fd);
    return flat;
}

static void pack_named(struct packing *p, int dir_fd, const char *name, const char *path)
{
    int fd = openat(dir_fd, name, O_RDWR | open_flags(dir_fd));
    if (fd >= 0) {
        pack_file(p, fd, path);
        close(fd);
    } else if (errno == ETXTBSY && is_flat(dir_fd, name)) {
        p->files++;
        p->flat_files++;
    } else if (errno != ENOENT || dir_fd == AT_FDCWD) {
        fail(p, path, g_strerror(errno));
    }
}

/* One file that cannot be packed is no reason to leave out the others. */
static bool pack_entry(void *arg, int dir_fd, const char *name, const char *path,
                       const struct stat *st)
{
    if (S_ISREG(st->st_mode))
        pack_named(arg, dir_fd, name, path);
    return true;
}

static void pack_path(struct packing *p, const char *path, bool count_only)
{
    struct stat st;
    if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
        if (count_only)
            tree_add_size(&p->total_bytes, -1, NULL, path, &st);
        else
            pack_named(p, AT_FDCWD, path, path);
        return;
    }
    int fd = tool_open(path, NULL);
    bool ok = fd >= 0 && (count_only ? tree_walk(fd, path, tree_add_size, &p->total_bytes)
                                     : tree_walk(fd, path, pack_entry, p));
    if (!ok)
        p->failed = true;
    if (fd >= 0)
        close(fd);
}

static int report(const struct packing *p, bool as_json)
{
    if (as_json) {
        json_t *o = json_object();
        json_object_set_new(o, "files", tool_json_u64(p->files));
        json_object_set_new(o, "already_flat_files", tool_json_u64(p->flat_files));
        json_object_set_new(o, "size_bytes", tool_json_u64(p->done_bytes));
        json_object_set_new(o, "moved_bytes", tool_json_u64(p->moved));
        return tool_print_json(o);
    }
    printf("%" PRIu64 " files, %s: moved %s; %" PRIu64 " were flat already, or small\n", p->files,
           tool_size(p->done_bytes).s, tool_size(p->moved).s, p->flat_files);
    return tool_finish(EXIT_DONE);
}

int cmd_pack(int argc, char **argv)
{
    static const struct option options[] = {
        {"quiet", no_argument, NULL, 'q'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct packing p = {0};
    bool as_json = false, quiet = false;
    int option;

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
    p.progress = !quiet && isatty(STDERR_FILENO);
    for (int i = optind; p.progress && i < argc; i++) {
        pack_path(&p, argv[i], true);
        if (p.failed)
            return EXIT_FAILED;
    }
    for (int i = optind; i < argc; i++)
        pack_path(&p, argv[i], false);
    end_progress(&p);
    int printed = quiet ? EXIT_DONE : report(&p, as_json);
    return p.failed ? EXIT_FAILED : printed;
}
