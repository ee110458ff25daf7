#!/usr/bin/env bash
# Disk images as virtual machines use them: file systems in them, by loop devices, and qemu-img.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

TEST_LIMIT_S=240

# An ext4 image with files of this machine.
make_ext4() {
    local image=$1
    truncate -s 256M "$image"
    mke2fs -q -t ext4 -E lazy_itable_init=0 "$image"
    mkdir -p "$WORK/loop"
    mount -o loop "$image" "$WORK/loop"
    cp -a /usr/bin/[a-b]* "$WORK/loop" 2>/dev/null || true
    random_file "$WORK/loop/random" 20000000
    (cd "$WORK/loop" && find . -type f -exec b2sum {} + | sort) >"$WORK/sums"
    umount "$WORK/loop"
}

check_ext4() {
    e2fsck -fn "$1" >"$WORK/e2fsck" 2>&1 || fail "e2fsck of $1: $(cat "$WORK/e2fsck")"
    mount -o loop,ro "$1" "$WORK/loop"
    (cd "$WORK/loop" && find . -type f -exec b2sum {} + | sort) >"$WORK/got"
    umount "$WORK/loop"
    diff "$WORK/sums" "$WORK/got"
}

test_ext4() {
    local sum
    need_loop
    mount_up
    mkdir "$MNT/golden"
    make_ext4 "$MNT/golden/disk"
    sum=$(sum_of "$MNT/golden/disk")
    "$COWFS" clone "$MNT/golden" "$MNT/vm1"
    cp -r "$MNT/golden" "$MNT/vm2"
    assert_eq "$(sum_of "$MNT/vm1/disk")" "$sum"
    check_ext4 "$MNT/vm1/disk"
    # The clone lives its own life.
    mount -o loop "$MNT/vm1/disk" "$WORK/loop"
    rm "$WORK"/loop/a*
    random_file "$WORK/loop/new" 30000000
    umount "$WORK/loop"
    e2fsck -fn "$MNT/vm1/disk"
    [ "$(sum_of "$MNT/vm1/disk")" != "$sum" ] || fail "the clone has not changed"
    assert_eq "$(sum_of "$MNT/golden/disk")" "$sum"
    assert_eq "$(sum_of "$MNT/vm2/disk")" "$sum"
    check_ext4 "$MNT/vm2/disk"
    unmount
    mount_up
    assert_eq "$(sum_of "$MNT/golden/disk")" "$sum"
    e2fsck -fn "$MNT/vm1/disk"
    check_ext4 "$MNT/golden/disk"
    # Back to what it was.
    "$COWFS" clone --replace "$MNT/golden" "$MNT/vm1"
    assert_eq "$(sum_of "$MNT/vm1/disk")" "$sum"
}

# A running system is cloned: what e2fsck's journal replay makes of it is whole.
test_ext4_cloned_while_mounted() {
    local i
    need_loop
    mount_up
    make_ext4 "$MNT/disk"
    mount -o loop "$MNT/disk" "$WORK/loop"
    (
        set +e
        i=0
        while [ ! -e "$WORK/stop" ]; do
            i=$((i + 1))
            cp /usr/bin/env "$WORK/loop/busy.$i"
            [ $((i % 5)) != 0 ] || { sync -f "$WORK/loop" && rm "$WORK/loop/busy."*; }
        done
        exit 0
    ) &
    local writer=$!
    for i in 1 2 3 4 5; do
        sleep 0.3
        # As a freeze of the guest does: the page cache of a loop mount is no part of the image.
        fsfreeze -f "$WORK/loop"
        "$COWFS" clone "$MNT/disk" "$MNT/clone.$i"
        fsfreeze -u "$WORK/loop"
    done
    touch "$WORK/stop"
    wait "$writer"
    umount "$WORK/loop"
    for i in 1 2 3 4 5; do
        # Replays the journal first, as a mount would.
        expect "0|1" e2fsck -fy "$MNT/clone.$i"
        expect 0 e2fsck -fn "$MNT/clone.$i"
    done
}

# With O_DIRECT, as a hypervisor with cache=none.
test_loop_direct_io() {
    need_loop
    mount_up
    truncate -s 256M "$MNT/disk"
    local device
    device=$(losetup --find --show --direct-io=on "$MNT/disk") || skip "no loop device with direct I/O"
    mke2fs -q -t ext4 "$device"
    mkdir "$WORK/loop"
    mount "$device" "$WORK/loop"
    random_file "$WORK/loop/random" 30000000
    random_file "$WORK/random" 1000000
    cp "$WORK/random" "$WORK/loop/other"
    umount "$WORK/loop"
    "$COWFS" clone "$MNT/disk" "$MNT/clone"
    # Deleting inside gives space back: discard becomes punching.
    mount "$device" "$WORK/loop"
    sync -f "$MNT"
    local before
    before=$(df_of stored_bytes)
    rm "$MNT/clone"
    rm "$WORK/loop/random"
    sync -f "$WORK/loop"
    fstrim "$WORK/loop"
    umount "$WORK/loop"
    losetup -d "$device"
    eventually 20 stored_below $((before - 25000000))
    e2fsck -fn "$MNT/disk"
    mount -o loop,ro "$MNT/disk" "$WORK/loop"
    assert_same "$WORK/random" "$WORK/loop/other"
    umount "$WORK/loop"
}
stored_below() { [ "$(df_of stored_bytes)" -lt "$1" ]; }

