// SPDX-License-Identifier: Apache-2.0
/*
 * cowfsd_mount.c - cowfs mount, also as mount(8)'s helper.
 *
 *   parent                          daemon
 *     checks paths and options
 *     fork ------------------------> setsid, opens the store, mounts, serves
 *     waits on a pipe <------------- "usable", or the reason why not
 *     exits with that                log to syslog, stdio to /dev/null
 *
 * The fork comes first because neither RocksDB nor threads survive one.
 *
 * With a supervisor (cowfsd_super.h) it is that what the parent forks: it mounts, and starts
 * the daemon as a program of its own, "cowfsd serve", with the same options.
 */
#include "cowfs/fuse_session.h"
#include "cowfs/handover.h"
#include "tools/cowfs_tool.h"
#include "tools/cowfsd.h"
#include "tools/cowfsd_log.h"
#include "tools/cowfsd_options.h"
#include "tools/cowfsd_super.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* mount(8)'s exit status for helpers. */
enum { HELPER_MISUSED = 1, HELPER_SYSTEM = 2, HELPER_FAILED = 32 };

static const char help_head[] =
    "Usage: cowfs mount [-f] [-o OPTIONS] STORE MOUNTPOINT\n"
    "Mounts the store in directory STORE on MOUNTPOINT, an existing directory, and returns when\n"
    "the mount can be used. A STORE that is missing or an empty directory is made.\n"
    "\n"
    "  -f, --foreground  serve in the foreground, log to the standard error\n"
    "  -o OPTIONS        options, separated by commas; may be given several times\n"
    "  -h, --help        show this help\n"
    "\n";

static const char help_tail[] =
    "\n"
    "Examples:\n"
    "  cowfs mount /srv/vms.cowfs /var/lib/vms\n"
    "  cowfs mount -o chunk_size=16K,seal_delay=300 /mnt/nvme/store /var/lib/vms\n"
    "  mount -t fuse.cowfs -o noexec /srv/vms.cowfs /var/lib/vms\n"
    "and in /etc/fstab:\n"
    "  /srv/vms.cowfs  /var/lib/vms  fuse.cowfs  noatime,nofail  0 0\n";

/* ---- the daemon's own process ---- */

/* Said to the parent: 0 and nothing more, or 1 and the reason. */
struct verdict {
    int failed;
    struct errmsg reason;
};

struct daemon {
    int pipe_fd; /* to the parent; -1 in the foreground, or under a supervisor */
    bool told;
    bool background;           /* without somebody who reads what is printed */
    struct handover *handover; /* NULL: no supervisor */
    bool resumed;              /* the daemon is not the first */
    bool check_only;           /* whether it could be the next */
};

static void tell_parent(struct daemon *d, const struct verdict *verdict)
{
    if (d->pipe_fd < 0 || d->told)
        return;
    d->told = true;
    /* Shorter than PIPE_BUF: in one piece. */
    if (write(d->pipe_fd, verdict, sizeof(*verdict)) != sizeof(*verdict))
        g_warning("the process that started this one is gone");
    close(d->pipe_fd);
}

static void on_ready(void *arg)
{
    struct daemon *d = arg;
    d->told |= d->handover != NULL;
    if (!d->background)
        return;
    log_to_syslog();
    /* Nothing of the caller's may stay open: ssh and scripts wait for that. */
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd <= 2; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
    tell_parent(d, &(struct verdict){0});
}

static void prepare_process(void)
{
    struct rlimit files;

    /* A descriptor for each segment in use, and RocksDB's. */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    /* Whoever ends this process takes all virtual machines with it: others
     * first. Needs root; without it things are as they are. */
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (write(fd, "-500", 4) != 4)
            g_debug("oom_score_adj stays as it is");
        close(fd);
    }
    /* The kernel may have to write dirty pages of this mount to get memory, and
     * then waits for us: so our own memory must not be had that way (prctl(2)).
     * Inherited by threads. */
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0)
        g_debug("PR_SET_IO_FLUSHER: %s", g_strerror(errno));
    /* A store is its owner's: what is inside has modes of its own. */
    umask(077);
    if (chdir("/") != 0)
        g_debug("chdir: %s", g_strerror(errno));
}

/* All absolute; view may be NULL. */
struct paths {
    char *store, *mountpoint, *view;
};

static int check_daemon(const struct fuse_mount_config *config)
{
    struct errmsg err = {0};
    if (fuse_mount_check(config, &err) == 0)
        return EXIT_DONE;
    fprintf(stderr, "%s\n", err.text);
    return EXIT_FAILED;
}

