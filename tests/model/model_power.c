// SPDX-License-Identifier: Apache-2.0
/*
 * model_power.c - power cuts, at any operation of the disk.
 *
 *   model_power [--seed N] [--cuts N] [--ops N] [--chunk-size BYTES] [--lie data|log|names]
 *               [--keep] [--verbose]
 *
 * A process makes a store and works on it with random operations (ops.h) while
 * each change of its files is recorded (disk.h), RocksDB's included. Then, for
 * many points of that log, half of them within commits, the store is made as a
 * power cut there could have left it. It must open without repair, fsck must
 * find nothing, and files must be what was promised: what the last successful
 * fs_commit covered is there; in a file that was changed since each byte is one
 * that it had since then.
 *
 * At some cuts, the power fails once more while the store is opened and put in
 * order after the first time.
 *
 * At the end the program says where the cuts were, and fails if none hit the
 * middle of a commit. With --lie it believes syncs of segments, of RocksDB's
 * log, or of directories to do nothing, and fails if it does NOT notice.
 */
#include "tests/model/disk/disk.h"
#include "tests/model/lib/compare.h"
#include "tests/model/lib/ops.h"
#include "tests/model/lib/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CUTS_A_STORE = 60, BUILDS_A_CUT = 3 };
enum mark { MARK_BEGUN, MARK_COMMITTED, MARK_CLOSING, MARK_CLOSED };

/* Where in the life of a store a cut falls. */
enum place { AT_OPENING, AT_REST, AT_DATA, AT_LOG, AT_CLOSING, PLACES };
static const char *const place_names[PLACES] = {
    "while opening", "between commits", "in a commit before its log is written",
    "in a commit before its log is synced", "while closing"};

struct options {
    uint64_t seed, cuts, ops;
    uint32_t chunk_bytes;
    enum disk_lie lie;
    bool keep, verbose;
};

static struct options options = {.cuts = 200, .ops = 60, .chunk_bytes = 4096};
static char *scratch;

static struct {
    uint64_t cuts, at[PLACES], twice, missing, complete;
} told;

static struct fs_config choose_config(struct rng *r)
{
    static const uint64_t caches[] = {1, 1 << 18, 0};
    static const unsigned intervals[] = {5, 30, 5000};
    return (struct fs_config){
        .create = true,
        .chunk_bytes = options.chunk_bytes,
        .cache_bytes = caches[rng_below(r, G_N_ELEMENTS(caches))],
        .commit_interval_ms = intervals[rng_below(r, G_N_ELEMENTS(intervals))],
        .seal_background = rng_percent(r, 60),
        .seal_delay_ms = 1 + (unsigned)rng_below(r, 50),
    };
}

static struct fs *open_store(const char *path, const struct fs_config *config)
{
    struct fs *fs;
    struct errmsg err = {""};
    int error = fs_open(path, config, &fs, &err);
    if (error)
        fail("open: %s", err.text);
    return fs;
}

/* ---- processes: RocksDB is opened after a fork only ---- */

static pid_t start(void)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        _exit(2);
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (options.lie && !options.verbose)
            g_assert(freopen("/dev/null", "w", stderr));
    }
    return pid;
}

static bool ended_well(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid) {
        perror("waitpid");
        _exit(2);
    }
    if (WIFSIGNALED(status) && !options.lie)
        fprintf(stderr, "FAILED: died by signal %d\n", WTERMSIG(status));
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* ---- one who works ---- */

