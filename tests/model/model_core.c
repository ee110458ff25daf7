// SPDX-License-Identifier: Apache-2.0
/*
 * model_core.c - random operations on files of one store, without a mount,
 * against plain byte arrays.
 *
 *   model_core [--seed N] [--ops N] [--chunk-size BYTES] [--journal] [--no-kill] [--keep]
 *              [--verbose]
 *
 * The store lives in a directory below $TMPDIR (or /dev/shm, or /tmp), and is
 * opened again and again, each time in a new process that works for a while
 * and then ends in one of four ways:
 *
 *   close   fs_close; everything must be there next time
 *   exit    _exit in the middle of it, without a word to the store
 *   kill    SIGKILL from outside, at any moment
 *   power   as exit, and what was not synced is lost, or not, page by page and
 *           name by name (disk.h); model_power.c has much more of that
 *
 * After the latter three, what the last successful fs_commit covered must be
 * there, byte for byte, in every file that was not changed since; in one that
 * was, each byte must be one that the file had at some moment since then. And
 * fsck must be content each time.
 *
 * --journal: each process has the same journal (journal.h), there are no power cuts, and
 * after each crash *all* operations that had ended must be there. Now and then a process
 * is killed while it opens the store, that is, while it does again what was left.
 *
 * The first process never opens the store. It repeats the operations on its
 * own model (ops.h), so it knows what the others had done when they died.
 */
#include "cowfs/journal.h"
#include "tests/model/disk/disk.h"
#include "tests/model/lib/compare.h"
#include "tests/model/lib/ops.h"
#include "tests/model/lib/scratch.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum end { END_CLOSE, END_EXIT, END_KILL, END_POWER };

/* Between the processes. Operation numbers; UINT64_MAX: none yet. */
struct shared {
    atomic_uint_fast64_t begun;     /* the newest that was begun */
    atomic_uint_fast64_t committed; /* the newest successful fs_commit; with a journal: the
                                       newest that ended */
    atomic_bool ready;              /* opened, and recovered */
};

struct options {
    uint64_t seed, ops;
    uint32_t chunk_bytes;
    bool kill, keep, verbose, journal;
};

/* One life of the store. */
struct epoch {
    uint64_t number, first, end; /* operations */
    enum end way;
    unsigned kill_after_us;
    unsigned kills_in_open, kill_in_open_us;
    bool after_crash;
    bool last;
    struct fs_config config;
};

static char *store;
static int journal_fd;
static struct shared *shared;
static struct options options = {.ops = 1000, .chunk_bytes = 4096, .kill = true};

static struct fs_config choose_config(struct rng *r)
{
    static const uint64_t caches[] = {1, 1 << 18, 0};
    static const unsigned intervals[] = {15, 5000, 5000};
    static const uint64_t rates[] = {0, 0, UINT64_C(8) << 20};
    return (struct fs_config){
        .create = true,
        .chunk_bytes = options.chunk_bytes,
        .cache_bytes = caches[rng_below(r, G_N_ELEMENTS(caches))],
        .commit_interval_ms = intervals[rng_below(r, G_N_ELEMENTS(intervals))],
        .seal_background = rng_percent(r, 60),
        .seal_delay_ms = 1 + (unsigned)rng_below(r, 100),
        .seal_rate_bytes = rates[rng_below(r, G_N_ELEMENTS(rates))],
        .journal_fd = journal_fd,
        .view_bytes = rng_percent(r, 50),
    };
}

static struct epoch choose_epoch(uint64_t number, uint64_t first, bool after_crash)
{
    struct rng r = rng_of(options.seed, (UINT64_C(1) << 60) + number);
    struct epoch e = {
        .number = number,
        .first = first,
        .end = MIN(first + 20 + rng_below(&r, 200), options.ops),
        .after_crash = after_crash,
        .kill_after_us = (unsigned)rng_below(&r, 400000),
        .config = choose_config(&r),
    };
    e.last = e.end == options.ops;
    static const enum end ways[] = {END_CLOSE, END_CLOSE, END_CLOSE, END_EXIT,
                                    END_KILL,  END_KILL,  END_POWER, END_POWER};
    e.way = ways[rng_below(&r, G_N_ELEMENTS(ways))];
    if (e.way == END_POWER && options.journal)
        e.way = END_KILL;
    if (e.way == END_KILL && !options.kill)
        e.way = END_EXIT;
    if (e.way == END_POWER)
        e.config.view_bytes = 0; /* the log of the disk would not see what mappings change */
    if (options.journal && options.kill && after_crash && rng_percent(&r, 50)) {
        e.kills_in_open = 1 + (unsigned)rng_below(&r, 3);
        e.kill_in_open_us = (unsigned)rng_below(&r, 30000);
    }
    if (e.last)
        e.way = END_CLOSE;
    return e;
}

