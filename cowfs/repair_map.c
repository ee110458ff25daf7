// SPDX-License-Identifier: Apache-2.0
/*
 * repair_map.c - block maps: what they refer to exists, and what exists is
 * referred to.
 *
 * An entry that leads nowhere (its node is damaged, missing, or of another
 * level; its chunk has no bytes) cannot be mended, and may not become a hole:
 * the file would read as zeros. It is made to lead to the *void*: a segment
 * whose file is one large hole, and whose chunks are sealed and marked as
 * damaged, so that reading them is an error and writing over them heals. Nodes
 * lead there through one node of each level, shared by all that need it. Its
 * entries are flagged as reserved, since they may reach behind the end of a file.
 */
#include "cowfs/repair_internal.h"

#include "cowfs/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

struct node_info {
    uint64_t id;
    uint64_t refs;
    unsigned level;
    uint64_t written; /* one more than its last entry that is not reserved, in chunks + 1; 0:
                         not looked at yet */
};

struct segment_file {
    gint id;
    uint64_t slots;
};

struct mapper {
    struct repair *r;
    struct fsck *f;
    int fd; /* of the segment that was looked into last, -1: none */
    uint32_t fd_id;
    GHashTable *nodes; /* &id -> struct node_info */
    GHashTable *files; /* &id -> struct segment_file */
};

static struct node_info *find_node(struct mapper *m, uint64_t id)
{
    return g_hash_table_lookup(m->nodes, &id);
}

static struct node_info *add_node(struct mapper *m, uint64_t id, unsigned level)
{
    struct node_info *n = g_new0(struct node_info, 1);
    n->id = id;
    n->level = level;
    g_hash_table_insert(m->nodes, &n->id, n);
    return n;
}

static void put_node(struct repair *r, uint64_t id, unsigned level, uint64_t *entries)
{
    struct wbuf record = {0};
    node_encode_entries(level, entries, &record);
    repair_put(r, KEY_NODE, id, &record);
    wbuf_free(&record);
}

/* ---- the void ---- */

static char *segment_path(const struct repair *r, uint64_t id)
{
    return g_strdup_printf("%s/segments/%08" PRIx64, r->path, id);
}

/* The lowest number that no segment, with or without record, has. */
static int find_next_segment(struct mapper *m, uint32_t *out)
{
    struct cursor c;
    uint64_t next = 1;
    cursor_open(&c, m->f, KEY_SEGMENT);
    while (cursor_next(&c)) {
        next = max_u64(next, c.a + 1);
        if (c.a == 0) {
            struct rbuf b = rbuf_of(c.value, c.value_len);
            rbuf_get_varint(&b);
            uint64_t id = rbuf_get_varint(&b);
            if (!b.bad && id <= UINT32_MAX)
                next = max_u64(next, id);
        }
    }
    int error = cursor_close(&c);
    g_autofree char *path = g_build_filename(m->r->path, "segments", NULL);
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;
    while (dir && (name = g_dir_read_name(dir))) {
        uint64_t id;
        if (g_ascii_string_to_unsigned(name, 16, 1, UINT32_MAX, &id, NULL))
            next = max_u64(next, id + 1);
    }
    if (dir)
        g_dir_close(dir);
    if (!error && next >= UINT32_MAX)
        error = -ENOSPC;
    *out = (uint32_t)next;
    return error;
}

/* A file that is one hole. Nobody knows it before the commit: a crash leaves a
 * file that the next opening removes. */
static int make_void_file(struct repair *r, uint32_t id)
{
    g_autofree char *path = segment_path(r, id);
    g_autofree char *directory = g_path_get_dirname(path);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int error = ftruncate(fd, (off_t)NODE_ENTRIES * r->sb.chunk_bytes) || fsync(fd) ? -errno : 0;
    close(fd);
    fd = error ? -1 : open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        error = fsync(fd) ? -errno : 0;
        close(fd);
    }
    return error;
}

static int void_segment(struct mapper *m)
{
    struct repair *r = m->r;
    uint32_t id;
    if (r->void_segment)
        return 0;
    int error = find_next_segment(m, &id);
    if (!error && !r->options->dry_run)
        error = make_void_file(r, id);
    if (error)
        return error;
    repair_did(r, "segment %08" PRIx32 " made: without bytes, for what cannot be read", id);
    r->void_segment = id;
    r->next_segment = id + 1;
    struct wbuf record = {0};
    wbuf_put_varint(&record, 1); /* format */
    wbuf_put_varint(&record, 0); /* flags */
    wbuf_put_varint(&record, 0); /* live: counted later */
    wbuf_put_varint(&record, SLOT_GROUP);
    repair_put(r, KEY_SEGMENT, id, &record);
    wbuf_reset(&record);
    wbuf_put_varint(&record, 1);
    wbuf_put_varint(&record, r->next_segment);
    repair_put(r, KEY_SEGMENT, 0, &record);
    wbuf_free(&record);
    return 0;
}

