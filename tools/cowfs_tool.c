// SPDX-License-Identifier: Apache-2.0
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define FUSE_MAGIC 0x65735546

/* One process is one command: the only global state of the tool. */
static const char *name_of_tool = "cowfs";

void tool_set_name(const char *name)
{
    name_of_tool = name;
}

const char *tool_name(void)
{
    return name_of_tool;
}

static void say(const char *format, va_list args) __attribute__((format(printf, 1, 0)));

static void say(const char *format, va_list args)
{
    fflush(stdout);
    g_autofree char *text = g_strdup_vprintf(format, args);
    fprintf(stderr, "%s: %s\n", name_of_tool, text);
}

void tool_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(format, args);
    va_end(args);
}

int tool_misused(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(format, args);
    va_end(args);
    fprintf(stderr, "Try '%s --help'.\n", name_of_tool);
    return EXIT_MISUSED;
}

int tool_getopt(int argc, char **argv, const char *short_options, const struct option *options)
{
    /* getopt prints argv[0] in front of its messages. */
    argv[0] = (char *)(uintptr_t)name_of_tool;
    int option = getopt_long(argc, argv, short_options, options, NULL);
    if (option == '?')
        fprintf(stderr, "Try '%s --help'.\n", name_of_tool);
    return option;
}

int tool_help(const char *text)
{
    fputs(text, stdout);
    return tool_finish(EXIT_DONE);
}

bool tool_parse_size(const char *text, uint64_t *out)
{
    static const char units[] = "KMGTPE";
    char *end;

    if (!g_ascii_isdigit(text[0]))
        return false;
    errno = 0;
    double value = g_ascii_strtod(text, &end);
    if (errno || !isfinite(value))
        return false;
    int exponent = 0;
    const char *unit = *end ? strchr(units, g_ascii_toupper(*end)) : NULL;
    if (unit) {
        exponent = (int)(unit - units) + 1;
        end++;
        if (strcmp(end, "iB") == 0 || strcmp(end, "B") == 0)
            end += strlen(end);
    }
    if (*end)
        return false;
    value = ldexp(value, 10 * exponent);
    if (value >= ldexp(1, 63))
        return false;
    *out = (uint64_t)value;
    return true;
}

/* ---- the mount ---- */

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFIFO:
        return "a fifo";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
    case S_IFBLK:
        return "a device";
    default:
        return "no regular file or directory";
    }
}

int tool_open(const char *path, bool *is_directory)
{
    struct stat st;
    struct statfs fs;

    /* O_NONBLOCK: opening a fifo must not wait for a writer. A socket cannot be
     * opened at all, so look first; what is opened is looked at again. */
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) {
        tool_error("%s: is %s, which belongs to a running process or to the machine", path,
                   type_name(st.st_mode));
        return -1;
    }
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        tool_error("%s: %s", path, g_strerror(errno));
        return -1;
    }
    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0) {
        tool_error("%s: %s", path, g_strerror(errno));
    } else if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) {
        tool_error("%s: is %s", path, type_name(st.st_mode));
    } else if ((unsigned long)fs.f_type != FUSE_MAGIC) {
        tool_error("%s: is not in a cowfs mount", path);
    } else {
        if (is_directory)
            *is_directory = S_ISDIR(st.st_mode);
        return fd;
    }
    close(fd);
    return -1;
}

int tool_try_ioctl(int fd, unsigned long command, void *io)
{
    *(uint32_t *)io = COWFS_IOCTL_VERSION;
    int result;
    do
        result = ioctl(fd, command, io);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

int tool_try_directory_ioctl(int parent_fd, unsigned long command, void *io)
{
    int error = tool_try_ioctl(parent_fd, command, io);
    if (error != -ENOKEY)
        return error;
    /* The daemon cannot tell whether we may change that directory (ioctl.h). */
    int fd = openat(parent_fd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    error = tool_try_ioctl(fd, command, io);
    close(fd);
    return error;
}

int tool_clone(int source_fd, int parent_fd, const char *name, struct cowfs_ioc_clone *io)
{
    int error = -ESTALE;
    /* The daemon may have lost the token among very many others, or because it
     * was started anew: once more then. */
    for (int attempt = 0; error == -ESTALE && attempt < 3; attempt++) {
        struct cowfs_ioc_token token = {0};
        error = tool_try_ioctl(source_fd, COWFS_IOC_TOKEN, &token);
        if (error)
            return error;
        *io = (struct cowfs_ioc_clone){.token = {token.token[0], token.token[1]}};
        if (g_strlcpy(io->name, name, sizeof(io->name)) >= sizeof(io->name))
            return -ENAMETOOLONG;
        error = tool_try_directory_ioctl(parent_fd, COWFS_IOC_CLONE, io);
    }
    return error;
}

const char *tool_ioctl_reason(int error)
{
    switch (-error) {
    case ENOTTY:
    case ENOSYS:
    case EOPNOTSUPP:
        return "is not in a cowfs mount";
    case EPROTO:
        return "the mount is served by another version of cowfs";
    case ENOTCONN:
    case ECONNABORTED:
        return "the mount's daemon is gone";
    case EUCLEAN:
        return "the store is damaged here; unmount it and run 'cowfs fsck'";
    default:
        return g_strerror(-error);
    }
}

bool tool_ioctl(int fd, const char *path, unsigned long command, void *io)
{
    int error = tool_try_ioctl(fd, command, io);
    if (error)
        tool_error("%s: %s", path, tool_ioctl_reason(error));
    return error == 0;
}

bool tool_flush(int fd, const char *path)
{
    /* Not fsync: that would wait for a commit as well. Closing a descriptor,
     * any, makes FUSE wait for the writes under way, which sync_file_range did
     * not do before Linux 6.16, and send the times. */
    if (sync_file_range(fd, 0, 0,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER) == 0) {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy >= 0 && close(copy) == 0)
            return true;
    }
    tool_error("%s: cannot flush its cached pages: %s", path, g_strerror(errno));
    return false;
}

/* ---- reports ---- */

struct size_text tool_size(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    struct size_text text;
    unsigned unit = 0;
    double value = (double)bytes;

    /* 1023.95 would be printed as 1024.0. */
    while (value >= (unit ? 1023.95 : 1024) && unit + 1 < G_N_ELEMENTS(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(text.s, sizeof(text.s), unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}

json_t *tool_json_u64(uint64_t value)
{
    return json_integer((json_int_t)value);
}

int tool_print_json(json_t *json)
{
    if (!json || json_dumpf(json, stdout, JSON_INDENT(2)) != 0) {
        tool_error("cannot write the report as JSON");
        json_decref(json);
        return EXIT_FAILED;
    }
    putchar('\n');
    json_decref(json);
    return tool_finish(EXIT_DONE);
}

int tool_finish(int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    tool_error("writing to the standard output: %s", g_strerror(errno));
    return status == EXIT_DONE ? EXIT_FAILED : status;
}
