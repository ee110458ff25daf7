// SPDX-License-Identifier: Apache-2.0
/* cowfsd.h - the command lines that cowfsd serves. Each returns the exit status. */
#ifndef COWFSD_H
#define COWFSD_H

#include <stdbool.h>

int cmd_mount(int argc, char **argv);
int cmd_fsck(int argc, char **argv);
int cmd_serve(int argc, char **argv);
/* As mount(8) and fstab call it: SPEC DIR [-sfnv] [-o OPTIONS] [-t TYPE]. */
int mount_helper(int argc, char **argv);

/* fsck --repair (cowfsd_repair.c): the exit status. */
struct repair_front {
    bool as_json, dry_run;
    const char *log_path; /* NULL: beside the store */
};
int repair_store(const char *store, const struct repair_front *ask);

#endif
