#!/usr/bin/env bash
# cowfs import and cowfs export: images of other formats, and what is broken.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

# 64 MiB with data at both ends, zeros that are written, and a hole.
make_raw() {
    random_file "$1" 6000000
    head -c 3000000 /dev/zero >>"$1"
    truncate -s 60M "$1"
    head -c $((4 << 20)) /dev/urandom >>"$1"
}

# Nothing in the directory but these names, and no space is taken by what is gone.
assert_only() { assert_eq "$(names_in "$1")" "$2" "names in $1"; }

test_formats() {
    local format raw options
    need_tool qemu-img
    mount_up
    raw=$WORK/raw.img
    make_raw "$raw"
    for format in raw qcow2 vmdk vdi vhdx vpc qed; do
        # A vpc has sizes of its own unless told otherwise.
        options=()
        [ "$format" != vpc ] || options=(-o force_size=on)
        qemu-img convert -f raw -O "$format" "${options[@]}" "$raw" "$WORK/image"
        expect 0 "$COWFS" import "$WORK/image" "$MNT/$format"
        assert_eq "$OUT$ERR" ""
        assert_same "$raw" "$MNT/$format"
    done
    # Holes, and zeros, take no space: 6 MB and 4 MiB are left of 64 MiB.
    assert_le "$(stat_of private_bytes "$MNT/qcow2")" $((11 << 20)) "stored of the import"
}

test_formats_named() {
    need_tool qemu-img
    mount_up
    make_raw "$WORK/raw.img"
    qemu-img convert -O qcow2 "$WORK/raw.img" "$WORK/image.qcow2"
    expect 0 "$COWFS" import --json --format qcow2 "$WORK/image.qcow2" "$MNT/a"
    assert_eq "$(json '"\(.format) \(.size_bytes)"' <<<"$OUT")" "qcow2 $((64 << 20))"
    assert_same "$WORK/raw.img" "$MNT/a"
    # As raw, it is the container that is taken in: whole, and filled up to 512.
    expect 0 "$COWFS" import -f raw "$WORK/image.qcow2" "$MNT/b"
    cmp -n "$(stat -c %s "$WORK/image.qcow2")" "$WORK/image.qcow2" "$MNT/b"
    expect 1 "$COWFS" import -f qcow2 "$WORK/raw.img" "$MNT/c"
    assert_contains "$ERR" "raw.img: Image is not in qcow2 format"
    assert_only "$MNT" "a b"
}

test_colon_in_name() {
    need_tool qemu-img
    mount_up
    make_raw "$WORK/nbd:img"
    (cd "$WORK" && "$COWFS" import nbd:img mnt/json:x)
    assert_same "$WORK/nbd:img" "$MNT/json:x"
    (cd "$MNT" && "$COWFS" export json:x fat:y.qcow2)
    qemu-img compare "$WORK/nbd:img" "$MNT/fat:y.qcow2"
}

test_export() {
    local name
    need_tool qemu-img
    mount_up
    make_raw "$MNT/disk"
    for name in a.qcow2 a.vmdk a.vdi a.vhdx a.raw a.img; do
        expect 0 "$COWFS" export "$MNT/disk" "$WORK/$name"
        assert_eq "$OUT$ERR" ""
        qemu-img compare "$MNT/disk" "$WORK/$name"
    done
    assert_eq "$(qemu-img info --output=json "$WORK/a.vdi" | json .format)" vdi
    # A vmdk tells its own name.
    grep -aq 'SPARSE "a.vmdk"' "$WORK/a.vmdk" || fail "the vmdk has another name in it"
    assert_le "$(du -k "$WORK/a.raw" | cut -f 1)" 11000 "KiB of the raw image"
    expect 0 "$COWFS" export --compress --format qcow2 --json "$MNT/disk" "$WORK/b"
    assert_eq "$(json .format <<<"$OUT")" qcow2
    qemu-img compare "$MNT/disk" "$WORK/b"
    expect 2 "$COWFS" export "$MNT/disk" "$WORK/c.foo"
    assert_contains "$ERR" "--format"
    expect 1 "$COWFS" export "$WORK/a.raw" "$WORK/c.qcow2"
    assert_contains "$ERR" "not in a cowfs mount"
    # Nothing but the disk is left in the mount: the moment's clone is gone.
    assert_only "$MNT" disk
    eventually 20 stored_is "$(stat_of private_bytes "$MNT/disk")"
}

