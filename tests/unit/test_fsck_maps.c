// SPDX-License-Identifier: Apache-2.0
/*
 * fsck finds each kind of damage of nodes, chunks, segments and the content
 * index as that kind and no other.
 */
#include "tests/unit/fsck_expect.h"

#include "chunkstore/content_index.h"
#include "tests/unit/suite.h"

#include <stdlib.h>

/* ---- records, the store's counters ---- */

static void put_unknown(struct fsck_store *s)
{
    metadb_put(s->db, "zebra", 5, "x", 1);
    metadb_put(s->db, "A", 1, "x", 1);
}

static void put_long_key(struct fsck_store *s)
{
    metadb_put(s->db, "n12345678x", 10, "x", 1);
}

static void spoil(struct fsck_store *s, enum key_type type, uint64_t a)
{
    struct metadb_value value = record_get(s, type, a);
    metadb_value_free(&value);
    record_put(s, type, a, "\xff\xff", 2);
}

static void spoil_meta(struct fsck_store *s)
{
    spoil(s, KEY_META, 0);
}

static void spoil_root_node(struct fsck_store *s)
{
    spoil(s, KEY_NODE, root_of(s, s->a));
}

static void spoil_leaf(struct fsck_store *s)
{
    spoil(s, KEY_NODE, child_of(s, root_of(s, s->a), 0));
}

static void spoil_inode(struct fsck_store *s)
{
    record_put(s, KEY_INODE, s->a, "\x02\x00", 2);
}

static void spoil_node_counts(struct fsck_store *s)
{
    record_put(s, KEY_NODE_COUNTS, 0, "\xff\x80", 2);
}

static void spoil_chunk_counts(struct fsck_store *s)
{
    record_put(s, KEY_CHUNK_COUNTS, chunk_at(s, s->a, 0) / COUNT_GROUP, "\xff\x80", 2);
}

static void spoil_segment(struct fsck_store *s)
{
    record_put(s, KEY_SEGMENT, 1, "\x01\x00", 2);
}

static void spoil_entries(struct fsck_store *s)
{
    uint8_t key[KEY_MAX];
    metadb_put(s->db, key, key_u64_u64(key, KEY_DIRENT, ROOT_INO, hash_of(s, "pipe")), "\x01\x20",
               2);
}

static void spoil_hash(struct fsck_store *s)
{
    record_put(s, KEY_CHUNK_HASH, chunk_at(s, s->s1, 3), "short", 5);
}

static void spoil_content(struct fsck_store *s)
{
    record_put(s, KEY_CONTENT, 1234567, "short", 5);
}

static void spoil_dead(struct fsck_store *s)
{
    record_put(s, KEY_DEAD_SEALED, 1, "", 0);
}

static void delete_meta(struct fsck_store *s)
{
    record_delete(s, KEY_META, 0);
}

static void lower_next_ino(struct fsck_store *s)
{
    struct meta meta = meta_record(s);
    meta.next_ino = s->sparse;
    meta_record_put(s, &meta);
}

static void lower_next_node(struct fsck_store *s)
{
    struct meta meta = meta_record(s);
    meta.next_node_id = root_of(s, s->a);
    meta_record_put(s, &meta);
}

static void change_totals(struct fsck_store *s)
{
    struct meta meta = meta_record(s);
    meta.inode_count++;
    meta.chunks_live--;
    meta.merges++;
    meta_record_put(s, &meta);
}

/* ---- nodes ---- */

/* The first leaf of a, b and c: b's root and the other's refer to it. */
static void delete_leaf(struct fsck_store *s)
{
    record_delete(s, KEY_NODE, child_of(s, root_of(s, s->a), 0));
}

static void delete_root_node(struct fsck_store *s)
{
    record_delete(s, KEY_NODE, root_of(s, s->small));
}

static void raise_levels(struct fsck_store *s)
{
    struct inode_attr attr = inode_record(s, s->a);
    attr.map.levels++;
    inode_record_put(s, s->a, &attr);
}

static void add_count(struct fsck_store *s, enum key_type type, uint64_t id, int delta)
{
    struct count_info info = count_of(s, type, id);
    info.count = (uint32_t)((int)info.count + delta);
    count_put(s, type, id, info);
}

