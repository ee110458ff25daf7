// SPDX-License-Identifier: Apache-2.0
/*
 * ops.c - see ops.h. Offsets are drawn close to where the block map changes
 * its shape: ends of chunks, of leaves, of levels, of the file.
 */
#include "tests/model/lib/ops.h"

#include "cowfs/clone.h"
#include "cowfs/domain.h"
#include "cowfs/file.h"
#include "cowfs/flat.h"
#include "cowfs/names.h"
#include "cowfs/reap.h"
#include "tests/model/lib/compare.h"
#include "tests/model/lib/scratch.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdio.h>

enum {
    WRITE_MAX = 3 << 20,
    NEAR = 6 << 20,    /* most data lies below this offset */
    PATTERNS = 6,      /* contents that come again and again, in all files */
    PAGES_MAX = 12000, /* of one file: beyond, it is cut */
};

static const struct caller root_caller = {.umask = 022};

/* One operation on its way. */
struct op {
    struct world *w;
    struct fs *fs; /* NULL: model only */
    struct rng rng;
    bool committed;
};

void world_init(struct world *w, uint64_t seed, uint32_t chunk_bytes)
{
    *w = (struct world){.seed = seed, .chunk_bytes = chunk_bytes};
    for (unsigned i = 0; i < SLOTS; i++) {
        snprintf(w->slots[i].name, sizeof(w->slots[i].name), "f%u", i);
        w->slots[i].versions = g_ptr_array_new_with_free_func((GDestroyNotify)sparse_free);
    }
}

void world_clear(struct world *w)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        sparse_free(w->slots[i].content);
        g_ptr_array_free(w->slots[i].versions, TRUE);
    }
}

static void note_change(struct world *w, struct slot *s)
{
    s->touched = true;
    if (w->track && s->content)
        g_ptr_array_add(s->versions, sparse_copy(s->content));
}

__attribute__((format(printf, 2, 3))) static void say(struct op *op, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t n = strlen(op->w->text);
    vsnprintf(op->w->text + n, sizeof(op->w->text) - n, format, args);
    va_end(args);
}

/* ---- choices ---- */

static struct slot *choose_file(struct op *op)
{
    unsigned from = (unsigned)rng_below(&op->rng, SLOTS);
    for (unsigned i = 0; i < SLOTS; i++)
        if (op->w->slots[(from + i) % SLOTS].content)
            return &op->w->slots[(from + i) % SLOTS];
    return NULL;
}

static struct slot *choose_empty(struct op *op)
{
    unsigned from = (unsigned)rng_below(&op->rng, SLOTS);
    for (unsigned i = 0; i < SLOTS; i++)
        if (!op->w->slots[(from + i) % SLOTS].content)
            return &op->w->slots[(from + i) % SLOTS];
    return NULL;
}

static uint64_t base_offset(struct op *op, uint64_t size)
{
    struct rng *r = &op->rng;
    uint64_t chunk = op->w->chunk_bytes;
    uint64_t leaf = chunk << NODE_SHIFT;
    unsigned kind = (unsigned)rng_below(r, 100);
    if (kind < 30)
        return rng_below(r, NEAR);
    if (kind < 45)
        return size;
    if (kind < 70)
        return rng_below(r, NEAR / chunk) * chunk;
    if (kind < 85)
        return rng_below(r, 4) * leaf;
    if (kind < 92)
        return (1 + rng_below(r, 2)) * (leaf << NODE_SHIFT);
    if (kind < 96)
        return leaf << (2 * NODE_SHIFT);
    if (kind < 98)
        return leaf << (3 * NODE_SHIFT);
    if (kind < 99)
        return (leaf << (2 * NODE_SHIFT)) + (leaf << NODE_SHIFT) + leaf;
    return FILE_SIZE_MAX;
}

