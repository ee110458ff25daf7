// SPDX-License-Identifier: Apache-2.0
/*
 * bytes.h - fixed-width and variable-length integers in records, rounding.
 *
 * Keys use big-endian integers, so that RocksDB's byte order is numeric
 * order. Values use LEB128 varints (as in DWARF and protobuf). All functions
 * are pure and safe in any thread.
 */
#ifndef CHUNKSTORE_BYTES_H
#define CHUNKSTORE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline void put_be32(uint8_t *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    memcpy(p, &v, sizeof(v));
}

static inline uint32_t get_be32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return __builtin_bswap32(v);
}

static inline void put_be64(uint8_t *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    memcpy(p, &v, sizeof(v));
}

static inline uint64_t get_be64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return __builtin_bswap64(v);
}

static inline uint64_t round_down_u64(uint64_t v, uint64_t unit)
{
    return v - v % unit;
}

/* Rounds up; the caller must know that v + unit - 1 does not overflow. */
static inline uint64_t round_up_u64(uint64_t v, uint64_t unit)
{
    return round_down_u64(v + unit - 1, unit);
}

static inline uint64_t div_round_up_u64(uint64_t v, uint64_t unit)
{
    return v / unit + (v % unit != 0);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* True if all n bytes are zero. */
bool bytes_are_zero(const void *data, size_t n);

/*
 * A growing output buffer. Zero-initialise, append, free with wbuf_free.
 * Allocation failure aborts (GLib's rule, which the whole daemon follows).
 */
struct wbuf {
    uint8_t *data;
    size_t len;
    size_t cap;
};

void wbuf_put_u8(struct wbuf *b, uint8_t v);
void wbuf_put_bytes(struct wbuf *b, const void *data, size_t n);
void wbuf_put_varint(struct wbuf *b, uint64_t v);
/* Zigzag: small magnitudes of either sign become short. */
void wbuf_put_svarint(struct wbuf *b, int64_t v);
void wbuf_put_be64(struct wbuf *b, uint64_t v);
/* Empties the buffer but keeps its memory. */
void wbuf_reset(struct wbuf *b);
void wbuf_free(struct wbuf *b);

/*
 * A checked reader over somebody else's bytes. After the first short read
 * `bad` stays true and all further reads give 0, so a decoder may check once
 * at its end; it must still check counts before it loops by them.
 */
struct rbuf {
    const uint8_t *p;
    const uint8_t *end;
    bool bad;
};

static inline struct rbuf rbuf_of(const void *data, size_t n)
{
    /* An empty record may come as NULL, to which C lets nobody add even 0. */
    static const uint8_t nothing;
    const uint8_t *p = n ? data : &nothing;
    return (struct rbuf){.p = p, .end = p + n, .bad = false};
}

static inline size_t rbuf_left(const struct rbuf *r)
{
    return r->bad ? 0 : (size_t)(r->end - r->p);
}

uint8_t rbuf_get_u8(struct rbuf *r);
uint64_t rbuf_get_varint(struct rbuf *r);
int64_t rbuf_get_svarint(struct rbuf *r);
uint64_t rbuf_get_be64(struct rbuf *r);
/* Pointer into the underlying bytes, NULL (and bad) if fewer than n are left. */
const uint8_t *rbuf_get_bytes(struct rbuf *r, size_t n);

#endif
