# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by those who source it
# A server in a network namespace and a directory of its own, and Chromium beside it. Sourced by test-browser.sh and
# bench-dashboard.sh after lib.sh. Everything ends with the script.

BROWSER_NS=sheaf-browser-$$
BROWSER_DIR=$(mktemp -d)

install_chromium() { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 install chromium; }
need_chromium() { command -v chromium >/dev/null || step "Installing Chromium" install_chromium; }
in_browser_net() { ip netns exec "$BROWSER_NS" "$@"; }

browser_cleanup() {
  local pid
  for pid in $(ip netns pids "$BROWSER_NS" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  ip netns del "$BROWSER_NS" 2>/dev/null || true
  rm -rf "$BROWSER_DIR"
}

# browser_server PROGRAM [FLAG ...]: starts a server; $BROWSER_DIR/restart starts it anew with the same data.
browser_server() {
  trap browser_cleanup EXIT
  trap 'exit 130' INT TERM
  ip netns add "$BROWSER_NS"
  ip -n "$BROWSER_NS" link set lo up
  # What VM networks are made of: an administrator's bridge.
  ip -n "$BROWSER_NS" link add mgmt-br type bridge
  # Not at once: some kernels know no address family of a device that is being made.
  ip -n "$BROWSER_NS" link set mgmt-br addrgenmode none up
  cat >"$BROWSER_DIR/restart" <<END
#!/usr/bin/env bash
set -euo pipefail
if [ -e "$BROWSER_DIR/pid" ]; then
  kill "\$(cat "$BROWSER_DIR/pid")"
  while kill -0 "\$(cat "$BROWSER_DIR/pid")" 2>/dev/null; do sleep 0.1; done
fi
setsid --fork ip netns exec "$BROWSER_NS" bash -c 'echo \$\$ >"$BROWSER_DIR/pid"; exec "\$@"' - \\
  $(printf '%q ' "$@") server --data-dir "$BROWSER_DIR/data" --listen 127.0.0.1:6443 --node-ip 127.0.0.1 --node-name node1 >>"$BROWSER_DIR/log" 2>&1 </dev/null
for ((tries = 0; tries < 300; tries++)); do
  if [ "\$(ip netns exec "$BROWSER_NS" curl -sk -o /dev/null -w '%{http_code}' https://127.0.0.1:6443/readyz)" = 200 ]; then exit 0; fi
  sleep 0.1
done
tail -n 20 "$BROWSER_DIR/log" >&2
exit 1
END
  chmod +x "$BROWSER_DIR/restart"
  "$BROWSER_DIR/restart" || die "the server was not ready within 30 s"
  # Chromium drops its connections whenever an address of this machine changes: not before the guests' bridge has its own.
  local tries addresses
  for ((tries = 0; tries < 300; tries++)); do
    addresses=$(ip -n "$BROWSER_NS" -o addr show dev sheaf0 2>/dev/null || true)
    if [[ $addresses == *'inet '* && $addresses != *tentative* ]]; then return; fi
    sleep 0.1
  done
  die "the guests' bridge has no address after 30 s"
}
