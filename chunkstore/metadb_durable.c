// SPDX-License-Identifier: Apache-2.0
/*
 * metadb_durable.c - how far the database had come, in a file of its own.
 *
 * RocksDB reads its log up to the first record that has not its checksum: that
 * is where a power cut tore it, and the store opens at the last whole commit. A
 * bit that flips in the middle of the log looks the same, and would take all
 * commits after it away without a word, while the space that they freed is
 * punched already. So the sequence number of each commit is written here *after*
 * the commit is durable. It may lag behind, since it is not synced but at the
 * end; it can never be ahead. A database that opens at a lower one has lost
 * commits that were durable.
 *
 * The file: the number and the XXH3-64 of its 8 bytes, both little-endian. One
 * that is missing or has a wrong checksum says nothing, as in a store that an
 * older program made.
 */
#include "chunkstore/metadb_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

struct image {
    uint64_t sequence, checksum;
};

static struct image image_of(uint64_t sequence)
{
    struct image image = {.sequence = GUINT64_TO_LE(sequence)};
    image.checksum = GUINT64_TO_LE(XXH3_64bits(&image.sequence, sizeof(image.sequence)));
    return image;
}

int durable_open(const char *path, bool read_only)
{
    g_autofree char *name = g_build_filename(path, "durable", NULL);
    int flags = read_only ? O_RDONLY : O_RDWR | O_CREAT;
    int fd = open(name, flags | O_CLOEXEC, 0600);
    /* cppcheck-suppress resourceLeak ; the caller's */
    return fd < 0 ? -errno : fd;
}

uint64_t durable_read(int fd)
{
    struct image image, good;
    if (fd < 0 || pread(fd, &image, sizeof(image), 0) != sizeof(image))
        return 0;
    good = image_of(GUINT64_FROM_LE(image.sequence));
    return image.checksum == good.checksum ? GUINT64_FROM_LE(image.sequence) : 0;
}

void durable_note(int fd, uint64_t sequence)
{
    struct image image = image_of(sequence);
    /* Without it the store is as safe as it was before: no reason to fail. */
    if (fd >= 0 && pwrite(fd, &image, sizeof(image), 0) != sizeof(image))
        g_debug("the number of the last commit could not be noted");
}

void durable_close(int fd)
{
    if (fd < 0)
        return;
    fdatasync(fd);
    close(fd);
}
