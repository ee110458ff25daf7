#!/usr/bin/env bash
# Random operations of several threads on files of a mount, against plain byte arrays
# (mount_model.c), with all kinds of mounts; and the same once more after mounting anew.
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

# model OPTIONS ARGUMENT...
model() {
    local options=$1
    shift
    mkdir "$WORK/model"
    echo "mount_model $* on a mount with '$options'"
    mount_up "$options"
    "$HELPERS/mount_model" "$MNT" --save "$WORK/model" "$@"
    mount_down
    mount_up "$options"
    "$HELPERS/mount_model" "$MNT" --check "$WORK/model"
    rm "$MNT"/file*
    assert_eq "$(names_in "$MNT")" ""
    # All that was stored is gone with the files.
    eventually 20 stored_is 0
    mount_down
}

test_one_thread() { model '' --seed 1 --threads 1; }
test_threads() { model '' --seed 2 --ops 6000; }
test_nowriteback() { model nowriteback --seed 3; }
test_sealing() { model seal_delay=0.001,commit=1 --seed 4 --ops 4000; }
test_chunks_of_16k() { model chunk_size=16K --seed 5; }
test_chunks_of_64k() { model chunk_size=64K,seal_delay=0.001 --seed 6; }
test_small_cache() { model cache_size=1M,commit=0.1 --seed 7; }
test_one_worker() { model threads=1,seal_delay=0.001 --seed 8 --threads 8; }
# One that nobody has tried. It is in the output of a failed test.
test_random_seed() { model seal_delay=0.1 --seed $((RANDOM * 32768 + RANDOM)); }

run_tests "$@"
