// SPDX-License-Identifier: Apache-2.0
/*
 * metadb: the layers, iteration, threads.
 *
 * Most tests run twice: on RocksDB and in memory, which must not differ.
 */
#include "tests/unit/metadb_fixture.h"
#include "tests/unit/suite.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- layers ---- */

START_TEST(newest_layer_wins)
{
    struct metadb *db = open_db(_i);
    put(db, "a", "durable");
    put(db, "b", "durable");
    put(db, "c", "durable");
    put(db, "d", "durable");
    commit(db);
    put(db, "b", "committing");
    put(db, "c", "committing");
    del(db, "d");
    put(db, "e", "committing");
    ck_assert_int_eq(metadb_flip(db), 0);
    del(db, "a");
    put(db, "c", "running");
    put(db, "d", "running");
    del(db, "e");
    put(db, "f", "");
    assert_value(db, "a", NULL);
    assert_value(db, "b", "committing");
    assert_value(db, "c", "running");
    assert_value(db, "d", "running");
    assert_value(db, "e", NULL);
    assert_value(db, "f", "");
    assert_value(db, "g", NULL);
    const char *all = "b=committing c=running d=running f=";
    assert_listing(db, "", "", all);
    ck_assert_int_eq(metadb_commit(db), 0);
    assert_listing(db, "", "", all);
    commit(db);
    assert_listing(db, "", "", all);
    assert_listing(db, "b", "d", "b=committing c=running");
    assert_listing(db, "bb", "f", "c=running d=running");
    assert_listing(db, "d", "", "d=running f=");
    assert_listing(db, "x", "", "");
    assert_listing(db, "d", "b", "");
    metadb_close(db);
}
END_TEST

START_TEST(flip_and_commit_states)
{
    struct metadb *db = open_db(_i);
    ck_assert(!metadb_commit_pending(db));
    ck_assert_int_eq(metadb_commit(db), 0);
    put(db, "a", "1");
    ck_assert_int_eq(metadb_flip(db), 0);
    ck_assert(metadb_commit_pending(db));
    ck_assert_int_eq(metadb_flip(db), -EBUSY);
    put(db, "b", "2");
    ck_assert_int_eq(metadb_flip(db), -EBUSY);
    assert_listing(db, "", "", "a=1 b=2");
    ck_assert_int_eq(metadb_commit(db), 0);
    ck_assert(!metadb_commit_pending(db));
    commit(db);
    commit(db); /* of nothing */
    assert_listing(db, "", "", "a=1 b=2");
    metadb_close(db);
}
END_TEST

/* What txn_throttle bounds memory by. */
START_TEST(running_bytes_follow_memory)
{
    enum { RECORDS = 10000, VALUE = 1000 };
    struct metadb *db = open_db(_i);
    uint8_t value[VALUE] = {0};
    ck_assert_uint_eq(metadb_running_bytes(db), 0);
    for (uint64_t n = 0; n < RECORDS; n++)
        put_number(db, n, value, 8);
    uint64_t small = metadb_running_bytes(db);
    ck_assert_uint_ge(small, RECORDS * (9 + 8));
    ck_assert_uint_le(small, RECORDS * 200);
    /* What replaces a value that is not smaller, or deletes it, costs nothing. */
    for (uint64_t n = 0; n < RECORDS; n++) {
        delete_number(db, n);
        put_number(db, n, value, 1);
        put_number(db, n, value, 8);
    }
    ck_assert_uint_eq(metadb_running_bytes(db), small);
    for (uint64_t n = 0; n < RECORDS; n++)
        put_number(db, n, value, VALUE);
    ck_assert_uint_ge(metadb_running_bytes(db), small + RECORDS * VALUE);
    ck_assert_int_eq(metadb_flip(db), 0);
    ck_assert_uint_eq(metadb_running_bytes(db), 0);
    put(db, "k", "v");
    uint64_t one = metadb_running_bytes(db);
    ck_assert_uint_ge(one, 2);
    ck_assert_int_eq(metadb_commit(db), 0);
    ck_assert_uint_eq(metadb_running_bytes(db), one);
    metadb_close(db);
}
END_TEST

START_TEST(only_what_was_committed_survives)
{
    struct metadb *db = open_db(ROCKS);
    put(db, "a", "1");
    commit(db);
    put(db, "b", "2");
    ck_assert_int_eq(metadb_flip(db), 0);
    put(db, "c", "3");
    metadb_close(db);
    db = open_db(ROCKS);
    assert_listing(db, "", "", "a=1");
    metadb_close(db);
}
END_TEST

