# What a person types. Each target is one script under scripts/, which says what it does.
.DEFAULT_GOAL := help
.PHONY: help run stop clean test test-kvm test-qemu10 test-debian test-browser screenshots lint deps guest sim bench-api bench-dashboard bench-footprint bench-machines bench-storage

help:
	@scripts/help.sh
run:
	@scripts/run.sh
stop:
	@scripts/stop.sh
clean:
	@scripts/clean.sh
test:
	@scripts/test.sh
test-kvm:
	@scripts/test-kvm.sh
test-qemu10:
	@scripts/test-qemu10.sh
test-debian:
	@scripts/test-debian.sh
test-browser:
	@scripts/test-browser.sh
screenshots:
	@SHEAF_OUT=docs/images SHEAF_SHOTS=readme scripts/test-browser.sh
lint:
	@scripts/lint.sh
deps:
	@scripts/deps.sh
guest:
	@scripts/deps.sh
	@guest/small/build.sh
bench-footprint:
	@scripts/bench-footprint.sh
bench-storage:
	@scripts/bench-storage.sh
bench-dashboard:
	@scripts/bench-dashboard.sh
bench-machines:
	@scripts/bench-machines.sh
bench-api:
	@scripts/bench-api.sh
sim:
	@scripts/sim.sh
