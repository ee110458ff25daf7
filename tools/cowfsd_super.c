// SPDX-License-Identifier: Apache-2.0
/*
 * cowfsd_super.c - see cowfsd_super.h. docs/DESIGN.md, "The daemon may die", has the reasons.
 *
 *   FIRST      the first daemon is about to open the store: it answers the kernel. If it
 *              fails there is no mount
 *   SERVING    a daemon has said that it is ready
 *   RESTARTING it died; the next one opens the store, and has the kernel send again what was
 *              not answered. Callers wait meanwhile
 *   ENDING     somebody has unmounted, or a signal asks for that
 *
 * This process has nothing to do with the mount or the store but a few descriptors, so
 * that it never waits for the daemon, as whoever touches the mount would.
 */
#include "tools/cowfsd_super.h"
#include "cowfs/book.h"
#include "cowfs/fuse_flush.h"
#include "cowfs/fuse_guard.h"
#include "cowfs/fuse_resume.h"
#include "cowfs/handover.h"
#include "cowfs/journal.h"
#include "tools/cowfs_tool.h"
#include "tools/cowfsd_hurry.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    /* Starts in a row that do not get as far as to serve. */
    FAILURES_MAX = 5,
    /* Deaths in a row, not by SIGKILL, each soon after the beginning. One request that kills is
     * seen to by handover.h before. */
    CRASHES_MAX = 20,
    SHORT_LIFE_MS = 5000,
    EXEC_FAILED = 127,
    /* How long a daemon goes before all else: at most, and what is left of it when it serves, for
     * those who have waited. */
    HURRY_MS = 1000,
    HURRY_SERVING_MS = 50,
};
static const int delays_ms[FAILURES_MAX] = {0, 50, 200, 1000, 3000};

/* One mount. */
struct premount {
    const struct fuse_mount_point *point;
    struct fuse_session *session; /* libfuse's, for unmounting; NULL: it is not mounted */
    int fuse_fd, flush_fd;        /* -1: as long as there is none */
    pid_t flusher;                /* 0: there is none */
};

struct supervisor {
    const struct supervise_config *config;
    struct handover *state;
    struct premount main, view;
    int state_fd, journal_fd, book_fd, signal_fd;
    int lock_fd;      /* -1 in FIRST */
    int guard_fds[2]; /* a pipe; guard_fds[1] is this process's and the daemons' alone */
    pid_t guard;      /* 0 in FIRST */
    int control_fd;   /* to the daemon; -1 between two */
    char *program;    /* where cowfsd is installed */
    int saved_fd;     /* the program that served last, and well: what is installed may be broken */
    int tried_fd;     /* the installed one, which starts, or serves; -1: the saved one does */
    struct stat broken; /* the installed one that failed where the saved one did not; st_ino 0 */
    pid_t daemon;       /* 0: there is none just now */
    int64_t started_us;
    struct hurry hurry; /* the daemon's */
    bool served;        /* a daemon has been ready: not FIRST any more */
    bool ready;         /* this daemon has */
    bool in_order;      /* this daemon ends because it shall */
    int end_signal;
    unsigned failures, crashes;
    char *reason;  /* why the daemon failed, in its own words */
    char *verdict; /* why there is no mount: said when there is none */
    bool over;
    int status;
};

static void end_with(struct supervisor *s, int status)
{
    s->over = true;
    s->status = status;
}

/* ---- starting a daemon ---- */

/* In the child: `from` are numbers beyond all targets. */
static void place_descriptors(const int from[HANDOVER_FD_END])
{
    for (int target = HANDOVER_FUSE_FD; target < HANDOVER_FD_END; target++) {
        close(target);
        if (from[target] >= 0)
            dup2(from[target], target);
    }
    close_range(HANDOVER_FD_END, ~0U, CLOSE_RANGE_CLOEXEC);
}

__attribute__((noreturn)) static void become_daemon(const struct supervisor *s, int control_fd,
                                                    bool saved, bool hurry)
{
    static const int high = 3 * HANDOVER_FD_END;
    int from[HANDOVER_FD_END];
    sigset_t none;
    for (int i = 0; i < HANDOVER_FD_END; i++)
        from[i] = -1;
    from[HANDOVER_FUSE_FD] = fcntl(s->main.fuse_fd, F_DUPFD, high);
    from[HANDOVER_STATE_FD] = fcntl(s->state_fd, F_DUPFD, high);
    from[HANDOVER_JOURNAL_FD] = fcntl(s->journal_fd, F_DUPFD, high);
    from[HANDOVER_CONTROL_FD] = fcntl(control_fd, F_DUPFD, high);
    from[HANDOVER_FLUSH_FD] = fcntl(s->main.flush_fd, F_DUPFD, high);
    from[HANDOVER_LOCK_FD] = s->lock_fd < 0 ? -1 : fcntl(s->lock_fd, F_DUPFD, high);
    from[HANDOVER_BOOK_FD] = fcntl(s->book_fd, F_DUPFD, high);
    from[HANDOVER_VIEW_FUSE_FD] = fcntl(s->view.fuse_fd, F_DUPFD, high);
    from[HANDOVER_GUARD_FD] = fcntl(s->guard_fds[1], F_DUPFD, high);
    from[HANDOVER_VIEW_FLUSH_FD] = fcntl(s->view.flush_fd, F_DUPFD, high);
    int saved_fd = fcntl(s->saved_fd, F_DUPFD, high);
    /* A Ctrl-C is for the supervisor, which passes it on once. */
    setpgid(0, 0);
    if (hurry)
        hurry_begin();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    place_descriptors(from);
    if (saved)
        execveat(saved_fd, "", s->config->daemon_argv, environ, AT_EMPTY_PATH);
    else
        execv(s->program, s->config->daemon_argv);
    _exit(EXEC_FAILED);
}

