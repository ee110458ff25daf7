// SPDX-License-Identifier: Apache-2.0
/* cowfsd_log.h - where the daemon's log (GLib's) goes. Whole process. */
#ifndef COWFSD_LOG_H
#define COWFSD_LOG_H

#include <glib.h>

/* To stderr, what is at least as important as `level`. Call once, first. */
void log_to_stderr(GLogLevelFlags level);
/* From now on to syslog(3), facility daemon. */
void log_to_syslog(void);

#endif
