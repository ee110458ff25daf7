// SPDX-License-Identifier: Apache-2.0
/* Integers in records, rounding, zero detection. */
#include "chunkstore/bytes.h"
#include "chunkstore/keys.h"
#include "tests/unit/suite.h"

#include <check.h>
#include <stdlib.h>

static const uint64_t interesting[] = {
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x3fff,
    0x4000,
    511,
    512,
    UINT32_MAX,
    (uint64_t)UINT32_MAX + 1,
    INT64_MAX,
    (uint64_t)INT64_MAX + 1,
    UINT64_MAX - 1,
    UINT64_MAX,
};
enum { INTERESTING_COUNT = sizeof(interesting) / sizeof(interesting[0]) };

START_TEST(be64_keeps_numeric_order)
{
    uint8_t a[8];
    uint8_t b[8];
    for (unsigned i = 0; i < INTERESTING_COUNT; i++) {
        put_be64(a, interesting[i]);
        ck_assert_uint_eq(get_be64(a), interesting[i]);
        for (unsigned j = i + 1; j < INTERESTING_COUNT; j++) {
            put_be64(b, interesting[j]);
            bool less = interesting[i] < interesting[j];
            ck_assert_int_eq(memcmp(a, b, 8) < 0, less);
        }
    }
    put_be64(a, 0x0102030405060708u);
    ck_assert_mem_eq(a, "\1\2\3\4\5\6\7\10", 8);
}
END_TEST

START_TEST(keys_have_type_then_numbers)
{
    uint8_t key[KEY_MAX];
    ck_assert_uint_eq(key_u64(key, KEY_INODE, 5), 9);
    ck_assert_mem_eq(key, "i\0\0\0\0\0\0\0\5", 9);
    ck_assert_uint_eq(key_u64_u64(key, KEY_DIRENT, 1, 256), 17);
    ck_assert_mem_eq(key, "d\0\0\0\0\0\0\0\1\0\0\0\0\0\0\1\0", 17);
}
END_TEST

START_TEST(rounding)
{
    ck_assert_uint_eq(round_down_u64(4097, 4096), 4096);
    ck_assert_uint_eq(round_down_u64(4095, 4096), 0);
    ck_assert_uint_eq(round_up_u64(0, 4096), 0);
    ck_assert_uint_eq(round_up_u64(1, 4096), 4096);
    ck_assert_uint_eq(round_up_u64(4096, 4096), 4096);
    ck_assert_uint_eq(round_up_u64(7, 3), 9);
    ck_assert_uint_eq(div_round_up_u64(0, 512), 0);
    ck_assert_uint_eq(div_round_up_u64(513, 512), 2);
    /* Must not overflow on the way. */
    ck_assert_uint_eq(div_round_up_u64(UINT64_MAX, 1), UINT64_MAX);
    ck_assert_uint_eq(div_round_up_u64(UINT64_MAX, 2), (uint64_t)1 << 63);
    ck_assert_uint_eq(min_u64(1, UINT64_MAX), 1);
    ck_assert_uint_eq(max_u64(1, UINT64_MAX), UINT64_MAX);
}
END_TEST

START_TEST(what_is_written_is_read)
{
    struct wbuf w = {0};
    for (unsigned i = 0; i < INTERESTING_COUNT; i++) {
        wbuf_put_varint(&w, interesting[i]);
        wbuf_put_svarint(&w, (int64_t)interesting[i]);
        wbuf_put_be64(&w, interesting[i]);
        wbuf_put_u8(&w, (uint8_t)i);
        wbuf_put_bytes(&w, "abc", 3);
        wbuf_put_bytes(&w, NULL, 0);
    }
    struct rbuf r = rbuf_of(w.data, w.len);
    for (unsigned i = 0; i < INTERESTING_COUNT; i++) {
        ck_assert_uint_eq(rbuf_get_varint(&r), interesting[i]);
        ck_assert_int_eq(rbuf_get_svarint(&r), (int64_t)interesting[i]);
        ck_assert_uint_eq(rbuf_get_be64(&r), interesting[i]);
        ck_assert_uint_eq(rbuf_get_u8(&r), i);
        ck_assert_mem_eq(rbuf_get_bytes(&r, 3), "abc", 3);
    }
    ck_assert(!r.bad);
    ck_assert_uint_eq(rbuf_left(&r), 0);
    wbuf_free(&w);
    ck_assert_ptr_null(w.data);
    wbuf_free(&w);
}
END_TEST

