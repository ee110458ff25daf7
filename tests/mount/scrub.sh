#!/usr/bin/env bash
# cowfs scrub and the option verify: what rots below a mount is told by file and range, is an error
# where it is read, and nothing else suffers.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

CHUNK=4096

# flip FILE INDEX: a byte of that chunk of the file, found by its second line, changes below the store.
# In the youngest segment that has it: what has moved into a segment of the file's own may still be
# about in an older one.
flip() {
    local at marker segment
    marker=$(dd if="$1" bs="$CHUNK" skip="$2" count=1 status=none | sed -n 2p)
    segment=$(grep -lUaF -- "$marker" "$STORE"/segments/* | tail -n 1)
    at=$(grep -obUaF -m 1 -- "$marker" "$segment" | cut -d: -f1)
    printf 'X' | dd of="$segment" bs=1 seek=$((at + 100)) conv=notrunc status=none
}

# Lines of text, all different: the chunks can be found again.
numbered() { seq -f 'chunk of lines number %020.0f' "$1" "$2"; }

make_files() {
    numbered 1 50000 >"$WORK/a"
    numbered 60000 90000 >"$WORK/b"
    mount_up "seal=off${1:+,$1}"
    cp "$WORK/a" "$MNT/a"
    mkdir "$MNT/d"
    cp "$WORK/b" "$MNT/d/b"
    "$COWFS" clone "$MNT/a" "$MNT/d/clone of a"
    "$COWFS" seal -q "$MNT"
    sync -f "$MNT"
}

# With a fresh daemon, and nothing in the page cache.
mount_again() {
    unmount
    mount_up "seal=off${1:+,$1}"
}

test_clean() {
    make_files
    expect 0 "$COWFS" scrub "$MNT"
    assert_contains "$OUT" "no damage"
    expect 0 "$COWFS" scrub -q "$MNT"
    assert_eq "$OUT$ERR" ""
    expect 0 "$COWFS" scrub --json --rate 0 "$MNT"
    assert_eq "$(json .clean <<<"$OUT")" true
    assert_eq "$(json .checked_bytes <<<"$OUT")" "$(df_of stored_bytes)"
    assert_eq "$(json .unsealed_bytes <<<"$OUT")" 0
    # What is not sealed is counted, and nothing is said of it.
    random_file "$MNT/new" 1048576
    sync -f "$MNT"
    expect 0 "$COWFS" scrub --json "$MNT"
    assert_eq "$(json .unsealed_bytes <<<"$OUT")" 1048576
}

test_damage() {
    make_files
    flip "$WORK/a" 20
    flip "$WORK/b" 3
    expect 4 "$COWFS" scrub "$MNT"
    assert_contains "$OUT" "$MNT/a: $CHUNK bytes from $((20 * CHUNK)) on"
    assert_contains "$OUT" "$MNT/d/clone of a: $CHUNK bytes from $((20 * CHUNK)) on"
    assert_contains "$OUT" "$MNT/d/b: $CHUNK bytes from $((3 * CHUNK)) on"
    assert_contains "$OUT" "2 damaged chunks"
    expect 4 "$COWFS" scrub --json "$MNT"
    assert_eq "$(json '.files | length' <<<"$OUT")" 3
    assert_eq "$(json '.chunks | length' <<<"$OUT")" 2
    mount_again
    ! cat "$MNT/a" >"$WORK/out" 2>"$WORK/err" || fail "damaged bytes were read"
    assert_contains "$(<"$WORK/err")" "Input/output error"
    ! dd if="$MNT/d/clone of a" of=/dev/null bs="$CHUNK" skip=20 count=1 status=none 2>/dev/null ||
        fail "damaged bytes were read"
    # All but that chunk is what it was.
    cmp -n $((20 * CHUNK)) "$WORK/a" "$MNT/a"
    cmp -i $((21 * CHUNK)) "$WORK/a" "$MNT/a"
    # Damage that is known is no damage of the structure.
    unmount
    expect 0 "$COWFS" fsck "$STORE"
    assert_contains "$OUT" "2 chunks are known to be damaged"
    mount_up seal=off
    # Healed by writing: the one, and not the other.
    dd if="$WORK/a" of="$MNT/a" bs="$CHUNK" skip=20 seek=20 count=1 conv=notrunc,fsync status=none
    assert_same "$WORK/a" "$MNT/a"
    expect 4 "$COWFS" scrub "$MNT"
    [[ $OUT != *"$MNT/a:"* ]] || fail "still damaged: $OUT"
    rm -r "$MNT/d"
    sync -f "$MNT"
    eventually 20 "$COWFS" scrub -q "$MNT"
    mount_down
    fsck_clean
}

test_verify() {
    make_files
    flip "$WORK/a" 20
    mount_again verify
    cmp -n $((20 * CHUNK)) "$WORK/a" "$MNT/a"
    ! cat "$MNT/a" >/dev/null 2>&1 || fail "damaged bytes were read"
    ! dd if="$MNT/a" of=/dev/null bs="$CHUNK" skip=20 count=1 status=none 2>/dev/null ||
        fail "damaged bytes were read"
    cmp -i $((21 * CHUNK)) "$WORK/a" "$MNT/a"
    # It is known without the option, too, from then on.
    mount_again
    ! cat "$MNT/d/clone of a" >/dev/null 2>&1 || fail "damaged bytes were read"
    rm -r "$MNT/a" "$MNT/d"
}

test_under_load() {
    local pid
    make_files verify
    for _ in 1 2 3 4 5 6; do
        cp "$WORK/a" "$MNT/x" && cat "$WORK/b" >"$MNT/x" && "$COWFS" seal -q "$MNT/x" && rm "$MNT/x"
    done &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        expect 0 "$COWFS" scrub -q --rate 0 "$MNT"
    done
    wait "$pid"
    assert_same "$WORK/a" "$MNT/a"
    mount_down
    fsck_clean
}

# No faster than asked for; and a terminal is told how far it is.
test_rate_and_progress() {
    local began took bytes
    need_tool script
    make_files
    bytes=$(df_of stored_bytes)
    began=${EPOCHREALTIME/./}
    script -qefc "'$COWFS' scrub --rate 1M '$MNT'" "$WORK/typescript" >/dev/null </dev/null
    took=$((${EPOCHREALTIME/./} - began))
    assert_ge "$took" $(((bytes - 1048576) * 1000000 / 1048576)) "microseconds for $bytes bytes"
    tr '\r' '\n' <"$WORK/typescript" >"$WORK/told"
    assert_ge "$(grep -c '%' "$WORK/told")" 2 "$(cat "$WORK/told")"
    grep -q "no damage" "$WORK/told" || fail "no report: $(cat "$WORK/told")"
    mount_down
}

test_misused() {
    make_files
    expect 16 "$COWFS" scrub
    expect 16 "$COWFS" scrub --rate much "$MNT"
    expect 8 "$COWFS" scrub "$MNT/nothing"
    expect 8 "$COWFS" scrub "$MNT/a"
    expect 8 "$COWFS" scrub "$WORK"
    chmod 755 "$MNT"
    expect 8 setpriv --reuid 65534 --regid 65534 --clear-groups "$COWFS" scrub "$MNT"
    expect 0 "$COWFS" scrub --help
}

run_tests "$@"
