#!/usr/bin/env bash
# Clones while others write (mount_race.c): each is of one point in time, for a file and for all
# files of a directory; and what is cloned, walked by SEEK_DATA and copied at once is what was
# written.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

race() {
    local options=$1
    shift
    mount_up "$options"
    "$HELPERS/mount_race" "$1" "$MNT" "$2" "$3"
    mount_down
}

test_clone_of_file_under_writes() { race '' file 1 6; }
test_clone_of_file_under_writes_sealing() { race seal_delay=0.001 file 2 4; }
test_clone_of_directory_under_writers() { race '' writers 3 6; }
test_clone_of_directory_under_writers_sealing() { race seal_delay=0.001,commit=1 writers 4 4; }
test_clone_of_directory_under_names() { race '' names 5 4; }
test_clone_of_directory_under_writers_64k() { race chunk_size=64K writers 6 4; }
test_cache() { race '' cache 7 300; }
test_cache_nowriteback() { race nowriteback cache 8 150; }
test_cache_64k() { race chunk_size=64K cache 9 150; }

# cp and cowfs clone themselves, as processes, with the cache full of dirty pages.
test_cache_by_commands() {
    local i
    mount_up
    for i in {1..25}; do
        truncate -s 3M "$WORK/wanted"
        head -c $((i * 7919)) /dev/urandom |
            dd of="$WORK/wanted" conv=notrunc oflag=seek_bytes seek=$((i * 100003)) status=none
        # Not sparse, not by copy_file_range; closed, but in no way synced.
        dd if="$WORK/wanted" of="$MNT/a" bs=64K status=none
        case $((i % 3)) in
            0) cp "$MNT/a" "$MNT/b" ;;
            1) "$COWFS" clone "$MNT/a" "$MNT/b" ;;
            2) cp --sparse=always "$MNT/a" "$MNT/b" ;;
        esac
        "$HELPERS/mount_tool" map "$MNT/b" >"$WORK/map"
        [ -s "$WORK/map" ] || fail "round $i: the clone has no data"
        # By SEEK_DATA, as qemu-img and cp of sparse files do.
        cp --sparse=always "$MNT/b" "$WORK/c"
        assert_same "$WORK/wanted" "$WORK/c"
        rm "$MNT/a" "$MNT/b" "$WORK/c" "$WORK/wanted"
    done
}

run_tests "$@"