static void make_cycle(struct fsck_store *s)
{
    uint64_t entries[NODE_ENTRIES], root = root_of(s, s->b);
    unsigned level = node_record(s, root, entries);
    entries[511] = root;
    node_record_put(s, root, level, entries);
    add_count(s, KEY_NODE_COUNTS, root, 1);
}

/* Through two nodes: the topmost of `sparse` is below its own grandchild. */
static void make_long_cycle(struct fsck_store *s)
{
    uint64_t entries[NODE_ENTRIES], root = root_of(s, s->sparse);
    unsigned at = (unsigned)((UINT64_C(3) << 40) / STORE_CHUNK >> (3 * NODE_SHIFT));
    uint64_t child = child_of(s, root, at);
    unsigned level = node_record(s, child, entries);
    entries[511] = root;
    node_record_put(s, child, level, entries);
    add_count(s, KEY_NODE_COUNTS, root, 1);
}

static void point_to_same_level(struct fsck_store *s)
{
    uint64_t entries[NODE_ENTRIES], root = root_of(s, s->b), other = root_of(s, s->a);
    unsigned level = node_record(s, root, entries);
    entries[510] = other;
    node_record_put(s, root, level, entries);
    add_count(s, KEY_NODE_COUNTS, other, 1);
}

static uint64_t new_node_id(struct fsck_store *s)
{
    struct meta meta = meta_record(s);
    uint64_t id = meta.next_node_id++;
    meta_record_put(s, &meta);
    return id;
}

static void add_stray_node(struct fsck_store *s)
{
    uint64_t entries[NODE_ENTRIES] = {0}, id = new_node_id(s);
    entries[3] = child_of(s, root_of(s, s->a), 0);
    node_record_put(s, id, 2, entries);
    add_count(s, KEY_NODE_COUNTS, id, 1);
    add_count(s, KEY_NODE_COUNTS, entries[3], 1);
}

static void lower_node_count(struct fsck_store *s)
{
    add_count(s, KEY_NODE_COUNTS, root_of(s, s->a), -1);
}

static void zero_node_count(struct fsck_store *s)
{
    add_count(s, KEY_NODE_COUNTS, root_of(s, s->small), -1);
}

static void delete_node_counts(struct fsck_store *s)
{
    record_delete(s, KEY_NODE_COUNTS, 0);
}

static void raise_node_count(struct fsck_store *s)
{
    add_count(s, KEY_NODE_COUNTS, root_of(s, s->a), 1);
}

static void count_missing_node(struct fsck_store *s)
{
    add_count(s, KEY_NODE_COUNTS, new_node_id(s), 1);
}

/* ---- chunks and segments ---- */

static void lower_chunk_count(struct fsck_store *s)
{
    /* Two leaves (of a and c together, and of b) have it. */
    add_count(s, KEY_CHUNK_COUNTS, chunk_at(s, s->a, 600), -1);
}

static void zero_chunk_count(struct fsck_store *s)
{
    add_count(s, KEY_CHUNK_COUNTS, chunk_at(s, s->small, 1), -1);
}

static void delete_chunk_counts(struct fsck_store *s)
{
    record_delete(s, KEY_CHUNK_COUNTS, unsealed_group(s));
}

static void raise_chunk_count(struct fsck_store *s)
{
    add_count(s, KEY_CHUNK_COUNTS, chunk_at(s, s->a, 600), 1);
    add_count(s, KEY_CHUNK_COUNTS, chunk_at(s, s->a, 601), 1);
    add_count(s, KEY_CHUNK_COUNTS, chunk_at(s, s->a, 603), 3);
}

static void count_unmapped_chunk(struct fsck_store *s)
{
    add_count(s, KEY_CHUNK_COUNTS, unowned_chunk(s), 1);
}

static void raise_merges(struct fsck_store *s)
{
    chunk_t chunk = chunk_at(s, s->s1, 0);
    struct count_info info = count_of(s, KEY_CHUNK_COUNTS, chunk);
    struct meta meta = meta_record(s);
    meta.merges += 5u - info.merges;
    info.merges = 5;
    count_put(s, KEY_CHUNK_COUNTS, chunk, info);
    meta_record_put(s, &meta);
}

