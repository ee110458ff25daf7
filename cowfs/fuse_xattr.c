// SPDX-License-Identifier: Apache-2.0
/* fuse_xattr.c - extended attributes. */
#include "cowfs/book.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/names.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags)
{
    if (mount_is_writable(req) && !mount_replied_before(req))
        reply_status(req, xattr_set(mount_of(req)->fs, ino, name, value, size, flags));
}

void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    if (mount_is_writable(req) && !mount_replied_before(req))
        reply_status(req, xattr_remove(mount_of(req)->fs, ino, name));
}

/* name NULL: the list of names. size 0 asks for the length alone. */
static void get(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct fs *fs = mount_of(req)->fs;
    char *buffer = size ? g_try_malloc(size) : NULL;
    if (size && !buffer) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    ssize_t got = name ? xattr_get(fs, ino, name, buffer, size) : xattr_list(fs, ino, buffer, size);
    if (got < 0)
        reply_status(req, (int)got);
    else if (size == 0)
        fuse_reply_xattr(req, (size_t)got);
    else
        fuse_reply_buf(req, buffer, (size_t)got);
    g_free(buffer);
}

/* For tests/mount/powercut.sh: how far commits have come. */
static void get_commits(fuse_req_t req, size_t size)
{
    struct txn_progress p = txn_progress(mount_of(req)->fs->txn);
    g_autofree char *text =
        g_strdup_printf("%" PRIu64 " %" PRIu64 " %" PRIu64, p.begun, p.synced, p.durable);
    if (size < strlen(text))
        fuse_reply_err(req, ERANGE);
    else
        fuse_reply_buf(req, text, strlen(text));
}

void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    /* For tests/mount/supervise*.sh: a request that kills each daemon; one that lets the next
     * change kill this one, done and not answered; and one that has it die at a point of book.h. */
    if (mount_of(req)->debug_faults && strcmp(name, "user.cowfs-fault") == 0)
        raise(SIGSEGV);
    if (mount_of(req)->debug_faults && strcmp(name, "user.cowfs-die") == 0)
        atomic_store(&mount_of(req)->debug_die, true);
    if (mount_of(req)->debug_faults && g_str_has_prefix(name, "user.cowfs-die-at-"))
        book_die_at(mount_of(req)->service->book,
                    (enum book_point)strtol(name + strlen("user.cowfs-die-at-"), NULL, 10));
    if (mount_of(req)->debug_faults && strcmp(name, "user.cowfs-commits") == 0) {
        get_commits(req, size);
        return;
    }
    get(req, ino, name, size);
}

void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    get(req, ino, NULL, size);
}
