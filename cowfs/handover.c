// SPDX-License-Identifier: Apache-2.0
/* handover.c - see handover.h. */
#include "cowfs/handover.h"
#include "cowfs/fd_message.h"

#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    POINTS_MAX = HANDOVER_DEATHS_BY_KILL * HANDOVER_DEATHS_MAX,
    POINTS_CRASH = POINTS_MAX / HANDOVER_DEATHS_MAX,
    POINTS_KILL = POINTS_MAX / HANDOVER_DEATHS_BY_KILL,
};

/* Of this process: held by the one who serves a suspect; and, a leaf, around the table. */
static pthread_mutex_t suspects_turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool has_turn, passed_on;

int handover_memory_new(void)
{
    uint32_t version = HANDOVER_VERSION;
    int fd = memfd_create("cowfs-handover", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, sizeof(struct handover)) != 0 ||
        pwrite(fd, &version, sizeof(version), 0) != sizeof(version)) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

struct handover *handover_map(int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return NULL;
    if ((size_t)st.st_size < offsetof(struct handover, view)) {
        errno = EPROTO;
        return NULL;
    }
    if ((size_t)st.st_size < sizeof(struct handover) && ftruncate(fd, sizeof(struct handover)) != 0)
        return NULL;
    struct handover *h =
        mmap(NULL, sizeof(struct handover), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (h == MAP_FAILED)
        return NULL;
    if (h->version == HANDOVER_VERSION)
        return h;
    munmap(h, sizeof(struct handover));
    errno = EPROTO;
    return NULL;
}

int handover_send(int control_fd, enum handover_event event, const char *text, int fd)
{
    struct handover_message message = {.event = event};
    g_strlcpy(message.text, text ? text : "", sizeof(message.text));
    return fd_message_send(control_fd, &message, sizeof(message), fd);
}

int handover_receive(int control_fd, struct handover_message *message, int *fd)
{
    return fd_message_receive(control_fd, message, sizeof(*message), fd);
}

/* ---- requests that daemons die of ---- */

static struct handover_suspect *find_suspect(struct handover *h, uint64_t unique)
{
    for (unsigned i = 0; i < HANDOVER_SUSPECTS; i++)
        if (h->suspects[i].unique == unique)
            return &h->suspects[i];
    return NULL;
}

static struct handover_in_service *slot_of(struct handover *h, unsigned slot)
{
    return slot < HANDOVER_IN_SERVICE ? &h->in_service[slot]
                                      : &h->in_service_view[slot - HANDOVER_IN_SERVICE];
}

void handover_count_deaths(struct handover *h)
{
    unsigned points = h->death_signal == SIGKILL ? POINTS_KILL : POINTS_CRASH;
    for (unsigned i = 0; i < HANDOVER_IN_SERVICE + HANDOVER_VIEW_WORKERS; i++) {
        struct handover_in_service *in = slot_of(h, i);
        uint64_t unique = atomic_load(&in->unique);
        if (unique == 0)
            continue;
        struct handover_suspect *s = find_suspect(h, unique);
        if (!s)
            s = find_suspect(h, 0);
        if (s && h->death_signal) {
            s->unique = unique;
            s->opcode = (uint32_t)in->opcode;
            s->points += points;
        }
        atomic_store(&in->unique, 0);
    }
}

/* 0: it is none. */
static uint32_t suspect_points(struct handover *h, uint64_t unique)
{
    pthread_mutex_lock(&table_lock);
    const struct handover_suspect *s = find_suspect(h, unique);
    uint32_t points = s ? s->points : 0;
    pthread_mutex_unlock(&table_lock);
    return points;
}

static void acquit(struct handover *h, uint64_t unique)
{
    pthread_mutex_lock(&table_lock);
    struct handover_suspect *s = find_suspect(h, unique);
    if (s)
        *s = (struct handover_suspect){0};
    pthread_mutex_unlock(&table_lock);
}

/* Suspects take turns. False: no daemon is to die of it again. */
static bool wait_for_turn(struct handover *h, uint64_t unique, uint32_t opcode, bool again)
{
    uint32_t points = again ? suspect_points(h, unique) : 0;
    passed_on = false;
    if (points == 0)
        return true;
    pthread_mutex_lock(&suspects_turn);
    has_turn = true;
    if (points < POINTS_MAX)
        return true;
    g_critical("request %" G_GUINT64_FORMAT " (operation %u) was being served when the"
               " daemon died, again and again: it is answered by EIO now",
               (guint64)unique, opcode);
    return false;
}

bool handover_request_begin(struct handover *h, unsigned slot, uint64_t unique, uint32_t opcode,
                            bool again)
{
    g_assert(slot < HANDOVER_IN_SERVICE - HANDOVER_JOBS ||
             (slot >= HANDOVER_IN_SERVICE && slot < HANDOVER_IN_SERVICE + HANDOVER_VIEW_WORKERS));
    if (!wait_for_turn(h, unique, opcode, again))
        return false;
    slot_of(h, slot)->opcode = opcode;
    atomic_store(&slot_of(h, slot)->unique, unique);
    return true;
}

bool handover_job_begin(struct handover *h, uint64_t unique, uint32_t opcode, bool again,
                        unsigned *slot)
{
    bool go_on = wait_for_turn(h, unique, opcode, again);
    for (unsigned i = HANDOVER_IN_SERVICE - HANDOVER_JOBS; i < HANDOVER_IN_SERVICE; i++) {
        uint_fast64_t none = 0;
        *slot = i;
        if (atomic_compare_exchange_strong(&h->in_service[i].unique, &none, unique)) {
            h->in_service[i].opcode = opcode;
            return go_on;
        }
    }
    g_assert_not_reached(); /* more threads than fuse_ioctl.c has */
}

void handover_request_pass_on(bool on)
{
    passed_on = on;
}

void handover_request_end(struct handover *h, unsigned slot)
{
    uint64_t unique = atomic_load(&slot_of(h, slot)->unique);
    atomic_store(&slot_of(h, slot)->unique, 0);
    if (!has_turn)
        return;
    if (unique && !passed_on)
        acquit(h, unique);
    has_turn = false;
    pthread_mutex_unlock(&suspects_turn);
}