static int run_daemon(struct daemon *d, const struct mount_options *o, const struct paths *paths)
{
    struct verdict verdict = {.failed = 1};
    struct fuse_mount_config config = {
        .store_path = paths->store,
        .main =
            {
                .path = paths->mountpoint,
                .fuse_options = o->fuse->str,
                .writeback = o->writeback,
                .passthrough = o->passthrough,
            },
        .view =
            {
                .path = paths->view,
                .fuse_options = o->view_fuse->str,
                .passthrough = paths->view != NULL,
            },
        .max_read_bytes = o->max_read_bytes,
        .fs = o->fs,
        .threads = o->threads,
        .io_uring_depth = o->io_uring_depth,
        .read_ahead_kb = o->read_ahead_kb,
        .handover = d->handover,
        .resumed = d->resumed,
        .ready = on_ready,
        .arg = d,
    };
    if (d->check_only)
        return check_daemon(&config);
    prepare_process();
    int error = fuse_mount_run(&config, &verdict.reason);
    if (error == 0)
        return EXIT_DONE;
    if (d->handover && !d->told)
        handover_send(HANDOVER_CONTROL_FD, HANDOVER_FAILED, verdict.reason.text, -1);
    else if (d->pipe_fd >= 0 && !d->told)
        tell_parent(d, &verdict);
    else if (d->background)
        g_critical("%s", verdict.reason.text);
    else
        tool_error("%s", verdict.reason.text);
    return EXIT_FAILED;
}

/* ---- under a supervisor ---- */

static void on_verdict(void *arg, const char *reason)
{
    struct daemon *d = arg;
    struct verdict verdict = {.failed = 1};
    if (!reason) {
        on_ready(d);
    } else if (d->pipe_fd >= 0) {
        g_strlcpy(verdict.reason.text, reason, sizeof(verdict.reason.text));
        tell_parent(d, &verdict);
    } else {
        tool_error("%s", reason);
    }
}

static void add_word(GPtrArray *words, const char *word)
{
    g_ptr_array_add(words, g_strdup(word));
}

/* "cowfs serve [-b] [-c] [-s] -o OPTIONS... STORE MOUNTPOINT [VIEW]": see cmd_serve. */
static GPtrArray *daemon_words(const struct daemon *d, const struct mount_options *o,
                               const struct paths *paths)
{
    GPtrArray *words = g_ptr_array_new_with_free_func(g_free);
    add_word(words, "cowfs");
    add_word(words, "serve");
    if (d->background)
        add_word(words, "-b");
    if (o->sloppy)
        add_word(words, "-s");
    for (guint i = 0; i < o->lists->len; i++) {
        add_word(words, "-o");
        add_word(words, o->lists->pdata[i]);
    }
    add_word(words, "--");
    add_word(words, paths->store);
    add_word(words, paths->mountpoint);
    if (paths->view)
        add_word(words, paths->view);
    g_ptr_array_add(words, NULL);
    return words;
}

static int run_process(struct daemon *d, const struct mount_options *o, const struct paths *paths)
{
    if (!o->supervise) {
        if (!o->nosupervise)
            g_message("%s: over io_uring a mount does not survive its daemon", paths->mountpoint);
        return run_daemon(d, o, paths);
    }
    GPtrArray *words = daemon_words(d, o, paths);
    struct supervise_config config = {
        .point = {.path = paths->mountpoint, .fuse_options = o->fuse->str},
        .view = {.path = paths->view, .fuse_options = o->view_fuse->str},
        .store_path = paths->store,
        .daemon_argv = (char **)words->pdata,
        .optional = !o->supervise_asked,
        .tell = on_verdict,
        .arg = d,
    };
    int status = supervise(&config);
    g_ptr_array_free(words, TRUE);
    return status >= 0 ? status : run_daemon(d, o, paths);
}

static int run_in_background(const struct mount_options *o, const struct paths *paths)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) {
        tool_error("pipe: %s", g_strerror(errno));
        return EXIT_FAILED;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        tool_error("fork: %s", g_strerror(errno));
        return EXIT_FAILED;
    }
    if (pid == 0) {
        close(fds[0]);
        setsid();
        struct daemon d = {.pipe_fd = fds[1], .background = true};
        exit(run_process(&d, o, paths));
    }
    close(fds[1]);
    struct verdict verdict = {0};
    ssize_t got;
    do
        got = read(fds[0], &verdict, sizeof(verdict));
    while (got < 0 && errno == EINTR);
    close(fds[0]);
    if (got == sizeof(verdict)) {
        if (!verdict.failed)
            return EXIT_DONE;
        tool_error("%s", verdict.reason.text);
    } else {
        int status = 0;
        waitpid(pid, &status, 0);
        if (WIFSIGNALED(status))
            tool_error("%s: the daemon was killed by signal %d", paths->store, WTERMSIG(status));
        else
            tool_error("%s: the daemon ended early", paths->store);
    }
    return EXIT_FAILED;
}