static uint64_t void_entry(const struct repair *r, unsigned i)
{
    return ((uint64_t)r->void_segment << 32 | i % SLOT_GROUP) | ENTRY_RESERVED;
}

/* A node of that level of which nothing can be read. */
static int void_node(struct mapper *m, unsigned level, uint64_t *id)
{
    struct repair *r = m->r;
    uint64_t entries[NODE_ENTRIES], below = 0;
    int error = void_segment(m);
    if (!error && level > 1)
        error = void_node(m, level - 1, &below);
    if (error)
        return error;
    if (!r->void_node[level]) {
        for (unsigned i = 0; i < NODE_ENTRIES; i++)
            entries[i] = level > 1 ? below : void_entry(r, i);
        r->void_node[level] = r->next_node++;
        put_node(r, r->void_node[level], level, entries);
    }
    *id = r->void_node[level];
    if (!find_node(m, *id))
        add_node(m, *id, level)->written = 1; /* nothing */
    return 0;
}

/* ---- nodes ---- */

/* Chunks that the file of a segment has; 0 without a file. */
static uint64_t slots_of(struct mapper *m, uint32_t id)
{
    gint key = (gint)id;
    struct segment_file *file = g_hash_table_lookup(m->files, &key);
    if (!file) {
        g_autofree char *path = segment_path(m->r, id);
        struct stat st;
        file = g_new0(struct segment_file, 1);
        file->id = key;
        if (id == m->r->void_segment && id)
            file->slots = SLOT_GROUP;
        else if (lstat(path, &st) == 0 && S_ISREG(st.st_mode))
            file->slots = fsck_segment_file_slots(m->f, id);
        g_hash_table_insert(m->files, &file->id, file);
    }
    return file->slots;
}

static bool chunk_exists(struct mapper *m, chunk_t chunk)
{
    uint32_t id = (uint32_t)(chunk >> 32), slot = (uint32_t)chunk;
    return id && slot < SEGMENT_HOME_SLOTS && slot < slots_of(m, id);
}

/*
 * Where durable commits are lost, a chunk that is mapped may have been freed and
 * punched by one of them. Chunks of zeros are not stored unless reserved, so a
 * chunk that is a hole below was.
 */
static bool was_punched(struct mapper *m, uint64_t entry)
{
    uint32_t id = (uint32_t)(ENTRY_CHUNK(entry) >> 32);
    off_t offset = (off_t)((uint32_t)entry * (uint64_t)m->r->sb.chunk_bytes);
    if (!m->r->commits_lost || entry & ENTRY_RESERVED)
        return false;
    if (m->fd < 0 || m->fd_id != id) {
        if (m->fd >= 0)
            close(m->fd);
        m->fd = fsck_open_segment(m->f, id);
        m->fd_id = id;
    }
    off_t data = m->fd < 0 ? -1 : lseek(m->fd, offset, SEEK_DATA);
    return data < 0 || data >= offset + (off_t)m->r->sb.chunk_bytes;
}

/* Replaces what leads nowhere; *replaced: how many entries. */
static int mend_entries(struct mapper *m, unsigned level, uint64_t *entries, unsigned *replaced)
{
    int error = 0;
    *replaced = 0;
    for (unsigned i = 0; i < NODE_ENTRIES && !error; i++) {
        if (!entries[i])
            continue;
        if (level > 1) {
            const struct node_info *child = find_node(m, entries[i]);
            if (child && child->level == level - 1)
                continue;
            error = void_node(m, level - 1, &entries[i]);
        } else {
            if (chunk_exists(m, ENTRY_CHUNK(entries[i])) && !was_punched(m, entries[i]))
                continue;
            error = void_segment(m);
            entries[i] = void_entry(m->r, i);
        }
        ++*replaced;
    }
    return error;
}

