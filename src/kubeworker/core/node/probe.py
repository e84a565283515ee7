"""One shell script that reports everything a plan needs to know of a node; `observed.parse` reads the answer.

POSIX sh with coreutils, findutils, awk, grep, iproute2 and systemd, as every Debian has them. It changes nothing but
its own hash index, and that only once the tool has been at home on the node, and not for `preflight`. Few processes:
each costs a millisecond.

The index (`<home>/index`) saves hashing big binaries again, as git's does: a line per file, sha256 TAB size TAB
mtime TAB ctime TAB inode TAB path. An unchanged stat gives the recorded hash. A file that changed within the last
tick of the clock before it was hashed may change again under the same time stamp ("racily clean" in git's words),
so such an entry is never written and the file is hashed again by the next run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from kubeworker.core.model import (
    File,
    Leftover,
    NodeState,
    RequireCommand,
    RequireDisk,
    RequireMasquerade,
    RequireModule,
    RequirePort,
    RequireProxyMode,
    RequireSysctl,
    Stage,
    WarnOfTraces,
)
from kubeworker.core.node import chain_look, survey
from kubeworker.core.node.observed import HASHING, HEADER

HOME = "/var/lib/kubeworker"
"""The tool's own folder on a node: root only, holds the hash index and the start records, no secrets."""

KUBELET_CLIENT_CERT = "/etc/kubernetes/cert/kubelet-client-current.pem"
"""kubelet's current client certificate and key (--cert-dir of the guide); only the certificate is reported."""

KUBELET_KUBECONFIG = "/etc/kubernetes/kubelet.kubeconfig"
"""The kubeconfig that kubelet writes after the bootstrap (--kubeconfig of the guide)."""

CONTENT_LIMIT = 262144
"""Bytes: a changed text file up to this size is sent for the plan's diff."""

DROPIN_DIRS = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system")
"""Where systemd.unit(5) looks for UNIT.d/*.conf."""

# Kernel features that show without /lib/modules: on a kernel with everything built in, or inside a container whose
# host loaded them, these paths are the only sign.
_EVIDENCE = {
    "br_netfilter": "/proc/sys/net/bridge",
    "ip_vs": "/proc/net/ip_vs",
    "nf_conntrack": "/proc/sys/net/netfilter/nf_conntrack_max",
    "ip_tables": "/proc/net/ip_tables_names",
    "ip6_tables": "/proc/net/ip6_tables_names",
}

# The build option of modules whose names don't give it (CONFIG_<NAME> is tried for the others).
_CONFIG = {
    "br_netfilter": "CONFIG_BRIDGE_NETFILTER",
    "overlay": "CONFIG_OVERLAY_FS",
    "nf_conntrack": "CONFIG_NF_CONNTRACK",
    "nf_tables": "CONFIG_NF_TABLES",
    "ip_tables": "CONFIG_IP_NF_IPTABLES",
    "ip_vs_rr": "CONFIG_IP_VS_RR",
    "ip_set": "CONFIG_IP_SET",
}

PROXY_MODES = ("ipvs", "nftables", "iptables")


def store_path(bin_dir: str, sha256: str) -> str:
    """Where a blob lies in the node's store."""
    return f"{bin_dir}/.store/sha256-{sha256}"


def former_path(path: str) -> str:
    """Where the former version of a file lies until the stage that replaces or removes it is good."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.kubeworker-old"


def remains_of(path: str) -> tuple[str, str]:
    """What a killed run may leave beside a file: a version that was to come, and the former one."""
    former = former_path(path)
    return former.removesuffix("-old") + "-new", former


def managed_paths(stage: Stage) -> tuple[str, ...]:
    """Every path the stage has a say about, unit files included, in a stable order."""
    paths = [directory.path for directory in stage.directories]
    paths += [binary.path for binary in stage.binaries]
    paths += [file.path for file in stage.files]
    paths += [link.path for link in stage.links]
    paths += [absent.path for absent in stage.absent]
    paths += [deferred.path for deferred in stage.deferred]
    paths += [target.path for target in stage.kubeconfigs]
    paths += [unit.path for unit in stage.units]
    for absent_unit in stage.absent_units:
        paths += [absent_unit.path, *absent_unit.paths]
    return tuple(dict.fromkeys(paths))


def leftovers(stage: Stage) -> tuple[Leftover, ...]:
    """What must not be left in the kernel, of the stage's absent units too, in the order in which it is removed."""
    return (*(each for unit in stage.absent_units for each in unit.leftovers), *stage.leftovers)


