#!/usr/bin/env bash
# The dashboard with 5,000 machines, in Chromium: first load, listing, filter, scrolling, memory of the tab. A release build.
# SHEAF_MACHINES, SHEAF_UPDATES: less, to try it.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
. scripts/browser.sh
need_root "make bench-dashboard" bench-dashboard
scripts/deps.sh
scripts/dashboard.sh
need_chromium
profile=${SHEAF_PROFILE:-release}
if [ "$profile" = release ]; then loud "Building sheaf" cargo build --locked --release -p sheaf; else loud "Building sheaf" cargo build --locked -p sheaf; fi
browser_server "$TARGET/$profile/sheaf"
HOME=$BROWSER_DIR in_browser_net node dashboard/test/browser/bench.mjs
