// SPDX-License-Identifier: Apache-2.0
/* fuse_flush.c - see fuse_flush.h. */
#include "cowfs/fuse_flush.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NAME_BYTES = 256 };

/* Of Linux 6.18, newer than the headers of the distribution. */
enum { NOTIFY_PRUNE = 9 };
struct notify_prune_out {
    uint32_t count, padding;
    uint64_t spare;
};

struct order {
    uint64_t id; /* of the answer, too: a daemon that was killed may have left one */
    uint64_t ino;
    int64_t offset, length;
    int64_t result;
    uint64_t child;        /* what `name` in ino stood for; 0: not known */
    bool prune;            /* ino is what is to be forgotten */
    char name[NAME_BYTES]; /* "": it is about pages */
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

static int drop_name(int fuse_fd, struct order *order)
{
    uint32_t len = (uint32_t)strnlen(order->name, NAME_BYTES - 1);
    struct fuse_notify_delete_out gone = {
        .parent = order->ino, .child = order->child, .namelen = len};
    struct fuse_notify_inval_entry_out unknown = {.parent = order->ino, .namelen = len};
    struct iovec body = {&gone, sizeof(gone)};
    struct fuse_out_header header = {.error = FUSE_NOTIFY_DELETE};
    if (!order->child) {
        body = (struct iovec){&unknown, sizeof(unknown)};
        header.error = FUSE_NOTIFY_INVAL_ENTRY;
    }
    header.len = (uint32_t)(sizeof(header) + body.iov_len + len + 1);
    struct iovec pieces[] = {{&header, sizeof(header)}, body, {order->name, len + 1}};
    return writev(fuse_fd, pieces, 3) < 0 ? -errno : 0;
}

int fuse_prune(int fuse_fd, uint64_t ino)
{
    struct notify_prune_out body = {.count = 1};
    struct fuse_out_header header = {
        .len = sizeof(header) + sizeof(body) + sizeof(ino),
        .error = NOTIFY_PRUNE,
    };
    struct iovec pieces[] = {{&header, sizeof(header)}, {&body, sizeof(body)}, {&ino, sizeof(ino)}};
    return writev(fuse_fd, pieces, 3) < 0 ? -errno : 0;
}

static int obey(int fuse_fd, struct order *order)
{
    if (order->prune)
        return fuse_prune(fuse_fd, order->ino);
    return order->name[0] ? drop_name(fuse_fd, order) : inval(fuse_fd, order);
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
        order.result = obey(fuse_fd, &order);
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

static int ask_locked(int socket_fd, struct order *order)
{
    static uint64_t count;
    struct order answer = {0};
    order->id = (uint64_t)getpid() << 32 | (uint32_t)++count;
    if (send(socket_fd, order, sizeof(*order), MSG_NOSIGNAL) != sizeof(*order))
        return -EPIPE;
    do {
        ssize_t got = recv(socket_fd, &answer, sizeof(answer), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got != sizeof(answer))
            return -EPIPE;
    } while (answer.id != order->id);
    return (int)answer.result;
}

/* One at a time: it is one process. */
static int ask(int socket_fd, struct order *order)
{
    static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&turn);
    int result = ask_locked(socket_fd, order);
    pthread_mutex_unlock(&turn);
    return result;
}

int flusher_inval(int socket_fd, uint64_t ino, int64_t offset, int64_t length)
{
    struct order order = {.ino = ino, .offset = offset, .length = length};
    return ask(socket_fd, &order);
}

int flusher_drop_name(int socket_fd, uint64_t dir, uint64_t child, const char *name)
{
    struct order order = {.ino = dir, .child = child};
    memcpy(order.name, name, strnlen(name, NAME_BYTES - 1));
    return ask(socket_fd, &order);
}

int flusher_prune(int socket_fd, uint64_t ino)
{
    struct order order = {.ino = ino, .prune = true};
    return ask(socket_fd, &order);
}
