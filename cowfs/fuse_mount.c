// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_mount.c - see fuse_mount.h.
 *
 * Under a supervisor the mount is there already, and its first message (FUSE_INIT) has
 * been read: fuse_resume.c.
 */
#include "cowfs/fuse_mount.h"
#include "cowfs/fuse_backing.h"
#include "cowfs/fuse_loop.h"
#include "cowfs/fuse_pool.h"
#include "cowfs/fuse_resume.h"
#include "cowfs/fuse_rings.h"
#include "cowfs/handover.h"
#include "cowfs/opens.h"
#include "cowfs/unmount.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Of Linux 6.8, newer than the headers of the distribution. */
#define MOUNT_ID_UNIQUE 0x00004000U /* STATX_MNT_ID_UNIQUE */

enum {
    THREADS_DEFAULT = 16,
    INIT_TIMEOUT_S = 10,
    DRAIN_TIMEOUT_MS = 30000,
    UNMOUNT_WAIT_MS = 5000, /* for the end of the session after our umount */
};

/* libfuse reports errors of mounting as text to a log function that has no
 * argument; this is where they go while one thread mounts. */
static _Thread_local struct errmsg *libfuse_error;

__attribute__((format(printf, 2, 0))) static void libfuse_log(enum fuse_log_level level,
                                                              const char *format, va_list args)
{
    g_autofree char *text = g_strdup_vprintf(format, args);
    g_strstrip(text);
    if (libfuse_error && level <= FUSE_LOG_ERR)
        errmsg_set(libfuse_error, 0, "%s", g_str_has_prefix(text, "fuse: ") ? text + 6 : text);
    else if (level <= FUSE_LOG_ERR)
        g_critical("libfuse: %s", text);
    else if (level <= FUSE_LOG_WARNING)
        g_warning("libfuse: %s", text);
    else
        g_debug("libfuse: %s", text);
}

int fuse_session_open(const struct fuse_mount_point *point, const char *where, struct mount *mount,
                      struct fuse_session **out, struct errmsg *err)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    struct errmsg reason = {.text = "libfuse gave no reason"};

    fuse_opt_add_arg(&args, "cowfs");
    fuse_opt_add_arg(&args, "-o");
    fuse_opt_add_arg(&args, point->fuse_options);
    fuse_set_log_func(libfuse_log);
    libfuse_error = &reason;
    struct fuse_session *session = fuse_session_new(&args, &mount_ops, sizeof(mount_ops), mount);
    int error = 0;
    if (!session) {
        error = errmsg_set(err, -EINVAL, "mount options: %s", reason.text);
    } else if (fuse_session_mount(session, where) != 0) {
        error = errmsg_set(err, -EIO, "%s: cannot mount: %s", point->path, reason.text);
        fuse_session_destroy(session);
        session = NULL;
    }
    libfuse_error = NULL;
    fuse_opt_free_args(&args);
    *out = session;
    return error;
}

int mounted_attach(struct mounted *m, const struct fuse_mount_point *point, struct errmsg *err)
{
    struct mount *mount = &m->mount;
    m->point = point;
    mount->timeout_s = mount->view ? 0 : FUSE_TIMEOUT_S;
    m->ended_fd = eventfd(0, EFD_CLOEXEC);
    if (m->ended_fd < 0)
        return errmsg_set(err, -errno, "eventfd: %s", g_strerror(errno));
    sem_init(&mount->initialised, 0, 0);
    int error = mount->link ? fuse_resume(point, mount, err)
                            : fuse_session_open(point, point->path, mount, &mount->session, err);
    if (error) {
        sem_destroy(&mount->initialised);
        close(m->ended_fd);
        return error;
    }
    mount->costly = ioctl_pool_new();
    mount->table = mount_table_new();
    if (mount->service->backings)
        backings_set_device(mount->service->backings, mount->slot, fuse_session_fd(mount->session));
    return 0;
}

/* ---- serving ---- */

static bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t done = write(fd, text, strlen(text));
    close(fd);
    return done == (ssize_t)strlen(text);
}

/* A user-space file system is trusted with very few dirty pages unless told
 * otherwise; lifted, shared mappings are dirtied twice as fast and stall a
 * hundred times less (facts.md). Not permitted everywhere; then things are
 * slower, that is all. */
static void lift_limits(dev_t dev, unsigned read_ahead_kb)
{
    char path[96], number[16];
    snprintf(number, sizeof(number), "%u", read_ahead_kb);
    const struct {
        const char *file, *value;
    } limits[] = {
        {"strict_limit", "0"},
        {"max_ratio", "100"},
        {"read_ahead_kb", read_ahead_kb ? number : NULL},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(limits); i++) {
        snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/%s", major(dev), minor(dev),
                 limits[i].file);
        if (limits[i].value && !write_file(path, limits[i].value))
            g_debug("%s stays as it is: %s", path, g_strerror(errno));
    }
}

