// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_ops.h - what the fuse_*.c files share.
 *
 * Each operation gets a request and replies to it exactly once. Node ids are
 * inode numbers. There is no state in file handles (fi->fh stays 0), so that a
 * new daemon can go on with the files that the old one had open.
 *
 * Lookup counts: every entry that is handed to the kernel (lookup, create,
 * mkdir, ..., readdirplus) raises the inode's count by one before the reply,
 * because the kernel may forget it again before the reply call returns. If the
 * reply cannot be delivered the count is taken back.
 */
#ifndef COWFS_FUSE_OPS_H
#define COWFS_FUSE_OPS_H

#define FUSE_USE_VERSION 318

#include "cowfs/fs.h"

#include <fuse_lowlevel.h>
#include <semaphore.h>

/* Requests carry up to this much data: 256 pages, the most that kernels give
 * without fs.fuse.max_pages_limit being raised. */
#define FUSE_IO_BYTES (1u << 20)

/*
 * How long the kernel may keep attributes and names. All changes come through
 * this kernel, which then forgets what it has to; only the clone ioctl adds a
 * name behind its back. So positive answers may be kept for good, and absence
 * is never cached.
 */
#define FUSE_TIMEOUT_S (365.0 * 86400.0)

struct token_table;
struct seeker;

/* One mount: the userdata of the FUSE session. */
struct mount {
    struct fs *fs;
    struct fuse_session *session;
    bool writeback; /* as asked for; after init: as granted */
    unsigned max_read_bytes;
    struct token_table *tokens;
    struct seeker *seeker;
    sem_t initialised; /* posted by init */
    int init_error;    /* negative errno if the kernel lacks what we need */
};

static inline struct mount *mount_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

/* The inode of a node id, referenced. -ESTALE if there is none: the kernel then
 * looks the path up again. */
int mount_inode(struct mount *m, fuse_ino_t ino, struct inode **out);

struct caller mount_caller(fuse_req_t req);

/* Replies with 0 or the error (negative errno). */
static inline void reply_status(fuse_req_t req, int error)
{
    fuse_reply_err(req, -error);
}

/* Fills an entry and raises the lookup count. Whoever cannot deliver it calls
 * inode_forget. */
void mount_fill_entry(struct inode *inode, struct fuse_entry_param *entry);
/* Takes over the reference; on error replies with that. */
void reply_entry(fuse_req_t req, int error, struct inode *inode);

/* setuid and setgid fall when a file changes hands or content. Inside the gate,
 * with the attr_lock. Returns whether anything changed. */
bool mount_kill_suidgid_locked(struct inode *inode);
/* The same for operations where the kernel does not tell whether the caller
 * has CAP_FSETID: all but root lose the bits. */
void mount_kill_suidgid(fuse_req_t req, struct inode *inode);
void mount_kill_suidgid_now(struct inode *inode);

/* fuse_ops.c */
extern const struct fuse_lowlevel_ops mount_ops;

/* fuse_names.c */
void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup);
void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);
void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
               const char *new_name, unsigned flags);
void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t new_parent, const char *new_name);
void op_readlink(fuse_req_t req, fuse_ino_t ino);

/* fuse_dir.c */
void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                struct fuse_file_info *fi);
void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi);

/* fuse_attr.c */
void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                struct fuse_file_info *fi);
void op_statx(fuse_req_t req, fuse_ino_t ino, int flags, int mask, struct fuse_file_info *fi);
void op_statfs(fuse_req_t req, fuse_ino_t ino);

/* fuse_xattr.c */
void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags);
void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);

/* fuse_io.c */
void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi);
void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi);
void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi);
void op_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
              struct fuse_file_info *fi);
void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                  struct fuse_file_info *fi);
void op_copy_file_range(fuse_req_t req, fuse_ino_t in, off_t in_offset,
                        struct fuse_file_info *in_fi, fuse_ino_t out, off_t out_offset,
                        struct fuse_file_info *out_fi, size_t length, int flags);

/* fuse_seek.c */
struct seeker *seeker_new(struct mount *m);
void seeker_free(struct seeker *s); /* answers what waits; no new requests may come */
void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi);

/* fuse_token.c: a token for an inode, and back; -ESTALE if it has expired or
 * never was. */
struct token_table *token_table_new(void);
void token_table_free(struct token_table *table);
int token_give(struct token_table *table, uint64_t ino, uint64_t value[2]);
int token_find(struct token_table *table, const uint64_t value[2], uint64_t *ino);

/* fuse_ioctl.c */
void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg, struct fuse_file_info *fi,
              unsigned flags, const void *in, size_t in_size, size_t out_size);

#endif
