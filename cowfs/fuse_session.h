// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_session.h - a store served as a mount, or as two: what tools/ asks of the
 * FUSE side.
 *
 * The one who calls has forked already, if he wants to: RocksDB and threads do
 * not survive a fork.
 */
#ifndef COWFS_FUSE_SESSION_H
#define COWFS_FUSE_SESSION_H

#include "cowfs/fs.h"

struct handover;

struct fuse_mount_point {
    const char *path; /* absolute, an existing directory */
    /* Options for the kernel and libfuse, comma separated, commas and
     * backslashes in values escaped by a backslash: "ro,fsname=/a\,b". */
    const char *fuse_options;
    /* At most one of them, as the kernel has it. */
    bool writeback;   /* the kernel's writeback cache */
    bool passthrough; /* flat files are read past the daemon */
};

struct fuse_mount_config {
    const char *store_path; /* absolute */
    struct fuse_mount_point main;
    /* A second mount of the store, that changes nothing and sees what reaches the
     * daemon by the first. path NULL: none. Ends with the first. */
    struct fuse_mount_point view;
    unsigned max_read_bytes; /* as in fuse_options, where the two must agree; 0: no limit */
    struct fs_config fs;     /* keep_flat is set here */
    unsigned threads;        /* most workers of a mount; 0: default */
    unsigned io_uring_depth; /* requests a CPU over io_uring; 0: all over /dev/fuse */
    unsigned read_ahead_kb;  /* of the kernel for the mounts; 0: leave it */
    /* Of a daemon that a supervisor has started, with the descriptors of handover.h: the
     * mounts are there, no io_uring is. NULL: mounts itself. */
    struct handover *handover;
    bool resumed; /* and an earlier daemon has served it */
    /* Called once, when all mounts can be used. */
    void (*ready)(void *arg);
    void *arg;
};

/*
 * Opens the store, mounts, serves until the (first) mount is gone or SIGTERM, SIGINT
 * or SIGHUP asks for the end, closes the store. Blocks those signals for good in
 * the calling thread, and ignores SIGPIPE and SIGIO. Returns 0, or a negative errno
 * with err set: -EBUSY if the store is in use, -EINVAL for options that contradict
 * it, ...
 */
int fuse_mount_run(const struct fuse_mount_config *config, struct errmsg *err);

/* Whether this program could go on with the mount of config->handover, which another daemon
 * serves just now: 0, or a negative errno. Changes nothing. */
int fuse_mount_check(const struct fuse_mount_config *config, struct errmsg *err);

#endif
