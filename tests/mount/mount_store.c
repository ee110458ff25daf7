// SPDX-License-Identifier: Apache-2.0
/*
 * mount_store.c - changes in the files of a store that tests want, and no program makes.
 *
 *   mount_store superblock FILE OFFSET BYTES VALUE   sets a little-endian field and makes the
 *                                                    checksum right again (docs/FORMAT.md)
 *   mount_store flip FILE SEED COUNT                 flips random bits
 */
#include "tests/mount/mount_common.h"

#include <xxhash.h>

enum { SUPERBLOCK = 4096, CHECKSUM_AT = 8, CHECKED_FROM = 16 };

static int superblock(char **argv)
{
    uint8_t block[SUPERBLOCK];
    uint64_t offset = strtoull(argv[1], NULL, 0), bytes = strtoull(argv[2], NULL, 0);
    uint64_t value = strtoull(argv[3], NULL, 0);
    int fd = SYS_INT(open(argv[0], O_RDWR));
    read_all(fd, block, sizeof(block), 0);
    CHECK(bytes <= 8 && offset + bytes <= sizeof(block), "no such field");
    for (uint64_t i = 0; i < bytes; i++)
        block[offset + i] = (uint8_t)(value >> (8 * i));
    uint64_t checksum = XXH3_64bits(block + CHECKED_FROM, sizeof(block) - CHECKED_FROM);
    for (unsigned i = 0; i < 8; i++)
        block[CHECKSUM_AT + i] = (uint8_t)(checksum >> (8 * i));
    write_all(fd, block, sizeof(block), 0);
    return 0;
}

static int flip(char **argv)
{
    int fd = SYS_INT(open(argv[0], O_RDWR));
    uint64_t size = size_of(fd), rng = strtoull(argv[1], NULL, 0);
    for (uint64_t i = strtoull(argv[2], NULL, 0); i > 0 && size > 0; i--) {
        uint64_t at = rng_below(&rng, size);
        uint8_t byte;
        read_all(fd, &byte, 1, at);
        byte ^= (uint8_t)(1u << rng_below(&rng, 8));
        write_all(fd, &byte, 1, at);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "superblock") == 0)
        return superblock(argv + 2);
    if (argc == 5 && strcmp(argv[1], "flip") == 0)
        return flip(argv + 2);
    fputs("usage: see mount_store.c\n", stderr);
    return 2;
}
