#!/usr/bin/env bash
# FUSE over io_uring (-o io_uring): the same answers as over /dev/fuse, also when all room for
# requests is taken by those that wait for others, and a mount that works where the kernel has it
# switched off.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

switch=/sys/module/fuse/parameters/enable_uring

# set_switch Y|N: for the rest of the test. What is mounted already keeps what it has.
set_switch() {
    local old
    [ -e "$switch" ] || skip "this kernel has no FUSE over io_uring"
    old=$(<"$switch")
    [ "$old" != "$1" ] || return 0
    # shellcheck disable=SC2064 # the value of now
    trap "echo $old >$switch" EXIT
    { echo "$1" >"$switch"; } 2>/dev/null || skip "$switch is $old and cannot be set"
}

# ring_up [OPTIONS]: mounts, and it must be so, not a fall-back.
ring_up() {
    set_switch Y
    mount_up "io_uring${1:+,$1}"
    ! grep -q 'goes on over /dev/fuse' "$WORK.daemon.log" ||
        skip "$(grep -m 1 'goes on over /dev/fuse' "$WORK.daemon.log")"
}

test_switched_off() {
    set_switch N
    mount_up io_uring
    grep -q 'goes on over /dev/fuse.*enable_uring' "$WORK.daemon.log" || fail "nobody was told"
    echo text >"$MNT/a"
    assert_eq "$(cat "$MNT/a")" text
    mount_down
}

posix() {
    ring_up "${3:-}"
    mkdir "$MNT/d"
    chmod 755 "$MNT" "$MNT/d"
    "$HELPERS/$1" "$2" "$MNT/d"
    mount_down
}
test_rename() { posix posix_names rename; }
test_large_directory() { posix posix_names large_directory; }
test_xattrs() { posix posix_attr xattrs; }
test_truncate() { posix posix_content truncate; }
test_fallocate() { posix posix_content fallocate io_uring_depth=1; }

race() {
    ring_up "${1:-}"
    "$HELPERS/mount_race" "$2" "$MNT" "$3" "$4"
    mount_down
}
test_clone_of_file_under_writes() { race '' file 1 6; }
test_clone_of_directory_under_writers() { race seal_delay=0.001,commit=1 writers 3 4; }
test_cache() { race io_uring_depth=1 cache 7 150; }
test_cache_nowriteback() { race nowriteback cache 8 100; }

# Large requests go to other threads, and come back.
test_large() {
    ring_up
    head -c 64M /dev/urandom >"$WORK/wanted"
    dd if="$WORK/wanted" of="$MNT/a" bs=8M oflag=direct status=none
    assert_same "$WORK/wanted" "$MNT/a"
    dd if="$MNT/a" of="$WORK/direct" bs=8M iflag=direct status=none
    assert_same "$WORK/wanted" "$WORK/direct"
    cp "$MNT/a" "$MNT/b"
    sync "$MNT/b"
    assert_same "$WORK/wanted" "$MNT/b"
    mount_down
}

# Each of them waits for its file's pages to be written, by requests that need room, too.
test_more_seeks_than_room() {
    local i pids=()
    ring_up io_uring_depth=1
    for i in {1..40}; do
        # On one CPU, so that they come to one queue.
        (
            taskset -p -c 0 "$BASHPID" >/dev/null 2>&1 || true
            truncate -s 4M "$MNT/$i"
            for k in {0..15}; do
                printf 'data' | dd of="$MNT/$i" conv=notrunc bs=1 seek=$((k * 262144)) status=none
            done
            "$HELPERS/mount_tool" map "$MNT/$i" >"$WORK/map.$i"
        ) &
        pids+=($!)
    done
    for i in "${pids[@]}"; do
        wait "$i" || fail "one has failed"
    done
    for i in {1..40}; do
        [ "$(wc -l <"$WORK/map.$i")" -ge 16 ] || fail "$i: data is missing: $(cat "$WORK/map.$i")"
    done
    mount_down
}

# fsync and reads at once: none waits for the other.
test_many_at_once() {
    local i pids=()
    ring_up io_uring_depth=2
    head -c 4M /dev/urandom >"$WORK/wanted"
    cp "$WORK/wanted" "$MNT/read"
    for i in {1..12}; do
        for k in {1..20}; do
            echo "$k" >"$MNT/$i"
            sync "$MNT/$i"
        done &
        pids+=($!)
        for k in {1..5}; do
            dd if="$MNT/read" bs=64K iflag=direct status=none | cmp - "$WORK/wanted"
        done &
        pids+=($!)
    done
    for i in "${pids[@]}"; do
        wait "$i" || fail "one has failed"
    done
    mount_down
}

# A signal to the daemon while the mount is used: what was written is there afterwards.
test_ended_by_signal() {
    ring_up
    head -c 8M /dev/urandom >"$WORK/wanted"
    cp "$WORK/wanted" "$MNT/a"
    exec 9<"$MNT/a"
    kill -TERM "${daemons[$MNT]}"
    eventually 60 process_gone "${daemons[$MNT]}"
    wait "${daemons[$MNT]}" || fail "the daemon ended with $?"
    exec 9<&-
    unset "daemons[$MNT]"
    fsck_clean
    mount_up
    assert_same "$WORK/wanted" "$MNT/a"
    mount_down
}

# Killed: users get errors, nobody hangs, and what was durable is there.
test_killed() {
    ring_up
    head -c 8M /dev/urandom >"$WORK/wanted"
    cp "$WORK/wanted" "$MNT/a"
    sync "$MNT/a"
    (while echo x >"$MNT/b" && sync "$MNT/b"; do :; done) 2>/dev/null &
    sleep 0.3
    crash
    wait $! || true
    mount_up
    assert_same "$WORK/wanted" "$MNT/a"
    mount_down
}

test_bad_depth() {
    expect 2 "$COWFS" mount -o io_uring_depth=0 "$STORE" "$MNT"
    expect 2 "$COWFS" mount -o io_uring_depth=lots "$STORE" "$MNT"
}

run_tests "$@"
