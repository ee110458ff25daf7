# shellcheck shell=bash
# vmlib.sh - what the tests with running guests (tests/vm/*.sh) share: a guest that has booted once
# and was hibernated, and talking to guests. Comes on top of testlib.sh.
#
# The guest (scripts/lib/guest.sh) boots under TCG, which takes some 20 s; so it does that once, and
# what cowvm hibernate has left of it is kept in COWFS_INPUTS (default build/inputs), some 130 MiB.
# A test copies that into its mount, where it is a saved VM like any other.

# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

COWVM=$BIN/cowvm
# Read by testlib.sh.
export TEST_LIMIT_S=240
guest_memory=256M

export COWVM_DIR=$MNT COWVM_RUN=$WORK/run
export COWFS_INPUTS=${COWFS_INPUTS:-$testlib_root/build/inputs}

# Asked by testlib.sh: why guests cannot be run here; nothing if they can.
why_not_here() {
    local tool
    for tool in qemu-system-x86_64 qemu-img mke2fs jq python3; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || {
            echo "$tool is not installed"
            return
        }
    done
}

# ---- talking -----------------------------------------------------------------

# ask VM WORDS...: one line to its serial line; its answer without "=WORD ". A guest under TCG on a
# busy machine takes its time.
ask() {
    local vm=$1
    shift
    python3 - "$COWVM_RUN/$(uuid_of "$vm")" "$*" $((60 * ${slow:-1})) <<'END'
import os, re, socket, sys, time
directory, line, limit = sys.argv[1], sys.argv[2], float(sys.argv[3])
s = socket.socket(socket.AF_UNIX)
s.connect(f"/proc/self/fd/{os.open(directory, os.O_RDONLY)}/console")
word = line.split()[0]
s.settimeout(1)
s.sendall(line.encode() + b"\n")
end, seen = time.monotonic() + limit, b""
while time.monotonic() < end:
    try:
        got = s.recv(4096)
    except TimeoutError:
        continue
    if not got:
        sys.exit(f"{directory}: the guest is gone; it said {seen!r}")
    seen += got
    found = re.search(rb"=" + word.encode() + rb" ?([^\r\n]*)[\r\n]", seen)
    if found:
        print(found[1].decode())
        sys.exit()
sys.exit(f"{directory}: no answer to {line!r}; it said {seen!r}")
END
}

vm_json() { "$COWVM" ls --json "$1" | json ".[0].$2"; }
uuid_of() { jq -r .uuid "$COWVM_DIR/$1/vm.json"; }
state_of() { vm_json "$1" state; }
status_of() { "$COWVM" exec-qmp "$1" query-status | json .status; }
is_state() { [ "$(state_of "$1")" = "$2" ]; }
counts_on() {
    local before
    before=$(ask "$1" count)
    eventually 60 count_above "$1" "$before"
}
count_above() { [ "$(ask "$1" count)" -gt "$2" ]; }

# on_terminal STATUS (SEND WAIT)... -- COMMAND...: runs it on a terminal of its own: sends what is
# typed, again each 2 s (what is typed before a guest runs is lost), until WAIT is seen or, if that is
# empty, it has ended. It must end with that status, and leave the terminal as it was.
on_terminal() {
    python3 - $((60 * slow)) "$@" <<'END'
import fcntl, os, select, subprocess, sys, termios, time
limit, wanted = time.monotonic() + float(sys.argv[1]), int(sys.argv[2])
split = sys.argv.index("--")
steps = [(a.encode().decode("unicode_escape").encode("latin1"), b.encode())
         for a, b in zip(sys.argv[3:split:2], sys.argv[4:split:2])]
fd, slave = os.openpty()
child = subprocess.Popen(sys.argv[split + 1:], stdin=slave, stdout=slave, stderr=slave,
                         start_new_session=True,
                         preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
seen, status = b"", None
for send, wait in steps:
    seen, again = b"", 0
    while (wait not in seen) if wait else (status is None):
        if time.monotonic() > limit:
            child.kill()
            sys.exit(f"after {send!r}: no {wait!r} in {seen!r}")
        if wait and time.monotonic() > again or again == 0:
            os.write(fd, send)
            again = time.monotonic() + 2
        if select.select([fd], [], [], 0.1)[0]:
            seen += os.read(fd, 4096)
        status = child.poll()
        if wait and status is not None:
            sys.exit(f"it has ended with {status}; it said {seen!r}")
if status != wanted:
    sys.exit(f"it has ended with {status}, not {wanted}; it said {seen!r}")
if termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO) != termios.ICANON | termios.ECHO:
    sys.exit("the terminal is left raw")
END
}

# Processes of that name that this test has begun: others may run guests here, too.
pids_of() {
    local pid
    for pid in $(pgrep -x "$1"); do
        grep -qzxF "COWVM_RUN=$COWVM_RUN" "/proc/$pid/environ" 2>/dev/null && echo "$pid"
    done
    return 0
}
no_process() { [ -z "$(pids_of "$1")" ]; }

