#!/usr/bin/env bash
# Stops what `make run` started and removes its data: the directory run/ (or SHEAF_RUN_DIR), nothing else. Built programs and
# the cache of guest images stay.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
. scripts/server.sh

scripts/stop.sh
if [ -d "$RUN" ]; then
  # Only a directory that make run made.
  if [ -n "$(ls -A "$RUN")" ] && [ ! -e "$RUN/server.log" ] && [ ! -d "$DATA" ]; then
    die "$RUN does not look like a directory of make run; it is left alone."
  fi
  rm -rf -- "$RUN"
  say "Removed $RUN"
fi
note "Kept: $TARGET (cargo clean removes it), $CACHE (guest images)"
