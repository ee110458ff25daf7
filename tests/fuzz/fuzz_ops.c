// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_ops.c - any sequence of operations on a few files of one store, against
 * plain arrays: on content, names, attributes, and closing and opening the store. Six
 * bytes of the input are an operation. The store stays open from input to input, and its
 * files go at the end of each. (Kills and power cuts amid such sequences: tests/model.)
 */
#include "tests/fuzz/fuzz.h"

#include "cowfs/clone.h"
#include "cowfs/delete.h"
#include "cowfs/file.h"
#include "cowfs/flat.h"
#include "cowfs/names.h"
#include "cowfs/reap.h"
#include "cowfs/scrub.h"

#include <errno.h>
#include <linux/falloc.h>
#include <linux/xattr.h>

enum { FILES = 3, BYTES_MAX = 3 << 20, CHUNK = 4096, OPS_MAX = 64 };

static const char *store;
static struct fs *fs;
static uint8_t model[FILES][BYTES_MAX];
static uint64_t size_of[FILES];
static struct inode *file[FILES];
static unsigned attribute[FILES]; /* bytes of its only one, all of them that number; 0: none */
static const struct caller caller = {.umask = 022};

static void name_of(unsigned i, char *name)
{
    name[0] = (char)('a' + i);
    name[1] = '\0';
}

static void make(unsigned i)
{
    char name[2];
    name_of(i, name);
    FUZZ_ASSERT(names_create(fs, ROOT_INO, name, S_IFREG | 0644, 0, NULL, &caller, &file[i]) == 0);
    size_of[i] = 0;
    attribute[i] = 0;
}

static void drop(unsigned i)
{
    char name[2];
    name_of(i, name);
    inode_put(file[i]);
    FUZZ_ASSERT(names_unlink(fs, ROOT_INO, name) == 0);
}

/* Behind the end the model is all zeros. */
static void set_size(unsigned i, uint64_t size)
{
    if (size < size_of[i])
        memset(model[i] + size, 0, size_of[i] - size);
    size_of[i] = size;
}

struct op {
    uint8_t what, fill;
    unsigned a, b;
    uint64_t offset, bytes;
};

static void do_write(const struct op *o)
{
    static uint8_t data[BYTES_MAX];
    uint64_t bytes = MIN(o->bytes, 70000);
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = o->fill < 40 ? o->fill : (uint8_t)((o->offset + i) / 512 * o->fill);
    FUZZ_ASSERT(file_write(file[o->a], data, bytes, o->offset, (struct file_write_flags){0}) ==
                (ssize_t)bytes);
    memcpy(model[o->a] + o->offset, data, bytes);
    if (bytes)
        size_of[o->a] = MAX(size_of[o->a], o->offset + bytes);
}

static void do_copy(const struct op *o)
{
    uint64_t to = (o->offset ^ (uint64_t)o->fill << 13) % (BYTES_MAX / 2);
    if (o->fill & 1)
        to = to / CHUNK * CHUNK + o->offset % CHUNK;
    uint64_t bytes = o->offset < size_of[o->a] ? MIN(o->bytes, size_of[o->a] - o->offset) : 0;
    ssize_t n = file_copy_range(file[o->a], o->offset, file[o->b], to, o->bytes);
    if (bytes && o->a == o->b && o->offset < to + bytes && to < o->offset + bytes) {
        FUZZ_ASSERT(n == -EINVAL);
        return;
    }
    FUZZ_ASSERT(n == (ssize_t)bytes);
    memcpy(model[o->b] + to, model[o->a] + o->offset, bytes);
    if (bytes)
        size_of[o->b] = MAX(size_of[o->b], to + bytes);
}

static void do_fallocate(const struct op *o)
{
    static const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};
    int mode = modes[o->fill % G_N_ELEMENTS(modes)];
    uint64_t bytes = MAX(o->bytes, 1), end = o->offset + bytes;
    FUZZ_ASSERT(file_fallocate(file[o->a], mode, o->offset, bytes) == 0);
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) && o->offset < size_of[o->a])
        memset(model[o->a] + o->offset, 0, MIN(end, size_of[o->a]) - o->offset);
    if (!(mode & FALLOC_FL_KEEP_SIZE))
        size_of[o->a] = MAX(size_of[o->a], end);
}

static void do_clone(const struct op *o)
{
    struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
    char name[2];
    if (o->a == o->b)
        return;
    drop(o->b);
    name_of(o->b, name);
    FUZZ_ASSERT(clone_tree(fs, file[o->a]->ino, ROOT_INO, name, &caller, &io) == 0);
    FUZZ_ASSERT(names_lookup(fs, ROOT_INO, name, &file[o->b]) == 0);
    memcpy(model[o->b], model[o->a], BYTES_MAX);
    size_of[o->b] = size_of[o->a];
    attribute[o->b] = attribute[o->a];
}

/* ---- names ---- */

