#!/usr/bin/env bash
# Flat files that are read past the daemon: mounts with passthrough, and views.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

PASS=$HELPERS/mount_pass
VIEW=$WORK/view

# golden MIB [OPTIONS]: a mount with a flat file.
golden() {
    random_file "$WORK/golden" "$1M"
    mount_up "${2:-passthrough,seal=off}"
    need_passthrough
    cp "$WORK/golden" "$MNT/golden"
    "$COWFS" pack -q "$MNT/golden"
}

# The daemon goes on without where the kernel does not have it (that is tested below).
need_passthrough() {
    if grep -q "goes on without passthrough" "$WORK.daemon.log"; then
        skip "$(sed -n 's/.*goes on without passthrough: //p' "$WORK.daemon.log" | head -n 1)"
    fi
}

with_view() {
    mkdir -p "$VIEW"
    golden "$1" "view=$VIEW,seal=off${2:+,$2}"
}

# 16 clones of one image, each mapped and read whole, take the memory of one.
test_share() {
    golden 128
    "$PASS" share "$WORK/golden" "$MNT" 16
}

run_case_of() {
    golden 8
    "$PASS" "$1" "$WORK/golden" "$MNT"
}
test_busy() {
    run_case_of busy
    assert_contains "$(<"$WORK.daemon.log")" ETXTBSY
    # A loop of them does not fill the log.
    assert_eq "$(grep -c ETXTBSY "$WORK.daemon.log")" 1
}
test_at_once() { run_case_of at_once; }
test_diverge() { run_case_of diverge; }
test_writer_first() { run_case_of writer_first; }
test_outlive_write() { run_case_of outlive_write; }
test_outlive_cut() { run_case_of outlive_cut; }
test_outlive_alone() { run_case_of outlive_alone; }
test_outlive_holes() { run_case_of outlive_holes; }
test_outlive_unlink() { run_case_of outlive_unlink; }
test_clone_mapped() { run_case_of clone_mapped; }
test_threads() { run_case_of threads; }

# What a mapping keeps is given back when it ends.
test_space_after_mapping() {
    golden 16
    local before
    before=$(df_of stored_bytes)
    hold "$PASS" holdmap "$MNT/golden"
    head -c 16M /dev/zero | tr '\0' x | dd of="$MNT/golden" bs=1M conv=notrunc,fsync status=none
    assert_ge "$(df_of stored_bytes)" $((before + (15 << 20))) "both are stored"
    exec 7>&-
    cat <&6 >"$WORK/mapped"
    exec 6<&-
    wait "$held"
    assert_same "$WORK/mapped" "$WORK/golden"
    eventually 90 stored_is "$before"
}

# What is open and mapped goes on without a daemon.
test_daemon_killed() {
    golden 16 nosupervise,passthrough,seal=off
    sync "$MNT/golden"
    exec 9<"$MNT/golden"
    hold "$PASS" holdmap "$MNT/golden"
    kill_daemon
    assert_eq "$(b2sum <&9)" "$(sum_of "$WORK/golden")"
    exec 9<&-
    exec 7>&-
    cat <&6 >"$WORK/mapped"
    exec 6<&-
    wait "$held"
    assert_same "$WORK/mapped" "$WORK/golden"
    umount -l "$MNT"
    mount_up
    assert_same "$WORK/golden" "$MNT/golden"
}

# What `cowfs stat` says of it.
test_stat() {
    golden 8
    head -c 100000 "$WORK/golden" >"$MNT/small"
    cp "$MNT/golden" "$MNT/loose"
    echo changed | dd of="$MNT/loose" conv=notrunc status=none
    assert_eq "$(stat_of passthrough "$MNT/golden")" true
    assert_contains "$("$COWFS" stat "$MNT/golden")" "passthrough                   yes"
    expect 1 stat_of passthrough "$MNT/small"
    [ -n "$(stat_of not_passthrough "$MNT/small")" ] || fail "no reason"
    expect 1 stat_of passthrough "$MNT/loose"
    exec 9>>"$MNT/golden"
    assert_contains "$(stat_of not_passthrough "$MNT/golden")" "open for writing just now, by 1"
    exec 8<"$MNT/golden"
    exec 9>&-
    assert_contains "$(stat_of not_passthrough "$MNT/golden")" "open for reading by 1 handles"
    exec 8<&-
    assert_eq "$(stat_of passthrough "$MNT/golden")" true
}

