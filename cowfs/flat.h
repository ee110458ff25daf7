// SPDX-License-Identifier: Apache-2.0
/*
 * flat.h - files that are one whole flat segment: chunk i of the file lies in
 * slot i of a segment of its own (its *home*), so that the segment's file has
 * the file's very bytes from offset 0 on. Such a file can be read past the
 * daemon (FUSE passthrough), and all files with one home share one page cache.
 *
 * Threads: any. No locks of the inode may be held. Errors: negative errno.
 */
#ifndef COWFS_FLAT_H
#define COWFS_FLAT_H

#include "cowfs/fs.h"

enum flat_verdict {
    FLAT_YES,
    FLAT_SMALL,       /* not larger than one leaf (512 chunks): no segment of its own */
    FLAT_ELSEWHERE,   /* some of it lies elsewhere: it was written after it was cloned, cut,
                         punched, put together from parts, or never laid out flat */
    FLAT_DEDUPED,     /* `cowfs seal` shares parts of its segment with other files */
    FLAT_PACKING,     /* a pack is under way, or was broken off */
    FLAT_UNSUPPORTED, /* the file system below cannot punch holes */
    FLAT_DAMAGED,     /* chunks of its segment are known to be damaged (damage.h) */
};
/* `inode` is a regular file. The answer may be old when it is given. */
enum flat_verdict flat_verdict(struct inode *inode);
/* In the user's words, for messages and `cowfs stat`. */
const char *flat_verdict_text(enum flat_verdict verdict);

/*
 * Holds the home segment for readers that bypass the daemon: until flat_unpin its
 * chunks are not exchanged by sealing. The caller sees to it that nobody writes or
 * cuts *this* inode meanwhile (opens.h) and keeps it referenced; other files with the
 * same home may be written: they go their own way.
 * *fd: the segment's file, with exactly the size of the inode; the store's, valid
 * until flat_unpin. *home: the segment's id, the same for all files that share it:
 * what a table of backing ids is keyed by.
 * -EINVAL if the file is not flat, or each read is to be verified.
 */
int flat_pin(struct inode *inode, int *fd, uint32_t *home);
void flat_unpin(struct fs *fs, uint32_t home);

/*
 * `cowfs pack`: lays the file out flat, from byte `offset` (a multiple of the chunk size,
 * 0 to begin) on, about `length` bytes in this call; call again with offset = *next
 * until *next == 0. The file may be read and written meanwhile. What is flat already
 * is not moved. A packed file stays flat: sealing takes no chunk out of it.
 * -EAGAIN: it was cloned or cut meanwhile: begin again at 0. -EINVAL: an offset that
 * nobody told. -ENOSPC, -EIO as writing.
 */
int flat_pack_part(struct inode *inode, uint64_t offset, uint64_t length, uint64_t *next,
                   uint64_t *moved_bytes);

#endif
