// SPDX-License-Identifier: Apache-2.0
/* quiet_log.h - for tests of damage, whose warnings are many and as they should be. */
#ifndef TESTS_QUIET_LOG_H
#define TESTS_QUIET_LOG_H

#include <glib.h>

/* A GLogFunc that tells nobody. */
static inline void log_nothing(const char *domain, GLogLevelFlags level, const char *text,
                               void *arg)
{
    (void)domain, (void)level, (void)text, (void)arg;
}

#endif
