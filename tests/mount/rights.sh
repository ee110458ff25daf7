#!/usr/bin/env bash
# Who may do what where the kernel does not check it: ioctls, by plain users, in other namespaces;
# and a store of a plain user's own.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

need_user_namespaces() { unshare -U true 2>/dev/null || skip "no user namespaces here"; }

# ---- a store of one's own ----------------------------------------------------

test_store_of_a_user() {
    open_dev_fuse
    copy_binaries
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
    copy_binaries
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

# ---- clone: as link(2) and open(2) would -------------------------------------

clone_fixture() {
    mount_up
    copy_binaries
    chmod 755 "$MNT"
    mkdir -m 777 "$MNT/open"
    mkdir -m 755 "$MNT/closed"
    echo public >"$MNT/public"
    mkdir -m 755 "$MNT/tree"
    echo secret >"$MNT/tree/secret"
    chmod 600 "$MNT/tree/secret"
}

test_clone_through_read_only_mounts() {
    clone_fixture
    mkdir "$WORK/ro"
    mount --bind "$MNT" "$WORK/ro"
    mount -o remount,bind,ro "$WORK/ro"
    expect 1 "$COWFS" clone "$WORK/ro/public" "$WORK/ro/open/b"
    assert_contains "$ERR" "Read-only"
    expect 1 as_nobody "$user_cowfs" clone "$WORK/ro/public" "$WORK/ro/open/b"
    assert_contains "$ERR" "Read-only"
    # By the other mount all is as it was.
    expect 0 "$COWFS" clone "$MNT/public" "$MNT/open/b"
    expect 0 as_nobody "$user_cowfs" clone "$MNT/public" "$MNT/open/c"
    expect 1 as_nobody "$user_cowfs" clone "$MNT/public" "$MNT/closed/c"
    umount "$WORK/ro"
    expect 0 "$COWFS" clone "$MNT/public" "$MNT/open/d"
    # In another mount namespace, too.
    expect 1 unshare -m bash -c 'mount -o remount,bind,ro "$2" && exec "$1" clone "$2/public" "$2/open/e"' \
        - "$COWFS" "$MNT"
    assert_contains "$ERR" "Read-only"
    expect 0 unshare -m "$COWFS" clone "$MNT/public" "$MNT/open/f"
    expect 0 unshare -m "$COWFS" clone --replace "$MNT/public" "$MNT/open/f"
    assert_eq "$(names_in "$MNT/open")" "b c d f"
    assert_eq "$(names_in "$MNT/closed")" ""
}

# A file made by O_TMPFILE stands for its directory only as long as nobody else can have opened it.
test_token_of_a_directory() {
    clone_fixture
    python3 - "$MNT" <<'EOF'
import errno, fcntl, os, struct, sys
top = sys.argv[1]
def iowr(number, size): return 3 << 30 | size << 16 | ord('c') << 8 | number
def token(fd):
    return fcntl.ioctl(fd, iowr(1, 24), struct.pack('=IIQQ', 2, 0, 0, 0))[8:]
def clone(fd, name):
    io = struct.pack('=II16s256sQQQQ', 2, 0, token(source), name, 0, 0, 0, 0)
    try:
        fcntl.ioctl(fd, iowr(2, len(io)), io)
        return 0
    except OSError as e:
        return e.errno
source = os.open(top + '/public', os.O_RDONLY)
nameless = os.open(top + '/open', os.O_TMPFILE | os.O_RDWR, 0o600)
assert clone(nameless, b'one') == 0
assert clone(nameless, b'one') == errno.EEXIST
again = os.open('/proc/self/fd/%d' % nameless, os.O_RDONLY)
assert clone(again, b'two') == errno.ENOTDIR
os.link('/proc/self/fd/%d' % nameless, top + '/open/named', src_dir_fd=source, follow_symlinks=True)
assert clone(nameless, b'three') == errno.ENOTDIR
assert clone(source, b'four') == errno.ENOTDIR
plain = os.open(top + '/open/plain', os.O_CREAT | os.O_RDWR)
os.unlink(top + '/open/plain')
assert clone(plain, b'five') == errno.ENOTDIR
gone = os.open(top + '/closed', os.O_TMPFILE | os.O_RDWR, 0o600)
os.rmdir(top + '/closed')
assert clone(gone, b'six') == errno.ENOENT
EOF
    assert_eq "$(names_in "$MNT/open")" "named one"
}

test_clone_in_user_namespaces() {
    need_user_namespaces
    clone_fixture
    echo theirs >"$MNT/open/theirs"
    chown 12:12 "$MNT/open/theirs"
    chmod 600 "$MNT/open/theirs"
    # Root there is nobody here.
    expect 0 as_nobody unshare -Ur "$user_cowfs" clone "$MNT/public" "$MNT/open/a"
    assert_eq "$(stat -c '%u %g' "$MNT/open/a")" "65534 65534"
    expect 1 as_nobody unshare -Ur "$user_cowfs" clone "$MNT/tree" "$MNT/open/b"
    expect 1 as_nobody unshare -Ur "$user_cowfs" clone "$MNT/public" "$MNT/closed/b"
    # Number 0 of another user namespace, which knows no other user: it has no power over others.
    expect 1 unshare -Ur cat "$MNT/open/theirs"
    expect 1 unshare -Ur "$COWFS" clone "$MNT/open" "$MNT/open2"
    assert_contains "$ERR" "ermission"
    # Nor has one without capabilities, in whatever namespace.
    powerless() { setpriv --bounding-set=-all --inh-caps=-all "$@"; }
    expect 1 powerless cat "$MNT/open/theirs"
    expect 1 powerless "$COWFS" clone "$MNT/open" "$MNT/open2"
    rm "$MNT/open/theirs"
    chown 12:12 "$MNT/open/a"
    expect 0 powerless "$COWFS" clone "$MNT/open" "$MNT/open2"
    # What he copies is his, and what root copies stays another's.
    assert_eq "$(stat -c %u "$MNT/open2/a")" 0
    expect 0 "$COWFS" clone "$MNT/open" "$MNT/open3"
    assert_eq "$(stat -c %u "$MNT/open3/a")" 12
}

# As with cp: the group of a setgid directory is that of what is made in it.
test_clone_into_setgid_directory() {
    clone_fixture
    chgrp 12 "$MNT/open"
    chmod 2777 "$MNT/open"
    chmod 644 "$MNT/tree/secret"
    expect 0 as_nobody "$user_cowfs" clone "$MNT/tree" "$MNT/open/t"
    assert_eq "$(stat -c '%u %g %a' "$MNT/open/t")" "65534 12 2755"
    assert_eq "$(stat -c '%u %g %a' "$MNT/open/t/secret")" "65534 12 644"
    expect 0 as_nobody "$user_cowfs" clone "$MNT/public" "$MNT/open/p"
    assert_eq "$(stat -c '%u %g' "$MNT/open/p")" "65534 12"
}

# ---- the other ioctls --------------------------------------------------------

test_others_trees() {
    clone_fixture
    expect 0 as_nobody "$user_cowfs" du "$MNT/tree"
    mkdir -m 700 "$MNT/tree/closed"
    expect 1 as_nobody "$user_cowfs" du "$MNT/tree"
    assert_contains "$ERR" "ermission"
    expect 0 "$COWFS" du "$MNT/tree"
    # How much of a file exists elsewhere is its owner's affair.
    expect 1 as_nobody "$user_cowfs" seal "$MNT/public"
    assert_contains "$ERR" "not permitted"
    chmod 666 "$MNT/public"
    expect 0 as_nobody "$user_cowfs" seal "$MNT/public"
    as_nobody cp "$MNT/public" "$MNT/open/mine"
    chmod 444 "$MNT/open/mine"
    expect 0 as_nobody "$user_cowfs" seal "$MNT/open/mine"
    expect 8 as_nobody "$user_cowfs" scrub "$MNT"
}

# Root of another user namespace, or without capabilities, is not the one who has the store.
test_roots_that_are_none() {
    need_user_namespaces
    clone_fixture
    mkdir -m 700 "$MNT/tree/closed"
    chown 12:12 "$MNT/tree/closed"
    echo theirs >"$MNT/theirs"
    chown 12:12 "$MNT/theirs"
    chmod 755 "$MNT/theirs"
    powerless() { setpriv --bounding-set=-all --inh-caps=-all "$@"; }
    elsewhere() { unshare -Ur "$@"; }
    for other in elsewhere powerless; do
        expect 8 "$other" "$COWFS" scrub "$MNT"
        expect 1 "$other" "$COWFS" upgrade "$MNT"
        assert_contains "$ERR" "not permitted"
        expect 1 "$other" "$COWFS" public "$MNT/theirs"
        assert_contains "$ERR" "not permitted"
        expect 1 "$other" "$COWFS" seal "$MNT/theirs"
        assert_contains "$ERR" "not permitted"
        expect 1 "$other" "$COWFS" du "$MNT/tree"
        assert_contains "$ERR" "ermission"
    done
    expect 0 "$COWFS" scrub "$MNT"
    expect 0 "$COWFS" du "$MNT/tree"
}

# What would not be deleted by rm is not by cowfs rm; what could not be opened for writing is not
# laid out anew.
test_change_through_read_only_mounts() {
    clone_fixture
    mkdir "$WORK/ro"
    mount --bind "$MNT" "$WORK/ro"
    mount -o remount,bind,ro "$WORK/ro"
    head -c 3M /dev/urandom >"$MNT/large"
    expect 1 "$COWFS" rm "$WORK/ro/tree"
    assert_contains "$ERR" "Read-only"
    expect 1 "$COWFS" pack "$WORK/ro/large"
    assert_contains "$ERR" "Read-only"
    expect 1 unshare -m bash -c 'mount -o remount,bind,ro "$2" && exec "$1" rm "$2/tree"' - "$COWFS" "$MNT"
    assert_contains "$ERR" "Read-only"
    assert_eq "$(names_in "$MNT/tree")" secret
    umount "$WORK/ro"
    expect 0 "$COWFS" rm "$MNT/tree"
    assert_missing "$MNT/tree"
}

# With a descriptor that cannot read nothing is told of what is in the file.
test_diff_needs_reading() {
    clone_fixture
    chmod 222 "$MNT/public"
    cat >"$WORK/diff.py" <<'EOF'
import errno, fcntl, os, struct, sys
def iowr(number, size): return 3 << 30 | size << 16 | ord('c') << 8 | number
os.setresuid(*[int(sys.argv[2])] * 3)
fd = os.open(sys.argv[1], os.O_WRONLY)
token = fcntl.ioctl(fd, iowr(1, 24), struct.pack('=IIQQ', 2, 0, 0, 0))[8:]
io = bytearray(struct.pack('=II16sQQ', 2, 0, token, 0, 0) + bytes(16 * 256))
try:
    fcntl.ioctl(fd, iowr(7, len(io)), io)
    print('told')
except OSError as e:
    print(errno.errorcode[e.errno])
EOF
    assert_eq "$(python3 "$WORK/diff.py" "$MNT/public" 65534)" EACCES
    assert_eq "$(python3 "$WORK/diff.py" "$MNT/public" 0)" told
}

# Many of a user's costly ioctls at once take two threads, not those that serve all.
test_costly_ioctls() {
    local i pids=() pool
    mount_up threads=4
    copy_binaries
    install -d -o 65534 "$MNT/d"
    as_nobody bash -c 'for i in {1..40}; do head -c 300000 /dev/urandom >"$1/$i"; done' - "$MNT/d"
    for i in {1..24}; do
        as_nobody "$user_cowfs" df "$MNT" >/dev/null &
        pids+=($!)
        as_nobody "$user_cowfs" du "$MNT/d" >/dev/null &
        pids+=($!)
        as_nobody "$user_cowfs" seal -q "$MNT/d/$i" &
        pids+=($!)
    done
    expect 0 "$COWFS" df "$MNT"
    for i in "${pids[@]}"; do wait "$i"; done
    pool=$(cat "/proc/$(serving_pid)/task"/*/comm | grep -c cowfs-pool || true)
    assert_ge "$pool" 1
    assert_le "$pool" 2
}

# ---- freed space -------------------------------------------------------------

# What others had is in nothing that a user can make: holes, space that is reserved, the rest of a
# chunk, the end of a file, each before and after a crash.
test_no_old_bytes() {
    local round
    mount_up nosupervise
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
        mount_up nosupervise
        # What is there by now is whatever a commit had.
        look
        rm -f "$MNT"/*
    done
}

# What a mapping has behind the end of the file never becomes its content, nor that of a clone, and
# what was freed in whatever way is not in the segments' files any more either. (The roads one by
# one, also through crashes: tests/unit/test_freed.c.)
test_nothing_stays_below() {
    local secret="SECRET of another user"
    mount_up passthrough
    { yes "$secret" || true; } | head -c 5000100 >"$WORK/secret"
    # To the end of its last page, by one who may.
    cat >"$WORK/behind.py" <<'EOF'
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
with mmap.mmap(fd, size) as m:
    import ctypes
    start = ctypes.addressof(ctypes.c_char.from_buffer(m))
    ctypes.memmove(start + size, b"SECRET" * 100, 600)
    m_flush = ctypes.CDLL(None, use_errno=True).msync
    page = start + size // 4096 * 4096
    assert m_flush(ctypes.c_void_p(page), ctypes.c_size_t(4096), 4) == 0
    os._exit(0)
EOF
    head -c 8292 /dev/zero | tr '\0' x >"$MNT/mapped"
    python3 "$WORK/behind.py" "$MNT/mapped"
    cp "$MNT/mapped" "$MNT/mapped2"
    truncate -s 20000 "$MNT/mapped2"
    truncate -s 20000 "$MNT/mapped"
    for name in clone punch cut zero gone tree pack seal1 seal2; do
        # Each of them other chunks.
        { printf '%s' "$name" && cat "$WORK/secret"; } >"$MNT/$name"
    done
    mkdir "$MNT/d"
    mv "$MNT/tree" "$MNT/d"
    cp "$MNT/seal1" "$MNT/seal2"
    sync -f "$MNT"
    grep -qa SECRET "$STORE"/segments/* || fail "the test sees nothing"
    "$COWFS" clone "$MNT/clone" "$MNT/clone2"
    "$COWFS" seal "$MNT/seal1" "$MNT/seal2"
    "$COWFS" pack "$MNT/pack"
    { yes "no such thing as before" || true; } | head -c 5000100 >"$WORK/plain"
    for name in clone clone2 seal1 seal2 pack; do
        { printf '%s' "$name" && cat "$WORK/plain"; } | dd of="$MNT/$name" bs=7k conv=notrunc status=none
    done
    fallocate -p -o 0 -l 6000000 "$MNT/punch"
    fallocate -z -o 0 -l 6000000 "$MNT/zero"
    truncate -s 0 "$MNT/cut"
    truncate -s 5000100 "$MNT/cut"
    rm "$MNT/gone"
    "$COWFS" rm "$MNT/d"
    nothing_below() {
        sync -f "$MNT"
        ! grep -qa SECRET "$STORE"/segments/*
    }
    eventually 30 nothing_below
    ! grep -ra SECRET "$MNT" >"$WORK/shown" || fail "shown: $(head -c 300 "$WORK/shown")"
    mount_down
    ! grep -qa SECRET "$STORE"/segments/* || fail "it is there again"
}

run_tests "$@"