static uint64_t choose_offset(struct op *op, uint64_t size)
{
    struct rng *r = &op->rng;
    uint64_t chunk = op->w->chunk_bytes;
    uint64_t at = base_offset(op, size);
    uint64_t jitter = 0;
    switch (rng_below(r, 6)) {
    case 0:
    case 1:
        break;
    case 2:
        jitter = 1;
        break;
    case 3:
        jitter = chunk * (1 + rng_below(r, 4));
        break;
    case 4:
        jitter = rng_below(r, chunk);
        break;
    default:
        jitter = rng_below(r, 1 << 18);
    }
    if (rng_percent(r, 50))
        return at > jitter ? at - jitter : 0;
    return min_u64(at + jitter, FILE_SIZE_MAX);
}

static uint64_t choose_length(struct op *op, uint64_t max)
{
    struct rng *r = &op->rng;
    uint64_t chunk = op->w->chunk_bytes;
    uint64_t n;
    if (rng_percent(r, 30))
        n = chunk * (1 + rng_below(r, 8));
    else if (rng_percent(r, 10))
        n = (uint64_t)1 << (chunk == 4096 ? 21 : 20);
    else
        n = 1 + rng_below(r, UINT64_C(1) << (1 + rng_below(r, 21)));
    return min_u64(n, max);
}

static void fill_pattern(struct op *op, uint8_t *data, size_t n)
{
    struct rng r = rng_of(op->w->seed, UINT64_MAX - rng_below(&op->rng, PATTERNS));
    rng_fill(&r, data, n);
}

/* One chunk's part of a write; `data` holds what is in the file now. */
static void choose_part(struct op *op, uint8_t *data, size_t n)
{
    struct rng *r = &op->rng;
    switch (rng_below(r, 6)) {
    case 0:
        memset(data, 0, n);
        break;
    case 1:
        break; /* the same again */
    case 2:
        fill_pattern(op, data, n);
        break;
    case 3:
        data[rng_below(r, n)] ^= 1;
        break;
    default:
        rng_fill(r, data, n);
    }
}

static void choose_data(struct op *op, const struct sparse *content, uint8_t *data, size_t n,
                        uint64_t offset)
{
    struct rng *r = &op->rng;
    uint64_t chunk = op->w->chunk_bytes;
    unsigned kind = (unsigned)rng_below(r, 8);
    switch (kind) {
    case 0:
        memset(data, 0, n);
        return;
    case 1:
        rng_fill(r, data, n);
        return;
    case 2:
        memset(data, (int)(1 + rng_below(r, 255)), n);
        return;
    default:
        sparse_read(content, data, n, offset);
    }
    for (size_t at = 0; at < n && kind > 3;) {
        size_t part = min_u64(n - at, chunk - (offset + at) % chunk);
        if (kind == 4) {
            fill_pattern(op, data + at, part);
        } else {
            choose_part(op, data + at, part);
        }
        at += part;
    }
    if (kind == 3 && rng_percent(r, 50))
        data[rng_below(r, n)] ^= 0x80;
}

/* ---- the store's side ---- */

static struct inode *open_file(struct op *op, const struct slot *s)
{
    struct inode *inode;
    if (s->nameless)
        return inode_ref(s->held);
    int error = names_lookup(op->fs, ROOT_INO, s->name, &inode);
    if (error)
        fail("%s: lookup: %s", s->name, g_strerror(-error));
    return inode;
}

static void expect(const struct slot *s, int64_t got, int64_t expected, const char *what)
{
    if (got != expected)
        fail("%s: %s gave %" PRId64 " (%s), expected %" PRId64, s->name, what, got,
             got < 0 ? g_strerror((int)-got) : "no error", expected);
}

static void check_near(struct op *op, const struct slot *s, struct inode *inode, uint64_t offset,
                       uint64_t n)
{
    uint64_t before = rng_below(&op->rng, UINT64_C(2) * op->w->chunk_bytes);
    uint64_t from = offset > before ? offset - before : 0;
    uint64_t after = rng_below(&op->rng, UINT64_C(2) * op->w->chunk_bytes);
    if (file_size(inode) != s->content->size)
        fail("%s: size is %" PRIu64 ", expected %" PRIu64, s->name, file_size(inode),
             s->content->size);
    compare_range(inode, s->content, from, before + min_u64(n, WRITE_MAX) + after, s->name);
}

