// SPDX-License-Identifier: Apache-2.0
/*
 * names_path.c - from an inode back to a name, for messages.
 *
 * Nothing on disk leads that way but for directories, which know their parent:
 * the first step is a search through all entries, the others through those of
 * one directory each.
 */
#include "cowfs/names_internal.h"

enum { DEPTH_MAX = 4096 };

struct search {
    uint64_t ino;
    char *name;
};

static int match(void *arg, uint64_t ino, uint32_t type, const char *name)
{
    struct search *s = arg;
    (void)type;
    if (ino != s->ino)
        return 0;
    s->name = g_strdup(name);
    return 1;
}

/* An entry of the inode among the records in [lower, upper). */
static char *search_records(struct fs *fs, uint64_t ino, const uint8_t *lower, size_t lower_len,
                            const uint8_t *upper, size_t upper_len, uint64_t *dir)
{
    struct search s = {.ino = ino};
    struct metadb_iter *it = metadb_iter_new(fs->db, lower, lower_len, upper, upper_len);
    for (; !s.name && metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *record = metadb_iter_value(it, &len);
        if (key_len < 17)
            continue;
        *dir = get_be64(key + 1);
        names_decode(record, len, match, &s);
    }
    metadb_iter_free(it);
    return s.name;
}

static char *search_all(struct fs *fs, uint64_t ino, uint64_t *dir)
{
    uint8_t lower = KEY_DIRENT, upper = KEY_DIRENT + 1;
    return search_records(fs, ino, &lower, 1, &upper, 1, dir);
}

static char *search_dir(struct fs *fs, uint64_t ino, uint64_t dir)
{
    uint8_t lower[KEY_MAX], upper[KEY_MAX];
    size_t lower_len = key_u64(lower, KEY_DIRENT, dir);
    size_t upper_len = key_u64(upper, KEY_DIRENT, dir + 1);
    return search_records(fs, ino, lower, lower_len, upper, upper_len, &dir);
}

char *names_path_of(struct fs *fs, uint64_t ino)
{
    uint64_t dir = 0;
    char *path = search_all(fs, ino, &dir);
    for (unsigned depth = 0; path && dir != ROOT_INO && depth < DEPTH_MAX; depth++) {
        struct inode *inode;
        if (inode_get(fs->inodes, dir, &inode))
            break;
        pthread_rwlock_rdlock(&fs->ns_lock);
        uint64_t parent = inode->attr.parent;
        pthread_rwlock_unlock(&fs->ns_lock);
        inode_put(inode);
        g_autofree char *name = search_dir(fs, dir, parent);
        if (!name)
            break;
        char *longer = g_strconcat(name, "/", path, NULL);
        g_free(path);
        path = longer;
        dir = parent;
    }
    return path;
}
