# shellcheck shell=bash
# A guest to run: Debian's cloud kernel, a real disk image (ext4) with busybox and redis-server from
# Debian's packages, and an initrd with the few modules that lead to it. Source it, then call
#   guest_build DIR      vmlinuz, initrd and disk.img into DIR, unless they are there already
#
# What the guest does: it starts redis-server (port 6379 on 10.0.2.15, and within), counts in it (key
# "count", 10 times a second), writes each tenth count to /data/counts on its disk, and answers on
# its serial line, one word in, one line out that begins with "=":
#   count           =count N          the service's counter, asked of the service
#   set TEXT        =set OK           TEXT into the service (key "text") and onto the disk (/data/text)
#   get             =get TEXT TEXT    from the service, from the disk
#   fill MIB        =fill MIB         that much memory made dirty, on a tmpfs
#   mac             =mac ADDRESS      of the network card that is there now
#   random          =random HEX       16 bytes of the kernel's generator
#   sync            =sync             all written to its disk
#   verify          =verify           from now on it writes to its disk, reads that again, and compares
#                                     it with what it has in memory
#   verified        =verified N BAD   how often it has done so, and how often that went wrong
#   off                               unmounts and powers off
#
# It uses inputs.sh (which see for COWFS_INPUTS), needs root for nothing, and the network but by apt.

# shellcheck source=inputs.sh
. "$(dirname "${BASH_SOURCE[0]}")/inputs.sh"

_guest_packages=(redis-tools libc6 libgcc-s1 libstdc++6 libatomic1 libjemalloc2 liblzf1 libssl3
    libsystemd0 libcap2 libgcrypt20 libgpg-error0 liblz4-1 liblzma5 libzstd1)
_guest_modules=(virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk
    failover net_failover virtio_net virtio-rng)

_guest_initrd_init() {
    cat <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
for module in $(/bin/busybox cat /modules/order); do
    /bin/busybox insmod "/modules/$module.ko"
done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
INIT
}

_guest_disk_init() {
    cat <<'INIT'
#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo raw
echo 1 >/proc/sys/vm/overcommit_memory
ip link set lo up
# A card that comes later is a new one: after a fork it has another address.
/sbin/network
uevent /sbin/network 2>/dev/null </dev/null &
redis-server --port 6379 --protected-mode no --save '' --appendonly no --dir /tmp \
    --daemonize no >/tmp/redis.log 2>&1 </dev/null &
until redis-cli ping 2>/dev/null </dev/null | grep -q PONG; do sleep 0.1; done
# One process for all counting: to start one is what an emulated processor is slowest at.
count() {
    redis-cli -r -1 -i 0.1 incr count | while read -r n; do
        [ "${n%0}" = "$n" ] || echo "$n" >>/data/counts
    done
}
count 2>/dev/null </dev/null &
# Each time other bytes; and the first ones still have to be what they were.
verify() {
    local n=0 bad=0
    dd if=/dev/urandom of=/tmp/first bs=64k count=16
    cp /tmp/first /data/first
    while :; do
        dd if=/dev/urandom of=/tmp/next bs=64k count=8
        dd if=/tmp/next of=/data/next bs=64k conv=fsync || bad=$((bad + 1))
        sync
        echo 3 >/proc/sys/vm/drop_caches
        cmp /tmp/next /data/next && cmp /tmp/first /data/first || bad=$((bad + 1))
        ! dmesg | grep -q 'I/O error' || bad=$((bad + 1))
        n=$((n + 1))
        echo "$n $bad" >/tmp/verified.new
        mv /tmp/verified.new /tmp/verified
    done
}
echo GUEST READY
while read -r word rest; do
    case $word in
        count) echo "=count $(redis-cli get count </dev/null)" ;;
        set)
            echo "$rest" >/data/text
            echo "=set $(redis-cli set text "$rest" </dev/null)"
            ;;
        get) echo "=get $(redis-cli get text </dev/null) $(cat /data/text 2>/dev/null)" ;;
        fill)
            dd if=/dev/urandom of=/tmp/noise bs=1M count=1 2>/dev/null
            i=0
            while [ $i -lt "$rest" ]; do cat /tmp/noise; i=$((i + 1)); done >/tmp/fill
            echo "=fill $rest"
            ;;
        mac) echo "=mac $(cat /sys/class/net/e*/address 2>/dev/null)" ;;
        random) echo "=random $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')" ;;
        sync)
            sync
            echo "=sync"
            ;;
        verify)
            echo "0 0" >/tmp/verified
            verify >/dev/null 2>&1 </dev/null &
            echo "=verify"
            ;;
        verified) echo "=verified $(cat /tmp/verified)" ;;
        off)
            kill -STOP -1
            sync
            mount -o remount,ro /
            poweroff -f
            ;;
    esac
