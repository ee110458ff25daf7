// SPDX-License-Identifier: Apache-2.0
/*
 * sealer.h - the background thread that seals files that have come to rest.
 *
 * Sealing a chunk: first it is marked as sealed in the counts (from then on
 * it is never overwritten in place), then hashed, looked up in the content
 * index, compared byte for byte with what is there, and shared or entered.
 * Only files that nobody wrote for seal_delay_ms are taken, a piece at a time,
 * the file's lock being held only to mark and to exchange.
 *
 * Files that wait are durable (KEY_UNSEALED), so a restart forgets none.
 *
 * A file that is written after it was sealed was sealed for nothing, and what is written
 * over sealed chunks goes elsewhere at two to three times the cost. So each file
 * that is seen to be written after a rest of some length has to rest for twice that
 * from then on, at most SEAL_WAIT_MAX_MS.
 */
#ifndef COWFS_SEALER_H
#define COWFS_SEALER_H

#include "cowfs/fs.h"

enum {
    SEAL_WAIT_MAX_MS = 3600 * 1000,
    /* A shorter seal_delay is meant as it is said: for all files, always. */
    SEAL_WAIT_GROWS_MS = 1000,
};

/* Reads the list of waiting files and starts the thread (if the config says
 * so; sealing on demand works without). */
int sealer_start(struct fs *fs, struct sealer **out);
void sealer_stop(struct sealer *sealer); /* NULL is allowed */

/* The content of the file changed: it waits for sealing. Inside the gate;
 * cheap. */
void sealer_note_write(struct fs *fs, struct inode *inode);

/* For how long nobody may have written the file before it is sealed in the background. */
int64_t sealer_wait_ms(const struct fs *fs, const struct inode *inode);

struct seal_result {
    uint64_t next_index; /* chunk index to go on at; UINT64_MAX: the end */
    uint64_t hashed_chunks;
    uint64_t deduplicated_chunks; /* of those: found their equal */
};
/* fn is called before (locks: false) and after (true) the part that holds no locks and
 * takes nearly all the time. */
struct seal_pace {
    void (*fn)(void *arg, bool locks);
    void *arg;
};
/* Seals chunks of the file from `index` on, at most `limit` of them looked at. keep_flat:
 * takes no chunk out of a segment that makes files flat (flat.h); without it, none out of
 * those that are packed or pinned. `pace` may be NULL. From any thread. The caller holds a
 * reference. */
int seal_file_part(struct fs *fs, struct inode *inode, uint64_t index, uint64_t limit,
                   bool keep_flat, const struct seal_pace *pace, struct seal_result *out);

#endif
