// SPDX-License-Identifier: Apache-2.0
/*
 * model_fault_names.c - as model_faults, with work on names: directories, links,
 * renames, extended attributes, clones and deletions of whole trees.
 *
 * What the store shows after each step is a text, which a first run without
 * failures notes. (Opening is model_faults'; here calls fail after it.) Then:
 *
 *   - a step that fails has changed nothing, and all can be read (but for long
 *     --run, see take_step); it succeeds when it is tried again, without a new
 *     opening, as soon as no call fails; only after EIO of a sync of data a new
 *     opening is needed;
 *   - in the end all is deleted, by delete_tree, and no space is taken;
 *   - the power fails before that, with what came after the last commit neither
 *     promised nor forbidden: then the store shows what it did after some step
 *     since the last commit that succeeded, as a whole. fsck finds nothing.
 */
#include "cowfs/clone.h"
#include "cowfs/delete.h"
#include "cowfs/file.h"
#include "cowfs/names.h"
#include "cowfs/reap.h"
#include "tests/model/disk/faults.h"
#include "tests/model/lib/compare.h"
#include "tests/model/lib/scratch.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { TEXT_MAX = 8192, TRIES = 20, BYTES = 200 << 10, DATABASE_OPENS = 4 };
enum what {
    MKDIR,
    SYMLINK,
    FILE_NEW,
    WRITE,
    COPY,
    LINK,
    RENAME,
    SWAP,
    UNLINK,
    RMDIR,
    SET,
    REMOVE,
    CLONE,
    DELETE,
    COMMIT
};

/* Paths of at most one directory. Of attributes `to` is the name. */
static const struct step {
    enum what what;
    const char *path, *to;
    unsigned bytes; /* of an attribute */
} steps[] = {
    {MKDIR, "d", NULL, 0},
    {FILE_NEW, "d/a", NULL, 0},
    {WRITE, "d/a", NULL, 0},
    {SYMLINK, "d/s", NULL, 0},
    {COMMIT, NULL, NULL, 0},
    {LINK, "d/a", "d/b", 0},
    {SET, "d/a", "user.small", 10},
    {COMMIT, NULL, NULL, 0},
    {SET, "d", "user.large", 60000},
    {RENAME, "d/b", "top", 0},
    {COMMIT, NULL, NULL, 0},
    {CLONE, "d", "e", 0},
    {MKDIR, "d/sub", NULL, 0},
    {FILE_NEW, "new", NULL, 0},
    {COPY, "d/a", "new", 0},
    {COMMIT, NULL, NULL, 0},
    {RENAME, "new", "e/a", 0}, /* in place of another file */
    {SET, "d/a", "user.small", 4000},
    {RENAME, "d/sub", "e/sub", 0},
    {COMMIT, NULL, NULL, 0},
    {SWAP, "d", "top", 0},
    {REMOVE, "top", "user.large", 0},
    {RMDIR, "e/sub", NULL, 0},
    {UNLINK, "e/s", NULL, 0},
    {COMMIT, NULL, NULL, 0},
    {DELETE, "e", NULL, 0},
    {COMMIT, NULL, NULL, 0},
};
enum { STEPS = G_N_ELEMENTS(steps) };

/* What is to be seen before step i, in shared memory. */
static char (*expected)[TEXT_MAX];
static const struct caller root = {.umask = 022};

/* ---- what a store shows ---- */

struct child {
    char *name;
    uint64_t ino;
};

static void child_clear(void *arg)
{
    struct child *child = arg;
    g_free(child->name);
}

static int note_child(void *arg, const struct dir_entry *entry)
{
    struct child child = {g_strdup(entry->name), entry->ino};
    if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0)
        g_free(child.name);
    else
        g_array_append_val((GArray *)arg, child);
    return 0;
}

static gint compare_children(gconstpointer a, gconstpointer b)
{
    return strcmp(((const struct child *)a)->name, ((const struct child *)b)->name);
}

static void must(int64_t result, const char *what, const char *path)
{
    if (result < 0)
        fail("%s of %s: %s", what, path, g_strerror((int)-result));
}

static void add_checksum(GString *text, const void *data, size_t n)
{
    g_autofree char *sum = g_compute_checksum_for_data(G_CHECKSUM_MD5, data, n);
    g_string_append_printf(text, "%zu:%.8s", n, sum);
}

