// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_session.c - the life of the daemon.
 *
 *   OPEN      fs_open: locks and reads the store, starts its threads
 *   SERVING   the mount is there, and the view, if there is to be one -> ready()
 *   ENDING    either umount(8) has ended the mount: the kernel has written all
 *             dirty pages and nobody uses it any more. Or a signal asks for it:
 *             mounted_end does the same, and where it is busy writes all pages and
 *             then cuts it off. The view ends before; or alone, by an umount of its own
 *   CLOSED    last commit, threads stopped, lock released
 */
#include "cowfs/fuse_session.h"
#include "cowfs/book.h"
#include "cowfs/fuse_backing.h"
#include "cowfs/fuse_early.h"
#include "cowfs/fuse_guard.h"
#include "cowfs/fuse_loop.h"
#include "cowfs/fuse_mount.h"
#include "cowfs/fuse_resume.h"
#include "cowfs/handover.h"
#include "cowfs/opens.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { MAIN_SLOT = 0, VIEW_SLOT = 1 };

struct session {
    const struct fuse_mount_config *config;
    struct service service;
    struct mounted main, view;
    struct guard *guard;
    int signal_fd; /* signalfd: someone wants it to be over */
};

/* It may have ended before the mount did. */
static bool has_view(const struct fuse_mount_config *config)
{
    return config->view.path && !(config->handover && config->handover->view_ended);
}

static void forget_signal(struct session *s)
{
    struct signalfd_siginfo info;
    if (read(s->signal_fd, &info, sizeof(info)) == sizeof(info))
        g_message("%s: ending because of signal %u from process %u", s->config->main.path,
                  info.ssi_signo, info.ssi_pid);
}

/* The view, by an umount of its own, or because something broke it. */
static void end_of_view(struct session *s)
{
    /* The next daemon does without it, and ends in the book what we do not come to. */
    if (s->config->handover)
        s->config->handover->view_ended = true;
    int error = mounted_detach(&s->view);
    if (error)
        g_warning("%s: the connection to the kernel broke: %s", s->config->view.path,
                  g_strerror(-error));
    else
        g_message("%s: unmounted", s->config->view.path);
    atomic_store(&s->service.view_path, NULL);
    book_end_mount(s->service.book, VIEW_SLOT);
}

/* To the program that is installed now. What is being served is answered, the rest waits in
 * the kernel; what somebody else would have to serve first (fuse_seek.c) is sent again. All
 * that the next daemon needs it would have after a SIGKILL, too. */
__attribute__((noreturn)) static void hand_over(struct session *s)
{
    fuse_loop_stop(s->main.loop);
    if (s->view.loop)
        fuse_loop_stop(s->view.loop);
    /* Makes its beginning short. */
    int error = fs_commit(s->service.fs);
    if (error)
        g_warning("%s: the commit before handing over failed: %s", s->config->store_path,
                  g_strerror(-error));
    fflush(NULL);
    _exit(HANDOVER_EXIT_UPGRADE);
}

/* Until the main mount ends. Returns whether a signal asks for that. */
static bool wait_for_end(struct session *s)
{
    for (;;) {
        struct pollfd fds[] = {
            {.fd = s->main.ended_fd, .events = POLLIN},
            {.fd = s->signal_fd, .events = POLLIN},
            {.fd = s->view.mount.session ? s->view.ended_fd : -1, .events = POLLIN},
            {.fd = s->service.upgrade_fd, .events = POLLIN},
        };
        if (poll(fds, G_N_ELEMENTS(fds), -1) < 0)
            continue;
        if (fds[0].revents || fds[1].revents)
            return !fds[0].revents;
        if (fds[3].revents)
            hand_over(s);
        end_of_view(s);
    }
}

static void serve(struct session *s)
{
    const struct fuse_mount_config *config = s->config;
    guard_watch(s->guard, s->main.dev, fuse_session_fd(s->main.mount.session));
    early_watch(s->service.early, s->main.dev);
    if (config->handover)
        handover_send(HANDOVER_CONTROL_FD, HANDOVER_READY, NULL, s->service.fs->lock_fd);
    if (config->ready)
        config->ready(config->arg);
    g_message("%s: mounted on %s", s->service.fs->store_path, config->main.path);
    if (has_view(config))
        g_message("%s: a read-only view of it", config->view.path);

    bool by_signal = wait_for_end(s);
    if (config->handover)
        handover_send(HANDOVER_CONTROL_FD, HANDOVER_ENDING, NULL, -1);
    if (by_signal)
        forget_signal(s);
    if (s->view.mount.session)
        mounted_end(&s->view, s->signal_fd);
    if (by_signal)
        mounted_end(&s->main, s->signal_fd);
}

