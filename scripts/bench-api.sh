#!/usr/bin/env bash
# Measures the API (release build): creates, updates, gets and lists per second with 1, 8 and 64 clients, the way of a write to
# 1 and 1,000 watchers, lists of 10,000 machines, and memory with 10,000 and 100,000 objects. Beside it, in turns and with the
# same bytes, the distribution's etcd with its default durability (package etcd-server, installed if it is missing).
# Both keep their data on the same disk, in a directory of this run's own, which is removed.
# SHEAF_BENCH_SECONDS: length of one run (5). SHEAF_BENCH_OBJECTS: objects for the memory (100000).
# SHEAF_BENCH_ONLY: some of writes,reads,watches,lists,memory; of the writes SHEAF_BENCH_CLIENTS: some of 1,8,64, and
# SHEAF_BENCH_KINDS: some of config_map,machine. SHEAF_BENCH_DIR: where the data goes (the target directory).
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
scripts/deps.sh
if ! command -v etcd >/dev/null; then
  need_debian
  need_root "installing etcd-server" bench-api
  # Its service is of no use here: what is measured is started below.
  DEBIAN_FRONTEND=noninteractive step "Installing etcd-server" apt-get -q -y --no-install-recommends install etcd-server
  systemctl disable --now etcd >/dev/null 2>&1 || true
fi
loud "Building sheaf (release)" cargo build --locked --release -p sheaf --bin sheaf
loud "Building the bench (release)" cargo build --locked --release -p sheaf-lab --example bench_api

dir=$(mktemp -d "${SHEAF_BENCH_DIR:-$TARGET}/bench-api.XXXXXX")
pids=()
cleanup() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
api=$(free_port) client=$(free_port) peer=$(free_port)
HOME=$dir "$TARGET/release/sheaf" server --no-agent --data-dir "$dir/sheaf" --listen "127.0.0.1:$api" >"$dir/sheaf.log" 2>&1 </dev/null &
sheaf=$!
pids+=("$sheaf")
etcd --data-dir "$dir/etcd" --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
  --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
  --initial-cluster "default=http://127.0.0.1:$peer" --quota-backend-bytes 8589934592 >"$dir/etcd.log" 2>&1 </dev/null &
etcd=$!
pids+=("$etcd")
begun=$(now)
until [ "$(curl -sk -o /dev/null -w '%{http_code}' "https://127.0.0.1:$api/readyz")" = 200 ] &&
  [ "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$client/health")" = 200 ]; do
  if (($(now) - begun > 30)); then tail -n 20 "$dir/sheaf.log" "$dir/etcd.log" >&2; die "the servers were not ready within 30 s"; fi
  sleep 0.1
done
# The definitions of our own kinds are written in the background after the start.
sleep 5
say "$(date -u +%F), $(nproc) cores of $(sed -n 's/^model name\t*: //p' /proc/cpuinfo | head -n 1), etcd $(etcd --version | sed -n 's/^etcd Version: //p')"
"$TARGET/release/examples/bench_api" "$dir/sheaf/admin.kubeconfig" "$sheaf" "http://127.0.0.1:$client" "$etcd" \
  "${SHEAF_BENCH_SECONDS:-5}" "${SHEAF_BENCH_OBJECTS:-100000}"
