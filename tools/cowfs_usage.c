// SPDX-License-Identifier: Apache-2.0
/* cowfs_usage.c - cowfs stat, du and df. */
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char stat_help[] =
    "Usage: cowfs stat [--json] FILE\n"
    "Shows what a file in a cowfs mount consists of: holes, chunks of its own, chunks that it\n"
    "shares with clones or with equal content elsewhere, chunks that are sealed (their content\n"
    "hash is known, so that equal content finds them); and whether this mount reads it past the\n"
    "daemon (mount options passthrough, view), or why not. Equal content finds each other among\n"
    "the files of one owner, the domain, and what is public ('cowfs public').\n"
    "\n"
    "  -j, --json  exact figures in bytes\n"
    "  -h, --help  show this help\n"
    "\n"
    "stat(1) reports st_blocks as if a file were dense, since cp would not clone it otherwise.\n"
    "\n"
    "Example:\n"
    "  cowfs stat /var/lib/vms/vm17/disk\n";

static const char du_help[] =
    "Usage: cowfs du [--json] PATH...\n"
    "Shows for each file or directory tree the bytes that it alone holds, which is what its\n"
    "deletion gives back, and the bytes that it shares with files outside the tree.\n"
    "\n"
    "  -j, --json  exact figures in bytes\n"
    "  -h, --help  show this help\n"
    "\n"
    "  EXCLUSIVE  stored bytes that only this tree holds\n"
    "  SHARED     stored bytes that others hold as well\n"
    "  MAPPED     what its files map, holes left out (counted again for each file)\n"
    "  APPARENT   sum of the file sizes\n"
    "\n"
    "Example:\n"
    "  cowfs du /var/lib/vms/*\n";

static const char df_help[] =
    "Usage: cowfs df [--json] MOUNTPOINT\n"
    "Shows the store as a whole: how much the files are, and what they take.\n"
    "\n"
    "  -j, --json  exact figures in bytes\n"
    "  -h, --help  show this help\n"
    "\n"
    "  logical             sum of the sizes of all files\n"
    "  holes               of that, never written or zeros\n"
    "  mapped              what files map, in whole chunks, counted again for each file\n"
    "  - saved by cloning  of that, shared because it was cloned\n"
    "  - saved by dedup    shared because equal content was found\n"
    "  = stored            what is left, in the segments\n"
    "\n"
    "Example:\n"
    "  cowfs df /var/lib/vms\n";

/* Shared by the three: options, then arguments, each giving one object. As JSON
 * a command for one argument gives that object, one for many an array. */
struct report {
    const char *help;
    const char *argument;
    bool many;
    json_t *(*get)(const char *path);
    void (*header)(void);
    void (*print)(json_t *object);
};

static int run(int argc, char **argv, const struct report *report)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    bool as_json = false;
    int option;

    while ((option = tool_getopt(argc, argv, "jh", options)) != -1) {
        switch (option) {
        case 'j':
            as_json = true;
            break;
        case 'h':
            return tool_help(report->help);
        default:
            return EXIT_MISUSED;
        }
    }
    if (optind == argc)
        return tool_misused("no %s given", report->argument);
    if (!report->many && argc - optind > 1)
        return tool_misused("more than one %s given", report->argument);

    int status = EXIT_DONE;
    json_t *all = json_array();
    for (int i = optind; i < argc; i++) {
        json_t *object = report->get(argv[i]);
        if (!object) {
            status = EXIT_FAILED;
            continue;
        }
        if (!as_json) {
            if (report->header && json_array_size(all) == 0)
                report->header();
            report->print(object);
        }
        json_array_append_new(all, object);
    }
    if (!as_json) {
        json_decref(all);
        return tool_finish(status);
    }
    if (!report->many) {
        json_t *only = json_incref(json_array_get(all, 0));
        json_decref(all);
        return only ? tool_print_json(only) : status;
    }
    int printed = tool_print_json(all);
    return status ? status : printed;
}

