// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* QEMU answers at once to all that is sent here: this long, and it hangs. */
enum { ANSWER_TIMEOUT_MS = 60000 };

struct qmp {
    int fd;
    pid_t pid;
    GString *in;    /* received, not yet taken apart */
    GQueue *events; /* of json_t, not yet asked for */
    char *error;
};

static void set_error(struct qmp *q, const char *text)
{
    char *copy = g_strdup(text);
    g_free(q->error);
    q->error = copy;
}

const char *qmp_error(const struct qmp *q)
{
    return q->error ? q->error : "no reason given";
}

pid_t qmp_pid(const struct qmp *q)
{
    return q->pid;
}

/* ---- connecting ---- */

/* By way of the directory's descriptor: a socket's path is 107 bytes at most. */
static int connect_to(int dir_fd, const char *name, pid_t *pid)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t length = sizeof(peer);

    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", dir_fd, name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    *pid = peer.pid;
    return fd;
}

pid_t qmp_peer(int dir_fd, const char *name)
{
    pid_t pid = 0;
    int fd = connect_to(dir_fd, name, &pid);
    if (fd >= 0)
        close(fd);
    return fd >= 0 ? pid : 0;
}

/* ---- receiving ---- */

/* One line of JSON; NULL: none in time, or the connection is gone. */
static json_t *receive(struct qmp *q, gint64 deadline_us)
{
    for (;;) {
        char *end = memchr(q->in->str, '\n', q->in->len);
        if (end) {
            size_t length = (size_t)(end - q->in->str);
            json_t *message = json_loadb(q->in->str, length, 0, NULL);
            g_string_erase(q->in, 0, (gssize)length + 1);
            if (!message)
                set_error(q, "QEMU sent something that is not JSON");
            return message;
        }
        gint64 left_us = deadline_us - g_get_monotonic_time();
        struct pollfd p = {.fd = q->fd, .events = POLLIN};
        int ready = left_us > 0 ? poll(&p, 1, (int)(left_us / 1000) + 1) : 0;
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0) {
            set_error(q, "QEMU does not answer");
            return NULL;
        }
        char buffer[4096];
        ssize_t got = recv(q->fd, buffer, sizeof(buffer), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            set_error(q, "QEMU has ended");
            return NULL;
        }
        g_string_append_len(q->in, buffer, got);
    }
}

static gint64 deadline(int timeout_ms)
{
    return g_get_monotonic_time() + (gint64)timeout_ms * 1000;
}

static json_t *receive_answer(struct qmp *q)
{
    gint64 until = deadline(ANSWER_TIMEOUT_MS);
    json_t *message;
    while ((message = receive(q, until))) {
        json_t *value;
        if ((value = json_object_get(message, "return"))) {
            json_incref(value);
            json_decref(message);
            return value;
        }
        if ((value = json_object_get(message, "error"))) {
            const char *text = json_string_value(json_object_get(value, "desc"));
            set_error(q, text ? text : "error without words");
            json_decref(message);
            return NULL;
        }
        if (json_object_get(message, "event"))
            g_queue_push_tail(q->events, message);
        else
            json_decref(message);
    }
    return NULL;
}

static json_t *take_event(struct qmp *q, const char *name)
{
    for (GList *link = q->events->head; link; link = link->next) {
        json_t *event = link->data;
        if (g_strcmp0(json_string_value(json_object_get(event, "event")), name) == 0) {
            g_queue_delete_link(q->events, link);
            return event;
        }
    }
    return NULL;
}

json_t *qmp_wait_event(struct qmp *q, const char *name, int timeout_ms)
{
    gint64 until = deadline(timeout_ms);
    json_t *event, *message;
    while (!(event = take_event(q, name)) && (message = receive(q, until))) {
        if (json_object_get(message, "event"))
            g_queue_push_tail(q->events, message);
        else
            json_decref(message);
    }
    return event;
}

/* ---- sending ---- */

static bool send_line(struct qmp *q, const char *command, json_t *arguments, int fd)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)),
                            .cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS}};
    json_t *message = json_pack("{s:s}", "execute", command);
    if (arguments)
        json_object_set_new(message, "arguments", arguments);
    char *text = json_dumps(message, JSON_COMPACT);
    json_decref(message);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    free(text);

    struct iovec part = {.iov_base = line, .iov_len = strlen(line)};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
        header.msg_control = &control;
        header.msg_controllen = sizeof(control.space);
    }
    while (part.iov_len) {
        ssize_t sent = sendmsg(q->fd, &header, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            set_error(q, errno == EPIPE ? "QEMU has ended" : g_strerror(errno));
            return false;
        }
        part.iov_base = (char *)part.iov_base + sent;
        part.iov_len -= (size_t)sent;
        header.msg_control = NULL;
        header.msg_controllen = 0;
    }
    return true;
}

json_t *qmp_execute(struct qmp *q, const char *command, json_t *arguments)
{
    return send_line(q, command, arguments, -1) ? receive_answer(q) : NULL;
}

bool qmp_do(struct qmp *q, const char *command, json_t *arguments)
{
    json_t *answer = qmp_execute(q, command, arguments);
    json_decref(answer);
    return answer != NULL;
}

bool qmp_send_fd(struct qmp *q, const char *name, int fd)
{
    json_t *answer = NULL;
    if (send_line(q, "getfd", json_pack("{s:s}", "fdname", name), fd))
        answer = receive_answer(q);
    json_decref(answer);
    return answer != NULL;
}

/* ---- life ---- */

struct qmp *qmp_connect(int dir_fd, const char *name, int timeout_ms, char **error)
{
    struct qmp *q = g_new0(struct qmp, 1);
    q->in = g_string_new(NULL);
    q->events = g_queue_new();
    q->fd = connect_to(dir_fd, name, &q->pid);
    if (q->fd < 0)
        set_error(q, "it does not run");
    else {
        json_t *greeting = receive(q, deadline(timeout_ms));
        bool ok = greeting && qmp_do(q, "qmp_capabilities", NULL);
        json_decref(greeting);
        if (ok)
            return q;
    }
    *error = g_strdup(qmp_error(q));
    qmp_close(q);
    return NULL;
}

static void drop_event(void *event)
{
    json_decref(event);
}

void qmp_close(struct qmp *q)
{
    if (!q)
        return;
    if (q->fd >= 0)
        close(q->fd);
    g_string_free(q->in, TRUE);
    g_queue_free_full(q->events, drop_event);
    g_free(q->error);
    g_free(q);
}
