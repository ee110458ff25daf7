// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/notify.h"
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool notify_wanted(const struct vm *vm)
{
    return json_is_true(json_object_get(vm->config, "notify"));
}

/* Anew: what another guest was told, and did not read, is not for this one. */
bool notify_prepare(const struct vm *vm)
{
    if (!notify_wanted(vm))
        return true;
    unlinkat(vm->run_fd, NOTIFY_IN, 0);
    unlinkat(vm->run_fd, NOTIFY_OUT, 0);
    if (mkfifoat(vm->run_fd, NOTIFY_IN, 0600) == 0 &&
        symlinkat("/dev/null", vm->run_fd, NOTIFY_OUT) == 0)
        return true;
    tool_error("%s: " NOTIFY_IN ": %s", vm->path, g_strerror(errno));
    return false;
}

void notify_guest(const struct vm *vm, const char *event, const char *name)
{
    if (!notify_wanted(vm))
        return;
    g_autofree char *valid = g_utf8_make_valid(name, -1);
    json_t *o = json_pack("{s:s,s:s,s:s,s:s}", "event", event, "name", valid, "uuid", vm_uuid(vm),
                          "generation", vm_string(vm, "generation"));
    /* Names may hold anything; the line is one line, in plain letters. */
    char *text = json_dumps(o, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_PRESERVE_ORDER);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    free(text);
    json_decref(o);
    /* QEMU has it open; a guest that never reads does not hold up anybody. */
    int fd = openat(vm->run_fd, NOTIFY_IN, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || write(fd, line, strlen(line)) != (ssize_t)strlen(line))
        tool_error("warning: %s: the guest cannot be told who it is: %s", vm->path,
                   g_strerror(errno));
    if (fd >= 0)
        close(fd);
}
