#!/usr/bin/env bash
# Power cuts of a block image below the whole store, RocksDB's files included, while several writers
# work (mount_power.c). What was fsynced is there, the rest is old or new, the store needs no repair.
#
# - shutdown: the file system below, XFS or ext4, is ended by its own ioctl: what it had not written is
#   lost. Every cut is the end of that store's daemon; the next one goes on with what is left.
# - snapshot: the image lies on an XFS, and is copied by FICLONE under load. That waits for writes that
#   are under way and keeps others from beginning, so the copy is what a disk without a volatile cache
#   would have had at one moment. The load goes on.
#
# (What a disk with such a cache may leave out or tear, model_power does, page by page.)
#
# What counts is what a writer was told before the cut began: ext4 tells an fdatasync that is under way
# while it ends that it was done, and loses it (programs that write to it directly see the same).
#
#   COWFS_TEST_CUTS     cuts in each test (default 3); with 20 and more some must fall into commits
#   COWFS_TEST_REPORT   a file to which each test adds a line that says where the cuts fell
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

cuts=${COWFS_TEST_CUTS:-3}
export TEST_LIMIT_S=${TEST_LIMIT_S:-$((120 + cuts * 20))}
power=$HELPERS/mount_power
export COWFS_DEBUG_FAULTS=1

why_not_here() {
    [ -e /dev/loop-control ] || echo "no loop devices here (/dev/loop-control is missing)"
}

# make_image FILE KIND
make_image() {
    truncate -s 1G "$1"
    case $2 in
        # What is discarded is a hole of the image; of no use for files that live for seconds.
        xfs) mkfs.xfs -q -K "$1" ;;
        ext4) mkfs.ext4 -q -E nodiscard "$1" ;;
    esac
}

# mount_image FILE DIRECTORY [OPTIONS]: with the recovery that the file system has.
mount_image() {
    mkdir -p "$2"
    mount -o "loop${3:+,$3}" "$1" "$2" || skip "no $1 can be mounted here"
}

declare -A places=([data]=0 [log]=0 [commit]=0 [between]=0)
count_place() { places[$1]=$((places[$1] + 1)); }
report() {
    local inside=$((places[data] + places[log] + places[commit]))
    local text="$1: $cuts cuts, $inside in a commit (${places[data]} before its data was synced, \
${places[log]} after that), ${places[between]} between commits; every promise kept"
    echo "$text"
    [ -z "${COWFS_TEST_REPORT:-}" ] || echo "$text" >>"$COWFS_TEST_REPORT"
    [ "$cuts" -lt 20 ] || [ "$inside" -gt 0 ] || fail "no cut fell into a commit"
}

# start_work NUMBER LIMIT_MS: writers in a directory of their own, which is durable.
start_work() {
    mkdir "$MNT/work.$1"
    sync "$MNT"
    rm -f "$WORK/log" "$WORK/said"
    "$power" work "$MNT/work.$1" "$STORE" "$WORK/log" $((RANDOM * 32768 + RANDOM)) "$2" \
        >"$WORK/said" 2>&1 &
    worker=$!
    eventually 20 grep -q ready "$WORK/said"
}

random_sleep() { sleep "0.$(printf '%03d' $((RANDOM % 700 + 20)))"; }

# Each with what it has of roads.
options=("commit=0.2,seal_delay=0.02" "commit=5,nowriteback" "commit=0.05,passthrough,seal_delay=0.01"
    "commit=5,seal=off")

# shutdown_cuts KIND CHUNK_SIZE
shutdown_cuts() {
    local n place
    make_image "$WORK/image" "$1"
    STORE=$WORK/below/store
    for ((n = 0; n < cuts; n++)); do
        mount_image "$WORK/image" "$WORK/below"
        mount_up "nosupervise,${options[n % ${#options[@]}]},chunk_size=$2"
        rm -rf "$MNT"/work.*
        start_work "$n" 60000
        random_sleep
        # With all that the journal of the file system below has, or only what is on the disk.
        place=$(POWER_LOGFLUSH=$([ $((RANDOM % 3)) != 0 ] || echo 1) \
            "$power" shutdown "$WORK/below" "$MNT" "$WORK/log" "$WORK/cut")
        count_place "$place"
        wait "$worker" || fail "the writers: $(cat "$WORK/said")"
        kill_daemon
        umount -l "$MNT"
        eventually 20 umount "$WORK/below"
        mount_image "$WORK/image" "$WORK/below"
        expect 0 "$COWFS" fsck --check-data "$STORE"
        mount_up "commit=5"
        "$power" check "$MNT/work.$n" "$WORK/log" "$WORK/cut" >"$WORK/files" ||
            fail "cut $n, $place"
        mount_down
        umount "$WORK/below"
    done
    report "shutdown of $1, chunks of $2"
}