test_pack() {
    golden 8
    mkdir -p "$MNT/d/e"
    random_file "$WORK/a" 9000000
    # In pieces, in any order: not flat.
    local i
    for i in 8 3 1 0 7 5 2 4 6; do
        dd if="$WORK/a" of="$MNT/d/a" bs=1M skip="$i" seek="$i" count=1 conv=notrunc status=none
    done
    cp "$MNT/d/a" "$MNT/d/e/b"
    echo changed | dd of="$MNT/d/e/b" bs=1 seek=5000000 conv=notrunc status=none
    sum_of "$MNT/d/e/b" >"$WORK/b.sum"
    expect 0 "$COWFS" pack --json "$MNT/d" "$MNT/golden"
    assert_eq "$(json .files <<<"$OUT")" 3
    assert_eq "$(stat_of passthrough "$MNT/d/a")" true
    assert_eq "$(stat_of passthrough "$MNT/d/e/b")" true
    assert_same "$WORK/a" "$MNT/d/a"
    assert_eq "$(sum_of "$MNT/d/e/b")" "$(<"$WORK/b.sum")"
    expect 0 "$COWFS" pack --json "$MNT/d"
    assert_eq "$(json .already_flat_files <<<"$OUT")" 2
    assert_eq "$(jq .moved_bytes <<<"$OUT")" 0
    # One that is served past the daemon cannot be opened for writing, and need not be.
    exec 9<"$MNT/d/a"
    expect 0 "$COWFS" pack "$MNT/d/a"
    assert_contains "$OUT" "1 were flat already"
    exec 9<&-
    # Refused, with words; the others are packed all the same.
    expect 1 "$COWFS" pack "$MNT/none" "$MNT/d/a"
    assert_contains "$ERR" "$MNT/none: No such file"
    assert_contains "$OUT" "1 files"
    expect 1 "$COWFS" pack "$WORK/a"
    assert_contains "$ERR" "not in a cowfs mount"
    expect 2 "$COWFS" pack
    chmod 777 "$MNT"
    chmod 755 "$MNT/d/a"
    expect 1 setpriv --reuid 65534 --regid 65534 --clear-groups "$COWFS" pack "$MNT/d/a"
    assert_contains "$ERR" "Permission denied"
}

# A mount with the writeback cache packs, too, and says why it does not pass through.
test_without() {
    golden 8 writeback,seal=off
    expect 1 stat_of passthrough "$MNT/golden"
    assert_eq "$(stat_of flat "$MNT/golden")" true
    assert_contains "$(stat_of not_passthrough "$MNT/golden")" "writeback cache"
    expect 1 "$PASS" is "$MNT/golden"
    unmount
    mount_up passthrough,seal=off
    assert_eq "$(stat_of passthrough "$MNT/golden")" true
    "$PASS" is "$MNT/golden"
    assert_same "$WORK/golden" "$MNT/golden"
    unmount
    mount_up ro,passthrough
    "$PASS" is "$MNT/golden"
    assert_same "$WORK/golden" "$MNT/golden"
}

# Without the capability everything works, and the log says once why. (Whoever mounts for others
# needs it, too; but not in a namespace of users of his own.)
test_without_capability() {
    golden 8
    unmount
    unshare --user --map-root-user --mount true 2>/dev/null || skip "no user namespace can be had"
    # shellcheck disable=SC2016 # for the inner shell
    expect 0 unshare --user --map-root-user --mount bash -ec '
        "$COWFS" mount -f -o passthrough "$1" "$2" 2>"$3" &
        for ((i = 0; i < 600; i++)); do
            ! mountpoint -q "$2" || break
            sleep 0.1
        done
        cmp "$2/golden" "$4"
        "$COWFS" stat "$2/golden"
        echo more >>"$2/golden"
        umount "$2"
        wait' - "$STORE" "$MNT" "$WORK/log" "$WORK/golden"
    assert_contains "$OUT" "needs the capability CAP_SYS_ADMIN"
    assert_eq "$(grep -c "goes on without passthrough: it needs the capability CAP_SYS_ADMIN" \
        "$WORK/log")" 1
}

