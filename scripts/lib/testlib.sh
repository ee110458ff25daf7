# shellcheck shell=bash disable=SC2119,SC2120
# testlib.sh - what the tests over real mounts (tests/mount/*.sh) share.
#
# A test file sources this, defines functions test_NAME, and ends with
#   run_tests "$@"
# which runs each of them in a process of its own, with a directory of its own ($WORK, on a tmpfs
# of its own so that df tells what a store takes), and prints a line for each: ok, not ok (with all
# that it said) or skip. Arguments are names of tests to run; --list lists them.
#
# Inside a test every command that fails ends it (set -e). All that a test leaves behind, however it
# ended, is removed from the outside: it runs in mount and process namespaces of its own, its
# daemons are ended, its mounts undone. Fifos, sockets and cwd never lie on a mount of ours.
#
# Environment:
#   COWFS_BIN           directory of the binaries to be tested (default build/bin)
#   COWFS_HELPERS       directory of the test programs (default COWFS_BIN/tests)
#   COWFS_TEST_SLOW     factor for all time-outs (default 1; sanitizers need more)
#   COWFS_TEST_KEEP     if set, what the daemons said is shown for tests that pass, too

testlib_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BIN=$(realpath "${COWFS_BIN:-$testlib_root/build/bin}")
COWFS=$BIN/cowfs
HELPERS=$(realpath "${COWFS_HELPERS:-$BIN/tests}")
slow=${COWFS_TEST_SLOW:-1}
export LC_ALL=C COWFS HELPERS

# Where a store and its mount are unless a test says otherwise. run_case sets WORK.
WORK=${WORK:-}
STORE=$WORK/store MNT=$WORK/mnt

# ---- asserting ---------------------------------------------------------------