static void show_xattrs(GString *text, struct inode *inode, const char *path)
{
    g_autofree char *names = g_malloc0(1024);
    g_autofree char *value = g_malloc(65536);
    ssize_t n = xattr_list(inode->fs, inode->ino, names, 1024);
    must(n, "listing the attributes", path);
    /* At most one, or their order would have to be one. */
    if (n == 0)
        return;
    ssize_t bytes = xattr_get(inode->fs, inode->ino, names, value, 65536);
    must(bytes, "reading an attribute", path);
    g_string_append_printf(text, " %s=", names);
    add_checksum(text, value, (size_t)bytes);
}

static void show_content(GString *text, struct inode *inode, const char *path)
{
    size_t size = file_size(inode);
    g_autofree uint8_t *data = g_malloc(size + 1);
    ssize_t n = size ? file_read(inode, data, size, 0) : 0;
    must(n, "reading", path);
    if ((size_t)n != size)
        fail("%s: %zd bytes of %zu", path, n, size);
    g_string_append_c(text, ' ');
    add_checksum(text, data, size);
}

/* first: ino -> the path under which it was shown; owned by the table */
static void show(GString *text, struct fs *fs, uint64_t ino, const char *path, GHashTable *first)
{
    struct inode *inode;
    struct stat st;
    const char *other = g_hash_table_lookup(first, &ino);
    if (other) {
        g_string_append_printf(text, "%s = %s\n", path, other);
        return;
    }
    g_hash_table_insert(first, g_memdup2(&ino, sizeof(ino)), g_strdup(path));
    must(inode_get(fs->inodes, ino, &inode), "inode", path);
    inode_stat(inode, &st);
    g_string_append_printf(text, "%s %o %lu %s", path, st.st_mode, (unsigned long)st.st_nlink,
                           S_ISLNK(st.st_mode) ? inode->attr.target : "");
    show_xattrs(text, inode, path);
    if (S_ISREG(st.st_mode))
        show_content(text, inode, path);
    g_string_append_c(text, '\n');
    if (S_ISDIR(st.st_mode)) {
        GArray *children = g_array_new(FALSE, FALSE, sizeof(struct child));
        g_array_set_clear_func(children, child_clear);
        must(names_list(fs, ino, 0, note_child, children), "listing", path);
        g_array_sort(children, compare_children);
        for (guint i = 0; i < children->len; i++) {
            const struct child *c = &g_array_index(children, struct child, i);
            g_autofree char *below = g_strconcat(path, "/", c->name, NULL);
            show(text, fs, c->ino, below, first);
        }
        g_array_free(children, TRUE);
    }
    inode_put(inode);
}

static char *shown(struct fs *fs)
{
    GString *text = g_string_new(NULL);
    GHashTable *first = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    show(text, fs, ROOT_INO, "", first);
    g_hash_table_destroy(first);
    return g_string_free(text, FALSE);
}

static void expect(struct fs *fs, unsigned from, unsigned to)
{
    g_autofree char *text = shown(fs);
    for (unsigned i = from; i <= to; i++)
        if (strcmp(text, expected[i]) == 0)
            return;
    fail("it is\n%sand not as before step %u\n%snor %u\n%s", text, from, expected[from], to,
         expected[to]);
}

/* ---- the steps ---- */

/* The directory of a path, and the name in it. */
static int parent_of(struct fs *fs, const char *path, uint64_t *dir, const char **name)
{
    const char *slash = strchr(path, '/');
    *dir = ROOT_INO;
    *name = path;
    if (!slash)
        return 0;
    g_autofree char *first = g_strndup(path, (size_t)(slash - path));
    struct inode *inode;
    int error = names_lookup(fs, ROOT_INO, first, &inode);
    if (error)
        return error;
    *dir = inode->ino;
    *name = slash + 1;
    inode_put(inode);
    return 0;
}

static int find(struct fs *fs, const char *path, struct inode **out)
{
    uint64_t dir;
    const char *name;
    int error = parent_of(fs, path, &dir, &name);
    return error ? error : names_lookup(fs, dir, name, out);
}

static uint8_t *data_of(unsigned number, size_t n)
{
    struct rng rng = rng_of(number, 1);
    uint8_t *data = g_malloc(n + 8);
    rng_fill(&rng, data, n);
    return data;
}

