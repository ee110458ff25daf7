#!/usr/bin/env bash
# cowfs rm, and cowfs clone --count: what the kernel knows of names that ioctls delete and make.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

make_vm() {
    mkdir -p "$1/sub"
    echo disk >"$1/disk"
    echo memory >"$1/sub/memory.snap"
    ln "$1/disk" "$1/sub/disk.link"
    ln -s nowhere "$1/sub/symlink"
}

# Times and links of a directory, as somebody who looks anew is told.
attributes_of() { stat -c '%Y.%y %Z.%z %h' "$1"; }

test_tree() {
    local before
    mount_up
    make_vm "$MNT/vm"
    make_vm "$MNT/other"
    ls -lR "$MNT" >"$WORK/listed"
    exec 5<"$MNT/vm/disk"
    before=$(attributes_of "$MNT")
    expect 0 "$COWFS" rm --json "$MNT/vm"
    assert_eq "$(json '[.files, .directories] | join(" ")' <<<"$OUT")" "4 2"
    # Gone for everybody at once, and so are the attributes that the kernel had.
    assert_missing "$MNT/vm"
    assert_missing "$MNT/vm/disk"
    assert_eq "$(ls "$MNT")" "other"
    [ "$(attributes_of "$MNT")" != "$before" ] || fail "the directory has changed"
    assert_eq "$(stat -c %h "$MNT")" 3
    # What is open lives on without a name.
    assert_eq "$(stat -L -c %h "/proc/$BASHPID/fd/5")" 0 "links"
    assert_eq "$(cat <&5)" "disk"
    exec 5<&-
    # The names can be used again, for something else.
    echo again >"$MNT/vm"
    assert_eq "$(cat "$MNT/vm")" "again"
    expect 0 "$COWFS" rm "$MNT/vm" "$MNT/other/"
    assert_eq "$(ls -A "$MNT")" ""
    mount_down
}

test_through_a_view() {
    mkdir -p "$WORK/view"
    mount_up "view=$WORK/view"
    make_vm "$MNT/vm"
    eventually 30 is_mounted "$WORK/view"
    assert_eq "$(cat "$WORK/view/vm/disk")" "disk"
    assert_eq "$(attributes_of "$WORK/view")" "$(attributes_of "$MNT")"
    expect 0 "$COWFS" rm "$MNT/vm/sub"
    assert_missing "$WORK/view/vm/sub"
    assert_eq "$(attributes_of "$WORK/view/vm")" "$(attributes_of "$MNT/vm")"
    assert_eq "$(stat -c %h "$WORK/view/vm/disk")" 1
    assert_eq "$(stat -c %h "$MNT/vm/disk")" 1
    expect 1 "$COWFS" rm "$WORK/view/vm"
    assert_eq "$(cat "$MNT/vm/disk")" "disk"
    mount_down
}

# Somebody stands in it; something is mounted in it.
test_in_use() {
    mount_up
    make_vm "$MNT/vm"
    (
        cd "$MNT/vm/sub"
        expect 0 "$COWFS" rm "$MNT/vm"
        if echo new >new; then fail "a name in a directory that is gone"; fi
        assert_eq "$(ls -A)" ""
    ) 2>"$WORK/said" || fail "$(cat "$WORK/said")"
    make_vm "$MNT/vm"
    mkdir "$MNT/vm/mounted"
    mount -t tmpfs none "$MNT/vm/mounted"
    expect 1 "$COWFS" rm "$MNT/vm"
    assert_contains "$ERR" "mounted"
    assert_eq "$(cat "$MNT/vm/disk")" "disk"
    umount "$MNT/vm/mounted"
    expect 0 "$COWFS" rm "$MNT/vm"
    mount_down
}

