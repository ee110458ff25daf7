// SPDX-License-Identifier: Apache-2.0
/* fd_message.c - see fd_message.h. */
#include "cowfs/fd_message.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

union control {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
};

int fd_message_send(int socket_fd, void *message, size_t bytes, int fd)
{
    union control control = {0};
    struct iovec piece = {.iov_base = message, .iov_len = bytes};
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1};
    if (fd >= 0) {
        m.msg_control = control.space;
        m.msg_controllen = sizeof(control.space);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    while (sendmsg(socket_fd, &m, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

int fd_message_receive(int socket_fd, void *message, size_t bytes, int *fd)
{
    union control control;
    struct iovec piece = {.iov_base = message, .iov_len = bytes};
    struct msghdr m = {
        .msg_iov = &piece,
        .msg_iovlen = 1,
        .msg_control = control.space,
        .msg_controllen = sizeof(control.space),
    };
    *fd = -1;
    ssize_t got = recvmsg(socket_fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    const struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(c), sizeof(int));
    if (got == (ssize_t)bytes)
        return 1;
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return got == 0 ? -EPIPE : -EPROTO;
}