__attribute__((noreturn)) static void work(struct disk_log *log, const char *store, uint64_t seed,
                                           uint64_t ops)
{
    struct rng r = rng_of(seed, UINT64_C(1) << 60);
    struct fs_config config = choose_config(&r);
    struct world w;
    fail_context("working");
    world_init(&w, seed, options.chunk_bytes);
    w.verbose = options.verbose;
    disk_record(log, store);
    struct fs *fs = open_store(store, &config);
    for (uint64_t i = 0; i < ops; i++) {
        bool committed;
        disk_mark(MARK_BEGUN, i);
        world_step(&w, fs, i, &committed);
        if (committed)
            disk_mark(MARK_COMMITTED, i);
    }
    disk_mark(MARK_CLOSING, 0);
    world_close(&w, fs);
    int error = fs_close(fs);
    if (error)
        fail("close: %s", g_strerror(-error));
    disk_mark(MARK_CLOSED, 0);
    _exit(0);
}

/* ---- one who looks at what is left ---- */

struct image {
    const char *path;
    struct world *world;
    struct fs_config config;
    bool existed; /* the store had been opened before: then it is whole */
};

static void look(const struct image *image, bool and_go_on)
{
    struct world *w = image->world;
    if (image->existed)
        check_store(image->path);
    struct fs *fs = open_store(image->path, &image->config);
    world_check(w, fs, true);
    if (!and_go_on)
        return;
    world_drop_touched(w, fs);
    world_committed(w);
    int error = fs_commit(fs);
    if (!error)
        error = fs_close(fs);
    if (error)
        fail("commit after the cut: %s", g_strerror(-error));
    check_store(image->path);
}

/* The power fails again while the store is put in order. */
static void cut_again(const struct image *image, struct rng *rng)
{
    struct disk_log *log = disk_log_new();
    pid_t pid = start();
    if (pid == 0) {
        struct fs_config config = image->config;
        config.create = true;
        disk_record(log, image->path);
        disk_mark(MARK_BEGUN, 0);
        struct fs *fs = open_store(image->path, &config);
        disk_mark(MARK_CLOSING, 0);
        fs_commit(fs);
        _exit(0);
    }
    if (!ended_well(pid))
        _exit(1);
    uint64_t first = 0;
    uint64_t count = disk_log_count(log);
    while (disk_log_op(log, first)->kind != DISK_MARK)
        first++;
    struct disk_replay *replay = disk_replay_new(log, DISK_LIE_NONE);
    disk_replay_advance(replay, first + 1 + rng_below(rng, count - first));
    g_autofree char *path = g_strconcat(image->path, "-twice", NULL);
    disk_replay_build(replay, path, rng);
    disk_replay_free(replay);
    disk_log_free(log);
    pid = start();
    if (pid == 0) {
        struct image again = *image;
        again.path = path;
        look(&again, false);
        _exit(0);
    }
    if (!ended_well(pid))
        _exit(1);
    scratch_remove(g_steal_pointer(&path));
}

/* False if something is wrong with what is left. */
static bool check_image(const struct image *image, struct rng *rng)
{
    bool go_on = rng_percent(rng, 25);
    bool again = rng_percent(rng, 15);
    told.twice += again;
    pid_t pid = start();
    if (pid == 0) {
        fail_context(image->world->text);
        if (again)
            cut_again(image, rng);
        else
            look(image, go_on);
        _exit(0);
    }
    return ended_well(pid);
}

/* ---- where to cut ---- */

/* What is going on when the power fails before operation i. */
static enum place *places_of(const struct disk_log *log)
{
    uint64_t count = disk_log_count(log);
    enum place *places = g_new0(enum place, count + 1);
    struct disk_replay *names = disk_replay_new(log, DISK_LIE_NONE);
    enum place now = AT_OPENING;
    bool closing = false;
    for (uint64_t i = 0; i <= count; i++) {
        places[i] = closing && now == AT_REST ? AT_CLOSING : now;
        if (i == count)
            break;
        const struct disk_op *op = disk_log_op(log, i);
        disk_replay_advance(names, i + 1);
        if (op->kind == DISK_MARK) {
            now = now == AT_OPENING ? AT_REST : now;
            closing |= op->file == MARK_CLOSING;
            continue;
        }
        if (now == AT_OPENING)
            continue;
        const char *name = disk_replay_name(names, op->file);
        bool is_log = g_str_has_suffix(name, ".log");
        bool is_data = g_str_has_prefix(name, "segments");
        if (op->kind == DISK_SYNC_BEGIN && is_data && now == AT_REST)
            now = AT_DATA;
        else if (op->kind == DISK_WRITE && is_log)
            now = AT_LOG;
        else if (op->kind == DISK_SYNC_END && is_log)
            now = AT_REST;
    }
    disk_replay_free(names);
    return places;
}