# snapshot_cuts KIND CHUNK_SIZE [OPTION]
snapshot_cuts() {
    local n place
    make_image "$WORK/host.image" xfs
    truncate -s 6G "$WORK/host.image"
    mount_image "$WORK/host.image" "$WORK/host"
    xfs_growfs "$WORK/host" >/dev/null
    make_image "$WORK/host/image" "$1"
    mount_image "$WORK/host/image" "$WORK/below"
    STORE=$WORK/below/store
    for ((n = 0; n < cuts; n++)); do
        # The writers begin anew now and then, so that their log has an end.
        if [ $((n % 20)) = 0 ]; then
            [ "$n" = 0 ] || { stop_work && mount_down; }
            mount_up "${options[n / 20 % ${#options[@]}]},chunk_size=$2"
            rm -rf "$MNT"/work.*
            start_work "$n" 600000
        fi
        random_sleep
        place=$("$power" snapshot "$WORK/host/image" "$WORK/host/copy" "$MNT" "$WORK/log" "$WORK/cut")
        kill -STOP "$worker"
        count_place "$place"
        check_copy "$((n / 20 * 20))" "$1" || fail "cut $n, $place"
        kill -CONT "$worker"
    done
    stop_work
    mount_down
    umount "$WORK/below"
    report "snapshots of $1, chunks of $2"
}

stop_work() {
    kill "$worker"
    wait "$worker" || true
}

# check_copy NUMBER KIND
check_copy() {
    local twin=''
    # Its twin is mounted.
    [ "$2" != xfs ] || twin=nouuid
    mount_image "$WORK/host/copy" "$WORK/below2" "$twin"
    expect 0 "$COWFS" fsck --check-data "$WORK/below2/store"
    mount_up commit=5 "$WORK/below2/store" "$WORK/mnt2"
    "$power" check "$WORK/mnt2/work.$1" "$WORK/log" "$WORK/cut" >"$WORK/files" || return 1
    mount_down "$WORK/mnt2" "$WORK/below2/store"
    umount "$WORK/below2"
    rm "$WORK/host/copy"
}

# Would it be noticed? A daemon whose syncs do nothing breaks its promises.
test_lie() {
    local n tracer noticed=''
    need_tool strace
    make_image "$WORK/image" ext4
    for ((n = 0; n < 10 && !${#noticed}; n++)); do
        mount_image "$WORK/image" "$WORK/below"
        STORE=$WORK/below/store.$n
        mount_up nosupervise,commit=5
        strace -f -qqq -o "$WORK/trace" -p "${daemons[$MNT]}" -e trace=fdatasync,fsync \
            -e inject=fdatasync,fsync:retval=0 2>"$WORK/tracer" &
        tracer=$!
        eventually 20 is_traced "${daemons[$MNT]}"
        start_work "$n" 60000
        eventually 20 grep -q fdatasync "$WORK/trace"
        random_sleep
        "$power" shutdown "$WORK/below" "$MNT" "$WORK/log" "$WORK/cut"
        wait "$worker" || fail "the writers: $(cat "$WORK/said")"
        kill_daemon
        wait "$tracer" || true
        umount -l "$MNT"
        eventually 20 umount "$WORK/below"
        mount_image "$WORK/image" "$WORK/below"
        if ! "$COWFS" mount "$STORE" "$MNT" 2>"$WORK/why"; then
            noticed=$(<"$WORK/why")
        else
            "$power" check "$MNT/work.$n" "$WORK/log" "$WORK/cut" >/dev/null 2>"$WORK/why" ||
                noticed=$(<"$WORK/why")
            "$COWFS" umount "$MNT"
        fi
        umount "$WORK/below"
    done
    echo "noticed: $noticed"
    [ -n "$noticed" ] || fail "ten cuts, and it was not noticed that nothing is synced"
}
is_traced() { grep -q '^TracerPid:[[:space:]]*[1-9]' "/proc/$1/status"; }

test_shutdown_xfs() { shutdown_cuts xfs 4K; }
test_shutdown_ext4() { shutdown_cuts ext4 16K; }
test_snapshot_xfs() { snapshot_cuts xfs 16K; }
test_snapshot_ext4() { snapshot_cuts ext4 4K; }

run_tests "$@"
