// SPDX-License-Identifier: Apache-2.0
/*
 * repair.c - opens the store, has it checked, repaired, checked again, and
 * commits, all at once.
 */
#include "cowfs/repair_internal.h"

#include "cowfs/domain.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

/* One is enough for any damage that is known; but mending one thing may uncover
 * another. */
enum { ROUNDS = 4 };

void repair_did(struct repair *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = g_strdup_vprintf(format, args);
    va_end(args);
    r->report->actions++;
    if (r->options->action)
        r->options->action(r->options->arg, text);
    g_free(text);
}

/* ---- reading ---- */

static const struct fsck_options silent;

struct reader {
    struct fsck f;
    struct fsck_options options;
    struct fsck_report report;
};

struct fsck *repair_reader_new(struct repair *r, const char *phase)
{
    struct reader *reader = g_new0(struct reader, 1);
    reader->options = silent;
    reader->options.memory_bytes = r->options->memory_bytes;
    reader->options.progress = r->options->progress;
    reader->options.arg = r->options->arg;
    reader->f.options = &reader->options;
    reader->f.report = &reader->report;
    reader->f.path = r->path;
    reader->f.sb = r->sb;
    reader->f.db = r->db;
    fsck_init(&reader->f);
    fsck_phase(&reader->f, phase, 0);
    return &reader->f;
}

void repair_reader_free(struct fsck *f)
{
    f->db = NULL; /* stays open */
    fsck_clear(f);
    g_free(f); /* is the first member */
}

/* fsck of the database as it is now, with all that was put into it. */
static int check(struct repair *r, bool tell, struct fsck_report *report)
{
    struct fsck *f = repair_reader_new(r, "check");
    struct reader *reader = (struct reader *)(void *)f;
    if (tell) {
        reader->options.message = r->options->message;
        reader->options.verbose = true;
    }
    int error = fsck_check_database(f);
    fsck_finish_report(f);
    *report = reader->report;
    report->complete = error == 0;
    r->records_lost |= f->maps_incomplete || f->nodes_incomplete;
    repair_use_id(&r->next_ino, f->highest_ino);
    repair_use_id(&r->next_node, f->nodes.highest);
    if (f->has_meta) {
        repair_use_id(&r->next_ino, f->meta.next_ino - 1);
        repair_use_id(&r->next_node, f->meta.next_node_id - 1);
    }
    repair_reader_free(f);
    return error;
}

static bool is_sound(const struct fsck_report *report)
{
    return report->errors == 0 && report->leaks == 0;
}

/* ---- the store's own counters ---- */

struct totals {
    uint64_t inodes, chunks, merges, highest_node;
    bool has_domains, has_public;
};

static void add_chunks(void *arg, uint32_t first, uint32_t n, struct count_info info)
{
    struct totals *t = arg;
    (void)first;
    if (info.count > 0)
        t->chunks += n;
    t->merges += (uint64_t)n * info.merges;
}

static int count_all(struct repair *r, struct totals *t)
{
    struct fsck *f = repair_reader_new(r, "totals");
    struct cursor c;
    int error = 0;
    cursor_open(&c, f, KEY_INODE);
    while (cursor_next(&c)) {
        t->inodes++;
        repair_use_id(&r->next_ino, c.a);
    }
    error = cursor_close(&c);
    cursor_open(&c, f, KEY_NODE);
    while (!error && cursor_next(&c))
        repair_use_id(&r->next_node, c.a);
    int status = cursor_close(&c);
    error = error ? error : status;
    cursor_open(&c, f, KEY_CHUNK_COUNTS);
    while (!error && cursor_next(&c))
        error = counts_decode(c.value, c.value_len, add_chunks, t);
    status = cursor_close(&c);
    error = error ? error : status;
    cursor_open(&c, f, KEY_CHUNK_HASH);
    while (!error && cursor_next(&c)) {
        struct content_record record;
        if (content_record_decode(c.value, c.value_len, &record) != 0)
            continue;
        t->has_domains |= record.domain != DOMAIN_ROOT;
        t->has_public |= record.domain == DOMAIN_PUBLIC;
    }
    status = cursor_close(&c);
    repair_reader_free(f);
    return error ? error : status;
}

