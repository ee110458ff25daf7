// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/hot.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* What the kernel maps around a fault. */
enum { UNIT = 64 << 10, MOST_UNITS = 1 << 10 };

/* ---- learning ---- */

/* Where the guest's memory is in that process. */
static bool find_memory(pid_t pid, uint64_t *start, uint64_t *end)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", (int)pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return false;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++)
        if (g_str_has_suffix(*line, "/" VM_MEMORY)) {
            char *rest;
            *start = g_ascii_strtoull(*line, &rest, 16);
            if (*rest != '-')
                return false;
            *end = g_ascii_strtoull(rest + 1, &rest, 16);
            return *rest == ' ';
        }
    return false;
}

/* Bit 63 of an entry of pagemap (proc(5)): in this process's page table. */
static bool is_present(const uint64_t *pages, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (pages[i] >> 63)
            return true;
    return false;
}

void hot_learn(const struct vm *source, pid_t pid)
{
    uint64_t start, end, pages[UNIT / 4096];
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const size_t count = UNIT / page;
    if (!find_memory(pid, &start, &end))
        return;
    g_autofree char *path = g_strdup_printf("/proc/%d/pagemap", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    GString *units = g_string_new(NULL);
    for (uint64_t at = start; fd >= 0 && at < end; at += UNIT) {
        ssize_t got = pread(fd, pages, count * sizeof(*pages), (off_t)(at / page * sizeof(*pages)));
        if (got <= 0)
            break;
        if (is_present(pages, (size_t)got / sizeof(*pages)))
            g_string_append_printf(units, "%" PRIu64 "\n", (at - start) / UNIT);
    }
    if (fd >= 0)
        close(fd);
    g_autofree char *file = g_strdup_printf("/proc/self/fd/%d/hot", source->run_fd);
    g_file_set_contents(file, units->str, (gssize)units->len, NULL);
    g_string_free(units, TRUE);
}

/* ---- fetching ---- */

void hot_fetch(const struct vm *source, const struct vm *copy)
{
    g_autofree char *file = g_strdup_printf("/proc/self/fd/%d/hot", source->run_fd);
    g_autofree char *text = NULL;
    int fd = openat(copy->dir_fd, VM_MEMORY, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || !g_file_get_contents(file, &text, NULL, NULL)) {
        if (fd >= 0)
            close(fd);
        return;
    }
    char *next = text;
    uint64_t first = 0, count = 0;
    for (int n = 0; n < MOST_UNITS; n++) {
        char *after;
        uint64_t unit = g_ascii_strtoull(next, &after, 10);
        bool end = after == next;
        if (!end && count && unit == first + count) {
            count++;
        } else {
            if (count)
                readahead(fd, (off64_t)(first * UNIT), count * UNIT);
            first = unit;
            count = 1;
        }
        if (end)
            break;
        next = after;
    }
    close(fd);
}
