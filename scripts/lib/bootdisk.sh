# shellcheck shell=bash
# A disk that boots by itself: a raw image with a boot loader (GRUB, in its master boot record), a
# partition with ext4, and on that Debian's cloud kernel, an initrd and busybox. No part of it is
# given to QEMU from the outside, as with guest.sh. Source it, then call
#   bootdisk_build OUT    raw image, 96 MiB, unless it is there already
#
# What the guest does: it writes "GUEST READY", and then to its serial line
#   =told LINE       each line that comes from the port org.cowvm.fork (which see in
#                    docs/hypervisors.md)
#   =power           when its power button is pressed; it unmounts and powers off
# and answers lines: "cpus" with "=cpus N", "disk" with "=disk N", the number of block devices, and
# "echo WORDS" with "=echo WORDS", "keep WORDS" with "=keep", and from then on "kept" with "=kept WORDS".

# shellcheck source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"

_bootdisk_modules=("${_guest_modules[@]}" virtio_console evdev button)

_bootdisk_init() {
    cat <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for module in $(cat /modules/order); do
    insmod "/modules/$module.ko"
done
until [ -b /dev/vda1 ]; do sleep 0.1; done
mount -t ext4 /dev/vda1 /mnt
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo raw
# What cowvm tells, line by line.
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.cowvm.fork ] || continue
    while read -r line; do echo "=told $line"; done <"/dev/${port##*/}" &
done
mkdir -p /etc/acpi/PWRF
cat >/etc/acpi/PWRF/00000080 <<'END'
#!/bin/sh
echo =power >/dev/ttyS0
umount /mnt
poweroff -f
END
chmod 755 /etc/acpi/PWRF/00000080
acpid -d >/tmp/acpid.log 2>&1 </dev/null &
echo GUEST READY
while read -r line; do
    case $line in
        cpus) echo "=cpus $(grep -c ^processor /proc/cpuinfo)" ;;
        disk) echo "=disk $(ls -d /sys/block/vd* | wc -l)" ;;
        "echo "*) echo "=echo ${line#* }" ;;
        "keep "*) kept=${line#* } && echo "=keep" ;;
        kept) echo "=kept $kept" ;;
    esac
done
INIT
}

_bootdisk_make() {
    local out=$1 work=$2 real name grub=$2/grub tree=$2/tree root=$2/disk
    _inputs_need apt-get dpkg-deb mke2fs tar || return
    real=$(apt-cache depends linux-image-cloud-amd64 |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    mkdir -p "$work/kernel" "$grub" "$tree"/{bin,modules,dev,proc,sys,mnt,tmp,etc} "$root/boot" || return
    _inputs_unpack "$real" "$work/kernel" './boot/vmlinuz-*' '*.ko' || return
    cp "$work"/kernel/root/boot/vmlinuz-* "$root/boot/vmlinuz" || return
    for name in "${_bootdisk_modules[@]}"; do
        find "$work/kernel/root" -name "$name.ko" -exec cp {} "$tree/modules/" \;
        [[ -s $tree/modules/$name.ko ]] || _inputs_fail "no module $name in $real" || return
    done
    printf '%s\n' "${_bootdisk_modules[@]}" >"$tree/modules/order"
    _inputs_unpack busybox-static "$work" '*/bin/busybox' || return
    find "$work/root" -name busybox -type f -exec cp {} "$tree/bin/busybox" \;
    "$tree/bin/busybox" --list | while read -r name; do
        [[ -e $tree/bin/$name ]] || ln -s busybox "$tree/bin/$name"
    done
    _bootdisk_init >"$tree/init" && chmod 755 "$tree/init" || return
    (cd "$tree" && find . | LC_ALL=C sort | bin/busybox cpio -o -H newc >"$root/boot/initrd" \
        2>/dev/null) || return
    # What GRUB need not know: it is of 2022.
    truncate -s 95M "$work/part" &&
        PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -b 4096 \
            -O ^metadata_csum_seed,^orphan_file -d "$root" "$work/part" || return
    _inputs_unpack grub-common "$grub" ./usr/bin/grub-mkimage || return
    _inputs_unpack grub-pc-bin "$grub" './usr/lib/grub/i386-pc/*' || return
    cat >"$work/grub.cfg" <<'CFG'
set root=(hd0,msdos1)
linux /boot/vmlinuz console=ttyS0 quiet panic=-1
initrd /boot/initrd
boot
CFG
    "$grub/root/usr/bin/grub-mkimage" -O i386-pc -d "$grub/root/usr/lib/grub/i386-pc" \
        -p /boot/grub -c "$work/grub.cfg" -o "$work/core.img" \
        biosdisk part_msdos ext2 linux minicmd || return
    # The boot sector loads what follows it: so much has to fit before the partition.
    (($(stat -c %s "$work/core.img") <= 2047 * 512)) || _inputs_fail "GRUB is too large" || return
    truncate -s 96M "$out.tmp" &&
        dd if="$grub/root/usr/lib/grub/i386-pc/boot.img" of="$out.tmp" bs=440 count=1 conv=notrunc &&
        dd if="$work/core.img" of="$out.tmp" bs=512 seek=1 conv=notrunc &&
        dd if="$work/part" of="$out.tmp" bs=1M seek=1 conv=notrunc,sparse || return
    # One partition, from 1 MiB to the end: active, type 83, sectors 2048 and 194560.
    printf '\x80\xff\xff\xff\x83\xff\xff\xff\x00\x08\x00\x00\x00\xf8\x02\x00' |
        dd of="$out.tmp" bs=1 seek=446 conv=notrunc &&
        printf '\x55\xaa' | dd of="$out.tmp" bs=1 seek=510 conv=notrunc &&
        mv "$out.tmp" "$out"
}

bootdisk_build() {
    local out=$1 recipe
    recipe=$({ declare -f _bootdisk_make _bootdisk_init; echo "${_bootdisk_modules[*]}"; } | cksum)
    _inputs_make "disk that boots by itself" _bootdisk_make "$out" "$out.recipe" "$recipe" "$out"
}