static int load_nodes(struct mapper *m)
{
    struct cursor c;
    cursor_open(&c, m->f, KEY_NODE);
    while (cursor_next(&c)) {
        uint64_t entries[NODE_ENTRIES];
        unsigned level;
        repair_use_id(&m->r->next_node, c.a);
        if (c.a && node_decode(c.value, c.value_len, &level, entries) == 0) {
            add_node(m, c.a, level);
            continue;
        }
        uint8_t key[KEY_MAX];
        repair_drop_record(m->r, key, key_u64(key, KEY_NODE, c.a), c.value, c.value_len,
                           "of a damaged node");
        m->r->records_lost = true;
    }
    return cursor_close(&c);
}

static int mend_nodes(struct mapper *m)
{
    struct cursor c;
    int error = 0;
    cursor_open(&c, m->f, KEY_NODE);
    while (!error && cursor_next(&c)) {
        uint64_t entries[NODE_ENTRIES];
        unsigned level, replaced;
        if (node_decode(c.value, c.value_len, &level, entries))
            continue; /* deleted, but still seen */
        error = mend_entries(m, level, entries, &replaced);
        if (error || !replaced)
            continue;
        repair_did(m->r,
                   "node %" PRIu64 " (level %u): %u entries led nowhere; reading there is an error "
                   "now (cowfs scrub tells the files)",
                   c.a, level, replaced);
        put_node(m->r, c.a, level, entries);
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

/* ---- roots, and where files end ---- */

static int written_below(struct mapper *m, struct node_info *n, uint64_t *out);

/* One more than the last chunk index, within the node, that somebody wrote. */
static int find_written(struct mapper *m, struct node_info *n, uint64_t *out)
{
    uint64_t entries[NODE_ENTRIES];
    struct metadb_value value;
    unsigned level;
    *out = 0;
    int error = fsck_get(m->f, KEY_NODE, n->id, &value);
    if (error)
        return error;
    error = node_decode(value.data, value.len, &level, entries);
    metadb_value_free(&value);
    for (unsigned i = NODE_ENTRIES; i-- > 0 && !error && !*out;) {
        if (!entries[i])
            continue;
        if (level == 1) {
            *out = entries[i] & ENTRY_RESERVED ? 0 : i + 1u;
            continue;
        }
        uint64_t below = 0;
        error = written_below(m, find_node(m, entries[i]), &below);
        if (below)
            *out = ((uint64_t)i << (NODE_SHIFT * (level - 1))) + below;
    }
    return error;
}

static int written_below(struct mapper *m, struct node_info *n, uint64_t *out)
{
    int error = n->written ? 0 : find_written(m, n, out);
    if (!error && !n->written)
        n->written = *out + 1;
    *out = n->written - 1;
    return error;
}

/* Data behind the end of a file is the file's: it gets longer. */
static int mend_size(struct mapper *m, uint64_t ino, struct inode_attr *attr, bool *changed)
{
    uint64_t written, chunk_bytes = m->r->sb.chunk_bytes;
    int error = written_below(m, find_node(m, attr->map.root), &written);
    if (error || written <= div_round_up_u64(attr->size_bytes, chunk_bytes))
        return error;
    *changed = true;
    if (written > (uint64_t)FILE_SIZE_MAX / chunk_bytes) {
        repair_did(m->r, "inode %" PRIu64 ": its map is larger than any file; it cannot be read",
                   ino);
        return void_node(m, attr->map.levels, &attr->map.root);
    }
    repair_did(m->r, "inode %" PRIu64 ": size %" PRIu64 " became %" PRIu64 ", where its data ends",
               ino, attr->size_bytes, written * chunk_bytes);
    attr->size_bytes = written * chunk_bytes;
    return 0;
}

static int mend_inode(struct mapper *m, uint64_t ino, struct inode_attr *attr)
{
    bool changed = false;
    int error = 0;
    const struct node_info *root = find_node(m, attr->map.root);
    if (!root || root->level != attr->map.levels) {
        repair_did(m->r,
                   "inode %" PRIu64 ": the root of its map (node %" PRIu64
                   ") is lost; reading the file is an error now",
                   ino, attr->map.root);
        error = void_node(m, attr->map.levels, &attr->map.root);
        changed = true;
    }
    if (!error)
        error = mend_size(m, ino, attr, &changed);
    if (!error && changed)
        repair_put_inode(m->r, ino, attr);
    return error;
}

static int mend_inodes(struct mapper *m)
{
    struct cursor c;
    int error = 0;
    cursor_open(&c, m->f, KEY_INODE);
    while (!error && cursor_next(&c)) {
        struct inode_attr attr;
        repair_use_id(&m->r->next_ino, c.a);
        if (inode_decode(c.value, c.value_len, &attr)) {
            m->r->records_lost = true; /* goes when names are looked at */
            continue;
        }
        if (S_ISREG(attr.mode) && attr.map.levels)
            error = mend_inode(m, c.a, &attr);
        g_free(attr.target);
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

/* ---- what nothing refers to ---- */

static int count_references(struct mapper *m)
{
    struct cursor c;
    cursor_open(&c, m->f, KEY_INODE);
    while (cursor_next(&c)) {
        struct inode_attr attr;
        if (inode_decode(c.value, c.value_len, &attr))
            continue;
        struct node_info *root = S_ISREG(attr.mode) ? find_node(m, attr.map.root) : NULL;
        if (root)
            root->refs++;
        g_free(attr.target);
    }
    int error = cursor_close(&c);
    cursor_open(&c, m->f, KEY_NODE);
    while (!error && cursor_next(&c)) {
        uint64_t entries[NODE_ENTRIES];
        unsigned level;
        if (node_decode(c.value, c.value_len, &level, entries) || level == 1)
            continue;
        for (unsigned i = 0; i < NODE_ENTRIES; i++)
            if (entries[i])
                find_node(m, entries[i])->refs++;
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

/* Frees the node and, in turn, what it alone referred to. */
static int free_node(struct mapper *m, struct node_info *n)
{
    uint64_t entries[NODE_ENTRIES];
    struct metadb_value value;
    unsigned level;
    int error = fsck_get(m->f, KEY_NODE, n->id, &value);
    if (error)
        return error;
    error = node_decode(value.data, value.len, &level, entries);
    metadb_value_free(&value);
    repair_delete(m->r, KEY_NODE, n->id);
    for (unsigned i = 0; i < NODE_ENTRIES && !error && level > 1; i++) {
        struct node_info *child = entries[i] ? find_node(m, entries[i]) : NULL;
        if (child && --child->refs == 0)
            error = free_node(m, child);
    }
    return error;
}

/* A file of what the node maps, without a name: lost+found is next. */
static int salvage_node(struct mapper *m, struct node_info *n)
{
    uint64_t written;
    int error = written_below(m, n, &written);
    if (error)
        return error;
    if (written == 0 || written > (uint64_t)FILE_SIZE_MAX / m->r->sb.chunk_bytes)
        return free_node(m, n); /* nothing that anybody wrote */
    struct inode_attr attr = repair_new_attr(S_IFREG | 0600);
    attr.map = (struct map){.root = n->id, .levels = n->level};
    attr.size_bytes = written * m->r->sb.chunk_bytes;
    repair_did(m->r,
               "inode %" PRIu64 " made: %" PRIu64 " bytes of a file that was lost (node %" PRIu64
               ")",
               m->r->next_ino, attr.size_bytes, n->id);
    repair_put_inode(m->r, m->r->next_ino++, &attr);
    n->refs = 1;
    return 0;
}

static int compare_ids(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int mend_unreferenced(struct mapper *m)
{
    GArray *ids = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    GHashTableIter it;
    gpointer value;
    int error = count_references(m);
    g_hash_table_iter_init(&it, m->nodes);
    while (!error && g_hash_table_iter_next(&it, NULL, &value)) {
        const struct node_info *n = value;
        if (n->refs == 0)
            g_array_append_val(ids, n->id);
    }
    g_array_sort(ids, compare_ids);
    for (guint i = 0; i < ids->len && !error; i++) {
        struct node_info *n = find_node(m, g_array_index(ids, uint64_t, i));
        if (m->r->records_lost) {
            error = salvage_node(m, n);
        } else {
            repair_did(m->r, "node %" PRIu64 " freed: nothing refers to it", n->id);
            error = free_node(m, n);
        }
    }
    g_array_free(ids, TRUE);
    return error;
}

int repair_maps(struct repair *r)
{
    struct mapper m = {
        .r = r,
        .f = repair_reader_new(r, "repairing maps"),
        .fd = -1,
        .nodes = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free),
        .files = g_hash_table_new_full(g_int_hash, g_int_equal, NULL, g_free),
    };
    int error = load_nodes(&m);
    if (!error)
        error = mend_nodes(&m);
    if (!error)
        error = mend_inodes(&m);
    if (!error)
        error = mend_unreferenced(&m);
    if (m.fd >= 0)
        close(m.fd);
    g_hash_table_destroy(m.nodes);
    g_hash_table_destroy(m.files);
    repair_reader_free(m.f);
    return error;
}
