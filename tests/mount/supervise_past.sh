#!/usr/bin/env bash
# Files that are read past the daemon (passthrough, view), of a mount with a supervisor: the daemon dies,
# and what is open or mapped goes on, is watched over by the next one, and is given back in the end.
#
#   COWFS_TEST_KILLS   how often the daemon is killed under load (default 20)
#   COWFS_TEST_REPORT  a file that gets what the load says
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

export TEST_LIMIT_S=${TEST_LIMIT_S:-170}
PASS=$HELPERS/mount_pass
VIEW=$WORK/view

why_not_here() { why_no_resume; }

# golden MIB [OPTIONS]
golden() {
    random_file "$WORK/golden" "$1M"
    mkdir -p "$VIEW"
    mount_up "supervise,seal=off,${2:-passthrough}"
    if grep -q "goes on without passthrough" "$WORK.daemon.log"; then
        skip "$(sed -n 's/.*goes on without passthrough: //p' "$WORK.daemon.log" | head -n 1)"
    fi
    cp "$WORK/golden" "$MNT/golden"
    "$COWFS" pack -q "$MNT/golden"
}

# The next one has been asked something.
kill_server() {
    local pid
    pid=$(daemon_pid)
    kill -KILL "$pid"
    stat -f "$MNT" >/dev/null
    eventually 20 is_another "$pid"
}
# At a point of cowfs/book.h, the next time that the daemon comes there.
dies_at() {
    local name=$1 pid
    pid=$(daemon_pid)
    shift
    expect 1 getfattr -n "user.cowfs-die-at-$name" "$MNT"
    expect 0 "$@"
    eventually 20 is_another "$pid"
}
refused() {
    expect 1 dd if=/dev/zero of="$1" bs=4096 count=1 conv=notrunc status=none
    assert_contains "$ERR" "Text file busy"
}
overwrite() { head -c "$2" /dev/zero | tr '\0' x | dd of="$1" bs=1M conv=notrunc,fsync status=none; }

# What is held is seen: the mapped bytes at release, and that space comes back.
release_map() {
    exec 7>&-
    cat <&6 >"$WORK/mapped"
    exec 6<&-
    wait "$held"
    assert_same "$WORK/mapped" "$WORK/golden"
}

test_open_and_mapped_through_kills() {
    local i
    golden 8
    "$COWFS" clone "$MNT/golden" "$MNT/a"
    exec 9<"$MNT/golden"
    hold "$PASS" holdmap "$MNT/a"
    for ((i = 0; i < 20; i++)); do
        kill_server
        # The same backing file, or the kernel would refuse with EIO.
        "$PASS" is "$MNT/golden"
        "$PASS" is "$MNT/a"
        refused "$MNT/golden"
        assert_same "$MNT/golden" "$WORK/golden"
    done
    assert_eq "$(b2sum <&9)" "$(sum_of "$WORK/golden")"
    exec 9<&-
    release_map
    echo more >>"$MNT/golden"
    mount_down
}

# One who writes after a restart does not change what was mapped before; a restart later it is still held,
# and in the end it is given back.
test_diverges_after_a_restart() {
    local before
    golden 16
    before=$(df_of stored_bytes)
    hold "$PASS" holdmap "$MNT/golden"
    kill_server
    overwrite "$MNT/golden" 16M
    assert_ge "$(df_of stored_bytes)" $((before + (15 << 20))) "both are stored"
    kill_server
    overwrite "$MNT/golden" 16M
    kill_server
    release_map
    eventually 90 stored_is "$before"
    assert_eq "$(tr -d x <"$MNT/golden" | wc -c)" 0
    mount_down
}

# Handles, too, that were closed after a restart.
test_deleted_through_kills() {
    local before
    golden 16
    "$COWFS" df "$MNT" >/dev/null
    exec 9<"$MNT/golden"
    hold "$PASS" holdmap "$MNT/golden"
    rm "$MNT/golden"
    kill_server
    before=$(df_of stored_bytes)
    assert_ge "$before" $((16 << 20)) "still stored"
    kill_server
    assert_eq "$(b2sum <&9)" "$(sum_of "$WORK/golden")"
    exec 9<&-
    kill_server
    release_map
    eventually 90 stored_is 0
    mount_down
}

# The end of the file is a hole: the segment's file is longer than what is in it.
test_hole_at_the_end() {
    mount_up supervise,seal=off,passthrough
    random_file "$WORK/golden" 4M
    cp "$WORK/golden" "$MNT/golden"
    truncate -s 9000001 "$WORK/golden" "$MNT/golden"
    "$PASS" is "$MNT/golden" || skip "no passthrough here"
    hold "$PASS" holdmap "$MNT/golden"
    kill_server
    "$PASS" is "$MNT/golden"
    release_map
    mount_down
}

