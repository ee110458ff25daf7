// SPDX-License-Identifier: Apache-2.0
/* fuse_flush.c - see fuse_flush.h. */
#include "cowfs/fuse_flush.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

struct order {
    uint64_t id; /* of the answer, too: a daemon that was killed may have left one */
    uint64_t ino;
    int64_t offset, length;
    int64_t result;
};

/* ---- its own process: no allocation ---- */

static int inval(int fuse_fd, const struct order *order)
{
    struct fuse_notify_inval_inode_out body = {
        .ino = order->ino,
        .off = order->offset,
        .len = order->length,
    };
    struct fuse_out_header header = {
        .len = sizeof(header) + sizeof(body),
        .error = FUSE_NOTIFY_INVAL_INODE,
    };
    struct iovec pieces[] = {{&header, sizeof(header)}, {&body, sizeof(body)}};
    return writev(fuse_fd, pieces, 2) < 0 ? -errno : 0;
}

__attribute__((noreturn)) static void flusher_main(int fuse_fd, int socket_fd)
{
    struct order order;
    sigset_t all;
    prctl(PR_SET_NAME, "cowfs-flush");
    /* A Ctrl-C, or a service manager's SIGTERM, is for the supervisor. */
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (;;) {
        ssize_t got = recv(socket_fd, &order, sizeof(order), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got != sizeof(order))
            _exit(0);
        order.result = inval(fuse_fd, &order);
        send(socket_fd, &order, sizeof(order), MSG_NOSIGNAL);
    }
}

pid_t flusher_start(int fuse_fd, int *socket_fd)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        int fuse = fcntl(fuse_fd, F_DUPFD, 10), end = fcntl(pair[1], F_DUPFD, 10);
        for (int fd = 0; fd <= 2; fd++)
            dup2(null, fd);
        dup2(fuse, 3);
        dup2(end, 4);
        close_range(5, ~0U, 0);
        flusher_main(3, 4);
    }
    int error = -errno;
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return error;
    }
    *socket_fd = pair[0];
    return pid;
}

/* ---- the daemon's side ---- */

int flusher_inval(int socket_fd, uint64_t ino, int64_t offset, int64_t length)
{
    static uint64_t count;
    struct order order =
                     {
                         .id = (uint64_t)getpid() << 32 | (uint32_t)++count,
                         .ino = ino,
                         .offset = offset,
                         .length = length,
                     },
                 answer = {0};
    if (send(socket_fd, &order, sizeof(order), MSG_NOSIGNAL) != sizeof(order))
        return -EPIPE;
    do {
        ssize_t got = recv(socket_fd, &answer, sizeof(answer), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got != sizeof(answer))
            return -EPIPE;
    } while (answer.id != order.id);
    return (int)answer.result;
}
