#!/usr/bin/env bash
# cowvm create, start, stop, rm, ls, hibernate, resume, snapshot and reset.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

# Would e2fsck's complaints be noticed? Each of these is damage that it repairs without asking.
test_damage_is_seen() {
    local damage
    mount_up
    have_guest golden
    disk_clean golden
    # Its journal would write over what is damaged.
    PATH=$PATH:/usr/sbin:/sbin
    e2fsck -fy "$MNT/golden/disk" || true
    for damage in "clri /bin/busybox" "freei /bin/busybox" "set_inode_field /bin/busybox links_count 7" \
        "zap_block -f /bin 0" "unlink /bin/busybox" "set_super_value free_blocks_count 7"; do
        rm -rf "$MNT/bad"
        mkdir "$MNT/bad"
        cp "$MNT/golden/disk" "$MNT/bad/disk"
        debugfs -w -R "$damage" "$MNT/bad/disk"
        if [[ $damage == set_super_value* ]]; then
            # Told, and no damage: the kernel writes these at an unmount only.
            disk_clean bad
        elif (disk_clean bad); then
            fail "not seen: $damage"
        fi
    done
}

test_hibernate() {
    local before
    up_with_guest
    ask golden set slept
    before=$(ask golden count)
    expect 0 "$COWVM" hibernate golden
    assert_eq "$OUT$ERR" ""
    assert_eq "$(state_of golden)" saved
    qemus_are 0 || fail "its process is there"
    expect 1 "$COWVM" hibernate golden
    assert_contains "$ERR" "does not run"
    # It outlives the daemon.
    unmount
    rm -r "$COWVM_RUN"
    mount_up
    expect 0 "$COWVM" resume golden
    assert_eq "$(state_of golden)" running
    assert_ge "$(ask golden count)" "$before" "the count"
    assert_eq "$(ask golden get)" "slept slept"
    counts_on golden
    expect 1 "$COWVM" resume golden
    assert_contains "$ERR" "runs already"
    down_with_guests
    expect 1 "$COWVM" resume golden
    assert_contains "$ERR" "was not hibernated"
}

# For a timer: the first call notes, a busy one stays, a stopped one uses nothing.
test_idle() {
    up_with_guest
    "$COWVM" hibernate --idle 1 golden
    ask golden fill 1
    "$COWVM" hibernate --idle 1 golden
    assert_eq "$(state_of golden)" running
    "$COWVM" exec-qmp golden stop >/dev/null
    "$COWVM" hibernate --idle 1 golden
    sleep 1
    "$COWVM" hibernate --idle 50 golden
    assert_eq "$(state_of golden)" saved
    # A timer names those that sleep already, too.
    expect 0 "$COWVM" hibernate --idle 50 golden
    "$COWVM" resume golden
    counts_on golden
    down_with_guests
}

test_snapshot_and_reset() {
    local before uuid generation told
    up_with_guest
    ask golden set first
    before=$(ask golden count)
    expect 0 "$COWVM" snapshot golden clean
    assert_eq "$(state_of golden@clean)" saved
    uuid=$(uuid_of golden)
    generation=$(jq -r .generation "$MNT/golden/vm.json")
    counts_on golden
    ask golden set second
    expect 1 "$COWVM" snapshot golden clean
    assert_contains "$ERR" "exists already"
    expect 0 "$COWVM" reset golden clean
    assert_eq "$OUT$ERR" ""
    assert_eq "$(state_of golden)" running
    assert_eq "$(ask golden get)" "first first"
    counts_on golden
    # The same machine, but for what must not be drawn twice.
    assert_eq "$(uuid_of golden)" "$uuid" "uuid"
    # It is told so; this guest does not read that, so it waits.
    told=$(dd if="$COWVM_RUN/$uuid/notify.in" iflag=nonblock bs=4096 count=1 status=none)
    assert_eq "$(json '"\(.event) \(.name) \(.uuid)"' <<<"$told")" "resume golden $uuid"
    assert_eq "$(json .generation <<<"$told")" "$(jq -r .generation "$MNT/golden/vm.json")"
    [ "$(jq -r .generation "$MNT/golden/vm.json")" != "$generation" ] || fail "the same generation"
    # Again, from one that is off; and the moment itself is not touched.
    ask golden set third
    "$COWVM" stop --now golden
    expect 0 "$COWVM" reset golden clean
    assert_eq "$(state_of golden)" saved
    "$COWVM" resume golden
    assert_eq "$(ask golden get)" "first first"
    assert_le "$before" "$(ask golden count)"
    expect 1 "$COWVM" reset golden missing
    assert_contains "$ERR" "there is no such moment"
    expect 2 "$COWVM" snapshot golden a/b
    # Of one that is off: its disk.
    "$COWVM" stop --now golden
    expect 0 "$COWVM" snapshot golden off
    assert_eq "$(state_of golden@off)" off
    vms_are "golden golden@clean golden@off"
    "$COWVM" rm golden@clean golden@off
    vms_are golden
    disk_clean golden
}

