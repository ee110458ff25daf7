#!/usr/bin/env bash
# cowvm fork: guests that were one until then, and are two.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

# redis_of VM COMMAND: over the network, by the VM's own port.
redis_of() {
    python3 - "$(vm_json "$1" 'forwards."6379"')" "$2" <<'END'
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)
s.settimeout(5)
s.sendall(sys.argv[2].encode() + b"\r\n")
print(s.recv(1000).decode().split("\r\n")[1])
END
}
redis_answers() { redis_of "$1" "get text" >"$WORK/redis" 2>/dev/null; }

test_go_on_and_part() {
    local before golden copy
    up_with_guest
    ask golden set before >/dev/null
    before=$(ask golden count)
    expect 0 "$COWVM" fork golden copy
    assert_eq "$OUT$ERR" ""
    assert_eq "$(state_of copy)" running
    assert_eq "$(status_of golden)" running
    # It goes on from where it was.
    copy=$(ask copy count)
    assert_ge "$copy" "$before" "the copy's count"
    assert_eq "$(ask copy get)" "before before" "what the copy remembers"
    counts_on golden
    counts_on copy
    # They part, in memory and on the disk.
    ask golden set one
    ask copy set other
    assert_eq "$(ask golden get)" "one one"
    assert_eq "$(ask copy get)" "other other"
    ask golden sync
    ask copy sync
    # And are told apart.
    [ "$(uuid_of golden)" != "$(uuid_of copy)" ] || fail "one uuid"
    golden=$("$COWVM" exec-qmp golden query-vm-generation-id | json .guid)
    copy=$("$COWVM" exec-qmp copy query-vm-generation-id | json .guid)
    [ "$golden" != "$copy" ] || fail "one generation id"
    [ "$(ask golden random)" != "$(ask copy random)" ] || fail "the same random numbers"
    "$COWVM" stop --now golden copy
    # On both disks the counting has no gap and nothing twice, also where they parted: each went on with
    # the very count.
    disk_clean golden
    counted_on "$before"
    disk_clean copy
    counted_on "$before"
    vms_are "copy golden" || fail "names: $(names_in "$MNT")"
    # What a clone costs is what it has changed.
    assert_le "$(vm_json copy own_bytes)" $((64 << 20)) "bytes of the copy's own"
}

# Of the image that disk_clean has left: each tenth count, up to more than AT.
counted_on() {
    debugfs -R "cat /data/counts" "$WORK/fsck.img" >"$WORK/counts" 2>/dev/null
    awk -v at="$1" '$1 != NR * 10 { print "line " NR ": " $1; bad = 1; exit }
        END { exit bad || $1 < at }' "$WORK/counts" || fail "counts: $(tail -n 3 "$WORK/counts")"
}

test_network() {
    local golden copy
    up_with_guest
    expect 0 "$COWVM" fork golden copy
    golden=$(ask golden mac)
    # A new card with the address that its description says.
    copy=$(jq -r .mac "$MNT/copy/vm.json")
    [ "$golden" != "$copy" ] || fail "one MAC address"
    eventually 60 mac_is copy "$copy"
    eventually 60 redis_answers copy
    eventually 60 redis_answers golden
    ask copy set network
    assert_eq "$(redis_of copy "get text")" network
    assert_eq "$(redis_of golden "get text")" prepared
    down_with_guests
}
mac_is() { [ "$(ask "$1" mac)" = "$2" ]; }

test_count() {
    local i
    up_with_guest
    expect 0 "$COWVM" fork --json --count 3 golden many
    assert_eq "$(json '.new | join(" ")' <<<"$OUT")" "many-1 many-2 many-3"
    for i in 1 2 3; do
        ask "many-$i" set "number $i"
    done
    for i in 1 2 3; do
        assert_eq "$(ask "many-$i" get)" "number $i number $i"
    done
    assert_eq "$(ask golden get)" "prepared prepared"
    assert_eq "$(jq -r .mac "$MNT"/*/vm.json | sort -u | wc -l)" 4 "different MAC addresses"
    # All are of one moment, once.
    expect 1 "$COWVM" fork golden many-2
    assert_contains "$ERR" "many-2: exists already"
    "$COWVM" rm --force many-1 many-2 many-3
    qemus_are 1 || fail "$(qemus) QEMUs"
    vms_are golden
    down_with_guests
}

# The one before is thrown away each time: no chain.
test_generations() {
    local i old=golden
    up_with_guest
    ask golden set "generation 0"
    for i in {1..20}; do
        "$COWVM" fork --keep-card "$old" "gen$i"
        "$COWVM" rm --force "$old"
        old=gen$i
    done
    assert_eq "$(ask gen20 get)" "generation 0 generation 0"
    counts_on gen20
    ask gen20 set "generation 20"
    ask gen20 sync
    "$COWVM" stop --now gen20
    disk_clean gen20
    vms_are gen20
}

# Nobody in it takes notice: the copy could only have its origin's address.
test_keeps_its_card() {
    mount_up
    truncate -s 1M "$WORK/blank"
    "$COWVM" create --accel tcg --network --memory 16M empty --disk "$WORK/blank"
    "$COWVM" start empty
    # Its firmware has found nothing to boot.
    sleep 5
    expect 1 "$COWVM" fork empty copy
    assert_contains "$ERR" "does not let go of its network card"
    vms_are empty
    eventually 20 qemus_are 1
    assert_eq "$(status_of empty)" running
    expect 0 "$COWVM" fork --keep-card empty copy
    assert_eq "$(status_of copy)" running
    down_with_guests
}

test_refused() {
    up_with_guest
    expect 1 "$COWVM" fork missing copy
    assert_contains "$ERR" "there is no such VM"
    expect 2 "$COWVM" fork golden
    expect 2 "$COWVM" fork --count 0 golden copy
    mkdir "$MNT/plain"
    expect 1 "$COWVM" fork plain copy
    assert_contains "$ERR" "is no VM"
    # One that its user has stopped stays stopped; its copy runs.
    "$COWVM" exec-qmp golden stop >/dev/null
    expect 0 "$COWVM" fork golden copy
    [ "$(status_of golden)" != running ] || fail "it goes on"
    counts_on copy
    "$COWVM" stop --now golden
    expect 1 "$COWVM" fork golden copy2
    assert_contains "$ERR" "does not run"
    vms_are "copy golden plain"
    down_with_guests
}

run_tests "$@"