/* A daemon that is killed, again and again, has what it committed. */
START_TEST(commits_survive_sigkill)
{
    for (int round = 0; round < 10; round++) {
        pid_t child = fork();
        if (child == 0) {
            char key[16];
            struct metadb *db = open_db(ROCKS);
            snprintf(key, sizeof(key), "key%d", round);
            put(db, key, "v");
            commit(db);
            put(db, "uncommitted", "v");
            raise(SIGKILL);
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    struct metadb *db = open_db(ROCKS);
    assert_listing(db, "", "",
                   "key0=v key1=v key2=v key3=v key4=v key5=v key6=v key7=v key8=v "
                   "key9=v");
    metadb_close(db);
}
END_TEST

/* ---- against a model ---- */

enum { MODEL_KEYS = 3000 };

struct model {
    uint64_t value[MODEL_KEYS]; /* 0: absent */
};

static void assert_range_as_model(struct metadb *db, const struct model *model, unsigned from,
                                  unsigned to)
{
    uint8_t lower[9] = {'n'};
    uint8_t upper[9] = {'n'};
    put_be64(lower + 1, from);
    put_be64(upper + 1, to);
    struct metadb_iter *it = metadb_iter_new(db, lower, 9, upper, 9);
    for (unsigned i = from; i < to; i++) {
        if (!model->value[i])
            continue;
        ck_assert(metadb_iter_valid(it));
        size_t len;
        const uint8_t *key = metadb_iter_key(it, &len);
        ck_assert_uint_eq(len, 9);
        ck_assert_uint_eq(get_be64(key + 1), i);
        const uint8_t *value = metadb_iter_value(it, &len);
        ck_assert_uint_eq(len, 8);
        ck_assert_uint_eq(get_be64(value), model->value[i]);
        metadb_iter_next(it);
    }
    ck_assert(!metadb_iter_valid(it));
    ck_assert_int_eq(metadb_iter_status(it), 0);
    metadb_iter_free(it);
}

static void assert_as_model(struct metadb *db, const struct model *model, GRand *rand)
{
    assert_range_as_model(db, model, 0, MODEL_KEYS);
    for (int i = 0; i < 20; i++) {
        unsigned from = (unsigned)g_rand_int_range(rand, 0, MODEL_KEYS);
        assert_range_as_model(db, model, from,
                              (unsigned)g_rand_int_range(rand, (int)from, MODEL_KEYS));
        struct metadb_value value;
        int error = get_number(db, from, &value);
        ck_assert_int_eq(error, model->value[from] ? 0 : -ENOENT);
        if (!error)
            ck_assert_uint_eq(get_be64(value.data), model->value[from]);
        metadb_value_free(&value);
    }
}

START_TEST(random_operations_match_a_model)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(4711);
    g_autofree struct model *model = g_new0(struct model, 1);
    struct metadb *db = open_db(_i);
    uint64_t next_value = 1;
    for (int round = 0; round < 60; round++) {
        /* Ranges, so that long runs of tombstones come up, too. */
        unsigned at = (unsigned)g_rand_int_range(rand, 0, MODEL_KEYS);
        unsigned end = at + (unsigned)g_rand_int_range(rand, 0, 2000);
        int percent_deleted = g_rand_int_range(rand, 0, 3) * 50;
        for (; at < end && at < MODEL_KEYS; at++) {
            if (g_rand_int_range(rand, 0, 100) < percent_deleted) {
                model->value[at] = 0;
                delete_number(db, at);
            } else {
                uint8_t value[8];
                put_be64(value, model->value[at] = next_value++);
                put_number(db, at, value, sizeof(value));
            }
        }
        switch (g_rand_int_range(rand, 0, 5)) {
        case 0:
            if (metadb_commit_pending(db))
                ck_assert_int_eq(metadb_commit(db), 0);
            ck_assert_int_eq(metadb_flip(db), 0);
            break;
        case 1:
            ck_assert_int_eq(metadb_commit(db), 0);
            break;
        case 2:
            ck_assert_int_eq(metadb_commit(db), 0);
            commit(db);
            if (_i == ROCKS && g_rand_boolean(rand)) {
                metadb_close(db);
                db = open_db(_i);
            } else {
                ck_assert_int_eq(metadb_compact(db), 0);
            }
            break;
        default:
            break;
        }
        assert_as_model(db, model, rand);
    }
    metadb_close(db);
}
END_TEST

/*
 * Keys of all lengths and first bytes, beginnings of each other, zeros at the
 * end: what an order by numbers of fixed width would get wrong.
 */
enum { SHAPES = 700, SHAPE_MAX = 12 };

struct shape {
    uint8_t key[SHAPE_MAX];
    size_t len;
    uint64_t value; /* 0: absent */
};

static int compare_shapes(const void *a, const void *b)
{
    const struct shape *left = a;
    const struct shape *right = b;
    size_t common = MIN(left->len, right->len);
    int order = memcmp(left->key, right->key, common);
    return order ? order : (left->len > right->len) - (left->len < right->len);
}

static unsigned make_shapes(struct shape *shapes, GRand *rand)
{
    static const uint8_t letters[] = {0, 1, 'a', 'b', 0x7f, 0x80, 0xff};
    for (unsigned i = 0; i < SHAPES; i++) {
        shapes[i] = (struct shape){.len = (size_t)g_rand_int_range(rand, 0, SHAPE_MAX + 1)};
        for (size_t k = 0; k < shapes[i].len; k++)
            shapes[i].key[k] = letters[g_rand_int_range(rand, 0, sizeof(letters))];
    }
    qsort(shapes, SHAPES, sizeof(*shapes), compare_shapes);
    unsigned count = 1;
    for (unsigned i = 1; i < SHAPES; i++)
        if (compare_shapes(&shapes[i], &shapes[count - 1]) != 0)
            shapes[count++] = shapes[i];
    return count;
}

static void assert_shapes_between(struct metadb *db, const struct shape *shapes, unsigned from,
                                  unsigned to, unsigned count)
{
    const struct shape *upper = to < count ? &shapes[to] : NULL;
    if (upper && upper->len == 0)
        return; /* would mean: no bound */
    struct metadb_iter *it = metadb_iter_new(db, shapes[from].key, shapes[from].len,
                                             upper ? upper->key : NULL, upper ? upper->len : 0);
    for (unsigned i = from; i < to; i++) {
        size_t len;
        if (!shapes[i].value)
            continue;
        ck_assert(metadb_iter_valid(it));
        const uint8_t *key = metadb_iter_key(it, &len);
        ck_assert_uint_eq(len, shapes[i].len);
        ck_assert_mem_eq(key, shapes[i].key, len);
        ck_assert_uint_eq(get_be64(metadb_iter_value(it, &len)), shapes[i].value);
        metadb_iter_next(it);
    }
    ck_assert(!metadb_iter_valid(it));
    ck_assert_int_eq(metadb_iter_status(it), 0);
    metadb_iter_free(it);
}

/* A value has 8 bytes or, where it is odd, 11. */
static void assert_shapes_found(struct metadb *db, const struct shape *shapes, unsigned count)
{
    struct metadb_query queries[SHAPES];
    uint8_t values[SHAPES][8];
    for (unsigned i = 0; i < count; i++)
        queries[i] = (struct metadb_query){.key = shapes[i].key,
                                           .key_len = shapes[i].len,
                                           .value = values[i],
                                           .value_room = sizeof(values[i])};
    metadb_get_many(db, queries, count, METADB_ALL);
    for (unsigned i = 0; i < count; i++) {
        ck_assert_int_eq(queries[i].error, shapes[i].value ? 0 : -ENOENT);
        if (!shapes[i].value)
            continue;
        ck_assert_uint_eq(queries[i].value_len, shapes[i].value % 2 ? 11 : 8);
        ck_assert_uint_eq(get_be64(values[i]), shapes[i].value);
    }
}

START_TEST(keys_of_all_shapes_are_found_and_in_order)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(815);
    struct shape shapes[SHAPES];
    unsigned count = make_shapes(shapes, rand);
    struct metadb *db = open_db(_i);
    uint64_t next_value = 1;
    for (int round = 0; round < 200; round++) {
        struct metadb_change changes[SHAPES];
        uint8_t values[SHAPES][11] = {0};
        unsigned n = (unsigned)g_rand_int_range(rand, 0, SHAPES);
        for (unsigned i = 0; i < n; i++) {
            struct shape *shape = &shapes[g_rand_int_range(rand, 0, (gint32)count)];
            shape->value = g_rand_int_range(rand, 0, 3) ? next_value++ : 0;
            put_be64(values[i], shape->value);
            changes[i] = (struct metadb_change){.key = shape->key,
                                                .key_len = shape->len,
                                                .value = shape->value ? values[i] : NULL,
                                                .value_len = shape->value % 2 ? 11 : 8};
        }
        metadb_change_many(db, changes, n);
        if (round % 3 == 0) {
            ck_assert_int_eq(metadb_commit(db), 0);
            ck_assert_int_eq(metadb_flip(db), 0);
        }
        unsigned from = (unsigned)g_rand_int_range(rand, 0, (gint32)count);
        unsigned to = (unsigned)g_rand_int_range(rand, (gint32)from, (gint32)count + 1);
        assert_shapes_between(db, shapes, from, MAX(from, to), count);
        assert_shapes_found(db, shapes, count);
        if (round % 10 == 0)
            assert_shapes_between(db, shapes, 0, count, count);
    }
    metadb_close(db);
}
END_TEST

