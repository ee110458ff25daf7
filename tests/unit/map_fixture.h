// SPDX-License-Identifier: Apache-2.0
/* map_fixture.h - nodes and maps without files: a database in memory, segments
 * in a scratch directory, a transaction that is committed by hand. */
#ifndef TESTS_UNIT_MAP_FIXTURE_H
#define TESTS_UNIT_MAP_FIXTURE_H

#include "cowfs/blockmap.h"
#include "tests/unit/remove_tree.h"
#include "tests/unit/suite.h"

#include <check.h>
#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <stdlib.h>

static char *scratch;
static struct node_env env;
static struct node_cache *nodes;

static void flip_nodes(void *arg)
{
    (void)arg;
    node_cache_flip(nodes);
}

static inline void setup(void)
{
    struct metadb_options options = {.create = true, .in_memory = true};
    struct errmsg err = {""};
    struct txn_config config = {
        .commit_interval_ms = 3600000, .free_delay_ms = 3600000, .dirty_limit_bytes = 1 << 30};
    char template[] = "/dev/shm/cowfs-test-XXXXXX";
    scratch = g_mkdtemp(template) ? g_strdup(template) : g_dir_make_tmp("cowfs-XXXXXX", NULL);
    ck_assert_ptr_nonnull(scratch);
    ck_assert_int_eq(metadb_open("unused", &options, &env.db, NULL), 0);
    ck_assert_msg(segments_open(scratch, 4096, 0, false, env.db, &env.segments, &err) == 0, "%s",
                  err.text);
    env.chunk_counts = counts_new(env.db, KEY_CHUNK_COUNTS, 1 << 20);
    env.node_counts = counts_new(env.db, KEY_NODE_COUNTS, 1 << 20);
    env.txn = txn_new(env.db, env.segments, env.chunk_counts, env.node_counts, &config);
    nodes = node_cache_new(&env, 1, 0 /* keep nothing that is unchanged */);
    txn_add_participant(env.txn, &(struct txn_participant){.flip = flip_nodes});
}

static inline void teardown(void)
{
    node_cache_free(nodes);
    txn_free(env.txn);
    counts_free(env.chunk_counts);
    counts_free(env.node_counts);
    segments_close(env.segments);
    metadb_close(env.db);
    remove_tree(scratch);
    g_free(scratch);
}

static inline void commit(void)
{
    ck_assert_int_eq(txn_commit(env.txn), 0);
}

/* Fresh slots, as many as a group has. */
static inline chunk_t fresh_group(void)
{
    chunk_t first;
    ck_assert_int_eq(segments_alloc_group(env.segments, &first), 0);
    return first;
}

static inline uint64_t live_chunks(void)
{
    struct counts_stats stats;
    counts_stats(env.chunk_counts, &stats);
    return stats.live;
}

static inline uint64_t live_nodes(void)
{
    struct counts_stats stats;
    counts_stats(env.node_counts, &stats);
    return stats.live;
}

#endif
