// SPDX-License-Identifier: Apache-2.0
#include "tests/model/lib/sparse.h"

#include <string.h>

struct sparse_page {
    unsigned refs;
    uint8_t data[SPARSE_PAGE];
};

static gpointer key_of(uint64_t index)
{
    return (gpointer)(uintptr_t)index;
}

static void page_unref(gpointer p)
{
    struct sparse_page *page = p;
    if (--page->refs == 0)
        g_free(page);
}

struct sparse *sparse_new(void)
{
    struct sparse *s = g_new0(struct sparse, 1);
    s->pages = g_hash_table_new_full(g_direct_hash, g_direct_equal, NULL, page_unref);
    return s;
}

struct sparse *sparse_copy(const struct sparse *from)
{
    struct sparse *s = sparse_new();
    GHashTableIter it;
    gpointer key;
    gpointer page;
    s->size = from->size;
    g_hash_table_iter_init(&it, from->pages);
    while (g_hash_table_iter_next(&it, &key, &page)) {
        ((struct sparse_page *)page)->refs++;
        g_hash_table_insert(s->pages, key, page);
    }
    return s;
}

void sparse_free(struct sparse *s)
{
    if (!s)
        return;
    g_hash_table_destroy(s->pages);
    g_free(s);
}

const uint8_t *sparse_page(const struct sparse *s, uint64_t index)
{
    struct sparse_page *page = g_hash_table_lookup(s->pages, key_of(index));
    return page ? page->data : NULL;
}

static bool is_zero(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

/* Replaces [from, from + n) of a page; data NULL: by zeros. */
static void put(struct sparse *s, uint64_t index, size_t from, size_t n, const uint8_t *data)
{
    struct sparse_page *old = g_hash_table_lookup(s->pages, key_of(index));
    if (!old && !data)
        return;
    struct sparse_page *page = g_new(struct sparse_page, 1);
    page->refs = 1;
    if (old)
        memcpy(page->data, old->data, SPARSE_PAGE);
    else
        memset(page->data, 0, SPARSE_PAGE);
    if (data)
        memcpy(page->data + from, data, n);
    else
        memset(page->data + from, 0, n);
    if (is_zero(page->data, SPARSE_PAGE)) {
        g_hash_table_remove(s->pages, key_of(index));
        g_free(page);
    } else {
        g_hash_table_insert(s->pages, key_of(index), page);
    }
}

void sparse_write(struct sparse *s, const void *data, size_t n, uint64_t offset)
{
    const uint8_t *p = data;
    if (n && offset + n > s->size)
        s->size = offset + n;
    while (n > 0) {
        size_t from = offset % SPARSE_PAGE;
        size_t part = MIN(n, SPARSE_PAGE - from);
        put(s, offset / SPARSE_PAGE, from, part, p);
        p += part;
        offset += part;
        n -= part;
    }
}

struct range {
    uint64_t first, end; /* pages */
};

static gboolean page_in_range(gpointer key, gpointer page, gpointer arg)
{
    const struct range *r = arg;
    uint64_t index = (uintptr_t)key;
    (void)page;
    return index >= r->first && index < r->end;
}

void sparse_zero(struct sparse *s, uint64_t from, uint64_t to)
{
    if (from >= to)
        return;
    struct range whole = {from / SPARSE_PAGE + (from % SPARSE_PAGE != 0), to / SPARSE_PAGE};
    if (whole.first > whole.end) { /* within one page */
        put(s, from / SPARSE_PAGE, from % SPARSE_PAGE, to - from, NULL);
        return;
    }
    if (from % SPARSE_PAGE)
        put(s, from / SPARSE_PAGE, from % SPARSE_PAGE, SPARSE_PAGE - from % SPARSE_PAGE, NULL);
    if (to % SPARSE_PAGE)
        put(s, to / SPARSE_PAGE, 0, to % SPARSE_PAGE, NULL);
    g_hash_table_foreach_remove(s->pages, page_in_range, &whole);
}

void sparse_resize(struct sparse *s, uint64_t size)
{
    if (size < s->size)
        sparse_zero(s, size, s->size);
    s->size = size;
}

void sparse_read(const struct sparse *s, void *out, size_t n, uint64_t offset)
{
    uint8_t *p = out;
    while (n > 0) {
        size_t from = offset % SPARSE_PAGE;
        size_t part = MIN(n, SPARSE_PAGE - from);
        const uint8_t *page = sparse_page(s, offset / SPARSE_PAGE);
        if (page)
            memcpy(p, page + from, part);
        else
            memset(p, 0, part);
        p += part;
        offset += part;
        n -= part;
    }
}

void sparse_copy_range(const struct sparse *src, uint64_t from, struct sparse *dst, uint64_t to,
                       uint64_t n)
{
    uint64_t end = from + n;
    struct sparse *old = sparse_copy(src); /* src and dst may be one file */
    GHashTableIter it;
    gpointer key;
    gpointer value;
    if (n && to + n > dst->size)
        dst->size = to + n;
    sparse_zero(dst, to, to + n);
    g_hash_table_iter_init(&it, old->pages);
    while (g_hash_table_iter_next(&it, &key, &value)) {
        uint64_t start = (uint64_t)(uintptr_t)key * SPARSE_PAGE;
        uint64_t first = MAX(start, from);
        uint64_t last = MIN(start + SPARSE_PAGE, end);
        if (first < last)
            sparse_write(dst, ((struct sparse_page *)value)->data + (first - start), last - first,
                         to + (first - from));
    }
    sparse_free(old);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

GArray *sparse_pages(struct sparse *const *files, unsigned n)
{
    GArray *all = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    for (unsigned i = 0; i < n; i++) {
        GHashTableIter it;
        gpointer key;
        g_hash_table_iter_init(&it, files[i]->pages);
        while (g_hash_table_iter_next(&it, &key, NULL)) {
            uint64_t index = (uintptr_t)key;
            g_array_append_val(all, index);
        }
    }
    g_array_sort(all, compare_u64);
    guint kept = 0;
    for (guint i = 0; i < all->len; i++) {
        uint64_t index = g_array_index(all, uint64_t, i);
        if (kept == 0 || g_array_index(all, uint64_t, kept - 1) != index)
            g_array_index(all, uint64_t, kept++) = index;
    }
    g_array_set_size(all, kept);
    return all;
}
