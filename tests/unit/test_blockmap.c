// SPDX-License-Identifier: Apache-2.0
/*
 * Maps against sparse models: look-up, set, punch, share, clone, release, diff,
 * at the boundaries of leaves and levels; and after all is released nothing is
 * owned any more.
 */
#include "tests/unit/map_fixture.h"

enum { MAPS = 3, SPOTS = 4, SPOT_CHUNKS = 1200 };

/* Where boundaries are: the first leaves, a GiB, 512 GiB, somewhere high. */
static const uint64_t spots[SPOTS] = {
    0,
    (UINT64_C(1) << 18) - 600,
    (UINT64_C(1) << 27) - 600,
    (UINT64_C(1) << 31) + 12345,
};

struct model {
    uint64_t value[SPOTS][SPOT_CHUNKS];
};

static struct map maps[MAPS];
static struct model models[MAPS];
static chunk_t next_chunk;
static unsigned left_in_group;

/* Fresh chunks, neighbours, not across a group. */
static chunk_t take_chunks(unsigned *n)
{
    if (left_in_group == 0) {
        next_chunk = fresh_group();
        left_in_group = SLOT_GROUP;
    }
    *n = MIN(*n, left_in_group);
    chunk_t first = next_chunk;
    next_chunk += *n;
    left_in_group -= *n;
    return first;
}

static void check_map(unsigned m)
{
    for (unsigned s = 0; s < SPOTS; s++) {
        for (unsigned i = 0; i < SPOT_CHUNKS;) {
            struct extent e;
            ck_assert_int_eq(map_lookup(nodes, &maps[m], spots[s] + i, SPOT_CHUNKS - i, true, &e),
                             0);
            ck_assert_uint_eq(e.index, spots[s] + i);
            ck_assert_uint_ge(e.count, 1);
            for (unsigned k = 0; k < e.count && i + k < SPOT_CHUNKS; k++)
                ck_assert_uint_eq(models[m].value[s][i + k], e.chunk ? e.chunk + k : 0);
            i += (unsigned)MIN(e.count, SPOT_CHUNKS - i);
        }
    }
}

static void check_seek(unsigned m, unsigned s)
{
    unsigned from = (unsigned)rand() % SPOT_CHUNKS;
    bool data = rand() % 2;
    uint64_t found;
    int error = map_seek(nodes, &maps[m], spots[s] + from, spots[s] + SPOT_CHUNKS, data, &found);
    unsigned i = from;
    while (i < SPOT_CHUNKS && (models[m].value[s][i] != 0) != data)
        i++;
    if (i == SPOT_CHUNKS && data) {
        ck_assert_int_eq(error, -ENXIO);
    } else {
        ck_assert_int_eq(error, 0);
        ck_assert_uint_eq(found, spots[s] + i);
    }
}

static void do_set(unsigned m, unsigned s, unsigned at, unsigned n)
{
    chunk_t first = take_chunks(&n);
    ck_assert_int_eq(map_set(nodes, &maps[m], spots[s] + at, n, first, false), 0);
    for (unsigned i = 0; i < n; i++)
        models[m].value[s][at + i] = first + i;
}

static void do_share(unsigned m, unsigned s, unsigned at, unsigned n)
{
    unsigned from = (unsigned)rand() % MAPS, from_spot = (unsigned)rand() % SPOTS;
    unsigned from_at = rand() % 2 ? at : (unsigned)rand() % SPOT_CHUNKS;
    n = MIN(n, SPOT_CHUNKS - from_at);
    uint64_t copy[SPOT_CHUNKS];
    struct map src;
    bool more;
    memcpy(copy, models[from].value[from_spot], sizeof(copy));
    ck_assert_int_eq(map_clone(nodes, &maps[from], &src), 0);
    ck_assert_int_eq(map_share(nodes, &src, spots[from_spot] + from_at, &maps[m], spots[s] + at, n),
                     0);
    ck_assert_int_eq(map_release(nodes, &src, &more), 0);
    ck_assert(!more);
    memcpy(&models[m].value[s][at], &copy[from_at], n * sizeof(copy[0]));
}

static void release(struct map *map)
{
    bool more = true;
    while (more)
        ck_assert_int_eq(map_release(nodes, map, &more), 0);
    ck_assert_uint_eq(map->levels, 0);
}

static int count_extent(void *arg, const struct extent *e)
{
    *(uint64_t *)arg += e->count;
    return 0;
}

struct differ {
    const struct model *a, *b;
    bool differs[SPOTS][SPOT_CHUNKS];
    uint64_t last_end;
};

static int note_differ(void *arg, uint64_t index, uint64_t n)
{
    struct differ *d = arg;
    ck_assert_uint_ge(index, d->last_end);
    d->last_end = index + n;
    for (unsigned s = 0; s < SPOTS; s++)
        for (unsigned i = 0; i < SPOT_CHUNKS; i++)
            if (spots[s] + i >= index && spots[s] + i < index + n)
                d->differs[s][i] = true;
    return 0;
}

static void check_diff(unsigned a, unsigned b)
{
    static struct differ d;
    memset(&d, 0, sizeof(d));
    ck_assert_int_eq(map_diff(nodes, &maps[a], &maps[b], 0, UINT64_C(1) << 40, note_differ, &d), 0);
    for (unsigned s = 0; s < SPOTS; s++)
        for (unsigned i = 0; i < SPOT_CHUNKS; i++)
            ck_assert_int_eq(d.differs[s][i], models[a].value[s][i] != models[b].value[s][i]);
}

