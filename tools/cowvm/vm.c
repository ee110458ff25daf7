// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/vm.h"
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_DIRECTORY "/var/lib/vms"

/* ---- where it is ---- */

static bool good_name(const char *name)
{
    return *name && *name != '.' && *name != '-' && !strchr(name, '/');
}

static bool locate(struct vm *vm, const char *argument, const char *directory)
{
    g_autofree char *text = g_strdup(argument);
    size_t length = strlen(text);
    while (length > 1 && text[length - 1] == '/')
        text[--length] = '\0';
    if (strchr(text, '/')) {
        vm->parent = g_path_get_dirname(text);
        vm->name = g_path_get_basename(text);
    } else {
        vm->parent = g_strdup(directory);
        vm->name = g_strdup(text);
    }
    if (!good_name(vm->name)) {
        tool_error("'%s': is no name for a VM", argument);
        return false;
    }
    vm->path = g_build_filename(vm->parent, vm->name, NULL);
    vm->parent_fd = open(vm->parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (vm->parent_fd < 0)
        tool_error("%s: %s", vm->parent, g_strerror(errno));
    return vm->parent_fd >= 0;
}

bool vm_locate(struct vm *vm, const char *argument)
{
    const char *directory = getenv("COWVM_DIR");
    return locate(vm, argument, directory && *directory ? directory : DEFAULT_DIRECTORY);
}

bool vm_locate_beside(struct vm *vm, const char *argument, const struct vm *other)
{
    return locate(vm, argument, other->parent);
}

bool vm_locate_inside(struct vm *vm, const struct vm *other, const char *name)
{
    vm->parent = g_strdup(other->parent);
    vm->name = g_strdup(name);
    vm->path = g_build_filename(vm->parent, name, NULL);
    vm->parent_fd = fcntl(other->parent_fd, F_DUPFD_CLOEXEC, 0);
    if (vm->parent_fd < 0)
        tool_error("%s: %s", vm->parent, g_strerror(errno));
    return vm->parent_fd >= 0;
}

/* ---- who it is ---- */

/* Inode numbers of cowfs are never used twice, but another store has the same
 * ones. */
static char *birth_of(const struct vm *vm)
{
    struct statx stx;
    if (statx(vm->dir_fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &stx) != 0)
        return g_strdup("?");
    return g_strdup_printf("%" PRIu64 " %" PRId64 ".%09u", (uint64_t)stx.stx_ino,
                           (int64_t)stx.stx_btime.tv_sec, stx.stx_btime.tv_nsec);
}

bool vm_is_foreign(const struct vm *vm)
{
    g_autofree char *birth = birth_of(vm);
    return g_strcmp0(vm_string(vm, "directory"), birth) != 0;
}

/* Of the kernel: GLib's generator is copied by fork, and a standby's keeper would
 * draw the same numbers as the command that it comes from. */
static void draw(void *out, size_t size)
{
    while (getrandom(out, size, 0) != (ssize_t)size)
        continue;
}

/* A random one (version 4 of RFC 4122). */
static char *new_uuid(void)
{
    unsigned char b[16];
    draw(b, sizeof(b));
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    return g_strdup_printf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
                           b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11],
                           b[12], b[13], b[14], b[15]);
}

void vm_renew_generation(struct vm *vm)
{
    g_autofree char *generation = new_uuid();
    json_object_set_new(vm->config, "generation", json_string(generation));
}

void vm_renew_identity(struct vm *vm)
{
    g_autofree char *uuid = new_uuid();
    unsigned char r[3];
    char mac[18];
    draw(r, sizeof(r));
    /* QEMU's own prefix, locally administered. */
    snprintf(mac, sizeof(mac), "52:54:00:%02x:%02x:%02x", r[0], r[1], r[2]);
    json_object_set_new(vm->config, "uuid", json_string(uuid));
    json_object_set_new(vm->config, "mac", json_string(mac));
    vm_renew_generation(vm);
}

const char *vm_string(const struct vm *vm, const char *key)
{
    return json_string_value(json_object_get(vm->config, key));
}

