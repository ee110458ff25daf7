// SPDX-License-Identifier: Apache-2.0
/* Who shares with whom: sealing finds what the file's owner has, and what is public. */
#include "tests/unit/content_fixture.h"

#include "cowfs/damage.h"
#include "cowfs/domain.h"

enum {
    CHUNKS = 600, /* more than a leaf, more than a batch */
    ALICE = 1000,
    BOB = 1001,
};

static void chown_to(struct inode *inode, uint32_t uid)
{
    txn_enter(fs->txn);
    pthread_mutex_lock(&inode->attr_lock);
    inode->attr.uid = uid;
    pthread_mutex_unlock(&inode->attr_lock);
    inode_mark_attr(inode);
    txn_exit(fs->txn);
}

static struct inode *make_of(uint32_t uid, const char *name)
{
    struct inode *inode = make(fs, ROOT_INO, name, S_IFREG | 0644);
    chown_to(inode, uid);
    return inode;
}

/* Bytes that sealing of all of it found to be there. */
static uint64_t seal(struct inode *inode)
{
    struct cowfs_ioc_seal total;
    seal_all(inode, &total);
    return total.deduplicated;
}

/* A file of that content, sealed; how much of it was there already. */
static uint64_t found_by(uint32_t uid, unsigned chunks, unsigned seed)
{
    static unsigned number;
    g_autofree char *name = g_strdup_printf("probe-%u", number++);
    struct inode *inode = make_of(uid, name);
    write_filled(inode, chunks * CHUNK, 0, seed);
    uint64_t bytes = seal(inode);
    /* He sees by no other way, either, that more of it exists. */
    ck_assert_uint_eq(usage_of(inode).shared_bytes, bytes);
    assert_filled(inode, chunks * CHUNK, 0, seed);
    inode_put(inode);
    return bytes;
}

static struct cowfs_ioc_public public_all(struct inode *inode, uint32_t action)
{
    struct cowfs_ioc_public io = {.version = COWFS_IOCTL_VERSION, .length = 1 << 20};
    struct cowfs_ioc_public total = {.action = action};
    io.action = action;
    do {
        ck_assert_int_eq(domain_public_range(fs, inode->ino, &io), 0);
        total.public_bytes += io.public_bytes;
        total.changed += io.changed;
        total.unsealed += io.unsealed;
        total.domain = io.domain;
        io.offset = io.next;
    } while (io.next);
    return total;
}

START_TEST(owners_share_with_themselves_alone)
{
    const uint32_t owners[] = {0, ALICE, BOB, 0x80000000u};
    for (unsigned i = 0; i < G_N_ELEMENTS(owners); i++) {
        uint64_t before = live();
        ck_assert_uint_eq(found_by(owners[i], CHUNKS, 1), 0);
        ck_assert_uint_eq(live(), before + CHUNKS);
    }
    uint64_t before = live();
    for (unsigned i = 0; i < G_N_ELEMENTS(owners); i++)
        ck_assert_uint_eq(found_by(owners[i], CHUNKS, 1), CHUNKS * CHUNK);
    ck_assert_uint_eq(live(), before);
    /* After opening the store again, too. */
    reopen();
    ck_assert_uint_eq(found_by(BOB, CHUNKS, 1), CHUNKS * CHUNK);
    ck_assert_uint_eq(found_by(BOB + 1, CHUNKS, 1), 0);
}
END_TEST

/* What is not looked up but guessed by its place. */
START_TEST(neighbours_of_what_is_found_may_be_somebody_elses)
{
    uint32_t owner = _i ? 0 : BOB, other = _i ? BOB : 0;
    struct inode *mixed = make_of(owner, "mixed");
    g_autofree uint8_t *data = g_malloc(10 * CHUNK);
    fill(data, 10 * CHUNK, 1);
    write_at(mixed, data, CHUNK, 0);
    seal(mixed);
    chown_to(mixed, other);
    write_at(mixed, data + CHUNK, 9 * CHUNK, CHUNK);
    seal(mixed);
    ck_assert_uint_eq(usage_of(mixed).extents, 1);
    ck_assert_uint_eq(found_by(owner, 10, 1), CHUNK);
    inode_put(mixed);
}
END_TEST

