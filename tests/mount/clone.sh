#!/usr/bin/env bash
# cowfs clone, and the commands that tell about files: stat, du, df, seal, diff.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

tool=$HELPERS/mount_tool

# A virtual machine's directory.
make_vm() {
    local dir=$1
    mkdir -p "$dir/sub/deep"
    random_file "$dir/disk" $((8 << 20))
    random_file "$dir/memory.snap" $((4 << 20))
    echo '{}' >"$dir/sub/config"
    ln "$dir/disk" "$dir/sub/disk.link"
    ln -s ../disk "$dir/sub/symlink"
    : >"$dir/sub/deep/empty"
    truncate -s 1T "$dir/sub/deep/sparse"
    chmod 640 "$dir/disk"
    chown 12:34 "$dir/disk"
    chmod 2750 "$dir/sub"
    touch -d '2001-02-03 04:05:06.789' "$dir/disk" "$dir/sub/config"
    touch -h -d '2002-02-03 04:05:06.789' "$dir/sub/symlink"
    setfattr -n user.note -v 'kept' "$dir/disk" "$dir/sub"
    touch -d '2003-02-03 04:05:06.789' "$dir/sub/deep"
}

# All that ls and getfattr can tell of a tree, without what a clone cannot have: numbers, ctime.
describe() {
    (cd "$1" && find . -printf '%p %y %m %U %G %s %T@ %n %l\n' | sort &&
        find . ! -type l -exec getfattr -d -m - --absolute-names {} + | sort)
}

test_file() {
    local before
    mount_up
    random_file "$MNT/a" $((16 << 20))
    chmod 640 "$MNT/a"
    touch -d '2001-02-03 04:05:06.789' "$MNT/a"
    before=$(df_of stored_bytes)
    expect 0 "$COWFS" clone "$MNT/a" "$MNT/b"
    assert_eq "$OUT$ERR" ""
    assert_same "$MNT/a" "$MNT/b"
    assert_eq "$(df_of stored_bytes)" "$before" "stored bytes"
    assert_eq "$(stat_of shared_bytes "$MNT/b")" $((16 << 20)) "shared bytes"
    assert_eq "$(stat -c '%a %y' "$MNT/b")" "$(stat -c '%a %y' "$MNT/a")"
    # Independent, in both directions.
    cp "$MNT/a" "$WORK/a"
    echo new | dd of="$MNT/b" conv=notrunc seek=1000 status=none
    assert_same "$WORK/a" "$MNT/a"
    cp "$MNT/b" "$WORK/b"
    rm "$MNT/a"
    assert_same "$WORK/b" "$MNT/b"
    # Into another directory, and with a relative path.
    mkdir "$MNT/d"
    (cd / && "$COWFS" clone "${MNT#/}/b" "${MNT#/}/d/c")
    assert_same "$WORK/b" "$MNT/d/c"
}

test_directory() {
    local before
    mount_up
    make_vm "$MNT/golden"
    sync -f "$MNT"
    describe "$MNT/golden" >"$WORK/wanted"
    before=$(df_of stored_bytes)
    expect 0 "$COWFS" clone --json "$MNT/golden" "$MNT/vm1"
    assert_eq "$(json '[.files, .directories, .symlinks, .left_out] | join(" ")' <<<"$OUT")" \
        "6 3 1 0"
    describe "$MNT/vm1" >"$WORK/got"
    diff "$WORK/wanted" "$WORK/got"
    # Also once it has come from the disk.
    unmount
    mount_up
    describe "$MNT/vm1" >"$WORK/got"
    diff "$WORK/wanted" "$WORK/got"
    assert_same "$MNT/golden/disk" "$MNT/vm1/disk"
    assert_same "$MNT/golden/memory.snap" "$MNT/vm1/memory.snap"
    assert_eq "$(df_of stored_bytes)" "$before" "stored bytes"
    # Hard links of the tree are links in the clone, and lead to no file outside.
    assert_eq "$(stat -c '%i %h' "$MNT/vm1/disk")" "$(stat -c '%i %h' "$MNT/vm1/sub/disk.link")"
    [ "$(stat -c %i "$MNT/vm1/disk")" != "$(stat -c %i "$MNT/golden/disk")" ] || fail "one inode"
    echo changed >"$MNT/vm1/sub/config"
    assert_eq "$(cat "$MNT/golden/sub/config")" '{}'
    # A clone of a clone of a clone, without its parents.
    "$COWFS" clone "$MNT/vm1" "$MNT/vm2"
    "$COWFS" clone "$MNT/vm2" "$MNT/vm3"
    cp "$MNT/golden/disk" "$WORK/disk"
    rm -r "$MNT/golden" "$MNT/vm1" "$MNT/vm2"
    assert_same "$WORK/disk" "$MNT/vm3/disk"
    assert_eq "$(cat "$MNT/vm3/sub/config")" changed
}

