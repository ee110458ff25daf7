// SPDX-License-Identifier: Apache-2.0
/*
 * model_faults.c - each single call that changes a store's files fails, in turn.
 *
 *   model_faults [--error ENOSPC|EIO] [--from K] [--to K] [--run N] [--verbose]
 *
 * A fixed piece of work (the table `steps`) is done again and again on a new
 * store. The first time K = 0 fails of the calls that can fail so (disk.h),
 * RocksDB's included, then 1, 2, … until there are no more; --run N: K and the
 * N - 1 calls after it. Each time:
 *
 *   - a step succeeds, or has that error; what it was about is old or new, all
 *     else as it was, and can be read;
 *   - after that a file can be deleted, another one written and committed, and
 *     the store closed, without a new opening; after EIO of a sync of data,
 *     nothing can be changed before, and all after a new one;
 *   - then the power fails. What was promised, by a commit that succeeded, is
 *     there, though the kernel takes pages for clean that a failed fsync could
 *     not write. fsck finds nothing.
 */
#include "cowfs/clone.h"
#include "cowfs/file.h"
#include "cowfs/flat.h"
#include "cowfs/names.h"
#include "cowfs/reap.h"
#include "tests/model/disk/faults.h"
#include "tests/model/lib/compare.h"
#include "tests/model/lib/scratch.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <unistd.h>

enum { FILES = 5 };
enum what {
    CREATE,
    WRITE,
    COPY,
    PUNCH,
    TRUNCATE,
    ALLOCATE,
    CLONE,
    SEAL,
    PACK,
    UNLINK,
    SYNC,
    COMMIT
};
#define KIB *UINT64_C(1024)

/* Offsets and lengths in bytes; file and other are numbers of files. COPY
 * is from `other`, at the same offset of both. */
static const struct step {
    enum what what;
    unsigned file, other;
    uint64_t offset, length;
} steps[] = {
    {CREATE, .file = 0},
    {WRITE, .file = 0, .length = 1000 KIB},
    {.what = COMMIT},
    {WRITE, .file = 0, .offset = 1000 KIB, .length = 2500 KIB}, /* gets a home */
    {SYNC, .file = 0},
    {CLONE, .file = 0, .other = 1},
    {WRITE, .file = 1, .offset = 300 KIB + 100, .length = 200 KIB},
    {.what = COMMIT},
    {WRITE, .file = 1, .offset = 320 KIB, .length = 4 KIB}, /* in place */
    {SYNC, .file = 1},
    {CREATE, .file = 2},
    {WRITE, .file = 2, .offset = 20 KIB, .length = 90 KIB},
    {ALLOCATE, .file = 2, .offset = 200 KIB, .length = 64 KIB},
    {PUNCH, .file = 0, .offset = 128 KIB, .length = 512 KIB},
    {TRUNCATE, .file = 0, .length = 3000 KIB + 17},
    {SEAL, .file = 1},
    {.what = COMMIT},
    {CLONE, .file = 2, .other = 3},
    {PACK, .file = 1},
    {WRITE, .file = 3, .length = 30 KIB},
    {SYNC, .file = 3},
    {COPY, .file = 2, .other = 1, .offset = 256 KIB + 11, .length = 1200 KIB},
    {SYNC, .file = 2},
    {UNLINK, .file = 0},
    {.what = COMMIT},
    {.what = COMMIT},
};

struct file {
    char name[8];
    /* May it be there, may it not: now, and after a cut. */
    bool there, missing, cut_there, cut_missing;
    GPtrArray *now;   /* of struct sparse: what it may be; more than one after a failure */
    GPtrArray *since; /* the same, at any moment since the last promise */
};

struct model {
    struct file files[FILES];
};

static int disk_error; /* the one that calls fail with */

/* ---- the model ---- */

static GPtrArray *versions_new(void)
{
    return g_ptr_array_new_with_free_func((GDestroyNotify)sparse_free);
}

static void versions_add(GPtrArray *to, const GPtrArray *from)
{
    for (guint i = 0; i < from->len; i++)
        g_ptr_array_add(to, sparse_copy(from->pdata[i]));
}