START_TEST(uncommitted_scope_ends_above_the_database)
{
    struct metadb *db = open_db(_i);
    uint8_t value[1];
    struct metadb_query queries[] = {
        {.key = "a", .key_len = 1, .value = value, .value_room = 1},
        {.key = "b", .key_len = 1, .value = value, .value_room = 1},
        {.key = "c", .key_len = 1, .value = value, .value_room = 1},
        {.key = "d", .key_len = 1, .value = value, .value_room = 1},
    };
    put(db, "a", "1");
    put(db, "d", "1");
    commit(db);
    put(db, "b", "2");
    ck_assert_int_eq(metadb_flip(db), 0);
    put(db, "c", "3");
    del(db, "d");
    metadb_get_many(db, queries, G_N_ELEMENTS(queries), METADB_UNCOMMITTED);
    ck_assert_int_eq(queries[0].error, -ENOENT);
    ck_assert_int_eq(queries[1].error, 0);
    ck_assert_int_eq(queries[2].error, 0);
    ck_assert_int_eq(queries[3].error, -ENOENT);
    metadb_get_many(db, queries, G_N_ELEMENTS(queries), METADB_ALL);
    ck_assert_int_eq(queries[0].error, 0);
    ck_assert_int_eq(queries[1].error, 0);
    ck_assert_int_eq(queries[2].error, 0);
    ck_assert_int_eq(queries[3].error, -ENOENT);
    metadb_close(db);
}
END_TEST

