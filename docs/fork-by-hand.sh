#!/usr/bin/env bash
# Fork a running QEMU by hand, without cowvm: literally what docs/hypervisors.md tells.
#
#   fork-by-hand.sh start DIR                 a VM: DIR/disk, DIR/memory.snap
#   fork-by-hand.sh fork DIR NEW              a copy of it that runs, with its memory; both run on
#   fork-by-hand.sh qmp DIR '{"execute": …}'  one command; its answer
#
# NEW lies beside DIR, on the same mount. Sockets and logs are DIR.qmp, DIR.serial and DIR.log in
# RUN (default /run), not on the mount. QEMU_OPTIONS (words) is what the guest needs beside. Needs
# python3 and jq. Nothing is tidied up if a step fails: that, locks, and a network card that is
# another one, are what cowvm is for.
set -euo pipefail

RUN=${RUN:-/run}
MEMORY=${MEMORY:-256M}
read -r -a options <<<"${QEMU_OPTIONS:-}"

socket() { printf '%s/%s.%s\n' "$RUN" "$(basename "$1")" "$2"; }

# Commands in their order, each when the one before has been answered; prints the answers. Fails if
# one does.
qmp() {
    python3 - "$(socket "$1" qmp)" "${@:2}" <<'END'
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
lines = s.makefile("rw")
lines.readline()  # the greeting
for command in ['{"execute": "qmp_capabilities"}', *sys.argv[2:]]:
    print(command, file=lines, flush=True)
    answer = {"event": None}
    while "event" in answer:
        answer = json.loads(lines.readline())
    print(json.dumps(answer))
    if "error" in answer:
        sys.exit(f"{command}: {answer['error']['desc']}")
END
}

# status DIR COMMAND: the "status" of query-migrate or query-status.
status() { qmp "$1" "{\"execute\": \"$2\"}" | jq -r '.return.status // empty'; }
until_status() {
    until [ "$(status "$1" "$2")" = "$3" ]; do sleep 0.1; done
}

# machine DIR OPTION...: the same devices in the same order each time, and a generation id of its own.
machine() {
    local dir=$1
    shift
    qemu-system-x86_64 -machine q35,memory-backend=ram -m "$MEMORY" -nodefaults -display none \
        -object "memory-backend-file,id=ram,size=$MEMORY,mem-path=$dir/memory.snap,share=on" \
        -drive "file=$dir/disk,if=none,id=disk,format=raw,cache=writeback" \
        -device virtio-blk-pci,drive=disk \
        -device "vmgenid,id=generation,guid=$(cat /proc/sys/kernel/random/uuid)" \
        -qmp "unix:$(socket "$dir" qmp),server=on,wait=off" \
        -serial "unix:$(socket "$dir" serial),server=on,wait=off" \
        ${options[@]:+"${options[@]}"} "$@" -daemonize 2>>"$(socket "$dir" log)"
}

# Memory stays out of the stream: it is in memory.snap already.
shared='{"execute": "migrate-set-capabilities", "arguments": {"capabilities": [
    {"capability": "x-ignore-shared", "state": true}]}}'
shared=${shared//$'\n'/}

start() { machine "$1"; }

fork() {
    local dir=$1 new=$2
    # 1: most dirty pages go to cowfs while the guest runs. (sync -d FILE would wait for a disk, too;
    # cowvm and cowfs clone use sync_file_range.)
    sync -d "$dir/memory.snap" "$dir/disk"
    # 2 to 5: stop, and save the state of the devices: some 300 KiB. The guest stands still.
    qmp "$dir" "$shared" \
        '{"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 2000000000}}' \
        '{"execute": "stop"}' \
        "{\"execute\": \"migrate\", \"arguments\": {\"uri\": \"exec:cat >'$dir/snapshot.snap.new'\"}}" \
        >/dev/null
    until_status "$dir" query-migrate completed
    until_status "$dir" query-status postmigrate
    # 6: one atomic step over disk, memory and state. cowfs clone flushes each file first.
    mv "$dir/snapshot.snap.new" "$dir/snapshot.snap"
    cowfs clone "$dir" "$new"
    rm "$dir/snapshot.snap"
    # 7: the source runs on.
    qmp "$dir" '{"execute": "cont"}' >/dev/null
    # 8: the copy, on its own files.
    machine "$new" -S -incoming defer
    qmp "$new" "$shared" \
        "{\"execute\": \"migrate-incoming\", \"arguments\": {\"uri\": \"exec:cat '$new/snapshot.snap'\"}}" \
        >/dev/null
    until_status "$new" query-migrate completed
    rm "$new/snapshot.snap"
    qmp "$new" '{"execute": "cont"}' >/dev/null
}

case ${1:-} in
    start) start "$(realpath "$2")" ;;
    fork) fork "$(realpath "$2")" "$(realpath -m "$3")" ;;
    qmp) qmp "$(realpath "$2")" "$3" ;;
    *)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 2
        ;;
esac
