// SPDX-License-Identifier: Apache-2.0
/*
 * disk_replay.c - what each page, size and name may be on the disk, and a
 * directory made of one choice of them (disk.h has the rules).
 *
 * Of each page there is what is on the disk for sure, and a list of what it
 * was since, each with the index of the operation. A sync that began at
 * operation b takes all older than b off that list.
 */
#include "tests/model/disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, SECTOR = 512 };

struct moment {
    uint64_t op;
    bool lost;     /* a sync that covered it has failed */
    bool shrink;   /* of sizes */
    uint64_t size; /* of sizes */
    uint8_t *data; /* of pages; NULL: zeros */
};

struct page {
    uint64_t index;
    uint8_t *durable; /* NULL: zeros */
    GArray *since;    /* of struct moment */
};

struct file {
    bool is_dir, is_segment, is_log;
    char *name;
    /* A file: */
    GHashTable *pages;   /* index -> struct page */
    GHashTable *dirty;   /* of these, those with moments */
    uint64_t size;       /* durable */
    GArray *sizes_since; /* of struct moment */
    /* A directory: */
    GHashTable *names;   /* durable: name -> number of the file + 1 */
    GArray *names_since; /* uint64_t: indexes of operations */
};

struct disk_replay {
    const struct disk_log *log;
    enum disk_lie lie;
    uint64_t next;
    GPtrArray *files; /* by number */
};

/* ---- making and freeing ---- */

static void moment_clear(gpointer p)
{
    g_free(((struct moment *)p)->data);
}

static void page_free(gpointer p)
{
    struct page *page = p;
    g_free(page->durable);
    g_array_free(page->since, TRUE);
    g_free(page);
}

static void file_free(gpointer p)
{
    struct file *f = p;
    if (!f)
        return;
    g_hash_table_destroy(f->dirty);
    g_hash_table_destroy(f->pages);
    g_hash_table_destroy(f->names);
    g_array_free(f->sizes_since, TRUE);
    g_array_free(f->names_since, TRUE);
    g_free(f->name);
    g_free(f);
}

static struct file *file_new(bool is_dir)
{
    struct file *f = g_new0(struct file, 1);
    f->is_dir = is_dir;
    f->pages = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, page_free);
    f->dirty = g_hash_table_new(g_int64_hash, g_int64_equal);
    f->names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    f->sizes_since = g_array_new(FALSE, TRUE, sizeof(struct moment));
    f->names_since = g_array_new(FALSE, TRUE, sizeof(uint64_t));
    return f;
}

struct disk_replay *disk_replay_new(const struct disk_log *log, enum disk_lie lie)
{
    struct disk_replay *r = g_new0(struct disk_replay, 1);
    r->log = log;
    r->lie = lie;
    r->files = g_ptr_array_new_with_free_func(file_free);
    g_ptr_array_add(r->files, file_new(true));
    return r;
}

void disk_replay_free(struct disk_replay *r)
{
    g_ptr_array_free(r->files, TRUE);
    g_free(r);
}

static struct file *file_at(const struct disk_replay *r, uint32_t number)
{
    g_assert(number < r->files->len && r->files->pdata[number]);
    return r->files->pdata[number];
}

const char *disk_replay_name(const struct disk_replay *r, uint32_t file)
{
    const char *name = file_at(r, file)->name;
    return name ? name : "";
}

/* ---- what an operation does in the memory of the machine ---- */

static struct page *page_at(struct file *f, uint64_t index)
{
    struct page *page = g_hash_table_lookup(f->pages, &index);
    if (page)
        return page;
    page = g_new0(struct page, 1);
    page->index = index;
    page->since = g_array_new(FALSE, TRUE, sizeof(struct moment));
    g_array_set_clear_func(page->since, moment_clear);
    g_hash_table_insert(f->pages, &page->index, page);
    return page;
}

static const uint8_t *page_now(const struct page *page)
{
    return page->since->len ? g_array_index(page->since, struct moment, page->since->len - 1).data
                            : page->durable;
}

/* Takes data. */
static void page_becomes(struct file *f, struct page *page, uint64_t op, uint8_t *data)
{
    struct moment m = {.op = op, .data = data};
    g_array_append_val(page->since, m);
    g_hash_table_add(f->dirty, &page->index);
}

