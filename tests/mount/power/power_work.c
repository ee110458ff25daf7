// SPDX-License-Identifier: Apache-2.0
/*
 * power_work.c - the writers. Each knows what is in its files; it notes each operation
 * before it does it, and what came of it.
 */
#include "tests/mount/power/power.h"

#include <linux/falloc.h>
#include <dirent.h>
#include <pthread.h>

struct writer {
    struct power_log *log;
    int dir;
    unsigned number;
    uint64_t rng, versions, done;
    struct {
        int fd, direct_fd; /* -1: there is no such file */
        uint64_t size;
    } slots[POWER_SLOTS];
    uint8_t *buffer;
    atomic_bool *stop;
    atomic_uint *working;
    pthread_t thread;
};

static bool percent(struct writer *w, unsigned n)
{
    return rng_below(&w->rng, 100) < n;
}

/* ---- noting ---- */

static struct power_record *begin(struct writer *w, struct power_record record)
{
    uint64_t n = atomic_load(&w->log->writers[w->number].begun);
    struct power_record *r = &w->log->writers[w->number].records[n];
    *r = record;
    atomic_store(&w->log->writers[w->number].begun, n + 1);
    return r;
}

/* False: nothing more is to be done. */
static bool end(struct writer *w, struct power_record *r, int64_t result)
{
    r->result = result < 0 ? -errno : 0;
    atomic_store(&r->ended, true);
    if (result < 0)
        return false;
    atomic_fetch_add(&w->log->writers[w->number].ended, 1);
    w->done++;
    return true;
}

/* ---- names ---- */

static bool open_slot(struct writer *w, unsigned slot, int flags)
{
    char name[32];
    power_name(name, w->number, slot);
    w->slots[slot].fd = openat(w->dir, name, O_RDWR | O_CLOEXEC | flags, 0600);
    if (w->slots[slot].fd < 0)
        return false;
    w->slots[slot].direct_fd = openat(w->dir, name, O_RDWR | O_CLOEXEC | O_DIRECT);
    return w->slots[slot].direct_fd >= 0;
}

static void close_slot(struct writer *w, unsigned slot)
{
    close(w->slots[slot].fd);
    close(w->slots[slot].direct_fd);
    w->slots[slot].fd = w->slots[slot].direct_fd = -1;
    w->slots[slot].size = 0;
}

static bool do_create(struct writer *w, unsigned slot)
{
    struct power_record *r = begin(w, (struct power_record){.what = POWER_CREATE, .slot = slot});
    return end(w, r, open_slot(w, slot, O_CREAT | O_EXCL) ? 0 : -1);
}

static bool do_unlink(struct writer *w, unsigned slot)
{
    char name[32];
    power_name(name, w->number, slot);
    struct power_record *r = begin(w, (struct power_record){.what = POWER_UNLINK, .slot = slot});
    bool good = end(w, r, unlinkat(w->dir, name, 0));
    close_slot(w, slot);
    return good;
}

static bool do_rename(struct writer *w, unsigned slot, unsigned other)
{
    char from[32], to[32];
    power_name(from, w->number, slot);
    power_name(to, w->number, other);
    struct power_record *r =
        begin(w, (struct power_record){.what = POWER_RENAME, .slot = slot, .other = other});
    bool good = end(w, r, renameat(w->dir, from, w->dir, to));
    if (w->slots[other].fd >= 0)
        close_slot(w, other);
    w->slots[other] = w->slots[slot];
    w->slots[slot].fd = w->slots[slot].direct_fd = -1;
    w->slots[slot].size = 0;
    return good;
}

/* As cowfs clone does it; but an error is one, not the end of the process. */
static int clone_slot(struct writer *w, unsigned slot, const char *name)
{
    struct cowfs_ioc_token token = {.version = COWFS_IOCTL_VERSION};
    struct cowfs_ioc_clone clone = {.version = COWFS_IOCTL_VERSION};
    int fd = w->slots[slot].fd;
    if (sync_file_range(fd, 0, 0,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER) != 0 ||
        ioctl(fd, COWFS_IOC_TOKEN, &token) != 0)
        return -1;
    memcpy(clone.token, token.token, sizeof(clone.token));
    snprintf(clone.name, sizeof(clone.name), "%s", name);
    return ioctl(w->dir, COWFS_IOC_CLONE, &clone);
}

static bool do_clone(struct writer *w, unsigned slot, unsigned other)
{
    char name[32];
    power_name(name, w->number, other);
    struct power_record *r =
        begin(w, (struct power_record){.what = POWER_CLONE, .slot = slot, .other = other});
    if (!end(w, r, clone_slot(w, slot, name)))
        return false;
    w->slots[other].size = w->slots[slot].size;
    return open_slot(w, other, 0);
}

