// SPDX-License-Identifier: Apache-2.0
/*
 * journal_orphans.c - since when files have had no links: a table in the journal's memory, each
 * number with one place, where the last one counts.
 *
 * No lock: a moment is only ever replaced by a later one, so whatever two threads make of a place,
 * or one that is killed in between, is not too early.
 */
#include "cowfs/journal_internal.h"

static struct journal_orphan *place_of(const struct journal *j, uint64_t ino)
{
    return &journal_orphans(j)[ino % JOURNAL_ORPHANS];
}

int64_t journal_orphan_since(struct journal *j, uint64_t ino, int64_t now_us)
{
    if (!j)
        return now_us;
    struct journal_orphan *o = place_of(j, ino);
    if (atomic_load(&o->ino) == ino) {
        int64_t since_us = atomic_load(&o->since_us);
        if (atomic_load(&o->ino) == ino)
            return since_us;
    }
    atomic_store(&o->ino, 0);
    atomic_store(&o->since_us, now_us);
    atomic_store(&o->ino, ino);
    return now_us;
}

void journal_orphan_again(struct journal *j, uint64_t ino)
{
    if (!j)
        return;
    uint64_t same = ino;
    atomic_compare_exchange_strong(&place_of(j, ino)->ino, &same, 0);
}