static size_t varint_length(uint64_t v)
{
    struct wbuf w = {0};
    wbuf_put_varint(&w, v);
    size_t len = w.len;
    wbuf_free(&w);
    return len;
}

static size_t svarint_length(int64_t v)
{
    struct wbuf w = {0};
    wbuf_put_svarint(&w, v);
    size_t len = w.len;
    wbuf_free(&w);
    return len;
}

START_TEST(small_numbers_are_short)
{
    ck_assert_uint_eq(varint_length(0), 1);
    ck_assert_uint_eq(varint_length(127), 1);
    ck_assert_uint_eq(varint_length(128), 2);
    ck_assert_uint_eq(varint_length(UINT64_MAX), 10);
    ck_assert_uint_eq(svarint_length(-1), 1);
    ck_assert_uint_eq(svarint_length(63), 1);
    ck_assert_uint_eq(svarint_length(-64), 1);
    ck_assert_uint_eq(svarint_length(64), 2);
    ck_assert_uint_eq(svarint_length(INT64_MIN), 10);
}
END_TEST

START_TEST(reset_keeps_memory)
{
    struct wbuf w = {0};
    for (int i = 0; i < 1000; i++)
        wbuf_put_u8(&w, (uint8_t)i);
    ck_assert_uint_eq(w.len, 1000);
    size_t cap = w.cap;
    wbuf_reset(&w);
    ck_assert_uint_eq(w.len, 0);
    ck_assert_uint_eq(w.cap, cap);
    wbuf_free(&w);
}
END_TEST

START_TEST(short_input_is_noticed_and_stays_so)
{
    /* Each proper prefix of a record fails, whatever is read from it. */
    struct wbuf w = {0};
    wbuf_put_varint(&w, UINT64_MAX);
    wbuf_put_be64(&w, 7);
    for (size_t n = 0; n < w.len; n++) {
        uint8_t *exact = malloc(n + 1); /* for the address sanitizer */
        memcpy(exact + 1, w.data, n);
        struct rbuf r = rbuf_of(exact + 1, n);
        rbuf_get_varint(&r);
        ck_assert_uint_eq(rbuf_get_be64(&r), 0);
        ck_assert(r.bad);
        ck_assert_uint_eq(rbuf_left(&r), 0);
        /* Sticky, even for what would fit. */
        ck_assert_ptr_null(rbuf_get_bytes(&r, 0));
        ck_assert_uint_eq(rbuf_get_u8(&r), 0);
        free(exact);
    }
    wbuf_free(&w);

    struct rbuf r = rbuf_of("abc", 3);
    ck_assert_ptr_null(rbuf_get_bytes(&r, SIZE_MAX));
    ck_assert(r.bad);
}
END_TEST

START_TEST(overlong_varints_are_refused)
{
    /* 2^64: the tenth byte may be 1 at most. */
    static const uint8_t too_large[] = "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02";
    static const uint8_t endless[] = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    struct rbuf r = rbuf_of(too_large, 10);
    ck_assert_uint_eq(rbuf_get_varint(&r), 0);
    ck_assert(r.bad);
    r = rbuf_of(endless, 12);
    rbuf_get_varint(&r);
    ck_assert(r.bad);
}
END_TEST

START_TEST(zero_detection_at_every_place)
{
    enum { SIZE = 96 };
    uint8_t data[SIZE + 9] = {0};
    for (size_t start = 0; start < 8; start++) {
        for (size_t n = 0; n <= SIZE; n++) {
            ck_assert(bytes_are_zero(data + start, n));
            for (size_t i = 0; i < n; i++) {
                data[start + i] = 0x80;
                ck_assert(!bytes_are_zero(data + start, n));
                data[start + i] = 0;
            }
            /* A byte behind the range does not count. */
            data[start + n] = 1;
            ck_assert(bytes_are_zero(data + start, n));
            data[start + n] = 0;
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bytes");
    TCase *tcase = tcase_create("bytes");
    tcase_add_test(tcase, be64_keeps_numeric_order);
    tcase_add_test(tcase, keys_have_type_then_numbers);
    tcase_add_test(tcase, rounding);
    tcase_add_test(tcase, what_is_written_is_read);
    tcase_add_test(tcase, small_numbers_are_short);
    tcase_add_test(tcase, reset_keeps_memory);
    tcase_add_test(tcase, short_input_is_noticed_and_stays_so);
    tcase_add_test(tcase, overlong_varints_are_refused);
    tcase_add_test(tcase, zero_detection_at_every_place);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
