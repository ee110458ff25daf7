// SPDX-License-Identifier: Apache-2.0
/*
 * opens.c - see opens.h.
 *
 * One mutex guards the table; it is held for a few instructions. Deciding on a
 * backing, and giving one up, may read metadata and call the kernel: then the entry
 * is marked `deciding`, and who needs the same inode waits until that is over.
 */
#include "cowfs/opens.h"

#include <errno.h>

struct here {
    unsigned readers, writers, passthrough;
    bool pinned;    /* pin is valid; passthrough == 0: LEFT */
    bool inherited; /* of an earlier daemon: the kernel may know it even if we do not know so */
    struct opens_pin pin;
    int id; /* valid if passthrough > 0 */
};

struct entry {
    uint64_t ino;
    bool deciding;
    struct here mounts[INODE_MOUNTS];
};

struct opens {
    struct opens_backing backing;
    unsigned counted;     /* mounts whose readers are counted */
    unsigned passthrough; /* of these, those that can have it */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a decision was made; a writer, a last passthrough handle went */
    GHashTable *entries;    /* &entry->ino -> entry */
    unsigned left;          /* of inodes and mounts: pinned without a handle */
};

struct opens *opens_new(const struct opens_backing *backing, unsigned passthrough)
{
    struct opens *o = g_new0(struct opens, 1);
    o->backing = *backing;
    o->counted = o->passthrough = passthrough;
    pthread_mutex_init(&o->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&o->changed, &clock);
    pthread_condattr_destroy(&clock);
    o->entries = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
    return o;
}

void opens_free(struct opens *o)
{
    if (!o)
        return;
    g_assert(g_hash_table_size(o->entries) == 0);
    g_hash_table_destroy(o->entries);
    pthread_mutex_destroy(&o->lock);
    pthread_cond_destroy(&o->changed);
    g_free(o);
}

void opens_no_passthrough(struct opens *o, unsigned mount)
{
    pthread_mutex_lock(&o->lock);
    o->passthrough &= ~(1u << mount);
    pthread_mutex_unlock(&o->lock);
}

/* ---- entries, under the lock ---- */

static struct entry *find(struct opens *o, uint64_t ino)
{
    return g_hash_table_lookup(o->entries, &ino);
}

/* The entry of the inode, made if need be, and nobody is deciding about it. */
static struct entry *enter(struct opens *o, uint64_t ino)
{
    struct entry *e;
    while ((e = find(o, ino)) && e->deciding)
        pthread_cond_wait(&o->changed, &o->lock);
    if (!e) {
        e = g_new0(struct entry, 1);
        e->ino = ino;
        g_hash_table_insert(o->entries, &e->ino, e);
    }
    return e;
}

static void drop_if_empty(struct opens *o, struct entry *e)
{
    bool used = e->deciding;
    for (unsigned i = 0; i < INODE_MOUNTS; i++) {
        const struct here *h = &e->mounts[i];
        used |= h->readers || h->writers || h->passthrough || h->pinned;
    }
    if (!used)
        g_hash_table_remove(o->entries, &e->ino);
}

static unsigned count_writers(const struct entry *e)
{
    unsigned n = 0;
    for (unsigned i = 0; i < INODE_MOUNTS; i++)
        n += e->mounts[i].writers;
    return n;
}

static unsigned count_passthrough(const struct entry *e)
{
    unsigned n = 0;
    for (unsigned i = 0; i < INODE_MOUNTS; i++)
        n += e->mounts[i].passthrough;
    return n;
}

static void begin_deciding(struct opens *o, struct entry *e)
{
    e->deciding = true;
    pthread_mutex_unlock(&o->lock);
}

static void end_deciding(struct opens *o, struct entry *e)
{
    pthread_mutex_lock(&o->lock);
    e->deciding = false;
    pthread_cond_broadcast(&o->changed);
}

/* The pin of a mount, taken out of the entry: for whoever gives it back after he has
 * dropped the lock. */
static struct here take_pin(struct opens *o, struct here *h)
{
    struct here taken = *h;
    if (h->pinned && !h->passthrough)
        o->left--;
    h->pinned = h->inherited = false;
    return taken;
}

/* ---- what an earlier daemon has left ---- */

void opens_restore_handle(struct opens *o, unsigned mount, uint64_t ino, enum open_kind kind)
{
    struct here *h = &enter(o, ino)->mounts[mount];
    h->readers += kind == OPEN_READER;
    h->writers += kind == OPEN_WRITER;
    h->passthrough += kind == OPEN_PASSTHROUGH;
}

void opens_restore_pin(struct opens *o, unsigned mount, uint64_t ino, const struct opens_pin *pin)
{
    struct here *h = &enter(o, ino)->mounts[mount];
    h->pinned = h->inherited = true;
    h->pin = *pin;
}

