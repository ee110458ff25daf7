// SPDX-License-Identifier: Apache-2.0
/*
 * power.h - what mount_power's writers were promised, and what may be there after a cut.
 *
 * A *log* lies in a file outside of what is cut. Each writer appends a record before it
 * does something, and its result after. A writer's files are its own: it alone changes
 * them, one operation after the other. `struct bounds` says how much of the log was
 * there before and after the cut: what had ended before it counts as promised, what
 * began before its end may have happened.
 */
#ifndef TESTS_MOUNT_POWER_H
#define TESTS_MOUNT_POWER_H

#include "tests/mount/mount_common.h"

#include <stdatomic.h>

enum {
    POWER_BLOCK = 4096,
    POWER_WRITERS = 4,
    POWER_SLOTS = 10,   /* names of one writer */
    POWER_BLOCKS = 900, /* of a file; beyond 512 it gets a home of its own */
    POWER_RECORDS = 1 << 16,
};

enum power_what {
    POWER_CREATE,   /* slot */
    POWER_WRITE,    /* slot, offset (of a block), length, version */
    POWER_TRUNCATE, /* slot, length */
    POWER_PUNCH,    /* slot, offset, length: whole blocks */
    POWER_CLONE,    /* slot to other */
    POWER_COPY,     /* all of slot to other, which is empty, by copy_file_range */
    POWER_RENAME,   /* slot to other, which may be there */
    POWER_UNLINK,   /* slot */
    POWER_SEAL,     /* slot */
    POWER_PACK,     /* slot */
    POWER_FSYNC,    /* slot */
    POWER_FDATASYNC,
    POWER_FSYNC_DIR,
    POWER_WHATS
};

struct power_record {
    uint32_t what, slot, other;
    int32_t result; /* 0 or a negative errno, once `ended` */
    uint64_t offset, length, version;
    atomic_bool ended;
};

struct power_log {
    struct {
        atomic_uint_fast64_t begun, ended;
        struct power_record records[POWER_RECORDS];
    } writers[POWER_WRITERS];
};

/* Records of each writer. */
struct power_bounds {
    uint64_t before[POWER_WRITERS]; /* had ended when the cut began */
    uint64_t after[POWER_WRITERS];  /* had begun when the cut was over */
};

struct power_log *power_log_open(const char *path, bool create);

/* The bytes of block `index` as `version` wrote it, of which `length` count; zeros
 * behind. Version 0: zeros. */
void power_fill(uint8_t *block, uint64_t index, uint64_t version, uint64_t length);
void power_name(char name[32], unsigned writer, unsigned slot);

/* Works in `dir` until something gives an error, or for duration_ms. Returns how many
 * operations were done. `store`: some of its dirty pages are written now and then, as
 * the kernel may at any time. */
uint64_t power_work(const char *dir, const char *store, struct power_log *log, uint64_t seed,
                    unsigned duration_ms);

/* Ends the process if something is not as promised. Returns how many files there are. */
uint64_t power_check(const char *dir, const struct power_log *log,
                     const struct power_bounds *bounds);

#endif
