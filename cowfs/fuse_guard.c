// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_guard.c - see fuse_guard.h.
 *
 * The guard gets a signal when its parent thread dies (PR_SET_PDEATHSIG), which a pipe would not
 * tell: the thread that hangs keeps the daemon's end open. Then it writes to the connection's file
 * "abort" in fusectl. That file is opened before it is needed: device numbers are used again, but
 * the open file of a connection that is over does nothing any more.
 */
#include "cowfs/fuse_guard.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

struct guard {
    pid_t pid;
    int pipe_fd;
};

/* ---- the guard's own process: no allocation, no GLib ---- */

/* A mount of fusectl that nobody else sees. -1 where that is not allowed. */
static int mount_fusectl(void)
{
    int context = fsopen("fusectl", FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    int fd = -1;
    if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        fd = fsmount(context, FSMOUNT_CLOEXEC, 0);
    close(context);
    return fd;
}

static int open_abort(uint64_t dev)
{
    char path[64];
    int directory = mount_fusectl();
    if (directory < 0)
        directory = open("/sys/fs/fuse/connections", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return -1;
    snprintf(path, sizeof(path), "%u/abort", minor(dev));
    int fd = openat(directory, path, O_WRONLY | O_CLOEXEC);
    close(directory);
    return fd;
}

static void no_stdio(void)
{
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd <= 2; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
}

__attribute__((noreturn)) static void guard_main(int pipe_fd, pid_t parent)
{
    sigset_t all, death;
    uint64_t dev;

    prctl(PR_SET_NAME, "cowfs-guard");
    /* A Ctrl-C, or a service manager's SIGTERM, is for the daemon: it ends in order. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&death);
    sigaddset(&death, SIGUSR1);
    int signal_fd = signalfd(-1, &death, SFD_CLOEXEC);
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (signal_fd < 0 || getppid() != parent)
        _exit(1);

    int abort_fd = -1;
    struct pollfd fds[] = {{.fd = signal_fd, .events = POLLIN}, {.fd = pipe_fd, .events = POLLIN}};
    for (;;) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents) {
            if (abort_fd >= 0 && write(abort_fd, "1", 1) != 1)
                _exit(1);
            _exit(0);
        }
        /* The end: the daemon is done with its connection, or has died in one piece. */
        if (fds[1].revents && read(pipe_fd, &dev, sizeof(dev)) != sizeof(dev))
            _exit(0);
        if (fds[1].revents && abort_fd < 0)
            abort_fd = open_abort(dev);
        /* While the daemon lives its connection has that number. If it had died before the
         * opening, the number, and so the file, may be another's by now. */
        if (getppid() != parent)
            _exit(0);
    }
}

static bool all_have_gone(int end_fd)
{
    struct pollfd end = {.fd = end_fd};
    return poll(&end, 1, 0) > 0;
}

__attribute__((noreturn)) static void guard_for_main(int end_fd, const uint64_t *devs,
                                                     unsigned count)
{
    enum { MAX = 8 };
    int abort_fds[MAX];
    sigset_t all;
    prctl(PR_SET_NAME, "cowfs-guard");
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (unsigned i = 0; i < count && i < MAX; i++)
        abort_fds[i] = devs[i] ? open_abort(devs[i]) : -1;
    /* As above: the numbers may be others' by now. */
    if (all_have_gone(end_fd))
        _exit(0);
    struct pollfd end = {.fd = end_fd};
    while (poll(&end, 1, -1) <= 0)
        ;
    for (unsigned i = 0; i < count && i < MAX; i++)
        if (abort_fds[i] >= 0 && write(abort_fds[i], "1", 1) != 1)
            _exit(1);
    _exit(0);
}

/* ---- the daemon's side ---- */

struct guard *guard_start(void)
{
    int fds[2];
    pid_t parent = getpid();
    if (pipe2(fds, O_CLOEXEC) != 0)
        return NULL;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        /* Whoever waits for the daemon's output, or its locks, must not wait for us. */
        no_stdio();
        if (dup2(fds[0], 3) != 3 || close_range(4, ~0U, 0) != 0)
            _exit(1);
        guard_main(3, parent);
    }
    close(fds[0]);
    if (pid < 0) {
        close(fds[1]);
        return NULL;
    }
    struct guard *g = g_new(struct guard, 1);
    *g = (struct guard){.pid = pid, .pipe_fd = fds[1]};
    return g;
}

void guard_watch(struct guard *g, dev_t dev)
{
    uint64_t number = dev;
    if (g && write(g->pipe_fd, &number, sizeof(number)) != sizeof(number))
        g_debug("the guard is gone: %s", g_strerror(errno));
}

void guard_stop(struct guard *g)
{
    if (!g)
        return;
    close(g->pipe_fd);
    while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    g_free(g);
}

pid_t guard_start_for(const uint64_t *devs, unsigned count, int end_fd)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        no_stdio();
        if (dup2(end_fd, 3) != 3 || close_range(4, ~0U, 0) != 0)
            _exit(1);
        guard_for_main(3, devs, count);
    }
    return pid < 0 ? -errno : pid;
}
