# shellcheck shell=bash
# Real input for the demo, the tests and the benchmarks: disk images with a
# real file system of real files, and memory images of guests that really
# booted. Made-up data (zeros, noise) would flatter or wrong every figure about
# clones and deduplication, so nothing here is made up where it can be had.
#
# Source it, then call:
#   inputs_ext4_image OUT SIZE_MB [SEED]   ext4 image of a part of /usr
#   inputs_guest_kernel DIR                Debian's cloud kernel as DIR/vmlinuz
#   inputs_guest_initrd OUT                busybox, real files, a filling /init
#   inputs_memory_snap OUT SIZE_MB [SEED]  RAM of a booted guest (QEMU, TCG)
#   inputs_memory_snap_nearest OUT SIZE_MB [SEED]
#                                          the fallback where no guest can boot
#   inputs_cleanup                         removes the cache, if it is our own
#
# COWFS_INPUTS   the cache. Unset, a fresh directory is made when this file is
#                sourced, and the caller removes it (inputs_cleanup). Kernel and
#                initrd are always cached there. Images are too big to be kept
#                twice in RAM, so an image is cached when its OUT lies in that
#                directory: a second call with the same parameters keeps it.
# VERBOSE=1      tells on stderr how long each step took.
# INPUTS_TIMEOUT seconds until a guest must be ready (default 180).
#
# Functions say nothing unless they fail; then they return non-zero, say why on
# stderr and leave no half-made OUT. They need root (private mounts), but never
# install anything and never touch the network but through apt.
#
# A trap of the caller's that runs while one of these works sees its local
# variables (out, work, status, ...) instead of the caller's own of that name.
#
# `set -e` is off inside a function that is called in a condition, so nothing
# here relies on it: every step that matters carries its own `||`.

if [[ -z ${COWFS_INPUTS:-} ]]; then
    COWFS_INPUTS=$(mktemp -d "${TMPDIR:-/dev/shm}/cowfs-inputs.XXXXXX") || return 1
    _INPUTS_OWN_CACHE=$COWFS_INPUTS
fi
export COWFS_INPUTS

inputs_cleanup() {
    # Only what this shell made itself: a directory given by the user stays.
    [[ -z ${_INPUTS_OWN_CACHE:-} ]] || rm -rf -- "$_INPUTS_OWN_CACHE"
}

_inputs_fail() {
    printf 'inputs: %s\n' "$*" >&2
    return 1
}

_inputs_need() {
    local tool
    for tool; do
        # mke2fs and friends live in sbin, which is not in every PATH.
        PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
            _inputs_fail "$tool is missing" || return
    done
}

# _inputs_took WHAT STARTED: with VERBOSE=1, the time since STARTED.
_inputs_took() {
    [[ ${VERBOSE:-0} != 1 ]] ||
        awk -v what="$1" -v a="$2" -v b="$EPOCHREALTIME" \
            'BEGIN { gsub(",", ".", a); gsub(",", ".", b)
                     printf "inputs: %s: %.1f s\n", what, b - a }' >&2
}

# _inputs_made REMEMBERED RECIPE FILE...: are the FILEs there, and what RECIPE would make?
_inputs_made() {
    local remembered=$1 recipe=$2 file
    shift 2
    for file; do
        [[ -s $file ]] || return
    done
    [[ $(cat -- "$remembered" 2>/dev/null) == "$recipe" ]]
}

# _inputs_cached OUT RECIPE: is OUT, in the cache, what RECIPE would make?
_inputs_cached() {
    [[ $(dirname -- "$1") -ef $COWFS_INPUTS ]] && _inputs_made "$1.recipe" "$2" "$1"
}

# Only in the cache is a recipe left beside OUT: elsewhere it would be litter.
_inputs_remember() {
    if [[ $(dirname -- "$1") -ef $COWFS_INPUTS ]]; then
        printf '%s\n' "$2" >"$1.recipe"
    fi
}

# _inputs_make WHAT COMMAND OUT REMEMBERED RECIPE FILE...: "COMMAND OUT WORK", with a directory to
# work in, unless there are the FILEs and they are what RECIPE makes, by what the file REMEMBERED says.
_inputs_make() {
    local what=$1 command=$2 out=$3 remembered=$4 recipe=$5 began=$EPOCHREALTIME work status=0
    shift 5
    ! _inputs_made "$remembered" "$recipe" "$@" || return 0
    mkdir -p "$(dirname "$remembered")" || return
    work=$(mktemp -d "$COWFS_INPUTS/make.XXXXXX") || return
    "$command" "$out" "$work" >"$work/log" 2>&1 || status=$?
    if ((status != 0)); then
        tail -n 5 "$work/log" >&2
    else
        printf '%s\n' "$recipe" >"$remembered"
    fi
    rm -rf -- "$work"
    ((status == 0)) || _inputs_fail "could not make the $what" || return
    _inputs_took "$what" "$began"
}