test_create() {
    local option
    mount_up
    create_guest new
    assert_eq "$(state_of new)" off
    assert_same "$COWFS_INPUTS/guest/disk.img" "$MNT/new/disk"
    expect 1 create_guest new
    assert_contains "$ERR" "exists already"
    # With holes kept, flat, and with progress at a terminal.
    assert_eq "$("$COWFS" stat --json "$MNT/new/disk" | json .flat)" true "flat"
    assert_ge "$("$COWFS" stat --json "$MNT/new/disk" | json .hole_bytes)" $((100 << 20)) "holes"
    qemu-img convert -O qcow2 "$COWFS_INPUTS/guest/disk.img" "$WORK/whole.qcow2"
    script -qec "'$COWVM' create other --disk '$WORK/whole.qcow2'" "$WORK/typed" </dev/null >/dev/null
    grep -q '% .* of 256.0 MiB' "$WORK/typed" || fail "no progress: $(cat -v "$WORK/typed")"
    assert_same "$COWFS_INPUTS/guest/disk.img" "$MNT/other/disk"
    assert_eq "$("$COWFS" stat --json "$MNT/other/disk" | json .flat)" true "flat"
    "$COWVM" rm other
    # A broken image: nothing is left.
    qemu-img convert -O qcow2 "$COWFS_INPUTS/guest/disk.img" "$WORK/cut.qcow2"
    truncate -s -5M "$WORK/cut.qcow2"
    expect 1 "$COWVM" create bad --disk "$WORK/cut.qcow2"
    assert_contains "$ERR" "damaged"
    expect 1 "$COWVM" create bad --disk "$WORK/missing"
    expect 2 "$COWVM" create bad
    expect 2 "$COWVM" create bad --disk "$WORK/cut.qcow2" --memory 3
    for option in "--cpus 0" "--append quiet" "--initrd $COWFS_INPUTS/guest/initrd"; do
        # shellcheck disable=SC2086 # two words
        expect 2 "$COWVM" create bad --disk "$WORK/cut.qcow2" $option
    done
    expect 1 "$COWVM" create ../bad/.hidden --disk "$WORK/cut.qcow2"
    vms_are new
    nothing_hidden
    # As QEMU's own mistake is told.
    "$COWVM" create odd --disk "$COWFS_INPUTS/guest/disk.img" -- -device no-such-device
    expect 1 "$COWVM" start odd
    assert_contains "$ERR" "no-such-device"
    assert_eq "$(state_of odd)" off
    # A VM copied by cp is one of its own.
    cp -r "$MNT/new" "$MNT/copy"
    "$COWVM" ls >/dev/null
    [ "$(uuid_of new)" != "$(uuid_of copy)" ] || fail "one uuid"
    "$COWVM" rm new copy odd
    vms_are ""
    assert_eq "$(names_in "$COWVM_RUN")" "" "what is left in the runtime directory"
}

