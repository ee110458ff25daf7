// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_caller.c - who makes a request, beyond what FUSE tells with it.
 *
 * That is asked of /proc and capget(2) by his thread's number. The thread waits inside the
 * kernel for our answer, so the number is his for so long.
 */
#include "cowfs/fuse_ops.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Whether he is in the same namespace of that kind ("mnt", "user") as this process. */
static bool in_our_namespace(pid_t pid, const char *kind)
{
    char path[64];
    struct stat his, ours;
    snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, kind);
    if (pid <= 0 || stat(path, &his) != 0)
        return false;
    snprintf(path, sizeof(path), "/proc/self/ns/%s", kind);
    return stat(path, &ours) == 0 && his.st_ino == ours.st_ino && his.st_dev == ours.st_dev;
}

/* What of root's power the answers to ioctls rely on. */
static bool has_capabilities(pid_t pid)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = pid};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    const uint64_t wanted = 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER |
                            1u << CAP_FSETID | 1u << CAP_SETFCAP;
    if (pid <= 0 || syscall(SYS_capget, &header, data) != 0)
        return false;
    return (data[0].effective & wanted) == wanted;
}

void mount_caller_rights(fuse_req_t req, struct caller *caller, gid_t groups[CALLER_GROUPS_MAX])
{
    *caller = mount_caller(req);
    pid_t pid = (pid_t)caller->pid;
    if (caller->uid == 0) {
        /* Root of another user namespace may do what he likes to the files of those users
         * that it knows; which, is not asked: he is treated as anybody else. */
        caller->powerless = !has_capabilities(pid) || !in_our_namespace(pid, "user");
        if (!caller->powerless)
            return;
    }
    /* From /proc. If they are not to be had, only the primary group counts. */
    int count = fuse_req_getgroups(req, CALLER_GROUPS_MAX, groups);
    caller->groups = groups;
    caller->group_count = (unsigned)CLAMP(count, 0, CALLER_GROUPS_MAX);
}

/* ---- mounts ---- */

/* Where our mount namespace shows the file system, is it always writable? */
struct mount_table {
    pthread_mutex_t lock;
    int fd; /* of mountinfo; -1 */
    bool known, writable;
};

struct mount_table *mount_table_new(void)
{
    struct mount_table *table = g_new0(struct mount_table, 1);
    pthread_mutex_init(&table->lock, NULL);
    table->fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    return table;
}

void mount_table_free(struct mount_table *table)
{
    if (!table)
        return;
    if (table->fd >= 0)
        close(table->fd);
    pthread_mutex_destroy(&table->lock);
    g_free(table);
}

/* Of a line of mountinfo: whether it is no read-only mount of dev. The fields are: number,
 * parent, device, root, mount point, options, ... */
static bool line_is_harmless(char *line, dev_t dev)
{
    char number[32];
    snprintf(number, sizeof(number), "%u:%u", major(dev), minor(dev));
    char *rest = NULL, *field = strtok_r(line, " ", &rest);
    for (unsigned i = 1; field && i <= 5; i++) {
        field = strtok_r(NULL, " ", &rest);
        if (i == 2 && (!field || strcmp(field, number) != 0))
            return true;
    }
    return field && (strcmp(field, "rw") == 0 || g_str_has_prefix(field, "rw,"));
}

static bool read_mounts(int fd, dev_t dev)
{
    bool writable = true;
    int copy = lseek(fd, 0, SEEK_SET) == 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
    FILE *file = copy < 0 ? NULL : fdopen(copy, "r");
    if (!file) {
        if (copy >= 0)
            close(copy);
        return false;
    }
    char *line = NULL;
    size_t room = 0;
    while (writable && getline(&line, &room, file) > 0)
        writable = line_is_harmless(line, dev);
    writable = writable && !ferror(file);
    free(line);
    fclose(file);
    return writable;
}

bool mount_is_writable_for(fuse_req_t req)
{
    struct mount *m = mount_of(req);
    struct mount_table *table = m->table;
    dev_t dev = atomic_load(&m->dev);
    if (!dev || table->fd < 0 || !in_our_namespace(fuse_req_ctx(req)->pid, "mnt"))
        return false;
    pthread_mutex_lock(&table->lock);
    /* The kernel tells when mounts have changed. */
    struct pollfd changed = {.fd = table->fd, .events = POLLPRI};
    if (poll(&changed, 1, 0) != 0 || !table->known) {
        table->writable = read_mounts(table->fd, dev);
        table->known = true;
    }
    bool writable = table->writable;
    pthread_mutex_unlock(&table->lock);
    return writable;
}
