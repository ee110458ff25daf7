// SPDX-License-Identifier: Apache-2.0
/*
 * The directory of the database, seen as files: how much it takes, whether
 * there is a database in it at all, and two helpers for a full file system.
 *
 * The reserve. After a failed write RocksDB must be closed and opened again,
 * and opening for writing makes a new MANIFEST and log. On a full file system
 * this fails, and then nothing could be committed any more, not even the
 * deletion of files that would make room. So a small file with really allocated
 * blocks is kept, to be given up at that moment.
 *
 * The mark. A write that fails for want of space has usually put half a batch
 * into the write-ahead log. Those bytes are worthless, since the batch will be
 * written again, but RocksDB keeps the log for as long as it needs the part
 * before them: they would eat the reserve. So the log is cut back to where it
 * ended before the write. It also makes a failed commit a commit that did not
 * happen, where a log that was written but not synced would be ambiguous.
 */
#include "chunkstore/metadb_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Opening takes some 50 KiB, and a typical batch of a few seconds' changes as
 * much again; more would show in an empty store on tmpfs. */
#define RESERVE_BYTES INT64_C(262144)
#define RESERVE_NAME "reserve"

/* Calls visit for each file, with the directory's descriptor. Stops at an error. */
typedef int (*file_visit)(void *context, int dir_fd, const char *name);

static int each_file(const char *path, file_visit visit, void *context)
{
    DIR *dir = opendir(path);
    if (!dir)
        return -errno;
    int error = 0;
    while (error == 0) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (!entry) {
            error = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            error = visit(context, dirfd(dir), entry->d_name);
    }
    closedir(dir);
    return error;
}

/* "000012.log" -> 12. False if the name is of another kind. */
static bool numbered(const char *name, const char *suffix, uint64_t *number)
{
    char *end;
    if (name[0] < '0' || name[0] > '9')
        return false;
    *number = strtoull(name, &end, 10);
    return strcmp(end, suffix) == 0;
}

static int inspect_file(void *context, int dir_fd, const char *name)
{
    enum db_dir_state *state = context;
    uint64_t number;
    (void)dir_fd;
    if (strcmp(name, "CURRENT") == 0)
        *state = DB_DIR_PRESENT;
    else if (*state == DB_DIR_MISSING &&
             (numbered(name, ".log", &number) || numbered(name, ".sst", &number)))
        *state = DB_DIR_DAMAGED;
    return 0;
}

/*
 * Asked before RocksDB is, because RocksDB with create_if_missing makes a new
 * and empty database over the remains of one that has lost its CURRENT. (A
 * MANIFEST alone is what a crash within the very first open leaves: harmless.)
 */
int db_dir_inspect(const char *path, enum db_dir_state *state)
{
    *state = DB_DIR_MISSING;
    int error = each_file(path, inspect_file, state);
    return error == -ENOENT ? 0 : error;
}

static int add_file_bytes(void *context, int dir_fd, const char *name)
{
    uint64_t *bytes = context;
    struct stat st;
    /* RocksDB deletes files while we look. */
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
        *bytes += (uint64_t)st.st_blocks * 512;
    return 0;
}

uint64_t db_dir_bytes(const char *path)
{
    uint64_t bytes = 0;
    each_file(path, add_file_bytes, &bytes);
    return bytes;
}

static int unlink_leftover(void *context, int dir_fd, const char *name)
{
    (void)context;
    if (g_str_has_prefix(name, "OPTIONS-") && g_str_has_suffix(name, ".dbtmp"))
        unlinkat(dir_fd, name, 0);
    return 0;
}

void db_dir_tidy(const char *path)
{
    each_file(path, unlink_leftover, NULL);
}

static int find_newest_wal(void *context, int dir_fd, const char *name)
{
    struct wal_mark *mark = context;
    struct stat st;
    uint64_t number;
    if (!numbered(name, ".log", &number) || number < mark->number)
        return 0;
    if (fstatat(dir_fd, name, &st, 0) != 0)
        return errno == ENOENT ? 0 : -errno;
    *mark = (struct wal_mark){.number = number, .size_bytes = st.st_size};
    return 0;
}

int wal_mark_take(const char *path, struct wal_mark *mark)
{
    *mark = (struct wal_mark){0};
    return each_file(path, find_newest_wal, mark);
}

bool wal_mark_advance(const char *path, struct wal_mark *mark)
{
    struct stat st;
    g_autofree char *name = g_strdup_printf("%s/%06" G_GUINT64_FORMAT ".log", path, mark->number);
    if (mark->number == 0 || stat(name, &st) != 0 || st.st_size <= mark->size_bytes)
        return false;
    mark->size_bytes = st.st_size;
    return true;
}

static int cut_wal(void *context, int dir_fd, const char *name)
{
    const struct wal_mark *mark = context;
    uint64_t number;
    if (!numbered(name, ".log", &number))
        return 0;
    int fd = openat(dir_fd, name, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int error = 0;
    struct stat st;
    if (fstat(fd, &st) != 0) {
        error = -errno;
    } else {
        /* A log newer than the mark has only the failed batch in it. */
        off_t keep_bytes = number < mark->number    ? st.st_size
                           : number == mark->number ? mark->size_bytes
                                                    : 0;
        /* Synced, so that a power cut cannot bring back the failed batch in
         * front of what is written next, with the same sequence numbers. */
        if (st.st_size > keep_bytes && (ftruncate(fd, keep_bytes) != 0 || fdatasync(fd) != 0))
            error = -errno;
        /* Each attempt at opening adds one. RocksDB does not miss it: it
         * replays what logs it finds. */
        else if (keep_bytes == 0)
            unlinkat(dir_fd, name, 0);
    }
    close(fd);
    return error;
}

/* Only while the database is closed and nobody else can have opened it. */
int wal_mark_roll_back(const char *path, const struct wal_mark *mark)
{
    struct wal_mark cut_at = *mark;
    return each_file(path, cut_wal, &cut_at);
}

static char *reserve_path(const char *path)
{
    return g_build_filename(path, RESERVE_NAME, NULL);
}

bool reserve_exists(const char *path)
{
    g_autofree char *name = reserve_path(path);
    struct stat st;
    return stat(name, &st) == 0 && st.st_blocks * 512 >= RESERVE_BYTES;
}

int reserve_make(const char *path)
{
    g_autofree char *name = reserve_path(path);
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int error = -posix_fallocate(fd, 0, RESERVE_BYTES);
    close(fd);
    if (error)
        unlink(name);
    return error;
}

bool reserve_drop(const char *path)
{
    g_autofree char *name = reserve_path(path);
    return unlink(name) == 0;
}
