// SPDX-License-Identifier: Apache-2.0
/* Who has which file open, and how; the store and the kernel are played by this file. */
#include "cowfs/opens.h"
#include "tests/unit/suite.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAIN, VIEW, INODES = 8, HOME = 77 };

static struct world {
    bool flat[INODES];
    bool mapped;  /* the home is in use by somebody else */
    bool unknown; /* the kernels have forgotten all */
    int keep_error, open_error;
    int pins, keepers, handles;
    unsigned decided;
    useconds_t pin_takes_us;
} world;

static int pin(void *arg, unsigned mount, uint64_t ino, struct opens_pin *out)
{
    struct world *w = arg;
    (void)mount;
    __atomic_add_fetch(&w->decided, 1, __ATOMIC_RELAXED);
    usleep(w->pin_takes_us);
    if (!w->flat[ino])
        return -EINVAL;
    __atomic_add_fetch(&w->pins, 1, __ATOMIC_RELAXED);
    *out = (struct opens_pin){.home = HOME, .row = 3};
    return 0;
}

static void unpin(void *arg, unsigned mount, const struct opens_pin *p)
{
    struct world *w = arg;
    (void)mount;
    ck_assert_uint_eq(p->home, HOME);
    ck_assert_int_ge(__atomic_sub_fetch(&w->pins, 1, __ATOMIC_RELAXED), 0);
}

static int open_past(void *arg, unsigned mount, uint32_t home)
{
    struct world *w = arg;
    ck_assert_uint_eq(home, HOME);
    if (w->open_error)
        return w->open_error;
    __atomic_add_fetch(&w->handles, 1, __ATOMIC_RELAXED);
    return (int)mount * 100 + 5;
}

static void close_past(void *arg, unsigned mount, uint32_t home)
{
    struct world *w = arg;
    (void)mount;
    ck_assert_uint_eq(home, HOME);
    ck_assert_int_ge(__atomic_sub_fetch(&w->handles, 1, __ATOMIC_RELAXED), 0);
}

static bool in_use(void *arg, uint32_t home)
{
    const struct world *w = arg;
    ck_assert_uint_eq(home, HOME);
    return w->mapped;
}

static int keep(void *arg, unsigned mount, uint64_t ino, const struct opens_pin *p)
{
    struct world *w = arg;
    (void)mount;
    (void)ino;
    ck_assert_uint_eq(p->home, HOME);
    if (w->keep_error)
        return w->keep_error;
    w->keepers++; /* and the pin is theirs */
    return 0;
}

static bool is_known(void *arg, unsigned mount, uint64_t ino)
{
    const struct world *w = arg;
    (void)mount;
    (void)ino;
    return !w->unknown;
}

static struct opens *begin(unsigned passthrough)
{
    world = (struct world){0};
    world.flat[1] = world.flat[2] = true;
    struct opens_backing backing = {&world,     pin,    unpin, open_past,
                                    close_past, in_use, keep,  is_known};
    return opens_new(&backing, passthrough);
}

/* What is left is given back, and nothing stays in the table (opens_free asserts it). */
static void end(struct opens *o)
{
    opens_end_mount(o, MAIN);
    opens_end_mount(o, VIEW);
    ck_assert_int_eq(world.pins, world.keepers);
    opens_free(o);
}

static enum open_kind reader(struct opens *o, unsigned mount, uint64_t ino)
{
    int id;
    enum open_kind kind = opens_read(o, mount, ino, &id);
    ck_assert_int_eq(id, kind == OPEN_PASSTHROUGH ? (int)mount * 100 + 5 : 0);
    return kind;
}

START_TEST(flat_files_are_read_past_the_daemon_where_a_mount_has_it)
{
    struct opens *o = begin(1u << VIEW);
    ck_assert_int_eq(reader(o, VIEW, 1), OPEN_PASSTHROUGH);
    ck_assert_int_eq(reader(o, VIEW, 1), OPEN_PASSTHROUGH);
    ck_assert_uint_eq(world.decided, 1);
    ck_assert_int_eq(world.pins, 1);
    ck_assert_int_eq(reader(o, VIEW, 3), OPEN_READER);
    ck_assert_int_eq(reader(o, MAIN, 1), OPEN_UNCOUNTED);
    ck_assert(!opens_close(o, VIEW, 1, OPEN_PASSTHROUGH));
    ck_assert(!opens_close(o, VIEW, 3, OPEN_READER));
    ck_assert(opens_close(o, VIEW, 1, OPEN_PASSTHROUGH));
    ck_assert_uint_eq(opens_tidy(o), 0);
    ck_assert_int_eq(world.pins, 0);
    opens_free(o);
}
END_TEST