static void lower_cursor(struct fsck_store *s)
{
    struct segment_fields fields = segment_record(s, 1);
    fields.cursor = 1024;
    segment_record_put(s, 1, &fields);
}

static void map_beyond_segment(struct fsck_store *s)
{
    uint64_t entries[NODE_ENTRIES], leaf = root_of(s, s->small);
    unsigned level = node_record(s, leaf, entries);
    entries[9] = (UINT64_C(1) << 32) + SEGMENT_SLOTS + 5;
    node_record_put(s, leaf, level, entries);
    struct inode_attr attr = inode_record(s, s->small);
    attr.size_bytes = 10 * STORE_CHUNK;
    inode_record_put(s, s->small, &attr);
}

static void count_beyond_segment(struct fsck_store *s)
{
    add_count(s, KEY_CHUNK_COUNTS, (UINT64_C(1) << 32) + SEGMENT_SLOTS + 5, 1);
}

static void delete_segment(struct fsck_store *s)
{
    record_delete(s, KEY_SEGMENT, 1);
}

static void raise_live(struct fsck_store *s)
{
    struct segment_fields fields = segment_record(s, 1);
    fields.live++;
    segment_record_put(s, 1, &fields);
}

static void count_in_no_segment(struct fsck_store *s)
{
    add_count(s, KEY_CHUNK_COUNTS, (UINT64_C(77) << 32) + 5, 1);
    add_count(s, KEY_CHUNK_COUNTS, (UINT64_C(77) << 32) + 6, 1);
}

/* ---- content index ---- */

static const uint8_t some_hash[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9};

static void put_content(struct fsck_store *s, uint64_t hash, chunk_t chunk)
{
    uint8_t value[8];
    put_be64(value, chunk);
    record_put(s, KEY_CONTENT, hash, value, sizeof(value));
}

static uint64_t short_hash_of(struct fsck_store *s, chunk_t chunk)
{
    struct metadb_value value = record_get(s, KEY_CHUNK_HASH, chunk);
    uint64_t hash = get_be64(value.data);
    metadb_value_free(&value);
    return hash;
}

static void hash_of_unsealed(struct fsck_store *s)
{
    record_put(s, KEY_CHUNK_HASH, chunk_at(s, s->a, 5), some_hash, 16);
    put_content(s, get_be64(some_hash), chunk_at(s, s->a, 6));
}

static void swap_content(struct fsck_store *s)
{
    put_content(s, short_hash_of(s, chunk_at(s, s->s1, 5)), chunk_at(s, s->s1, 6));
}

static void change_hash_record(struct fsck_store *s)
{
    record_put(s, KEY_CHUNK_HASH, chunk_at(s, s->s1, 5), some_hash, 16);
}

static void delete_hash_record(struct fsck_store *s)
{
    record_delete(s, KEY_CHUNK_HASH, chunk_at(s, s->s1, 5));
}

static void delete_both_hashes(struct fsck_store *s)
{
    chunk_t chunk = chunk_at(s, s->s1, 5);
    record_delete(s, KEY_CONTENT, short_hash_of(s, chunk));
    record_delete(s, KEY_CHUNK_HASH, chunk);
}

/* Another owner's, which is right by itself: the store does not know that there are such. */
static struct content_record put_in_domain(struct fsck_store *s, chunk_t chunk, uint32_t domain)
{
    uint8_t value[CONTENT_RECORD_BYTES_MAX];
    struct content_record record;
    struct metadb_value old = record_get(s, KEY_CHUNK_HASH, chunk);
    ck_assert_int_eq(content_record_decode(old.data, old.len, &record), 0);
    metadb_value_free(&old);
    record.domain = domain;
    memcpy(value, record.hash.bytes, sizeof(record.hash.bytes));
    put_be32(value + sizeof(record.hash.bytes), domain);
    record_put(s, KEY_CHUNK_HASH, chunk, value, sizeof(value));
    return record;
}

