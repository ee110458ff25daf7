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
 */
#ifndef COWFS_SEALER_H
#define COWFS_SEALER_H

#include "cowfs/fs.h"

/* Reads the list of waiting files and starts the thread (if the config says
 * so; sealing on demand works without). */
int sealer_start(struct fs *fs, struct sealer **out);
void sealer_stop(struct sealer *sealer); /* NULL is allowed */

/* The content of the file changed: it waits for sealing. Inside the gate;
 * cheap. */
void sealer_note_write(struct fs *fs, struct inode *inode);

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