def script(state: NodeState, *, rehash: bool = False, surveyed: bool = False, home: str = HOME) -> str:
    """The probe for one desired state; `rehash` ignores the index; `surveyed` looks at what `survey.py` adds,
    and leaves the index as it is.

    The set of paths must not depend on facts.
    """
    paths = _paths(state)
    units = sorted(
        {unit.name for stage in state.stages for unit in stage.units}
        | {unit.name for stage in state.stages for unit in stage.absent_units}
    )
    requirements = [requirement for stage in state.stages for requirement in stage.requirements]
    parts = [
        _IDENTITY,
        _sysctls(state, requirements),
        _commands(requirements),
        _modules(state, requirements),
        _rules(state, requirements),
        _proxy_modes(requirements),
        _masquerade(requirements),
        _disks(requirements, state.bin_dir),
        _units(units),
        _ports(requirements),
        _files(state, paths, units, rehash=rehash, keep=not surveyed),
        _links(state),
        _marked(state),
        _remains(state),
        _leftovers(state),
        _UNFINISHED,
        _traces(requirements),
        survey.SCRIPT if surveyed else "",
    ]
    looking = "\n".join(part for part in parts if part)
    if images := _images(state):
        # ctr takes as long as all the rest together, so it runs beside it; what the rest says waits for its end.
        looking = f'{{\n{images}\n}} &\nrest=$(\n{looking}\n)\nwait\nsay "$rest"'
    return f"{_prologue(home)}\n{looking}\nsay end\n"


def _paths(state: NodeState) -> tuple[str, ...]:
    managed = [path for stage in state.stages for path in managed_paths(stage)]
    blobs = [binary.blob for stage in state.stages for binary in stage.binaries]
    blobs += [image.archive for stage in state.stages for image in stage.images]
    paths = tuple(dict.fromkeys([*managed, *(store_path(state.bin_dir, blob.sha256) for blob in blobs)]))
    for path in paths:
        if "\n" in path or not path.startswith("/"):
            raise ValueError(f"{path!r} is not a path that a node can be asked about")
    return paths


def _prologue(home: str) -> str:
    return f"""set -u
LC_ALL=C; PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
umask 077
home={shlex.quote(home)}
tab='\t'
nl='
'
say() {{ printf '%s\\n' "$1"; }}
field() {{ printf '%s\\t%s\\n' "$1" "$2"; }}
say '{HEADER}'
kernel_config() {{ # sets $config once: the kernel's build options, where it tells them
  [ -z "${{config:-}}" ] || return 0
  if [ -r /proc/config.gz ]; then config=$(zcat /proc/config.gz)
  elif [ -r "/boot/config-$kernel" ]; then config=$(cat "/boot/config-$kernel")
  else config='#'; fi
}}"""


_IDENTITY = """now=$(date +%s.%N)
field clock "$now"
read -r hostname < /proc/sys/kernel/hostname
field hostname "$hostname"
machine_id=
[ ! -r /etc/machine-id ] || read -r machine_id < /etc/machine-id || :
field machine-id "$machine_id"
field machine "$(uname -m)"
read -r kernel < /proc/sys/kernel/osrelease
field kernel "$kernel"
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then field cgroup 2; else field cgroup 1; fi
container=
[ ! -r /run/systemd/container ] || read -r container < /run/systemd/container || :
field container "$container"
while read -r device _; do
  [ "$device" = Filename ] || field swap "$device"
done < /proc/swaps
[ ! -r /etc/fstab ] || while read -r device mountpoint kind _; do
  case $device in '#'*) ;; *) [ "$kind" != swap ] || field fstab-swap "$device $mountpoint" ;; esac
done < /etc/fstab
[ ! -r /etc/resolv.conf ] || while read -r key value _; do
  [ "$key" != nameserver ] || field nameserver "$value"
done < /etc/resolv.conf
[ ! -r /run/systemd/resolve/resolv.conf ] || say resolved-list
read -r value < /proc/1/comm
field init "$value"
while read -r _ value _; do field memory "$value"; break; done < /proc/meminfo
[ ! -r /sys/devices/system/cpu/online ] || { read -r value < /sys/devices/system/cpu/online; field cpus "$value"; }
[ ! -r /sys/class/dmi/id/product_uuid ] ||
  { read -r value < /sys/class/dmi/id/product_uuid; field product-uuid "$value"; }
say addresses
# Interfaces that are down are left out: kube-ipvs0 has every Service's address.
ip addr show up scope global
say addresses-end"""