static void random_step(void)
{
    unsigned m = (unsigned)rand() % MAPS, s = (unsigned)rand() % SPOTS;
    unsigned at = (unsigned)rand() % SPOT_CHUNKS;
    unsigned n = 1 + (unsigned)rand() % (rand() % 3 ? 16 : SPOT_CHUNKS);
    n = MIN(n, SPOT_CHUNKS - at);
    unsigned other = (unsigned)rand() % MAPS;
    switch (rand() % 12) {
    default:
        do_set(m, s, at, n);
        break;
    case 6:
    case 7:
        ck_assert_int_eq(map_punch(nodes, &maps[m], spots[s] + at, n), 0);
        memset(&models[m].value[s][at], 0, n * sizeof(uint64_t));
        break;
    case 8:
    case 9:
        do_share(m, s, at, n);
        break;
    case 10:
        if (other != m) {
            release(&maps[m]);
            ck_assert_int_eq(map_clone(nodes, &maps[other], &maps[m]), 0);
            models[m] = models[other];
        }
        break;
    case 11:
        if (rand() % 6 == 0) {
            release(&maps[m]);
            memset(&models[m], 0, sizeof(models[m]));
        }
        commit();
    }
    check_seek(m, s);
}

START_TEST(random_operations_match_models)
{
    srand((unsigned)_i + 1);
    memset(models, 0, sizeof(models));
    memset(maps, 0, sizeof(maps));
    left_in_group = 0;
    for (unsigned step = 0; step < 600; step++) {
        random_step();
        if (step % 60 == 0) {
            for (unsigned m = 0; m < MAPS; m++)
                check_map(m);
            check_diff(0, 1);
            check_diff(2, 0);
        }
    }
    for (unsigned m = 0; m < MAPS; m++)
        release(&maps[m]);
    ck_assert_uint_eq(live_chunks(), 0);
    ck_assert_uint_eq(live_nodes(), 0);
    commit();
}
END_TEST

START_TEST(a_clone_costs_no_node_and_a_write_to_it_one_path)
{
    struct map a = {0}, b;
    for (unsigned i = 0; i < 600; i++) {
        chunk_t first = fresh_group();
        ck_assert_int_eq(map_set(nodes, &a, (uint64_t)i * SLOT_GROUP, SLOT_GROUP, first, false), 0);
    }
    commit();
    uint64_t before = live_nodes();
    ck_assert_uint_eq(a.levels, 3);
    ck_assert_int_eq(map_clone(nodes, &a, &b), 0);
    ck_assert_uint_eq(live_nodes(), before);
    ck_assert_int_eq(map_set(nodes, &b, 5, 1, fresh_group(), false), 0);
    ck_assert_uint_eq(live_nodes(), before + 3);
    release(&a);
    uint64_t mapped = 0;
    ck_assert_int_eq(map_each(nodes, &b, 0, map_capacity(b.levels), count_extent, &mapped), 0);
    ck_assert_uint_eq(mapped, 600 * SLOT_GROUP);
    ck_assert_uint_eq(live_chunks(), 600 * SLOT_GROUP);
    release(&b);
    ck_assert_uint_eq(live_nodes(), 0);
}
END_TEST

START_TEST(in_place_is_refused_below_a_node_that_was_shared)
{
    struct map a = {0}, b;
    struct extent e;
    ck_assert_int_eq(map_set(nodes, &a, 0, 10, fresh_group(), false), 0);
    ck_assert_int_eq(map_lookup(nodes, &a, 0, 10, true, &e), 0);
    ck_assert(e.exclusive && e.count == 10);
    commit();
    /* The clone takes the place of the original before any commit. */
    ck_assert_int_eq(map_clone(nodes, &a, &b), 0);
    release(&a);
    ck_assert_int_eq(map_lookup(nodes, &b, 0, 10, true, &e), 0);
    ck_assert(!e.exclusive);
    commit();
    ck_assert_int_eq(map_lookup(nodes, &b, 0, 10, true, &e), 0);
    ck_assert(e.exclusive);
    release(&b);
}
END_TEST

START_TEST(aligned_parts_are_shared_by_subtrees)
{
    struct map a = {0}, b = {0};
    for (unsigned i = 0; i < SLOT_GROUP; i++)
        ck_assert_int_eq(
            map_set(nodes, &a, (uint64_t)i * SLOT_GROUP, SLOT_GROUP, fresh_group(), false), 0);
    uint64_t before = live_nodes();
    /* 64 times the same GiB, one after the other. */
    for (unsigned i = 0; i < 64; i++)
        ck_assert_int_eq(map_share(nodes, &a, 0, &b, (uint64_t)i << 18, UINT64_C(1) << 18), 0);
    ck_assert_uint_eq(live_nodes(), before + 1);
    ck_assert_uint_eq(live_chunks(), UINT64_C(1) << 18);
    struct extent e, f;
    ck_assert_int_eq(map_lookup(nodes, &a, 1234, 1, false, &e), 0);
    ck_assert_int_eq(map_lookup(nodes, &b, (UINT64_C(63) << 18) + 1234, 1, false, &f), 0);
    ck_assert_uint_eq(e.chunk, f.chunk);
    release(&a);
    release(&b);
    ck_assert_uint_eq(live_chunks(), 0);
}
END_TEST

START_TEST(too_far_is_an_error)
{
    struct map a = {0};
    ck_assert_int_eq(map_set(nodes, &a, UINT64_C(1) << 60, 1, fresh_group(), false), -EFBIG);
    release(&a);
    ck_assert_uint_eq(live_nodes(), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blockmap");
    TCase *tc = tcase_create("map");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, random_operations_match_models, 0, 6);
    tcase_add_test(tc, a_clone_costs_no_node_and_a_write_to_it_one_path);
    tcase_add_test(tc, in_place_is_refused_below_a_node_that_was_shared);
    tcase_add_test(tc, aligned_parts_are_shared_by_subtrees);
    tcase_add_test(tc, too_far_is_an_error);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
