#!/usr/bin/env bash
# cowfs mount and umount: options, mount(8) and fstab, and what is refused.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

# As users do it: in the background.
test_background() {
    local said
    # Whoever reads what it says is not kept waiting by the daemon.
    said=$(timeout 60 "$COWFS" mount "$STORE" "$MNT" </dev/null 2>/dev/null)
    assert_eq "$said" ""
    is_mounted "$MNT" || fail "not mounted"
    echo text >"$MNT/a"
    assert_eq "$(findmnt -n -o FSTYPE,SOURCE "$MNT" | tr -s ' ')" "fuse.cowfs $STORE"
    assert_eq "$(stat -c '%a %U' "$STORE")" "700 root"
    expect 0 "$COWFS" umount "$MNT"
    ! is_mounted "$MNT" || fail "still mounted"
    # Closed, too: it can be checked at once.
    fsck_clean
    # umount(8) returns earlier, but does.
    "$COWFS" mount "$STORE" "$MNT"
    assert_eq "$(cat "$MNT/a")" text
    umount "$MNT"
    eventually 20 "$COWFS" fsck "$STORE" >/dev/null
    fsck_clean
}

test_defaults() {
    local options
    mount_up
    options=$(findmnt -n -o OPTIONS "$MNT")
    for option in rw nosuid nodev default_permissions allow_other; do
        [[ ",$options," == *",$option,"* ]] || fail "no $option in $options"
    done
    echo text >"$MNT/a"
    chmod 755 "$MNT"
    setpriv --reuid 65534 --regid 65534 --clear-groups cat "$MNT/a" >/dev/null
    unmount
    mount_up suid,dev,noallow_other,noatime
    options=$(findmnt -n -o OPTIONS "$MNT")
    [[ ",$options," != *,nosuid,* && ",$options," != *,nodev,* && ",$options," != *,allow_other,* ]] ||
        fail "in spite of suid,dev,noallow_other: $options"
    expect 1 setpriv --reuid 65534 --regid 65534 --clear-groups cat "$MNT/a"
}

test_unknown_options() {
    local option
    for option in nonsense chunk_size=5K chunk_size=1M chunk_size= seal=maybe commit=never \
        seal_delay=-1 threads=0 threads=x cache_size=many log=loud writeback=1; do
        expect 2 "$COWFS" mount -o "$option" "$STORE" "$MNT"
        assert_contains "$ERR" "${option%%=*}"
        assert_missing "$STORE"
        expect 2 "$COWFS" mount -o "ro,$option,noatime" "$STORE" "$MNT"
        assert_contains "$ERR" "${option%%=*}"
    done
    expect 2 "$COWFS" mount "$STORE"
    expect 2 "$COWFS" mount "$STORE" "$MNT" "$MNT"
    ! is_mounted "$MNT" || fail "mounted"
}

test_many_options() {
    mount_up "rw,noexec,noatime,chunk_size=8K,commit=0.5,seal=on,seal_delay=2,seal_rate=100M,cache_size=8M,threads=4,read_ahead=1M,log=debug,fsname=pool,max_read=131072"
    assert_eq "$(findmnt -n -o SOURCE "$MNT")" pool
    assert_eq "$(df_of chunk_bytes)" 8192
    random_file "$WORK/a" 5000000
    cp "$WORK/a" "$MNT/a"
    echo 3 >/proc/sys/vm/drop_caches
    assert_same "$WORK/a" "$MNT/a"
    unmount
    # Another size of chunks than the store has.
    expect 1 "$COWFS" mount -o chunk_size=4K "$STORE" "$MNT"
    assert_contains "$ERR" "8192"
    mount_up chunk_size=8K
}

