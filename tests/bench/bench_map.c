// SPDX-License-Identifier: Apache-2.0
/*
 * bench_map - maps files and touches every page, as a VMM does with the
 * memory of its guest.
 *
 *     bench_map touch private|shared|readonly sequential|random cold|warm SEED FILE
 *         private: O_RDONLY, MAP_PRIVATE (Firecracker); shared: O_RDWR,
 *         MAP_SHARED (QEMU); readonly: O_RDONLY, MAP_SHARED. "cold" drops the
 *         file's pages before and prints how many stayed.
 *     bench_map many FILE...
 *         a process for each file, "private"; when all have touched all, what
 *         memory that takes, and what opening the first for writing gives
 *         (write_open_errno, 0 for success)
 */
#include <stdbool.h>
#include <sys/wait.h>

#include "bench_file.h"
#include "bench_latency.h"

static const char usage[] =
    "bench_map touch private|shared|readonly sequential|random cold|warm SEED FILE\n"
    "       bench_map many FILE...";

struct mapping {
    volatile const char *at;
    uint64_t bytes;
};

static struct mapping map_file(const char *path, const char *how)
{
    bool writable = strcmp(how, "shared") == 0;
    int fd = open_or_die(path, writable ? O_RDWR : O_RDONLY);
    struct mapping m = {.bytes = size_of(fd, path)};
    void *at = mmap(NULL, m.bytes, PROT_READ | (writable ? PROT_WRITE : 0),
                    strcmp(how, "private") == 0 ? MAP_PRIVATE : MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        die("mmap of %s", path);
    m.at = at; /* fd stays open, as VMMs leave it */
    return m;
}

static void touch(const char *path, const char *how, bool random, bool cold, uint64_t seed)
{
    if (cold)
        drop_cache(path);
    struct mapping m = map_file(path, how);
    uint64_t page_count = m.bytes / BLOCK_BYTES;
    /* An order made before: drawing it is no part of the time. */
    uint32_t *order = malloc(page_count * sizeof(*order));
    if (!order || page_count > UINT32_MAX)
        die("an order of %llu pages", (unsigned long long)page_count);
    for (uint64_t i = 0; i < page_count; i++)
        order[i] = (uint32_t)i;
    uint64_t state = rng_seed(seed);
    for (uint64_t i = page_count; random && i > 1; i--) {
        uint64_t j = rng_next(&state) % i;
        uint32_t other = order[j];
        order[j] = order[i - 1];
        order[i - 1] = other;
    }
    double started = now_us();
    for (uint64_t i = 0; i < page_count; i++)
        (void)m.at[(uint64_t)order[i] * BLOCK_BYTES];
    printf("touch_us %.1f\nbytes %llu\n", now_us() - started, (unsigned long long)m.bytes);
    free(order);
}

/* ---- many ---- */

static double meminfo_bytes(const char *name)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    double kib = 0;
    if (!f)
        die("/proc/meminfo");
    while (fgets(line, sizeof(line), f))
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
            kib = strtod(line + strlen(name) + 1, NULL);
    fclose(f);
    return kib * 1024;
}

/* Of the one mapping at that address; the process has not moved it. */
static double pss_of_mapping(pid_t pid, const volatile void *at)
{
    char name[64], start[32], line[512];
    bool inside = false;
    double kib = -1;
    snprintf(name, sizeof(name), "/proc/%d/smaps", (int)pid);
    snprintf(start, sizeof(start), "%lx-", (unsigned long)(uintptr_t)at);
    FILE *f = fopen(name, "re");
    if (!f)
        die("%s", name);
    while (kib < 0 && fgets(line, sizeof(line), f)) {
        if (strncmp(line, start, strlen(start)) == 0)
            inside = true;
        else if (inside && strncmp(line, "Pss:", 4) == 0)
            kib = strtod(line + 4, NULL);
    }
    fclose(f);
    if (kib < 0) {
        errno = ENOENT;
        die("the mapping in %s", name);
    }
    return kib * 1024;
}