START_TEST(writers_and_passthrough_keep_each_other_out)
{
    struct opens *o = begin(3);
    unsigned here = (unsigned)_i & 1, there = (unsigned)_i >> 1;
    ck_assert_int_eq(reader(o, here, 1), OPEN_PASSTHROUGH);
    ck_assert_int_eq(opens_write(o, there, 1, 0), -ETXTBSY);
    ck_assert_int_eq(opens_write(o, there, 1, 20), -ETXTBSY);
    ck_assert_int_eq(opens_write(o, there, 2, 0), 0);
    ck_assert_int_eq(reader(o, here, 2), OPEN_READER);
    opens_close(o, there, 2, OPEN_WRITER);
    /* One through the cache: so are all of that mount, but the other is free. */
    ck_assert_int_eq(reader(o, here, 2), OPEN_READER);
    ck_assert_int_eq(reader(o, 1 - here, 2), OPEN_PASSTHROUGH);
    opens_close(o, here, 2, OPEN_READER);
    opens_close(o, here, 2, OPEN_READER);
    ck_assert_int_eq(reader(o, here, 2), OPEN_PASSTHROUGH);

    opens_close(o, here, 1, OPEN_PASSTHROUGH);
    ck_assert_int_eq(opens_write(o, there, 1, 0), 0);
    ck_assert_int_eq(opens_write(o, here, 1, 0), 0);
    struct opens_counts n = opens_look(o, here, 1);
    ck_assert_uint_eq(n.writers, 2);
    ck_assert_uint_eq(n.readers + n.passthrough, 0);
    n = opens_look(o, here, 2);
    ck_assert_uint_eq(n.passthrough, 1);
    end(o);
}
END_TEST

START_TEST(what_may_be_mapped_is_kept_for_the_mapping)
{
    struct opens *o = begin(1);
    /* Not in use: the writer just goes on. */
    reader(o, MAIN, 1);
    opens_close(o, MAIN, 1, OPEN_PASSTHROUGH);
    ck_assert_int_eq(opens_write(o, MAIN, 1, 0), 0);
    ck_assert_int_eq(world.pins, 0);
    opens_close(o, MAIN, 1, OPEN_WRITER);
    /* In use, perhaps by a mapping of it. */
    reader(o, MAIN, 1);
    opens_close(o, MAIN, 1, OPEN_PASSTHROUGH);
    world.mapped = true;
    ck_assert_uint_eq(opens_tidy(o), 1);
    ck_assert_int_eq(opens_write(o, VIEW, 1, 0), 0);
    ck_assert_int_eq(world.keepers, 1);
    ck_assert_int_eq(opens_write(o, MAIN, 1, 0), 0);
    ck_assert_int_eq(world.keepers, 1);
    ck_assert_uint_eq(opens_tidy(o), 0);
    opens_close(o, MAIN, 1, OPEN_WRITER);
    opens_close(o, VIEW, 1, OPEN_WRITER);
    /* Not in use by one whom the kernel has forgotten. */
    reader(o, MAIN, 1);
    opens_close(o, MAIN, 1, OPEN_PASSTHROUGH);
    world.unknown = true;
    ck_assert_int_eq(opens_write(o, MAIN, 1, 0), 0);
    ck_assert_int_eq(world.keepers, 1);
    ck_assert_int_eq(world.pins, 1);
    end(o);
}
END_TEST

START_TEST(a_writer_is_refused_if_nothing_can_be_kept)
{
    struct opens *o = begin(1);
    reader(o, MAIN, 1);
    opens_close(o, MAIN, 1, OPEN_PASSTHROUGH);
    world.mapped = true;
    world.keep_error = -ENOSPC;
    ck_assert_int_eq(opens_write(o, MAIN, 1, 0), -ENOSPC);
    ck_assert_uint_eq(opens_look(o, MAIN, 1).writers, 0);
    ck_assert_int_eq(reader(o, MAIN, 1), OPEN_PASSTHROUGH);
    opens_close(o, MAIN, 1, OPEN_PASSTHROUGH);
    world.keep_error = 0;
    ck_assert_int_eq(opens_write(o, MAIN, 1, 0), 0);
    ck_assert_int_eq(world.keepers, 1);
    end(o);
}
END_TEST

START_TEST(what_is_forgotten_is_given_back)
{
    struct opens *o = begin(1);
    reader(o, MAIN, 1);
    reader(o, MAIN, 2);
    opens_close(o, MAIN, 1, OPEN_PASSTHROUGH);
    world.mapped = true;
    opens_forgotten(o, MAIN, 1); /* of an earlier look-up: it is known again */
    ck_assert_int_eq(world.pins, 2);
    world.unknown = true;
    opens_forgotten(o, MAIN, 1);
    ck_assert_int_eq(world.pins, 1);
    opens_forgotten(o, MAIN, 1);
    opens_forgotten(o, MAIN, 2); /* has a handle */
    ck_assert_int_eq(world.pins, 1);
    opens_close(o, MAIN, 2, OPEN_PASSTHROUGH);
    ck_assert_uint_eq(opens_tidy(o), 0);
    ck_assert_int_eq(world.pins, 0);
    opens_free(o);
}
END_TEST

