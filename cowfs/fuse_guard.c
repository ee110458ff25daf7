// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_guard.c - see fuse_guard.h.
 *
 * The guard gets a signal when its parent thread dies (PR_SET_PDEATHSIG), which a pipe would not
 * tell: the thread that hangs keeps the daemon's end open. Then it writes to the connection's file
 * "abort" in fusectl. That file is opened before it is needed, and by who has the connection: device
 * numbers are used again, so only a connection that is still there after the opening is surely the
 * one that was opened; and the open file of a connection that is over does nothing any more.
 */
#include "cowfs/fuse_guard.h"
#include "cowfs/fd_message.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

struct guard {
    pid_t pid;
    int socket_fd;
};

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

/* -1: it is not there, or not allowed. */
static int open_abort(dev_t dev, int fuse_fd)
{
    struct pollfd device = {.fd = fuse_fd};
    char path[64];
    int directory = mount_fusectl();
    if (directory < 0)
        directory = open("/sys/fs/fuse/connections", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return -1;
    snprintf(path, sizeof(path), "%u/abort", minor(dev));
    int fd = openat(directory, path, O_WRONLY | O_CLOEXEC);
    close(directory);
    if (fd >= 0 && poll(&device, 1, 0) != 0) { /* the connection has ended: whose file is it? */
        close(fd);
        fd = -1;
    }
    return fd;
}

/* ---- the guard's own process: no allocation, no GLib ---- */

static void no_stdio(void)
{
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd <= 2; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
}

__attribute__((noreturn)) static void guard_main(int socket_fd, pid_t parent)
{
    sigset_t all, death;

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

    int abort_fd = -1, fd = -1;
    char told;
    struct pollfd fds[] = {{.fd = signal_fd, .events = POLLIN},
                           {.fd = socket_fd, .events = POLLIN}};
    for (;;) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents) {
            if (abort_fd >= 0 && write(abort_fd, "1", 1) != 1)
                _exit(1);
            _exit(0);
        }
        /* The end: the daemon is done with its connection, or has died in one piece. */
        if (fds[1].revents && fd_message_receive(socket_fd, &told, sizeof(told), &fd) < 0)
            _exit(0);
        if (fd >= 0)
            abort_fd = fd;
    }
}

__attribute__((noreturn)) static void guard_for_main(int end_fd, const int *abort_fds,
                                                     unsigned count)
{
    sigset_t all;
    prctl(PR_SET_NAME, "cowfs-guard");
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    struct pollfd end = {.fd = end_fd};
    while (poll(&end, 1, -1) <= 0)
        ;
    for (unsigned i = 0; i < count; i++)
        if (write(abort_fds[i], "1", 1) != 1)
            _exit(1);
    _exit(0);
}

/* The descriptors become FIRST_FD, ..., and all others but for the standard ones are closed. */
static bool keep_only(const int *fds, unsigned count)
{
    enum { FIRST_FD = 3, ASIDE_FD = 64 };
    int aside[1 + GUARDED_MAX];
    for (unsigned i = 0; i < count; i++)
        if ((aside[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, ASIDE_FD)) < 0)
            return false;
    for (unsigned i = 0; i < count; i++)
        if (dup2(aside[i], FIRST_FD + (int)i) < 0)
            return false;
    return close_range(FIRST_FD + count, ~0U, 0) == 0;
}

/* ---- the daemon's side ---- */

struct guard *guard_start(void)
{
    int fds[2];
    pid_t parent = getpid();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
        return NULL;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        /* Whoever waits for the daemon's output, or its locks, must not wait for us. */
        no_stdio();
        if (!keep_only(fds, 1))
            _exit(1);
        guard_main(3, parent);
    }
    close(fds[0]);
    if (pid < 0) {
        close(fds[1]);
        return NULL;
    }
    struct guard *g = g_new(struct guard, 1);
    *g = (struct guard){.pid = pid, .socket_fd = fds[1]};
    return g;
}

void guard_watch(struct guard *g, dev_t dev, int fuse_fd)
{
    char told = 0;
    int fd = g ? open_abort(dev, fuse_fd) : -1;
    if (fd < 0)
        return;
    int error = fd_message_send(g->socket_fd, &told, sizeof(told), fd);
    if (error)
        g_debug("the guard is gone: %s", g_strerror(-error));
    close(fd);
}

void guard_stop(struct guard *g)
{
    if (!g)
        return;
    close(g->socket_fd);
    while (waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    g_free(g);
}

pid_t guard_start_for(const struct guarded *mounts, unsigned count, int end_fd)
{
    int fds[1 + GUARDED_MAX] = {end_fd};
    unsigned kept = 1;
    for (unsigned i = 0; i < count && i < GUARDED_MAX; i++) {
        int fd = mounts[i].dev ? open_abort(mounts[i].dev, mounts[i].fuse_fd) : -1;
        if (fd >= 0)
            fds[kept++] = fd;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        no_stdio();
        if (!keep_only(fds, kept))
            _exit(1);
        guard_for_main(3, (const int[]){4, 5}, kept - 1);
    }
    int error = -errno;
    for (unsigned i = 1; i < kept; i++)
        close(fds[i]);
    return pid < 0 ? error : pid;
}
