#!/usr/bin/env bash
# cowvm is killed in the middle: no VM is lost, nothing half-made stays.
#
# Where it is killed is told by system calls, at their entry (strace --inject): each message to a
# QEMU, each step in the file system.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

# The address of its card, as QEMU has it.
card_of() { "$COWVM" exec-qmp "$1" qom-get '{"path": "nic0", "property": "mac"}' | json .; }
# Nothing is being made, and nothing that was is left.
tidy() {
    eventually 30 settled
    nothing_hidden || fail "left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
}
runs() { [ "$(status_of "$1" 2>/dev/null)" = running ]; }
lives_on() {
    eventually 30 runs golden
    counts_on golden
    assert_eq "$(ask golden get)" "prepared prepared"
}
# The copy is there, whole, or it is not.
all_or_nothing() {
    tidy
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
# The guard is through. In its first moment it still has the command's name.
settled() { no_process cowvm && no_process cowvm-guard; }

# Whole under its name, or not there at all.
kept_or_not() {
    tidy
    [ -e "$MNT/golden@kept" ] || return 0
    assert_eq "$(state_of golden@kept)" "$1" "what is kept"
    "$COWVM" rm golden@kept
}

test_snapshot() {
    local call n
    need_strace
    up_with_guest
    for call in sendmsg ioctl renameat,renameat2 unlinkat; do
        for n in {1..16}; do
            killed_at "$call" "$n" "$COWVM" snapshot golden kept || break
            printf 'snapshot %s %s\n' "$call" "$n"
            kept_or_not saved
            eventually 30 runs golden
            [ ! -e "$MNT/golden/snapshot.snap" ] || fail "a snapshot.snap beside a VM that runs"
        done
        kept_or_not saved
    done
    lives_on
    # And of one that is off.
    "$COWVM" stop --now golden
    for call in ioctl renameat,renameat2; do
        for n in {1..8}; do
            killed_at "$call" "$n" "$COWVM" snapshot golden kept || break
            kept_or_not off
        done
        kept_or_not off
    done
    vms_are golden
}

# Before the point of no return it runs on as if nothing had been; after it, it is the kept one.
test_reset() {
    local call step before=0 after=0 rename=renameat,renameat2
    need_strace
    up_with_guest
    "$COWVM" snapshot golden kept
    for step in ioctl:1 pidfd_send_signal:1 "$rename:"{1..6} sendmsg:1 sendmsg:4 sendmsg:7; do
        call=${step%:*}
        ask golden set later
        # Was it through before? Then that was one reset more.
        killed_at "$call" "${step#*:}" "$COWVM" reset golden kept || continue
        tidy
        printf 'reset %s: %s\n' "$step" "$(state_of golden)"
        if [ "$(state_of golden)" = saved ]; then
            "$COWVM" resume golden
            assert_eq "$(ask golden get)" "prepared prepared"
            after=$((after + 1))
        elif [ "$(ask golden get)" = "later later" ]; then
            before=$((before + 1))
        else
            assert_eq "$(ask golden get)" "prepared prepared"
            after=$((after + 1))
        fi
        [ ! -e "$MNT/golden/snapshot.snap" ] || fail "a snapshot.snap beside a VM that runs"
        qemus_are 1 || fail "$(qemus) QEMUs"
    done
    lives_on
    # Kills did fall on both sides.
    assert_ge "$before" 1 "kills before it"
    assert_ge "$after" 1 "kills after it"
    # Command and guard: the next command takes it forward.
    stop_at pidfd_send_signal:1 "$COWVM" reset golden kept &
    eventually 30 stopped_fork
    kill -KILL "$(pids_of cowvm-guard)"
    kill -KILL "$(pids_of cowvm)"
    wait $! || true
    "$COWVM" resume golden
    lives_on
    nothing_hidden || fail "left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
    vms_are "golden golden@kept"
    down_with_guests
}

test_start_and_stop() {
    local call n
    need_strace
    up_with_guest
    "$COWVM" stop --now golden
    for call in ftruncate sendmsg renameat,renameat2 fsync; do
        for n in {1..6}; do
            killed_at "$call" "$n" "$COWVM" start golden || break
            eventually 30 settled
            [ "$(state_of golden)" = off ] || eventually 30 runs golden
            "$COWVM" stop --now golden
        done
        eventually 30 runs golden
        "$COWVM" stop --now golden
    done
    for call in sendmsg pidfd_open; do
        for n in {1..4}; do
            [ "$(state_of golden)" = running ] || "$COWVM" start golden
            killed_at "$call" "$n" "$COWVM" stop --now golden || break
            [ "$(state_of golden)" = off ] || "$COWVM" exec-qmp golden query-status >/dev/null
        done
        assert_eq "$(state_of golden)" off
    done
    down_with_guests
}

test_create_and_rm() {
    local call n
    need_strace
    mount_up
    mkdir "$COWVM_RUN"
    random_file "$WORK/image" 3000000
    for call in mkdirat ioctl openat renameat,renameat2 fsync; do
        # Of the many openat, each tenth.
        for n in 1 2 3 5 {10..400..10}; do
            killed_at "$call" "$n" "$COWVM" create --memory 16M new --disk "$WORK/image" || break
            tidy
            if [ -e "$MNT/new" ]; then
                cmp -n 3000000 "$WORK/image" "$MNT/new/disk"
                "$COWVM" rm new
            fi
            # Before there is a journal, a directory with the lock may stay.
            assert_eq "$(find "$COWVM_RUN" -type f ! -name lock ! -name journal.new)" "" "$call $n"
            find "$COWVM_RUN" -mindepth 1 -delete
        done
        "$COWVM" rm new
    done
    for call in pidfd_send_signal renameat,renameat2 ioctl unlinkat; do
        for n in {1..12}; do
            [ -e "$MNT/new" ] || "$COWVM" create --memory 16M new --disk "$WORK/image"
            [ "$(state_of new)" = running ] || "$COWVM" start new
            killed_at "$call" "$n" "$COWVM" rm --force new || break
            tidy
            [ -e "$MNT/new" ] || qemus_are 0 || fail "it runs, and is gone"
        done
        vms_are ""
        assert_eq "$(names_in "$COWVM_RUN")" "" "runtime directories"
    done
}

# The guard dies, too: the next command that is at work on the VM lets it go on.
test_without_guard() {
    local pid
    need_strace
    up_with_guest
    # Stopped (as by Ctrl-Z) where it shares the memory: golden stands still.
    stop_at copy_file_range:1 "$COWVM" fork golden copy &
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
# The daemon of cowfs is killed while a fork is under way: in the frame, while the state is saved, while
# memory is shared, and while the copy takes it up. Without a supervisor running guests end with it;
# what was committed is there. (With one: supervise.sh.)
test_daemon_dies() {
    local pid step
    need_strace
    up_with_guest nosupervise
    "$COWVM" snapshot golden kept
    for step in ftruncate:1 sendmsg:10 copy_file_range:1 sendmsg:14; do
        sync -f "$MNT"
        stop_at "$step" "$COWVM" fork golden copy >"$WORK/fork.out" 2>&1 &
        eventually 30 stopped_fork
        kill_daemon
        kill -CONT "$(pids_of cowvm)"
        wait $! && fail "$step: the fork was said to be done"
        for pid in $(pids_of qemu-system-x86); do
            kill -KILL "$pid" || true
        done
        eventually 30 no_process qemu-system-x86
        eventually 30 no_process cowvm-guard
        umount -l "$MNT"
        mount_up nosupervise
        "$COWVM" reset golden kept
        nothing_hidden || fail "$step: left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
        "$COWVM" resume golden
        assert_eq "$(ask golden get)" "prepared prepared" "$step"
        vms_are "golden golden@kept" || fail "$step: $(names_in "$MNT")"
    done
    counts_on golden
    down_with_guests
}
run_tests "$@"
