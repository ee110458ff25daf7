// SPDX-License-Identifier: Apache-2.0
/*
 * bench_dirty - a guest's memory: a file mapped MAP_SHARED, pages changed in it.
 *
 *     bench_dirty stall FILE PAGES sequential|random SEED
 *         changes that many different pages as fast as it goes; how fast, and
 *         how long the longest waits were. Then fsync, told apart.
 *     bench_dirty clone FILE PAGES SEED EACH_US -- COMMAND...
 *         changes PAGES pages at random places, then does what a VMM does for
 *         a live snapshot: flushes while the guest runs on (a thread changes
 *         one more page every EACH_US; 0: none), stops the guest, flushes the
 *         rest and runs COMMAND, which clones the file.
 */
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>

#include "bench_file.h"
#include "bench_latency.h"

extern char **environ;

static const char usage[] = "bench_dirty stall FILE PAGES sequential|random SEED\n"
                            "       bench_dirty clone FILE PAGES SEED EACH_US -- COMMAND...";

struct memory {
    const char *path;
    int fd;
    volatile char *at;
    uint64_t page_count;
    uint64_t state; /* of what is written */
};

static struct memory map_memory(const char *path, uint64_t pages, uint64_t seed)
{
    struct memory m = {.path = path, .fd = open_or_die(path, O_RDWR), .state = rng_seed(~seed)};
    uint64_t bytes = size_of(m.fd, path);
    m.page_count = bytes / BLOCK_BYTES;
    if (pages > m.page_count)
        misused(usage);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m.fd, 0);
    if (at == MAP_FAILED)
        die("mmap of %s", path);
    m.at = at;
    return m;
}

static void change_page(struct memory *m, uint64_t page)
{
    *(volatile uint64_t *)(m->at + page * BLOCK_BYTES) = rng_next(&m->state);
}

static void stall(const char *path, uint64_t pages, bool random, uint64_t seed)
{
    struct memory m = map_memory(path, pages, seed);
    struct block_picker picker = block_picker_new(m.page_count, seed);
    struct latencies l = {0};
    double started = now_us(), now = started;
    for (uint64_t i = 0; i < pages; i++) {
        change_page(&m, random ? block_picker_next(&picker) : i);
        double after = now_us();
        latencies_add(&l, after - now);
        now = after;
    }
    printf("dirty_us %.1f\nbytes %llu\n", now - started, (unsigned long long)pages * BLOCK_BYTES);
    if (fsync(m.fd) != 0)
        die("fsync of %s", path);
    printf("fsync_us %.1f\n", now_us() - now);
    latencies_print(&l, "");
    block_picker_free(&picker);
}

/* ---- clone ---- */

struct guest {
    struct memory *memory;
    uint64_t each_us, changed;
    atomic_bool stop;
};

static void *run_guest(void *arg)
{
    struct guest *g = arg;
    uint64_t state = rng_seed(g->memory->state);
    struct timespec pause = {0, (long)g->each_us * 1000};
    while (!atomic_load(&g->stop)) {
        change_page(g->memory, rng_next(&state) % g->memory->page_count);
        g->changed++;
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void flush(const struct memory *m)
{
    if (sync_file_range(m->fd, 0, 0,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER) != 0)
        die("sync_file_range of %s", m->path);
}

static void run_command(char **argv)
{
    pid_t pid;
    int status, error = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
    if (error) {
        errno = error;
        die("%s", argv[0]);
    }
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            die("waiting for %s", argv[0]);
    if (status != 0) {
        fprintf(stderr, "%s ended with status 0x%x\n", argv[0], (unsigned)status);
        exit(1);
    }
}

static void flush_and_clone(const char *path, uint64_t pages, uint64_t seed, uint64_t each_us,
                            char **command)
{
    struct memory m = map_memory(path, pages, seed);
    struct block_picker picker = block_picker_new(m.page_count, seed);
    double started = now_us();
    for (uint64_t i = 0; i < pages; i++)
        change_page(&m, block_picker_next(&picker));
    double dirtied = now_us();
    printf("dirty_us %.1f\n", dirtied - started);

    struct guest guest = {.memory = &m, .each_us = each_us};
    pthread_t thread;
    if (each_us) {
        errno = pthread_create(&thread, NULL, run_guest, &guest);
        if (errno)
            die("a thread");
    }
    flush(&m);
    if (each_us) {
        atomic_store(&guest.stop, true);
        pthread_join(thread, NULL);
    }
    double paused = now_us();
    flush(&m);
    double flushed = now_us();
    run_command(command);
    double cloned = now_us();
    printf("flush_us %.1f\npause_flush_us %.1f\ncommand_us %.1f\npause_us %.1f\nall_us %.1f\n",
           paused - dirtied, flushed - paused, cloned - flushed, cloned - paused, cloned - dirtied);
    printf("changed_meanwhile %llu\n", (unsigned long long)guest.changed);
    block_picker_free(&picker);
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "stall") == 0) {
        bool random = strcmp(argv[4], "random") == 0;
        if (!random && strcmp(argv[4], "sequential") != 0)
            misused(usage);
        stall(argv[2], parse_u64(argv[3], usage), random, parse_u64(argv[5], usage));
    } else if (argc >= 8 && strcmp(argv[1], "clone") == 0 && strcmp(argv[6], "--") == 0) {
        flush_and_clone(argv[2], parse_u64(argv[3], usage), parse_u64(argv[4], usage),
                        parse_u64(argv[5], usage), argv + 7);
    } else {
        misused(usage);
    }
    return 0;
}