static void replace_fd(int *fd, int by)
{
    if (*fd >= 0)
        close(*fd);
    *fd = by;
}

static bool same_program(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
           a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* -1: there is none, or it has failed before. */
static int open_installed(const struct supervisor *s)
{
    struct stat st;
    int fd = open(s->program, O_PATH | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &st) != 0 || same_program(&st, &s->broken))) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Of the daemon that has ended: whether what is installed shall be started once more. */
static void judge_program(struct supervisor *s, bool failed, bool proven)
{
    struct stat tried, saved;
    if (s->tried_fd >= 0 && failed && fstat(s->tried_fd, &tried) == 0 &&
        fstat(s->saved_fd, &saved) == 0 && !same_program(&tried, &saved)) {
        s->broken = tried;
        g_critical("%s: what is installed as %s fails: the program that served before goes on",
                   s->config->point.path, s->program);
        return;
    }
    if (s->tried_fd >= 0 && proven) {
        replace_fd(&s->saved_fd, s->tried_fd);
        s->tried_fd = -1;
    }
}

static void start_daemon(struct supervisor *s)
{
    int pair[2];
    s->ready = s->in_order = false;
    s->started_us = g_get_monotonic_time();
    g_clear_pointer(&s->reason, g_free);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        s->failures++;
        return;
    }
    replace_fd(&s->tried_fd, open_installed(s));
    bool saved = s->tried_fd < 0;
    bool hurry = s->served && hurry_allow(&s->hurry, HURRY_MS);
    pid_t pid = fork();
    if (pid == 0)
        become_daemon(s, pair[1], saved, hurry);
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        s->failures++;
        return;
    }
    s->daemon = pid;
    replace_fd(&s->control_fd, pair[0]);
}

/* ---- what it says ---- */

static void on_ready(struct supervisor *s, int fd)
{
    s->ready = true;
    s->failures = 0;
    hurry_ends_in(&s->hurry, HURRY_SERVING_MS);
    if (s->served) {
        g_message("%s: process %d goes on, after %.0f ms", s->config->point.path, (int)s->daemon,
                  (double)(g_get_monotonic_time() - s->started_us) / 1e3);
        /* The last one died over it. */
        if (s->end_signal)
            kill(s->daemon, s->end_signal);
        return;
    }
    s->served = true;
    /* If this process and the daemon are killed, the flusher may be waiting in the kernel for pages
     * that nobody writes any more; and it has /dev/fuse. */
    const struct guarded mounts[] = {{s->state->main.dev, s->main.fuse_fd},
                                     {s->state->view.dev, s->view.fuse_fd}};
    s->guard = guard_start_for(mounts, s->view.session ? 2 : 1, s->guard_fds[0]);
    replace_fd(&s->guard_fds[0], -1);
    if (fd >= 0)
        replace_fd(&s->lock_fd, fcntl(fd, F_DUPFD_CLOEXEC, 0));
    s->config->tell(s->config->arg, NULL);
}

static void on_message(struct supervisor *s, struct handover_message *m, int fd)
{
    m->text[sizeof(m->text) - 1] = '\0';
    switch (m->event) {
    case HANDOVER_READY:
        on_ready(s, fd);
        break;
    case HANDOVER_ENDING:
        s->in_order = true;
        break;
    case HANDOVER_FAILED:
        g_free(s->reason);
        s->reason = g_strdup(m->text);
        break;
    default:
        break;
    }
    if (fd >= 0)
        close(fd);
}

static void read_control(struct supervisor *s)
{
    struct handover_message message;
    int fd, got;
    while (s->control_fd >= 0 && (got = handover_receive(s->control_fd, &message, &fd)) != 0) {
        if (got < 0)
            replace_fd(&s->control_fd, -1); /* its death will be told, too */
        else
            on_message(s, &message, fd);
    }
}

/* ---- its end ---- */