static bool do_copy(struct writer *w, unsigned slot, unsigned other)
{
    if (!do_create(w, other))
        return false;
    struct power_record *r =
        begin(w, (struct power_record){.what = POWER_COPY, .slot = slot, .other = other});
    uint64_t done = 0;
    ssize_t n = 1;
    while (done < w->slots[slot].size && n > 0) {
        off_t from = (off_t)done, to = (off_t)done;
        n = copy_file_range(w->slots[slot].fd, &from, w->slots[other].fd, &to,
                            w->slots[slot].size - done, 0);
        done += n > 0 ? (uint64_t)n : 0;
    }
    w->slots[other].size = w->slots[slot].size;
    return end(w, r, n < 0 ? -1 : 0);
}

/* ---- content ---- */

static bool do_write(struct writer *w, unsigned slot, uint64_t block, uint64_t count)
{
    uint64_t size = w->slots[slot].size, offset = block * POWER_BLOCK;
    uint64_t length = count * POWER_BLOCK,
             version = (uint64_t)(w->number + 1) << 40 | ++w->versions;
    bool direct = percent(w, 30);
    /* A new end may be within a block, as long as nothing of it is left from before. */
    if (!direct && offset + length >= size && percent(w, 40)) {
        uint64_t least =
            size > offset + length - POWER_BLOCK ? size - offset : length - POWER_BLOCK + 1;
        length = least + rng_below(&w->rng, length - least + 1);
    }
    for (uint64_t i = 0; i < count; i++)
        power_fill(w->buffer + i * POWER_BLOCK, block + i, version, POWER_BLOCK);
    struct power_record *r = begin(w, (struct power_record){.what = POWER_WRITE,
                                                            .slot = slot,
                                                            .offset = offset,
                                                            .length = length,
                                                            .version = version});
    uint64_t done = 0;
    ssize_t n = 1;
    while (done < length && n > 0) {
        n = pwrite(direct ? w->slots[slot].direct_fd : w->slots[slot].fd, w->buffer + done,
                   length - done, (off_t)(offset + done));
        done += n > 0 ? (uint64_t)n : 0;
    }
    if (offset + length > size)
        w->slots[slot].size = offset + length;
    return end(w, r, n < 0 ? -1 : 0);
}

static bool write_somewhere(struct writer *w, unsigned slot)
{
    uint64_t blocks = (w->slots[slot].size + POWER_BLOCK - 1) / POWER_BLOCK;
    uint64_t count = percent(w, 8) ? 1 + rng_below(&w->rng, 300) : 1 + rng_below(&w->rng, 12);
    /* Within, or at the end, or a little behind it. */
    uint64_t block = percent(w, 40) ? blocks : rng_below(&w->rng, blocks + 3);
    if (block >= POWER_BLOCKS)
        block = rng_below(&w->rng, POWER_BLOCKS);
    if (block + count > POWER_BLOCKS)
        count = POWER_BLOCKS - block;
    return do_write(w, slot, block, count);
}

static bool do_truncate(struct writer *w, unsigned slot)
{
    uint64_t length = percent(w, 60) ? rng_below(&w->rng, w->slots[slot].size + 1)
                                     : rng_below(&w->rng, POWER_BLOCKS * POWER_BLOCK + 1);
    struct power_record *r =
        begin(w, (struct power_record){.what = POWER_TRUNCATE, .slot = slot, .length = length});
    w->slots[slot].size = length;
    return end(w, r, ftruncate(w->slots[slot].fd, (off_t)length));
}

static bool do_punch(struct writer *w, unsigned slot)
{
    uint64_t block = rng_below(&w->rng, POWER_BLOCKS), count = 1 + rng_below(&w->rng, 40);
    struct power_record *r = begin(w, (struct power_record){.what = POWER_PUNCH,
                                                            .slot = slot,
                                                            .offset = block * POWER_BLOCK,
                                                            .length = count * POWER_BLOCK});
    return end(w, r,
               fallocate(w->slots[slot].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         (off_t)block * POWER_BLOCK, (off_t)count * POWER_BLOCK));
}

static bool do_seal(struct writer *w, unsigned slot)
{
    struct power_record *r = begin(w, (struct power_record){.what = POWER_SEAL, .slot = slot});
    struct cowfs_ioc_seal io = {.version = COWFS_IOCTL_VERSION, .length = 64 << 20};
    int result;
    do {
        result = ioctl(w->slots[slot].fd, COWFS_IOC_SEAL, &io);
        io.offset = io.next;
    } while (result == 0 && io.next);
    return end(w, r, result);
}

