// SPDX-License-Identifier: Apache-2.0
/*
 * mount_model.c - random operations on files of a mount, by several threads, against a plain byte
 * array for each file.
 *
 *   mount_model DIRECTORY [--seed N] [--ops N] [--threads N] [--save DIR] [--check DIR]
 *
 * --save writes the arrays there at the end; --check compares the files with what was saved, and
 * does nothing else (after a new mount). A thread locks the files it works on, so an array always
 * says what its file must be; what runs at the same time is on different files, which share their
 * chunks as clones. With --threads 1 a seed reproduces a run exactly.
 *
 * Only a window of each file is used. Windows begin before boundaries of the block map: chunk, leaf
 * (2 MiB), the levels above (1 GiB, 512 GiB); before a window there is a hole.
 */
#include "tests/mount/mount_common.h"

#include <getopt.h>
#include <pthread.h>
#include <sys/mman.h>

enum { FILES = 10, WINDOW = 5 << 20, THREADS_MAX = 16, LOG = 40, IO_MAX = 700000 };

/* 3 MiB before a boundary, so that the window reaches over it. */
static const uint64_t bases[] = {0,      0, 0, (1ULL << 30) - (3 << 20), (512ULL << 30) - (3 << 20),
                                 2 << 20};

struct file {
    pthread_mutex_t lock;
    char name[16];
    uint64_t base;
    size_t size; /* of the window; the file is base + size long */
    uint8_t *bytes;
    int fd, direct_fd;
    char log[LOG][96];
    unsigned logged;
};

static struct file files[FILES];
static int dir;
static uint64_t seed = 1;

__attribute__((format(printf, 2, 3))) static void note(struct file *f, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(f->log[f->logged++ % LOG], sizeof(f->log[0]), format, args);
    va_end(args);
}

/* ---- comparing ---- */

__attribute__((noreturn)) static void differs(const struct file *f, const char *how, size_t at,
                                              int got)
{
    unsigned first = f->logged > LOG ? f->logged - LOG : 0;
    for (unsigned i = first; i < f->logged; i++)
        fprintf(stderr, "  %s\n", f->log[i % LOG]);
    check_failed(f->name, 0,
                 "by %s: byte at %" PRIu64 " (window + 0x%zx) is %02x, not %02x; size %" PRIu64
                 "; --seed %" PRIu64,
                 how, f->base + at, at, (unsigned)got, f->bytes[at], f->base + f->size, seed);
}

static void compare(const struct file *f, const char *how, size_t at, const uint8_t *got,
                    size_t bytes)
{
    if (memcmp(got, f->bytes + at, bytes) == 0)
        return;
    size_t i = 0;
    while (got[i] == f->bytes[at + i])
        i++;
    differs(f, how, at + i, got[i]);
}

static void check_size(struct file *f)
{
    uint64_t size = size_of(f->fd);
    if (size == f->base + f->size)
        return;
    fprintf(stderr, "size of %s is %" PRIu64 ", not %" PRIu64 "\n", f->name, size,
            f->base + f->size);
    differs(f, "fstat", 0, -1);
}

/* One a thread. */
static __thread uint8_t *own_buffer;

static uint8_t *io_buffer(void)
{
    if (!own_buffer)
        own_buffer = check_alloc(WINDOW);
    return own_buffer;
}

static void check_read(struct file *f, int fd, const char *how, size_t at, size_t bytes)
{
    uint8_t *buffer = io_buffer();
    ssize_t got = SYS(pread(fd, buffer, bytes, (off_t)(f->base + at)));
    size_t wanted = at >= f->size ? 0 : bytes < f->size - at ? bytes : f->size - at;
    CHECK((size_t)got == wanted, "%s: pread of %zu bytes at window + %zu gave %zd, not %zu",
          f->name, bytes, at, got, wanted);
    compare(f, how, at, buffer, wanted);
}

static void check_all(struct file *f, int fd, const char *how)
{
    check_size(f);
    if (f->size > 0)
        check_read(f, fd, how, 0, f->size);
}

