#!/usr/bin/env bash
# cowvm standby: a QEMU that waits for the next fork, and goes with its VM.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

waits() { [ "$(vm_json "$1" standby_bytes)" != null ]; }
waits_not() { ! waits "$1"; }
pid_of_copy() { vm_json copy pid; }
hidden_are() { [ "$(find "$MNT" -mindepth 1 -maxdepth 1 -name '.*' | wc -l)" = "$1" ]; }
settled() { no_process cowvm-guard; }

up_with_standby() {
    up_with_guest
    expect 0 "$COWVM" standby golden
    assert_eq "$OUT$ERR" ""
    waits golden || fail "it has no standby"
    assert_eq "$(qemus)" 2 "QEMUs"
}

# A copy from a standby is a copy like any other, and the next standby comes by itself.
test_fork_takes_it() {
    local waiting golden copy
    up_with_standby
    waiting=$(pids_of qemu-system-x86)
    ask golden set before
    expect 0 "$COWVM" fork golden copy
    grep -qw "$(pid_of_copy)" <<<"$waiting" || fail "the copy's QEMU was started for it"
    assert_eq "$(ask copy get)" "before before"
    counts_on copy
    counts_on golden
    ask copy set other
    assert_eq "$(ask golden get)" "before before"
    [ "$(uuid_of golden)" != "$(uuid_of copy)" ] || fail "one uuid"
    golden=$("$COWVM" exec-qmp golden query-vm-generation-id | json .guid)
    copy=$("$COWVM" exec-qmp copy query-vm-generation-id | json .guid)
    [ "$golden" != "$copy" ] || fail "one generation id"
    [ "$(ask golden random)" != "$(ask copy random)" ] || fail "the same random numbers"
    eventually 60 waits golden
    waits_not copy || fail "the copy has a standby, too"
    # Other wishes for the same one.
    expect 0 "$COWVM" standby --write-back golden
    assert_eq "$(pids_of cowvm-standby | wc -l)" 1 "keepers"
    waiting=$(pids_of qemu-system-x86)
    ask golden set before
    expect 0 "$COWVM" fork --keep-card --count 2 golden more
    grep -qw "$(vm_json more-1 pid)" <<<"$waiting" || fail "the second standby was not taken"
    assert_eq "$(ask more-2 get)" "before before"
    "$COWVM" rm --force more-1 more-2 copy
    eventually 60 waits golden
    # Others' commands leave it alone.
    expect 0 "$COWVM" snapshot golden kept
    expect 0 "$COWVM" fork --keep-card golden copy
    eventually 60 waits golden
    down_with_guests
    qemus_are 0 || fail "$(qemus) QEMUs are left"
}

# However the VM ends, it ends.
test_ends() {
    up_with_standby
    expect 0 "$COWVM" standby --off golden
    qemus_are 1 || fail "$(qemus) QEMUs after --off"
    nothing_hidden || fail "left behind after --off"
    waits_not golden || fail "still told after --off"
    no_process cowvm-standby || fail "a keeper after --off"
    expect 0 "$COWVM" standby golden golden
    expect 0 "$COWVM" hibernate golden
    qemus_are 0 || fail "$(qemus) QEMUs after hibernate"
    nothing_hidden || fail "left behind after hibernate"
    expect 1 "$COWVM" standby golden
    grep -q 'does not run' <<<"$ERR" || fail "it said: $ERR"
    "$COWVM" resume golden
    waits_not golden || fail "it came back"
    expect 0 "$COWVM" standby golden
    kill -KILL "$(vm_json golden pid)"
    eventually 30 qemus_are 0
    eventually 30 nothing_hidden
    eventually 30 no_process cowvm-standby
    expect 0 "$COWVM" start --cold golden
    expect 0 "$COWVM" standby golden
    expect 0 "$COWVM" stop --now golden
    no_process cowvm-standby || fail "a keeper after stop"
    expect 0 "$COWVM" start --cold golden
    expect 0 "$COWVM" standby golden
    expect 0 "$COWVM" rm --force golden
    qemus_are 0 || fail "$(qemus) QEMUs after rm"
    nothing_hidden || fail "left behind after rm"
    no_process cowvm-standby || fail "a keeper after rm"
    assert_eq "$(ls -A "$COWVM_RUN")" "" "runtime directories after rm"
    eventually 30 mount_unused
}

