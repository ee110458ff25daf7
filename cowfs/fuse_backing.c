// SPDX-License-Identifier: Apache-2.0
#include "cowfs/fuse_backing.h"
#include "cowfs/file_internal.h"
#include "cowfs/flat.h"
#include "cowfs/home.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/ioctl.h>

/* Of Linux 6.9; the headers of a distribution may be older than its kernel. */
#ifndef FUSE_DEV_IOC_BACKING_OPEN
struct fuse_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)
#endif

struct home {
    uint32_t home;
    int fd; /* the store's; valid while it is pinned */
    struct {
        unsigned users; /* pins */
        int id;
    } mounts[INODE_MOUNTS];
};

struct keeper {
    struct inode *holder; /* of the content (file_internal.h) */
    unsigned mount;
    uint32_t home;
};

struct backings {
    struct fs *fs;
    pthread_mutex_t lock;
    GHashTable *homes; /* &home->home -> home */
    GArray *keepers;
    int devices[INODE_MOUNTS];
    bool warned;
};

struct backings *backings_new(struct fs *fs)
{
    struct backings *b = g_new0(struct backings, 1);
    b->fs = fs;
    pthread_mutex_init(&b->lock, NULL);
    b->homes = g_hash_table_new_full(g_int_hash, g_int_equal, NULL, g_free);
    b->keepers = g_array_new(FALSE, FALSE, sizeof(struct keeper));
    for (unsigned i = 0; i < INODE_MOUNTS; i++)
        b->devices[i] = -1;
    return b;
}

void backings_set_device(struct backings *b, unsigned mount, int fd)
{
    pthread_mutex_lock(&b->lock);
    b->devices[mount] = fd;
    pthread_mutex_unlock(&b->lock);
}

/* ---- what the kernel is told ---- */

/* The id, or a negative errno. */
static int register_file(int device, int fd)
{
    struct fuse_backing_map map = {.fd = fd};
    int id = ioctl(device, FUSE_DEV_IOC_BACKING_OPEN, &map);
    if (id > 0)
        return id;
    return id < 0 ? -errno : -EINVAL;
}

static void unregister_file(int device, int id)
{
    uint32_t number = (uint32_t)id;
    if (device >= 0 && ioctl(device, FUSE_DEV_IOC_BACKING_CLOSE, &number) != 0)
        g_debug("the kernel does not give up backing file %d: %s", id, g_strerror(errno));
}

int backings_try(struct backings *b, unsigned mount)
{
    int id = register_file(b->devices[mount], b->fs->lock_fd);
    if (id < 0)
        return id;
    unregister_file(b->devices[mount], id);
    return 0;
}

const char *backings_reason(int error)
{
    switch (-error) {
    case EPERM:
        return "it needs the capability CAP_SYS_ADMIN";
    case ELOOP:
        return "the store lies on a stacked file system (overlayfs, FUSE)";
    case ENOTTY:
    case EOPNOTSUPP:
        return "the kernel is older than Linux 6.9, or built without FUSE passthrough";
    default:
        return g_strerror(-error);
    }
}

/* ---- pins ---- */

/* Under the lock. */
static struct home *enter_home(struct backings *b, uint32_t number, int fd)
{
    struct home *home = g_hash_table_lookup(b->homes, &number);
    if (!home) {
        home = g_new0(struct home, 1);
        home->home = number;
        g_hash_table_insert(b->homes, &home->home, home);
    }
    home->fd = fd;
    return home;
}

static void drop_home_if_unused(struct backings *b, struct home *home)
{
    unsigned users = 0;
    for (unsigned i = 0; i < INODE_MOUNTS; i++)
        users += home->mounts[i].users;
    if (users == 0)
        g_hash_table_remove(b->homes, &home->home);
}

static int pin(void *arg, unsigned mount, uint64_t ino, uint32_t *number, int *id)
{
    struct backings *b = arg;
    struct inode *inode;
    int fd, error = inode_get(b->fs->inodes, ino, &inode);
    if (error)
        return error;
    error = flat_pin(inode, &fd, number);
    inode_put(inode);
    if (error)
        return error;
    pthread_mutex_lock(&b->lock);
    struct home *home = enter_home(b, *number, fd);
    if (home->mounts[mount].users == 0)
        home->mounts[mount].id = register_file(b->devices[mount], fd);
    *id = home->mounts[mount].id;
    if (*id > 0)
        home->mounts[mount].users++;
    else
        error = *id;
    drop_home_if_unused(b, home);
    bool warn = error && !b->warned;
    b->warned |= warn;
    pthread_mutex_unlock(&b->lock);
    if (error)
        flat_unpin(b->fs, *number);
    if (warn)
        g_warning("inode %" G_GUINT64_FORMAT " could be read past the daemon, but the kernel"
                  " refuses: %s (said once)",
                  (guint64)ino, backings_reason(error));
    return error;
}

