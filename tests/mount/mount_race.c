// SPDX-License-Identifier: Apache-2.0
/*
 * mount_race.c - clones while others write.
 *
 *   mount_race file DIRECTORY SEED SECONDS       one file, one writer with O_DIRECT
 *   mount_race writers DIRECTORY SEED SECONDS    several files and writers, the directory is cloned
 *   mount_race names DIRECTORY SEED SECONDS      names that come and go, the directory is cloned
 *   mount_race cache DIRECTORY SEED ROUNDS       write through the cache, clone or copy at once,
 *                                                walk by SEEK_DATA and SEEK_HOLE, compare
 *
 * A writer numbers its writes 1, 2, 3, ... and each block it writes says by which write. It waits
 * for each to be done before it begins the next. So a clone that is of one point in time has the
 * writes 1 to k and no other: every block has the newest number up to k that belongs there. And k
 * is not before what was done when the clone began, nor after what had begun when it was ready.
 */
#include "tests/mount/mount_common.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

enum { BLOCK = 4096, WRITERS_MAX = 4, FILES_MAX = 4, BLOCKS_MAX = 2048 };

struct writer {
    int fds[FILES_MAX];
    unsigned files;
    unsigned base, blocks;   /* its own part of each file, in blocks */
    unsigned blocks_a_write; /* in one write(2) */
    uint64_t seed;
    atomic_uint_fast64_t begun, done; /* numbers of writes */
    atomic_bool *stop;
};

/* Where the write of that number goes: all places in a fixed random order, again and again. */
static uint64_t places(const struct writer *w)
{
    return (uint64_t)w->files * (w->blocks / w->blocks_a_write);
}

static uint64_t place_of(const struct writer *w, uint64_t number)
{
    /* Odd, and the number of places is a power of two: a permutation. */
    return (number * (w->seed | 1)) & (places(w) - 1);
}

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    size_t bytes = (size_t)w->blocks_a_write * BLOCK;
    uint64_t *data = check_alloc(bytes);
    for (uint64_t number = 1; !atomic_load(w->stop); number++) {
        for (size_t i = 0; i < bytes / sizeof(*data); i++)
            data[i] = number;
        uint64_t place = place_of(w, number);
        uint64_t block = w->base + place / w->files * w->blocks_a_write;
        atomic_store(&w->begun, number);
        ssize_t written = pwrite(w->fds[place % w->files], data, bytes, (off_t)(block * BLOCK));
        CHECK(written == (ssize_t)bytes, "pwrite: %s",
              written < 0 ? strerror(errno) : "less than asked for");
        atomic_store(&w->done, number);
    }
    free(data);
    return NULL;
}

/* The clone's files must have all writes up to some k in [done, begun], and none after it. */
static void check_prefix(const struct writer *w, const int *clones, uint64_t done, uint64_t begun,
                         unsigned round)
{
    static uint64_t numbers[FILES_MAX * BLOCKS_MAX];
    uint64_t *block = check_alloc(BLOCK);
    uint64_t newest = 0, count = places(w);
    for (uint64_t place = 0; place < count; place++) {
        for (unsigned part = 0; part < w->blocks_a_write; part++) {
            uint64_t at = w->base + place / w->files * w->blocks_a_write + part;
            read_all(clones[place % w->files], block, BLOCK, at * BLOCK);
            for (unsigned i = 1; i < BLOCK / sizeof(*block); i++)
                CHECK(block[i] == block[0],
                      "round %u: block %" PRIu64 " is torn: write %" PRIu64 " and %" PRIu64, round,
                      at, block[0], block[i]);
            if (part == 0)
                numbers[place] = block[0];
            CHECK(block[0] == numbers[place],
                  "round %u: a write of %u blocks is torn: block %" PRIu64 " has %" PRIu64
                  ", its first one %" PRIu64,
                  round, w->blocks_a_write, at, block[0], numbers[place]);
        }
        if (numbers[place] > newest)
            newest = numbers[place];
    }
    CHECK(newest >= done,
          "round %u: write %" PRIu64 " was done before the clone, which has only %" PRIu64, round,
          done, newest);
    CHECK(newest <= begun, "round %u: write %" PRIu64 " began after the clone, which has %" PRIu64,
          round, begun, newest);
    /* The newest write up to `newest` of each place. */
    for (uint64_t number = newest; number > 0 && number + count > newest; number--) {
        uint64_t place = place_of(w, number);
        CHECK(numbers[place] == number,
              "round %u: the clone has write %" PRIu64 ", but where %" PRIu64
              " wrote before it there is %" PRIu64,
              round, newest, number, numbers[place]);
    }
    free(block);
}