# The keeper, or what waits, is killed.
test_killed() {
    local pid
    up_with_standby
    kill -KILL "$(pids_of cowvm-standby)"
    eventually 30 no_process cowvm-standby
    expect 0 "$COWVM" fork --keep-card golden copy
    assert_eq "$(ask copy get)" "prepared prepared"
    "$COWVM" rm --force copy
    expect 0 "$COWVM" standby golden
    for pid in $(pids_of qemu-system-x86); do
        [ "$pid" = "$(vm_json golden pid)" ] || kill -KILL "$pid"
    done
    eventually 30 qemus_are 1
    # What lies there is of no use: the fork starts a QEMU.
    expect 0 "$COWVM" fork --keep-card golden copy
    assert_eq "$(ask copy get)" "prepared prepared"
    "$COWVM" rm --force copy
    eventually 60 waits golden
    # No keeper, and the VM dies: who comes next clears away.
    kill -KILL "$(pids_of cowvm-standby)"
    kill -KILL "$(vm_json golden pid)"
    eventually 30 qemus_are 1
    expect 0 "$COWVM" start --cold golden
    qemus_are 1 || fail "$(qemus) QEMUs after start"
    nothing_hidden || fail "left behind after start"
    down_with_guests
}

# Keeper and command come from one process: what they draw must differ all the same.
test_identities() {
    local name i
    up_with_guest
    expect 0 "$COWVM" fork --keep-card golden other
    expect 0 "$COWVM" standby golden other
    for i in 1 2; do
        for name in golden other; do
            eventually 60 waits "$name"
            expect 0 "$COWVM" fork --keep-card "$name" "$name-$i"
        done
    done
    for name in uuid mac generation; do
        assert_eq "$(jq -r ".$name" "$MNT"/*/vm.json | sort -u | wc -l)" 6 "different ${name}s"
    done
    # Those that a keeper has started and that have ended are waited for.
    "$COWVM" rm --force golden-{1,2} other-{1,2}
    eventually 30 no_zombies
    "$COWVM" rm --force other
    down_with_guests
}
no_zombies() {
    local keepers
    keepers=$(pids_of cowvm-standby | paste -sd,)
    [ -n "$keepers" ] || fail "no keepers"
    [ -z "$(pgrep -P "$keepers" -r Z)" ]
}

# cowvm is killed in the middle of making one.
test_making_is_killed() {
    local call n
    need_strace
    up_with_guest
    for call in ioctl ftruncate sendmsg renameat,renameat2 unlinkat; do
        for n in {1..20}; do
            killed_at "$call" "$n" "$COWVM" standby golden || break
            printf '%s %s\n' "$call" "$n"
            eventually 30 settled
            # None, or a whole one.
            eventually 30 whole
            assert_eq "$(status_of golden)" running
        done
        waits golden || fail "no standby after $call"
        "$COWVM" standby --off golden
        nothing_hidden || fail "left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
    done
    assert_eq "$(ask golden get)" "prepared prepared"
    down_with_guests
}
whole() {
    if waits golden; then
        qemus_are 2 && hidden_are 1
    else
        qemus_are 1 && nothing_hidden
    fi
}

# ... of ending it, with its VM or without.
test_ending_is_killed() {
    local call n
    need_strace
    up_with_guest
    for call in unlinkat pidfd_send_signal; do
        for n in {1..12}; do
            "$COWVM" standby golden
            killed_at "$call" "$n" "$COWVM" standby --off golden || break
            printf '%s %s\n' "$call" "$n"
            eventually 30 settled
            eventually 30 whole
        done
        nothing_hidden || fail "left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
    done
    for n in {1..8}; do
        "$COWVM" standby golden
        killed_at unlinkat "$n" "$COWVM" stop --now golden || break
        printf 'stop %s\n' "$n"
        eventually 30 qemus_are 0
        eventually 30 nothing_hidden
        eventually 30 no_process cowvm-standby
        "$COWVM" start --cold golden
    done
    "$COWVM" stop --now golden
    down_with_guests
}

# ... and of taking it.
test_taking_is_killed() {
    local call n
    need_strace
    up_with_standby
    for call in sendmsg copy_file_range renameat,renameat2 unlinkat; do
        for n in 1 2 3 5 8; do
            killed_at "$call" "$n" "$COWVM" fork --keep-card golden copy || break
            printf '%s %s\n' "$call" "$n"
            eventually 30 settled
            if [ -e "$MNT/copy" ]; then
                assert_eq "$(ask copy get)" "prepared prepared"
                "$COWVM" rm --force copy
            fi
            eventually 60 waits golden
            eventually 60 whole
            assert_eq "$(status_of golden)" running
        done
        [ ! -e "$MNT/copy" ] || "$COWVM" rm --force copy
    done
    counts_on golden
    [ ! -e "$MNT/golden/snapshot.snap" ] || fail "a snapshot.snap beside a VM that runs"
    down_with_guests
}
run_tests "$@"
