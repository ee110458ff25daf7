// SPDX-License-Identifier: Apache-2.0
/*
 * power_check.c - is what is there after a cut what was promised?
 *
 *   - After fsync of a file, or of the directory: all that the writer had done to names
 *     before. A commit is of all metadata, so what is found are the writer's names as they
 *     were at one moment, not before the last fsync.
 *   - After fsync or fdatasync of a file its bytes and size. What was written since is
 *     there or not, block by block.
 *   - A clone has what its source had at that moment, or was written to it since.
 *   - Behind the end of a file there is nothing: one that grows shows zeros.
 *
 * Each block has the number of the write that it comes from, so any other's is noticed.
 */
#include "tests/mount/power/power.h"

#include <glib.h>

/* Bytes of a block: of a write, or zeros; the first `length` of it. */
struct state {
    uint64_t version, length;
};

/* A file, whatever its name. */
struct object {
    uint64_t created; /* index of the names that know it first */
    uint64_t size, size_min, size_max;
    GArray *blocks[POWER_BLOCKS]; /* of struct state, the last is the newest; NULL: zeros */
};

/* One writer's names at one moment. */
struct names {
    struct object *slots[POWER_SLOTS];
};

struct model {
    unsigned writer;
    GPtrArray *objects;
    GArray *names;  /* of struct names, each change one more */
    guint promised; /* index in names: nothing before */
};

/* ---- the model ---- */

static struct names *now(struct model *m)
{
    return &g_array_index(m->names, struct names, m->names->len - 1);
}

static struct object *object_new(struct model *m)
{
    struct object *o = g_new0(struct object, 1);
    o->created = m->names->len;
    g_ptr_array_add(m->objects, o);
    return o;
}

static struct state state_now(const struct object *o, uint64_t block)
{
    const GArray *b = o->blocks[block];
    return b ? g_array_index(b, struct state, b->len - 1) : (struct state){0, 0};
}

static void set_state(struct object *o, uint64_t block, struct state state)
{
    GArray **b = &o->blocks[block];
    if (state.length == 0)
        state.version = 0;
    if (!*b) {
        if (state.version == 0)
            return;
        *b = g_array_new(FALSE, TRUE, sizeof(struct state));
        g_array_set_size(*b, 1); /* zeros */
    }
    g_array_append_val(*b, state);
}

static void set_size(struct object *o, uint64_t size)
{
    for (uint64_t b = size / POWER_BLOCK; b < POWER_BLOCKS; b++) {
        struct state s = state_now(o, b);
        uint64_t left = size > b * POWER_BLOCK ? size - b * POWER_BLOCK : 0;
        if (s.length > left)
            set_state(o, b, (struct state){s.version, left});
    }
    o->size = size;
    o->size_min = MIN(o->size_min, size);
    o->size_max = MAX(o->size_max, size);
}

static void grow(struct object *o, uint64_t size)
{
    o->size = MAX(o->size, size);
    o->size_max = MAX(o->size_max, size);
}

static void copy_blocks(struct object *to, const struct object *from)
{
    for (uint64_t b = 0; b < POWER_BLOCKS; b++)
        if (from->blocks[b])
            set_state(to, b, state_now(from, b));
}

static void promise_content(struct object *o)
{
    o->size_min = o->size_max = o->size;
    for (uint64_t b = 0; b < POWER_BLOCKS; b++)
        if (o->blocks[b] && o->blocks[b]->len > 1)
            g_array_remove_range(o->blocks[b], 0, o->blocks[b]->len - 1);
}

/* It has all of it, if it is there at all. */
static struct object *object_clone(struct model *m, const struct object *from)
{
    struct object *o = object_new(m);
    copy_blocks(o, from);
    o->size = from->size;
    promise_content(o);
    return o;
}

static void change_names(struct model *m, uint32_t a, struct object *in_a, uint32_t b,
                         struct object *in_b)
{
    struct names names = *now(m);
    names.slots[a] = in_a;
    names.slots[b] = in_b;
    g_array_append_val(m->names, names);
}

static void write_blocks(struct object *o, const struct power_record *r)
{
    for (uint64_t done = 0; done < r->length; done += POWER_BLOCK)
        set_state(o, (r->offset + done) / POWER_BLOCK,
                  (struct state){r->version, MIN(r->length - done, POWER_BLOCK)});
    grow(o, r->offset + r->length);
}

