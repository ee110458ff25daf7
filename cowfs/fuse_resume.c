// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_resume.c - see fuse_resume.h.
 *
 * libfuse has to see FUSE_INIT to know what was agreed, and it answers at once. So it is
 * given the message while the session's descriptor is one of a memfd, where the answer ends up:
 * the first daemon passes it on to the kernel, and keeps it; the next ones compare. Then
 * the descriptor becomes that of /dev/fuse, under the same number.
 */
#include "cowfs/fuse_resume.h"
#include "cowfs/fuse_mount.h"
#include "cowfs/handover.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    REQUEST_BYTES = 1 << 17, /* more than the kernel asks a buffer to have */
    NOTIFY_RESEND = 7,       /* since 7.40 */
    RESEND_FLAG_2 = 1 << 7,  /* FUSE_HAS_RESEND, in flags2 */
};

/* ---- the supervisor's side ---- */

static int take_init(int fuse_fd, struct handover_link *link, const char *path, struct errmsg *err)
{
    g_autofree uint8_t *request = g_malloc(REQUEST_BYTES);
    const struct fuse_in_header *in = (const void *)request;
    ssize_t got;
    do
        got = read(fuse_fd, request, REQUEST_BYTES);
    while (got < 0 && (errno == EINTR || errno == EAGAIN));
    if (got < 0)
        return errmsg_set(err, -errno, "%s: the kernel does not begin to talk: %s", path,
                          g_strerror(errno));
    if ((size_t)got < sizeof(*in) + sizeof(struct fuse_init_in) || got > HANDOVER_INIT_MAX ||
        in->opcode != FUSE_INIT)
        return errmsg_set(err, -EPROTO, "%s: the kernel begins with a message of another kind",
                          path);
    const struct fuse_init_in *init = (const void *)(request + sizeof(*in));
    if (!(init->flags2 & RESEND_FLAG_2))
        return errmsg_set(err, -ENOTSUP, "%s: the kernel is older than Linux 6.9", path);
    memcpy(link->init, request, (size_t)got);
    link->init_bytes = (uint32_t)got;
    return 0;
}

int fuse_premount(const struct fuse_mount_point *point, struct handover_link *link,
                  struct fuse_session **session, int *fuse_fd, struct errmsg *err)
{
    int error = fuse_session_open(point, point->path, NULL, session, err);
    if (error)
        return error;
    *fuse_fd = fuse_session_fd(*session);
    error = take_init(*fuse_fd, link, point->path, err);
    if (error)
        fuse_premount_end(*session);
    return error;
}

void fuse_premount_end(struct fuse_session *session)
{
    fuse_session_unmount(session);
    fuse_session_destroy(session);
}

/* ---- the daemon's side ---- */

static int answer_init(struct handover_link *link, int sink, const uint8_t *answer, size_t bytes,
                       struct errmsg *err)
{
    if (bytes < sizeof(struct fuse_out_header) || bytes > HANDOVER_INIT_MAX)
        return errmsg_set(err, -EPROTO, "libfuse has no answer for the kernel");
    if (link->answer_bytes) {
        if (link->answer_bytes != bytes || memcmp(link->answer, answer, bytes) != 0)
            return errmsg_set(err, -EPROTO,
                              "this version talks to the kernel in another way than"
                              " the one that has mounted: unmount, and mount again");
        return 0;
    }
    if (write(sink, answer, bytes) != (ssize_t)bytes)
        return errmsg_set(err, -errno, "/dev/fuse: %s", g_strerror(errno));
    memcpy(link->answer, answer, bytes);
    link->answer_bytes = (uint32_t)bytes;
    return 0;
}

static int feed_init(struct mount *mount, int sink, struct errmsg *err)
{
    struct handover_link *link = mount->link;
    uint8_t init[HANDOVER_INIT_MAX], answer[HANDOVER_INIT_MAX + 1];
    int number = fuse_session_fd(mount->session);
    memcpy(init, link->init, link->init_bytes);
    struct fuse_buf buf = {.mem = init, .size = link->init_bytes};
    fuse_session_process_buf(mount->session, &buf);
    ssize_t bytes = pread(sink, answer, sizeof(answer), 0);
    if (dup3(mount->fuse_fd, number, O_CLOEXEC) < 0)
        return errmsg_set(err, -errno, "dup3: %s", g_strerror(errno));
    return answer_init(link, number, answer, bytes < 0 ? 0 : (size_t)bytes, err);
}

int fuse_resume(const struct fuse_mount_point *point, struct mount *mount, struct errmsg *err)
{
    char where[32];
    int sink = memfd_create("cowfs-init", MFD_CLOEXEC);
    int number = sink < 0 ? -1 : fcntl(sink, F_DUPFD_CLOEXEC, HANDOVER_FD_END);
    if (number < 0) {
        int error = errmsg_set(err, -errno, "memfd_create: %s", g_strerror(errno));
        if (sink >= 0)
            close(sink);
        return error;
    }
    snprintf(where, sizeof(where), "/dev/fd/%d", number);
    int error = fuse_session_open(point, where, mount, &mount->session, err);
    if (error) {
        close(number);
    } else {
        error = feed_init(mount, sink, err);
        if (error) {
            fuse_session_destroy(mount->session);
            mount->session = NULL;
        }
    }
    close(sink);
    return error;
}

int fuse_resume_check(const struct fuse_mount_point *point, struct mount *mount, struct errmsg *err)
{
    if (mount->link->answer_bytes == 0)
        return errmsg_set(err, -EPROTO, "the mount has not been served yet");
    sem_init(&mount->initialised, 0, 0);
    int error = fuse_resume(point, mount, err);
    if (!error)
        fuse_session_destroy(mount->session);
    mount->session = NULL;
    sem_destroy(&mount->initialised);
    return error;
}

void fuse_resume_ask(struct fuse_session *session)
{
    struct fuse_out_header out = {.len = sizeof(out), .error = NOTIFY_RESEND};
    if (write(fuse_session_fd(session), &out, sizeof(out)) != sizeof(out))
        g_message("the kernel does not send again what was not answered: %s", g_strerror(errno));
}
