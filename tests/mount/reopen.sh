#!/usr/bin/env bash
# Mounting again: after a clean end, after SIGKILL of the daemon, read-only.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

tool=$HELPERS/mount_tool

test_clean_cycles() {
    local i
    mount_up
    for i in {1..8}; do
        random_file "$WORK/$i" $((i * 100001))
        cp "$WORK/$i" "$MNT/$i"
        mkdir "$MNT/d$i"
        "$COWFS" clone "$MNT/$i" "$MNT/d$i/clone"
        mount_down
        mount_up
    done
    for i in {1..8}; do
        assert_same "$WORK/$i" "$MNT/$i"
        assert_same "$WORK/$i" "$MNT/d$i/clone"
    done
}

# What write(2) has accepted is there after a clean umount, without any sync.
test_umount_writes_all() {
    mount_up
    random_file "$WORK/a" 20000000
    tail -c +1 "$WORK/a" >"$MNT/a"
    umount "$MNT"
    wait "${daemons[$MNT]}"
    unset "daemons[$MNT]"
    mount_up
    assert_same "$WORK/a" "$MNT/a"
}

# Whoever ends the daemon by a signal loses nothing either.
test_sigterm() {
    mount_up
    random_file "$WORK/a" 20000000
    tail -c +1 "$WORK/a" >"$MNT/a"
    kill -TERM "${daemons[$MNT]}"
    wait "${daemons[$MNT]}"
    unset "daemons[$MNT]"
    ! is_mounted "$MNT" || fail "still mounted"
    fsck_clean
    mount_up
    assert_same "$WORK/a" "$MNT/a"
}

test_sigterm_while_busy() {
    mount_up
    random_file "$MNT/a" 1000000
    exec 9<"$MNT/a"
    kill -TERM "${daemons[$MNT]}"
    wait "${daemons[$MNT]}" || true
    unset "daemons[$MNT]"
    # Those who use it get errors, not a hang.
    expect 1 timeout 20 bash -c 'cat <&9'
    exec 9<&-
    umount -l "$MNT" 2>/dev/null || true
    fsck_clean
}

# Everything that was fsynced is there after SIGKILL, and the store is in order, unrepaired.
test_fsynced_survives_kill() {
    local round name
    mount_up nosupervise,commit=1
    : >"$WORK/promised"
    for round in {1..6}; do
        (
            set +e
            i=0
            while :; do
                i=$((i + 1)) name=$round.$i
                head -c $((RANDOM * 3)) /dev/urandom >"$WORK/data"
                dd if="$WORK/data" of="$MNT/$name" conv=fsync status=none 2>/dev/null || exit 0
                [ $((i % 3)) != 0 ] || "$COWFS" clone "$MNT/$name" "$MNT/$name.clone" 2>/dev/null
                [ $((i % 4)) != 0 ] || mv "$MNT/$name" "$MNT/$name.moved" 2>/dev/null
                # Content and name of what has been promised; a rename is not synced.
                [ $((i % 4)) = 0 ] || printf '%s %s\n' "$(b2sum <"$WORK/data")" "$name" >>"$WORK/promised"
            done
        ) 2>/dev/null &
        local writer=$!
        sleep 0.$((RANDOM % 9 + 1))
        kill_daemon
        wait "$writer"
        umount -l "$MNT"
        expect 0 "$COWFS" fsck "$STORE"
        mount_up nosupervise,commit=1
        while read -r sum _ name; do
            [ -e "$MNT/$name" ] || fail "$name has been lost"
            assert_eq "$(b2sum <"$MNT/$name")" "$sum  -" "content of $name"
        done <"$WORK/promised"
    done
    [ -s "$WORK/promised" ] || fail "nothing was written"
    mount_down
}

# In the middle of everything: the store opens at its last commit, and is in order.
test_kill_under_load() {
    local round
    for round in {1..5}; do
        mount_up "nosupervise,commit=0.2,seal_delay=0.05"
        rm -f "$MNT"/file* "$MNT/new"
        "$HELPERS/mount_model" "$MNT" --ops 1000000 --seed "$round" >/dev/null 2>&1 &
        local load=$!
        sleep $((round % 2)).$((RANDOM % 9))5
        kill_daemon
        # It must have got an error, and not wait for ever.
        wait "$load" && fail "the load has not noticed"
        umount -l "$MNT"
        expect 0 "$COWFS" fsck --check-data "$STORE"
    done
    mount_up
    rm -f "$MNT"/file* "$MNT/new"
    eventually 20 stored_is 0
    mount_down
}

