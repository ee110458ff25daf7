// SPDX-License-Identifier: Apache-2.0
#include "cowfs/meta.h"

#include <errno.h>

enum {
    META_RECORD_VERSION = 1,
    FLAG_CLEAN = 1 << 0,
    FLAG_JOURNAL = 1 << 1,
    FLAG_DOMAINS = 1 << 2,
    FLAG_PUBLIC = 1 << 3,
    FLAGS_KNOWN = FLAG_CLEAN | FLAG_JOURNAL | FLAG_DOMAINS | FLAG_PUBLIC,
};

void meta_encode(const struct meta *meta, struct wbuf *out)
{
    wbuf_put_u8(out, META_RECORD_VERSION);
    wbuf_put_varint(out, (meta->clean ? FLAG_CLEAN : 0) | (meta->journal ? FLAG_JOURNAL : 0) |
                             (meta->domains ? FLAG_DOMAINS : 0) |
                             (meta->has_public ? FLAG_PUBLIC : 0));
    wbuf_put_varint(out, meta->next_ino);
    wbuf_put_varint(out, meta->next_node_id);
    wbuf_put_varint(out, meta->inode_count);
    wbuf_put_varint(out, meta->chunks_live);
    wbuf_put_varint(out, meta->merges);
    if (meta->journal) {
        wbuf_put_varint(out, meta->journal);
        wbuf_put_varint(out, meta->journal_seq);
    }
}

int meta_decode(const void *record, size_t len, struct meta *out)
{
    struct rbuf r = rbuf_of(record, len);
    uint8_t version = rbuf_get_u8(&r);
    uint64_t flags = rbuf_get_varint(&r);
    *out = (struct meta){
        .clean = flags & FLAG_CLEAN,
        .domains = flags & FLAG_DOMAINS,
        .has_public = flags & FLAG_PUBLIC,
    };
    out->next_ino = rbuf_get_varint(&r);
    out->next_node_id = rbuf_get_varint(&r);
    out->inode_count = rbuf_get_varint(&r);
    out->chunks_live = rbuf_get_varint(&r);
    out->merges = rbuf_get_varint(&r);
    if (flags & FLAG_JOURNAL) {
        out->journal = rbuf_get_varint(&r);
        out->journal_seq = rbuf_get_varint(&r);
        r.bad |= out->journal == 0;
    }
    bool good = version == META_RECORD_VERSION && !(flags & ~(uint64_t)FLAGS_KNOWN) && !r.bad &&
                rbuf_left(&r) == 0 && out->next_ino && out->next_node_id;
    return good ? 0 : -EUCLEAN;
}