static void unknown_domain(struct fsck_store *s)
{
    chunk_t chunk = chunk_at(s, s->s1, 5);
    record_delete(s, KEY_CONTENT, short_hash_of(s, chunk));
    struct content_record record = put_in_domain(s, chunk, 1000);
    put_content(s, content_record_number(&record), chunk);
}

static void public_domain(struct fsck_store *s)
{
    struct meta meta = meta_record(s);
    meta.domains = true;
    meta_record_put(s, &meta);
    chunk_t chunk = chunk_at(s, s->s1, 5);
    record_delete(s, KEY_CONTENT, short_hash_of(s, chunk));
    put_in_domain(s, chunk, UINT32_MAX);
}

/* Found in a domain that is not its own. */
static void wrong_domain(struct fsck_store *s)
{
    struct meta meta = meta_record(s);
    meta.domains = true;
    meta_record_put(s, &meta);
    put_in_domain(s, chunk_at(s, s->s1, 5), 1000);
}

static void spoil_domain(struct fsck_store *s)
{
    static const uint8_t value[18] = {1};
    chunk_t chunk = chunk_at(s, s->s1, 5);
    record_delete(s, KEY_CONTENT, short_hash_of(s, chunk));
    record_put(s, KEY_CHUNK_HASH, chunk, value, sizeof(value));
}

static void free_living(struct fsck_store *s)
{
    record_put(s, KEY_DEAD_SEALED, chunk_at(s, s->s1, 5), "\x02", 1);
}

static void hash_of_unowned(struct fsck_store *s)
{
    chunk_t chunk = unowned_chunk(s);
    record_put(s, KEY_CHUNK_HASH, chunk, some_hash, 16);
    put_content(s, get_be64(some_hash), chunk);
    put_content(s, 77, UINT64_C(98) << 32);
    record_put(s, KEY_CHUNK_HASH, UINT64_C(99) << 32, some_hash, 16);
}

/* The same, but recorded as freed: nothing is wrong. */
/* ---- homes: a and c lie in one, frozen; sparse fills its own ---- */

static void put_home(struct fsck_store *s, uint64_t ino, uint32_t home, bool filling)
{
    struct inode_attr attr = inode_record(s, ino);
    attr.home = home;
    attr.home_filling = filling;
    inode_record_put(s, ino, &attr);
}

static void home_of_another(struct fsck_store *s)
{
    put_home(s, s->b, inode_record(s, s->a).home, false);
}

static void home_is_shared(struct fsck_store *s)
{
    put_home(s, s->small, 1, false);
}

static void fills_a_frozen_home(struct fsck_store *s)
{
    put_home(s, s->c, inode_record(s, s->c).home, true);
}

static void fills_a_missing_home(struct fsck_store *s)
{
    put_home(s, s->empty, 99, true);
}

static void second_filler(struct fsck_store *s)
{
    put_home(s, s->empty, inode_record(s, s->sparse).home, true);
}

static void reads_a_filling_home(struct fsck_store *s)
{
    put_home(s, s->empty, inode_record(s, s->sparse).home, false);
}

static void filler_has_left(struct fsck_store *s)
{
    put_home(s, s->sparse, 0, false);
}

static void hash_of_freed(struct fsck_store *s)
{
    chunk_t chunk = unowned_chunk(s);
    record_put(s, KEY_CHUNK_HASH, chunk, some_hash, 16);
    put_content(s, get_be64(some_hash), chunk);
    record_put(s, KEY_DEAD_SEALED, chunk, "\x01", 1);
}

/* ---- all of it ---- */

