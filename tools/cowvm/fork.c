// SPDX-License-Identifier: Apache-2.0
#include "tools/cowvm/fork.h"
#include "tools/cowfs_tool.h"
#include "tools/cowvm/clone.h"
#include "tools/cowvm/hot.h"
#include "tools/cowvm/machine.h"
#include "tools/cowvm/notify.h"
#include "tools/cowvm/standby.h"
#include "tools/cowvm/state.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static gint64 now(void)
{
    return g_get_monotonic_time();
}

/* ---- a copy's QEMU ---- */

/* Its directory is there. Its QEMU is soon after; nobody waits for it yet. */
static bool launch(const struct fork *f, struct fork_copy *c)
{
    return machine_launch(&c->vm, &f->source, c->hidden, c->target.path);
}

static bool await(struct fork_copy *c)
{
    c->q = qemu_connect_new(&c->vm);
    if (!c->q || !state_expect(&c->vm, c->q) || !state_expect_quietly(&c->vm, c->q))
        return false;
    c->forwards = qemu_forwards(&c->vm, c->q);
    return true;
}

/* The guest has begun to run: from here on it is the user's. */
static bool give_name(const struct fork *f, struct fork_copy *c)
{
    if (renameat2(f->source.parent_fd, c->hidden, c->target.parent_fd, c->target.name,
                  RENAME_NOREPLACE) == 0)
        return true;
    tool_error("%s: %s", c->target.path, g_strerror(errno));
    return false;
}

/* ---- the first copy ---- */

static bool make_frame(struct fork *f)
{
    struct fork_copy *first = &f->copies[0];
    struct vm *s = &f->source;
    first->made = standby_take(s, first->hidden, first->target.path, &first->vm);
    if (first->made)
        return true;
    first->made = clone_frame(s->dir_fd, s->path, s->parent_fd, s->parent, first->hidden);
    return first->made && launch(f, first);
}

/* The source stands still. */
static bool fill_frame(struct fork *f, struct qmp *q)
{
    struct fork_copy *first = &f->copies[0];
    if (!machine_stop(&f->source, q))
        return false;
    f->steps.stopped = now();
    if (!state_save(&f->source, q))
        return false;
    f->steps.saved = now();
    bool ok =
        clone_fill(f->source.dir_fd, f->source.path, first->vm.dir_fd) && state_keep(&first->vm);
    f->steps.cloned = now();
    return ok;
}

static bool make_first(struct fork *f)
{
    struct fork_copy *first = &f->copies[0];
    bool was_running;
    struct qmp *q = machine_reach(&f->source, &was_running);
    if (!q)
        return false;
    /* The flush needs one processor, the start of QEMU another one. */
    bool ok = make_frame(f) && state_prepare(&f->source, q, &first->vm) && vm_flush(&f->source);
    f->steps.flushed = now();
    ok = ok && await(first);
    f->steps.started = now();
    if (ok) {
        ok = fill_frame(f, q);
        /* It goes on however that went. */
        ok = machine_let_go(&f->source, q, was_running) && ok;
    }
    f->steps.source_on = now();
    qmp_close(q);
    first->alive = ok;
    return ok;
}

static bool start_first(struct fork *f)
{
    struct fork_copy *first = &f->copies[0];
    bool ok = state_load_begin(&first->vm, first->q);
    hot_fetch(&f->source, &first->vm);
    ok = ok && state_load_end(&first->vm, first->q);
    f->steps.restored = now();
    ok = ok && state_go_on(&first->vm, first->q, false);
    f->steps.on = now();
    return ok;
}

/* ---- the others ---- */

/* The first stands still. */
static bool make_others(struct fork *f)
{
    const struct vm *first = &f->copies[0].vm, *s = &f->source;
    bool ok = f->count == 1 || vm_flush(first);
    for (int i = 1; ok && i < f->count; i++) {
        struct fork_copy *c = &f->copies[i];
        c->made = ok = clone_directory(first->dir_fd, s->path, s->parent_fd, s->parent, c->hidden);
    }
    return ok;
}

/* Each step of all at once: QEMUs use what processors there are. */
static void start_others(struct fork *f)
{
    struct fork_copy *end = f->copies + f->count;
    for (struct fork_copy *c = f->copies + 1; c < end; c++)
        c->alive = launch(f, c);
    for (struct fork_copy *c = f->copies + 1; c < end; c++)
        c->alive = c->alive && await(c) && state_load_begin(&c->vm, c->q);
    for (struct fork_copy *c = f->copies + 1; c < end; c++)
        c->alive = c->alive && state_load_end(&c->vm, c->q) && state_go_on(&c->vm, c->q, false);
}

/* ---- all ---- */

/* All at once: guests take their time to let go of a card. One that does not is
 * no copy: it would be there with its origin's address. */
static void exchange_cards(struct fork *f)
{
    struct fork_copy *end = f->copies + f->count;
    /* The copy tells: its source's vm.json may have been changed for the next start. */
    if (!machine_has_card(&f->copies[0].vm) || f->keep_card)
        return;
    for (struct fork_copy *c = f->copies; c < end; c++)
        c->alive = c->alive && machine_drop_card(&c->vm, c->q);
    for (struct fork_copy *c = f->copies; c < end; c++)
        c->alive = c->alive && machine_give_card(&c->vm, c->q);
}

/* What lives gets its name, the rest goes. */
static void settle(struct fork *f)
{
    for (int i = 0; i < f->count; i++) {
        struct fork_copy *c = &f->copies[i];
        if (c->alive)
            notify_guest(&c->vm, "fork", c->target.name);
        c->done = c->alive && give_name(f, c);
        if (c->made && !c->done)
            runtime_discard(f->source.parent_fd, f->source.parent, c->hidden);
    }
}

bool fork_run(struct fork *f)
{
    f->steps.begin = now();
    bool ok = make_first(f) && make_others(f);
    f->copies[0].alive = ok && start_first(f);
    if (ok)
        start_others(f);
    f->steps.all_on = now();
    exchange_cards(f);
    f->steps.carded = now();
    settle(f);
    journal_end(&f->source);
    for (int i = 0; i < f->count; i++) {
        ok = ok && f->copies[i].done;
        qmp_close(f->copies[i].q);
    }
    return ok;
}