test_hard_link_to_outside() {
    mount_up
    mkdir "$MNT/d"
    echo text >"$MNT/outside"
    ln "$MNT/outside" "$MNT/d/inside"
    "$COWFS" clone "$MNT/d" "$MNT/e"
    assert_eq "$(stat -c %h "$MNT/e/inside")" 1
    assert_eq "$(stat -c %h "$MNT/d/inside")" 2
    echo changed >"$MNT/e/inside"
    assert_eq "$(cat "$MNT/outside")" text
}

test_many_files() {
    mount_up
    mkdir "$MNT/d"
    (cd "$WORK" && mkdir src && cd src && seq 3000 | split -l 1 -a 4 - file.)
    cp "$WORK"/src/* "$MNT/d"
    "$COWFS" clone --json "$MNT/d" "$MNT/e" | json '.files == 3000'
    diff -r "$WORK/src" "$MNT/e"
    rm -r "$MNT/d"
    diff -r "$WORK/src" "$MNT/e"
}

test_existing_destination() {
    mount_up
    make_vm "$MNT/a"
    make_vm "$MNT/b"
    echo file >"$MNT/f"
    ln -s nowhere "$MNT/dangling"
    describe "$MNT" >"$WORK/before"
    local target
    for target in "$MNT/b" "$MNT/f" "$MNT/dangling" "$MNT/a"; do
        expect 1 "$COWFS" clone "$MNT/a" "$target"
        assert_contains "$ERR" "$target: exists already"
        expect 1 "$COWFS" clone "$MNT/a/disk" "$target"
        assert_contains "$ERR" "exists already"
    done
    # Never into an existing directory, as cp would.
    expect 1 "$COWFS" clone "$MNT/f" "$MNT/b/"
    assert_missing "$MNT/b/f"
    describe "$MNT" >"$WORK/after"
    diff "$WORK/before" "$WORK/after"
}

test_replace() {
    local before
    mount_up
    make_vm "$MNT/golden"
    "$COWFS" clone "$MNT/golden" "$MNT/vm"
    before=$(df_of stored_bytes)
    random_file "$MNT/vm/disk" 5000000
    random_file "$MNT/vm/more" 5000000
    exec 9<"$MNT/vm/more"
    "$COWFS" clone --replace --json "$MNT/golden" "$MNT/vm" | json '.replaced'
    describe "$MNT/golden" >"$WORK/wanted"
    describe "$MNT/vm" >"$WORK/got"
    diff "$WORK/wanted" "$WORK/got"
    assert_same "$MNT/golden/disk" "$MNT/vm/disk"
    # Who still has an old file open reads it to the end.
    assert_eq "$(wc -c <&9)" 5000000
    exec 9<&-
    # And the space of what was there has come back.
    eventually 20 stored_is "$before"
    assert_eq "$(names_in "$MNT")" "golden vm" "left behind"
    # Of a file; by something of another type; where there was nothing.
    "$COWFS" clone --replace "$MNT/golden/disk" "$MNT/vm/memory.snap"
    assert_same "$MNT/golden/disk" "$MNT/vm/memory.snap"
    "$COWFS" clone --replace "$MNT/golden/disk" "$MNT/vm"
    assert_same "$MNT/golden/disk" "$MNT/vm"
    "$COWFS" clone --replace "$MNT/golden" "$MNT/vm"
    "$COWFS" clone --replace --json "$MNT/golden" "$MNT/new" | json '.replaced == false'
    describe "$MNT/new" >"$WORK/got"
    diff "$WORK/wanted" "$WORK/got"
}

# There is no moment without a target, nor one with half of it.
test_replace_is_atomic() {
    local i pid
    mount_up
    mkdir "$MNT/one" "$MNT/two"
    echo one | tee "$MNT/one/a" >"$MNT/one/b"
    echo two | tee "$MNT/two/a" >"$MNT/two/b"
    "$COWFS" clone "$MNT/one" "$MNT/vm"
    # One open of the directory stands for one of the two.
    (
        while [ ! -e "$WORK/stop" ]; do
            exec 8<"$MNT/vm"
            a=$(cat "/proc/self/fd/8/a" 2>&1) || true
            b=$(cat "/proc/self/fd/8/b" 2>&1) || true
            case $a$b in
                oneone | twotwo) ;;
                # Deleted in between, which is as it should be.
                *"No such file"* | *"Stale"*) ;;
                *)
                    echo "a: $a, b: $b" >"$WORK/wrong"
                    break
                    ;;
            esac
            [ -e "$MNT/vm" ] || echo "no target" >"$WORK/wrong"
        done
    ) &
    pid=$!
    for i in {1..60}; do
        "$COWFS" clone --replace "$MNT/$([ $((i % 2)) = 0 ] && echo one || echo two)" "$MNT/vm"
    done
    touch "$WORK/stop"
    wait "$pid"
    [ ! -e "$WORK/wrong" ] || fail "$(cat "$WORK/wrong")"
}

test_across_mounts() {
    mount_up
    mount_up '' "$WORK/store2" "$WORK/mnt2"
    echo text >"$MNT/a"
    expect 1 "$COWFS" clone "$MNT/a" "$WORK/mnt2/a"
    assert_contains "$ERR" "is not in the same mount as"
    assert_missing "$WORK/mnt2/a"
    expect 1 "$COWFS" clone "$MNT/a" "$WORK/outside"
    assert_contains "$ERR" "is not in the same mount as"
    assert_missing "$WORK/outside"
    echo text >"$WORK/outside"
    expect 1 "$COWFS" clone "$WORK/outside" "$MNT/b"
    assert_contains "$ERR" "$WORK/outside: is not in a cowfs mount"
    assert_missing "$MNT/b"
    mount_down "$WORK/mnt2" "$WORK/store2"
}

test_sockets_are_left_out() {
    mount_up
    mkdir "$MNT/vm"
    echo disk >"$MNT/vm/disk"
    python3 -c 'import os, socket, sys
os.chdir(sys.argv[1])
socket.socket(socket.AF_UNIX).bind("api.sock")' "$MNT/vm"
    mkfifo "$MNT/vm/serial"
    expect 0 "$COWFS" clone --json "$MNT/vm" "$MNT/clone"
    assert_eq "$(json .left_out <<<"$OUT")" 2
    assert_contains "$ERR" "$MNT/vm/api.sock: left out"
    assert_contains "$ERR" "$MNT/vm/serial: left out"
    assert_eq "$(ls "$MNT/clone")" disk
    assert_eq "$(names_in "$MNT/vm")" "api.sock disk serial"
    expect 1 "$COWFS" clone "$MNT/vm/serial" "$MNT/serial2"
    assert_missing "$MNT/serial2"
}

# Pages that a program has changed through a mapping are part of the clone.
test_dirty_pages() {
    mount_up
    mkdir "$MNT/vm"
    truncate -s 64M "$MNT/vm/memory"
    local line
    hold "$tool" dirty "$MNT/vm/memory" 33333333 "dirty in a mapping"
    "$COWFS" clone "$MNT/vm/memory" "$MNT/file"
    "$COWFS" clone "$MNT/vm" "$MNT/tree"
    cp "$MNT/vm/memory" "$MNT/copy"
    for line in file tree/memory copy; do
        assert_eq "$(tail -c +33333334 "$MNT/$line" | head -c 18)" "dirty in a mapping" "$line"
    done
    release
}

# A clone of what was only just written, and is in the kernel's cache alone.
test_after_write() {
    local i
    mount_up
    for i in {1..20}; do
        head -c 3000000 /dev/urandom | tee "$WORK/wanted" >"$MNT/a"
        "$COWFS" clone --replace "$MNT/a" "$MNT/b"
        assert_same "$WORK/wanted" "$MNT/b"
    done
}

test_into_itself() {
    mount_up
    make_vm "$MNT/a"
    describe "$MNT" >"$WORK/before"
    local target
    for target in "$MNT/a/b" "$MNT/a/sub/deep/b"; do
        expect 1 "$COWFS" clone "$MNT/a" "$target"
        assert_contains "$ERR" "lies inside the source"
    done
    expect 1 "$COWFS" clone "$MNT" "$MNT/b"
    assert_contains "$ERR" "lies inside the source"
    expect 1 "$COWFS" clone --replace "$MNT/a" "$MNT/a"
    assert_contains "$ERR" "itself"
    # The parent by its child would throw the child away.
    expect 1 "$COWFS" clone --replace "$MNT/a" "$MNT/a/sub"
    describe "$MNT" >"$WORK/after"
    diff "$WORK/before" "$WORK/after"
    # A child may become its parent's sibling.
    "$COWFS" clone "$MNT/a/sub" "$MNT/sub"
    assert_eq "$(cat "$MNT/sub/config")" '{}'
}

test_misuse() {
    mount_up
    echo text >"$MNT/a"
    expect 2 "$COWFS"
    expect 2 "$COWFS" nonsense
    assert_contains "$ERR" nonsense
    local command
    for command in mount umount clone stat du df seal public diff; do
        expect 2 "$COWFS" "$command"
        assert_contains "$ERR" "cowfs $command: "
        expect 2 "$COWFS" "$command" --nonsense
        assert_contains "$ERR" nonsense
        expect 0 "$COWFS" "$command" --help
        assert_contains "$OUT" "Usage: cowfs $command"
        assert_eq "$ERR" ""
    done
    # As fsck(8) has it.
    expect 16 "$COWFS" fsck
    expect 16 "$COWFS" fsck --nonsense
    expect 0 "$COWFS" fsck --help
    expect 0 "$COWFS" --help
    expect 0 "$COWFS" --version
    expect 2 "$COWFS" clone "$MNT/a"
    expect 2 "$COWFS" clone "$MNT/a" "$MNT/b" "$MNT/c"
    for command in stat du seal public; do
        expect 1 "$COWFS" "$command" "$MNT/none"
        assert_contains "$ERR" "$MNT/none: No such file"
        expect 1 "$COWFS" "$command" "$COWFS"
        assert_contains "$ERR" "is not in a cowfs mount"
    done
    expect 1 "$COWFS" clone "$MNT/none" "$MNT/b"
    assert_contains "$ERR" "$MNT/none: No such file"
    expect 1 "$COWFS" clone "$MNT/a" "$MNT/none/b"
    assert_contains "$ERR" "$MNT/none: No such file"
    expect 1 "$COWFS" clone "$MNT/a" "$MNT/$(printf 'n%.0s' {1..256})"
    assert_contains "$ERR" "name too long"
    expect 1 "$COWFS" stat "$MNT"
    assert_contains "$ERR" "is a directory"
    expect 1 "$COWFS" diff "$MNT/a" "$MNT/none"
    expect 1 "$COWFS" umount "$MNT/a"
    expect 1 "$COWFS" umount "$WORK"
    expect 1 "$COWFS" umount /
    # A report that cannot be written is no success.
    expect 1 bash -c '"$COWFS" df "$1" >/dev/full' - "$MNT"
    expect 1 bash -c '"$COWFS" df --json "$1" >/dev/full' - "$MNT"
}

# Who is not root makes clones of what he may read, where he may write; they are his.
test_permissions() {
    mount_up
    # He may not be able to go where the binaries are.
    install -m 755 "$COWFS" "$WORK/cowfs"
    as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$WORK/cowfs" "$@"; }
    chmod 755 "$MNT"
    mkdir -m 777 "$MNT/open"
    mkdir -m 755 "$MNT/closed" "$MNT/tree"
    echo public >"$MNT/public"
    chmod 6755 "$MNT/public"
    echo secret >"$MNT/tree/secret"
    chmod 600 "$MNT/tree/secret"
    echo mine >"$MNT/open/mine"
    chown 65534:65534 "$MNT/open/mine"

    expect 0 as_nobody clone "$MNT/open/mine" "$MNT/open/mine2"
    expect 0 as_nobody clone "$MNT/public" "$MNT/open/public"
    # Or anyone could have programs of root's.
    assert_eq "$(stat -c '%U %a' "$MNT/open/public")" "nobody 755"
    expect 1 as_nobody clone "$MNT/public" "$MNT/closed/public"
    assert_contains "$ERR" "ermission"
    assert_missing "$MNT/closed/public"
    expect 1 as_nobody clone "$MNT/tree/secret" "$MNT/open/secret"
    assert_missing "$MNT/open/secret"
    # One secret in a tree is enough, and nothing of the tree is left.
    expect 1 as_nobody clone "$MNT/tree" "$MNT/open/tree"
    assert_missing "$MNT/open/tree"
    chmod 644 "$MNT/tree/secret"
    expect 0 as_nobody clone "$MNT/tree" "$MNT/open/tree"
    assert_eq "$(stat -c %U "$MNT/open/tree/secret")" nobody
    chmod 700 "$MNT/tree"
    expect 1 as_nobody clone "$MNT/tree" "$MNT/open/tree2"
    expect 1 as_nobody clone --replace "$MNT/public" "$MNT/closed"
    assert_eq "$(names_in "$MNT/open")" "mine mine2 public tree"
    expect 0 as_nobody df "$MNT"
    expect 0 as_nobody stat "$MNT/public"
    expect 1 as_nobody stat "$MNT/tree/secret"
    # Root's clones keep their owner.
    chown 12:34 "$MNT/public"
    "$COWFS" clone "$MNT/public" "$MNT/public2"
    assert_eq "$(stat -c '%u %g' "$MNT/public2")" "12 34"
}

test_json() {
    local command
    mount_up
    make_vm "$MNT/vm"
    # Names that are hard to write down.
    cp "$MNT/vm/disk" "$MNT/"$'bad "name"\n\xff\t\\'
    for command in stat seal public du; do
        "$COWFS" "$command" --json "$MNT/"bad* >"$WORK/json"
        json . <"$WORK/json" >/dev/null
    done
    "$COWFS" df --json "$MNT" | json '.store and .stored_bytes and .uuid' >/dev/null
    "$COWFS" du --json "$MNT/vm" "$MNT/vm/disk" | json 'length == 2' >/dev/null
    "$COWFS" seal --json "$MNT" | json '.files == 7' >/dev/null
    "$COWFS" clone --json "$MNT/vm" "$MNT/clone" | json '.files == 6' >/dev/null
    "$COWFS" diff --json "$MNT/vm/disk" "$MNT/clone/disk" | json .equal >/dev/null
    "$COWFS" diff --json "$MNT/"bad* "$MNT/vm/memory.snap" | json '.ranges | length' >/dev/null
    unmount
    "$COWFS" fsck --json "$STORE" | json .clean >/dev/null
}

test_figures() {
    mount_up
    random_file "$MNT/a" $((8 << 20))
    truncate -s 16M "$MNT/a"
    "$COWFS" clone "$MNT/a" "$MNT/b"
    dd if=/dev/urandom of="$MNT/b" bs=1M count=1 seek=2 conv=notrunc status=none
    assert_eq "$("$COWFS" stat --json "$MNT/b" |
        json '[.size_bytes, .mapped_bytes, .hole_bytes, .private_bytes, .shared_bytes] |
            map(. / 1048576) | join(" ")')" "16 8 8 1 7"
    assert_eq "$("$COWFS" du --json "$MNT/a" "$MNT/b" "$MNT" |
        json 'map([.exclusive_bytes, .shared_bytes, .mapped_bytes, .apparent_bytes] |
            map(. / 1048576) | join(" ")) | join(", ")')" "1 7 8 16, 1 7 8 16, 9 0 16 32"
    sync -f "$MNT"
    assert_eq "$("$COWFS" df --json "$MNT" |
        json '[.logical_bytes, .hole_bytes, .mapped_bytes, .saved_by_cloning_bytes, .stored_bytes] |
            map(. / 1048576) | join(" ")')" "32 16 16 7 9"
    # st_blocks is that of a dense file, or cp would not clone.
    assert_eq "$(stat -c %b "$MNT/a")" $((16 * 2048))
}

test_diff() {
    mount_up
    random_file "$MNT/a" $((8 << 20))
    "$COWFS" clone "$MNT/a" "$MNT/b"
    expect 0 "$COWFS" diff "$MNT/a" "$MNT/b"
    assert_eq "$OUT" ""
    expect 0 "$COWFS" diff -q "$MNT/a" "$MNT/b"
    printf 'XYZ' | dd of="$MNT/b" bs=1 seek=5000 conv=notrunc status=none
    # Differs at all three for sure.
    printf '\0\0\0' | dd of="$MNT/a" bs=1 seek=5000 conv=notrunc status=none
    expect 0 "$COWFS" diff "$MNT/a" "$MNT/b"
    assert_eq "$OUT" "5000 3"
    expect 0 "$COWFS" diff --block 4K "$MNT/a" "$MNT/b"
    assert_eq "$OUT" "4096 4096"
    expect 1 "$COWFS" diff -q "$MNT/a" "$MNT/b"
    expect 2 "$COWFS" diff -q "$MNT/a" "$MNT/none"
    # The longer one's rest is a difference.
    echo tail >>"$MNT/b"
    expect 0 "$COWFS" diff "$MNT/a" "$MNT/b"
    assert_eq "$OUT" "5000 3"$'\n'"8388608 5"
    # As cmp sees it, with unshared chunks that are equal.
    # Not by copy_file_range.
    tail -c +1 "$MNT/a" >"$MNT/c"
    expect 0 "$COWFS" diff "$MNT/a" "$MNT/c"
    assert_eq "$OUT" ""
}

# Anyone may open a file and call ioctl.
test_wrong_ioctls() {
    mount_up
    random_file "$MNT/a" 100000
    assert_eq "$("$tool" ioctl "$MNT/a")" good
    assert_eq "$(ls "$MNT")" a
}

test_special_names() {
    mount_up
    local name=$'new\nline \xff*?'
    mkdir "$MNT/$name"
    echo text >"$MNT/$name/-f"
    "$COWFS" clone "$MNT/$name" "$MNT/--clone" 2>"$WORK/err" || true
    (cd "$MNT" && "$COWFS" clone -- "$name" --clone2)
    assert_eq "$(cat "$MNT/--clone2/-f")" text
}

run_tests "$@"
