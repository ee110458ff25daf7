// SPDX-License-Identifier: Apache-2.0
/*
 * journal.c - the memory of the journal.
 *
 *     header | ring of completions | orphans | area 0 | area 1 | area 2
 *
 * An area holds records, one after the other, from its beginning to its `tail`. A whole
 * transaction is published by one store of the tail, and it is published before its
 * thread leaves the gate and drops the locks that it holds. So what stands before the
 * tail is, at each moment, the history of whole transactions up to that moment, in an
 * order in which they could have happened one after the other.
 *
 * One area is the *current* one. A flip (under the closed gate, with no transaction open)
 * makes the next one current, and the number of the old one goes into the commit's own
 * record (struct meta). When that commit is durable the area is free again. After a
 * crash the areas whose numbers are above the durable one are replayed, in their order.
 *
 *     free --journal_flip--> current --journal_flip--> committing --journal_durable--> free
 *
 * Two are used in the normal case; the third is for what was left of the last process.
 *
 * An area that is full is `broken`: what came after its tail is not recorded, so nothing after
 * it may be replayed, either. Its number is skipped by nobody; a gap in the numbers means the
 * same (there was no free area).
 */
#include "cowfs/journal_internal.h"

#include "cowfs/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x324c4e4a53574f43) /* "COWSJNL2" */

enum { AREAS = 3, NO_AREA = -1 };

/* As the memory has it: all processes that share it run on one machine. */
struct completion_entry {
    _Atomic uint64_t unique; /* 0: none; stored last */
    int64_t result;
    uint64_t ino, step;
    struct journal_counts counts;
    uint64_t seq, end; /* it counts if this area was published up to `end` */
};

struct area_header {
    _Atomic uint64_t seq;  /* 0: free */
    _Atomic uint64_t tail; /* bytes published */
    _Atomic uint64_t broken;
};

struct header {
    uint64_t magic;
    uint8_t uuid[16]; /* of the store */
    uint64_t id;      /* what the store's commits call it */
    struct area_header areas[AREAS];
    _Atomic uint64_t ring_next;
    /* What the records say has no bytes: a sync of them failed (txn.h), and a later one would succeed
     * without them. Older programs leave it alone. */
    _Atomic uint64_t data_failed;
};

#define RING_OFFSET 4096
#define AREAS_OFFSET (UINT64_C(1) << 20)
#define AREA_BYTES (UINT64_C(256) << 20) /* of address space; memory is taken as it is used */
#define KEEP_BYTES (UINT64_C(1) << 20)   /* of a free area, so that it need not be taken again */
/* Older programs leave these alone, and did not write there. */
#define ORPHANS_OFFSET (AREAS_OFFSET - JOURNAL_ORPHANS * sizeof(struct journal_orphan))
#define TOTAL_BYTES (AREAS_OFFSET + AREAS * AREA_BYTES)

G_STATIC_ASSERT(sizeof(struct header) <= RING_OFFSET);
G_STATIC_ASSERT(RING_OFFSET + JOURNAL_COMPLETIONS * sizeof(struct completion_entry) <=
                ORPHANS_OFFSET);

struct journal {
    int fd; /* the caller's */
    uint8_t *memory;
    struct header *header;
    struct completion_entry *ring;
    pthread_mutex_t lock; /* publishing; before attr_lock */
    int current;          /* area, or NO_AREA: nothing is recorded */
    uint64_t seq;         /* of the current area, or the number that has none */
    uint64_t begin_seq;   /* what was left began here (at open) */
    uint64_t committing_seq;
    atomic_int_fast64_t noted_bytes; /* told to txn_note_dirty */
};