static void model_init(struct model *m)
{
    *m = (struct model){0};
    for (unsigned i = 0; i < FILES; i++) {
        snprintf(m->files[i].name, sizeof(m->files[i].name), "f%u", i);
        m->files[i].missing = m->files[i].cut_missing = true;
        m->files[i].now = versions_new();
        m->files[i].since = versions_new();
    }
}

static void promise(struct file *f)
{
    f->cut_there = f->there;
    f->cut_missing = f->missing;
    g_ptr_array_set_size(f->since, 0);
    versions_add(f->since, f->now);
}

static void apply(struct sparse *s, const struct step *step, const uint8_t *data,
                  const struct sparse *other)
{
    uint64_t end = step->offset + step->length;
    switch (step->what) {
    case WRITE:
        sparse_write(s, data, step->length, step->offset);
        break;
    case COPY:
        /* As of now: no more than there is. */
        if (step->offset < other->size)
            sparse_copy_range(other, step->offset, s, step->offset,
                              MIN(step->length, other->size - step->offset));
        break;
    case PUNCH:
        sparse_zero(s, step->offset, end);
        break;
    case TRUNCATE:
        sparse_resize(s, step->length);
        break;
    case ALLOCATE:
        sparse_resize(s, MAX(s->size, end));
        break;
    default:
        break;
    }
}

/* `other` NULL: what it is about is in the step alone. */
static void model_change(struct file *f, const struct step *step, const uint8_t *data,
                         const struct file *other, bool done)
{
    unsigned others = other ? other->now->len : 1;
    GPtrArray *old = f->now;
    f->now = versions_new();
    if (!done)
        versions_add(f->now, old);
    for (guint i = 0; i < old->len * others; i++) {
        struct sparse *s = sparse_copy(old->pdata[i / others]);
        apply(s, step, data, other ? other->now->pdata[i % others] : NULL);
        g_ptr_array_add(f->now, s);
    }
    g_ptr_array_free(old, TRUE);
    versions_add(f->since, f->now);
}

static void model_appear(struct file *f, const struct file *like, bool done)
{
    if (!done) /* all or nothing */
        return;
    f->there = f->cut_there = true;
    f->missing = false;
    g_ptr_array_set_size(f->now, 0);
    if (like)
        versions_add(f->now, like->now);
    else
        g_ptr_array_add(f->now, sparse_new());
    versions_add(f->since, f->now);
}

static void model_step(struct model *m, const struct step *step, const uint8_t *data, int result)
{
    struct file *f = &m->files[step->file];
    bool done = result == 0;
    switch (step->what) {
    case CREATE:
        model_appear(f, NULL, done);
        break;
    case CLONE:
        model_appear(&m->files[step->other], f, done);
        break;
    case UNLINK:
        if (done)
            f->there = false;
        f->missing = f->cut_missing = true;
        break;
    case SYNC:
        if (done)
            promise(f);
        break;
    case COMMIT:
        for (unsigned i = 0; i < FILES && done; i++)
            promise(&m->files[i]);
        break;
    default:
        model_change(f, step, data, step->what == COPY ? &m->files[step->other] : NULL, done);
    }
}

/* ---- the store ---- */

static int do_seal(struct inode *inode)
{
    struct cowfs_ioc_seal io = {.version = COWFS_IOCTL_VERSION, .length = 64 << 20};
    int error;
    do {
        error = seal_range(inode->fs, inode->ino, &io);
        io.offset = io.next;
    } while (!error && io.next);
    return error;
}

static int do_pack(struct inode *inode)
{
    uint64_t next = 0, moved;
    int error;
    do {
        error = flat_pack_part(inode, next, 1 << 20, &next, &moved);
    } while (!error && next);
    return error;
}

static int do_write(struct inode *inode, const struct step *step, const uint8_t *data)
{
    struct file_write_flags flags = {false, false};
    ssize_t n = file_write(inode, data, step->length, step->offset, flags);
    /* Fewer bytes: the next write would tell why. */
    return n == (ssize_t)step->length ? 0 : n < 0 ? (int)n : -disk_error;
}

