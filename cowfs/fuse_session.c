// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_session.c - the life of a mount.
 *
 *   OPEN      fs_open: locks and reads the store, starts its threads
 *   MOUNTED   session_mount: /dev/fuse is open, mount(2) done
 *   SERVING   workers run; the kernel's INIT has been answered -> ready()
 *   ENDING    either umount(8) has ended the session: the kernel has written
 *             all dirty pages and nobody uses the mount any more;
 *             or a signal asks for it: end_on_signal does the same, and where
 *             the mount is busy writes all pages and then cuts it off
 *   CLOSED    last commit, threads stopped, lock released
 *
 * A place for the supervisor: it will do what session_mount does (open /dev/fuse,
 * mount, keep the descriptor and the first message) and hand the descriptor to
 * this process, which libfuse takes as the mountpoint "/dev/fd/N". Nothing below
 * relies on having mounted itself except the unmounting.
 */
#include "cowfs/fuse_session.h"
#include "cowfs/fuse_guard.h"
#include "cowfs/fuse_loop.h"
#include "cowfs/fuse_ops.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

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

static int session_mount(struct mount *m, const struct fuse_mount_config *config,
                         struct errmsg *err)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    struct errmsg reason = {.text = "libfuse gave no reason"};

    fuse_opt_add_arg(&args, "cowfs");
    fuse_opt_add_arg(&args, "-o");
    fuse_opt_add_arg(&args, config->fuse_options);
    fuse_set_log_func(libfuse_log);
    libfuse_error = &reason;
    m->session = fuse_session_new(&args, &mount_ops, sizeof(mount_ops), m);
    int error = 0;
    if (!m->session) {
        error = errmsg_set(err, -EINVAL, "mount options: %s", reason.text);
    } else if (fuse_session_mount(m->session, config->mountpoint) != 0) {
        error = errmsg_set(err, -EIO, "%s: cannot mount: %s", config->mountpoint, reason.text);
        fuse_session_destroy(m->session);
        m->session = NULL;
    }
    libfuse_error = NULL;
    fuse_opt_free_args(&args);
    return error;
}

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

struct serving {
    struct mount *mount;
    const struct fuse_mount_config *config;
    struct fuse_loop *loop;
    struct guard *guard;
    int ended_fd;  /* eventfd: the session is over */
    int signal_fd; /* signalfd: someone wants it to be over */
    dev_t dev;     /* of the mount, 0: not known */
};

/* Whether the session ended within timeout_ms. A signal cuts the wait short. */
static bool wait_for_end(struct serving *s, int timeout_ms)
{
    struct pollfd fds[] = {
        {.fd = s->ended_fd, .events = POLLIN},
        {.fd = s->signal_fd, .events = POLLIN},
    };
    while (poll(fds, 2, timeout_ms) < 0 && errno == EINTR)
        ;
    return fds[0].revents & POLLIN;
}

static void forget_signal(struct serving *s)
{
    struct signalfd_siginfo info;
    if (read(s->signal_fd, &info, sizeof(info)) == sizeof(info))
        g_message("%s: ending because of signal %u from process %u", s->config->mountpoint,
                  info.ssi_signo, info.ssi_pid);
}

/* False if something else has been mounted over it. Asks nothing of the daemon,
 * which may have no workers any more. */
static bool mountpoint_is_ours(const struct serving *s)
{
    struct statx stx;
    return s->dev &&
           statx(AT_FDCWD, s->config->mountpoint, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE,
                 &stx) == 0 &&
           makedev(stx.stx_dev_major, stx.stx_dev_minor) == s->dev;
}

/*
 * Nobody may lose what a write(2) has accepted, so: have the kernel write its
 * dirty pages, unmount, and if the mount is in use let it be cut off after all.
 * The workers serve all the while.
 */
static void end_on_signal(struct serving *s)
{
    const char *path = s->config->mountpoint;

    forget_signal(s);
    if (mountpoint_is_ours(s)) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || syncfs(fd) != 0)
            g_warning("%s: syncfs: %s", path, g_strerror(errno));
        if (fd >= 0)
            close(fd);
        if (umount2(path, UMOUNT_NOFOLLOW) != 0)
            g_warning("%s: cannot be unmounted (%s); those who use it get errors from now on", path,
                      g_strerror(errno));
        else if (wait_for_end(s, UNMOUNT_WAIT_MS))
            return;
        /* else: it is mounted in another namespace as well */
    }
    if (!fuse_loop_drain(s->loop, DRAIN_TIMEOUT_MS))
        g_warning("%s: requests are still coming in; cut off", path);
}

