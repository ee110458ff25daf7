// SPDX-License-Identifier: Apache-2.0
/*
 * names.h - the namespace: directories and what is done with names.
 *
 * An entry lives in a record keyed by (directory, hash of its name), so a
 * directory is listed in the order of the hash (as ext4's htree does), and a
 * position in a listing is the hash: durable, no state in a handle. The hash
 * is XXH3-64 with the store's secret, its lowest positions 0..2 spared for
 * "." and ".."; entries whose hashes collide share one record.
 *
 * All functions take care of ns_lock, transaction and attributes (times, link
 * counts, sizes of directories). Inodes handed out are referenced. Permission
 * checks are the kernel's (default_permissions) except the sticky bit etc.,
 * which the kernel does too. Errors as the system calls have them.
 * Names: 1..255 bytes without '/' and NUL, else -EINVAL/-ENAMETOOLONG.
 */
#ifndef COWFS_NAMES_H
#define COWFS_NAMES_H

#include "cowfs/fs.h"

int names_lookup(struct fs *fs, uint64_t dir, const char *name, struct inode **out);

/* mknod/mkdir/symlink/create. mode has type and permissions, umask already
 * applied by the kernel (FUSE_CAP_DONT_MASK off). Sets group and setgid as
 * POSIX/Linux do for setgid directories. target for symlinks (-ENAMETOOLONG
 * beyond 4095 bytes). -EEXIST, -ENOTDIR, -ENOENT (directory was removed). */
int names_create(struct fs *fs, uint64_t dir, const char *name, uint32_t mode, uint64_t rdev,
                 const char *target, const struct caller *caller, struct inode **out);
/* O_TMPFILE: an inode without a name (nlink 0, orphan). */
int names_tmpfile(struct fs *fs, uint64_t dir, uint32_t mode, const struct caller *caller,
                  struct inode **out);
int names_link(struct fs *fs, uint64_t ino, uint64_t dir, const char *name, struct inode **out);
int names_unlink(struct fs *fs, uint64_t dir, const char *name);
int names_rmdir(struct fs *fs, uint64_t dir, const char *name);
/* flags: RENAME_NOREPLACE, RENAME_EXCHANGE; others -EINVAL. Moving a
 * directory into itself: -EINVAL. */
int names_rename(struct fs *fs, uint64_t dir, const char *name, uint64_t new_dir,
                 const char *new_name, unsigned flags);

/* The most links an inode may have, and the most names with one hash in a
 * directory (beyond: -EMLINK, -ENOSPC). */
#define NAMES_LINK_MAX UINT32_C(0x7fffffff)
enum { NAMES_NAME_MAX = 255, NAMES_TARGET_MAX = 4095, NAMES_PER_HASH_MAX = 8 };

/* One entry of a listing. `cookie` continues after this entry. */
struct dir_entry {
    const char *name; /* valid during the call */
    uint64_t ino;
    uint32_t type; /* S_IFMT bits */
    uint64_t cookie;
};
/* Lists entries after position `cookie` (0: from the start, "." and ".."
 * included) until fn returns non-zero (the buffer is full; that entry does not
 * count as listed). fn is called under ns_lock (shared): it may use inode_get,
 * but no function of this header. An entry that exists all the while is listed
 * once; only if a buffer ends among entries that share a hash are those that
 * were in it listed again. (At most NAMES_PER_HASH_MAX, so any buffer of
 * 4 KiB makes progress.) -ENOENT for a removed directory. */
int names_list(struct fs *fs, uint64_t dir, uint64_t cookie,
               int (*fn)(void *arg, const struct dir_entry *entry), void *arg);

/* A path of the inode from the root, without the leading slash, for messages;
 * NULL if it has no name. Slow: looks through the names of the whole store,
 * without locks, so a name that changes meanwhile may be missed. g_free. */
char *names_path_of(struct fs *fs, uint64_t ino);

/*
 * Building blocks for clone.c, under ns_lock exclusively (find: shared will do).
 * add: inside the gate; makes the entry and updates dir: entries, times, and,
 * if the child is a directory, the link count; the child's `parent` is the
 * caller's. -EEXIST, -ENOENT if dir was removed; nothing was changed then.
 * find: -ENOENT; type is S_IFMT bits.
 */
int names_add_locked(struct fs *fs, struct inode *dir, const char *name, struct inode *child);
int names_find_locked(struct fs *fs, uint64_t dir, const char *name, uint64_t *ino, uint32_t *type);
/* 0, -EINVAL or -ENAMETOOLONG. "." and ".." are valid here. */
int names_check(const char *name);

/* The codec of a directory record, for fsck: calls fn for each entry. */
int names_decode(const void *record, size_t len,
                 int (*fn)(void *arg, uint64_t ino, uint32_t type, const char *name), void *arg);
/* Appends an entry to a record, for repair; an empty one gets its beginning. */
void names_encode(struct wbuf *record, uint64_t ino, uint32_t type, const char *name);
uint64_t names_hash(const struct fs *fs, const char *name, size_t len);

/* Extended attributes (xattr.c). Sizes as getxattr(2): size 0 asks for the
 * length. -ENODATA, -ERANGE, -EEXIST/-ENODATA by XATTR_CREATE/REPLACE, -E2BIG
 * beyond 64 KiB, -ENOTSUP for all of system. (ACLs are not supported). A
 * change takes the inode's map_lock exclusively, so that a clone is one point
 * in time of attributes, too. */
int xattr_set(struct fs *fs, uint64_t ino, const char *name, const void *value, size_t len,
              int flags);
ssize_t xattr_get(struct fs *fs, uint64_t ino, const char *name, void *buffer, size_t size);
ssize_t xattr_list(struct fs *fs, uint64_t ino, char *buffer, size_t size);
int xattr_remove(struct fs *fs, uint64_t ino, const char *name);
/* Copies / drops all xattrs, inside the gate (clone.c, reap.c). user_only: but
 * for those that only a privileged process may set. */
int xattr_copy_all(struct fs *fs, uint64_t from, uint64_t to, bool user_only);
int xattr_drop_all(struct fs *fs, uint64_t ino);
/* Drops security.capability, as writing to a file does. Inside the gate. */
void xattr_drop_capability(struct inode *inode);

#endif
