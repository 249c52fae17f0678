#!/usr/bin/env bash
# All tests: house rules, unit and property tests, and the end-to-end tests with real processes and guests (root only).
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
start=$(now)

scripts/deps.sh
need_space "$TARGET" 6000 "building and testing"

say "Shell scripts"
for script in scripts/*.sh guest/*.sh guest/*/build.sh .ci/run; do bash -n "$script"; done
for script in guest/small/init guest/small/udhcpc guest/debian/customize.sh; do sh -n "$script"; done
if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh guest/*/build.sh .ci/run; fi

if [ "$(id -u)" = 0 ]; then
  step "Making the small guest" guest/small/build.sh
else
  say "Not root: the end-to-end tests with real guests will be skipped"
fi

scripts/dashboard.sh
step "Testing the dashboard (types, models, data layer)" npm --prefix dashboard run --silent verify
loud "House rules" cargo run --quiet --locked -p xtask -- tidy
# Built first, and for itself: the end-to-end tests start this binary.
loud "Building sheaf" cargo build --locked -p sheaf
export SHEAF_SMALL_GUEST=$CACHE/guest/small.img
if command -v cargo-nextest >/dev/null; then
  loud "Tests" cargo nextest run --locked --workspace --no-fail-fast
else
  loud "Tests" cargo test --locked --workspace --no-fail-fast
fi
say "All tests passed in $(($(now) - start)) s"