/* Ends all requests. What is mounted over us by somebody else is not asked to end. */
static void cut_off(const struct premount *p)
{
    struct pollfd device = {.fd = p->fuse_fd};
    if (p->session && poll(&device, 1, 0) == 0 &&
        umount2(p->point->path, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW) != 0)
        g_debug("umount: %s", g_strerror(errno));
}

static void give_up(struct supervisor *s, const char *why)
{
    g_critical("%s: %s; given up: who uses the mount gets errors from now on",
               s->config->point.path, why);
    cut_off(&s->view);
    cut_off(&s->main);
    end_with(s, EXIT_FAILED);
}

static void describe(int status, char *out, size_t size)
{
    if (WIFSIGNALED(status))
        g_snprintf(out, size, "was killed by signal %d (%s)", WTERMSIG(status),
                   strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) == EXEC_FAILED)
        g_snprintf(out, size, "could not be started");
    else
        g_snprintf(out, size, "ended with status %d", WEXITSTATUS(status));
}

/* The first one has ended before it was ready. */
static void no_mount(struct supervisor *s, int status)
{
    char how[128];
    describe(status, how, sizeof(how));
    s->verdict = s->reason ? g_strdup(s->reason)
                           : g_strdup_printf("%s: the daemon %s", s->config->store_path, how);
    end_with(s, EXIT_FAILED);
}

static void on_death(struct supervisor *s, int status)
{
    char how[128];
    bool upgrade = WIFEXITED(status) && WEXITSTATUS(status) == HANDOVER_EXIT_UPGRADE;
    read_control(s);
    replace_fd(&s->control_fd, -1);
    pid_t pid = s->daemon;
    s->daemon = 0;
    hurry_look(&s->hurry, 0);
    if (upgrade) {
        s->state->death_signal = 0;
        judge_program(s, false, true);
        s->broken.st_ino = 0; /* somebody wants it, and has asked it */
        g_message("%s: process %d has handed over", s->config->point.path, (int)pid);
        return;
    }
    if (!s->served) {
        no_mount(s, status);
        return;
    }
    if (WIFEXITED(status) && (s->in_order || WEXITSTATUS(status) == 0)) {
        end_with(s, WEXITSTATUS(status));
        return;
    }
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    bool short_life = g_get_monotonic_time() - s->started_us < SHORT_LIFE_MS * INT64_C(1000);
    s->failures += !s->ready;
    s->crashes = s->ready && !killed && short_life ? s->crashes + 1 : 0;
    s->state->death_signal = WIFSIGNALED(status) ? (uint32_t)WTERMSIG(status) : SIGABRT;
    describe(status, how, sizeof(how));
    g_critical("%s: the daemon, process %d, %s%s%s", s->config->point.path, (int)pid, how,
               s->reason ? ": " : "", s->reason ? s->reason : "");
    judge_program(s, !s->ready || (short_life && !killed), s->ready && !short_life);
}

static void on_child(struct supervisor *s)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == s->daemon)
            on_death(s, status);
        else if (pid == s->main.flusher) /* daemons notice, and do without */
            s->main.flusher = 0;
        else if (pid == s->view.flusher)
            s->view.flusher = 0;
        else if (pid == s->guard)
            s->guard = 0;
    }
}

static void on_signal(struct supervisor *s)
{
    struct signalfd_siginfo info;
    while (read(s->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGCHLD) {
            on_child(s);
            continue;
        }
        s->end_signal = (int)info.ssi_signo;
        if (s->daemon)
            kill(s->daemon, s->end_signal);
    }
}

/* ---- the life of the supervisor ---- */

/* Until when there is nothing to do but to wait: ms, or -1. */
static int next_start_ms(struct supervisor *s)
{
    if (s->daemon)
        return -1;
    if (s->failures >= FAILURES_MAX) {
        give_up(s, s->reason ? s->reason : "the daemon cannot be started again");
        return 0;
    }
    if (s->crashes >= CRASHES_MAX) {
        give_up(s, "the daemon dies again and again");
        return 0;
    }
    int64_t since_ms = (g_get_monotonic_time() - s->started_us) / 1000;
    return (int)MAX(0, delays_ms[s->failures] - since_ms);
}

static void run(struct supervisor *s)
{
    start_daemon(s);
    while (!s->over) {
        int wait_ms = next_start_ms(s);
        if (s->over)
            break;
        if (wait_ms == 0) {
            start_daemon(s);
            continue;
        }
        if (wait_ms < 0)
            wait_ms = hurry_look(&s->hurry, s->daemon);
        struct pollfd fds[] = {
            {.fd = s->signal_fd, .events = POLLIN},
            {.fd = s->control_fd, .events = POLLIN},
        };
        if (poll(fds, G_N_ELEMENTS(fds), wait_ms) < 0)
            continue;
        if (fds[1].revents)
            read_control(s);
        if (fds[0].revents)
            on_signal(s);
    }
}

