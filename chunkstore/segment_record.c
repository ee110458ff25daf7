// SPDX-License-Identifier: Apache-2.0
/*
 * segment_record.c - what is durable about segments: their records in the
 * metadata database, and how records and files are brought together at open.
 *
 * The encoding is in docs/FORMAT.md, section "Segments".
 */
#include "chunkstore/segment_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Codec ---- */

static void record_put(struct segments *s, uint32_t id, const struct segment_record *record)
{
    uint8_t key[KEY_MAX];
    size_t key_len = key_u64(key, KEY_SEGMENT, id);
    struct wbuf value = {0};
    wbuf_put_varint(&value, SEGMENT_RECORD_FORMAT);
    wbuf_put_varint(&value, record->flags);
    wbuf_put_varint(&value, record->live);
    wbuf_put_varint(&value, record->cursor);
    if (record->flags & SEGMENT_HOME)
        wbuf_put_varint(&value, record->home_bytes);
    metadb_put(s->db, key, key_len, value.data, value.len);
    wbuf_free(&value);
}

static bool record_decode(const uint8_t *value, size_t len, struct segment_record *record)
{
    struct rbuf r = rbuf_of(value, len);
    uint64_t format = rbuf_get_varint(&r);
    uint64_t flags = rbuf_get_varint(&r);
    uint64_t live = rbuf_get_varint(&r);
    uint64_t cursor = rbuf_get_varint(&r);
    uint64_t home_bytes = flags & SEGMENT_HOME ? rbuf_get_varint(&r) : 0;
    uint64_t slots = flags & SEGMENT_HOME ? SEGMENT_HOME_SLOTS : SEGMENT_SLOTS;
    if (r.bad || rbuf_left(&r) != 0 || format != SEGMENT_RECORD_FORMAT ||
        (flags & ~(uint64_t)SEGMENT_FLAGS_KNOWN) || cursor > slots || cursor % SLOT_GROUP != 0 ||
        live > cursor || (!(flags & SEGMENT_HOME) && flags & SEGMENT_HOME_FLAGS))
        return false;
    *record = (struct segment_record){
        .flags = (uint32_t)flags,
        .live = (uint32_t)live,
        .cursor = (uint32_t)cursor,
        .home_bytes = home_bytes,
    };
    return true;
}

/* Record 0: no segment, but the lowest id that was never given to one. */
static void next_id_put(struct segments *s)
{
    uint8_t key[KEY_MAX];
    size_t key_len = key_u64(key, KEY_SEGMENT, 0);
    struct wbuf value = {0};
    wbuf_put_varint(&value, SEGMENT_RECORD_FORMAT);
    wbuf_put_varint(&value, atomic_load(&s->next_id));
    metadb_put(s->db, key, key_len, value.data, value.len);
    wbuf_free(&value);
}

static bool next_id_decode(const uint8_t *value, size_t len, uint32_t *next_id)
{
    struct rbuf r = rbuf_of(value, len);
    uint64_t format = rbuf_get_varint(&r);
    uint64_t id = rbuf_get_varint(&r);
    if (r.bad || rbuf_left(&r) != 0 || format != SEGMENT_RECORD_FORMAT || id == 0 ||
        id > UINT32_MAX)
        return false;
    *next_id = (uint32_t)id;
    return true;
}

/* ---- Open ---- */

static void raise_next_id(struct segments *s, uint64_t next_id)
{
    if (next_id > atomic_load(&s->next_id))
        atomic_store(&s->next_id, (uint32_t)MIN(next_id, UINT32_MAX));
}

static bool load_one(struct segments *s, const uint8_t *key, size_t key_len, const uint8_t *value,
                     size_t value_len)
{
    if (key_len != 9)
        return false;
    uint64_t id = get_be64(key + 1);
    if (id == 0) {
        uint32_t next_id;
        if (!next_id_decode(value, value_len, &next_id))
            return false;
        raise_next_id(s, next_id);
        return true;
    }
    struct segment_record record;
    if (id > UINT32_MAX || !record_decode(value, value_len, &record))
        return false;
    struct segment *seg = segment_new((uint32_t)id);
    atomic_store(&seg->live, record.live);
    atomic_store(&seg->cursor, record.cursor);
    atomic_store(&seg->unowned, (record.flags & SEGMENT_UNOWNED) != 0);
    atomic_store(&seg->flags, record.flags & SEGMENT_HOME_FLAGS);
    atomic_store(&seg->home_bytes, record.home_bytes);
    seg->live_at_open = record.live;
    seg->cursor_at_open = record.cursor;
    seg->written = true;
    seg->written_record = record;
    segment_insert(s, seg);
    raise_next_id(s, id + 1);
    return true;
}

