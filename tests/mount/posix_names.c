// SPDX-License-Identifier: Apache-2.0
/* posix_names.c - files as names: create, rename, links, directories. */
#include "tests/mount/mount_common.h"

#include <dirent.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>

static int make(int dir, const char *name, const char *text)
{
    int fd = SYS_INT(openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    write_all(fd, text, strlen(text), 0);
    return fd;
}

static void make_closed(int dir, const char *name, const char *text)
{
    SYS(close(make(dir, name, text)));
}

static void check_text(int fd, const char *wanted)
{
    char text[256] = "";
    ssize_t got = SYS(pread(fd, text, sizeof(text) - 1, 0));
    CHECK((size_t)got == strlen(wanted) && strcmp(text, wanted) == 0, "'%s', not '%s'", text,
          wanted);
}

static void check_file(int dir, const char *name, const char *wanted)
{
    int fd = SYS_INT(openat(dir, name, O_RDONLY | O_CLOEXEC));
    check_text(fd, wanted);
    SYS(close(fd));
}

static struct stat stat_at(int dir, const char *name)
{
    struct stat st;
    SYS(fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW));
    return st;
}

static void check_gone(int dir, const char *name)
{
    struct stat st;
    FAILS(fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW), ENOENT);
}

static void test_create(int dir)
{
    char name[257];
    umask(027);
    int fd = SYS_INT(openat(dir, "f", O_RDWR | O_CREAT | O_EXCL, 0666));
    EQUAL(stat_at(dir, "f").st_mode, S_IFREG | 0640);
    FAILS(openat(dir, "f", O_RDWR | O_CREAT | O_EXCL, 0666), EEXIST);
    write_all(fd, "text", 4, 0);
    int truncated = SYS_INT(openat(dir, "f", O_WRONLY | O_TRUNC));
    EQUAL(size_of(fd), 0);
    close(truncated);
    close(fd);

    memset(name, 'n', 256);
    name[256] = '\0';
    FAILS(openat(dir, name, O_RDWR | O_CREAT, 0666), ENAMETOOLONG);
    FAILS(mkdirat(dir, name, 0777), ENAMETOOLONG);
    name[255] = '\0';
    close(SYS_INT(openat(dir, name, O_RDWR | O_CREAT | O_EXCL, 0666)));
    SYS(unlinkat(dir, name, 0));
    check_gone(dir, name);
    /* A name is any bytes but '/' and NUL. */
    make_closed(dir, "new\nline \xff\xfe \xc3\xa9", "x");
    check_file(dir, "new\nline \xff\xfe \xc3\xa9", "x");

    FAILS(openat(dir, "f/x", O_RDONLY), ENOTDIR);
    FAILS(openat(dir, "none", O_RDONLY), ENOENT);
    FAILS(openat(dir, "none/x", O_RDWR | O_CREAT, 0666), ENOENT);
    FAILS(unlinkat(dir, "f", AT_REMOVEDIR), ENOTDIR);
    umask(022);
}