static int do_copy(struct inode *inode, const struct step *step, const char *from)
{
    struct inode *source;
    int error = names_lookup(inode->fs, ROOT_INO, from, &source);
    if (error)
        return error;
    uint64_t size = file_size(source);
    uint64_t wanted = size > step->offset ? MIN(step->length, size - step->offset) : 0;
    ssize_t n = file_copy_range(source, step->offset, inode, step->offset, step->length);
    inode_put(source);
    /* As do_write. */
    return n == (ssize_t)wanted ? 0 : n < 0 ? (int)n : -disk_error;
}

static int do_with(struct inode *inode, const struct step *step, const uint8_t *data)
{
    switch (step->what) {
    case WRITE:
        return do_write(inode, step, data);
    case PUNCH:
        return file_fallocate(inode, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, step->offset,
                              step->length);
    case TRUNCATE:
        return file_truncate(inode, step->length);
    case ALLOCATE:
        return file_fallocate(inode, 0, step->offset, step->length);
    case SEAL:
        return do_seal(inode);
    case PACK:
        return do_pack(inode);
    default:
        return fs_sync_file(inode, true);
    }
}

static int do_step(struct fs *fs, const struct model *m, const struct step *step,
                   const uint8_t *data)
{
    static const struct caller root = {.umask = 022};
    const char *name = m->files[step->file].name;
    struct inode *inode;
    int error;
    if (step->what == COMMIT)
        return fs_commit(fs);
    if (step->what == CREATE) {
        error = names_create(fs, ROOT_INO, name, S_IFREG | 0644, 0, NULL, &root, &inode);
        if (!error)
            inode_put(inode);
        return error;
    }
    if (step->what == UNLINK) {
        error = names_unlink(fs, ROOT_INO, name);
        reaper_wait(fs->reaper);
        return error;
    }
    error = names_lookup(fs, ROOT_INO, name, &inode);
    if (error)
        return error;
    if (step->what == CLONE) {
        struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
        error = clone_tree(fs, inode->ino, ROOT_INO, m->files[step->other].name, &root, &io);
    } else if (step->what == COPY) {
        error = do_copy(inode, step, m->files[step->other].name);
    } else {
        error = do_with(inode, step, data);
    }
    inode_put(inode);
    return error;
}

static void check_file(struct fs *fs, const struct file *f, bool after_cut)
{
    struct inode *inode;
    const GPtrArray *versions = after_cut ? f->since : f->now;
    int error = names_lookup(fs, ROOT_INO, f->name, &inode);
    if (error && error != -ENOENT)
        fail("%s: lookup: %s", f->name, g_strerror(-error));
    if (error ? !(after_cut ? f->cut_missing : f->missing) : !(after_cut ? f->cut_there : f->there))
        fail("%s is %s", f->name, error ? "gone" : "there");
    if (error)
        return;
    compare_file(inode, (struct sparse *const *)versions->pdata, versions->len, f->name);
    inode_put(inode);
}

static void check_all(struct fs *fs, const struct model *m, bool after_cut)
{
    for (unsigned i = 0; i < FILES; i++)
        check_file(fs, &m->files[i], after_cut);
}

static uint8_t *data_of(unsigned number, const struct step *step)
{
    struct rng rng = rng_of(number, 1);
    uint8_t *data = g_malloc(step->length + 8);
    rng_fill(&rng, data, step->length);
    return data;
}

/* ---- one who works ---- */

static int try_open(const char *store, struct fs **fs)
{
    /* No commits but those of the table. */
    struct fs_config config = {.create = true, .commit_interval_ms = 3600000};
    struct errmsg err = {""};
    int error = fs_open(store, &config, fs, &err);
    if (error && !err.text[0])
        fail("opening fails with %d and no message", error);
    return error;
}

static void must(int error, const char *what)
{
    if (error)
        fail("%s, after the failure is over: %s", what, g_strerror(-error));
}

static void goes_on(struct fs *fs, struct model *m)
{
    static const struct step again[] = {
        {CREATE, .file = 4}, {WRITE, .file = 4, .length = 3000 KIB}, {.what = COMMIT}};
    /* Delete, where there is something to be deleted. */
    for (unsigned i = 0; i < FILES; i++) {
        struct step step = {UNLINK, .file = i};
        if (!m->files[i].there || m->files[i].missing)
            continue;
        must(do_step(fs, m, &step, NULL), "deleting");
        model_step(m, &step, NULL, 0);
        break;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(again); i++) {
        uint8_t *data = data_of(100 + i, &again[i]);
        must(do_step(fs, m, &again[i], data), "working");
        model_step(m, &again[i], data, 0);
        g_free(data);
    }
    check_all(fs, m, false);
}

