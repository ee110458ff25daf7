// SPDX-License-Identifier: Apache-2.0
#include "tools/cowfsd_log.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>

/* GLib has one writer for the process, so this is one for the process, too. */
static atomic_bool use_syslog;
static GLogLevelFlags least_important;

static const char *field(const GLogField *fields, gsize count, const char *key)
{
    for (gsize i = 0; i < count; i++)
        if (strcmp(fields[i].key, key) == 0 && fields[i].length < 0)
            return fields[i].value;
    return NULL;
}

static int priority(GLogLevelFlags level)
{
    if (level & G_LOG_LEVEL_ERROR)
        return LOG_CRIT;
    if (level & G_LOG_LEVEL_CRITICAL)
        return LOG_ERR;
    if (level & G_LOG_LEVEL_WARNING)
        return LOG_WARNING;
    return level & (G_LOG_LEVEL_MESSAGE | G_LOG_LEVEL_INFO) ? LOG_INFO : LOG_DEBUG;
}

static GLogWriterOutput write_log(GLogLevelFlags level, const GLogField *fields, gsize count,
                                  gpointer user_data)
{
    static const char *const words[] = {
        [LOG_CRIT] = "fatal: ",
        [LOG_ERR] = "error: ",
        [LOG_WARNING] = "warning: ",
    };
    (void)user_data;
    level &= G_LOG_LEVEL_MASK;
    /* The more important, the lower the bit. */
    const char *message = field(fields, count, "MESSAGE");
    if (level > least_important || !message)
        return G_LOG_WRITER_HANDLED;
    int p = priority(level);
    if (atomic_load(&use_syslog))
        syslog(p, "%s", message);
    else
        fprintf(stderr, "cowfs: %s%s\n", p < LOG_NOTICE ? words[p] : "", message);
    return G_LOG_WRITER_HANDLED;
}

void log_to_stderr(GLogLevelFlags level)
{
    least_important = level;
    g_log_set_writer_func(write_log, NULL, NULL);
}

void log_to_syslog(void)
{
    openlog("cowfs", LOG_PID, LOG_DAEMON);
    atomic_store(&use_syslog, true);
}
