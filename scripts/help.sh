#!/usr/bin/env bash
# Prints what `make` can do here.
set -euo pipefail
cat <<'X'
Sheaf runs virtual machines on Linux machines, with Harvester's API.  On a Debian 12 machine, as root:

  make run              builds Sheaf, starts it, boots a real Debian guest and says how to look at it
  make stop             stops the guests (gracefully) and the server; the data stays, make run goes on with it
  make clean            stops, and removes the data of make run

  make test             all tests, with real guests; installs what it needs
  make test-kvm         a guest by real KVM, where there is none in a machine that emulates it
  make test-qemu10       the tests that start QEMU, with QEMU 10 of the backports
  make test-debian      a real Debian guest: Secure Boot, cloud-init, guest agent, SSH keys, freezing
  make test-browser     the dashboard in Chromium, with a real guest; make screenshots renews docs/images
  make lint             formatting, clippy, house rules, shell scripts
  make sim              block storage in a simulated world of faults, for a minute, from fresh seeds
  make bench-footprint  memory and CPU of an idle node, per VM, and the time to start
  make bench-machines   how fast machines start, change, and are saved
  make bench-storage    block storage: 1 to 3 replicas beside the raw file and qemu-nbd; rebuilds
  make bench-dashboard  the dashboard with 5,000 machines: first load, list, filter, frames a second, memory
  make bench-api        the API's speed, latency and memory, with an etcd as measure beside it
  make deps, make guest only the preparations: packages, kubectl and Rust; the small test guest

Settings, as environment variables:
  SHEAF_RUN_DIR         where make run keeps data, logs and keys      (default: run/ here)
  SHEAF_LISTEN          address and port of the API of make run       (default: 0.0.0.0:6443)
  XDG_CACHE_HOME        guest images are cached in its sheaf/         (default: ~/.cache)
  CARGO_TARGET_DIR      where Rust builds                             (default: target/ here)
  SHEAF_SKIP_DEPS=1     installs nothing
X
