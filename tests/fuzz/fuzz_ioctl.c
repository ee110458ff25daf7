// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_ioctl.c - what the ioctls do with any argument: the functions below
 * FUSE that the handlers of fuse_ioctl.c call, with the struct as it comes. The
 * first byte of the input says which, the second on which inode.
 */
#include "tests/fuzz/fuzz.h"

#include "cowfs/clone.h"
#include "cowfs/delete.h"
#include "cowfs/domain.h"
#include "cowfs/file.h"
#include "cowfs/flat.h"
#include "cowfs/names.h"
#include "cowfs/scrub.h"

#include <errno.h>

static struct fs *fs;
static uint64_t inos[6];
static uint64_t other;
static const struct caller caller = {.uid = 1000, .gid = 1000, .umask = 022};

static int do_clone(uint64_t ino, void *arg)
{
    struct cowfs_ioc_clone *io = arg;
    /* The handler's own check; the source comes by a token. */
    if (!memchr(io->name, '\0', sizeof(io->name)))
        return -ENAMETOOLONG;
    int error = clone_tree(fs, other, ino, io->name, &caller, io);
    if (!error) {
        struct inode *inode;
        FUZZ_ASSERT(names_lookup(fs, ino, io->name, &inode) == 0);
        bool dir = S_ISDIR(inode_mode(inode));
        inode_put(inode);
        if (!dir)
            FUZZ_ASSERT(names_unlink(fs, ino, io->name) == 0);
    }
    return error;
}

static int do_stat(uint64_t ino, void *io)
{
    return usage_stat(fs, ino, io);
}

static int do_du(uint64_t ino, void *io)
{
    return usage_du(fs, ino, &caller, io);
}

static int do_df(uint64_t ino, void *io)
{
    (void)ino;
    return usage_df(fs, io);
}

static int do_seal(uint64_t ino, void *arg)
{
    struct cowfs_ioc_seal *io = arg;
    int error = seal_range(fs, ino, io);
    FUZZ_ASSERT(error || io->next == 0 || io->next > io->offset);
    return error;
}

static int do_diff(uint64_t ino, void *arg)
{
    struct cowfs_ioc_diff *io = arg;
    int error = diff_files(fs, ino, other, io);
    FUZZ_ASSERT(error || io->count <= COWFS_DIFF_RANGES);
    FUZZ_ASSERT(error || io->next == 0 || io->next > io->offset);
    return error;
}

static int do_scrub(uint64_t ino, void *arg)
{
    struct cowfs_ioc_scrub *io = arg;
    (void)ino;
    int error = scrub_step(fs, io);
    FUZZ_ASSERT(error || io->count <= COWFS_SCRUB_CHUNKS);
    FUZZ_ASSERT(error || io->next == 0 || io->next > io->position);
    FUZZ_ASSERT(error || io->damaged == 0);
    return error;
}

static int do_damage(uint64_t ino, void *arg)
{
    struct cowfs_ioc_damage *io = arg;
    int error = scrub_file_damage(fs, ino, io);
    FUZZ_ASSERT(error || (io->count == 0 && io->next == 0));
    return error;
}

static int do_public(uint64_t ino, void *arg)
{
    struct cowfs_ioc_public *io = arg;
    int error = domain_public_range(fs, ino, io);
    FUZZ_ASSERT(error || io->next == 0 || io->next > io->offset);
    FUZZ_ASSERT(error ||
                io->changed <= (io->action == COWFS_PUBLIC_OFF ? UINT64_MAX : io->public_bytes));
    return error;
}

static int do_pack(uint64_t ino, void *arg)
{
    struct cowfs_ioc_pack *io = arg;
    struct inode *inode;
    int error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    /* The handler asks for a handle that may write. */
    error = S_ISREG(inode_mode(inode))
                ? flat_pack_part(inode, io->offset, io->length, &io->next, &io->moved)
                : -EBADF;
    FUZZ_ASSERT(error || io->next == 0 || io->next > io->offset);
    inode_put(inode);
    return error;
}

/* The next of a request's names, as fuse_ioctl.c takes them. */
static const char *next_name(const char names[COWFS_NAMES_BYTES], size_t *at)
{
    const char *name = names + *at, *nul = memchr(name, '\0', COWFS_NAMES_BYTES - *at);
    if (!nul)
        return NULL;
    *at = (size_t)(nul + 1 - names);
    return name;
}

/* Something to be deleted: a tree that is made anew by a clone, under the name that is asked for
 * if it can be had. */