/* ---- threads ---- */

/*
 * Keys 0, 4, 8, ... exist all the while but get new values; the others come
 * and go. Iterators must see each of the former once, and no key's value may
 * ever go back.
 */
enum { THREAD_KEYS = 4000, STABLE_EVERY = 4, THREAD_ROUNDS = 25 };

struct shared {
    struct metadb *db;
    atomic_bool stop;
    atomic_uint_fast64_t next_value;
};

static void *churn(void *data)
{
    struct shared *shared = data;
    g_autoptr(GRand) rand = g_rand_new();
    while (!shared->stop) {
        unsigned n = (unsigned)g_rand_int_range(rand, 0, THREAD_KEYS);
        uint8_t value[8];
        put_be64(value, shared->next_value++);
        if (n % STABLE_EVERY == 0) {
            /* Only one thread rewrites stable keys, so their values grow. */
            continue;
        }
        if (g_rand_boolean(rand))
            put_number(shared->db, n, value, sizeof(value));
        else
            delete_number(shared->db, n);
    }
    return NULL;
}

static void *rewrite_stable(void *data)
{
    struct shared *shared = data;
    g_autoptr(GRand) rand = g_rand_new();
    while (!shared->stop) {
        unsigned n = (unsigned)g_rand_int_range(rand, 0, THREAD_KEYS / STABLE_EVERY);
        uint8_t value[8];
        put_be64(value, shared->next_value++);
        put_number(shared->db, (uint64_t)n * STABLE_EVERY, value, sizeof(value));
    }
    return NULL;
}

static void *flip_and_commit(void *data)
{
    struct shared *shared = data;
    unsigned commits = 0;
    while (!shared->stop) {
        ck_assert_int_eq(metadb_flip(shared->db), 0);
        ck_assert_int_eq(metadb_commit(shared->db), 0);
        if (++commits % 16 == 0)
            ck_assert_int_eq(metadb_compact(shared->db), 0);
        if (commits % 3 == 0)
            g_usleep(2000);
    }
    return NULL;
}

