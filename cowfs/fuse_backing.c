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
    unsigned pins;
    int fd; /* the store's; valid while it is pinned. -1: lost, see adopt_pin */
    struct {
        unsigned handles;
        int id;       /* 0: not registered */
        uint32_t row; /* of the id in the book */
    } mounts[INODE_MOUNTS];
};

struct keeper {
    struct inode *holder; /* of the content (file_internal.h) */
    uint32_t home;
    uint32_t row;
};

struct backings {
    struct fs *fs;
    struct book *book;    /* or NULL */
    pthread_mutex_t lock; /* after that of opens.h */
    GHashTable *homes;    /* &home->home -> home */
    GArray *keepers;
    int devices[INODE_MOUNTS];
    bool warned;
};

struct backings *backings_new(struct fs *fs, struct book *book)
{
    struct backings *b = g_new0(struct backings, 1);
    b->fs = fs;
    b->book = book;
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
    pthread_mutex_lock(&b->lock);
    int id = register_file(b->devices[mount], b->fs->lock_fd);
    if (id > 0) {
        unregister_file(b->devices[mount], id);
        /* What was registered by a daemon that died before it could enter that. */
        for (int lost = book_last_id(b->book, mount) + 1; lost < id; lost++)
            unregister_file(b->devices[mount], lost);
        book_set_last_id(b->book, mount, id);
    }
    pthread_mutex_unlock(&b->lock);
    return MIN(id, 0);
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

/* ---- homes ---- */

/* Under the lock. */
static struct home *enter_home(struct backings *b, uint32_t number)
{
    struct home *home = g_hash_table_lookup(b->homes, &number);
    if (!home) {
        home = g_new0(struct home, 1);
        home->home = number;
        g_hash_table_insert(b->homes, &home->home, home);
    }
    return home;
}

static struct home *find_home(struct backings *b, uint32_t number)
{
    struct home *home = g_hash_table_lookup(b->homes, &number);
    g_assert(home);
    return home;
}

static void add_pin(struct backings *b, uint32_t number, int fd)
{
    pthread_mutex_lock(&b->lock);
    struct home *home = enter_home(b, number);
    home->pins++;
    home->fd = fd;
    pthread_mutex_unlock(&b->lock);
}

static void drop_pin(struct backings *b, uint32_t number)
{
    pthread_mutex_lock(&b->lock);
    struct home *home = find_home(b, number);
    bool lost = home->fd < 0;
    if (--home->pins == 0)
        g_hash_table_remove(b->homes, &number);
    pthread_mutex_unlock(&b->lock);
    if (!lost)
        flat_unpin(b->fs, number);
}

static int pin(void *arg, unsigned mount, uint64_t ino, struct opens_pin *out)
{
    struct backings *b = arg;
    struct inode *inode;
    int fd, error = inode_get(b->fs->inodes, ino, &inode);
    if (error)
        return error;
    error = flat_pin(inode, &fd, &out->home);
    inode_put(inode);
    if (error)
        return error;
    out->row = book_add(
        b->book,
        &(struct book_row){.what = BOOK_PIN, .mount = mount, .ino = ino, .home = out->home});
    if (b->book && !out->row) {
        flat_unpin(b->fs, out->home);
        return -ENFILE;
    }
    add_pin(b, out->home, fd);
    book_reached(b->book, BOOK_PINNED);
    return 0;
}

static void unpin(void *arg, unsigned mount, const struct opens_pin *p)
{
    struct backings *b = arg;
    (void)mount;
    book_remove(b->book, p->row);
    drop_pin(b, p->home);
}

/* ---- handles ---- */

/* It is entered when the kernel has it: backings_try looks for such as are not. And it is out of
 * the book when the kernel may not have it any more. Under the lock. */
static int register_home(struct backings *b, unsigned mount, struct home *home)
{
    int id = home->fd < 0 ? -EINVAL : register_file(b->devices[mount], home->fd);
    if (id < 0)
        return id;
    book_reached(b->book, BOOK_REGISTERED);
    home->mounts[mount].id = id;
    home->mounts[mount].row = book_add(
        b->book, &(struct book_row){
                     .what = BOOK_ID, .mount = mount, .number = (uint64_t)id, .home = home->home});
    book_set_last_id(b->book, mount, id);
    if (b->book && !home->mounts[mount].row) {
        unregister_file(b->devices[mount], id);
        home->mounts[mount].id = 0;
        return -ENFILE;
    }
    return 0;
}

static void unregister_home(struct backings *b, unsigned mount, struct home *home)
{
    int id = home->mounts[mount].id;
    uint32_t row = home->mounts[mount].row;
    home->mounts[mount].id = 0;
    home->mounts[mount].row = 0;
    /* First there: that number is never given again, so the next daemon may close it once more. */
    unregister_file(b->devices[mount], id);
    book_reached(b->book, BOOK_UNREGISTERED);
    book_remove(b->book, row);
}

static int open_past(void *arg, unsigned mount, uint32_t number)
{
    struct backings *b = arg;
    int error = 0;
    pthread_mutex_lock(&b->lock);
    struct home *home = find_home(b, number);
    if (home->mounts[mount].id == 0)
        error = register_home(b, mount, home);
    int id = error ? error : home->mounts[mount].id;
    home->mounts[mount].handles += id > 0;
    bool warn = error && !b->warned;
    b->warned |= warn;
    pthread_mutex_unlock(&b->lock);
    if (warn)
        g_warning("a file could be read past the daemon, but the kernel refuses: %s (said once)",
                  backings_reason(error));
    return id;
}

/* With the last handle the kernel gives up the file, too: a file that an earlier daemon has
 * registered counts as one of somebody else's for the lease below. */
static void close_past(void *arg, unsigned mount, uint32_t number)
{
    struct backings *b = arg;
    pthread_mutex_lock(&b->lock);
    struct home *home = find_home(b, number);
    if (home->mounts[mount].handles > 0 && --home->mounts[mount].handles == 0)
        unregister_home(b, mount, home);
    pthread_mutex_unlock(&b->lock);
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

/* Under the lock. A file that is lost is nobody's to write to: it stays as it is for those who have
 * it mapped. */
static bool home_in_use(const struct home *home)
{
    for (unsigned i = 0; i < INODE_MOUNTS; i++)
        if (home->mounts[i].handles)
            return true;
    return home->fd >= 0 && is_open_elsewhere(home->fd);
}

static bool in_use(void *arg, uint32_t number)
{
    struct backings *b = arg;
    pthread_mutex_lock(&b->lock);
    bool used = home_in_use(find_home(b, number));
    pthread_mutex_unlock(&b->lock);
    return used;
}

static bool is_known(void *arg, unsigned mount, uint64_t ino)
{
    const struct backings *b = arg;
    return inode_is_known(b->fs->inodes, ino, mount);
}

/* ---- keepers ---- */

static int keep(void *arg, unsigned mount, uint64_t ino, const struct opens_pin *p)
{
    struct backings *b = arg;
    struct keeper keeper = {.home = p->home};
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
    /* A clone that is not in the book goes with its daemon. */
    book_reached(b->book, BOOK_KEPT);
    keeper.row = book_add(b->book, &(struct book_row){.what = BOOK_KEEPER,
                                                      .mount = mount,
                                                      .ino = keeper.holder->ino,
                                                      .home = p->home});
    if (b->book && !keeper.row) {
        file_release_hold(keeper.holder);
        return -ENFILE;
    }
    book_reached(b->book, BOOK_KEEPING);
    book_remove(b->book, p->row);
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
        book_remove(b->book, k.row);
        drop_pin(b, k.home);
    }
    g_array_free(keepers, TRUE);
}

unsigned backings_tidy(struct backings *b)
{
    GArray *done = g_array_new(FALSE, FALSE, sizeof(struct keeper));
    pthread_mutex_lock(&b->lock);
    for (guint i = b->keepers->len; i-- > 0;) {
        struct keeper k = g_array_index(b->keepers, struct keeper, i);
        if (!home_in_use(find_home(b, k.home))) {
            g_array_append_val(done, k);
            g_array_remove_index_fast(b->keepers, i);
        }
    }
    unsigned left = b->keepers->len;
    pthread_mutex_unlock(&b->lock);
    release_keepers(b, done);
    return left;
}

/* ---- what an earlier daemon has left ---- */

struct adoption {
    struct backings *b;
    struct opens *opens;
};

/* It was flat when it was pinned, and its home has had its size since then. The home may be lost all the same: it had no chunks,
 * and so was deleted when nobody held it, between two daemons. Then it stays as it is, too. */
static void adopt_home(struct backings *b, struct inode *inode, uint32_t home)
{
    int fd, error = inode ? segments_home_pin(b->fs->segments, home, HOME_SIZE_KEPT, &fd) : -ENOENT;
    if (error)
        g_message("segment %u was read past the daemon, and is gone: %s", home, g_strerror(-error));
    add_pin(b, home, error ? -1 : fd);
}

static void adopt_pin(void *arg, uint32_t number, const struct book_row *row)
{
    const struct adoption *a = arg;
    struct inode *inode = NULL;
    if (row->what != BOOK_PIN)
        return;
    if (inode_get(a->b->fs->inodes, row->ino, &inode) != 0)
        g_message("inode %" G_GUINT64_FORMAT " was read past the daemon, and is gone",
                  (guint64)row->ino);
    adopt_home(a->b, inode, row->home);
    inode_put(inode);
    opens_restore_pin(a->opens, row->mount, row->ino,
                      &(struct opens_pin){.home = row->home, .row = number});
}

static void adopt_keeper(void *arg, uint32_t number, const struct book_row *row)
{
    const struct adoption *a = arg;
    struct keeper keeper = {.home = row->home, .row = number};
    if (row->what != BOOK_KEEPER)
        return;
    if (inode_get(a->b->fs->inodes, row->ino, &keeper.holder) != 0) {
        book_remove(a->b->book, number);
        return;
    }
    adopt_home(a->b, keeper.holder, row->home);
    g_array_append_val(a->b->keepers, keeper);
}

static void adopt_id(void *arg, uint32_t number, const struct book_row *row)
{
    const struct adoption *a = arg;
    struct home *home = row->what == BOOK_ID ? g_hash_table_lookup(a->b->homes, &row->home) : NULL;
    if (home) {
        home->mounts[row->mount].id = (int)row->number;
        home->mounts[row->mount].row = number;
    } else if (row->what == BOOK_ID) {
        unregister_file(a->b->devices[row->mount], (int)row->number);
        book_remove(a->b->book, number);
    }
}

static void adopt_handle(void *arg, uint32_t number, const struct book_row *row)
{
    const struct adoption *a = arg;
    (void)number;
    if (row->what <= BOOK_PASSTHROUGH)
        opens_restore_handle(a->opens, row->mount, row->ino, (enum open_kind)row->what);
}

/* What was registered for handles that are not there. */
static void drop_unused_ids(struct backings *b)
{
    GHashTableIter it;
    gpointer value;
    g_hash_table_iter_init(&it, b->homes);
    while (g_hash_table_iter_next(&it, NULL, &value)) {
        struct home *home = value;
        for (unsigned i = 0; i < INODE_MOUNTS; i++)
            if (home->mounts[i].id && home->mounts[i].handles == 0)
                unregister_home(b, i, home);
    }
}

unsigned backings_adopt(struct backings *b, struct opens *opens)
{
    struct adoption a = {b, opens};
    book_each(b->book, adopt_pin, &a);
    book_each(b->book, adopt_keeper, &a);
    book_each(b->book, adopt_id, &a);
    book_each(b->book, adopt_handle, &a);
    unsigned left = opens_restored(opens);
    drop_unused_ids(b);
    return left + b->keepers->len;
}

static void note_keeper(void *arg, uint32_t number, const struct book_row *row)
{
    (void)number;
    if (row->what == BOOK_KEEPER)
        g_array_append_val((GArray *)arg, row->ino);
}

GArray *backings_held(struct book *book)
{
    GArray *inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    book_each(book, note_keeper, inos);
    return inos;
}

struct opens_backing backings_callbacks(struct backings *b)
{
    return (struct opens_backing){
        .arg = b,
        .pin = pin,
        .unpin = unpin,
        .open = open_past,
        .close = close_past,
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