static int wait_for_init(struct mount *m)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += INIT_TIMEOUT_S;
    while (sem_timedwait(&m->initialised, &until) != 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

/* Whether what was asked for is to be had: said once, here. */
static void say_what_is_missing(struct mounted *m, bool resumed)
{
    struct mount *mount = &m->mount;
    if (m->point->writeback && !mount->writeback && !mount->fs->config.read_only && !resumed)
        g_message("%s: the kernel offers no writeback cache", m->point->path);
    if (!m->point->passthrough)
        return;
    mount->no_passthrough =
        mount->passthrough ? backings_try(mount->service->backings, mount->slot) : -EOPNOTSUPP;
    if (mount->no_passthrough == 0)
        return;
    opens_no_passthrough(mount->service->opens, mount->slot);
    if (resumed)
        return;
    g_warning("%s: goes on without passthrough: %s", m->point->path,
              backings_reason(mount->no_passthrough));
}

/* A mount that was asked to use io_uring and cannot is slower, but right: so it is mounted,
 * which a machine that boots with another kernel will want, and says what to do. */
static void start_rings(struct mounted *m, unsigned depth, unsigned max_threads)
{
    int error = rings_new(&m->mount, depth, max_threads, &m->mount.rings);
    if (error)
        g_warning("%s: goes on over /dev/fuse: io_uring: %s%s", m->point->path, g_strerror(-error),
                  error == -EPERM ? " (see /proc/sys/kernel/io_uring_disabled)" : "");
}

static int wait_for_rings(struct mounted *m)
{
    if (!m->mount.rings)
        return 0;
    int error = rings_wait(m->mount.rings);
    if (!error && !rings_serves(m->mount.rings))
        g_warning("%s: goes on over /dev/fuse: the kernel does not offer FUSE over io_uring. It "
                  "takes Linux 6.14, and before mounting, as root: "
                  "echo Y >/sys/module/fuse/parameters/enable_uring",
                  m->point->path);
    return error;
}

void mounted_find_passthrough(struct mounted *m)
{
    say_what_is_missing(m, true);
}

/* What is mounted there, as far as that can be told without asking its daemon. */
static bool look_at_mount_point(const struct mounted *m, dev_t *dev, uint64_t *mount_id)
{
    struct statx stx;
    if (statx(AT_FDCWD, m->point->path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
              STATX_TYPE | MOUNT_ID_UNIQUE, &stx) != 0)
        return false;
    *dev = makedev(stx.stx_dev_major, stx.stx_dev_minor);
    *mount_id = stx.stx_mask & MOUNT_ID_UNIQUE ? stx.stx_mnt_id : 0;
    return true;
}

static bool has_ended(const struct mounted *m)
{
    struct pollfd device = {.fd = fuse_session_fd(m->mount.session)};
    return poll(&device, 1, 0) != 0;
}

/* While the connection is there, the number is nobody else's. */
static void learn_mount_id(struct mounted *m)
{
    dev_t dev;
    uint64_t mount_id;
    if (look_at_mount_point(m, &dev, &mount_id) && dev == m->dev && !has_ended(m))
        m->mount_id = mount_id;
}

int mounted_serve(struct mounted *m, const struct fuse_mount_config *config, struct errmsg *err)
{
    struct mount *mount = &m->mount;
    unsigned max_threads = config->threads ? config->threads : THREADS_DEFAULT;
    struct stat st;

    if (config->io_uring_depth)
        start_rings(m, config->io_uring_depth, max_threads);
    mount->seeker = seeker_new(mount);
    /* An earlier daemon has mounted. Before a request is taken: what this one has begun would be
     * sent again, too, and be done twice, at the same time. */
    bool resumed = mount->link && mount->link->dev;
    if (resumed) {
        m->dev = mount->link->dev;
        learn_mount_id(m);
        atomic_store(&mount->dev, m->dev);
        fuse_resume_ask(mount->session);
    }
    mount->notifier = notifier_new(mount); /* sees what is sent again */
    if (mount->seeker && mount->notifier)
        m->loop = fuse_loop_start(mount, max_threads, m->ended_fd);
    if (!m->loop)
        return errmsg_set(err, -EAGAIN, "cannot start threads");
    int error = wait_for_init(mount);
    if (error)
        return errmsg_set(err, error, "%s: the kernel did not begin to talk", m->point->path);
    error = wait_for_rings(m);
    if (error)
        return errmsg_set(err, error, "%s: FUSE over io_uring: %s", m->point->path,
                          g_strerror(-error));
    if (resumed)
        return 0;
    /* Asks our own workers, which are there. When it has an answer the kernel has taken
     * ours to INIT, and knows what was agreed. If it has been unmounted meanwhile, it is something
     * else that has answered. */
    if (stat(m->point->path, &st) == 0 && !has_ended(m)) {
        m->dev = st.st_dev;
        learn_mount_id(m);
        atomic_store(&mount->dev, st.st_dev);
        lift_limits(st.st_dev, config->read_ahead_kb);
        if (mount->link)
            mount->link->dev = st.st_dev;
    }
    say_what_is_missing(m, false);
    return 0;
}

/* ---- the end ---- */

/* Whether the session ended within timeout_ms. */
static bool wait_for_end(const struct mounted *m, int signal_fd, int timeout_ms)
{
    struct pollfd fds[] = {
        {.fd = m->ended_fd, .events = POLLIN},
        {.fd = signal_fd, .events = POLLIN},
    };
    while (poll(fds, 2, timeout_ms) < 0 && errno == EINTR)
        ;
    return fds[0].revents & POLLIN;
}

/* False if something else has been mounted over it, or in its place: there may be the next mount of
 * the same store, made before we are done, with a device number that is used again. Asks nothing of
 * the daemon, which may have no workers any more. */
static bool mountpoint_is_ours(const struct mounted *m)
{
    dev_t dev;
    uint64_t mount_id;
    return m->dev && look_at_mount_point(m, &dev, &mount_id) && dev == m->dev &&
           (m->mount_id == 0 || mount_id == m->mount_id);
}

void mounted_end(struct mounted *m, int signal_fd)
{
    const char *path = m->point->path;
    if (mountpoint_is_ours(m)) {
        /* Nobody may lose what a write(2) has accepted. */
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || syncfs(fd) != 0)
            g_warning("%s: syncfs: %s", path, g_strerror(errno));
        if (fd >= 0)
            close(fd);
        int error = unmount_path(path, false);
        if (error)
            g_warning("%s: cannot be unmounted (%s); those who use it get errors from now on", path,
                      g_strerror(-error));
        else if (wait_for_end(m, signal_fd, UNMOUNT_WAIT_MS))
            return;
        /* else: it is mounted in another namespace as well */
    }
    if (!fuse_loop_drain(m->loop, DRAIN_TIMEOUT_MS))
        g_warning("%s: requests are still coming in; cut off", path);
}