# A program that writes all the while (and holds a lock, as QEMU does) is in nobody's way.
test_export_of_one_moment() {
    need_tool qemu-img
    mount_up
    random_file "$MNT/disk" $((16 << 20))
    qemu-io -f raw -c 'sleep 4000' "$MNT/disk" >/dev/null &
    local holder=$!
    sleep 0.5
    cp "$MNT/disk" "$WORK/before"
    expect 0 "$COWFS" export "$MNT/disk" "$WORK/a.qcow2"
    qemu-img compare "$WORK/before" "$WORK/a.qcow2"
    wait "$holder"
}

test_broken() {
    local format
    need_tool qemu-img
    mount_up
    make_raw "$WORK/raw.img"
    for format in qcow2 vmdk vhdx; do
        qemu-img convert -O "$format" "$WORK/raw.img" "$WORK/cut"
        truncate -s -3M "$WORK/cut"
        expect 1 "$COWFS" import "$WORK/cut" "$MNT/disk"
        assert_contains "$ERR" "cowfs import: $WORK/cut: "
        assert_only "$MNT" ""
    done
    # Its tables torn.
    qemu-img convert -O "qcow2" "$WORK/raw.img" "$WORK/torn"
    dd if=/dev/urandom of="$WORK/torn" bs=64K seek=1 count=4 conv=notrunc status=none
    expect 1 "$COWFS" import "$WORK/torn" "$MNT/disk"
    assert_contains "$ERR" "cowfs import: $WORK/torn: "
    gzip -c "$WORK/raw.img" >"$WORK/raw.img.gz"
    expect 1 "$COWFS" import "$WORK/raw.img.gz" "$MNT/disk"
    assert_contains "$ERR" "compressed with gzip"
    : >"$WORK/empty"
    expect 1 "$COWFS" import "$WORK/empty" "$MNT/disk"
    assert_contains "$ERR" "is empty"
    expect 1 "$COWFS" import "$WORK/missing" "$MNT/disk"
    assert_contains "$ERR" "missing: No such file"
    expect 1 "$COWFS" import "$WORK" "$MNT/disk"
    assert_contains "$ERR" "neither a regular file"
    expect 1 "$COWFS" import "$WORK/raw.img" "$WORK/disk"
    assert_contains "$ERR" "not in a cowfs mount"
    assert_only "$MNT" ""
    eventually 20 stored_is 0
}

# An image that names other files gets them only if that is asked for.
test_references() {
    need_tool qemu-img
    mount_up
    make_raw "$WORK/raw.img"
    qemu-img create -q -f qcow2 -b "$WORK/raw.img" -F raw "$WORK/overlay"
    qemu-io -f qcow2 -c 'write -P 7 1M 64k' "$WORK/overlay" >/dev/null
    expect 1 "$COWFS" import "$WORK/overlay" "$MNT/disk"
    assert_contains "$ERR" "overlay: refers to another file, $WORK/raw.img"
    qemu-img convert -O vmdk -o subformat=monolithicFlat "$WORK/raw.img" "$WORK/flat.vmdk"
    expect 1 "$COWFS" import "$WORK/flat.vmdk" "$MNT/disk"
    assert_contains "$ERR" "refers to another file"
    qemu-img create -q -f qcow2 -o "data_file=$WORK/data" "$WORK/external" 8M
    expect 1 "$COWFS" import "$WORK/external" "$MNT/disk"
    assert_contains "$ERR" "refers to another file"
    assert_only "$MNT" ""
    expect 0 "$COWFS" import --follow "$WORK/overlay" "$MNT/disk"
    qemu-img compare "$WORK/overlay" "$MNT/disk"
    expect 0 "$COWFS" import --follow "$WORK/flat.vmdk" "$MNT/flat"
    assert_same "$WORK/raw.img" "$MNT/flat"
}

