// SPDX-License-Identifier: Apache-2.0
/*
 * mount_pass.c - passthrough as programs see it. MOUNT has passthrough; its file `golden`
 * is flat, of random bytes, and a whole number of pages; REFERENCE is a copy of it elsewhere.
 *
 *   mount_pass share REFERENCE MOUNT COUNT   clones of golden c0 ... are mapped at once, as VMs do
 *   mount_pass CASE REFERENCE MOUNT          (below; each makes the clones that it needs)
 *   mount_pass view REFERENCE MAIN VIEW      two mounts of one store
 *   mount_pass hold FILE                     opens it for reading, holds that until stdin ends
 *   mount_pass holdmap FILE                  maps it, closes it, the same; then prints its b2sum-able
 *                                            bytes to stdout
 *   mount_pass is FILE                       opens it for reading; status 0 if past the daemon
 */
#include "tests/mount/mount_common.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { PAGE = 4096 };

static int reference_fd, dir;
static size_t size;
static const uint8_t *reference;

static int open_at(int at, const char *name, int flags)
{
    int fd = openat(at, name, flags | O_CLOEXEC, 0644);
    CHECK(fd >= 0, "%s: %s", name, strerror(errno));
    return fd;
}

static struct cowfs_ioc_stat stat_fd(int fd)
{
    struct cowfs_ioc_stat io = {.version = COWFS_IOCTL_VERSION};
    SYS(ioctl(fd, COWFS_IOC_STAT, &io));
    return io;
}

static bool is_past_daemon(int fd)
{
    return stat_fd(fd).passthrough;
}

static const uint8_t *map_file(int fd, int flags)
{
    const uint8_t *map = mmap(NULL, size, PROT_READ, flags, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    return map;
}

/* All of the memory that processes share is counted once. */
static uint64_t pss_bytes(void)
{
    char line[256];
    unsigned long long kb = 0;
    FILE *file = fopen("/proc/self/smaps_rollup", "re");
    CHECK(file, "smaps_rollup: %s", strerror(errno));
    while (fgets(line, sizeof(line), file))
        if (sscanf(line, "Pss: %llu kB", &kb) == 1)
            break;
    fclose(file);
    return kb * 1024;
}

static void clone_golden(const char *name)
{
    int fd = open_at(dir, "golden", O_RDONLY);
    unlinkat(dir, name, 0);
    int error = clone_to(fd, dir, name);
    CHECK(error == 0, "clone to %s: %s", name, strerror(-error));
    SYS(close(fd));
}

static void check_file(const char *name)
{
    int fd = open_at(dir, name, O_RDONLY);
    uint8_t *data = check_alloc(size);
    EQUAL(size_of(fd), size);
    read_all(fd, data, size, 0);
    check_same(data, reference, size, name, 0);
    free(data);
    SYS(close(fd));
}

static int run_share(char **argv)
{
    enum { MAX = 64 };
    unsigned count = (unsigned)atoi(argv[0]);
    const uint8_t *maps[MAX];
    CHECK(count <= MAX, "at most %d", MAX);
    uint64_t before = pss_bytes();
    for (unsigned i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof(name), "c%u", i);
        clone_golden(name);
        int fd = open_at(dir, name, O_RDONLY);
        CHECK(is_past_daemon(fd), "%s: %s", name, stat_fd(fd).not_passthrough);
        maps[i] = map_file(fd, MAP_PRIVATE);
    }
    for (unsigned i = 0; i < count; i++)
        check_same(maps[i], reference, size, "a mapped clone", 0);
    /* The reference is mapped as well, and counts. */
    uint64_t pss = pss_bytes() - before - size;
    printf("%" PRIu64 "\n", pss);
    CHECK(pss <= size + size / 20, "%u clones of %zu bytes take %" PRIu64 " together", count, size,
          pss);
    return 0;
}

/* ---- opening in all orders ---- */

