// SPDX-License-Identifier: Apache-2.0
/* cmd_create.c - cowvm create. The VM gets its name when it is whole. */
#include "tools/cowfs_tool.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/journal.h"
#include "tools/cowvm/process.h"
#include "tools/cowvm/qemu.h"
#include "tools/cowvm/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char help[] =
    "Usage: cowvm create [OPTION]... NAME --disk IMAGE [-- QEMU-OPTION...]\n"
    "Makes a VM: a directory with the disk, brought in from an image of any format that\n"
    "qemu-img knows, and the description of the machine. It does not start it.\n"
    "\n"
    "  -d, --disk IMAGE      qcow2, raw, vmdk, ...; stays as it is\n"
    "  -m, --memory SIZE     default 512M\n"
    "  -c, --cpus NUMBER     default 1\n"
    "  -k, --kernel FILE     boot this kernel, not what the disk boots; copied into the VM\n"
    "  -i, --initrd FILE     with it\n"
    "  -a, --append TEXT     the kernel's command line\n"
    "  -n, --network         a network card (QEMU's user network: the guest gets out, and\n"
    "                        nothing gets in but what --forward lets in)\n"
    "  -f, --forward PORT    that TCP port of the guest is reached on a free port of\n"
    "                        127.0.0.1 ('cowvm ls' tells which); may be repeated\n"
    "      --accel kvm|tcg   how the guest's code is run; kvm if /dev/kvm can be used\n"
    "  -q, --quiet           no progress\n"
    "  -h, --help            show this help\n"
    "\n"
    "What follows -- is handed to QEMU at each start.\n"
    "\n"
    "Example:\n"
    "  cowvm create golden --disk debian-12-generic-amd64.qcow2 --memory 1G --forward 22\n";

struct creation {
    const char *disk, *kernel, *initrd;
    bool quiet;
    json_t *config;
};

/* ---- files ---- */

static bool copy_into(int dir_fd, const char *name, const char *source)
{
    struct stat st;
    int in = open(source, O_RDONLY | O_CLOEXEC);
    int out = in < 0 ? -1 : openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    bool ok = out >= 0 && fstat(in, &st) == 0;
    char *buffer = g_malloc(1 << 20);
    ssize_t got = 0;
    while (ok && (got = read(in, buffer, 1 << 20)) > 0)
        ok = write(out, buffer, (size_t)got) == got;
    ok = ok && got == 0;
    if (!ok)
        tool_error("%s: %s", source, g_strerror(errno));
    g_free(buffer);
    if (in >= 0)
        close(in);
    if (out >= 0 && close(out) != 0)
        ok = false;
    return ok;
}

static bool import_disk(const struct creation *c, const char *directory)
{
    g_autofree char *target = g_build_filename(directory, VM_DISK, NULL);
    char word[] = "import", quiet[] = "--quiet", end[] = "--";
    char *words[] = {word,
                     c->quiet ? quiet : end,
                     c->quiet ? end : (char *)(uintptr_t)c->disk,
                     c->quiet ? (char *)(uintptr_t)c->disk : target,
                     c->quiet ? target : NULL,
                     NULL};
    optind = 0; /* from the beginning, in these words */
    return cmd_import(c->quiet ? 5 : 4, words) == EXIT_DONE;
}