def _sysctls(state: NodeState, requirements: Iterable[object]) -> str:
    keys = {sysctl.key for stage in state.stages for sysctl in stage.sysctls}
    keys |= {requirement.key for requirement in requirements if isinstance(requirement, RequireSysctl)}
    if not keys:
        return ""
    paths = {key: shlex.quote(sysctl_path(key)) for key in sorted(keys)}
    cases = "\n".join(
        f'    {path}:*) printf "sysctl\\t%s\\t%s\\n" {shlex.quote(key)} "${{line#{path}:}}" ;;'
        for key, path in paths.items()
    )
    # grep and not the shell's read: that may ask byte by byte, and a numeric setting answers the first time only.
    return f"""values=$(grep -Hs -m 1 '' -- {" ".join(paths.values())})
while IFS= read -r line; do
  case $line in
{cases}
  esac
done <<KW
$values
KW"""


def sysctl_path(key: str) -> str:
    """The file of a kernel setting; a key that holds a slash uses it as separator (sysctl.d(5))."""
    return "/proc/sys/" + (key if "/" in key else key.replace(".", "/"))


def _commands(requirements: Iterable[object]) -> str:
    names = {requirement.name for requirement in requirements if isinstance(requirement, RequireCommand)}
    return "\n".join(
        f"! command -v {name} > /dev/null 2>&1 || field command {name}" for name in map(shlex.quote, sorted(names))
    )


def _modules(state: NodeState, requirements: Iterable[object]) -> str:
    names = {module.name for stage in state.stages for module in stage.modules}
    names |= {requirement.name for requirement in requirements if isinstance(requirement, RequireModule)}
    if not names and not any(isinstance(requirement, RequireProxyMode) for requirement in requirements):
        return ""
    reports = "\n".join(f'{_module(name)}; field module {shlex.quote(name)}"$tab$found"' for name in sorted(names))
    return f"""filesystems='' modules=''
module() {{ # module NAME OPTION EVIDENCE: sets $found; each module is looked for once
  case $modules in *" $1="*) found=${{modules##*" $1="}}; found=${{found%% *}}; return ;; esac
  look_for_module "$@"
  modules="$modules $1=$found "
}}
look_for_module() {{
  if [ -d "/sys/module/$1" ]; then found=loaded; return; fi
  if [ -n "$3" ] && [ -e "$3" ]; then found=builtin; return; fi
  [ -n "$filesystems" ] || filesystems=$(cat /proc/filesystems)
  case $filesystems in *"$tab$1"*) found=builtin; return ;; esac
  if [ "$1" = nf_tables ] && nft list tables > /dev/null 2>&1; then found=builtin; return; fi
  kernel_config
  case "$nl$config$nl" in *"$nl$2=y$nl"*) found=builtin; return ;; esac
  if grep -q "/$1\\.ko" "/lib/modules/$kernel/modules.builtin" 2> /dev/null; then found=builtin
  elif modprobe --dry-run --quiet "$1" 2> /dev/null; then found=available
  else found=missing; fi
}}
{reports}"""


def _module(name: str) -> str:
    option = _CONFIG.get(name, f"CONFIG_{name.upper()}")
    return shlex.join(["module", name, option, _EVIDENCE.get(name, "")])


# What kube-proxy's rules are made of, checked by the kernel without being applied.
_NFTABLES_MODE = """table ip kubeworker-probe {
  chain a { counter; }
  chain nat {
    type nat hook prerouting priority dstnat;
    fib daddr type local numgen random mod 1 vmap { 0 : goto a }
  }
}"""


def _masquerade_table(family: str) -> str:
    return f"""table {family} kubeworker-probe-masquerade {{
  chain a {{ type nat hook postrouting priority srcnat; masquerade; }}
}}"""