static void busy_for_writers(const char *name)
{
    FAILS(openat(dir, name, O_RDWR), ETXTBSY);
    FAILS(openat(dir, name, O_WRONLY | O_APPEND), ETXTBSY);
    FAILS(openat(dir, name, O_WRONLY | O_TRUNC), ETXTBSY);
    FAILS(openat(dir, name, O_RDONLY | O_TRUNC), ETXTBSY);
    FAILS(openat(dir, name, O_RDWR | O_CREAT, 0644), ETXTBSY);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", dir, name);
    FAILS(truncate(path, 5), ETXTBSY);
    FAILS(truncate(path, (off_t)size + 5), ETXTBSY);
}

static void case_busy(void)
{
    clone_golden("a");
    int fd = open_at(dir, "a", O_RDONLY);
    CHECK(is_past_daemon(fd), "not past the daemon");
    busy_for_writers("a");
    int second = open_at(dir, "a", O_RDONLY);
    CHECK(is_past_daemon(second), "the second is not");
    SYS(close(fd));
    busy_for_writers("a");
    int copy = SYS_INT(dup(second));
    SYS(close(second));
    busy_for_writers("a");
    SYS(close(copy));
    /* What does not concern the content goes on. */
    fd = open_at(dir, "a", O_RDONLY);
    SYS(fchmod(fd, 0600));
    SYS(futimens(fd, NULL));
    check_file("a");
    SYS(close(fd));
}

/* The kernel tells of a close after it has returned; nobody may notice. */
static void case_at_once(void)
{
    clone_golden("a");
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d/a", dir);
    for (unsigned i = 0; i < 300; i++) {
        int fd = open_at(dir, "a", O_RDONLY);
        CHECK(is_past_daemon(fd), "round %u: %s", i, stat_fd(fd).not_passthrough);
        SYS(close(fd));
        if (i % 2) {
            /* Nothing is written, so it stays flat. */
            fd = openat(dir, "a", O_RDWR);
            CHECK(fd >= 0, "round %u: %s", i, strerror(errno));
            SYS(close(fd));
        } else {
            CHECK(truncate(path, (off_t)size) == 0, "round %u: %s", i, strerror(errno));
        }
    }
    check_file("a");
}

static void case_diverge(void)
{
    clone_golden("a");
    clone_golden("b");
    int fd = open_at(dir, "a", O_RDONLY);
    const uint8_t *map = map_file(fd, MAP_PRIVATE);
    check_same(map, reference, size, "mapped", 0);
    SYS(munmap((void *)(uintptr_t)map, size));
    SYS(close(fd));
    fd = open_at(dir, "a", O_RDWR);
    write_all(fd, "changed", 7, 10 * PAGE + 5);
    write_all(fd, "changed", 7, size - 7);
    SYS(close(fd));
    uint8_t *data = check_alloc(size);
    fd = open_at(dir, "a", O_RDONLY);
    CHECK(!is_past_daemon(fd), "a changed clone is served from the segment");
    read_all(fd, data, size, 0);
    CHECK(memcmp(data + 10 * PAGE + 5, "changed", 7) == 0, "the change is lost");
    CHECK(memcmp(data + size - 7, "changed", 7) == 0, "the change at the end is lost");
    memcpy(data + 10 * PAGE + 5, reference + 10 * PAGE + 5, 7);
    memcpy(data + size - 7, reference + size - 7, 7);
    check_same(data, reference, size, "all but the changes", 0);
    map = map_file(fd, MAP_SHARED);
    CHECK(memcmp(map + 10 * PAGE + 5, "changed", 7) == 0, "mapped, the change is lost");
    SYS(close(fd));
    free(data);
    check_file("b");
    check_file("golden");
}