static void unpin(void *arg, unsigned mount, uint32_t number)
{
    struct backings *b = arg;
    pthread_mutex_lock(&b->lock);
    struct home *home = g_hash_table_lookup(b->homes, &number);
    g_assert(home && home->mounts[mount].users > 0);
    if (--home->mounts[mount].users == 0)
        unregister_file(b->devices[mount], home->mounts[mount].id);
    drop_home_if_unused(b, home);
    pthread_mutex_unlock(&b->lock);
    flat_unpin(b->fs, number);
}

/* ---- who else uses it ---- */

/*
 * A lease for writing is given only on a file that nobody else has open; and a mapping
 * counts, since it keeps the file that it was made from. Whoever opens the file just
 * now waits the moment until the lease is given back.
 */
static bool is_open_elsewhere(int fd)
{
    if (fcntl(fd, F_SETLEASE, F_WRLCK) != 0)
        return true;
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return false;
}

static bool in_use(void *arg, uint32_t number)
{
    struct backings *b = arg;
    pthread_mutex_lock(&b->lock);
    const struct home *home = g_hash_table_lookup(b->homes, &number);
    bool used = home && is_open_elsewhere(home->fd);
    pthread_mutex_unlock(&b->lock);
    return used;
}

static bool is_known(void *arg, unsigned mount, uint64_t ino)
{
    const struct backings *b = arg;
    return inode_is_known(b->fs->inodes, ino, mount);
}

/* ---- keepers ---- */

static int keep(void *arg, unsigned mount, uint64_t ino, uint32_t number)
{
    struct backings *b = arg;
    struct keeper keeper = {.mount = mount, .home = number};
    struct inode *inode;
    int error = inode_get(b->fs->inodes, ino, &inode);
    if (error)
        return error;
    pthread_rwlock_wrlock(&inode->map_lock);
    /* Its holes are not to be filled in the home any more, either. */
    txn_enter(b->fs->txn);
    home_freeze(inode);
    txn_exit(b->fs->txn);
    error = file_hold_map(inode, &keeper.holder);
    pthread_rwlock_unlock(&inode->map_lock);
    inode_put(inode);
    if (error)
        return error;
    pthread_mutex_lock(&b->lock);
    g_array_append_val(b->keepers, keeper);
    pthread_mutex_unlock(&b->lock);
    return 0;
}

static void release_keepers(struct backings *b, GArray *keepers)
{
    for (guint i = 0; i < keepers->len; i++) {
        struct keeper k = g_array_index(keepers, struct keeper, i);
        file_release_hold(k.holder);
        unpin(b, k.mount, k.home);
    }
    g_array_free(keepers, TRUE);
}

unsigned backings_tidy(struct backings *b)
{
    GArray *done = g_array_new(FALSE, FALSE, sizeof(struct keeper));
    pthread_mutex_lock(&b->lock);
    for (guint i = b->keepers->len; i-- > 0;) {
        struct keeper k = g_array_index(b->keepers, struct keeper, i);
        const struct home *home = g_hash_table_lookup(b->homes, &k.home);
        if (!is_open_elsewhere(home->fd)) {
            g_array_append_val(done, k);
            g_array_remove_index_fast(b->keepers, i);
        }
    }
    unsigned left = b->keepers->len;
    pthread_mutex_unlock(&b->lock);
    release_keepers(b, done);
    return left;
}

struct opens_backing backings_callbacks(struct backings *b)
{
    return (struct opens_backing){
        .arg = b,
        .pin = pin,
        .unpin = unpin,
        .in_use = in_use,
        .keep = keep,
        .is_known = is_known,
    };
}

void backings_free(struct backings *b)
{
    if (!b)
        return;
    release_keepers(b, g_steal_pointer(&b->keepers));
    g_assert(g_hash_table_size(b->homes) == 0);
    g_hash_table_destroy(b->homes);
    pthread_mutex_destroy(&b->lock);
    g_free(b);
}