/* ---- the process that opens the store ---- */

static struct fs *open_store(const struct epoch *e)
{
    struct fs *fs;
    struct errmsg err = {""};
    int error = fs_open(store, &e->config, &fs, &err);
    if (error)
        fail("open: %s", err.text);
    return fs;
}

static void commit(struct fs *fs)
{
    int error = fs_commit(fs);
    if (error)
        fail("commit: %s", g_strerror(-error));
}

static void close_store(struct world *w, struct fs *fs)
{
    world_close(w, fs);
    int error = fs_close(fs);
    if (error)
        fail("close: %s", g_strerror(-error));
}

/* In place of the store, what a power cut now leaves of it. */
__attribute__((noreturn)) static void cut_power(const struct disk_log *log, struct rng rng)
{
    char *left = g_strconcat(store, "-cut", NULL);
    char *gone = g_strconcat(store, "-gone", NULL);
    disk_stop();
    struct disk_replay *replay = disk_replay_new(log, DISK_LIE_NONE);
    disk_replay_advance(replay, disk_log_count(log));
    disk_replay_build(replay, left, &rng);
    /* Not by the functions that are stopped. */
    if (syscall(SYS_rename, store, gone) || syscall(SYS_rename, left, store))
        _exit(3);
    _exit(0);
}

static void live(struct world *w, const struct epoch *e)
{
    fail_context("opening");
    if (e->number)
        check_store(store);
    struct disk_log *disk = NULL;
    if (e->way == END_POWER) {
        disk = disk_log_new();
        disk_record(disk, store);
    }
    struct fs *fs = open_store(e);
    world_check(w, fs, e->after_crash);
    if (e->after_crash) {
        world_drop_touched(w, fs);
        commit(fs);
    }
    world_committed(w);
    w->track = false; /* the other process's business */
    atomic_store(&shared->ready, true);

    for (uint64_t i = e->first; i < e->end; i++) {
        bool committed;
        atomic_store(&shared->begun, i);
        world_step(w, fs, i, &committed);
        if (committed || options.journal)
            atomic_store(&shared->committed, i);
    }
    fail_context("the end");
    if (e->way == END_EXIT)
        _exit(0);
    if (e->way == END_POWER)
        cut_power(disk, rng_of(w->seed, (UINT64_C(1) << 61) + e->number));
    if (e->last) {
        world_check(w, fs, false);
        world_remove_all(w, fs);
    }
    close_store(w, fs);
    if (e->last)
        check_store(store);
    _exit(0);
}

/* ---- the process that does not ---- */

static void wait_ready(pid_t pid)
{
    struct timespec pause = {.tv_nsec = 1000000};
    while (!atomic_load(&shared->ready)) {
        siginfo_t info = {.si_pid = 0};
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid)
            return;
        nanosleep(&pause, NULL);
    }
}

/* A process that opens the store and is killed meanwhile, or right after. */
static void crash_in_open(const struct epoch *e)
{
    struct timespec pause = {.tv_nsec = (long)e->kill_in_open_us * 1000};
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        open_store(e);
        _exit(0);
    }
    nanosleep(&pause, NULL);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* True if it ended as it was told to. */
static bool run_epoch(struct world *w, const struct epoch *e, bool *killed)
{
    int status;
    for (unsigned i = 0; i < e->kills_in_open; i++)
        crash_in_open(e);
    atomic_store(&shared->begun, UINT64_MAX);
    atomic_store(&shared->committed, UINT64_MAX);
    atomic_store(&shared->ready, false);
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        live(w, e);
    }
    if (e->way == END_KILL) {
        struct timespec pause = {.tv_nsec = (long)e->kill_after_us * 1000};
        wait_ready(pid);
        nanosleep(&pause, NULL);
        kill(pid, SIGKILL);
    }
    if (waitpid(pid, &status, 0) != pid) {
        perror("waitpid");
        exit(1);
    }
    *killed = e->way == END_KILL && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    if (WIFSIGNALED(status) && !*killed)
        fprintf(stderr, "FAILED: died by signal %d\n", WTERMSIG(status));
    return *killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* What the other process did, in our own model. Returns the operation after
 * the last one. */
