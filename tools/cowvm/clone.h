// SPDX-License-Identifier: Apache-2.0
/* clone.h - a VM's directory as one atomic clone. */
#ifndef COWVM_CLONE_H
#define COWVM_CLONE_H

#include <stdbool.h>

/*
 * Makes `name` in the directory parent_fd a clone of the directory source_fd,
 * as it has reached cowfs (vm_flush). On another file system, which has no such
 * step, its regular files are cloned one by one (reflinks) or else copied: the
 * guest has to stand still for that, and it takes its time. Paths are for
 * messages. False: said so already, and there is no `name`.
 */
bool clone_directory(int source_fd, const char *source, int parent_fd, const char *parent,
                     const char *name);

#endif
