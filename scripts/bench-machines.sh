#!/usr/bin/env bash
# Measures machines (release build): created to running, one and twenty at once; a linked clone of a 10 GB image; plugging; snapshot and
# restore with memory; memory of Sheaf for each machine. Real QEMUs, in a lab of their own as the end-to-end tests have it.
# SHEAF_BIN: a binary to measure instead of building one.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
scripts/deps.sh
SMALL=${SHEAF_SMALL_GUEST:-$(guest/small/build.sh | tail -n 1)}
if [ -z "${SHEAF_BIN:-}" ]; then
  loud "Building sheaf (release)" cargo build --locked --release -p sheaf --bin sheaf
  SHEAF_BIN=$TARGET/release/sheaf
fi
loud "Building the bench" cargo build --locked -p sheaf-lab --example bench_machines
export SHEAF_BIN SHEAF_SMALL_GUEST=$SMALL
log=$WORK/bench-machines.log
say "load before: $(cut -d' ' -f1-3 /proc/loadavg)"
if ! "$TARGET/debug/examples/bench_machines" 2>"$log" >"$log.out"; then
  tail -n 40 "$log" >&2
  die "The bench failed." "All it printed: $log"
fi
printf '\n| | measured | goal |\n|---|---|---|\n'
cat "$log.out"
