// SPDX-License-Identifier: Apache-2.0
/*
 * cowfs_qemu_img.h - running qemu-img, which knows the formats of disk images.
 *
 * qemu-img takes a name with a colon for a protocol, follows an image's
 * references to other files, and opens its target by name. What is here gives
 * it paths that can only be paths, tells of the references beforehand, and lets
 * it write to a file that has no name yet.
 */
#ifndef COWFS_QEMU_IMG_H
#define COWFS_QEMU_IMG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct image_info {
    char *format;
    uint64_t size_bytes; /* of the disk, not of the file */
    char *refers_to;     /* another file that it needs, or NULL */
};

/* `format`: NULL to find out. False: said so already, with `path`'s name. */
bool qemu_img_info(const char *path, const char *format, struct image_info *out);
void image_info_clear(struct image_info *info);

/* Looks at the image's own structure, for formats that have one. A cut qcow2
 * would be read as zeros behind its end otherwise. False: said so already. */
bool qemu_img_check(const char *path, const char *format);

struct image_conversion {
    const char *source, *source_format;
    const char *source_name; /* for messages */
    const char *target, *target_format;
    int inherit_fd[2];   /* descriptors that source or target name; or -1 */
    bool target_is_zero; /* it exists, has the right size, and is one hole */
    bool compress;
    bool progress;       /* on stderr */
    uint64_t size_bytes; /* for the progress */
};

/* False: said so already. A SIGINT, SIGTERM or SIGHUP ends it, too. */
bool qemu_img_convert(const struct image_conversion *c);

/* A name that qemu-img takes for nothing but a path. The caller frees it. */
char *qemu_img_path(const char *path);

/* The signal that ended a conversion, or 0. */
int qemu_img_interrupted(void);

#endif
