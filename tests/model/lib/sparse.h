// SPDX-License-Identifier: Apache-2.0
/*
 * sparse.h - what a test believes the content of a file to be: a byte array
 * with holes, so that offsets may be as large as a file system allows.
 *
 * Pages are shared between copies until one of them is written to, so keeping
 * old states is cheap. A page that is all zero is never kept.
 */
#ifndef TESTS_MODEL_SPARSE_H
#define TESTS_MODEL_SPARSE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum { SPARSE_PAGE = 4096 };

struct sparse {
    uint64_t size;
    GHashTable *pages; /* page index -> struct sparse_page */
};

struct sparse *sparse_new(void);
struct sparse *sparse_copy(const struct sparse *from);
void sparse_free(struct sparse *s); /* NULL is allowed */

/* Writing beyond the end grows it; zeroing does not. */
void sparse_write(struct sparse *s, const void *data, size_t n, uint64_t offset);
void sparse_zero(struct sparse *s, uint64_t from, uint64_t to);
void sparse_resize(struct sparse *s, uint64_t size);
/* Bytes beyond the end read as zeros. */
void sparse_read(const struct sparse *s, void *out, size_t n, uint64_t offset);
/* As copy_file_range: grows dst; the ranges must not overlap in one file. */
void sparse_copy_range(const struct sparse *src, uint64_t from, struct sparse *dst, uint64_t to,
                       uint64_t n);

/* The page's bytes, or NULL if it is all zero. */
const uint8_t *sparse_page(const struct sparse *s, uint64_t index);
/* Indexes of the pages that are not all zero, ascending, of all n files. */
GArray *sparse_pages(struct sparse *const *files, unsigned n);

#endif