# What is brought in lies flat, holes and all, without a cowfs pack: by import, by cp, in a mount of the
# default kind, and in a view it is served past the daemon.
test_flat() {
    local name
    need_tool qemu-img
    mkdir "$WORK/view"
    mount_up "view=$WORK/view"
    for name in raw qcow2 cp; do
        make_raw "$WORK/$name.img"
    done
    qemu-img convert -O qcow2 "$WORK/qcow2.img" "$WORK/image.qcow2"
    "$COWFS" import "$WORK/raw.img" "$MNT/raw"
    "$COWFS" import "$WORK/image.qcow2" "$MNT/qcow2"
    cp "$WORK/cp.img" "$MNT/cp"
    for name in raw qcow2 cp; do
        assert_eq "$(stat_of flat "$MNT/$name")" true "$name is flat"
        assert_le "$(stat_of private_bytes "$MNT/$name")" $((13 << 20)) "stored of $name"
        grep -q "goes on without passthrough" "$WORK.daemon.log" ||
            assert_eq "$(stat_of passthrough "$WORK/view/$name")" true "$name in the view"
        assert_same "$WORK/$name.img" "$WORK/view/$name"
    done
}

test_replace() {
    need_tool qemu-img
    mount_up
    make_raw "$WORK/raw.img"
    echo old >"$MNT/disk"
    echo old >"$WORK/out.qcow2"
    expect 1 "$COWFS" import "$WORK/raw.img" "$MNT/disk"
    assert_contains "$ERR" "exists already"
    expect 1 "$COWFS" export "$MNT/disk" "$WORK/out.qcow2"
    assert_contains "$ERR" "exists already"
    assert_eq "$(cat "$MNT/disk" "$WORK/out.qcow2")" "old
old"
    # One that fails replaces nothing.
    expect 1 "$COWFS" import --replace -f qcow2 "$WORK/raw.img" "$MNT/disk"
    assert_eq "$(cat "$MNT/disk")" old
    expect 0 "$COWFS" import --replace "$WORK/raw.img" "$MNT/disk"
    assert_same "$WORK/raw.img" "$MNT/disk"
    expect 0 "$COWFS" export --replace "$MNT/disk" "$WORK/out.qcow2"
    qemu-img compare "$WORK/raw.img" "$WORK/out.qcow2"
    mkdir "$MNT/dir"
    expect 1 "$COWFS" import --replace "$WORK/raw.img" "$MNT/dir"
    assert_only "$MNT" "dir disk"
}

has_stored() { [ "$(df_of stored_bytes)" -gt "$1" ]; }
no_converter() { ! pgrep -f "qemu-img convert .*raw" >/dev/null; }

# However it ends: no file, no process, no space.
test_interrupted() {
    local signal pid status
    need_tool qemu-img
    mount_up
    # Of a fifo's speed: a raw image behind a slow device is what takes long. Here: many bytes.
    random_file "$WORK/big" $((1 << 30))
    for signal in INT TERM KILL; do
        # A shell's background job ignores SIGINT; this one must not.
        python3 -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$COWFS" import "$WORK/big" "$MNT/disk" 2>"$WORK/err" &
        pid=$!
        eventually 30 has_stored $((16 << 20))
        kill -"$signal" "$pid"
        status=0
        wait "$pid" || status=$?
        assert_eq "$status" $((128 + $(kill -l "$signal"))) "exit status"
        eventually 20 no_converter
        assert_only "$MNT" ""
        eventually 30 stored_is 0
    done
}

test_full() {
    need_tool qemu-img
    random_file "$WORK/big" $((40 << 20))
    mkdir "$WORK/small"
    mount -t tmpfs -o size=32m none "$WORK/small"
    mount_up "" "$WORK/small/store" "$MNT"
    expect 1 "$COWFS" import "$WORK/big" "$MNT/disk"
    assert_contains "$ERR" "No space left"
    assert_only "$MNT" ""
    mount_down "$MNT" "$WORK/small/store"
    mount -t tmpfs -o size=20m none "$WORK/small"
    mount_up
    cp "$WORK/big" "$MNT/disk"
    expect 1 "$COWFS" export "$MNT/disk" "$WORK/small/x.qcow2"
    assert_contains "$ERR" "No space left"
    assert_only "$WORK/small" ""
}

test_progress() {
    need_tool qemu-img
    need_tool script
    mount_up
    random_file "$WORK/big" $((256 << 20))
    script -qec "'$COWFS' import '$WORK/big' '$MNT/disk'" /dev/null >"$WORK/out"
    grep -q '% .* of 256.0 MiB' "$WORK/out" || fail "no progress: $(cat -v "$WORK/out")"
    script -qec "'$COWFS' import -q '$WORK/big' '$MNT/disk2'" /dev/null >"$WORK/out"
    assert_eq "$(cat "$WORK/out")" ""
}

run_tests "$@"
