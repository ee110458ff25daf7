#!/usr/bin/env bash
# Boots the guest that the other tests in here use, unless that was done before: cowvm create, start
# and hibernate with a guest that starts from nothing.
# shellcheck source=vmlib.sh disable=SC2317 # the tests are called by their names
. "$(dirname "${BASH_SOURCE[0]}")/vmlib.sh"

export TEST_LIMIT_S=600

test_guest_boots() {
    prepare_guest
}

run_tests "$@"