fail() {
    local i
    printf 'FAILED: %s\n' "$*" >&2
    for ((i = 1; i < ${#FUNCNAME[@]} - 1; i++)); do
        printf '  at %s:%s (%s)\n' "${BASH_SOURCE[i]##*/}" "${BASH_LINENO[i - 1]}" "${FUNCNAME[i]}" >&2
    done
    exit 1
}

skip() {
    printf '%s\n' "$*" >"$WORK.skip"
    exit 77
}

assert_eq() { [ "$1" = "$2" ] || fail "${3:-values differ}: '$1', not '$2'"; }
assert_ge() { [ "$1" -ge "$2" ] || fail "${3:-too small}: $1 < $2"; }
assert_le() { [ "$1" -le "$2" ] || fail "${3:-too large}: $1 > $2"; }
assert_same() { cmp -- "$1" "$2" || fail "$1 and $2 differ"; }
assert_contains() { [[ $1 == *"$2"* ]] || fail "no '$2' in: $1"; }
assert_missing() { if [ -e "$1" ] || [ -L "$1" ]; then fail "$1 exists"; fi; }

# expect STATUS COMMAND...: runs it, which must end with that exit status (or one of them: "1|2").
# What it says is in $OUT and $ERR then.
OUT='' ERR=''
expect() {
    local wanted=$1 got=0
    shift
    "$@" >"$WORK/expect.out" 2>"$WORK/expect.err" </dev/null || got=$?
    OUT=$(<"$WORK/expect.out") ERR=$(<"$WORK/expect.err")
    [[ "|$wanted|" == *"|$got|"* ]] ||
        fail "'$*' ended with $got, not $wanted; stdout: ${OUT:0:2000}; stderr: ${ERR:0:2000}"
}

# eventually SECONDS COMMAND...: until it succeeds. Its time is no measurement: machines are busy.
eventually() {
    local end=$((SECONDS + $1 * slow))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "still not so: $*"
        sleep 0.1
    done
}

# json FILTER: of the JSON on stdin; invalid JSON and a missing value end the test.
json() { jq -e -r "$1"; }

# ---- mounting ----------------------------------------------------------------

declare -A daemons=()

is_mounted() { grep -qF " $1 " /proc/self/mountinfo; }

# How often a daemon of this test has said that MOUNTPOINT is served.
times_mounted() {
    sed -n 's/.*: mounted on //p' "$WORK.daemon.log" | grep -cxF -- "$1"
}

# mount_up [OPTIONS [STORE MOUNTPOINT]]: in the foreground form, so that what the daemon says, and
# how it ends, is seen.
mount_up() {
    local options=${1:-} store=${2:-$STORE} mnt=${3:-$MNT} pid end before
    touch "$WORK.daemon.log"
    before=$(times_mounted "$mnt" || true)
    mkdir -p "$mnt"
    "$COWFS" mount -f ${options:+-o "$options"} "$store" "$mnt" \
        </dev/null >>"$WORK.daemon.log" 2>&1 &
    pid=$!
    end=$((SECONDS + 60 * slow))
    # It says so when it is ready: before that it asks the mount itself for something, which is in use then.
    until [ "$(times_mounted "$mnt" || true)" -gt "$before" ]; do
        kill -0 "$pid" 2>/dev/null || fail "the daemon of $mnt has ended"
        [ "$SECONDS" -lt "$end" ] || fail "$mnt does not get mounted"
        sleep 0.02
    done
    # The number of the connection, for clean_up.
    mountpoint -d "$mnt" | sed 's/.*://' >>"$WORK.connections"
    daemons[$mnt]=$pid
}

# unmount [MOUNTPOINT]: and the daemon must end well (with the sanitizers: no leak).
unmount() {
    local mnt=${1:-$MNT} status=0
    "$COWFS" umount "$mnt" || fail "cowfs umount $mnt"
    ! is_mounted "$mnt" || fail "$mnt is still mounted"
    wait "${daemons[$mnt]}" || status=$?
    unset "daemons[$mnt]"
    assert_eq "$status" 0 "exit status of the daemon of $mnt"
}

# mount_down [MOUNTPOINT [STORE]]: unmounts; and then nothing may be wrong with the store.
mount_down() {
    unmount "${1:-$MNT}"
    fsck_clean "${2:-$STORE}"
}

fsck_clean() {
    local store=${1:-$STORE}
    expect 0 "$COWFS" fsck --json --check-data "$store"
    # Nothing is lost or wrong, and nothing has leaked. Only this may be: when deduplication gives
    # one owner of a chunk its equal, those that keep the chunk have it sealed without a hash.
    json '.complete and .errors == 0 and (.kinds | del(."sealed-without-hash") == {})' <<<"$OUT" \
        >/dev/null || fail "fsck $store: $(json '.findings |= .[:20]' <<<"$OUT") $ERR"
}

# With a supervisor, the process that serves: a child of the one that mount_up has started.
# By its command line: other children have the same name for a moment.
daemon_pid() { pgrep -P "${daemons[$MNT]}" -f '^cowfs serve '; }
# The same; without a supervisor (nosupervise, io_uring, old kernels) the one that was started.
serving_pid() { daemon_pid || echo "${daemons[$MNT]}"; }
is_another() {
    local pid
    pid=$(daemon_pid) && [ "$pid" != "$1" ]
}

# kill_daemon [MOUNTPOINT]: without a word. The mount has to be without a supervisor (nosupervise). What is mounted there gives errors from then on; as long
# as somebody may still write to it, it must stay (or he would write to what is below).
kill_daemon() {
    local mnt=${1:-$MNT} pid
    pid=${daemons[$mnt]}
    kill -KILL "$pid"
    # Not just wait, which would wait for ever for one that hangs.
    eventually 30 process_gone "$pid"
    wait "$pid" 2>/dev/null || true
    unset "daemons[$mnt]"
}
# Gone, or a zombie that waits to be asked for, with no thread left that hangs in the kernel.
process_gone() {
    local tasks=("/proc/$1/task"/*)
    [ ! -e "/proc/$1" ] || { [ "${#tasks[@]}" -le 1 ] &&
        grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null; }
}
crash() {
    kill_daemon "$@"
    umount -l "${1:-$MNT}"
}

# df_of KEY [MOUNTPOINT], e.g. stored_bytes. What programs wrote has reached the daemon by then.
df_of() {
    sync -f "${2:-$MNT}"
    "$COWFS" df --json "${2:-$MNT}" | json ".$1"
}
stored_is() { [ "$(df_of stored_bytes)" = "$1" ]; }
stat_of() { "$COWFS" stat --json "$2" | json ".$1"; }
# Bytes that the tmpfs below has in use.
used_below() { df -B1 --output=used "$WORK" | tail -n 1 | tr -d ' '; }

random_file() { head -c "$2" /dev/urandom >"$1"; }
sum_of() { b2sum <"$1"; }

# The names in a directory, sorted, in one line.
names_in() { find "$1" -mindepth 1 -maxdepth 1 -printf '%f\n' | sort | paste -s -d ' '; }

# hold COMMAND...: starts a helper that says "ready" and then holds something until release.
hold() {
    local line=''
    mkfifo "$WORK/hold.in" "$WORK/hold.out"
    "$@" <"$WORK/hold.in" >"$WORK/hold.out" &
    held=$!
    exec 7>"$WORK/hold.in" 6<"$WORK/hold.out"
    rm "$WORK/hold.in" "$WORK/hold.out"
    read -r line <&6 || true
    assert_eq "$line" ready "what '$1 $2' says"
}
release() {
    exec 7>&- 6<&-
    wait "$held"
}

# ---- as a plain user ---------------------------------------------------------

as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
# He may not be able to go where the binaries are: $user_cowfs is one of a copy that can be replaced.
# shellcheck disable=SC2034 # the tests use it
copy_binaries() {
    mkdir "$WORK/bin"
    install -m 755 "$COWFS" "$COWFS"d "$WORK/bin"
    user_cowfs=$WORK/bin/cowfs
}
# What he needs, where udev has not seen to it: /dev/fuse that anybody may open. (In the mount
# namespace of the test.) And where a store and a mount may be of his own.
# shellcheck disable=SC2034
open_dev_fuse() {
    need_tool fusermount3
    mknod -m 666 "$WORK/fuse" c 10 229
    mount --bind "$WORK/fuse" /dev/fuse
    install -d -o 65534 -g 65534 "$WORK/user" "$WORK/user/mnt"
    user_store=$WORK/user/store user_mnt=$WORK/user/mnt
}

# ---- running -----------------------------------------------------------------

# need_loop: there are loop devices, or the test is skipped.
need_loop() {
    [ -e /dev/loop-control ] || skip "no loop devices here (/dev/loop-control is missing)"
    losetup -f >/dev/null 2>&1 || skip "no free loop device"
}
need_tool() { command -v "$1" >/dev/null || skip "$1 is not installed"; }
# kernel_since VERSION: this kernel is of that version or a later one.
kernel_since() {
    local version
    version=$(uname -r)
    [ "$(printf '%s\n' "${version%%-*}" "$1" | sort -V | head -n 1)" = "$1" ]
}
# For why_not_here of those whose daemon dies or gives way to another.
why_no_resume() { kernel_since 6.9 || echo "resuming a mount needs Linux 6.9"; }

why_not() {
    if [ "$(id -u)" != 0 ]; then
        echo "mounting needs root"
    elif [ ! -e /dev/fuse ]; then
        echo "/dev/fuse is missing"
    elif ! : 2>/dev/null <>/dev/fuse; then
        echo "/dev/fuse cannot be opened"
    elif declare -F why_not_here >/dev/null; then
        # What the tests of this file need beyond that.
        why_not_here
    fi
}

names_of_tests() { declare -F | sed -n 's/^declare -f \(test_.*\)/\1/p'; }

# In the order in which they stand in the file.
tests_in_order() {
    local name
    shopt -s extdebug
    for name in $(names_of_tests); do
        declare -F "$name"
    done | sort -k 2n | cut -d ' ' -f 1
    shopt -u extdebug
}

# Mount points at or below $1, the latest first.
mounts_below() {
    awk -v top="$1" '$5 == top || index($5, top "/") == 1 { print $5 }' /proc/self/mountinfo | tac
}

# Whether a process is left of what clean_up has killed. All that can be seen are the test's, in a
# namespace of processes of its own.
somebody_hangs() {
    [ "${COWFS_TEST_NAMESPACE:-}" = private ] || return 0
    sleep 0.5
    grep -lq '^State:[[:space:]]*D' /proc/[0-9]*/task/[0-9]*/status 2>/dev/null
}

# What hangs in a mount, even a daemon that was killed in a call of its own, gets an error. The number
# of a connection that has ended may be that of somebody else's mount by now, another test's, say: so
# only those that are still mounted here, and the others if somebody hangs, who can be in nothing else.
abort_connections() {
    local work=$1 id hangs=''
    [ -s "$work.connections" ] || return 0
    mkdir "$work.fusectl" && mount -t fusectl none "$work.fusectl" || return 0
    ! somebody_hangs || hangs=1
    while read -r id; do
        [ -e "$work.fusectl/$id/abort" ] || continue
        if [ -n "$hangs" ] || awk -v device="0:$id" -v top="$work/" '
            $3 == device && index($5, top) == 1 { found = 1 } END { exit !found }' \
            /proc/self/mountinfo; then
            echo 1 >"$work.fusectl/$id/abort"
        fi
    done <"$work.connections"
    umount "$work.fusectl"
    rmdir "$work.fusectl"
}

# Whatever a test has left: processes whose arguments name its directory, and mounts in it.
clean_up() {
    local where work=$1 pid args
    for args in /proc/[0-9]*/cmdline; do
        pid=${args#/proc/}
        pid=${pid%/cmdline}
        if [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ]; then continue; fi
        if tr '\0' '\n' 2>/dev/null <"$args" | grep -qF -- "$work/"; then
            kill -KILL "$pid" 2>/dev/null
        fi
    done
    # Only where something is left: the numbers of others' connections may be ours again by now.
    if [ "$2" != 0 ] && [ "$2" != 77 ]; then abort_connections "$work"; fi
    while IFS= read -r where; do
        umount "$where" 2>/dev/null || umount -l "$where" 2>/dev/null
    done < <(mounts_below "$work")
    # Never descend into something that is still mounted.
    rm -rf --one-file-system -- "$work" "$work.daemon.log" "$work.skip" "$work.log" \
        "$work.connections"
}

run_one() {
    local file=$1 name=$2 base limit work status=0 start=$EPOCHREALTIME took reason
    base=${TMPDIR:-/dev/shm}
    [ -n "${TMPDIR:-}" ] || [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] || base=/tmp
    work=$(realpath "$(mktemp -d "$base/cowfs-test.XXXXXX")")
    current_work=$work
    mount -t tmpfs -o size=8g,mode=755 cowfs-test "$work" || {
        printf 'not ok %s: no tmpfs can be mounted on %s\n' "$name" "$work"
        return 1
    }
    limit=${TEST_LIMIT_S:-120}
    WORK=$work timeout -k 10 $((limit * slow)) bash "$file" --case "$name" \
        >"$work.log" 2>&1 </dev/null || status=$?
    took=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }')
    case $status in
        0)
            printf 'ok %s (%s)\n' "$name" "$took"
            [ -z "${COWFS_TEST_KEEP:-}" ] || sed 's/^/    daemon: /' "$work.daemon.log"
            ;;
        77)
            reason=$(cat "$work.skip" 2>/dev/null)
            printf 'skip %s: %s\n' "$name" "${reason:-no reason given}"
            ;;
        *)
            [ "$status" -lt 124 ] || printf 'ended by a time-out or a signal (%d)\n' "$status" >>"$work.log"
            printf 'not ok %s (%s)\n' "$name" "$took"
            tail -n 60 "$work.log" | sed 's/^/    /'
            [ ! -s "$work.daemon.log" ] || tail -n 60 "$work.daemon.log" | sed 's/^/    daemon: /'
            ;;
    esac
    clean_up "$work" "$status"
    current_work=''
    [ "$status" = 0 ] || [ "$status" = 77 ]
}

# The inner process of one test.
run_case() {
    set -Eeuo pipefail
    trap 'printf "FAILED: line %s of %s: %s\n" "$LINENO" "${BASH_SOURCE[0]##*/}" "$BASH_COMMAND" >&2' ERR
    cd "$WORK"
    mkdir -p "$MNT"
    "$1"
    # A test that has left its mount there has nothing more to say about it.
    local mnt
    for mnt in "${!daemons[@]}"; do
        if [ "$mnt" = "$MNT" ]; then mount_down; else unmount "$mnt"; fi
    done
    no_findings
    exit 0
}

# A supervisor starts another daemon when a sanitizer, an assertion or a crash has ended one, and nobody else would
# see it. Daemons that a test sends SIGSEGV, or has them do so, are told of, too: expect_segv, then.
expect_segv=''
no_findings() {
    local found
    if [ -z "$expect_segv${COWFS_DEBUG_FAULTS:-}" ] &&
        found=$(grep -E 'was killed by signal (4|6|7|8|11) ' "$WORK.daemon.log" 2>/dev/null); then
        fail "the daemon crashed: $found"
    fi
    found=$(grep -E 'ERROR: [A-Za-z]+Sanitizer|WARNING: ThreadSanitizer|: runtime error: ' \
        "$WORK.daemon.log" 2>/dev/null) || return 0
    [ -z "$expect_segv${COWFS_DEBUG_FAULTS:-}" ] ||
        found=$(grep -v 'Sanitizer: SEGV on unknown address' <<<"$found") || return 0
    fail "a sanitizer: $found"
}

current_work=''
run_tests() {
    local file name reason failed=0
    file=$(realpath "$0")
    case ${1:-} in
        --case) run_case "$2" ;;
        --list)
            tests_in_order
            exit 0
            ;;
        -h | --help)
            sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$file"
            printf 'usage: %s [--list | TEST...]\n' "${file##*/}"
            exit 0
            ;;
        -*)
            printf '%s: unknown option %s\n' "${file##*/}" "$1" >&2
            exit 2
            ;;
    esac
    reason=$(why_not)
    if [ -n "$reason" ]; then
        for name in $(tests_in_order); do
            printf 'skip %s: %s\n' "$name" "$reason"
        done
        exit 0
    fi
    [ -x "$COWFS" ] || {
        printf 'not ok %s: no %s (scripts/build makes it)\n' "${file##*/}" "$COWFS"
        exit 1
    }
    # What even a SIGKILL leaves behind is gone with the namespaces. Where they cannot be had, the
    # cleaning up has to do.
    if [ -z "${COWFS_TEST_NAMESPACE:-}" ]; then
        export COWFS_TEST_NAMESPACE=none
        if unshare --mount --pid --fork --kill-child --mount-proc true 2>/dev/null; then
            COWFS_TEST_NAMESPACE=private \
                exec unshare --mount --pid --fork --kill-child --mount-proc bash "$file" "$@"
        fi
    fi
    trap '[ -z "$current_work" ] || clean_up "$current_work" 1; exit 130' INT TERM HUP
    if [ $# = 0 ]; then
        mapfile -t < <(tests_in_order)
        set -- "${MAPFILE[@]}"
    fi
    for name in "$@"; do
        declare -F "$name" >/dev/null || {
            printf 'not ok %s: there is no such test\n' "$name"
            failed=1
            continue
        }
        run_one "$file" "$name" || failed=1
    done
    exit "$failed"
}
