// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs_image.c - cowfs import and cowfs export: disk images of other formats.
 *
 * What is being written has no name (O_TMPFILE) until it is whole: whatever
 * ends the command, kill -9 and a power cut included, nothing half-made stays.
 */
#include "tools/cowfs_qemu_img.h"
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static const char import_help[] =
    "Usage: cowfs import [OPTION]... IMAGE FILE\n"
    "Brings a disk image of any format that qemu-img knows (raw, qcow2, vmdk, vdi, vhdx, ...)\n"
    "into a cowfs mount, as the raw file FILE. Holes stay holes, and zeros become some. FILE\n"
    "appears when it is whole and on the disk; if anything fails there is no FILE.\n"
    "\n"
    "  -f, --format FORMAT  what IMAGE is; found out otherwise\n"
    "      --follow         IMAGE may refer to other files (a backing file, extents of a vmdk),\n"
    "                       whose content is taken in. Say it only of images that you trust:\n"
    "                       they may name any file that you can read\n"
    "  -r, --replace        if FILE exists, replace it when the new one is whole\n"
    "  -q, --quiet          no progress\n"
    "  -j, --json           report as JSON\n"
    "  -h, --help           show this help\n"
    "\n"
    "The structure of qcow2, vmdk and the like is checked first. A raw image has none: anything\n"
    "is a raw image, so what looks like a compressed file is refused unless -f says raw.\n"
    "\n"
    "Example:\n"
    "  cowfs import debian-12-genericcloud-amd64.qcow2 /var/lib/vms/golden/disk\n";

static const char export_help[] =
    "Usage: cowfs export [OPTION]... FILE IMAGE\n"
    "Writes FILE, a raw disk image in a cowfs mount, as a disk image for others. It is FILE at\n"
    "one moment, even if a machine is running on it. IMAGE appears when it is whole and on the\n"
    "disk; if anything fails there is no IMAGE.\n"
    "\n"
    "  -f, --format FORMAT  qcow2, vmdk, vdi, vhdx, vpc, raw, ...; told by IMAGE's name\n"
    "                       otherwise (.qcow2 .vmdk .vdi .vhdx .vhd .raw .img)\n"
    "  -c, --compress       compress (qcow2, vmdk)\n"
    "  -r, --replace        if IMAGE exists, replace it when the new one is whole\n"
    "  -q, --quiet          no progress\n"
    "  -j, --json           report as JSON\n"
    "  -h, --help           show this help\n"
    "\n"
    "Example:\n"
    "  cowfs export --compress /var/lib/vms/golden/disk golden.qcow2\n";

struct job {
    const char *source, *target;
    const char *format; /* as given, or NULL */
    bool follow, replace, compress, quiet, as_json;
    char *target_directory, *target_name;
    int target_fd; /* without a name yet */
    struct image_info info;
};

/* ---- a file without a name, and giving it one ---- */

static bool open_target(struct job *j)
{
    struct stat st;
    j->target_directory = g_path_get_dirname(j->target);
    j->target_name = g_path_get_basename(j->target);
    if (!*j->target || j->target[strlen(j->target) - 1] == '/') {
        tool_error("%s: is no name of a file", j->target);
        return false;
    }
    if (lstat(j->target, &st) == 0) {
        if (!j->replace) {
            tool_error("%s: exists already (--replace would replace it)", j->target);
            return false;
        }
        if (!S_ISREG(st.st_mode)) {
            tool_error("%s: is not a regular file", j->target);
            return false;
        }
    }
    j->target_fd = open(j->target_directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    if (j->target_fd < 0)
        tool_error("%s: %s", j->target_directory,
                   errno == EOPNOTSUPP || errno == EISDIR
                       ? "this file system has no files without a name (O_TMPFILE)"
                       : g_strerror(errno));
    return j->target_fd >= 0;
}

static bool link_as(const struct job *j, const char *path)
{
    char self[64];
    snprintf(self, sizeof(self), "/proc/self/fd/%d", j->target_fd);
    return linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0;
}

/* linkat replaces nothing, so over another name then. */
static bool link_over(const struct job *j)
{
    uint64_t random;
    if (getrandom(&random, sizeof(random), 0) != sizeof(random))
        return false;
    g_autofree char *hidden =
        g_strdup_printf("%s/.cowfs-image.%016" PRIx64, j->target_directory, random);
    sigset_t all, old;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &old);
    bool ok = link_as(j, hidden);
    if (ok && rename(hidden, j->target) != 0) {
        int error = errno;
        ok = false;
        unlink(hidden);
        errno = error;
    }
    sigprocmask(SIG_SETMASK, &old, NULL);
    return ok;
}