static void case_writer_first(void)
{
    clone_golden("a");
    int writer = open_at(dir, "a", O_RDWR);
    int reader = open_at(dir, "a", O_RDONLY);
    CHECK(!is_past_daemon(reader), "past the daemon beside a writer");
    write_all(writer, "changed", 7, PAGE);
    char back[7];
    read_all(reader, back, 7, PAGE);
    check_same(back, "changed", 7, "what the writer wrote", 0);
    write_all(writer, reference + PAGE, 7, PAGE);
    SYS(close(writer));
    /* While one reads through the cache, so do others. */
    int second = open_at(dir, "a", O_RDONLY);
    CHECK(!is_past_daemon(second), "past the daemon beside one through the cache");
    writer = open_at(dir, "a", O_RDWR);
    SYS(close(writer));
    SYS(close(reader));
    SYS(close(second));
    check_file("a");
    clone_golden("b");
    reader = open_at(dir, "b", O_RDONLY);
    CHECK(is_past_daemon(reader), "%s", stat_fd(reader).not_passthrough);
    /* A cut by handle is a writer's, who is not let in; a new file is nobody's. */
    int made = open_at(dir, "new", O_RDWR | O_CREAT | O_EXCL);
    SYS(ftruncate(made, (off_t)size));
    SYS(close(made));
    SYS(unlinkat(dir, "new", 0));
    SYS(close(reader));
}

/* ---- mappings that outlive their handles ---- */

static void commit(void)
{
    struct cowfs_ioc_commit io = {.version = COWFS_IOCTL_VERSION, .flags = 1};
    SYS(ioctl(dir, COWFS_IOC_COMMIT, &io));
}

/* A mapping of a file whose handle is closed; touched only afterwards. */
static const uint8_t *map_and_close(const char *name)
{
    int fd = open_at(dir, name, O_RDONLY);
    CHECK(is_past_daemon(fd), "%s: %s", name, stat_fd(fd).not_passthrough);
    const uint8_t *map = map_file(fd, MAP_PRIVATE);
    SYS(close(fd));
    return map;
}

static void overwrite(const char *name, uint8_t byte)
{
    enum { PART = 1 << 20 };
    uint8_t *data = check_alloc(PART);
    memset(data, byte, PART);
    int fd = open_at(dir, name, O_WRONLY);
    for (size_t at = 0; at < size; at += PART)
        write_all(fd, data, size - at < PART ? size - at : PART, at);
    SYS(fsync(fd));
    SYS(close(fd));
    free(data);
}

static void case_outlive_write(void)
{
    clone_golden("a");
    clone_golden("b");
    const uint8_t *map = map_and_close("a");
    overwrite("a", 'x');
    /* Nobody else has the old content any more; but it is mapped. */
    SYS(unlinkat(dir, "b", 0));
    SYS(unlinkat(dir, "golden", 0));
    commit();
    check_same(map, reference, size, "a mapping of what was overwritten", 0);
    overwrite("a", 'y');
    commit();
    check_same(map, reference, size, "a mapping of what was overwritten twice", 0);
}

static void case_outlive_cut(void)
{
    clone_golden("a");
    const uint8_t *map = map_and_close("a");
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d/a", dir);
    SYS(truncate(path, 0));
    SYS(unlinkat(dir, "golden", 0));
    commit();
    check_same(map, reference, size, "a mapping of what was cut", 0);
    int fd = open_at(dir, "a", O_RDONLY);
    EQUAL(size_of(fd), 0);
    SYS(close(fd));
}

/* The only file with that segment: it might be written and cut in place. */
static void case_outlive_alone(void)
{
    const uint8_t *map = map_and_close("golden");
    int fd = open_at(dir, "golden", O_RDWR);
    write_all(fd, "changed", 7, 3 * PAGE);
    SYS(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * PAGE, 50 * PAGE));
    SYS(ftruncate(fd, (off_t)size / 2));
    write_all(fd, "beyond", 6, size + 5 * PAGE);
    SYS(fsync(fd));
    SYS(close(fd));
    commit();
    check_same(map, reference, size, "a mapping of what was changed", 0);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d/golden", dir);
    SYS(truncate(path, 0));
    commit();
    overwrite("golden", 'x');
    commit();
    check_same(map, reference, size, "a mapping of what was cut and written anew", 0);
    /* Flat again, in a home of its own or not: what is read is what was written. */
    fd = open_at(dir, "golden", O_RDONLY);
    const uint8_t *again = map_file(fd, MAP_PRIVATE);
    for (size_t at = 0; at < size; at++)
        CHECK(again[at] == 'x', "at %zu: %02x", at, again[at]);
    check_same(map, reference, size, "the old mapping", 0);
    SYS(close(fd));
}

