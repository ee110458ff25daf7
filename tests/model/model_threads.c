// SPDX-License-Identifier: Apache-2.0
/*
 * model_threads.c - several threads on one store, without a mount: is every
 * clone one point in time, and does what one thread does show in another's
 * files?
 *
 *   model_threads [--seed N] [--seconds N] [--chunk-size BYTES]
 *
 * One thread writes a stamp, one more each round, into all blocks of two files
 * in a fixed order, from one to the other and back. So whatever is one point
 * in time of both files has two neighbouring stamps at the most, the older one
 * behind the newer one in that order, and every block, written by one call, is
 * of one stamp. Others take clones of the directory, clones and copies of the
 * files, look at them now and again, write to them, and delete them; more of
 * them do as they please with files of their own, which they know byte by
 * byte; and all the while sealing, commits, du and df go on.
 *
 * At the end fsck must be content, and an empty store empty.
 */
#include "cowfs/clone.h"
#include "cowfs/domain.h"
#include "cowfs/file.h"
#include "cowfs/names.h"
#include "tests/model/lib/compare.h"
#include "tests/model/lib/rng.h"
#include "tests/model/lib/scratch.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    BLOCKS = 700, /* of both files together: more than a leaf, if a block is a chunk */
    THREADS = 7,
    KEPT = 3, /* clones that a thread keeps at a time */
    OWN_MAX = 3 << 20,
    OWN_WRITE_MAX = 200 * 1000,
};

static const struct caller root_caller = {.umask = 022};
static const char *const stamped_names[2] = {"even", "odd"};

static struct fs *fs;
static uint64_t seed;
static uint32_t chunk_bytes = 4096;
static size_t block_bytes;
static uint64_t tree; /* the directory that the two files lie in */
static atomic_bool stop;
static atomic_uint_fast64_t clones_checked, rounds_written;

static void must(int64_t result, const char *what)
{
    if (result < 0)
        fail("%s: %s", what, g_strerror((int)-result));
}

static struct inode *look_up(uint64_t dir, const char *name)
{
    struct inode *inode;
    must(names_lookup(fs, dir, name, &inode), name);
    return inode;
}

static struct inode *create_of(uint32_t uid, uint64_t dir, const char *name, uint32_t mode)
{
    struct caller caller = {.uid = uid, .umask = 022};
    struct inode *inode;
    must(names_create(fs, dir, name, mode, 0, NULL, &caller, &inode), name);
    return inode;
}

static struct inode *create(uint64_t dir, const char *name, uint32_t mode)
{
    return create_of(0, dir, name, mode);
}

/* ---- stamps ---- */

static uint64_t block_offset(unsigned block)
{
    /* A gap in the middle: the map has several levels. */
    uint64_t gap = block < BLOCKS / 2 ? 0 : UINT64_C(3) << 30;
    return gap + block / 2 * block_bytes;
}

static void write_stamp(struct inode *const *files, unsigned block, uint64_t stamp)
{
    uint64_t *data = g_malloc(block_bytes);
    struct file_write_flags flags = {false, false};
    for (size_t i = 0; i < block_bytes / 8; i++)
        data[i] = stamp;
    must(file_write(files[block % 2], data, block_bytes, block_offset(block), flags), "write");
    g_free(data);
}

/* The stamp of a block, 0 if it is not there yet. */
static uint64_t read_stamp(struct inode *inode, unsigned block, const char *what)
{
    uint64_t *data = g_malloc0(block_bytes);
    ssize_t n = file_read(inode, data, block_bytes, block_offset(block));
    must(n, "read");
    if (n != 0 && (size_t)n != block_bytes)
        fail("%s: block %u has %zd bytes", what, block, n);
    for (size_t i = 1; i < block_bytes / 8; i++)
        if (data[i] != data[0])
            fail("%s: block %u is torn: %" PRIu64 " and, at %zu, %" PRIu64, what, block, data[0],
                 i * 8, data[i]);
    uint64_t stamp = data[0];
    g_free(data);
    return stamp;
}

