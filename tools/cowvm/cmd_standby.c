// SPDX-License-Identifier: Apache-2.0
/* cmd_standby.c - cowvm standby. */
#include "tools/cowfs_tool.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/runtime.h"
#include "tools/cowvm/standby.h"

#include <getopt.h>

static const char help[] =
    "Usage: cowvm standby [OPTION]... NAME...\n"
    "Keeps a second QEMU ready beside each of these running VMs: their next fork does not have to\n"
    "start one. Some moments after each fork another one is started. It waits without using a\n"
    "processor, for some memory ('cowvm ls' tells), and ends with the VM's run,\n"
    "or when the VM is reset.\n"
    "\n"
    "  -w, --write-back  have what the guest changes written back to the store all the while, not\n"
    "              first by the fork: that has less left to do; a guest that changes much memory\n"
    "              runs somewhat slower\n"
    "  -o, --off   end it\n"
    "  -h, --help  show this help\n";

static bool standby(const char *name, bool off, bool write_back)
{
    struct vm vm = VM_INIT;
    bool ok = vm_open(&vm, name) && runtime_lock(&vm);
    if (ok && !off && !runtime_pid(&vm)) {
        tool_error("%s: does not run", vm.path);
        ok = false;
    }
    if (ok && !off)
        runtime_sweep(&vm);
    ok = ok && (off ? standby_end(&vm) : standby_begin(&vm, write_back));
    vm_close(&vm);
    return ok;
}

int cmd_standby(int argc, char **argv)
{
    static const struct option options[] = {
        {"write-back", no_argument, NULL, 'w'},
        {"off", no_argument, NULL, 'o'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    bool off = false, write_back = false;
    int option, status = EXIT_DONE;
    while ((option = tool_getopt(argc, argv, "woh", options)) != -1) {
        if (option == 'h')
            return tool_help(help);
        if (option != 'o' && option != 'w')
            return EXIT_MISUSED;
        off = off || option == 'o';
        write_back = write_back || option == 'w';
    }
    if (optind >= argc)
        return tool_misused("the name of a VM is missing");
    for (int i = optind; i < argc; i++)
        if (!standby(argv[i], off, write_back))
            status = EXIT_FAILED;
    return tool_finish(status);
}
