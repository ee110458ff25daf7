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

/* One to one, so that no two domains have the same. */
static uint64_t domain_mix(uint32_t domain)
{
    return domain * UINT64_C(0x9e3779b97f4a7c15);
}

static uint64_t content_number(const struct content_hash *hash, uint32_t domain)
{
    return get_be64(hash->bytes) ^ domain_mix(domain);
}

uint64_t content_record_number(const struct content_record *record)
{
    return content_number(&record->hash, record->domain);
}

int content_record_decode(const void *value, size_t len, struct content_record *out)
{
    struct rbuf r = rbuf_of(value, len);
    const uint8_t *hash = rbuf_get_bytes(&r, sizeof(out->hash.bytes));
    if (!hash)
        return -EUCLEAN;
    memcpy(out->hash.bytes, hash, sizeof(out->hash.bytes));
    out->domain = CONTENT_DOMAIN_DEFAULT;
    if (rbuf_left(&r) == 0)
        return 0;
    const uint8_t *domain = rbuf_get_bytes(&r, sizeof(out->domain));
    if (!domain || rbuf_left(&r) > 0)
        return -EUCLEAN;
    out->domain = get_be32(domain);
    return out->domain == CONTENT_DOMAIN_DEFAULT ? -EUCLEAN : 0;
}

static size_t record_encode(const struct content_record *record,
                            uint8_t value[CONTENT_RECORD_BYTES_MAX])
{
    size_t len = sizeof(record->hash.bytes);
    memcpy(value, record->hash.bytes, len);
    if (record->domain == CONTENT_DOMAIN_DEFAULT)
        return len;
    put_be32(value + len, record->domain);
    return len + sizeof(record->domain);
}

static size_t content_key(uint8_t *key, const struct content_record *record)
{
    return key_u64(key, KEY_CONTENT, content_record_number(record));
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
            .key_len =
                key_u64(keys[i], KEY_CONTENT, content_number(queries[i].hash, queries[i].domain)),
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

int content_index_find(struct metadb *db, const struct content_record *content, chunk_t *chunk)
{
    struct content_query query = {.hash = &content->hash, .domain = content->domain};
    int error = find_part(db, &query, 1, METADB_ALL);
    if (!error && query.found == 0)
        error = -ENOENT;
    if (!error)
        *chunk = query.found;
    return error;
}

static void add_part(struct metadb *db, const struct content_entry *entries, unsigned n)
{
    uint8_t content_keys[AT_ONCE][KEY_MAX], chunk_keys[AT_ONCE][KEY_MAX], numbers[AT_ONCE][8];
    uint8_t records[AT_ONCE][CONTENT_RECORD_BYTES_MAX];
    struct metadb_change changes[2 * AT_ONCE];
    unsigned count = 0;
    for (unsigned i = 0; i < n; i++) {
        const struct content_entry *e = &entries[i];
        put_be64(numbers[i], e->chunk);
        if (e->findable)
            changes[count++] = (struct metadb_change){
                .key = content_keys[i],
                .key_len = content_key(content_keys[i], &e->content),
                .value = numbers[i],
                .value_len = sizeof(numbers[i]),
            };
        changes[count++] = (struct metadb_change){
            .key = chunk_keys[i],
            .key_len = key_u64(chunk_keys[i], KEY_CHUNK_HASH, e->chunk),
            .value = records[i],
            .value_len = record_encode(&e->content, records[i]),
        };
    }
    metadb_change_many(db, changes, count);
}

void content_index_add_many(struct metadb *db, const struct content_entry *entries, unsigned n)
{
    for (unsigned i = 0; i < n; i += AT_ONCE)
        add_part(db, entries + i, MIN(n - i, (unsigned)AT_ONCE));
}

static int records_part(struct metadb *db, chunk_t first, unsigned n, struct content_record *out,
                        bool *has)
{
    uint8_t keys[AT_ONCE][KEY_MAX], values[AT_ONCE][CONTENT_RECORD_BYTES_MAX];
    struct metadb_query q[AT_ONCE];
    for (unsigned i = 0; i < n; i++)
        q[i] = (struct metadb_query){
            .key = keys[i],
            .key_len = key_u64(keys[i], KEY_CHUNK_HASH, first + i),
            .value = values[i],
            .value_room = sizeof(values[i]),
        };
    metadb_get_many(db, q, n, METADB_ALL);
    for (unsigned i = 0; i < n; i++) {
        if (q[i].error && q[i].error != -ENOENT)
            return q[i].error;
        has[i] = !q[i].error;
        if (!has[i])
            continue;
        if (q[i].value_len > sizeof(values[i]) ||
            content_record_decode(values[i], q[i].value_len, &out[i]) != 0)
            return -EUCLEAN;
    }
    return 0;
}

int content_index_records(struct metadb *db, chunk_t first, unsigned n, struct content_record *out,
                          bool *has)
{
    int error = 0;
    for (unsigned i = 0; i < n && !error; i += AT_ONCE)
        error = records_part(db, first + i, MIN(n - i, (unsigned)AT_ONCE), out + i, has + i);
    return error;
}

/* Unless another chunk is found for that content. */
static int drop_content(struct metadb *db, chunk_t chunk, const struct content_record *record)
{
    uint8_t key[KEY_MAX];
    chunk_t found;
    int error = content_index_find(db, record, &found);
    if (!error && found == chunk)
        metadb_delete(db, key, content_key(key, record));
    return error == -ENOENT ? 0 : error;
}

int content_index_move(struct metadb *db, chunk_t chunk, const struct content_record *now,
                       uint32_t domain)
{
    struct content_entry entry = {
        .content = {.hash = now->hash, .domain = domain},
        .chunk = chunk,
        .findable = true,
    };
    int error = drop_content(db, chunk, now);
    if (!error)
        add_part(db, &entry, 1);
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
        chunk_t chunk = get_be64(k + 1);
        struct content_record record;
        if (*left == 0) {
            *next = chunk;
            break;
        }
        /* What cannot be read is fsck's business, and keeps the rest from nothing. */
        if (content_record_decode(v, len, &record) == 0)
            (void)drop_content(db, chunk, &record);
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
