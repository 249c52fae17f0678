#!/usr/bin/env bash
# Simulates block storage from fresh seeds for a minute (SHEAF_SIM_SECONDS), every kind of fault in every second seed; prints a failing seed and the line that
# runs it again, and what was done. SHEAF_SIM_SEED: begin there instead.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
seconds=${SHEAF_SIM_SECONDS:-60}
seed=${SHEAF_SIM_SEED:-$(date +%s%N | cut -c4-16)}
step "Building the simulator" cargo build --locked -p sheaf-block-core --example sim
echo "seeds from $seed, for $seconds seconds"
"$TARGET"/debug/examples/sim --seed "$seed" --seconds $((seconds / 2)) --micros 3000000
"$TARGET"/debug/examples/sim --seed "$seed" --seconds $((seconds - seconds / 2)) --micros 3000000 --all