# ---- disk images -------------------------------------------------------------

# _inputs_pick_usr KIB: directories of /usr, together KIB at most, one a line as
# "KiB path", in name order. lib and share are taken by their parts, so that one
# huge directory (a compiler, an SDK) does not push all others out; for the same
# reason none may take more than two fifths. /usr/local is left out: it is not
# the distribution's, and differs too much from machine to machine.
_inputs_pick_usr() {
    find /usr -mindepth 1 -maxdepth 2 -type d -printf '%P\n' |
        awk -F/ '$1 != "local" && NF == ($1 ~ /^(lib|share)$/ ? 2 : 1)' |
        LC_ALL=C sort | sed 's,^,/usr/,' | tr '\n' '\0' |
        du -xsk --files0-from=- |
        awk -F'\t' -v left="$1" '{ if (!cap) cap = left * 2 / 5 }
            $1 <= left && $1 <= cap { print; left -= $1 }'
}

# Runs in a mount namespace of its own: whatever is mounted here, and the loop
# device with it, is gone when the process is, even if it was killed.
#   _inputs_build_ext4 OUT SIZE_MB SEED STAGE PICKED
_inputs_build_ext4() {
    local out=$1 size_mb=$2 seed=$3 stage=$4 picked=$5 unit inodes
    PATH=$PATH:/usr/sbin:/sbin
    # One tree out of the chosen directories, by bind mounts: no byte is copied.
    mount -t tmpfs -o size=16m,mode=755 none "$stage" || return
    while IFS=$'\t' read -r _ unit; do
        mkdir -p "$stage/tree$unit" && mount --bind "$unit" "$stage/tree$unit" || return
    done <"$picked"
    # /usr has many small files; mke2fs's own guess at inodes may fall short.
    inodes=$(find "$stage/tree" | wc -l) || return
    # Blocks of 4 KiB whatever the size: mke2fs takes 1 KiB for small images, as
    # no guest's disk has today.
    local -a mkfs=(mke2fs -q -F -t ext4 -b 4096 -m 0 -N $((inodes + inodes / 4 + 1024)))
    truncate -s "${size_mb}M" "$out" || return
    if [[ $seed == 0 ]]; then
        "${mkfs[@]}" -d "$stage/tree" "$out"
        return
    fi
    # mke2fs -d always walks a tree in one order. So another image of this tree
    # is made as an installer does it: the kernel's ext4, and tar unpacking the
    # files, here in an order drawn from SEED.
    "${mkfs[@]}" "$out" && mkdir "$stage/fs" || return
    # noinit_itable: no kernel thread that goes on writing zeros to OUT.
    mount -o loop,noinit_itable,noatime "$out" "$stage/fs" || return
    (
        set -o pipefail
        cd "$stage/tree" || exit
        {
            find . -mindepth 1 -type d -print0 | LC_ALL=C sort -z
            find . ! -type d -print0 | LC_ALL=C sort -z |
                shuf -z --random-source=<(yes "cowfs input $seed")
        } | tar -c --null --no-recursion -T - | tar -xp -C "$stage/fs"
    ) || return
    # A loop device writes late: without this, a full disk below goes unnoticed.
    sync -f "$stage/fs" && umount "$stage/fs"
}

