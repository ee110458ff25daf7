#!/usr/bin/env bash
# docs/fork-by-hand.sh, as it stands there: a fork by QEMU's own commands and cowfs clone, without
# cowvm. The guest is the disk that boots by itself.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

by_hand() { bash "$testlib_root/docs/fork-by-hand.sh" "$@"; }
export RUN=$WORK MEMORY=128M

# says VM LINE: on its serial line; true if it answers so.
says() {
    python3 - "$WORK/$1.serial" "$2" "$3" <<'END'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.settimeout(2)
s.sendall(sys.argv[2].encode() + b"\n")
seen = b""
try:
    while sys.argv[3].encode() not in seen:
        got = s.recv(4096)
        if not got:
            break
        seen += got
except TimeoutError:
    pass
sys.exit(sys.argv[3].encode() not in seen)
END
}

test_fork_by_hand() {
    (
        # shellcheck source=../../scripts/lib/bootdisk.sh
        . "$testlib_root/scripts/lib/bootdisk.sh"
        bootdisk_build "$COWFS_INPUTS/boot.img"
    ) || skip "the packages of the guest cannot be had"
    mount_up
    PATH=$BIN:$PATH
    mkdir "$MNT/a"
    "$COWFS" import -q "$COWFS_INPUTS/boot.img" "$MNT/a/disk"
    by_hand start "$MNT/a"
    eventually 120 says a "echo one" "=echo one"
    # What only its memory knows.
    says a "keep of the origin" "=keep"
    by_hand fork "$MNT/a" "$MNT/b"
    assert_eq "$(names_in "$MNT/a")" "disk memory.snap"
    assert_eq "$(names_in "$MNT/b")" "disk memory.snap"
    eventually 60 says b "kept" "=kept of the origin"
    says b "keep of the copy" "=keep"
    eventually 60 says a "kept" "=kept of the origin"
    eventually 60 says b "kept" "=kept of the copy"
    by_hand qmp "$MNT/a" '{"execute": "quit"}'
    by_hand qmp "$MNT/b" '{"execute": "quit"}'
    eventually 20 qemus_by_hand_gone
}
qemus_by_hand_gone() {
    local pid
    for pid in $(pgrep -x qemu-system-x86); do
        ! tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$WORK/" || return 1
    done
}

run_tests "$@"