/* All stamps, by runs, and where the block lies: what a failure can be understood from. */
static void tell_all(struct inode *const *files, unsigned first, unsigned bad, const char *what)
{
    unsigned step = files[1] ? 1 : 2;
    fprintf(stderr, "%s:", what);
    for (unsigned block = first, next; block < BLOCKS; block = next) {
        struct inode *inode = files[1] ? files[block % 2] : files[0];
        uint64_t stamp = read_stamp(inode, block, what);
        for (next = block + step; next < BLOCKS; next += step)
            if (read_stamp(files[1] ? files[next % 2] : files[0], next, what) != stamp)
                break;
        fprintf(stderr, " %u..%u: %" PRIu64, block, next - step, stamp);
    }
    struct inode *inode = files[1] ? files[bad % 2] : files[0];
    uint64_t index = block_offset(bad) / chunk_bytes;
    fprintf(stderr, "\n%s: block %u is in chunk %" PRIu64 " of inode %" PRIu64 ", home %08x%s\n",
            what, bad, index, inode->ino, inode->attr.home,
            inode->attr.home_filling ? ", filling" : "");
    for (uint64_t i = index ? index - 1 : 0; i < index + 3; i++) {
        struct extent e;
        struct count_info info = {0};
        must(map_lookup(fs->nodes, &inode->attr.map, i, 1, false, &e), "look-up");
        if (e.chunk)
            must(counts_get(fs->chunk_counts, e.chunk, &info), "count");
        fprintf(stderr, "  %" PRIu64 ": chunk %" PRIx64 "%s, %u owners, %s, %u merges%s\n", i,
                e.chunk, e.reserved ? " reserved" : "", info.count,
                info.sealed ? "sealed" : "not sealed", info.merges,
                info.was_shared ? ", was shared" : "");
    }
}

/* files[1] NULL: only the first of the two is there. Returns the newest stamp. */
static uint64_t check_stamps(struct inode *const *files, unsigned first, const char *what)
{
    uint64_t newest = 0;
    uint64_t previous = UINT64_MAX;
    for (unsigned block = first; block < BLOCKS; block += files[1] ? 1 : 2) {
        uint64_t stamp = read_stamp(files[1] ? files[block % 2] : files[0], block, what);
        if (block == first)
            newest = stamp;
        if (stamp > previous || newest - stamp > 1) {
            tell_all(files, first, block, what);
            fail("%s: no point in time: block %u has stamp %" PRIu64 ", the one before %" PRIu64
                 ", the first %" PRIu64,
                 what, block, stamp, previous, newest);
        }
        previous = stamp;
    }
    atomic_fetch_add(&clones_checked, 1);
    return newest;
}

static void *stamp_main(void *arg)
{
    struct inode *files[2];
    (void)arg;
    for (unsigned i = 0; i < 2; i++)
        files[i] = look_up(tree, stamped_names[i]);
    for (uint64_t stamp = 1; !atomic_load(&stop); stamp++) {
        for (unsigned block = 0; block < BLOCKS; block++)
            write_stamp(files, block, stamp);
        atomic_store(&rounds_written, stamp);
    }
    for (unsigned i = 0; i < 2; i++)
        inode_put(files[i]);
    return NULL;
}

/* ---- clones ---- */

enum kind { TREE, FILE_CLONE, WHOLE_COPY, PART_COPY, KINDS };

struct clone {
    enum kind kind;
    char name[32];
    unsigned which; /* of the two files */
    uint64_t newest;
    bool written; /* to, by us: then it is no point in time any more */
};

static void open_clone(const struct clone *c, struct inode *files[2])
{
    files[1] = NULL;
    if (c->kind == TREE) {
        struct inode *dir = look_up(ROOT_INO, c->name);
        for (unsigned i = 0; i < 2; i++)
            files[i] = look_up(dir->ino, stamped_names[i]);
        inode_put(dir);
    } else {
        files[0] = look_up(ROOT_INO, c->name);
    }
}

static void check_clone(struct clone *c)
{
    static const char *const kinds[KINDS] = {"tree", "file", "whole copy", "copy in parts"};
    struct inode *files[2];
    open_clone(c, files);
    if (!c->written) {
        char what[64];
        snprintf(what, sizeof(what), "%s (%s)", c->name, kinds[c->kind]);
        uint64_t newest = check_stamps(files, c->which, what);
        if (c->newest != UINT64_MAX && newest != c->newest)
            fail("%s: was taken at stamp %" PRIu64 ", and now is at %" PRIu64, c->name, c->newest,
                 newest);
        c->newest = newest;
    }
    inode_put(files[0]);
    inode_put(files[1]);
}