/* A file with holes, mapped; then the holes are filled. */
static void case_outlive_holes(void)
{
    int fd = open_at(dir, "holes", O_RDWR | O_CREAT | O_EXCL);
    write_all(fd, reference, size / 4, 0);
    write_all(fd, reference + size / 2, size / 2 - size / 8, size / 2);
    SYS(ftruncate(fd, (off_t)size));
    SYS(close(fd));
    uint8_t *wanted = check_alloc(size);
    memset(wanted, 0, size);
    memcpy(wanted, reference, size / 4);
    memcpy(wanted + size / 2, reference + size / 2, size / 2 - size / 8);
    fd = open_at(dir, "holes", O_RDONLY);
    CHECK(is_past_daemon(fd), "%s", stat_fd(fd).not_passthrough);
    const uint8_t *map = map_file(fd, MAP_PRIVATE);
    check_same(map, wanted, size, "a file with holes", 0);
    SYS(close(fd));
    fd = open_at(dir, "holes", O_RDWR);
    write_all(fd, reference + size / 4, size / 4, size / 4);
    write_all(fd, reference + size - size / 8, size / 8, size - size / 8);
    SYS(fsync(fd));
    SYS(close(fd));
    commit();
    check_same(map, wanted, size, "a mapping of holes that were filled", 0);
    free(wanted);
    SYS(renameat(dir, "holes", dir, "filled"));
    check_file("filled");
}

static void case_outlive_unlink(void)
{
    clone_golden("a");
    clone_golden("b");
    const uint8_t *a = map_and_close("a"), *b = map_and_close("b");
    int held = open_at(dir, "golden", O_RDONLY);
    SYS(unlinkat(dir, "a", 0));
    int fd = open_at(dir, "other", O_RDWR | O_CREAT);
    SYS(close(fd));
    SYS(renameat(dir, "other", dir, "b"));
    SYS(unlinkat(dir, "golden", 0));
    commit();
    check_same(a, reference, size, "a mapping of a removed file", 0);
    check_same(b, reference, size, "a mapping of a file that was replaced", 0);
    uint8_t *data = check_alloc(size);
    read_all(held, data, size, 0);
    check_same(data, reference, size, "an open file that was removed", 0);
    free(data);
}

/* Cloning what is mapped, and what comes of the clones. */
static void case_clone_mapped(void)
{
    clone_golden("a");
    int fd = open_at(dir, "a", O_RDONLY);
    const uint8_t *map = map_file(fd, MAP_PRIVATE);
    EQUAL(clone_to(fd, dir, "a2"), 0);
    int clone = open_at(dir, "a2", O_RDONLY);
    CHECK(is_past_daemon(clone), "%s", stat_fd(clone).not_passthrough);
    SYS(close(clone));
    overwrite("a2", 'z');
    overwrite("golden", 'z');
    commit();
    check_same(map, reference, size, "what is mapped", 0);
    check_file("a");
    SYS(close(fd));
    int copy = open_at(dir, "a3", O_RDWR | O_CREAT | O_EXCL);
    fd = open_at(dir, "a", O_RDONLY);
    for (size_t at = 0; at < size;) {
        off_t from = (off_t)at, to = (off_t)at;
        at += (size_t)SYS(copy_file_range(fd, &from, copy, &to, size - at, 0));
    }
    SYS(close(copy));
    SYS(close(fd));
    check_file("a3");
    check_same(map, reference, size, "what is mapped", 0);
}

/* ---- several at once ---- */