static int do_delete(uint64_t ino, void *arg)
{
    struct cowfs_ioc_delete *io = arg;
    struct cowfs_ioc_clone made = {.version = COWFS_IOCTL_VERSION};
    static const struct caller root = {.umask = 0};
    size_t at = 0;
    int error = 0;
    io->files = io->directories = 0;
    for (io->done = 0; !error && io->done < MIN(io->count, 8); io->done++) {
        g_autoptr(GArray) gone_inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
        const char *name = next_name(io->names, &at);
        if (!name)
            return -EINVAL;
        /* What has not been made here is not to go. */
        error = clone_tree(fs, inos[ino == inos[1] ? 2 : 1], ino, name, &root, &made);
        if (error)
            return error;
        uint64_t before = io->files + io->directories;
        error = delete_tree(fs, ino, name, &caller, io, gone_inos);
        FUZZ_ASSERT(error || (gone_inos->len > 0 && io->files + io->directories > before));
        if (error) {
            FUZZ_ASSERT(error == -EACCES || error == -EPERM);
            FUZZ_ASSERT(delete_tree(fs, ino, name, &root, io, gone_inos) == 0);
        }
    }
    return error;
}

static int do_clone_many(uint64_t ino, void *arg)
{
    struct cowfs_ioc_clone_many *io = arg;
    struct cowfs_ioc_clone one;
    struct cowfs_ioc_delete gone = {0};
    static const struct caller root = {.umask = 0};
    size_t at = 0;
    int error = 0;
    for (io->done = 0; !error && io->done < MIN(io->count, 8); io->done++) {
        const char *from = next_name(io->names, &at);
        const char *to = from ? next_name(io->names, &at) : NULL;
        if (!to)
            return -EINVAL;
        error = clone_child(fs, other, from, ino, to, &caller, &one);
        if (error)
            break;
        g_autoptr(GArray) gone_inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
        FUZZ_ASSERT(delete_tree(fs, ino, to, &root, &gone, gone_inos) == 0);
        FUZZ_ASSERT(gone.files + gone.directories > 0);
    }
    return error;
}

static const struct {
    int (*fn)(uint64_t ino, void *io);
    size_t bytes;
} calls[] = {
    {do_clone, sizeof(struct cowfs_ioc_clone)},
    {do_stat, sizeof(struct cowfs_ioc_stat)},
    {do_du, sizeof(struct cowfs_ioc_du)},
    {do_df, sizeof(struct cowfs_ioc_df)},
    {do_seal, sizeof(struct cowfs_ioc_seal)},
    {do_diff, sizeof(struct cowfs_ioc_diff)},
    {do_scrub, sizeof(struct cowfs_ioc_scrub)},
    {do_damage, sizeof(struct cowfs_ioc_damage)},
    {do_pack, sizeof(struct cowfs_ioc_pack)},
    {do_delete, sizeof(struct cowfs_ioc_delete)},
    {do_clone_many, sizeof(struct cowfs_ioc_clone_many)},
    {do_public, sizeof(struct cowfs_ioc_public)},
};

static uint64_t make(uint64_t dir, const char *name, uint32_t mode)
{
    static const struct caller root = {.umask = 0};
    struct inode *inode;
    FUZZ_ASSERT(
        names_create(fs, dir, name, mode, 0, S_ISLNK(mode) ? "target" : NULL, &root, &inode) == 0);
    if (S_ISREG(mode)) {
        static uint8_t data[300000];
        for (size_t i = 0; i < sizeof(data); i++)
            data[i] = (uint8_t)(i / 5000 + 1);
        FUZZ_ASSERT(file_write(inode, data, sizeof(data), 0, (struct file_write_flags){0}) ==
                    sizeof(data));
        FUZZ_ASSERT(file_write(inode, data, 10, (uint64_t)FILE_SIZE_MAX - 10,
                               (struct file_write_flags){0}) == 10);
    }
    uint64_t ino = inode->ino;
    inode_put(inode);
    return ino;
}

static void close_store(void)
{
    FUZZ_ASSERT(fs_close(fs) == 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    struct fs_config config = {.create = true};
    struct errmsg err;
    FUZZ_ASSERT(fs_open(make_scratch(), &config, &fs, &err) == 0);
    atexit(close_store);
    inos[0] = ROOT_INO;
    inos[1] = make(ROOT_INO, "dir", S_IFDIR | 0777);
    inos[2] = make(inos[1], "a", S_IFREG | 0644);
    inos[3] = make(ROOT_INO, "b", S_IFREG | 0600);
    inos[4] = make(ROOT_INO, "link", S_IFLNK | 0777);
    inos[5] = UINT64_MAX;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    unsigned call = data[0] % G_N_ELEMENTS(calls);
    uint64_t ino = inos[data[1] % G_N_ELEMENTS(inos)];
    other = inos[data[2] % G_N_ELEMENTS(inos)];
    uint8_t *io = g_malloc0(calls[call].bytes);
    memcpy(io, data + 3, MIN(size - 3, calls[call].bytes));
    FUZZ_ASSERT(calls[call].fn(ino, io) <= 0);
    g_free(io);
    return 0;
}
