// SPDX-License-Identifier: Apache-2.0
/*
 * faults.h - what programs share that do the same work again and again, each
 * time with another call of the disk (disk.h) that fails.
 *
 *   PROGRAM [--error ENOSPC|EIO] [--from K] [--to K] [--run N] [--verbose]
 *
 * The first time K = 0 fails of the calls that can fail so, then 1, 2, … until
 * there are no more; --run N: K and the N - 1 calls after it. Without --error:
 * all with ENOSPC, then all with EIO. Each time one process works on a new
 * store; then the power fails, and another one looks at what is left.
 */
#ifndef TESTS_MODEL_FAULTS_H
#define TESTS_MODEL_FAULTS_H

#include "tests/model/disk/disk.h"

enum { FAULTS_STEPS_MAX = 64 };

/* What the workers tell the parent, and the one who looks. */
struct faults_told {
    int results[FAULTS_STEPS_MAX];
    unsigned done;       /* steps, whatever came of them */
    bool opened, closed; /* promises, too */
    unsigned promised;   /* steps that have to be there after the cut */
    uint64_t calls, failed;
};

struct faults {
    const char *name; /* of the program */
    /* Works on a store in the directory `store`, and ends its process. */
    void (*work)(struct faults *f, const char *store);
    /* What the power cut left in `path`; ends its process. */
    void (*look)(struct faults *f, const char *path);
    /* By the command line: */
    int error;
    uint64_t from, to, run;
    bool verbose;
    /* Now: */
    uint64_t k;
    struct faults_told *told; /* in shared memory */
};

/* For the worker: from now on the call fails whose turn it is. */
void faults_begin(const struct faults *f);
/* For the worker: no more. Notes how many calls there were. */
void faults_end(const struct faults *f);

/* The whole program: its exit status. */
int faults_main(struct faults *f, int argc, char **argv);

/* A child that dies with its parent; and whether it came to a good end. */
pid_t faults_start(void);
bool faults_ended_well(pid_t pid);

#endif