/* A mount that was cut off closes nothing; the other goes on. */
START_TEST(the_end_of_a_mount_is_the_end_of_its_handles)
{
    struct opens *o = begin(3);
    reader(o, VIEW, 1);
    reader(o, MAIN, 2);
    reader(o, VIEW, 3);
    ck_assert_int_eq(opens_write(o, MAIN, 1, 0), -ETXTBSY);
    opens_end_mount(o, VIEW);
    ck_assert_int_eq(world.pins, 1);
    ck_assert_int_eq(opens_write(o, MAIN, 1, 0), 0);
    ck_assert_int_eq(opens_write(o, MAIN, 2, 0), -ETXTBSY);
    ck_assert_uint_eq(opens_look(o, MAIN, 2).passthrough, 1);
    end(o);
}
END_TEST

START_TEST(what_is_not_known_is_ignored)
{
    struct opens *o = begin(1);
    for (int kind = OPEN_UNCOUNTED; kind <= OPEN_PASSTHROUGH + 1; kind++)
        ck_assert(!opens_close(o, MAIN, 1, (enum open_kind)kind));
    reader(o, MAIN, 3);
    opens_close(o, MAIN, 3, OPEN_PASSTHROUGH);
    opens_close(o, MAIN, 3, OPEN_WRITER);
    ck_assert_uint_eq(opens_look(o, MAIN, 3).readers, 1);
    opens_no_passthrough(o, MAIN);
    ck_assert_int_eq(reader(o, MAIN, 1), OPEN_READER);
    ck_assert_uint_eq(world.decided, 1);
    end(o);
}
END_TEST

static void *close_later(void *arg)
{
    usleep(20000);
    opens_close(arg, MAIN, 1, OPEN_PASSTHROUGH);
    usleep(20000);
    opens_close(arg, MAIN, 2, OPEN_WRITER);
    return NULL;
}

START_TEST(one_waits_for_a_close_that_is_on_its_way)
{
    struct opens *o = begin(1);
    pthread_t thread;
    reader(o, MAIN, 1);
    ck_assert_int_eq(opens_write(o, MAIN, 2, 0), 0);
    ck_assert_int_eq(pthread_create(&thread, NULL, close_later, o), 0);
    ck_assert_int_eq(opens_write(o, MAIN, 1, 60000), 0);
    opens_wait_for_writers(o, 2, 60000);
    ck_assert_int_eq(reader(o, MAIN, 2), OPEN_PASSTHROUGH);
    opens_wait_for_writers(o, 1, 1); /* in vain */
    pthread_join(thread, NULL);
    end(o);
}
END_TEST

/* ---- in many threads ---- */

static struct state {
    struct opens *o;
    int readers[INODES][INODE_MOUNTS], past[INODES][INODE_MOUNTS], writers[INODES];
} state;

/* While a handle is held, nobody may hold one that it excludes. */
static void check_held(uint64_t ino, unsigned mount, enum open_kind kind, int step)
{
    struct state *s = &state;
    int *mine = kind == OPEN_WRITER   ? &s->writers[ino]
                : kind == OPEN_READER ? &s->readers[ino][mount]
                                      : &s->past[ino][mount];
    __atomic_add_fetch(mine, step, __ATOMIC_SEQ_CST);
    if (step < 0)
        return;
    if (kind == OPEN_PASSTHROUGH) {
        ck_assert_int_eq(__atomic_load_n(&s->writers[ino], __ATOMIC_SEQ_CST), 0);
        ck_assert_int_eq(__atomic_load_n(&s->readers[ino][mount], __ATOMIC_SEQ_CST), 0);
    } else if (kind == OPEN_READER) {
        ck_assert_int_eq(__atomic_load_n(&s->past[ino][mount], __ATOMIC_SEQ_CST), 0);
    } else {
        for (unsigned i = 0; i < INODE_MOUNTS; i++)
            ck_assert_int_eq(__atomic_load_n(&s->past[ino][i], __ATOMIC_SEQ_CST), 0);
    }
}

static void *open_at_random(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    for (int i = 0; i < 4000; i++) {
        uint64_t ino = 1 + (uint64_t)rand_r(&seed) % 3;
        unsigned mount = (unsigned)rand_r(&seed) % INODE_MOUNTS;
        enum open_kind kind = OPEN_WRITER;
        if (rand_r(&seed) % 3)
            kind = reader(state.o, mount, ino);
        else if (opens_write(state.o, mount, ino, rand_r(&seed) % 2 ? 0 : 1) != 0)
            continue;
        check_held(ino, mount, kind, 1);
        sched_yield();
        check_held(ino, mount, kind, -1);
        opens_close(state.o, mount, ino, kind);
        if (rand_r(&seed) % 16 == 0)
            opens_tidy(state.o);
        if (rand_r(&seed) % 16 == 0)
            opens_forgotten(state.o, mount, ino);
    }
    return NULL;
}

