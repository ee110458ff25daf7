// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_early.c - see fuse_early.h.
 *
 * The daemon and the process share a table: a slot for each handle. The daemon sets and clears
 * `ino`; the process sets `held` while it has the file open. It looks at all of them every some
 * ms, so that many small files, which are closed before it comes, cost no wake-ups; with nothing
 * to look after it sleeps until it is woken.
 */
#include "cowfs/fuse_early.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    SLOTS = 64,         /* more are not looked after */
    LOOKS_MIN = 2,      /* before a file is opened: most are small, and closed by then */
    TICK_MS = 10,       /* while something grows */
    TICK_MAX_MS = 1000, /* while nothing does; doubled each time */
    EMPTY_MAX_MS = 80,  /* with an empty table; then for as long as it takes */
    GROWTH_BYTES = 4 << 20,
};

/* What the kernel calls a file of FUSE: include/linux/exportfs.h, FILEID_INO64_GEN. */
enum { HANDLE_TYPE = 0x81, HANDLE_WORDS = 3, GENERATION = 1 /* mount_fill_entry */ };

struct shared {
    atomic_uint calls;    /* the futex: to be woken it is raised */
    atomic_bool asleep;   /* for longer than a tick: new handles wake it */
    _Atomic uint64_t dev; /* 0: not known yet */
    _Atomic uint64_t ino[SLOTS];
    atomic_bool held[SLOTS];
};

struct early {
    pid_t pid;
    struct shared *shared;
};

/* ---- its own process: no allocation, no GLib ---- */

struct watched {
    uint64_t ino; /* 0: none */
    unsigned looks;
    int fd;              /* -1: not opened */
    uint64_t size_bytes; /* when it was written last */
};

struct process {
    struct shared *shared;
    const char *mount_point;
    int root_fd; /* of the mount that nobody sees; -1: none */
    struct watched watched[SLOTS];
};

/* Whether it is our file system: something else may be mounted there (again). Asks the daemon
 * nothing. */
static bool is_ours(const struct process *p, int dir_fd, const char *path)
{
    struct statx stx;
    return statx(dir_fd, path, AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, STATX_TYPE,
                 &stx) == 0 &&
           makedev(stx.stx_dev_major, stx.stx_dev_minor) == atomic_load(&p->shared->dev);
}

/* Where that is not allowed there is nothing to be done. */
static int or_end(int fd)
{
    if (fd < 0 && (errno == EPERM || errno == ENOSYS))
        _exit(0);
    return fd;
}

/* A mount of the same file system without a place in the tree. */
static bool open_root(struct process *p)
{
    if (p->root_fd >= 0)
        return true;
    if (atomic_load(&p->shared->dev) == 0)
        return false;
    int tree = or_end(
        open_tree(AT_FDCWD, p->mount_point, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_NO_AUTOMOUNT));
    if (tree < 0)
        return false;
    if (is_ours(p, tree, ""))
        p->root_fd = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    close(tree);
    return p->root_fd >= 0;
}

static int open_inode(int root_fd, uint64_t ino)
{
    union {
        struct file_handle head;
        uint8_t bytes[sizeof(struct file_handle) + HANDLE_WORDS * sizeof(uint32_t)];
    } handle = {
        .head = {.handle_bytes = HANDLE_WORDS * sizeof(uint32_t), .handle_type = HANDLE_TYPE}};
    const uint32_t words[HANDLE_WORDS] = {(uint32_t)(ino >> 32), (uint32_t)ino, GENERATION};
    memcpy(handle.bytes + sizeof(struct file_handle), words, sizeof(words));
    return or_end(open_by_handle_at(root_fd, &handle.head, O_RDONLY | O_NOATIME | O_CLOEXEC));
}

static void let_go(struct process *p, unsigned slot)
{
    struct watched *w = &p->watched[slot];
    if (w->fd >= 0)
        close(w->fd);
    *w = (struct watched){.fd = -1};
    atomic_store(&p->shared->held[slot], false);
}

static void let_all_go(struct process *p)
{
    for (unsigned i = 0; i < SLOTS; i++)
        let_go(p, i);
    if (p->root_fd >= 0)
        close(p->root_fd);
    p->root_fd = -1;
}

static bool has_grown(struct watched *w)
{
    struct statx stx;
    /* By what the kernel knows: the daemon is not asked. */
    if (statx(w->fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, &stx) != 0)
        return false;
    w->size_bytes = MIN(w->size_bytes, stx.stx_size);
    if (stx.stx_size - w->size_bytes < GROWTH_BYTES)
        return false;
    w->size_bytes = stx.stx_size / GROWTH_BYTES * GROWTH_BYTES;
    /* All but the last pages, which are being filled. Errors are the writer's to be told: the
     * kernel keeps them for him. */
    sync_file_range(w->fd, 0, (off_t)w->size_bytes, SYNC_FILE_RANGE_WRITE);
    return true;
}