inputs_ext4_image() {
    local out=$1 size_mb=$2 seed=${3:-0} began=$EPOCHREALTIME
    local recipe="ext4 $size_mb $seed" work status=0 data_mb
    ! _inputs_cached "$out" "$recipe" || return 0
    _inputs_need mke2fs tar shuf unshare mount || return
    [[ $EUID == 0 ]] || _inputs_fail "making a disk image needs root" || return
    ((size_mb >= 64)) || _inputs_fail "$size_mb MB is too small for an image" || return
    # Room is left for metadata and for a guest to write in.
    data_mb=$((size_mb * 7 / 10))
    ((data_mb <= 3072)) || data_mb=3072
    work=$(mktemp -d "$COWFS_INPUTS/ext4.XXXXXX") || return
    _inputs_pick_usr $((data_mb * 1024)) >"$work/picked"
    rm -f -- "$out"
    : >"$work/log"
    : >"$out" && mkdir "$work/stage" &&
        unshare --mount --propagation private bash -c "$(declare -f _inputs_build_ext4)
            _inputs_build_ext4 \"\$@\"" bash "$(realpath -- "$out")" "$size_mb" "$seed" \
            "$(realpath -- "$work/stage")" "$work/picked" >"$work/log" 2>&1 || status=$?
    if ((status != 0)); then
        tail -n 5 "$work/log" >&2
        rm -f -- "$out"
    fi
    rm -rf -- "$work"
    ((status == 0)) || _inputs_fail "could not make the ext4 image $out" || return
    _inputs_remember "$out" "$recipe"
    _inputs_took "ext4 image of $size_mb MB, seed $seed" "$began"
}

# ---- a guest -----------------------------------------------------------------

# _inputs_package NAME DIR: a Debian package's file into DIR, not installed.
_inputs_package() {
    _inputs_need apt-get dpkg-deb || return
    # apt's sandbox user could not write into a private directory.
    local -a get=(apt-get -qq -o APT::Sandbox::User=root download "$1")
    # The machine's package lists may be missing or name a version that has
    # been replaced since: then, and only then, fetch new ones.
    (cd "$2" && "${get[@]}") >"$2/apt.log" 2>&1 && return
    apt-get -qq update >>"$2/apt.log" 2>&1
    (cd "$2" && "${get[@]}") >>"$2/apt.log" 2>&1 && return
    tail -n 3 "$2/apt.log" >&2
    _inputs_fail "apt could not download $1"
}

# _inputs_unpack PACKAGE DIR PATTERN...: some files of a package, under DIR/root.
_inputs_unpack() {
    local package=$1 dir=$2
    shift 2
    _inputs_package "$package" "$dir" && mkdir -p "$dir/root" &&
        dpkg-deb --fsys-tarfile "$dir/$package"_*.deb |
        tar -x -C "$dir/root" --wildcards "$@"
}