def _rules(state: NodeState, requirements: Sequence[object]) -> str:
    """All that nft is asked where all is well, at once: what it would take, and which chains there are.

    Sets $nft where it took all of it, and $rules to the chains: `?` where it can't tell.
    """
    asked = []
    if any(leftovers(stage) for stage in state.stages):
        asked.append("list chains")
    if _proxy_mode_wanted(requirements) == "nftables":
        asked.append(_NFTABLES_MODE)
    asked += map(_masquerade_table, _masquerade_families(requirements))
    if not asked:
        return ""
    text = "\n".join(asked)
    if "list chains" not in asked:
        return f"""nft=yes
nft --check --file - > /dev/null 2>&1 <<'KW' || nft=
{text}
KW"""
    # What iptables-legacy keeps, nft does not see.
    return f"""nft=yes
rules=$(nft --check --file - 2> /dev/null <<'KW'
{text}
KW
) || nft=
[ -n "$nft" ] || rules=$(nft list chains 2> /dev/null) || rules='?'
for path in /proc/net/ip_tables_names /proc/net/ip6_tables_names; do
  if [ -r "$path" ] && read -r value < "$path"; then rules='?'; fi
done
{chain_look.ASKED}"""


def _proxy_mode_wanted(requirements: Iterable[object]) -> str:
    return next((requirement.mode for requirement in requirements if isinstance(requirement, RequireProxyMode)), "")


def _proxy_modes(requirements: Iterable[object]) -> str:
    wanted = _proxy_mode_wanted(requirements)
    if not wanted:
        return ""
    first = shlex.quote(wanted)
    taken = '[ -n "$nft" ] || ' if wanted == "nftables" else ""
    return f"""proxy_mode() {{ # sets $answer: yes, or why the kernel can't do it
  answer=yes
  case $1 in
    ipvs)
      {_module("ip_vs")}
      if [ "$found" = missing ]; then answer='the kernel has no module ip_vs'; return; fi
      {_module("ip_vs_rr")}
      [ "$found" != missing ] || answer='the kernel has no module ip_vs_rr' ;;
    nftables)
      if ! command -v nft > /dev/null; then answer='the command nft is missing (package nftables)'
      elif {taken}nft --check --file - > /dev/null 2>&1 <<'KW'
{_NFTABLES_MODE}
KW
      then :; else answer='the kernel refuses the nf_tables expressions it needs (fib, numgen, verdict maps)'; fi ;;
    iptables)
      if ! command -v iptables > /dev/null; then answer='the command iptables is missing (package iptables)'
      elif ! iptables -w 5 -t nat -S OUTPUT > /dev/null 2>&1; then answer='iptables -t nat does not work'; fi ;;
  esac
}}
proxy_mode {first}
printf 'proxy-mode\\t%s\\t%s\\n' {first} "$answer"
# What else it can do matters only where it can't do that.
[ "$answer" = yes ] || for mode in {" ".join(mode for mode in PROXY_MODES if mode != wanted)}; do
  proxy_mode $mode
  printf 'proxy-mode\\t%s\\t%s\\n' "$mode" "$answer"
done"""


def _masquerade_families(requirements: Iterable[object]) -> Sequence[str]:
    families = {requirement.family for requirement in requirements if isinstance(requirement, RequireMasquerade)}
    # One cluster has one family.
    return sorted(families)[:1]


def _masquerade(requirements: Iterable[object]) -> str:
    texts = []
    for family in _masquerade_families(requirements):
        iptables = "iptables" if family == "ip" else "ip6tables"
        # nf_tables may be there without it (CONFIG_NF_TABLES_IPV4 off).
        texts.append(f"""masquerade=
if [ -n "$nft" ] || nft --check --file - > /dev/null 2>&1 <<'KW'
{_masquerade_table(family)}
KW
then masquerade=nft
elif {iptables} -w 5 -t nat -S POSTROUTING > /dev/null 2>&1; then masquerade=iptables
fi
field masquerade "$masquerade\"""")
    return "\n".join(texts)