/* One call of copy_file_range, which is one point in time. */
static void copy_stamped(struct inode *src, struct inode *dst, bool whole)
{
    /* Something behind the end of the source: then its map cannot be taken
     * whole. */
    if (!whole)
        must(file_write(dst, "x", 1, UINT64_C(1) << 40, (struct file_write_flags){false, false}),
             "write");
    ssize_t n = file_copy_range(src, 0, dst, 0, (uint64_t)FILE_SIZE_MAX);
    must(n, "copy");
    if (!whole)
        must(file_truncate(dst, (uint64_t)n), "truncate");
}

static void take_clone(struct rng *rng, struct clone *c, const char *name)
{
    struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
    *c = (struct clone){.kind = (enum kind)rng_below(rng, KINDS), .newest = UINT64_MAX};
    g_strlcpy(c->name, name, sizeof(c->name));
    if (c->kind == TREE) {
        must(clone_tree(fs, tree, ROOT_INO, c->name, &root_caller, &io), "clone of a directory");
        return;
    }
    c->which = (unsigned)rng_below(rng, 2);
    struct inode *src = look_up(tree, stamped_names[c->which]);
    if (c->kind == FILE_CLONE) {
        must(clone_tree(fs, src->ino, ROOT_INO, c->name, &root_caller, &io), "clone");
    } else {
        struct inode *dst = create(ROOT_INO, c->name, S_IFREG | 0600);
        copy_stamped(src, dst, c->kind == WHOLE_COPY);
        inode_put(dst);
    }
    inode_put(src);
}

/* Writes to one of its files: others must not see it. */
static void write_clone(struct rng *rng, struct clone *c)
{
    struct inode *files[2];
    open_clone(c, files);
    struct inode *both[2] = {files[0], files[1] ? files[1] : files[0]};
    for (unsigned i = 0; i < 20; i++)
        write_stamp(both, (unsigned)rng_below(rng, BLOCKS), UINT64_MAX - rng_below(rng, 8));
    c->written = true;
    inode_put(files[0]);
    inode_put(files[1]);
}

static void remove_clone(const struct clone *c)
{
    if (c->kind == TREE) {
        struct inode *dir = look_up(ROOT_INO, c->name);
        for (unsigned i = 0; i < 2; i++)
            must(names_unlink(fs, dir->ino, stamped_names[i]), "unlink");
        must(names_rmdir(fs, ROOT_INO, c->name), "rmdir");
        inode_put(dir);
    } else {
        must(names_unlink(fs, ROOT_INO, c->name), "unlink");
    }
}

static void *clone_main(void *arg)
{
    uint64_t self = (uintptr_t)arg;
    struct rng rng = rng_of(seed, self);
    struct clone kept[KEPT];
    unsigned count = 0;
    for (unsigned n = 0; !atomic_load(&stop); n++) {
        if (count == KEPT) {
            unsigned i = (unsigned)rng_below(&rng, KEPT);
            check_clone(&kept[i]);
            if (rng_percent(&rng, 50))
                write_clone(&rng, &kept[i]);
            remove_clone(&kept[i]);
            kept[i] = kept[--count];
        }
        char name[32];
        snprintf(name, sizeof(name), "clone-%" PRIu64 "-%u", self, n);
        take_clone(&rng, &kept[count], name);
        if (rng_percent(&rng, 70))
            check_clone(&kept[count]);
        count++;
    }
    for (unsigned i = 0; i < count; i++) {
        check_clone(&kept[i]);
        remove_clone(&kept[i]);
    }
    return NULL;
}

/* ---- files that one thread has for itself ---- */

struct own {
    char name[32];
    struct inode *inode;
    struct sparse *content;
    struct rng rng;
};

static void own_write(struct own *o)
{
    uint64_t offset = rng_below(&o->rng, OWN_MAX);
    size_t n = 1 + rng_below(&o->rng, OWN_WRITE_MAX);
    uint8_t *data = g_malloc(n);
    if (rng_percent(&o->rng, 30)) {
        offset = round_down_u64(offset, chunk_bytes);
        struct rng common = rng_of(seed, UINT64_MAX - rng_below(&o->rng, 3));
        rng_fill(&common, data, n); /* the same in all files: dedup finds it */
    } else if (rng_percent(&o->rng, 20)) {
        memset(data, 0, n);
    } else {
        rng_fill(&o->rng, data, n);
    }
    must(file_write(o->inode, data, n, offset, (struct file_write_flags){false, false}), "write");
    sparse_write(o->content, data, n, offset);
    g_free(data);
}

