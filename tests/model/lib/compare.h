// SPDX-License-Identifier: Apache-2.0
/*
 * compare.h - is a file what the test believes it to be?
 *
 * Everything here ends the process with a message when it is not: what goes on
 * after a first difference only hides it.
 */
#ifndef TESTS_MODEL_COMPARE_H
#define TESTS_MODEL_COMPARE_H

#include "cowfs/file.h"
#include "tests/model/lib/sparse.h"

/* Prints what is wrong and ends the process with status 1. */
__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
/* Printed with every failure; the caller keeps it. */
void fail_context(const char *text);

/*
 * The whole file, holes and all: size, bytes, and that what SEEK_HOLE calls a
 * hole has no byte but zero. With several versions each byte (by itself) has
 * to be that of one of them, and the size to lie between theirs: what is left
 * after a crash of changes that nobody had committed.
 */
void compare_file(struct inode *inode, struct sparse *const *versions, unsigned n,
                  const char *name);
/* [offset, offset + n) alone. */
void compare_range(struct inode *inode, const struct sparse *expected, uint64_t offset, size_t n,
                   const char *name);
uint64_t file_size(struct inode *inode);

/* fsck of a store that is not open: no error, and no leak but chunks that
 * were sealed without being found a place in the index (see seal.c). */
void check_store(const char *path);

#endif
