#!/usr/bin/env bash
# The dashboard in a real browser, against a real server with a real guest, in a network namespace and a directory of its own.
# SHEAF_OUT: where screenshots go (target/…/browser). Installs Debian's Chromium where there is none.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
need_root "make test-browser" test-browser
scripts/deps.sh
scripts/dashboard.sh
step "Making the small guest" guest/small/build.sh
install_chromium() { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 install chromium; }
command -v chromium >/dev/null || step "Installing Chromium" install_chromium
loud "Building sheaf" cargo build --locked -p sheaf

export SHEAF_IMAGE=$CACHE/guest/small.img SHEAF_OUT=${SHEAF_OUT:-$WORK/browser}
ns=sheaf-browser-$$
dir=$(mktemp -d)
cleanup() {
  local pid
  for pid in $(ip netns pids "$ns" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  ip netns del "$ns" 2>/dev/null || true
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
ip netns add "$ns"
ip -n "$ns" link set lo up
ip netns exec "$ns" "$TARGET/debug/sheaf" server --data-dir "$dir/data" --listen 127.0.0.1:6443 --node-ip 127.0.0.1 --node-name node1 >"$dir/log" 2>&1 </dev/null &
for ((tries = 0; ; tries++)); do
  if [ "$(ip netns exec "$ns" curl -sk -o /dev/null -w '%{http_code}' https://127.0.0.1:6443/readyz)" = 200 ]; then break; fi
  if ((tries > 300)); then tail -n 20 "$dir/log" >&2; die "the server was not ready within 30 s"; fi
  sleep 0.1
done
if ! HOME=$dir loud "The dashboard in Chromium" ip netns exec "$ns" node dashboard/test/browser/run.mjs; then
  tail -n 20 "$dir/log" >&2
  die "the browser test failed." "Screenshots: $SHEAF_OUT"
fi
note "screenshots: $SHEAF_OUT"