START_TEST(threads_never_hold_what_excludes_each_other)
{
    enum { THREADS = 6 };
    pthread_t threads[THREADS];
    state = (struct state){.o = begin(3)};
    world.pin_takes_us = (useconds_t)_i * 20;
    for (uintptr_t i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, open_at_random, (void *)(i + 1)), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    ck_assert_uint_eq(opens_tidy(state.o), 0);
    ck_assert_int_eq(world.pins, 0);
    opens_free(state.o);
}
END_TEST

/* A daemon goes on with what another one has counted. */
START_TEST(what_an_earlier_daemon_has_left_counts)
{
    const struct opens_pin home = {.home = HOME, .row = 9};
    int id;
    struct opens *o = begin(1u << MAIN | 1u << VIEW);
    opens_restore_handle(o, MAIN, 1, OPEN_PASSTHROUGH);
    opens_restore_handle(o, MAIN, 1, OPEN_PASSTHROUGH);
    opens_restore_pin(o, MAIN, 1, &home);
    opens_restore_pin(o, VIEW, 2, &home);
    opens_restore_handle(o, VIEW, 3, OPEN_READER);
    opens_restore_handle(o, MAIN, 4, OPEN_WRITER);
    world.pins = 2;
    ck_assert_uint_eq(opens_restored(o), 1);
    ck_assert_int_eq(world.handles, 2);
    ck_assert_int_eq(opens_write(o, MAIN, 1, 0), -ETXTBSY);
    ck_assert_int_eq(opens_look(o, MAIN, 1).id, MAIN * 100 + 5);
    ck_assert_int_eq(opens_read(o, MAIN, 1, &id), OPEN_PASSTHROUGH);
    opens_close(o, MAIN, 1, OPEN_PASSTHROUGH);
    /* That nobody knows it here proves nothing: it may be mapped. */
    world.unknown = world.mapped = true;
    ck_assert_uint_eq(opens_tidy(o), 1);
    ck_assert_int_eq(opens_write(o, MAIN, 2, 0), 0);
    ck_assert_int_eq(world.keepers, 1);
    opens_close(o, MAIN, 2, OPEN_WRITER);
    ck_assert(!opens_close(o, MAIN, 1, OPEN_PASSTHROUGH));
    ck_assert(opens_close(o, MAIN, 1, OPEN_PASSTHROUGH));
    ck_assert_int_eq(world.handles, 0);
    world.mapped = false;
    ck_assert_uint_eq(opens_tidy(o), 0);
    ck_assert_int_eq(world.pins, 1); /* the keeper's */
    ck_assert_int_eq(opens_read(o, VIEW, 3, &id), OPEN_READER);
    opens_close(o, VIEW, 3, OPEN_READER);
    opens_close(o, VIEW, 3, OPEN_READER);
    opens_close(o, MAIN, 4, OPEN_WRITER);
    end(o);
}
END_TEST

/* What the kernel does not take is read by the daemon, and held by nobody. */
START_TEST(a_refusal_of_the_kernel_leaves_nothing)
{
    int id;
    struct opens *o = begin(1u << MAIN);
    world.open_error = -EPERM;
    ck_assert_int_eq(opens_read(o, MAIN, 1, &id), OPEN_READER);
    ck_assert_int_eq(world.pins, 0);
    opens_close(o, MAIN, 1, OPEN_READER);
    end(o);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("opens");
    TCase *tc = tcase_create("opens");
    tcase_add_test(tc, flat_files_are_read_past_the_daemon_where_a_mount_has_it);
    tcase_add_loop_test(tc, writers_and_passthrough_keep_each_other_out, 0, 4);
    tcase_add_test(tc, what_may_be_mapped_is_kept_for_the_mapping);
    tcase_add_test(tc, a_writer_is_refused_if_nothing_can_be_kept);
    tcase_add_test(tc, what_is_forgotten_is_given_back);
    tcase_add_test(tc, what_an_earlier_daemon_has_left_counts);
    tcase_add_test(tc, a_refusal_of_the_kernel_leaves_nothing);
    tcase_add_test(tc, the_end_of_a_mount_is_the_end_of_its_handles);
    tcase_add_test(tc, what_is_not_known_is_ignored);
    tcase_add_test(tc, one_waits_for_a_close_that_is_on_its_way);
    tcase_add_loop_test(tc, threads_never_hold_what_excludes_each_other, 0, 2);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