static void check_whole(struct op *op, const struct slot *s)
{
    struct inode *inode = open_file(op, s);
    struct sparse *versions[1] = {s->content};
    compare_file(inode, versions, 1, s->name);
    inode_put(inode);
}

/* ---- operations ---- */

static void op_create(struct op *op)
{
    /* Of several owners, each with a domain of his own (domain.h). */
    static const uint32_t owners[] = {0, 0, 1000, 1001};
    struct caller caller = {.uid = owners[rng_below(&op->rng, G_N_ELEMENTS(owners))], .umask = 022};
    struct slot *s = choose_empty(op);
    if (!s)
        return;
    say(op, "create %s, of %u", s->name, caller.uid);
    if (op->fs) {
        struct inode *inode;
        expect(s, names_create(op->fs, ROOT_INO, s->name, S_IFREG | 0644, 0, NULL, &caller, &inode),
               0, "create");
        inode_put(inode);
    }
    s->content = sparse_new();
    note_change(op->w, s);
}

static void op_unlink(struct op *op)
{
    struct slot *s = choose_file(op);
    bool hold = rng_percent(&op->rng, 20);
    if (!s || s->nameless)
        return;
    say(op, "unlink %s%s", s->name, hold ? ", keeping it open" : "");
    if (op->fs) {
        if (hold)
            s->held = open_file(op, s);
        expect(s, names_unlink(op->fs, ROOT_INO, s->name), 0, "unlink");
    }
    s->touched = true;
    if (hold) {
        s->nameless = true;
    } else {
        sparse_free(s->content);
        s->content = NULL;
    }
}

static void op_write(struct op *op)
{
    struct slot *s = choose_file(op);
    if (!s)
        return;
    uint64_t offset = choose_offset(op, s->content->size);
    uint64_t n = choose_length(op, WRITE_MAX);
    if (offset > (uint64_t)FILE_SIZE_MAX - n)
        offset = FILE_SIZE_MAX - n;
    uint8_t *data = g_malloc(n);
    choose_data(op, s->content, data, n, offset);
    say(op, "write %s %" PRIu64 " + %" PRIu64, s->name, offset, n);
    sparse_write(s->content, data, n, offset);
    note_change(op->w, s);
    if (op->fs) {
        struct inode *inode = open_file(op, s);
        struct file_write_flags flags = {false, false};
        expect(s, file_write(inode, data, n, offset, flags), (int64_t)n, "write");
        check_near(op, s, inode, offset, n);
        inode_put(inode);
    }
    g_free(data);
}

static void op_truncate(struct op *op)
{
    struct slot *s = choose_file(op);
    if (!s)
        return;
    uint64_t size = rng_percent(&op->rng, 10) ? 0 : choose_offset(op, s->content->size);
    say(op, "truncate %s %" PRIu64 " -> %" PRIu64, s->name, s->content->size, size);
    sparse_resize(s->content, size);
    note_change(op->w, s);
    if (op->fs) {
        struct inode *inode = open_file(op, s);
        expect(s, file_truncate(inode, size), 0, "truncate");
        check_near(op, s, inode, size > 8192 ? size - 8192 : 0, 8192);
        inode_put(inode);
    }
}