/* bytes NULL: zeros. */
static void change_page(struct file *f, uint64_t op, uint64_t index, size_t from, size_t n,
                        const uint8_t *bytes)
{
    struct page *page = page_at(f, index);
    const uint8_t *now = page_now(page);
    if (!bytes && !now)
        return;
    uint8_t *data = NULL;
    if (bytes || n < PAGE) {
        data = g_malloc0(PAGE);
        if (now)
            memcpy(data, now, PAGE);
        if (bytes)
            memcpy(data + from, bytes, n);
        else
            memset(data + from, 0, n);
    }
    page_becomes(f, page, op, data);
}

/* By the pages that there are: ranges of terabytes are punched. */
static void zero_pages(struct file *f, uint64_t op, uint64_t first, uint64_t end)
{
    GHashTableIter it;
    gpointer p;
    g_autoptr(GArray) indexes = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    g_hash_table_iter_init(&it, f->pages);
    while (g_hash_table_iter_next(&it, NULL, &p)) {
        const struct page *page = p;
        if (page->index >= first / PAGE && page->index * PAGE < end)
            g_array_append_val(indexes, page->index);
    }
    for (guint i = 0; i < indexes->len; i++) {
        uint64_t index = g_array_index(indexes, uint64_t, i);
        uint64_t from = MAX(first, index * PAGE);
        change_page(f, op, index, from % PAGE, MIN(end, (index + 1) * PAGE) - from, NULL);
    }
}

static uint64_t size_now(const struct file *f)
{
    return f->sizes_since->len
               ? g_array_index(f->sizes_since, struct moment, f->sizes_since->len - 1).size
               : f->size;
}

static void set_size(struct file *f, uint64_t op, uint64_t size)
{
    uint64_t now = size_now(f);
    struct moment m = {.op = op, .size = size, .shrink = size < now};
    if (size == now)
        return;
    g_array_append_val(f->sizes_since, m);
    if (!m.shrink)
        return;
    zero_pages(f, op, size, UINT64_MAX);
}

static void change_bytes(struct file *f, uint64_t op, uint64_t offset, uint64_t n,
                         const uint8_t *bytes)
{
    while (n > 0) {
        size_t from = offset % PAGE;
        size_t part = MIN(n, PAGE - from);
        change_page(f, op, offset / PAGE, from, part, bytes);
        offset += part;
        n -= part;
        bytes += part;
    }
}

static void add_file(struct disk_replay *r, const struct disk_op *op)
{
    const char *dir = disk_replay_name(r, op->dir);
    const char *name = (const char *)op->payload;
    if (op->file >= r->files->len)
        g_ptr_array_set_size(r->files, (gint)op->file + 1);
    if (r->files->pdata[op->file]) /* a second name */
        return;
    struct file *f = file_new(op->kind == DISK_MKDIR);
    f->name = g_strdup_printf("%s%s%s", dir, *dir ? "/" : "", name);
    f->is_segment = strcmp(dir, "segments") == 0;
    f->is_log = g_str_has_suffix(name, ".log");
    r->files->pdata[op->file] = f;
}

/* ---- syncs ---- */

static void settle_page(struct page *page, uint64_t before, bool failed)
{
    guint covered = 0;
    while (covered < page->since->len &&
           g_array_index(page->since, struct moment, covered).op < before)
        covered++;
    if (!covered)
        return;
    struct moment *last = &g_array_index(page->since, struct moment, covered - 1);
    if (failed) {
        last->lost = true;
        return;
    }
    if (last->lost) /* clean, as the kernel believes */
        return;
    g_free(page->durable);
    page->durable = g_steal_pointer(&last->data);
    g_array_remove_range(page->since, 0, covered);
}

static void settle_file(struct file *f, uint64_t before, bool failed)
{
    GHashTableIter it;
    gpointer key;
    g_hash_table_iter_init(&it, f->dirty);
    while (g_hash_table_iter_next(&it, &key, NULL)) {
        struct page *page = g_hash_table_lookup(f->pages, key);
        settle_page(page, before, failed);
        if (!page->since->len)
            g_hash_table_iter_remove(&it);
    }
    while (!failed && f->sizes_since->len &&
           g_array_index(f->sizes_since, struct moment, 0).op < before) {
        f->size = g_array_index(f->sizes_since, struct moment, 0).size;
        g_array_remove_index(f->sizes_since, 0);
    }
}