test_options() {
    mkdir "$VIEW" "$WORK/x"
    expect 2 "$COWFS" mount -o writeback,passthrough "$STORE" "$MNT"
    assert_contains "$ERR" "passthrough and writeback"
    expect 2 "$COWFS" mount -o "ro,view=$VIEW" "$STORE" "$MNT"
    assert_contains "$ERR" "view and ro"
    expect 2 "$COWFS" mount -o verify,passthrough "$STORE" "$MNT"
    assert_contains "$ERR" "cannot be verified"
    expect 2 "$COWFS" mount -o "verify,view=$VIEW" "$STORE" "$MNT"
    expect 2 "$COWFS" mount -o view= "$STORE" "$MNT"
    expect 2 "$COWFS" mount -o view "$STORE" "$MNT"
    expect 2 "$COWFS" mount -o passthrough=1 "$STORE" "$MNT"
    expect 1 "$COWFS" mount -o "view=$WORK/none" "$STORE" "$MNT"
    assert_contains "$ERR" "$WORK/none: No such file"
    expect 1 "$COWFS" mount -o "view=$MNT" "$STORE" "$MNT"
    assert_contains "$ERR" "lies inside the mount point"
    expect 1 "$COWFS" mount -o "view=$STORE" "$WORK/x" "$MNT"
    expect 1 "$COWFS" mount -o "view=$WORK" "$STORE" "$MNT"
    assert_missing "$STORE"
    # What is said last counts; passthrough goes with nowriteback.
    mount_up writeback,nowriteback,passthrough
    unmount
    "$COWFS" mount -o "view=$VIEW,noexec" "$STORE" "$MNT"
    assert_contains "$(findmnt -n -o OPTIONS "$VIEW")" noexec
    [[ ",$(findmnt -n -o OPTIONS "$VIEW")," == *,ro,* ]] || fail "the view is writable"
    "$COWFS" umount "$MNT"
    ! is_mounted "$VIEW" || fail "the view is still mounted"
    fsck_clean
}

# ---- views -------------------------------------------------------------------

test_view() {
    with_view 8
    "$PASS" view "$WORK/golden" "$MNT" "$VIEW"
}

test_view_shares() {
    with_view 32
    mkdir "$MNT/vms"
    local i
    for i in 1 2 3 4; do "$COWFS" clone "$MNT/golden" "$MNT/vms/$i"; done
    for i in 1 2 3 4; do "$PASS" is "$VIEW/vms/$i"; done
    expect 1 "$PASS" is "$MNT/vms/1"
    # A disk that the first mount has open for writing is read through the daemon there.
    exec 9>>"$MNT/vms/1"
    expect 1 "$PASS" is "$VIEW/vms/1"
    assert_contains "$(stat_of not_passthrough "$VIEW/vms/1")" "open for writing"
    exec 9>&-
    "$PASS" is "$VIEW/vms/1"
    assert_contains "$("$COWFS" stat --json "$MNT/vms/1" | json .not_passthrough)" "writeback cache"
}

