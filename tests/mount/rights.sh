#!/usr/bin/env bash
# A store of a plain user's own; and what users see of what others had.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

# A user may not be able to go where the binaries are.
copy_binaries() {
    mkdir "$WORK/bin"
    install -m 755 "$COWFS" "$COWFS"d "$WORK/bin"
    user_cowfs=$WORK/bin/cowfs
}
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }

# ---- a store of one's own ----------------------------------------------------

# What a plain user needs, where udev has not seen to it: /dev/fuse that anybody may open. (In the
# mount namespace of the test.)
open_dev_fuse() {
    need_tool fusermount3
    mknod -m 666 "$WORK/fuse" c 10 229
    mount --bind "$WORK/fuse" /dev/fuse
    copy_binaries
    install -d -o 65534 -g 65534 "$WORK/user" "$WORK/user/mnt"
    user_store=$WORK/user/store user_mnt=$WORK/user/mnt
}

test_store_of_a_user() {
    open_dev_fuse
    expect 0 as_nobody "$user_cowfs" mount -o passthrough "$user_store" "$user_mnt"
    is_mounted "$user_mnt" || fail "not mounted"
    as_nobody bash -c 'cd "$1" && mkdir d && head -c 5M /dev/urandom >d/a && cp d/a d/b && sync d/a' - \
        "$user_mnt"
    expect 0 as_nobody "$user_cowfs" clone "$user_mnt/d" "$user_mnt/e"
    as_nobody cmp "$user_mnt/d/a" "$user_mnt/e/b"
    expect 0 as_nobody "$user_cowfs" seal "$user_mnt/e"
    expect 0 as_nobody "$user_cowfs" pack "$user_mnt/e/a"
    expect 0 as_nobody "$user_cowfs" scrub "$user_mnt"
    expect 0 as_nobody "$user_cowfs" df "$user_mnt"
    assert_eq "$(as_nobody stat -c '%u %g' "$user_mnt/e/a")" "65534 65534"
    # Nobody else, as with any mount by fusermount3; and what he uses stays.
    expect "1|2" setpriv --reuid 1 --regid 1 --clear-groups ls "$user_mnt"
    hold as_nobody bash -c 'exec 5<"$1"; echo ready; read -r _ || true' - "$user_mnt/e/a"
    expect 1 as_nobody "$user_cowfs" umount "$user_mnt"
    assert_contains "$ERR" "in use"
    release
    expect 0 as_nobody "$user_cowfs" umount "$user_mnt"
    ! is_mounted "$user_mnt" || fail "still mounted"
    expect 0 as_nobody "$user_cowfs" fsck --check-data "$user_store"
    # All of it is there again.
    expect 0 as_nobody "$user_cowfs" mount "$user_store" "$user_mnt"
    as_nobody cmp "$user_mnt/d/a" "$user_mnt/e/a"
    expect 0 as_nobody "$user_cowfs" umount "$user_mnt"
}

test_end_of_a_users_daemon() {
    local pid
    open_dev_fuse
    # In order by a signal: nothing that was written is lost.
    setpriv --reuid 65534 --regid 65534 --clear-groups "$user_cowfs" mount -f "$user_store" \
        "$user_mnt" </dev/null >>"$WORK.daemon.log" 2>&1 &
    pid=$!
    eventually 60 is_mounted "$user_mnt"
    as_nobody bash -c 'echo text >"$1"' - "$user_mnt/a"
    kill -TERM "$pid"
    wait "$pid"
    ! is_mounted "$user_mnt" || fail "still mounted"
    as_nobody "$user_cowfs" mount "$user_store" "$user_mnt"
    assert_eq "$(as_nobody cat "$user_mnt/a")" text
    expect 0 as_nobody "$user_cowfs" umount "$user_mnt"
}

# ---- freed space -------------------------------------------------------------

# What others had is in nothing that a user can make: holes, space that is reserved, the rest of a
# chunk, the end of a file, each before and after a crash.
test_no_old_bytes() {
    local round
    mount_up
    # (yes dies of its pipe.)
    { yes "SECRET of another user" || true; } | head -c 8M >"$WORK/secret"
    chmod 777 "$MNT"
    fill() {
        cp "$WORK/secret" "$MNT/secret"
        cp "$MNT/secret" "$MNT/secret2"
        chmod 600 "$MNT"/secret*
        sync "$MNT/secret"
        rm "$MNT"/secret*
    }
    probe() {
        as_nobody bash -c '
            cd "$1"
            fallocate -l 6M reserved
            truncate -s 6M hole
            for i in {0..60}; do
                printf x | dd of=edges bs=1 seek=$((i * 100001)) conv=notrunc status=none
                printf x >>tail
                truncate -s $((i * 5000 + 4000)) tail
            done
            cp reserved copy
            head -c 3M /dev/zero >zeros
            fallocate -p -o 1000 -l 2M edges
            fallocate -z -o 500 -l 3M reserved
            truncate -s 8M edges' - "$MNT"
    }
    look() {
        local file
        sync -f "$MNT"
        echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || true
        for file in "$MNT"/*; do
            ! grep -qa SECRET "$file" || fail "$file has what another file had"
        done
    }
    for ((round = 0; round < 3; round++)); do
        fill
        probe
        look
        rm "$MNT"/*
        fill
        probe
        crash
        mount_up
        # What is there by now is whatever a commit had.
        look
        rm -f "$MNT"/*
    done
}

run_tests "$@"