def _ports(requirements: Iterable[object]) -> str:
    ports = sorted({requirement.port for requirement in requirements if isinstance(requirement, RequirePort)})
    if not ports:
        return ""
    condition = " or ".join(f"sport = :{port}" for port in ports)
    # ss -p looks at every descriptor of every process, which on a node full of pods takes longer than all the rest.
    # So the units' own main processes are looked at first; only what none of them holds is asked of everybody.
    return f"""sockets=$(ss -Hltune '( {condition} )')
if [ -n "$sockets" ]; then
  # By lines: to cut long texts by patterns takes dash milliseconds, the square of their length.
  set -f; IFS=$nl
  set --
  for line in ${{units:-}}; do
    case $line in MainPID=*) set -- "$@" "/proc/${{line#MainPID=}}/fd" ;; esac
  done
  held=
  [ $# -eq 0 ] || held=$(find "$@" -lname 'socket:*' -printf '%l %p\\n' 2> /dev/null)
  found=$sockets sockets=
  for socket in $found; do
    inode=${{socket#* ino:}}; inode=${{inode%% *}}
    pid=
    for line in $held; do
      case $line in "socket:[$inode] /proc/"*) pid=${{line#*/proc/}}; pid=${{pid%%/*}}; break ;; esac
    done
    if [ -n "$pid" ]; then
      process=
      IFS=" $tab" read -r process < "/proc/$pid/comm"
      sockets="$sockets$socket users:((\\"$process\\",pid=$pid,fd=0))$nl"
    # The kernel's own have no process.
    elif [ "$inode" = 0 ]; then sockets=$sockets$socket$nl
    else
      # One that is just ending has a socket for a moment and is no process any more: as when another run restarts it.
      for again in 1 2 3 4 5; do
        sockets=$(ss -Hltunpe '( {condition} )') whole=yes
        for seen in $sockets; do
          pid=${{seen#*pid=}}; pid=${{pid%%,*}}
          case $seen in *' ino:0 '*) ;; *) [ -r "/proc/$pid/cgroup" ] || whole= ;; esac
        done
        case $whole$again in yes* | 5) break ;; esac
        sleep 0.1
      done
      break
    fi
  done
  set +f; unset IFS
fi
while read -r socket; do
  [ -n "$socket" ] || continue
  field socket "$socket"
  # Several hold it where one has just forked: a child that is about to run something else is gone in a moment.
  holders=$socket
  while :; do
    case $holders in *pid=*) ;; *) break ;; esac
    holders=${{holders#*pid=}}; pid=${{holders%%,*}}
    [ ! -r "/proc/$pid/cgroup" ] || while IFS=: read -r _ controller group; do
      # systemd's own hierarchy on cgroup v1, the only one on v2.
      case $controller in name=systemd) ;; '') [ "$group" != / ] || continue ;; *) continue ;; esac
      printf 'pid\\t%s\\t%s\\n' "$pid" "$group"
      break
    done < "/proc/$pid/cgroup"
  done
done <<KW
$sockets
KW"""


def _disks(requirements: Iterable[object], bin_dir: str) -> str:
    paths = {requirement.path for requirement in requirements if isinstance(requirement, RequireDisk)}
    # The output names the file system, not the argument, so the answers are matched by their order.
    words = shlex.join(sorted({*paths, bin_dir}))
    return f"""# shellcheck disable=SC2043  # there may be only one path
for path in {words}; do
  place=$path
  while [ ! -d "$place" ]; do place=${{place%/*}}; [ -n "$place" ] || place=/; done
  set -- "$@" "$place"
done
disks=$(df -B1 --output=avail,iavail,target -- "$@")
{{
  read -r _
  # shellcheck disable=SC2043
  for path in {words}; do
    read -r free inodes mount
    printf 'disk\\t%s\\t%s\\t%s\\t%s\\n' "$free" "$inodes" "$mount" "$path"
  done
}} <<KW
$disks
KW"""


def _images(state: NodeState) -> str:
    ctrs = {image.ctr for stage in state.stages for image in stage.images}
    if not ctrs:
        return ""
    ctr = shlex.quote(min(ctrs))
    return f"""if [ -x {ctr} ] && [ -S /run/containerd/containerd.sock ] &&
  images=$(timeout 20 {ctr} -n k8s.io images ls -q 2> /dev/null); then
  say images
  [ -z "$images" ] || printf '%s\\n' "$images" | while read -r image; do field image "$image"; done
fi"""


def _units(units: list[str]) -> str:
    if not units:
        return ""
    names = shlex.join(units)
    properties = (
        "Id,LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload,InvocationID,MainPID,NRestarts,FragmentPath,"
        "DropInPaths,StateChangeTimestamp"
    )
    return f"""units=$(TZ=UTC systemctl show --property={properties} -- {names})
say units
say "$units"
say units-end"""


