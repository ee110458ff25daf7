// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_content.h - READ and WRITE, from the kernel's message to its reply.
 *
 * Nearly all requests are one of the two, so they do not go through libfuse, which would
 * allocate and free a request for each.
 */
#ifndef COWFS_FUSE_CONTENT_H
#define COWFS_FUSE_CONTENT_H

#include "cowfs/file.h"

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mount;

/* A message, wherever it came from. */
struct content_request {
    const struct fuse_in_header *header;
    const void *args; /* what follows the header */
    size_t args_bytes;
    const void *payload; /* of a WRITE: its data */
    size_t payload_bytes;
    void *buffer; /* for what a READ reads: FUSE_IO_BYTES, aligned to a page */
    /* If not NULL: what a READ reads goes there, and not to the buffer (file.h). */
    file_send_fn send;
    void *send_arg;
};

struct content_reply {
    bool sent;  /* by `send`; what follows is not set */
    int error;  /* 0 or negative errno */
    void *data; /* `buffer`, or `written` */
    size_t bytes;
    struct fuse_write_out written;
};

/* Serves the request if it is a READ or a WRITE, and says what to answer. Else false, and
 * nothing has happened: it is for libfuse. Any thread. */
bool content_serve(struct mount *m, const struct content_request *r, struct content_reply *reply);

#endif
