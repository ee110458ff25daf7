// SPDX-License-Identifier: Apache-2.0
/*
 * fd_message.h - a message, and with it a descriptor, through a SOCK_SEQPACKET socket (unix(7),
 * SCM_RIGHTS). Neither allocates, so that a process may use them that was forked from one with threads.
 */
#ifndef COWFS_FD_MESSAGE_H
#define COWFS_FD_MESSAGE_H

#include <stddef.h>

/* `fd`: -1 for none; it stays the caller's. 0 or a negative errno. */
int fd_message_send(int socket_fd, void *message, size_t bytes, int fd);

/* Does not wait. 1: *fd is the caller's now, or -1; 0: there is none, ask again; or a negative errno: -EPIPE if the
 * other side has closed it, -EPROTO for one of another length. */
int fd_message_receive(int socket_fd, void *message, size_t bytes, int *fd);

#endif
