#!/usr/bin/env bash
# Undoes `make run`, data kept: asks every guest to shut down, waits for that, then ends the server.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
. scripts/server.sh

if [ ! -d "$RUN" ]; then say "Nothing to stop: there is no $RUN"; exit 0; fi
need_root "make stop" stop

if ! pid=$(server_pid); then
  if [ -n "$(guest_pids)" ]; then
    say "The server does not run, but guests do: starting it to shut them down gracefully"
    start_server
    pid=$(server_pid)
  else
    say "Nothing runs"
    exit 0
  fi
fi

if server_ready; then
  running=$(kubectl get vmi -A -o jsonpath='{range .items[*]}{.metadata.namespace}/{.metadata.name} {end}')
  if [ -n "$running" ]; then
    say "Stopping: $running"
    for vm in $running; do
      kubectl patch vm -n "${vm%/*}" "${vm#*/}" --type merge -p '{"spec":{"runStrategy":"Halted"}}' >/dev/null ||
        kubectl delete vmi -n "${vm%/*}" "${vm#*/}" --wait=false >/dev/null || true
    done
    gone() { while [ -n "$(kubectl get vmi -A -o name)" ]; do kubectl get vmi -A --no-headers; sleep 1; done; }
    step "Waiting until the guests have shut down" timeout 300 bash -c "$(declare -f gone); gone"
  fi
else
  note "The server (pid $pid) does not answer; it is ended, and its guests after it."
fi

kill "$pid"
for _ in $(seq 150); do server_pid >/dev/null || break; sleep 0.1; done
if server_pid >/dev/null; then
  note "The server did not end within 15 s of SIGTERM: killed. Its log: $RUN/server.log"
  kill -9 "$pid"
fi
rm -f "$RUN/server.pid"
# The storage process outlives the server; without guests nobody needs it.
storage=$(sed -n 's/^  "pid": \([0-9]*\),$/\1/p' "$RUN/data/storage/state/process.json" 2>/dev/null || true)
if [ -n "$storage" ] && tr '\0' ' ' <"/proc/$storage/cmdline" 2>/dev/null | grep -q "storage --detached.*$RUN/data/storage"; then
  kill "$storage"
  for _ in $(seq 200); do kill -0 "$storage" 2>/dev/null || break; sleep 0.1; done
fi
for guest in $(guest_pids); do
  note "A guest is left (pid $guest): killed."
  kill -9 "$guest"
done
say "Stopped. The data is in $RUN; make run goes on with it."
