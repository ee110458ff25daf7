// SPDX-License-Identifier: Apache-2.0
#include "chunkstore/content_index.h"

#include "chunkstore/keys.h"

#include <errno.h>
#include <glib.h>
#include <xxhash.h>

struct content_hash content_hash_xxh3(const void *data, size_t bytes,
                                      const uint8_t secret[HASH_SECRET_BYTES])
{
    struct content_hash hash;
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical,
                             XXH3_128bits_withSecret(data, bytes, secret, HASH_SECRET_BYTES));
    memcpy(hash.bytes, canonical.digest, sizeof(hash.bytes));
    return hash;
}

static size_t content_key(uint8_t *key, const struct content_hash *hash)
{
    return key_u64(key, KEY_CONTENT, get_be64(hash->bytes));
}

/* Keys in one look-up or change of the database. */
enum { AT_ONCE = 64 };

static int find_part(struct metadb *db, struct content_query *queries, unsigned n,
                     enum metadb_scope scope)
{
    uint8_t keys[AT_ONCE][KEY_MAX], numbers[AT_ONCE][8];
    struct metadb_query q[AT_ONCE];
    for (unsigned i = 0; i < n; i++)
        q[i] = (struct metadb_query){
            .key = keys[i],
            .key_len = content_key(keys[i], queries[i].hash),
            .value = numbers[i],
            .value_room = sizeof(numbers[i]),
        };
    metadb_get_many(db, q, n, scope);
    for (unsigned i = 0; i < n; i++) {
        queries[i].found = 0;
        if (q[i].error && q[i].error != -ENOENT)
            return q[i].error;
        if (!q[i].error && q[i].value_len != sizeof(numbers[i]))
            return -EUCLEAN;
        if (!q[i].error)
            queries[i].found = get_be64(numbers[i]);
    }
    return 0;
}

int content_index_find_many(struct metadb *db, struct content_query *queries, unsigned n,
                            enum metadb_scope scope)
{
    int error = 0;
    for (unsigned i = 0; i < n && !error; i += AT_ONCE)
        error = find_part(db, queries + i, MIN(n - i, (unsigned)AT_ONCE), scope);
    return error;
}

static void add_part(struct metadb *db, const struct content_entry *entries, unsigned n)
{
    uint8_t content_keys[AT_ONCE][KEY_MAX], chunk_keys[AT_ONCE][KEY_MAX], numbers[AT_ONCE][8];
    struct metadb_change changes[2 * AT_ONCE];
    unsigned count = 0;
    for (unsigned i = 0; i < n; i++) {
        const struct content_entry *e = &entries[i];
        put_be64(numbers[i], e->chunk);
        if (e->findable)
            changes[count++] = (struct metadb_change){
                .key = content_keys[i],
                .key_len = content_key(content_keys[i], &e->hash),
                .value = numbers[i],
                .value_len = sizeof(numbers[i]),
            };
        changes[count++] = (struct metadb_change){
            .key = chunk_keys[i],
            .key_len = key_u64(chunk_keys[i], KEY_CHUNK_HASH, e->chunk),
            .value = e->hash.bytes,
            .value_len = sizeof(e->hash.bytes),
        };
    }
    metadb_change_many(db, changes, count);
}

void content_index_add_many(struct metadb *db, const struct content_entry *entries, unsigned n)
{
    for (unsigned i = 0; i < n; i += AT_ONCE)
        add_part(db, entries + i, MIN(n - i, (unsigned)AT_ONCE));
}

int content_index_find(struct metadb *db, const struct content_hash *hash, chunk_t *chunk)
{
    struct content_query query = {.hash = hash};
    int error = find_part(db, &query, 1, METADB_ALL);
    if (!error && query.found == 0)
        error = -ENOENT;
    if (!error)
        *chunk = query.found;
    return error;
}

void content_index_add(struct metadb *db, const struct content_hash *hash, chunk_t chunk,
                       bool findable)
{
    struct content_entry entry = {.hash = *hash, .chunk = chunk, .findable = findable};
    add_part(db, &entry, 1);
}

int content_index_hash_of(struct metadb *db, chunk_t chunk, struct content_hash *out)
{
    uint8_t key[KEY_MAX];
    struct metadb_value value;
    int error = metadb_get(db, key, key_u64(key, KEY_CHUNK_HASH, chunk), &value);
    if (error)
        return error;
    if (value.len == sizeof(out->bytes))
        memcpy(out->bytes, value.data, value.len);
    else
        error = -EUCLEAN;
    metadb_value_free(&value);
    return error;
}