static bool fill(struct creation *c, struct vm *vm, const char *hidden)
{
    g_autofree char *directory = g_build_filename(vm->parent, hidden, NULL);
    if (mkdirat(vm->parent_fd, hidden, 0755) != 0) {
        tool_error("%s: %s", directory, g_strerror(errno));
        return false;
    }
    vm->dir_fd = openat(vm->parent_fd, hidden, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return vm->dir_fd >= 0 && import_disk(c, directory) &&
           (!c->kernel || copy_into(vm->dir_fd, VM_KERNEL, c->kernel)) &&
           (!c->initrd || copy_into(vm->dir_fd, VM_INITRD, c->initrd)) && vm_write_config(vm);
}

static bool create(struct creation *c, const char *name)
{
    struct vm vm = VM_INIT;
    struct stat st;
    vm.config = json_incref(c->config);
    if (!vm_locate(&vm, name)) {
        vm_close(&vm);
        return false;
    }
    bool ok = false;
    g_autofree char *hidden = NULL;
    vm_renew_identity(&vm);
    if (fstatat(vm.parent_fd, vm.name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        tool_error("%s: exists already", vm.path);
    } else if (runtime_lock(&vm)) {
        runtime_sweep(&vm);
        hidden = hidden_name(&vm, HIDDEN_FIRST);
        ok = journal_begin(&vm, JOURNAL_BUILD, false) && fill(c, &vm, hidden);
        if (ok && (renameat2(vm.parent_fd, hidden, vm.parent_fd, vm.name, RENAME_NOREPLACE) != 0 ||
                   !vm_sync(&vm))) {
            tool_error("%s: %s", vm.path, g_strerror(errno));
            ok = false;
        }
        if (!ok)
            runtime_discard(vm.parent_fd, vm.parent, hidden);
        journal_end(&vm);
        if (!ok)
            runtime_remove(&vm);
    }
    vm_close(&vm);
    return ok;
}

/* ---- options ---- */

static bool set_memory(json_t *config, const char *text)
{
    uint64_t bytes;
    if (!tool_parse_size(text, &bytes) || bytes < (UINT64_C(16) << 20) ||
        bytes > (UINT64_C(1) << 44) || bytes % (1 << 20) != 0) {
        tool_misused("--memory %s: is no size in whole MiB, at least 16M", text);
        return false;
    }
    json_object_set_new(config, "memory_mib", json_integer((json_int_t)(bytes >> 20)));
    return true;
}

enum { OPTION_ACCEL = 256 };

static bool take_option(struct creation *c, int option, const char *value)
{
    int number;
    switch (option) {
    case 'd':
        c->disk = value;
        return true;
    case 'm':
        return set_memory(c->config, value);
    case 'c':
        if (!parse_number("--cpus", value, 1, 255, &number))
            return false;
        json_object_set_new(c->config, "cpus", json_integer(number));
        return true;
    case 'k':
        c->kernel = value;
        return true;
    case 'i':
        c->initrd = value;
        return true;
    case 'a':
        json_object_set_new(c->config, "append", json_string(value));
        return true;
    case 'f':
        if (!parse_number("--forward", value, 1, 65535, &number))
            return false;
        json_array_append_new(json_object_get(c->config, "forward"), json_integer(number));
        json_object_set_new(c->config, "network", json_true());
        return true;
    case 'n':
        json_object_set_new(c->config, "network", json_true());
        return true;
    case 'q':
        c->quiet = true;
        return true;
    case OPTION_ACCEL:
        if (strcmp(value, "kvm") != 0 && strcmp(value, "tcg") != 0) {
            tool_misused("--accel %s: is neither kvm nor tcg", value);
            return false;
        }
        json_object_set_new(c->config, "accel", json_string(value));
        return true;
    default:
        return false;
    }
}

static json_t *default_config(void)
{
    return json_pack("{s:i,s:i,s:i,s:s,s:b,s:b,s:[],s:[]}", "version", 1, "memory_mib",
                     VM_DEFAULT_MEMORY_MIB, "cpus", VM_DEFAULT_CPUS, "accel",
                     qemu_best_accelerator(), "network", 0, "notify", 1, "forward", "qemu_options");
}

int cmd_create(int argc, char **argv)
{
    static const struct option options[] = {
        {"disk", required_argument, NULL, 'd'},
        {"memory", required_argument, NULL, 'm'},
        {"cpus", required_argument, NULL, 'c'},
        {"kernel", required_argument, NULL, 'k'},
        {"initrd", required_argument, NULL, 'i'},
        {"append", required_argument, NULL, 'a'},
        {"network", no_argument, NULL, 'n'},
        {"forward", required_argument, NULL, 'f'},
        {"accel", required_argument, NULL, OPTION_ACCEL},
        {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct creation c = {.config = default_config()};
    int option, status = EXIT_MISUSED;

    while ((option = tool_getopt(argc, argv, "d:m:c:k:i:a:nf:qh", options)) != -1) {
        if (option == 'h')
            status = tool_help(help);
        if (option == 'h' || !take_option(&c, option, optarg)) {
            json_decref(c.config);
            return status;
        }
    }
    /* getopt has moved what is no option behind all options; what stood behind
     * "--" comes last, so the first is the name. */
    if (optind >= argc) {
        status = tool_misused("the name of the new VM is missing");
    } else if (!c.disk) {
        status = tool_misused("--disk IMAGE is missing");
    } else if (c.initrd && !c.kernel) {
        status = tool_misused("--initrd needs --kernel");
    } else if (json_object_get(c.config, "append") && !c.kernel) {
        status = tool_misused("--append needs --kernel");
    } else {
        for (int i = optind + 1; i < argc; i++)
            json_array_append_new(json_object_get(c.config, "qemu_options"), json_string(argv[i]));
        status = create(&c, argv[optind]) ? EXIT_DONE : EXIT_FAILED;
    }
    json_decref(c.config);
    return status;
}
