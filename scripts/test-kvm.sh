#!/usr/bin/env bash
# Sheaf with real KVM, on a machine that has none: a machine with an emulated AMD processor (SVM) is booted, runs Sheaf inside, and
# that boots a guest with `-accel kvm`. Takes some minutes; not part of `make test`. Where this machine has KVM, the same test
# runs right here. SHEAF_KVM_LOGS=1 shows the logs of Sheaf and of QEMU as they are written.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh

TEST=kvm::a_guest_runs_by_kvm
SMALL=${SHEAF_SMALL_GUEST:-$CACHE/guest/small.img}
[ -s "$SMALL" ] || SMALL=$(guest/small/build.sh)
if [ -z "${SHEAF_BIN:-}" ]; then
  loud "building Sheaf" cargo build --locked -p sheaf
  SHEAF_BIN=$TARGET/debug/sheaf
fi
if [ -z "${SHEAF_TESTS:-}" ]; then
  SHEAF_TESTS=$(cargo test --locked -p sheaf-lab --test it --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
fi
if grep -qwE 'svm|vmx' /proc/cpuinfo && [ -w /dev/kvm ]; then
  SHEAF_BIN=$SHEAF_BIN SHEAF_SMALL_GUEST=$SMALL exec "$SHEAF_TESTS" --exact "$TEST" --nocapture
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/sheaf-kvm.XXXXXX")
trap 'rm -rf "$dir"' EXIT
# Debug information is of no use there.
strip -o "$dir/sheaf" "$SHEAF_BIN"
strip -o "$dir/it" "$SHEAF_TESTS"
step "making the machine" guest/node/build.sh "$dir" "$dir/sheaf" "$dir/it" "$SMALL"
say "booting it"
start=$(now)
timeout "${SHEAF_KVM_TIMEOUT:-1500}" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi,tb-size=512 -cpu max -smp 2 -m 2G -nodefaults -display none \
  -kernel "$dir/vmlinuz" -initrd "$dir/initrd" -drive "file=$dir/disk.img,format=raw,if=virtio,cache=unsafe" \
  -device virtio-rng-pci -serial stdio -no-reboot \
  -append "console=ttyS0 quiet panic=5 tsc=unstable no_timer_check mitigations=off sheaf.test=$TEST sheaf.slow=${SHEAF_LAB_SLOW:-8} sheaf.logs=${SHEAF_KVM_LOGS:-0}" </dev/null |
  tee "$dir/log" | sed -u 's/^/    | /'
elapsed=$(($(now) - start))
grep -q 'SHEAF-NODE kvm=yes' "$dir/log" || die "There was no /dev/kvm in the machine."
grep -qE "SHEAF-NODE test=$TEST exit=0" "$dir/log" || die "The test failed after $elapsed s."
if grep -q SKIPPED "$dir/log"; then die "The test was left out inside the machine."; fi
say "passed, $elapsed s after the machine was switched on"
