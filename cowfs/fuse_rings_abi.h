// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_rings_abi.h - what linux/fuse.h of Debian 12 does not have yet: the interface of FUSE over
 * io_uring (protocol 7.42, Documentation/filesystems/fuse-io-uring.rst). Names are our own, so that
 * a newer linux/fuse.h does no harm.
 */
#ifndef COWFS_FUSE_RINGS_ABI_H
#define COWFS_FUSE_RINGS_ABI_H

#include <stdint.h>

/* Flag of INIT, bit 41: in flags2 both ways. */
enum { ABI_INIT_FLAGS2_OVER_IO_URING = 1 << (41 - 32) };

enum { ABI_OP_COPY_FILE_RANGE_64 = 53 };

/* Commands of IORING_OP_URING_CMD on /dev/fuse. */
enum {
    ABI_RING_REGISTER = 1,         /* hands over a header and a payload (two iovecs), fetches */
    ABI_RING_COMMIT_AND_FETCH = 2, /* hands in the reply that is in them, fetches */
};

/* In the command area of the submission (its second 64 bytes begin within). */
struct abi_ring_command {
    uint64_t flags;
    uint64_t commit_id; /* as it came with the request */
    uint16_t queue;     /* number of a CPU */
    uint8_t padding[6];
};

/* A request, as the kernel fills it in; and the reply. */
struct abi_ring_header {
    uint8_t in_out[128]; /* struct fuse_in_header; struct fuse_out_header */
    uint8_t args[128];   /* the operation's first argument, if that is a struct; in only */
    uint64_t flags;
    uint64_t commit_id;
    uint32_t payload_bytes; /* of the payload: all other arguments; all that follows the header */
    uint32_t padding;
    uint64_t reserved;
};

_Static_assert(sizeof(struct abi_ring_header) == 288, "as the kernel has it");
_Static_assert(sizeof(struct abi_ring_command) == 24, "as the kernel has it");

#endif