struct holder {
    pid_t pid;
    int answer; /* pipe: what it has to tell */
};

struct answer {
    struct mapping mapping;
    double touch_us;
};

/* Touches, tells, and stays until `stay` is closed at the other end. */
static struct holder start_holder(const char *path, int stay, int stay_other_end)
{
    struct holder h;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        die("a pipe");
    h.pid = fork();
    if (h.pid < 0)
        die("fork");
    if (h.pid == 0) {
        close(stay_other_end);
        struct answer a = {.mapping = map_file(path, "private")};
        double started = now_us();
        for (uint64_t at = 0; at < a.mapping.bytes; at += BLOCK_BYTES)
            (void)a.mapping.at[at];
        a.touch_us = now_us() - started;
        char end;
        if (write(ends[1], &a, sizeof(a)) != sizeof(a) || read(stay, &end, 1) < 0)
            _exit(1);
        _exit(0);
    }
    close(ends[1]);
    h.answer = ends[0];
    return h;
}

static void map_many(char **paths, size_t count)
{
    static const char *const watched[] = {"Cached", "PageTables", "MemAvailable"};
    enum { WATCHED = sizeof(watched) / sizeof(watched[0]) };
    double before[WATCHED], pss = 0, bytes = 0;
    int stay[2];
    struct holder *holders = calloc(count, sizeof(*holders));
    if (!holders || pipe2(stay, O_CLOEXEC) != 0)
        die("%zu processes", count);
    for (size_t i = 0; i < WATCHED; i++)
        before[i] = meminfo_bytes(watched[i]);
    struct answer *answers = calloc(count, sizeof(*answers));
    for (size_t i = 0; i < count; i++) {
        /* One after the other: touch_us of the second on is of a warm clone. */
        holders[i] = start_holder(paths[i], stay[0], stay[1]);
        if (!answers || read(holders[i].answer, &answers[i], sizeof(*answers)) != sizeof(*answers))
            die("mapping %s", paths[i]);
        printf("touch_us_%zu %.1f\n", i, answers[i].touch_us);
        bytes += (double)answers[i].mapping.bytes;
    }
    for (size_t i = 0; i < count; i++)
        pss += pss_of_mapping(holders[i].pid, answers[i].mapping.at);
    printf("mapped_bytes %.0f\npss_bytes %.0f\n", bytes, pss);
    for (size_t i = 0; i < WATCHED; i++)
        printf("%s_growth_bytes %.0f\n", watched[i], meminfo_bytes(watched[i]) - before[i]);
    int fd = open(paths[0], O_RDWR | O_CLOEXEC);
    printf("write_open_errno %d\n", fd < 0 ? errno : 0);
    if (fd >= 0)
        close(fd);

    close(stay[1]);
    for (size_t i = 0; i < count; i++) {
        int status;
        if (waitpid(holders[i].pid, &status, 0) < 0 || status != 0)
            die("the process that mapped %s", paths[i]);
        close(holders[i].answer);
    }
    free(answers);
    free(holders);
}

int main(int argc, char **argv)
{
    if (argc >= 3 && strcmp(argv[1], "many") == 0) {
        map_many(argv + 2, (size_t)(argc - 2));
        return 0;
    }
    if (argc != 7 || strcmp(argv[1], "touch") != 0)
        misused(usage);
    bool random = strcmp(argv[3], "random") == 0, cold = strcmp(argv[4], "cold") == 0;
    bool how_known = strcmp(argv[2], "private") == 0 || strcmp(argv[2], "shared") == 0 ||
                     strcmp(argv[2], "readonly") == 0;
    if (!how_known || (!random && strcmp(argv[3], "sequential") != 0) ||
        (!cold && strcmp(argv[4], "warm") != 0))
        misused(usage);
    touch(argv[6], argv[2], random, cold, parse_u64(argv[5], usage));
    return 0;
}
