#!/usr/bin/env bash
# cowfs fsck --repair on the command line: what it says, writes and leaves. What it can repair is
# tested without mounts (tests/unit/test_repair.c, and every damage of test_fsck_*.c).
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

make_store() {
    mount_up seal=off
    random_file "$WORK/a" 3000000
    mkdir "$MNT/d"
    cp "$WORK/a" "$MNT/d/a"
    "$COWFS" clone "$MNT/d" "$MNT/e"
    unmount
}

# Where the file lies, the largest one.
largest_segment() {
    find "$STORE/segments" -type f -printf '%s %p\n' | sort -rn | sed -n '1s/^[0-9]* //p'
}

# All files of the store, and what is in them.
state_of() { find "$STORE" -type f ! -iname lock ! -name 'LOG*' -exec b2sum {} + | sort -k 2; }

test_nothing_to_do() {
    make_store
    expect 0 "$COWFS" fsck --repair "$STORE"
    assert_contains "$OUT" "nothing to repair"
    assert_eq "$(names_in "$WORK")" "a expect.err expect.out mnt store"
}

test_lost_segment() {
    local before
    make_store
    truncate -s 1048576 "$(largest_segment)"
    expect 4 "$COWFS" fsck "$STORE"
    before=$(state_of)
    expect 4 "$COWFS" fsck --repair --dry-run "$STORE"
    assert_contains "$OUT" "would repair"
    assert_contains "$OUT" "nothing was changed"
    assert_eq "$(state_of)" "$before"
    expect 1 "$COWFS" fsck --repair --log "$WORK/log" "$STORE"
    assert_contains "$(<"$WORK/log")" "repair: "
    assert_contains "$(<"$WORK/log")" "segment-file-short"
    assert_contains "$(<"$WORK/log")" "committed"
    expect 0 "$COWFS" fsck "$STORE"
    assert_contains "$OUT" "clean"
    expect 0 "$COWFS" fsck --repair "$STORE"
    # What was lost is an error, and the rest is what it was.
    mount_up seal=off
    cmp -n 1048576 "$WORK/a" "$MNT/d/a"
    ! dd if="$MNT/e/a" of=/dev/null bs=4096 skip=256 count=1 status=none 2>/dev/null ||
        fail "lost bytes were read"
    expect 4 "$COWFS" scrub "$MNT"
    assert_contains "$OUT" "$MNT/e/a: 1951424 bytes from 1048576 on"
    # And it can be written again.
    cat "$WORK/a" >"$MNT/d/a"
    assert_same "$WORK/a" "$MNT/d/a"
    rm -r "$MNT/e"
    sync -f "$MNT"
    eventually 20 "$COWFS" scrub -q "$MNT"
    mount_down
}

test_json_and_default_log() {
    make_store
    rm "$(largest_segment)"
    expect 1 "$COWFS" fsck --repair --json "$STORE"
    assert_eq "$(json .repaired <<<"$OUT")" true
    json '.actions | length > 0' <<<"$OUT" >/dev/null
    [ -s "$(json .log <<<"$OUT")" ] || fail "no log"
    assert_contains "$(json .log <<<"$OUT")" "$STORE.repair-"
    expect 0 "$COWFS" fsck --json "$STORE"
}

test_refused() {
    make_store
    mount_up seal=off
    expect 8 "$COWFS" fsck --repair "$STORE"
    assert_contains "$ERR" "$STORE"
    unmount
    expect 16 "$COWFS" fsck --repair --check-data "$STORE"
    rm "$STORE/metadb/CURRENT"
    expect 4 "$COWFS" fsck --repair "$STORE"
    assert_contains "$ERR" CURRENT
}

run_tests "$@"