static bool give_name(const struct job *j)
{
    if (fsync(j->target_fd) != 0 || !(j->replace ? link_over(j) : link_as(j, j->target))) {
        tool_error("%s: %s", j->target, g_strerror(errno));
        return false;
    }
    int directory = open(j->target_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = directory >= 0 && fsync(directory) == 0;
    if (!ok)
        tool_error("%s: %s", j->target_directory, g_strerror(errno));
    if (directory >= 0)
        close(directory);
    return ok;
}

static int report(const struct job *j, const char *image_format)
{
    if (!j->as_json)
        return EXIT_DONE;
    g_autofree char *source = g_utf8_make_valid(j->source, -1);
    g_autofree char *target = g_utf8_make_valid(j->target, -1);
    json_t *o = json_object();
    json_object_set_new(o, "source", json_string(source));
    json_object_set_new(o, "destination", json_string(target));
    json_object_set_new(o, "format", json_string(image_format));
    json_object_set_new(o, "size_bytes", tool_json_u64(j->info.size_bytes));
    return tool_print_json(o);
}

static int finish_job(struct job *j, int status)
{
    int by = qemu_img_interrupted();
    image_info_clear(&j->info);
    if (j->target_fd >= 0)
        close(j->target_fd);
    g_free(j->target_directory);
    g_free(j->target_name);
    /* Whoever waits for this command learns what ended it. */
    if (by) {
        signal(by, SIG_DFL);
        raise(by);
    }
    return status == EXIT_DONE ? tool_finish(status) : status;
}

/* ---- options ---- */

enum { OPTION_FOLLOW = 256 };

/* False: *status is what to end with. */
static bool parse(int argc, char **argv, const char *short_options, const struct option *options,
                  const char *help, struct job *j, int *status)
{
    int option;
    while ((option = tool_getopt(argc, argv, short_options, options)) != -1) {
        switch (option) {
        case 'f':
            j->format = optarg;
            break;
        case OPTION_FOLLOW:
            j->follow = true;
            break;
        case 'c':
            j->compress = true;
            break;
        case 'r':
            j->replace = true;
            break;
        case 'q':
            j->quiet = true;
            break;
        case 'j':
            j->as_json = true;
            break;
        case 'h':
            *status = tool_help(help);
            return false;
        default:
            *status = EXIT_MISUSED;
            return false;
        }
    }
    if (argc - optind != 2) {
        *status = tool_misused("exactly two files are needed: what is read and what is written");
        return false;
    }
    j->source = argv[optind];
    j->target = argv[optind + 1];
    return true;
}

/* ---- import ---- */

/* Raw is what qemu-img calls all that it does not know. */
static const char *compressed_with(const char *path)
{
    static const struct {
        const char *magic;
        size_t length;
        const char *name;
    } known[] = {
        {"\x1f\x8b", 2, "gzip"},
        {"\xfd"
         "7zXZ",
         5, "xz"},
        {"\x28\xb5\x2f\xfd", 4, "zstd"},
        {"BZh", 3, "bzip2"},
        {"PK\x03\x04", 4, "zip"},
        {"\x04\x22\x4d\x18", 4, "lz4"},
    };
    char begin[8] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : pread(fd, begin, sizeof(begin), 0);
    if (fd >= 0)
        close(fd);
    for (size_t i = 0; i < G_N_ELEMENTS(known); i++)
        if (got >= (ssize_t)known[i].length && memcmp(begin, known[i].magic, known[i].length) == 0)
            return known[i].name;
    return NULL;
}

static bool examine(struct job *j)
{
    struct stat st;
    if (stat(j->source, &st) != 0) {
        tool_error("%s: %s", j->source, g_strerror(errno));
        return false;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        tool_error("%s: is neither a regular file nor a block device", j->source);
        return false;
    }
    if (!qemu_img_info(j->source, j->format, &j->info))
        return false;
    if (!j->format && strcmp(j->info.format, "raw") == 0) {
        const char *compression = compressed_with(j->source);
        if (compression) {
            tool_error("%s: is compressed with %s; unpack it first (or say --format raw)",
                       j->source, compression);
            return false;
        }
    }
    if (j->info.size_bytes == 0) {
        tool_error("%s: is empty", j->source);
        return false;
    }
    if (j->info.refers_to && !j->follow) {
        tool_error("%s: refers to another file, %s (--follow would take it in)", j->source,
                   j->info.refers_to);
        return false;
    }
    return strcmp(j->info.format, "raw") == 0 || qemu_img_check(j->source, j->info.format);
}

static bool import_once(struct job *j)
{
    if (!examine(j) || !open_target(j))
        return false;
    int directory = tool_open(j->target_directory, NULL);
    if (directory < 0)
        return false;
    close(directory);
    if (ftruncate(j->target_fd, (off_t)j->info.size_bytes) != 0) {
        tool_error("%s: %s", j->target, g_strerror(errno));
        return false;
    }
    g_autofree char *source = qemu_img_path(j->source);
    g_autofree char *target = g_strdup_printf("/proc/self/fd/%d", j->target_fd);
    struct image_conversion c = {
        .source = source,
        .source_format = j->info.format,
        .source_name = j->source,
        .target = target,
        .target_format = "raw",
        .inherit_fd = {j->target_fd, -1},
        .target_is_zero = true,
        .progress = !j->quiet && isatty(STDERR_FILENO),
        .size_bytes = j->info.size_bytes,
    };
    return qemu_img_convert(&c) && give_name(j);
}

int cmd_import(int argc, char **argv)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 'f'},
        {"follow", no_argument, NULL, OPTION_FOLLOW},
        {"replace", no_argument, NULL, 'r'},
        {"quiet", no_argument, NULL, 'q'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct job j = {.target_fd = -1};
    int status;
    if (!parse(argc, argv, "f:rqjh", options, import_help, &j, &status))
        return status;
    status = import_once(&j) ? report(&j, j.info.format) : EXIT_FAILED;
    return finish_job(&j, status);
}

