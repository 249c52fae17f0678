# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by those who source it
# What the guest images share: fetching the kernel, and a disk that boots by BIOS and by UEFI, with Secure Boot, too. Nothing is mounted, so no loop devices
# and no privileges beyond apt's are needed.

GUEST_DIR=$CACHE/guest

# fetch_kernel DIR: Debian's cloud kernel of this machine's suite, unpacked into DIR (not installed); does nothing if the same
# version is there.
fetch_kernel() {
  local dir=$1 package
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
  if [ -z "$package" ]; then die "apt knows no package linux-image-cloud-amd64." "Run apt-get update, and see that the sources have Debian's main."; fi
  if [ -e "$dir/$package.ok" ]; then return 0; fi
  rm -rf "$dir"
  mkdir -p "$dir/deb"
  (cd "$dir/deb" && apt-get -qq -o APT::Sandbox::User=root download "$package")
  dpkg-deb -x "$dir"/deb/*.deb "$dir/tree"
  rm -rf "$dir/deb"
  ln "$dir"/tree/boot/vmlinuz-* "$dir/vmlinuz"
  touch "$dir/$package.ok"
}

# fetch_guest_agent DIR: Debian's qemu-guest-agent, unpacked into DIR (not installed); does nothing if it is there. Its libraries
# are this machine's, which has them for QEMU.
fetch_guest_agent() {
  local dir=$1
  if [ -e "$dir/ok" ]; then return 0; fi
  rm -rf "$dir"
  mkdir -p "$dir/deb"
  (cd "$dir/deb" && apt-get -qq -o APT::Sandbox::User=root download qemu-guest-agent)
  dpkg-deb -x "$dir"/deb/*.deb "$dir/tree"
  rm -rf "$dir/deb"
  touch "$dir/ok"
}

# fetch_uefi DIR: Debian's signed boot loaders, unpacked into DIR (not installed); does nothing if they are there. The firmware knows
# who signed the shim, the shim who signed GRUB and the kernel.
fetch_uefi() {
  local dir=$1
  if [ -e "$dir/ok" ]; then return 0; fi
  rm -rf "$dir"
  mkdir -p "$dir/deb"
  (cd "$dir/deb" && apt-get -qq -o APT::Sandbox::User=root download shim-signed grub-efi-amd64-signed)
  for package in "$dir"/deb/*.deb; do dpkg-deb -x "$package" "$dir/tree"; done
  rm -rf "$dir/deb"
  touch "$dir/ok"
}

# Sectors of 512 bytes: the boot partition begins at 1 MiB, where everybody expects it.
BOOT_START=2048

# write_boot_partition IMAGE MEGABYTES KERNEL INITRD APPEND: a FAT file system with boot loaders (syslinux for BIOS, shim and GRUB for
# UEFI), kernel and initrd at 1 MiB. The partition table has to be there.
write_boot_partition() {
  local image=$1 mb=$2 kernel=$3 initrd=$4 append=$5 part config uefi=$GUEST_DIR/uefi
  fetch_uefi "$uefi"
  part=$image@@$((BOOT_START * 512))
  config=$(mktemp)
  # Bytes of the MBR's code area only: the table behind it stays.
  dd if=/usr/lib/syslinux/mbr/mbr.bin of="$image" bs=440 count=1 conv=notrunc status=none
  mformat -i "$part" -T $((mb * 2048)) -h 64 -s 32 -H $BOOT_START -v SHEAFBOOT ::
  syslinux --install --offset $((BOOT_START * 512)) "$image"
  printf 'DEFAULT sheaf\nPROMPT 0\nTIMEOUT 0\nLABEL sheaf\n  LINUX /vmlinuz\n  INITRD /initrd\n  APPEND %s\n' "$append" >"$config"
  mcopy -i "$part" "$config" ::/syslinux.cfg
  mmd -i "$part" ::/EFI ::/EFI/BOOT ::/EFI/debian
  mcopy -i "$part" "$uefi/tree/usr/lib/shim/shimx64.efi.signed" ::/EFI/BOOT/BOOTX64.EFI
  mcopy -i "$part" "$uefi/tree/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" ::/EFI/BOOT/grubx64.efi
  printf 'linux /vmlinuz %s\ninitrd /initrd\nboot\n' "$append" >"$config"
  mcopy -i "$part" "$config" ::/EFI/debian/grub.cfg
  mcopy -i "$part" "$kernel" ::/vmlinuz
  mcopy -i "$part" "$initrd" ::/initrd
  rm -f "$config"
}
