// SPDX-License-Identifier: Apache-2.0
/* faults.c - see faults.h. */
#include "tests/model/disk/faults.h"

#include "tests/model/lib/scratch.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

bool faults_ended_well(pid_t pid)
{
    int status;
    g_assert(waitpid(pid, &status, 0) == pid);
    if (WIFSIGNALED(status))
        fprintf(stderr, "FAILED: died by signal %d\n", WTERMSIG(status));
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

pid_t faults_start(void)
{
    fflush(NULL);
    pid_t pid = fork();
    g_assert(pid >= 0);
    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

static void tell_failed_syncs(const struct disk_log *log)
{
    struct disk_replay *replay = disk_replay_new(log, DISK_LIE_NONE);
    for (uint64_t i = 0; i < disk_log_count(log); i++) {
        const struct disk_op *op = disk_log_op(log, i);
        disk_replay_advance(replay, i + 1);
        if (op->kind == DISK_SYNC_END && op->error)
            fprintf(stderr, "  operation %" PRIu64 ": the sync of '%s' failed\n", i,
                    disk_replay_name(replay, op->file));
    }
    disk_replay_free(replay);
}

/* False at the end: no call was left to fail. */
static bool run_one(struct faults *f, const char *scratch, bool *good)
{
    struct disk_log *log = disk_log_new();
    g_autofree char *store = g_build_filename(scratch, "store", NULL);
    g_autofree char *left = g_build_filename(scratch, "left", NULL);
    struct rng rng = rng_of(f->k, 7);
    *f->told = (struct faults_told){0};
    g_assert(g_mkdir_with_parents(store, 0700) == 0);
    pid_t pid = faults_start();
    if (pid == 0) {
        disk_record(log, store);
        f->work(f, store);
    }
    *good = faults_ended_well(pid);
    if (f->verbose)
        tell_failed_syncs(log);
    if (*good) {
        struct disk_replay *replay = disk_replay_new(log, DISK_LIE_NONE);
        disk_replay_advance(replay, disk_log_count(log));
        disk_replay_build(replay, left, &rng);
        disk_replay_free(replay);
        pid = faults_start();
        if (pid == 0)
            f->look(f, left);
        *good = faults_ended_well(pid);
        scratch_remove(g_strdup(left));
    }
    scratch_remove(g_strdup(store));
    disk_log_free(log);
    if (!*good)
        fprintf(stderr,
                "  %s --error %s --from %" PRIu64 " --to %" PRIu64 " --run %" PRIu64 " --verbose\n",
                f->name, f->error == EIO ? "EIO" : "ENOSPC", f->k, f->k, f->run);
    return f->told->failed > 0 || f->told->calls == 0;
}

static int run(struct faults *f, const char *scratch)
{
    uint64_t bad = 0;
    f->k = f->from;
    for (bool more = true; more && f->k <= f->to; f->k++) {
        bool good;
        more = run_one(f, scratch, &good);
        bad += !good;
    }
    printf("%s: %s at each of %" PRIu64 " calls: %" PRIu64 " times wrong\n", f->name,
           f->error == EIO ? "EIO" : "ENOSPC", f->k - f->from, bad);
    return bad ? 1 : 0;
}

static void parse(struct faults *f, int argc, char **argv)
{
    static const struct option long_options[] = {
        {"error", required_argument, NULL, 'e'}, {"from", required_argument, NULL, 'f'},
        {"to", required_argument, NULL, 't'},    {"run", required_argument, NULL, 'r'},
        {"verbose", no_argument, NULL, 'v'},     {NULL, 0, NULL, 0},
    };
    int c;
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case 'e':
            f->error = strcmp(optarg, "EIO") == 0 ? EIO : ENOSPC;
            break;
        case 'f':
            f->from = scratch_number(optarg);
            break;
        case 't':
            f->to = scratch_number(optarg);
            break;
        case 'r':
            f->run = scratch_number(optarg);
            break;
        case 'v':
            f->verbose = true;
            break;
        default:
            exit(2);
        }
    }
}

static void log_quietly(const char *domain, GLogLevelFlags level, const char *message, void *arg)
{
    const struct faults *f = arg;
    (void)domain, (void)level;
    if (f->verbose)
        fprintf(stderr, "  log: %s\n", message);
}

void faults_begin(const struct faults *f)
{
    disk_fail(f->k, f->run, f->error);
}

void faults_end(const struct faults *f)
{
    f->told->calls = disk_calls(&f->told->failed);
    disk_fail(0, 0, 0);
}

int faults_main(struct faults *f, int argc, char **argv)
{
    f->to = UINT64_MAX;
    f->run = 1;
    parse(f, argc, argv);
    g_log_set_default_handler(log_quietly, f);
    f->told =
        mmap(NULL, sizeof(*f->told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (f->told == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    char *scratch = scratch_make();
    int status = 0;
    if (f->error) {
        status = run(f, scratch);
    } else {
        for (unsigned i = 0; i < 2; i++) {
            f->error = i ? EIO : ENOSPC;
            status |= run(f, scratch);
        }
    }
    scratch_remove(scratch);
    return status;
}