static void *open_and_close(void *arg)
{
    uint64_t rng = (uintptr_t)arg;
    uint8_t page[PAGE];
    for (unsigned i = 0; i < 1500; i++) {
        bool writes = rng_below(&rng, 3) == 0;
        int fd = openat(dir, "a", (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC);
        if (fd < 0) {
            CHECK(writes && errno == ETXTBSY, "%s: %s", writes ? "a writer" : "a reader",
                  strerror(errno));
            continue;
        }
        uint64_t at = rng_below(&rng, size / PAGE) * PAGE;
        read_all(fd, page, PAGE, at);
        check_same(page, reference + at, PAGE, "read among others", at);
        if (writes)
            write_all(fd, page, PAGE, at);
        SYS(close(fd));
    }
    return NULL;
}

static void case_threads(void)
{
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    clone_golden("a");
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, open_and_close, (void *)(i + 1)) == 0, "no thread");
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    check_file("a");
    /* Nobody is left over in the daemon's books. */
    int fd = open_at(dir, "a", O_RDWR);
    SYS(close(fd));
}

/* ---- two mounts ---- */

static void case_view(int view)
{
    char text[16] = "";
    /* Flat files past the daemon, and what the first mount does is refused meanwhile. */
    clone_golden("a");
    int fd = open_at(view, "a", O_RDONLY);
    CHECK(is_past_daemon(fd), "%s", stat_fd(fd).not_passthrough);
    const uint8_t *map = map_file(fd, MAP_PRIVATE);
    check_same(map, reference, size, "mapped in the view", 0);
    busy_for_writers("a");
    SYS(close(fd));
    /* Closed there: at once it may be written here, and is new there after close(2). */
    fd = open_at(dir, "a", O_RDWR);
    write_all(fd, "first", 5, 0);
    SYS(close(fd));
    fd = open_at(view, "a", O_RDONLY);
    CHECK(!is_past_daemon(fd), "a changed file past the daemon");
    read_all(fd, text, 5, 0);
    check_same(text, "first", 5, "what was written before close", 0);
    /* The view has it open (and in its cache) while the first mount writes on. */
    for (unsigned i = 0; i < 50; i++) {
        char wanted[16];
        snprintf(wanted, sizeof(wanted), "round %5u", i);
        int writer = open_at(dir, "a", O_WRONLY);
        write_all(writer, wanted, 11, 0);
        if (i % 2)
            SYS(fsync(writer));
        else
            SYS(close(writer));
        int again = open_at(view, "a", O_RDONLY);
        read_all(again, text, 11, 0);
        check_same(text, wanted, 11, "what was written, in a new handle of the view", 0);
        SYS(close(again));
        if (i % 2)
            SYS(close(writer));
    }
    SYS(close(fd));
    check_same(map, reference, size, "what was mapped in the view before", 0);

    /* Sizes and names. */
    struct stat st;
    for (unsigned i = 0; i < 50; i++) {
        fd = open_at(dir, "grows", O_WRONLY | O_CREAT | O_APPEND);
        EQUAL(write(fd, "0123456789", 10), 10);
        SYS(close(fd));
        SYS(fstatat(view, "grows", &st, 0));
        EQUAL(st.st_size, (i + 1) * 10);
        fd = open_at(view, "grows", O_RDONLY);
        char back[512];
        EQUAL(read(fd, back, sizeof(back)), (i + 1) * 10);
        SYS(close(fd));
    }
    SYS(renameat(dir, "grows", dir, "renamed"));
    FAILS(fstatat(view, "grows", &st, 0), ENOENT);
    SYS(fstatat(view, "renamed", &st, 0));
    SYS(unlinkat(dir, "renamed", 0));
    FAILS(fstatat(view, "renamed", &st, 0), ENOENT);
    clone_golden("seen");
    SYS(fstatat(view, "seen", &st, 0));
    EQUAL(st.st_size, size);

    /* Nothing is changed by it. */
    FAILS(openat(view, "a", O_RDWR), EROFS);
    FAILS(openat(view, "none", O_RDWR | O_CREAT, 0644), EROFS);
    FAILS(mkdirat(view, "none", 0755), EROFS);
    FAILS(unlinkat(view, "a", 0), EROFS);
    fd = open_at(view, "a", O_RDONLY);
    EQUAL(clone_to(fd, view, "none"), -EROFS);
    struct cowfs_ioc_seal seal = {.version = COWFS_IOCTL_VERSION, .length = 4096};
    FAILS(ioctl(fd, COWFS_IOC_SEAL, &seal), EROFS);
    struct cowfs_ioc_pack pack = {.version = COWFS_IOCTL_VERSION, .length = 4096};
    FAILS(ioctl(fd, COWFS_IOC_PACK, &pack), EROFS);
    /* But out of it, into the first, a clone can be made. */
    EQUAL(clone_to(fd, dir, "out"), 0);
    SYS(close(fd));

    /* Removed here while open there. */
    fd = open_at(view, "seen", O_RDONLY);
    CHECK(is_past_daemon(fd), "%s", stat_fd(fd).not_passthrough);
    int changed = open_at(view, "a", O_RDONLY);
    SYS(unlinkat(dir, "seen", 0));
    SYS(unlinkat(dir, "a", 0));
    commit();
    uint8_t *data = check_alloc(size);
    read_all(fd, data, size, 0);
    check_same(data, reference, size, "removed while open in the view", 0);
    read_all(changed, text, 5, 0);
    check_same(text, "round", 5, "removed while open in the view", 0);
    free(data);
}