static void op_fallocate(struct op *op)
{
    static const int modes[] = {
        0,
        FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_ZERO_RANGE,
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
    };
    struct slot *s = choose_file(op);
    if (!s)
        return;
    int mode = modes[rng_below(&op->rng, G_N_ELEMENTS(modes))];
    bool reserves = (mode & ~FALLOC_FL_KEEP_SIZE) == 0;
    uint64_t offset = choose_offset(op, s->content->size);
    uint64_t n = choose_length(op, WRITE_MAX);
    int expected = 0;
    if (!reserves && rng_percent(&op->rng, 10))
        n = UINT64_C(1) << (30 + rng_below(&op->rng, 12));
    if (reserves && rng_percent(&op->rng, 5)) {
        n = UINT64_C(1) << 50; /* more than there is */
        expected = -ENOSPC;
    }
    if (n > (uint64_t)FILE_SIZE_MAX - offset) {
        offset = FILE_SIZE_MAX - n;
    }
    say(op, "fallocate %s mode %d %" PRIu64 " + %" PRIu64, s->name, mode, offset, n);
    if (!expected) {
        if (!reserves)
            sparse_zero(s->content, offset, min_u64(offset + n, s->content->size));
        if (!(mode & FALLOC_FL_KEEP_SIZE) && offset + n > s->content->size)
            sparse_resize(s->content, offset + n);
        note_change(op->w, s);
    }
    if (op->fs) {
        struct inode *inode = open_file(op, s);
        expect(s, file_fallocate(inode, mode, offset, n), expected, "fallocate");
        check_near(op, s, inode, offset, n);
        inode_put(inode);
    }
}

struct copy_plan {
    uint64_t from, to, n;
};

static struct copy_plan choose_copy(struct op *op, const struct slot *src, const struct slot *dst)
{
    struct rng *r = &op->rng;
    uint64_t chunk = op->w->chunk_bytes;
    struct copy_plan p = {0, 0, 0};
    unsigned kind = (unsigned)rng_below(r, 10);
    if (kind < 2) { /* whole files, as cp does */
        p.n = rng_percent(r, 50) ? src->content->size : (uint64_t)FILE_SIZE_MAX;
        return p;
    }
    p.from = choose_offset(op, src->content->size);
    p.to = choose_offset(op, dst->content->size);
    p.n = choose_length(op, WRITE_MAX);
    if (kind < 5) {
        p.from = round_down_u64(p.from, chunk);
        p.to = round_down_u64(p.to, chunk);
        if (rng_percent(r, 40)) { /* leaves alike: whole subtrees */
            p.to = round_down_u64(p.to, chunk << NODE_SHIFT) + p.from % (chunk << NODE_SHIFT);
            p.n = rng_percent(r, 50) ? UINT64_C(5) << 30 : UINT64_C(8) << 20;
        }
    } else if (kind < 8) {
        p.to = round_down_u64(p.to, chunk) + p.from % chunk;
    }
    return p;
}

static bool overlap(const struct copy_plan *p)
{
    return p->from < p->to + p->n && p->to < p->from + p->n;
}

static void op_copy(struct op *op)
{
    struct slot *src = choose_file(op);
    struct slot *dst = choose_file(op);
    if (!src)
        return;
    struct copy_plan p = choose_copy(op, src, dst);
    if (p.to > (uint64_t)FILE_SIZE_MAX - (UINT64_C(8) << 30))
        p.to = 0;
    uint64_t size = src->content->size;
    uint64_t asked = p.n;
    p.n = p.from < size ? min_u64(p.n, size - p.from) : 0;
    say(op, "copy %s %" PRIu64 " + %" PRIu64 " (%" PRIu64 ") -> %s %" PRIu64, src->name, p.from,
        p.n, asked, dst->name, p.to);
    bool refused = src == dst && p.n && overlap(&p);
    if (!refused) {
        sparse_copy_range(src->content, p.from, dst->content, p.to, p.n);
        note_change(op->w, dst);
    }
    if (!op->fs)
        return;
    struct inode *a = open_file(op, src);
    struct inode *b = open_file(op, dst);
    if (refused) {
        expect(dst, file_copy_range(a, p.from, b, p.to, asked), -EINVAL, "overlapping copy");
    } else {
        for (uint64_t done = 0; done < p.n;) {
            ssize_t n = file_copy_range(a, p.from + done, b, p.to + done, asked - done);
            if (n <= 0 || (uint64_t)n > p.n - done)
                fail("%s: copying gave %zd after %" PRIu64 " of %" PRIu64, dst->name, n, done, p.n);
            done += (uint64_t)n;
        }
        if (p.n == 0)
            expect(dst, file_copy_range(a, p.from, b, p.to, asked), 0, "copy at the end");
        check_near(op, dst, b, p.to, p.n);
        check_near(op, dst, b, p.to + p.n, 0);
    }
    inode_put(a);
    inode_put(b);
}

