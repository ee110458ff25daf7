// SPDX-License-Identifier: Apache-2.0
/*
 * handover.h - what one daemon of a mount leaves to the next: the supervisor keeps it,
 * and gives it to each daemon as descriptors with fixed numbers and as a piece of
 * shared memory.
 *
 * A daemon of a newer version may be the next one (cowfs upgrade). So the numbers and
 * the layout never change; what is added goes to the end, with another HANDOVER_VERSION
 * if an old program could not go on without it.
 *
 * Threads: handover_request_* any; the rest one, before there are others.
 */
#ifndef COWFS_HANDOVER_H
#define COWFS_HANDOVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The daemon's descriptors. */
enum {
    HANDOVER_FUSE_FD = 3,    /* /dev/fuse, mounted */
    HANDOVER_STATE_FD = 4,   /* memfd: struct handover */
    HANDOVER_JOURNAL_FD = 5, /* memfd: cowfs/journal.h */
    HANDOVER_CONTROL_FD = 6, /* SOCK_SEQPACKET to the supervisor: struct handover_message */
    HANDOVER_FLUSH_FD = 7,   /* SOCK_SEQPACKET to the flusher (fuse_flush.h) */
    HANDOVER_LOCK_FD = 8,    /* the store's lock; closed in the first daemon, which takes it */
    HANDOVER_BOOK_FD = 9,    /* memfd: cowfs/book.h */
    /* As the first and the fifth, of the view; closed if there is none. */
    HANDOVER_VIEW_FUSE_FD = 10,
    HANDOVER_VIEW_FLUSH_FD = 11,
    HANDOVER_GUARD_FD = 12, /* only to be had: guard_start_for */
    HANDOVER_FD_END = 13,
};

enum { HANDOVER_VERSION = 1 };

enum {
    HANDOVER_INIT_MAX = 256,      /* FUSE_INIT, and its answer: 104 and 80 bytes today */
    HANDOVER_IN_SERVICE = 320,    /* threads that serve requests */
    HANDOVER_JOBS = 16,           /* of these, the last ones, such that are no workers */
    HANDOVER_VIEW_WORKERS = 256,  /* of the view; their slots begin at HANDOVER_IN_SERVICE */
    HANDOVER_SUSPECTS = 1024,     /* requests that were in service at a death */
    HANDOVER_EXIT_UPGRADE = 75,   /* exit status: the next daemon shall go on */
    HANDOVER_DEATHS_MAX = 3,      /* of one request: then it is answered by EIO */
    HANDOVER_DEATHS_BY_KILL = 12, /* the same, if it was SIGKILL: often not its fault */
};

struct handover_suspect {
    uint64_t unique; /* 0: free */
    uint32_t opcode;
    uint32_t points; /* HANDOVER_DEATHS_BY_KILL * HANDOVER_DEATHS_MAX: enough */
};

/* One mount. */
struct handover_link {
    uint64_t dev;          /* of the mount; 0: not known yet */
    uint32_t init_bytes;   /* the kernel's FUSE_INIT. The supervisor's */
    uint32_t answer_bytes; /* ours, as sent; 0: not yet */
    uint8_t init[HANDOVER_INIT_MAX];
    uint8_t answer[HANDOVER_INIT_MAX];
};

/* unique of the request that a thread is serving, 0: none; and its opcode. */
struct handover_in_service {
    atomic_uint_fast64_t unique;
    uint64_t opcode;
};

/* Zeros at first. The numbers of the kernel's requests are even; one of the view's has bit 0. */
struct handover {
    uint32_t version;
    uint32_t death_signal; /* that ended the last daemon; 0: none. The supervisor's */
    struct handover_link main;
    struct handover_in_service in_service[HANDOVER_IN_SERVICE];
    struct handover_suspect suspects[HANDOVER_SUSPECTS];
    /* What older programs do not know. */
    struct handover_link view;
    struct handover_in_service in_service_view[HANDOVER_VIEW_WORKERS];
    uint32_t view_ended; /* by an umount of its own */
};

/* From the daemon to the supervisor, with the lock's descriptor once. */
enum handover_event {
    HANDOVER_READY = 1,   /* the mount can be used. The first daemon sends the lock's descriptor */
    HANDOVER_ENDING = 2,  /* it will end in order: not to be started again */
    HANDOVER_FAILED = 3,  /* it will end; text says why */
    HANDOVER_UPGRADE = 4, /* start the program that is installed now in its place */
};
struct handover_message {
    uint32_t event; /* enum handover_event */
    char text[508]; /* NUL-terminated */
};

/* Maps the memory; what an older program has made is lengthened by zeros. NULL: it is none, or of a
 * version that is not known (errno). */
struct handover *handover_map(int fd);
/* The memory, all zeros but for the version; a negative errno. */
int handover_memory_new(void);

/* fd -1: none goes along. 0 or a negative errno. */
int handover_send(int control_fd, enum handover_event event, const char *text, int fd);
/* Takes one message without waiting: 1, 0 (none), negative errno. *fd: -1, or the caller's. */
int handover_receive(int control_fd, struct handover_message *message, int *fd);

/* A new daemon begins: those who were in service when the last one died become suspects. */
void handover_count_deaths(struct handover *h);

/*
 * A thread (`slot` of HANDOVER_IN_SERVICE; of the view behind these) begins to serve a request. `again`: the kernel
 * has sent it before. False: it has killed too many daemons, and is to be answered by EIO.
 * Suspects are served one at a time, so that the next death tells which one it was: it
 * waits for that. Then _end, in any case.
 */
bool handover_request_begin(struct handover *h, unsigned slot, uint64_t unique, uint32_t opcode,
                            bool again);
void handover_request_end(struct handover *h, unsigned slot);

/*
 * The request that this thread is serving is finished by another one, which calls
 * handover_job_begin as if it had just come: until then it counts as not being served. `on` false:
 * it is not, after all.
 */
void handover_request_pass_on(bool on);
/* The same as handover_request_begin, for a thread without a slot of its own: it gets one. */
bool handover_job_begin(struct handover *h, uint64_t unique, uint32_t opcode, bool again,
                        unsigned *slot);

#endif
