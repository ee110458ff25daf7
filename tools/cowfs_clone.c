// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs_clone.c - cowfs clone.
 *
 * The daemon makes the clone in one step, but it sees only what the kernel has
 * handed over: so first all dirty pages of the source are flushed. What is
 * dirtied after that, while the command runs, may or may not be part of it.
 */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static const char help[] =
    "Usage: cowfs clone [OPTION]... SRC DST\n"
    "Makes DST a clone of the file or directory SRC, in the same cowfs mount. A directory is\n"
    "cloned with all in it as one atomic step: all its files are of one point in time, even\n"
    "while they are written. Pages that a program has changed through a mapping are part of it.\n"
    "Time and space do not depend on how large the files are.\n"
    "\n"
    "  -r, --replace  if DST exists, swap it for the clone in one atomic step and delete what\n"
    "                 it was (reset a virtual machine to its golden state)\n"
    "  -c, --count N  make N clones, DST-1 ... DST-N, all of one moment: the further ones are\n"
    "                 clones of the first\n"
    "  -v, --verbose  say what was cloned\n"
    "  -j, --json     the same as JSON\n"
    "  -h, --help     show this help\n"
    "\n"
    "DST must not exist without --replace, and is never taken as a directory to put the clone\n"
    "into. Sockets, fifos and devices belong to a running process or to the machine; they are\n"
    "left out, which is said on the standard error. Owners, modes, times and extended\n"
    "attributes are cloned; hard links within SRC stay hard links.\n"
    "\n"
    "Examples:\n"
    "  cowfs clone /var/lib/vms/golden /var/lib/vms/vm17\n"
    "  cowfs clone --replace /var/lib/vms/golden /var/lib/vms/vm17\n"
    "  cowfs clone --count 100 /var/lib/vms/golden /var/lib/vms/vm\n"
    "  cowfs clone /var/lib/vms/vm17/disk /var/lib/vms/vm17/disk.before-upgrade\n";

enum { COUNT_MAX = 1000000 };

struct clone {
    const char *source_path;
    const char *target_path;
    int source_fd;
    bool source_is_directory;
    int parent_fd; /* of the target */
    char *name;    /* in it */
    bool replace;
    bool replaced;  /* something was there */
    uint64_t count; /* 0: DST itself */
    GPtrArray *left_out;
    struct cowfs_ioc_clone io;
};

/* ---- flushing the source ---- */

static bool flush_entry(void *arg, int dir_fd, const char *name, const char *path,
                        const struct stat *st)
{
    struct clone *c = arg;
    if (S_ISDIR(st->st_mode) || S_ISLNK(st->st_mode))
        return true;
    if (!S_ISREG(st->st_mode)) {
        g_ptr_array_add(c->left_out, g_strdup(path));
        return true;
    }
    int fd = tree_open_file(dir_fd, name, path);
    if (fd < 0)
        return false;
    bool ok = tool_flush(fd, path);
    close(fd);
    return ok;
}

static bool flush_source(struct clone *c)
{
    if (!c->source_is_directory)
        return tool_flush(c->source_fd, c->source_path);
    return tree_walk(c->source_fd, c->source_path, flush_entry, c);
}

/* ---- the clone itself ---- */

static const char *clone_reason(const struct clone *c, int error)
{
    switch (-error) {
    case EEXIST:
        return "exists already (--replace would swap it)";
    case EINVAL:
        return c->source_is_directory ? "lies inside the source" : g_strerror(-error);
    case ENOENT:
        return "its directory, or the source, was removed meanwhile";
    case EACCES:
        return "no permission to write this directory, or to read all of the source";
    default:
        return tool_ioctl_reason(error);
    }
}

/* Under that name in the target's directory. */
static bool clone_as(struct clone *c, const char *name)
{
    int error = tool_clone(c->source_fd, c->parent_fd, name, &c->io);
    if (error)
        tool_error("%s: %s", c->target_path, clone_reason(c, error));
    return error == 0;
}

/* ---- many ---- */

/* As many pairs as there is room for, from number *next on: the empty name, and that of the
 * clone. */
static void fill_pairs(const struct clone *c, uint64_t next, struct cowfs_ioc_clone_many *io)
{
    char *at = io->names, *end = io->names + sizeof(io->names);
    for (; next <= c->count; next++) {
        g_autofree char *name = g_strdup_printf("%s-%" PRIu64, c->name, next);
        size_t bytes = strlen(name) + 1;
        if ((size_t)(end - at) < 1 + bytes)
            return;
        *at++ = '\0';
        memcpy(at, name, bytes);
        at += bytes;
        io->count++;
    }
}