/* Whether there is a reason to look again soon. */
static bool look(struct process *p, unsigned slot, uint64_t ino)
{
    struct watched *w = &p->watched[slot];
    if (w->ino != ino) {
        let_go(p, slot);
        w->ino = ino;
        return ino != 0;
    }
    if (ino && w->fd < 0 && w->looks++ == LOOKS_MIN && open_root(p)) {
        /* Before the opening: whoever clears the slot after that wakes us. */
        atomic_store(&p->shared->held[slot], true);
        w->fd = open_inode(p->root_fd, ino);
    }
    return w->fd >= 0 ? has_grown(w) : ino && w->looks <= LOOKS_MIN;
}

/* Returns how many there are; *soon: whether one of them has to be looked at again soon. */
static unsigned look_at_all(struct process *p, bool *soon)
{
    unsigned count = 0;
    *soon = false;
    if (p->root_fd >= 0 && !is_ours(p, AT_FDCWD, p->mount_point))
        let_all_go(p);
    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t ino = atomic_load(&p->shared->ino[i]);
        *soon = look(p, i, ino) || *soon;
        count += ino != 0;
    }
    if (count == 0)
        let_all_go(p);
    return count;
}

static bool has_changed(const struct process *p)
{
    for (unsigned i = 0; i < SLOTS; i++)
        if (atomic_load(&p->shared->ino[i]) != p->watched[i].ino)
            return true;
    return false;
}

static void wait_for_call(struct process *p, unsigned calls, unsigned wait_ms, bool forever)
{
    struct timespec timeout = {.tv_sec = wait_ms / 1000, .tv_nsec = wait_ms % 1000 * 1000000L};
    atomic_store(&p->shared->asleep, wait_ms > TICK_MS);
    /* Who has changed something before that did not see it. */
    if (wait_ms <= TICK_MS || !has_changed(p))
        syscall(SYS_futex, &p->shared->calls, FUTEX_WAIT, calls, forever ? NULL : &timeout, NULL,
                0);
    atomic_store(&p->shared->asleep, false);
}

__attribute__((noreturn)) static void early_main(struct process *p, pid_t parent)
{
    sigset_t all;
    unsigned wait_ms = TICK_MS;
    prctl(PR_SET_NAME, "cowfs-early");
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    for (;;) {
        bool soon;
        unsigned calls = atomic_load(&p->shared->calls);
        unsigned count = look_at_all(p, &soon);
        wait_ms = soon ? TICK_MS : MIN(2 * wait_ms, TICK_MAX_MS);
        wait_for_call(p, calls, wait_ms, count == 0 && wait_ms > EMPTY_MAX_MS);
    }
}

/* ---- the daemon's side ---- */

static void only_stdio(void)
{
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd <= 2; fd++)
        dup2(null, fd);
    close_range(3, ~0U, 0);
}

struct early *early_start(const char *mount_point)
{
    struct shared *shared = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return NULL;
    pid_t parent = getpid();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct process p = {.shared = shared, .mount_point = mount_point, .root_fd = -1};
        only_stdio();
        for (unsigned i = 0; i < SLOTS; i++)
            p.watched[i].fd = -1;
        early_main(&p, parent);
    }
    if (pid < 0) {
        munmap(shared, sizeof(struct shared));
        return NULL;
    }
    struct early *e = g_new(struct early, 1);
    *e = (struct early){.pid = pid, .shared = shared};
    return e;
}

void early_watch(struct early *e, dev_t dev)
{
    if (e)
        atomic_store(&e->shared->dev, dev);
}

static void call(struct early *e)
{
    atomic_fetch_add(&e->shared->calls, 1);
    syscall(SYS_futex, &e->shared->calls, FUTEX_WAKE, 1, NULL, NULL, 0);
}

void early_opened(struct early *e, uint64_t ino)
{
    if (!e)
        return;
    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t none = 0;
        if (atomic_load(&e->shared->ino[i]) == 0 &&
            atomic_compare_exchange_strong(&e->shared->ino[i], &none, ino)) {
            if (atomic_load(&e->shared->asleep))
                call(e);
            return;
        }
    }
}

void early_closed(struct early *e, uint64_t ino)
{
    if (!e)
        return;
    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t seen = ino;
        if (atomic_load(&e->shared->ino[i]) == ino &&
            atomic_compare_exchange_strong(&e->shared->ino[i], &seen, 0)) {
            if (atomic_load(&e->shared->held[i]))
                call(e);
            return;
        }
    }
}

void early_stop(struct early *e)
{
    if (!e)
        return;
    kill(e->pid, SIGKILL);
    while (waitpid(e->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    munmap(e->shared, sizeof(struct shared));
    g_free(e);
}
