#!/usr/bin/env bash
# The tests that start QEMU, with QEMU 10 of Debian's backports in place of the suite's own 7.2. Nothing is installed: the packages
# are unpacked in a directory of their own, which is put first in PATH. Not part of `make test`.
# SHEAF_TEST_FILTER: other tests, in nextest's language.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
need_root "running guests" test-qemu10
need_debian
scripts/deps.sh
command -v cargo-nextest >/dev/null || die "this target needs cargo-nextest." "cargo install --locked cargo-nextest"

# Guests run as users of their own: a directory under /root could not be entered by them.
DIR=/var/cache/sheaf/qemu10
PACKAGES=(qemu-system-x86 qemu-system-common qemu-system-data qemu-utils seabios)

fetch() {
  local suite uri package
  # shellcheck disable=SC1091
  suite=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")-backports
  uri=$(debian_sources | awk '$2 !~ /-/ {print $1; exit}')
  [ -n "$uri" ] || { echo "apt has no Debian source here to derive $suite from"; return 1; }
  rm -rf "$DIR"
  mkdir -p "$DIR/apt/lists/partial" "$DIR/apt/empty" "$DIR/root"
  echo "deb $uri $suite main" >"$DIR/apt/sources.list"
  local opts=(-q -o "Dir::Etc::SourceList=$DIR/apt/sources.list" -o "Dir::Etc::SourceParts=$DIR/apt/empty"
    -o "Dir::State::Lists=$DIR/apt/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o Acquire::Languages=none)
  apt-get "${opts[@]}" update || return 1
  for package in "${PACKAGES[@]}"; do
    (cd "$DIR/apt" && apt-get "${opts[@]}" download "$package/$suite") || return 1
  done
  for package in "$DIR"/apt/*.deb; do dpkg-deb -x "$package" "$DIR/root" || return 1; done
  # QEMU looks for its ROMs beside itself.
  ln -s /usr/lib/ipxe "$DIR/root/usr/lib/ipxe"
  rm -rf "$DIR/apt"
  touch "$DIR/complete"
}

[ -e "$DIR/complete" ] || step "Fetching QEMU 10 from the backports" fetch
step "Making the small guest" guest/small/build.sh
loud "Building sheaf" cargo build --locked -p sheaf
export SHEAF_SMALL_GUEST=$CACHE/guest/small.img PATH=$DIR/root/usr/bin:$PATH
# USB redirection, among others, is a module there.
export QEMU_MODULE_DIR=$DIR/root/usr/lib/x86_64-linux-gnu/qemu
note "$(qemu-system-x86_64 --version | head -n 1)"
filter=${SHEAF_TEST_FILTER:-package(sheaf-qemu) | package(sheaf-image) | (package(sheaf-agent) & test(/monitor|storage|snapshot/)) | (package(sheaf-storage) & test(guest)) | (package(sheaf-lab) & test(/life|plug|keep|firmware|faults|strategies|mind|failures|hardware|protocols/))}
loud "Tests" cargo nextest run --locked --workspace --no-fail-fast -E "$filter"