test_ls_and_stop() {
    local own shared
    # Nothing is to come to be shared, or not, but by what is done here.
    up_with_guest seal=off
    expect 0 "$COWVM" ls
    [[ $OUT == *golden*running*256.0\ MiB*6379=127.0.0.1:* ]] || fail "ls: $OUT"
    # It runs for as long as its process does.
    awk -v up="$(vm_json golden up_seconds)" -v since="$(ps -o etimes= -p "$(vm_json golden pid)")" \
        'BEGIN { exit !(up > 0 && up <= since + 2 && up >= since - 2) }' ||
        fail "up for $(vm_json golden up_seconds) s"
    # A copy shares all but what it has written since; and so then does its origin with it.
    "$COWVM" fork --keep-card golden copy
    ask copy fill 32
    "$COWVM" stop --now copy
    "$COWVM" exec-qmp golden stop
    sync -f "$MNT"
    own=$(vm_json copy own_bytes) shared=$(vm_json copy shared_bytes)
    assert_ge "$own" $((32 << 20)) "own bytes of a copy that has filled 32 MiB"
    assert_le "$own" $((128 << 20)) "own bytes"
    assert_ge "$shared" $((32 << 20)) "bytes that it shares with its origin"
    assert_ge "$(vm_json golden shared_bytes)" $((32 << 20)) "bytes that its origin shares"
    "$COWFS" du --json "$MNT/copy" >"$WORK/du"
    assert_eq "$own $shared" "$(json '.[0] | "\(.exclusive_bytes) \(.shared_bytes)"' <"$WORK/du")" "du"
    "$COWVM" rm copy
    # What was the copy's goes a moment later.
    eventually 30 shares_nothing golden
    "$COWVM" exec-qmp golden cont
    expect 1 "$COWVM" start golden
    assert_contains "$ERR" "runs already"
    expect 1 "$COWVM" rm golden
    assert_contains "$ERR" "--force"
    # This guest knows no power button; the one of boot.sh does.
    expect 0 "$COWVM" stop --timeout 1 golden
    assert_contains "$ERR" "is switched off"
    assert_eq "$(state_of golden)" off
    expect 0 "$COWVM" stop golden
    expect 1 "$COWVM" exec-qmp golden query-status
    assert_contains "$ERR" "does not run"
    expect 1 "$COWVM" console golden
    # A QEMU that was killed leaves a socket; that is no sign of life.
    have_guest other
    "$COWVM" resume other
    kill -KILL "$(vm_json other pid)"
    eventually 10 is_state other off
    "$COWVM" start other
    assert_eq "$(status_of other)" running
    "$COWVM" stop --now other
}

shares_nothing() { [ "$(vm_json "$1" shared_bytes)" = 0 ]; }

test_talk() {
    up_with_guest
    on_terminal 0 'set typed\n' '=set OK' '\x1d' '' -- "$COWVM" console golden
    assert_eq "$(ask golden get)" "typed typed"
    # QMP: with arguments, its errors, and what is no JSON.
    expect 0 "$COWVM" exec-qmp golden human-monitor-command '{"command-line": "info uuid"}'
    assert_contains "$OUT" "$(uuid_of golden)"
    expect 1 "$COWVM" exec-qmp golden no-such-command
    assert_contains "$ERR" "no-such-command"
    expect 1 "$COWVM" exec-qmp golden human-monitor-command '{"line": 1}'
    expect 2 "$COWVM" exec-qmp golden query-status '{'
    expect 2 "$COWVM" exec-qmp golden query-status '[]'
    expect 2 "$COWVM" exec-qmp golden
    # start takes up what was saved; with --cold it does not.
    "$COWVM" hibernate golden
    expect 0 "$COWVM" start golden
    assert_eq "$(ask golden get)" "typed typed"
    "$COWVM" hibernate golden
    expect 2 "$COWVM" resume --cold golden
    expect 0 "$COWVM" start --cold golden
    assert_eq "$(status_of golden)" running
    [ ! -e "$MNT/golden/snapshot.snap" ] || fail "a snapshot.snap beside a VM that runs"
    "$COWVM" stop --now golden
    assert_eq "$(state_of golden)" off
}

run_tests "$@"