static void own_cut(struct own *o)
{
    uint64_t from = rng_below(&o->rng, OWN_MAX);
    uint64_t to = from + rng_below(&o->rng, OWN_MAX / 4);
    if (rng_percent(&o->rng, 30)) {
        must(file_truncate(o->inode, from), "truncate");
        sparse_resize(o->content, from);
    } else {
        must(file_fallocate(o->inode, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from,
                            to - from + 1),
             "punch");
        sparse_zero(o->content, from, MIN(to + 1, o->content->size));
    }
}

static void own_seal(struct own *o)
{
    struct cowfs_ioc_seal io = {.version = COWFS_IOCTL_VERSION, .length = OWN_MAX};
    do {
        must(seal_range(fs, o->inode->ino, &io), "seal");
        io.offset = io.next;
    } while (io.next);
}

/* A clone of the file takes its place, the first one goes. */
static void own_replace(struct own *o)
{
    struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
    char *other = g_strconcat(o->name, "+", NULL);
    must(clone_tree(fs, o->inode->ino, ROOT_INO, other, &root_caller, &io), "clone");
    must(names_rename(fs, ROOT_INO, other, ROOT_INO, o->name, 0), "rename");
    inode_put(o->inode);
    o->inode = look_up(ROOT_INO, o->name);
    g_free(other);
}

static void *own_main(void *arg)
{
    struct own o = {.rng = rng_of(seed, (uintptr_t)arg), .content = sparse_new()};
    snprintf(o.name, sizeof(o.name), "own-%" PRIu64, (uint64_t)(uintptr_t)arg);
    o.inode = create_of((uint32_t)rng_below(&o.rng, 3), ROOT_INO, o.name, S_IFREG | 0600);
    while (!atomic_load(&stop)) {
        unsigned what = (unsigned)rng_below(&o.rng, 20);
        if (what < 12)
            own_write(&o);
        else if (what < 14)
            own_cut(&o);
        else if (what < 16)
            own_replace(&o);
        else if (what == 16)
            own_seal(&o);
        else if (what == 17)
            compare_file(o.inode, &o.content, 1, o.name);
        else
            compare_range(o.inode, o.content, rng_below(&o.rng, OWN_MAX), OWN_WRITE_MAX, o.name);
    }
    compare_file(o.inode, &o.content, 1, o.name);
    inode_put(o.inode);
    must(names_unlink(fs, ROOT_INO, o.name), "unlink");
    sparse_free(o.content);
    return NULL;
}

/* ---- one who seals what others are writing ---- */

static void *seal_main(void *arg)
{
    struct rng rng = rng_of(seed, (uintptr_t)arg);
    while (!atomic_load(&stop)) {
        struct cowfs_ioc_seal io = {.version = COWFS_IOCTL_VERSION};
        struct inode *inode;
        char name[32];
        snprintf(name, sizeof(name), "own-%u", 1 + (unsigned)rng_below(&rng, THREADS));
        if (rng_percent(&rng, 50))
            inode = look_up(tree, stamped_names[rng_below(&rng, 2)]);
        else if (names_lookup(fs, ROOT_INO, name, &inode))
            continue;
        io.offset = rng_below(&rng, OWN_MAX);
        io.length = rng_below(&rng, OWN_MAX / 4);
        struct cowfs_ioc_public public = {
            .action = (uint32_t)rng_below(&rng, COWFS_PUBLIC_OFF + 1),
            .offset = io.offset,
            .length = io.length,
        };
        if (rng_percent(&rng, 70))
            must(seal_range(fs, inode->ino, &io), "seal");
        else
            must(domain_public_range(fs, inode->ino, &public), "public");
        inode_put(inode);
    }
    return NULL;
}

/* ---- one who only looks, and commits ---- */