static bool clone_further(struct clone *c, int first_fd, const char *first_name)
{
    for (uint64_t next = 2; next <= c->count;) {
        struct cowfs_ioc_token token = {0};
        struct cowfs_ioc_clone_many io = {0};
        if (!tool_ioctl(first_fd, first_name, COWFS_IOC_TOKEN, &token))
            return false;
        memcpy(io.token, token.token, sizeof(io.token));
        fill_pairs(c, next, &io);
        int error = tool_try_directory_ioctl(c->parent_fd, COWFS_IOC_CLONE_MANY, &io);
        if (error == -ESTALE)
            continue;
        next += io.done;
        c->io.files += io.files;
        c->io.directories += io.directories;
        c->io.symlinks += io.symlinks;
        if (!error)
            error = -io.error;
        if (error) {
            tool_error("%s-%" PRIu64 ": %s", c->target_path, next, clone_reason(c, error));
            return false;
        }
    }
    return true;
}

static bool clone_many(struct clone *c)
{
    g_autofree char *first = g_strdup_printf("%s-1", c->name);
    if (strlen(c->name) + 21 >= sizeof(c->io.name)) {
        tool_error("%s-%" PRIu64 ": %s", c->target_path, c->count, g_strerror(ENAMETOOLONG));
        return false;
    }
    if (!clone_as(c, first))
        return false;
    int fd = tree_open_file(c->parent_fd, first, first);
    bool ok = fd >= 0 && clone_further(c, fd, first);
    if (fd >= 0)
        close(fd);
    return ok;
}

/* ---- instead of what is there ---- */

/* Ctrl-C between two steps would leave the hidden clone behind. */
static void block_signals(sigset_t *old)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, old);
}

static void remove_hidden(struct clone *c, const char *name)
{
    int error = tree_remove(c->parent_fd, name);
    g_autofree char *directory = g_path_get_dirname(c->target_path);
    if (error)
        tool_error("%s/%s: cannot be removed: %s", directory, name, g_strerror(-error));
}

/* A clone under a hidden name beside the target, then an exchange of the two
 * names: there is no moment without a target. */
static bool clone_and_swap(struct clone *c)
{
    uint64_t random;
    char hidden[64];
    sigset_t signals;

    if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
        tool_error("no random numbers: %s", g_strerror(errno));
        return false;
    }
    snprintf(hidden, sizeof(hidden), ".cowfs-clone.%016" PRIx64, random);
    block_signals(&signals);
    bool ok = clone_as(c, hidden);
    if (ok) {
        c->replaced = renameat2(c->parent_fd, hidden, c->parent_fd, c->name, RENAME_EXCHANGE) == 0;
        ok = c->replaced || (errno == ENOENT && renameat2(c->parent_fd, hidden, c->parent_fd,
                                                          c->name, RENAME_NOREPLACE) == 0);
        if (!ok)
            tool_error("%s: cannot be replaced: %s", c->target_path, g_strerror(errno));
        /* What the hidden name stands for now: the old target, or the clone
         * that nobody wants. */
        if (c->replaced || !ok)
            remove_hidden(c, hidden);
    }
    sigprocmask(SIG_SETMASK, &signals, NULL);
    return ok;
}

/* ---- the target ---- */

static bool open_target(struct clone *c)
{
    struct stat source, parent, target;
    size_t length = strlen(c->target_path);
    bool slash = length > 1 && c->target_path[length - 1] == '/';
    while (length > 1 && c->target_path[length - 1] == '/')
        length--;
    g_autofree char *path = g_strndup(c->target_path, length);
    g_autofree char *directory = g_path_get_dirname(path);
    c->name = g_path_get_basename(path);

    if (length == 0) {
        tool_error("the destination is an empty path");
        return false;
    }
    if (slash && !c->source_is_directory) {
        tool_error("%s: is not a directory, as %s is none", c->target_path, c->source_path);
        return false;
    }
    if (strcmp(c->name, ".") == 0 || strcmp(c->name, "..") == 0 || strcmp(c->name, "/") == 0) {
        tool_error("%s: is no name for something new", c->target_path);
        return false;
    }
    if (strlen(c->name) >= sizeof(c->io.name)) {
        tool_error("%s: %s", c->target_path, g_strerror(ENAMETOOLONG));
        return false;
    }
    c->parent_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (c->parent_fd < 0 || fstat(c->parent_fd, &parent) != 0 ||
        fstat(c->source_fd, &source) != 0) {
        tool_error("%s: %s", directory, g_strerror(errno));
        return false;
    }
    if (source.st_dev != parent.st_dev) {
        tool_error("%s: is not in the same mount as %s", c->target_path, c->source_path);
        return false;
    }
    if (!c->count && fstatat(c->parent_fd, c->name, &target, AT_SYMLINK_NOFOLLOW) == 0) {
        if (!c->replace) {
            tool_error("%s: %s", c->target_path, clone_reason(c, -EEXIST));
            return false;
        }
        if (target.st_dev == source.st_dev && target.st_ino == source.st_ino) {
            tool_error("%s: is %s itself", c->target_path, c->source_path);
            return false;
        }
    }
    return true;
}

