// SPDX-License-Identifier: Apache-2.0
/*
 * fsck.c - opens the store, runs the phases in their order, closes it.
 */
#include "cowfs/fsck_internal.h"

#include "cowfs/fs.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

/* Large enough for the index blocks of a large database. */
static const size_t block_cache_bytes = 64u << 20;

/* Damage that ends the check is a verdict, too. */
static int give_up(struct fsck *f, enum fsck_kind kind, const struct errmsg *err)
{
    fsck_found(f, kind, 1, "%s", err->text);
    return -EUCLEAN;
}

/* -EUCLEAN: told as damage. */
static int open_database(struct fsck *f, bool *unfinished, struct errmsg *err)
{
    struct metadb_options options = {.read_only = true, .block_cache_bytes = block_cache_bytes};
    char *path = g_build_filename(f->path, FS_METADB_DIR, NULL);
    int error = metadb_open(path, &options, &f->db, err);
    g_free(path);
    *unfinished = error == -ENOENT && !fsck_has_segment_files(f);
    if (*unfinished)
        return 0;
    if (error == -ENOENT || error == -EUCLEAN)
        return give_up(f, FSCK_DATABASE, err);
    return error;
}

static int check_inodes_and_names(struct fsck *f)
{
    int error = fsck_load_inodes(f);
    if (!error)
        error = fsck_check_orphans(f);
    if (!error)
        error = fsck_check_xattrs(f);
    if (!error)
        error = fsck_check_unsealed(f);
    if (!error)
        error = fsck_check_names(f);
    if (!error)
        fsck_check_links(f);
    return error;
}

static int check_maps_and_chunks(struct fsck *f)
{
    fsck_window_open(f, 0);
    int error = fsck_scan_nodes(f);
    if (!error)
        error = fsck_check_nodes(f);
    if (!error)
        error = fsck_check_sizes(f);
    if (!error)
        error = fsck_check_homes(f);
    if (!error)
        error = fsck_check_chunks(f);
    if (!error)
        fsck_check_segments(f);
    fsck_window_close(f);
    return error;
}

int fsck_check_database(struct fsck *f)
{
    bool unfinished;
    int error = fsck_load_meta(f, &unfinished);
    if (error || unfinished)
        return error;
    error = fsck_scan_unknown(f);
    if (!error)
        error = fsck_load_segments(f);
    if (!error)
        error = fsck_load_dead(f);
    if (!error)
        error = check_inodes_and_names(f);
    if (!error)
        error = check_maps_and_chunks(f);
    if (!error)
        error = fsck_check_content(f);
    if (!error)
        fsck_check_meta(f);
    return error;
}

void fsck_init(struct fsck *f)
{
    f->segments = g_array_new(FALSE, FALSE, sizeof(struct fsck_segment));
    f->inodes = g_array_new(FALSE, FALSE, sizeof(struct fsck_inode));
    f->dirs = g_array_new(FALSE, FALSE, sizeof(struct fsck_dir));
    f->dead = g_array_new(FALSE, FALSE, sizeof(struct dead_run));
    f->lost_segments = g_hash_table_new(NULL, NULL);
    node_table_init(&f->nodes);
}

void fsck_clear(struct fsck *f)
{
    g_array_free(f->segments, TRUE);
    g_array_free(f->inodes, TRUE);
    g_array_free(f->dirs, TRUE);
    g_array_free(f->dead, TRUE);
    g_hash_table_destroy(f->lost_segments);
    node_table_clear(&f->nodes);
    metadb_close(f->db);
}

/* The store is locked. */
static int check_locked(struct fsck *f, struct errmsg *err)
{
    bool unfinished;
    int error = open_database(f, &unfinished, err);
    if (error == -EUCLEAN)
        return 0;
    if (error)
        return error;
    if (unfinished) {
        f->report->complete = true;
        return 0;
    }
    error = fsck_check_database(f);
    if (error == -EUCLEAN || error == -EIO) {
        /* RocksDB has put the details into the log. What the phases after
         * this one would compare with is not known: the end. */
        errmsg_set(err, error, "reading the metadata database of '%s' failed (%s): %s", f->path,
                   f->phase ? f->phase : "store", g_strerror(-error));
        give_up(f, FSCK_DATABASE, err);
        return 0;
    }
    if (error)
        return errmsg_set(err, error, "checking '%s' failed (%s): %s", f->path,
                          f->phase ? f->phase : "store", g_strerror(-error));
    f->report->complete = true;
    return 0;
}

int fsck_run(const char *store_path, const struct fsck_options *options, struct fsck_report *report,
             struct errmsg *err)
{
    static const struct fsck_options defaults;
    struct errmsg own_err = {""};
    struct fsck *f = g_new0(struct fsck, 1);
    err = err ? err : &own_err;
    err->text[0] = 0;
    *report = (struct fsck_report){0};
    f->options = options ? options : &defaults;
    f->report = report;
    f->path = store_path;
    fsck_init(f);

    int lock = -1;
    int error = superblock_read(store_path, true, &f->sb, err);
    if (error == -EUCLEAN) {
        give_up(f, FSCK_SUPERBLOCK, err);
        error = 0;
        goto out;
    }
    if (error)
        goto out;
    lock = store_lock(store_path, err);
    error = lock < 0 ? lock : check_locked(f, err);
out:
    fsck_finish_report(f);
    fsck_clear(f);
    if (lock >= 0)
        close(lock);
    g_free(f);
    return error;
}
