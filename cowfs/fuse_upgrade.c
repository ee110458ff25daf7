// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_upgrade.c - whether the program that is installed now could go on with the mount.
 *
 * It is asked itself: started as the supervisor would start it, with the same descriptors
 * and options and "-c", it says whether it knows their layout, would have answered the
 * kernel's first message in the same way, and can read the store.
 */
#include "cowfs/fuse_ops.h"
#include "cowfs/handover.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Our own command line, with "-c" behind "cowfs serve". */
static GPtrArray *check_words(void)
{
    g_autofree char *line = NULL;
    gsize bytes;
    if (!g_file_get_contents("/proc/self/cmdline", &line, &bytes, NULL))
        return NULL;
    GPtrArray *words = g_ptr_array_new_with_free_func(g_free);
    for (const char *p = line; p < line + bytes; p += strlen(p) + 1) {
        g_ptr_array_add(words, g_strdup(p));
        if (words->len == 2)
            g_ptr_array_add(words, g_strdup("-c"));
    }
    g_ptr_array_add(words, NULL);
    return words;
}

/* Where we have been installed; now there may be another. */
static char *installed_program(void)
{
    static const char deleted[] = " (deleted)";
    char *path = g_file_read_link("/proc/self/exe", NULL);
    if (path && g_str_has_suffix(path, deleted))
        path[strlen(path) - strlen(deleted)] = '\0';
    return path;
}

/* What it prints to the standard error goes to `out`. The status as of wait(2), or a negative errno. */
static int run_program(const char *program, char **words, char *out, size_t size)
{
    posix_spawn_file_actions_t actions;
    int fds[2];
    pid_t pid;
    if (pipe2(fds, O_CLOEXEC) != 0)
        return -errno;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], STDERR_FILENO);
    for (int fd = HANDOVER_FUSE_FD; fd < HANDOVER_FD_END; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            posix_spawn_file_actions_adddup2(&actions, fd, fd); /* survives exec */
    int error = -posix_spawn(&pid, program, &actions, NULL, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    size_t filled = 0;
    ssize_t got = 0;
    while (
        !error && filled + 1 < size &&
        ((got = read(fds[0], out + filled, size - 1 - filled)) > 0 || (got < 0 && errno == EINTR)))
        filled += got > 0 ? (size_t)got : 0;
    out[filled] = '\0';
    close(fds[0]);
    int status = 0;
    while (!error && waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            error = -errno;
    return error ? error : status;
}

int upgrade_check(char *reason, size_t size)
{
    g_autofree char *program = installed_program();
    GPtrArray *words = check_words();
    int status = -ENOENT;
    if (program && words)
        status = run_program(program, (char **)words->pdata, reason, size);
    if (words)
        g_ptr_array_free(words, TRUE);
    if (status == 0) {
        reason[0] = '\0';
        return 0;
    }
    g_strchomp(reason);
    if (status < 0)
        g_snprintf(reason, size, "%s cannot be started: %s", program ? program : "the program",
                   g_strerror(-status));
    else if (WIFSIGNALED(status))
        g_snprintf(reason, size, "%s was killed by signal %d (%s)", program, WTERMSIG(status),
                   strsignal(WTERMSIG(status)));
    else if (!reason[0])
        g_snprintf(reason, size, "%s ended with status %d", program, WEXITSTATUS(status));
    return -ENOEXEC;
}

void upgrade_verify(char *reason, size_t size)
{
    struct stat mine, installed;
    g_autofree char *program = installed_program();
    if (program && stat("/proc/self/exe", &mine) == 0 && stat(program, &installed) == 0 &&
        (mine.st_dev != installed.st_dev || mine.st_ino != installed.st_ino))
        g_snprintf(reason, size,
                   "%s did not get as far as to serve (the log says more), and the program that"
                   " served before is in its place",
                   program);
}