/* ---- reports ---- */

static void report_left_out(const struct clone *c)
{
    enum { SHOWN = 8 };
    guint shown = MIN(c->left_out->len, SHOWN);
    for (guint i = 0; i < shown; i++)
        tool_error("%s: left out: a socket, fifo or device", (char *)c->left_out->pdata[i]);
    if (c->io.left_out > shown)
        tool_error("%s: %" PRIu64 " %ssockets, fifos or devices were left out", c->source_path,
                   c->io.left_out - shown, shown ? "more " : "");
}

static int report_json(const struct clone *c)
{
    g_autofree char *source = g_utf8_make_valid(c->source_path, -1);
    g_autofree char *target = g_utf8_make_valid(c->target_path, -1);
    json_t *o = json_object();
    json_object_set_new(o, "source", json_string(source));
    json_object_set_new(o, "destination", json_string(target));
    json_object_set_new(o, "files", tool_json_u64(c->io.files));
    json_object_set_new(o, "directories", tool_json_u64(c->io.directories));
    json_object_set_new(o, "symlinks", tool_json_u64(c->io.symlinks));
    json_object_set_new(o, "left_out", tool_json_u64(c->io.left_out));
    json_object_set_new(o, "replaced", json_boolean(c->replaced));
    return tool_print_json(o);
}

static void report_words(const struct clone *c)
{
    printf("%s: cloned from %s: %" PRIu64 " files, %" PRIu64 " directories, %" PRIu64
           " symbolic links%s\n",
           c->target_path, c->source_path, c->io.files, c->io.directories, c->io.symlinks,
           c->replaced ? "; what was there has been deleted" : "");
}

static bool clone_once(struct clone *c)
{
    c->source_fd = tool_open(c->source_path, &c->source_is_directory);
    if (c->source_fd < 0 || !open_target(c) || !flush_source(c))
        return false;
    if (c->count)
        return clone_many(c);
    return c->replace ? clone_and_swap(c) : clone_as(c, c->name);
}

int cmd_clone(int argc, char **argv)
{
    static const struct option options[] = {
        {"replace", no_argument, NULL, 'r'}, {"count", required_argument, NULL, 'c'},
        {"verbose", no_argument, NULL, 'v'}, {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},    {0},
    };
    struct clone c = {.source_fd = -1, .parent_fd = -1};
    bool as_json = false, verbose = false;
    int option;

    while ((option = tool_getopt(argc, argv, "rc:vjh", options)) != -1) {
        switch (option) {
        case 'r':
            c.replace = true;
            break;
        case 'c':
            if (!g_ascii_string_to_unsigned(optarg, 10, 1, COUNT_MAX, &c.count, NULL))
                return tool_misused("--count: '%s' is no number from 1 to %d", optarg, COUNT_MAX);
            break;
        case 'v':
            verbose = true;
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
    if (c.count && c.replace)
        return tool_misused("--count and --replace exclude each other");
    if (argc - optind != 2)
        return tool_misused("exactly a source and a destination are needed");
    c.source_path = argv[optind];
    c.target_path = argv[optind + 1];
    c.left_out = g_ptr_array_new_with_free_func(g_free);

    int status = clone_once(&c) ? EXIT_DONE : EXIT_FAILED;
    if (status == EXIT_DONE) {
        report_left_out(&c);
        if (as_json)
            status = report_json(&c);
        else if (verbose)
            report_words(&c);
    }
    g_ptr_array_free(c.left_out, TRUE);
    g_free(c.name);
    if (c.source_fd >= 0)
        close(c.source_fd);
    if (c.parent_fd >= 0)
        close(c.parent_fd);
    return tool_finish(status);
}
