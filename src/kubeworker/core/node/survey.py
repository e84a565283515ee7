"""What only `kubeworker preflight` looks at on a node, beside the probe: too slow for each plan.

A part of the probe's script: it changes nothing and answers in lines `survey KIND FOUND` (core/node/observed.py), which
`core/preflight/survey_rows.py` judges.
"""

from __future__ import annotations

UNITS = (
    "firewalld.service",
    "ufw.service",
    "docker.service",
    "crio.service",
    "k3s.service",
    "k3s-agent.service",
    "rke2-server.service",
    "rke2-agent.service",
    "k0scontroller.service",
    "k0sworker.service",
    "snap.microk8s.daemon-kubelite.service",
)
"""Firewalls, other container engines, other distributions of Kubernetes."""

REMAINS = (
    "/etc/kubernetes/admin.conf",
    "/etc/kubernetes/kubelet.conf",
    "/etc/kubernetes/bootstrap-kubelet.conf",
    "/etc/kubernetes/manifests/*",
    "/var/lib/kubelet/config.yaml",
    "/var/lib/kubelet/pki/kubelet-client-current.pem",
    "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf",
    "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
    "/etc/rancher/k3s",
    "/etc/rancher/rke2",
    "/var/lib/rancher/k3s",
    "/var/lib/rancher/rke2",
    "/var/lib/k0s",
    "/var/snap/microk8s",
)
"""What kubeadm, k3s, RKE2, k0s and microk8s leave; none of it is this tool's."""

OWN_UNITS = ("containerd.service", "kubelet.service", "kube-proxy.service")
"""Units of this tool that distributions' packages have too, by the same names."""