int journal_memory_new(void)
{
    int fd = memfd_create("cowfs-journal", MFD_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static uint8_t *area_data(const struct journal *j, int area)
{
    return j->memory + AREAS_OFFSET + (uint64_t)area * AREA_BYTES;
}

struct journal_orphan *journal_orphans(const struct journal *j)
{
    return (struct journal_orphan *)(void *)(j->memory + ORPHANS_OFFSET);
}

static int find_area(const struct journal *j, uint64_t seq)
{
    for (int i = 0; i < AREAS; i++)
        if (atomic_load(&j->header->areas[i].seq) == seq)
            return i;
    return NO_AREA;
}

static void area_free(struct journal *j, int area)
{
    struct area_header *a = &j->header->areas[area];
    uint64_t used = atomic_load(&a->tail);
    atomic_store(&a->seq, 0);
    atomic_store(&a->tail, 0);
    atomic_store(&a->broken, 0);
    if (used > KEEP_BYTES)
        fallocate(j->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(AREAS_OFFSET + (uint64_t)area * AREA_BYTES + KEEP_BYTES),
                  (off_t)(used - KEEP_BYTES));
}

/* The next number, in a free area if there is one. */
static void begin_area(struct journal *j, uint64_t seq)
{
    j->seq = seq;
    j->current = find_area(j, 0);
    if (j->current == NO_AREA)
        g_critical("journal: no room until the next commit is durable");
    if (j->current == NO_AREA)
        return;
    struct area_header *a = &j->header->areas[j->current];
    /* Whoever freed it may have died before it was empty. */
    atomic_store(&a->tail, 0);
    atomic_store(&a->broken, 0);
    atomic_store(&a->seq, seq);
}

/* ---- Open ---- */

static uint64_t draw_id(void)
{
    uint64_t id = 0;
    while (id == 0)
        if (getrandom(&id, sizeof(id), 0) != sizeof(id))
            id = 0;
    return id;
}

static void forget_completed(struct journal *j)
{
    for (unsigned i = 0; i < JOURNAL_COMPLETIONS; i++)
        atomic_store(&j->ring[i].unique, 0);
}

/* Notes of transactions that were not published. */
static void drop_unpublished(struct journal *j)
{
    for (unsigned i = 0; i < JOURNAL_COMPLETIONS; i++) {
        struct completion_entry *e = &j->ring[i];
        int area = atomic_load(&e->unique) ? find_area(j, e->seq) : NO_AREA;
        if (area != NO_AREA && e->end > atomic_load(&j->header->areas[area].tail))
            atomic_store(&e->unique, 0);
    }
}

/* A new one, or one whose content means nothing (any more). */
static void start_anew(struct journal *j, const struct journal_state *state, bool keep_completed)
{
    struct header *h = j->header;
    h->magic = 0; /* nobody takes it for one as long as this is under way */
    for (int i = 0; i < AREAS; i++)
        area_free(j, i);
    if (!keep_completed)
        forget_completed(j);
    memset(journal_orphans(j), 0, JOURNAL_ORPHANS * sizeof(struct journal_orphan));
    atomic_store(&h->data_failed, 0);
    memcpy(h->uuid, state->uuid, sizeof(h->uuid));
    h->id = draw_id();
    atomic_thread_fence(memory_order_release);
    h->magic = MAGIC;
    begin_area(j, 1);
}

/* Our store's, and the commit that it goes on from. */
static void go_on(struct journal *j, const struct journal_state *state)
{
    uint64_t last = state->seq;
    for (int i = 0; i < AREAS; i++) {
        uint64_t seq = atomic_load(&j->header->areas[i].seq);
        if (seq && seq <= state->seq)
            area_free(j, i);
        last = max_u64(last, seq);
    }
    j->begin_seq = state->seq + 1;
    int area = last > state->seq ? find_area(j, last) : NO_AREA;
    if (area == NO_AREA) {
        begin_area(j, last + 1);
    } else {
        j->current = area; /* the first flip takes another */
        j->seq = last;
    }
}

static bool areas_are_sane(const struct header *h)
{
    for (int i = 0; i < AREAS; i++)
        if (atomic_load(&h->areas[i].tail) > AREA_BYTES)
            return false;
    return true;
}

static int map_memory(struct journal *j, struct errmsg *err)
{
    struct stat st;
    int error = fstat(j->fd, &st) < 0 ? -errno : 0;
    if (!error && st.st_size != 0 && st.st_size != (off_t)TOTAL_BYTES)
        error = -EINVAL;
    if (!error && st.st_size == 0 && ftruncate(j->fd, (off_t)TOTAL_BYTES) < 0)
        error = -errno;
    if (!error) {
        j->memory = mmap(NULL, TOTAL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, j->fd, 0);
        if (j->memory == MAP_FAILED)
            error = -errno;
    }
    return error ? errmsg_set(err, error, "the journal's memory cannot be used: %s",
                              g_strerror(-error))
                 : 0;
}

int journal_open(int fd, const struct journal_state *state, struct journal **out,
                 struct errmsg *err)
{
    struct journal *j = g_new0(struct journal, 1);
    *j = (struct journal){.fd = fd, .current = NO_AREA};
    int error = map_memory(j, err);
    if (error) {
        g_free(j);
        return error;
    }
    pthread_mutex_init(&j->lock, NULL);
    struct header *h = j->header = (struct header *)(void *)j->memory;
    j->ring = (struct completion_entry *)(void *)(j->memory + RING_OFFSET);
    if (h->magic == MAGIC && !areas_are_sane(h)) {
        journal_close(j);
        return errmsg_set(err, -EUCLEAN, "the journal's memory is damaged");
    }
    bool ours = h->magic == MAGIC && memcmp(h->uuid, state->uuid, sizeof(h->uuid)) == 0;
    if (ours)
        drop_unpublished(j);
    if (ours && h->id == state->id) {
        go_on(j, state);
    } else {
        bool left = false;
        for (int i = 0; i < AREAS && h->magic == MAGIC; i++)
            left |= atomic_load(&h->areas[i].tail) > 0;
        if (left && !(ours && state->clean))
            g_message("the journal does not belong to the last commit of this store: not used");
        start_anew(j, state, ours && state->clean);
    }
    *out = j;
    return 0;
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    munmap(j->memory, TOTAL_BYTES);
    pthread_mutex_destroy(&j->lock);
    g_free(j);
}

void journal_data_failed(void *arg)
{
    struct fs *fs = arg;
    if (fs->journal)
        atomic_store(&fs->journal->header->data_failed, 1);
}

bool journal_has_data_failed(const struct journal *j)
{
    return j && atomic_load(&j->header->data_failed);
}

uint64_t journal_id(const struct journal *j)
{
    return j ? j->header->id : 0;
}

int journal_each(struct journal *j, int (*fn)(void *arg, const uint8_t *records, size_t bytes),
                 void *arg)
{
    for (uint64_t seq = j->begin_seq; seq && seq <= j->seq; seq++) {
        int area = find_area(j, seq);
        if (area == NO_AREA) {
            g_critical("journal: a part is missing; what followed it is lost");
            return 0;
        }
        struct area_header *a = &j->header->areas[area];
        uint64_t tail = atomic_load_explicit(&a->tail, memory_order_acquire);
        if (tail > AREA_BYTES)
            return -EUCLEAN;
        int error = fn(arg, area_data(j, area), tail);
        if (error)
            return error;
        if (atomic_load(&a->broken)) {
            g_critical("journal: it ran full; what followed is lost");
            return 0;
        }
    }
    return 0;
}

bool journal_is_empty(const struct journal *j)
{
    for (uint64_t seq = j->begin_seq; seq && seq <= j->seq; seq++) {
        int area = find_area(j, seq);
        if (area == NO_AREA)
            return true; /* what follows a gap is not done again */
        if (atomic_load(&j->header->areas[area].tail))
            return false;
    }
    return true;
}

/* ---- Commit ---- */

uint64_t journal_flip(struct journal *j, struct txn *txn)
{
    if (!j)
        return 0;
    txn_note_dirty(txn, -atomic_exchange(&j->noted_bytes, 0));
    /* Nobody publishes: the gate is closed. The lock is for who looks on. */
    pthread_mutex_lock(&j->lock);
    if (j->current == NO_AREA || atomic_load(&j->header->areas[j->current].tail)) {
        j->committing_seq = j->seq;
        begin_area(j, j->seq + 1);
    } else {
        j->committing_seq = j->seq - 1;
    }
    pthread_mutex_unlock(&j->lock);
    return j->committing_seq;
}

void journal_durable(struct journal *j)
{
    if (!j)
        return;
    for (int i = 0; i < AREAS; i++) {
        uint64_t seq = atomic_load(&j->header->areas[i].seq);
        if (seq && seq <= j->committing_seq)
            area_free(j, i);
    }
}

/* ---- Publishing ---- */

static void note_completion(struct journal *j, const struct journal_completion *c, uint64_t end)
{
    uint64_t next = atomic_load(&j->header->ring_next);
    struct completion_entry *e = &j->ring[next % JOURNAL_COMPLETIONS];
    atomic_store(&e->unique, 0);
    e->result = c->result;
    e->ino = c->ino;
    e->step = c->step;
    e->counts = c->counts;
    e->seq = j->seq;
    e->end = end;
    atomic_store(&e->unique, c->unique);
    atomic_store(&j->header->ring_next, next + 1);
}

/* Under the lock. Returns the bytes it took. */
static size_t append(struct journal *j, const struct gather *g)
{
    struct area_header *a = j->current == NO_AREA ? NULL : &j->header->areas[j->current];
    if (!a || atomic_load(&a->broken))
        return 0;
    uint64_t tail = atomic_load_explicit(&a->tail, memory_order_relaxed);
    if (g->records.len > AREA_BYTES - tail) {
        g_critical("journal: full; a crash before the next commit will lose what comes now");
        atomic_store(&a->broken, 1);
        return 0;
    }
    if (g->records.len)
        memcpy(area_data(j, j->current) + tail, g->records.data, g->records.len);
    tail += g->records.len;
    if (g->completed)
        note_completion(j, &g->completion, tail);
    atomic_store_explicit(&a->tail, tail, memory_order_release);
    return g->records.len;
}

void journal_publish(void *arg)
{
    struct gather *g = journal_gathered();
    if (!g)
        return;
    struct fs *fs = arg;
    struct journal *j = fs->journal;
    struct wbuf scratch = {0};
    pthread_mutex_lock(&j->lock);
    /* Now, not when it was changed: of two who change one inode, who publishes later
     * has what both did. */
    for (guint i = 0; i < g->inodes->len; i++) {
        struct gathered_inode *gi = &g_array_index(g->inodes, struct gathered_inode, i);
        journal_encode_attr(&g->records, gi->inode, gi->mask, &scratch);
    }
    size_t bytes = append(j, g);
    pthread_mutex_unlock(&j->lock);
    wbuf_free(&scratch);
    atomic_fetch_add(&j->noted_bytes, (int64_t)bytes);
    txn_note_dirty(fs->txn, (int64_t)bytes);
    for (guint i = 0; i < g->inodes->len; i++)
        inode_put(g_array_index(g->inodes, struct gathered_inode, i).inode);
    g_array_set_size(g->inodes, 0);
    wbuf_reset(&g->records);
    g->completed = false;
}

/* ---- Completions ---- */

bool journal_find_completed(struct journal *j, uint64_t unique, struct journal_completion *out)
{
    bool found = false;
    if (!j || !unique)
        return false;
    pthread_mutex_lock(&j->lock);
    uint64_t next = atomic_load(&j->header->ring_next);
    for (unsigned i = 1; i <= JOURNAL_COMPLETIONS && !found; i++) {
        const struct completion_entry *e = &j->ring[(next - i) % JOURNAL_COMPLETIONS];
        found = atomic_load(&e->unique) == unique;
        if (found)
            *out = (struct journal_completion){unique, e->result, e->ino, e->step, e->counts};
    }
    pthread_mutex_unlock(&j->lock);
    return found;
}

void journal_forget_completed(struct journal *j)
{
    if (!j)
        return;
    pthread_mutex_lock(&j->lock);
    forget_completed(j);
    pthread_mutex_unlock(&j->lock);
}
