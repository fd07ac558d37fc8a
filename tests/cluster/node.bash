# A node on this machine: containerd, kubelet, kube-proxy, DNS. Part of `cluster`, which sources it.

CLAIM=/run/smartspec-node          # names the cluster whose node this machine is
DNS=169.254.20.10                  # a link-local address on loopback, as NodeLocal DNSCache has: no rule stands in between
# What kubelet, kube-proxy and the CNI plugins set and nobody else puts back.
SYSCTLS=(net/ipv4/ip_forward net/ipv4/conf/all/route_localnet vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops
         kernel/keys/root_maxkeys kernel/keys/root_maxbytes)

other_kubernetes() {               # whether somebody else's pods run here: 'down' would end them, for it ends whatever is in pods' cgroups
  [[ ! -e $CLAIM ]] || return 1
  [[ -e /sys/class/net/cni0 || -n $(find /sys/fs/cgroup -path '*/kubepods*' -name cgroup.procs -exec grep -q . {} \; -print -quit 2>/dev/null) ]]
}

claim_machine() {
  local other; other=$(cat "$CLAIM" 2>/dev/null || true)
  if [[ -n $other && -e $other/node ]]; then
    say "this machine is already the node of $other: 'CLUSTER_DIR=$other cluster down' first"; exit 1
  fi
  mkdir -p "$DIR"; echo "$DIR" >"$CLAIM"
}

pause_image() {                    # the sandbox image every pod needs: one static program that sleeps
  loaded localhost/pause:1 && return
  storage
  printf '#include <unistd.h>\n#include <signal.h>\nstatic void stop(int s){_exit(0);}\nint main(){signal(SIGTERM,stop);signal(SIGINT,stop);for(;;)pause();}\n' >pause.c
  gcc -O2 -static -o pause pause.c
  local c m; c=$(buildah from scratch); m=$(buildah mount "$c"); cp pause "$m/pause"
  buildah config --entrypoint '["/pause"]' "$c"
  buildah commit -q "$c" localhost/pause:1 >/dev/null; buildah rm "$c" >/dev/null
  transferred localhost/pause:1
}

remove_containers() {              # all tasks and containers that containerd knows
  local ctr=(ctr -a "$DIR/containerd.sock" -n k8s.io) name
  for name in $("${ctr[@]}" tasks ls -q 2>/dev/null); do "${ctr[@]}" tasks rm -f "$name" >/dev/null 2>&1 || true; done
  for name in $("${ctr[@]}" containers ls -q 2>/dev/null); do "${ctr[@]}" containers rm "$name" >/dev/null 2>&1 || true; done
}

node() {
  programs "${NODE_PROGRAMS[@]}"
  storage
  [[ -e /usr/lib/x86_64-linux-gnu/libc.a ]] || programs libc=libc6-dev
  cd "$DIR"; mkdir -p cni volume-plugins kubelet-root "$CACHE/containerd"; touch node
  local name; for name in "${SYSCTLS[@]}"; do echo "$name $(<"/proc/sys/$name")"; done >sysctls
  # restrict_oom_score_adj: where lowering oom_score_adj is not permitted, a pod sandbox cannot start without it.
  cat >containerd.toml <<T
version = 2
root = "$CACHE/containerd"
state = "$DIR/containerd"
[grpc]
  address = "$DIR/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$(grep -q overlay "$CACHE/storage.conf" && echo overlayfs || echo native)"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$DIR/cni"
T
  cat >cni/10-bridge.conflist <<T
{"cniVersion":"0.4.0","name":"pods","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"$DIR/addresses","ranges":[[{"subnet":"10.244.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}},
 {"type":"firewall"}]}
T
  cat >kubelet.yaml <<T
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $DIR/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
clusterDNS: [$DNS]
clusterDomain: cluster.local
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {nodefs.available: 1%, imagefs.available: 1%, memory.available: 100Mi}
imageGCHighThresholdPercent: 100
syncFrequency: 10s  # how soon mounted Secrets follow; the default is a minute
volumePluginDir: $DIR/volume-plugins
T
  local i ip cidr
  start containerd containerd -c containerd.toml
  for i in $(seq 40); do [[ -S containerd.sock ]] && ctr -a containerd.sock version >/dev/null 2>&1 && break; sleep 0.25; done
  remove_containers                # of a machine that went down without 'down'
  pause_image
  start kubelet "$BIN/kubelet" --config=kubelet.yaml --kubeconfig=kubelet.conf --container-runtime=remote \
    --container-runtime-endpoint="unix://$DIR/containerd.sock" --root-dir="$DIR/kubelet-root" --cert-dir="$DIR/kubelet-pki" \
    --hostname-override="$(hostname)" --pod-infra-container-image=localhost/pause:1
  # It leaves the machine's table of connections as it is.
  start proxy "$BIN/kube-proxy" --kubeconfig=admin.conf --cluster-cidr=$POD_CIDR --proxy-mode=iptables --conntrack-max-per-core=0 \
    --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s
  names
  # Cluster addresses never leave this machine, also when no rule or bridge catches them.
  ip=$(hostname -I | awk '{print $1}')
  for cidr in $SERVICE_CIDR $POD_CIDR; do ip route replace "$cidr" dev lo ${ip:+src "$ip"} metric 4096; done
  for i in $(seq 240); do
    kubectl --kubeconfig admin.conf get nodes 2>/dev/null | grep -q ' Ready' && grep -qs kubernetes.default hosts && return; sleep 0.25
  done
  say "the node does not become ready"; tail -n 20 kubelet.log >&2; exit 1
}

