// SPDX-License-Identifier: Apache-2.0
/*
 * node_form.c - the two forms of a node in memory, and its record.
 *
 * Record:
 *   u8      level (1..6)
 *   then per run of rising values, until the record ends:
 *   varint  holes before the run
 *   varint  (length - 1) << 2 | same_base << 1 | reserved
 *   svarint first value - predicted value
 *
 * predicted value: with same_base 0, one more than the last value before (0
 * for the first run); with same_base 1, what the run before the last would
 * have here if it had gone on. The latter makes a run that is interrupted by
 * one overwritten chunk cost 3 bytes to resume.
 */
#include "cowfs/node_internal.h"

#include <errno.h>

void node_init_affine(struct node *n)
{
    n->lo = n->hi = 0;
    n->base = 0;
}

size_t node_bytes(const struct node *n)
{
    return sizeof(*n) + 48 /* its place in the hash table */ +
           (n->entries ? NODE_ENTRIES * sizeof(uint64_t) : 0) + (n->fill ? sizeof(*n->fill) : 0);
}

uint64_t node_run_unlocked(const struct node *n, unsigned index, unsigned limit, unsigned *alike)
{
    g_assert(index < NODE_ENTRIES && limit > 0);
    unsigned end = index + limit < NODE_ENTRIES ? index + limit : NODE_ENTRIES;
    if (!n->entries) {
        if (index >= n->lo && index < n->hi) {
            *alike = (end < n->hi ? end : n->hi) - index;
            return n->base + (index - n->lo);
        }
        *alike = (index < n->lo && n->lo < end ? n->lo : end) - index;
        return 0;
    }
    uint64_t value = n->entries[index];
    uint64_t step = value ? 1 : 0;
    unsigned i = index + 1;
    while (i < end && n->entries[i] == value + step * (i - index))
        i++;
    *alike = i - index;
    return value;
}

static void expand(struct node *n)
{
    uint64_t *entries = g_new0(uint64_t, NODE_ENTRIES);
    for (unsigned i = n->lo; i < n->hi; i++)
        entries[i] = n->base + (i - n->lo);
    n->entries = entries;
}

/* Sets the run in the affine form, if the result still is affine. */
static bool set_affine(struct node *n, unsigned index, unsigned count, uint64_t first)
{
    unsigned end = index + count;
    bool empty = n->lo == n->hi;
    if (first == 0) {
        if (empty || end <= n->lo || index >= n->hi)
            return true;
        if (index <= n->lo && end >= n->hi) {
            node_init_affine(n);
        } else if (index <= n->lo) {
            n->base += end - n->lo;
            n->lo = (uint16_t)end;
        } else if (end >= n->hi) {
            n->hi = (uint16_t)index;
        } else {
            return false;
        }
        return true;
    }
    if (empty || (index <= n->lo && end >= n->hi)) {
        n->lo = (uint16_t)index;
        n->hi = (uint16_t)end;
        n->base = first;
        return true;
    }
    /* It must touch or overlap what is there, and continue its values. */
    if (index > n->hi || end < n->lo || first + n->lo != n->base + index)
        return false;
    if (index < n->lo) {
        n->base = first;
        n->lo = (uint16_t)index;
    }
    if (end > n->hi)
        n->hi = (uint16_t)end;
    return true;
}

void node_set_run_unlocked(struct node *n, unsigned index, unsigned count, uint64_t first)
{
    g_assert(count > 0 && index + count <= NODE_ENTRIES);
    if (!n->entries) {
        if (set_affine(n, index, count, first))
            return;
        expand(n);
    }
    uint64_t step = first ? 1 : 0;
    for (unsigned i = 0; i < count; i++)
        n->entries[index + i] = first + step * i;
}

void node_copy_entries(const struct node *from, struct node *to)
{
    to->lo = from->lo;
    to->hi = from->hi;
    to->base = from->base;
    if (from->entries)
        to->entries = g_memdup2(from->entries, NODE_ENTRIES * sizeof(uint64_t));
}