static void test_directories(int dir)
{
    nlink_t links = stat_at(dir, ".").st_nlink;
    SYS(mkdirat(dir, "d", 0755));
    EQUAL(stat_at(dir, "d").st_mode, S_IFDIR | 0755);
    EQUAL(stat_at(dir, "d").st_nlink, 2);
    EQUAL(stat_at(dir, ".").st_nlink, links + 1);
    SYS(mkdirat(dir, "d/e", 0755));
    EQUAL(stat_at(dir, "d").st_nlink, 3);
    EQUAL(stat_at(dir, "d/e/..").st_ino, stat_at(dir, "d").st_ino);
    FAILS(mkdirat(dir, "d", 0755), EEXIST);
    FAILS(unlinkat(dir, "d", AT_REMOVEDIR), ENOTEMPTY);
    FAILS(unlinkat(dir, "d", 0), EISDIR);
    FAILS(openat(dir, "d", O_RDWR), EISDIR);
    FAILS(renameat(dir, "d", dir, "d/e/f"), EINVAL);
    FAILS(linkat(dir, "d", dir, "l", 0), EPERM);

    /* A directory moves: its .. and the counts of links follow. */
    SYS(mkdirat(dir, "g", 0755));
    SYS(renameat(dir, "d/e", dir, "g/e"));
    EQUAL(stat_at(dir, "d").st_nlink, 2);
    EQUAL(stat_at(dir, "g").st_nlink, 3);
    EQUAL(stat_at(dir, "g/e/..").st_ino, stat_at(dir, "g").st_ino);

    /* An open directory that is removed is empty, and takes nothing more. */
    int open_dir = SYS_INT(openat(dir, "d", O_RDONLY | O_DIRECTORY));
    SYS(unlinkat(dir, "d", AT_REMOVEDIR));
    FAILS(openat(open_dir, "f", O_RDWR | O_CREAT, 0644), ENOENT);
    struct stat st;
    SYS(fstat(open_dir, &st));
    EQUAL(st.st_nlink, 0);
    close(open_dir);

    /* A listing has ., .. and the right types. */
    make_closed(dir, "g/file", "x");
    SYS(symlinkat("file", dir, "g/link"));
    SYS(mkfifoat(dir, "g/fifo", 0644));
    DIR *list = fdopendir(SYS_INT(openat(dir, "g", O_RDONLY | O_DIRECTORY)));
    CHECK(list, "fdopendir: %s", strerror(errno));
    unsigned seen = 0;
    struct dirent *entry;
    while ((entry = readdir(list))) {
        static const struct {
            const char *name;
            unsigned char type;
        } wanted[] = {{".", DT_DIR},    {"..", DT_DIR},   {"e", DT_DIR},
                      {"file", DT_REG}, {"link", DT_LNK}, {"fifo", DT_FIFO}};
        unsigned i = 0;
        while (i < 6 && strcmp(wanted[i].name, entry->d_name) != 0)
            i++;
        CHECK(i < 6, "unknown name '%s'", entry->d_name);
        CHECK(!(seen & 1u << i), "'%s' comes twice", entry->d_name);
        EQUAL(entry->d_type, wanted[i].type);
        if (i >= 2) {
            char path[300];
            snprintf(path, sizeof(path), "g/%s", entry->d_name);
            EQUAL(entry->d_ino, stat_at(dir, path).st_ino);
        }
        seen |= 1u << i;
    }
    closedir(list);
    EQUAL(seen, 63);
}

static void test_rename(int dir)
{
    /* Over another file, which is open: it stays readable there. */
    make_closed(dir, "a", "A");
    int old = make(dir, "b", "B");
    ino_t ino = stat_at(dir, "a").st_ino;
    SYS(renameat(dir, "a", dir, "b"));
    check_gone(dir, "a");
    check_file(dir, "b", "A");
    EQUAL(stat_at(dir, "b").st_ino, ino);
    check_text(old, "B");
    struct stat st;
    SYS(fstat(old, &st));
    EQUAL(st.st_nlink, 0);
    close(old);

    SYS(mkdirat(dir, "d", 0755));
    SYS(mkdirat(dir, "full", 0755));
    make_closed(dir, "full/x", "x");
    FAILS(renameat(dir, "b", dir, "d"), EISDIR);
    FAILS(renameat(dir, "d", dir, "b"), ENOTDIR);
    FAILS(renameat(dir, "d", dir, "full"), ENOTEMPTY);
    SYS(renameat(dir, "full", dir, "d"));
    check_file(dir, "d/x", "x");
    FAILS(renameat(dir, "none", dir, "c"), ENOENT);
    /* Two names of one file: nothing happens. */
    SYS(linkat(dir, "b", dir, "b2", 0));
    SYS(renameat(dir, "b", dir, "b2"));
    check_file(dir, "b", "A");
    check_file(dir, "b2", "A");
}

