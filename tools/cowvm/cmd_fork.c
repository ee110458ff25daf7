// SPDX-License-Identifier: Apache-2.0
/*
 * cmd_fork.c - cowvm fork.
 *
 * The source stands still only while its device state is saved and its directory
 * is cloned, once, whatever --count is: further copies are clones of that clone.
 * A copy is made and started under a hidden name and gets its own when its guest
 * runs, so an interrupted fork leaves none, or whole ones.
 */
#include "tools/cowfs_tool.h"
#include "tools/cowfs_tree.h"
#include "tools/cowvm/clone.h"
#include "tools/cowvm/cowvm.h"
#include "tools/cowvm/machine.h"
#include "tools/cowvm/process.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
    "guest sees its network card go and a new one come, and has to set that up.\n";

struct copy {
    struct vm target; /* where it is to be */
    struct vm vm;     /* what it is */
    char *hidden;
    bool cloned, alive, done;
    struct steps steps;
};

struct fork {
    struct vm source;
    struct copy *copies;
    int count;
    bool keep_card;
    struct steps steps; /* of the source; of the last copy from then on */
};

/* ---- targets ---- */

static bool locate_copies(struct fork *f, const char *name)
{
    for (int i = 0; i < f->count; i++) {
        struct copy *c = &f->copies[i];
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

/* ---- the copies ---- */

/* Of the first copy, which stands still: at leisure. */
static bool clone_further(struct fork *f)
{
    const struct copy *first = &f->copies[0];
    int fd = openat(f->source.parent_fd, first->hidden, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0;
    if (!ok)
        tool_error("%s/%s: %s", f->source.parent, first->hidden, g_strerror(errno));
    f->copies[0].cloned = ok;
    for (int i = 1; ok && i < f->count; i++)
        f->copies[i].cloned = ok = clone_directory(fd, f->source.path, f->source.parent_fd,
                                                   f->source.parent, f->copies[i].hidden);
    if (fd >= 0)
        close(fd);
    return ok;
}

/* Its QEMU is there soon after; nobody waits for it yet. */
static void launch(struct fork *f, struct copy *c)
{
    struct qemu_options o = {.incoming = true};
    c->alive = vm_locate_inside(&c->vm, &f->source, c->hidden) && vm_open_located(&c->vm);
    if (!c->alive)
        return;
    /* What it is called in messages, and by QEMU. */
    g_free(c->vm.path);
    c->vm.path = g_strdup(c->target.path);
    c->alive = runtime_open(&c->vm) && qemu_start(&c->vm, &o);
}

static void take_up(struct fork *f, struct copy *c)
{
    if (c->alive)
        c->alive = machine_take_up(&c->vm, true, false, &c->steps);
    if (c->alive && renameat2(f->source.parent_fd, c->hidden, c->target.parent_fd, c->target.name,
                              RENAME_NOREPLACE) != 0) {
        tool_error("%s: %s", c->target.path, g_strerror(errno));
        c->alive = false;
    }
    c->done = c->alive;
    if (c->cloned && !c->done)
        runtime_discard(f->source.parent_fd, f->source.parent, c->hidden);
}

/* All at once: guests take their time to let go of a card. */
static void exchange_cards(struct fork *f)
{
    struct qmp **q = g_new0(struct qmp *, (gsize)f->count);
    if (machine_has_card(&f->source) && !f->keep_card) {
        for (int i = 0; i < f->count; i++) {
            struct copy *c = &f->copies[i];
            if (c->done && (q[i] = qemu_connect(&c->vm)))
                c->done = machine_drop_card(&c->vm, q[i]);
        }
        for (int i = 0; i < f->count; i++) {
            struct copy *c = &f->copies[i];
            if (c->done && q[i])
                c->done = machine_give_card(&c->vm, q[i]);
            qmp_close(q[i]);
        }
    }
    g_free(q);
}

static bool fork_all(struct fork *f)
{
    f->steps.begin = g_get_monotonic_time();
    bool ok = machine_clone_running(&f->source, f->copies[0].hidden, &f->steps);
    f->copies[0].cloned = f->steps.cloned != 0;
    ok = ok && clone_further(f);
    for (int i = 0; ok && i < f->count; i++)
        launch(f, &f->copies[i]);
    for (int i = 0; i < f->count; i++)
        take_up(f, &f->copies[i]);
    journal_end(&f->source);
    exchange_cards(f);
    for (int i = 0; i < f->count; i++)
        ok = ok && f->copies[i].done;
    return ok;
}

/* ---- the report ---- */

static double ms(gint64 from, gint64 to)
{
    return from && to ? (double)(to - from) / 1000 : 0;
}

static int report(const struct fork *f, bool as_json)
{
    const struct steps *s = &f->steps, *last = &f->copies[f->count - 1].steps;
    const struct {
        const char *key, *words;
        double value;
    } rows[] = {
        {"flush_ms", "flush while it runs", ms(s->begin, s->flushed)},
        {"stop_ms", "stop", ms(s->flushed, s->stopped)},
        {"save_ms", "save the state, flush the rest", ms(s->stopped, s->saved)},
        {"clone_ms", "clone", ms(s->saved, s->cloned)},
        {"continue_ms", "let the source go on", ms(s->cloned, s->source_on)},
        {"start_ms", "start the new one's QEMU", ms(s->source_on, last->started)},
        {"restore_ms", "take up the state", ms(last->started, last->restored)},
        {"on_ms", "let the new one go on", ms(last->restored, last->on)},
        {"paused_ms", "the source stood still for", ms(s->flushed, s->source_on)},
        {"total_ms", "until the new one (the last one) runs", ms(s->begin, last->on)},
    };
    if (as_json) {
        json_t *o = json_object(), *names = json_array();
        for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
            json_object_set_new(o, rows[i].key, json_real(rows[i].value));
        for (int i = 0; i < f->count; i++)
            json_array_append_new(names, json_string(f->copies[i].target.name));
        json_object_set_new(o, "new", names);
        return tool_print_json(o);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        printf("%-38s %8.1f ms\n", rows[i].words, rows[i].value);
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
    return fork_all(f);
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
    f.copies = g_new0(struct copy, (gsize)f.count);
    for (int i = 0; i < f.count; i++)
        f.copies[i].vm = f.copies[i].target = (struct vm)VM_INIT;
    int status = fork_vm(&f, argv[optind], argv[optind + 1]) ? EXIT_DONE : EXIT_FAILED;
    if (status == EXIT_DONE && (as_json || verbose))
        status = report(&f, as_json);
    for (int i = 0; i < f.count; i++) {
        vm_close(&f.copies[i].vm);
        vm_close(&f.copies[i].target);
        g_free(f.copies[i].hidden);
    }
    g_free(f.copies);
    vm_close(&f.source);
    return tool_finish(status);
}
