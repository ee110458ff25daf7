// SPDX-License-Identifier: Apache-2.0
/*
 * opens.h - who has which file open, and how: what decides whether a reader may
 * be served past the daemon (passthrough).
 *
 * The rules, of which the first three are the kernel's:
 *  1. In one mount an inode is read past the daemon by all its handles or by none.
 *  2. A handle for writing never is past the daemon.
 *  3. All handles of an inode that are have the same backing file.
 *  4. While somebody in any mount has the file open for writing, or is cutting it,
 *     no passthrough begins; while passthrough handles are open in any mount, nobody
 *     opens it for writing (-ETXTBSY) or cuts it.
 *
 * An inode in the table (all counts are of open handles):
 *
 *   [no entry] --opens_read--> DECIDING --pin--> PASSTHROUGH --last close--> LEFT
 *                                 |                   ^--- opens_read ---------|
 *                                 '--not flat--> cached, counted               |
 *   [no entry] --opens_write--> writers, counted <--- settled: see below ------'
 *
 * A mapping outlives its handle: mmap(2) of a passthrough handle maps the backing
 * file, and the kernel tells nothing when that mapping ends. So after the last
 * close the inode is LEFT: it keeps its backing file until that is unused for sure,
 * or until the kernel has forgotten the inode (which a mapping prevents). If it is
 * opened for writing before, `keep` preserves for the mapping what it has mapped.
 *
 * Threads: any. Callbacks are called without locks, but where said; no locks of inodes may be
 * held.
 */
#ifndef COWFS_OPENS_H
#define COWFS_OPENS_H

#include "cowfs/inode.h"

/* How a handle is served. It is the lowest byte of fi->fh (the rest is book.h's), and has to
 * mean the same to a daemon that is started anew under the mount: never change the numbers. */
enum open_kind {
    OPEN_UNCOUNTED = 0,
    OPEN_READER = 1,
    OPEN_WRITER = 2,
    OPEN_PASSTHROUGH = 3,
};

static inline enum open_kind open_kind_of(uint64_t fh)
{
    return (enum open_kind)(fh & 0xff);
}

/* An inode's home, held for a mount. */
struct opens_pin {
    uint32_t home;
    uint32_t row; /* in the book; 0: none */
};

/* What the table asks for. */
struct opens_backing {
    void *arg;
    /* The backing of an inode that nobody writes. -EINVAL: it has none, so it is read
     * through the daemon; so it is with any other error. */
    int (*pin)(void *arg, unsigned mount, uint64_t ino, struct opens_pin *pin);
    void (*unpin)(void *arg, unsigned mount, const struct opens_pin *pin);
    /* A handle past the daemon, and its end: what the kernel of that mount calls the
     * file, or a negative errno. Called with the table's lock held. */
    int (*open)(void *arg, unsigned mount, uint32_t home);
    void (*close)(void *arg, unsigned mount, uint32_t home);
    /* Whether somebody other than the daemon has the home's file open or mapped; true
     * if that cannot be known. */
    bool (*in_use)(void *arg, uint32_t home);
    /* Preserves the inode's content in its home, as it is now, for those who have it
     * mapped, and takes over the pin. */
    int (*keep)(void *arg, unsigned mount, uint64_t ino, const struct opens_pin *pin);
    /* Whether that mount's kernel knows the inode. Leaf locks only: it is called with
     * the table's lock held. */
    bool (*is_known)(void *arg, unsigned mount, uint64_t ino);
};

struct opens;

/* passthrough: the mounts that may have it, one bit each. */
struct opens *opens_new(const struct opens_backing *backing, unsigned passthrough);
/* All mounts have ended. NULL is allowed. */
void opens_free(struct opens *o);

/* It turned out that the mount cannot have passthrough. */
void opens_no_passthrough(struct opens *o, unsigned mount);

/* Before all else: what an earlier daemon has left, as the kernel has it, in any order. Such an
 * inode may be mapped until its home is not in use: that the kernel knows it, we may not know.
 * A handle past the daemon without a pin is not possible. */
void opens_restore_handle(struct opens *o, unsigned mount, uint64_t ino, enum open_kind kind);
void opens_restore_pin(struct opens *o, unsigned mount, uint64_t ino, const struct opens_pin *pin);
/* Returns how many are LEFT. */
unsigned opens_restored(struct opens *o);

/* A handle for reading: OPEN_PASSTHROUGH with *id, or OPEN_READER. */
enum open_kind opens_read(struct opens *o, unsigned mount, uint64_t ino, int *id);

/* A handle for writing, or a change of the size while the call lasts. 0, -ETXTBSY, or
 * why what others have mapped could not be preserved. A wait is for a close that is on
 * its way: the kernel tells of it after close(2) has returned. */
int opens_write(struct opens *o, unsigned mount, uint64_t ino, unsigned wait_ms);

/* A reader may wait as well, for writers whose close is on its way, so that he is not kept
 * from passthrough by one who has gone. */
void opens_wait_for_writers(struct opens *o, uint64_t ino, unsigned wait_ms);

/* The end of a handle. One that is not known is ignored (it is of an earlier daemon).
 * True if the inode is LEFT now: opens_tidy has something to do. */
bool opens_close(struct opens *o, unsigned mount, uint64_t ino, enum open_kind kind);

/* The mount's kernel has forgotten the inode, or (opens_end_mount) all. */
void opens_forgotten(struct opens *o, unsigned mount, uint64_t ino);
void opens_end_mount(struct opens *o, unsigned mount);

/* Releases what is LEFT and not in use any more. Returns how many are left. */
unsigned opens_tidy(struct opens *o);

struct opens_counts {
    unsigned readers, passthrough; /* of that mount */
    unsigned writers;              /* of all mounts */
    int id;                        /* with passthrough: of its backing file */
};
/* As it is just now. */
struct opens_counts opens_look(struct opens *o, unsigned mount, uint64_t ino);

#endif