# A thread of the daemon's own asks the kernel to write pages, which the daemon serves: ended in the
# middle of that, it must not hang.
test_kill_while_seeking() {
    local round i loads
    for round in 1 2 3; do
        mount_up nosupervise
        loads=()
        for i in 1 2 3; do
            "$tool" seeks "$MNT/$i" &
            loads+=($!)
        done
        sleep 0.$((round * 3))
        kill_daemon
        # Each has got an error.
        wait "${loads[@]}"
        umount -l "$MNT"
        expect 0 "$COWFS" fsck "$STORE"
        mount_up
        rm -f "$MNT"/*
        mount_down
    done
}

test_orphans_are_freed() {
    mount_up nosupervise
    hold "$tool" orphan "$MNT/orphan" $((16 << 20))
    sync -f "$MNT"
    assert_eq "$(df_of stored_bytes)" $((16 << 20)) "stored bytes"
    crash
    release
    expect 0 "$COWFS" fsck "$STORE"
    mount_up
    eventually 20 stored_is 0
    assert_eq "$(df_of files)" 0
    mount_down
    assert_le "$(used_below)" $((1 << 20)) "used below"
}

# A process that dies is not the machine: after the kill the same mount point can be used at once.
test_mount_point_after_kill() {
    mount_up nosupervise
    echo text >"$MNT/a"
    # fsync; syncfs (sync -f) is not handed on to a FUSE daemon by the kernel.
    sync "$MNT/a"
    kill_daemon
    expect 1 cat "$MNT/a"
    expect 1 "$COWFS" mount "$STORE" "$MNT"
    assert_contains "$ERR" "umount -l"
    umount "$MNT"
    mount_up
    assert_eq "$(cat "$MNT/a")" text
}

store_sums() { (cd "$STORE" && find . -type f ! -name lock -exec b2sum {} + | sort); }

test_read_only() {
    mount_up
    random_file "$MNT/a" 1000000
    cp "$MNT/a" "$WORK/a"
    mkdir "$MNT/d"
    mount_down
    store_sums >"$WORK/before"
    mount_up ro
    assert_same "$WORK/a" "$MNT/a"
    local command
    for command in "touch $MNT/new" "rm $MNT/a" "rmdir $MNT/d" "truncate -s 5 $MNT/a" \
        "chmod 600 $MNT/a" "setfattr -n user.x -v y $MNT/a" "ln $MNT/a $MNT/b" \
        "mv $MNT/a $MNT/b" "$COWFS clone $MNT/a $MNT/b" "$COWFS seal $MNT/a"; do
        # shellcheck disable=SC2086 # words
        expect 1 $command
        assert_contains "$ERR" "Read-only file system"
    done
    "$COWFS" df --json "$MNT" | json .stored_bytes >/dev/null
    "$COWFS" stat --json "$MNT/a" | json .mapped_bytes >/dev/null
    unmount
    store_sums >"$WORK/after"
    diff "$WORK/before" "$WORK/after"
    fsck_clean
}

# Also one that was not closed in order: nothing is written to it.
test_read_only_after_kill() {
    mount_up nosupervise
    random_file "$MNT/a" 1000000
    cp "$MNT/a" "$WORK/a"
    sync -f "$MNT"
    "$COWFS" clone "$MNT/a" "$MNT/b"
    hold "$tool" orphan "$MNT/orphan" 1000000
    crash
    release
    store_sums >"$WORK/before"
    mount_up ro
    assert_same "$WORK/a" "$MNT/a"
    unmount
    store_sums >"$WORK/after"
    diff "$WORK/before" "$WORK/after"
    mount_up
    assert_same "$WORK/a" "$MNT/a"
}

# A store can be moved and copied while it is closed.
test_copied_store() {
    mount_up
    random_file "$MNT/a" 1000000
    "$COWFS" clone "$MNT/a" "$MNT/b"
    cp "$MNT/a" "$WORK/a"
    mount_down
    cp -a --sparse=always "$STORE" "$WORK/copy"
    mv "$STORE" "$WORK/moved"
    mount_up '' "$WORK/copy" "$WORK/mnt2"
    mount_up '' "$WORK/moved" "$MNT"
    echo other >"$WORK/mnt2/a"
    assert_same "$WORK/a" "$MNT/a"
    assert_same "$WORK/a" "$WORK/mnt2/b"
    mount_down "$WORK/mnt2" "$WORK/copy"
    mount_down "$MNT" "$WORK/moved"
}

run_tests "$@"
