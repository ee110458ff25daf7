#!/usr/bin/env bash
# What takes space and what does not; and space that is given back to the file system below, which
# is a tmpfs of the test's own.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

MIB=1048576

used_at_most() { [ "$(used_below)" -le "$1" ]; }

# gives_back BYTES COMMAND...: within a second or so, says the README; machines are busy.
gives_back() {
    local before bytes=$1
    shift
    sync -f "$MNT"
    before=$(used_below)
    "$@"
    eventually 10 used_at_most $((before - bytes))
}

test_zeros_become_holes() {
    mount_up
    head -c $((16 * MIB)) /dev/zero >"$MNT/zeros"
    assert_eq "$(df_of stored_bytes)" 0 "stored bytes"
    assert_eq "$(stat_of hole_bytes "$MNT/zeros")" $((16 * MIB))
    random_file "$MNT/a" $((4 * MIB))
    assert_eq "$(df_of stored_bytes)" $((4 * MIB)) "stored bytes"
    # Zeros written over data free it.
    dd if=/dev/zero of="$MNT/a" bs=1M count=3 conv=notrunc status=none
    assert_eq "$(df_of stored_bytes)" "$MIB" "stored bytes"
    dd if=/dev/zero of="$MNT/a" bs=1M seek=3 count=1 conv=notrunc oflag=direct status=none
    assert_eq "$(df_of stored_bytes)" 0 "stored bytes"
    assert_eq "$(wc -c <"$MNT/a")" $((4 * MIB))
    # What fallocate has reserved stays reserved.
    fallocate -l 4M "$MNT/reserved"
    dd if=/dev/zero of="$MNT/reserved" bs=1M count=4 conv=notrunc status=none
    sync -f "$MNT"
    assert_eq "$(stat_of reserved_bytes "$MNT/reserved")" $((4 * MIB)) "reserved bytes"
}

# A hypervisor writes a whole memory.snap over a clone: only what has changed is stored.
test_same_content_over_clone() {
    local before
    mount_up seal=off
    random_file "$WORK/content" $((32 * MIB))
    cp "$WORK/content" "$MNT/a"
    "$COWFS" clone "$MNT/a" "$MNT/b"
    before=$(df_of stored_bytes)
    dd if="$WORK/content" of="$MNT/b" bs=1M conv=notrunc status=none
    assert_eq "$(df_of stored_bytes)" "$before" "stored bytes after writing the same"
    dd if="$WORK/content" of="$MNT/b" bs=1M conv=notrunc oflag=direct status=none
    assert_eq "$(df_of stored_bytes)" "$before" "stored bytes after writing the same directly"
    assert_eq "$(stat_of shared_bytes "$MNT/b")" $((32 * MIB)) "shared bytes"
    # Ten chunks differ.
    "$HELPERS/mount_tool" scattered "$WORK/content" 10 1
    dd if="$WORK/content" of="$MNT/b" bs=1M conv=notrunc status=none
    assert_le "$(df_of stored_bytes)" $((before + 10 * 4096)) "stored bytes"
    assert_same "$WORK/content" "$MNT/b"
}

test_overwriting_stores_nothing_more() {
    local i
    mount_up
    for i in 1 2 3 4; do
        random_file "$MNT/a" $((8 * MIB))
    done
    dd if=/dev/urandom of="$MNT/a" bs=1M count=8 conv=notrunc status=none
    assert_eq "$(df_of stored_bytes)" $((8 * MIB)) "stored bytes"
    eventually 10 used_at_most $((10 * MIB))
}

test_delete_gives_space_back() {
    mount_up
    random_file "$MNT/a" $((64 * MIB))
    random_file "$MNT/b" $((16 * MIB))
    gives_back $((63 * MIB)) rm "$MNT/a"
    # A clone keeps what it shares.
    "$COWFS" clone "$MNT/b" "$MNT/c"
    cp "$MNT/b" "$WORK/b"
    rm "$MNT/b"
    sync -f "$MNT"
    assert_same "$WORK/b" "$MNT/c"
    gives_back $((15 * MIB)) rm "$MNT/c"
    assert_eq "$(df_of stored_bytes)" 0 "stored bytes"
}

test_truncate_and_punch_give_space_back() {
    mount_up
    random_file "$MNT/a" $((64 * MIB))
    gives_back $((15 * MIB)) truncate -s 48M "$MNT/a"
    gives_back $((15 * MIB)) fallocate --punch-hole --offset 8M --length 16M "$MNT/a"
    gives_back $((7 * MIB)) fallocate --zero-range --offset 32M --length 8M "$MNT/a"
    gives_back $((15 * MIB)) bash -c ': >"$1"' - "$MNT/a"
}

test_deleted_while_open() {
    mount_up
    random_file "$MNT/a" $((32 * MIB))
    exec 9<"$MNT/a"
    rm "$MNT/a"
    sync -f "$MNT"
    assert_eq "$(df_of stored_bytes)" $((32 * MIB)) "stored bytes"
    close_it() { exec 9<&-; }
    gives_back $((31 * MIB)) close_it
}

