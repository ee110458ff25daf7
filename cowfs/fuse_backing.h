// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_backing.h - the files below that the kernel reads flat files from: what
 * opens.h asks for, of the store and of the kernel.
 *
 * A mount registers the home segment of a flat file once, however many clones have
 * it for theirs, for as long as there are handles.
 *
 * Keepers: somebody wrote a file that may still be mapped past the daemon. What he
 * overwrites must not be given back to the file system below while the mapping is
 * there, or it would show zeros: so a hidden clone of the file holds it, until the
 * home is not in use any more. (The mapping goes on showing the file as it was.)
 *
 * Threads: any.
 */
#ifndef COWFS_FUSE_BACKING_H
#define COWFS_FUSE_BACKING_H

#include "cowfs/book.h"
#include "cowfs/opens.h"

struct backings;

/* book: where the next daemon finds it all; NULL: nowhere. */
struct backings *backings_new(struct fs *fs, struct book *book);
/* All mounts have ended, and the table of open files is empty. NULL is allowed. */
void backings_free(struct backings *b);

/* The callbacks for opens_new. */
struct opens_backing backings_callbacks(struct backings *b);

/* The mount talks to the kernel by that descriptor of /dev/fuse; -1: it has ended. */
void backings_set_device(struct backings *b, unsigned mount, int fd);
/* Whether the kernel takes a file of the store as a backing: 0 or a negative errno. Before there are
 * any of this daemon: gives up what the last one has registered and not entered in the book. */
int backings_try(struct backings *b, unsigned mount);
/* That errno, in the user's words. */
const char *backings_reason(int error);

/* Inode numbers for fs_config.held: the book's keepers. */
GArray *backings_held(struct book *book);
/* Goes on with what the book says, which was as good as the kernel's when the last daemon died.
 * After backings_set_device, before requests are taken. Returns how much opener_tidy_soon has to
 * look after. */
unsigned backings_adopt(struct backings *b, struct opens *opens);

/* Gives up keepers that are not needed any more. Returns how many are left. */
unsigned backings_tidy(struct backings *b);

#endif