/* What is open past the daemon, before anybody asks. */
static void adopt_opens(struct session *s, bool view)
{
    struct service *service = &s->service;
    if (!service->opens)
        return;
    mounted_find_passthrough(&s->main);
    if (view)
        mounted_find_passthrough(&s->view);
    else
        book_end_mount(service->book, VIEW_SLOT);
    if (backings_adopt(service->backings, service->opens) > 0)
        opener_tidy_soon(service->opener);
}

/* A daemon that cannot go on with what an earlier one has left: perhaps another program can. To
 * close in order would give up what is open. fs_open has made durable what the journal had. */
__attribute__((noreturn)) static void leave_to_next(const struct errmsg *err)
{
    handover_send(HANDOVER_CONTROL_FD, HANDOVER_FAILED, err->text, -1);
    fflush(NULL);
    _exit(EXIT_FAILURE);
}

static int serve_mounts(struct session *s, struct errmsg *err)
{
    const struct fuse_mount_config *config = s->config;
    bool view = has_view(config);
    int error = mounted_attach(&s->main, &config->main, err);
    if (!error && view && config->handover)
        error = mounted_attach(&s->view, &config->view, err);
    if (!error && config->resumed)
        adopt_opens(s, view);
    if (!error)
        error = mounted_serve(&s->main, config, err);
    if (!error && view && !config->handover)
        error = mounted_attach(&s->view, &config->view, err);
    if (!error && view)
        error = mounted_serve(&s->view, config, err);
    if (!error)
        serve(s);
    else if (config->resumed)
        leave_to_next(err);
    if (s->view.mount.session)
        end_of_view(s);
    int broken = mounted_detach(&s->main);
    if (!error && broken)
        error = errmsg_set(err, broken, "%s: the connection to the kernel broke: %s",
                           config->main.path, g_strerror(-broken));
    return error;
}

static struct mount main_mount(const struct fuse_mount_config *config)
{
    return (struct mount){
        .slot = MAIN_SLOT,
        .writeback = config->main.writeback && !config->fs.read_only,
        .passthrough = config->main.passthrough,
        .max_read_bytes = config->max_read_bytes,
        .handover = config->handover,
        .link = config->handover ? &config->handover->main : NULL,
        .fuse_fd = HANDOVER_FUSE_FD,
        .flush_fd = HANDOVER_FLUSH_FD,
        .debug_faults = g_getenv("COWFS_DEBUG_FAULTS") != NULL,
        .debug_du_faults = g_strcmp0(g_getenv("COWFS_DEBUG_FAULTS"), "du") == 0,
    };
}

static struct mount view_mount(const struct fuse_mount_config *config)
{
    return (struct mount){
        .slot = VIEW_SLOT,
        .view = true,
        .passthrough = config->view.passthrough,
        .max_read_bytes = config->max_read_bytes,
        .handover = config->handover,
        .link = config->handover ? &config->handover->view : NULL,
        .fuse_fd = HANDOVER_VIEW_FUSE_FD,
        .flush_fd = HANDOVER_VIEW_FLUSH_FD,
    };
}

/* What the mounts share. */
static int service_start(struct session *s, struct fs *fs, struct errmsg *err)
{
    const struct fuse_mount_config *config = s->config;
    struct service *service = &s->service;
    unsigned passthrough = 0;
    if (config->main.passthrough)
        passthrough |= 1u << MAIN_SLOT;
    if (has_view(config) && config->view.passthrough)
        passthrough |= 1u << VIEW_SLOT;
    service->fs = fs;
    atomic_init(&service->view_path, has_view(config) ? config->view.path : NULL);
    service->tokens = token_table_new();
    service->upgrade_fd = config->handover ? eventfd(0, EFD_CLOEXEC) : -1;
    if (passthrough) {
        service->backings = backings_new(fs, service->book);
        struct opens_backing callbacks = backings_callbacks(service->backings);
        service->opens = opens_new(&callbacks, passthrough);
        service->opener = opener_new(service);
        if (!service->opener)
            return errmsg_set(err, -EAGAIN, "cannot start threads");
    }
    s->main.mount = main_mount(config);
    s->main.mount.service = service;
    s->main.mount.fs = fs;
    s->view.mount = view_mount(config);
    s->view.mount.service = service;
    s->view.mount.fs = fs;
    return 0;
}