/* ---- for scripts ---- */

static void wait_for_stdin(void)
{
    char buffer[64];
    puts("ready");
    fflush(stdout);
    while (read(STDIN_FILENO, buffer, sizeof(buffer)) > 0)
        ;
}

static int run_hold(const char *path, bool by_map)
{
    int fd = open_at(AT_FDCWD, path, O_RDONLY);
    size = size_of(fd);
    const uint8_t *map = by_map ? map_file(fd, MAP_PRIVATE) : NULL;
    if (by_map)
        SYS(close(fd));
    wait_for_stdin();
    if (by_map)
        fwrite(map, 1, size, stdout);
    return 0;
}

static void open_reference(const char *path, const char *mount)
{
    reference_fd = open_at(AT_FDCWD, path, O_RDONLY);
    size = size_of(reference_fd);
    reference = map_file(reference_fd, MAP_PRIVATE);
    dir = open_at(AT_FDCWD, mount, O_RDONLY | O_DIRECTORY);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {
        {"busy", case_busy},
        {"at_once", case_at_once},
        {"diverge", case_diverge},
        {"writer_first", case_writer_first},
        {"outlive_write", case_outlive_write},
        {"outlive_cut", case_outlive_cut},
        {"outlive_alone", case_outlive_alone},
        {"outlive_holes", case_outlive_holes},
        {"outlive_unlink", case_outlive_unlink},
        {"clone_mapped", case_clone_mapped},
        {"threads", case_threads},
    };
    const char *command = argc > 2 ? argv[1] : "";
    if (strcmp(command, "hold") == 0)
        return run_hold(argv[2], false);
    if (strcmp(command, "holdmap") == 0)
        return run_hold(argv[2], true);
    if (strcmp(command, "is") == 0)
        return !is_past_daemon(open_at(AT_FDCWD, argv[2], O_RDONLY));
    if (argc > 3)
        open_reference(argv[2], argv[3]);
    if (strcmp(command, "share") == 0 && argc == 5)
        return run_share(argv + 4);
    if (strcmp(command, "view") == 0 && argc == 5) {
        case_view(open_at(AT_FDCWD, argv[4], O_RDONLY | O_DIRECTORY));
        return 0;
    }
    for (unsigned i = 0; argc == 4 && i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (strcmp(command, cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    fputs("usage: see mount_pass.c\n", stderr);
    return 2;
}