test_rights() {
    mount_up
    install -m 755 "$COWFS" "$WORK/cowfs"
    as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$WORK/cowfs" "$@"; }
    chmod 755 "$MNT"
    mkdir -m 1777 "$MNT/sticky"
    mkdir -m 777 "$MNT/open"
    make_vm "$MNT/sticky/root"
    make_vm "$MNT/open/root"
    mkdir -m 755 "$MNT/open/his"
    mkdir "$MNT/open/his/empty"
    chown 65534 "$MNT/open/his"
    expect 1 as_nobody rm "$MNT/sticky/root"
    assert_contains "$ERR" "permission"
    expect 1 as_nobody rm "$MNT/open/root"
    assert_eq "$(cat "$MNT/open/root/disk" "$MNT/sticky/root/sub/memory.snap")" "disk
memory"
    # The others go all the same.
    expect 1 as_nobody rm "$MNT/open/root" "$MNT/open/his"
    assert_missing "$MNT/open/his"
    mount_down
}

test_misuse() {
    mount_up
    : >"$WORK/outside"
    expect 1 "$COWFS" rm "$MNT/none"
    expect 0 "$COWFS" rm -f "$MNT/none"
    expect 1 "$COWFS" rm "$MNT/."
    expect 1 "$COWFS" rm "$MNT/.."
    expect 1 "$COWFS" rm /
    expect 1 "$COWFS" rm ''
    expect 1 "$COWFS" rm "$WORK/outside"
    expect 2 "$COWFS" rm
    [ -e "$WORK/outside" ] || fail "deleted a file of another file system"
    mount_down
}

test_count() {
    local i
    mount_up
    make_vm "$MNT/golden"
    mkdir "$MNT/fleet"
    ls "$MNT/fleet"
    expect 0 "$COWFS" clone --json --count 3000 "$MNT/golden" "$MNT/fleet/vm"
    assert_eq "$(json '[.files, .directories] | join(" ")' <<<"$OUT")" "9000 6000"
    assert_eq "$(find "$MNT/fleet" -mindepth 1 -maxdepth 1 | wc -l)" 3000
    assert_eq "$(stat -c %h "$MNT/fleet")" 3002
    for i in 1 2 1500 3000; do
        diff -r --no-dereference "$MNT/golden" "$MNT/fleet/vm-$i"
        assert_eq "$(stat -c %h "$MNT/fleet/vm-$i/disk")" 2
    done
    # Each is its own.
    echo other >"$MNT/fleet/vm-2/disk"
    assert_eq "$(cat "$MNT/fleet/vm-1/disk" "$MNT/fleet/vm-3/disk" "$MNT/golden/disk")" "disk
disk
disk"
    # What is in the way is told, and stays.
    echo mine >"$MNT/fleet/in-3"
    expect 1 "$COWFS" clone --count 5 "$MNT/golden/disk" "$MNT/fleet/in"
    assert_contains "$ERR" "in-3"
    assert_eq "$(cat "$MNT/fleet/in-2" "$MNT/fleet/in-3")" "disk
mine"
    expect 2 "$COWFS" clone --count 0 "$MNT/golden" "$MNT/x"
    expect 2 "$COWFS" clone --count 2 --replace "$MNT/golden" "$MNT/x"
    # All away again by many names at once.
    expect 0 "$COWFS" rm "$MNT/fleet"/*
    assert_eq "$(ls -A "$MNT/fleet")" ""
    mount_down
}

# The kernel takes the directory's lock to drop a name, and those who hold it wait for the daemon:
# neither may wait for the other for ever.
test_busy_directory() {
    local i pids=()
    mount_up
    make_vm "$MNT/golden"
    for i in 1 2 3 4 5 6; do
        (while [ ! -e "$WORK/stop" ]; do
            : >"$MNT/busy-$i"
            mv "$MNT/busy-$i" "$MNT/busier-$i"
            rm "$MNT/busier-$i"
            stat "$MNT/vm-$i" "$MNT/vm-$i/disk" "$MNT/none" >"$WORK/stat-$i" 2>&1 || true
        done) &
        pids+=($!)
    done
    for i in {1..20}; do
        expect 0 "$COWFS" clone --count 6 "$MNT/golden" "$MNT/vm"
        expect 0 "$COWFS" rm "$MNT"/vm-{1..6}
        assert_missing "$MNT/vm-3"
    done
    : >"$WORK/stop"
    wait "${pids[@]}"
    assert_eq "$(ls "$MNT")" "golden"
    mount_down
}

run_tests "$@"
