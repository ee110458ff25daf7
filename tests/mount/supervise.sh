#!/usr/bin/env bash
# A mount with a supervisor (-o supervise): the daemon dies at any moment, and those who use the mount
# see a pause, no error, nothing lost and nothing done twice.
#
#   COWFS_TEST_KILLS   how often the daemon is killed under load (default 20)
#   COWFS_TEST_REPORT  a file that gets what the load says: kills, errors, pauses
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

export TEST_LIMIT_S=${TEST_LIMIT_S:-170}

ended() { ! kill -0 "${daemons[$MNT]}" 2>/dev/null || process_gone "${daemons[$MNT]}"; }

why_not_here() { why_no_resume; }

# Once more and again, until the file is there.
until_stopped() {
    while [ ! -e "$WORK/stop" ]; do
        "$@" || return 1
    done
}
fio_round() {
    local name=$1
    shift
    fio --name="$name" --directory="$MNT/fio" --size=16m --io_size=24m --rw=randrw --verify=crc32c \
        --verify_fatal=1 --output="$WORK/$name.out" "$@" || fail "fio $*: $(cat "$WORK/$name.out")"
}
model_round() {
    "$HELPERS/mount_model" "$MNT/model" --seed "$RANDOM" --ops 500 --threads 2
    rm "$MNT"/model/*
}

# What knows each byte that it must read, all at once: the jobs of mount_torture (among them
# shared mappings), fio, the model test.
test_kills_under_load() {
    local pids=() pid
    need_tool fio
    mount_up "supervise${COWFS_TEST_OPTIONS:+,$COWFS_TEST_OPTIONS}"
    mkdir "$MNT/fio" "$MNT/model"
    until_stopped fio_round direct --ioengine=libaio --direct=1 --iodepth=16 --bsrange=4k-64k &
    pids+=($!)
    until_stopped fio_round mapped --ioengine=mmap --bs=4k &
    pids+=($!)
    until_stopped model_round &
    pids+=($!)
    "$HELPERS/mount_torture" "$MNT" "${COWFS_TEST_KILLS:-20}" "${COWFS_TEST_BETWEEN_MS:-300}" \
        ${COWFS_TEST_SEED:+"$COWFS_TEST_SEED"} | tee -a "${COWFS_TEST_REPORT:-/dev/null}"
    : >"$WORK/stop"
    for pid in "${pids[@]}"; do
        wait "$pid" || fail "one of those who verify has failed"
    done
    mount_down
    echo "fio, the model test and fsck: no error" >>"${COWFS_TEST_REPORT:-/dev/null}"
}

test_segv() {
    local pid
    # shellcheck disable=SC2034 # testlib.sh's
    expect_segv=1
    mount_up supervise
    echo text >"$MNT/a"
    exec 8<"$MNT/a"
    pid=$(daemon_pid)
    kill -SEGV "$pid"
    assert_eq "$(cat <&8)" text
    exec 8<&-
    eventually 10 is_another "$pid"
    mount_down
}

test_locked_while_nobody_serves() {
    local pid
    mount_up supervise
    pid=$(daemon_pid)
    kill -KILL "$pid"
    expect 8 "$COWFS" fsck "$STORE"
    assert_contains "$ERR" "in use"
    mount_down
}

# AddressSanitizer makes an exit status of it.
deaths() {
    grep -cE 'daemon, process [0-9]+, (was killed by signal 11|ended with status 99)' \
        "$WORK.daemon.log"
}

test_request_that_kills() {
    export COWFS_DEBUG_FAULTS=1
    mount_up supervise
    echo text >"$MNT/a"
    expect 1 getfattr -n user.cowfs-fault "$MNT/a"
    assert_contains "$ERR" "Input/output error"
    # The rest goes on.
    assert_eq "$(cat "$MNT/a")" text
    grep -q 'again and again' "$WORK.daemon.log" || fail "nobody was told"
    assert_eq "$(deaths)" 3 "deaths"
    mount_down
}

# The same for an ioctl, and for a plain user's, which another thread serves.
test_ioctl_that_kills() {
    export COWFS_DEBUG_FAULTS=du
    mount_up supervise
    chmod 755 "$MNT"
    echo text >"$MNT/a"
    expect 1 "$COWFS" du "$MNT/a"
    assert_contains "$ERR" "Input/output error"
    assert_eq "$(deaths)" 3 "deaths"
    # The binaries may lie where he cannot go.
    cp "$COWFS" "$WORK/cowfs"
    chmod 755 "$WORK" "$WORK/cowfs"
    expect 1 setpriv --reuid 65534 --regid 65534 --clear-groups "$WORK/cowfs" du "$MNT/a"
    assert_contains "$ERR" "Input/output error"
    assert_eq "$(deaths)" 6 "deaths"
    assert_eq "$(cat "$MNT/a")" text
    mount_down
}

# The OOM killer's, in a control group of its own.
test_out_of_memory() {
    local pid group
    group=$(own_group) || skip "no control group with a limit of memory can be made here"
    mount_up supervise
    random_file "$WORK/a" 8M
    cp "$WORK/a" "$MNT/a"
    pid=$(daemon_pid)
    echo "$pid" >"$group/cgroup.procs"
    # What it asks for next is too much: memory of its own, and that of a store on tmpfs.
    limit_memory "$group" 1M
    # The next daemon is in the supervisor's group.
    cp "$WORK/a" "$MNT/b"
    eventually 20 is_another "$pid"
    grep -q "process $pid, was killed by signal 9" "$WORK.daemon.log" || fail "it was not killed"
    grep -q '^oom_kill [1-9]' "$group/memory.events" "$group/memory.oom_control" 2>/dev/null ||
        fail "it was not the OOM killer"
    assert_same "$WORK/a" "$MNT/a"
    assert_same "$WORK/a" "$MNT/b"
    mount_down
    rmdir "$group"
}
# Prints its directory, in control groups of either version. What earlier tests left is empty.
own_group() {
    local top=/sys/fs/cgroup/memory group
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        top=/sys/fs/cgroup
        echo +memory >"$top/cgroup.subtree_control" 2>/dev/null || return 1
    fi
    group=$top/cowfs-test-oom-$(basename "$WORK")
    mkdir "$group" 2>/dev/null || return 1
    [ -w "$group/memory.max" ] || [ -w "$group/memory.limit_in_bytes" ] || return 1
    printf '%s\n' "$group"
}
limit_memory() {
    if [ -e "$1/memory.max" ]; then
        echo "$2" >"$1/memory.max"
    else
        echo "$2" >"$1/memory.limit_in_bytes"
    fi
}

# A command whose last change is done by a daemon that dies before it answers.
unanswered() {
    local pid
    pid=$(daemon_pid)
    expect 1 getfattr -n user.cowfs-die "$MNT"
    expect 0 "$@"
    is_another "$pid" || fail "no daemon died: $*"
}

test_done_and_not_answered() {
    export COWFS_DEBUG_FAULTS=1
    mount_up supervise
    unanswered mkdir "$MNT/d"
    unanswered sh -c 'set -C; : >"$1"' sh "$MNT/a"
    unanswered ln "$MNT/a" "$MNT/b"
    unanswered ln -s there "$MNT/s"
    unanswered mkfifo "$MNT/f"
    unanswered mv "$MNT/b" "$MNT/d/b"
    unanswered setfattr -n user.x -v 1 "$MNT/a"
    unanswered setfattr -x user.x "$MNT/a"
    unanswered rm "$MNT/s"
    echo text >"$MNT/a"
    unanswered "$COWFS" clone "$MNT/a" "$MNT/clone"
    assert_eq "$(cat "$MNT/clone")" text
    unanswered "$COWFS" clone --count 3 "$MNT/a" "$MNT/many"
    assert_eq "$(cat "$MNT"/many-*)" $'text\ntext\ntext'
    unanswered "$COWFS" rm "$MNT"/many-*
    unanswered "$COWFS" rm "$MNT/d"
    mkdir "$MNT/e"
    expect 0 "$COWFS" rm "$MNT/e"
    ! stat "$MNT/e" 2>/dev/null || fail "the kernel was not told"
    assert_eq "$(cd "$MNT" && echo *)" "a clone f"
    assert_eq "$(stat -c %h "$MNT/a")" 1
    mount_down
}

test_store_vanishes() {
    local pid status=0
    mount_up supervise
    echo text >"$MNT/a"
    pid=$(daemon_pid)
    mv "$STORE" "$STORE.away"
    kill -KILL "$pid"
    # An error, not a hang.
    expect 1 timeout 60 stat "$MNT/b"
    eventually 20 ended
    wait "${daemons[$MNT]}" || status=$?
    unset "daemons[$MNT]"
    assert_eq "$status" 1 "exit status of the supervisor"
    grep -q 'given up' "$WORK.daemon.log" || fail "nobody was told"
    ! is_mounted "$MNT" || fail "still mounted"
    fsck_clean "$STORE.away"
}

test_upgrade() {
    local pid
    mount_up supervise
    echo text >"$MNT/a"
    exec 8<>"$MNT/a"
    rm "$MNT/a"
    pid=$(daemon_pid)
    expect 0 "$COWFS" upgrade "$MNT"
    assert_contains "$OUT" "has taken over"
    is_another "$pid" || fail "the same process serves"
    assert_eq "$(cat <&8)" text
    exec 8>&-
    mount_down
}

test_ends_by_signal() {
    local status=0
    mount_up supervise
    echo text >"$MNT/a"
    kill -TERM "${daemons[$MNT]}"
    wait "${daemons[$MNT]}" || status=$?
    unset "daemons[$MNT]"
    assert_eq "$status" 0
    ! is_mounted "$MNT" || fail "still mounted"
    fsck_clean
    mount_up supervise
    assert_eq "$(cat "$MNT/a")" text
    mount_down
}

# The cleaning up of a test that has failed ends its own mounts alone: numbers of connections are used again
# as soon as they are free.
test_clean_up_leaves_others_alone() {
    local other=$WORK.other
    mkdir "$other"
    mount_up supervise
    mountpoint -d "$MNT" | sed 's/.*://' >"$other.connections"
    # What was written down of a mount that is over.
    (set +e && trap - ERR && clean_up "$other" 1)
    echo text >"$MNT/a"
    assert_eq "$(cat "$MNT/a")" text
    rm -f "$other.connections"
    # One that is there, and hangs: it is ended.
    mkdir "$other" "$other/mnt"
    mount_up supervise "$other/store" "$other/mnt"
    kill -STOP "${daemons[$other/mnt]}"
    kill -KILL "$(pgrep -o -P "${daemons[$other/mnt]}" cowfsd)"
    (set +e && trap - ERR && clean_up "$other" 1)
    unset "daemons[$other/mnt]"
    ! is_mounted "$other/mnt" || fail "still mounted"
    mount_down
}

# Nobody is left but the process that waits for pages: the connection ends all the same.
test_all_are_killed() {
    local pid
    mount_up supervise
    echo text >"$MNT/a"
    exec 8<"$MNT/a"
    pid=$(daemon_pid)
    kill -KILL "${daemons[$MNT]}" "$pid"
    wait "${daemons[$MNT]}" 2>/dev/null || true
    unset "daemons[$MNT]"
    expect 1 timeout 60 stat "$MNT/b"
    exec 8<&-
    umount -l "$MNT"
    mount_up supervise
    mount_down
}

test_in_the_background() {
    "$COWFS" mount -o supervise "$STORE" "$MNT"
    mountpoint -d "$MNT" | sed 's/.*://' >>"$WORK.connections"
    echo text >"$MNT/a"
    kill -KILL "$(pgrep -o -f "^cowfs serve .*-- $STORE $MNT\$")"
    assert_eq "$(cat "$MNT/a")" text
    echo more >>"$MNT/a"
    "$COWFS" umount "$MNT"
    fsck_clean
    # What fails is said by the command.
    expect 1 "$COWFS" mount -o supervise,chunk_size=64K "$STORE" "$MNT"
    assert_contains "$ERR" "chunks of"
    ! is_mounted "$MNT" || fail "still mounted"
    # What would not survive is refused, with the reason.
    expect 2 "$COWFS" mount -o supervise,io_uring "$STORE" "$MNT"
    assert_contains "$ERR" "does not send again"
}

run_tests "$@"
