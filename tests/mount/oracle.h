// SPDX-License-Identifier: Apache-2.0
/*
 * oracle.h - programs that make calls and say what came of each, one a line, for comparing
 * file systems: oracle.sh runs them on cowfs and on XFS. A line is "CALL: RESULT", the call as
 * it stands in the source, the result a number (OF), or "ok" (TRY), or the name of the errno.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include "tests/mount/mount_common.h"

/* Looks at errno first: it is the call's. */
static inline int64_t oracle_say(const char *call, int64_t result, bool value)
{
    int error = errno;
    if (result < 0)
        printf("%s: %s\n", call, strerrorname_np(error));
    else if (value)
        printf("%s: %" PRId64 "\n", call, result);
    else
        printf("%s: ok\n", call);
    return result;
}

#define TRY(call) oracle_say(#call, (int64_t)(call), false)
#define OF(call) oracle_say(#call, (int64_t)(call), true)

static inline void oracle_heading(const char *heading)
{
    printf("-- %s\n", heading);
}

/* TRY of a call that opens something: it is closed again. */
static inline void oracle_opened(const char *call, int fd)
{
    oracle_say(call, fd, false);
    if (fd >= 0)
        close(fd);
}
#define OPEN(call) oracle_opened(#call, (call))

static inline int oracle_make(int dir, const char *name, mode_t mode)
{
    int fd = SYS_INT(openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode));
    SYS(fchmod(fd, mode));
    return fd;
}

#endif
