#!/usr/bin/env bash
# Plain cp and cat clone: the content is equal, no data is stored, and what cannot be is refused.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

# Images of all shapes in $MNT/src, and their like outside in $WORK/src.
make_images() {
    mkdir -p "$WORK/src" "$MNT/src"
    random_file "$WORK/src/dense" $((48 << 20))
    # An odd end, and less than one chunk.
    random_file "$WORK/src/odd" $((3 * 1048576 + 777))
    echo hello >"$WORK/src/small"
    : >"$WORK/src/empty"
    truncate -s 300M "$WORK/src/holes"
    # Islands of data, at the begin, in the middle, at the end.
    truncate -s 600M "$WORK/src/sparse"
    local at
    for at in 0 1 2 255 256 511 512 599; do
        head -c 100000 /dev/urandom |
            dd of="$WORK/src/sparse" conv=notrunc oflag=seek_bytes seek=$((at << 20)) status=none
    done
    cp --sparse=always -r "$WORK/src/." "$MNT/src"
    sync -f "$MNT"
}

# Bytes that are compared must not come from the cache that the copying has left.
drop_caches() { sync -f "$MNT" && echo 3 >/proc/sys/vm/drop_caches; }

check_copy() {
    local name=$1 copy=$2
    cmp -- "$WORK/src/$name" "$copy" || fail "$copy is no copy of $name"
    assert_eq "$(stat_of shared_bytes "$copy")" "$(stat_of mapped_bytes "$copy")" \
        "shared bytes of $copy"
    assert_eq "$(stat_of mapped_bytes "$copy")" "$(stat_of mapped_bytes "$MNT/src/$name")" \
        "mapped bytes of $copy"
}

# copies_are_clones COMMAND...: with source and destination appended, for each image.
copies_are_clones() {
    local name before
    mount_up
    make_images
    before=$(df_of stored_bytes)
    for name in dense odd small empty holes sparse; do
        "$@" "$MNT/src/$name" "$MNT/$name.copy"
        drop_caches
        check_copy "$name" "$MNT/$name.copy"
    done
    assert_eq "$(df_of stored_bytes)" "$before" "stored bytes"
    mount_down
}

test_cp() { copies_are_clones cp; }
test_cp_a() { copies_are_clones cp -a; }
test_cp_reflink_auto() { copies_are_clones cp --reflink=auto; }

cat_to() { cat "$1" >"$2"; }
test_cat() { copies_are_clones cat_to; }

test_cp_64k() {
    mount_up chunk_size=64K
    make_images
    local name before
    before=$(df_of stored_bytes)
    for name in dense odd small sparse; do
        cp "$MNT/src/$name" "$MNT/$name.copy"
        check_copy "$name" "$MNT/$name.copy"
    done
    assert_eq "$(df_of stored_bytes)" "$before" "stored bytes"
}

test_cp_nowriteback() {
    mount_up nowriteback
    make_images
    local before
    before=$(df_of stored_bytes)
    cp "$MNT/src/sparse" "$MNT/copy"
    check_copy sparse "$MNT/copy"
    assert_eq "$(df_of stored_bytes)" "$before" "stored bytes"
}

trees_are_clones() {
    local name before
    mount_up
    make_images
    mkdir -p "$MNT/src/sub/deep"
    ln "$MNT/src/dense" "$MNT/src/sub/link"
    ln -s ../odd "$MNT/src/sub/symlink"
    echo deep >"$MNT/src/sub/deep/file"
    before=$(df_of stored_bytes)
    "$@" "$MNT/src" "$MNT/copy"
    drop_caches
    diff -r "$MNT/src" "$MNT/copy"
    for name in dense odd small empty holes sparse; do
        check_copy "$name" "$MNT/copy/$name"
    done
    assert_eq "$(df_of stored_bytes)" "$before" "stored bytes"
    # Removing the first leaves the copy.
    rm -r "$MNT/src"
    drop_caches
    for name in dense odd small empty holes sparse; do
        assert_same "$WORK/src/$name" "$MNT/copy/$name"
    done
    mount_down
}
test_cp_r() { trees_are_clones cp -r; }
test_cp_a_tree() {
    trees_are_clones cp -a
    mount_up
    assert_eq "$(stat -c %i "$MNT/copy/dense")" "$(stat -c %i "$MNT/copy/sub/link")" "hard link"
    assert_eq "$(readlink "$MNT/copy/sub/symlink")" ../odd
}

