// SPDX-License-Identifier: Apache-2.0
/*
 * xattr.c - extended attributes: one record each, keyed by inode and name
 * (docs/FORMAT.md, "Extended attributes").
 *
 * The kernel asks for security.capability before many a write. So an inode
 * knows whether it ever had any attribute (has_xattrs), and most questions are
 * answered without the database.
 */
#include "cowfs/names.h"
#include "cowfs/journal_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/limits.h>
#include <linux/xattr.h>

enum { XATTR_KEY_MAX = 9 + XATTR_NAME_MAX + 1 }; /* room for a NUL, which is not in the key */

static const char capability_name[] = XATTR_NAME_CAPS;

static int check_name(const char *name)
{
    static const char *const spaces[] = {XATTR_USER_PREFIX, XATTR_TRUSTED_PREFIX,
                                         XATTR_SECURITY_PREFIX};
    size_t len = strlen(name);
    if (len == 0 || len > XATTR_NAME_MAX)
        return -ERANGE;
    for (size_t i = 0; i < G_N_ELEMENTS(spaces); i++)
        if (g_str_has_prefix(name, spaces[i]))
            return name[strlen(spaces[i])] ? 0 : -EINVAL;
    return -ENOTSUP;
}

static size_t xattr_key(uint8_t key[XATTR_KEY_MAX], uint64_t ino, const char *name)
{
    size_t len = strlen(name);
    size_t prefix = key_u64(key, KEY_XATTR, ino);
    memcpy(key + prefix, name, len + 1);
    return prefix + len;
}

static bool has_any(struct inode *inode)
{
    pthread_mutex_lock(&inode->attr_lock);
    bool any = inode->attr.has_xattrs;
    pthread_mutex_unlock(&inode->attr_lock);
    return any;
}

/* Inside the gate. */
static void note_change(struct inode *inode, const char *name, bool present)
{
    pthread_mutex_lock(&inode->attr_lock);
    if (present)
        inode->attr.has_xattrs = true;
    if (strcmp(name, capability_name) == 0)
        inode->attr.has_capability = present;
    inode_touch_ctime(inode);
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_attr(inode);
}

/* The value; -ENODATA if there is none. */
static int read_value(struct inode *inode, const char *name, struct metadb_value *value)
{
    uint8_t key[XATTR_KEY_MAX];
    *value = (struct metadb_value){0};
    if (!has_any(inode))
        return -ENODATA;
    int error = metadb_get(inode->fs->db, key, xattr_key(key, inode->ino, name), value);
    return error == -ENOENT ? -ENODATA : error;
}

int xattr_set(struct fs *fs, uint64_t ino, const char *name, const void *value, size_t len,
              int flags)
{
    struct inode *inode;
    struct metadb_value old;
    uint8_t key[XATTR_KEY_MAX];
    int error = check_name(name);
    if (error)
        return error;
    if (len > XATTR_SIZE_MAX)
        return -E2BIG;
    if (flags & ~(XATTR_CREATE | XATTR_REPLACE))
        return -EINVAL;
    error = fs_may_change(fs);
    if (!error)
        error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    pthread_rwlock_wrlock(&inode->map_lock);
    error = read_value(inode, name, &old);
    if (error == -ENODATA)
        error = flags & XATTR_REPLACE ? -ENODATA : 0;
    else if (!error && (flags & XATTR_CREATE))
        error = -EEXIST;
    metadb_value_free(&old);
    if (!error) {
        txn_enter(fs->txn);
        journal_put(fs, key, xattr_key(key, ino, name), value, len);
        note_change(inode, name, true);
        journal_complete(fs->journal, 0, 0, NULL);
        txn_exit(fs->txn);
    }
    pthread_rwlock_unlock(&inode->map_lock);
    inode_put(inode);
    return error;
}

ssize_t xattr_get(struct fs *fs, uint64_t ino, const char *name, void *buffer, size_t size)
{
    struct inode *inode;
    struct metadb_value value;
    int error = check_name(name);
    if (!error)
        error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    /* One record is read whole, without a lock. */
    error = read_value(inode, name, &value);
    ssize_t result = error;
    if (!error) {
        result = (ssize_t)value.len;
        if (size && size < value.len)
            result = -ERANGE;
        else if (size && value.len)
            memcpy(buffer, value.data, value.len);
    }
    metadb_value_free(&value);
    inode_put(inode);
    return result;
}

int xattr_remove(struct fs *fs, uint64_t ino, const char *name)
{
    struct inode *inode;
    struct metadb_value old;
    uint8_t key[XATTR_KEY_MAX];
    int error = check_name(name);
    if (!error)
        error = fs_may_change(fs);
    if (!error)
        error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    pthread_rwlock_wrlock(&inode->map_lock);
    error = read_value(inode, name, &old);
    metadb_value_free(&old);
    if (!error) {
        txn_enter(fs->txn);
        journal_delete(fs, key, xattr_key(key, ino, name));
        note_change(inode, name, false);
        journal_complete(fs->journal, 0, 0, NULL);
        txn_exit(fs->txn);
    }
    pthread_rwlock_unlock(&inode->map_lock);
    inode_put(inode);
    return error;
}

