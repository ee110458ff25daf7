// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs_tool.h - what the subcommands of cowfs share.
 *
 * A subcommand is a function that returns the exit status. Messages go to
 * stderr as "cowfs NAME: object: reason", reports to stdout.
 */
#ifndef COWFS_TOOL_H
#define COWFS_TOOL_H

#include "cowfs/ioctl.h"

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum exit_status {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_MISUSED = 2,
};

/* ---- subcommands (mount and fsck are in cowfsd.h) ---- */

int cmd_umount(int argc, char **argv);
int cmd_upgrade(int argc, char **argv);
int cmd_clone(int argc, char **argv);
int cmd_rm(int argc, char **argv);
int cmd_stat(int argc, char **argv);
int cmd_du(int argc, char **argv);
int cmd_df(int argc, char **argv);
int cmd_seal(int argc, char **argv);
int cmd_public(int argc, char **argv);
int cmd_pack(int argc, char **argv);
int cmd_diff(int argc, char **argv);
int cmd_scrub(int argc, char **argv);
int cmd_import(int argc, char **argv);
int cmd_export(int argc, char **argv);

/* ---- messages ---- */

/* The name in front of all messages, as "cowfs clone". */
void tool_set_name(const char *name);
const char *tool_name(void);

/* "name: format\n" on stderr. */
void tool_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, then where to find help. Returns EXIT_MISUSED. */
int tool_misused(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- options ---- */

struct option;
/* getopt_long with messages in our form. Returns what getopt_long returns;
 * '?' for a wrong option (said so already), 'h' for --help. */
int tool_getopt(int argc, char **argv, const char *short_options, const struct option *options);
/* Prints the help text and returns EXIT_DONE, or EXIT_FAILED if stdout is broken. */
int tool_help(const char *text);
/* "64K", "1.5G", "4096": bytes. False if it is not that. */
bool tool_parse_size(const char *text, uint64_t *out);

/* ---- the mount ---- */

/*
 * Opens a file or directory in a mount of cowfs for reading. Refuses all else
 * with words. -1 if it failed (said so already). *is_directory may be NULL.
 */
int tool_open(const char *path, bool *is_directory);
/* ioctl with `version` set. 0 or negative errno; nothing is printed. */
int tool_try_ioctl(int fd, unsigned long command, void *io);
/* The same, and the reason is printed. */
bool tool_ioctl(int fd, const char *path, unsigned long command, void *io);
/* tool_try_ioctl for a command on a directory in which it makes or removes names. */
int tool_try_directory_ioctl(int parent_fd, unsigned long command, void *io);
/* Makes parent/name a clone of what is open as source_fd, which is flushed already. Fills
 * the counters of `io`. 0 or negative errno; nothing is printed. */
int tool_clone(int source_fd, int parent_fd, const char *name, struct cowfs_ioc_clone *io);
/* Why an ioctl failed, in the words of this interface. */
const char *tool_ioctl_reason(int error);
/* Hands the kernel's dirty pages of the file to the daemon, without waiting for
 * the disk. False: said so already. */
bool tool_flush(int fd, const char *path);

/* ---- reports ---- */

/* "1.5 GiB", in a buffer of the caller. */
struct size_text {
    char s[16];
};
struct size_text tool_size(uint64_t bytes);
json_t *tool_json_u64(uint64_t value);
/* Prints and releases it. Returns EXIT_DONE or EXIT_FAILED. */
int tool_print_json(json_t *json);
/* Flushes stdout; tells of a full disk or a closed pipe. `status` if all is
 * well. */
int tool_finish(int status);

#endif
