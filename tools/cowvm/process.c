// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/process.h"
#include "tools/cowfs_tool.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

/* Fields of /proc/PID/stat (proc(5)), counted from the one behind the name. */
enum { STAT_UTIME = 11, STAT_STIME = 12, STAT_STARTTIME = 19 };

bool process_times(pid_t pid, uint64_t *used, uint64_t *started)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return false;
    /* The name, in parentheses, may hold anything. */
    const char *behind = strrchr(text, ')');
    if (!behind || strlen(behind) < 2)
        return false;
    g_auto(GStrv) fields = g_strsplit(behind + 2, " ", -1);
    if (g_strv_length(fields) <= STAT_STARTTIME)
        return false;
    *used = g_ascii_strtoull(fields[STAT_UTIME], NULL, 10) +
            g_ascii_strtoull(fields[STAT_STIME], NULL, 10);
    *started = g_ascii_strtoull(fields[STAT_STARTTIME], NULL, 10);
    return true;
}

/* What it was born with and does not need: above all a connection to QEMU, which
 * would not serve another one as long as that is open. */
static void close_others(const int *keep, size_t count)
{
    for (int fd = 3; fd < sysconf(_SC_OPEN_MAX) && fd < 1024; fd++) {
        bool kept = false;
        for (size_t i = 0; i < count; i++)
            kept = kept || keep[i] == fd;
        if (!kept)
            close(fd);
    }
}

void process_detach(const int *keep, size_t count)
{
    close_others(keep, count);
    setsid();
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    /* Whoever reads the command's output must not wait for it. */
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; null >= 0 && fd <= 2; fd++)
        dup2(null, fd);
}

bool process_memory(pid_t pid, uint64_t *bytes)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/smaps_rollup", (int)pid);
    g_autofree char *text = NULL;
    const char *line = NULL;
    if (g_file_get_contents(path, &text, NULL, NULL))
        line = strstr(text, "\nPss:");
    if (!line)
        return false;
    *bytes = g_ascii_strtoull(line + strlen("\nPss:"), NULL, 10) << 10;
    return true;
}

bool parse_number(const char *option, const char *text, int min, int max, int *out)
{
    gint64 value;
    if (!g_ascii_string_to_signed(text, 10, min, max, &value, NULL)) {
        tool_misused("%s %s: is no number from %d to %d", option, text, min, max);
        return false;
    }
    *out = (int)value;
    return true;
}