static const struct damage damages[] = {
    DAMAGE(put_unknown, 2, FSCK_RECORD_UNKNOWN),
    DAMAGE(put_long_key, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_meta, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_root_node, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_leaf, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_inode, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_node_counts, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_chunk_counts, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_segment, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_entries, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_hash, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_content, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(spoil_dead, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(delete_meta, 1, FSCK_META_MISSING),
    DAMAGE(lower_next_ino, 1, FSCK_META_NEXT),
    DAMAGE(unknown_domain, 1, FSCK_META_DOMAINS),
    DAMAGE(public_domain, 1, FSCK_META_DOMAINS),
    DAMAGE(wrong_domain, 1, FSCK_INDEX_DISAGREES),
    DAMAGE(spoil_domain, 1, FSCK_RECORD_UNDECODABLE),
    DAMAGE(lower_next_node, 1, FSCK_META_NEXT),
    DAMAGE(change_totals, 3, FSCK_META_COUNTERS),
    DAMAGE(delete_leaf, 2, FSCK_NODE_MISSING),
    DAMAGE(delete_root_node, 1, FSCK_NODE_MISSING),
    DAMAGE(raise_levels, 1, FSCK_NODE_LEVEL),
    DAMAGE(point_to_same_level, 1, FSCK_NODE_LEVEL),
    DAMAGE(make_cycle, 1, FSCK_NODE_CYCLE),
    DAMAGE(make_long_cycle, 1, FSCK_NODE_CYCLE),
    DAMAGE(add_stray_node, 1, FSCK_NODE_UNREACHABLE),
    DAMAGE(lower_node_count, 1, FSCK_NODE_COUNT_LOW),
    DAMAGE(zero_node_count, 1, FSCK_NODE_COUNT_LOW),
    DAMAGE(delete_node_counts, 0, FSCK_NODE_COUNT_LOW),
    DAMAGE(raise_node_count, 1, FSCK_NODE_COUNT_HIGH),
    DAMAGE(count_missing_node, 1, FSCK_NODE_COUNT_HIGH),
    DAMAGE(lower_chunk_count, 1, FSCK_CHUNK_COUNT_LOW),
    DAMAGE(zero_chunk_count, 1, FSCK_CHUNK_COUNT_LOW),
    DAMAGE(delete_chunk_counts, 0, FSCK_CHUNK_COUNT_LOW),
    DAMAGE(raise_chunk_count, 3, FSCK_CHUNK_COUNT_HIGH),
    DAMAGE(count_unmapped_chunk, 1, FSCK_CHUNK_COUNT_HIGH),
    DAMAGE(raise_merges, 1, FSCK_CHUNK_MERGES),
    DAMAGE(lower_cursor, 0, FSCK_CHUNK_BEYOND_CURSOR),
    DAMAGE(map_beyond_segment, 1, FSCK_CHUNK_BEYOND_CURSOR),
    DAMAGE(count_beyond_segment, 1, FSCK_CHUNK_BEYOND_CURSOR),
    DAMAGE(delete_segment, 1, FSCK_SEGMENT_MISSING),
    DAMAGE(raise_live, 1, FSCK_SEGMENT_LIVE),
    DAMAGE(count_in_no_segment, 2, FSCK_SEGMENT_STRAY_COUNTS),
    DAMAGE(hash_of_unsealed, 2, FSCK_INDEX_UNSEALED),
    DAMAGE(swap_content, 1, FSCK_INDEX_DISAGREES),
    DAMAGE(change_hash_record, 1, FSCK_INDEX_DISAGREES),
    DAMAGE(delete_hash_record, 1, FSCK_INDEX_DISAGREES, FSCK_SEALED_WITHOUT_HASH),
    DAMAGE(delete_both_hashes, 1, FSCK_SEALED_WITHOUT_HASH),
    DAMAGE(free_living, 2, FSCK_INDEX_DEAD_OWNED),
    DAMAGE(hash_of_unowned, 3, FSCK_INDEX_STRAY),
    DAMAGE(home_of_another, 1, FSCK_INODE_HOME),
    DAMAGE(home_is_shared, 1, FSCK_INODE_HOME),
    DAMAGE(fills_a_frozen_home, 1, FSCK_INODE_HOME),
    DAMAGE(fills_a_missing_home, 1, FSCK_INODE_HOME),
    DAMAGE(second_filler, 1, FSCK_INODE_HOME),
    DAMAGE(reads_a_filling_home, 1, FSCK_INODE_HOME),
    DAMAGE(filler_has_left, 1, FSCK_SEGMENT_HOME),
    {"hash_of_freed", hash_of_freed, 0, {FSCK_KINDS}},
};

START_TEST(test_damage)
{
    fsck_expect_damage(&damages[_i]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fsck_maps");
    TCase *t = tcase_create("damage");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test_damage, 0, G_N_ELEMENTS(damages));
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
