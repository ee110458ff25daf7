// SPDX-License-Identifier: Apache-2.0
/*
 * file.h - the content of regular files: read, write and all that moves
 * bytes or the map. Byte ranges are split into chunks here, once; below there
 * are only whole chunks (blockmap.h).
 *
 * The functions take the inode's map_lock and the transaction themselves and
 * update size and times. They return negative errno.
 */
#ifndef COWFS_FILE_H
#define COWFS_FILE_H

#include "cowfs/fs.h"

#include <sys/uio.h>

/* The largest size of a file: 2^62 bytes. */
#define FILE_SIZE_MAX (INT64_C(1) << 62)

/* Bytes read, 0 at the end of the file. Holes read as zeros. */
ssize_t file_read(struct inode *inode, void *buffer, size_t bytes, uint64_t offset_bytes);

/*
 * The same without a copy, where the store lies in memory: `send` is given what was read, in
 * pieces, some in `buffer`, others where they lie in the store. It is called once, unless the
 * result is an error, and what it is given stays as it is only until it returns (but for what
 * others write there at the same time). The file may not be changed meanwhile: it takes no lock of
 * the file system, and waits for nobody. False: it could not touch a piece, and nothing has been
 * sent; then all is read to the buffer.
 */
enum { FILE_PIECES_MAX = 33 };
typedef bool (*file_send_fn)(void *arg, const struct iovec *iov, unsigned count, size_t bytes);
ssize_t file_read_send(struct inode *inode, void *buffer, size_t bytes, uint64_t offset_bytes,
                       file_send_fn send, void *arg);

struct file_write_flags {
    bool kill_suid;  /* the caller lacks CAP_FSETID: clear setuid/setgid */
    bool from_cache; /* writeback of the kernel's page cache: the kernel keeps mtime */
};
/* All bytes are written, or a negative errno. A chunk that becomes zero
 * becomes a hole (unless reserved); a write of the bytes that are there
 * already leaves a shared or sealed chunk shared. */
ssize_t file_write(struct inode *inode, const void *buffer, size_t bytes, uint64_t offset_bytes,
                   struct file_write_flags flags);

int file_truncate(struct inode *inode, uint64_t size_bytes);
/* Whether cutting to that size would change nothing but times. */
bool file_is_cut(struct inode *inode, uint64_t size_bytes);
/* mode as fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE
 * [|KEEP_SIZE]; others -EOPNOTSUPP. */
int file_fallocate(struct inode *inode, int mode, uint64_t offset_bytes, uint64_t length_bytes);
/* SEEK_DATA / SEEK_HOLE. -ENXIO as lseek(2). */
int file_seek(struct inode *inode, uint64_t offset_bytes, int whence, uint64_t *out);
/* copy_file_range(2): bytes copied, at most up to the end of src as of the
 * call. Chunks are shared where offsets are congruent, else bytes are copied.
 * Overlapping ranges in one file: -EINVAL. */
ssize_t file_copy_range(struct inode *src, uint64_t src_offset, struct inode *dst,
                        uint64_t dst_offset, uint64_t bytes);
/* dst (locked by the caller, new) becomes a clone of src: map and size. Both
 * map_locks are held by the caller, inside the gate. O(1). */
int file_clone_locked(struct inode *src, struct inode *dst);

#endif