static void change_names(const struct disk_log *log, GHashTable *names, uint64_t index)
{
    const struct disk_op *op = disk_log_op(log, index);
    const char *name = (const char *)op->payload;
    switch (op->kind) {
    case DISK_CREATE:
    case DISK_MKDIR:
        g_hash_table_insert(names, g_strdup(name), GUINT_TO_POINTER(op->file + 1));
        break;
    case DISK_UNLINK:
        g_hash_table_remove(names, name);
        break;
    default: {
        const char *to = name + strlen(name) + 1;
        if (op->file == DISK_UNKNOWN)
            g_hash_table_remove(names, to);
        else
            g_hash_table_insert(names, g_strdup(to), GUINT_TO_POINTER(op->file + 1));
        g_hash_table_remove(names, name);
    }
    }
}

static void settle_dir(struct disk_replay *r, struct file *f, uint64_t before)
{
    guint covered = 0;
    while (covered < f->names_since->len &&
           g_array_index(f->names_since, uint64_t, covered) < before)
        change_names(r->log, f->names, g_array_index(f->names_since, uint64_t, covered++));
    if (covered)
        g_array_remove_range(f->names_since, 0, covered);
}

static bool is_lie(const struct disk_replay *r, const struct file *f)
{
    return (r->lie == DISK_LIE_DATA && f->is_segment) || (r->lie == DISK_LIE_LOG && f->is_log) ||
           (r->lie == DISK_LIE_NAMES && f->is_dir);
}

static void settle(struct disk_replay *r, const struct disk_op *op)
{
    struct file *f = file_at(r, op->file);
    if (is_lie(r, f))
        return;
    if (!f->is_dir)
        settle_file(f, op->offset, op->error != 0);
    else if (!op->error)
        settle_dir(r, f, op->offset);
}

void disk_replay_advance(struct disk_replay *r, uint64_t index)
{
    for (; r->next < index; r->next++) {
        const struct disk_op *op = disk_log_op(r->log, r->next);
        struct file *f;
        switch (op->kind) {
        case DISK_WRITE:
            f = file_at(r, op->file);
            change_bytes(f, r->next, op->offset, op->length, op->payload);
            if (op->offset + op->length > size_now(f))
                set_size(f, r->next, op->offset + op->length);
            break;
        case DISK_PUNCH:
            zero_pages(file_at(r, op->file), r->next, op->offset, op->offset + op->length);
            break;
        case DISK_SIZE:
            set_size(file_at(r, op->file), r->next, op->length);
            break;
        case DISK_CREATE:
        case DISK_MKDIR:
            add_file(r, op);
            /* fall through */
        case DISK_UNLINK:
        case DISK_RENAME:
            g_array_append_val(file_at(r, op->dir)->names_since, r->next);
            break;
        case DISK_SYNC_END:
            settle(r, op);
            break;
        default:
            break;
        }
    }
}

/* ---- one choice ---- */

struct build {
    struct disk_replay *r;
    struct rng *rng;
    /* In percent: how much of what was not synced is there nevertheless. */
    unsigned share;
    uint64_t missing;
};

/* The number of moments that have come to the disk; at least `min`. */
static guint choose_moment(struct build *b, guint count, guint min)
{
    if (count == 0 || b->share == 100)
        return count;
    if (!rng_percent(b->rng, b->share))
        return min;
    return rng_percent(b->rng, 50) ? count
                                   : min + (guint)rng_below(b->rng, (uint64_t)count - min + 1);
}

static const uint8_t *moment_data(const struct page *page, guint chosen)
{
    return chosen ? g_array_index(page->since, struct moment, chosen - 1).data : page->durable;
}

/* Was the file cut by this operation, in the size that it has now? */
static bool is_cut(const struct file *f, guint sizes, uint64_t op)
{
    for (guint i = 0; i < sizes; i++) {
        const struct moment *m = &g_array_index(f->sizes_since, struct moment, i);
        if (m->shrink && m->op == op)
            return true;
    }
    return false;
}