static void test_rename_flags(int dir)
{
    make_closed(dir, "a", "A");
    make_closed(dir, "b", "B");
    FAILS(renameat2(dir, "a", dir, "b", RENAME_NOREPLACE), EEXIST);
    check_file(dir, "a", "A");
    check_file(dir, "b", "B");
    SYS(renameat2(dir, "a", dir, "c", RENAME_NOREPLACE));
    check_gone(dir, "a");
    check_file(dir, "c", "A");

    SYS(renameat2(dir, "b", dir, "c", RENAME_EXCHANGE));
    check_file(dir, "b", "A");
    check_file(dir, "c", "B");
    FAILS(renameat2(dir, "b", dir, "none", RENAME_EXCHANGE), ENOENT);
    FAILS(renameat2(dir, "b", dir, "c", RENAME_EXCHANGE | RENAME_NOREPLACE), EINVAL);

    /* A directory and a file, in different directories. */
    SYS(mkdirat(dir, "d", 0755));
    SYS(mkdirat(dir, "d/sub", 0755));
    make_closed(dir, "d/sub/x", "x");
    EQUAL(stat_at(dir, "d").st_nlink, 3);
    nlink_t links = stat_at(dir, ".").st_nlink;
    SYS(renameat2(dir, "d/sub", dir, "b", RENAME_EXCHANGE));
    check_file(dir, "d/sub", "A");
    check_file(dir, "b/x", "x");
    EQUAL(stat_at(dir, "d").st_nlink, 2);
    EQUAL(stat_at(dir, ".").st_nlink, links + 1);
    EQUAL(stat_at(dir, "b/..").st_ino, stat_at(dir, ".").st_ino);
    FAILS(renameat2(dir, "d", dir, "d/sub", RENAME_EXCHANGE), EINVAL);
}

static void test_unlink_open(int dir)
{
    int fd = make(dir, "f", "before");
    SYS(unlinkat(dir, "f", 0));
    check_gone(dir, "f");
    check_text(fd, "before");
    write_all(fd, "after!", 6, 0);
    SYS(fsync(fd));
    check_text(fd, "after!");
    SYS(ftruncate(fd, 1 << 20));
    SYS(ftruncate(fd, 6));
    check_text(fd, "after!");
    SYS(fchmod(fd, 0600));
    struct stat st;
    SYS(fstat(fd, &st));
    EQUAL(st.st_nlink, 0);
    EQUAL(st.st_mode, S_IFREG | 0600);
    /* The name is free for another file. */
    make_closed(dir, "f", "other");
    check_text(fd, "after!");
    check_file(dir, "f", "other");
    CHECK(stat_at(dir, "f").st_ino != st.st_ino, "an inode number was given away while in use");
    FAILS(linkat(fd, "", dir, "g", AT_EMPTY_PATH), ENOENT);
    close(fd);
    check_file(dir, "f", "other");
}

static void test_hard_links(int dir)
{
    enum { LINKS = 500 };
    char name[32];
    int fd = make(dir, "f", "shared");
    SYS(mkdirat(dir, "d", 0755));
    for (unsigned i = 0; i < LINKS; i++) {
        snprintf(name, sizeof(name), "d/%u", i);
        SYS(linkat(dir, "f", dir, name, 0));
    }
    EQUAL(stat_at(dir, "f").st_nlink, LINKS + 1);
    EQUAL(stat_at(dir, "d/77").st_ino, stat_at(dir, "f").st_ino);
    FAILS(linkat(dir, "f", dir, "d/77", 0), EEXIST);
    write_all(fd, "SHARED", 6, 0);
    check_file(dir, "d/77", "SHARED");
    SYS(unlinkat(dir, "f", 0));
    for (unsigned i = 1; i < LINKS; i++) {
        snprintf(name, sizeof(name), "d/%u", i);
        SYS(unlinkat(dir, name, 0));
    }
    EQUAL(stat_at(dir, "d/0").st_nlink, 1);
    check_file(dir, "d/0", "SHARED");
    close(fd);
    /* Of a symbolic link: the link itself. */
    SYS(symlinkat("nowhere", dir, "s"));
    SYS(linkat(dir, "s", dir, "s2", 0));
    EQUAL(stat_at(dir, "s2").st_nlink, 2);
}

