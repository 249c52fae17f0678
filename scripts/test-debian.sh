#!/usr/bin/env bash
# A real Debian guest (systemd, cloud-init, guest agent, sshd): what the end-to-end tests show of it. Takes some minutes where there
# is no hardware virtualization; not part of `make test`. The image is made once.
# SHEAF_BIN: a binary to test instead of building one.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
need_root "running guests" test-debian
scripts/deps.sh
step "Making the Debian guest" guest/debian/build.sh
export SHEAF_DEBIAN_GUEST=$CACHE/guest/debian.qcow2
if [ -z "${SHEAF_BIN:-}" ]; then loud "Building sheaf" cargo build --locked -p sheaf; fi
loud "Testing" cargo test --locked -p sheaf-lab --test it -- --nocapture debian::