START_TEST(content_stays_where_it_was_sealed)
{
    struct inode *given = make_of(ALICE, "given");
    write_filled(given, 10 * CHUNK, 0, 1);
    seal(given);
    chown_to(given, BOB);
    ck_assert_uint_eq(seal(given), 0);
    ck_assert_uint_eq(found_by(BOB, 10, 1), 0);
    ck_assert_uint_eq(found_by(ALICE, 10, 1), 10 * CHUNK);
    /* What is sealed from now on is Bob's. */
    write_filled(given, 10 * CHUNK, 10 * CHUNK, 2);
    seal(given);
    ck_assert_uint_eq(found_by(ALICE, 10, 2), 0);
    ck_assert_uint_eq(found_by(BOB, 10, 2), 10 * CHUNK);
    inode_put(given);
}
END_TEST

START_TEST(clones_share_across_owners)
{
    write_filled(file, CHUNKS * CHUNK, 0, 1);
    struct inode *clone = clone_as(file, "clone");
    chown_to(clone, BOB);
    seal(file);
    ck_assert_uint_eq(seal(clone), 0);
    ck_assert_uint_eq(live(), CHUNKS);
    ck_assert_uint_eq(found_by(BOB, CHUNKS, 1), 0);
    inode_put(clone);
}
END_TEST

/* ---- public content ---- */

START_TEST(public_content_is_found_by_all)
{
    write_filled(file, CHUNKS * CHUNK, 0, 1);
    seal(file);
    ck_assert_uint_eq(public_all(file, COWFS_PUBLIC_TELL).public_bytes, 0);
    ck_assert_uint_eq(found_by(ALICE, 20, 1), 0);
    struct cowfs_ioc_public io = public_all(file, COWFS_PUBLIC_ON);
    ck_assert_uint_eq(io.public_bytes, CHUNKS * CHUNK);
    ck_assert_uint_eq(io.changed, CHUNKS * CHUNK);
    ck_assert_uint_eq(io.unsealed, 0);
    ck_assert_uint_eq(io.domain, 0);
    ck_assert_uint_eq(found_by(BOB, CHUNKS, 1), CHUNKS * CHUNK);
    ck_assert_uint_eq(found_by(0, CHUNKS, 1), CHUNKS * CHUNK);
    /* She has some of it already. */
    ck_assert_uint_eq(found_by(ALICE, CHUNKS, 1), CHUNKS * CHUNK);
    io = public_all(file, COWFS_PUBLIC_ON);
    ck_assert_uint_eq(io.public_bytes, CHUNKS * CHUNK);
    ck_assert_uint_eq(io.changed, 0);
    reopen();
    ck_assert_uint_eq(found_by(BOB + 1, CHUNKS, 1), CHUNKS * CHUNK);
    ck_assert_uint_eq(public_all(file, COWFS_PUBLIC_TELL).public_bytes, CHUNKS * CHUNK);
}
END_TEST

START_TEST(it_is_sealed_on_the_way)
{
    struct inode *image = make_of(ALICE, "image");
    write_filled(image, 10 * CHUNK, 0, 1);
    /* Far off, behind a hole. */
    write_filled(image, CHUNK, UINT64_C(1) << 40, 2);
    struct cowfs_ioc_public io = public_all(image, COWFS_PUBLIC_ON);
    ck_assert_uint_eq(io.public_bytes, 11 * CHUNK);
    ck_assert_uint_eq(io.domain, ALICE);
    ck_assert_uint_eq(found_by(BOB, 10, 1), 10 * CHUNK);
    ck_assert_uint_eq(found_by(BOB, 1, 2), CHUNK);
    ck_assert_uint_eq(public_all(image, COWFS_PUBLIC_OFF).changed, 11 * CHUNK);
    inode_put(image);
}
END_TEST

START_TEST(what_is_written_afterwards_is_not_public)
{
    write_filled(file, 10 * CHUNK, 0, 1);
    public_all(file, COWFS_PUBLIC_ON);
    write_filled(file, 10 * CHUNK, 0, 2);
    seal(file);
    ck_assert_uint_eq(found_by(BOB, 10, 2), 0);
    ck_assert_uint_eq(public_all(file, COWFS_PUBLIC_TELL).public_bytes, 0);
}
END_TEST

START_TEST(taken_back_it_is_the_owners_again)
{
    struct inode *image = make_of(ALICE, "image");
    write_filled(image, CHUNKS * CHUNK, 0, 1);
    public_all(image, COWFS_PUBLIC_ON);
    ck_assert_uint_eq(found_by(BOB, CHUNKS, 1), CHUNKS * CHUNK);
    uint64_t before = live();
    struct cowfs_ioc_public io = public_all(image, COWFS_PUBLIC_OFF);
    ck_assert_uint_eq(io.changed, CHUNKS * CHUNK);
    ck_assert_uint_eq(io.public_bytes, 0);
    ck_assert_uint_eq(live(), before);
    /* What is shared stays so, and nothing new comes to it. */
    ck_assert_uint_eq(found_by(BOB, CHUNKS, 1), 0);
    ck_assert_uint_eq(found_by(BOB, CHUNKS, 1), CHUNKS * CHUNK);
    ck_assert_uint_eq(found_by(ALICE, CHUNKS, 1), CHUNKS * CHUNK);
    ck_assert_uint_eq(found_by(0, CHUNKS, 1), 0);
    inode_put(image);
}
END_TEST

