// SPDX-License-Identifier: Apache-2.0
/*
 * clone.h - clones of a VM's directory: as one atomic step, or in two for a VM
 * that runs, so that a QEMU can start in the clone before the moment it is of.
 */
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

/*
 * The two steps. A frame is a clone in which memory.snap and disk have their
 * size and nothing in them; the guest may run. clone_fill puts into it, from a
 * guest that stands still and whose dirty pages have been flushed, all that a
 * running VM changes: file by file, each as one step where files can be shared.
 * A QEMU may have the frame's files open and mapped, as long as its guest has
 * not begun. vm.json, kernel, initrd and the state of the devices are left as
 * they are. A fill that fails leaves a frame that is no VM.
 */
bool clone_frame(int source_fd, const char *source, int parent_fd, const char *parent,
                 const char *name);
bool clone_fill(int source_fd, const char *source, int frame_fd);

#endif
