#!/usr/bin/env bash
# A full file system below: who writes gets ENOSPC, nothing that was there is lost, deleting works,
# and then writing does again.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

export TEST_LIMIT_S=${TEST_LIMIT_S:-240}
tool=$HELPERS/mount_tool

# A store on a tmpfs of 64 MiB, with a file and a clone of it; or on such a file system on a loop device,
# of some 60 MiB. (XFS is 300 MiB at least: a file takes the rest.)
small_up() {
    mkdir "$WORK/small"
    case ${small_kind:-tmpfs} in
        tmpfs) mount -t tmpfs -o size=64m cowfs-small "$WORK/small" ;;
        ext4 | xfs)
            need_loop
            truncate -s "$([ "$small_kind" = xfs ] && echo 320M || echo 80M)" "$WORK/disk"
            "mkfs.$small_kind" -q "$WORK/disk"
            mount -o loop "$WORK/disk" "$WORK/small"
            fallocate -l $(($(df -B1 --output=avail "$WORK/small" | tail -n 1) - (60 << 20))) \
                "$WORK/small/rest"
            ;;
    esac
    STORE=$WORK/small/store
    mount_up "${1:-}"
    random_file "$WORK/kept" 8000000
    cp "$WORK/kept" "$MNT/kept"
    "$COWFS" clone "$MNT/kept" "$MNT/clone"
    sync "$MNT/kept"
}

check_kept() {
    sync -f "$MNT" 2>/dev/null || true
    echo 1 >/proc/sys/vm/drop_caches
    assert_same "$WORK/kept" "$MNT/kept"
    assert_same "$WORK/kept" "$MNT/clone"
}

# Deleting something must give room for something else, without a new mount.
check_works_again() {
    rm -rf "$MNT"/fill*
    eventually 20 writes_again
    assert_same "$WORK/again" "$MNT/again"
    rm "$MNT/again"
    check_kept
}
writes_again() {
    random_file "$WORK/again" 20000000
    dd if="$WORK/again" of="$MNT/again" bs=1M conv=fsync status=none 2>/dev/null
}

fill() { ! dd if=/dev/urandom of="$MNT/fill" bs=1M count=200 conv=fsync 2>"$WORK/err"; }

small_down() {
    mount_down
    umount "$WORK/small"
}

test_fsync() {
    small_up
    expect 1 dd if=/dev/urandom of="$MNT/fill" bs=1M count=200 conv=fsync status=none
    assert_contains "$ERR" "No space left on device"
    check_kept
    check_works_again
    small_down
}

# On disks, where blocks are given out later than the write that needs them.
on_a_disk() {
    small_kind=$1
    small_up
    expect 1 dd if=/dev/urandom of="$MNT/fill" bs=1M count=200 conv=fsync status=none
    assert_contains "$ERR" "No space left on device"
    check_kept
    check_works_again
    expect 1 dd if=/dev/urandom of="$MNT/fill" bs=1M count=200 oflag=direct status=none
    assert_contains "$ERR" "No space left on device"
    check_kept
    check_works_again
    # Somebody else takes what is left.
    dd if=/dev/zero of="$WORK/small/other" bs=64K status=none 2>/dev/null || true
    expect 1 dd if=/dev/urandom of="$MNT/fill" bs=1M count=200 conv=fsync status=none
    check_kept
    rm "$WORK/small/other"
    check_works_again
    small_down
}
test_full_ext4() { on_a_disk ext4; }
test_full_xfs() { on_a_disk xfs; }

# Without fsync close(2) tells, since it writes what is in the cache.
test_close() {
    small_up
    expect 1 dd if=/dev/urandom of="$MNT/fill" bs=1M count=100 status=none
    assert_contains "$ERR" "No space left on device"
    check_kept
    check_works_again
    small_down
}

test_direct() {
    small_up
    expect 28 "$tool" direct "$MNT/fill" 200000000
    assert_ge "$OUT" 20000000 "bytes written"
    # What was said to be written is there.
    assert_ge "$(stat -c %s "$MNT/fill")" "$OUT" "size"
    check_kept
    check_works_again
    small_down
}

