// SPDX-License-Identifier: Apache-2.0
/*
 * superblock.c - writing and reading STORE/superblock.
 *
 * The byte table is in docs/FORMAT.md, section "Superblock"; the enum below is
 * that table. The directory's own life (is there a store, the lock) is in
 * superblock_dir.c.
 */
#include "chunkstore/superblock_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

/* As in PNG: a transfer that changes line ends or stops at ^Z shows here. */
static const uint8_t magic[8] = {'C', 'O', 'W', 'F', 'S', '\r', '\n', 0x1a};

enum {
    AT_MAGIC = 0,
    AT_CHECKSUM = 8, /* XXH3-64 of all the bytes that follow it */
    AT_VERSION = 16,
    AT_CHUNK_BYTES = 20,
    AT_FEATURES_COMPAT = 24,
    AT_FEATURES_RO_COMPAT = 32,
    AT_FEATURES_INCOMPAT = 40,
    AT_CREATED = 48,
    AT_UUID = 56,
    AT_HASH_SECRET = 72,
    AT_RESERVED = 264, /* zeros */
};

G_STATIC_ASSERT(AT_HASH_SECRET + HASH_SECRET_BYTES == AT_RESERVED);

static void put_le32(uint8_t *p, uint32_t v)
{
    v = GUINT32_TO_LE(v);
    memcpy(p, &v, sizeof(v));
}

static void put_le64(uint8_t *p, uint64_t v)
{
    v = GUINT64_TO_LE(v);
    memcpy(p, &v, sizeof(v));
}

static uint32_t get_le32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return GUINT32_FROM_LE(v);
}

static uint64_t get_le64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return GUINT64_FROM_LE(v);
}

static uint64_t checksum_of(const uint8_t *image)
{
    return XXH3_64bits(image + AT_VERSION, SUPERBLOCK_BYTES - AT_VERSION);
}

static bool chunk_bytes_valid(uint32_t n)
{
    return n >= CHUNK_BYTES_MIN && n <= CHUNK_BYTES_MAX && (n & (n - 1)) == 0;
}

static void encode(const struct superblock *sb, uint8_t *image)
{
    memset(image, 0, SUPERBLOCK_BYTES);
    memcpy(image + AT_MAGIC, magic, sizeof(magic));
    put_le32(image + AT_VERSION, sb->version);
    put_le32(image + AT_CHUNK_BYTES, sb->chunk_bytes);
    put_le64(image + AT_FEATURES_COMPAT, sb->features_compat);
    put_le64(image + AT_FEATURES_RO_COMPAT, sb->features_ro_compat);
    put_le64(image + AT_FEATURES_INCOMPAT, sb->features_incompat);
    put_le64(image + AT_CREATED, sb->created_s);
    memcpy(image + AT_UUID, sb->uuid, sizeof(sb->uuid));
    memcpy(image + AT_HASH_SECRET, sb->hash_secret, sizeof(sb->hash_secret));
    put_le64(image + AT_CHECKSUM, checksum_of(image));
}

static void decode(const uint8_t *image, struct superblock *sb)
{
    *sb = (struct superblock){
        .version = get_le32(image + AT_VERSION),
        .features_compat = get_le64(image + AT_FEATURES_COMPAT),
        .features_ro_compat = get_le64(image + AT_FEATURES_RO_COMPAT),
        .features_incompat = get_le64(image + AT_FEATURES_INCOMPAT),
        .chunk_bytes = get_le32(image + AT_CHUNK_BYTES),
        .created_s = get_le64(image + AT_CREATED),
    };
    memcpy(sb->uuid, image + AT_UUID, sizeof(sb->uuid));
    memcpy(sb->hash_secret, image + AT_HASH_SECRET, sizeof(sb->hash_secret));
}

static int random_bytes(void *buffer, size_t n)
{
    uint8_t *p = buffer;
    while (n > 0) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        p += got;
        n -= (size_t)got;
    }
    return 0;
}

