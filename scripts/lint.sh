#!/usr/bin/env bash
# What review should not have to say: formatting, clippy without warnings, house rules, shell scripts.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
scripts/deps.sh
loud "Formatting" cargo fmt --all --check
loud "House rules" cargo run --quiet --locked -p xtask -- tidy
loud "Clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
if command -v shellcheck >/dev/null; then
  loud "Shell scripts" shellcheck -x scripts/*.sh guest/*/build.sh .ci/run
else
  note "shellcheck is not installed: shell scripts not checked (apt-get install shellcheck)"
fi
