#!/usr/bin/env bash
# Measures Sheaf's footprint (release build): time from start to ready, resident memory of all Sheaf processes of an idle node,
# CPU use over a minute at rest, time from "VM created" to "QEMU running", and memory per VM beside QEMU. Runs in a network
# namespace and a directory of its own, and removes both.
# SHEAF_BENCH_SECONDS: length of the look at rest (60).
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
need_root "make bench-footprint" bench-footprint
scripts/deps.sh
step "Making the small guest" guest/small/build.sh
loud "Building sheaf (release)" cargo build --locked --release -p sheaf
SHEAF=$TARGET/release/sheaf
seconds=${SHEAF_BENCH_SECONDS:-60}

ns=sheaf-bench-$$
dir=$(mktemp -d)
cleanup() {
  local pid
  for pid in $(ip netns pids "$ns" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
  ip netns del "$ns" 2>/dev/null || true
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
ip netns add "$ns"
ip -n "$ns" link set lo up
export KUBECONFIG=$dir/data/admin.kubeconfig HOME=$dir
in_ns() { ip netns exec "$ns" "$@"; }
ms() { echo $(($(date +%s%N) / 1000000)); }
# Resident memory in KiB and CPU time in ticks of all sheaf processes of the namespace.
pids() { for p in $(ip netns pids "$ns"); do [ "$(cat "/proc/$p/comm" 2>/dev/null)" = sheaf ] && echo "$p"; done; true; }
rss() { local sum=0 p; for p in $(pids); do sum=$((sum + $(awk '/^Rss:/ {print $2}' "/proc/$p/smaps_rollup"))); done; echo $sum; }
ticks() { local sum=0 p; for p in $(pids); do sum=$((sum + $(awk '{print $14 + $15}' "/proc/$p/stat"))); done; echo $sum; }

qemus() { local n=0 p; for p in $(ip netns pids "$ns"); do [[ $(cat "/proc/$p/comm" 2>/dev/null) == qemu-system* ]] && n=$((n + 1)); done; echo $n; }

begun=$(ms)
in_ns "$SHEAF" server --data-dir "$dir/data" --listen 127.0.0.1:6443 >"$dir/log" 2>&1 </dev/null &
# curl rather than kubectl, whose own start would be measured too.
until [ "$(in_ns curl -sk -o /dev/null -w '%{http_code}' https://127.0.0.1:6443/readyz)" = 200 ]; do
  if (($(ms) - begun > 30000)); then tail -n 20 "$dir/log" >&2; die "the server was not ready within 30 s"; fi
  sleep 0.01
done
ready=$(($(ms) - begun))
note "start to ready: $ready ms (goal: under 1000)"
in_ns kubectl wait --for=condition=Ready node --all --timeout=30s >/dev/null
sleep 5
note "just started, all Sheaf processes: $(($(rss) / 1024)) MB resident"
before=$(ticks)
sleep "$seconds"
used=$(($(ticks) - before))
note "at rest, all Sheaf processes: $(($(rss) / 1024)) MB resident (goal: 60)"
note "CPU at rest over $seconds s: $(awk -v t=$used -v s="$seconds" -v h="$(getconf CLK_TCK)" 'BEGIN {printf "%.2f", 100 * t / h / s}') % of a core (goal: under 0.5)"

in_ns "$SHEAF" image upload small "$CACHE/guest/small.img" >/dev/null
in_ns kubectl wait --for=condition=Imported --timeout=60s virtualmachineimages.harvesterhci.io/small >/dev/null
sleep 3
base=$(rss)
vms=3
for i in $(seq $vms); do
  in_ns kubectl create -f - >/dev/null <<X
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: b$i, annotations: {harvesterhci.io/imageId: default/small}}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: local, resources: {requests: {storage: 64Mi}}}
X
  # The clock starts when kubectl has its answer, and stops when QEMU's process is there.
  had=$(qemus)
  in_ns kubectl create -f - >/dev/null <<X
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: b$i}
spec:
  runStrategy: Always
  template:
    spec:
      domain:
        memory: {guest: 160Mi}
        devices: {disks: [{name: root, disk: {bus: virtio}}], interfaces: [{name: default, masquerade: {}}]}
      networks: [{name: default, pod: {}}]
      volumes: [{name: root, persistentVolumeClaim: {claimName: b$i}}]
X
  begun=$(ms)
  until [ "$(qemus)" -gt "$had" ]; do
    if (($(ms) - begun > 60000)); then die "VM b$i has no QEMU after a minute"; fi
    sleep 0.01
  done
  note "VM $i created to QEMU's process: $(($(ms) - begun)) ms (goal: under 300)"
  in_ns kubectl wait --for=jsonpath='{.status.phase}'=Running --timeout=60s "vmi/b$i" >/dev/null
done
sleep 20
note "per VM beside QEMU: $((($(rss) - base) / vms)) KiB resident (goal: 4096)"
