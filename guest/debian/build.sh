#!/usr/bin/env bash
# Makes the Debian guest that `make run` boots: systemd, cloud-init (NoCloud, ConfigDrive), openssh-server, qemu-guest-agent and
# Debian's cloud kernel, installed by mmdebstrap from the apt sources of this machine, on a disk that boots by BIOS and by UEFI. The root
# file system grows to the size of the disk at the first boot. Nothing is mounted, nothing is installed on this machine.
# Usage: guest/debian/build.sh [OUTPUT]   (default: the cache; prints the path last). Does nothing if the image is up to date.
set -euo pipefail
cd -- "$(dirname -- "$0")"
. ../../scripts/lib.sh
. ../lib.sh

OUT=${1:-$GUEST_DIR/debian.qcow2}
# shellcheck disable=SC1091
SUITE=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
key=$(cat build.sh customize.sh ../lib.sh | sha256sum | cut -d' ' -f1)-$SUITE
if [ -s "$OUT" ] && [ "$(cat "$OUT.key" 2>/dev/null)" = "$key" ]; then echo "$OUT"; exit 0; fi

need_root "making the Debian guest image"
mkdir -p "$GUEST_DIR" "$(dirname -- "$OUT")"
need_space "$GUEST_DIR" 2500 "making the Debian guest image"
tmp=$(mktemp -d "$GUEST_DIR/debian.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"

# The parts of a real server guest, and nothing that only a person at a terminal would miss.
packages='systemd-sysv dbus udev kmod systemd-resolved iproute2 iputils-ping netbase ca-certificates sudo less vim-tiny
  cloud-init cloud-guest-utils fdisk e2fsprogs openssh-server qemu-guest-agent curl
  linux-image-cloud-amd64 initramfs-tools zstd'

# How this machine reaches its mirror (proxies and the like) holds for the guest's making as well.
options=()
while read -r line; do options+=("--aptopt=$line"); done < <(apt-config dump | grep '^Acquire::' || true)

debian_sources | awk '{line[$1 " " $2] = line[$1 " " $2] " " $3} END {for (k in line) print "deb " k line[k]}' >"$tmp/sources"
[ -s "$tmp/sources" ] || die "apt has no Debian source for $SUITE on this machine."
cat "$tmp/sources"

# The hooks' $1 is mmdebstrap's.
# shellcheck disable=SC2016
mmdebstrap --mode=root --variant=minbase --format=directory \
  --include="$(tr -s ' \n' , <<<"$packages")" "${options[@]}" \
  --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/kernel/postinst.d"' \
  --essential-hook='printf "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=3\n" >"$1/etc/initramfs-tools/conf.d/sheaf"' \
  --essential-hook='printf "%s\n" virtio_pci virtio_blk virtio_scsi sd_mod ahci >"$1/etc/initramfs-tools/modules"' \
  --customize-hook='copy-in customize.sh /tmp' \
  --customize-hook='chroot "$1" sh /tmp/customize.sh' \
  --customize-hook='rm "$1/tmp/customize.sh"' \
  "$SUITE" "$tmp/root" - <"$tmp/sources"

echo "Installed: $(du -sxm "$tmp/root" | cut -f1) MB"
# 3 GiB, of which the file system fills what is behind the boot partition; grown when the claim is larger.
img=$tmp/disk.raw boot_mb=96 size_mb=3072
root_start=$((BOOT_START + boot_mb * 2048))
truncate -s "${size_mb}M" "$img"
printf 'label: dos\nlabel-id: 0x51ea0002\nstart=%s, size=%s, type=e, bootable\nstart=%s, type=83\n' \
  "$BOOT_START" $((boot_mb * 2048)) $root_start | sfdisk --quiet "$img"
write_boot_partition "$img" $boot_mb "$tmp"/root/boot/vmlinuz-* "$tmp"/root/boot/initrd.img-* \
  'root=PARTUUID=51ea0002-02 ro rootfstype=ext4 rootflags=noatime console=tty0 console=ttyS0,115200 quiet loglevel=3 no_timer_check net.ifnames=0 tsc=unstable systemd.show_status=no fsck.mode=auto'
echo "Writing the root file system"
mke2fs -q -F -t ext4 -L sheaf-root -m 1 -E "offset=$((root_start * 512)),lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0" \
  -d "$tmp/root" "$img" $(((size_mb * 2048 - root_start) / 8))
echo "Writing $OUT"
qemu-img convert -f raw -O qcow2 "$img" "$tmp/disk.qcow2"
mv "$tmp/disk.qcow2" "$OUT"
echo "$key" >"$OUT.key"
echo "$OUT"
