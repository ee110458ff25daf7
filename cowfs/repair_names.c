// SPDX-License-Identifier: Apache-2.0
/*
 * repair_names.c - inodes and directories.
 *
 * All inodes and all entries are taken into memory. Entries that cannot be are
 * dropped, what then has no name gets one in lost+found, and at last each
 * record (links, sizes, parents, entries) that does not say the same as memory
 * is written again.
 *
 * A directory whose inode is lost is made anew if it has entries; a file whose
 * inode is lost has lost its map with it (repair_maps gives its content back
 * under another number), and its names go.
 */
#include "cowfs/repair_internal.h"

#include "cowfs/names.h"

#include <errno.h>
#include <inttypes.h>

#define LOST_FOUND "lost+found"
#define CAPABILITY_NAME "security.capability"

enum { WAY_UNKNOWN, WAY_ON_PATH, WAY_GOOD };

struct entry {
    uint64_t dir, ino;
    uint64_t hash; /* where it was filed */
    uint32_t type;
    const char *name;
    bool dropped;
};

struct known {
    uint64_t ino;
    uint32_t type; /* S_IFMT; 0: the record is damaged */
    uint32_t nlink;
    uint64_t parent;
    bool orphan, made;
    bool xattrs, capability;             /* as recorded */
    bool found_xattrs, found_capability; /* as found */
    uint64_t names, entries, subdirs;
    struct entry *name; /* of a directory: the one that is kept */
    uint8_t way;
};

struct names {
    struct repair *r;
    struct fsck *f;
    struct fs *hash_env; /* names_hash wants the store's secret alone */
    GHashTable *inodes;  /* &ino -> struct known */
    GPtrArray *entries;  /* struct entry */
    GHashTable *by_name; /* "dir/name" of those that are kept */
    GStringChunk *texts;
    uint64_t lost_found; /* inode, 0: not looked for yet */
};

static struct known *find_inode(struct names *n, uint64_t ino)
{
    return g_hash_table_lookup(n->inodes, &ino);
}

static bool is_dir(const struct known *inode)
{
    return inode && S_ISDIR(inode->type);
}

static struct known *add_inode(struct names *n, uint64_t ino)
{
    struct known *inode = g_new0(struct known, 1);
    inode->ino = ino;
    g_hash_table_insert(n->inodes, &inode->ino, inode);
    return inode;
}

static char *quoted(const struct entry *e)
{
    return g_strescape(e->name, NULL);
}

/* ---- loading ---- */