static int do_create(struct fs *fs, uint64_t dir, const char *name, uint32_t mode)
{
    struct inode *inode;
    int error =
        names_create(fs, dir, name, mode, 0, S_ISLNK(mode) ? "target" : NULL, &root, &inode);
    if (!error)
        inode_put(inode);
    return error;
}

static int do_delete(struct fs *fs, uint64_t dir, const char *name)
{
    struct cowfs_ioc_delete io = {.version = COWFS_IOCTL_VERSION};
    GArray *inos = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    int error = delete_tree(fs, dir, name, &root, &io, inos);
    g_array_free(inos, TRUE);
    reaper_wait(fs->reaper);
    return error;
}

/* With an inode, and where it is to go. */
static int do_with(struct inode *inode, const struct step *step, uint64_t dir, const char *name)
{
    struct fs *fs = inode->fs;
    struct cowfs_ioc_clone io = {.version = COWFS_IOCTL_VERSION};
    g_autofree uint8_t *data = data_of(step->bytes, MAX(step->bytes, BYTES));
    struct inode *other;
    ssize_t n;
    int error;
    switch (step->what) {
    case WRITE:
        n = file_write(inode, data, BYTES, 0, (struct file_write_flags){0});
        return n == BYTES ? 0 : n < 0 ? (int)n : -EAGAIN;
    case COPY:
        error = find(fs, step->to, &other);
        if (error)
            return error;
        n = file_copy_range(inode, 0, other, 0, BYTES);
        inode_put(other);
        return n == BYTES ? 0 : n < 0 ? (int)n : -EAGAIN;
    case LINK:
        error = names_link(fs, inode->ino, dir, name, &other);
        if (!error)
            inode_put(other);
        return error;
    case SET:
        return xattr_set(fs, inode->ino, step->to, data, step->bytes, 0);
    case REMOVE:
        return xattr_remove(fs, inode->ino, step->to);
    default:
        return clone_tree(fs, inode->ino, dir, name, &root, &io);
    }
}

static int do_step(struct fs *fs, const struct step *step)
{
    uint64_t dir, new_dir = ROOT_INO;
    const char *name, *new_name = NULL;
    struct inode *inode;
    if (step->what == COMMIT)
        return fs_commit(fs);
    int error = parent_of(fs, step->path, &dir, &name);
    if (!error && step->to)
        error = parent_of(fs, step->to, &new_dir, &new_name);
    if (error)
        return error;
    switch (step->what) {
    case MKDIR:
        return do_create(fs, dir, name, S_IFDIR | 0755);
    case SYMLINK:
        return do_create(fs, dir, name, S_IFLNK | 0777);
    case FILE_NEW:
        return do_create(fs, dir, name, S_IFREG | 0644);
    case RENAME:
        return names_rename(fs, dir, name, new_dir, new_name, 0);
    case SWAP:
        return names_rename(fs, dir, name, new_dir, new_name, RENAME_EXCHANGE);
    case UNLINK:
        return names_unlink(fs, dir, name);
    case RMDIR:
        return names_rmdir(fs, dir, name);
    case DELETE:
        return do_delete(fs, dir, name);
    default:
        error = names_lookup(fs, dir, name, &inode);
        if (error)
            return error;
        error = do_with(inode, step, new_dir, new_name);
        inode_put(inode);
        return error;
    }
}

/* ---- one who works ---- */

static struct fs *open_store(const char *path)
{
    /* No commits but those of the table. */
    struct fs_config config = {.create = true, .commit_interval_ms = 3600000};
    struct errmsg err = {""};
    struct fs *fs;
    if (fs_open(path, &config, &fs, &err))
        fail("open: %s", err.text);
    return fs;
}

/* All is deleted, and the space is given back. */
static void delete_all(struct fs *fs)
{
    static const char *const tops[] = {"d", "e", "top", "new", "last"};
    must(do_create(fs, ROOT_INO, "last", S_IFREG | 0644), "creating", "last");
    for (unsigned i = 0; i < G_N_ELEMENTS(tops); i++) {
        int error = do_delete(fs, ROOT_INO, tops[i]);
        if (error != -ENOENT)
            must(error, "deleting", tops[i]);
    }
    scratch_wait_empty(fs);
}