test_nowriteback() {
    small_up nowriteback
    expect 1 dd if=/dev/urandom of="$MNT/fill" bs=1M count=200 status=none
    assert_contains "$ERR" "No space left on device"
    check_kept
    check_works_again
    small_down
}

# A clone costs nothing, also on a full disk perhaps; changing it costs, and fails cleanly.
test_writing_to_clone() {
    small_up
    fill
    expect 1 dd if=/dev/urandom of="$MNT/clone" bs=1M count=7 conv=notrunc,fsync status=none
    assert_contains "$ERR" "No space left on device"
    echo 1 >/proc/sys/vm/drop_caches
    # The other one is untouched.
    assert_same "$WORK/kept" "$MNT/kept"
    rm "$MNT/clone" "$MNT/fill"
    eventually 20 "$COWFS" clone "$MNT/kept" "$MNT/clone"
    check_works_again
    small_down
}

# Reserved space is refused if it is not there, rather than when the guest is running.
test_fallocate() {
    small_up
    expect 1 fallocate -l 200M "$MNT/fill"
    assert_contains "$ERR" "No space left on device"
    check_kept
    check_works_again
    small_down
}

test_mapping() {
    small_up
    truncate -s 100M "$MNT/fill"
    # All of it through a mapping; msync has to tell.
    expect 1 python3 -c '
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 0)
for i in range(0, len(m), 1 << 20):
    m[i:i + (1 << 20)] = os.urandom(1 << 20)
m.flush()' "$MNT/fill"
    assert_contains "$ERR" "rror"
    check_kept
    check_works_again
    small_down
}

# A file with a home of its own that cannot grow stays as it was, flat, and grows when there is room.
test_home() {
    small_up passthrough
    random_file "$WORK/fill" 20000000
    cp "$WORK/fill" "$MNT/fill"
    sync "$MNT/fill"
    expect 1 dd if=/dev/urandom of="$MNT/fill" bs=1M count=100 oflag=append conv=notrunc,fsync \
        status=none
    assert_contains "$ERR" "No space left on device"
    check_kept
    cmp -n 20000000 "$WORK/fill" "$MNT/fill"
    assert_eq "$(stat_of flat "$MNT/fill")" true "flat"
    truncate -s 20000000 "$MNT/fill"
    random_file "$WORK/more" 3000000
    eventually 20 append_more
    cat "$WORK/fill" "$WORK/more" | cmp - "$MNT/fill"
    check_works_again
    small_down
}
append_more() {
    truncate -s 20000000 "$MNT/fill"
    dd if="$WORK/more" of="$MNT/fill" bs=1M oflag=append conv=notrunc,fsync status=none 2>/dev/null
}

# To the last byte, by others: then a write fails that was thought to have room, in a home, too.
test_home_filled_by_others() {
    small_up
    random_file "$WORK/fill" 20000000
    cp "$WORK/fill" "$MNT/fill"
    sync "$MNT/fill"
    dd if=/dev/zero of="$WORK/small/other" bs=4K status=none 2>/dev/null || true
    expect 1 dd if=/dev/urandom of="$MNT/fill" bs=1M count=5 oflag=append conv=notrunc,fsync \
        status=none
    check_kept
    cmp -n 20000000 "$WORK/fill" "$MNT/fill"
    rm "$WORK/small/other"
    random_file "$WORK/more" 3000000
    eventually 20 append_more
    cat "$WORK/fill" "$WORK/more" | cmp - "$MNT/fill"
    check_works_again
    small_down
}

# Packing needs the room for a second time: without it, the file is what it was, in its old place.
test_pack() {
    small_up
    random_file "$WORK/fill" 24000000
    cp "$WORK/fill" "$MNT/fill"
    "$COWFS" clone "$MNT/fill" "$MNT/fill2"
    dd if=/dev/urandom of="$WORK/fill2" bs=4K count=1 status=none
    tail -c +4097 "$WORK/fill" >>"$WORK/fill2"
    dd if="$WORK/fill2" of="$MNT/fill2" bs=4K count=1 conv=notrunc,fsync status=none
    # What is left is less than that.
    head -c 16M /dev/urandom >"$WORK/small/other"
    expect 1 "$COWFS" pack "$MNT/fill2"
    assert_contains "$ERR" "No space left on device"
    check_kept
    assert_same "$WORK/fill" "$MNT/fill"
    assert_same "$WORK/fill2" "$MNT/fill2"
    rm "$WORK/small/other" "$MNT/fill"
    eventually 20 "$COWFS" pack "$MNT/fill2"
    assert_same "$WORK/fill2" "$MNT/fill2"
    assert_eq "$(stat_of flat "$MNT/fill2")" true "flat"
    check_works_again
    small_down
}