static void change_content(struct model *m, const struct power_record *r)
{
    struct object *o = now(m)->slots[r->slot];
    switch (r->what) {
    case POWER_WRITE:
        write_blocks(o, r);
        break;
    case POWER_TRUNCATE:
        set_size(o, r->length);
        break;
    case POWER_PUNCH:
        for (uint64_t b = r->offset / POWER_BLOCK;
             b < MIN((r->offset + r->length) / POWER_BLOCK, (uint64_t)POWER_BLOCKS); b++)
            set_state(o, b, (struct state){0, 0});
        break;
    case POWER_COPY:
        copy_blocks(now(m)->slots[r->other], o);
        grow(now(m)->slots[r->other], o->size);
        break;
    default:
        break;
    }
}

static void apply(struct model *m, const struct power_record *r)
{
    struct object *o = now(m)->slots[r->slot];
    switch (r->what) {
    case POWER_CREATE:
        o = object_new(m);
        change_names(m, r->slot, o, r->slot, o);
        break;
    case POWER_CLONE:
        o = object_clone(m, o);
        change_names(m, r->other, o, r->other, o);
        break;
    case POWER_RENAME:
        change_names(m, r->slot, NULL, r->other, o);
        break;
    case POWER_UNLINK:
        change_names(m, r->slot, NULL, r->slot, NULL);
        break;
    default:
        change_content(m, r);
    }
}

static void keep_promise(struct model *m, const struct power_record *r)
{
    struct object *o = now(m)->slots[r->slot];
    if (r->what == POWER_FSYNC || r->what == POWER_FDATASYNC) {
        promise_content(o);
        m->promised = MAX(m->promised, (guint)o->created);
    }
    if (r->what == POWER_FSYNC || r->what == POWER_FSYNC_DIR)
        m->promised = m->names->len - 1;
}

static void follow(struct model *m, const struct power_log *log, const struct power_bounds *bounds)
{
    struct names none = {{NULL}};
    g_array_append_val(m->names, none);
    for (uint64_t i = 0; i < bounds->after[m->writer]; i++) {
        const struct power_record *r = &log->writers[m->writer].records[i];
        apply(m, r);
        if (i < bounds->before[m->writer])
            keep_promise(m, r);
    }
}

/* ---- what is there ---- */

static bool is_state(const uint8_t *found, uint64_t n, uint64_t block, struct state state)
{
    uint8_t wanted[POWER_BLOCK];
    power_fill(wanted, block, state.version, state.length);
    return memcmp(found, wanted, n) == 0;
}

/* NULL if the block is as it may be. */
static char *check_block(const struct object *o, uint64_t block, const uint8_t *found, uint64_t n)
{
    const GArray *b = block < POWER_BLOCKS ? o->blocks[block] : NULL;
    if (!b && is_state(found, n, block, (struct state){0, 0}))
        return NULL;
    for (guint i = 0; b && i < b->len; i++)
        if (is_state(found, n, block, g_array_index(b, struct state, i)))
            return NULL;
    uint64_t stamp[2] = {0, 0};
    memcpy(stamp, found, MIN(n, sizeof(stamp)));
    GString *text = g_string_new(NULL);
    g_string_printf(
        text, "block %" PRIu64 " says it is block %" PRIu64 " of write %#" PRIx64 "; it may be",
        block, stamp[1], stamp[0]);
    for (guint i = 0; b && i < b->len; i++) {
        struct state s = g_array_index(b, struct state, i);
        g_string_append_printf(text, " %#" PRIx64 "+%" PRIu64, s.version, s.length);
    }
    g_string_append(text, b ? "" : " zeros");
    return g_string_free(text, FALSE);
}

/* NULL if the file in `fd` may be that. */
static char *check_content(int fd, const struct object *o)
{
    uint64_t size = size_of(fd);
    if (size < o->size_min || size > o->size_max)
        return g_strdup_printf("size %" PRIu64 ", not %" PRIu64 " to %" PRIu64, size, o->size_min,
                               o->size_max);
    uint8_t *data = check_alloc(size);
    read_all(fd, data, size, 0);
    char *wrong = NULL;
    for (uint64_t at = 0; at < size && !wrong; at += POWER_BLOCK)
        wrong = check_block(o, at / POWER_BLOCK, data + at, MIN(size - at, POWER_BLOCK));
    free(data);
    return wrong;
}

