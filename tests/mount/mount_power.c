// SPDX-License-Identifier: Apache-2.0
/*
 * mount_power.c - for powercut.sh: writers that note what they were promised, a cut of the
 * file system below, and a look at what is left.
 *
 *   mount_power work DIR STORE LOG SEED MS     works in DIR, for so long at most; LOG is new
 *   mount_power shutdown BELOW MOUNT LOG CUT   the file system below ends as by a power cut:
 *                                              what was not synced is lost (or, as told by
 *                                              $POWER_LOGFLUSH=1, all but what its journal has)
 *   mount_power snapshot IMAGE COPY MOUNT LOG CUT   COPY is made of IMAGE in one moment (FICLONE)
 *   mount_power check DIR LOG CUT              prints how many files there are
 *
 * A cut notes in CUT how far the writers were, and prints where it fell. If a commit had begun
 * before, and was not durable after: "data" if its data was not synced yet, "log" if it was, else
 * "commit". Else "between". MOUNT's daemon has COWFS_DEBUG_FAULTS.
 */
#include "tests/mount/power/power.h"

#include <linux/fs.h>
#include <sys/xattr.h>

/* XFS and ext4 have the same one: XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN. */
#define IOC_SHUTDOWN _IOR('X', 125, uint32_t)
enum { SHUTDOWN_LOGFLUSH = 1, SHUTDOWN_NOLOGFLUSH = 2 };

struct commits {
    uint64_t begun, synced, durable;
};

static struct commits commits_of(const char *mount)
{
    char text[128] = "";
    struct commits c;
    SYS(getxattr(mount, "user.cowfs-commits", text, sizeof(text) - 1));
    CHECK(sscanf(text, "%" SCNu64 " %" SCNu64 " %" SCNu64, &c.begun, &c.synced, &c.durable) == 3,
          "'%s'", text);
    return c;
}

static void note(const struct power_log *log, uint64_t bounds[POWER_WRITERS], bool ended)
{
    for (unsigned w = 0; w < POWER_WRITERS; w++)
        bounds[w] =
            ended ? atomic_load(&log->writers[w].ended) : atomic_load(&log->writers[w].begun);
}

static const char *place_of(struct commits before, struct commits after)
{
    /* One that was durable when the cut was over may have been so before. */
    if (before.begun == before.durable || after.durable > before.durable)
        return "between";
    if (before.synced == before.begun)
        return "log";
    return after.synced == before.synced ? "data" : "commit";
}

static void cut(const char *mount, const char *log_path, const char *bounds_path, int fd,
                unsigned long request, void *argument)
{
    const struct power_log *log = power_log_open(log_path, false);
    struct power_bounds bounds;
    struct commits before = commits_of(mount);
    note(log, bounds.before, true);
    SYS(ioctl(fd, request, argument));
    note(log, bounds.after, false);
    struct commits after = commits_of(mount);
    int out = SYS_INT(open(bounds_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    write_all(out, &bounds, sizeof(bounds), 0);
    puts(place_of(before, after));
}

static int run_shutdown(char **argv)
{
    uint32_t how = getenv("POWER_LOGFLUSH") ? SHUTDOWN_LOGFLUSH : SHUTDOWN_NOLOGFLUSH;
    int fd = SYS_INT(open(argv[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    cut(argv[1], argv[2], argv[3], fd, IOC_SHUTDOWN, &how);
    return 0;
}

static int run_snapshot(char **argv)
{
    int from = SYS_INT(open(argv[0], O_RDONLY | O_CLOEXEC));
    int to = SYS_INT(open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    cut(argv[2], argv[3], argv[4], to, FICLONE, (void *)(intptr_t)from);
    return 0;
}

static int run_work(char **argv)
{
    struct power_log *log = power_log_open(argv[2], true);
    puts("ready");
    fflush(stdout);
    uint64_t done = power_work(argv[0], argv[1], log, strtoull(argv[3], NULL, 10),
                               (unsigned)strtoul(argv[4], NULL, 10));
    printf("%" PRIu64 "\n", done);
    return 0;
}

static int run_check(char **argv)
{
    struct power_bounds bounds;
    int fd = SYS_INT(open(argv[2], O_RDONLY | O_CLOEXEC));
    read_all(fd, &bounds, sizeof(bounds), 0);
    printf("%" PRIu64 "\n", power_check(argv[0], power_log_open(argv[1], false), &bounds));
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int arguments;
        int (*run)(char **argv);
    } commands[] = {{"work", 5, run_work},
                    {"shutdown", 4, run_shutdown},
                    {"snapshot", 5, run_snapshot},
                    {"check", 3, run_check}};
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (argc == commands[i].arguments + 2 && strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argv + 2);
    fputs("usage: see mount_power.c\n", stderr);
    return 2;
}
