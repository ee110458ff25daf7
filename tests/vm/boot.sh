#!/usr/bin/env bash
# A guest that boots from its disk, by a boot loader, as the README's first example; what it is told,
# its console, its power button.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

said() { grep -q "$2" "$COWVM_RUN/$(uuid_of "$1")/serial.log"; }
# told VM KEY: of the last line that it read.
told() {
    sed -n 's/.*=told //p' "$COWVM_RUN/$(uuid_of "$1")/serial.log" | tail -n 1 | json ".$2"
}
told_at_least() { [ "$(grep -c '=told' "$COWVM_RUN/$(uuid_of "$1")/serial.log")" -ge "$2" ]; }

# The one guest of this file: it boots once.
test_boots_from_its_disk() {
    (
        # shellcheck source=../../scripts/lib/bootdisk.sh
        . "$testlib_root/scripts/lib/bootdisk.sh"
        bootdisk_build "$COWFS_INPUTS/boot.img"
    ) || skip "the packages of the guest cannot be had"
    mount_up
    qemu-img convert -O qcow2 "$COWFS_INPUTS/boot.img" "$WORK/boot.qcow2"
    qemu-img create -q -f raw "$WORK/second" 1M
    # Two processors, and one more option of QEMU's.
    expect 0 "$COWVM" create golden --accel tcg --disk "$WORK/boot.qcow2" --memory 128M --cpus 2 -- \
        -drive "file=$WORK/second,format=raw,if=virtio,readonly=on"
    assert_same "$COWFS_INPUTS/boot.img" "$MNT/golden/disk"
    assert_eq "$(names_in "$MNT/golden")" "disk vm.json"
    "$COWVM" start golden
    eventually 120 booted golden
    assert_eq "$(vm_json golden cpus)" 2
    assert_eq "$(ask golden cpus)" 2 "processors"
    assert_eq "$(ask golden disk)" 2 "disks"
    ! told_at_least golden 1 || fail "told something: it was just switched on"

    # The copy is told who it is; the origin is not told anything.
    expect 0 "$COWVM" fork --verbose golden copy
    assert_contains "$OUT" "the source stood still for"
    eventually 60 told_at_least copy 1
    assert_eq "$(told copy event)" fork
    assert_eq "$(told copy name)" copy
    assert_eq "$(told copy uuid)" "$(uuid_of copy)"
    assert_eq "$(told copy generation)" "$(jq -r .generation "$MNT/copy/vm.json")"
    assert_eq "$(ask copy "echo still there")" "still there"
    ! told_at_least golden 1 || fail "the origin was told"
    # Hibernated and resumed, it is who it was.
    "$COWVM" hibernate copy
    "$COWVM" resume copy
    eventually 60 told_at_least copy 2
    assert_eq "$(told copy event) $(told copy uuid)" "resume $(uuid_of copy)"

    # The power button: it has shut down by itself.
    expect 0 "$COWVM" stop copy
    assert_eq "$ERR" ""
    said copy =power || fail "it was not asked"
    assert_eq "$(state_of copy)" off
    "$COWVM" stop golden
    disk_clean_of_partition copy
}
disk_clean_of_partition() {
    dd if="$MNT/$1/disk" of="$WORK/part" bs=1M skip=1 conv=sparse status=none
    PATH=$PATH:/usr/sbin:/sbin e2fsck -fn "$WORK/part"
}

run_tests "$@"
