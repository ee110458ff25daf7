// SPDX-License-Identifier: Apache-2.0
/* book.c - see book.h. */
#include "cowfs/book.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { VERSION = 1, ROWS = 1 << 20 };

enum { GENERATION_MASK = (1 << 24) - 1, KIND_BITS = 8, ROW_SHIFT = 32 };

/* Numbers and layout are those of all versions of the program (handover.h). */
struct stored_row {
    atomic_uint what; /* 0: free */
    uint32_t generation;
    uint64_t ino;
    uint64_t number;
    uint32_t home;
    uint32_t mount;
};

struct head {
    uint32_t version;
    atomic_uint used; /* rows from that one on never were any */
    _Atomic int32_t last_id[8];
    uint32_t reserved[6];
};

struct stored {
    struct head head;
    struct stored_row rows[ROWS]; /* the first one is none */
};

_Static_assert((int)INODE_MOUNTS <= 8, "each has its last_id");

struct book {
    struct stored *stored;
    pthread_mutex_t lock; /* a leaf: who takes a free row */
    GArray *free;         /* uint32_t: below `used` */
    atomic_uint die_at;
};

int book_memory_new(void)
{
    int fd = memfd_create("cowfs-book", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    const struct head head = {.version = VERSION, .used = 1};
    /* What is never written to takes no memory. */
    if (ftruncate(fd, sizeof(struct stored)) != 0 ||
        pwrite(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head)) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

struct book *book_open(int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0 || (size_t)st.st_size < sizeof(struct stored))
        return NULL;
    struct stored *stored =
        mmap(NULL, sizeof(struct stored), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (stored == MAP_FAILED)
        return NULL;
    if (stored->head.version != VERSION) {
        munmap(stored, sizeof(struct stored));
        return NULL;
    }
    struct book *b = g_new0(struct book, 1);
    b->stored = stored;
    pthread_mutex_init(&b->lock, NULL);
    b->free = g_array_new(FALSE, FALSE, sizeof(uint32_t));
    uint32_t used = MIN(atomic_load(&stored->head.used), (uint32_t)ROWS);
    while (used > 1 && atomic_load(&stored->rows[used - 1].what) == 0)
        used--;
    atomic_store(&stored->head.used, used);
    /* The first ones are taken first. */
    for (uint32_t i = used; i-- > 1;)
        if (atomic_load(&stored->rows[i].what) == 0)
            g_array_append_val(b->free, i);
    return b;
}

void book_close(struct book *b)
{
    if (!b)
        return;
    munmap(b->stored, sizeof(struct stored));
    pthread_mutex_destroy(&b->lock);
    g_array_free(b->free, TRUE);
    g_free(b);
}

static uint32_t take_row(struct book *b)
{
    uint32_t row = 0;
    pthread_mutex_lock(&b->lock);
    if (b->free->len) {
        row = g_array_index(b->free, uint32_t, b->free->len - 1);
        g_array_set_size(b->free, b->free->len - 1);
    } else if (atomic_load(&b->stored->head.used) < ROWS) {
        row = atomic_fetch_add(&b->stored->head.used, 1);
    }
    pthread_mutex_unlock(&b->lock);
    return row;
}

uint32_t book_add(struct book *b, const struct book_row *row)
{
    uint32_t number = b ? take_row(b) : 0;
    if (!number)
        return 0;
    struct stored_row *s = &b->stored->rows[number];
    s->generation = (s->generation + 1) & GENERATION_MASK;
    s->ino = row->ino;
    s->number = row->number;
    s->home = row->home;
    s->mount = row->mount;
    atomic_store(&s->what, row->what);
    return number;
}

/* Whoever finds it there removes it: false if somebody else has. */
static bool remove_row(struct book *b, uint32_t number, unsigned what)
{
    if (!atomic_compare_exchange_strong(&b->stored->rows[number].what, &what, 0))
        return false;
    pthread_mutex_lock(&b->lock);
    g_array_append_val(b->free, number);
    pthread_mutex_unlock(&b->lock);
    return true;
}

void book_remove(struct book *b, uint32_t number)
{
    if (b && number)
        remove_row(b, number, atomic_load(&b->stored->rows[number].what));
}

static struct book_row read_row(const struct stored_row *s)
{
    return (struct book_row){
        .what = (enum book_what)atomic_load(&s->what),
        .mount = s->mount,
        .ino = s->ino,
        .number = s->number,
        .home = s->home,
    };
}

void book_each(struct book *b, void (*each)(void *arg, uint32_t number, const struct book_row *row),
               void *arg)
{
    uint32_t used = atomic_load(&b->stored->head.used);
    for (uint32_t i = 1; i < used; i++) {
        struct book_row row = read_row(&b->stored->rows[i]);
        if (row.what && row.mount < INODE_MOUNTS)
            each(arg, i, &row);
    }
}

void book_end_mount(struct book *b, unsigned mount)
{
    uint32_t used = b ? atomic_load(&b->stored->head.used) : 0;
    for (uint32_t i = 1; i < used; i++) {
        struct book_row row = read_row(&b->stored->rows[i]);
        if (row.what && row.what != BOOK_KEEPER && row.mount == mount)
            book_remove(b, i);
    }
}

static uint64_t handle_of(const struct book *b, uint32_t number)
{
    const struct stored_row *s = &b->stored->rows[number];
    return (uint64_t)number << ROW_SHIFT | (uint64_t)s->generation << KIND_BITS |
           atomic_load(&s->what);
}

uint64_t book_add_handle(struct book *b, enum open_kind kind, unsigned mount, uint64_t ino,
                         uint64_t request)
{
    uint32_t number = book_add(
        b, &(struct book_row){
               .what = (enum book_what)kind, .mount = mount, .ino = ino, .number = request});
    return number ? handle_of(b, number) : 0;
}

bool book_remove_handle(struct book *b, uint64_t fh)
{
    uint64_t number = fh >> ROW_SHIFT;
    if (number == 0 || number >= ROWS || handle_of(b, (uint32_t)number) != fh)
        return false;
    return remove_row(b, (uint32_t)number, open_kind_of(fh));
}

uint64_t book_find_handle(struct book *b, unsigned mount, uint64_t ino, uint64_t request)
{
    uint32_t used = atomic_load(&b->stored->head.used);
    for (uint32_t i = 1; i < used; i++) {
        struct book_row row = read_row(&b->stored->rows[i]);
        if (row.what && row.what <= BOOK_PASSTHROUGH && row.number == request &&
            row.mount == mount && row.ino == ino)
            return handle_of(b, i);
    }
    return 0;
}

void book_die_at(struct book *b, enum book_point point)
{
    if (b)
        atomic_store(&b->die_at, point);
}

void book_reached(struct book *b, enum book_point point)
{
    if (b && atomic_load(&b->die_at) == point)
        raise(SIGKILL);
}

int book_last_id(const struct book *b, unsigned mount)
{
    return b ? atomic_load(&b->stored->head.last_id[mount]) : INT32_MAX - 1;
}

void book_set_last_id(struct book *b, unsigned mount, int id)
{
    if (b)
        atomic_store(&b->stored->head.last_id[mount], id);
}
