#!/usr/bin/env bash
# Installs what building, running and testing Sheaf need and this machine lacks: Debian packages, kubectl 1.30 or newer, Rust.
# Says what it installs before it does, installs nothing that is there, and takes no second when all is there.
set -euo pipefail
cd -- "$(dirname -- "$0")"
. ./lib.sh

# Debian package for each command or file; the reason where it is not plain.
PACKAGES='
  gcc               links Rust, compiles SQLite
  libc6-dev
  ca-certificates
  curl
  git
  procps
  qemu-system-x86   runs the virtual machines
  qemu-utils
  swtpm             TPM for guests
  ovmf              UEFI for guests
  nftables          NAT for the guests
  iproute2
  openssh-client
  mmdebstrap        makes the Debian guest (and the rest of this list: guest images without mounting anything)
  mtools
  syslinux
  syslinux-common
  fdisk
  e2fsprogs
  busybox-static
  cpio
  kmod
  zstd
'
# The oldest kubectl that speaks websockets for exec and console.
KUBECTL_MINOR=30

if [ "${SHEAF_SKIP_DEPS:-}" = 1 ]; then exit 0; fi

missing_packages() {
  local name
  awk 'NF {print $1}' <<<"$PACKAGES" | while read -r name; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" != installed ]; then echo "$name"; fi
  done
}

# Lists that are a day old may name packages that the mirror has replaced.
update_lists() { apt-get -q update; }
install_packages() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@"
}

kubectl_minor() {
  local minor
  minor=$(kubectl version --client -o json 2>/dev/null | sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p' | head -n 1) || true
  printf '%s' "${minor:-0}"
}

# install_from_next_suite PACKAGE: a package that is missing or too old in this Debian, taken from a later one: this machine's
# own mirror, asked for another suite, with lists of its own, so that apt's configuration stays as it is and nothing else is
# upgraded from there.
install_from_next_suite() {
  local dir=$CACHE/next-suite suite uri deb
  uri=$(debian_sources | awk '$2 !~ /-/ {print $1; exit}')
  [ -n "$uri" ] || { echo "apt has no Debian source here to derive the next suite from"; return 1; }
  rm -rf "$dir"
  for suite in trixie forky; do
    mkdir -p "$dir/lists/partial" "$dir/empty"
    echo "deb $uri $suite main" >"$dir/sources.list"
    local opts=(-q -o "Dir::Etc::SourceList=$dir/sources.list" -o "Dir::Etc::SourceParts=$dir/empty"
      -o "Dir::State::Lists=$dir/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o Acquire::Languages=none)
    apt-get "${opts[@]}" update || continue
    (cd "$dir" && apt-get "${opts[@]}" download "$1") || continue
    deb=$(find "$dir" -name "$1_*.deb" -print -quit)
    install_packages "$deb" && break
  done
  rm -rf "$dir"
}

install_kubectl() {
  install_from_next_suite kubectl
  hash -r
  (($(kubectl_minor) >= KUBECTL_MINOR))
}

install_rust() {
  # Where Debian has it (from 13 on), its package; else the installer that rustup's site names.
  if install_packages rustup; then return 0; fi
  curl --proto '=https' --tlsv1.2 -sSfL https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none --no-modify-path
}

# Asked again after installing: QEMU's packages need one version among them, so installing one may have removed another that
# had come from another suite.
for attempt in first second third; do
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]})) || break
  need_debian
  need_root "installing packages"
  need_space /usr 1500 "installing packages"
  say "These Debian packages are missing and will be installed: ${missing[*]}"
  if [ "$attempt" = first ]; then step "Reading the package lists" update_lists; fi
  step "Installing ${#missing[@]} packages" install_packages "${missing[@]}"
done
mapfile -t missing < <(missing_packages)
if ((${#missing[@]})); then
  die "these packages do not stay installed together: ${missing[*]}" "apt-get install ${missing[*]} says what stands against it."
fi

minor=$(kubectl_minor)
if ((minor < KUBECTL_MINOR)); then
  need_debian
  need_root "installing kubectl"
  if ((minor == 0)); then say "kubectl is missing"; else say "kubectl 1.$minor is older than 1.$KUBECTL_MINOR"; fi
  step "Installing kubectl from the next Debian suite" install_kubectl
fi

if ! command -v cargo >/dev/null; then
  say "Rust is missing. It will be installed by rustup (https://rustup.rs) for the user $(id -un), into ${CARGO_HOME:-$HOME/.cargo}"
  note "The compiler of rust-toolchain.toml follows with the first build."
  step "Installing rustup" install_rust
  command -v cargo >/dev/null || die "rustup ran, but there is no cargo in ${CARGO_HOME:-$HOME/.cargo}/bin."
fi
if command -v rustup >/dev/null; then
  channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$ROOT/rust-toolchain.toml")
  if ! rustup toolchain list 2>/dev/null | grep -q "^$channel"; then
    step "Installing Rust $channel" rustup toolchain install "$channel" --profile minimal --component clippy --component rustfmt
  fi
fi