static void remove_tree(const char *name)
{
    struct cowfs_ioc_delete io = {0};
    g_autoptr(GArray) gone = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    FUZZ_ASSERT(delete_tree(fs, ROOT_INO, name, &caller, &io, gone) == 0);
}

static void do_exchange(const struct op *o)
{
    static uint8_t kept[BYTES_MAX];
    char a[2], b[2];
    name_of(o->a, a);
    name_of(o->b, b);
    FUZZ_ASSERT(names_rename(fs, ROOT_INO, a, ROOT_INO, b, RENAME_EXCHANGE) == 0);
    struct inode *inode = file[o->a];
    uint64_t size = size_of[o->a];
    unsigned bytes = attribute[o->a];
    memcpy(kept, model[o->a], BYTES_MAX);
    memmove(model[o->a], model[o->b], BYTES_MAX);
    file[o->a] = file[o->b], size_of[o->a] = size_of[o->b], attribute[o->a] = attribute[o->b];
    memcpy(model[o->b], kept, BYTES_MAX);
    file[o->b] = inode, size_of[o->b] = size, attribute[o->b] = bytes;
}

/* What loses its name is open, and written, for a while. */
static void do_rename_over(const struct op *o)
{
    char a[2], b[2];
    if (o->a == o->b)
        return;
    name_of(o->a, a);
    name_of(o->b, b);
    FUZZ_ASSERT(names_rename(fs, ROOT_INO, a, ROOT_INO, b, 0) == 0);
    FUZZ_ASSERT(file_write(file[o->b], a, 1, o->offset, (struct file_write_flags){0}) == 1);
    inode_put(file[o->b]);
    file[o->b] = file[o->a];
    memcpy(model[o->b], model[o->a], BYTES_MAX);
    size_of[o->b] = size_of[o->a];
    attribute[o->b] = attribute[o->a];
    memset(model[o->a], 0, BYTES_MAX);
    make(o->a);
}

static void check_bytes(struct inode *inode, unsigned i);

/* A directory with other names of both, and its clone, which has one file if they are one. */
static void do_tree(const struct op *o)
{
    struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
    struct inode *dir, *linked, *clone;
    FUZZ_ASSERT(names_create(fs, ROOT_INO, "dir", S_IFDIR | 0755, 0, NULL, &caller, &dir) == 0);
    FUZZ_ASSERT(names_link(fs, file[o->a]->ino, dir->ino, "x", &linked) == 0);
    inode_put(linked);
    FUZZ_ASSERT(names_link(fs, file[o->b]->ino, dir->ino, "y", &linked) == 0);
    inode_put(linked);
    FUZZ_ASSERT(clone_tree(fs, dir->ino, ROOT_INO, "copy", &caller, &io) == 0);
    inode_put(dir);
    FUZZ_ASSERT(io.files == 2 && io.directories == 1);
    FUZZ_ASSERT(names_lookup(fs, ROOT_INO, "copy", &dir) == 0);
    FUZZ_ASSERT(names_lookup(fs, dir->ino, "y", &clone) == 0);
    check_bytes(clone, o->b);
    FUZZ_ASSERT(clone->attr.nlink == (o->a == o->b ? 2 : 1));
    inode_put(clone);
    inode_put(dir);
    remove_tree(o->fill & 1 ? "dir" : "copy");
    check_bytes(file[o->a], o->a);
    remove_tree(o->fill & 1 ? "copy" : "dir");
}

static void check_attribute(unsigned i)
{
    uint8_t value[256];
    ssize_t n = xattr_get(fs, file[i]->ino, "user.x", value, sizeof(value));
    FUZZ_ASSERT(n == (attribute[i] ? (ssize_t)attribute[i] : -ENODATA));
    for (ssize_t at = 0; at < n; at++)
        FUZZ_ASSERT(value[at] == attribute[i]);
}

static void do_attribute(const struct op *o)
{
    uint8_t value[256];
    unsigned bytes = o->fill, flags = (unsigned)(o->bytes % 3);
    memset(value, (int)bytes, sizeof(value));
    if (bytes) {
        bool there = attribute[o->a] > 0;
        int expected = flags == XATTR_CREATE && there     ? -EEXIST
                       : flags == XATTR_REPLACE && !there ? -ENODATA
                                                          : 0;
        FUZZ_ASSERT(xattr_set(fs, file[o->a]->ino, "user.x", value, bytes, (int)flags) == expected);
        attribute[o->a] = expected ? attribute[o->a] : bytes;
    } else {
        int expected = attribute[o->a] ? 0 : -ENODATA;
        FUZZ_ASSERT(xattr_remove(fs, file[o->a]->ino, "user.x") == expected);
        attribute[o->a] = 0;
    }
    check_attribute(o->a);
}

static void open_store(void)
{
    struct fs_config config = {.create = true, .cache_bytes = 1 << 20, .verify = true};
    struct errmsg err;
    FUZZ_ASSERT(fs_open(store, &config, &fs, &err) == 0);
}