static void op_clone_to(struct op *op, struct slot *src, struct slot *dst)
{
    say(op, "clone %s -> %s", src->name, dst->name);
    if (op->fs) {
        struct inode *inode = open_file(op, src);
        struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
        expect(src, clone_tree(op->fs, inode->ino, ROOT_INO, dst->name, &root_caller, &io), 0,
               "clone");
        expect(src, (int64_t)io.files, 1, "files cloned");
        inode_put(inode);
    }
    dst->content = sparse_copy(src->content);
    note_change(op->w, dst);
}

static void op_clone(struct op *op)
{
    struct slot *src = choose_file(op);
    struct slot *dst = choose_empty(op);
    if (src && dst && !src->nameless)
        op_clone_to(op, src, dst);
}

static void op_commit(struct op *op)
{
    say(op, "; commit");
    if (op->fs) {
        int error = fs_commit(op->fs);
        if (error)
            fail("commit: %s", g_strerror(-error));
    }
}

/* Overwrites parts of what the file has, where it lies. */
static void overwrite(struct op *op, struct slot *s, struct inode *inode, unsigned times)
{
    uint64_t size = min_u64(s->content->size, NEAR);
    for (unsigned i = 0; i < times && size > 0; i++) {
        uint64_t offset = rng_below(&op->rng, size);
        uint64_t n = 1 + rng_below(&op->rng, min_u64(size - offset, 1 << 17));
        uint8_t *data = g_malloc(n);
        rng_fill(&op->rng, data, n);
        sparse_write(s->content, data, n, offset);
        note_change(op->w, s);
        if (op->fs) {
            struct file_write_flags flags = {false, false};
            expect(s, file_write(inode, data, n, offset, flags), (int64_t)n, "write");
        }
        g_free(data);
    }
}

/* A file and its clone; one of them goes, the other one is overwritten. If the
 * store dies now, the last commit still knows the one that went: its bytes
 * must be there (refcount.h tells of the rule that this is about). */
static void op_outlive(struct op *op)
{
    struct slot *src = choose_file(op);
    struct slot *dst = choose_empty(op);
    bool keep_clone = rng_percent(&op->rng, 50);
    bool commit = rng_percent(&op->rng, 50);
    if (!src || !dst || src->nameless)
        return;
    op_clone_to(op, src, dst);
    struct slot *gone = keep_clone ? src : dst;
    struct slot *kept = keep_clone ? dst : src;
    struct inode *inode = op->fs ? open_file(op, kept) : NULL;
    /* With nodes of its own, but the same chunks. */
    if (rng_percent(&op->rng, 50))
        overwrite(op, kept, inode, 1);
    if (commit)
        op_commit(op);
    say(op, "; drop %s", gone->name);
    if (rng_percent(&op->rng, 50)) {
        if (op->fs)
            expect(gone, names_unlink(op->fs, ROOT_INO, gone->name), 0, "unlink");
        sparse_free(gone->content);
        gone->content = NULL;
        gone->touched = true;
        if (op->fs)
            reaper_wait(op->fs->reaper);
    } else {
        sparse_resize(gone->content, 0);
        note_change(op->w, gone);
        if (op->fs) {
            struct inode *other = open_file(op, gone);
            expect(gone, file_truncate(other, 0), 0, "truncate");
            inode_put(other);
        }
    }
    overwrite(op, kept, inode, 6);
    inode_put(inode);
}

