// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_ops.h - what the fuse_*.c files share.
 *
 * Each operation gets a request and replies to it exactly once. Node ids are
 * inode numbers. File handles carry no state but how they are served (fi->fh is an
 * enum open_kind of opens.h), and where that stands in the book (book.h), so that a new
 * daemon can go on with the files that the old one had open.
 *
 * A store has one mount, or two: the second is a read-only view of the same tree
 * beside the first. Both are served by the same operations, and share all that
 * `struct service` holds.
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
#include "cowfs/ioctl.h"

#include <fuse_lowlevel.h>
#include <semaphore.h>

/* Requests carry up to this much data: 256 pages, the most that kernels give
 * without fs.fuse.max_pages_limit being raised. */
#define FUSE_IO_BYTES (1u << 20)

/*
 * How long the kernel may keep attributes and names. All changes come through
 * this kernel, which then forgets what it has to; only ioctls make and delete
 * names behind its back. Of what is deleted it is told (fuse_notify.c). So positive
 * answers may be kept for good, and absence is never cached.
 */
#define FUSE_TIMEOUT_S (365.0 * 86400.0)

struct token_table;
struct early;
struct handover;
struct handover_link;
struct book;
struct journal_completion;
struct seeker;
struct opener;
struct notifier;

/* What the mounts of one store share. */
struct service {
    struct fs *fs;
    struct token_table *tokens;
    struct early *early; /* or NULL */
    int upgrade_fd;      /* eventfd: the installed program shall go on (fuse_upgrade.c) */
    /* All three NULL if no mount has passthrough: then nobody counts. */
    struct backings *backings;
    struct opens *opens;
    struct opener *opener;
    struct book *book; /* with a supervisor: who has what open, for the next daemon. Or NULL */
    /* Where the view is mounted; NULL: there is none (any more). */
    const char *_Atomic view_path;
};

/* One mount: the userdata of the FUSE session. */
struct mount {
    struct service *service;
    struct fs *fs;
    struct fuse_session *session;
    struct rings *rings;       /* or NULL: requests come over /dev/fuse */
    unsigned slot;             /* which one of the store's: of lookup counts, open files */
    bool view;                 /* read-only, beside another mount that may change the store */
    bool writeback;            /* as asked for; after init: as granted */
    bool passthrough;          /* the same */
    atomic_int no_passthrough; /* asked for and granted, but a negative errno of backings_try */
    double timeout_s;          /* how long the kernel may keep attributes and names */
    unsigned max_read_bytes;
    struct handover *handover; /* NULL: there is no supervisor, and none of the next three */
    struct handover_link *link;
    int fuse_fd;           /* the supervisor's: /dev/fuse */
    int flush_fd;          /* fuse_flush.h */
    bool debug_faults;     /* for tests: xattrs that kill */
    bool debug_du_faults;  /* for tests: an ioctl that kills */
    atomic_bool debug_die; /* for tests: the next change kills, before it is answered */
    struct seeker *seeker;
    struct notifier *notifier;
    struct fuse_pool *costly;  /* ioctls of plain users that take long (fuse_ioctl.c) */
    struct mount_table *table; /* fuse_caller.c */
    _Atomic dev_t dev;         /* 0: not known (yet) */
    /* Requests that the kernel sends again, in service just now; and whether all were read. */
    atomic_uint resent_in_service;
    atomic_bool resent_over;
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

/* fuse_caller.c: the same with what the kernel would let him do: his groups, which lie in
 * `groups`, and whether root is the machine's root. */
enum { CALLER_GROUPS_MAX = 1024 };
void mount_caller_rights(fuse_req_t req, struct caller *caller, gid_t groups[CALLER_GROUPS_MAX]);
struct mount_table *mount_table_new(void);
void mount_table_free(struct mount_table *table); /* NULL is allowed */
/* Whether it is certain that the caller sees the file system by a mount that is not
 * read-only: the kernel checks that for system calls, not for ioctls. It is if he is in our
 * mount namespace, and that has only such. */
bool mount_is_writable_for(fuse_req_t req);

/* For tests: dies if that was asked for and the request has changed something. */
void mount_debug_die(fuse_req_t req);

/* Replies with 0 or the error (negative errno). */
static inline void reply_status(fuse_req_t req, int error)
{
    if (!error)
        mount_debug_die(req);
    fuse_reply_err(req, -error);
}

/* Whether the mount may change the store at all. If not, it is a view, and somebody
 * has remounted it for writing. Every operation that changes something asks first. */
static inline bool mount_may_change(const struct mount *m)
{
    return !m->view;
}
/* The same; if not, replies so. */
bool mount_is_writable(fuse_req_t req);

/* Fills an entry and raises the lookup count. Whoever cannot deliver it calls
 * mount_forget. */
void mount_fill_entry(struct mount *m, struct inode *inode, struct fuse_entry_param *entry);
void mount_forget(struct mount *m, uint64_t ino, uint64_t nlookup);
/* Takes over the reference; on error replies with that. */
void reply_entry(fuse_req_t req, int error, struct inode *inode);

/* Whether the request is one that the kernel sends again, and that an earlier daemon had
 * done before it died: what came of it. */
bool mount_done_before(fuse_req_t req, struct journal_completion *done);
/* The same for requests that are answered by 0 alone: then that has been done. */
bool mount_replied_before(fuse_req_t req);

/* setuid and setgid fall when a file changes hands or content. Inside the gate,
 * with the attr_lock. Returns whether anything changed. */
bool mount_kill_suidgid_locked(struct inode *inode, bool outsider);
/* Whether the caller is neither root nor in the group of a file that has setgid without group
 * execution: that is no right, and falls for such callers only. No lock is held. */
bool mount_is_outsider(fuse_req_t req, struct inode *inode);
/* The same for operations where the kernel does not tell whether the caller
 * has CAP_FSETID: all but root lose the bits. */
void mount_kill_suidgid(fuse_req_t req, struct inode *inode);
void mount_kill_suidgid_now(fuse_req_t req, struct inode *inode);
/* Whether there is anything that could fall. */
bool mount_has_suidgid(struct inode *inode);
/* The kernel is to ask for the attributes anew: it keeps the mode when it sends a write, and
 * would run a program that has lost the bits as if it had them. */
void mount_forget_mode(struct mount *m, const struct inode *inode);

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

/* fuse_open.c */
void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi);
void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi);
void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);