/* A sync of data has failed: this store does not go on, but can be read; a new opening helps. */
static void reopened(struct faults *f, struct fs *fs, unsigned step, const char *store)
{
    expect(fs, step, step + 1);
    if (do_create(fs, ROOT_INO, "no", S_IFREG | 0644) != -EIO)
        fail("a change after the failed sync");
    if (fs_close(fs) == 0)
        fail("closing after the failed sync");
    fs = open_store(store);
    expect(fs, f->told->promised, step + 1);
    delete_all(fs);
    must(fs_close(fs), "closing", "the store");
    f->told->closed = true;
}

/* Tries the step until it succeeds; false if this store does not go on. */
static bool take_step(struct faults *f, struct fs *fs, unsigned i)
{
    bool may_be_half = steps[i].what == WRITE || steps[i].what == COPY;
    for (unsigned tries = 0; tries < TRIES; tries++) {
        int error = do_step(fs, &steps[i]);
        uint64_t failed;
        uint64_t calls = disk_calls(&failed);
        if (!error)
            return true;
        if (error != -f->error && !(may_be_half && error == -EAGAIN))
            fail("error %s", g_strerror(-error));
        if (!failed)
            fail("error %s, and nothing failed", g_strerror(-error));
        f->told->failed = failed;
        /* Where so many calls fail that the database cannot be opened again either, it cannot be
         * read before the next commit. */
        bool lasts = f->run > DATABASE_OPENS && calls <= f->k + f->run + DATABASE_OPENS;
        if (!may_be_half && !lasts)
            expect(fs, i, i);
    }
    if (f->error != EIO)
        fail("it does not succeed any more");
    return false;
}

__attribute__((noreturn)) static void work(struct faults *f, const char *store)
{
    char context[64];
    fail_context("opening");
    struct fs *fs = open_store(store);
    /* Without the first commit there would be no store after the cut. */
    must(fs_commit(fs), "commit", "the empty store");
    f->told->opened = true;
    unsigned i;
    faults_begin(f);
    for (i = 0; i < STEPS; i++) {
        snprintf(context, sizeof(context), "step %u", i);
        fail_context(context);
        if (!take_step(f, fs, i))
            break;
        expect(fs, i + 1, i + 1);
        f->told->done = i + 1;
        if (steps[i].what == COMMIT)
            f->told->promised = i + 1;
    }
    faults_end(f);
    fail_context("the end");
    if (i < STEPS) {
        reopened(f, fs, i, store);
    } else if (f->k % 2) {
        delete_all(fs);
        must(fs_close(fs), "closing", "the store");
        f->told->closed = true;
    }
    _exit(0);
}

/* ---- one who looks ---- */

__attribute__((noreturn)) static void look(struct faults *f, const char *path)
{
    fail_context("after the cut");
    check_store(path);
    struct fs *fs = open_store(path);
    if (f->told->closed)
        expect(fs, 0, 0);
    else
        expect(fs, f->told->promised, f->told->done);
    delete_all(fs);
    must(fs_close(fs), "closing", "the store");
    check_store(path);
    _exit(0);
}

/* The first run, without failures. */
static void note(const char *store)
{
    struct fs *fs = open_store(store);
    fail_context("noting");
    for (unsigned i = 0; i <= STEPS; i++) {
        g_autofree char *text = shown(fs);
        if (strlen(text) >= TEXT_MAX)
            fail("the text is too long");
        strcpy(expected[i], text);
        /* Each step is to be seen: else nobody would notice that it was not done. */
        if (i && (strcmp(text, expected[i - 1]) == 0) != (steps[i - 1].what == COMMIT))
            fail("step %u: what it does is not to be seen in\n%s", i - 1, text);
        if (i < STEPS)
            must(do_step(fs, &steps[i]), "a step", steps[i].path ? steps[i].path : "the store");
    }
    must(fs_close(fs), "closing", "the store");
    _exit(0);
}

int main(int argc, char **argv)
{
    struct faults f = {.name = "model_fault_names", .work = work, .look = look};
    size_t bytes = (size_t)(STEPS + 1) * TEXT_MAX;
    expected = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (expected == MAP_FAILED) {
        perror("mmap");
        return 2;
    }
    char *scratch = scratch_make();
    char *store = g_build_filename(scratch, "store", NULL);
    pid_t pid = faults_start();
    if (pid == 0)
        note(store);
    bool good = faults_ended_well(pid);
    g_free(store);
    scratch_remove(scratch);
    return good ? faults_main(&f, argc, argv) : 1;
}