def _files(state: NodeState, paths: tuple[str, ...], units: list[str], *, rehash: bool, keep: bool) -> str:
    wanted = "\n".join(
        [
            *(f"w\t{file.sha256}\t{file.path}" for file in _text_files(state)),
            *(f"started\t{unit}" for unit in units),
            *(f"applied\t{stage.component}" for stage in state.stages),
        ]
    )
    patterns = " ".join(
        [
            *(f"{directory}/{shlex.quote(unit)}.d/*.conf" for directory in DROPIN_DIRS for unit in units),
            *(each.pattern for stage in state.stages for each in stage.private),
        ]
    )
    unnamed = f"""# shellcheck disable=SC2043
for path in {patterns}; do
  case $path in *"$nl"*) continue ;; esac
  [ ! -f "$path" ] || set -- "$@" "$path"
done
"""
    index = "" if rehash else "$home/index"
    where = '"$home"' if keep else "''"
    return f"""set -- {shlex.join(paths)}
{unnamed}stats=$(stat --printf 's\\t%f\\t%U:%G\\t%s\\t%.9Y\\t%.9Z\\t%i\\t%n\\n' -- "$@" 2> /dev/null)
wanted={shlex.quote(wanted)}
hashes() {{ # hashes FRESH WRITE: FRESH are lines of just computed hashes; the new index goes to the file WRITE
  printf '%s\\n%s\\n%s\\n' "$wanted" "$1" "$stats" |
    awk -F '\\t' -v home="$home" -v index_file="{index}" -v now="$now" -v write="$2" '{_AWK}'
}}
found=$(hashes '' '')
case "$nl$found" in *"${{nl}}t$tab"*)
  say {HASHING}
  fresh=$(printf '%s\\n' "$found" | sed -n 's/^t\\t//p' |
    xargs -d '\\n' -n 8 -P "$(nproc)" sha256sum -z -- 2> /dev/null |
    tr '\\0' '\\n' | sed 's/^\\(.\\{{64\\}}\\)  /f\\t\\1\\t/')
  if [ -d {where} ]; then
    found=$(hashes "$fresh" "$home/index.$$")
    mv -f "$home/index.$$" "$home/index"
  else
    found=$(hashes "$fresh" '')
  fi ;;
esac
[ -z "$stats" ] || say "$stats"
case "$nl$found" in
  *"${{nl}}differs$tab"* | *"${{nl}}t$tab"*)
    say "$found" | while IFS= read -r line; do
      case $line in
        "t$tab"*) ;;
        "differs$tab"*)
          path=${{line#*"$tab"}}
          printf 'content\\t%s\\t%s\\n' "$(base64 -w 0 < "$path")" "$path" ;;
        *) say "$line" ;;
      esac
    done ;;
  *) [ -z "$found" ] || say "$found" ;;
esac"""


# Reads `w` (wanted hash of a text file), `f` (fresh hash) and `s` (stat) lines, in this order. Prints `hash` lines,
# `t` lines for what must be hashed, and `differs` for text files whose content the plan will want to show. What not
# everybody may read stays on the node: it may have been a secret until now (a hosts.toml that loses its header).
# It reads small files too, since it is started anyway: the shell's own read asks the kernel for each byte. The records
# of the last starts (`started` lines) and applies (`applied`). Of kubelet's certificate file, which holds the private
# key too, what stands between the certificate's own lines; of its kubeconfig, which may hold credentials, how it
# reaches the API.
_AWK = (
    """
  function applied(name,   line) {
    while ((getline line < (home "/applied/" name)) > 0) print "applied\\t" name "\\t" line
  }
  function started(name,   line, part) {
    if ((getline line < (home "/started/" name)) <= 0) return
    split(line, part, " ")
    print "record\\t" name "\\t" part[1] "\\t" part[2] "\\t" part[3]
  }
  function trimmed(text) {
    gsub(/^[ \\t]+|[ \\t]+$/, "", text)
    return text
  }
  function certificate(path,   line, more, any, inside, body) {
    while ((more = (getline line < path)) >= 0) {
      any = 1
      line = trimmed(line)
      if (!more || line == "-----END CERTIFICATE-----") break
      if (line == "-----BEGIN CERTIFICATE-----") inside = 1
      else if (inside) body = body line
    }
    if (any) print "client-cert\\t" body
  }
  function kubeconfig(path,   line, key) {
    while ((getline line < path) > 0) {
      key = line = trimmed(line)
      sub(/[ \\t].*/, "", key)
      if (key == "server:" || key == "certificate-authority:" || key == "certificate-authority-data:")
        print "kubeconfig\\t" substr(key, 1, length(key) - 1) "\\t" trimmed(substr(line, length(key) + 1))
    }
  }
  BEGIN {
    while (index_file != "" && (getline line < index_file) > 0) known[substr(line, 66)] = substr(line, 1, 64)
    if (write != "") printf "" > write
    certificate("CLIENT_CERT")
    kubeconfig("KUBECONFIG")
  }
  $1 == "started" { started($2) }
  $1 == "applied" { applied($2) }
  $1 == "w" { wanted[substr($0, 68)] = $2 }
  $1 == "f" { fresh[substr($0, 68)] = $2 }
  $1 == "s" && length($2) == 4 && substr($2, 1, 1) == "8" {
    key = substr($0, length($2) + length($3) + 5)
    path = substr(key, length($4) + length($5) + length($6) + length($7) + 5)
    if (path in fresh) sha = fresh[path]
    else if (key in known) sha = known[key]
    else { print "t\\t" path; next }
    print "hash\\t" sha "\\t" path
    if (write != "" && $5 + 0.1 < now + 0 && $6 + 0.1 < now + 0) print sha "\\t" key > write
    if ((path in wanted) && wanted[path] != sha && $4 <= LIMIT && $2 ~ /[4-7c-f]$/) print "differs\\t" path
  }
""".replace("LIMIT", str(CONTENT_LIMIT))
    .replace("CLIENT_CERT", KUBELET_CLIENT_CERT)
    .replace("KUBECONFIG", KUBELET_KUBECONFIG)
)


