#!/usr/bin/env bash
# What calls answer (oracle_*.c), compared with XFS on this kernel. What differs stands here, and,
# with the reasons, in docs/CONFORMANCE.md; lines with "<" are XFS's.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

xfs_up() {
    need_loop
    command -v mkfs.xfs >/dev/null || skip "mkfs.xfs is missing"
    mkdir "$WORK/xfs"
    truncate -s 400M "$WORK/xfs.img"
    mkfs.xfs -q -m bigtime=1 "$WORK/xfs.img"
    mount -o loop "$WORK/xfs.img" "$WORK/xfs"
}

# answers DIRECTORY PROGRAM CASE
answers() {
    mkdir "$1/$3"
    "$HELPERS/$2" "$3" "$1/$3"
}

# compare PROGRAM CASE...: each with its differences from the standard input, begun by "== CASE", or by
# "== CASE nowriteback" if they are others without the writeback cache.
compare() {
    local program=$1 case options expected heading
    shift
    expected=$(cat)
    xfs_up
    for options in '' nowriteback; do
        mount_up "$options"
        chmod 755 "$MNT" "$WORK/xfs"
        for case in "$@"; do
            rm -rf "$WORK/xfs/$case"
            answers "$WORK/xfs" "$program" "$case" >"$WORK/xfs.out"
            answers "$MNT" "$program" "$case" >"$WORK/ours.out"
            [ "$(wc -l <"$WORK/xfs.out")" -gt 5 ] || fail "$case says nothing"
            diff "$WORK/xfs.out" "$WORK/ours.out" | grep '^[<>]' >"$WORK/differences" || true
            heading="== $case"
            ! grep -qx "== $case $options" <<<"$expected" || heading="== $case $options"
            sed -n "/^$heading\$/,/^==/{/^[<>]/p}" <<<"$expected" >"$WORK/expected"
            diff "$WORK/expected" "$WORK/differences" ||
                fail "$program $case, options '$options': the differences to XFS are others"
        done
        mount_down
        rm -rf "$STORE"
    done
    umount "$WORK/xfs"
}

test_names() {
    compare oracle_names open make rename tmpfile directory times inotify <<'END'
== make
< symlinkat(target, dir, "1024"): ENAMETOOLONG
< symlinkat(target, dir, "4095"): ENAMETOOLONG
> symlinkat(target, dir, "1024"): ok
> symlinkat(target, dir, "4095"): ok
== rename
< renameat(dir, "empty", dir, "d"): EEXIST
> renameat(dir, "empty", dir, "d"): ENOTEMPTY
< renameat2(dir, "g", dir, "w", RENAME_WHITEOUT): ok
> renameat2(dir, "g", dir, "w", RENAME_WHITEOUT): EINVAL
< linkat(dir, "same", dir, "w", 0): EEXIST
> linkat(dir, "same", dir, "w", 0): ok
< st.st_nlink: 3
> st.st_nlink: 4
== tmpfile
< openat(fd, ".", O_TMPFILE | O_RDWR, 0644): ok
> openat(fd, ".", O_TMPFILE | O_RDWR, 0644): ENOENT
== directory
< lseek(fd, 0, SEEK_DATA): ENXIO
> lseek(fd, 0, SEEK_DATA): ok
< fpathconf(dir, _PC_LINK_MAX) > 60000: 1
> fpathconf(dir, _PC_LINK_MAX) > 60000: 0
== times
< renameat2(dir, "d", dir, "dd", RENAME_EXCHANGE): file
> renameat2(dir, "d", dir, "dd", RENAME_EXCHANGE): file ctime
END
}

test_content() {
    compare oracle_content fallocate copy seek size io ioctl map lock <<'END'
== fallocate
< fallocate 0 at 9223372036854775806 of 1: ok, then 9223372036854775807 bytes
> fallocate 0 at 9223372036854775806 of 1: EFBIG, then 100000 bytes
< fallocate 0x1 at 9223372036854775806 of 1: ok, then 100000 bytes
> fallocate 0x1 at 9223372036854775806 of 1: EFBIG, then 100000 bytes
< fallocate 0x10 at 9223372036854775806 of 1: ok, then 9223372036854775807 bytes
> fallocate 0x10 at 9223372036854775806 of 1: EFBIG, then 100000 bytes
< fallocate 0x11 at 9223372036854775806 of 1: ok, then 100000 bytes
> fallocate 0x11 at 9223372036854775806 of 1: EFBIG, then 100000 bytes
< fallocate 0x8 at 0 of 4096: ok, then 95904 bytes
> fallocate 0x8 at 0 of 4096: EOPNOTSUPP, then 100000 bytes
< fallocate 0x20 at 0 of 4096: ok, then 104096 bytes
> fallocate 0x20 at 0 of 4096: EOPNOTSUPP, then 100000 bytes
< fallocate 0x40 at 0 of 4096: ok, then 100000 bytes
> fallocate 0x40 at 0 of 4096: EOPNOTSUPP, then 100000 bytes
== copy
< copy_file_range(a, (from = 0, &from), b, (to = LLONG_MAX - 5, &to), 10, 0): ok
> copy_file_range(a, (from = 0, &from), b, (to = LLONG_MAX - 5, &to), 10, 0): EFBIG
== ioctl
< ioctl(fd, FS_IOC_GETVERSION, &number): ok
> ioctl(fd, FS_IOC_GETVERSION, &number): ENOTTY
< ioctl(fd, FS_IOC_GETFLAGS, &flags): ok
< ioctl(dir, FS_IOC_GETFLAGS, &flags): ok
< ioctl(fd, FICLONE, other): ok
> ioctl(fd, FS_IOC_GETFLAGS, &flags): ENOTTY
> ioctl(dir, FS_IOC_GETFLAGS, &flags): ENOTTY
> ioctl(fd, FICLONE, other): EOPNOTSUPP
< ioctl(fd, FS_IOC_FIEMAP, &map): ok
< ioctl(fd, 0xdeadbeef, NULL): ENOTTY
> ioctl(fd, FS_IOC_FIEMAP, &map): EOPNOTSUPP
> ioctl(fd, 0xdeadbeef, NULL): EFAULT
END
}

test_attr() {
    compare oracle_attr owners setgid sticky setuid times xattrs <<'END'
== owners nowriteback
< after chown to nobody new: mine has mode 755, owner 65534:65534
> after chown to nobody new: mine has mode 6755, owner 65534:65534
< after chown to nobody new: group has mode 755, owner 65534:4321
> after chown to nobody new: group has mode 6755, owner 65534:4321
< after chown to nobody new: mine has mode 755, owner 65534:65534
> after chown to nobody new: mine has mode 6755, owner 65534:65534
< after chown to nobody new: group has mode 755, owner 65534:65534
> after chown to nobody new: group has mode 6755, owner 65534:65534
< after chown to nobody new: roots has mode 755, owner 0:0
> after chown to nobody new: roots has mode 6755, owner 0:0
== setuid
< after: program has mode 666, owner 0:0
> after: program has mode 2666, owner 0:0
< after: program has mode 666, owner 0:0
> after: program has mode 2666, owner 0:0
== xattrs
< fgetxattr(fd, "system.posix_acl_access", got, sizeof(got)): ENODATA
> fgetxattr(fd, "system.posix_acl_access", got, sizeof(got)): EOPNOTSUPP
< fgetxattr(fd, "system.posix_acl_access", got, sizeof(got)): ENODATA
> fgetxattr(fd, "system.posix_acl_access", got, sizeof(got)): EOPNOTSUPP
END
}

run_tests "$@"