# Names take space, too.
test_names() {
    small_up
    fill
    mkdir "$MNT/fill.d" 2>/dev/null || true
    # Until there is no room, or enough has been tried.
    (cd "$WORK" && seq 20000 | sed "s|^|$MNT/fill.d/name-of-a-file-|" |
        xargs -n 1000 sh -c 'touch "$@" && sync "$1"' - 2>"$WORK/err") || true
    check_kept
    check_works_again
    small_down
}

# Something else fills the disk, to the last byte.
test_filled_by_others() {
    small_up
    random_file "$MNT/fill" 10000000
    sync "$MNT/fill"
    dd if=/dev/zero of="$WORK/small/other" bs=64K status=none 2>/dev/null || true
    expect 1 dd if=/dev/urandom of="$MNT/fill2" bs=1M count=5 conv=fsync status=none
    check_kept
    rm "$MNT"/fill*
    rm "$WORK/small/other"
    check_works_again
    small_down
}

# Closed when full, opened when full; and the same after SIGKILL.
test_mount_when_full() {
    small_up
    fill
    mount_down
    mount_up nosupervise
    check_kept
    rm "$MNT/fill"
    eventually 20 writes_again
    rm -f "$MNT/again"
    fill
    crash
    expect 0 "$COWFS" fsck "$STORE"
    mount_up
    check_kept
    check_works_again
    small_down
}

# To the last byte when it is opened. It need not be possible to write, but to delete.
test_mount_on_full_disk() {
    small_up
    mount_down
    dd if=/dev/zero of="$WORK/small/other" bs=4K status=none 2>/dev/null || true
    if ! "$COWFS" mount "$STORE" "$MNT" 2>"$WORK/err"; then
        grep -q "No space" "$WORK/err" || fail "$(cat "$WORK/err")"
        rm "$WORK/small/other"
        mount_up
    else
        check_kept
        rm "$MNT/clone"
        cp "$MNT/kept" "$MNT/clone" || true
        rm "$WORK/small/other"
        "$COWFS" umount "$MNT"
        mount_up
        "$COWFS" clone --replace "$MNT/kept" "$MNT/clone"
    fi
    check_works_again
    small_down
}

# A new store has no room: that is said, and the next try works.
test_no_room_for_store() {
    mkdir "$WORK/small"
    mount -t tmpfs -o size=1m cowfs-small "$WORK/small"
    dd if=/dev/zero of="$WORK/small/other" bs=4K status=none 2>/dev/null || true
    expect 1 "$COWFS" mount "$WORK/small/store" "$MNT"
    assert_contains "$ERR" "No space"
    rm "$WORK/small/other"
    mount -o remount,size=64m "$WORK/small"
    STORE=$WORK/small/store
    mount_up
    echo text >"$MNT/a"
    small_down
}

# Several writers at once, again and again, with clones: what they could write is right.
test_many_writers() {
    local i writers=()
    small_up commit=0.5
    for i in 1 2 3; do
        (
            set +e
            for ((n = 0; n < 12; n++)); do
                random_file "$WORK/data$i" $((RANDOM * 300))
                if dd if="$WORK/data$i" of="$MNT/fill$i.$n" bs=64K conv=fsync status=none 2>/dev/null; then
                    cmp -s "$WORK/data$i" "$MNT/fill$i.$n" || touch "$WORK/wrong"
                    "$COWFS" clone "$MNT/fill$i.$n" "$MNT/fillc$i.$n" 2>/dev/null
                else
                    rm -f "$MNT/fill$i."* "$MNT/fillc$i."*
                fi
            done
            exit 0
        ) &
        writers+=($!)
    done
    wait "${writers[@]}"
    assert_missing "$WORK/wrong"
    check_kept
    check_works_again
    small_down
}

run_tests "$@"