static void remove_files(int dir, const char *name, unsigned files)
{
    char path[64];
    for (unsigned f = 0; f < files; f++) {
        snprintf(path, sizeof(path), "%s/%u", name, f);
        SYS(unlinkat(dir, path, 0));
    }
    SYS(unlinkat(dir, name, AT_REMOVEDIR));
}

static void run_writers(int dir, uint64_t seed, unsigned seconds, unsigned writers, unsigned files)
{
    enum { BLOCKS = 256 };
    struct writer w[WRITERS_MAX] = {0};
    pthread_t threads[WRITERS_MAX];
    atomic_bool stop = false;
    char path[64];
    uint64_t rng = seed;

    SYS(mkdirat(dir, "vm", 0755));
    for (unsigned i = 0; i < writers; i++) {
        w[i].files = files;
        w[i].blocks = BLOCKS;
        w[i].base = i * BLOCKS;
        w[i].blocks_a_write = 1u << rng_below(&rng, 4);
        w[i].seed = rng_next(&rng);
        w[i].stop = &stop;
    }
    for (unsigned f = 0; f < files; f++) {
        snprintf(path, sizeof(path), "vm/%u", f);
        int fd = SYS_INT(openat(dir, path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0644));
        SYS(ftruncate(fd, (off_t)writers * BLOCKS * BLOCK));
        for (unsigned i = 0; i < writers; i++)
            w[i].fds[f] = fd;
    }
    int vm = SYS_INT(openat(dir, "vm", O_RDONLY | O_DIRECTORY));
    for (unsigned i = 0; i < writers; i++)
        CHECK(pthread_create(&threads[i], NULL, writer_main, &w[i]) == 0, "no thread");

    time_t end = time(NULL) + seconds;
    unsigned round = 0;
    for (; time(NULL) < end || round < 3; round++) {
        uint64_t done[WRITERS_MAX], begun[WRITERS_MAX];
        int clones[FILES_MAX];
        /* A pause that is different each time, so that the copying after a clone is as likely
         * to be met as long stretches of writing in place. */
        usleep((unsigned)rng_below(&rng, 20000));
        for (unsigned i = 0; i < writers; i++)
            done[i] = atomic_load(&w[i].done);
        int error;
        if (files == 1) {
            SYS(mkdirat(dir, "clone", 0755));
            int to = SYS_INT(openat(dir, "clone", O_RDONLY | O_DIRECTORY));
            int from = SYS_INT(openat(dir, "vm/0", O_RDONLY));
            error = clone_to(from, to, "0");
            close(from);
            close(to);
        } else {
            error = clone_to(vm, dir, "clone");
        }
        for (unsigned i = 0; i < writers; i++)
            begun[i] = atomic_load(&w[i].begun);
        CHECK(error == 0, "clone: %s", strerror(-error));
        for (unsigned f = 0; f < files; f++) {
            snprintf(path, sizeof(path), "clone/%u", f);
            clones[f] = SYS_INT(openat(dir, path, O_RDONLY));
        }
        for (unsigned i = 0; i < writers; i++)
            check_prefix(&w[i], clones, done[i], begun[i], round);
        for (unsigned f = 0; f < files; f++)
            close(clones[f]);
        remove_files(dir, "clone", files);
    }
    atomic_store(&stop, true);
    uint64_t written = 0;
    for (unsigned i = 0; i < writers; i++) {
        pthread_join(threads[i], NULL);
        written += w[i].done;
    }
    for (unsigned i = 0; i < writers; i++)
        check_prefix(&w[i], w[i].fds, w[i].done, w[i].done, round);
    for (unsigned f = 0; f < files; f++)
        close(w[0].fds[f]);
    close(vm);
    remove_files(dir, "vm", files);
    printf("%u clones, %" PRIu64 " writes\n", round, written);
}