static uint64_t follow(struct world *w, const struct epoch *e)
{
    uint64_t begun = atomic_load(&shared->begun);
    uint64_t durable = atomic_load(&shared->committed);
    uint64_t end = begun == UINT64_MAX ? e->first : begun + 1;
    if (e->after_crash)
        world_drop_touched(w, NULL);
    world_committed(w);
    for (uint64_t i = e->first; i < end; i++) {
        bool committed;
        /* With a journal only what comes after the newest that ended is in doubt. */
        w->track = !options.journal || durable == UINT64_MAX || i >= durable;
        world_step(w, NULL, i, &committed);
        if ((committed || (options.journal && i == durable)) && durable != UINT64_MAX &&
            i <= durable)
            world_committed(w);
    }
    w->track = true;
    return end;
}

static int run(void)
{
    static const char *const ways[] = {"close", "exit", "kill", "power"};
    struct world w;
    bool after_crash = false;
    world_init(&w, options.seed, options.chunk_bytes);
    w.verbose = options.verbose;
    w.track = true;
    for (uint64_t number = 0, first = 0; first < options.ops; number++) {
        struct epoch e = choose_epoch(number, first, after_crash);
        bool killed;
        if (options.verbose)
            fprintf(stderr,
                    "epoch %" PRIu64 ": operations %" PRIu64 "..%" PRIu64
                    ", then %s; commit %u ms, cache %" PRIu64 ", seal %d\n",
                    number, first, e.end, ways[e.way], e.config.commit_interval_ms,
                    e.config.cache_bytes, e.config.seal_background);
        if (!run_epoch(&w, &e, &killed)) {
            fprintf(stderr,
                    "  epoch %" PRIu64 ", operation %" PRIu64 "; to do it again:\n"
                    "  model_core --seed %" PRIu64 " --ops %" PRIu64 " --chunk-size %" PRIu32
                    "%s%s --verbose\n",
                    number, (uint64_t)atomic_load(&shared->begun), options.seed, options.ops,
                    options.chunk_bytes, options.journal ? " --journal" : "",
                    options.kill ? "" : " --no-kill");
            return 1;
        }
        if (e.way == END_POWER)
            scratch_remove(g_strconcat(store, "-gone", NULL));
        first = follow(&w, &e);
        after_crash = killed || e.way == END_EXIT || e.way == END_POWER;
        if (!after_crash) {
            world_close(&w, NULL);
            world_committed(&w);
        }
    }
    world_clear(&w);
    printf("model_core: seed %" PRIu64 ", %" PRIu64 " operations, chunks of %" PRIu32 ": good\n",
           options.seed, options.ops, options.chunk_bytes);
    return 0;
}

/* ---- */

static void parse(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"seed", required_argument, NULL, 's'},       {"ops", required_argument, NULL, 'n'},
        {"chunk-size", required_argument, NULL, 'c'}, {"journal", no_argument, NULL, 'j'},
        {"no-kill", no_argument, NULL, 'k'},          {"keep", no_argument, NULL, 'K'},
        {"verbose", no_argument, NULL, 'v'},          {NULL, 0, NULL, 0},
    };
    int c;
    options.seed = (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid();
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case 's':
            options.seed = scratch_number(optarg);
            break;
        case 'n':
            options.ops = scratch_number(optarg);
            break;
        case 'c':
            options.chunk_bytes = (uint32_t)scratch_number(optarg);
            break;
        case 'j':
            options.journal = true;
            break;
        case 'k':
            options.kill = false;
            break;
        case 'K':
            options.keep = true;
            break;
        case 'v':
            options.verbose = true;
            break;
        default:
            exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    scratch_log_is_failure();
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    if (options.journal && (journal_fd = journal_memory_new()) < 0) {
        fprintf(stderr, "memfd: %s\n", g_strerror(-journal_fd));
        return 2;
    }
    store = scratch_make();
    int status = run();
    if (status || options.keep) {
        fprintf(stderr, "the store is kept in %s\n", store);
        g_free(store);
    } else {
        scratch_remove(store);
    }
    return status;
}
