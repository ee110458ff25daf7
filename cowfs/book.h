// SPDX-License-Identifier: Apache-2.0
/*
 * book.h - the book of what is open, in memory that outlives the daemon: with it the next
 * one knows what the kernel reads past it (docs/DESIGN.md, "Passthrough and daemons that die").
 *
 * It is a table of rows. A row is there as soon as its `what` is, which is written last, and
 * gone when that is 0: so a process that dies at any moment leaves rows that are whole.
 *
 *   a handle (BOOK_READER, _WRITER, _PASSTHROUGH)   from before its OPEN is answered until its
 *        RELEASE is served. `number` is that of the OPEN: should that come again it finds its row
 *   BOOK_PIN      an inode's home is held; as long as it has handles that are past the daemon,
 *                 or is LEFT (opens.h)
 *   BOOK_KEEPER   `ino` is a hidden clone that holds what somebody may have mapped (fuse_backing.h)
 *   BOOK_ID       the kernel of that mount has the home registered as backing file `number`
 *
 * A handle that the kernel has (fi->fh) names its row, and which use of the row it is: so a
 * RELEASE that comes twice ends nobody else's.
 *
 * Threads: any.
 */
#ifndef COWFS_BOOK_H
#define COWFS_BOOK_H

#include "cowfs/opens.h"

enum book_what {
    BOOK_READER = OPEN_READER,
    BOOK_WRITER = OPEN_WRITER,
    BOOK_PASSTHROUGH = OPEN_PASSTHROUGH,
    BOOK_PIN = 4,
    BOOK_KEEPER = 5,
    BOOK_ID = 6,
};

struct book_row {
    enum book_what what;
    unsigned mount;
    uint64_t ino;    /* 0: of BOOK_ID */
    uint64_t number; /* see above */
    uint32_t home;   /* 0: of handles */
};

struct book;

/* The memory, empty: a descriptor, or a negative errno. */
int book_memory_new(void);
/* The caller keeps the descriptor. NULL: it is none, or of a version that is not known. */
struct book *book_open(int fd);
/* The rows stay where they are. NULL is allowed. */
void book_close(struct book *b);

/* The number of the new row, from 1 on; 0: the book is full, or b NULL. */
uint32_t book_add(struct book *b, const struct book_row *row);
/* 0, or b NULL: nothing happens. */
void book_remove(struct book *b, uint32_t number);
/* All that are there; by one thread, while nobody adds any. `each` may remove its row. */
void book_each(struct book *b, void (*each)(void *arg, uint32_t number, const struct book_row *row),
               void *arg);

/* That mount's kernel has nothing open any more. Keepers stay. b may be NULL. */
void book_end_mount(struct book *b, unsigned mount);

/* A handle: fi->fh, or 0 if the book is full. */
uint64_t book_add_handle(struct book *b, enum open_kind kind, unsigned mount, uint64_t ino,
                         uint64_t request);
/* False if it is not in the book (any more). */
bool book_remove_handle(struct book *b, uint64_t fh);
/* The handle that an earlier daemon has entered for that request; 0: none. */
uint64_t book_find_handle(struct book *b, unsigned mount, uint64_t ino, uint64_t request);

/* For tests: the process kills itself where it comes to that point the next time. b may be NULL. */
enum book_point {
    BOOK_REGISTERED = 1, /* the kernel has a backing file that is not in the book */
    BOOK_PINNED,
    BOOK_COUNTED,  /* an open is in the book, and not answered */
    BOOK_ANSWERED, /* it is */
    BOOK_CLOSED,   /* a handle is out of the book, and its RELEASE not answered */
    BOOK_KEPT,     /* a hidden clone is made, and not in the book */
    BOOK_KEEPING,  /* it is, and the pin as well */
    BOOK_UNREGISTERED,
};
void book_die_at(struct book *b, enum book_point point);
void book_reached(struct book *b, enum book_point point);

/* The kernel gives backing files ascending numbers: up to this one they are in the book, or
 * closed. b may be NULL: then all are. */
int book_last_id(const struct book *b, unsigned mount);
void book_set_last_id(struct book *b, unsigned mount, int id);

#endif
