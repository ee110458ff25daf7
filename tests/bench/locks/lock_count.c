// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/locks/lock_count.h"

#include "tests/bench/bench_common.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

extern const char __executable_start[]; /* by the linker */

typedef int lock_fn(void *lock);

int __real_pthread_mutex_lock(pthread_mutex_t *lock);
int __real_pthread_rwlock_rdlock(pthread_rwlock_t *lock);
int __real_pthread_rwlock_wrlock(pthread_rwlock_t *lock);
int __wrap_pthread_mutex_lock(pthread_mutex_t *lock);
int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *lock);
int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *lock);

static _Thread_local struct lock_sites *counted;

void lock_count_into(struct lock_sites *sites)
{
    counted = sites;
}

static struct lock_site *site_of(struct lock_sites *sites, uintptr_t at)
{
    for (unsigned i = 0; i < LOCK_SITES_MAX; i++) {
        struct lock_site *site = &sites->site[(at / 4 + i) % LOCK_SITES_MAX];
        if (site->at == 0)
            site->at = at;
        if (site->at == at)
            return site;
    }
    errno = ENOSPC;
    die("more than %d places take locks", LOCK_SITES_MAX);
}

static int count(void *lock, lock_fn *try_it, lock_fn *take_it, const void *caller)
{
    struct lock_sites *sites = counted;
    if (!sites)
        return take_it(lock);
    struct lock_site *site = site_of(sites, (uintptr_t)caller);
    site->taken++;
    int error = try_it(lock);
    if (error != EBUSY)
        return error;
    double began = now_us();
    error = take_it(lock);
    double us = now_us() - began;
    site->waits++;
    site->wait_us += us;
    if (us > site->longest_us)
        site->longest_us = us;
    return error;
}

static int mutex_try(void *lock)
{
    return pthread_mutex_trylock(lock);
}

static int mutex_take(void *lock)
{
    return __real_pthread_mutex_lock(lock);
}

static int read_try(void *lock)
{
    return pthread_rwlock_tryrdlock(lock);
}

static int read_take(void *lock)
{
    return __real_pthread_rwlock_rdlock(lock);
}

static int write_try(void *lock)
{
    return pthread_rwlock_trywrlock(lock);
}

static int write_take(void *lock)
{
    return __real_pthread_rwlock_wrlock(lock);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *lock)
{
    return count(lock, mutex_try, mutex_take, __builtin_return_address(0));
}

int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *lock)
{
    return count(lock, read_try, read_take, __builtin_return_address(0));
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *lock)
{
    return count(lock, write_try, write_take, __builtin_return_address(0));
}

void lock_count_merge(struct lock_sites *into, const struct lock_sites *from)
{
    for (unsigned i = 0; i < LOCK_SITES_MAX; i++) {
        const struct lock_site *f = &from->site[i];
        if (!f->at)
            continue;
        struct lock_site *t = site_of(into, f->at);
        t->taken += f->taken;
        t->waits += f->waits;
        t->wait_us += f->wait_us;
        if (f->longest_us > t->longest_us)
            t->longest_us = f->longest_us;
    }
}

void lock_count_print(const struct lock_sites *sites)
{
    for (unsigned i = 0; i < LOCK_SITES_MAX; i++) {
        const struct lock_site *s = &sites->site[i];
        if (s->at)
            printf("site 0x%zx %llu %llu %.1f %.1f\n",
                   (size_t)(s->at - (uintptr_t)__executable_start), (unsigned long long)s->taken,
                   (unsigned long long)s->waits, s->wait_us, s->longest_us);
    }
}