static int load_inodes(struct names *n)
{
    struct cursor c;
    cursor_open(&c, n->f, KEY_INODE);
    while (cursor_next(&c)) {
        struct inode_attr attr;
        struct known *inode = add_inode(n, c.a);
        repair_use_id(&n->r->next_ino, c.a);
        if (c.a == 0 || inode_decode(c.value, c.value_len, &attr)) {
            uint8_t key[KEY_MAX];
            repair_drop_record(n->r, key, key_u64(key, KEY_INODE, c.a), c.value, c.value_len,
                               "of a damaged inode");
            continue;
        }
        inode->type = attr.mode & S_IFMT;
        inode->nlink = attr.nlink;
        inode->parent = attr.parent;
        inode->xattrs = attr.has_xattrs;
        inode->capability = attr.has_capability;
        g_free(attr.target);
    }
    int error = cursor_close(&c);
    cursor_open(&c, n->f, KEY_ORPHAN);
    while (!error && cursor_next(&c)) {
        struct known *inode = find_inode(n, c.a);
        if (inode)
            inode->orphan = true;
        if (!inode || !inode->type) {
            repair_did(n->r, "removed the orphan record of inode %" PRIu64 ", which is missing",
                       c.a);
            repair_delete(n->r, KEY_ORPHAN, c.a);
        }
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

struct loading {
    struct names *n;
    uint64_t dir, hash;
};

static int load_entry(void *arg, uint64_t ino, uint32_t type, const char *name)
{
    const struct loading *l = arg;
    struct entry *e = g_new0(struct entry, 1);
    e->dir = l->dir;
    e->hash = l->hash;
    e->ino = ino;
    e->type = type;
    e->name = g_string_chunk_insert(l->n->texts, name);
    g_ptr_array_add(l->n->entries, e);
    return 0;
}

static int load_entries(struct names *n)
{
    struct cursor c;
    cursor_open(&c, n->f, KEY_DIRENT);
    while (cursor_next(&c)) {
        struct loading l = {.n = n, .dir = c.a, .hash = c.b};
        /* What comes before the damage is taken. */
        if (names_decode(c.value, c.value_len, load_entry, &l)) {
            uint8_t key[KEY_MAX];
            repair_drop_record(n->r, key, key_u64_u64(key, KEY_DIRENT, c.a, c.b), c.value,
                               c.value_len, "of damaged names");
        }
    }
    return cursor_close(&c);
}

/* ---- directories that are lost, and the root ---- */

static void make_dir(struct names *n, uint64_t ino, uint32_t mode)
{
    struct known *inode = find_inode(n, ino);
    if (!inode)
        inode = add_inode(n, ino);
    struct inode_attr attr = repair_new_attr(S_IFDIR | mode);
    attr.parent = ROOT_INO;
    *inode = (struct known){.ino = ino, .type = S_IFDIR, .made = true};
    repair_put_inode(n->r, ino, &attr);
}

/* A file that has the root's number gets another one. */
static void move_from_root(struct names *n)
{
    struct metadb_value value;
    struct inode_attr attr;
    if (fsck_get(n->f, KEY_INODE, ROOT_INO, &value))
        return;
    if (inode_decode(value.data, value.len, &attr) == 0) {
        struct known *moved = add_inode(n, n->r->next_ino++);
        moved->type = attr.mode & S_IFMT;
        attr.has_xattrs = attr.has_capability = false;
        repair_put_inode(n->r, moved->ino, &attr);
        repair_did(n->r, "inode %d, which is no directory, became inode %" PRIu64, ROOT_INO,
                   moved->ino);
        g_free(attr.target);
    }
    metadb_value_free(&value);
}

static void make_lost_dirs(struct names *n)
{
    struct known *root = find_inode(n, ROOT_INO);
    if (!is_dir(root)) {
        if (root && root->type)
            move_from_root(n);
        repair_did(n->r, "made a new root directory");
        make_dir(n, ROOT_INO, 0755);
    }
    for (guint i = 0; i < n->entries->len; i++) {
        const struct entry *e = n->entries->pdata[i];
        struct known *holder = find_inode(n, e->dir);
        if (e->dir == 0 || (holder && holder->type))
            continue;
        repair_did(n->r, "directory %" PRIu64 " made anew: it has entries", e->dir);
        make_dir(n, e->dir, 0700);
        repair_use_id(&n->r->next_ino, e->dir);
    }
}

/* ---- entries ---- */

static void drop(struct names *n, struct entry *e, const char *why)
{
    g_autofree char *name = quoted(e);
    repair_did(n->r, "directory %" PRIu64 ": removed '%s' (inode %" PRIu64 "): %s", e->dir, name,
               e->ino, why);
    e->dropped = true;
}

static bool name_possible(const char *name)
{
    return names_check(name) == 0 && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static char *full_key(uint64_t dir, const char *name)
{
    return g_strdup_printf("%" PRIu64 "/%s", dir, name);
}

/* Of two names of a directory the one that it knows itself is kept. */
static void judge_second_name(struct names *n, struct known *dir, struct entry *e)
{
    if (!dir->name) {
        dir->name = e;
    } else if (dir->parent == e->dir && dir->name->dir != e->dir) {
        drop(n, dir->name, "a directory has one name");
        dir->name = e;
    } else {
        drop(n, e, "a directory has one name");
    }
}

static void judge_entry(struct names *n, struct entry *e)
{
    const struct known *holder = find_inode(n, e->dir);
    struct known *inode = find_inode(n, e->ino);
    g_autofree char *key = full_key(e->dir, e->name);
    if (!is_dir(holder))
        drop(n, e, "it is in no directory");
    else if (holder->nlink == 0 && holder->orphan)
        drop(n, e, "its directory was removed");
    else if (!name_possible(e->name))
        drop(n, e, "no possible name");
    else if (!inode || !inode->type)
        drop(n, e, "the inode is lost");
    else if (inode->ino == ROOT_INO)
        drop(n, e, "the root has no name");
    else if (g_hash_table_contains(n->by_name, key))
        drop(n, e, "the name exists twice");
    else if (is_dir(inode))
        judge_second_name(n, inode, e);
    if (e->dropped)
        return;
    g_hash_table_add(n->by_name, g_steal_pointer(&key));
    if (e->type != inode->type) {
        g_autofree char *name = quoted(e);
        repair_did(n->r, "directory %" PRIu64 ": '%s' is of type 0%o now, as inode %" PRIu64 " is",
                   e->dir, name, (unsigned)inode->type, e->ino);
        e->type = inode->type;
    }
}

/* Goes up from a directory; whatever closes a circle loses its name. */
static void open_circles(struct names *n, struct known *dir)
{
    GPtrArray *way = g_ptr_array_new();
    struct known *d = dir;
    while (d && d->ino != ROOT_INO && d->way == WAY_UNKNOWN) {
        d->way = WAY_ON_PATH;
        g_ptr_array_add(way, d);
        struct known *up = d->name ? find_inode(n, d->name->dir) : NULL;
        if (up && up->way == WAY_ON_PATH) {
            drop(n, d->name, "the directory would contain itself");
            d->name = NULL;
            up = NULL;
        }
        d = up;
    }
    for (guint i = 0; i < way->len; i++)
        ((struct known *)way->pdata[i])->way = WAY_GOOD;
    g_ptr_array_free(way, TRUE);
}

static int by_number(const void *a, const void *b)
{
    const struct known *x = *(const struct known *const *)a, *y = *(const struct known *const *)b;
    return (x->ino > y->ino) - (x->ino < y->ino);
}

static GPtrArray *sorted_inodes(struct names *n)
{
    GPtrArray *list = g_ptr_array_new();
    GHashTableIter it;
    gpointer value;
    g_hash_table_iter_init(&it, n->inodes);
    while (g_hash_table_iter_next(&it, NULL, &value))
        if (((struct known *)value)->type)
            g_ptr_array_add(list, value);
    g_ptr_array_sort(list, by_number);
    return list;
}

/* ---- lost+found ---- */

static struct entry *add_entry(struct names *n, uint64_t dir, const char *name, struct known *inode)
{
    struct loading l = {.n = n, .dir = dir, .hash = 0};
    load_entry(&l, inode->ino, inode->type, name);
    struct entry *e = n->entries->pdata[n->entries->len - 1];
    g_hash_table_add(n->by_name, full_key(dir, name));
    if (is_dir(inode))
        inode->name = e;
    return e;
}

/* The directory of that name in the root, made if it is missing. */
static uint64_t lost_found(struct names *n)
{
    for (guint i = 0; !n->lost_found && i < n->entries->len; i++) {
        const struct entry *e = n->entries->pdata[i];
        if (!e->dropped && e->dir == ROOT_INO && strcmp(e->name, LOST_FOUND) == 0 &&
            is_dir(find_inode(n, e->ino)))
            n->lost_found = e->ino;
    }
    if (n->lost_found)
        return n->lost_found;
    g_autofree char *name = g_strdup(LOST_FOUND);
    for (unsigned i = 1;; i++) {
        g_autofree char *key = full_key(ROOT_INO, name);
        if (!g_hash_table_contains(n->by_name, key))
            break;
        g_free(name);
        name = g_strdup_printf(LOST_FOUND ".%u", i);
    }
    n->lost_found = n->r->next_ino++;
    make_dir(n, n->lost_found, 0700);
    find_inode(n, n->lost_found)->parent = ROOT_INO;
    add_entry(n, ROOT_INO, name, find_inode(n, n->lost_found));
    repair_did(n->r, "made the directory /%s (inode %" PRIu64 ")", name, n->lost_found);
    return n->lost_found;
}

static void give_name(struct names *n, struct known *inode)
{
    uint64_t dir = lost_found(n);
    g_autofree char *name = g_strdup_printf("#%" PRIu64, inode->ino);
    for (unsigned i = 1;; i++) {
        g_autofree char *key = full_key(dir, name);
        if (!g_hash_table_contains(n->by_name, key))
            break;
        g_free(name);
        name = g_strdup_printf("#%" PRIu64 ".%u", inode->ino, i);
    }
    add_entry(n, dir, name, inode);
    repair_did(n->r, "inode %" PRIu64 ", which had no name, is " LOST_FOUND "/%s now", inode->ino,
               name);
}

static void count_names(struct names *n)
{
    for (guint i = 0; i < n->entries->len; i++) {
        const struct entry *e = n->entries->pdata[i];
        if (!e->dropped)
            find_inode(n, e->ino)->names++;
    }
}

static void name_the_nameless(struct names *n)
{
    GPtrArray *list = sorted_inodes(n);
    for (guint i = 0; i < list->len; i++) {
        struct known *inode = list->pdata[i];
        /* Deleted in order: the next opening releases it. */
        bool deleted = inode->orphan && inode->nlink == 0;
        if (inode->names == 0 && inode->ino != ROOT_INO && !deleted)
            give_name(n, inode);
    }
    g_ptr_array_free(list, TRUE);
}

/* ---- writing ---- */

static int write_inode(struct names *n, const struct known *inode)
{
    struct metadb_value value;
    struct inode_attr attr;
    bool root = inode->ino == ROOT_INO, dir = is_dir(inode);
    if (inode->names > 0 && inode->orphan) {
        repair_did(n->r, "inode %" PRIu64 " has a name: removed its orphan record", inode->ino);
        repair_delete(n->r, KEY_ORPHAN, inode->ino);
    }
    if (inode->names == 0 && !root) /* an orphan */
        return 0;
    uint32_t nlink = (uint32_t)(dir ? 2 + inode->subdirs : inode->names);
    uint64_t parent = root ? ROOT_INO : dir ? inode->name->dir : 0;
    int error = fsck_get(n->f, KEY_INODE, inode->ino, &value);
    if (error)
        return error;
    error = inode_decode(value.data, value.len, &attr);
    metadb_value_free(&value);
    if (error)
        return error;
    bool xattrs = attr.has_xattrs || inode->found_xattrs;
    bool capability = attr.has_capability || inode->found_capability;
    bool same = attr.nlink == nlink && attr.has_xattrs == xattrs &&
                attr.has_capability == capability &&
                (!dir || (attr.parent == parent && attr.size_bytes == inode->entries));
    if (!same) {
        if (!inode->made)
            repair_did(n->r, "inode %" PRIu64 ": %" PRIu32 " links became %" PRIu32 "%s",
                       inode->ino, attr.nlink, nlink,
                       dir ? ", parent and entries counted again" : "");
        attr.nlink = nlink;
        attr.has_xattrs = xattrs;
        attr.has_capability = capability;
        attr.linkable = false;
        if (dir) {
            attr.parent = parent;
            attr.size_bytes = inode->entries;
        }
        repair_put_inode(n->r, inode->ino, &attr);
    }
    g_free(attr.target);
    return 0;
}

static int write_inodes(struct names *n)
{
    int error = 0;
    for (guint i = 0; i < n->entries->len; i++) {
        const struct entry *e = n->entries->pdata[i];
        if (e->dropped)
            continue;
        struct known *holder = find_inode(n, e->dir);
        holder->entries++;
        holder->subdirs += S_ISDIR(e->type);
    }
    GPtrArray *list = sorted_inodes(n);
    for (guint i = 0; i < list->len && !error; i++)
        error = write_inode(n, list->pdata[i]);
    g_ptr_array_free(list, TRUE);
    return error;
}

struct place {
    uint64_t dir, hash;
};

struct dir_record {
    struct place place;
    struct wbuf bytes;
    unsigned entries;
};

static unsigned place_hash(const void *key)
{
    const struct place *p = key;
    return (unsigned)(p->dir * 31 ^ p->hash ^ p->hash >> 32);
}

static int place_equal(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct place)) == 0;
}

static void record_free(void *arg)
{
    struct dir_record *record = arg;
    wbuf_free(&record->bytes);
    g_free(record);
}

static void file_entry(struct names *n, GHashTable *records, struct entry *e)
{
    struct place place = {e->dir, names_hash(n->hash_env, e->name, strlen(e->name))};
    struct dir_record *record = g_hash_table_lookup(records, &place);
    if (!record) {
        record = g_new0(struct dir_record, 1);
        record->place = place;
        g_hash_table_insert(records, &record->place, record);
    }
    if (e->hash && e->hash != place.hash) {
        g_autofree char *name = quoted(e);
        repair_did(n->r, "directory %" PRIu64 ": '%s' filed under its hash", e->dir, name);
    }
    names_encode(&record->bytes, e->ino, e->type, e->name);
    record->entries++;
}

static int write_entries(struct names *n)
{
    GHashTable *records = g_hash_table_new_full(place_hash, place_equal, NULL, record_free);
    uint8_t key[KEY_MAX];
    struct cursor c;
    for (guint i = 0; i < n->entries->len; i++) {
        struct entry *e = n->entries->pdata[i];
        if (!e->dropped)
            file_entry(n, records, e);
    }
    cursor_open(&c, n->f, KEY_DIRENT);
    while (cursor_next(&c)) {
        struct place place = {c.a, c.b};
        const struct dir_record *record = g_hash_table_lookup(records, &place);
        if (!record) {
            metadb_delete(n->r->db, key, key_u64_u64(key, KEY_DIRENT, c.a, c.b));
        } else if (record->bytes.len == c.value_len &&
                   memcmp(record->bytes.data, c.value, c.value_len) == 0) {
            g_hash_table_remove(records, &place); /* as it should be */
        }
    }
    int error = cursor_close(&c);
    GHashTableIter it;
    gpointer value;
    g_hash_table_iter_init(&it, records);
    while (!error && g_hash_table_iter_next(&it, NULL, &value)) {
        const struct dir_record *record = value;
        size_t len = key_u64_u64(key, KEY_DIRENT, record->place.dir, record->place.hash);
        metadb_put(n->r->db, key, len, record->bytes.data, record->bytes.len);
    }
    g_hash_table_destroy(records);
    return error;
}

/* ---- what hangs on inodes ---- */

static int look_at_xattrs(struct names *n)
{
    struct cursor c;
    cursor_open(&c, n->f, KEY_XATTR);
    while (cursor_next(&c)) {
        struct known *inode = find_inode(n, c.a);
        if (inode && inode->type) {
            inode->found_xattrs = true;
            if (c.name_len == strlen(CAPABILITY_NAME) &&
                memcmp(c.name, CAPABILITY_NAME, c.name_len) == 0)
                inode->found_capability = true;
            continue;
        }
        struct wbuf key = {0};
        wbuf_put_u8(&key, KEY_XATTR);
        wbuf_put_be64(&key, c.a);
        wbuf_put_bytes(&key, c.name, c.name_len);
        repair_drop_record(n->r, key.data, key.len, c.value, c.value_len,
                           "of an attribute of a missing inode");
        wbuf_free(&key);
    }
    int error = cursor_close(&c);
    cursor_open(&c, n->f, KEY_UNSEALED);
    while (!error && cursor_next(&c)) {
        const struct known *inode = find_inode(n, c.a);
        if (inode && inode->type)
            continue;
        repair_did(n->r, "removed the sealing record of inode %" PRIu64 ", which is missing", c.a);
        repair_delete(n->r, KEY_UNSEALED, c.a);
    }
    int status = cursor_close(&c);
    return error ? error : status;
}

static int repair_all(struct names *n)
{
    int error = load_inodes(n);
    if (!error)
        error = load_entries(n);
    if (error)
        return error;
    make_lost_dirs(n);
    for (guint i = 0; i < n->entries->len; i++)
        judge_entry(n, n->entries->pdata[i]);
    GPtrArray *list = sorted_inodes(n);
    for (guint i = 0; i < list->len; i++)
        if (is_dir(list->pdata[i]))
            open_circles(n, list->pdata[i]);
    g_ptr_array_free(list, TRUE);
    count_names(n);
    name_the_nameless(n);
    /* Again, with those in lost+found. */
    GHashTableIter it;
    gpointer value;
    g_hash_table_iter_init(&it, n->inodes);
    while (g_hash_table_iter_next(&it, NULL, &value))
        ((struct known *)value)->names = 0;
    count_names(n);
    error = look_at_xattrs(n);
    if (!error)
        error = write_inodes(n);
    return error ? error : write_entries(n);
}

int repair_names(struct repair *r)
{
    struct names n = {
        .r = r,
        .f = repair_reader_new(r, "repairing names"),
        .hash_env = g_new0(struct fs, 1),
        .inodes = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free),
        .entries = g_ptr_array_new_with_free_func(g_free),
        .by_name = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL),
        .texts = g_string_chunk_new(65536),
    };
    n.hash_env->sb = r->sb;
    n.hash_env->name_hash_mask = UINT64_MAX;
    int error = repair_all(&n);
    repair_reader_free(n.f);
    g_free(n.hash_env);
    g_hash_table_destroy(n.inodes);
    g_hash_table_destroy(n.by_name);
    g_ptr_array_free(n.entries, TRUE);
    g_string_chunk_free(n.texts);
    return error;
}