/* A file that grows shows zeros, whatever was there once. */
static void check_tail(int fd, const char *name)
{
    enum { MORE = 3 * POWER_BLOCK + 77 };
    uint64_t size = size_of(fd);
    uint8_t tail[MORE];
    if (ftruncate(fd, (off_t)size + MORE) != 0 && errno == EBADF)
        return; /* opened for reading: a read-only mount */
    read_all(fd, tail, MORE, size);
    for (unsigned i = 0; i < MORE; i++)
        CHECK(tail[i] == 0, "%s: %u bytes behind its end, at %" PRIu64 ", there is %02x", name, i,
              size, tail[i]);
    SYS(ftruncate(fd, (off_t)size));
}

static char *check_names(const struct model *m, const struct names *names, const int *fds)
{
    for (unsigned s = 0; s < POWER_SLOTS; s++) {
        const struct object *o = names->slots[s];
        if (!o != (fds[s] < 0))
            return g_strdup_printf("w%u.%u is %s", m->writer, s, o ? "gone" : "there");
        char *wrong = o ? check_content(fds[s], o) : NULL;
        if (wrong) {
            char *text = g_strdup_printf("w%u.%u: %s", m->writer, s, wrong);
            g_free(wrong);
            return text;
        }
    }
    return NULL;
}

/* The last things that it did, or may have done. */
static void tell_history(GString *text, const struct power_log *log, const struct power_bounds *b,
                         unsigned writer)
{
    enum { LAST = 16 };
    uint64_t end = b->after[writer];
    for (uint64_t i = end > LAST ? end - LAST : 0; i < end; i++) {
        const struct power_record *r = &log->writers[writer].records[i];
        g_string_append_printf(text,
                               "\n  %" PRIu64 "%s: operation %u, %u to %u, offset %" PRIu64
                               ", length %" PRIu64 ", result %d",
                               i, i < b->before[writer] ? "" : " (not promised)", r->what, r->slot,
                               r->other, r->offset, r->length, r->result);
    }
}

static uint64_t check_writer(int dir, const struct model *m, const struct power_log *log,
                             const struct power_bounds *bounds)
{
    int fds[POWER_SLOTS];
    char name[32];
    uint64_t files = 0;
    GString *why = g_string_new(NULL);
    bool good = false;
    for (unsigned s = 0; s < POWER_SLOTS; s++) {
        power_name(name, m->writer, s);
        fds[s] = openat(dir, name, O_RDWR | O_CLOEXEC);
        CHECK(fds[s] >= 0 || errno == ENOENT, "%s: %s", name, strerror(errno));
        files += fds[s] >= 0;
    }
    for (guint i = m->promised; i < m->names->len && !good; i++) {
        char *wrong = check_names(m, &g_array_index(m->names, struct names, i), fds);
        good = !wrong;
        g_string_append_printf(why, "\n  as of change %u of names: %s", i, wrong ? wrong : "good");
        g_free(wrong);
    }
    if (!good)
        tell_history(why, log, bounds, m->writer);
    CHECK(good, "writer %u: not as promised:%s", m->writer, why->str);
    g_string_free(why, TRUE);
    for (unsigned s = 0; s < POWER_SLOTS; s++) {
        if (fds[s] < 0)
            continue;
        power_name(name, m->writer, s);
        check_tail(fds[s], name);
        close(fds[s]);
    }
    return files;
}

static void object_free(void *arg)
{
    struct object *o = arg;
    for (unsigned i = 0; i < POWER_BLOCKS; i++)
        if (o->blocks[i])
            g_array_free(o->blocks[i], TRUE);
    g_free(o);
}

uint64_t power_check(const char *path, const struct power_log *log,
                     const struct power_bounds *bounds)
{
    uint64_t files = 0;
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(dir >= 0, "%s: %s", path, strerror(errno));
    for (unsigned w = 0; w < POWER_WRITERS; w++) {
        struct model m = {.writer = w};
        m.objects = g_ptr_array_new_with_free_func(object_free);
        m.names = g_array_new(FALSE, TRUE, sizeof(struct names));
        follow(&m, log, bounds);
        files += check_writer(dir, &m, log, bounds);
        g_ptr_array_free(m.objects, TRUE);
        g_array_free(m.names, TRUE);
    }
    close(dir);
    return files;
}