static void *watch_main(void *arg)
{
    struct rng rng = rng_of(seed, (uintptr_t)arg);
    while (!atomic_load(&stop)) {
        struct cowfs_ioc_df df = {.version = COWFS_IOCTL_VERSION};
        struct cowfs_ioc_du du = {.version = COWFS_IOCTL_VERSION};
        struct cowfs_ioc_stat st = {.version = COWFS_IOCTL_VERSION};
        struct cowfs_ioc_diff diff = {.version = COWFS_IOCTL_VERSION};
        struct inode *even = look_up(tree, stamped_names[0]);
        struct inode *odd = look_up(tree, stamped_names[1]);
        int error;
        switch (rng_below(&rng, 6)) {
        case 0:
            must(usage_df(fs, &df), "df");
            break;
        case 1:
            error = usage_du(fs, ROOT_INO, NULL, &du);
            if (error != -EAGAIN) /* it cannot always keep up */
                must(error, "du");
            break;
        case 2:
            must(usage_stat(fs, even->ino, &st), "stat");
            break;
        case 3:
            must(diff_files(fs, even->ino, odd->ino, &diff), "diff");
            break;
        default:
            must(fs_commit(fs), "commit");
        }
        inode_put(even);
        inode_put(odd);
        g_usleep(1000 + rng_below(&rng, 20000));
    }
    return NULL;
}

/* ---- */

static void make_tree(void)
{
    struct inode *dir = create(ROOT_INO, "tree", S_IFDIR | 0755);
    tree = dir->ino;
    inode_put(dir);
    for (unsigned i = 0; i < 2; i++)
        inode_put(create(tree, stamped_names[i], S_IFREG | 0644));
}

/* After reopening: the stamps are where the last round left them. */
static void check_end(uint64_t stamp)
{
    struct inode *files[2];
    for (unsigned i = 0; i < 2; i++)
        files[i] = look_up(tree, stamped_names[i]);
    if (check_stamps(files, 0, "the files at the end") != stamp)
        fail("the last stamp was %" PRIu64, stamp);
    for (unsigned i = 0; i < 2; i++) {
        inode_put(files[i]);
        must(names_unlink(fs, tree, stamped_names[i]), "unlink");
    }
}

static void open_store(const char *store, struct rng *rng)
{
    static const uint64_t caches[] = {1, 1 << 18, 0};
    struct fs_config config = {
        .create = true,
        .chunk_bytes = chunk_bytes,
        .cache_bytes = caches[rng_below(rng, G_N_ELEMENTS(caches))],
        .commit_interval_ms = 5 + (unsigned)rng_below(rng, 50),
        .seal_background = true,
        .seal_delay_ms = 1 + (unsigned)rng_below(rng, 20),
        .view_bytes = rng_percent(rng, 50),
    };
    struct errmsg err = {""};
    if (fs_open(store, &config, &fs, &err))
        fail("open: %s", err.text);
}

static void run(unsigned seconds)
{
    static void *(*const mains[THREADS])(void *) = {
        stamp_main, clone_main, clone_main, own_main, own_main, seal_main, watch_main,
    };
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, mains[i], (void *)(i + 1)))
            fail("no thread");
    for (unsigned i = 0; i < seconds * 10; i++)
        g_usleep(100000);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {
        {"seed", required_argument, NULL, 's'},
        {"seconds", required_argument, NULL, 't'},
        {"chunk-size", required_argument, NULL, 'c'},
        {NULL, 0, NULL, 0},
    };
    unsigned seconds = 5;
    int c;
    seed = (uint64_t)time(NULL) * 1000003 + (uint64_t)getpid();
    while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (c == 's')
            seed = scratch_number(optarg);
        else if (c == 't')
            seconds = (unsigned)scratch_number(optarg);
        else if (c == 'c')
            chunk_bytes = (uint32_t)scratch_number(optarg);
        else
            return 2;
    }
    char context[128];
    snprintf(context, sizeof(context), "model_threads --seed %" PRIu64 " --chunk-size %" PRIu32,
             seed, chunk_bytes);
    fail_context(context);
    scratch_log_is_failure();

    char *store = scratch_make();
    struct rng rng = rng_of(seed, 0);
    const size_t sizes[] = {chunk_bytes, 512, 3 * (size_t)chunk_bytes / 2, 2 * (size_t)chunk_bytes};
    block_bytes = sizes[rng_below(&rng, G_N_ELEMENTS(sizes))];
    open_store(store, &rng);
    make_tree();
    run(seconds);
    must(fs_close(fs), "close");
    check_store(store);

    open_store(store, &rng);
    check_end(atomic_load(&rounds_written));
    scratch_wait_empty(fs);
    must(fs_close(fs), "close");
    check_store(store);
    scratch_remove(store);
    printf("model_threads: seed %" PRIu64 ", %" PRIu64 " rounds, %" PRIu64
           " clones checked: good\n",
           seed, (uint64_t)atomic_load(&rounds_written), (uint64_t)atomic_load(&clones_checked));
    return 0;
}