/* ---- export ---- */

static const char *format_of_name(const char *name)
{
    static const char *const known[][2] = {
        {"qcow2", "qcow2"}, {"vmdk", "vmdk"}, {"vdi", "vdi"},   {"vhdx", "vhdx"}, {"vhd", "vpc"},
        {"raw", "raw"},     {"img", "raw"},   {"qcow", "qcow"}, {"qed", "qed"},
    };
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < G_N_ELEMENTS(known); i++)
        if (g_ascii_strcasecmp(dot + 1, known[i][0]) == 0)
            return known[i][1];
    return NULL;
}

/* A clone of it without a name: stands still, and nobody's lock is in the way.
 * Where the directory cannot be written to, the file itself. */
static int open_moment(const char *path, uint64_t *size)
{
    struct stat st;
    bool is_directory = false;
    int fd = tool_open(path, &is_directory);
    if (fd < 0)
        return -1;
    if (is_directory || fstat(fd, &st) != 0 || st.st_size == 0) {
        tool_error("%s: %s", path, is_directory ? "is a directory" : "is empty");
        close(fd);
        return -1;
    }
    *size = (uint64_t)st.st_size;
    g_autofree char *directory = g_path_get_dirname(path);
    int moment = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    loff_t at = 0;
    while (moment >= 0 && at < st.st_size) {
        loff_t in = at, out = at;
        ssize_t done = copy_file_range(fd, &in, moment, &out, (size_t)(st.st_size - at), 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            break;
        at += done;
    }
    if (moment >= 0 && at == st.st_size) {
        close(fd);
        return moment;
    }
    if (moment >= 0)
        close(moment);
    return fd;
}

/* The names that a format writes into itself (vmdk) are IMAGE's, so that is
 * what the target is called for qemu-img: a link to the descriptor. */
static bool convert_named(struct job *j, struct image_conversion *c)
{
    g_autofree char *directory = g_dir_make_tmp("cowfs-export.XXXXXX", NULL);
    g_autofree char *link = directory ? g_build_filename(directory, j->target_name, NULL) : NULL;
    g_autofree char *where = g_strdup_printf("/proc/self/fd/%d", j->target_fd);
    if (!link || symlink(where, link) != 0) {
        tool_error("%s: %s", directory ? directory : g_get_tmp_dir(), g_strerror(errno));
        if (directory)
            rmdir(directory);
        return false;
    }
    c->target = link;
    bool ok = qemu_img_convert(c);
    unlink(link);
    rmdir(directory);
    return ok;
}

static bool export_once(struct job *j, const char *format)
{
    int source_fd = open_moment(j->source, &j->info.size_bytes);
    bool ok = source_fd >= 0 && open_target(j);
    if (ok) {
        g_autofree char *source = g_strdup_printf("/proc/self/fd/%d", source_fd);
        struct image_conversion c = {
            .source = source,
            .source_format = "raw",
            .source_name = j->source,
            .target_format = format,
            .inherit_fd = {j->target_fd, source_fd},
            .compress = j->compress,
            .progress = !j->quiet && isatty(STDERR_FILENO),
            .size_bytes = j->info.size_bytes,
        };
        ok = convert_named(j, &c) && give_name(j);
    }
    if (source_fd >= 0)
        close(source_fd);
    return ok;
}

int cmd_export(int argc, char **argv)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 'f'},
        {"compress", no_argument, NULL, 'c'},
        {"replace", no_argument, NULL, 'r'},
        {"quiet", no_argument, NULL, 'q'},
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct job j = {.target_fd = -1};
    int status;
    if (!parse(argc, argv, "f:crqjh", options, export_help, &j, &status))
        return status;
    const char *format = j.format ? j.format : format_of_name(j.target);
    if (!format)
        return tool_misused("%s: its name tells no format; say which with --format", j.target);
    status = export_once(&j, format) ? report(&j, format) : EXIT_FAILED;
    return finish_job(&j, status);
}