unsigned opens_restored(struct opens *o)
{
    GHashTableIter it;
    gpointer value;
    g_hash_table_iter_init(&it, o->entries);
    while (g_hash_table_iter_next(&it, NULL, &value)) {
        struct entry *e = value;
        for (unsigned i = 0; i < INODE_MOUNTS; i++) {
            struct here *h = &e->mounts[i];
            if (!h->pinned) /* of a mount that ended while the book was written */
                h->passthrough = 0;
            o->left += h->pinned && !h->passthrough;
            for (unsigned n = 0; n < h->passthrough; n++)
                h->id = o->backing.open(o->backing.arg, i, h->pin.home);
        }
    }
    return o->left;
}

/* ---- opening ---- */

/* Another handle past the daemon of an inode that is pinned. */
static bool open_past(struct opens *o, unsigned mount, struct here *h)
{
    int id = o->backing.open(o->backing.arg, mount, h->pin.home);
    if (id <= 0)
        return false;
    o->left -= h->passthrough == 0;
    h->passthrough++;
    h->id = id;
    return true;
}

enum open_kind opens_read(struct opens *o, unsigned mount, uint64_t ino, int *id)
{
    unsigned bit = 1u << mount;
    enum open_kind kind = OPEN_READER;
    *id = 0;
    if (!(o->counted & bit))
        return OPEN_UNCOUNTED;
    pthread_mutex_lock(&o->lock);
    struct entry *e = enter(o, ino);
    struct here *h = &e->mounts[mount];
    bool fresh = false;
    /* A reader in the cache of the kernel makes it one for all; and so does a writer in
     * another mount, of whom this mount's kernel knows nothing. */
    if (h->readers == 0 && count_writers(e) == 0) {
        if (!h->pinned && o->passthrough & bit) {
            struct opens_pin pin = {0};
            begin_deciding(o, e);
            int error = o->backing.pin(o->backing.arg, mount, ino, &pin);
            end_deciding(o, e);
            fresh = h->pinned = error == 0;
            h->pin = pin;
            o->left += h->pinned;
        }
        if (h->pinned && open_past(o, mount, h)) {
            kind = OPEN_PASSTHROUGH;
        } else if (fresh) {
            begin_deciding(o, e);
            o->backing.unpin(o->backing.arg, mount, &h->pin);
            end_deciding(o, e);
            take_pin(o, h);
        }
    }
    *id = kind == OPEN_PASSTHROUGH ? h->id : 0;
    h->readers += kind == OPEN_READER;
    pthread_mutex_unlock(&o->lock);
    return kind;
}

/* An inode that is LEFT. Called without the lock, while deciding. */
static bool may_be_mapped(const struct opens *o, const struct entry *e, unsigned mount)
{
    const struct here *h = &e->mounts[mount];
    return (h->inherited || o->backing.is_known(o->backing.arg, mount, e->ino)) &&
           o->backing.in_use(o->backing.arg, h->pin.home);
}

/* What was read past the daemon may still be mapped: settles that, for a writer who is
 * counted already. Called with the lock, which it drops for a while. */
static int settle_left(struct opens *o, struct entry *e)
{
    int error = 0;
    for (unsigned i = 0; i < INODE_MOUNTS && !error; i++) {
        struct here *h = &e->mounts[i];
        if (!h->pinned)
            continue;
        begin_deciding(o, e);
        if (may_be_mapped(o, e, i))
            error = o->backing.keep(o->backing.arg, i, e->ino, &h->pin);
        else
            o->backing.unpin(o->backing.arg, i, &h->pin);
        end_deciding(o, e);
        if (!error)
            take_pin(o, h);
    }
    return error;
}

static struct timespec in_ms(unsigned ms)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_sec += ms / 1000;
    ts.tv_nsec += (long)(ms % 1000) * 1000000;
    if (ts.tv_nsec >= 1000000000) {
        ts.tv_sec++;
        ts.tv_nsec -= 1000000000;
    }
    return ts;
}

int opens_write(struct opens *o, unsigned mount, uint64_t ino, unsigned wait_ms)
{
    struct timespec until = in_ms(wait_ms);
    bool late = wait_ms == 0;
    int error = 0;
    pthread_mutex_lock(&o->lock);
    struct entry *e = enter(o, ino);
    while (count_passthrough(e) > 0 && !late) {
        late = pthread_cond_timedwait(&o->changed, &o->lock, &until) == ETIMEDOUT;
        e = enter(o, ino);
    }
    if (count_passthrough(e) > 0) {
        error = -ETXTBSY;
    } else {
        e->mounts[mount].writers++;
        error = settle_left(o, e);
        if (error)
            e->mounts[mount].writers--;
    }
    drop_if_empty(o, e);
    pthread_mutex_unlock(&o->lock);
    return error;
}

void opens_wait_for_writers(struct opens *o, uint64_t ino, unsigned wait_ms)
{
    struct timespec until = in_ms(wait_ms);
    const struct entry *e;
    bool late = wait_ms == 0;
    pthread_mutex_lock(&o->lock);
    while (!late && (e = find(o, ino)) && count_writers(e) > 0)
        late = pthread_cond_timedwait(&o->changed, &o->lock, &until) == ETIMEDOUT;
    pthread_mutex_unlock(&o->lock);
}