static bool do_pack(struct writer *w, unsigned slot)
{
    struct power_record *r = begin(w, (struct power_record){.what = POWER_PACK, .slot = slot});
    struct cowfs_ioc_pack io = {.version = COWFS_IOCTL_VERSION, .length = 64 << 20};
    int result;
    do {
        result = ioctl(w->slots[slot].fd, COWFS_IOC_PACK, &io);
        io.offset = io.next;
    } while (result == 0 && io.next);
    return end(w, r, result);
}

static bool do_sync(struct writer *w, unsigned slot, uint32_t what)
{
    struct power_record *r = begin(w, (struct power_record){.what = what, .slot = slot});
    int fd = what == POWER_FSYNC_DIR ? w->dir : w->slots[slot].fd;
    return end(w, r, what == POWER_FDATASYNC ? fdatasync(fd) : fsync(fd));
}

/* ---- working ---- */

static bool do_something(struct writer *w)
{
    unsigned slot = (unsigned)rng_below(&w->rng, POWER_SLOTS);
    unsigned other = (unsigned)rng_below(&w->rng, POWER_SLOTS),
             p = (unsigned)rng_below(&w->rng, 100);
    bool free_other = slot != other && w->slots[other].fd < 0;
    if (w->slots[slot].fd < 0)
        return do_create(w, slot);
    if (p < 40)
        return write_somewhere(w, slot);
    if (p < 56)
        return do_sync(w, slot, POWER_FSYNC);
    if (p < 64)
        return do_sync(w, slot, POWER_FDATASYNC);
    if (p < 66)
        return do_sync(w, slot, POWER_FSYNC_DIR);
    if (p < 70)
        return do_truncate(w, slot);
    if (p < 74)
        return do_punch(w, slot);
    if (p < 82)
        return free_other ? do_clone(w, slot, other) : do_unlink(w, slot);
    if (p < 86)
        return free_other ? do_copy(w, slot, other) : do_unlink(w, slot);
    if (p < 93)
        return slot == other || do_rename(w, slot, other);
    if (p < 97)
        return do_seal(w, slot);
    return do_pack(w, slot);
}

static void *writer_main(void *arg)
{
    struct writer *w = arg;
    /* Room for what one step notes. */
    while (!atomic_load(w->stop) &&
           atomic_load(&w->log->writers[w->number].begun) + 4 < POWER_RECORDS && do_something(w))
        ;
    atomic_fetch_sub(w->working, 1);
    return NULL;
}

/* The kernel may write any dirty page at any time. */
static void write_some_back(const char *directory, uint64_t *rng)
{
    DIR *dir = opendir(directory);
    if (!dir)
        return;
    struct dirent *e;
    while ((e = readdir(dir))) {
        if (e->d_name[0] == '.' || rng_below(rng, 2))
            continue;
        int fd = openat(dirfd(dir), e->d_name, O_RDONLY | O_CLOEXEC);
        struct stat st;
        if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0) {
            if (fd >= 0)
                close(fd);
            continue;
        }
        uint64_t from = rng_below(rng, (uint64_t)st.st_size);
        (void)sync_file_range(fd, (off_t)from, (off_t)(1 + rng_below(rng, 4 << 20)),
                              SYNC_FILE_RANGE_WRITE);
        close(fd);
    }
    closedir(dir);
}

uint64_t power_work(const char *path, const char *store, struct power_log *log, uint64_t seed,
                    unsigned duration_ms)
{
    static struct writer writers[POWER_WRITERS];
    atomic_bool stop = false;
    atomic_uint working = POWER_WRITERS;
    char segments[1024], database[1024];
    int dir = SYS_INT(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    snprintf(segments, sizeof(segments), "%s/segments", store);
    snprintf(database, sizeof(database), "%s/metadb", store);
    for (unsigned i = 0; i < POWER_WRITERS; i++) {
        struct writer *w = &writers[i];
        *w = (struct writer){.log = log, .dir = dir, .number = i};
        w->stop = &stop;
        w->working = &working;
        w->rng = seed * POWER_WRITERS + i;
        w->buffer = check_alloc(POWER_BLOCKS * POWER_BLOCK);
        for (unsigned s = 0; s < POWER_SLOTS; s++)
            w->slots[s].fd = w->slots[s].direct_fd = -1;
        CHECK(pthread_create(&w->thread, NULL, writer_main, w) == 0, "pthread_create");
    }
    for (unsigned ms = 0; ms < duration_ms && atomic_load(&working); ms += 20) {
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000000}, NULL);
        write_some_back(segments, &seed);
        write_some_back(database, &seed);
    }
    atomic_store(&stop, true);
    uint64_t done = 0;
    for (unsigned i = 0; i < POWER_WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
        done += writers[i].done;
    }
    return done;
}
