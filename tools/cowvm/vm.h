// SPDX-License-Identifier: Apache-2.0
/*
 * vm.h - a virtual machine: a directory with these files.
 *
 *   disk            raw image
 *   memory.snap     the guest's memory, which QEMU maps shared
 *   snapshot.snap   the state of its devices
 *   kernel, initrd  if it boots by them
 *   vm.json         what the machine is, and who it is
 *
 * Which state a VM is in is written nowhere; it follows from two facts:
 *   running  a QEMU answers at its socket (runtime.h)
 *   saved    none does, and there is a snapshot.snap
 *   off      neither
 * For that, one invariant: a file with the name snapshot.snap belongs to
 * exactly this memory.snap and this disk. It gets the name when it is whole and
 * the guest stands still, and loses it before the guest goes on. So a clone of
 * the directory, taken by anybody at any moment, is a VM in one of these states
 * and in none between.
 *
 * Who it is: a clone, by cowvm or by cp, brings its origin's vm.json along,
 * with its origin's identity. vm.json therefore names the directory that it was
 * written for, by inode number and time of birth; where that is another one,
 * the VM is a clone and is given an identity of its own when it is first used.
 */
#ifndef COWVM_VM_H
#define COWVM_VM_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define VM_DISK "disk"
#define VM_MEMORY "memory.snap"
#define VM_STATE "snapshot.snap"
#define VM_STATE_NEW "snapshot.snap.new" /* while it is being written */
#define VM_KERNEL "kernel"
#define VM_INITRD "initrd"
#define VM_CONFIG "vm.json"
#define VM_CONFIG_NEW "vm.json.new" /* while it is being written */

struct vm {
    char *parent, *name; /* the directory's */
    char *path;
    int parent_fd, dir_fd;
    json_t *config;
    /* Of the running machine: runtime.h. */
    int run_fd, lock_fd;
    int guard_fd;
    bool disposable; /* of cowvm run --rm */
};

#define VM_INIT                                                                    \
    {                                                                              \
        .parent_fd = -1, .dir_fd = -1, .run_fd = -1, .lock_fd = -1, .guard_fd = -1 \
    }

/* What is not in vm.json has these values. */
enum { VM_DEFAULT_MEMORY_MIB = 512, VM_DEFAULT_CPUS = 1 };

/* "golden": in $COWVM_DIR or /var/lib/vms; with a slash in it: a path. Fills
 * parent, name, path, parent_fd. False: said so already. */
bool vm_locate(struct vm *vm, const char *argument);
/* The same beside another VM if there is no slash. */
bool vm_locate_beside(struct vm *vm, const char *argument, const struct vm *other);

/* One of any name, hidden ones too, in the directory where another is. */
bool vm_locate_inside(struct vm *vm, const struct vm *other, const char *name);

/* Opens a VM that exists, and sees to its identity. False: said so already. */
bool vm_open(struct vm *vm, const char *argument);
/* After vm_locate: the same. */
bool vm_open_located(struct vm *vm);
/* Another directory has its name now. */
bool vm_reopen(struct vm *vm);
void vm_close(struct vm *vm);

/* Writes vm.json as one step; it is this directory's from then on. */
bool vm_write_config(struct vm *vm);
/* New uuid, generation and MAC address (all), or a new generation alone: for a
 * machine that goes back to an earlier moment. Not written yet. */
void vm_renew_identity(struct vm *vm);
void vm_renew_generation(struct vm *vm);
/* Is vm.json that of another directory? */
bool vm_is_foreign(const struct vm *vm);

const char *vm_string(const struct vm *vm, const char *key); /* NULL: is not there */
int64_t vm_number(const struct vm *vm, const char *key, int64_t otherwise);
const char *vm_uuid(const struct vm *vm);

bool vm_has(const struct vm *vm, const char *file);
/* Not there is fine. False: said so already. */
bool vm_unlink(const struct vm *vm, const char *file);

/* Has the kernel hand all dirty pages of memory and disk to cowfs: what a clone
 * holds is what has been handed over. */
bool vm_flush(const struct vm *vm);
/* ... and waits for the disk below. */
bool vm_sync(const struct vm *vm);

#endif
