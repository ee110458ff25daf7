// SPDX-License-Identifier: Apache-2.0
#include "tools/cowfs_qemu_img.h"
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* What of qemu-img's messages is kept: the first ones tell the cause. */
enum { MESSAGE_MAX = 4096, OUTPUT_MAX = 1 << 20 };

static volatile sig_atomic_t interrupted_by;

static void note_signal(int number)
{
    interrupted_by = number;
}

int qemu_img_interrupted(void)
{
    return interrupted_by;
}

char *qemu_img_path(const char *path)
{
    return g_path_is_absolute(path) ? g_strdup(path) : g_strconcat("./", path, NULL);
}

/* ---- the process ---- */

struct run {
    pid_t pid;
    int out_fd, err_fd;
    GString *out, *err;
};

static void keep_fd(int fd)
{
    if (fd >= 0)
        (void)fcntl(fd, F_SETFD, 0);
}

static bool start(struct run *r, const char *const *words, const int inherit[2])
{
    int out[2], err[2];
    pid_t parent = getpid();

    if (pipe2(out, O_CLOEXEC) != 0)
        return false;
    if (pipe2(err, O_CLOEXEC) != 0) {
        close(out[0]);
        close(out[1]);
        return false;
    }
    r->pid = fork();
    if (r->pid == 0) {
        /* If this command is killed, nobody wants the image any more. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(127);
        int null = open("/dev/null", O_RDONLY);
        dup2(null, STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        dup2(err[1], STDERR_FILENO);
        if (inherit) {
            keep_fd(inherit[0]);
            keep_fd(inherit[1]);
        }
        setenv("LC_ALL", "C", 1);
        execvp(words[0], (char *const *)(uintptr_t)words);
        dprintf(STDERR_FILENO, "%s\n",
                errno == ENOENT ? "qemu-img is not installed (package qemu-utils)"
                                : g_strerror(errno));
        _exit(127);
    }
    close(out[1]);
    close(err[1]);
    r->out_fd = out[0];
    r->err_fd = err[0];
    r->out = g_string_new(NULL);
    r->err = g_string_new(NULL);
    return r->pid > 0;
}

/* False at its end. */
static bool take(int *fd, GString *into, size_t limit)
{
    char buffer[4096];
    ssize_t got = read(*fd, buffer, sizeof(buffer));
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (got <= 0) {
        close(*fd);
        *fd = -1;
        return false;
    }
    if (into->len < limit)
        g_string_append_len(into, buffer, (gssize)MIN((size_t)got, limit - into->len));
    return true;
}

/* "    (12.34/100%)\r": the last one that is whole. Negative: none. */
static double last_percentage(GString *text)
{
    const char *open = g_strrstr_len(text->str, (gssize)text->len, "(");
    if (!open || !strchr(open, '%'))
        return -1;
    double value = g_ascii_strtod(open + 1, NULL);
    g_string_truncate(text, 0);
    return value;
}

static void show_progress(const struct image_conversion *c, double percent)
{
    uint64_t done = (uint64_t)(percent / 100 * (double)c->size_bytes);
    fprintf(stderr, "\r\033[K%3.0f %%  %s of %s", percent, tool_size(done).s,
            tool_size(c->size_bytes).s);
}

/* Reads what it says until it ends. Its exit status, or -1 if a signal ended it
 * or one came for us, and then it has been killed. */
static int finish(struct run *r, const struct image_conversion *c)
{
    bool shown = false, killed = false;

    while (r->out_fd >= 0 || r->err_fd >= 0) {
        struct pollfd fds[2] = {{.fd = r->out_fd, .events = POLLIN},
                                {.fd = r->err_fd, .events = POLLIN}};
        if (poll(fds, 2, 200) < 0 && errno != EINTR)
            break;
        if (interrupted_by && !killed)
            killed = kill(r->pid, SIGKILL) == 0;
        if (fds[0].revents && take(&r->out_fd, r->out, OUTPUT_MAX) && c && c->progress) {
            double percent = last_percentage(r->out);
            if (percent >= 0) {
                show_progress(c, percent);
                shown = true;
            }
        }
        if (fds[1].revents)
            take(&r->err_fd, r->err, MESSAGE_MAX);
    }
    if (shown)
        fputs("\r\033[K", stderr);
    int status;
    while (waitpid(r->pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return !interrupted_by && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void release(struct run *r)
{
    g_string_free(r->out, TRUE);
    g_string_free(r->err, TRUE);
}

/* Its first line, in our words: without its own name, and without the name it
 * knows the file by. */
static char *first_message(const struct run *r, const char *path)
{
    g_auto(GStrv) lines = g_strsplit(r->err->str, "\n", 2);
    const char *line = lines[0] && *lines[0] ? lines[0] : "qemu-img failed without a reason";
    g_autofree char *quoted = g_strdup_printf("Could not open '%s': ", path);
    if (g_str_has_prefix(line, "qemu-img: "))
        line += strlen("qemu-img: ");
    if (g_str_has_prefix(line, quoted))
        line += strlen(quoted);
    return g_strdup(line);
}

static int run_to_end(const char *const *words, struct run *r)
{
    if (!start(r, words, NULL)) {
        tool_error("qemu-img cannot be started: %s", g_strerror(errno));
        return -2;
    }
    return finish(r, NULL);
}

/* ---- what an image is ---- */

/* VMDK lists all files that it consists of, itself among them. */
static const char *foreign_extent(json_t *extents, const char *path)
{
    size_t i;
    json_t *extent;
    json_array_foreach(extents, i, extent)
    {
        const char *name = json_string_value(json_object_get(extent, "filename"));
        if (name && strcmp(name, path) != 0)
            return name;
    }
    return NULL;
}

static const char *find_reference(json_t *info, const char *path)
{
    json_t *data = json_object_get(json_object_get(info, "format-specific"), "data");
    const char *name = json_string_value(json_object_get(info, "backing-filename"));
    if (!name)
        name = json_string_value(json_object_get(data, "data-file"));
    return name ? name : foreign_extent(json_object_get(data, "extents"), path);
}

static bool parse_info(const char *text, const char *path, struct image_info *out)
{
    json_t *info = json_loads(text, 0, NULL);
    const char *format = json_string_value(json_object_get(info, "format"));
    json_t *size = json_object_get(info, "virtual-size");
    bool ok = format && json_is_integer(size) && json_integer_value(size) >= 0;
    if (ok) {
        out->format = g_strdup(format);
        out->size_bytes = (uint64_t)json_integer_value(size);
        out->refers_to = g_strdup(find_reference(info, path));
    }
    json_decref(info);
    return ok;
}

bool qemu_img_info(const char *path, const char *format, struct image_info *out)
{
    g_autofree char *safe = qemu_img_path(path);
    /* -U: an image that a running machine has open may be looked at. */
    const char *words[] = {"qemu-img", "info", "-U", "--output=json", NULL, NULL, NULL, NULL};
    size_t n = 4;
    if (format) {
        words[n++] = "-f";
        words[n++] = format;
    }
    words[n] = safe;
    struct run r = {0};
    *out = (struct image_info){0};
    int status = run_to_end(words, &r);
    if (status == -2)
        return false;
    bool ok = status == 0 && parse_info(r.out->str, safe, out);
    if (!ok) {
        g_autofree char *message = first_message(&r, safe);
        tool_error("%s: %s", path, message);
    }
    release(&r);
    return ok;
}

void image_info_clear(struct image_info *info)
{
    g_free(info->format);
    g_free(info->refers_to);
    *info = (struct image_info){0};
}

bool qemu_img_check(const char *path, const char *format)
{
    enum { FINE = 0, LEAKS_ONLY = 3, NOT_SUPPORTED = 63 };
    g_autofree char *safe = qemu_img_path(path);
    const char *words[] = {"qemu-img", "check", "-q", "-U", "-f", format, safe, NULL};
    struct run r = {0};
    int status = run_to_end(words, &r);
    if (status == -2)
        return false;
    bool ok = status == FINE || status == LEAKS_ONLY || status == NOT_SUPPORTED;
    if (!ok) {
        g_autofree char *message = first_message(&r, safe);
        tool_error("%s: the image is damaged: %s ('qemu-img check' tells all)", path, message);
    }
    release(&r);
    return ok;
}

/* ---- converting ---- */

bool qemu_img_convert(const struct image_conversion *c)
{
    /* In order (no -W): a file that is written from its beginning to its end
     * lies in one piece. -S: runs of zeros stay, or become, holes. */
    const char *words[24] = {"qemu-img", "convert",       "-p", "-f", c->source_format,
                             "-O",       c->target_format};
    size_t n = 7;
    if (strcmp(c->target_format, "raw") == 0) {
        words[n++] = "-S";
        words[n++] = "4k";
    }
    if (c->target_is_zero) {
        words[n++] = "-n";
        words[n++] = "--target-is-zero";
    }
    if (c->compress)
        words[n++] = "-c";
    words[n++] = c->source;
    words[n] = c->target;

    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = note_signal}, old[G_N_ELEMENTS(signals)];
    for (size_t i = 0; i < G_N_ELEMENTS(signals); i++)
        sigaction(signals[i], &action, &old[i]);

    struct run r = {0};
    bool ok = start(&r, words, c->inherit_fd);
    if (!ok) {
        tool_error("qemu-img cannot be started: %s", g_strerror(errno));
    } else {
        ok = finish(&r, c) == 0;
        if (!ok && !interrupted_by) {
            g_autofree char *message = first_message(&r, c->source);
            tool_error("%s: %s", c->source_name, message);
        }
        release(&r);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(signals); i++)
        sigaction(signals[i], &old[i], NULL);
    return ok && !interrupted_by;
}
