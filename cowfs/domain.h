// SPDX-License-Identifier: Apache-2.0
/*
 * domain.h - whose sealed content is found by whom.
 *
 * Sealing finds equal content in the *domain* of the file's owner (his uid), and in the
 * public one; never what other owners have, since whoever can write a file and see space or
 * time could learn of it. What is found by content belongs to one domain: that of the owner
 * at the time when it was sealed. There it stays when the file is given to somebody else,
 * and when others clone it.
 *
 * Public content is what root has said to be so (`cowfs public`). It is content that is
 * public, not the file: what is written to the file afterwards is not. Else whoever may write
 * it could use it as a probe: others would come to share what he guesses. Taken back, nobody
 * finds it any more who did not before; what is shared by then stays shared.
 *
 * Threads: any.
 */
#ifndef COWFS_DOMAIN_H
#define COWFS_DOMAIN_H

#include "cowfs/fs.h"
#include "cowfs/ioctl.h"

enum {
    DOMAIN_ROOT = CONTENT_DOMAIN_DEFAULT,
};
/* No file has this owner: it is (uid_t)-1. */
#define DOMAIN_PUBLIC UINT32_MAX

/* The domain of what is sealed by way of this file from now on. May be called inside the
 * gate. */
uint32_t domain_of(struct inode *inode);
/* Before anything is recorded with that domain. */
void domain_note(struct fs *fs, uint32_t domain);
/* How many of the sealed chunks from `first` on one who seals in `domain` may find, up to the
 * first that he may not; at most n. */
int domain_visible_run(struct fs *fs, uint32_t domain, chunk_t first, uint32_t n, uint32_t *run);

/* COWFS_IOC_PUBLIC, whose caller's rights have been checked. */
int domain_public_range(struct fs *fs, uint64_t ino, struct cowfs_ioc_public *io);

#endif