void node_compact(struct node *n)
{
    if (!n->entries)
        return;
    unsigned lo = 0;
    while (lo < NODE_ENTRIES && n->entries[lo] == 0)
        lo++;
    unsigned hi = lo;
    while (hi < NODE_ENTRIES && n->entries[hi] != 0 && n->entries[hi] == n->entries[lo] + (hi - lo))
        hi++;
    for (unsigned i = hi; i < NODE_ENTRIES; i++)
        if (n->entries[i])
            return;
    n->base = lo < hi ? n->entries[lo] : 0;
    n->lo = (uint16_t)(lo < hi ? lo : 0);
    n->hi = (uint16_t)(lo < hi ? hi : 0);
    g_clear_pointer(&n->entries, g_free);
}

/* The last two runs, from which the next value is predicted. */
struct predictor {
    unsigned index[2];
    uint64_t value[2]; /* value at index; [1] is the last run */
    uint64_t next;     /* one more than the last value */
};

static uint64_t predict(const struct predictor *p, unsigned index, bool same_base)
{
    return same_base ? p->value[0] + (index - p->index[0]) : p->next;
}

static void predictor_add(struct predictor *p, unsigned index, uint64_t value, unsigned n)
{
    p->index[0] = p->index[1];
    p->value[0] = p->value[1];
    p->index[1] = index;
    p->value[1] = value;
    p->next = value + n;
}

static uint64_t magnitude(int64_t v)
{
    return v < 0 ? (uint64_t)-v : (uint64_t)v;
}

void node_encode(const struct node *n, struct wbuf *out)
{
    struct predictor p = {0};
    unsigned at = 0;
    wbuf_put_u8(out, n->level);
    for (unsigned i = 0, alike; i < NODE_ENTRIES; i += alike) {
        uint64_t entry = node_run_unlocked(n, i, NODE_ENTRIES, &alike);
        if (entry == 0)
            continue;
        uint64_t value = ENTRY_CHUNK(entry);
        int64_t delta = (int64_t)(value - predict(&p, i, false));
        int64_t delta_base = (int64_t)(value - predict(&p, i, true));
        bool same_base = magnitude(delta_base) < magnitude(delta);
        wbuf_put_varint(out, i - at);
        wbuf_put_varint(out, (uint64_t)(alike - 1) << 2 | (same_base ? 2 : 0) |
                                 (entry & ENTRY_RESERVED ? 1 : 0));
        wbuf_put_svarint(out, same_base ? delta_base : delta);
        predictor_add(&p, i, value, alike);
        at = i + alike;
    }
}

void node_encode_entries(unsigned level, uint64_t entries[NODE_ENTRIES], struct wbuf *out)
{
    struct node n = {.level = (uint8_t)level, .entries = entries};
    node_encode(&n, out);
}

int node_decode(const void *record, size_t len, unsigned *level, uint64_t entries[NODE_ENTRIES])
{
    struct rbuf r = rbuf_of(record, len);
    struct predictor p = {0};
    uint64_t at = 0;
    *level = rbuf_get_u8(&r);
    if (r.bad || *level < 1 || *level > NODE_LEVEL_MAX)
        return -EUCLEAN;
    memset(entries, 0, NODE_ENTRIES * sizeof(*entries));
    while (rbuf_left(&r) > 0) {
        uint64_t holes = rbuf_get_varint(&r);
        uint64_t word = rbuf_get_varint(&r);
        int64_t delta = rbuf_get_svarint(&r);
        uint64_t n = (word >> 2) + 1;
        if (r.bad || holes > NODE_ENTRIES - at || n > NODE_ENTRIES - at - holes ||
            (*level > 1 && (word & 1)))
            return -EUCLEAN;
        at += holes;
        uint64_t value = predict(&p, (unsigned)at, word & 2) + (uint64_t)delta;
        if (value == 0 || value + n - 1 < value || ((value + n - 1) & ENTRY_RESERVED))
            return -EUCLEAN;
        uint64_t flag = word & 1 ? ENTRY_RESERVED : 0;
        for (uint64_t i = 0; i < n; i++)
            entries[at + i] = (value + i) | flag;
        predictor_add(&p, (unsigned)at, value, (unsigned)n);
        at += n;
    }
    return r.bad ? -EUCLEAN : 0;
}
