// SPDX-License-Identifier: Apache-2.0
/*
 * repair.h - makes a damaged store sound again, as far as its own records allow.
 *
 * What can be counted is counted again from the maps and names: owners, links,
 * sizes of directories, totals, live chunks, the content index. What has lost
 * its name gets one in /lost+found. Where a part of a map cannot be read, that
 * part of the file is an error (EIO) from then on, never zeros: its entries are
 * replaced by chunks of a segment without bytes that are marked as damaged.
 * Nodes that lost what referred to them become files in lost+found.
 *
 * All is one commit: a crash before it leaves the store as it was, and after it
 * fsck finds nothing. That is checked before it is made.
 */
#ifndef COWFS_REPAIR_H
#define COWFS_REPAIR_H

#include "cowfs/fsck.h"

struct repair_options {
    /* Only tells what would be done. */
    bool dry_run;
    /* Memory for counting chunks, as of fsck_options. */
    uint64_t memory_bytes;
    /* Damage that was found; NULL is allowed. */
    void (*message)(void *arg, enum fsck_kind kind, const char *text);
    /* One thing that is (to be) done, before it is; NULL is allowed. */
    void (*action)(void *arg, const char *text);
    /* All actions were told; not 0: leave the store as it is. NULL is allowed. */
    int (*before_commit)(void *arg);
    void (*progress)(void *arg, const char *phase, uint64_t done, uint64_t total);
    void *arg;
};

struct repair_report {
    struct fsck_report before; /* what was found */
    uint64_t actions;
    bool committed; /* something was changed */
};

/*
 * 0 if the store is sound now (or would be), -EUCLEAN if it cannot be repaired
 * (err says why; then nothing was changed), -EBUSY if it is in use, and others as
 * of fsck_run.
 */
int repair_run(const char *store_path, const struct repair_options *options,
               struct repair_report *report, struct errmsg *err);

#endif