/* A sync of data has failed: what it was about may be lost, so this store must not go on. */
static void goes_on_reopened(struct fs *fs, struct model *m, const char *store)
{
    static const struct caller root = {.umask = 022};
    struct inode *inode;
    check_all(fs, m, false);
    if (names_create(fs, ROOT_INO, "new", S_IFREG | 0644, 0, NULL, &root, &inode) != -EIO)
        fail("a change after the failed sync");
    if (fs_commit(fs) != -EIO || fs_close(fs) == 0)
        fail("a commit after the failed sync");
    must(try_open(store, &fs), "opening again");
    must(names_create(fs, ROOT_INO, "new", S_IFREG | 0644, 0, NULL, &root, &inode), "creating");
    if (file_write(inode, "text", 4, 0, (struct file_write_flags){0}) != 4)
        fail("writing after a new opening");
    inode_put(inode);
    must(fs_commit(fs), "the commit");
    must(fs_close(fs), "closing");
}

__attribute__((noreturn)) static void work(struct faults *f, const char *store)
{
    struct model m;
    struct fs *fs;
    char context[64];
    model_init(&m);
    disk_error = f->error;
    faults_begin(f);
    fail_context("opening");
    int error = try_open(store, &fs);
    if (error) {
        if (f->verbose)
            fprintf(stderr, "opening: %s\n", g_strerror(-error));
        disk_fail(0, 0, 0);
        must(try_open(store, &fs), "opening");
    }
    f->told->opened = true;
    for (unsigned i = 0; i < G_N_ELEMENTS(steps); i++) {
        uint8_t *data = data_of(i, &steps[i]);
        snprintf(context, sizeof(context), "step %u", i);
        fail_context(context);
        error = do_step(fs, &m, &steps[i], data);
        /* ENOENT: an earlier step failed. */
        if (error && error != -disk_error && !(error == -ENOENT && f->told->failed))
            fail("error %s", g_strerror(-error));
        if (error == -disk_error && f->verbose)
            fprintf(stderr, "step %u: %s\n", i, g_strerror(-error));
        uint64_t failed;
        disk_calls(&failed);
        if (error && !failed)
            fail("error %s, and nothing failed", g_strerror(-error));
        if (failed && !f->told->failed) {
            model_step(&m, &steps[i], data, error);
            check_all(fs, &m, false);
        } else {
            model_step(&m, &steps[i], data, error);
        }
        f->told->failed = failed;
        f->told->results[i] = error;
        f->told->done = i + 1;
        g_free(data);
    }
    faults_end(f);
    fail_context("the end");
    check_all(fs, &m, false);
    error = fs_commit(fs);
    if (error == -EIO && disk_error == EIO) {
        goes_on_reopened(fs, &m, store);
    } else {
        must(error, "the commit");
        goes_on(fs, &m);
        must(fs_close(fs), "closing");
        f->told->closed = true;
    }
    _exit(0);
}

/* ---- one who looks ---- */

__attribute__((noreturn)) static void look(struct faults *f, const char *path)
{
    struct model m;
    struct fs *fs;
    struct errmsg err = {""};
    struct fs_config config = {.commit_interval_ms = 3600000};
    fail_context("after the cut");
    model_init(&m);
    for (unsigned i = 0; i < f->told->done; i++) {
        uint8_t *data = data_of(i, &steps[i]);
        model_step(&m, &steps[i], data, f->told->results[i]);
        g_free(data);
    }
    check_store(path);
    if (fs_open(path, &config, &fs, &err))
        fail("open: %s", err.text);
    if (!f->told->closed) /* else one file was deleted; what came of it was seen before */
        check_all(fs, &m, true);
    _exit(0);
}

int main(int argc, char **argv)
{
    G_STATIC_ASSERT(G_N_ELEMENTS(steps) <= FAULTS_STEPS_MAX);
    struct faults f = {.name = "model_faults", .work = work, .look = look};
    return faults_main(&f, argc, argv);
}
