// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_token.c - tokens: what an ioctl names a file by that is not the one it
 * is called on.
 *
 * A token is 128 random bits that stand for an inode for some minutes. It holds
 * no reference: its owner has the file open while he needs it. The table is a
 * ring, so the oldest give way; a caller who lost his gets ESTALE and asks anew.
 */
#include "cowfs/fuse_ops.h"

#include <errno.h>
#include <sys/random.h>
#include <time.h>

enum { TOKENS = 1024, TOKEN_LIFE_S = 300 };

struct token {
    uint64_t value[2];
    uint64_t ino; /* 0: free */
    time_t expires_s;
};

struct token_table {
    pthread_mutex_t lock;
    unsigned next;
    struct token tokens[TOKENS];
};

struct token_table *token_table_new(void)
{
    struct token_table *table = g_new0(struct token_table, 1);
    pthread_mutex_init(&table->lock, NULL);
    return table;
}

void token_table_free(struct token_table *table)
{
    if (!table)
        return;
    pthread_mutex_destroy(&table->lock);
    g_free(table);
}

static time_t monotonic_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec;
}

int token_give(struct token_table *table, uint64_t ino, uint64_t value[2])
{
    if (getrandom(value, 2 * sizeof(value[0]), 0) != 2 * sizeof(value[0]))
        return -EAGAIN;
    pthread_mutex_lock(&table->lock);
    table->tokens[table->next++ % TOKENS] = (struct token){
        .value = {value[0], value[1]},
        .ino = ino,
        .expires_s = monotonic_s() + TOKEN_LIFE_S,
    };
    pthread_mutex_unlock(&table->lock);
    return 0;
}

int token_find(struct token_table *table, const uint64_t value[2], uint64_t *ino)
{
    time_t now = monotonic_s();
    int error = -ESTALE;
    pthread_mutex_lock(&table->lock);
    for (unsigned i = 0; i < TOKENS; i++) {
        const struct token *t = &table->tokens[i];
        /* All are looked at in the same way: no timing tells how close a
         * guess was. */
        bool same = ((t->value[0] ^ value[0]) | (t->value[1] ^ value[1])) == 0;
        if (same && t->ino && t->expires_s >= now) {
            *ino = t->ino;
            error = 0;
        }
    }
    pthread_mutex_unlock(&table->lock);
    return error;
}
