#!/usr/bin/env bash
# Files that are written back while they are being made (cowfs/fuse_early.h).
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

MIB=1048576

# What has reached the daemon: df_of would have the kernel send the rest.
stored_at_least() { [ "$("$COWFS" df --json "$MNT" | json .stored_bytes)" -ge "$1" ]; }
helper_of() { pgrep -P "$1" -x cowfs-early; }
need_helper() {
    [ "$(id -u)" = 0 ] || skip "only root's mounts have it"
    helper_of "$(serving_pid)" >/dev/null || skip "this kernel does not allow it"
}

# A file that is open at 9, and written by the helper.
being_made() {
    mount_up "${1:-}"
    need_helper
    helper=$(helper_of "$(serving_pid)")
    exec 9>"$MNT/a"
    head -c $((32 * MIB)) /dev/urandom >&9
    eventually 15 stored_at_least $((28 * MIB))
}

test_begins_before_the_close() {
    mount_up
    need_helper
    random_file "$WORK/a" $((64 * MIB))
    exec 9>"$MNT/a"
    cat "$WORK/a" >&9
    # Else it would be written at the close, or when it is 30 s old.
    eventually 15 stored_at_least $((60 * MIB))
    # Emptied and made again.
    exec 8>"$MNT/a"
    exec 9>&-
    random_file "$WORK/b" $((40 * MIB))
    cat "$WORK/b" >&8
    exec 8>&-
    assert_same "$WORK/b" "$MNT/a"
    mount_down
}

# Nobody's umount is refused because of it, and nothing is lost.
test_umount_right_after() {
    local i
    random_file "$WORK/a" $((24 * MIB))
    for i in {1..12}; do
        mount_up
        cp "$WORK/a" "$MNT/$i"
        umount "$MNT" || fail "umount, round $i"
        wait "${daemons[$MNT]}" || fail "the daemon's exit status: $?"
        unset "daemons[$MNT]"
    done
    mount_up
    for i in {1..12}; do
        assert_same "$WORK/a" "$MNT/$i"
    done
}

# An idle writer keeps it from nothing; and it does not outlive the mount.
test_writer_stays_open() {
    being_made
    # By a mount that goes away while the file is open.
    umount -l "$MNT"
    exec 9>&-
    wait "${daemons[$MNT]}" || fail "the daemon's exit status: $?"
    unset "daemons[$MNT]"
    ! process_alive "$helper" || fail "the helper is still there"
    fsck_clean
}
process_alive() { kill -0 "$1" 2>/dev/null; }

test_daemon_dies() {
    being_made nosupervise
    kill_daemon
    eventually 15 process_gone "$helper"
    exec 9>&- || true
    umount -l "$MNT"
    mount_up
    head -c 1 "$MNT/a" >/dev/null || [ ! -e "$MNT/a" ]
    mount_down
}

# Others than a file's maker do not count: deleted, renamed, many at once.
test_many_at_once() {
    local i
    mount_up
    random_file "$WORK/a" $((12 * MIB))
    for i in {1..20}; do
        cp "$WORK/a" "$MNT/$i" &
    done
    for i in {1..20}; do
        wait -n
    done
    exec 9>"$MNT/gone"
    cat "$WORK/a" >&9
    rm "$MNT/gone"
    cat "$WORK/a" >&9
    mv "$MNT/1" "$MNT/one"
    cp "$WORK/a" "$MNT/1"
    exec 9>&-
    for i in {1..20} one; do
        assert_same "$WORK/a" "$MNT/$i"
    done
    mount_down
}

run_tests "$@"
