// SPDX-License-Identifier: Apache-2.0
/* cowfsd_options.h - the options of a mount (-o). */
#ifndef COWFSD_OPTIONS_H
#define COWFSD_OPTIONS_H

#include "cowfs/fs.h"

#include <glib.h>

struct mount_options {
    struct fs_config fs;
    bool writeback, nowriteback, passthrough; /* as said; of the first two, the later one */
    char *view_path;                          /* as said; NULL: no view */
    unsigned threads;                         /* 0: default */
    unsigned io_uring_depth;                  /* 0: over /dev/fuse */
    unsigned read_ahead_kb;                   /* 0: leave the kernel's */
    unsigned max_read_bytes;                  /* 0: no limit */
    GLogLevelFlags log_level;
    bool allow_other, own_fsname;
    bool supervise_asked, nosupervise; /* as said, the later one */
    bool supervise;                    /* from settle on: whether to try */
    GPtrArray *lists;                  /* as given */
    bool sloppy;                       /* as given with the last one */
    GString *fuse, *view_fuse;         /* for libfuse and the kernel, comma separated, escaped */
};

void mount_options_init(struct mount_options *o);
void mount_options_clear(struct mount_options *o);

/* Takes a list as given with -o: commas separate, a backslash or double quotes
 * protect one. May be called several times; later ones win. `sloppy`: unknown
 * options are ignored, as mount(8) wants it with -s. -EINVAL: err names the
 * option. */
int mount_options_parse(struct mount_options *o, const char *list, bool sloppy, struct errmsg *err);

/* When all have been taken: decides what nobody said. -EINVAL: some contradict each
 * other, and err says which. */
int mount_options_settle(struct mount_options *o, struct errmsg *err);
/* Adds the defaults and the name of the store: then o->fuse and o->view_fuse are
 * complete. */
void mount_options_finish(struct mount_options *o, const char *store_path);

/* The part of --help that lists the options. */
extern const char mount_options_help[];

#endif