/* ---- paths ---- */

/* The path without links and dots; its last part may be missing yet. NULL:
 * said so already. Freed with free(3). */
static char *resolve_store(const char *path)
{
    char *resolved = realpath(path, NULL);
    if (resolved)
        return resolved;
    if (errno == ENOENT) {
        g_autofree char *parent = g_path_get_dirname(path);
        g_autofree char *base = g_path_get_basename(path);
        char *directory = realpath(parent, NULL);
        if (directory) {
            g_autofree char *joined = g_build_filename(directory, base, NULL);
            free(directory);
            return strdup(joined);
        }
        tool_error("%s: %s", parent, g_strerror(errno));
        return NULL;
    }
    tool_error("%s: %s", path, g_strerror(errno));
    return NULL;
}

static char *resolve_mountpoint(const char *path)
{
    char *resolved = realpath(path, NULL);
    /* Opening it asks the daemon of a mount that is there already; looking at
     * it may be answered by the kernel alone, for a dead one, too. */
    int fd = resolved ? open(resolved, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        close(fd);
        return resolved;
    }
    if (errno == ENOTCONN || errno == ECONNABORTED)
        tool_error("%s: the daemon of the mount there is gone; 'umount -l %s' removes that mount",
                   path, path);
    else
        tool_error("%s: %s", path, g_strerror(errno));
    free(resolved);
    return NULL;
}

/* Whether `inner` is `outer` or lies below. */
static bool lies_in(const char *inner, const char *outer)
{
    size_t len = strlen(outer);
    if (strcmp(outer, "/") == 0)
        return true;
    return strncmp(inner, outer, len) == 0 && (inner[len] == '\0' || inner[len] == '/');
}

/* Whether a mount point and the store do not lie within each other. */
static bool apart(const char *store, const char *mountpoint)
{
    if (lies_in(store, mountpoint))
        /* The daemon would wait for itself. */
        tool_error("%s: the store lies inside the mount point %s", store, mountpoint);
    else if (lies_in(mountpoint, store))
        tool_error("%s: the mount point lies inside the store %s", mountpoint, store);
    else
        return true;
    return false;
}

static bool check_paths(const struct paths *paths)
{
    if (!apart(paths->store, paths->mountpoint))
        return false;
    if (!paths->view)
        return true;
    if (lies_in(paths->view, paths->mountpoint) || lies_in(paths->mountpoint, paths->view)) {
        tool_error("option view=%s: lies inside the mount point %s, or the other way round",
                   paths->view, paths->mountpoint);
        return false;
    }
    return apart(paths->store, paths->view);
}

static int mount_store(struct mount_options *o, const char *store_arg, const char *mountpoint_arg,
                       bool foreground)
{
    int status = EXIT_FAILED;
    struct paths paths = {.store = resolve_store(store_arg)};
    bool ok = paths.store && (paths.mountpoint = resolve_mountpoint(mountpoint_arg));
    if (ok && o->view_path)
        ok = (paths.view = resolve_mountpoint(o->view_path)) != NULL;
    if (ok && check_paths(&paths)) {
        mount_options_finish(o, paths.store);
        log_to_stderr(o->log_level);
        if (foreground) {
            struct daemon d = {.pipe_fd = -1};
            status = run_process(&d, o, &paths);
        } else {
            status = run_in_background(o, &paths);
        }
    }
    free(paths.store);
    free(paths.mountpoint);
    free(paths.view);
    return status;
}

/* ---- the two command lines ---- */

