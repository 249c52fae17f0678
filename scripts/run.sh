#!/usr/bin/env bash
# From nothing to a Debian guest that one can log in to: installs what is missing, builds Sheaf, starts its server, makes the
# guest's image (once), imports it, creates the VM of examples/debian-vm.yaml, waits until ssh answers, and says how to look
# at all this. A second run finds what is there.
set -euo pipefail
cd -- "$(dirname -- "$0")/.."
. scripts/lib.sh
. scripts/server.sh
start=$(now)

need_root "make run" run
scripts/deps.sh
need_space "$TARGET" 5000 "building Sheaf"
need_space "$RUN" 3000 "a guest with its image"
[ -c /dev/net/tun ] || modprobe tun 2>/dev/null || true
[ -c /dev/net/tun ] || die "there is no /dev/net/tun: guests cannot get a network." "In a container, pass that device in."
mkdir -p "$RUN" "$CACHE/guest"
image=$CACHE/guest/debian.qcow2

# The image takes a minute of apt and disk; it is made while cargo keeps the CPU busy.
image_log=$WORK/debian-image.log image_rc=$WORK/debian-image.rc
rm -f "$image_rc"
# In a process group of its own, so that all of it can be ended.
set -m
(rc=0; guest/debian/build.sh "$image" >"$image_log" 2>&1 </dev/null || rc=$?; echo "$rc" >"$image_rc") &
image_job=$!
set +m
trap 'kill -- "-$image_job" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

scripts/dashboard.sh || note "going on without the dashboard"
loud "Building Sheaf" cargo build --locked -p sheaf

if pid=$(server_pid); then
  if [[ $(readlink "/proc/$pid/exe") == *" (deleted)" ]]; then
    say "Sheaf was built anew: restarting the server (guests go on running)"
    kill "$pid"
    for _ in $(seq 100); do server_pid >/dev/null || break; sleep 0.1; done
    start_server
  else
    say "The server runs already (pid $pid)"
    server_ready || die "it does not answer at $LISTEN." "Its log: $RUN/server.log"
  fi
else
  say "Starting the server"
  begun=$(date +%s%N)
  start_server
  note "ready after $((($(date +%s%N) - begun) / 1000000)) ms (pid $(server_pid), log $RUN/server.log)"
fi

wait_image() {
  tail -n +1 -f --pid="$image_job" "$image_log" || true
  return "$(cat "$image_rc")"
}
if [ -e "$image_rc" ] && [ "$(cat "$image_rc")" = 0 ]; then
  note "Debian guest image: $image"
else
  step "Making the Debian guest image from Debian packages (once)" wait_image
fi
trap - EXIT INT TERM

condition() { kubectl get "$1" "$2" -o jsonpath="{.status.conditions[?(@.type==\"$3\")].status}" 2>/dev/null || true; }

if [ "$(condition virtualmachineimages.harvesterhci.io debian-12 Imported)" = True ]; then
  say "The image default/debian-12 is there"
else
  say "Importing the image as default/debian-12"
  "$SHEAF" image upload debian-12 "$image"
  kubectl wait --for=condition=Imported --timeout=120s virtualmachineimages.harvesterhci.io/debian-12 >/dev/null
fi

# The guest's user: a key pair and a password made for this directory.
key=$RUN/id_ed25519
if [ ! -e "$key" ]; then ssh-keygen -q -t ed25519 -N '' -C sheaf-make-run -f "$key"; fi
if ! kubectl get secret debian-cloud-init >/dev/null 2>&1; then
  cat >"$RUN/user-data" <<X
#cloud-config
password: sheaf
chpasswd: {expire: False}
ssh_pwauth: False
ssh_authorized_keys:
  - $(cat "$key.pub")
X
  kubectl create secret generic debian-cloud-init --from-file=userdata="$RUN/user-data" --dry-run=client -o yaml |
    kubectl apply -f - >/dev/null
fi

say "Creating the VM of examples/debian-vm.yaml"
kubectl apply -f examples/debian-vm.yaml | sed 's/^/    /'

try_ssh() {
  ssh -i "$key" -o ConnectTimeout=2 -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile="$RUN/known_hosts" \
    -o LogLevel=ERROR "debian@$1" "${2:-true}" 2>/dev/null </dev/null
}

say "Waiting until the guest answers by ssh (up to a minute or two without hardware virtualization)"
begun=$(now) told='' ip=''
while true; do
  status=$(kubectl get vm debian -o jsonpath='{.status.printableStatus}' 2>/dev/null) || status='?'
  read -r phase ip < <(kubectl get vmi debian -o jsonpath='{.status.phase} {.status.interfaces[0].ipAddress}' 2>/dev/null; echo) || true
  line="VM $status${phase:+, instance $phase}${ip:+, address $ip}"
  if [ "$line" != "$told" ]; then
    printf '    %3d s  %s\n' $(($(now) - begun)) "$line"
    told=$line
  fi
  if [ -n "$ip" ] && try_ssh "${ip%%/*}"; then break; fi
  if (($(now) - begun > 600)); then
    kubectl describe vm debian | tail -n 30 | sed 's/^/    | /' >&2
    kubectl get vmi debian -o jsonpath='{range .status.conditions[*]}{.type}={.status} {.reason} {.message}{"\n"}{end}' | sed 's/^/    | /' >&2
    die "the guest did not answer by ssh within ten minutes." "Its console: $SHEAF console debian"  "The server's log: $RUN/server.log"
  fi
  sleep 0.5
done
ip=${ip%%/*}
# shellcheck disable=SC2016  # expanded in the guest
note "ssh answers after $(($(now) - begun)) s: $(try_ssh "$ip" '. /etc/os-release; echo "$PRETTY_NAME, kernel $(uname -r), up $(cut -d. -f1 /proc/uptime) s"')"

# An address under which other machines reach this one.
host=${LISTEN%:*}
if [ "$host" = 0.0.0.0 ]; then
  host=$(ip -4 route get 1.1.1.1 2>/dev/null | sed -n 's/.* src \([0-9.]*\).*/\1/p' || true)
  host=${host:-127.0.0.1}
fi
echo
kubectl get vm,vmi
# Paths as they are typed from here.
near() { realpath --relative-base="$PWD" -- "$1"; }
cat <<X

${BOLD}A Debian guest runs on Sheaf$OFF (after $(($(now) - start)) s). Look at it:

  export KUBECONFIG=$KUBECONFIG
  kubectl get vm,vmi,pvc,virtualmachineimages,nodes
  $(near "$SHEAF") console debian     its serial console: user debian, password sheaf; leave with Ctrl-]
  ssh -i $(near "$key") debian@$ip
  kubectl delete vm debian        ends it; make run makes it again, with the same disk

  Dashboard: https://$host:$PORT/ (user admin; the first visit sets the password; setup code: $DATA/setup-code)
  API: https://$host:$PORT (the kubeconfig above is the administrator's)
  make stop    stops the guest and the server      make clean    removes the data, too
X