static gint compare_cuts(gconstpointer a, gconstpointer b)
{
    const uint64_t *x = a;
    const uint64_t *y = b;
    return *x < *y ? -1 : *x > *y;
}

static GArray *choose_cuts(const enum place *places, uint64_t count, uint64_t wanted,
                           struct rng *rng)
{
    GArray *cuts = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    g_autoptr(GArray) inside = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    for (uint64_t i = 0; i <= count; i++)
        if (places[i] == AT_DATA || places[i] == AT_LOG)
            g_array_append_val(inside, i);
    for (uint64_t i = 0; i < wanted; i++) {
        uint64_t at = rng_below(rng, count + 1);
        if (i % 2 && inside->len)
            at = g_array_index(inside, uint64_t, rng_below(rng, inside->len));
        g_array_append_val(cuts, at);
    }
    g_array_sort(cuts, compare_cuts);
    return cuts;
}

/* ---- one store ---- */

/* What the world was like when the power failed before operation `cut`. */
static void follow(struct world *w, const struct disk_log *log, uint64_t from, uint64_t cut,
                   bool *existed)
{
    for (uint64_t i = from; i < cut; i++) {
        const struct disk_op *op = disk_log_op(log, i);
        bool committed;
        if (op->kind != DISK_MARK)
            continue;
        *existed = true;
        if (op->file == MARK_BEGUN) {
            world_step(w, NULL, op->offset, &committed);
        } else if (op->file == MARK_COMMITTED) {
            world_committed(w);
        } else if (op->file == MARK_CLOSED) {
            world_close(w, NULL);
            world_committed(w);
        }
    }
}

static bool cut_store(const struct disk_log *log, uint64_t seed, uint64_t cuts)
{
    struct rng rng = rng_of(seed, UINT64_C(1) << 61);
    uint64_t count = disk_log_count(log);
    enum place *places = places_of(log);
    GArray *at = choose_cuts(places, count, (cuts + BUILDS_A_CUT - 1) / BUILDS_A_CUT, &rng);
    struct disk_replay *replay = disk_replay_new(log, options.lie);
    struct world w;
    bool good = true;
    world_init(&w, seed, options.chunk_bytes);
    w.track = true;
    struct image image = {.world = &w, .path = g_build_filename(scratch, "image", NULL)};
    for (guint i = 0; i < at->len && good; i++) {
        uint64_t cut = g_array_index(at, uint64_t, i);
        follow(&w, log, i ? g_array_index(at, uint64_t, i - 1) : 0, cut, &image.existed);
        disk_replay_advance(replay, cut);
        for (unsigned n = 0; n < BUILDS_A_CUT && good; n++) {
            struct rng chance = rng_of(seed, cut * BUILDS_A_CUT + n);
            uint64_t missing = disk_replay_build(replay, image.path, &chance);
            image.config = choose_config(&chance);
            told.cuts++;
            told.at[places[cut]]++;
            told.missing += missing;
            told.complete += missing == 0;
            good = check_image(&image, &chance);
            if (!good && !options.lie)
                fprintf(stderr,
                        "  cut before operation %" PRIu64 " of %" PRIu64
                        " of the disk, %s; %" PRIu64
                        " pages and names missing; model_power --seed %" PRIu64 " --ops %" PRIu64
                        " --chunk-size %" PRIu32 "\n",
                        cut, count, place_names[places[cut]], missing, seed, options.ops,
                        options.chunk_bytes);
            if (good || !options.keep)
                scratch_remove(g_strdup(image.path));
        }
    }
    g_free((char *)(uintptr_t)image.path);
    world_clear(&w);
    disk_replay_free(replay);
    g_array_free(at, TRUE);
    g_free(places);
    return good;
}

