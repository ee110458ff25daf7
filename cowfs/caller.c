// SPDX-License-Identifier: Apache-2.0
#include "cowfs/caller.h"

bool caller_in_group(const struct caller *caller, uint32_t gid)
{
    if (caller->gid == gid)
        return true;
    for (unsigned i = 0; i < caller->group_count; i++)
        if (caller->groups[i] == gid)
            return true;
    return false;
}

bool caller_may(const struct caller *caller, struct inode *inode, unsigned want)
{
    if (caller_is_root(caller))
        return true;
    pthread_mutex_lock(&inode->attr_lock);
    unsigned mode = inode->attr.mode;
    if (caller->uid == inode->attr.uid)
        mode >>= 6;
    else if (caller_in_group(caller, inode->attr.gid))
        mode >>= 3;
    pthread_mutex_unlock(&inode->attr_lock);
    return (mode & want) == want;
}

static uint32_t owner_of(struct inode *inode)
{
    pthread_mutex_lock(&inode->attr_lock);
    uint32_t uid = inode->attr.uid;
    pthread_mutex_unlock(&inode->attr_lock);
    return uid;
}

bool caller_may_remove(const struct caller *caller, struct inode *dir, struct inode *child)
{
    return caller_is_root(caller) || !(inode_mode(dir) & S_ISVTX) || caller->uid == owner_of(dir) ||
           caller->uid == owner_of(child);
}

bool caller_owns_or_may_write(const struct caller *caller, struct inode *inode)
{
    return caller->uid == owner_of(inode) || caller_may(caller, inode, MAY_WRITE);
}
