# Runs inside the guest's tree when its packages are installed: what makes a Debian into this guest. Called by build.sh.
set -eu

# --- file systems; the boot partition is where syslinux reads kernel and initrd from, a copy of what dpkg installed ---
mkdir -p /boot/syslinux
cat >/etc/fstab <<'X'
PARTUUID=51ea0002-02 /              ext4 defaults,noatime,errors=remount-ro 0 1
PARTUUID=51ea0002-01 /boot/syslinux vfat noauto,umask=0077                  0 0
X
mkdir -p /etc/initramfs/post-update.d
cat >/etc/initramfs/post-update.d/zz-syslinux <<'X'
#!/bin/sh
# A new kernel or initrd: copied to where the boot loader reads it. $1 version, $2 initrd.
set -e
mount /boot/syslinux 2>/dev/null || exit 0
cp "/boot/vmlinuz-$1" /boot/syslinux/vmlinuz.new
cp "$2" /boot/syslinux/initrd.new
sync
mv /boot/syslinux/vmlinuz.new /boot/syslinux/vmlinuz
mv /boot/syslinux/initrd.new /boot/syslinux/initrd
umount /boot/syslinux
X
chmod +x /etc/initramfs/post-update.d/zz-syslinux

# --- identity comes with the first boot ---
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_*
echo sheaf-debian >/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >/etc/hosts

# --- network: cloud-init writes systemd-networkd's files ---
systemctl enable systemd-networkd systemd-resolved ssh >/dev/null 2>&1
ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
mkdir -p /etc/systemd/system/systemd-networkd-wait-online.service.d
# A guest without a network is up in half a minute, not in two.
cat >/etc/systemd/system/systemd-networkd-wait-online.service.d/sheaf.conf <<'X'
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30
X

# --- cloud-init ---
cat >/etc/cloud/cloud.cfg.d/90_sheaf.cfg <<'X'
datasource_list: [NoCloud, ConfigDrive, None]
# One host key is enough, and an RSA key takes long to find without hardware virtualization.
ssh_genkeytypes: [ed25519]
apt_preserve_sources_list: true
system_info:
  network:
    renderers: [networkd]
# What is not used costs start-up time in each boot.
cloud_init_modules: [seed_random, bootcmd, write_files, growpart, resizefs, disk_setup, mounts, set_hostname, update_hostname,
  update_etc_hosts, ca_certs, users_groups, ssh]
cloud_config_modules: [set_passwords, apt_configure, timezone, ntp, runcmd]
cloud_final_modules: [package_update_upgrade_install, write_files_deferred, scripts_vendor, scripts_per_once,
  scripts_per_boot, scripts_per_instance, scripts_user, phone_home, final_message, power_state_change]
X
rm -f /etc/cloud/cloud.cfg.d/05_logging.cfg.dpkg-new
# The data source list is known: no search.
printf 'datasource: NoCloud\n' >/dev/null
cat >/etc/cloud/ds-identify.cfg <<'X'
policy: search,found=first,maybe=all,notfound=disabled
X

# --- what a guest that lives for an hour on an emulated CPU does not need ---
systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  systemd-pstore.service systemd-binfmt.service systemd-hwdb-update.service ldconfig.service \
  systemd-journal-catalog-update.service systemd-update-done.service systemd-pcrphase.service \
  systemd-pcrphase-sysinit.service systemd-pcrphase-initrd.service systemd-network-generator.service \
  systemd-firstboot.service systemd-boot-system-token.service >/dev/null 2>&1
# There is no screen that anybody looks at before the serial console.
systemctl mask getty@tty1.service >/dev/null 2>&1
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=persistent\nSystemMaxUse=32M\n' >/etc/systemd/journald.conf.d/sheaf.conf
printf 'blacklist %s\n' efi_pstore pcspkr floppy bochs drm qxl i2c_piix4 psmouse mousedev >/etc/modprobe.d/sheaf.conf

# The agent waits for its port, so that a guest without one boots as quickly.
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/*.log /var/log/apt /usr/share/doc-base /var/cache/debconf/*-old
touch /etc/.updated /var/.updated
