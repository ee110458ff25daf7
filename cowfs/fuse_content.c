// SPDX-License-Identifier: Apache-2.0
#include "cowfs/fuse_content.h"
#include "cowfs/fuse_ops.h"

#include <errno.h>

static ssize_t serve_read(struct mount *m, const struct content_request *r)
{
    const struct fuse_read_in *in = r->args;
    struct inode *inode;
    int error = mount_inode(m, r->header->nodeid, &inode);
    if (error)
        return error;
    size_t bytes = MIN(in->size, FUSE_IO_BYTES);
    ssize_t got = r->send
                      ? file_read_send(inode, r->buffer, bytes, in->offset, r->send, r->send_arg)
                      : file_read(inode, r->buffer, bytes, in->offset);
    inode_put(inode);
    return got;
}

static ssize_t serve_write(struct mount *m, const struct content_request *r)
{
    const struct fuse_write_in *in = r->args;
    struct inode *inode;
    if (in->size > r->payload_bytes)
        return -EIO;
    if (!mount_may_change(m))
        return -EROFS;
    int error = mount_inode(m, r->header->nodeid, &inode);
    if (error)
        return error;
    struct file_write_flags flags = {
        .kill_suid = in->write_flags & FUSE_WRITE_KILL_SUIDGID,
        .from_cache = in->write_flags & FUSE_WRITE_CACHE,
    };
    bool falls = flags.kill_suid && mount_has_suidgid(inode);
    ssize_t done = file_write(inode, r->payload, in->size, in->offset, flags);
    if (falls)
        mount_forget_mode(m, inode);
    inode_put(inode);
    return done;
}

bool content_serve(struct mount *m, const struct content_request *r, struct content_reply *reply)
{
    ssize_t done;
    if (r->header->opcode == FUSE_READ && r->args_bytes >= sizeof(struct fuse_read_in)) {
        done = serve_read(m, r);
        reply->sent = r->send && done >= 0;
        reply->data = r->buffer;
        reply->bytes = done > 0 ? (size_t)done : 0;
    } else if (r->header->opcode == FUSE_WRITE && r->args_bytes >= sizeof(struct fuse_write_in)) {
        done = serve_write(m, r);
        reply->sent = false;
        reply->written = (struct fuse_write_out){.size = done > 0 ? (uint32_t)done : 0};
        reply->data = &reply->written;
        reply->bytes = done >= 0 ? sizeof(reply->written) : 0;
    } else {
        return false;
    }
    reply->error = done < 0 ? (int)done : 0;
    return true;
}