int segment_records_load(struct segments *s, struct errmsg *err)
{
    const uint8_t lower = KEY_SEGMENT, upper = KEY_SEGMENT + 1;
    struct metadb_iter *it = metadb_iter_new(s->db, &lower, 1, &upper, 1);
    int error = 0;
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, value_len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *value = metadb_iter_value(it, &value_len);
        if (!load_one(s, key, key_len, value, value_len)) {
            error = errmsg_set(err, -EUCLEAN,
                               "damaged record of segment %08" G_GINT64_MODIFIER
                               "x in the metadata of '%s'",
                               key_len == 9 ? get_be64(key + 1) : 0, s->path);
            break;
        }
    }
    if (!error) {
        error = metadb_iter_status(it);
        if (error)
            errmsg_set(err, error, "cannot read the segment records of '%s': %s", s->path,
                       g_strerror(-error));
    }
    metadb_iter_free(it);
    return error;
}

int segment_record_know(struct segments *s, const struct segment_known *known, struct errmsg *err)
{
    struct segment *seg = segment_find(s, known->id);
    if (!seg) {
        char name[SEGMENT_NAME_BYTES];
        segment_name(known->id, name);
        if (faccessat(s->dir_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
            return errmsg_set(err, -EUCLEAN,
                              "the segment file '%s/%s', which the journal knows, is missing",
                              s->path, name);
        seg = segment_new(known->id);
        if (known->home) {
            atomic_store(&seg->flags, SEGMENT_HOME);
            atomic_store(&seg->held_groups, 1);
        }
        segment_insert(s, seg);
        raise_next_id(s, (uint64_t)known->id + 1);
        atomic_store(&s->next_id_changed, true);
        atomic_store(&s->directory_unsynced, true);
    }
    if (known->slots > segment_slots(seg))
        return errmsg_set(err, -EUCLEAN, "the journal uses slots that segment %08x has not",
                          known->id);
    uint32_t cursor = (uint32_t)round_up_u64(known->slots, SLOT_GROUP);
    if (cursor > atomic_load(&seg->cursor))
        atomic_store(&seg->cursor, cursor);
    seg->cursor_at_open = atomic_load(&seg->cursor);
    /* Slots below may have been written and never mapped. What lies behind is cut off: a home that
     * was begun and never filled is not looked through, and would be flagged for good. */
    if (seg->cursor_at_open > 0)
        atomic_store(&seg->unowned, true);
    segment_mark_changed(s, seg);
    segment_mark_unsynced(s, seg);
    return 0;
}

/* True if `name` is what segment_name makes. */
static bool parse_name(const char *name, uint32_t *id)
{
    char same[SEGMENT_NAME_BYTES];
    if (strlen(name) != SEGMENT_NAME_BYTES - 1)
        return false;
    *id = (uint32_t)g_ascii_strtoull(name, NULL, 16);
    segment_name(*id, same);
    return strcmp(name, same) == 0 && *id != 0;
}

/* Files made after the last commit, or whose record is deleted already. */
static int unlink_unknown(struct segments *s, struct errmsg *err)
{
    int fd = openat(s->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    int error = 0;
    if (!dir) {
        error = -errno;
        if (fd >= 0)
            close(fd);
    }
    while (dir && !error) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        uint32_t id;
        if (!entry) {
            error = -errno;
            break;
        }
        if (!parse_name(entry->d_name, &id) || segment_find(s, id))
            continue;
        if (unlinkat(s->dir_fd, entry->d_name, 0) == 0) {
            g_message("removed '%s/%s', a segment without a record", s->path, entry->d_name);
        } else {
            g_warning("cannot remove '%s/%s', a segment without a record: %s", s->path,
                      entry->d_name, g_strerror(errno));
            raise_next_id(s, (uint64_t)id + 1);
        }
    }
    if (dir)
        closedir(dir);
    if (error)
        errmsg_set(err, error, "cannot list '%s': %s", s->path, g_strerror(-error));
    return error;
}

/* The file of a home may be mapped past the daemon, up to its size, while daemons come and go:
 * that stays, or its users would get SIGBUS. */
static int cut(const struct segment *seg, int fd, off_t end, off_t size_bytes)
{
    if (atomic_load(&seg->flags) & SEGMENT_HOME &&
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end, size_bytes - end) == 0)
        return 0;
    return ftruncate(fd, end);
}

/*
 * Cuts off what was written to slots above the durable cursor. This has to
 * succeed: those slots will be handed out again, and their holders rely on
 * fresh slots reading as zeros (else one file would show another's bytes).
 */
static int truncate_to_cursor(struct segments *s, struct segment *seg, struct errmsg *err)
{
    char name[SEGMENT_NAME_BYTES];
    segment_name(seg->id, name);
    off_t end = (off_t)atomic_load(&seg->cursor) * s->chunk_bytes;
    struct stat st;
    int error = fstatat(s->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
    if (error == -ENOENT) {
        if (atomic_load(&seg->live) > 0) {
            g_warning("segment file '%s/%s' is missing; it had %u chunks", s->path, name,
                      atomic_load(&seg->live));
            atomic_store(&seg->warned, true);
        }
        return 0;
    }
    if (!error && st.st_size > end && !s->read_only) {
        int fd = openat(s->dir_fd, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || cut(seg, fd, end, st.st_size) < 0)
            error = -errno;
        if (fd >= 0)
            close(fd);
    }
    if (error)
        errmsg_set(err, error, "cannot truncate the segment file '%s/%s': %s", s->path, name,
                   g_strerror(-error));
    return error;
}

int segment_files_tidy(struct segments *s, struct errmsg *err)
{
    int error = s->read_only ? 0 : unlink_unknown(s, err);
    uint64_t id = 0;
    for (struct segment *seg; !error && (seg = segment_next(s, &id));)
        error = truncate_to_cursor(s, seg, err);
    return error;
}

/* ---- Commit ---- */

/* As in segment_mark_unsynced: what changed is stored first, then marked; the
 * flip unmarks first, then looks. */
void segment_mark_changed(struct segments *s, struct segment *seg)
{
    if (atomic_exchange(&seg->changed, true))
        return;
    pthread_mutex_lock(&s->changed_lock);
    g_ptr_array_add(s->changed_list, seg);
    pthread_mutex_unlock(&s->changed_lock);
}

static bool is_being_filled(struct segments *s, struct segment *seg)
{
    return atomic_load(&s->current) == seg && atomic_load(&seg->cursor) < SEGMENT_SLOTS;
}

bool segment_is_empty(struct segments *s, struct segment *seg)
{
    /* In this order: once it is not being filled, held_groups only falls (a home
     * segment begins to be filled before it ceases to be held, so it is looked
     * at again); once no group is held, nothing becomes live; each dead run
     * counts as garbage before it stops to count as live. */
    return atomic_load(&seg->state) == SEGMENT_LIVE && !is_being_filled(s, seg) &&
           atomic_load(&seg->held_groups) == 0 && !(atomic_load(&seg->flags) & SEGMENT_FILLING) &&
           atomic_load(&seg->pins) == 0 && atomic_load(&seg->live) == 0 &&
           atomic_load(&seg->garbage) == 0;
}

/* Nobody may pin it in between. */
static bool begin_deleting(struct segments *s, struct segment *seg)
{
    pthread_mutex_lock(&s->home_lock);
    bool empty = segment_is_empty(s, seg);
    if (empty)
        atomic_store(&seg->state, SEGMENT_DELETING);
    pthread_mutex_unlock(&s->home_lock);
    return empty;
}

static void flip_one(struct segments *s, struct segment *seg)
{
    if (atomic_load(&seg->state) != SEGMENT_LIVE)
        return;
    if (begin_deleting(s, seg)) {
        uint8_t key[KEY_MAX];
        size_t key_len = key_u64(key, KEY_SEGMENT, seg->id);
        metadb_delete(s->db, key, key_len);
        g_ptr_array_add(s->deleting, seg);
        atomic_fetch_add(&s->pending_unlinks, 1);
        return;
    }
    /* All garbage is committing now: what is dead in this commit's state. */
    bool unowned = atomic_load(&seg->unowned) || is_being_filled(s, seg) ||
                   atomic_load(&seg->held_groups) > 0 || atomic_load(&seg->garbage) > 0;
    struct segment_record record = {
        .flags = (unowned ? SEGMENT_UNOWNED : 0) | atomic_load(&seg->flags),
        .live = atomic_load(&seg->live),
        .cursor = atomic_load(&seg->cursor),
        .home_bytes = atomic_load(&seg->home_bytes),
    };
    if (seg->written && memcmp(&record, &seg->written_record, sizeof(record)) == 0)
        return;
    record_put(s, seg->id, &record);
    seg->written = true;
    seg->written_record = record;
}

void segments_flip(struct segments *s)
{
    if (s->read_only)
        return;
    /* One commit at a time, and it is repeated until it is durable. */
    g_assert(s->committing->len == 0 && s->deleting->len == 0);
    for (unsigned i = 0; i < SHARDS; i++) {
        struct dead_shard *shard = &s->dead[i];
        pthread_mutex_lock(&shard->lock);
        if (shard->runs->len > 0) {
            g_array_append_vals(s->committing, shard->runs->data, shard->runs->len);
            g_array_set_size(shard->runs, 0);
        }
        pthread_mutex_unlock(&shard->lock);
    }

    pthread_mutex_lock(&s->changed_lock);
    GPtrArray *list = s->changed_list;
    s->changed_list = g_ptr_array_new();
    pthread_mutex_unlock(&s->changed_lock);
    for (unsigned i = 0; i < list->len; i++) {
        struct segment *seg = g_ptr_array_index(list, i);
        atomic_exchange(&seg->changed, false);
        flip_one(s, seg);
    }
    g_ptr_array_unref(list);

    if (atomic_exchange(&s->next_id_changed, false))
        next_id_put(s);
}
