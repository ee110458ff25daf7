// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_meta.c - what the store records about itself as a whole.
 */
#include "cowfs/fsck_internal.h"

#include <errno.h>
#include <inttypes.h>

int fsck_load_meta(struct fsck *f, bool *unfinished)
{
    uint8_t key = KEY_META;
    struct metadb_value value;
    *unfinished = false;
    int error = metadb_get(f->db, &key, 1, &value);
    if (error == -ENOENT) {
        *unfinished = fsck_database_is_empty(f) && !fsck_has_segment_files(f);
        if (!*unfinished)
            fsck_found(f, FSCK_META_MISSING, 1, "the record of the store's counters is missing");
        return 0;
    }
    if (error)
        return error;
    f->has_meta = meta_decode(value.data, value.len, &f->meta) == 0;
    metadb_value_free(&value);
    if (f->has_meta)
        f->report->clean = f->meta.clean;
    else
        fsck_found(f, FSCK_RECORD_UNDECODABLE, 1, "the record of the store's counters is damaged");
    return 0;
}

static void check_next(struct fsck *f, const char *what, uint64_t next, uint64_t highest)
{
    if (next <= highest)
        fsck_found(f, FSCK_META_NEXT, 1,
                   "the next new %s would be %" PRIu64 ", but %" PRIu64 " is in use", what, next,
                   highest);
}

static void check_total(struct fsck *f, const char *what, uint64_t total, uint64_t recorded,
                        uint64_t counted)
{
    if (total != recorded && total != counted)
        fsck_found(f, FSCK_META_COUNTERS, 1, "there are %" PRIu64 " %s, but recorded are %" PRIu64,
                   recorded, what, total);
}

void fsck_check_meta(struct fsck *f)
{
    if (!f->has_meta)
        return;
    check_next(f, "inode", f->meta.next_ino, f->highest_ino);
    check_next(f, "node", f->meta.next_node_id, f->nodes.highest);
    /* Where inodes are missing, the total is the one that is right. */
    if (!f->report->count[FSCK_DIRENT_INODE_MISSING])
        check_total(f, "inodes", f->meta.inode_count, f->report->inodes, f->report->inodes);
    if ((f->has_domains && !f->meta.domains) || (f->has_public && !f->meta.has_public))
        fsck_found(f, FSCK_META_DOMAINS, 1,
                   "there is content with a domain, which is not looked at");
    if (f->counts_unknown)
        return;
    check_total(f, "chunks with an owner", f->meta.chunks_live, f->report->chunks,
                f->chunks_counted);
    check_total(f, "owners by deduplication", f->meta.merges, f->merges, f->merges);
}
