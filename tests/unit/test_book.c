// SPDX-License-Identifier: Apache-2.0
/* The book of what is open, over the deaths of those who write it. */
#include "cowfs/book.h"
#include "tests/unit/suite.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int fd;

static void setup(void)
{
    fd = book_memory_new();
    ck_assert_int_ge(fd, 0);
}
static void teardown(void)
{
    close(fd);
}

static struct book_row seen[64];
static uint32_t numbers[64];
static unsigned count;

static void note(void *arg, uint32_t number, const struct book_row *row)
{
    (void)arg;
    ck_assert_uint_lt(count, 64);
    numbers[count] = number;
    seen[count++] = *row;
}
static unsigned look(struct book *b)
{
    count = 0;
    book_each(b, note, NULL);
    return count;
}

START_TEST(rows_outlive_who_wrote_them)
{
    struct book *b = book_open(fd);
    uint32_t pin =
        book_add(b, &(struct book_row){.what = BOOK_PIN, .mount = 1, .ino = 7, .home = 3});
    uint64_t first = book_add_handle(b, OPEN_PASSTHROUGH, 1, 7, 100);
    uint64_t second = book_add_handle(b, OPEN_WRITER, 0, 8, 101);
    book_set_last_id(b, 1, 12);
    ck_assert_uint_ne(first, second);
    ck_assert_int_eq(open_kind_of(first), OPEN_PASSTHROUGH);
    book_close(b);

    b = book_open(fd);
    ck_assert_uint_eq(look(b), 3);
    ck_assert_uint_eq(seen[0].what, BOOK_PIN);
    ck_assert_uint_eq(seen[0].home, 3);
    ck_assert_uint_eq(seen[1].ino, 7);
    ck_assert_int_eq(book_last_id(b, 1), 12);
    /* The same request, of the same mount and inode. */
    ck_assert_uint_eq(book_find_handle(b, 1, 7, 100), first);
    ck_assert_uint_eq(book_find_handle(b, 0, 7, 100), 0);
    ck_assert_uint_eq(book_find_handle(b, 0, 8, 102), 0);
    book_remove(b, pin);
    book_end_mount(b, 0);
    ck_assert_uint_eq(look(b), 1);
    ck_assert(!book_remove_handle(b, second));
    ck_assert(book_remove_handle(b, first));
    ck_assert_uint_eq(look(b), 0);
    book_close(b);
}
END_TEST

/* The end of a handle that comes twice ends no other, which has the same row. */
START_TEST(rows_are_used_again_and_handles_are_not)
{
    struct book *b = book_open(fd);
    uint64_t before = 0;
    for (unsigned i = 0; i < 100; i++) {
        uint64_t fh = book_add_handle(b, OPEN_READER, 0, 7, i);
        ck_assert_uint_ne(fh, before);
        ck_assert_uint_eq(fh >> 32, 1);
        ck_assert(!book_remove_handle(b, before));
        ck_assert(book_remove_handle(b, fh));
        before = fh;
        if (i % 10 == 0) {
            book_close(b);
            b = book_open(fd);
        }
    }
    ck_assert(!book_remove_handle(b, 0));
    ck_assert(!book_remove_handle(b, UINT64_MAX));
    book_close(b);
}
END_TEST

/* Killed at any moment, it leaves rows that are whole. */
START_TEST(killed_at_any_moment)
{
    for (unsigned i = 0; i < 40; i++) {
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) {
            struct book *b = book_open(fd);
            for (uint64_t n = 1;; n++) {
                uint64_t fh = book_add_handle(b, OPEN_READER, 0, n, n);
                if (n % 8)
                    book_remove_handle(b, fh);
                if (n % 128 == 0)
                    book_end_mount(b, 0);
            }
        }
        usleep((useconds_t)(500 + rand() % 3000));
        kill(pid, SIGKILL);
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
        struct book *b = book_open(fd);
        look(b);
        for (unsigned k = 0; k < count; k++) {
            ck_assert_uint_eq(seen[k].what, BOOK_READER);
            ck_assert_uint_eq(seen[k].ino, seen[k].number);
            book_remove(b, numbers[k]);
        }
        book_close(b);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("book");
    TCase *tcase = tcase_create("book");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, rows_outlive_who_wrote_them);
    tcase_add_test(tcase, rows_are_used_again_and_handles_are_not);
    tcase_add_test(tcase, killed_at_any_moment);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