/* Nobody else is worth more: it is small, and the mount is gone without it. */
static void protect_process(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "-1000", 5) != 5)
        g_debug("oom_score_adj stays as it is");
    if (fd >= 0)
        close(fd);
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0)
        g_debug("PR_SET_IO_FLUSHER: %s", g_strerror(errno));
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0)
        g_debug("mlockall: %s", g_strerror(errno));
    if (chdir("/") != 0)
        g_debug("chdir: %s", g_strerror(errno));
}

static int signals_to_fd(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* What is kept for the daemons. 0 or a negative errno. */
static int make_handover(struct supervisor *s)
{
    s->program = g_file_read_link("/proc/self/exe", NULL);
    s->saved_fd = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    s->state_fd = handover_memory_new();
    s->journal_fd = journal_memory_new();
    s->book_fd = book_memory_new();
    if (pipe2(s->guard_fds, O_CLOEXEC) != 0)
        return -errno;
    s->signal_fd = signals_to_fd();
    if (!s->program || s->saved_fd < 0 || s->signal_fd < 0)
        return -errno;
    if (s->state_fd < 0)
        return s->state_fd;
    if (s->journal_fd < 0)
        return s->journal_fd;
    if (s->book_fd < 0)
        return s->book_fd;
    s->state = handover_map(s->state_fd);
    return s->state ? 0 : -errno;
}

/* Mounts, with its flusher. */
static int premount(struct premount *p, const struct fuse_mount_point *point,
                    struct handover_link *link, struct errmsg *err)
{
    p->point = point;
    int error = fuse_premount(point, link, &p->session, &p->fuse_fd, err);
    if (error) {
        p->session = NULL;
        return error;
    }
    p->flusher = flusher_start(p->fuse_fd, &p->flush_fd);
    if (p->flusher >= 0)
        return 0;
    p->flusher = 0;
    return errmsg_set(err, -EAGAIN, "a process cannot be started");
}

/* The flusher before the unmounting, which waits for no one then. */
static void premount_end(struct premount *p)
{
    if (p->flusher > 0)
        kill(p->flusher, SIGKILL);
    if (p->session)
        fuse_premount_end(p->session);
    replace_fd(&p->flush_fd, -1);
}

static void guard_end(struct supervisor *s)
{
    if (s->guard <= 0)
        return;
    kill(s->guard, SIGKILL);
    while (waitpid(s->guard, NULL, 0) < 0 && errno == EINTR)
        ;
}

static int mount_all(struct supervisor *s, struct errmsg *err)
{
    const struct supervise_config *config = s->config;
    int error = premount(&s->main, &config->point, &s->state->main, err);
    if (!error && config->view.path)
        error = premount(&s->view, &config->view, &s->state->view, err);
    return error;
}

static int mount_and_run(struct supervisor *s)
{
    const struct supervise_config *config = s->config;
    struct errmsg err = {0};
    int error = make_handover(s);
    bool without = error && config->optional;
    if (error) {
        errmsg_set(&err, error, "%s: what it takes to restart the daemon: %s", config->point.path,
                   g_strerror(-error));
    } else {
        error = mount_all(s, &err);
        without = error == -ENOTSUP;
    }
    if (!error) {
        protect_process();
        run(s);
    } else if (without) {
        g_warning("%s: the mount will not survive its daemon", err.text);
    } else {
        config->tell(config->arg, err.text);
        end_with(s, EXIT_FAILED);
    }
    guard_end(s);
    premount_end(&s->view);
    premount_end(&s->main);
    if (s->verdict)
        config->tell(config->arg, s->verdict);
    return without ? -1 : s->status;
}

int supervise(const struct supervise_config *config)
{
    struct supervisor s = {
        .config = config,
        .main = {.fuse_fd = -1, .flush_fd = -1},
        .view = {.fuse_fd = -1, .flush_fd = -1},
        .state_fd = -1,
        .journal_fd = -1,
        .book_fd = -1,
        .signal_fd = -1,
        .lock_fd = -1,
        .guard_fds = {-1, -1},
        .control_fd = -1,
        .saved_fd = -1,
        .tried_fd = -1,
    };
    int status = mount_and_run(&s);
    int *fds[] = {&s.state_fd,   &s.journal_fd, &s.book_fd,  &s.signal_fd,    &s.lock_fd,
                  &s.control_fd, &s.saved_fd,   &s.tried_fd, &s.guard_fds[0], &s.guard_fds[1]};
    for (size_t i = 0; i < G_N_ELEMENTS(fds); i++)
        replace_fd(fds[i], -1);
    if (s.state)
        munmap(s.state, sizeof(*s.state));
    g_free(s.program);
    g_free(s.reason);
    g_free(s.verdict);
    return status;
}
