// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_decode.c - every decoder of the format, on any bytes. The first byte of
 * the input says which. What is taken for good must encode to a record that is
 * taken for the same.
 */
#include "tests/fuzz/fuzz.h"

#include "chunkstore/content_index.h"
#include "chunkstore/keys.h"
#include "chunkstore/refcount.h"
#include "cowfs/inode.h"
#include "cowfs/journal_internal.h"
#include "cowfs/meta.h"
#include "cowfs/names.h"
#include "cowfs/node.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

static void fuzz_node(const uint8_t *data, size_t size)
{
    uint64_t entries[NODE_ENTRIES], again[NODE_ENTRIES];
    unsigned level, same_level;
    struct wbuf record = {0};
    if (node_decode(data, size, &level, entries))
        return;
    node_encode_entries(level, entries, &record);
    FUZZ_ASSERT(node_decode(record.data, record.len, &same_level, again) == 0);
    FUZZ_ASSERT(level == same_level && memcmp(entries, again, sizeof(entries)) == 0);
    wbuf_free(&record);
}

static void fuzz_inode(const uint8_t *data, size_t size)
{
    struct inode_attr attr, again;
    struct wbuf record = {0}, second = {0};
    if (inode_decode(data, size, &attr))
        return;
    inode_encode(&attr, &record);
    FUZZ_ASSERT(inode_decode(record.data, record.len, &again) == 0);
    inode_encode(&again, &second);
    FUZZ_ASSERT(record.len == second.len && memcmp(record.data, second.data, record.len) == 0);
    FUZZ_ASSERT(attr.mode == again.mode && attr.nlink == again.nlink &&
                attr.size_bytes == again.size_bytes && attr.map.root == again.map.root &&
                attr.mtime.tv_sec == again.mtime.tv_sec && attr.parent == again.parent);
    g_free(attr.target);
    g_free(again.target);
    wbuf_free(&record);
    wbuf_free(&second);
}

static int copy_entry(void *arg, uint64_t ino, uint32_t type, const char *name)
{
    names_encode(arg, ino, type, name);
    return 0;
}

static void fuzz_names(const uint8_t *data, size_t size)
{
    struct wbuf record = {0}, again = {0};
    if (names_decode(data, size, copy_entry, &record) == 0) {
        FUZZ_ASSERT(names_decode(record.data, record.len, copy_entry, &again) == 0);
        FUZZ_ASSERT(record.len == again.len && memcmp(record.data, again.data, again.len) == 0);
    }
    wbuf_free(&record);
    wbuf_free(&again);
}

static void store_counts(void *arg, uint32_t first, uint32_t n, struct count_info info)
{
    struct count_info *all = arg;
    FUZZ_ASSERT(first < COUNT_GROUP && n <= COUNT_GROUP - first);
    for (uint32_t i = first; i < first + n; i++)
        all[i] = info;
}

static void fuzz_counts(const uint8_t *data, size_t size)
{
    struct count_info info[COUNT_GROUP] = {{0}}, again[COUNT_GROUP] = {{0}};
    struct wbuf record = {0};
    if (counts_decode(data, size, store_counts, info))
        return;
    counts_encode(info, &record);
    FUZZ_ASSERT(counts_decode(record.data, record.len, store_counts, again) == 0);
    for (unsigned i = 0; i < COUNT_GROUP; i++)
        FUZZ_ASSERT(info[i].count == again[i].count && info[i].sealed == again[i].sealed &&
                    info[i].merges == again[i].merges);
    wbuf_free(&record);
}

static void fuzz_meta(const uint8_t *data, size_t size)
{
    struct meta meta, again;
    struct wbuf record = {0};
    if (meta_decode(data, size, &meta))
        return;
    meta_encode(&meta, &record);
    FUZZ_ASSERT(meta_decode(record.data, record.len, &again) == 0);
    FUZZ_ASSERT(meta.next_ino == again.next_ino && meta.clean == again.clean &&
                meta.merges == again.merges);
    wbuf_free(&record);
}

static struct metadb *new_db(void)
{
    struct metadb_options options = {.in_memory = true, .create = true};
    struct metadb *db;
    FUZZ_ASSERT(metadb_open("", &options, &db, NULL) == 0);
    return db;
}

/* Records of segments: two bytes of key, then the value. */
static void fuzz_segment(const uint8_t *data, size_t size)
{
    struct metadb *db = new_db();
    struct segments *segments;
    struct errmsg err = {""};
    uint8_t key[KEY_MAX];
    if (size >= 2) {
        metadb_put(db, key, key_u64(key, KEY_SEGMENT, data[0] % 4), data + 2, size - 2);
        metadb_put(db, key, key_u64(key, KEY_SEGMENT, data[1]), data + 2, size - 2);
    }
    if (segments_open(fuzz_scratch, 4096, 0, true, db, &segments, &err) == 0)
        segments_close(segments);
    else
        FUZZ_ASSERT(err.text[0]);
    metadb_close(db);
}