static void run_file(int dir, uint64_t seed, unsigned seconds)
{
    run_writers(dir, seed, seconds, 1, 1);
}

static void run_many(int dir, uint64_t seed, unsigned seconds)
{
    run_writers(dir, seed, seconds, 3, 4);
}

/* ---- names ---- */

struct namer {
    int dir;
    atomic_bool stop;
};

enum { WINDOW = 20 };

/* File n is made, then n - WINDOW deleted; and "a" becomes "b" and back. */
static void *namer_main(void *arg)
{
    struct namer *n = arg;
    char name[32];
    close(SYS_INT(openat(n->dir, "a", O_RDWR | O_CREAT | O_EXCL, 0644)));
    for (unsigned i = 0; !atomic_load(&n->stop); i++) {
        snprintf(name, sizeof(name), "n%u", i);
        int fd = SYS_INT(openat(n->dir, name, O_RDWR | O_CREAT | O_EXCL, 0644));
        close(fd);
        if (i >= WINDOW) {
            snprintf(name, sizeof(name), "n%u", i - WINDOW);
            SYS(unlinkat(n->dir, name, 0));
        }
        SYS(renameat(n->dir, i % 2 ? "b" : "a", n->dir, i % 2 ? "a" : "b"));
    }
    return NULL;
}

static void run_names(int dir, uint64_t seed, unsigned seconds)
{
    struct namer n = {0};
    pthread_t thread;
    uint64_t rng = seed;
    unsigned round = 0;

    SYS(mkdirat(dir, "vm", 0755));
    n.dir = SYS_INT(openat(dir, "vm", O_RDONLY | O_DIRECTORY));
    CHECK(pthread_create(&thread, NULL, namer_main, &n) == 0, "no thread");
    usleep(100000);
    for (time_t end = time(NULL) + seconds; time(NULL) < end || round < 3; round++) {
        char command[256];
        usleep((unsigned)rng_below(&rng, 5000));
        int error = clone_to(n.dir, dir, "clone");
        CHECK(error == 0, "clone: %s", strerror(-error));
        unsigned lowest = UINT32_MAX, highest = 0, count = 0, others = 0;
        snprintf(command, sizeof(command), "ls /proc/self/fd/%d/clone", dir);
        FILE *list = popen(command, "r");
        CHECK(list, "popen: %s", strerror(errno));
        char line[64];
        while (fgets(line, sizeof(line), list)) {
            unsigned number;
            if (sscanf(line, "n%u", &number) == 1) {
                lowest = number < lowest ? number : lowest;
                highest = number > highest ? number : highest;
                count++;
            } else {
                others++;
            }
        }
        CHECK(pclose(list) == 0, "ls failed");
        EQUAL(others, 1);
        CHECK(count > 0 && highest - lowest + 1 == count && count <= WINDOW + 1,
              "round %u: %u names from %u to %u: no point in time", round, count, lowest, highest);
        snprintf(command, sizeof(command), "rm -r /proc/self/fd/%d/clone", dir);
        CHECK(system(command) == 0, "rm failed"); // NOLINT(cert-env33-c)
    }
    atomic_store(&n.stop, true);
    pthread_join(thread, NULL);
    close(n.dir);
    printf("%u clones\n", round);
}

/* ---- the cache ---- */

enum { CACHE_FILE = 4 << 20 };

/* What SEEK_DATA calls data must be all that is not zero. */
static void check_walk(int fd, const uint8_t *wanted, size_t size, const char *what)
{
    static uint8_t got[CACHE_FILE];
    int64_t at = 0;
    memset(got, 0, sizeof(got));
    EQUAL(size_of(fd), size);
    while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
        int64_t end = SYS(lseek(fd, at, SEEK_HOLE));
        CHECK(end > at && (size_t)end <= size, "%s: a range of data from %" PRId64 " to %" PRId64,
              what, at, end);
        read_all(fd, got + at, (size_t)(end - at), (uint64_t)at);
        at = end;
    }
    CHECK(errno == ENXIO, "%s: SEEK_DATA: %s", what, strerror(errno));
    check_same(got, wanted, size, what, 0);
}

