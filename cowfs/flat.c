// SPDX-License-Identifier: Apache-2.0
/* flat.c - which files are one whole flat segment, and holding these. */
#include "cowfs/flat_internal.h"

#include "cowfs/damage.h"

#include <errno.h>

enum flat_verdict flat_verdict_locked(struct inode *inode)
{
    struct fs *fs = inode->fs;
    const struct inode_attr *a = &inode->attr;
    struct segment_home home;
    uint64_t end = div_round_up_u64(a->size_bytes, fs->chunk_bytes), found;
    if (!a->home)
        return end <= NODE_ENTRIES ? FLAT_SMALL : FLAT_ELSEWHERE;
    if (segments_home_get(fs->segments, a->home, &home) != 0)
        return a->map.levels ? FLAT_DEDUPED : FLAT_ELSEWHERE; /* all of it was exchanged */
    if (a->packing)
        return FLAT_PACKING;
    if (home.broken)
        return FLAT_DEDUPED;
    if (home.unowned)
        return FLAT_UNSUPPORTED;
    if (damage_in_segment(fs, a->home))
        return FLAT_DAMAGED;
    /* A part of what the others with this home have (a copy in pieces). */
    if (!a->home_filling && a->size_bytes != home.size_bytes)
        return FLAT_ELSEWHERE;
    /* What is reserved behind the end would be cut off. */
    if (map_seek(fs->nodes, &a->map, end, map_capacity(a->map.levels), true, &found) != -ENXIO)
        return FLAT_ELSEWHERE;
    return FLAT_YES;
}

enum flat_verdict flat_verdict(struct inode *inode)
{
    pthread_rwlock_rdlock(&inode->map_lock);
    enum flat_verdict verdict = flat_verdict_locked(inode);
    pthread_rwlock_unlock(&inode->map_lock);
    return verdict;
}

const char *flat_verdict_text(enum flat_verdict verdict)
{
    switch (verdict) {
    case FLAT_YES:
        return "flat";
    case FLAT_SMALL:
        return "too small to have a segment of its own";
    case FLAT_ELSEWHERE:
        return "parts of it lie elsewhere: it was written after it was cloned, cut, punched, put "
               "together from parts, or never laid out flat; cowfs pack does that";
    case FLAT_DEDUPED:
        return "cowfs seal shares parts of it with other files";
    case FLAT_PACKING:
        return "it is being packed, or that was broken off";
    case FLAT_UNSUPPORTED:
        return "the file system below cannot punch holes";
    case FLAT_DAMAGED:
        return "parts of its segment are damaged; cowfs scrub tells which";
    }
    return "unknown";
}

int flat_pin(struct inode *inode, int *fd, uint32_t *home)
{
    struct fs *fs = inode->fs;
    pthread_rwlock_rdlock(&inode->map_lock);
    /* Who reads past the daemon reads past the option verify. */
    bool may = !fs->config.verify && flat_verdict_locked(inode) == FLAT_YES;
    int error = may ? 0 : -EINVAL;
    if (!error) {
        *home = inode->attr.home;
        error = segments_home_pin(fs->segments, *home, inode->attr.size_bytes, fd);
    }
    pthread_rwlock_unlock(&inode->map_lock);
    return error == -ENOENT ? -EINVAL : error;
}

void flat_unpin(struct fs *fs, uint32_t home)
{
    segments_home_unpin(fs->segments, home);
}
