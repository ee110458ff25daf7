// SPDX-License-Identifier: Apache-2.0
/* power_log.c - the log, in a mapped file. */
#include "tests/mount/power/power.h"

#include <sys/mman.h>

struct power_log *power_log_open(const char *path, bool create)
{
    int fd = SYS_INT(open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0), 0600));
    if (create)
        SYS(ftruncate(fd, sizeof(struct power_log)));
    void *map = mmap(NULL, sizeof(struct power_log), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED, "%s: mmap: %s", path, strerror(errno));
    close(fd);
    return map;
}

void power_fill(uint8_t *block, uint64_t index, uint64_t version, uint64_t length)
{
    uint64_t state = version * 1000003 + index;
    memset(block, 0, POWER_BLOCK);
    if (version == 0)
        return;
    uint8_t whole[POWER_BLOCK];
    fill_random(whole, sizeof(whole), &state);
    /* To tell whose bytes they are when they are wrong. */
    memcpy(whole, &version, sizeof(version));
    memcpy(whole + sizeof(version), &index, sizeof(index));
    memcpy(block, whole, length);
}

void power_name(char name[32], unsigned writer, unsigned slot)
{
    snprintf(name, 32, "w%u.%u", writer, slot);
}