# Of the VMs of this test: their QEMUs are told by where they work.
qemus() {
    local cwd count=0
    for cwd in /proc/[0-9]*/cwd; do
        [[ $(readlink "$cwd" 2>/dev/null) != "$MNT"/* ]] || count=$((count + 1))
    done
    echo "$count"
}
qemus_are() { [ "$(qemus)" = "$1" ]; }
# No clone in the making, in the mount or beside it.
nothing_hidden() { [ -z "$(find "$COWVM_DIR" -mindepth 1 -maxdepth 1 -name '.*')" ]; }
vms_are() { [ "$(names_in "$COWVM_DIR")" = "$1" ]; }

# The guest's file system after a power cut: the journal is replayed, what was being removed is
# removed, free space is counted anew. Anything else that e2fsck says is damage. The image so repaired
# stays: $WORK/fsck.img.
disk_clean() {
    local line said
    cp "$COWVM_DIR/$1/disk" "$WORK/fsck.img"
    PATH=$PATH:/usr/sbin:/sbin
    said=$(e2fsck -fy "$WORK/fsck.img" 2>&1) || true
    while IFS= read -r line; do
        case $line in
            '' | 'e2fsck '* | 'Pass '[1-5]': '* | 'Fix? yes') ;;
            *': recovering journal' | *'***** FILE SYSTEM WAS MODIFIED *****') ;;
            'Clearing orphaned inode '* | 'Truncating orphaned inode '*) ;;
            'Setting free '* | 'Free blocks count wrong ('* | 'Free inodes count wrong ('*) ;;
            "$WORK/fsck.img: "[0-9]*/[0-9]*' files ('*) ;;
            *) fail "e2fsck of $1: '$line' in: $said" ;;
        esac
    done <<<"$said"
    e2fsck -fn "$WORK/fsck.img" >/dev/null || fail "e2fsck finds more: $1"
}

# ---- the guest ---------------------------------------------------------------

guest_append="console=ttyS0 quiet panic=-1"

create_guest() {
    "$COWVM" create "$1" --accel tcg --memory "$guest_memory" --forward 6379 \
        --disk "$COWFS_INPUTS/guest/disk.img" --kernel "$COWFS_INPUTS/guest/vmlinuz" \
        --initrd "$COWFS_INPUTS/guest/initrd" --append "$guest_append"
}

booted() { grep -q 'GUEST READY' "$COWVM_RUN/$(uuid_of "$1")/serial.log" 2>/dev/null; }

# Makes what the tests copy. Called once, by scripts/test or the first test.
prepare_guest() {
    local recipe out=$COWFS_INPUTS/saved-guest
    # shellcheck source=../../scripts/lib/guest.sh
    . "$testlib_root/scripts/lib/guest.sh"
    mkdir -p "$COWFS_INPUTS"
    guest_build "$COWFS_INPUTS/guest" || skip "the guest's packages cannot be had"
    recipe="$(cat "$COWFS_INPUTS/guest/guest.recipe") $guest_memory $guest_append 2
$(qemu-system-x86_64 --version | head -n 1)"
    [ "$(cat "$out/recipe" 2>/dev/null)" != "$recipe" ] || return 0
    mount_up
    create_guest golden
    "$COWVM" start golden
    eventually 120 booted golden
    ask golden set prepared
    ask golden sync
    "$COWVM" hibernate golden
    rm -rf "$out" "$out.tmp"
    cp -r --sparse=always "$MNT/golden" "$out.tmp"
    printf '%s\n' "$recipe" >"$out.tmp/recipe"
    mv "$out.tmp" "$out"
    unmount
}

# have_guest NAME: a hibernated guest in the mount; starts nothing.
have_guest() {
    [ -s "$COWFS_INPUTS/saved-guest/vm.json" ] || skip "there is no guest (tests/vm/prepare.sh)"
    mkdir "$MNT/$1"
    cp --sparse=always "$COWFS_INPUTS/saved-guest"/{disk,kernel,initrd,memory.snap,snapshot.snap,vm.json} \
        "$MNT/$1/"
}

# Each test: a mount with a running guest "golden". up_with_guest [OPTIONS]
# shellcheck disable=SC2120 # most have no options
up_with_guest() {
    mount_up "${1:-}"
    have_guest golden
    "$COWVM" resume golden
    assert_eq "$(ask golden get)" "prepared prepared" "what the guest remembers"
}

# A process that ends is seen no more before it has closed its files.
mount_unused() {
    [ -z "$(find /proc/[0-9]*/fd /proc/[0-9]*/cwd -lname "$MNT*" -print -quit 2>/dev/null)" ]
}

# The end of a test: nothing runs on the mount any more, and nothing is left half-made.
down_with_guests() {
    local vm
    for vm in $(names_in "$MNT"); do
        # A standby, which goes with its VM.
        [[ $vm != .* ]] || continue
        [ ! -e "$MNT/$vm/vm.json" ] || "$COWVM" stop --now "$vm"
    done
    nothing_hidden || fail "left behind: $(find "$MNT" -maxdepth 1 -name '.*')"
    qemus_are 0 || fail "$(qemus) QEMUs are left"
    eventually 30 mount_unused
}

# ---- stopping and killing cowvm in the middle ---------------------------------

need_strace() {
    need_tool strace
    strace -o /dev/null true 2>/dev/null || skip "processes cannot be traced here"
}
# stop_at CALL:N COMMAND...: it stands still (as by Ctrl-Z) at its Nth call of that name.
stop_at() {
    local call=${1%:*} n=${1#*:}
    shift
    strace -o /dev/null -e "trace=$call" -e "inject=$call:signal=STOP:when=$n" "$@"
}
# killed_at CALL N COMMAND...: 0 if it was killed there, 1 if it was through before.
killed_at() {
    local call=$1 n=$2 status=0
    shift 2
    # Only this process: its guard and the QEMUs are not traced.
    strace -o "$WORK/trace" -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" "$@" \
        >"$WORK/killed.out" 2>&1 || status=$?
    [ "$status" != 0 ] || return 1
    grep -q 'killed by SIGKILL' "$WORK/trace" || fail "$*: $(cat "$WORK/killed.out")"
}
# The cowvm that strace was told to stop stands still, and not just at a call that is traced.
stopped_fork() {
    local pid
    pid=$(pids_of cowvm)
    [ -n "$pid" ] || return 1
    for _ in 1 2 3 4 5; do
        grep -q '^State:.*[tT] ' "/proc/$pid/status" || return 1
        sleep 0.1
    done
}