/* fuse_wait.c: a thread for requests that wait for others to close a file, and for
 * what is to be released some time after that. */
struct waiting {
    fuse_req_t req;
    fuse_ino_t ino;
    struct fuse_file_info fi;
    /* Called by that thread when the inode may be written (error 0: it is counted as
     * opens_write does), or may not; or, if `reads`, when no writer is left, or it has
     * waited long enough. Replies. */
    void (*go_on)(struct waiting *w, int error);
    bool reads;
    uint64_t unique;  /* of an open: for the book */
    struct stat attr; /* for setattr */
    int to_set;
    struct waiting *next;
    int64_t until_us;
};
struct opener *opener_new(struct service *service);
void opener_free(struct opener *o); /* answers what waits; NULL is allowed */
/* Takes a copy. */
void opener_wait(struct opener *o, const struct waiting *w);
/* Until all of them are answered. No new ones may come. */
void opener_drain(struct opener *o);
/* A last passthrough handle has been closed. */
void opener_tidy_soon(struct opener *o);

/* Calls w->go_on when the inode may be written: at once, or after a short wait in
 * the other thread. Only if files are counted (service->opens). */
void mount_begin_write(struct mount *m, struct waiting *w);
/* Replies with the error, and says in the log why, if that is ETXTBSY. */
void mount_refuse_write(fuse_req_t req, fuse_ino_t ino, int error);
/* A handle, or one that could not be delivered, is no more. */
void mount_close(struct mount *m, uint64_t ino, uint64_t fh);
/* One that had none of its own (truncate(2)) is through, which opens_write has counted. */
void mount_end_write(struct mount *m, uint64_t ino);

/* fuse_io.c; reading and writing are in fuse_content.c */
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

/* fuse_notify.c: names that were deleted by ioctls. */
struct notifier *notifier_new(struct mount *m);
void notifier_free(struct notifier *n); /* as seeker_free */
/* Names are gone: `io` has them, and is the answer to `req` once the kernel has dropped them. */
struct deletion {
    fuse_req_t req;
    uint64_t dir;
    struct cowfs_ioc_delete *io;
    GArray *tops; /* uint64_t: what the first so many names stood for; 0: not known */
    GArray *inos; /* uint64_t: all that has lost a name */
};
/* Takes over all that is in it. */
void notifier_deleted(struct notifier *n, const struct deletion *d);

/* fuse_token.c: a token for an inode, and back; -ESTALE if it has expired or
 * never was. */
struct token_table *token_table_new(void);
void token_table_free(struct token_table *table);
int token_give(struct token_table *table, uint64_t ino, uint64_t value[2]);
int token_find(struct token_table *table, const uint64_t value[2], uint64_t *ino);

/* fuse_upgrade.c: whether the installed program could go on with this mount: 0, or a
 * negative errno with the reason. Starts it, and waits for it. */
int upgrade_check(char *reason, size_t size);
/* Whether it is the installed program that serves; writes the reason if not. */
void upgrade_verify(char *reason, size_t size);

/* fuse_ioctl.c */
void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg, struct fuse_file_info *fi,
              unsigned flags, const void *in, size_t in_size, size_t out_size);
struct fuse_pool *ioctl_pool_new(void);

#endif
