// SPDX-License-Identifier: Apache-2.0
/*
 * txn.h - the transaction: what becomes durable together.
 *
 * Every change of metadata happens inside the *gate*, entered shared. A
 * commit closes the gate for a moment (the flip: all participants write their
 * changed objects to the metadb's running overlay, which then becomes the
 * committing one), opens it, and then, while new changes go on:
 *
 *   fdatasync segments -> write the overlay, synced -> release freed space
 *
 * So: data before metadata, freed space only after, as in ext4's ordered mode
 * (jbd2's running and committing transaction are the model).
 *
 * Rules for those who use it:
 *  1. One operation's changes lie inside one txn_enter/txn_exit: a commit has
 *     all of it or nothing.
 *  2. Data of newly allocated chunks is written before the gate is entered to
 *     map them (or inside it); no other data I/O happens inside the gate.
 *  3. The gate is entered after the locks of files and names, never before.
 *     Inside it only leaf locks are taken.
 *  4. txn_throttle is called before any lock.
 *
 * A commit that fails (disk full, I/O error) is retried with the next one;
 * txn_commit returns the error to those who asked. After a failed
 * fdatasync the error is sticky (txn_error) until the store is opened again:
 * the kernel may have dropped the pages.
 */
#ifndef CHUNKSTORE_TXN_H
#define CHUNKSTORE_TXN_H

#include "chunkstore/metadb.h"
#include "chunkstore/refcount.h"
#include "chunkstore/segment.h"

struct txn;

/* Somebody above who holds changed objects (nodes, inodes, counters). */
struct txn_participant {
    void *arg;
    /* Under the exclusive gate: put all changed objects into the metadb. */
    void (*flip)(void *arg);
    /* The commit of that flip is durable. NULL is allowed. */
    void (*durable)(void *arg);
    /* After durable, on the reclaim thread, outside the gate. NULL allowed. */
    void (*reclaim)(void *arg);
};

struct txn_config {
    unsigned commit_interval_ms; /* at most so long until a change is durable */
    unsigned free_delay_ms;      /* freed space is returned so soon */
    uint64_t dirty_limit_bytes;  /* commit early at this much changed metadata */
};

struct txn *txn_new(struct metadb *db, struct segments *segments, struct counts *chunk_counts,
                    struct counts *node_counts, const struct txn_config *config);
/* Before txn_start; at most 8. */
void txn_add_participant(struct txn *t, const struct txn_participant *participant);
/* Before txn_start: called by txn_exit, while the caller still is inside the gate. */
void txn_set_publish(struct txn *t, void (*publish)(void *arg), void *arg);
/* Before txn_start: called when a sync of data has failed, before anybody is told. */
void txn_set_data_failed(struct txn *t, void (*failed)(void *arg), void *arg);
/* Before txn_start: an earlier process had such an error and nothing has been closed since, so it is
 * sticky here, too. */
void txn_fail_data(struct txn *t);
/* Starts the committer and reclaim threads (after any fork). */
void txn_start(struct txn *t);
/* Stops the threads; a last commit is the caller's to ask for before. */
void txn_stop(struct txn *t);
void txn_free(struct txn *t);

void txn_enter(struct txn *t);
void txn_exit(struct txn *t);
/* Waits while so much is changed and not committed that memory is at risk. */
void txn_throttle(struct txn *t);
/* The same for work that nobody waits for, and much earlier: it must not fill
 * the room in which others change things without waiting. */
void txn_throttle_background(struct txn *t);
/* Chunks lost their last owner: asks for a commit within free_delay_ms, which
 * gives their space back. Inside the gate; cheap. */
void txn_note_freed(struct txn *t);
/* Participants tell how many bytes of changed objects they hold (+/-). */
void txn_note_dirty(struct txn *t, int64_t bytes);

/* Makes durable all changes that were made before the call. Concurrent
 * callers share one commit. */
int txn_commit(struct txn *t);
/* The number of the commit that a change made now, inside the gate, is part of. */
uint64_t txn_next(struct txn *t);
/* Makes durable the bytes written to segments before the call, and the changes
 * of commit `number`: by a commit only if it is not durable yet. */
int txn_sync_data(struct txn *t, uint64_t number);
/* Asks for a commit within delay_ms, does not wait. */
void txn_kick(struct txn *t, unsigned delay_ms);
/* Waits until the space freed by durable commits has been given back. */
void txn_wait_reclaim(struct txn *t);
/* 0, or the error of the last commit that failed. */
int txn_error(struct txn *t);
/* Number of durable commits so far. */
uint64_t txn_commits(struct txn *t);
/* How far commits have come, for tests: so many have flipped, of so many the data is durable,
 * so many are durable. Read in that order: one that seems to be under way was so at some
 * moment of the call. */
struct txn_progress {
    uint64_t begun, synced, durable;
};
struct txn_progress txn_progress(struct txn *t);

#endif