static void *read_all(void *data)
{
    struct shared *shared = data;
    g_autofree uint64_t *newest = g_new0(uint64_t, THREAD_KEYS);
    for (unsigned round = 0; round < THREAD_ROUNDS; round++) {
        uint64_t expected = 0;
        int64_t last = -1;
        struct metadb_iter *it = metadb_iter_new(shared->db, "n", 1, "o", 1);
        for (; metadb_iter_valid(it); metadb_iter_next(it)) {
            size_t len;
            uint64_t n = get_be64(metadb_iter_key(it, &len) + 1);
            uint64_t value = get_be64(metadb_iter_value(it, &len));
            ck_assert_int_gt((int64_t)n, last);
            last = (int64_t)n;
            if (n % STABLE_EVERY != 0)
                continue;
            ck_assert_msg(n == expected, "saw %" PRIu64 " instead of %" PRIu64, n, expected);
            ck_assert_uint_ge(value, newest[n]);
            newest[n] = value;
            expected += STABLE_EVERY;
        }
        ck_assert_int_eq(metadb_iter_status(it), 0);
        metadb_iter_free(it);
        ck_assert_uint_eq(expected, THREAD_KEYS);
        for (uint64_t n = 0; n < THREAD_KEYS; n += STABLE_EVERY) {
            struct metadb_value value;
            ck_assert_int_eq(get_number(shared->db, n, &value), 0);
            ck_assert_uint_ge(get_be64(value.data), newest[n]);
            newest[n] = get_be64(value.data);
            metadb_value_free(&value);
        }
    }
    return NULL;
}

START_TEST(readers_lose_nothing_while_others_write_and_commit)
{
    struct shared shared = {.db = open_db(_i), .next_value = 1};
    uint8_t value[8] = {0};
    for (uint64_t n = 0; n < THREAD_KEYS; n += STABLE_EVERY)
        put_number(shared.db, n, value, sizeof(value));
    pthread_t writers[3];
    pthread_t readers[2];
    pthread_create(&writers[0], NULL, churn, &shared);
    pthread_create(&writers[1], NULL, rewrite_stable, &shared);
    pthread_create(&writers[2], NULL, flip_and_commit, &shared);
    for (unsigned i = 0; i < G_N_ELEMENTS(readers); i++)
        pthread_create(&readers[i], NULL, read_all, &shared);
    for (unsigned i = 0; i < G_N_ELEMENTS(readers); i++)
        pthread_join(readers[i], NULL);
    shared.stop = true;
    for (unsigned i = 0; i < G_N_ELEMENTS(writers); i++)
        pthread_join(writers[i], NULL);
    metadb_close(shared.db);
}
END_TEST

/* The case that an iterator with a RocksDB snapshot of its own gets wrong. */
START_TEST(iterator_survives_commits_between_its_windows)
{
    struct metadb *db = open_db(_i);
    uint8_t value[8] = {0};
    for (uint64_t n = 0; n < 5000; n++)
        put_number(db, n, value, sizeof(value));
    ck_assert_int_eq(metadb_flip(db), 0);
    struct metadb_iter *it = metadb_iter_new(db, "n", 1, NULL, 0);
    for (uint64_t n = 0; n < 5000; n++) {
        size_t len;
        ck_assert(metadb_iter_valid(it));
        ck_assert_uint_eq(get_be64(metadb_iter_key(it, &len) + 1), n);
        metadb_iter_next(it);
        if (n == 100 || n == 3000)
            ck_assert_int_eq(metadb_commit(db), 0);
        if (n == 2000) {
            for (uint64_t behind = 0; behind < 1500; behind++)
                delete_number(db, behind);
            ck_assert_int_eq(metadb_flip(db), 0);
        }
    }
    ck_assert(!metadb_iter_valid(it));
    ck_assert_int_eq(metadb_iter_status(it), 0);
    metadb_iter_free(it);
    metadb_close(db);
}
END_TEST
static Suite *make_suite(void)
{
    Suite *suite = suite_create("metadb");
    TCase *tcase = tcase_create("layers");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 200);
    tcase_add_loop_test(tcase, newest_layer_wins, 0, MODES);
    tcase_add_loop_test(tcase, flip_and_commit_states, 0, MODES);
    tcase_add_loop_test(tcase, running_bytes_follow_memory, 0, MODES);
    tcase_add_test(tcase, only_what_was_committed_survives);
    tcase_add_test(tcase, commits_survive_sigkill);
    tcase_add_loop_test(tcase, random_operations_match_a_model, 0, MODES);
    tcase_add_loop_test(tcase, keys_of_all_shapes_are_found_and_in_order, 0, MODES);
    tcase_add_loop_test(tcase, uncommitted_scope_ends_above_the_database, 0, MODES);
    tcase_add_loop_test(tcase, iterator_survives_commits_between_its_windows, 0, MODES);
    tcase_add_loop_test(tcase, readers_lose_nothing_while_others_write_and_commit, 0, MODES);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