static void test_symlinks(int dir)
{
    char target[4096], got[4097];
    make_closed(dir, "f", "text");
    SYS(symlinkat("f", dir, "s"));
    check_file(dir, "s", "text");
    EQUAL(stat_at(dir, "s").st_size, 1);
    EQUAL(stat_at(dir, "s").st_mode & S_IFMT, S_IFLNK);
    memset(target, 't', 4095);
    target[4095] = '\0';
    SYS(symlinkat(target, dir, "long"));
    EQUAL(readlinkat(dir, "long", got, sizeof(got)), 4095);
    check_same(got, target, 4095, "readlink", 0);
    SYS(symlinkat("loop", dir, "loop"));
    FAILS(openat(dir, "loop", O_RDONLY), ELOOP);
    FAILS(openat(dir, "s", O_RDONLY | O_NOFOLLOW), ELOOP);
    FAILS(symlinkat("f", dir, "s"), EEXIST);
    SYS(unlinkat(dir, "s", 0));
    check_file(dir, "f", "text");
}

/* A hypervisor puts its API socket beside its disk. */
static void test_special(int dir)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[8] = "";
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/socket", dir);
    int listener = SYS_INT(socket(AF_UNIX, SOCK_STREAM, 0));
    SYS(bind(listener, (struct sockaddr *)&address, sizeof(address)));
    SYS(listen(listener, 1));
    EQUAL(stat_at(dir, "socket").st_mode & S_IFMT, S_IFSOCK);
    int client = SYS_INT(socket(AF_UNIX, SOCK_STREAM, 0));
    SYS(connect(client, (struct sockaddr *)&address, sizeof(address)));
    int served = SYS_INT(accept(listener, NULL, NULL));
    EQUAL(write(client, "hello", 5), 5);
    EQUAL(read(served, text, sizeof(text)), 5);
    close(served);
    close(client);
    close(listener);
    FAILS(openat(dir, "socket", O_RDWR), ENXIO);
    SYS(unlinkat(dir, "socket", 0));

    SYS(mkfifoat(dir, "fifo", 0600));
    int fifo = SYS_INT(openat(dir, "fifo", O_RDWR | O_NONBLOCK));
    EQUAL(write(fifo, "through", 7), 7);
    EQUAL(read(fifo, text, sizeof(text)), 7);
    close(fifo);

    SYS(mknodat(dir, "null", S_IFCHR | 0666, makedev(1, 3)));
    EQUAL(stat_at(dir, "null").st_rdev, makedev(1, 3));
    EQUAL(stat_at(dir, "null").st_mode, S_IFCHR | 0644);
    /* nodev is the default. */
    FAILS(openat(dir, "null", O_RDWR), EACCES);
}

/* ---- large directories ---- */

enum { MANY = 100000 };

static void name_of(char *name, size_t bytes, unsigned i)
{
    /* Of different lengths, and no order. */
    snprintf(name, bytes, "%.*s%u", (int)(i * 7 % 60),
             "entry-entry-entry-entry-entry-entry-entry-entry-entry-entry-", i);
}

static void make_many(int dir, unsigned from, unsigned to)
{
    char name[128];
    for (unsigned i = from; i < to; i++) {
        name_of(name, sizeof(name), i);
        SYS(mknodat(dir, name, S_IFREG | 0644, 0));
    }
}

/* The number in the name; the caller has put nothing else there. */
static bool number_in(const char *name, unsigned *out)
{
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    const char *digits = name + strcspn(name, "0123456789");
    char wanted[128];
    *out = (unsigned)strtoul(digits, NULL, 10);
    CHECK(*out < MANY, "'%s' is none of our names", name);
    name_of(wanted, sizeof(wanted), *out);
    CHECK(strcmp(name, wanted) == 0, "'%s' is none of our names", name);
    return true;
}

static DIR *open_list(int dir)
{
    DIR *list = fdopendir(SYS_INT(openat(dir, ".", O_RDONLY | O_DIRECTORY)));
    CHECK(list, "fdopendir: %s", strerror(errno));
    return list;
}

static unsigned list_all(int dir, uint8_t *seen)
{
    DIR *list = open_list(dir);
    unsigned count = 0, i;
    struct dirent *entry;
    memset(seen, 0, MANY);
    while ((errno = 0, entry = readdir(list))) {
        if (!number_in(entry->d_name, &i))
            continue;
        CHECK(!seen[i], "'%s' comes twice", entry->d_name);
        seen[i] = 1;
        count++;
    }
    EQUAL(errno, 0);
    closedir(list);
    return count;
}

