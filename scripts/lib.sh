# shellcheck shell=bash
# shellcheck disable=SC2034  # what is set here is used by those who source it
# What every script here shares: where things are, how they speak, and the checks that come before work.
# Sourced, never run. Changes nothing by itself.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/sheaf
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
# Logs of steps, and small files that say "this was done".
WORK=$TARGET/sheaf-scripts
mkdir -p "$WORK"
# Rust that rustup put there is found even in a shell that has not read its profile yet.
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/sbin:/sbin
export PATH

if [ -t 1 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' OFF=$'\e[0m'; else BOLD='' DIM='' RED='' OFF=''; fi

say()  { printf '%s==>%s %s\n' "$BOLD" "$OFF" "$*"; }
note() { printf '    %s\n' "$*"; }
die()  { printf '%sError:%s %s\n' "$RED" "$OFF" "$1" >&2; shift; for line in "$@"; do printf '       %s\n' "$line" >&2; done; exit 1; }

# Seconds since the epoch, without starting a process.
now() { printf '%(%s)T' -1; }

# step TITLE COMMAND...: runs the command with its output in a log file, shows that it is alive (the last line of the log
# and the time), and says how long it took. If it fails: the end of the log, and where the rest is.
step() {
  local title=$1 start elapsed log pid rc=0 shown=0 last
  shift
  log=$WORK/$(printf '%s' "$title" | tr -cs 'A-Za-z0-9' '-').log
  say "$title"
  start=$(now)
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  # shellcheck disable=SC2064  # the pid of now is meant
  trap "kill $pid 2>/dev/null; exit 130" INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.2
    elapsed=$(($(now) - start))
    if [ -t 1 ]; then
      last=$(tail -c 300 "$log" 2>/dev/null | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c1-90 || true)
      printf '\r\e[K    %s%3d s  %s%s' "$DIM" "$elapsed" "$last" "$OFF"
    elif ((elapsed >= shown + 30)); then
      shown=$elapsed
      note "$elapsed s: $(tail -c 300 "$log" | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c1-90 || true)"
    fi
  done
  wait "$pid" || rc=$?
  trap - INT TERM
  if [ -t 1 ]; then printf '\r\e[K'; fi
  elapsed=$(($(now) - start))
  if ((rc != 0)); then
    tail -n 40 "$log" | sed 's/^/    | /' >&2
    die "\"$title\" failed after $elapsed s (exit code $rc)." "All it printed: $log"
  fi
  note "done in $elapsed s"
}

# loud TITLE COMMAND...: the same with the command's own output on the screen (cargo shows its own progress).
loud() {
  local title=$1 start rc=0
  shift
  say "$title"
  start=$(now)
  "$@" || rc=$?
  if ((rc != 0)); then die "\"$title\" failed after $(($(now) - start)) s (exit code $rc)."; fi
  note "done in $(($(now) - start)) s"
}

need_root() {
  if [ "$(id -u)" != 0 ]; then
    die "$1 needs root: it makes network devices and starts virtual machines." "Run it as root, for example: sudo make ${2:-run}"
  fi
}

need_debian() {
  local ID='' VERSION_ID='' PRETTY_NAME='an unknown system'
  # shellcheck disable=SC1091
  if [ -r /etc/os-release ]; then . /etc/os-release; fi
  if [ "$ID" != debian ] || [ "${VERSION_ID%%.*}" -lt 12 ] 2>/dev/null; then
    die "this needs Debian 12 or newer; here is $PRETTY_NAME." \
      "The packages are installed and the guest image is made with apt." \
      "If all that scripts/deps.sh names is installed, SHEAF_SKIP_DEPS=1 skips this check."
  fi
}

# need_space DIR MEGABYTES WHAT
need_space() {
  local dir=$1 free
  while [ ! -d "$dir" ]; do dir=$(dirname -- "$dir"); done
  free=$(df -Pm -- "$dir" | awk 'NR==2 {print $4}')
  if ((free < $2)); then
    die "$3 needs about $2 MB in $1, and $free MB are free there." "Make room, or name another place (see make help)."
  fi
}

# The apt sources of Debian itself that this machine uses, one per line: URI SUITE COMPONENT. Asked of apt, so that it does
# not matter in which files and notation they are written, or which mirror they name.
debian_sources() {
  local codename
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
  # The placeholders are apt's, not the shell's.
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v c="$codename" '$2 == c || $2 == c "-security" || $2 == c "-updates"' | sort -u
}
