// SPDX-License-Identifier: Apache-2.0
#include "cowfs/slots.h"

#include <glib.h>
#include <pthread.h>

enum { STREAMS = 8 };

struct stream {
    _Alignas(64) pthread_mutex_t lock;
    chunk_t next;
    unsigned left;
    chunk_t group; /* that next lies in */
};

struct slot_streams {
    struct segments *segments;
    struct stream streams[STREAMS];
};

struct slot_streams *slot_streams_new(struct segments *segments)
{
    struct slot_streams *streams = g_aligned_alloc0(1, sizeof(*streams), 64);
    streams->segments = segments;
    for (unsigned i = 0; i < STREAMS; i++)
        pthread_mutex_init(&streams->streams[i].lock, NULL);
    return streams;
}

void slot_streams_free(struct slot_streams *streams)
{
    if (!streams)
        return;
    for (unsigned i = 0; i < STREAMS; i++)
        pthread_mutex_destroy(&streams->streams[i].lock);
    g_aligned_free(streams);
}

int slots_take(struct slot_streams *streams, uint64_t hint, uint64_t n, chunk_t *first,
               uint64_t *got)
{
    struct stream *s = &streams->streams[hint % STREAMS];
    int error = 0;
    g_assert(n > 0);
    pthread_mutex_lock(&s->lock);
    if (s->left == 0) {
        error = segments_alloc_group(streams->segments, &s->group);
        if (!error) {
            s->next = s->group;
            s->left = SLOT_GROUP;
        }
    }
    if (!error) {
        *first = s->next;
        *got = n < s->left ? n : s->left;
        s->next += *got;
        s->left -= (unsigned)*got;
        if (s->left == 0)
            segments_group_release(streams->segments, s->group);
    }
    pthread_mutex_unlock(&s->lock);
    return error;
}
