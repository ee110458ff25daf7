// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs_rm.c - cowfs rm.
 *
 * The daemon deletes a tree in one step, without telling the kernel name by name. What the kernel
 * would have refused of itself, because something is mounted below, is looked for here.
 */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "Usage: cowfs rm [OPTION]... PATH...\n"
    "Deletes files and directories, these with all in them: each PATH as one atomic step, with "
    "the\n"
    "rights that rm -r needs. What is open lives on without a name until it is closed. The space\n"
    "comes back a moment later, as with rm.\n"
    "\n"
    "  -f, --force    a PATH that does not exist is no error\n"
    "  -v, --verbose  say how much was deleted\n"
    "  -j, --json     the same as JSON\n"
    "  -h, --help     show this help\n"
    "\n"
    "Symbolic links are deleted, not followed. If one PATH cannot be deleted, it stays whole, and\n"
    "the others are deleted all the same. A tree of more than 65,536 names goes name by name.\n"
    "\n"
    "Examples:\n"
    "  cowfs rm /var/lib/vms/vm17\n"
    "  cowfs rm /var/lib/vms/vm-*\n";

struct removal {
    bool force;
    bool failed;
    uint64_t files, directories;
    GPtrArray *mounts; /* where something is mounted */
    /* Names in one directory, for the next request. */
    char *directory;
    int directory_fd;
    GPtrArray *names;
    gsize bytes;
};

static void add_mountpoints(GPtrArray *mounts)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
        return;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        g_auto(GStrv) fields = g_strsplit(*line, " ", 6);
        if (g_strv_length(fields) >= 5)
            g_ptr_array_add(mounts, g_strcompress(fields[4]));
    }
}

static bool is_mounted_below(const struct removal *r, const char *name)
{
    g_autofree char *directory = realpath(r->directory, NULL);
    if (!directory)
        return false;
    g_autofree char *path = g_build_filename(directory, name, NULL);
    gsize length = strlen(path);
    for (guint i = 0; i < r->mounts->len; i++) {
        const char *mount = r->mounts->pdata[i];
        if (strncmp(mount, path, length) == 0 && (mount[length] == '/' || !mount[length]))
            return true;
    }
    return false;
}

static void refuse(struct removal *r, const char *name, const char *reason)
{
    tool_error("%s%s%s: %s", r->directory, g_str_has_suffix(r->directory, "/") ? "" : "/", name,
               reason);
    r->failed = true;
}

/* The next name could not be deleted. */
static void settle_failure(struct removal *r, const char *name, int error)
{
    if (error == ENOENT && r->force)
        return;
    if (error == E2BIG)
        error = -tree_remove(r->directory_fd, name);
    if (error)
        refuse(r, name,
               error == EACCES || error == EPERM ? "no permission to delete all of it"
                                                 : g_strerror(error));
}

/* Deletes the names gathered so far. */
static void delete_gathered(struct removal *r)
{
    guint at = 0;
    while (at < r->names->len) {
        struct cowfs_ioc_delete io = {0};
        char *end = io.names;
        for (guint i = at; i < r->names->len; i++, io.count++)
            end = g_stpcpy(end, r->names->pdata[i]) + 1;
        int error = tool_try_directory_ioctl(r->directory_fd, COWFS_IOC_DELETE, &io);
        if (error) {
            refuse(r, r->names->pdata[at], tool_ioctl_reason(error));
            break;
        }
        at += io.done;
        r->files += io.files;
        r->directories += io.directories;
        if (io.error)
            settle_failure(r, r->names->pdata[at++], io.error);
    }
    g_ptr_array_set_size(r->names, 0);
    r->bytes = 0;
}

static void leave_directory(struct removal *r)
{
    delete_gathered(r);
    if (r->directory_fd >= 0)
        close(r->directory_fd);
    r->directory_fd = -1;
    g_clear_pointer(&r->directory, g_free);
}

static bool enter_directory(struct removal *r, const char *directory)
{
    bool is_directory;
    if (r->directory && strcmp(r->directory, directory) == 0)
        return true;
    leave_directory(r);
    r->directory_fd = tool_open(directory, &is_directory);
    if (r->directory_fd < 0)
        return false;
    r->directory = g_strdup(directory);
    return true;
}

static void remove_path(struct removal *r, const char *given)
{
    size_t length = strlen(given);
    while (length > 1 && given[length - 1] == '/')
        length--;
    g_autofree char *path = g_strndup(given, length);
    g_autofree char *directory = g_path_get_dirname(path);
    g_autofree char *name = g_path_get_basename(path);
    size_t room = strlen(name) + 1;

    if (length == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ||
        strcmp(name, "/") == 0) {
        tool_error("%s: is no name in a directory", given);
        r->failed = true;
        return;
    }
    if (!enter_directory(r, directory)) {
        r->failed = true;
        return;
    }
    if (is_mounted_below(r, name)) {
        refuse(r, name, "something is mounted there, or below");
        return;
    }
    if (r->bytes + room > COWFS_NAMES_BYTES)
        delete_gathered(r);
    if (room > COWFS_NAMES_BYTES) {
        refuse(r, name, g_strerror(ENAMETOOLONG));
        return;
    }
    r->bytes += room;
    g_ptr_array_add(r->names, g_steal_pointer(&name));
}

static int report_json(const struct removal *r)
{
    json_t *o = json_object();
    json_object_set_new(o, "files", tool_json_u64(r->files));
    json_object_set_new(o, "directories", tool_json_u64(r->directories));
    return tool_print_json(o);
}

int cmd_rm(int argc, char **argv)
{
    static const struct option options[] = {
        {"force", no_argument, NULL, 'f'},
        {"verbose", no_argument, NULL, 'v'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct removal r = {.directory_fd = -1};
    bool as_json = false, verbose = false;
    int option;

    while ((option = tool_getopt(argc, argv, "fvjh", options)) != -1) {
        switch (option) {
        case 'f':
            r.force = true;
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
    if (optind == argc && !r.force)
        return tool_misused("what is to be deleted?");
    r.mounts = g_ptr_array_new_with_free_func(g_free);
    r.names = g_ptr_array_new_with_free_func(g_free);
    add_mountpoints(r.mounts);
    for (int i = optind; i < argc; i++)
        remove_path(&r, argv[i]);
    leave_directory(&r);

    int status = r.failed ? EXIT_FAILED : EXIT_DONE;
    if (as_json && report_json(&r) != EXIT_DONE)
        status = EXIT_FAILED;
    else if (verbose && !as_json)
        printf("deleted: %" PRIu64 " files, %" PRIu64 " directories\n", r.files, r.directories);
    g_ptr_array_free(r.mounts, TRUE);
    g_ptr_array_free(r.names, TRUE);
    return tool_finish(status);
}