test_refused_paths() {
    mkdir "$WORK/empty" "$WORK/foreign"
    echo text >"$WORK/file"
    echo text >"$WORK/foreign/file"
    expect 1 "$COWFS" mount "$STORE" "$WORK/none"
    assert_contains "$ERR" "$WORK/none: No such file"
    expect 1 "$COWFS" mount "$STORE" "$WORK/file"
    assert_contains "$ERR" "$WORK/file: Not a directory"
    assert_missing "$STORE"
    expect 1 "$COWFS" mount "$WORK/none/store" "$MNT"
    assert_contains "$ERR" "$WORK/none"
    expect 1 "$COWFS" mount "$WORK/file" "$MNT"
    assert_contains "$ERR" "$WORK/file"
    # A directory of other things is no place for a store.
    expect 1 "$COWFS" mount "$WORK/foreign" "$MNT"
    assert_contains "$ERR" "$WORK/foreign"
    assert_eq "$(names_in "$WORK/foreign")" file
    # The daemon would wait for itself.
    expect 1 "$COWFS" mount "$MNT/store" "$MNT"
    assert_contains "$ERR" "lies inside"
    expect 1 "$COWFS" mount "$WORK/empty" "$WORK/empty"
    assert_contains "$ERR" "lies inside"
    assert_eq "$(names_in "$WORK/empty")" ""
    # An empty directory is made a store.
    mount_up '' "$WORK/empty" "$MNT"
    mount_down "$MNT" "$WORK/empty"
    # A read-only mount makes none.
    expect 1 "$COWFS" mount -o ro "$WORK/new" "$MNT"
    assert_missing "$WORK/new"
}

test_one_daemon_a_store() {
    mount_up
    echo text >"$MNT/a"
    mkdir "$WORK/mnt2"
    expect 1 "$COWFS" mount "$STORE" "$WORK/mnt2"
    assert_contains "$ERR" "in use by process $(serving_pid)"
    expect 1 "$COWFS" mount -o ro "$STORE" "$WORK/mnt2"
    assert_contains "$ERR" "in use"
    expect 8 "$COWFS" fsck "$STORE"
    assert_contains "$ERR" "in use"
    ! is_mounted "$WORK/mnt2" || fail "mounted twice"
    assert_eq "$(cat "$MNT/a")" text
}

# By default the mount survives its daemon; nosupervise and io_uring have it end with that.
test_supervised_by_default() {
    local pid
    [ -z "$(why_no_resume)" ] || skip "$(why_no_resume)"
    mount_up
    echo text >"$MNT/a"
    pid=$(daemon_pid)
    kill -KILL "$pid"
    assert_eq "$(cat "$MNT/a")" text
    eventually 30 is_another "$pid"
    mount_down
    mount_up nosupervise
    assert_eq "$(serving_pid)" "${daemons[$MNT]}"
    mount_down
    mount_up io_uring
    assert_eq "$(serving_pid)" "${daemons[$MNT]}"
    assert_eq "$(grep -c 'does not survive its daemon' "$WORK.daemon.log")" 1 "said how often"
}

# Where the means are missing it is said once, and an error only for who has asked for it.
test_supervisor_not_to_be_had() {
    need_tool strace
    printf '#!/bin/sh\nexec strace -f -qqq -o /dev/null -e trace=memfd_create %s "%s" "$@"\n' \
        '-e inject=memfd_create:error=ENOSYS' "$COWFS" >"$WORK/cowfs"
    chmod +x "$WORK/cowfs"
    expect 1 "$WORK/cowfs" mount -o supervise "$STORE" "$MNT"
    assert_contains "$ERR" "$MNT: what it takes to restart the daemon"
    COWFS=$WORK/cowfs mount_up
    echo text >"$MNT/a"
    assert_eq "$(grep -c 'will not survive its daemon' "$WORK.daemon.log")" 1 "said how often"
    mount_down
    mount_up
    assert_eq "$(cat "$MNT/a")" text
}

# umount(8) returns before the daemon has closed the store. Whoever goes on at once must not see that.
test_umount_and_mount_at_once() {
    local i
    "$COWFS" mount "$STORE" "$MNT"
    for i in {1..10}; do
        head -c 4M /dev/urandom >"$MNT/$i"
        umount "$MNT"
        "$COWFS" mount "$STORE" "$MNT" || fail "mount $i right after umount(8)"
        umount "$MNT"
        "$COWFS" fsck "$STORE" >/dev/null || fail "fsck $i right after umount(8)"
        "$COWFS" mount "$STORE" "$MNT"
        assert_eq "$(stat -c %s "$MNT/$i")" $((4 << 20))
    done
    "$COWFS" umount "$MNT"
}

test_busy() {
    mount_up
    echo text >"$MNT/a"
    exec 9<"$MNT/a"
    expect 1 "$COWFS" umount "$MNT"
    assert_contains "$ERR" "$MNT: is in use"
    # It is left alone.
    assert_eq "$(cat <&9)" text
    echo more >>"$MNT/a"
    exec 9<&-
    mount_down
    expect 1 "$COWFS" umount "$MNT"
    assert_contains "$ERR" "$MNT"
    expect 1 "$COWFS" umount "$WORK/none"
    assert_contains "$ERR" "$WORK/none"
}

