// SPDX-License-Identifier: Apache-2.0
/* cmd_fork.c - cowvm fork: its words, and what it tells. */
#include "tools/cowfs_tool.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/fork.h"
#include "tools/cowvm/process.h"
#include "tools/cowvm/runtime.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <sys/stat.h>

static const char help[] =
    "Usage: cowvm fork [OPTION]... RUNNING NEW\n"
    "Copies a running VM with its memory; both run on from the same moment. RUNNING stands\n"
    "still for some tens of milliseconds and does not wait for NEW.\n"
    "\n"
    "  -c, --count N  N copies, NEW-1 to NEW-N, of one moment\n"
    "  -k, --keep-card  leave NEW the network card it wakes up with, with RUNNING's address\n"
    "                 (QEMU's user network is one for each VM: there it does no harm)\n"
    "  -v, --verbose  tell how long each step took\n"
    "  -j, --json     the same as JSON\n"
    "  -h, --help     show this help\n"
    "\n"
    "A copy differs from its origin in its uuid, its generation id (vmgenid: a guest kernel that\n"
    "knows it draws new random numbers), its serial line, its ports and its network address: the\n"
    "guest sees its network card go and a new one come, and has to set that up. From the port\n"
    "org.cowvm.fork (virtio-serial) it reads who it is now, as a line of JSON.\n";

/* ---- targets ---- */

static bool locate_copies(struct fork *f, const char *name)
{
    for (int i = 0; i < f->count; i++) {
        struct fork_copy *c = &f->copies[i];
        struct stat st;
        g_autofree char *own =
            f->count > 1 ? g_strdup_printf("%s-%d", name, i + 1) : g_strdup(name);
        if (!vm_locate_beside(&c->target, own, &f->source))
            return false;
        if (fstatat(c->target.parent_fd, c->target.name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
            tool_error("%s: exists already", c->target.path);
            return false;
        }
        c->hidden = hidden_name(&f->source, HIDDEN_FIRST + (unsigned)i);
    }
    return true;
}

/* ---- the report ---- */

static double ms(gint64 from, gint64 to)
{
    return from && to ? (double)(to - from) / 1000 : 0;
}

static json_t *forwards_json(const struct fork *f)
{
    json_t *all = json_object();
    for (int i = 0; i < f->count; i++)
        json_object_set(all, f->copies[i].target.name, f->copies[i].forwards);
    return all;
}

static int report(const struct fork *f, bool as_json)
{
    const struct steps *s = &f->steps;
    const struct {
        const char *key, *words;
        double value;
    } rows[] = {
        {"flush_ms", "flush while it runs; the new QEMU starts", ms(s->begin, s->flushed)},
        {"start_ms", "wait for that QEMU", ms(s->flushed, s->started)},
        {"stop_ms", "stop", ms(s->started, s->stopped)},
        {"save_ms", "save the state, flush the rest", ms(s->stopped, s->saved)},
        {"clone_ms", "clone", ms(s->saved, s->cloned)},
        {"continue_ms", "let the source go on", ms(s->cloned, s->source_on)},
        {"restore_ms", "take up the state", ms(s->source_on, s->restored)},
        {"on_ms", "let the new one go on", ms(s->restored, s->on)},
        {"others_ms", "clone, start, take up the others", ms(s->on, s->all_on)},
        {"card_ms", "exchange the network cards", ms(s->all_on, s->carded)},
        {"paused_ms", "the source stood still for", ms(s->started, s->source_on)},
        {"total_ms", "until the new ones run", ms(s->begin, s->all_on)},
    };
    if (as_json) {
        json_t *o = json_object(), *names = json_array();
        for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
            json_object_set_new(o, rows[i].key, json_real(rows[i].value));
        for (int i = 0; i < f->count; i++)
            json_array_append_new(names, json_string(f->copies[i].target.name));
        json_object_set_new(o, "new", names);
        json_object_set_new(o, "forwards", forwards_json(f));
        return tool_print_json(o);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        printf("%-42s %8.1f ms\n", rows[i].words, rows[i].value);
    return EXIT_DONE;
}

static bool fork_vm(struct fork *f, const char *running, const char *name)
{
    if (!vm_open(&f->source, running))
        return false;
    if (!locate_copies(f, name) || !runtime_lock(&f->source))
        return false;
    runtime_sweep(&f->source);
    if (!runtime_pid(&f->source)) {
        tool_error("%s: does not run ('cowfs clone' copies it as it is)", f->source.path);
        return false;
    }
    return fork_run(f);
}

int cmd_fork(int argc, char **argv)
{
    static const struct option options[] = {
        {"count", required_argument, NULL, 'c'}, {"keep-card", no_argument, NULL, 'k'},
        {"verbose", no_argument, NULL, 'v'},     {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},        {0},
    };
    struct fork f = {.source = VM_INIT, .count = 1};
    bool as_json = false, verbose = false;
    int option;
    while ((option = tool_getopt(argc, argv, "c:kvjh", options)) != -1) {
        switch (option) {
        case 'c':
            if (!parse_number("--count", optarg, 1, 1000, &f.count))
                return EXIT_MISUSED;
            break;
        case 'k':
            f.keep_card = true;
            break;
        case 'v':
            verbose = true;
            break;
        case 'j':
            as_json = true;
            break;
        case 'h':
            return tool_help(help);
        default:
            return EXIT_MISUSED;
        }
    }
    if (argc - optind != 2)
        return tool_misused("a running VM and a name for the new one are needed");
    f.copies = g_new0(struct fork_copy, (gsize)f.count);
    for (int i = 0; i < f.count; i++)
        f.copies[i].vm = f.copies[i].target = (struct vm)VM_INIT;
    int status = fork_vm(&f, argv[optind], argv[optind + 1]) ? EXIT_DONE : EXIT_FAILED;
    if (status == EXIT_DONE && (as_json || verbose))
        status = report(&f, as_json);
    for (int i = 0; i < f.count; i++) {
        vm_close(&f.copies[i].vm);
        vm_close(&f.copies[i].target);
        g_free(f.copies[i].hidden);
        json_decref(f.copies[i].forwards);
    }
    g_free(f.copies);
    vm_close(&f.source);
    return tool_finish(status);
}