names() {                          # DNS: Services and the addresses behind headless ones; all else as this machine resolves it
  ip address replace "$DNS/32" dev lo
  touch hosts
  start dns "$(command -v dnsmasq)" --keep-in-foreground --conf-file=/dev/null --user=root --pid-file= --no-hosts --addn-hosts="$DIR/hosts" \
    --listen-address="$DNS" --bind-interfaces --local=/cluster.local/ --no-negcache --log-facility=-
  start names env "CLUSTER_DIR=$DIR" "CLUSTER_CACHE=$CACHE" "$HERE/cluster" serve-names
}

serve_names() {                    # until killed: whatever happens to a Service or its addresses, write them all anew
  cd "$DIR"
  local kind line template='{{range .items}}{{$name := printf "%s.%s.svc.cluster.local" .metadata.name .metadata.namespace -}}
{{if eq .kind "Service"}}service {{if .spec.clusterIP}}{{.spec.clusterIP}}{{else}}-{{end}} {{$name}}
{{else}}{{range .subsets}}{{range .addresses}}address {{.ip}} {{$name}}
{{end}}{{end}}{{end}}{{end}}'
  for kind in services endpoints; do
    while :; do kubectl --kubeconfig admin.conf get "$kind" -A --watch -o name 2>/dev/null || true; sleep 0.3; done &
  done | while read -r line; do
    while read -r -t 0.05 line; do :; done  # what comes at once is done at once
    kubectl --kubeconfig admin.conf get services,endpoints -A -o go-template="$template" 2>/dev/null |
      awk '$1 == "service" && $2 == "None" {headless[$3] = 1} $1 == "service" && $2 ~ /[0-9]/ {print $2, $3} $1 == "address" && headless[$3] {print $2, $3}' >hosts.new ||
      continue                     # the API server is away: names stay as they were
    cmp -s hosts.new hosts || { cp hosts.new hosts; kill -HUP "$(<dns.pid)"; }
  done
}

stop_node() {
  stop KILL proxy kubelet names dns
  [[ -S $DIR/containerd.sock ]] && remove_containers
  stop TERM containerd
  local pid file
  # Shims outlive containerd, and what runs in a pod its shim.
  for pid in $(pgrep -f -- "-address $DIR/containerd.sock" || true); do kill -9 "$pid" 2>/dev/null || true; done
  find /sys/fs/cgroup -path '*/kubepods*' -name cgroup.procs 2>/dev/null | while read -r file; do
    for pid in $(<"$file"); do kill -9 "$pid" 2>/dev/null || true; done
  done
}

clear_machine() {                  # what a node leaves behind on the machine
  local name tool
  sleep 0.3
  awk -v d="$DIR/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | while read -r name; do umount -l "$name" || true; done
  find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null || true
  for name in $(ip netns list 2>/dev/null | awk '/^cni-/ {print $1}'); do ip netns del "$name" || true; done
  ip link del cni0 2>/dev/null || true
  ip link del kube-ipvs0 2>/dev/null || true
  ip address del "$DNS/32" dev lo 2>/dev/null || true
  for name in $SERVICE_CIDR $POD_CIDR; do ip route del "$name" dev lo metric 4096 2>/dev/null || true; done
  "$BIN/kube-proxy" --cleanup >/dev/null 2>&1 || true
  for tool in iptables ip6tables; do
    "$tool-save" 2>/dev/null | grep -vE 'CNI-|KUBE-' | "$tool-restore" 2>/dev/null || true
  done
  while read -r name tool; do echo "$tool" >"/proc/sys/$name" 2>/dev/null || true; done <"$DIR/sysctls"
  rm -f "$CLAIM"
}
