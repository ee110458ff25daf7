// SPDX-License-Identifier: Apache-2.0
#include "chunkstore/bytes.h"

#include <glib.h>

bool bytes_are_zero(const void *data, size_t n)
{
    const uint8_t *p = data;
    /* The comparison of a buffer with itself, shifted, is memcmp at full
     * speed; the first bytes are looked at alone because most data is not
     * zero and shows it there. */
    if (n == 0)
        return true;
    for (size_t i = 0; i < n && i < 16; i++)
        if (p[i])
            return false;
    return n <= 16 || memcmp(p, p + 16, n - 16) == 0;
}

static void reserve(struct wbuf *b, size_t more)
{
    if (b->len + more <= b->cap)
        return;
    size_t cap = b->cap ? b->cap * 2 : 64;
    while (cap < b->len + more)
        cap *= 2;
    b->data = g_realloc(b->data, cap);
    b->cap = cap;
}

void wbuf_put_u8(struct wbuf *b, uint8_t v)
{
    reserve(b, 1);
    b->data[b->len++] = v;
}

void wbuf_put_bytes(struct wbuf *b, const void *data, size_t n)
{
    if (n == 0)
        return;
    reserve(b, n);
    memcpy(b->data + b->len, data, n);
    b->len += n;
}

void wbuf_put_varint(struct wbuf *b, uint64_t v)
{
    reserve(b, 10);
    while (v >= 0x80) {
        b->data[b->len++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    b->data[b->len++] = (uint8_t)v;
}

void wbuf_put_svarint(struct wbuf *b, int64_t v)
{
    wbuf_put_varint(b, ((uint64_t)v << 1) ^ (uint64_t)(v >> 63));
}

void wbuf_put_be64(struct wbuf *b, uint64_t v)
{
    reserve(b, 8);
    put_be64(b->data + b->len, v);
    b->len += 8;
}

void wbuf_reset(struct wbuf *b)
{
    b->len = 0;
}

void wbuf_free(struct wbuf *b)
{
    g_free(b->data);
    *b = (struct wbuf){0};
}

uint8_t rbuf_get_u8(struct rbuf *r)
{
    const uint8_t *p = rbuf_get_bytes(r, 1);
    return p ? *p : 0;
}

uint64_t rbuf_get_varint(struct rbuf *r)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte = rbuf_get_u8(r);
        if (r->bad)
            return 0;
        if (shift == 63 && byte > 1)
            break;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return v;
    }
    r->bad = true;
    return 0;
}

int64_t rbuf_get_svarint(struct rbuf *r)
{
    uint64_t v = rbuf_get_varint(r);
    return (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
}

uint64_t rbuf_get_be64(struct rbuf *r)
{
    const uint8_t *p = rbuf_get_bytes(r, 8);
    return p ? get_be64(p) : 0;
}

const uint8_t *rbuf_get_bytes(struct rbuf *r, size_t n)
{
    if (r->bad || (size_t)(r->end - r->p) < n) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *p = r->p;
    r->p += n;
    return p;
}
