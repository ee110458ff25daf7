// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz.h - what the fuzzers (libFuzzer) share: taking an input apart, a place
 * for a store, and ending with words when something is not as it should be.
 */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include "chunkstore/bytes.h"
#include "tests/quiet_log.h"

#include <ftw.h>
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define FUZZ_ASSERT(condition)                                                      \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                \
        }                                                                           \
    } while (0)

static inline uint64_t take(struct rbuf *r, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | rbuf_get_u8(r);
    return v;
}

static char *fuzz_scratch;

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void remove_scratch(void)
{
    nftw(fuzz_scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* A directory that is gone at the end, however that comes (but for a signal). */
static inline const char *make_scratch(void)
{
    const char *base = getenv("TMPDIR");
    if (!base)
        base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    fuzz_scratch = g_build_filename(base, "cowfs-fuzz-XXXXXX", NULL);
    FUZZ_ASSERT(mkdtemp(fuzz_scratch));
    atexit(remove_scratch);
    g_log_set_default_handler(log_nothing, NULL);
    return fuzz_scratch;
}

#endif
