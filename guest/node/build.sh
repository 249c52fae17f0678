#!/usr/bin/env bash
# Makes a machine that can run virtual machines by KVM although this one cannot: Debian's cloud kernel, and on a disk what the
# end-to-end tests need (QEMU, kubectl, ip, nft, curl from this machine; Sheaf and its tests as built). An emulated AMD processor
# has SVM, so KVM works in it. See scripts/test-kvm.sh, which boots it.
# Usage: guest/node/build.sh DIR SHEAF TESTS SMALL-GUEST   (writes kernel, initrd and disk into DIR)
set -euo pipefail
DIR=$(realpath -m -- "$1") SHEAF=$(realpath -- "$2") TESTS=$(realpath -- "$3") SMALL=$(realpath -- "$4")
cd -- "$(dirname -- "$0")"
. ../../scripts/lib.sh
. ../lib.sh

KERNEL=$GUEST_DIR/kernel
mkdir -p "$DIR"
fetch_kernel "$KERNEL"
modules=$(echo "$KERNEL"/tree/lib/modules/*)

# --- what boots: busybox, and the modules by which the disk is found ---
boot=$(mktemp -d "$DIR/boot.XXXXXX") root=$(mktemp -d "$DIR/root.XXXXXX")
trap 'rm -rf "$boot" "$root"' EXIT
mkdir -p "$boot"/{bin,dev,proc,sys,root,lib/modules}
cp "$(command -v busybox)" "$boot/bin/busybox"
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk crc16 mbcache jbd2 crc32c_generic libcrc32c ext4; do
  file=$(find "$modules" -name "$m.ko" -print -quit)
  if [ -n "$file" ]; then cp "$file" "$boot/lib/modules/" && echo "$m" >>"$boot/lib/modules/order"; fi
done
cat >"$boot/init" <<'X'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
while read -r m; do insmod "/lib/modules/$m.ko" 2>/dev/null; done </lib/modules/order
for i in 1 2 3 4 5 6 7 8 9 10; do mount -t ext4 /dev/vda /root 2>/dev/null && break; sleep 1; done
for d in proc sys dev; do mount --move "/$d" "/root/$d"; done
exec switch_root /root /init
X
chmod +x "$boot/init"
(cd "$boot" && find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet) | gzip -n -1 >"$DIR/initrd"
cp "$KERNEL/vmlinuz" "$DIR/vmlinuz"

# --- what it boots into ---
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,usr/lib,usr/share,lib,lib64,etc,dev,proc,sys,run,tmp,var/tmp,root/.cache,lib/modules}
cp "$(command -v busybox)" "$root/bin/busybox"
# take FILE...: programs or libraries at their own place, with what they are linked with.
take() {
  local file lib
  for file in "$@"; do
    mkdir -p "$root$(dirname -- "$file")"
    cp -L "$file" "$root$file"
    { ldd "$file" 2>/dev/null || true; } | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/lib[^ ]*ld-linux[^ ]*\).*/\1/p' | while read -r lib; do
      if [ ! -e "$root$lib" ]; then mkdir -p "$root$(dirname -- "$lib")" && cp -L "$lib" "$root$lib"; fi
    done
  done
}
for program in qemu-system-x86_64 qemu-img kubectl ip nft curl setpriv bash cp; do
  file=$(command -v "$program") || die "$program is not installed" "make deps installs what the tests need."
  take "$(realpath -- "$file")"
  if [ "$(realpath -- "$file")" != "$file" ]; then mkdir -p "$root$(dirname -- "$file")" && cp -L "$(realpath -- "$file")" "$root$file"; fi
done
take "$SHEAF" "$TESTS"
mkdir -p "$root/test"
mv "$root$SHEAF" "$root/test/sheaf"
mv "$root$TESTS" "$root/test/it"
cp --sparse=always "$SMALL" "$root/test/small.img"
# QEMU's parts and its firmware; NSS is asked for names of users.
for dir in /usr/share/qemu /usr/share/seabios /usr/lib/ipxe/qemu /usr/lib/x86_64-linux-gnu/qemu; do
  if [ -d "$dir" ]; then mkdir -p "$root$dir" && cp -rL "$dir/." "$root$dir/"; fi
done
for lib in /lib/x86_64-linux-gnu/libnss_{files,dns}.so.2 /lib/x86_64-linux-gnu/libgcc_s.so.1; do if [ -e "$lib" ]; then take "$lib"; fi; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
printf '127.0.0.1 localhost node\n' >"$root/etc/hosts"
cp -r "$modules" "$root/lib/modules/"
depmod -b "$root" "$(basename -- "$modules")"
install -m 755 init "$root/init"
rm -f "$DIR/disk.img"
truncate -s 4G "$DIR/disk.img"
mkfs.ext4 -q -F -O ^has_journal -d "$root" "$DIR/disk.img"
