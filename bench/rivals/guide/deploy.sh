#!/bin/bash
# The guide's way, step by step in its order: loops over the nodes with ssh and scp. What its text makes by
# here-documents lies in $PAYLOAD; its kube-nginx unit waits for a pid file that nginx writes elsewhere, so the payload's
# is taken. NODE_IPS, NODE_NAMES and the rest come from environment.sh, as in the guide.
set -euo pipefail
source "$1/environment.sh"
common=$PAYLOAD/common
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ssh() { command ssh "${SSH_OPTIONS[@]}" "$@"; }
scp() { command scp -q "${SSH_OPTIONS[@]}" "$@"; }

# own NODE IP PATH: the node's own form of a file, by sed where the guide does so
own() {
  if [ -e "$common$3" ]; then
    echo "$common$3"
  elif [ -e "$PAYLOAD/templates$3" ]; then
    sed -e "s/{{ node_name }}/$1/g" -e "s/{{ node_ip }}/$2/g" "$PAYLOAD/templates$3" >"$work/${3##*/}"
    echo "$work/${3##*/}"
  else
    echo "$PAYLOAD/nodes/$1$3"
  fi
}

# each COMMAND...: for every node, with $name and $ip
each() {
  for ((i = 0; i < ${#NODE_IPS[@]}; i++)); do
    name=${NODE_NAMES[i]} ip=${NODE_IPS[i]}
    "$@"
  done
}

# put PATH...: files to the node, one scp each
put() {
  local path
  for path in "$@"; do
    scp "$(own "$name" "$ip" "$path")" "root@$ip:$path"
  done
}

start() { ssh "root@$ip" "systemctl daemon-reload && systemctl enable $1 && systemctl restart $1" 2>/dev/null; }

# --- what a node's other components need (the guide does it in an earlier chapter)
# A program that runs can't be written to ("scp: dest open: Failure"), and the guide knows no second run: they go first.
folders() { ssh "root@$ip" "mkdir -p $DIRECTORIES && rm -f $BINARIES"; }
others() { put "${OTHER_FILES[@]}"; }
each folders
[ ${#OTHER_FILES[@]} = 0 ] || each others

# --- kube-nginx
nginx_binary() {
  scp "$common/opt/k8s/kube-nginx/sbin/kube-nginx" "root@$ip:/opt/k8s/kube-nginx/sbin/kube-nginx"
  ssh "root@$ip" "chmod a+x /opt/k8s/kube-nginx/sbin/*"
}
nginx_files() { put "${NGINX_FILES[@]}"; }
nginx_start() { for unit in "${NGINX_UNITS[@]}"; do start "$unit"; done; }
each nginx_binary
each nginx_files
each nginx_start

# --- containerd
containerd_binaries() {
  scp "${CONTAINERD_BINARIES[@]/#/$common}" "root@$ip:/opt/k8s/bin"
  ssh "root@$ip" "chmod a+x /opt/k8s/bin/*"
}
containerd_files() { put "${CONTAINERD_FILES[@]}"; }
containerd_start() { start containerd; }
each containerd_binaries
each containerd_files
each containerd_start

# --- the network plugin's files, where the cluster has some
network_binaries() {
  scp "${NETWORK_BINARIES[@]/#/$common}" "root@$ip:/opt/cni/bin"
  ssh "root@$ip" "chmod a+x /opt/cni/bin/*"
}
network_files() { put "${NETWORK_FILES[@]}"; }
network_start() { for unit in "${NETWORK_UNITS[@]}"; do start "$unit"; done; }
[ ${#NETWORK_BINARIES[@]} = 0 ] || each network_binaries
[ ${#NETWORK_FILES[@]} = 0 ] || each network_files
[ ${#NETWORK_UNITS[@]} = 0 ] || each network_start

# --- kubelet
kubelet_binary() { scp "$common/opt/k8s/bin/kubelet" "root@$ip:/opt/k8s/bin/"; }
kubelet_files() { put "${KUBELET_FILES[@]}"; }
kubelet_start() { start kubelet; }
each kubelet_binary
each kubelet_files
each kubelet_start

# --- kube-proxy
proxy_binary() { scp "$common/opt/k8s/bin/kube-proxy" "root@$ip:/opt/k8s/bin/"; }
proxy_files() { put "${PROXY_FILES[@]}"; }
proxy_start() { start kube-proxy; }
each proxy_binary
each proxy_files
each proxy_start

# --- the guide looks at each service's state
status() { ssh "root@$ip" "systemctl is-active ${ALL_UNITS[*]} >/dev/null"; }
each status
