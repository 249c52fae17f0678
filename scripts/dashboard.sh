#!/usr/bin/env bash
# Builds the dashboard's assets into dashboard/dist, where the next build of Sheaf embeds them. Takes no second when nothing
# has changed. Where Node.js is missing or older than 18, Debian's is installed.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
cd dashboard

# One at a time: two builds would write into the same directory.
exec 8>"$WORK/dashboard.flock"
flock 8

# What the assets are made of, as one number; kept beside what was made of it.
inputs() { find src public index.html package.json package-lock.json vite.config.ts tsconfig.json -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum; }
stamp=$WORK/dashboard.stamp
want=$(inputs)
if [ -e dist/index.html ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then exit 0; fi

node_major() { node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0; }
install_node() { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 install nodejs npm; }
if (($(node_major) < 18)) || ! command -v npm >/dev/null; then
  need_debian
  need_root "installing Node.js"
  step "Installing Node.js and npm" install_node
  hash -r
fi

lock=$WORK/dashboard.lock
if [ ! -d node_modules ] || [ "$(cat "$lock" 2>/dev/null)" != "$(sha256sum package-lock.json)" ]; then
  # Only what builds the assets runs: no scripts of packages. Not `npm ci`: it fails where a registry lacks builds of rollup for
  # platforms that nobody here has. Versions and hashes are those of the lock file all the same, which stays as it is.
  rm -rf node_modules
  step "Fetching the dashboard's packages" npm install --no-save --ignore-scripts --no-progress
  sha256sum package-lock.json >"$lock"
fi
step "Building the dashboard" npm run --silent build
printf '%s\n' "$want" >"$stamp"
