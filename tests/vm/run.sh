#!/usr/bin/env bash
# cowvm run --rm: VMs that leave nothing behind, however they end.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

said() { grep -q "$1" "$WORK/out"; }
gone() { nothing_hidden && qemus_are 0; }

# run_in_background NAME: its serial line says =count as soon as it runs; its input stays open.
run_in_background() {
    : >"$WORK/out"
    mkfifo "$WORK/in"
    # A shell's background job ignores SIGINT; what is typed at a terminal is not.
    python3 -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$COWVM" run --rm "$1" <"$WORK/in" >"$WORK/out" 2>"$WORK/err" &
    runner=$!
    exec 8>"$WORK/in"
    rm "$WORK/in"
    # What is typed before it runs is lost, as with any machine.
    eventually 90 answered
}
answered() {
    echo count >&8
    sleep 1
    said '=count'
}

test_powers_off() {
    local stored
    # Of a guest that takes its time, equal content would be found meanwhile.
    mount_up seal=off
    have_guest golden
    stored=$(df_of stored_bytes)
    # It goes on where golden was hibernated, and powers off.
    run_in_background golden
    echo get >&8
    eventually 60 said "=get prepared prepared"
    echo off >&8
    wait "$runner" || fail "exit status $?: $(cat "$WORK/err")"
    exec 8>&-
    gone || fail "left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
    # Golden is what it was, and can be run again; nothing is on the store.
    assert_eq "$(state_of golden)" saved
    assert_same "$COWFS_INPUTS/saved-guest/memory.snap" "$MNT/golden/memory.snap"
    assert_same "$COWFS_INPUTS/saved-guest/disk" "$MNT/golden/disk"
    eventually 20 stored_is "$stored"
    assert_eq "$(find "$COWVM_RUN" -name qmp)" ""
}

test_signals() {
    local signal status
    mount_up
    have_guest golden
    for signal in INT TERM HUP KILL; do
        run_in_background golden
        kill -"$signal" "$runner"
        status=0
        wait "$runner" || status=$?
        exec 8>&-
        assert_eq "$status" $((128 + $(kill -l "$signal"))) "exit status after SIG$signal"
        eventually 20 gone
        assert_eq "$(find "$COWVM_RUN" -name qmp)" "" "sockets"
    done
    vms_are golden
}

# At a terminal Ctrl-C reaches QEMU as well as the command. And the store is on a tmpfs here: nothing that
# the daemon writes goes to a disk.
test_ctrl_c() {
    local written
    mount_up
    have_guest golden
    written=$(write_bytes)
    on_terminal 130 'count\n' '=count' 'set typed\n' '=set OK' '\x03' '' -- \
        "$COWVM" run --rm golden
    eventually 20 gone
    sync -f "$MNT"
    assert_eq "$(write_bytes)" "$written" "bytes written to disks"
    vms_are golden
}
write_bytes() { sed -n 's/^write_bytes: //p' "/proc/$(serving_pid)/io"; }

# QEMU is killed: the command ends, and all is gone.
test_qemu_dies() {
    local cwd pid='' status=0
    mount_up
    have_guest golden
    run_in_background golden
    for cwd in /proc/[0-9]*/cwd; do
        [[ $(readlink "$cwd" 2>/dev/null) != "$MNT"/.cowvm-* ]] || pid=${cwd//[!0-9]/}
    done
    kill -KILL "$pid"
    wait "$runner" || status=$?
    exec 8>&-
    assert_eq "$status" 137
    gone || fail "left behind"
}

# The command and its guard are both killed: whoever comes next tidies up.
test_guard_dies() {
    local guard
    mount_up
    have_guest golden
    run_in_background golden
    guard=$(pids_of cowvm-guard)
    [ -n "$guard" ] || fail "there is no guard"
    kill -KILL "$guard"
    kill -KILL "$runner"
    wait "$runner" 2>/dev/null || true
    exec 8>&-
    # QEMU dies by the kernel's doing.
    eventually 20 qemus_are 0
    ! nothing_hidden || fail "somebody was faster"
    "$COWVM" snapshot golden other
    nothing_hidden || fail "left behind"
    assert_eq "$(find "$COWVM_RUN" -name qmp)" "" "sockets"
}

test_refused() {
    up_with_guest
    expect 1 "$COWVM" run --rm golden
    assert_contains "$ERR" "runs"
    expect 2 "$COWVM" run golden
    expect 1 "$COWVM" run --rm missing
    "$COWVM" hibernate golden
    expect 1 "$COWVM" run --rm golden -- -device no-such-device
    vms_are golden
    gone || fail "left behind"
}

run_tests "$@"