static void check_bytes(int fd, const uint8_t *wanted, size_t size, const char *what)
{
    static uint8_t got[CACHE_FILE];
    EQUAL(size_of(fd), size);
    read_all(fd, got, size, 0);
    check_same(got, wanted, size, what, 0);
}

static void copy_whole(int from, int to, size_t size)
{
    off_t in = 0, out = 0;
    while ((size_t)in < size)
        CHECK(SYS(copy_file_range(from, &in, to, &out, size - (size_t)in, 0)) > 0, "no progress");
}

static void run_cache(int dir, uint64_t seed, unsigned rounds)
{
    static uint8_t wanted[CACHE_FILE];
    uint64_t rng = seed;
    for (unsigned round = 0; round < rounds; round++) {
        size_t size = 1 + (size_t)rng_below(&rng, CACHE_FILE);
        int fd = SYS_INT(openat(dir, "a", O_RDWR | O_CREAT | O_EXCL, 0644));
        memset(wanted, 0, sizeof(wanted));
        /* A hole at the end, at times; now and then some of it has reached the store before. */
        SYS(ftruncate(fd, (off_t)size));
        for (uint64_t i = rng_below(&rng, 12); i > 0; i--) {
            size_t at = (size_t)rng_below(&rng, size);
            size_t bytes = 1 + (size_t)rng_below(&rng, rng_below(&rng, 2) ? 10000 : 500000);
            bytes = bytes < size - at ? bytes : size - at;
            fill_random(wanted + at, bytes, &rng);
            write_all(fd, wanted + at, bytes, at);
            if (rng_below(&rng, 8) == 0)
                SYS(fsync(fd));
        }
        unsigned way = (unsigned)rng_below(&rng, 4);
        if (way == 0)
            check_walk(fd, wanted, size, "the file just written");
        int copy;
        if (way == 1) {
            copy = SYS_INT(openat(dir, "b", O_RDWR | O_CREAT | O_EXCL, 0644));
            copy_whole(fd, copy, size);
        } else {
            int error = clone_to(fd, dir, "b");
            CHECK(error == 0, "clone: %s", strerror(-error));
            copy = SYS_INT(openat(dir, "b", O_RDWR));
        }
        check_walk(copy, wanted, size, "clone");
        /* Both are written to at once, and then looked at again. */
        size_t at = (size_t)rng_below(&rng, size);
        size_t bytes = size - at < 5000 ? size - at : 5000;
        uint8_t changed[5000];
        fill_random(changed, sizeof(changed), &rng);
        write_all(way % 2 ? fd : copy, changed, bytes, at);
        check_walk(way % 2 ? copy : fd, wanted, size, "the one left alone");
        check_bytes(way % 2 ? copy : fd, wanted, size, "the one left alone");
        memcpy(wanted + at, changed, bytes);
        check_walk(way % 2 ? fd : copy, wanted, size, "the one written to");
        /* And a copy of the clone. */
        int second = SYS_INT(openat(dir, "c", O_RDWR | O_CREAT | O_EXCL, 0644));
        copy_whole(way % 2 ? fd : copy, second, size);
        check_walk(second, wanted, size, "copy of the clone");
        check_bytes(second, wanted, size, "copy of the clone");
        close(second);
        close(copy);
        close(fd);
        SYS(unlinkat(dir, "a", 0));
        SYS(unlinkat(dir, "b", 0));
        SYS(unlinkat(dir, "c", 0));
    }
    printf("%u rounds\n", rounds);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(int dir, uint64_t seed, unsigned amount);
    } commands[] = {
        {"file", run_file},
        {"writers", run_many},
        {"names", run_names},
        {"cache", run_cache},
    };
    for (unsigned i = 0; argc == 5 && i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        int dir = SYS_INT(open(argv[2], O_RDONLY | O_DIRECTORY));
        commands[i].run(dir, strtoull(argv[3], NULL, 10), (unsigned)strtoul(argv[4], NULL, 10));
        return 0;
    }
    fputs("usage: mount_race file|writers|names|cache DIRECTORY SEED SECONDS\n", stderr);
    return 2;
}