test_xfs() {
    need_loop
    need_tool mkfs.xfs
    mount_up
    truncate -s 400M "$MNT/disk"
    mkfs.xfs -q "$MNT/disk"
    mkdir "$WORK/loop"
    mount -o loop "$MNT/disk" "$WORK/loop" || skip "the kernel has no XFS"
    random_file "$WORK/loop/random" 10000000
    cp "$WORK/loop/random" "$WORK/random"
    umount "$WORK/loop"
    cp "$MNT/disk" "$MNT/clone"
    xfs_repair -n "$MNT/clone"
    mount -o loop,ro,nouuid "$MNT/clone" "$WORK/loop"
    assert_same "$WORK/random" "$WORK/loop/random"
    umount "$WORK/loop"
}

test_qemu_img() {
    need_tool qemu-img
    mount_up
    truncate -s 256M "$MNT/raw"
    local at
    for at in 0 33 100 255; do
        head -c 1000000 /dev/urandom | dd of="$MNT/raw" bs=1M seek="$at" conv=notrunc status=none
    done
    assert_eq "$(qemu-img info --output=json "$MNT/raw" | json '."virtual-size"')" $((256 << 20))
    qemu-img convert -O qcow2 "$MNT/raw" "$MNT/q.qcow2"
    qemu-img compare "$MNT/raw" "$MNT/q.qcow2"
    qemu-img check -q "$MNT/q.qcow2"
    qemu-img convert -O raw "$MNT/q.qcow2" "$MNT/back"
    assert_same "$MNT/raw" "$MNT/back"
    # What was sparse is sparse again.
    assert_le "$(stat_of mapped_bytes "$MNT/back")" $((5 << 20)) "mapped bytes"
    # Without the cache, with native asynchronous I/O, and by copy_file_range.
    qemu-img convert -t none -T none -O raw "$MNT/q.qcow2" "$MNT/direct"
    assert_same "$MNT/raw" "$MNT/direct"
    qemu-img convert -C -O raw "$MNT/raw" "$MNT/offloaded"
    assert_same "$MNT/raw" "$MNT/offloaded"
    cp "$MNT/q.qcow2" "$MNT/clone.qcow2"
    qemu-img compare "$MNT/raw" "$MNT/clone.qcow2"
    # qemu-img map asks SEEK_DATA: zeros, and depth, per range.
    qemu-img map --output=json "$MNT/raw" | json 'map(select(.data)) | length == 4' >/dev/null
}

test_qcow2_with_backing_file() {
    need_tool qemu-img
    need_tool qemu-io
    mount_up
    random_file "$MNT/base.raw" $((32 << 20))
    cp "$MNT/base.raw" "$WORK/base"
    qemu-img create -q -f qcow2 -F raw -b "$MNT/base.raw" "$MNT/overlay.qcow2"
    qemu-img compare -F qcow2 -f raw "$MNT/base.raw" "$MNT/overlay.qcow2"
    qemu-io -c 'write -P 0xaa 1M 64k' -c 'write -P 0x55 20M 1M' -c flush "$MNT/overlay.qcow2"
    "$COWFS" clone "$MNT/overlay.qcow2" "$MNT/clone.qcow2"
    qemu-io -c 'write -P 0xbb 1M 64k' "$MNT/clone.qcow2"
    qemu-io -r -c 'read -P 0xaa 1M 64k' -c 'read -P 0x55 20M 1M' "$MNT/overlay.qcow2" >"$WORK/said"
    qemu-io -r -c 'read -P 0xbb 1M 64k' -c 'read -P 0x55 20M 1M' "$MNT/clone.qcow2" >>"$WORK/said"
    ! grep -i 'verification failed' "$WORK/said" || fail "qemu-io read something else"
    qemu-img check -q "$MNT/overlay.qcow2"
    qemu-img check -q "$MNT/clone.qcow2"
    assert_same "$WORK/base" "$MNT/base.raw"
    qemu-img commit -q "$MNT/clone.qcow2"
    printf '\273%.0s' {1..65536} >"$WORK/bb"
    dd if="$MNT/base.raw" bs=64K skip=16 count=1 status=none | cmp - "$WORK/bb"
}

# Who uses locks and asynchronous O_DIRECT I/O with many requests under way, and verifies.
test_fio() {
    need_tool fio
    mount_up
    local job
    for job in "--ioengine=libaio --direct=1 --iodepth=16 --rw=randrw --bsrange=4k-64k" \
        "--ioengine=psync --rw=randrw --bs=4k" \
        "--ioengine=mmap --rw=randrw --bs=4k"; do
        # shellcheck disable=SC2086 # options
        fio --name=job --directory="$MNT" --size=32m --io_size=48m --numjobs=2 --verify=crc32c \
            --verify_fatal=1 --output="$WORK/fio" $job || fail "fio $job: $(cat "$WORK/fio")"
        rm "$MNT"/job*
    done
}

run_tests "$@"