test_several_mounts() {
    local i
    for i in 1 2 3; do
        mount_up '' "$WORK/store$i" "$WORK/mnt$i"
        echo "$i" >"$WORK/mnt$i/a"
    done
    expect 0 "$COWFS" umount "$WORK/mnt1" "$WORK/mnt2"
    wait "${daemons[$WORK/mnt1]}" "${daemons[$WORK/mnt2]}"
    unset "daemons[$WORK/mnt1]" "daemons[$WORK/mnt2]"
    assert_eq "$(cat "$WORK/mnt3/a")" 3
    mount_down "$WORK/mnt3" "$WORK/store3"
    fsck_clean "$WORK/store1"
}

test_foreground() {
    local pid
    "$COWFS" mount -f "$STORE" "$MNT" 2>"$WORK/log" &
    pid=$!
    eventually 20 is_mounted "$MNT"
    echo text >"$MNT/a"
    kill -0 "$pid" || fail "the foreground process has ended"
    kill -INT "$pid"
    wait "$pid"
    assert_contains "$(cat "$WORK/log")" "mounted on $MNT"
    fsck_clean
}

# As mount(8) runs its helpers.
test_helper() {
    local helper=$WORK/mount.fuse.cowfs
    ln -s "$COWFS" "$helper"
    expect 0 "$helper" "$STORE" "$MNT" -o rw,noatime,seal_delay=7
    is_mounted "$MNT" || fail "not mounted"
    "$COWFS" umount "$MNT"
    expect 0 "$helper" "$STORE" "$MNT" -n -o rw -v
    "$COWFS" umount "$MNT"
    # -f: all but mounting. -s: options that are not known are ignored.
    expect 0 "$helper" "$STORE" "$MNT" -f -o rw
    ! is_mounted "$MNT" || fail "mounted in spite of -f"
    expect 1 "$helper" "$STORE" "$MNT" -o nonsense
    assert_contains "$ERR" nonsense
    expect 0 "$helper" "$STORE" "$MNT" -s -o nonsense
    "$COWFS" umount "$MNT"
    expect 32 "$helper" "$STORE" "$WORK/none"
    fsck_clean
}

# mount(8) looks for its helpers in /sbin, which in this namespace is one of our own.
fake_sbin() {
    [ "${COWFS_TEST_NAMESPACE:-}" = private ] || skip "no mount namespace can be had here"
    local sbin
    sbin=$(realpath /sbin)
    mkdir "$WORK/sbin" "$WORK/sbin.system"
    mount --bind "$sbin" "$WORK/sbin.system"
    cp -as "$WORK/sbin.system/." "$WORK/sbin"
    ln -s "$COWFS" "$WORK/sbin/mount.fuse.cowfs"
    mount --bind "$WORK/sbin" "$sbin"
}
real_sbin() {
    umount "$(realpath /sbin)"
    umount "$WORK/sbin.system"
}

test_mount_t() {
    fake_sbin
    mount -t fuse.cowfs -o noexec,seal=off "$STORE" "$MNT"
    assert_contains "$(findmnt -n -o OPTIONS "$MNT")" noexec
    echo text >"$MNT/a"
    "$COWFS" umount "$MNT"
    expect "1|2" mount -t fuse.cowfs -o nonsense "$STORE" "$MNT"
    assert_contains "$ERR" nonsense
    # fstab: by mount point alone, and all at once.
    printf '%s\n' "# a comment" \
        "$STORE $MNT fuse.cowfs noatime,nofail,noauto,seal_delay=60,x-systemd.requires=network.target,_netdev 0 0" \
        >"$WORK/fstab"
    mount --fstab "$WORK/fstab" "$MNT"
    assert_eq "$(cat "$MNT/a")" text
    umount "$MNT"
    "$COWFS" fsck "$STORE" >/dev/null
    sed -i s/noauto,// "$WORK/fstab"
    mount --fstab "$WORK/fstab" -a
    assert_eq "$(cat "$MNT/a")" text
    # A second time is nothing to do, since fsname is the store.
    mount --fstab "$WORK/fstab" -a
    assert_eq "$(grep -cF " $MNT " /proc/self/mountinfo)" 1
    expect 1 mount -o remount,ro "$MNT"
    assert_contains "$ERR" "unmount and mount again"
    "$COWFS" umount "$MNT"
    real_sbin
    fsck_clean
}

run_tests "$@"
