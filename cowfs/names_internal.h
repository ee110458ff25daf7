// SPDX-License-Identifier: Apache-2.0
/*
 * names_internal.h - what names*.c share: the record of entries, and the usual
 * first and last steps of a change. Everything here is called under ns_lock.
 */
#ifndef COWFS_NAMES_INTERNAL_H
#define COWFS_NAMES_INTERNAL_H

#include "cowfs/names.h"

/* The lowest positions of a listing: "." and ".." end there. */
enum { POSITION_DOT = 1, POSITION_DOTDOT = 2, POSITION_FIRST = 3 };

/* Where a name is, or would be: the record as it was read. */
struct dirent_slot {
    uint8_t key[KEY_MAX];
    size_t key_len;
    struct metadb_value record; /* empty if there is none */
    unsigned entries;           /* in the record */
    bool found;
    /* If found: */
    size_t at, len; /* the entry's bytes in the record */
    uint64_t ino;
    uint32_t type; /* S_IFMT bits */
};

/* Finds the place of dir/name; 0 whether it exists or not (slot->found).
 * The slot wants dirent_slot_free in any case. */
int dirent_find(struct fs *fs, uint64_t dir, const char *name, struct dirent_slot *slot);
void dirent_slot_free(struct dirent_slot *slot);
/* Reads the slot again, after the record was changed through another slot. */
int dirent_find_again(struct fs *fs, const char *name, struct dirent_slot *slot);

/* 0, or -ENOSPC if too many names share the hash. */
int dirent_may_insert(const struct dirent_slot *slot);
/* Inside the gate. Each makes the slot out of date. insert: the name was not
 * found; replace and remove: it was. */
void dirent_insert(struct fs *fs, struct dirent_slot *slot, const char *name, uint64_t ino,
                   uint32_t type);
void dirent_replace(struct fs *fs, struct dirent_slot *slot, const char *name, uint64_t ino,
                    uint32_t type);
void dirent_remove(struct fs *fs, struct dirent_slot *slot);

static inline bool name_is_dots(const char *name)
{
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* References a directory that is one and is not removed: -ENOTDIR, -ENOENT. */
int names_get_dir(struct fs *fs, uint64_t ino, struct inode **out);
/* References what an entry names; an entry without inode is -EUCLEAN. */
int names_get_child(struct fs *fs, uint64_t dir, const struct dirent_slot *slot,
                    struct inode **out);
/* So many entries and subdirectories more (or less) in dir; times. Inside the
 * gate, as are the next two. */
void names_dir_changed(struct inode *dir, int entries, int subdirs);
/* One name less; a directory: removed. The last one makes an orphan. */
void names_drop_link(struct inode *inode);

#endif