# A copy of what has just been written, with not a byte of it written back yet.
test_cp_of_dirty_pages() {
    local i
    mount_up
    for i in 1 2 3 4 5; do
        head -c 20M /dev/urandom | tee "$WORK/wanted" >"$MNT/a$i"
        cp "$MNT/a$i" "$MNT/b$i"
        assert_same "$WORK/wanted" "$MNT/b$i"
        assert_eq "$(stat_of shared_bytes "$MNT/b$i")" $((20 << 20)) "shared bytes"
    done
}

# Changing either leaves the other as it was.
test_copies_are_independent() {
    local i
    mount_up
    make_images
    cp "$MNT/src/sparse" "$MNT/copy"
    cp --sparse=always "$WORK/src/sparse" "$WORK/changed"
    for i in 3 5 7; do
        "$HELPERS/mount_tool" scattered "$MNT/copy" 100 "$i"
        "$HELPERS/mount_tool" scattered "$WORK/changed" 100 "$i"
    done
    drop_caches
    assert_same "$WORK/src/sparse" "$MNT/src/sparse"
    assert_same "$WORK/changed" "$MNT/copy"
    cp "$MNT/copy" "$MNT/copy2"
    : >"$MNT/copy"
    assert_same "$WORK/changed" "$MNT/copy2"
}

test_cp_over_existing() {
    local before
    mount_up
    make_images
    random_file "$MNT/target" $((60 << 20))
    exec 9<"$MNT/target"
    before=$(df_of stored_bytes)
    cp "$MNT/src/dense" "$MNT/target"
    assert_same "$WORK/src/dense" "$MNT/target"
    # Who has the file open sees the new content.
    cmp "$WORK/src/dense" - <&9
    exec 9<&-
    assert_eq "$(df_of stored_bytes)" $((before - (60 << 20))) "stored bytes"
    expect 1 cp "$MNT/target" "$MNT/target"
    assert_contains "$ERR" "same file"
}

# The kernel answers FICLONE itself for FUSE: EOPNOTSUPP (README).
test_reflink_always_fails() {
    mount_up
    echo text >"$MNT/a"
    expect 1 cp --reflink=always "$MNT/a" "$MNT/b"
    assert_contains "$ERR" "not supported"
    assert_eq "$(cat "$MNT/a")" text
}

# Reads and writes, so it is no clone; but right, and with the same holes.
test_sparse_always() {
    local name
    mount_up
    make_images
    for name in dense odd small empty sparse; do
        cp --sparse=always "$MNT/src/$name" "$MNT/copy"
        assert_same "$WORK/src/$name" "$MNT/copy"
        assert_eq "$(stat_of mapped_bytes "$MNT/copy")" "$(stat_of mapped_bytes "$MNT/src/$name")" \
            "mapped bytes of the copy of $name"
        rm "$MNT/copy"
    done
    cp --sparse=never "$MNT/src/odd" "$MNT/copy"
    assert_same "$WORK/src/odd" "$MNT/copy"
}

# To and from other file systems, and from one store to another.
test_across_file_systems() {
    local name
    mount_up
    mount_up '' "$WORK/store2" "$WORK/mnt2"
    make_images
    cp -r "$MNT/src" "$WORK/mnt2/src"
    cp -r --sparse=always "$WORK/mnt2/src" "$WORK/back"
    for name in dense odd small empty sparse; do
        assert_same "$WORK/src/$name" "$WORK/mnt2/src/$name"
        assert_same "$WORK/src/$name" "$WORK/back/$name"
    done
    mv "$MNT/src/dense" "$WORK/mnt2/moved"
    assert_same "$WORK/src/dense" "$WORK/mnt2/moved"
    assert_missing "$MNT/src/dense"
    mount_down "$WORK/mnt2" "$WORK/store2"
    mount_down
}

run_tests "$@"