static int hashes_part(struct metadb *db, chunk_t first, unsigned n, struct content_hash *out,
                       bool *has)
{
    uint8_t keys[AT_ONCE][KEY_MAX];
    struct metadb_query q[AT_ONCE];
    for (unsigned i = 0; i < n; i++)
        q[i] = (struct metadb_query){
            .key = keys[i],
            .key_len = key_u64(keys[i], KEY_CHUNK_HASH, first + i),
            .value = out[i].bytes,
            .value_room = sizeof(out[i].bytes),
        };
    metadb_get_many(db, q, n, METADB_ALL);
    for (unsigned i = 0; i < n; i++) {
        if (q[i].error && q[i].error != -ENOENT)
            return q[i].error;
        has[i] = !q[i].error;
        if (has[i] && q[i].value_len != sizeof(out[i].bytes))
            return -EUCLEAN;
    }
    return 0;
}

int content_index_hashes(struct metadb *db, chunk_t first, unsigned n, struct content_hash *out,
                         bool *has)
{
    int error = 0;
    for (unsigned i = 0; i < n && !error; i += AT_ONCE)
        error = hashes_part(db, first + i, MIN(n - i, (unsigned)AT_ONCE), out + i, has + i);
    return error;
}

/* Removes the records of [first, end), at most *left, which is lowered; *next:
 * how far it got. */
static int clean_run(struct metadb *db, chunk_t first, chunk_t end, uint64_t *left, chunk_t *next)
{
    uint8_t lower[KEY_MAX], upper[KEY_MAX], key[KEY_MAX];
    size_t lower_len = key_u64(lower, KEY_CHUNK_HASH, first);
    size_t upper_len = key_u64(upper, KEY_CHUNK_HASH, end);
    struct metadb_iter *it = metadb_iter_new(db, lower, lower_len, upper, upper_len);
    *next = end;
    for (; metadb_iter_valid(it); metadb_iter_next(it), (*left)--) {
        size_t key_len, len;
        const uint8_t *k = metadb_iter_key(it, &key_len);
        const uint8_t *v = metadb_iter_value(it, &len);
        chunk_t chunk = get_be64(k + 1), found;
        struct content_hash hash;
        if (*left == 0) {
            *next = chunk;
            break;
        }
        if (len == sizeof(hash.bytes)) {
            memcpy(hash.bytes, v, len);
            if (content_index_find(db, &hash, &found) == 0 && found == chunk)
                metadb_delete(db, key, content_key(key, &hash));
        }
        metadb_delete(db, key, key_u64(key, KEY_CHUNK_HASH, chunk));
    }
    int error = metadb_iter_status(it);
    metadb_iter_free(it);
    return error;
}

int content_index_clean(struct metadb *db, uint64_t limit, bool *more)
{
    uint8_t lower = KEY_DEAD_SEALED, upper = KEY_DEAD_SEALED + 1;
    uint8_t key[KEY_MAX];
    *more = false;
    struct metadb_iter *it = metadb_iter_new(db, &lower, 1, &upper, 1);
    int error = 0;
    /* A run counts as a record, too: all is one transaction, for which others
     * wait, so the whole has to be bounded. */
    uint64_t left = limit;
    for (; metadb_iter_valid(it) && !error; metadb_iter_next(it), left -= left > 0) {
        size_t key_len, len;
        const uint8_t *k = metadb_iter_key(it, &key_len);
        const uint8_t *v = metadb_iter_value(it, &len);
        struct rbuf r = rbuf_of(v, len);
        chunk_t first = key_len == 9 ? get_be64(k + 1) : 0, next;
        uint64_t count = rbuf_get_varint(&r);
        if (key_len != 9 || r.bad) {
            error = -EUCLEAN;
            break;
        }
        if (left == 0) {
            *more = true;
            break;
        }
        error = clean_run(db, first, first + count, &left, &next);
        if (error)
            break;
        metadb_delete(db, key, key_u64(key, KEY_DEAD_SEALED, first));
        if (next < first + count) {
            struct wbuf rest = {0};
            wbuf_put_varint(&rest, first + count - next);
            metadb_put(db, key, key_u64(key, KEY_DEAD_SEALED, next), rest.data, rest.len);
            wbuf_free(&rest);
            *more = true;
            break;
        }
    }
    if (!error)
        error = metadb_iter_status(it);
    metadb_iter_free(it);
    return error;
}