static void service_stop(struct service *service)
{
    opener_free(service->opener);
    opens_free(service->opens);
    backings_free(service->backings);
    book_close(service->book);
    token_table_free(service->tokens);
    if (service->upgrade_fd >= 0)
        close(service->upgrade_fd);
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
    signal(SIGIO, SIG_IGN); /* of the leases of fuse_backing.c */
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* What an earlier daemon of this mount has left. */
static void use_handover(const struct fuse_mount_config *config, struct fs_config *fs)
{
    handover_count_deaths(config->handover);
    fs->journal_fd = HANDOVER_JOURNAL_FD;
    if (!config->resumed)
        return;
    fs->lock_fd = HANDOVER_LOCK_FD;
    fs->resumed = 1u << MAIN_SLOT | (has_view(config) ? 1u << VIEW_SLOT : 0);
    fs->create = false;
}

static int open_store(const struct fuse_mount_config *config, struct book *book, struct fs **fs,
                      struct errmsg *err)
{
    struct fs_config fs_config = config->fs;
    if (config->handover)
        use_handover(config, &fs_config);
    fs_config.keep_flat = config->main.passthrough || config->view.passthrough;
    GArray *held = book ? backings_held(book) : NULL;
    fs_config.held = held;
    int error = fs_open(config->store_path, &fs_config, fs, err);
    if (held)
        g_array_free(held, TRUE);
    if (error)
        return error;
    if (config->fs.chunk_bytes && config->fs.chunk_bytes != (*fs)->chunk_bytes) {
        error = errmsg_set(err, -EINVAL, "%s: the store has chunks of %u bytes, not of %u",
                           config->store_path, (*fs)->chunk_bytes, config->fs.chunk_bytes);
        fs_close(*fs);
    }
    return error;
}

static int run(struct session *s, struct errmsg *err)
{
    const struct fuse_mount_config *config = s->config;
    struct fs *fs;
    if (config->handover && (config->main.passthrough || config->view.path)) {
        s->service.book = book_open(HANDOVER_BOOK_FD);
        if (!s->service.book)
            return errmsg_set(err, -EPROTO, "the book of open files cannot be read");
    }
    int error = open_store(config, s->service.book, &fs, err);
    if (error) {
        book_close(s->service.book);
        return error;
    }
    error = service_start(s, fs, err);
    if (!error)
        error = serve_mounts(s, err);
    else if (config->resumed)
        leave_to_next(err);
    early_stop(s->service.early);
    s->service.early = NULL;
    guard_stop(s->guard);
    s->guard = NULL;
    service_stop(&s->service);

    int close_error = fs_close(fs);
    if (close_error == 0)
        g_message("%s: closed", config->store_path);
    else if (error == 0)
        error = errmsg_set(err, close_error, "%s: the last commit failed: %s", config->store_path,
                           g_strerror(-close_error));
    return error;
}

/* Its opens would count with passthrough or a view. Under a supervisor each daemon has one of its
 * own: what is being made by then is left to the kernel. */
static bool may_write_early(const struct fuse_mount_config *config)
{
    return config->main.writeback && !config->fs.read_only && !config->view.path &&
           !config->main.passthrough && geteuid() == 0;
}

int fuse_mount_run(const struct fuse_mount_config *config, struct errmsg *err)
{
    struct session s = {.config = config, .service = {.upgrade_fd = -1}};

    /* First of all, since it forks. A supervisor does without: no thread of ours waits in the
     * kernel for what only we can do (fuse_flush.h). */
    if (!config->handover)
        s.guard = guard_start();
    if (may_write_early(config))
        s.service.early = early_start(config->main.path);
    s.signal_fd = signals_to_fd();
    int error;
    if (s.signal_fd < 0)
        error = errmsg_set(err, -errno, "signalfd: %s", g_strerror(errno));
    else
        error = run(&s, err);
    early_stop(s.service.early);
    guard_stop(s.guard);
    if (s.signal_fd >= 0)
        close(s.signal_fd);
    return error;
}

int fuse_mount_check(const struct fuse_mount_config *config, struct errmsg *err)
{
    struct mount main = main_mount(config), view = view_mount(config);
    struct superblock superblock;
    int error = superblock_read(config->store_path, config->fs.read_only, &superblock, err);
    if (!error)
        error = fuse_resume_check(&config->main, &main, err);
    if (!error && has_view(config))
        error = fuse_resume_check(&config->view, &view, err);
    return error;
}
