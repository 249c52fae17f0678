#!/usr/bin/env bash
# The dashboard in a real browser, against a real server with a real guest, in a network namespace and a directory of its own.
# SHEAF_OUT: where screenshots go (target/…/browser). Installs Debian's Chromium where there is none.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
. scripts/browser.sh
need_root "make test-browser" test-browser
scripts/deps.sh
scripts/dashboard.sh
step "Making the small guest" guest/small/build.sh
need_chromium
loud "Building sheaf" cargo build --locked -p sheaf

export SHEAF_IMAGE=$CACHE/guest/small.img SHEAF_OUT=${SHEAF_OUT:-$WORK/browser}
browser_server "$TARGET/debug/sheaf"
export SHEAF_RESTART=$BROWSER_DIR/restart
if ! HOME=$BROWSER_DIR loud "The dashboard in Chromium" in_browser_net node dashboard/test/browser/run.mjs; then
  tail -n 20 "$BROWSER_DIR/log" >&2
  die "the browser test failed." "Screenshots: $SHEAF_OUT"
fi
note "screenshots: $SHEAF_OUT"
