#!/usr/bin/env bash
# Stores that are damaged, foreign, or of another time: a clear error, an exit status, no crash, and
# never wrong bytes.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

# A good store with some of everything, in $STORE; $WORK/files has what is in it.
make_store() {
    local i
    mount_up seal=off
    mkdir "$WORK/files" "$MNT/d"
    for i in 1 2 3; do
        random_file "$WORK/files/$i" $((i * 3000000))
        cp "$WORK/files/$i" "$MNT/$i"
    done
    "$COWFS" clone "$MNT/2" "$MNT/d/clone"
    cp "$WORK/files/2" "$WORK/files/clone"
    "$COWFS" seal -q "$MNT/3"
    mount_down
}

# Where most of file 3 lies, the largest one.
largest_segment() {
    find "$STORE/segments" -type f -printf '%s %p\n' | sort -rn | sed -n '1s/^[0-9]* //p'
}

# must_refuse TEXT...: neither mount nor fsck take it, both say why.
must_refuse() {
    local text
    expect 1 "$COWFS" mount "$STORE" "$MNT"
    ! is_mounted "$MNT" || fail "mounted"
    assert_contains "$ERR" "$STORE"
    for text in "$@"; do
        assert_contains "$ERR" "$text"
    done
    expect "4|8" "$COWFS" fsck "$STORE"
    for text in "$@"; do
        assert_contains "$OUT$ERR" "$text"
    done
    expect "4|8" "$COWFS" fsck --json "$STORE"
    [ -z "$OUT" ] || json '.clean == false' <<<"$OUT" >/dev/null
}

change_superblock() { "$HELPERS/mount_store" superblock "$STORE/superblock" "$@"; }

test_superblock_flipped() {
    local at byte
    make_store
    cp "$STORE/superblock" "$WORK/superblock"
    for at in 0 9 20 50 60 100 4000; do
        cp "$WORK/superblock" "$STORE/superblock"
        # Another one for sure: some of these bytes are random.
        byte=$(od -An -tu1 -j "$at" -N 1 "$WORK/superblock")
        printf '%b' "\\0$(printf %o $((byte ^ 255)))" |
            dd of="$STORE/superblock" bs=1 seek="$at" conv=notrunc status=none
        must_refuse superblock
    done
    cp "$WORK/superblock" "$STORE/superblock"
    fsck_clean
}

test_superblock_truncated() {
    local size
    make_store
    for size in 4095 100 7 0; do
        truncate -s "$size" "$STORE/superblock"
        must_refuse superblock
    done
}

test_superblock_missing() {
    local segments
    make_store
    segments=$(names_in "$STORE/segments")
    rm "$STORE/superblock"
    # And no new store is made over the old one.
    must_refuse
    assert_eq "$(names_in "$STORE/segments")" "$segments"
}

test_superblock_foreign() {
    make_store
    head -c 4096 /dev/urandom >"$STORE/superblock"
    must_refuse superblock
    rm "$STORE/superblock"
    mkdir "$STORE/superblock"
    must_refuse superblock
}

test_version_and_features() {
    make_store
    cp "$STORE/superblock" "$WORK/superblock"
    change_superblock 16 4 2
    must_refuse version
    change_superblock 16 4 0
    must_refuse version
    cp "$WORK/superblock" "$STORE/superblock"
    change_superblock 40 8 0x8000000000000001
    must_refuse feature
    cp "$WORK/superblock" "$STORE/superblock"
    change_superblock 20 4 5000
    must_refuse
    change_superblock 20 4 0
    must_refuse
    # One that forbids changing leaves reading.
    cp "$WORK/superblock" "$STORE/superblock"
    change_superblock 32 8 4
    expect 1 "$COWFS" mount "$STORE" "$MNT"
    assert_contains "$ERR" feature
    mount_up ro
    assert_same "$WORK/files/1" "$MNT/1"
    unmount
    # One that may be ignored.
    cp "$WORK/superblock" "$STORE/superblock"
    change_superblock 24 8 2
    mount_up
    assert_same "$WORK/files/1" "$MNT/1"
    mount_down
}