static bool run_store(uint64_t seed, uint64_t cuts)
{
    struct rng r = rng_of(seed, UINT64_C(1) << 62);
    uint64_t ops = options.ops / 3 + rng_below(&r, options.ops);
    struct disk_log *log = disk_log_new();
    g_autofree char *store = g_build_filename(scratch, "store", NULL);
    g_assert(g_mkdir_with_parents(store, 0700) == 0);
    pid_t pid = start();
    if (pid == 0)
        work(log, store, seed, ops);
    bool good = ended_well(pid);
    if (!good)
        fprintf(stderr, "  the work itself failed: model_power --seed %" PRIu64 "\n", seed);
    scratch_remove(g_steal_pointer(&store));
    good = good && cut_store(log, seed, cuts);
    disk_log_free(log);
    return good;
}

static int run(void)
{
    bool good = true;
    for (uint64_t n = 0; told.cuts < options.cuts && good; n++)
        good = run_store(options.seed + n, MIN(options.cuts - told.cuts, CUTS_A_STORE));
    if (options.lie) {
        printf("model_power: %s after %" PRIu64 " cuts\n",
               good ? "FAILED: the lie was not noticed" : "the lie was noticed", told.cuts);
        return good ? 1 : 0;
    }
    printf("model_power: seed %" PRIu64 ", chunks of %" PRIu32 ", %" PRIu64 " cuts", options.seed,
           options.chunk_bytes, told.cuts);
    for (unsigned i = 0; i < PLACES; i++)
        printf("%s %" PRIu64 " %s", i ? "," : ":", told.at[i], place_names[i]);
    printf("; %" PRIu64 " again at the next opening; %" PRIu64
           " pages and names were not there, nothing in %" PRIu64 " cuts: %s\n",
           told.twice, told.missing, told.complete, good ? "good" : "FAILED");
    uint64_t inside = told.at[AT_DATA] + told.at[AT_LOG];
    bool all = options.cuts < 1000 || (told.at[AT_DATA] && told.at[AT_LOG]);
    if (good && options.cuts >= 100 && (!inside || !all || !told.missing)) {
        printf("FAILED: no cut fell into a commit\n");
        good = false;
    }
    return good ? 0 : 1;
}

/* ---- */

static enum disk_lie lie_of(const char *text)
{
    static const char *const names[] = {"", "data", "log", "names"};
    for (unsigned i = 1; i < G_N_ELEMENTS(names); i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    fprintf(stderr, "there is no lie '%s'\n", text);
    exit(2);
}

static void parse(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"seed", required_argument, NULL, 's'}, {"cuts", required_argument, NULL, 'n'},
        {"ops", required_argument, NULL, 'o'},  {"chunk-size", required_argument, NULL, 'c'},
        {"lie", required_argument, NULL, 'l'},  {"keep", no_argument, NULL, 'K'},
        {"verbose", no_argument, NULL, 'v'},    {NULL, 0, NULL, 0},
    };
    int c;
    options.seed = (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid();
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (c) {
        case 's':
            options.seed = scratch_number(optarg);
            break;
        case 'n':
            options.cuts = scratch_number(optarg);
            break;
        case 'o':
            options.ops = scratch_number(optarg);
            break;
        case 'c':
            options.chunk_bytes = (uint32_t)scratch_number(optarg);
            break;
        case 'l':
            options.lie = lie_of(optarg);
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
    scratch = scratch_make();
    int status = run();
    if (status && options.keep)
        fprintf(stderr, "the store is kept in %s\n", scratch);
    else
        scratch_remove(scratch);
    return status;
}
