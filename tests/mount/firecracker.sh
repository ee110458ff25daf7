#!/usr/bin/env bash
# What Firecracker does with memory.snap, by the same system calls: it maps the file MAP_PRIVATE, so
# a running guest writes nothing back; a snapshot opens the target (neither truncating it nor
# punching, if it has the right size), writes all of the guest's memory to it, and syncs it. Into a
# clone of the base, only what the guest has changed may be stored.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

size=$((128 << 20)) changed=1000

# snapshot BASE TARGET COPY: a guest that was loaded from BASE changes pages and is dumped into
# TARGET; COPY is what it must be. Prints how many of its pages differ from BASE.
snapshot() {
    python3 - "$1" "$2" "$3" "$changed" <<'END'
import mmap, os, random, sys
base, target, copy, count = sys.argv[1:5]
fd = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
size = os.fstat(fd).st_size
NORESERVE = 0x4000
memory = mmap.mmap(fd, size, mmap.MAP_PRIVATE | NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
os.close(fd)
draw = random.Random(7)
pages = draw.sample(range(size // 4096), int(count))
for page in pages:
    memory[page * 4096:page * 4096 + 4096] = draw.randbytes(4096)
# Written with what was there: no change.
for page in draw.sample(range(size // 4096), 500):
    memory[page * 4096] = memory[page * 4096]
fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
if os.fstat(fd).st_size != size:
    os.ftruncate(fd, 0)
    os.ftruncate(fd, size)
view, done = memoryview(memory), 0
while done < size:
    done += os.write(fd, view[done:])
os.fsync(fd)
os.close(fd)
with open(copy, "wb") as out:
    out.write(view)
print(len(pages))
END
}

dump_into_clone() {
    local base=$MNT/base/memory.snap before exclusive
    mount_up "$1"
    mkdir "$MNT/base"
    random_file "$base" "$size"
    cp "$base" "$WORK/base"
    "$COWFS" clone "$MNT/base" "$MNT/vm1"
    before=$(df_of stored_bytes)
    assert_eq "$(snapshot "$base" "$MNT/vm1/memory.snap" "$WORK/guest")" "$changed"
    assert_same "$WORK/guest" "$MNT/vm1/memory.snap"
    assert_same "$WORK/base" "$base"
    assert_eq "$(($(df_of stored_bytes) - before))" $((changed * 4096)) "bytes stored"
    exclusive=$("$COWFS" du --json "$MNT/vm1" | json ".[0].exclusive_bytes")
    assert_eq "$exclusive" $((changed * 4096)) "bytes of the clone's own"
    # The next snapshot goes into a clone of this one: a chain of snapshots without a chain.
    "$COWFS" clone "$MNT/vm1" "$MNT/vm2"
    snapshot "$MNT/vm1/memory.snap" "$MNT/vm2/memory.snap" "$WORK/guest2" >/dev/null
    assert_same "$WORK/guest2" "$MNT/vm2/memory.snap"
    rm -r "$MNT/base" "$MNT/vm1"
    assert_same "$WORK/guest2" "$MNT/vm2/memory.snap"
}

test_snapshot_into_clone() { dump_into_clone ""; }
test_snapshot_into_clone_write_through() { dump_into_clone nowriteback; }

# Into the very file that it is mapped from: pages that the guest has not touched are the file's.
test_snapshot_into_own_file() {
    local before
    mount_up
    random_file "$MNT/memory.snap" "$size"
    cp "$MNT/memory.snap" "$MNT/kept"
    before=$(df_of stored_bytes)
    snapshot "$MNT/memory.snap" "$MNT/memory.snap" "$WORK/guest" >/dev/null
    assert_same "$WORK/guest" "$MNT/memory.snap"
    assert_eq "$(($(df_of stored_bytes) - before))" $((changed * 4096)) "bytes stored"
}

run_tests "$@"