int64_t vm_number(const struct vm *vm, const char *key, int64_t otherwise)
{
    json_t *value = json_object_get(vm->config, key);
    return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

const char *vm_uuid(const struct vm *vm)
{
    return vm_string(vm, "uuid");
}

/* ---- vm.json ---- */

bool vm_write_config(struct vm *vm)
{
    g_autofree char *birth = birth_of(vm);
    json_object_set_new(vm->config, "directory", json_string(birth));
    char *text = json_dumps(vm->config, JSON_INDENT(2));
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    free(text);
    size_t length = strlen(line);
    int fd = openat(vm->dir_fd, VM_CONFIG_NEW, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool ok = fd >= 0 && write(fd, line, length) == (ssize_t)length;
    if (fd >= 0 && close(fd) != 0)
        ok = false;
    ok = ok && renameat(vm->dir_fd, VM_CONFIG_NEW, vm->dir_fd, VM_CONFIG) == 0;
    if (!ok)
        tool_error("%s/%s: %s", vm->path, VM_CONFIG, g_strerror(errno));
    return ok;
}

static bool read_config(struct vm *vm)
{
    json_error_t reason;
    int fd = openat(vm->dir_fd, VM_CONFIG, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        tool_error("%s: %s", vm->path,
                   errno == ENOENT ? "is no VM: there is no vm.json in it" : g_strerror(errno));
        return false;
    }
    vm->config = json_loadfd(fd, JSON_REJECT_DUPLICATES, &reason);
    close(fd);
    if (!json_is_object(vm->config)) {
        tool_error("%s/%s: %s", vm->path, VM_CONFIG, reason.text);
        return false;
    }
    const char *uuid = vm_uuid(vm);
    if (vm_number(vm, "version", 0) != 1 || !uuid || !g_uuid_string_is_valid(uuid)) {
        tool_error("%s/%s: is not of a kind that this cowvm knows", vm->path, VM_CONFIG);
        return false;
    }
    return true;
}

/* Two commands that meet a new clone at once must agree on who it is. */
static bool claim(struct vm *vm)
{
    if (!vm_is_foreign(vm))
        return true;
    int error;
    do
        error = flock(vm->dir_fd, LOCK_EX) == 0 ? 0 : errno;
    while (error == EINTR);
    if (error) {
        tool_error("%s: %s", vm->path, g_strerror(error));
        return false;
    }
    json_decref(vm->config);
    vm->config = NULL;
    bool ok = read_config(vm);
    if (ok && vm_is_foreign(vm)) {
        vm_renew_identity(vm);
        ok = vm_write_config(vm);
    }
    flock(vm->dir_fd, LOCK_UN);
    return ok;
}

bool vm_open_located(struct vm *vm)
{
    vm->dir_fd = openat(vm->parent_fd, vm->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (vm->dir_fd < 0) {
        tool_error("%s: %s", vm->path, errno == ENOENT ? "there is no such VM" : g_strerror(errno));
        return false;
    }
    return read_config(vm) && claim(vm);
}

bool vm_reopen(struct vm *vm)
{
    if (vm->dir_fd >= 0)
        close(vm->dir_fd);
    json_decref(vm->config);
    vm->config = NULL;
    return vm_open_located(vm);
}

bool vm_open(struct vm *vm, const char *argument)
{
    return vm_locate(vm, argument) && vm_open_located(vm);
}

void vm_close(struct vm *vm)
{
    int *const fds[] = {&vm->guard_fd, &vm->lock_fd, &vm->run_fd, &vm->dir_fd, &vm->parent_fd};
    for (size_t i = 0; i < G_N_ELEMENTS(fds); i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
    json_decref(vm->config);
    vm->config = NULL;
    g_clear_pointer(&vm->parent, g_free);
    g_clear_pointer(&vm->name, g_free);
    g_clear_pointer(&vm->path, g_free);
}

/* ---- its files ---- */

bool vm_has(const struct vm *vm, const char *file)
{
    return faccessat(vm->dir_fd, file, F_OK, 0) == 0;
}

bool vm_unlink(const struct vm *vm, const char *file)
{
    if (unlinkat(vm->dir_fd, file, 0) == 0 || errno == ENOENT)
        return true;
    tool_error("%s/%s: cannot be removed: %s", vm->path, file, g_strerror(errno));
    return false;
}

typedef bool (*file_fn)(int fd, const char *path);

static bool each_file(const struct vm *vm, file_fn fn)
{
    static const char *const files[] = {VM_MEMORY, VM_DISK, VM_STATE, VM_STATE_NEW};
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++) {
        int fd = openat(vm->dir_fd, files[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT)
            continue;
        g_autofree char *path = g_build_filename(vm->path, files[i], NULL);
        if (fd < 0) {
            tool_error("%s: %s", path, g_strerror(errno));
            return false;
        }
        bool ok = fn(fd, path);
        close(fd);
        if (!ok)
            return false;
    }
    return true;
}

bool vm_flush(const struct vm *vm)
{
    return each_file(vm, tool_flush);
}

static bool sync_file(int fd, const char *path)
{
    if (fsync(fd) == 0)
        return true;
    tool_error("%s: %s", path, g_strerror(errno));
    return false;
}

bool vm_sync(const struct vm *vm)
{
    return each_file(vm, sync_file) && sync_file(vm->dir_fd, vm->path);
}