static int write_all(int fd, const uint8_t *p, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, p, n);
        if (done < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

/* Writes `image` under a temporary name and makes it durable there. */
static int write_temporary(int dir_fd, const char *name, const uint8_t *image)
{
    /* 0600: the secret is what keeps others from computing colliding hashes. */
    int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int error = write_all(fd, image, SUPERBLOCK_BYTES);
    if (!error && fsync(fd) < 0)
        error = -errno;
    if (close(fd) < 0 && !error)
        error = -errno;
    return error;
}

/* Renames without replacing, so that of two creators one hears -EEXIST. */
static int publish(int dir_fd, const char *name)
{
    if (renameat2(dir_fd, name, dir_fd, SUPERBLOCK_NAME, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    /* A file system without that flag (some network ones): link refuses an
     * existing name, too. */
    if (linkat(dir_fd, name, dir_fd, SUPERBLOCK_NAME, 0) < 0)
        return -errno;
    unlinkat(dir_fd, name, 0);
    return 0;
}

int superblock_create(const char *path, uint32_t chunk_bytes, struct errmsg *err)
{
    if (!chunk_bytes_valid(chunk_bytes))
        return errmsg_set(err, -EINVAL,
                          "chunk size %" G_GUINT32_FORMAT " is no power of two from %d to %d",
                          chunk_bytes, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);

    int dir_fd;
    int error = superblock_prepare_dir(path, &dir_fd, err);
    if (error)
        return error;

    struct superblock sb = {
        .version = SUPERBLOCK_VERSION,
        .features_compat = SUPERBLOCK_COMPAT_NEW,
        .features_ro_compat = SUPERBLOCK_RO_COMPAT_NEW,
        .features_incompat = SUPERBLOCK_INCOMPAT_NEW,
        .chunk_bytes = chunk_bytes,
        .created_s = (uint64_t)time(NULL),
    };
    char name[64];
    uint8_t image[SUPERBLOCK_BYTES];

    error = random_bytes(sb.uuid, sizeof(sb.uuid));
    if (!error)
        error = random_bytes(sb.hash_secret, sizeof(sb.hash_secret));
    if (error) {
        errmsg_set(err, error, "no random numbers: %s", g_strerror(-error));
        goto out;
    }
    sb.uuid[6] = (sb.uuid[6] & 0x0f) | 0x40; /* RFC 9562: version 4 */
    sb.uuid[8] = (sb.uuid[8] & 0x3f) | 0x80;
    encode(&sb, image);

    /* A name of our own, so that two creators do not write to one file. */
    uint64_t tag;
    memcpy(&tag, sb.uuid, sizeof(tag));
    snprintf(name, sizeof(name), SUPERBLOCK_TEMPORARY "%016" G_GINT64_MODIFIER "x", tag);
    error = write_temporary(dir_fd, name, image);
    if (!error)
        error = publish(dir_fd, name);
    if (error)
        unlinkat(dir_fd, name, 0);
    else if (fsync(dir_fd) < 0)
        error = -errno;
    if (error == -EEXIST)
        errmsg_set(err, error, "'%s' is a cowfs store already", path);
    else if (error)
        errmsg_set(err, error, "cannot write '%s/%s': %s", path, SUPERBLOCK_NAME,
                   g_strerror(-error));
out:
    close(dir_fd);
    return error;
}

/* Reads up to `size` bytes; *got tells how many there were. */
static int read_image(int fd, uint8_t *image, size_t size, size_t *got)
{
    *got = 0;
    while (*got < size) {
        ssize_t n = pread(fd, image + *got, size - *got, (off_t)*got);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    return 0;
}

/* Is this a superblock at all, and is it whole? */
static int check_image(const char *path, const uint8_t *image, size_t got, bool longer,
                       struct errmsg *err)
{
    bool has_magic = memcmp(image, magic, MIN(got, sizeof(magic))) == 0;
    bool sum_fits = got == SUPERBLOCK_BYTES && checksum_of(image) == get_le64(image + AT_CHECKSUM);

    /* A good checksum under a bad magic is our own file with a flipped bit. */
    if (!has_magic && !sum_fits)
        return errmsg_set(err, -EMEDIUMTYPE, "'%s/%s' is no cowfs superblock", path,
                          SUPERBLOCK_NAME);
    if (got < SUPERBLOCK_BYTES)
        return errmsg_set(err, -EUCLEAN, "'%s/%s' is cut off: %zu bytes instead of %d", path,
                          SUPERBLOCK_NAME, got, SUPERBLOCK_BYTES);
    if (!has_magic || !sum_fits || longer)
        return errmsg_set(err, -EUCLEAN, "'%s/%s' is damaged (%s)", path, SUPERBLOCK_NAME,
                          !has_magic  ? "its magic number is wrong"
                          : !sum_fits ? "its checksum does not fit"
                                      : "there are bytes after its end");
    return 0;
}

/* May this program use such a store? */
static int check_features(const char *path, const struct superblock *sb, bool read_only,
                          struct errmsg *err)
{
    if (sb->version != SUPERBLOCK_VERSION)
        return errmsg_set(err, -ENOTSUP,
                          "'%s' has format version %" G_GUINT32_FORMAT
                          "; this program knows version %d",
                          path, sb->version, SUPERBLOCK_VERSION);
    uint64_t unknown = sb->features_incompat & ~SUPERBLOCK_INCOMPAT_KNOWN;
    if (unknown)
        return errmsg_set(err, -ENOTSUP,
                          "'%s' uses incompatible features that this program does not know "
                          "(bits 0x%" G_GINT64_MODIFIER "x)",
                          path, unknown);
    unknown = sb->features_ro_compat & ~SUPERBLOCK_RO_COMPAT_KNOWN;
    if (unknown && !read_only)
        return errmsg_set(err, -EROFS,
                          "'%s' can only be used read-only: it has features that this program "
                          "does not know (bits 0x%" G_GINT64_MODIFIER "x)",
                          path, unknown);
    if (!chunk_bytes_valid(sb->chunk_bytes))
        return errmsg_set(err, -EUCLEAN, "'%s/%s' is damaged: chunk size %" G_GUINT32_FORMAT, path,
                          SUPERBLOCK_NAME, sb->chunk_bytes);
    return 0;
}

int superblock_read(const char *path, bool read_only, struct superblock *out, struct errmsg *err)
{
    char *name = g_build_filename(path, SUPERBLOCK_NAME, NULL);
    /* O_NONBLOCK: a foreign FIFO must not hang us. */
    int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int error = fd < 0 ? -errno : 0;
    if (error == -ENOENT || error == -ENOTDIR) {
        error = errmsg_set(err, -ENOENT, "there is no cowfs store at '%s'", path);
        goto out_name;
    }
    if (error) {
        errmsg_set(err, error, "cannot open '%s': %s", name, g_strerror(-error));
        goto out_name;
    }

    struct stat st;
    if (fstat(fd, &st) < 0) {
        error = errmsg_set(err, -errno, "cannot examine '%s': %s", name, g_strerror(errno));
        goto out_fd;
    }
    if (!S_ISREG(st.st_mode)) {
        error = errmsg_set(err, -EMEDIUMTYPE, "'%s' is no regular file", name);
        goto out_fd;
    }
    uint8_t image[SUPERBLOCK_BYTES + 1];
    size_t got;
    error = read_image(fd, image, sizeof(image), &got);
    if (error) {
        errmsg_set(err, error, "cannot read '%s': %s", name, g_strerror(-error));
        goto out_fd;
    }
    bool longer = got > SUPERBLOCK_BYTES;
    error = check_image(path, image, longer ? SUPERBLOCK_BYTES : got, longer, err);
    if (error)
        goto out_fd;
    struct superblock sb;
    decode(image, &sb);
    error = check_features(path, &sb, read_only, err);
    if (!error)
        *out = sb;
out_fd:
    close(fd);
out_name:
    g_free(name);
    return error;
}