int cmd_mount(int argc, char **argv)
{
    static const struct option options[] = {
        {"foreground", no_argument, NULL, 'f'},
        {"options", required_argument, NULL, 'o'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct mount_options o;
    struct errmsg err;
    bool foreground = false;
    int option, status = -1;

    mount_options_init(&o);
    while (status < 0 && (option = tool_getopt(argc, argv, "fo:h", options)) != -1) {
        switch (option) {
        case 'f':
            foreground = true;
            break;
        case 'o':
            if (mount_options_parse(&o, optarg, false, &err) != 0)
                status = tool_misused("%s", err.text);
            break;
        case 'h':
            fputs(help_head, stdout);
            fputs(mount_options_help, stdout);
            status = tool_help(help_tail);
            break;
        default:
            status = EXIT_MISUSED;
        }
    }
    if (status < 0 && mount_options_settle(&o, &err) != 0)
        status = tool_misused("%s", err.text);
    if (status < 0 && argc - optind != 2)
        status = tool_misused("exactly a store and a mount point are needed");
    if (status < 0)
        status = mount_store(&o, argv[optind], argv[optind + 1], foreground);
    mount_options_clear(&o);
    return status;
}

/* Not called by people: how a supervisor starts its daemons. The descriptors are in handover.h. */
int cmd_serve(int argc, char **argv)
{
    struct mount_options o;
    struct errmsg err;
    struct daemon d = {.pipe_fd = -1};
    bool sloppy = false;
    int option, status = -1;

    for (int fd = HANDOVER_FUSE_FD; fd < HANDOVER_FD_END; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    d.resumed = fcntl(HANDOVER_LOCK_FD, F_GETFD) >= 0; /* the first daemon takes the lock itself */
    mount_options_init(&o);
    while (status < 0 && (option = getopt(argc, argv, "bcso:")) != -1) {
        if (option == 'b')
            d.background = true;
        else if (option == 'c')
            d.check_only = true;
        else if (option == 's')
            sloppy = true;
        else if (option != 'o' || mount_options_parse(&o, optarg, sloppy, &err) != 0)
            status = EXIT_MISUSED;
    }
    if (status < 0 &&
        (argc - optind < 2 || argc - optind > 3 || (argc - optind == 3) != (o.view_path != NULL) ||
         mount_options_settle(&o, &err) != 0))
        status = EXIT_MISUSED;
    d.handover = status < 0 ? handover_map(HANDOVER_STATE_FD) : NULL;
    if (d.handover) {
        struct paths paths = {
            .store = argv[optind], .mountpoint = argv[optind + 1], .view = argv[optind + 2]};
        mount_options_finish(&o, paths.store);
        log_to_stderr(o.log_level);
        if (d.background && d.resumed && !d.check_only)
            log_to_syslog();
        status = run_daemon(&d, &o, &paths);
    } else {
        tool_error("is started by 'cowfs mount' alone");
        status = EXIT_MISUSED;
    }
    mount_options_clear(&o);
    return status;
}

int mount_helper(int argc, char **argv)
{
    struct mount_options o;
    struct errmsg err;
    bool sloppy = false, fake = false, verbose = false;
    GPtrArray *lists = g_ptr_array_new();
    int option, status = -1;

    mount_options_init(&o);
    opterr = 0;
    while (status < 0 && (option = getopt(argc, argv, "sfnvo:t:N:h")) != -1) {
        switch (option) {
        case 's':
            sloppy = true;
            break;
        case 'f':
            fake = true;
            break;
        case 'v':
            verbose = true;
            break;
        case 'o':
            g_ptr_array_add(lists, optarg);
            break;
        case 'n': /* there is no mtab to be left alone */
        case 't': /* the type is how we came here */
            break;
        case 'N':
            tool_error("-N: mounting in another namespace is not supported; use nsenter(1)");
            status = HELPER_MISUSED;
            break;
        case 'h':
            fputs("Usage: mount.fuse.cowfs STORE MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]\n"
                  "The form in which mount(8) calls 'cowfs mount'; see 'cowfs mount --help'.\n",
                  stdout);
            status = tool_finish(EXIT_DONE);
            break;
        default:
            tool_error("unknown option '-%c'", optopt);
            status = HELPER_MISUSED;
        }
    }
    for (guint i = 0; status < 0 && i < lists->len; i++) {
        if (mount_options_parse(&o, lists->pdata[i], sloppy, &err) != 0) {
            tool_error("%s", err.text);
            status = HELPER_MISUSED;
        }
    }
    if (status < 0 && mount_options_settle(&o, &err) != 0) {
        tool_error("%s", err.text);
        status = HELPER_MISUSED;
    }
    if (status < 0 && argc - optind != 2) {
        tool_error("exactly a store and a mount point are needed");
        status = HELPER_MISUSED;
    }
    if (status < 0 && fake)
        status = EXIT_DONE;
    if (status < 0) {
        status = mount_store(&o, argv[optind], argv[optind + 1], false);
        if (status != EXIT_DONE)
            status = HELPER_FAILED;
        else if (verbose)
            printf("%s mounted on %s\n", argv[optind], argv[optind + 1]);
    }
    g_ptr_array_free(lists, TRUE);
    mount_options_clear(&o);
    return status;
}