done
INIT
}

# Called at the start, and by uevent for all that comes or goes.
_guest_network() {
    cat <<'SCRIPT'
#!/bin/busybox sh
[ "${ACTION:-add} ${SUBSYSTEM:-net}" = "add net" ] || exit 0
for card in /sys/class/net/e*; do
    [ -e "$card" ] || continue
    card=${card##*/}
    ip link set "$card" up
    ip addr add 10.0.2.15/24 dev "$card" 2>/dev/null || continue
    ip route add default via 10.0.2.2
    # A word to the gateway: it remembers the address of the card before.
    ping -c 1 -W 1 10.0.2.2
done >/dev/null 2>&1
SCRIPT
}

_guest_make() {
    local out=$1 work=$2 real package name tree=$2/tree root=$2/disk
    _inputs_need apt-get dpkg-deb mke2fs tar || return
    inputs_guest_kernel "$out" || return
    real=$(apt-cache depends linux-image-cloud-amd64 |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    # The kernel and its modules are of one package: the cached kernel may be an older one.
    mkdir -p "$work/kernel" "$tree/bin" "$tree/modules" "$tree/dev" "$tree/root" "$root" || return
    _inputs_unpack "$real" "$work/kernel" './boot/vmlinuz-*' '*.ko' || return
    cp "$work"/kernel/root/boot/vmlinuz-* "$out/vmlinuz.tmp" && mv "$out/vmlinuz.tmp" "$out/vmlinuz" ||
        return
    for name in "${_guest_modules[@]}"; do
        find "$work/kernel/root" -name "$name.ko" -exec cp {} "$tree/modules/" \;
        [[ -s $tree/modules/$name.ko ]] || _inputs_fail "no module $name in $real" || return
    done
    printf '%s\n' "${_guest_modules[@]}" >"$tree/modules/order"
    _inputs_unpack busybox-static "$work" '*/bin/busybox' || return
    find "$work/root" -name busybox -type f -exec cp {} "$tree/bin/busybox" \;
    _guest_initrd_init >"$tree/init" && chmod 755 "$tree/init" "$tree/bin/busybox" || return
    (cd "$tree" && find . | LC_ALL=C sort | bin/busybox cpio -o -H newc >"$out/initrd.tmp" \
        2>/dev/null) && mv "$out/initrd.tmp" "$out/initrd" || return
    for package in "${_guest_packages[@]}"; do
        _inputs_package "$package" "$work" || return
    done
    for package in "$work"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$root" --exclude='./usr/share/*' --exclude='*/gconv/*' || return
    done
    mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,data} || return
    cp "$tree/bin/busybox" "$root/bin/" && "$root/bin/busybox" --list | while read -r name; do
        [[ -e $root/bin/$name ]] || ln -s busybox "$root/bin/$name"
    done
    # In Debian's package the server is another name of the checker.
    ln -sf redis-check-rdb "$root/usr/bin/redis-server" || return
    _guest_disk_init >"$root/sbin/init" && _guest_network >"$root/sbin/network" &&
        chmod 755 "$root/sbin/init" "$root/sbin/network" || return
    truncate -s 256M "$out/disk.tmp" || return
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -b 4096 -d "$root" "$out/disk.tmp" &&
        mv "$out/disk.tmp" "$out/disk.img"
}

guest_build() {
    local out=$1 recipe
    # Another recipe makes another guest.
    recipe=$({ declare -f _guest_make _guest_initrd_init _guest_disk_init _guest_network
        echo "${_guest_modules[*]} ${_guest_packages[*]}"; } | cksum)
    _inputs_make "guest with kernel, initrd and disk" _guest_make "$out" "$out/guest.recipe" "$recipe" \
        "$out"/{disk.img,initrd,vmlinuz}
}