void xattr_drop_capability(struct inode *inode)
{
    uint8_t key[XATTR_KEY_MAX];
    journal_delete(inode->fs, key, xattr_key(key, inode->ino, capability_name));
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.has_capability = false;
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_attr(inode);
}

/* Calls fn for each attribute; name is not terminated. */
typedef void (*xattr_fn)(void *arg, const char *name, size_t name_len, const uint8_t *value,
                         size_t len);
static int each(struct fs *fs, uint64_t ino, xattr_fn fn, void *arg)
{
    uint8_t lower[KEY_MAX], upper[KEY_MAX];
    size_t prefix = key_u64(lower, KEY_XATTR, ino);
    size_t upper_len = key_u64(upper, KEY_XATTR, ino + 1);
    struct metadb_iter *it = metadb_iter_new(fs->db, lower, prefix, upper, upper_len);
    for (; metadb_iter_valid(it); metadb_iter_next(it)) {
        size_t key_len, len;
        const uint8_t *key = metadb_iter_key(it, &key_len);
        const uint8_t *value = metadb_iter_value(it, &len);
        fn(arg, (const char *)key + prefix, key_len - prefix, value, len);
    }
    int error = metadb_iter_status(it);
    metadb_iter_free(it);
    return error;
}

struct name_list {
    char *buffer;
    size_t size, used;
};

static void add_name(void *arg, const char *name, size_t name_len, const uint8_t *value, size_t len)
{
    struct name_list *list = arg;
    (void)value, (void)len;
    if (list->used + name_len + 1 <= list->size) {
        memcpy(list->buffer + list->used, name, name_len);
        list->buffer[list->used + name_len] = 0;
    }
    list->used += name_len + 1;
}

ssize_t xattr_list(struct fs *fs, uint64_t ino, char *buffer, size_t size)
{
    struct name_list list = {.buffer = buffer, .size = size};
    struct inode *inode;
    int error = inode_get(fs->inodes, ino, &inode);
    if (error)
        return error;
    if (has_any(inode))
        error = each(fs, ino, add_name, &list);
    inode_put(inode);
    if (error)
        return error;
    return size && list.used > size ? -ERANGE : (ssize_t)list.used;
}

struct copy {
    struct fs *fs;
    uint64_t to;
    uint64_t count;
    bool user_only;
    bool capability; /* was among them */
};

static bool begins_with(const char *name, size_t name_len, const char *prefix)
{
    return name_len >= strlen(prefix) && memcmp(name, prefix, strlen(prefix)) == 0;
}

static void copy_one(void *arg, const char *name, size_t name_len, const uint8_t *value, size_t len)
{
    struct copy *copy = arg;
    uint8_t key[XATTR_KEY_MAX];
    size_t prefix = key_u64(key, KEY_XATTR, copy->to);
    if (name_len > XATTR_NAME_MAX)
        return; /* fsck's matter */
    if (copy->user_only && !begins_with(name, name_len, XATTR_USER_PREFIX))
        return;
    copy->capability |=
        name_len == strlen(capability_name) && memcmp(name, capability_name, name_len) == 0;
    memcpy(key + prefix, name, name_len);
    journal_put(copy->fs, key, prefix + name_len, value, len);
    copy->count++;
}

int xattr_copy_all(struct fs *fs, uint64_t from_ino, uint64_t to_ino, bool user_only)
{
    struct inode *from, *to;
    struct copy copy = {.fs = fs, .to = to_ino, .user_only = user_only};
    int error = inode_get(fs->inodes, from_ino, &from);
    if (error)
        return error;
    bool any = has_any(from);
    inode_put(from);
    if (!any)
        return 0;
    error = each(fs, from_ino, copy_one, &copy);
    int get_error = inode_get(fs->inodes, to_ino, &to);
    if (get_error)
        return get_error;
    /* Also after an error: what was copied has to be found to be dropped. */
    if (copy.count) {
        pthread_mutex_lock(&to->attr_lock);
        to->attr.has_xattrs = true;
        to->attr.has_capability = copy.capability;
        pthread_mutex_unlock(&to->attr_lock);
        inode_mark_attr(to);
    }
    inode_put(to);
    return error;
}

static void drop_one(void *arg, const char *name, size_t name_len, const uint8_t *value, size_t len)
{
    struct copy *drop = arg;
    uint8_t key[XATTR_KEY_MAX];
    (void)value, (void)len;
    size_t prefix = key_u64(key, KEY_XATTR, drop->to);
    if (name_len > XATTR_NAME_MAX)
        return;
    memcpy(key + prefix, name, name_len);
    metadb_delete(drop->fs->db, key, prefix + name_len);
}

int xattr_drop_all(struct fs *fs, uint64_t ino)
{
    struct copy drop = {.fs = fs, .to = ino};
    return each(fs, ino, drop_one, &drop);
}
