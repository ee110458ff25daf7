// SPDX-License-Identifier: Apache-2.0
/*
 * repair_home.c - files that are said to lie flat in a segment of their own, and do
 * not, or segments that are kept for such.
 *
 * What a file says of its home only lets others take a shorter way to the bytes that
 * its map leads to. So if one of them is wrong, none is believed: no file lies flat
 * any more, and nothing is lost; `cowfs pack` brings it back.
 */
#include "cowfs/repair_internal.h"

#include "cowfs/inode.h"

static int check(struct repair *r, bool *sound)
{
    struct fsck *f = repair_reader_new(r, "flat files");
    int error = fsck_load_segments(f);
    if (!error)
        error = fsck_load_inodes(f);
    if (!error)
        error = fsck_check_homes(f);
    *sound = f->report->count[FSCK_INODE_HOME] == 0 && f->report->count[FSCK_SEGMENT_HOME] == 0;
    repair_reader_free(f);
    return error;
}

static int break_segments(struct repair *r, struct fsck *f)
{
    struct cursor c;
    cursor_open(&c, f, KEY_SEGMENT);
    while (cursor_next(&c)) {
        struct fsck_segment_record record;
        if (c.a == 0 || !fsck_segment_decode(c.value, c.value_len, &record) ||
            !(record.flags & FSCK_SEGMENT_FLAG_HOME))
            continue;
        record.flags &= ~(uint64_t)FSCK_SEGMENT_FLAG_FILLING;
        record.flags |= FSCK_SEGMENT_FLAG_BROKEN;
        repair_put_segment(r, c.a, &record);
    }
    return cursor_close(&c);
}

static int leave_homes(struct repair *r, struct fsck *f)
{
    struct cursor c;
    cursor_open(&c, f, KEY_INODE);
    while (cursor_next(&c)) {
        struct inode_attr attr;
        if (inode_decode(c.value, c.value_len, &attr))
            continue;
        if (attr.home) {
            attr.home = 0;
            attr.home_filling = attr.packing = false;
            repair_put_inode(r, c.a, &attr);
        }
        g_free(attr.target);
    }
    return cursor_close(&c);
}

int repair_homes(struct repair *r)
{
    bool sound;
    int error = check(r, &sound);
    if (error || sound)
        return error;
    repair_did(r, "no file counts as flat any more (cowfs pack lays them out again)");
    struct fsck *f = repair_reader_new(r, "flat files");
    error = break_segments(r, f);
    if (!error)
        error = leave_homes(r, f);
    repair_reader_free(f);
    return error;
}