# Scattered chunks, too, not only whole files.
test_clones_give_back_their_writes() {
    local i before
    mount_up seal=off
    random_file "$MNT/golden" $((64 * MIB))
    sync -f "$MNT"
    # The beginning of a large file has moved to its own segment.
    eventually 10 used_at_most $((65 * MIB))
    before=$(used_below)
    for i in {1..10}; do
        "$COWFS" clone "$MNT/golden" "$MNT/vm$i"
        "$HELPERS/mount_tool" scattered "$MNT/vm$i" 500 "$i"
    done
    sync -f "$MNT"
    assert_ge "$(used_below)" $((before + 10 * 480 * 4096)) "used below"
    rm "$MNT"/vm*
    # Within 2 % of before, and what the database has grown by.
    eventually 10 used_at_most $((before + 64 * MIB / 50 + MIB))
}

test_empty_store_is_small() {
    mount_up
    sync -f "$MNT"
    assert_le "$(used_below)" "$MIB" "used below, empty"
    unmount
    assert_le "$(used_below)" "$MIB" "used below, unmounted"
}

make_twins() {
    random_file "$WORK/content" $((16 * MIB))
    mkdir "$MNT/vm1" "$MNT/vm2"
    # Not by copy_file_range, and at different places.
    tail -c +1 "$WORK/content" >"$MNT/vm1/disk"
    (head -c $((5 * MIB)) /dev/urandom && cat "$WORK/content") >"$MNT/vm2/disk"
    assert_eq "$(df_of stored_bytes)" $((37 * MIB)) "stored bytes"
}

test_seal() {
    mount_up seal=off
    make_twins
    "$COWFS" seal --json "$MNT" | json '.saved_bytes == 16777216 and .files == 2'
    assert_eq "$(df_of stored_bytes)" $((21 * MIB)) "stored bytes"
    assert_eq "$(df_of saved_by_dedup_bytes)" $((16 * MIB)) "saved"
    assert_same "$WORK/content" "$MNT/vm1/disk"
    tail -c +$((5 * MIB + 1)) "$MNT/vm2/disk" | cmp - "$WORK/content"
    # What is sealed can be written to.
    dd if=/dev/urandom of="$MNT/vm2/disk" bs=1M count=10 conv=notrunc status=none
    assert_same "$WORK/content" "$MNT/vm1/disk"
    # Again: nothing left to be done.
    "$COWFS" seal "$MNT"
    "$COWFS" seal --json "$MNT" | json '.hashed_bytes == 0'
    # And what comes later finds what is sealed, also after a new mount.
    unmount
    mount_up seal=off
    tail -c +1 "$WORK/content" >"$MNT/third"
    "$COWFS" seal --json "$MNT/third" | json '.saved_bytes == 16777216'
    assert_same "$WORK/content" "$MNT/third"
}

test_seal_of_equal_chunks_in_one_file() {
    mount_up
    random_file "$WORK/block" 65536
    local i
    for i in {1..64}; do cat "$WORK/block"; done >"$WORK/content"
    tail -c +1 "$WORK/content" >"$MNT/a"
    "$COWFS" seal "$MNT/a"
    assert_eq "$(df_of stored_bytes)" 65536 "stored bytes"
    assert_same "$WORK/content" "$MNT/a"
}

test_background_sealing() {
    mount_up seal_delay=1
    make_twins
    eventually 30 stored_is $((21 * MIB))
    assert_same "$WORK/content" "$MNT/vm1/disk"
    tail -c +$((5 * MIB + 1)) "$MNT/vm2/disk" | cmp - "$WORK/content"
    assert_eq "$(df_of saved_by_dedup_bytes)" $((16 * MIB)) "saved"
    # And the space below is free again.
    eventually 10 used_at_most $(((16 + 21 + 3) * MIB))
}

# What was not sealed when the store was closed is sealed after the next mount.
test_background_sealing_goes_on() {
    mount_up seal=off
    make_twins
    unmount
    mount_up seal_delay=1
    eventually 30 stored_is $((21 * MIB))
}

test_sealing_switched_off() {
    mount_up seal=off,seal_delay=0.001
    make_twins
    sleep 3
    assert_eq "$(df_of stored_bytes)" $((37 * MIB)) "stored bytes"
    assert_eq "$(df_of sealed_bytes)" 0 "sealed bytes"
}

# Clones of two images of the same content: all of it is found, not only what the first of each has.
test_sealing_of_clones() {
    mount_up seal=off
    make_twins
    "$COWFS" clone "$MNT/vm1" "$MNT/vm1b"
    "$COWFS" clone "$MNT/vm2" "$MNT/vm2b"
    "$COWFS" seal "$MNT"
    assert_eq "$(df_of stored_bytes)" $((21 * MIB)) "stored bytes"
    rm -r "$MNT/vm1" "$MNT/vm2"
    assert_same "$WORK/content" "$MNT/vm1b/disk"
    tail -c +$((5 * MIB + 1)) "$MNT/vm2b/disk" | cmp - "$WORK/content"
    assert_eq "$(df_of stored_bytes)" $((21 * MIB)) "stored bytes"
}

run_tests "$@"