/* After the workers have gone: whoever waits for an answer gets an error. */
static void cut_off(struct serving *s)
{
    const char *path = s->config->mountpoint;
    bool ours = mountpoint_is_ours(s);

    /* MNT_FORCE ends all requests. It matters for the seeker: it may be inside
     * a call that waits for one, and holds the descriptor open. */
    if (ours && umount2(path, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EPERM)
        g_warning("%s: umount: %s", path, g_strerror(errno));
    seeker_free(s->mount->seeker);
    s->mount->seeker = NULL;
    /* libfuse unmounts whatever is at that path. */
    if (ours)
        fuse_session_unmount(s->mount->session);
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

static int serve(struct serving *s, struct errmsg *err)
{
    struct mount *m = s->mount;
    const struct fuse_mount_config *config = s->config;
    struct stat st;

    s->loop = fuse_loop_start(m->session, config->threads ? config->threads : THREADS_DEFAULT,
                              s->ended_fd);
    if (!s->loop) {
        fuse_session_unmount(m->session);
        return errmsg_set(err, -EAGAIN, "cannot start threads");
    }
    int error = wait_for_init(m);
    if (error) {
        fuse_loop_stop(s->loop);
        fuse_session_unmount(m->session);
        return errmsg_set(err, error, "%s: the kernel did not begin to talk", config->mountpoint);
    }
    /* Asks our own workers, which are there. */
    if (stat(config->mountpoint, &st) == 0) {
        s->dev = st.st_dev;
        guard_watch(s->guard, st.st_dev);
        lift_limits(st.st_dev, config->read_ahead_kb);
    }
    if (config->writeback && !m->writeback)
        g_message("%s: the kernel offers no writeback cache", config->mountpoint);
    if (config->ready)
        config->ready(config->arg);
    g_message("%s: mounted on %s", m->fs->store_path, config->mountpoint);

    if (!wait_for_end(s, -1))
        end_on_signal(s);
    error = fuse_loop_stop(s->loop);
    cut_off(s);
    if (error)
        return errmsg_set(err, error, "%s: the connection to the kernel broke: %s",
                          config->mountpoint, g_strerror(-error));
    return 0;
}

/* Signals are taken from a descriptor, by one thread: blocked before any other
 * thread is made, which inherits that. */
static int signals_to_fd(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int fuse_mount_run(const struct fuse_mount_config *config, struct errmsg *err)
{
    struct mount m = {
        .writeback = config->writeback && !config->fs.read_only,
        .max_read_bytes = config->max_read_bytes,
    };
    struct serving s = {.mount = &m, .config = config};

    /* First of all, since it forks. */
    s.guard = guard_start();
    s.signal_fd = signals_to_fd();
    s.ended_fd = eventfd(0, EFD_CLOEXEC);
    if (s.signal_fd < 0 || s.ended_fd < 0)
        return errmsg_set(err, -errno, "signalfd, eventfd: %s", g_strerror(errno));
    int error = fs_open(config->store_path, &config->fs, &m.fs, err);
    if (error)
        goto close_fds;
    if (config->fs.chunk_bytes && config->fs.chunk_bytes != m.fs->chunk_bytes) {
        error = errmsg_set(err, -EINVAL, "%s: the store has chunks of %u bytes, not of %u",
                           config->store_path, m.fs->chunk_bytes, config->fs.chunk_bytes);
        fs_close(m.fs);
        goto close_fds;
    }
    sem_init(&m.initialised, 0, 0);
    m.tokens = token_table_new();
    error = session_mount(&m, config, err);
    if (error == 0) {
        m.seeker = seeker_new(&m);
        error = m.seeker ? serve(&s, err) : errmsg_set(err, -EAGAIN, "cannot start threads");
        seeker_free(m.seeker);
        fuse_session_destroy(m.session);
    }
    guard_stop(s.guard);
    s.guard = NULL;
    token_table_free(m.tokens);
    sem_destroy(&m.initialised);
    inode_forget_all(m.fs->inodes);

    int close_error = fs_close(m.fs);
    if (close_error == 0)
        g_message("%s: closed", config->store_path);
    else if (error == 0)
        error = errmsg_set(err, close_error, "%s: the last commit failed: %s", config->store_path,
                           g_strerror(-close_error));
close_fds:
    guard_stop(s.guard);
    close(s.signal_fd);
    close(s.ended_fd);
    return error;
}
