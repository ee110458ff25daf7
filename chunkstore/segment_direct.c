// SPDX-License-Identifier: Apache-2.0
/*
 * segment_direct.c - chunks as the medium has them, not as the page cache does.
 *
 * For scrub: what the cache holds proves nothing of the disk, and what scrub
 * reads nobody else wants to find in the cache instead of his own pages.
 */
#include "chunkstore/segment_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* All bytes, or a negative errno. */
static int read_fully(int fd, uint8_t *buffer, size_t bytes, off_t offset)
{
    while (bytes > 0) {
        ssize_t n = pread(fd, buffer, bytes, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) /* the other way knows whether the file may end here */
            return -EINVAL;
        buffer += n;
        bytes -= (size_t)n;
        offset += n;
    }
    return 0;
}

int segments_read_direct(struct segments *s, chunk_t first, void *buffer, size_t bytes)
{
    char name[SEGMENT_NAME_BYTES];
    uint64_t offset = (uint64_t)chunk_slot(first) * s->chunk_bytes;
    segment_name(chunk_segment(first), name);
    int fd = openat(s->dir_fd, name, O_RDONLY | O_DIRECT | O_CLOEXEC | O_NOFOLLOW);
    int error = -EINVAL; /* a file system below that has no O_DIRECT */
    if (fd >= 0) {
        error = read_fully(fd, buffer, bytes, (off_t)offset);
        close(fd);
    } else if (errno == ENOENT) {
        error = -EIO;
    }
    return error && error != -EIO ? segments_read(s, first, 0, buffer, bytes) : error;
}