/* After the workers have gone: whoever waits for an answer gets an error. */
static void cut_off(struct mounted *m)
{
    const char *path = m->point->path;
    /* Before it has been served for the first time we know no device number; but then
     * nobody else has had the time to mount there. */
    bool ours = m->dev == 0 || mountpoint_is_ours(m);

    /* MNT_FORCE ends all requests. It matters for the seeker and the notifier: they may be
     * inside a call that waits for one, and hold the descriptor open. */
    if (ours && m->dev && umount2(path, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW) != 0 &&
        errno != EPERM)
        g_warning("%s: umount: %s", path, g_strerror(errno));
    seeker_free(m->mount.seeker);
    m->mount.seeker = NULL;
    notifier_free(m->mount.notifier);
    m->mount.notifier = NULL;
    /* libfuse unmounts whatever is at that path. */
    if (ours)
        fuse_session_unmount(m->mount.session);
}

int mounted_detach(struct mounted *m)
{
    struct mount *mount = &m->mount;
    struct service *service = mount->service;
    int error = 0;
    if (!mount->session)
        return 0;
    if (m->loop)
        error = fuse_loop_stop(m->loop);
    m->loop = NULL;
    /* They answer what they have begun; nobody adds to it any more. */
    fuse_pool_free(mount->costly);
    mount->costly = NULL;
    mount_table_free(mount->table);
    mount->table = NULL;
    if (service->opener)
        opener_drain(service->opener);
    cut_off(m);
    if (service->backings)
        backings_set_device(service->backings, mount->slot, -1);
    rings_stop(mount->rings); /* if there never was a loop */
    rings_free(mount->rings);
    mount->rings = NULL;
    fuse_session_destroy(mount->session);
    mount->session = NULL;
    sem_destroy(&mount->initialised);
    close(m->ended_fd);
    m->ended_fd = -1;
    if (service->opens)
        opens_end_mount(service->opens, mount->slot);
    inode_forget_all(service->fs->inodes, mount->slot);
    return error;
}