START_TEST(two_images_of_one_content)
{
    struct inode *other = make_of(ALICE, "other");
    write_filled(file, 10 * CHUNK, 0, 1);
    write_filled(other, 10 * CHUNK, 0, 1);
    seal(other);
    public_all(file, COWFS_PUBLIC_ON);
    /* In a place of its own, since it was sealed before. */
    ck_assert_uint_eq(public_all(other, COWFS_PUBLIC_ON).changed, 10 * CHUNK);
    ck_assert_uint_eq(live(), 20);
    public_all(file, COWFS_PUBLIC_OFF);
    ck_assert_uint_eq(found_by(BOB, 10, 1), 10 * CHUNK);
    public_all(other, COWFS_PUBLIC_OFF);
    ck_assert_uint_eq(found_by(BOB + 1, 10, 1), 0);
    inode_put(other);
}
END_TEST

START_TEST(public_content_that_is_gone_is_forgotten)
{
    struct inode *image = make_of(ALICE, "image");
    bool more = true;
    write_filled(image, CHUNKS * CHUNK, 0, 1);
    public_all(image, COWFS_PUBLIC_ON);
    ck_assert_int_eq(file_truncate(image, 0), 0);
    commit();
    while (more) {
        txn_enter(fs->txn);
        ck_assert_int_eq(content_index_clean(fs->db, 100, &more), 0);
        txn_exit(fs->txn);
    }
    ck_assert_uint_eq(found_by(BOB, CHUNKS, 1), 0);
    inode_put(image);
}
END_TEST

START_TEST(what_cannot_be_asked)
{
    struct cowfs_ioc_public io = {.action = 3};
    ck_assert_int_eq(domain_public_range(fs, file->ino, &io), -EINVAL);
    io.action = COWFS_PUBLIC_ON;
    ck_assert_int_eq(domain_public_range(fs, ROOT_INO, &io), -EINVAL);
    ck_assert_int_eq(domain_public_range(fs, 77, &io), -ENOENT);
    io.offset = UINT64_MAX;
    ck_assert_int_eq(domain_public_range(fs, file->ino, &io), 0);
    ck_assert_uint_eq(io.next, 0);
}
END_TEST

/* Reads that compare hashes do so in any domain. */
START_TEST(verified_reads)
{
    struct inode *theirs = make_of(ALICE, "theirs");
    write_filled(theirs, 10 * CHUNK, 0, 1);
    seal(theirs);
    write_filled(file, 10 * CHUNK, 0, 2);
    public_all(file, COWFS_PUBLIC_ON);
    inode_put(theirs);
    inode_put(file);
    close_store(fs);
    fs = open_store_with((struct fs_config){.verify = true});
    file = open_file("file");
    theirs = open_file("theirs");
    assert_filled(theirs, 10 * CHUNK, 0, 1);
    assert_filled(file, 10 * CHUNK, 0, 2);
    ck_assert_uint_eq(damage_count(fs), 0);
    inode_put(theirs);
}
END_TEST

static Suite *make_suite(void)
{
    Suite *suite = suite_create("domain");
    TCase *t = tcase_create("domain");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup_content, teardown_content);
    tcase_add_test(t, owners_share_with_themselves_alone);
    tcase_add_loop_test(t, neighbours_of_what_is_found_may_be_somebody_elses, 0, 2);
    tcase_add_test(t, content_stays_where_it_was_sealed);
    tcase_add_test(t, clones_share_across_owners);
    tcase_add_test(t, public_content_is_found_by_all);
    tcase_add_test(t, it_is_sealed_on_the_way);
    tcase_add_test(t, what_is_written_afterwards_is_not_public);
    tcase_add_test(t, taken_back_it_is_the_owners_again);
    tcase_add_test(t, two_images_of_one_content);
    tcase_add_test(t, public_content_that_is_gone_is_forgotten);
    tcase_add_test(t, what_cannot_be_asked);
    tcase_add_test(t, verified_reads);
    suite_add_tcase(suite, t);
    return suite;
}

int main(void)
{
    return run_suite(make_suite());
}