static void do_reopen(void)
{
    for (unsigned i = 0; i < FILES; i++)
        inode_put(file[i]);
    FUZZ_ASSERT(fs_close(fs) == 0);
    open_store();
    for (unsigned i = 0; i < FILES; i++) {
        char name[2];
        name_of(i, name);
        FUZZ_ASSERT(names_lookup(fs, ROOT_INO, name, &file[i]) == 0);
        check_bytes(file[i], i);
        check_attribute(i);
    }
}

static void do_seal(const struct op *o)
{
    struct cowfs_ioc_seal io = {.version = COWFS_IOCTL_VERSION, .length = 1 << 20};
    do {
        FUZZ_ASSERT(seal_range(fs, file[o->a]->ino, &io) == 0);
        io.offset = io.next;
    } while (io.next);
}

static void do_seek(const struct op *o)
{
    uint64_t data = 0;
    int error = file_seek(file[o->a], o->offset, SEEK_DATA, &data);
    uint64_t end = error ? size_of[o->a] : data;
    FUZZ_ASSERT(error == 0 || error == -ENXIO);
    /* What is called a hole has no byte but zero. */
    for (uint64_t at = o->offset; at < end; at++)
        FUZZ_ASSERT(model[o->a][at] == 0);
}

static void do_scrub(void)
{
    struct cowfs_ioc_scrub io = {.version = COWFS_IOCTL_VERSION, .length = 1 << 20};
    do {
        FUZZ_ASSERT(scrub_step(fs, &io) == 0);
        io.position = io.next;
    } while (io.next);
    FUZZ_ASSERT(io.damaged == 0);
}

static void do_pack(const struct op *o)
{
    uint64_t next = 0, moved;
    do {
        FUZZ_ASSERT(flat_pack_part(file[o->a], next, 1 << 20, &next, &moved) == 0);
    } while (next);
}

static void check_bytes(struct inode *inode, unsigned i)
{
    static uint8_t data[BYTES_MAX];
    FUZZ_ASSERT(file_read(inode, data, BYTES_MAX, 0) == (ssize_t)size_of[i]);
    FUZZ_ASSERT(memcmp(data, model[i], size_of[i]) == 0);
}

static void check(unsigned i)
{
    check_bytes(file[i], i);
    check_attribute(i);
}

/* On names and attributes, and on the store: those with the two highest bits. */
static void run_names(const struct op *o)
{
    switch (o->what % 8) {
    case 0:
    case 1:
        do_exchange(o);
        break;
    case 2:
        do_rename_over(o);
        break;
    case 3:
    case 4:
        do_tree(o);
        break;
    case 5:
    case 6:
        do_attribute(o);
        break;
    default:
        do_reopen();
        break;
    }
}

static void run(const struct op *o)
{
    if (o->what >= 192) {
        run_names(o);
        return;
    }
    switch (o->what % 16) {
    case 0:
    case 1:
    case 2:
    case 3:
        do_write(o);
        break;
    case 4:
        FUZZ_ASSERT(file_truncate(file[o->a], o->offset) == 0);
        set_size(o->a, o->offset);
        break;
    case 5:
    case 6:
        do_copy(o);
        break;
    case 7:
    case 8:
        do_fallocate(o);
        break;
    case 9:
        do_clone(o);
        break;
    case 10:
    case 11:
        do_seal(o);
        break;
    case 12:
        do_seek(o);
        break;
    case 13:
        FUZZ_ASSERT(fs_commit(fs) == 0);
        break;
    case 14:
        if (o->fill & 1)
            do_pack(o);
        else
            do_scrub();
        break;
    default:
        check(o->a);
        break;
    }
}

static void close_store(void)
{
    FUZZ_ASSERT(fs_close(fs) == 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    store = make_scratch();
    open_store();
    atexit(close_store); /* before the directory goes */
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct rbuf r = rbuf_of(data, size);
    memset(model, 0, sizeof(model));
    for (unsigned i = 0; i < FILES; i++)
        make(i);
    for (unsigned n = 0; n < OPS_MAX && rbuf_left(&r) >= 6; n++) {
        struct op o = {.what = (uint8_t)take(&r, 1)};
        unsigned files = (unsigned)take(&r, 1);
        o.a = files % FILES;
        o.b = files / FILES % FILES;
        /* Mostly at, or beside, ends of chunks. */
        uint64_t at = take(&r, 2), length = take(&r, 1);
        o.fill = (uint8_t)take(&r, 1);
        o.offset = at % (BYTES_MAX / 2 / CHUNK) * CHUNK + (files & 64 ? at >> 4 : 0);
        o.bytes = length * (files & 128 ? 97 : CHUNK);
        o.bytes = MIN(o.bytes, BYTES_MAX / 2 - CHUNK);
        run(&o);
    }
    for (unsigned i = 0; i < FILES; i++)
        check(i);
    for (unsigned i = 0; i < FILES; i++)
        drop(i);
    reaper_wait(fs->reaper);
    FUZZ_ASSERT(fs_chunks_live(fs) == 0);
    return 0;
}