static void op_seal(struct op *op)
{
    struct slot *s = choose_file(op);
    if (!s)
        return;
    bool all = rng_percent(&op->rng, 50);
    uint64_t offset = all ? 0 : choose_offset(op, s->content->size);
    uint64_t length = 1 + rng_below(&op->rng, NEAR);
    say(op, "seal %s %" PRIu64 "%s", s->name, offset, all ? ", all of it" : "");
    if (!op->fs)
        return;
    struct inode *inode = open_file(op, s);
    struct cowfs_ioc_seal io = {.version = COWFS_IOCTL_VERSION, .offset = offset, .length = length};
    do {
        expect(s, seal_range(op->fs, inode->ino, &io), 0, "seal");
        if (io.next && io.next <= io.offset)
            fail("%s: sealing does not get on: %" PRIu64 " after %" PRIu64, s->name,
                 (uint64_t)io.next, (uint64_t)io.offset);
        io.offset = io.next;
    } while (all && io.next);
    inode_put(inode);
    check_whole(op, s);
}

/* Public, or not any more; all of it, or a part. */
static void op_public(struct op *op)
{
    struct slot *s = choose_file(op);
    if (!s)
        return;
    bool all = rng_percent(&op->rng, 60);
    struct cowfs_ioc_public io = {
        .action = rng_percent(&op->rng, 65) ? COWFS_PUBLIC_ON : COWFS_PUBLIC_OFF,
        .offset = all ? 0 : choose_offset(op, s->content->size),
        .length = 1 + rng_below(&op->rng, NEAR),
    };
    say(op, "%s %s from %" PRIu64 "%s", io.action == COWFS_PUBLIC_ON ? "public" : "not public",
        s->name, (uint64_t)io.offset, all ? ", all of it" : "");
    if (!op->fs)
        return;
    struct inode *inode = open_file(op, s);
    do {
        expect(s, domain_public_range(op->fs, inode->ino, &io), 0, "public");
        if (io.next && io.next <= io.offset)
            fail("%s: public does not get on: %" PRIu64 " after %" PRIu64, s->name,
                 (uint64_t)io.next, (uint64_t)io.offset);
        io.offset = io.next;
    } while (all && io.next);
    inode_put(inode);
    check_whole(op, s);
}

/* All of it, or broken off after a part. */
static void op_pack(struct op *op)
{
    struct slot *s = choose_file(op);
    if (!s)
        return;
    bool all = rng_percent(&op->rng, 70);
    uint64_t length = 1 + rng_below(&op->rng, NEAR / 2);
    say(op, "pack %s%s", s->name, all ? "" : ", a part of it");
    if (!op->fs)
        return;
    struct inode *inode = open_file(op, s);
    uint64_t next = 0, moved;
    int error;
    do {
        error = flat_pack_part(inode, next, length, &next, &moved);
    } while (!error && all && next);
    /* Larger than a segment can be. */
    if (error != -EFBIG)
        expect(s, error, 0, "pack");
    if (!error && !next && file_size(inode) && flat_verdict(inode) != FLAT_YES)
        fail("%s is packed, but not flat: %s", s->name, flat_verdict_text(flat_verdict(inode)));
    inode_put(inode);
    check_whole(op, s);
}

/* Where the files are said to be alike they must be. */
static void check_alike(const struct slot *a, const struct slot *b, uint64_t from, uint64_t to)
{
    struct sparse *files[2] = {a->content, b->content};
    static uint8_t x[SPARSE_PAGE];
    static uint8_t y[SPARSE_PAGE];
    GArray *pages = sparse_pages(files, 2);
    for (guint i = 0; i < pages->len; i++) {
        uint64_t page = g_array_index(pages, uint64_t, i) * SPARSE_PAGE;
        uint64_t first = max_u64(page, from);
        uint64_t end = min_u64(page + SPARSE_PAGE, to);
        if (first >= end)
            continue;
        sparse_read(a->content, x, end - first, first);
        sparse_read(b->content, y, end - first, first);
        if (memcmp(x, y, end - first) != 0)
            fail("diff %s %s does not tell a difference in the page at %" PRIu64, a->name, b->name,
                 first);
    }
    g_array_free(pages, TRUE);
}

