#!/usr/bin/env bash
# Who shares with whom: what a user has is not found by another, however he looks; what root has made
# public is found by all.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

size=$((8 << 20))

as() { setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"; }

# Two users with directories of their own, and one text.
users() {
    mount_up "$@"
    mkdir "$WORK/bin"
    install -m 755 "$COWFS" "$COWFS"d "$WORK/bin"
    user_cowfs=$WORK/bin/cowfs
    chmod 755 "$MNT"
    install -d -m 700 -o 1001 "$MNT/alice"
    install -d -m 700 -o 1002 "$MNT/bob"
    random_file "$WORK/text" "$size"
    chmod 644 "$WORK/text"
}
put() { as "$1" sh -c 'cat "$1" >"$2" && sync "$2"' - "$WORK/text" "$2"; }
told() { as "$1" "$user_cowfs" "$2" --json "$3" | json "$4"; }
is_sealed() { [ "$(told "$1" stat "$2" .sealed_bytes)" = "$size" ]; }

# What a user sees of his file if it exists nowhere else as far as he may know.
assert_alone() {
    assert_eq "$(told "$1" stat "$2" .shared_bytes)" 0
    assert_eq "$(told "$1" du "$2" '.[0] // . | .shared_bytes')" 0
    assert_eq "$(told "$1" du "$2" '.[0] // . | .exclusive_bytes')" "$size"
}

shares_nothing() { [ "$(told "$1" stat "$2" .shared_bytes)" = 0 ]; }

test_two_users() {
    users seal=off
    put 1001 "$MNT/alice/a"
    assert_eq "$(told 1001 seal "$MNT/alice/a" .saved_bytes)" 0
    stored_is "$size"
    put 1002 "$MNT/bob/a"
    assert_eq "$(told 1002 seal "$MNT/bob/a" .saved_bytes)" 0
    assert_eq "$(told 1002 df "$MNT" .stored_bytes)" $((2 * size))
    assert_eq "$(told 1002 df "$MNT" .saved_by_dedup_bytes)" 0
    assert_alone 1002 "$MNT/bob/a"
    assert_alone 1001 "$MNT/alice/a"
    assert_eq "$(told 1002 stat "$MNT/bob/a" .domain_uid)" 1002
    assert_eq "$(told 1002 stat "$MNT/bob/a" .public_bytes)" 0
    # Root finds neither, and each of them his own.
    cp "$WORK/text" "$MNT/root"
    assert_eq "$("$COWFS" seal --json "$MNT/root" | json .saved_bytes)" 0
    put 1002 "$MNT/bob/b"
    assert_eq "$(told 1002 seal "$MNT/bob/b" .saved_bytes)" "$size"
    stored_is $((3 * size))
    unmount "$MNT"
    fsck_clean
}

test_in_the_background() {
    users seal_delay=0.05
    put 1001 "$MNT/alice/a"
    eventually 60 is_sealed 1001 "$MNT/alice/a"
    put 1002 "$MNT/bob/a"
    eventually 60 is_sealed 1002 "$MNT/bob/a"
    put 1002 "$MNT/bob/b"
    eventually 60 stored_is $((2 * size))
    eventually 60 is_sealed 1002 "$MNT/bob/b"
    assert_alone 1001 "$MNT/alice/a"
    assert_eq "$(told 1002 stat "$MNT/bob/a" .shared_bytes)" "$size"
    as 1002 rm "$MNT/bob/b"
    eventually 60 shares_nothing 1002 "$MNT/bob/a"
    assert_alone 1002 "$MNT/bob/a"
    assert_same "$WORK/text" "$MNT/bob/a"
}

# Clones share with whoever may read: that tells nobody anything.
test_clones_share() {
    users seal=off
    cp "$WORK/text" "$MNT/golden"
    "$COWFS" seal -q "$MNT/golden"
    expect 0 as 1001 "$user_cowfs" clone "$MNT/golden" "$MNT/alice/a"
    as 1002 cp "$MNT/golden" "$MNT/bob/a"
    stored_is "$size"
    assert_eq "$(told 1002 stat "$MNT/bob/a" .shared_bytes)" "$size"
    assert_eq "$(stat -c %u "$MNT/alice/a")" 1001
}

test_public() {
    users nosupervise,seal=off
    mkdir "$MNT/images"
    cp "$WORK/text" "$MNT/images/golden"
    put 1001 "$MNT/alice/before"
    assert_eq "$(told 1001 seal "$MNT/alice/before" .saved_bytes)" 0
    expect 0 "$COWFS" public --json "$MNT/images"
    assert_eq "$(json '[.files, .public_bytes, .changed_bytes, .unsealed_bytes] | join(" ")' <<<"$OUT")" \
        "1 $size $size 0"
    assert_eq "$("$COWFS" stat --json "$MNT/images/golden" | json .public_bytes)" "$size"
    put 1002 "$MNT/bob/a"
    assert_eq "$(told 1002 seal "$MNT/bob/a" .saved_bytes)" "$size"
    assert_eq "$(told 1002 stat "$MNT/bob/a" .public_bytes)" "$size"
    stored_is $((2 * size))
    # It outlives the daemon, from when the command returns.
    crash
    mount_up nosupervise,seal=off
    put 1002 "$MNT/bob/b"
    assert_eq "$(told 1002 seal "$MNT/bob/b" .saved_bytes)" "$size"
    expect 0 "$COWFS" public --off "$MNT/images/golden"
    crash
    mount_up nosupervise,seal=off
    put 1002 "$MNT/bob/c"
    assert_eq "$(told 1002 seal "$MNT/bob/c" .saved_bytes)" 0
    cp "$WORK/text" "$MNT/root"
    assert_eq "$("$COWFS" seal --json "$MNT/root" | json .saved_bytes)" "$size"
    assert_same "$WORK/text" "$MNT/bob/b"
    unmount "$MNT"
    fsck_clean
}

# Who makes something public sees who else comes to share it: users may not.
test_who_may() {
    users seal=off
    put 1002 "$MNT/bob/a"
    expect 1 as 1002 "$user_cowfs" public "$MNT/bob/a"
    assert_contains "$ERR" "not permitted"
    expect 1 as 1002 "$user_cowfs" public --off "$MNT/bob/a"
    assert_contains "$ERR" "not permitted"
    expect 1 setpriv --bounding-set=-all --inh-caps=-all "$COWFS" public "$MNT/bob/a"
    expect 0 "$COWFS" public "$MNT/bob/a"
    assert_contains "$OUT" "1 files: 8.0 MiB are public, 8.0 MiB of that since now"
    unmount "$MNT"
    expect 0 "$COWFS" mount -o ro "$STORE" "$MNT"
    expect 1 "$COWFS" public --off "$MNT/bob/a"
    assert_contains "$ERR" "ead-only"
    assert_eq "$("$COWFS" stat --json "$MNT/bob/a" | json .public_bytes)" "$size"
    expect 0 "$COWFS" umount "$MNT"
}

# Damage of another's content is his own, and repair leaves content in its domain.
test_repair() {
    users seal=off
    put 1001 "$MNT/alice/a"
    put 1002 "$MNT/bob/a"
    told 1001 seal "$MNT/alice/a" .files
    told 1002 seal "$MNT/bob/a" .files
    cp "$WORK/text" "$MNT/golden"
    expect 0 "$COWFS" public "$MNT/golden"
    expect 0 "$COWFS" scrub "$MNT"
    unmount "$MNT"
    expect 0 "$COWFS" fsck --repair "$STORE"
    mount_up seal=off
    put 1002 "$MNT/bob/b"
    assert_eq "$(told 1002 seal "$MNT/bob/b" .saved_bytes)" "$size"
    as 1001 rm "$MNT/alice/a"
    "$COWFS" public -q --off "$MNT/golden"
    put 1001 "$MNT/alice/b"
    assert_eq "$(told 1001 seal "$MNT/alice/b" .saved_bytes)" 0
}

run_tests "$@"