# reads_wrongly_or_not FILE...: each is either read right or gives EIO. Prints how many gave EIO.
count_unreadable() {
    local name path unreadable=0
    for name in 1 2 3 clone; do
        path=$MNT/$name
        [ "$name" != clone ] || path=$MNT/d/clone
        if cat "$path" >"$WORK/got" 2>"$WORK/err"; then
            cmp -s "$WORK/files/$name" "$WORK/got" || { echo wrong; return; }
        else
            grep -q "Input/output error" "$WORK/err" || { echo "no EIO: $(cat "$WORK/err")"; return; }
            unreadable=$((unreadable + 1))
        fi
    done
    echo "$unreadable"
}

test_segment_missing() {
    make_store
    rm "$STORE"/segments/*
    expect 4 "$COWFS" fsck "$STORE"
    assert_contains "$OUT$ERR" segment
    # What names there are can still be seen, and the rest used; or it is refused.
    if "$COWFS" mount "$STORE" "$MNT" 2>"$WORK/err"; then
        assert_eq "$(names_in "$MNT")" "1 2 3 d"
        assert_eq "$(count_unreadable)" 4
        random_file "$WORK/new" 1000000
        cp "$WORK/new" "$MNT/new"
        sync "$MNT/new"
        assert_same "$WORK/new" "$MNT/new"
        "$COWFS" umount "$MNT"
    else
        grep -q segment "$WORK/err" || fail "$(cat "$WORK/err")"
    fi
}

test_segment_truncated() {
    local segment size count
    make_store
    segment=$(largest_segment)
    size=$(stat -c %s "$segment")
    truncate -s $((size / 3)) "$segment"
    expect 4 "$COWFS" fsck "$STORE"
    assert_contains "$OUT$ERR" segment
    if "$COWFS" mount "$STORE" "$MNT" 2>"$WORK/err"; then
        count=$(count_unreadable)
        [ "$count" = 1 ] || [ "$count" = 2 ] || [ "$count" = 3 ] || fail "unreadable: $count"
        random_file "$WORK/new" 1000000
        cp "$WORK/new" "$MNT/new"
        sync "$MNT/new"
        assert_same "$WORK/new" "$MNT/new"
        # What cannot be read can be deleted.
        rm -r "$MNT"/[123d]
        assert_same "$WORK/new" "$MNT/new"
        "$COWFS" umount "$MNT"
    else
        grep -q segment "$WORK/err" || fail "$(cat "$WORK/err")"
    fi
}

# Bytes of sealed chunks are known by their hash.
test_segment_flipped() {
    make_store
    "$HELPERS/mount_store" flip "$(largest_segment)" 1 3000
    expect 0 "$COWFS" fsck "$STORE"
    expect 4 "$COWFS" fsck --check-data "$STORE"
    assert_contains "$OUT$ERR" "hash"
    expect 4 "$COWFS" fsck --check-data --json "$STORE"
    json '.clean == false and .errors > 0' <<<"$OUT" >/dev/null
    mount_up
    assert_eq "$(names_in "$MNT")" "1 2 3 d"
    unmount
}

# refuses_or_works: what mount takes must do without a crash; its end and fsck's are in order.
refuses_or_works() {
    local status=0
    "$COWFS" mount -o seal=off "$STORE" "$MNT" >"$WORK/out" 2>"$WORK/err" || status=$?
    case $status in
        0)
            # Reads what it can; errors are errors.
            find "$MNT" -type f -exec cat {} + >/dev/null 2>"$WORK/err" || true
            ls -lR "$MNT" >/dev/null 2>&1 || true
            touch "$MNT/new" 2>/dev/null || true
            is_mounted "$MNT" || fail "not mounted any more"
            stat -f "$MNT" >/dev/null || fail "the daemon has died: $(dmesg | tail -n 3)"
            # The last commit may fail, which is said.
            "$COWFS" umount "$MNT" 2>"$WORK/err" || umount -l "$MNT" || true
            ;;
        1) [ -s "$WORK/err" ] || fail "refused without a word" ;;
        *) fail "cowfs mount ended with $status: $(cat "$WORK/err")" ;;
    esac
    ! grep -q "killed by signal\|ended early\|ERROR:\|assert" "$WORK/err" || fail "$(cat "$WORK/err")"
    expect "0|4|8" "$COWFS" fsck "$STORE"
}

test_database_damaged() {
    local file seed kind found
    make_store
    cp -a --sparse=always "$STORE" "$WORK/good"
    for kind in CURRENT MANIFEST .sst .log OPTIONS IDENTITY; do
        found=$(find "$WORK/good/metadb" -name "*$kind*" -printf '%f\n' | sort)
        for file in $found; do
            for seed in flip cut gone empty zero; do
                rm -rf "$STORE"
                cp -a --sparse=always "$WORK/good" "$STORE"
                case $seed in
                    flip) "$HELPERS/mount_store" flip "$STORE/metadb/$file" 1 20 ;;
                    cut) truncate -s -1 "$STORE/metadb/$file" ;;
                    gone) rm "$STORE/metadb/$file" ;;
                    empty) : >"$STORE/metadb/$file" ;;
                    zero) truncate -s "$(stat -c %s "$STORE/metadb/$file")" "$STORE/metadb/$file.new" &&
                        mv "$STORE/metadb/$file.new" "$STORE/metadb/$file" ;;
                esac
                echo "$file: $seed"
                refuses_or_works
            done
        done
    done
    # What matters is refused, with words.
    rm -rf "$STORE"
    cp -a --sparse=always "$WORK/good" "$STORE"
    find "$STORE/metadb" -name 'MANIFEST*' -delete
    must_refuse
    rm -rf "$STORE/metadb"
    must_refuse
    assert_eq "$(names_in "$STORE/segments")" "$(names_in "$WORK/good/segments")"
}

# A few bits anywhere.
test_random_damage() {
    local seed file
    make_store
    cp -a --sparse=always "$STORE" "$WORK/good"
    local files
    mapfile -t files < <(cd "$WORK/good" && find . -type f -size +0 ! -path '*/segments/*' | sort)
    for seed in {1..12}; do
        rm -rf "$STORE"
        cp -a --sparse=always "$WORK/good" "$STORE"
        file=${files[seed * 7919 % ${#files[@]}]}
        echo "$file, seed $seed"
        "$HELPERS/mount_store" flip "$STORE/$file" "$seed" $((seed % 4 + 1))
        refuses_or_works
    done
}

test_not_a_store() {
    mkdir "$WORK/dir"
    expect "8|16" "$COWFS" fsck "$WORK/none"
    assert_contains "$ERR" "$WORK/none"
    expect 8 "$COWFS" fsck "$WORK/dir"
    assert_contains "$ERR" "$WORK/dir"
    expect 8 "$COWFS" fsck /etc/hostname
    expect 8 "$COWFS" fsck /proc
    assert_eq "$(names_in "$WORK/dir")" ""
    # A place that cannot be written.
    expect 1 "$COWFS" mount /proc/store "$MNT"
    expect 1 "$COWFS" mount /dev/null "$MNT"
}

# The making of a store was cut short.
test_interrupted_creation() {
    make_store
    local name
    for name in superblock.tmp-123 lock; do
        rm -rf "$WORK/new"
        mkdir "$WORK/new"
        echo 1 >"$WORK/new/$name"
        echo "left: $name"
        mount_up '' "$WORK/new" "$WORK/mnt2"
        echo text >"$WORK/mnt2/a"
        mount_down "$WORK/mnt2" "$WORK/new"
    done
    # A superblock, and nothing else yet.
    rm -rf "$WORK/new"
    mkdir "$WORK/new"
    cp "$STORE/superblock" "$WORK/new"
    mount_up '' "$WORK/new" "$WORK/mnt2"
    echo text >"$WORK/mnt2/a"
    mount_down "$WORK/mnt2" "$WORK/new"
}

run_tests "$@"
