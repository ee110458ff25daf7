#!/usr/bin/env bash
# What programs do to files, call by call (posix_*.c), each on a fresh store; some of it also
# without the writeback cache, with other sizes of chunks, and again after mounting anew.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

# posix PROGRAM CASE [MOUNT OPTIONS]
posix() {
    mount_up "${3:-}"
    mkdir "$MNT/d"
    chmod 755 "$MNT" "$MNT/d"
    "$HELPERS/$1" "$2" "$MNT/d"
    mount_down
}

test_create() { posix posix_names create; }
test_directories() { posix posix_names directories; }
test_rename() { posix posix_names rename; }
test_rename_flags() { posix posix_names rename_flags; }
test_unlink_open() { posix posix_names unlink_open; }
test_hard_links() { posix posix_names hard_links; }
test_symlinks() { posix posix_names symlinks; }
test_special_files() { posix posix_names special; }
test_large_directory() { posix posix_names large_directory; }
test_readdir_changing() { posix posix_names readdir_changing; }
test_handles() { posix posix_names handles; }

test_modes() { posix posix_attr modes; }
test_owners() { posix posix_attr owners; }
test_times() { posix posix_attr times; }
test_times_nowriteback() { posix posix_attr times nowriteback; }
test_xattrs() { posix posix_attr xattrs; }
test_statfs() { posix posix_attr statfs; }
test_flock() { posix posix_attr flock; }
test_range_locks() { posix posix_attr range_locks; }

test_truncate() { posix posix_content truncate; }
test_truncate_64k() { posix posix_content truncate chunk_size=64K; }
test_fallocate() { posix posix_content fallocate; }
test_fallocate_64k() { posix posix_content fallocate chunk_size=64K; }
test_seek() { posix posix_content seek; }
test_seek_64k() { posix posix_content seek chunk_size=64K; }
test_seek_nowriteback() { posix posix_content seek nowriteback; }
test_sync() { posix posix_content sync; }
test_direct() { posix posix_content direct; }
test_direct_nowriteback() { posix posix_content direct nowriteback; }
test_append() { posix posix_content append; }
test_append_nowriteback() { posix posix_content append nowriteback; }
test_tmpfile() { posix posix_content tmpfile; }
test_mmap() { posix posix_content mmap; }
test_mmap_nowriteback() { posix posix_content mmap nowriteback; }
test_sparse() { posix posix_content sparse; }
test_copy_range() { posix posix_content copy_range; }
test_copy_range_64k() { posix posix_content copy_range chunk_size=64K; }
test_copy_range_nowriteback() { posix posix_content copy_range nowriteback; }
test_sendfile() { posix posix_content sendfile; }

test_one_thread() { posix posix_content seek threads=1; }

# A program on the mount runs, and one that is being run cannot be written.
test_programs() {
    mount_up
    cp /bin/sleep "$MNT/sleep"
    "$MNT/sleep" 0
    "$MNT/sleep" 30 &
    local pid=$!
    eventually 10 grep -q sleep "/proc/$pid/cmdline"
    expect 1 bash -c ': >>"$1"' - "$MNT/sleep"
    assert_contains "$ERR" "busy"
    kill "$pid"
    wait "$pid" || true
    printf '#!/bin/sh\necho "$1"\n' >"$MNT/script"
    chmod +x "$MNT/script"
    assert_eq "$("$MNT/script" said)" said
    mount_down
    # nosuid and noexec are what mount says they are.
    mount_up noexec
    expect 126 bash -c '"$1" x' - "$MNT/script"
    mount_down
}

# All there is to a tree survives a new mount.
test_tree_survives() {
    local tree=$MNT/tree
    mount_up
    mkdir -p "$tree/a/b/c" "$WORK/out"
    random_file "$tree/a/random" 1234567
    truncate -s 80M "$tree/a/sparse"
    echo data | dd of="$tree/a/sparse" bs=1 seek=50M conv=notrunc status=none
    ln "$tree/a/random" "$tree/a/b/hardlink"
    ln -s ../random "$tree/a/b/symlink"
    mkfifo "$tree/a/b/c/fifo"
    chmod 1751 "$tree/a/b/c"
    chown 12:34 "$tree/a/random"
    touch -d '2001-02-03 04:05:06.789' "$tree/a/random"
    setfattr -n user.note -v 'kept' "$tree/a/random"
    tar --xattrs -C "$tree" -cf "$WORK/tree.tar" .
    unmount
    mount_up
    tar --xattrs -C "$tree" --compare -f "$WORK/tree.tar"
    assert_eq "$(getfattr --only-values -n user.note "$tree/a/b/hardlink")" kept
    assert_eq "$(stat -c %i "$tree/a/random")" "$(stat -c %i "$tree/a/b/hardlink")"
    rm -r "$tree"
    assert_eq "$(df_of files)" 0
    mount_down
}

# A set-user-ID program that somebody else changes is one no more, whatever way it is written.
test_setuid_falls() {
    local options how
    for options in '' nowriteback; do
        mount_up "$options"
        for how in oflag=append oflag=direct conv=fsync; do
            random_file "$MNT/program" 8192
            chmod 6777 "$MNT/program"
            as_nobody dd if=/dev/zero of="$MNT/program" bs=4096 count=1 conv=notrunc "$how" status=none
            # Asked for alone, since the kernel would ask the daemon for the blocks.
            assert_eq "$how $(stat -c %a "$MNT/program")" "$how 777"
        done
        chmod 6777 "$MNT/program"
        as_nobody bash -c ': >"$1"' - "$MNT/program"
        assert_eq "$(stat -c '%a %b' "$MNT/program")" "777 0"
        # Not by root.
        chmod 6777 "$MNT/program"
        echo text >>"$MNT/program"
        assert_eq "$(stat -c %a "$MNT/program")" 6777
        mount_down
    done
}

run_tests "$@"
