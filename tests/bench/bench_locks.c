// SPDX-License-Identifier: Apache-2.0
/*
 * bench_locks - which locks requests of many threads meet at, below FUSE.
 *
 *     bench_locks read|write|cow one|each THREADS OPERATIONS SEED STORE
 *
 * THREADS threads make OPERATIONS requests of 4 KiB at random places together,
 * as the daemon does it (inode_get, file_read or file_write, inode_put), in a
 * new store: in one file, or in one file each. "write" goes to chunks that
 * the file has alone, "cow" to clones made just before, each chunk once. Prints
 * what lock_count.h says, and ns for a request of all threads together.
 */
#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "cowfs/names.h"
#include "tests/bench/bench_common.h"
#include "tests/bench/locks/lock_count.h"

#include <pthread.h>
#include <stdbool.h>

static const char usage[] = "bench_locks read|write|cow one|each THREADS OPERATIONS SEED STORE";

enum { THREADS_MAX = 256, FILE_BLOCKS = 16384 };

static const struct caller root_caller = {.umask = 022};

struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    struct fs *fs;
    uint64_t ino, first, stride, operations, blocks;
    bool writes;
    uint64_t seed;
    double began_us, ended_us;
    struct lock_sites sites;
};

static void must(int64_t result, const char *what)
{
    if (result < 0) {
        errno = (int)-result;
        die("%s", what);
    }
}

/* Each block of the file is met once in `blocks` (a power of two) requests. */
static uint64_t place(const struct worker *w, uint64_t i)
{
    return ((w->first + i * w->stride) * 40503 + w->seed) % w->blocks;
}

static void request(struct worker *w, uint64_t i, char *buffer, uint64_t *noise)
{
    struct inode *inode;
    must(inode_get(w->fs->inodes, w->ino, &inode), "inode");
    uint64_t offset = place(w, i) * BLOCK_BYTES;
    if (w->writes) {
        *(uint64_t *)buffer = rng_next(noise);
        must(file_write(inode, buffer, BLOCK_BYTES, offset, (struct file_write_flags){0}), "write");
    } else {
        must(file_read(inode, buffer, BLOCK_BYTES, offset), "read");
    }
    inode_put(inode);
}

static void *work(void *arg)
{
    struct worker *w = arg;
    uint64_t noise = rng_seed(w->seed + w->first + w->ino);
    char *buffer = aligned_buffer(BLOCK_BYTES);
    rng_fill(buffer, BLOCK_BYTES, &noise);
    pthread_barrier_wait(w->start);
    lock_count_into(&w->sites);
    w->began_us = now_us();
    for (uint64_t i = 0; i < w->operations; i++)
        request(w, i, buffer, &noise);
    w->ended_us = now_us();
    lock_count_into(NULL);
    free(buffer);
    return NULL;
}

static uint64_t new_file(struct fs *fs, const char *name, uint64_t blocks, uint64_t seed)
{
    struct inode *inode;
    uint64_t noise = rng_seed(seed);
    char *buffer = aligned_buffer(BIG_BYTES);
    must(names_create(fs, ROOT_INO, name, S_IFREG | 0644, 0, NULL, &root_caller, &inode), "create");
    for (uint64_t at = 0; at < blocks * BLOCK_BYTES; at += BIG_BYTES) {
        rng_fill(buffer, BIG_BYTES, &noise);
        must(file_write(inode, buffer, BIG_BYTES, at, (struct file_write_flags){0}), "fill");
    }
    uint64_t ino = inode->ino;
    inode_put(inode);
    free(buffer);
    return ino;
}

static uint64_t clone_of(struct fs *fs, uint64_t ino, const char *name)
{
    struct cowfs_ioc_clone io = {0};
    struct inode *inode;
    must(clone_tree(fs, ino, ROOT_INO, name, &root_caller, &io), "clone");
    must(names_lookup(fs, ROOT_INO, name, &inode), "the clone");
    uint64_t clone = inode->ino;
    inode_put(inode);
    return clone;
}

static void run(struct fs *fs, struct worker *workers, unsigned threads)
{
    pthread_barrier_t start;
    static struct lock_sites all;
    double began = 0, ended = 0;
    uint64_t operations = 0;
    pthread_barrier_init(&start, NULL, threads);
    for (unsigned i = 0; i < threads; i++) {
        workers[i].fs = fs;
        workers[i].start = &start;
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            die("thread %u", i);
    }
    for (unsigned i = 0; i < threads; i++) {
        const struct worker *w = &workers[i];
        pthread_join(w->thread, NULL);
        lock_count_merge(&all, &w->sites);
        operations += w->operations;
        began = i == 0 || w->began_us < began ? w->began_us : began;
        ended = w->ended_us > ended ? w->ended_us : ended;
    }
    pthread_barrier_destroy(&start);
    printf("operations %llu\nns_each %.1f\n", (unsigned long long)operations,
           (ended - began) * 1e3 / (double)operations);
    lock_count_print(&all);
}

int main(int argc, char **argv)
{
    if (argc != 7)
        misused(usage);
    bool cow = strcmp(argv[1], "cow") == 0, writes = cow || strcmp(argv[1], "write") == 0;
    bool each = strcmp(argv[2], "each") == 0;
    uint64_t threads = parse_u64(argv[3], usage), operations = parse_u64(argv[4], usage);
    uint64_t seed = parse_u64(argv[5], usage);
    if ((!writes && strcmp(argv[1], "read") != 0) || (!each && strcmp(argv[2], "one") != 0) ||
        threads == 0 || threads > THREADS_MAX || (threads & (threads - 1)) ||
        operations < threads || (cow && operations > FILE_BLOCKS))
        misused(usage);
    struct errmsg err = {""};
    struct fs *fs;
    if (fs_open(argv[6], &(struct fs_config){.create = true}, &fs, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    /* The same number of bytes in all, so in both ways the same caches. */
    uint64_t files = each ? threads : 1, blocks = FILE_BLOCKS / files;
    struct worker *workers = calloc(threads, sizeof(*workers));
    uint64_t *inos = calloc(files, sizeof(*inos));
    if (!workers || !inos)
        die("memory");
    for (uint64_t i = 0; i < files; i++) {
        char name[32];
        snprintf(name, sizeof(name), "file%llu", (unsigned long long)i);
        inos[i] = new_file(fs, name, blocks, seed + i);
        snprintf(name, sizeof(name), "clone%llu", (unsigned long long)i);
        if (cow)
            inos[i] = clone_of(fs, inos[i], name);
    }
    must(fs_commit(fs), "commit");
    for (uint64_t i = 0; i < threads; i++)
        workers[i] = (struct worker){.ino = inos[i % files],
                                     .first = each ? 0 : i,
                                     .stride = each ? 1 : threads,
                                     .operations = operations / threads,
                                     .blocks = blocks,
                                     .writes = writes,
                                     .seed = seed};
    run(fs, workers, (unsigned)threads);
    free(workers);
    free(inos);
    must(fs_close(fs), "close");
    return 0;
}
