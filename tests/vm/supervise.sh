#!/usr/bin/env bash
# A mount with a supervisor (-o supervise), and guests on it: the daemon is killed, they notice nothing.
#
#   COWFS_TEST_KILLS   how often it is killed below a guest (default 4)
#   COWFS_TEST_REPORT  a file that gets what came of it
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

kill_server() {
    local pid
    pid=$(daemon_pid)
    kill -KILL "$pid"
    eventually 30 is_another "$pid"
}
verified_above() {
    local rounds bad
    read -r rounds bad <<<"$(ask golden verified)"
    assert_eq "$bad" 0 "what the guest found wrong (after $rounds rounds)"
    [ "$rounds" -gt "$1" ]
}

# It writes to its disk and verifies, and its memory is a shared mapping of memory.snap.
test_guest_notices_nothing() {
    local kills=${COWFS_TEST_KILLS:-4} rounds bad
    up_with_guest supervise
    ask golden verify
    eventually 60 verified_above 0
    for ((i = 0; i < kills; i++)); do
        # Anywhere in what it does.
        sleep "0.$((RANDOM % 10))"
        kill_server
        rounds=$(ask golden verified)
        eventually 60 verified_above "${rounds% *}"
    done
    read -r rounds bad <<<"$(ask golden verified)"
    echo "$kills kills below a guest: $rounds rounds verified, $bad wrong" |
        tee -a "${COWFS_TEST_REPORT:-/dev/null}"
    assert_eq "$(ask golden get)" "prepared prepared"
    counts_on golden
    "$COWVM" stop --now golden
    disk_clean golden
    down_with_guests
    mount_down
}

# As test_daemon_dies in crash.sh; but the fork goes on, and nobody is lost.
test_daemon_dies_in_a_fork() {
    local step
    need_strace
    up_with_guest supervise
    for step in ftruncate:1 sendmsg:10 copy_file_range:1 sendmsg:14 renameat2:1; do
        stop_at "$step" "$COWVM" fork golden copy >"$WORK/fork.out" 2>&1 &
        eventually 30 stopped_fork
        kill_server
        kill -CONT "$(pids_of cowvm)"
        wait $! || fail "$step: fork: $(cat "$WORK/fork.out")"
        assert_eq "$(ask copy get)" "prepared prepared" "$step"
        vms_are "copy golden"
        [ "$step" = renameat2:1 ] || "$COWVM" rm --force copy
    done
    counts_on golden
    counts_on copy
    down_with_guests
    mount_down
}

run_tests "$@"