# The view's kernel keeps names that nobody asks for any more; the space is not to wait for that.
lets_go() {
    kernel_since 6.18 || skip "a kernel before 6.18 cannot be told to forget a file"
    with_view 8 "${1-}"
    mkdir "$MNT/dir"
    cp "$MNT/golden" "$MNT/dir/1"
    random_file "$WORK/other" 4M
    cp "$WORK/other" "$MNT/dir/2"
    cat "$VIEW/golden" "$VIEW/dir/1" "$VIEW/dir/2" >/dev/null
    exec 9<"$VIEW/dir/2"
    rm "$MNT/golden"
    "$COWFS" rm "$MNT/dir"
    eventually 20 stored_is $((4 << 20))
    assert_eq "$(b2sum <&9)" "$(sum_of "$WORK/other")"
    exec 9<&-
    eventually 20 stored_is 0
    assert_eq "$(ls "$VIEW")" ""
}
test_view_lets_go() { lets_go; }
test_view_lets_go_supervised() { lets_go supervise; }

# Each can be unmounted; the first takes the view with it.
test_view_umount() {
    with_view 8
    # Known to both kernels; what one forgets the other still has.
    ls -lR "$VIEW" "$MNT" >/dev/null
    exec 9<"$MNT/golden"
    rm "$MNT/golden"
    expect 0 "$COWFS" umount "$VIEW"
    ! is_mounted "$VIEW" || fail "the view is still mounted"
    is_mounted "$MNT" || fail "the mount went with its view"
    assert_eq "$(b2sum <&9)" "$(sum_of "$WORK/golden")"
    exec 9<&-
    cp "$WORK/golden" "$MNT/again"
    assert_same "$WORK/golden" "$MNT/again"
    unmount
    fsck_clean
    mount_up "view=$VIEW"
    # In use: then neither is unmounted.
    exec 9<"$VIEW/again"
    expect 1 "$COWFS" umount "$MNT"
    assert_contains "$ERR" "$VIEW: is in use"
    is_mounted "$MNT" && is_mounted "$VIEW"
    exec 9<&-
    exec 9<"$MNT/again"
    expect 1 "$COWFS" umount "$MNT"
    assert_contains "$ERR" "$MNT: is in use"
    is_mounted "$VIEW" || fail "the view has been unmounted"
    exec 9<&-
    unmount
    ! is_mounted "$VIEW" || fail "the view is still mounted"
    # umount(8), which knows nothing of views.
    mount_up "view=$VIEW"
    umount "$MNT"
    wait "${daemons[$MNT]}"
    unset "daemons[$MNT]"
    ! is_mounted "$VIEW" || fail "the view is still mounted"
    mount_up "view=$VIEW"
    kill -TERM "${daemons[$MNT]}"
    wait "${daemons[$MNT]}"
    unset "daemons[$MNT]"
    ! is_mounted "$VIEW" || fail "the view is still mounted"
    fsck_clean
}

# A view that is broken from the outside, with files open and mapped in it.
test_view_killed() {
    local id
    with_view 8
    "$COWFS" clone "$MNT/golden" "$MNT/a"
    hold "$PASS" holdmap "$VIEW/a"
    exec 9<"$VIEW/golden"
    id=$(mountpoint -d "$VIEW" | sed 's/.*://')
    mkdir "$WORK/fusectl"
    mount -t fusectl none "$WORK/fusectl"
    echo 1 >"$WORK/fusectl/$id/abort"
    umount "$WORK/fusectl"
    eventually 20 view_is_gone
    assert_same "$WORK/golden" "$MNT/golden"
    # Its handles have gone from the books.
    echo more >>"$MNT/golden"
    exec 7>&-
    cat <&6 >"$WORK/mapped"
    exec 6<&-
    wait "$held"
    exec 9<&-
    assert_same "$WORK/mapped" "$WORK/golden"
}
view_is_gone() { ! is_mounted "$VIEW"; }

# Remounted for writing by root, a view is read-only still.
test_view_remount() {
    with_view 8
    mount -o remount,rw "$VIEW" 2>/dev/null || skip "the kernel does not do that"
    expect 1 touch "$VIEW/new"
    expect 1 rm "$VIEW/golden"
    expect 1 mkdir "$VIEW/new"
    expect 1 truncate -s 5 "$VIEW/golden"
    expect 1 chmod 600 "$VIEW/golden"
    assert_same "$WORK/golden" "$MNT/golden"
    assert_eq "$(names_in "$MNT")" golden
}

run_tests "$@"
