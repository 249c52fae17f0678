#!/usr/bin/env bash
# Makes the small guest: Debian's cloud kernel and an initramfs of ours (busybox and guest/small/init) on a disk that boots by UEFI and
# BIOS. It is what the end-to-end tests boot: up in seconds without hardware virtualization.
# Usage: guest/small/build.sh [OUTPUT]   (default: the cache; prints the path). Does nothing if the image is up to date.
set -euo pipefail
cd -- "$(dirname -- "$0")"
. ../../scripts/lib.sh
. ../lib.sh

OUT=${1:-$GUEST_DIR/small.img}
# What the console says, and what is written to disks, is described in init.
KERNEL=$GUEST_DIR/kernel
mkdir -p "$GUEST_DIR" "$(dirname -- "$OUT")"
fetch_kernel "$KERNEL"
AGENT=$GUEST_DIR/agent
fetch_guest_agent "$AGENT"

key=$(cat build.sh init keeps udhcpc echo.rs ../lib.sh "$KERNEL/vmlinuz" "$AGENT/tree/usr/sbin/qemu-ga" | sha256sum | cut -d' ' -f1)
if [ -s "$OUT" ] && [ "$(cat "$OUT.key" 2>/dev/null)" = "$key" ]; then echo "$OUT"; exit 0; fi

tmp=$(mktemp -d "$GUEST_DIR/small.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
fs=$tmp/fs
mkdir -p "$fs"/{bin,dev,proc,sys,tmp,etc,mnt,lib/modules}
cp "$(command -v busybox)" "$fs/bin/busybox"
install -m 755 init "$fs/init"
install -m 755 keeps "$fs/bin/keeps"
install -m 755 udhcpc "$fs/etc/udhcpc"
# It lies in the guest as one file without libraries.
rustc --edition 2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols -o "$fs/bin/echo-udp" echo.rs

# The guest agent, what makes and checks ext4, and what they are linked with.
mkdir -p "$fs/var/run" "$fs/var/lock" "$fs/lib64" "$fs/e2fs"
for program in "$AGENT/tree/usr/sbin/qemu-ga" /sbin/mke2fs /sbin/e2fsck; do
  case $program in /sbin/*) to=$fs/e2fs ;; *) to=$fs/bin ;; esac # busybox prefers its own of these names
  cp "$program" "$to/"
  ldd "$program" | grep -q 'not found' && die "$program lacks libraries:" "$(ldd "$program" | grep 'not found')"
  ldd "$program" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/lib[^ ]*ld-linux[^ ]*\).*/\1/p' | while read -r lib; do
    mkdir -p "$fs$(dirname -- "$lib")"
    cp -L "$lib" "$fs$lib"
  done
done

# In the order in which they are loaded.
modules='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk failover net_failover virtio_net
  virtio-rng virtio_balloon virtio_console cdrom isofs scsi_common scsi_mod virtio_scsi sd_mod sr_mod libata libahci ahci
  button evdev virtio_mem pvpanic pvpanic-mmio pvpanic-pci qemu_fw_cfg'
for module in $modules; do
  file=$(find "$KERNEL/tree/lib/modules" -name "$module.ko" -print -quit)
  # Some are built into the kernel in one version and modules in another.
  if [ -n "$file" ]; then
    cp "$file" "$fs/lib/modules/"
    echo "$module" >>"$fs/lib/modules/order"
  fi
done

# Everything owned by root and dated the same, so that the same input makes the same image.
find "$fs" -exec touch -h -d @0 {} +
(cd "$fs" && find . -print0 | LC_ALL=C sort -z | cpio --null --create --format=newc --owner=0:0 --reproducible --quiet) |
  gzip -n -9 >"$tmp/initrd"

img=$tmp/disk
truncate -s 40M "$img"
printf 'label: dos\nlabel-id: 0x51ea0001\nstart=%s, size=%s, type=e, bootable\n' "$BOOT_START" $((36 * 2048)) | sfdisk --quiet "$img"
write_boot_partition "$img" 36 "$KERNEL/vmlinuz" "$tmp/initrd" 'console=ttyS0 quiet no_timer_check panic=5 tsc=unstable'
mv "$img" "$OUT"
echo "$key" >"$OUT.key"
echo "$OUT"