/* NULL: zeros. */
static const uint8_t *choose_page(struct build *b, const struct file *f, guint sizes,
                                  const struct page *page, uint8_t *torn)
{
    static const uint8_t zeros[PAGE];
    guint count = page->since->len;
    guint min = 0;
    /* What was behind a cut does not come back. */
    for (guint i = 0; i < count; i++)
        if (is_cut(f, sizes, g_array_index(page->since, struct moment, i).op))
            min = i + 1;
    guint chosen = choose_moment(b, count, min);
    b->missing += chosen < count;
    const uint8_t *data = moment_data(page, chosen);
    if (chosen == min || b->share == 100 || !rng_percent(b->rng, 10))
        return data;
    const uint8_t *before = moment_data(page, chosen - 1);
    for (size_t at = 0; at < PAGE; at += SECTOR) {
        const uint8_t *from = rng_percent(b->rng, 50) ? data : before;
        memcpy(torn + at, (from ? from : zeros) + at, SECTOR);
    }
    return torn;
}

static void raw_write(int fd, const void *data, size_t n, uint64_t offset)
{
    long done = syscall(SYS_pwrite64, fd, data, n, offset);
    g_assert(done == (long)n);
}

static void build_file(struct build *b, const struct file *f, const char *path)
{
    uint8_t torn[PAGE];
    int fd =
        (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    g_assert(fd >= 0);
    guint chosen = choose_moment(b, f->sizes_since->len, 0);
    uint64_t size =
        chosen ? g_array_index(f->sizes_since, struct moment, chosen - 1).size : f->size;
    GHashTableIter it;
    gpointer p;
    g_hash_table_iter_init(&it, f->pages);
    while (g_hash_table_iter_next(&it, NULL, &p)) {
        const struct page *page = p;
        const uint8_t *data = choose_page(b, f, chosen, page, torn);
        uint64_t at = page->index * PAGE;
        if (data && at < size)
            raw_write(fd, data, MIN(PAGE, size - at), at);
    }
    g_assert(syscall(SYS_ftruncate, fd, size) == 0);
    syscall(SYS_close, fd);
}

static void build_dir(struct build *b, const struct file *f, const char *path)
{
    GHashTableIter it;
    gpointer key, value;
    g_assert(syscall(SYS_mkdirat, AT_FDCWD, path, 0700) == 0);
    g_autoptr(GHashTable) names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_hash_table_iter_init(&it, f->names);
    while (g_hash_table_iter_next(&it, &key, &value))
        g_hash_table_insert(names, g_strdup(key), value);
    /* In order, as a journal does it, or each by itself. RocksDB takes the former for granted:
     * while it makes a database, CURRENT may be there without the MANIFEST that it names. */
    bool is_database = f->name && strcmp(f->name, "metadb") == 0;
    bool in_order = rng_percent(b->rng, 50) || is_database;
    guint count = in_order ? choose_moment(b, f->names_since->len, 0) : f->names_since->len;
    b->missing += f->names_since->len - count;
    for (guint i = 0; i < count; i++) {
        if (in_order || rng_percent(b->rng, b->share))
            change_names(b->r->log, names, g_array_index(f->names_since, uint64_t, i));
        else
            b->missing++;
    }
    g_autoptr(GList) sorted = g_list_sort(g_hash_table_get_keys(names), (GCompareFunc)strcmp);
    for (GList *l = sorted; l; l = l->next) {
        const struct file *child =
            file_at(b->r, GPOINTER_TO_UINT(g_hash_table_lookup(names, l->data)) - 1);
        g_autofree char *name = g_build_filename(path, l->data, NULL);
        if (child->is_dir)
            build_dir(b, child, name);
        else
            build_file(b, child, name);
    }
}

uint64_t disk_replay_build(struct disk_replay *r, const char *path, struct rng *rng)
{
    static const unsigned shares[] = {0, 0, 100, 20, 50, 50, 80};
    struct build b = {.r = r, .rng = rng, .share = shares[rng_below(rng, G_N_ELEMENTS(shares))]};
    build_dir(&b, file_at(r, 0), path);
    return b.missing;
}