/* ---- closing ---- */

bool opens_close(struct opens *o, unsigned mount, uint64_t ino, enum open_kind kind)
{
    bool left = false;
    pthread_mutex_lock(&o->lock);
    struct entry *e = find(o, ino);
    if (e) {
        struct here *h = &e->mounts[mount];
        if (kind == OPEN_READER && h->readers) {
            h->readers--;
        } else if (kind == OPEN_WRITER && h->writers) {
            h->writers--;
            pthread_cond_broadcast(&o->changed);
        } else if (kind == OPEN_PASSTHROUGH && h->passthrough) {
            o->backing.close(o->backing.arg, mount, h->pin.home);
            left = --h->passthrough == 0;
            if (left) {
                o->left++;
                pthread_cond_broadcast(&o->changed);
            }
        }
        drop_if_empty(o, e);
    }
    pthread_mutex_unlock(&o->lock);
    return left;
}

void opens_forgotten(struct opens *o, unsigned mount, uint64_t ino)
{
    pthread_mutex_lock(&o->lock);
    struct entry *e = find(o, ino);
    /* It may have been looked up again, and opened, since: a handle needs a look-up. */
    if (e && !e->deciding && e->mounts[mount].pinned && !e->mounts[mount].passthrough &&
        !o->backing.is_known(o->backing.arg, mount, ino)) {
        /* Who looks it up again, and opens or writes it, waits until the book has no pin either. */
        begin_deciding(o, e);
        o->backing.unpin(o->backing.arg, mount, &e->mounts[mount].pin);
        end_deciding(o, e);
        take_pin(o, &e->mounts[mount]);
        drop_if_empty(o, e);
    }
    pthread_mutex_unlock(&o->lock);
}

void opens_end_mount(struct opens *o, unsigned mount)
{
    GArray *inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    GArray *pins = g_array_new(FALSE, FALSE, sizeof(struct opens_pin));
    GHashTableIter it;
    gpointer key;
    pthread_mutex_lock(&o->lock);
    g_hash_table_iter_init(&it, o->entries);
    while (g_hash_table_iter_next(&it, &key, NULL))
        g_array_append_vals(inos, key, 1);
    for (guint i = 0; i < inos->len; i++) {
        struct entry *e = enter(o, g_array_index(inos, uint64_t, i));
        struct here *h = &e->mounts[mount];
        for (unsigned n = 0; n < h->passthrough; n++)
            o->backing.close(o->backing.arg, mount, h->pin.home);
        if (h->pinned) {
            struct here taken = take_pin(o, h);
            g_array_append_val(pins, taken.pin);
        }
        h->readers = h->writers = h->passthrough = 0;
        drop_if_empty(o, e);
    }
    pthread_cond_broadcast(&o->changed);
    pthread_mutex_unlock(&o->lock);
    g_array_free(inos, TRUE);
    for (guint i = 0; i < pins->len; i++)
        o->backing.unpin(o->backing.arg, mount, &g_array_index(pins, struct opens_pin, i));
    g_array_free(pins, TRUE);
}

unsigned opens_tidy(struct opens *o)
{
    struct candidate {
        uint64_t ino;
        unsigned mount;
    };
    GArray *candidates = g_array_new(FALSE, FALSE, sizeof(struct candidate));
    GHashTableIter it;
    gpointer value;
    pthread_mutex_lock(&o->lock);
    g_hash_table_iter_init(&it, o->entries);
    while (o->left && g_hash_table_iter_next(&it, NULL, &value)) {
        const struct entry *e = value;
        for (unsigned i = 0; i < INODE_MOUNTS; i++) {
            struct candidate c = {e->ino, i};
            if (e->mounts[i].pinned && !e->mounts[i].passthrough)
                g_array_append_val(candidates, c);
        }
    }
    for (guint i = 0; i < candidates->len; i++) {
        struct candidate c = g_array_index(candidates, struct candidate, i);
        struct entry *e = find(o, c.ino);
        struct here *h = e ? &e->mounts[c.mount] : NULL;
        if (!e || e->deciding || !h->pinned || h->passthrough)
            continue;
        begin_deciding(o, e);
        bool free = !may_be_mapped(o, e, c.mount);
        if (free)
            o->backing.unpin(o->backing.arg, c.mount, &h->pin);
        end_deciding(o, e);
        if (free)
            take_pin(o, h);
        drop_if_empty(o, e);
    }
    unsigned left = o->left;
    pthread_mutex_unlock(&o->lock);
    g_array_free(candidates, TRUE);
    return left;
}

struct opens_counts opens_look(struct opens *o, unsigned mount, uint64_t ino)
{
    struct opens_counts counts = {0};
    pthread_mutex_lock(&o->lock);
    const struct entry *e = find(o, ino);
    if (e) {
        counts.readers = e->mounts[mount].readers;
        counts.passthrough = e->mounts[mount].passthrough;
        counts.writers = count_writers(e);
        counts.id = e->mounts[mount].id;
    }
    pthread_mutex_unlock(&o->lock);
    return counts;
}
