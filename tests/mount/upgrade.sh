#!/usr/bin/env bash
# cowfs upgrade: the program that is installed now goes on with a live mount; or it cannot, says why or just
# dies, and the one that served before goes on.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

export TEST_LIMIT_S=${TEST_LIMIT_S:-170}

why_not_here() { why_no_resume; }

# An installation of its own, so that it can be replaced.
installed() {
    copy_binaries
    version=$("$COWFS" --version)
    version=${version#cowfs }
    COWFS=$user_cowfs
    chmod 755 "$WORK"
}
# As a package manager does: the new file takes the name of the old one, which lives on without.
install_daemon() {
    install -m 755 "$1" "$WORK/bin/cowfsd.new"
    mv "$WORK/bin/cowfsd.new" "$WORK/bin/cowfsd"
}
# Another version, as it says itself: a number of the same length.
next_version() {
    next=${version%.*}.$(((${version##*.} + 1) % 10))
    sed "s/${version//./\\.}/$next/g" "$BIN/cowfsd" >"$WORK/next"
    install_daemon "$WORK/next"
}
# install_script COMMANDS: a program that runs these instead, in sh; $real is a good one.
install_script() {
    cp "$BIN/cowfsd" "$WORK/real"
    printf '#!/bin/sh\nreal=%s\n%s\n' "$WORK/real" "$1" >"$WORK/script"
    install_daemon "$WORK/script"
}
only_a_check='case "$*" in "serve -c"*) exit 0 ;; esac'

# It serves all the while: an open file that has no name any more, and another one.
begin() {
    installed
    mount_up supervise
    chmod 755 "$MNT"
    echo text >"$MNT/a"
    echo text >"$MNT/b"
    exec 8<>"$MNT/a"
    rm "$MNT/a"
    first=$(daemon_pid)
}
served() {
    assert_eq "$(cat /proc/self/fd/8)" text
    assert_eq "$(cat "$MNT/b")" text
    echo text >"$MNT/c"
    assert_eq "$(cat "$MNT/c")" text
}
end() {
    exec 8>&-
    mount_down
}

test_another_version() {
    begin
    next_version
    expect 0 "$COWFS" upgrade "$MNT"
    assert_contains "$OUT" "version $next (process $(daemon_pid)) has taken over from $version (process $first)"
    served
    # It is that one that is started from now on.
    kill -KILL "$(daemon_pid)"
    served
    install_daemon "$BIN/cowfsd"
    expect 0 "$COWFS" upgrade "$MNT"
    assert_contains "$OUT" "version $version (process $(daemon_pid)) has taken over from $next"
    served
    end
}

# The store and the mount are what it says no to, by the same words as "cowfs mount" would.
test_refused() {
    begin
    install_script 'echo "cowfs: the store is of a format that I do not know" >&2; exit 1'
    expect 1 "$COWFS" upgrade "$MNT"
    assert_contains "$ERR" "goes on as it is: "
    assert_contains "$ERR" "the store is of a format that I do not know"
    assert_eq "$(daemon_pid)" "$first" "who serves"
    install_script 'exit 3'
    expect 1 "$COWFS" upgrade "$MNT"
    assert_contains "$ERR" "$WORK/bin/cowfsd ended with status 3"
    install_script 'kill -SEGV $$'
    expect 1 "$COWFS" upgrade "$MNT"
    assert_contains "$ERR" "$WORK/bin/cowfsd was killed by signal 11"
    echo text >"$WORK/bin/cowfsd"
    expect 1 "$COWFS" upgrade "$MNT"
    assert_contains "$ERR" "$WORK/bin/cowfsd cannot be started"
    rm "$WORK/bin/cowfsd"
    expect 1 "$COWFS" upgrade "$MNT"
    assert_contains "$ERR" "cannot be started: No such file"
    assert_eq "$(daemon_pid)" "$first" "who serves"
    served
    install_daemon "$BIN/cowfsd"
    end
}

# It says that it can, and then it cannot.
dies() {
    begin
    install_script "$only_a_check
$1"
    expect 1 "$COWFS" upgrade "$MNT"
    assert_contains "$ERR" "goes on as it is: "
    assert_contains "$ERR" "did not get as far as to serve"
    served
    # And it is not tried at each restart: the next one is there at once.
    kill -KILL "$(daemon_pid)"
    served
    assert_eq "$(grep -c "what is installed as $WORK/bin/cowfsd fails" "$WORK.daemon.log")" 1 "trials"
    # Until there is another.
    next_version
    expect 0 "$COWFS" upgrade "$MNT"
    assert_contains "$OUT" "version $next"
    served
    end
}
test_new_one_exits() { dies 'exit 1'; }
test_new_one_crashes() {
    # shellcheck disable=SC2034 # testlib.sh's
    expect_segv=1
    dies 'kill -SEGV $$'
}

# It serves, and dies soon: at a request that the one before can serve.
test_new_one_crashes_when_it_serves() {
    # shellcheck disable=SC2034 # testlib.sh's
    expect_segv=1
    begin
    setfattr -n user.cowfs-fault -v good "$MNT/b"
    install_script 'export COWFS_DEBUG_FAULTS=1
exec "$real" "$@"'
    expect 0 "$COWFS" upgrade "$MNT"
    assert_eq "$(getfattr --only-values -n user.cowfs-fault "$MNT/b")" good
    grep -q 'the program that served before goes on' "$WORK.daemon.log" || fail "nobody was told"
    served
    end
}

# Twelve times, to and fro, while others write and verify.
test_under_load() {
    local pids=() i
    need_tool fio
    begin
    mkdir "$MNT/fio" "$MNT/model"
    (
        while [ ! -e "$WORK/stop" ]; do
            fio --name=direct --directory="$MNT/fio" --size=16m --io_size=24m --rw=randrw \
                --verify=crc32c --verify_fatal=1 --ioengine=libaio --direct=1 --iodepth=8 \
                --bsrange=4k-64k --output="$WORK/fio.out" || fail "fio: $(cat "$WORK/fio.out")"
        done
    ) &
    pids+=($!)
    (
        while [ ! -e "$WORK/stop" ]; do
            "$HELPERS/mount_model" "$MNT/model" --seed "$RANDOM" --ops 300 --threads 2
            rm "$MNT"/model/*
        done
    ) &
    pids+=($!)
    for i in 1 2 3 4 5 6; do
        next_version
        expect 0 "$COWFS" upgrade "$MNT"
        assert_contains "$OUT" "version $next"
        install_daemon "$BIN/cowfsd"
        expect 0 "$COWFS" upgrade "$MNT"
        assert_contains "$OUT" "has taken over from $next"
    done
    : >"$WORK/stop"
    for i in "${pids[@]}"; do
        wait "$i" || fail "one of those who verify has failed"
    done
    served
    end
}

# Who may: root, and the user who has mounted.
test_rights() {
    begin
    expect 1 as_nobody "$COWFS" upgrade "$MNT"
    assert_contains "$ERR" "not permitted"
    assert_eq "$(daemon_pid)" "$first" "who serves"
    end
}

test_store_of_a_user() {
    open_dev_fuse
    installed
    STORE=$user_store MNT=$user_mnt
    expect 0 as_nobody "$COWFS" mount -o supervise "$STORE" "$MNT"
    as_nobody bash -c 'echo text >"$1"' - "$MNT/a"
    next_version
    expect 0 as_nobody "$COWFS" upgrade "$MNT"
    assert_contains "$OUT" "version $next"
    assert_eq "$(as_nobody cat "$MNT/a")" text
    # A death is not noticed, either.
    kill -KILL "$(pgrep -f "^cowfs serve .*-- $STORE $MNT\$")"
    assert_eq "$(as_nobody cat "$MNT/a")" text
    expect 0 as_nobody "$COWFS" umount "$MNT"
    expect 0 as_nobody "$COWFS" fsck --check-data "$STORE"
}

test_without_a_supervisor() {
    installed
    mount_up nosupervise
    expect 1 "$COWFS" upgrade "$MNT"
    assert_contains "$ERR" "goes on as it is: the mount has no supervisor"
    assert_contains "$ERR" "unmount it, and mount it again"
    mount_down
}

run_tests "$@"