UNIT_DIRS = ("/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
"""Where packages put units. /lib is a link to usr/lib where a distribution has merged them."""

LINKS = (
    "flannel.1 flannel-v6.1 cni0 vxlan.calico cali* weave vethwe* antrea-gw0 ovn-k8s-mp0 kube-bridge "
    "cilium_host cilium_net cilium_vxlan kw0"
)
"""Interfaces of flannel, its bridge, Calico, Weave, Antrea, OVN-Kubernetes, kube-router, Cilium and `cni: bridge`."""

SYSCTL_DIRS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
"""The first has the last word on a file's name (sysctl.d(5))."""

VALUES = (
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_count",
)

CHAINS = "KUBE-SERVICES KUBE-NODEPORTS KUBE-SVC- KUBE-SEP- CILIUM_ cali- FLANNEL- WEAVE"
"""How the chains of kube-proxy, Cilium, Calico, flannel and Weave begin. (KUBE-FIREWALL and others are kubelet's.)"""

# Reads `nft list chains` (TABLE, CHAIN and hook lines) and iptables-save. Prints the base chains that drop what no rule
# names, and of the others' chains one for each kind.
_AWK = r"""
  function known(name,   i) {
    for (i = 1; i <= kinds; i++) if (index(name, kind[i]) == 1 && !((i, family) in told)) {
      told[i, family] = 1
      print "survey\trules\t" family " " name
    }
  }
  BEGIN { kinds = split(CHAINS, kind, " ") }
  $1 == "table" { family = "nft " $2; table = $3; if ($3 == "kube-proxy") print "survey\trules\t" family " table " $3 }
  $1 == "chain" { chain = $2; known($2) }
  $1 == "type" && / hook (input|forward) / && /policy drop/ {
    print "survey\tdrops\t" ($0 ~ /hook input/ ? "input" : "forward") " " family " " table " " chain
  }
  /^\*/ { family = LEGACY; table = substr($1, 2) }
  /^:/ { known(substr($1, 2)) }
  /^:(INPUT|FORWARD) DROP/ && table == "filter" {
    print "survey\tdrops\t" (/^:INPUT/ ? "input" : "forward") " " family " filter " substr($1, 2)
  }
  /^-A INPUT / && table == "filter" { print "survey\trule\t" $0 }
"""

# grep and not the shell's read: that asks byte by byte, and a kernel setting answers the first time only.
_VALUES = (
    f"grep -Hs '' {' '.join('/proc/sys/' + key.replace('.', '/') for key in VALUES)} |\n"
    '  while IFS= read -r line; do found value "${line#/proc/sys/}"; done'
)

SCRIPT = f"""found() {{ printf 'survey\\t%s\\t%s\\n' "$1" "$2"; }}
found began ''
awk '{{ options[$2] = $4 }} END {{ for (place in options)
  if (options[place] ~ /(^|,)noexec(,|$)/) print "survey\\tnoexec\\t" place }}' /proc/self/mounts
for path in {" ".join(f"{folder}/*.conf" for folder in SYSCTL_DIRS)} /etc/sysctl.conf; do
  case $path in *"$nl"*) continue ;; esac
  if [ ! -r "$path" ] || [ -d "$path" ]; then continue; fi
  found sysctl-file "$path"
  grep -H -e '^[^#;]*=' -- "$path" | while IFS= read -r line; do found sysctl "$line"; done
done
for path in {
    " ".join(
        f"/{place}/*.swap"
        for place in (
            "etc/systemd/system",
            "run/systemd/generator",
            "run/systemd/generator.late",
            "usr/lib/systemd/system",
        )
    )
}; do
  if [ ! -f "$path" ]; then continue; fi
  # A unit that is masked stays off wherever else its file lies.
  case $(readlink "/etc/systemd/system/${{path##*/}}") in /dev/null) continue ;; esac
  found swap "$path"
done
for path in /etc/systemd/zram-generator.conf /run/systemd/zram-generator.conf /usr/lib/systemd/zram-generator.conf \\
  /etc/systemd/system/*.wants/zramswap.service; do
  [ ! -e "$path" ] || found swap "$path"
done
for path in {" ".join(REMAINS)}; do [ ! -e "$path" ] || found remains "$path"; done
for path in /etc/cni/net.d/*.conf /etc/cni/net.d/*.conflist /etc/cni/net.d/*.json; do
  [ ! -e "$path" ] || found cni-conf "$path"
done
(cd /sys/class/net && for link in {LINKS}; do [ ! -e "$link" ] || found link "$link"; done)
systemctl show --property=Id,ActiveState,FragmentPath -- {" ".join(UNITS)} | while IFS='=' read -r key value; do
  case $key in
    Id) id=$value ;;
    ActiveState) [ "$value" != active ] || found active "$id" ;;
  esac
done
for name in {" ".join(OWN_UNITS)}; do
  for folder in {" ".join(UNIT_DIRS)}; do
    if [ ! -f "$folder/$name" ] || {{ [ "$folder" = /lib/systemd/system ] && [ -L /lib ]; }}; then continue; fi
    # The pattern, for dpkg may know it by the name that it has without the merged /usr.
    owner=$({{ dpkg-query -S "*/systemd/system/$name" || rpm -qf "$folder/$name"; }} 2> /dev/null | head -n 1)
    found unit-file "$folder/$name ${{owner%%:*}}"
  done
  for path in {
    " ".join(f'"{folder}/$name.d"/*.conf' for folder in ("/etc/systemd/system", "/run/systemd/system", *UNIT_DIRS[:2]))
}; do
    if grep -qs '^ExecStart=' "$path"; then found unit-command "$path"; fi
  done
done
if grep -qs '^ENABLED=yes' /etc/ufw/ufw.conf; then found ufw enabled; fi
grep -hs '<port ' /etc/firewalld/zones/*.xml | while IFS= read -r line; do found firewalld-port "$line"; done
grep -Hs -e '^[^#]*cgroup-driver' -e '^[^#]*cgroupDriver' -e '^[^#]*SystemdCgroup' -e '^[^#]*native.cgroupdriver' \\
  /var/lib/kubelet/config.yaml /etc/containerd/config.toml /etc/default/kubelet /etc/sysconfig/kubelet \\
  /etc/docker/daemon.json \\
  /etc/systemd/system/kubelet.service.d/*.conf /usr/lib/systemd/system/kubelet.service.d/*.conf |
  while IFS= read -r line; do found cgroup-driver "$line"; done
{_VALUES}
chains() {{ awk -v CHAINS='{CHAINS}' -v LEGACY="${{1:-}}" '{_AWK}'; }}
base=$(nft list chains 2> /dev/null | chains)
[ -z "$base" ] || printf '%s\\n' "$base"
printf '%s\\n' "$base" | while read -r _ what hook _ family table chain; do
  [ "$what $hook" = 'drops input' ] || continue
  nft list chain "$family" "$table" "$chain" | while IFS= read -r line; do found rule "$line"; done
done
# iptables-legacy-save loads modules: only where its tables are in use.
for each in iptables/ip ip6tables/ip6; do
  if grep -qs filter "/proc/net/${{each#*/}}_tables_names"; then
    "${{each%/*}}-legacy-save" 2> /dev/null | chains "${{each%/*}}"
  fi
done"""