inputs_guest_kernel() {
    local dir=$1 cached=$COWFS_INPUTS/vmlinuz began=$EPOCHREALTIME work meta real
    if [[ ! -s $cached ]]; then
        work=$(mktemp -d "$COWFS_INPUTS/kernel.XXXXXX") || return
        # The meta-package holds nothing; it depends on the versioned one.
        for meta in linux-image-cloud-amd64 linux-image-amd64; do
            real=$(apt-cache depends "$meta" 2>/dev/null |
                awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
            [[ -z $real ]] || break
        done
        if [[ -z $real ]]; then
            rm -rf -- "$work"
            _inputs_fail "apt knows no linux-image-cloud-amd64 (apt-get update?)"
            return
        fi
        _inputs_unpack "$real" "$work" './boot/vmlinuz-*' &&
            mv -- "$work"/root/boot/vmlinuz-* "$cached"
        rm -rf -- "$work"
        [[ -s $cached ]] || _inputs_fail "no kernel found in $real" || return
    fi
    mkdir -p -- "$dir" || return
    [[ $dir -ef $COWFS_INPUTS ]] || cp -- "$cached" "$dir/vmlinuz" || return
    _inputs_took "guest kernel" "$began"
}

# The guest's /init. Its memory becomes what a small server's is: what all guests
# have (kernel, the initrd's files), what only this one has (data like theirs but
# at its own offsets, as on a heap, and noise, which stands for what is encrypted
# or compressed), and much that was never touched. Emulated, all that costs
# time: only cat and large reads are fast (seq or sed: 1 to 3 MB/s).
_inputs_guest_init() {
    cat <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /data
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t tmpfs -o size=90% none /data
/bin/busybox --install -s /bin
export PATH=/bin
exec </dev/ttyS0 >/dev/ttyS0 2>&1
seed=0
for word in $(cat /proc/cmdline); do
    case $word in cowfs.seed=*) seed=${word#*=} ;; esac
done
percent=$(($(awk '/^MemTotal/ { print $2 }' /proc/meminfo) / 100))
round=0
while :; do
    round=$((round + 1))
    head -c $(((seed * 64 + round) * 8 % 4096)) /dev/urandom
    cat /lib/* || break
done 2>/dev/null | head -c $((percent * 20))k >/data/own
dd if=/dev/urandom of=/data/noise bs=1M count=$((percent * 15 / 1024)) 2>/dev/null
echo "GUEST READY seed=$seed"
# A sign of life: a guest that is resumed, or forked, goes on from its number.
count=0
while :; do
    count=$((count + 1))
    echo "COUNT $count"
    sleep 1
done
INIT
}

inputs_guest_initrd() {
    local out=$1 cached=$COWFS_INPUTS/initrd began=$EPOCHREALTIME work
    if [[ ! -s $cached ]]; then
        work=$(mktemp -d "$COWFS_INPUTS/initrd.XXXXXX") || return
        if _inputs_unpack busybox-static "$work" '*/bin/busybox' &&
            mkdir -p "$work/tree/bin" "$work/tree/lib" &&
            find "$work/root" -name busybox -type f -exec cp {} "$work/tree/bin/" \; &&
            _inputs_guest_init >"$work/tree/init" && chmod 755 "$work/tree/init"; then
            # 24 MiB of the machine's own libraries. Not compressed: unpacking
            # would take an emulated guest longer than QEMU takes to load it.
            find -L /usr/lib/*-linux-gnu -maxdepth 1 -type f -name '*.so.*' \
                -size +64k -size -4096k -print | LC_ALL=C sort |
                xargs -d '\n' du -kL | awk -F'\t' '(kib += $1) <= 24576 { print $2 }' |
                xargs -d '\n' cp -t "$work/tree/lib/"
            # busybox brings cpio along, which a host need not have.
            (cd "$work/tree" && find . | LC_ALL=C sort |
                bin/busybox cpio -o -H newc >"$work/initrd" 2>/dev/null) &&
                mv -- "$work/initrd" "$cached"
        fi
        rm -rf -- "$work"
        [[ -s $cached ]] || _inputs_fail "could not make the guest's initrd" || return
    fi
    [[ $out -ef $cached ]] || cp -- "$cached" "$out" || return
    _inputs_took "guest initrd" "$began"
}

# _inputs_boot OUT SIZE_MB SEED WORK. A subshell: its EXIT trap is its own, and
# ends the QEMU that it started, and no other, however it is left.
_inputs_boot() (
    out=$1 size_mb=$2 seed=$3 work=$4
    serial=$work/serial
    deadline=$((SECONDS + ${INPUTS_TIMEOUT:-180}))
    mkfifo "$work/qmp.in" "$work/qmp.out" || exit
    : >"$serial"
    # QMP over two fifos, so that neither socat nor Python is needed.
    qemu-system-x86_64 -nodefaults -no-user-config -display none \
        -machine q35,memory-backend=ram -accel tcg -m "${size_mb}M" \
        -object "memory-backend-file,id=ram,size=${size_mb}M,mem-path=$out,share=on" \
        -kernel "$COWFS_INPUTS/vmlinuz" -initrd "$COWFS_INPUTS/initrd" \
        -append "console=ttyS0 quiet panic=-1 cowfs.seed=$seed" -no-reboot \
        -serial "file:$serial" -chardev "pipe,id=qmp,path=$work/qmp" \
        -mon chardev=qmp,mode=control >"$work/qemu.log" 2>&1 </dev/null &
    qemu=$!
    # A second Ctrl-C must not end the tidying up.
    trap 'trap "" INT TERM HUP; { kill -KILL "$qemu"; wait "$qemu"; } 2>/dev/null' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP

    # Opened read-write: opening a fifo one way waits for a peer, for ever if
    # QEMU has already died.
    exec 3<>"$work/qmp.in" 4<>"$work/qmp.out"
    until grep -q 'GUEST READY' "$serial"; do
        kill -0 "$qemu" 2>/dev/null || {
            tail -n 3 "$work/qemu.log" "$serial" >&2
            _inputs_fail "QEMU ended before the guest was ready" || exit
        }
        ((SECONDS < deadline)) || {
            tail -n 3 "$serial" >&2
            _inputs_fail "the guest was not ready in time" || exit
        }
        sleep 0.2
    done
    # Each command is waited for: an answer with "return", or the end of time.
    ask() {
        local answer
        printf '{"execute": "%s"}\n' "$1" >&3
        while ((SECONDS < deadline)); do
            IFS= read -r -t 5 -u 4 answer || continue
            [[ $answer != *'"error"'* ]] || break
            [[ $answer != *'"return"'* ]] || return 0
        done
        _inputs_fail "QEMU did not answer to $1"
    }
    ask qmp_capabilities && ask stop && ask quit || exit
    wait "$qemu" || _inputs_fail "QEMU ended with an error" || exit
    trap - EXIT
)

inputs_memory_snap() {
    local out=$1 size_mb=$2 seed=${3:-0} began=$EPOCHREALTIME
    local recipe="memory $size_mb $seed" work status=0
    ! _inputs_cached "$out" "$recipe" || return 0
    _inputs_need qemu-system-x86_64 mkfifo || return
    ((size_mb >= 128)) || _inputs_fail "$size_mb MB is too small for the guest" || return
    inputs_guest_kernel "$COWFS_INPUTS" &&
        inputs_guest_initrd "$COWFS_INPUTS/initrd" || return
    rm -f -- "$out"
    work=$(mktemp -d "$COWFS_INPUTS/boot.XXXXXX") || return
    _inputs_boot "$out" "$size_mb" "$seed" "$work" || status=$?
    rm -rf -- "$work"
    if ((status == 0)) && [[ $(stat -c %s -- "$out") != $((size_mb << 20)) ]]; then
        _inputs_fail "the memory image $out has a wrong size"
        status=1
    fi
    if ((status != 0)); then
        rm -f -- "$out"
        return "$status"
    fi
    _inputs_remember "$out" "$recipe"
    _inputs_took "memory of a booted guest of $size_mb MB, seed $seed" "$began"
}

# The nearest real thing where no guest can be booted: the memory of processes
# that hold real files. They are started here, with an empty environment, and no
# other process is read: a stranger's memory may hold secrets.
_inputs_dump_processes() (
    out=$1 size_mb=$2 seed=$3
    pids=()
    trap 'for pid in "${pids[@]}"; do kill -KILL "$pid"; wait "$pid"; done 2>/dev/null' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    truncate -s "${size_mb}M" "$out" || exit
    at=0
    # Half of the image is filled, as in a guest; a quarter by each process.
    for part in 1 2; do
        # Both processes and all seeds begin alike, and then go their own way.
        # shellcheck disable=SC2016  # Perl's variables, not the shell's
        coproc HOLDER { exec env -i perl -e '
            my ($seed, $want) = @ARGV; my ($have, %held) = (0); srand($seed); $| = 1;
            my @files = sort grep { -f } glob("/usr/bin/* /usr/lib/*-linux-gnu/*.so.*");
            for my $turn (0 .. $#files) {
                my $file = $have < $want / 2 ? $files[$turn] : $files[rand @files];
                next if exists $held{$file} or -s $file > 4 << 20;
                open(my $in, "<:raw", $file) or next; local $/;
                $held{$file} = <$in>; $have += length $held{$file};
                last if $have >= $want;
            }
            print "ready\n"; <STDIN>' "$((seed * 2 + part))" "$((size_mb << 18))"; } 2>/dev/null
        # shellcheck disable=SC2153  # set by coproc
        pid=$HOLDER_PID
        pids+=("$pid")
        IFS= read -r -t 60 -u "${HOLDER[0]}" _ || exit
        while read -r range perms _; do
            [[ $perms == r* ]] || continue
            from=$((16#${range%-*})) to=$((16#${range#*-}))
            # The vsyscall page has an address that dd cannot seek to.
            ((from >= 0 && to > from)) || continue
            ((at + to - from <= size_mb << 20)) || continue
            # Some mappings ([vvar]) are listed as readable, and are not.
            dd if="/proc/$pid/mem" of="$out" bs=1M conv=notrunc,sparse status=none \
                iflag=skip_bytes,count_bytes,fullblock skip="$from" count=$((to - from)) \
                oflag=seek_bytes seek="$at" 2>/dev/null || continue
            at=$((at + to - from))
        done <"/proc/$pid/maps"
        kill -KILL "$pid"
        wait "$pid" 2>/dev/null
    done
    ((at > 0))
)

inputs_memory_snap_nearest() {
    local out=$1 size_mb=$2 seed=${3:-0} began=$EPOCHREALTIME
    local recipe="processes $size_mb $seed"
    printf 'inputs: %s is no memory of a guest, but of two processes (no QEMU or kernel)\n' \
        "$out" >&2
    ! _inputs_cached "$out" "$recipe" || return 0
    _inputs_need perl dd || return
    rm -f -- "$out"
    _inputs_dump_processes "$out" "$size_mb" "$seed" || {
        rm -f -- "$out"
        _inputs_fail "could not read the processes' memory"
        return
    }
    _inputs_remember "$out" "$recipe"
    _inputs_took "memory of processes, $size_mb MB, seed $seed" "$began"
}
