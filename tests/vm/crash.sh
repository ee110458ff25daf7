#!/usr/bin/env bash
# cowvm is killed in the middle: no VM is lost, nothing half-made stays.
#
# Where it is killed is told by system calls, at their entry (strace --inject): each message to a
# QEMU, each step in the file system.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

# killed_at CALL N COMMAND...: 0 if it was killed there, 1 if it was through before.
killed_at() {
    local call=$1 n=$2 status=0
    shift 2
    # Only this process: its guard and the QEMUs are not traced.
    strace -o "$WORK/trace" -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" "$@" \
        >"$WORK/killed.out" 2>&1 || status=$?
    [ "$status" != 0 ] || return 1
    grep -q 'killed by SIGKILL' "$WORK/trace" || fail "$*: $(cat "$WORK/killed.out")"
}

# The address of its card, as QEMU has it.
card_of() { "$COWVM" exec-qmp "$1" qom-get '{"path": "nic0", "property": "mac"}' | json .; }
runs() { [ "$(status_of "$1" 2>/dev/null)" = running ]; }
lives_on() {
    eventually 30 runs golden
    counts_on golden
    assert_eq "$(ask golden get)" "prepared prepared"
}
# The copy is there, whole, or it is not.
all_or_nothing() {
    eventually 30 settled
    nothing_hidden || fail "left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
    if [ -e "$MNT/copy" ]; then
        assert_eq "$(status_of copy)" running "the copy"
        assert_eq "$(ask copy get)" "prepared prepared"
        # With a card, and none that its origin has, too.
        assert_eq "$(card_of copy)" "$(jq -r .mac "$MNT/copy/vm.json")" "the copy's card"
        "$COWVM" rm --force copy
    fi
    eventually 30 qemus_are 1
    [ ! -e "$MNT/golden/snapshot.snap" ] || fail "a snapshot.snap beside a VM that runs"
    [ ! -e "$MNT/golden/snapshot.snap.new" ] || fail "a half-made snapshot.snap"
}

test_fork() {
    local call n
    need_strace
    up_with_guest
    for call in sync_file_range sendmsg ioctl ftruncate copy_file_range renameat,renameat2 unlinkat; do
        # Far enough for every one of the command's own steps.
        for n in {1..20}; do
            killed_at "$call" "$n" "$COWVM" fork golden copy || break
            printf '%s %s\n' "$call" "$n"
            all_or_nothing
            eventually 30 runs golden
        done
        all_or_nothing
        lives_on
    done
    down_with_guests
}

test_hibernate_and_resume() {
    local call n
    need_strace
    up_with_guest
    for call in sendmsg renameat,renameat2 fsync; do
        for n in 1 2 3 4 5 6 7 8 9; do
            killed_at "$call" "$n" "$COWVM" hibernate golden || break
            printf 'hibernate %s %s\n' "$call" "$n"
            # Either it runs on, or it sleeps.
            eventually 30 settled
            [ "$(state_of golden)" = running ] || "$COWVM" resume golden
            eventually 30 runs golden
            [ ! -e "$MNT/golden/snapshot.snap" ] || fail "a snapshot.snap beside a VM that runs"
        done
        [ "$(state_of golden)" = running ] || "$COWVM" resume golden
        lives_on
    done
    for call in sendmsg unlinkat; do
        for n in 1 2 3 4 5 6; do
            [ "$(state_of golden)" != running ] || "$COWVM" hibernate golden
            killed_at "$call" "$n" "$COWVM" resume golden || break
            printf 'resume %s %s\n' "$call" "$n"
            eventually 30 settled
            [ "$(state_of golden)" = running ] || "$COWVM" resume golden
            eventually 30 runs golden
        done
        lives_on
    done
    down_with_guests
}
# The guard is through.
settled() { no_process cowvm-guard; }

# The guard dies, too: the next command that is at work on the VM lets it go on.
test_without_guard() {
    local pid
    need_strace
    up_with_guest
    # Stopped (as by Ctrl-Z) where it shares the memory: golden stands still.
    strace -o /dev/null -e trace=copy_file_range -e inject=copy_file_range:signal=STOP:when=1 \
        "$COWVM" fork golden copy &
    eventually 30 stopped_fork
    pid=$(pids_of cowvm)
    kill -KILL "$(pids_of cowvm-guard)"
    kill -KILL "$pid"
    wait $! || true
    "$COWVM" exec-qmp golden query-status | json '.running' >/dev/null || fail "it stands still"
    lives_on
    all_or_nothing
    down_with_guests
}
# The daemon of cowfs is killed while a fork is under way. Without a supervisor running guests end with it;
# what was committed is there. (With one: supervise.sh.)
test_daemon_dies() {
    local pid
    need_strace
    up_with_guest
    "$COWVM" snapshot golden kept
    sync -f "$MNT"
    strace -o /dev/null -e trace=copy_file_range -e inject=copy_file_range:signal=STOP:when=1 \
        "$COWVM" fork golden copy >"$WORK/fork.out" 2>&1 &
    eventually 30 stopped_fork
    kill_daemon
    kill -CONT "$(pids_of cowvm)"
    wait $! && fail "the fork was said to be done"
    for pid in $(pids_of qemu-system-x86); do
        kill -KILL "$pid" || true
    done
    eventually 30 no_process qemu-system-x86
    eventually 30 no_process cowvm-guard
    umount -l "$MNT"
    mount_up
    "$COWVM" reset golden kept
    nothing_hidden || fail "left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
    "$COWVM" resume golden
    lives_on
    vms_are "golden golden@kept"
    down_with_guests
}
run_tests "$@"
