#!/usr/bin/env bash
# Does tests/model/disk see every change of a store's files? Of all functions of the C library that
# change files, those that cowfs and RocksDB call have to be replaced in the test program.
#   seam.sh BUILD
set -euo pipefail
export LC_ALL=C
build=${1:?which build directory}

# Functions that change what is in a file, or its name, or make that durable.
changing='write pwrite pwrite64 writev pwritev pwritev64 pwritev2 pwritev64v2 sendfile sendfile64
splice copy_file_range creat creat64 open open64 openat openat64 fdatasync fsync syncfs sync msync
sync_file_range truncate truncate64 ftruncate ftruncate64 fallocate fallocate64 posix_fallocate
posix_fallocate64 mkdir mkdirat mkstemp mkstemp64 mkostemp mkostemp64 unlink unlinkat rmdir remove
rename renameat renameat2 link linkat symlink symlinkat fopen fopen64 freopen freopen64 aio_write
aio_write64 lio_listio io_uring_enter io_uring_queue_init io_submit fwrite'
# Of RocksDB: fopen and what belongs to it are its text log LOG, which nobody reads; msync is for
# files that are written by mappings, which is off (allow_mmap_writes).
may='fopen fwrite msync'

called() {
    nm -u "$build"/chunkstore/libchunkstore.a "$build"/cowfs/libcowfscore.a 2>/dev/null
    nm -D -u "$rocksdb"
}
names() { awk 'NF == 2 && $1 == "U" { sub(/@.*/, "", $2); print $2 }' | sort -u; }

rocksdb=$(ldd "$build/bin/tests/model_power" | awk '/librocksdb/ { print $3 }')
[ -n "$rocksdb" ] || { echo "model_power does not use librocksdb?" >&2; exit 1; }
program=$(nm "$build/bin/tests/model_power" | awk 'NF == 3 { print $3 }' | sort -u)
# That RocksDB gets these as well, they have to be in the dynamic table.
exported=$(nm -D "$build/bin/tests/model_power" | awk 'NF == 3 { print $3 }' | sort -u)
seen=0 status=0
for name in $(comm -12 <(called | names) <(tr -s ' \n' '\n' <<<"$changing" | sort -u)); do
    seen=$((seen + 1))
    if [[ " $may " == *" $name "* ]]; then continue; fi
    grep -qx "$name" <<<"$program" || { echo "not replaced in tests/model/disk: $name"; status=1; }
done
for name in $(comm -12 <(nm -D -u "$rocksdb" | names) <(tr -s ' \n' '\n' <<<"$changing" | sort -u)); do
    if [[ " $may " == *" $name "* ]]; then continue; fi
    grep -qx "$name" <<<"$exported" || { echo "not exported to RocksDB: $name"; status=1; }
done
[ "$seen" -ge 15 ] || { echo "only $seen functions seen: this test sees nothing"; status=1; }
exit "$status"
