// SPDX-License-Identifier: Apache-2.0
#include "tests/model/lib/scratch.h"

#include "cowfs/reap.h"
#include "tests/model/lib/compare.h"

#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* RocksDB is not built with the sanitizer, which then does not see how its
 * threads synchronise, but does see its calls of memcpy. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "ignore_noninstrumented_modules=1";
}

static void log_oddities(const char *domain, GLogLevelFlags level, const char *message, void *arg)
{
    (void)arg;
    if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_WARNING))
        fail("%s: %s", domain ? domain : "log", message);
}

void scratch_log_is_failure(void)
{
    g_log_set_default_handler(log_oddities, NULL);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void scratch_remove(char *path)
{
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS))
        perror(path);
    g_free(path);
}

char *scratch_make(void)
{
    const char *dirs[] = {getenv("TMPDIR"), "/dev/shm", "/tmp"};
    for (unsigned i = 0; i < G_N_ELEMENTS(dirs); i++) {
        if (!dirs[i] || access(dirs[i], W_OK) != 0)
            continue;
        char *path = g_build_filename(dirs[i], "cowfs-model-XXXXXX", NULL);
        if (mkdtemp(path))
            return path;
        g_free(path);
    }
    fprintf(stderr, "no place for a temporary store\n");
    exit(2);
}

uint64_t scratch_number(const char *text)
{
    char *end;
    uint64_t n = strtoull(text, &end, 0);
    if (!*text || *end) {
        fprintf(stderr, "'%s' is no number\n", text);
        exit(2);
    }
    return n;
}

void scratch_wait_empty(struct fs *fs)
{
    struct segments_stats segments = {.live_chunks = 0};
    for (unsigned tries = 0; tries < 300; tries++) {
        reaper_wait(fs->reaper);
        int error = fs_commit(fs);
        if (!error)
            error = segments_stats(fs->segments, &segments);
        if (error)
            fail("the last commit: %s", g_strerror(-error));
        txn_wait_reclaim(fs->txn);
        if (!fs_chunks_live(fs) && !segments.live_chunks && !segments.allocated_bytes)
            return;
        g_usleep(100000);
    }
    fail("of deleted files %" PRIu64 " chunks are left; segments hold %" PRIu64 " chunks, %" PRIu64
         " bytes",
         fs_chunks_live(fs), segments.live_chunks, segments.allocated_bytes);
}
