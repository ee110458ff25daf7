// SPDX-License-Identifier: Apache-2.0
/*
 * qmp.h - talking to a QEMU by its machine protocol, over a unix socket.
 *
 * One connection at a time: QEMU serves a second one only when the first is
 * closed. So whoever connects holds the VM's lock (runtime.h).
 */
#ifndef COWVM_QMP_H
#define COWVM_QMP_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

struct qmp;

/* The process behind a socket in the directory `dir_fd`, 0 if there is none:
 * the one sure sign that a VM runs. Sends nothing. */
pid_t qmp_peer(int dir_fd, const char *name);

/* Connects and negotiates; waits for a QEMU that has just been started. NULL:
 * *error says why (the caller frees it). */
struct qmp *qmp_connect(int dir_fd, const char *name, int timeout_ms, char **error);
void qmp_close(struct qmp *q);
pid_t qmp_pid(const struct qmp *q);

/*
 * Executes a command; takes `arguments` (which may be NULL). The answer's
 * "return", owned by the caller, or NULL: then qmp_error has the reason. Events
 * that arrive meanwhile are kept for qmp_wait_event.
 */
json_t *qmp_execute(struct qmp *q, const char *command, json_t *arguments);
/* The same for commands that return nothing. */
bool qmp_do(struct qmp *q, const char *command, json_t *arguments);
/* The same, and hands over a descriptor with it (getfd). */
bool qmp_send_fd(struct qmp *q, const char *name, int fd);

/* The next event of that name, owned by the caller; NULL: none in time, or the
 * connection is gone. */
json_t *qmp_wait_event(struct qmp *q, const char *name, int timeout_ms);

/* The reason of the last failure, in QEMU's words. */
const char *qmp_error(const struct qmp *q);

#endif
