#!/bin/sh
# Block storage: 1, 2 and 3 replicas on this machine through NBD and vhost-user-blk, beside the raw file with O_DIRECT and
# qemu-nbd on a raw file, taking turns. Prints a table in Markdown. Flush is honoured everywhere.
#   SHEAF_BENCH_DIR   where the volumes lie (default: a directory under target/)
#   SHEAF_BENCH_ARGS  passed on: --seconds S, --rounds N, --only WORD
#   SHEAF_BENCH_BIN   the program that measures, already built (default: builds it, release)
#   SHEAF_BENCH_MIB   size of each volume (default 1024)
#   SHEAF_BENCH_PARTS  some of io,rebuild,rest (default: all three, in this order)
set -eu
cd "$(dirname "$0")/.."
dir=${SHEAF_BENCH_DIR:-$PWD/target/bench-storage}
mib=${SHEAF_BENCH_MIB:-1024}
parts=,${SHEAF_BENCH_PARTS:-io,rebuild,rest},
bench=${SHEAF_BENCH_BIN:-$PWD/target/release/examples/bench}
[ -n "${SHEAF_BENCH_BIN:-}" ] || cargo build --quiet --release -p sheaf-storage --example bench
rm -rf "$dir"
mkdir -p "$dir"
pids=
# Where the kernel shares processors among sessions, this one comes before all others: what else the machine does is not measured.
# It holds for all targets alike.
share=$(awk '{print $3}' /proc/self/autogroup 2>/dev/null || true)
cleanup() {
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    [ -z "$share" ] || echo "$share" 2>/dev/null >/proc/self/autogroup || true
    rm -rf "$dir"
}
trap cleanup EXIT INT TERM

[ -z "$share" ] || echo -20 2>/dev/null >/proc/self/autogroup || true

# One storage process: name, port. Its standard input stays open as long as this script runs.
mkfifo "$dir/alive"
sleep 100000 >"$dir/alive" &
pids="$pids $!"
storage() {
    mkdir -p "$dir/$1/disk"
    "$bench" storage "$dir/$1" "127.0.0.1:$2" <"$dir/alive" >"$dir/$1/log" 2>&1 &
    eval "pid_$1=$!"
    pids="$pids $!"
    tries=0
    while ! [ -S "$dir/$1/control.sock" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || { cat "$dir/$1/log"; exit 1; }
        sleep 0.1
    done
}
ask() {
    python3 - "$dir/$1/control.sock" "$2" <<'PY'
import json, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall((sys.argv[2] + "\n").encode())
answer = json.loads(s.makefile().readline())
if answer != "done": sys.exit(f"{sys.argv[2]}: {answer}")
PY
}
bytes=$((mib << 20))
create() { ask "$1" "{\"op\":\"create-replica\",\"volume\":\"$2\",\"name\":\"$3\",\"replica\":$4,\"bytes\":$bytes,\"together_with\":$5}"; }
attach() { ask a "{\"op\":\"attach\",\"volume\":\"$1\",\"name\":\"$2\",\"bytes\":$bytes,\"replicas\":$3,\"frontends\":[{\"nbd\":\"$dir/$2.nbd\"},{\"vhost\":\"$dir/$2.vhost\"}]}"; }

storage a 17461
storage b 17462
storage c 17463
one=00000000-0000-4000-8000-000000000001
two=00000000-0000-4000-8000-000000000002
three=00000000-0000-4000-8000-000000000003
four=00000000-0000-4000-8000-000000000004
create a $one one 1 '[1]'
for n in a b; do [ $n = a ] && id=1 || id=2; create $n $two two $id '[1,2]'; done
id=0
for n in a b c; do id=$((id + 1)); create $n $three three $id '[1,2,3]'; done
create a $four four 1 '[1]'
attach $four four '[{"id":1}]'
attach $one one '[{"id":1}]'
attach $two two '[{"id":1},{"id":2,"address":"127.0.0.1:17462"}]'
attach $three three '[{"id":1},{"id":2,"address":"127.0.0.1:17462"},{"id":3,"address":"127.0.0.1:17463"}]'

truncate -s "$bytes" "$dir/direct.raw" "$dir/qemu.raw"
set -- "file=file:$dir/direct.raw"
if command -v qemu-nbd >/dev/null; then
    qemu-nbd --persistent --cache=none --aio=native --format=raw --socket="$dir/qemu.nbd" "$dir/qemu.raw" &
    pids="$pids $!"
    qemu=$!
    tries=0
    while ! [ -S "$dir/qemu.nbd" ] && [ "$tries" -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
    set -- "$@" "qemu-nbd=nbd:$dir/qemu.nbd:$qemu"
fi
set -- "$@" "1 replica, NBD=nbd:$dir/one.nbd:$pid_a" "1 replica, vhost=vhost:$dir/one.vhost:$pid_a" \
    "2 replicas, vhost=vhost:$dir/two.vhost:$pid_a,$pid_b" \
    "3 replicas, NBD=nbd:$dir/three.nbd:$pid_a,$pid_b,$pid_c" "3 replicas, vhost=vhost:$dir/three.vhost:$pid_a,$pid_b,$pid_c"
echo "load at the beginning: $(cut -d' ' -f1-3 /proc/loadavg); $(uname -r); $(nproc) processors"
has() { case $parts in *",$1,"*) ;; *) return 1 ;; esac; }
# shellcheck disable=SC2086
if has io; then "$bench" ${SHEAF_BENCH_ARGS:-} "$@"; fi
if has rebuild; then
    "$bench" rebuild $four "$dir/four.vhost" "$dir/a/control.sock" "$pid_a" "$dir/c/control.sock" "$pid_c" 127.0.0.1:17463
fi
if has rest; then
    storage d 17464
    # shellcheck disable=SC2154 # storage sets it
    "$bench" rest "$dir/d/control.sock" "$pid_d" "$dir"
fi
echo "load at the end: $(cut -d' ' -f1-3 /proc/loadavg)"
for n in a b c; do
    eval "pid=\$pid_$n"
    echo "memory of process $n: $(awk '/VmRSS/ {print $2, $3}' "/proc/$pid/status")"
done