static void op_diff(struct op *op)
{
    struct slot *a = choose_file(op);
    struct slot *b = choose_file(op);
    if (!a)
        return;
    say(op, "diff %s %s", a->name, b->name);
    if (!op->fs)
        return;
    struct inode *x = open_file(op, a);
    struct inode *y = open_file(op, b);
    struct cowfs_ioc_diff io = {.version = COWFS_IOCTL_VERSION};
    uint64_t at = 0;
    do {
        expect(a, diff_files(op->fs, x->ino, y->ino, &io), 0, "diff");
        for (unsigned i = 0; i < io.count; i++) {
            if (io.range[i].offset < at || io.range[i].length == 0)
                fail("diff: ranges out of order at %" PRIu64, (uint64_t)io.range[i].offset);
            check_alike(a, b, at, io.range[i].offset);
            at = io.range[i].offset + io.range[i].length;
        }
        if (io.next && io.next < at)
            fail("diff would go on at %" PRIu64 ", behind %" PRIu64, (uint64_t)io.next, at);
        io.offset = io.next;
    } while (io.next);
    check_alike(a, b, at, UINT64_MAX);
    inode_put(x);
    inode_put(y);
}

static void op_usage(struct op *op)
{
    struct slot *s = choose_file(op);
    if (!s)
        return;
    say(op, "usage %s", s->name);
    if (!op->fs)
        return;
    struct inode *inode = open_file(op, s);
    struct cowfs_ioc_stat st = {.version = COWFS_IOCTL_VERSION};
    struct cowfs_ioc_du du = {.version = COWFS_IOCTL_VERSION};
    expect(s, usage_stat(op->fs, inode->ino, &st), 0, "stat");
    expect(s, (int64_t)st.size, (int64_t)s->content->size, "stat's size");
    if (st.private_bytes > st.mapped || st.shared_bytes > st.mapped || st.sealed_bytes > st.mapped)
        fail("%s: stat counts more than there is", s->name);
    int error = usage_du(op->fs, inode->ino, NULL, &du);
    if (error != -EAGAIN) { /* the sealer was at it */
        expect(s, error, 0, "du");
        expect(s, (int64_t)du.apparent, (int64_t)s->content->size, "du's size");
        if (du.exclusive + du.shared > st.mapped)
            fail("%s: du counts more than there is", s->name);
    }
    inode_put(inode);
}

/* The other process hears of this one: what it covers must be there for good. */
static void op_commit_told(struct op *op)
{
    op_commit(op);
    op->committed = true;
}

static void op_check(struct op *op)
{
    struct slot *s = choose_file(op);
    if (!s)
        return;
    say(op, "check %s", s->name);
    if (op->fs)
        check_whole(op, s);
}

static const struct {
    void (*run)(struct op *op);
    unsigned weight;
} table[] = {
    {op_write, 34},  {op_copy, 14},  {op_fallocate, 12},  {op_truncate, 9}, {op_clone, 7},
    {op_outlive, 4}, {op_create, 4}, {op_unlink, 5},      {op_seal, 4},     {op_diff, 2},
    {op_usage, 2},   {op_check, 4},  {op_commit_told, 3}, {op_pack, 4},     {op_public, 3},
};

/* Data must not grow for ever: the test would become slow. */
static void cut_large(struct op *op)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *s = &op->w->slots[i];
        if (!s->content || g_hash_table_size(s->content->pages) <= PAGES_MAX)
            continue;
        say(op, "; cut %s", s->name);
        sparse_resize(s->content, NEAR / 4);
        note_change(op->w, s);
        if (op->fs) {
            struct inode *inode = open_file(op, s);
            expect(s, file_truncate(inode, NEAR / 4), 0, "truncate");
            inode_put(inode);
        }
    }
}

