# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by those who source it
# The server of `make run`: is it running, start it, wait for it. Sourced by run.sh, stop.sh and clean.sh after lib.sh.
# Everything it owns is in $RUN; a process is ours if its command line names $RUN/data.

RUN=${SHEAF_RUN_DIR:-$ROOT/run}
LISTEN=${SHEAF_LISTEN:-0.0.0.0:6443}
PORT=${LISTEN##*:}
DATA=$RUN/data
SHEAF=$TARGET/debug/sheaf
export KUBECONFIG=$DATA/admin.kubeconfig

# Where the server says which process it is; pids are used again, so the file alone is no proof.
server_pid() {
  local pid
  pid=$(cat "$RUN/server.pid" 2>/dev/null) || return 1
  is_ours "$pid" server && echo "$pid"
}

# is_ours PID WORD: the process runs, for this data directory, and its command line has the word.
is_ours() {
  local line
  line=$(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null) || return 1
  [[ $line == *"$DATA"* && $line == *"$2"* ]]
}

# The pids of the guests' QEMUs of this data directory.
guest_pids() {
  local pid
  for pid in $(pgrep -f 'qemu-system' || true); do
    if is_ours "$pid" qemu-system; then echo "$pid"; fi
  done
}

server_ready() { kubectl --request-timeout=3s get --raw /readyz >/dev/null 2>&1; }

start_server() {
  local pid
  mkdir -p "$DATA"
  if (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then
    die "port $PORT is in use by another program: $(ss -Hltnp "sport = :$PORT" 2>/dev/null | sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1 (pid \2)/p' | head -n 1)" \
      "Stop that, or choose another address: SHEAF_LISTEN=0.0.0.0:16443 make run"
  fi
  # In a session of its own: it goes on when this terminal is closed.
  # shellcheck disable=SC2016  # expanded by the inner shell
  setsid --fork bash -c 'echo $$ >"$1/server.pid"; shift; exec "$@"' - "$RUN" \
    "$SHEAF" server --data-dir "$DATA" --listen "$LISTEN" </dev/null >>"$RUN/server.log" 2>&1
  for _ in $(seq 300); do
    if server_ready; then return 0; fi
    sleep 0.1
    pid=$(server_pid) || { [ ! -e "$RUN/server.pid" ] || break; }
  done
  tail -n 20 "$RUN/server.log" | sed 's/^/    | /' >&2
  if [ -n "${pid:-}" ]; then die "the server runs (pid $pid), but was not ready within 30 s." "Its log: $RUN/server.log"; fi
  die "the server did not start." "Its log: $RUN/server.log"
}
