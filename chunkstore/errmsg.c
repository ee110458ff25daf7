// SPDX-License-Identifier: Apache-2.0
#include "chunkstore/errmsg.h"

#include <stdarg.h>
#include <stdio.h>

int errmsg_set(struct errmsg *err, int error, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): va_start is above */
        vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
    }
    return error;
}