/* SEEK_DATA finds all that is not zero. */
static void check_walk(struct file *f)
{
    int64_t at = (int64_t)f->base;
    size_t known = 0;
    while ((at = lseek(f->fd, at, SEEK_DATA)) >= 0) {
        int64_t end = SYS(lseek(f->fd, at, SEEK_HOLE));
        size_t from = (size_t)((uint64_t)at - f->base);
        for (; known < from; known++)
            if (f->bytes[known])
                differs(f, "SEEK_DATA", known, 0);
        known = (size_t)((uint64_t)end - f->base);
        at = end;
    }
    CHECK(errno == ENXIO, "SEEK_DATA: %s", strerror(errno));
    for (; known < f->size; known++)
        if (f->bytes[known])
            differs(f, "SEEK_DATA", known, 0);
    if (f->base > 0) {
        int64_t first = lseek(f->fd, 0, SEEK_DATA);
        CHECK(first < 0 || (uint64_t)first >= f->base, "%s: data before the window, at %" PRId64,
              f->name, first);
    }
}

/* ---- choosing ---- */

/* Where things go wrong: at and beside boundaries of chunks, of leaves, of the file. */
static size_t pick_place(const struct file *f, uint64_t *rng)
{
    size_t at;
    switch (rng_below(rng, 6)) {
    case 0:
        at = (size_t)rng_below(rng, WINDOW);
        break;
    case 1:
        at = (size_t)rng_below(rng, WINDOW / 65536) * 65536;
        break;
    case 2:
        at = (size_t)rng_below(rng, 3) * (2 << 20);
        if (f->base)
            at += 1 << 20; /* the boundary in windows that begin 3 MiB before */
        break;
    case 3:
        at = f->size;
        break;
    default:
        at = (size_t)rng_below(rng, WINDOW / 4096) * 4096;
    }
    if (rng_below(rng, 3) == 0)
        at += (size_t)rng_below(rng, 9) - 4; /* wraps below 0: cut by the modulus */
    return at % WINDOW;
}

static size_t pick_length(size_t at, uint64_t *rng)
{
    size_t length;
    switch (rng_below(rng, 5)) {
    case 0:
        length = 1 + (size_t)rng_below(rng, 100);
        break;
    case 1:
        length = 1 + (size_t)rng_below(rng, 20000);
        break;
    case 2:
        length = 1 + (size_t)rng_below(rng, IO_MAX);
        break;
    default:
        length = 4096 << rng_below(rng, 7);
    }
    return length < WINDOW - at ? length : WINDOW - at;
}

/* Random, zeros, or a bit of both; compressible into runs of the same. */
static void make_bytes(uint8_t *bytes, size_t length, uint64_t *rng)
{
    switch (rng_below(rng, 5)) {
    case 0:
        memset(bytes, 0, length);
        break;
    case 1:
        /* Chunks that are equal to each other, and to those of other files. */
        memset(bytes, (int)(1 + rng_below(rng, 3)), length);
        break;
    case 2:
        memset(bytes, 0, length);
        bytes[rng_below(rng, length)] = 1;
        break;
    default:
        fill_random(bytes, length, rng);
    }
}

static void model_write(struct file *f, size_t at, const uint8_t *bytes, size_t length)
{
    memcpy(f->bytes + at, bytes, length);
    if (at + length > f->size)
        f->size = at + length;
}

/* Behind the size the array is always zero. */
static void model_truncate(struct file *f, size_t size)
{
    if (size < f->size)
        memset(f->bytes + size, 0, f->size - size);
    f->size = size;
}

/* ---- operations on one file ---- */

static void op_write(struct file *f, uint64_t *rng)
{
    size_t at = pick_place(f, rng), length = pick_length(at, rng);
    uint8_t *bytes = io_buffer();
    if (rng_below(rng, 6) == 0)
        memcpy(bytes, f->bytes + at, length); /* what is there already */
    else
        make_bytes(bytes, length, rng);
    note(f, "write %zx +%zx", at, length);
    write_all(f->fd, bytes, length, f->base + at);
    model_write(f, at, bytes, length);
}

static void op_write_direct(struct file *f, uint64_t *rng)
{
    size_t at = pick_place(f, rng) & ~(size_t)4095, length = pick_length(at, rng);
    length = (length + 4095) & ~(size_t)4095;
    if (length > WINDOW - at)
        length = WINDOW - at;
    uint8_t *bytes = io_buffer();
    make_bytes(bytes, length, rng);
    note(f, "direct write %zx +%zx", at, length);
    write_all(f->direct_fd, bytes, length, f->base + at);
    model_write(f, at, bytes, length);
}