def _text_files(state: NodeState) -> Iterator[File]:
    """Files whose differing content may be shown: a secret's never leaves the node."""
    for stage in state.stages:
        yield from (file for file in stage.files if not file.secret)
        yield from (unit.file for unit in stage.units)


def _links(state: NodeState) -> str:
    paths = [shlex.quote(link.path) for stage in state.stages for link in stage.links]
    return "\n".join(
        f"[ ! -L {path} ] || printf 'target\\t%s\\t%s\\n' \"$(readlink -n -- {path} | base64 -w 0)\" {path}"
        for path in paths
    )


def _marked(state: NodeState) -> str:
    """The patterns are the components' own words, and unquoted: sh expands them.

    A run that was killed while it removed such a file leaves it under the name of a former version.
    """
    return "\n".join(
        f"""for path in {each.pattern} {former_path(each.pattern)}; do
  case $path in *"$nl"*) continue ;; esac
  if [ ! -f "$path" ] || [ -L "$path" ] || [ ! -r "$path" ]; then continue; fi
  line=
  read -r line < "$path" || :
  [ "$line" != {shlex.quote(each.line)} ] || field marked "$path"
done"""
        for stage in state.stages
        for each in stage.marked
    )


def _remains(state: NodeState) -> str:
    """All in the managed files' folders; whose they are is told apart later."""
    folders = sorted({path.rpartition("/")[0] for stage in state.stages for path in managed_paths(stage)})
    if not folders:
        return ""
    patterns = " ".join(f"{shlex.quote(folder)}/.*.kubeworker-{end}" for folder in folders for end in ("new", "old"))
    return f"""for path in {patterns}; do
  if [ -f "$path" ] || [ -L "$path" ]; then field remains "$path"; fi
done"""


# Whether a run died on the node: its folder is there, its lock not.
_UNFINISHED = """for path in "$home"/work.*; do
  # Each stage opens the lock anew, so that its time is the last one's begin.
  if [ -d "$path" ] && flock -n "$home/lock" true; then field unfinished "$(stat -c %Y -- "$home/lock")"; fi
done"""


def _traces(requirements: Iterable[object]) -> str:
    return "\n".join(
        f"trace=$({{\n{each.look}\n}} < /dev/null 2> /dev/null)\n"
        f'[ -z "$trace" ] || printf "trace\\t%s\\t%s\\n" {shlex.quote(each.name)} "$(printf %s "$trace" | head -n 1)"'
        for each in requirements
        if isinstance(each, WarnOfTraces)
    )


def _leftovers(state: NodeState) -> str:
    return "\n".join(
        f"if {{\n{each.present}\n}} > /dev/null 2>&1 < /dev/null; then field leftover {shlex.quote(each.name)}; fi"
        for stage in state.stages
        for each in leftovers(stage)
    )