static void test_large_directory(int dir)
{
    static uint8_t seen[MANY];
    char name[128];
    struct stat st;
    make_many(dir, 0, MANY);
    EQUAL(list_all(dir, seen), MANY);
    for (unsigned i = 0; i < MANY; i += 997) {
        name_of(name, sizeof(name), i);
        SYS(fstatat(dir, name, &st, 0));
    }
    FAILS(fstatat(dir, "entry", &st, 0), ENOENT);

    /* telldir and seekdir go back to where they were. */
    char after[256];
    DIR *list = open_list(dir);
    for (unsigned i = 0; i < 5000; i++)
        CHECK(readdir(list), "the listing is short");
    long place = telldir(list);
    struct dirent *entry = readdir(list);
    CHECK(entry, "the listing is short");
    snprintf(after, sizeof(after), "%s", entry->d_name);
    for (unsigned i = 0; i < 5000; i++)
        CHECK(readdir(list), "the listing is short");
    seekdir(list, place);
    entry = readdir(list);
    CHECK(entry && strcmp(entry->d_name, after) == 0, "seekdir: '%s', not '%s'",
          entry ? entry->d_name : "the end", after);
    closedir(list);

    /* As rm -r does: list and remove at once, until there is nothing. */
    unsigned removed = 0, number;
    list = open_list(dir);
    while ((entry = readdir(list))) {
        if (!number_in(entry->d_name, &number))
            continue;
        SYS(unlinkat(dir, entry->d_name, 0));
        removed++;
    }
    closedir(list);
    EQUAL(removed, MANY);
    EQUAL(list_all(dir, seen), 0);
}

/* Entries that are there all the time come once, whatever else goes and comes. */
static void test_readdir_changing(int dir)
{
    enum { THERE = 20000 };
    static uint8_t seen[MANY];
    char name[128];
    struct dirent *entry;
    unsigned i, count = 0;

    make_many(dir, 0, THERE);
    DIR *list = open_list(dir);
    while ((entry = readdir(list))) {
        if (!number_in(entry->d_name, &i))
            continue;
        CHECK(!seen[i], "'%s' comes twice", entry->d_name);
        seen[i] = 1;
        if (count < THERE / 2) {
            /* The even ones go, some before they are listed, some after; new ones come. */
            name_of(name, sizeof(name), count * 2);
            SYS(unlinkat(dir, name, 0));
            name_of(name, sizeof(name), THERE + count);
            SYS(mknodat(dir, name, S_IFREG | 0644, 0));
        }
        count++;
    }
    closedir(list);
    for (i = 1; i < THERE; i += 2)
        CHECK(seen[i], "%u was there all the time and is not in the listing", i);
    unsigned there = list_all(dir, seen);
    EQUAL(there, THERE);
    for (i = 0; i < THERE; i++)
        EQUAL(seen[i], i % 2);
}

/* Programs that hold on to files by handle (NFS servers do). */
static void test_handles(int dir)
{
    union {
        struct file_handle handle;
        char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } u = {.handle = {.handle_bytes = MAX_HANDLE_SZ}};
    int mount_id;
    make_closed(dir, "f", "text");
    SYS(name_to_handle_at(dir, "f", &u.handle, &mount_id, 0));
    SYS(renameat(dir, "f", dir, "g"));
    int fd = SYS_INT(open_by_handle_at(dir, &u.handle, O_RDONLY));
    check_text(fd, "text");
    close(fd);
    SYS(unlinkat(dir, "g", 0));
    /* The kernel may still hold it for a moment, since it releases files later. */
    for (int i = 0; i < 1000 && (fd = open_by_handle_at(dir, &u.handle, O_RDONLY)) >= 0; i++) {
        close(fd);
        usleep(10000);
    }
    FAILS(open_by_handle_at(dir, &u.handle, O_RDONLY), ESTALE);
}

static const struct mount_case cases[] = {
    {"create", test_create},
    {"directories", test_directories},
    {"rename", test_rename},
    {"rename_flags", test_rename_flags},
    {"unlink_open", test_unlink_open},
    {"hard_links", test_hard_links},
    {"symlinks", test_symlinks},
    {"special", test_special},
    {"large_directory", test_large_directory},
    {"readdir_changing", test_readdir_changing},
    {"handles", test_handles},
};

int main(int argc, char **argv)
{
    return run_mount_case(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