static void op_map(struct file *f, uint64_t *rng)
{
    if (f->size == 0)
        return;
    size_t at = pick_place(f, rng) % f->size, length = pick_length(at, rng);
    length = length < f->size - at ? length : f->size - at;
    size_t page = at & ~(size_t)4095, span = at + length - page;
    uint8_t *map =
        mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, (off_t)(f->base + page));
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    note(f, "mapped write %zx +%zx", at, length);
    if (rng_below(rng, 2))
        compare(f, "mapping", page, map, span);
    make_bytes(map + (at - page), length, rng);
    model_write(f, at, map + (at - page), length);
    if (rng_below(rng, 4) == 0)
        SYS(msync(map, span, MS_SYNC));
    SYS(munmap(map, span));
}

static void op_truncate(struct file *f, uint64_t *rng)
{
    size_t size = pick_place(f, rng);
    note(f, "truncate %zx", size);
    SYS(ftruncate(f->fd, (off_t)(f->base + size)));
    model_truncate(f, size);
}

static void op_fallocate(struct file *f, uint64_t *rng)
{
    static const int modes[] = {0,
                                FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_ZERO_RANGE,
                                FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
    int mode = modes[rng_below(rng, 6)];
    size_t at = pick_place(f, rng), length = pick_length(at, rng);
    note(f, "fallocate %x %zx +%zx", (unsigned)mode, at, length);
    SYS(fallocate(f->fd, mode, (off_t)(f->base + at), (off_t)length));
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        memset(f->bytes + at, 0, length);
    if (!(mode & FALLOC_FL_KEEP_SIZE) && at + length > f->size)
        f->size = at + length;
}

static void op_read(struct file *f, uint64_t *rng)
{
    size_t at = pick_place(f, rng), length = pick_length(at, rng);
    switch (rng_below(rng, 8)) {
    case 0:
        check_all(f, f->fd, "read");
        break;
    case 1:
        check_all(f, f->direct_fd, "direct read");
        break;
    case 2:
    case 3:
        at &= ~(size_t)4095;
        length = (length + 4095) & ~(size_t)4095;
        check_read(f, f->direct_fd, "direct read", at, length);
        break;
    default:
        check_read(f, f->fd, "read", at, length);
    }
    check_size(f);
}

static void open_both(struct file *f)
{
    f->fd = SYS_INT(openat(dir, f->name, O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    f->direct_fd = SYS_INT(openat(dir, f->name, O_RDWR | O_DIRECT | O_CLOEXEC));
}

static void close_both(struct file *f)
{
    SYS(close(f->fd));
    SYS(close(f->direct_fd));
}

static void op_sync(struct file *f, uint64_t *rng)
{
    struct cowfs_ioc_seal seal = {.version = COWFS_IOCTL_VERSION, .length = UINT64_MAX};
    switch (rng_below(rng, 5)) {
    case 0:
        note(f, "fsync");
        SYS(fsync(f->fd));
        break;
    case 1:
        note(f, "reopen");
        close_both(f);
        open_both(f);
        break;
    case 2:
        /* Drops clean pages: the next read asks the daemon. */
        note(f, "fsync, drop cache");
        SYS(fdatasync(f->fd));
        SYS(posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED) == 0 ? 0 : -1);
        check_all(f, f->fd, "read after dropping the cache");
        break;
    case 3:
        note(f, "seal");
        do {
            SYS(ioctl(f->fd, COWFS_IOC_SEAL, &seal));
            seal.offset = seal.next;
        } while (seal.next);
        break;
    default:
        note(f, "walk");
        check_walk(f);
    }
}

/* ---- operations on two ---- */

/* b becomes a clone of a; who still had b open had the old one. */
static void op_clone(struct file *a, struct file *b, uint64_t *rng)
{
    note(a, "clone to %s", b->name);
    note(b, "becomes a clone of %s", a->name);
    struct file old = *b;
    if (rng_below(rng, 2)) {
        SYS(unlinkat(dir, b->name, 0));
        int error = clone_with_any(a->fd, dir, b->name);
        CHECK(error == 0, "clone of %s to %s: %s", a->name, b->name, strerror(-error));
    } else {
        int error = clone_with_any(a->fd, dir, "new");
        CHECK(error == 0 || error == -EEXIST, "clone of %s: %s", a->name, strerror(-error));
        if (error) /* another thread is using that name */
            return;
        SYS(renameat(dir, "new", dir, b->name));
    }
    open_both(b);
    check_all(&old, old.fd, "reading what was replaced");
    close_both(&old);
    b->base = a->base;
    b->size = a->size;
    memcpy(b->bytes, a->bytes, WINDOW);
    if (rng_below(rng, 2))
        check_all(b, b->fd, "reading a clone");
}

static void op_copy(struct file *a, struct file *b, uint64_t *rng)
{
    size_t from = pick_place(a, rng), length = pick_length(from, rng), to;
    switch (rng_below(rng, 3)) {
    case 0:
        to = pick_place(b, rng);
        break;
    case 1:
        to = (pick_place(b, rng) & ~(size_t)4095) + from % 4096;
        break;
    default:
        to = from;
    }
    if (rng_below(rng, 4) == 0) {
        from = to = 0;
        length = WINDOW;
    }
    if (to >= WINDOW)
        return;
    if (length > WINDOW - to)
        length = WINDOW - to;
    if (from >= a->size)
        length = 0;
    else if (length > a->size - from)
        length = a->size - from;
    note(a, "copy %zx +%zx to %s", from, length, b->name);
    note(b, "copy from %s %zx to %zx +%zx", a->name, from, to, length);
    off_t in = (off_t)(a->base + from), out = (off_t)(b->base + to);
    if (a == b && length > 0 && from < to + length && to < from + length) {
        FAILS(copy_file_range(a->fd, &in, b->fd, &out, length, 0), EINVAL);
        return;
    }
    uint8_t *bytes = io_buffer();
    memcpy(bytes, a->bytes + from, length);
    size_t left = length;
    while (left > 0) {
        int64_t done = SYS(copy_file_range(a->fd, &in, b->fd, &out, left, 0));
        CHECK(done > 0, "%s: copy_file_range copied nothing", a->name);
        left -= (size_t)done;
    }
    if (length > 0)
        model_write(b, to, bytes, length);
}

static void ask_diff(int a, int b, struct cowfs_ioc_diff *diff)
{
    struct cowfs_ioc_token token = {.version = COWFS_IOCTL_VERSION};
    int error;
    do {
        SYS(ioctl(b, COWFS_IOC_TOKEN, &token));
        memcpy(diff->token, token.token, sizeof(diff->token));
        error = ioctl(a, COWFS_IOC_DIFF, diff) == 0 ? 0 : errno;
    } while (error == ESTALE); /* the token's daemon has died */
    CHECK(error == 0, "diff: %s", strerror(error));
}

/* Maps that are told to be equal are; others need not be different. */
static void op_diff(struct file *a, struct file *b)
{
    if (a->base != b->base)
        return;
    struct cowfs_ioc_diff diff = {.version = COWFS_IOCTL_VERSION};
    size_t known = 0, common = a->size < b->size ? a->size : b->size;
    note(a, "diff %s", b->name);
    SYS(sync_file_range(a->fd, 0, 0, 7));
    SYS(sync_file_range(b->fd, 0, 0, 7));
    do {
        ask_diff(a->fd, b->fd, &diff);
        for (uint32_t i = 0; i < diff.count; i++) {
            uint64_t from = diff.range[i].offset < a->base ? 0 : diff.range[i].offset - a->base;
            uint64_t end = diff.range[i].offset + diff.range[i].length;
            for (; known < from && known < common; known++)
                if (a->bytes[known] != b->bytes[known])
                    differs(a, "diff that calls it equal", known, b->bytes[known]);
            if (end > a->base && end - a->base > known)
                known = (size_t)(end - a->base);
        }
        diff.offset = diff.next;
    } while (diff.next);
    for (; known < common; known++)
        if (a->bytes[known] != b->bytes[known])
            differs(a, "diff that calls it equal", known, b->bytes[known]);
}

/* ---- threads ---- */

struct worker {
    pthread_t thread;
    uint64_t rng, ops;
};

static void step(uint64_t *rng)
{
    unsigned i = (unsigned)rng_below(rng, FILES), j = (unsigned)rng_below(rng, FILES);
    struct file *a = &files[i], *b = &files[j];
    unsigned what = (unsigned)rng_below(rng, 100);
    bool two = what >= 75;

    if (!two)
        b = a;
    /* By rising number: no deadlock. */
    pthread_mutex_lock(&(a < b ? a : b)->lock);
    if (a != b)
        pthread_mutex_lock(&(a < b ? b : a)->lock);
    if (what < 20)
        op_write(a, rng);
    else if (what < 30)
        op_write_direct(a, rng);
    else if (what < 40)
        op_map(a, rng);
    else if (what < 45)
        op_truncate(a, rng);
    else if (what < 52)
        op_fallocate(a, rng);
    else if (what < 65)
        op_read(a, rng);
    else if (what < 75)
        op_sync(a, rng);
    else if (what < 85 && a != b)
        op_clone(a, b, rng);
    else if (what < 97)
        op_copy(a, b, rng);
    else
        op_diff(a, b);
    if (a != b)
        pthread_mutex_unlock(&b->lock);
    pthread_mutex_unlock(&a->lock);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    for (uint64_t i = 0; i < w->ops; i++)
        step(&w->rng);
    free(own_buffer);
    return NULL;
}

/* ---- saved models ---- */

static FILE *open_model(const char *directory, const struct file *f, const char *mode)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s.model", directory, f->name);
    FILE *model = fopen(path, mode);
    CHECK(model, "%s: %s", path, strerror(errno));
    return model;
}

static void save(const char *directory, const struct file *f)
{
    FILE *model = open_model(directory, f, "w");
    CHECK(fwrite(&f->base, sizeof(f->base), 1, model) == 1 &&
              fwrite(&f->size, sizeof(f->size), 1, model) == 1 &&
              fwrite(f->bytes, 1, WINDOW, model) == WINDOW,
          "cannot save");
    CHECK(fclose(model) == 0, "cannot save");
}

static void check_saved(const char *directory, struct file *f)
{
    FILE *model = open_model(directory, f, "r");
    CHECK(fread(&f->base, sizeof(f->base), 1, model) == 1 &&
              fread(&f->size, sizeof(f->size), 1, model) == 1 &&
              fread(f->bytes, 1, WINDOW, model) == WINDOW,
          "cannot read the saved model");
    fclose(model);
    check_all(f, f->fd, "read");
    check_walk(f);
}

static const char usage[] =
    "usage: mount_model DIRECTORY [--seed N] [--ops N] [--threads N] [--save DIR] [--check DIR]\n";

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},    {"ops", required_argument, NULL, 'n'},
        {"threads", required_argument, NULL, 't'}, {"save", required_argument, NULL, 'S'},
        {"check", required_argument, NULL, 'C'},   {0},
    };
    static struct worker workers[THREADS_MAX];
    const char *save_to = NULL, *check_in = NULL;
    uint64_t ops = 2000;
    unsigned threads = 4;
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's':
            seed = strtoull(optarg, NULL, 10);
            break;
        case 'n':
            ops = strtoull(optarg, NULL, 10);
            break;
        case 't':
            threads = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'S':
            save_to = optarg;
            break;
        case 'C':
            check_in = optarg;
            break;
        default:
            fputs(usage, stderr);
            return 2;
        }
    }
    if (argc - optind != 1 || threads < 1 || threads > THREADS_MAX) {
        fputs(usage, stderr);
        return 2;
    }
    dir = SYS_INT(open(argv[optind], O_RDONLY | O_DIRECTORY));
    uint64_t rng = seed;
    for (unsigned i = 0; i < FILES; i++) {
        struct file *f = &files[i];
        pthread_mutex_init(&f->lock, NULL);
        snprintf(f->name, sizeof(f->name), "file%u", i);
        f->base = bases[rng_below(&rng, sizeof(bases) / sizeof(bases[0]))];
        f->bytes = calloc(1, WINDOW);
        CHECK(f->bytes, "no memory");
        open_both(f);
        if (check_in)
            check_saved(check_in, f);
        else
            SYS(ftruncate(f->fd, (off_t)f->base));
    }
    if (check_in) {
        puts("as saved");
        return 0;
    }
    for (unsigned i = 0; i < threads; i++) {
        workers[i].rng = rng_next(&rng);
        workers[i].ops = ops / threads;
        CHECK(pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) == 0, "no thread");
    }
    for (unsigned i = 0; i < threads; i++)
        pthread_join(workers[i].thread, NULL);
    for (unsigned i = 0; i < FILES; i++) {
        check_all(&files[i], files[i].fd, "the last read");
        check_all(&files[i], files[i].direct_fd, "the last direct read");
        check_walk(&files[i]);
        close_both(&files[i]);
        if (save_to)
            save(save_to, &files[i]);
    }
    printf("seed %" PRIu64 ": %" PRIu64 " operations by %u threads: good\n", seed, ops, threads);
    return 0;
}