# Killed at each step of an open, a close and of a write after it: nothing is counted twice or lost.
test_at_each_step() {
    local point
    export COWFS_DEBUG_FAULTS=1
    golden 4
    # 1 to 4: registered, pinned, in the book, answered; 5 and 8: closing.
    for point in 1 2 3 4 5 8; do
        "$COWFS" clone "$MNT/golden" "$MNT/a"
        dies_at "$point" "$PASS" is "$MNT/a"
        exec 9<"$MNT/a"
        refused "$MNT/a"
        exec 9<&-
        # As soon as the last one is closed: a count too many would be ETXTBSY for good.
        eventually 10 overwrite "$MNT/a" 4M
        rm "$MNT/a"
    done
    # 3 and 4: of a writer's, and of a create.
    for point in 3 4; do
        "$COWFS" clone "$MNT/golden" "$MNT/a"
        dies_at "$point" overwrite "$MNT/a" 4096
        "$COWFS" clone "$MNT/golden" "$MNT/b"
        dies_at "$point" dd if=/dev/null of="$MNT/b" status=none
        [ ! -s "$MNT/b" ] || fail "not emptied"
        cp "$WORK/golden" "$MNT/b"
        eventually 10 "$PASS" is "$MNT/b"
        rm "$MNT/a" "$MNT/b"
    done
    # 6 and 7: what is mapped is being kept for the mapping.
    for point in 6 7; do
        "$COWFS" clone "$MNT/golden" "$MNT/a"
        hold "$PASS" holdmap "$MNT/a"
        dies_at "$point" overwrite "$MNT/a" 4M
        release_map
        rm "$MNT/a"
    done
    rm "$MNT/golden"
    eventually 90 stored_is 0
    mount_down
}

test_view_through_kills() {
    local i before
    golden 8 "view=$VIEW"
    before=$(df_of stored_bytes)
    "$COWFS" clone "$MNT/golden" "$MNT/a"
    exec 9<"$VIEW/golden"
    hold "$PASS" holdmap "$VIEW/a"
    for ((i = 0; i < 20; i++)); do
        kill_server
        "$PASS" is "$VIEW/golden"
        refused "$MNT/golden"
        echo "$i" >"$MNT/small"
        assert_eq "$(cat "$VIEW/small")" "$i"
        ! touch "$VIEW/new" 2>/dev/null || fail "the view is writable"
    done
    assert_eq "$(b2sum <&9)" "$(sum_of "$WORK/golden")"
    exec 9<&-
    overwrite "$MNT/a" 8M
    kill_server
    release_map
    rm "$MNT/small" "$MNT/a"
    # The view's kernel keeps what it knows until somebody asks for the name.
    expect 1 stat "$VIEW/small"
    expect 1 stat "$VIEW/a"
    eventually 90 stored_is "$before"
    # An open writer of the first mount keeps passthrough out, also after a restart.
    exec 9>>"$MNT/golden"
    kill_server
    expect 1 "$PASS" is "$VIEW/golden"
    exec 9>&-
    eventually 10 "$PASS" is "$VIEW/golden"
    mount_down
    ! is_mounted "$VIEW" || fail "the view is still mounted"
}

# The view ends alone; later daemons do without.
test_view_ends() {
    golden 8 "view=$VIEW"
    exec 9<"$MNT/golden"
    rm "$MNT/golden"
    ls "$VIEW" >/dev/null
    umount "$VIEW"
    kill_server
    ! is_mounted "$VIEW" || fail "the view is mounted again"
    assert_eq "$(b2sum <&9)" "$(sum_of "$WORK/golden")"
    exec 9<&-
    eventually 90 stored_is 0
    mount_down
}

test_upgrade() {
    local pid
    golden 8 "view=$VIEW"
    hold "$PASS" holdmap "$VIEW/golden"
    pid=$(daemon_pid)
    expect 0 "$COWFS" upgrade "$MNT"
    assert_contains "$OUT" "has taken over"
    is_another "$pid" || fail "the same process serves"
    overwrite "$MNT/golden" 8M
    release_map
    mount_down
}

under_kills() {
    local pid where=$1
    golden 1 "$2"
    rm "$MNT/golden"
    eventually 20 stored_is 0
    "$HELPERS/mount_past" "$MNT" "$where" 3 "$WORK/stop" >"$WORK/past.out" &
    pid=$!
    "$HELPERS/mount_torture" "$MNT" "${COWFS_TEST_KILLS:-20}" "${COWFS_TEST_BETWEEN_MS:-300}" \
        | tee -a "${COWFS_TEST_REPORT:-/dev/null}"
    : >"$WORK/stop"
    wait "$pid" || fail "those who map have failed: $(cat "$WORK/past.out")"
    tee -a "${COWFS_TEST_REPORT:-/dev/null}" <"$WORK/past.out"
    rm -r "$MNT/torture"
    eventually 120 stored_is 0
    mount_down
    echo "space given back, fsck: no error" >>"${COWFS_TEST_REPORT:-/dev/null}"
}
test_passthrough_under_kills() { under_kills "$MNT" passthrough; }
test_view_under_kills() { under_kills "$VIEW" "view=$VIEW"; }

run_tests "$@"
