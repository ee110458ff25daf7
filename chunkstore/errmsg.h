// SPDX-License-Identifier: Apache-2.0
/*
 * errmsg.h - the text that goes with an error code.
 *
 * Functions return 0 or a negative errno. Those that a person waits for
 * (opening a store, fsck) also fill an errmsg that names the object and the
 * reason. Passing NULL is allowed everywhere.
 */
#ifndef CHUNKSTORE_ERRMSG_H
#define CHUNKSTORE_ERRMSG_H

struct errmsg {
    char text[1024];
};

/* Sets the text (printf style) and returns `error`, so that a caller can
 * write `return errmsg_set(err, -EINVAL, "...", ...)`. */
int errmsg_set(struct errmsg *err, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The log of the daemon: GLib's structured log, domain "cowfs". Levels are
 * GLib's: error conditions g_critical, oddities g_warning, news g_message,
 * details g_debug. tools/ decides where it goes (stderr or syslog). */

#endif