static uint64_t number(json_t *object, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

static const char *text(json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* A path that is no UTF-8 becomes one for JSON. */
static json_t *path_object(const char *path)
{
    g_autofree char *valid = g_utf8_make_valid(path, -1);
    json_t *object = json_object();
    json_object_set_new(object, "path", json_string(valid));
    return object;
}

static void set(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, tool_json_u64(value));
}

/* ---- stat ---- */

/* Whose sealing finds the content: a daemon of an older version does not know. */
static int get_domain(int fd, json_t *o)
{
    struct cowfs_ioc_public io = {.action = COWFS_PUBLIC_TELL, .length = UINT64_C(64) << 20};
    uint64_t public_bytes = 0;
    do {
        int error = tool_try_ioctl(fd, COWFS_IOC_PUBLIC, &io);
        if (error)
            return error == -ENOTTY ? 0 : error;
        public_bytes += io.public_bytes;
        io.offset = io.next;
    } while (io.next);
    set(o, "domain_uid", io.domain);
    set(o, "public_bytes", public_bytes);
    return 0;
}

static json_t *get_stat(const char *path)
{
    struct cowfs_ioc_stat io = {0};
    bool is_directory = false;
    int fd = tool_open(path, &is_directory);
    if (fd < 0)
        return NULL;
    bool ok = !is_directory;
    if (!ok)
        tool_error("%s: is a directory ('cowfs du' is for trees)", path);
    ok = ok && tool_flush(fd, path) && tool_ioctl(fd, path, COWFS_IOC_STAT, &io);
    json_t *o = path_object(path);
    int error = ok ? get_domain(fd, o) : 0;
    close(fd);
    if (error)
        tool_error("%s: %s", path, tool_ioctl_reason(error));
    if (!ok || error) {
        json_decref(o);
        return NULL;
    }
    set(o, "ino", io.ino);
    set(o, "size_bytes", io.size);
    set(o, "mapped_bytes", io.mapped);
    set(o, "hole_bytes", io.holes);
    set(o, "private_bytes", io.private_bytes);
    set(o, "shared_bytes", io.shared_bytes);
    set(o, "sealed_bytes", io.sealed_bytes);
    set(o, "reserved_bytes", io.reserved_bytes);
    set(o, "extents", io.extents);
    set(o, "levels", io.levels);
    set(o, "chunk_bytes", io.chunk_bytes);
    json_object_set_new(o, "flat", json_boolean(io.flat));
    json_object_set_new(o, "passthrough", json_boolean(io.passthrough));
    io.not_passthrough[sizeof(io.not_passthrough) - 1] = '\0';
    if (!io.passthrough)
        json_object_set_new(o, "not_passthrough", json_string(io.not_passthrough));
    return o;
}

static void print_bytes(json_t *o, const char *label, const char *key)
{
    printf("  %-20s %12s\n", label, tool_size(number(o, key)).s);
}

static void print_count(json_t *o, const char *label, const char *key)
{
    printf("  %-20s %12" PRIu64 "\n", label, number(o, key));
}

static void print_stat(json_t *o)
{
    printf("%s\n", text(o, "path"));
    print_bytes(o, "size", "size_bytes");
    print_bytes(o, "holes", "hole_bytes");
    print_bytes(o, "mapped", "mapped_bytes");
    print_bytes(o, "  private", "private_bytes");
    print_bytes(o, "  shared", "shared_bytes");
    print_bytes(o, "  sealed", "sealed_bytes");
    print_bytes(o, "  reserved", "reserved_bytes");
    if (json_object_get(o, "domain_uid")) {
        print_bytes(o, "  public", "public_bytes");
        print_count(o, "domain (uid)", "domain_uid");
    }
    print_count(o, "extents", "extents");
    print_count(o, "levels of the map", "levels");
    print_bytes(o, "chunk size", "chunk_bytes");
    print_count(o, "inode", "ino");
    if (json_is_true(json_object_get(o, "passthrough")))
        printf("  %-20s %12s\n", "passthrough", "yes");
    else
        printf("  %-20s %12s: %s\n", "passthrough", "no", text(o, "not_passthrough"));
}

int cmd_stat(int argc, char **argv)
{
    static const struct report report = {
        .help = stat_help,
        .argument = "file",
        .get = get_stat,
        .print = print_stat,
    };
    return run(argc, argv, &report);
}

/* ---- du ---- */

static json_t *get_du(const char *path)
{
    struct cowfs_ioc_du io = {0};
    bool is_directory = false;
    int fd = tool_open(path, &is_directory);
    if (fd < 0)
        return NULL;
    bool ok = (is_directory || tool_flush(fd, path)) && tool_ioctl(fd, path, COWFS_IOC_DU, &io);
    close(fd);
    if (!ok)
        return NULL;
    json_t *o = path_object(path);
    set(o, "exclusive_bytes", io.exclusive);
    set(o, "shared_bytes", io.shared);
    set(o, "mapped_bytes", io.mapped);
    set(o, "apparent_bytes", io.apparent);
    set(o, "files", io.files);
    set(o, "directories", io.directories);
    return o;
}

static void du_header(void)
{
    printf("%10s %10s %10s %10s %8s  %s\n", "EXCLUSIVE", "SHARED", "MAPPED", "APPARENT", "FILES",
           "PATH");
}

static void print_du(json_t *o)
{
    printf("%10s %10s %10s %10s %8" PRIu64 "  %s\n", tool_size(number(o, "exclusive_bytes")).s,
           tool_size(number(o, "shared_bytes")).s, tool_size(number(o, "mapped_bytes")).s,
           tool_size(number(o, "apparent_bytes")).s, number(o, "files"), text(o, "path"));
}

int cmd_du(int argc, char **argv)
{
    static const struct report report = {
        .help = du_help,
        .argument = "file or directory",
        .many = true,
        .get = get_du,
        .header = du_header,
        .print = print_du,
    };
    return run(argc, argv, &report);
}

/* ---- df ---- */

static void set_uuid(json_t *o, const char uuid[16])
{
    char s[37];
    char *p = s;
    for (unsigned i = 0; i < 16; i++)
        p += sprintf(p, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                     (unsigned char)uuid[i]);
    json_object_set_new(o, "uuid", json_string(s));
}

static json_t *get_df(const char *path)
{
    struct cowfs_ioc_df io = {0};
    struct cowfs_ioc_info info = {0};
    int fd = tool_open(path, NULL);
    if (fd < 0)
        return NULL;
    bool ok =
        tool_ioctl(fd, path, COWFS_IOC_DF, &io) && tool_ioctl(fd, path, COWFS_IOC_INFO, &info);
    close(fd);
    if (!ok)
        return NULL;
    json_t *o = path_object(path);
    g_autofree char *store = g_utf8_make_valid(info.store_path, -1);
    json_object_set_new(o, "store", json_string(store));
    set_uuid(o, io.uuid);
    set(o, "logical_bytes", io.logical);
    set(o, "hole_bytes", io.holes);
    set(o, "mapped_bytes", io.mapped);
    set(o, "saved_by_cloning_bytes", io.saved_by_cloning);
    set(o, "saved_by_dedup_bytes", io.saved_by_dedup);
    set(o, "stored_bytes", io.stored);
    set(o, "sealed_bytes", io.sealed);
    set(o, "segments_allocated_bytes", io.segments_allocated);
    set(o, "metadata_bytes", io.metadata);
    set(o, "pending_free_bytes", io.pending_free);
    set(o, "files", io.files);
    set(o, "inodes", io.inodes);
    set(o, "chunk_bytes", io.chunk_bytes);
    set(o, "fs_total_bytes", io.fs_total);
    set(o, "fs_free_bytes", io.fs_free);
    return o;
}

static void print_df(json_t *o)
{
    printf("%s (store %s)\n", text(o, "path"), text(o, "store"));
    print_bytes(o, "logical", "logical_bytes");
    print_bytes(o, "holes", "hole_bytes");
    print_bytes(o, "mapped", "mapped_bytes");
    print_bytes(o, "- saved by cloning", "saved_by_cloning_bytes");
    print_bytes(o, "- saved by dedup", "saved_by_dedup_bytes");
    print_bytes(o, "= stored", "stored_bytes");
    print_bytes(o, "  of that sealed", "sealed_bytes");
    print_bytes(o, "segments on disk", "segments_allocated_bytes");
    print_bytes(o, "metadata on disk", "metadata_bytes");
    print_bytes(o, "waiting to be freed", "pending_free_bytes");
    print_bytes(o, "chunk size", "chunk_bytes");
    print_count(o, "files", "files");
    print_count(o, "inodes", "inodes");
    print_bytes(o, "free below", "fs_free_bytes");
    print_bytes(o, "size below", "fs_total_bytes");
    printf("  %-20s %s\n", "uuid", text(o, "uuid"));
}

int cmd_df(int argc, char **argv)
{
    static const struct report report = {
        .help = df_help,
        .argument = "mount point",
        .get = get_df,
        .print = print_df,
    };
    return run(argc, argv, &report);
}