static int repair_meta(struct repair *r)
{
    uint8_t key = KEY_META;
    struct totals t = {0};
    struct meta old = {0};
    struct metadb_value value = {0};
    int error = count_all(r, &t);
    if (error)
        return error;
    error = metadb_get(r->db, &key, 1, &value);
    bool had = !error && meta_decode(value.data, value.len, &old) == 0;
    metadb_value_free(&value);
    if (error && error != -ENOENT)
        return error;
    if (had) {
        repair_use_id(&r->next_ino, old.next_ino - 1);
        repair_use_id(&r->next_node, old.next_node_id - 1);
    }
    struct meta meta = {
        /* Not in order if that is not known: then the next opening has a look. */
        .clean = had && old.clean && !r->commits_lost,
        .next_ino = r->next_ino,
        .next_node_id = r->next_node,
        .inode_count = t.inodes,
        .chunks_live = t.chunks,
        .merges = t.merges,
        .domains = old.domains || t.has_domains,
        .has_public = old.has_public || t.has_public,
    };
    struct wbuf record = {0}, old_record = {0};
    meta_encode(&meta, &record);
    meta_encode(&old, &old_record);
    /* If commits are lost there has to be one that notes it. */
    bool same = had && !r->commits_lost && record.len == old_record.len &&
                memcmp(record.data, old_record.data, record.len) == 0;
    wbuf_free(&old_record);
    if (same) {
        wbuf_free(&record);
        return 0;
    }
    repair_did(r,
               "the store's counters: %" PRIu64 " inodes, %" PRIu64 " chunks, %" PRIu64
               " owners by deduplication",
               t.inodes, t.chunks, t.merges);
    metadb_put(r->db, &key, 1, record.data, record.len);
    wbuf_free(&record);
    return 0;
}

/* ---- the whole ---- */

static int one_round(struct repair *r)
{
    int error = repair_records(r);
    if (!error)
        error = repair_maps(r);
    if (!error)
        error = repair_names(r);
    if (!error)
        error = repair_counts(r);
    if (!error)
        error = repair_homes(r);
    if (!error)
        error = repair_index(r);
    return error ? error : repair_meta(r);
}

int repair_database(struct repair *r, struct errmsg *err)
{
    int error = check(r, true, &r->report->before);
    if (error)
        return errmsg_set(err, -EUCLEAN,
                          "the metadata database of '%s' cannot be read (%s): nothing here can be "
                          "repaired",
                          r->path, g_strerror(-error));
    struct fsck_report after = r->report->before;
    bool lost = r->commits_lost;
    if (lost) {
        r->report->before.count[FSCK_DATABASE]++;
        r->report->before.errors++;
        repair_did(r,
                   "the database's log is damaged: its last commits are lost. What they changed is "
                   "what it was before; what they freed is an error to read");
    }
    for (unsigned i = 0; i < ROUNDS && (!is_sound(&after) || (lost && i == 0)); i++) {
        error = one_round(r);
        /* The segment without bytes has no file then. */
        if (!error && r->options->dry_run && r->void_segment)
            return 0;
        if (!error)
            error = check(r, false, &after);
        if (error)
            return errmsg_set(err, error, "repairing '%s' failed: %s", r->path, g_strerror(-error));
    }
    if (is_sound(&after))
        return 0;
    for (int kind = 0; kind < FSCK_KINDS; kind++)
        if (after.count[kind])
            return errmsg_set(err, -EUCLEAN,
                              "'%s' cannot be repaired: there would still be %" PRIu64 " %s; "
                              "nothing was changed",
                              r->path, after.count[kind], fsck_kind_text(kind));
    return 0;
}

static int commit(struct repair *r, struct errmsg *err)
{
    int error = r->options->before_commit ? r->options->before_commit(r->options->arg) : 0;
    if (error)
        return errmsg_set(err, error, "the repair of '%s' was given up: %s", r->path,
                          g_strerror(-error));
    error = metadb_flip(r->db);
    if (!error)
        error = metadb_commit(r->db);
    if (error)
        return errmsg_set(err, error, "the repair of '%s' could not be committed: %s", r->path,
                          g_strerror(-error));
    r->report->committed = true;
    return 0;
}

/* Nothing in it: it was never finished, and will be made anew. */
static bool is_empty(struct repair *r)
{
    struct fsck *f = repair_reader_new(r, "database");
    bool empty = fsck_database_is_empty(f) && !fsck_has_segment_files(f);
    repair_reader_free(f);
    return empty;
}

static int repair_locked(struct repair *r, struct errmsg *err)
{
    struct metadb_options options = {.read_only = r->options->dry_run, .accept_loss = true};
    g_autofree char *path = g_build_filename(r->path, FS_METADB_DIR, NULL);
    int error = metadb_open(path, &options, &r->db, err);
    if (error)
        return error;
    r->commits_lost = metadb_lost_commits(r->db);
    r->next_ino = ROOT_INO + 1;
    r->next_node = 1;
    r->report->before.complete = true;
    if (!is_empty(r)) {
        error = repair_database(r, err);
        if (!error && r->report->actions > 0 && !r->options->dry_run)
            error = commit(r, err);
    }
    metadb_close(r->db);
    return error;
}

int repair_run(const char *store_path, const struct repair_options *options,
               struct repair_report *report, struct errmsg *err)
{
    struct errmsg own_err = {""};
    struct repair r = {.options = options, .report = report, .path = store_path};
    err = err ? err : &own_err;
    err->text[0] = 0;
    *report = (struct repair_report){0};
    int error = superblock_read(store_path, options->dry_run, &r.sb, err);
    if (error)
        return error;
    int lock = store_lock(store_path, err);
    if (lock < 0)
        return lock;
    error = repair_locked(&r, err);
    close(lock);
    return error;
}
