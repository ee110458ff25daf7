// SPDX-License-Identifier: Apache-2.0
#include "tests/model/lib/power.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096 };

/* A page that is dirty in the page cache below. */
struct page {
    uint64_t file; /* st_ino */
    uint64_t index;
    uint64_t sync; /* number of the fdatasync that covers it; 0: none yet */
    uint8_t *next; /* written to again since that began: what it held then */
    uint8_t old[PAGE];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool armed;
static GHashTable *pages; /* set of struct page, by file and index */
static GHashTable *files; /* st_ino -> descriptor of our own */
static uint64_t syncs;

static void page_free(gpointer p)
{
    g_free(((struct page *)p)->next);
    g_free(p);
}

static guint page_hash(gconstpointer p)
{
    const struct page *page = p;
    return (guint)((page->file * 31 + page->index) * 2654435761u);
}

static gboolean page_equal(gconstpointer a, gconstpointer b)
{
    const struct page *x = a;
    const struct page *y = b;
    return x->file == y->file && x->index == y->index;
}

void power_arm(void)
{
    pages = g_hash_table_new_full(page_hash, page_equal, page_free, NULL);
    files = g_hash_table_new(NULL, NULL);
    armed = true;
}

/* Whether fd is a segment; its number as a file. Under the lock. */
static bool is_segment(int fd, uint64_t *file)
{
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return false;
    *file = st.st_ino;
    if (g_hash_table_contains(files, GSIZE_TO_POINTER(st.st_ino)))
        return true;
    char link[64];
    char path[4096];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = 0;
    if (!strstr(path, "/segments/"))
        return false;
    int own = dup(fd);
    g_assert(own >= 0);
    g_hash_table_insert(files, GSIZE_TO_POINTER(st.st_ino), GINT_TO_POINTER(own));
    return true;
}

static void read_page(int fd, uint64_t index, uint8_t *data)
{
    memset(data, 0, PAGE);
    ssize_t n = syscall(SYS_pread64, fd, data, PAGE, (off_t)(index * PAGE));
    g_assert(n >= 0);
}

static void remember(int fd, uint64_t file, uint64_t index)
{
    struct page key = {.file = file, .index = index};
    struct page *page = g_hash_table_lookup(pages, &key);
    if (!page) {
        page = g_new0(struct page, 1);
        page->file = file;
        page->index = index;
        read_page(fd, index, page->old);
        g_hash_table_add(pages, page);
    } else if (page->sync && !page->next) {
        page->next = g_malloc(PAGE);
        read_page(fd, index, page->next);
    }
    /* cppcheck-suppress memleak ; the table has it */
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset)
{
    uint64_t file;
    if (!armed || n == 0)
        return syscall(SYS_pwrite64, fd, data, n, offset);
    pthread_mutex_lock(&lock);
    if (is_segment(fd, &file))
        for (uint64_t i = (uint64_t)offset / PAGE; i <= ((uint64_t)offset + n - 1) / PAGE; i++)
            remember(fd, file, i);
    ssize_t done = syscall(SYS_pwrite64, fd, data, n, offset);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

struct sync {
    uint64_t file, number;
};

static void mark(gpointer key, gpointer value, gpointer arg)
{
    struct page *page = key;
    const struct sync *s = arg;
    (void)value;
    if (page->file == s->file)
        page->sync = s->number;
}

/* The sync is through: true if the page is clean now. */
static gboolean settle(gpointer key, gpointer value, gpointer arg)
{
    struct page *page = key;
    const struct sync *s = arg;
    (void)value;
    if (page->file != s->file || page->sync != s->number)
        return FALSE;
    if (!page->next)
        return TRUE;
    memcpy(page->old, page->next, PAGE);
    g_clear_pointer(&page->next, g_free);
    page->sync = 0;
    return FALSE;
}

int fdatasync(int fd)
{
    struct sync s = {0, 0};
    bool segment = false;
    if (armed) {
        pthread_mutex_lock(&lock);
        segment = is_segment(fd, &s.file);
        s.number = ++syncs;
        if (segment)
            g_hash_table_foreach(pages, mark, &s);
        pthread_mutex_unlock(&lock);
    }
    int result = (int)syscall(SYS_fdatasync, fd);
    if (segment && result == 0) {
        pthread_mutex_lock(&lock);
        g_hash_table_foreach_remove(pages, settle, &s);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

void power_cut(struct rng *rng)
{
    GHashTableIter it;
    gpointer key;
    uint64_t percent = rng_below(rng, 3) * 50;
    pthread_mutex_lock(&lock); /* for good */
    g_hash_table_iter_init(&it, pages);
    while (g_hash_table_iter_next(&it, &key, NULL)) {
        const struct page *page = key;
        int fd = GPOINTER_TO_INT(g_hash_table_lookup(files, GSIZE_TO_POINTER(page->file)));
        if (!rng_percent(rng, (unsigned)percent))
            continue;
        off_t at = (off_t)(page->index * PAGE);
        if (syscall(SYS_pwrite64, fd, page->old, PAGE, at) != PAGE)
            _exit(3);
    }
    _exit(0);
}