void world_step(struct world *w, struct fs *fs, uint64_t number, bool *committed)
{
    struct op op = {.w = w, .fs = fs, .rng = rng_of(w->seed, number)};
    unsigned total = 0;
    unsigned k = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(table); i++)
        total += table[i].weight;
    unsigned at = (unsigned)rng_below(&op.rng, total);
    while (at >= table[k].weight)
        at -= table[k++].weight;
    snprintf(w->text, sizeof(w->text), "operation %" PRIu64 ": ", number);
    fail_context(w->text);
    /* Files to work on come first. */
    if (!choose_file(&op))
        op_create(&op);
    else
        table[k].run(&op);
    cut_large(&op);
    *committed = op.committed;
    if (w->verbose && fs)
        fprintf(stderr, "%s\n", w->text);
}

void world_committed(struct world *w)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *s = &w->slots[i];
        g_ptr_array_set_size(s->versions, 0);
        s->touched = false;
        s->committed = s->content && !s->nameless;
        if (s->content && w->track)
            g_ptr_array_add(s->versions, sparse_copy(s->content));
    }
}

void world_close(struct world *w, struct fs *fs)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *s = &w->slots[i];
        if (!s->nameless)
            continue;
        if (fs)
            inode_put(s->held);
        s->held = NULL;
        s->nameless = false;
        sparse_free(s->content);
        s->content = NULL;
    }
}

void world_check(struct world *w, struct fs *fs, bool after_crash)
{
    struct op op = {.w = w, .fs = fs};
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *s = &w->slots[i];
        struct inode *inode;
        bool touched = after_crash && s->touched;
        bool expected = after_crash ? s->committed : s->content != NULL;
        if (s->nameless && !after_crash) {
            check_whole(&op, s);
            continue;
        }
        int error = names_lookup(fs, ROOT_INO, s->name, &inode);
        if (error && error != -ENOENT)
            fail("%s: lookup: %s", s->name, g_strerror(-error));
        if (!touched && expected != (error == 0))
            fail("%s %s", s->name, expected ? "is gone" : "is there (again)");
        if (error)
            continue;
        if (after_crash)
            compare_file(inode, (struct sparse *const *)s->versions->pdata,
                         touched ? s->versions->len : 1, s->name);
        else
            check_whole(&op, s);
        inode_put(inode);
    }
}

/* What lay behind the end when the store died must not come to light. */
static void check_behind_end(struct world *w, struct fs *fs, const struct slot *s)
{
    static uint8_t buffer[3 * CHUNK_BYTES_MAX];
    struct inode *inode;
    if (names_lookup(fs, ROOT_INO, s->name, &inode))
        return;
    uint64_t size = file_size(inode);
    size_t n = 3 * (size_t)w->chunk_bytes;
    if (size <= (uint64_t)FILE_SIZE_MAX - n) {
        expect(s, file_truncate(inode, size + n), 0, "truncate");
        expect(s, file_read(inode, buffer, n, size), (int64_t)n, "read");
        for (size_t i = 0; i < n; i++)
            if (buffer[i])
                fail("%s: byte %" PRIu64 ", behind the end after a crash, is %02x", s->name,
                     size + i, buffer[i]);
    }
    inode_put(inode);
}

void world_drop_touched(struct world *w, struct fs *fs)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *s = &w->slots[i];
        if (s->touched) {
            if (fs)
                check_behind_end(w, fs, s);
            int error = fs ? names_unlink(fs, ROOT_INO, s->name) : 0;
            if (error && error != -ENOENT)
                fail("%s: unlink: %s", s->name, g_strerror(-error));
        }
        if (s->touched || s->nameless) {
            sparse_free(s->content);
            s->content = NULL;
            s->nameless = false;
        }
    }
}

void world_remove_all(struct world *w, struct fs *fs)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *s = &w->slots[i];
        if (s->content && !s->nameless)
            expect(s, names_unlink(fs, ROOT_INO, s->name), 0, "unlink");
        if (s->nameless)
            inode_put(s->held);
        sparse_free(s->content);
        s->content = NULL;
        s->nameless = false;
    }
    scratch_wait_empty(fs);
}