/* Runs of freed chunks, and what they are to clean. */
static void fuzz_index(const uint8_t *data, size_t size)
{
    struct metadb *db = new_db();
    struct rbuf r = rbuf_of(data, size);
    uint8_t key[KEY_MAX], value[16];
    static const uint8_t types[] = {KEY_DEAD_SEALED, KEY_CHUNK_HASH, KEY_CONTENT};
    bool more = true;
    while (rbuf_left(&r) > 0) {
        uint8_t type = types[take(&r, 1) % G_N_ELEMENTS(types)];
        size_t key_len = key_u64(key, type, take(&r, 2) << (take(&r, 1) % 48));
        size_t len = take(&r, 1) % (sizeof(value) + 1);
        for (size_t i = 0; i < len; i++)
            value[i] = (uint8_t)take(&r, 1);
        metadb_put(db, key, key_len - (take(&r, 1) == 7), value, len);
    }
    /* It comes to an end, or says that it cannot. */
    for (unsigned i = 0; more; i++) {
        FUZZ_ASSERT(i < 10000);
        if (content_index_clean(db, 3, &more))
            break;
    }
    metadb_close(db);
}

/* Magic and checksum (docs/FORMAT.md), without which nothing else is looked at. */
static void superblock_sign(uint8_t *block)
{
    static const uint8_t magic[8] = {'C', 'O', 'W', 'F', 'S', 0x0d, 0x0a, 0x1a};
    memcpy(block, magic, sizeof(magic));
    uint64_t checksum = GUINT64_TO_LE(XXH3_64bits(block + 16, 4096 - 16));
    memcpy(block + 8, &checksum, sizeof(checksum));
}

static void fuzz_superblock(const uint8_t *data, size_t size)
{
    g_autofree char *path = g_build_filename(fuzz_scratch, "superblock", NULL);
    struct superblock sb;
    struct errmsg err = {""};
    uint8_t block[4096] = {0};
    memcpy(block, data, MIN(size, sizeof(block)));
    bool forged = size > 1 && data[size - 1] & 1; /* with magic and checksum */
    if (forged)
        superblock_sign(block);
    FUZZ_ASSERT(g_file_set_contents_full(path, (const char *)block,
                                         forged ? sizeof(block) : (gssize)MIN(size, sizeof(block)),
                                         G_FILE_SET_CONTENTS_NONE, 0600, NULL));
    int error = superblock_read(fuzz_scratch, size > 2 && data[size - 2] & 1, &sb, &err);
    FUZZ_ASSERT((error == 0) == (err.text[0] == 0));
    if (!error)
        FUZZ_ASSERT(sb.chunk_bytes >= CHUNK_BYTES_MIN && sb.chunk_bytes <= CHUNK_BYTES_MAX);
}

/* Another version's daemon may have written it (cowfs upgrade): records are taken, or refused. */
static int read_records(void *arg, const uint8_t *records, size_t bytes)
{
    struct rbuf r = rbuf_of(records, bytes);
    struct journal_record rec;
    uint64_t *sum = arg;
    int error;
    while (journal_decode(&r, &rec, &error)) {
        for (size_t i = 0; i < rec.key_len; i++)
            *sum += rec.key[i];
        for (size_t i = 0; i < rec.value_len; i++)
            *sum += rec.value[i];
        if (rec.attr.target)
            *sum += strlen(rec.attr.target);
        g_free(rec.attr.target);
    }
    FUZZ_ASSERT(error == 0 || error == -EUCLEAN);
    return error;
}

static void fuzz_records(const uint8_t *data, size_t size)
{
    uint64_t sum = 0;
    read_records(&sum, data, size);
}

/* Its memory (journal.c): a header with the store's uuid and an area of records, of which the input
 * may change any byte. */
static void fuzz_journal(const uint8_t *data, size_t size)
{
    enum { HEADER_BYTES = 128, PREFIX = 32, AREAS_AT = 1 << 20 };
    static const uint8_t prefix[PREFIX] = {'C', 'O', 'W', 'S', 'J', 'N', 'L', '2'};
    uint8_t uuid[16] = {0}, header[HEADER_BYTES] = {0};
    struct journal_state state = {.uuid = uuid, .seq = size ? data[size - 1] & 3 : 0};
    struct journal_completion done;
    struct journal *j;
    struct errmsg err;
    uint64_t sum = 0;
    int fd = journal_memory_new();
    FUZZ_ASSERT(fd >= 0);
    /* The right size, and what journal.c makes of an empty one. */
    FUZZ_ASSERT(journal_open(fd, &state, &j, &err) == 0);
    state.id = journal_id(j);
    journal_close(j);
    memcpy(header, prefix, sizeof(prefix));
    memcpy(header + 24, &state.id, sizeof(state.id));
    memcpy(header + PREFIX, data, MIN(size, HEADER_BYTES - PREFIX));
    FUZZ_ASSERT(pwrite(fd, header, sizeof(header), 0) == sizeof(header));
    if (size > HEADER_BYTES - PREFIX)
        FUZZ_ASSERT(
            pwrite(fd, data + HEADER_BYTES - PREFIX, size - (HEADER_BYTES - PREFIX), AREAS_AT) > 0);
    if (journal_open(fd, &state, &j, &err) == 0) {
        if (!journal_is_empty(j))
            journal_each(j, read_records, &sum);
        journal_find_completed(j, size, &done);
        journal_close(j);
    }
    close(fd);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    make_scratch();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const decoders[])(const uint8_t *data, size_t size) = {
        fuzz_node, fuzz_inode,   fuzz_names, fuzz_counts,
        fuzz_meta, fuzz_segment, fuzz_index, fuzz_superblock,
    };
    /* The corpus is older than these two. */
    if (size > 0 && data[0] >= 0xfe)
        data[0] == 0xff ? fuzz_records(data + 1, size - 1) : fuzz_journal(data + 1, size - 1);
    else if (size > 0)
        decoders[data[0] % G_N_ELEMENTS(decoders)](data + 1, size - 1);
    return 0;
}
