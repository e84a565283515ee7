"""How each of verify's checks is broken on a real machine, and healed: one line of the table for each check id.

Scripts run as root by sh. $NODE and $ADDRESS are the machine's own, $PEER and $PEER_ADDRESS another node's, $APISERVER
is the other node's kube-apiserver (its host). Scripts of `control` breaks run at the control host with kubectl set up
as the administrator, and $TMP a folder of the case's own; they may break a thing of the whole cluster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

POD = ("pod.run", "pod.logs", "pod.exec")

PRELUDE = r"""
set -eu
until_true() { i=0; until "$@"; do i=$((i + 1)); [ $i -lt 300 ] || { echo "never: $*"; exit 1; }; sleep 0.2; done; }
answers() { curl -ks -o /dev/null "$1"; }
ready_since() { # ready_since SECONDS: this kubelet has said so; its first word is often that it is not
  beat=$(curl -ks -E /etc/kubernetes/cert/kubelet-client-current.pem "https://127.0.0.1:8443/api/v1/nodes/$NODE" |
    tr -d ' \n' | sed -n 's/.*"type":"Ready","status":"True","lastHeartbeatTime":"\([^"]*\)".*/\1/p')
  [ -n "$beat" ] && [ "$(date -d "$beat" +%s)" -ge "$1" ]
}
restart_kubelet() {
  began=$(date +%s)
  systemctl restart kubelet
  until_true answers "https://$ADDRESS:10250/healthz"
  until_true ready_since "$began"
}
restart_proxy() { systemctl restart kube-proxy; until_true answers "http://$ADDRESS:10256/healthz"; }
drop_canaries() { # what kube-proxy leaves of its iptables mode
  for tool in iptables ip6tables; do
    for table in mangle filter nat; do "$tool" -w 5 -t "$table" -X KUBE-PROXY-CANARY 2> /dev/null || :; done
  done
}
has_rules() { nft list table ip kube-proxy > /dev/null 2>&1; }
listens() { [ -n "$(ss -Hltn "sport = :$2" | grep -F "$1:$2 ")" ]; }
listen_too() {
  systemd-run --quiet --collect --unit=kw-break socat "TCP-LISTEN:$2,bind=$1,reuseaddr,fork" PIPE
  until_true listens "$1" "$2"
}
refuse() {
  nft -f - <<END
table inet kwbreak { chain out {
  type filter hook output priority -300
  ip daddr $1 tcp dport $2 tcp flags & (syn | ack) == syn reject with tcp reset
}
}
END
}
shim() {
  mv "$1" "$1.kw"
  printf '#!/bin/sh\ncase " $* " in\n%s\nesac\nexec "%s.kw" "$@"\n' "$2" "$1" > "$1"
  chmod 755 "$1"
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """One way to break one thing."""

    id: str
    """The check that must fail; {PEER} and {APISERVER} stand for the machine's own."""
    broken: str
    heal: str
    also: tuple[str, ...] = ()
    """Checks that truly need what is broken, and so fail with it."""
    name: str = ""
    """Tells several breaks of one check apart."""
    control: Literal["", "node", "cluster"] = ""
    """Run at the control host, for one node, or for all nodes at once."""
    slow: bool = False
    """verify waits its longest for it."""

    @property
    def title(self) -> str:
        """The test's id."""
        return f"{self.id} {self.name}".strip()

    def covers(self, check_id: str) -> bool:
        """Whether this is a break of the check with this id."""
        pattern = re.sub(r"\\\{[A-Z]+\\\}", ".+", re.escape(self.id))
        return re.fullmatch(pattern, check_id) is not None


def disabled(check_id: str, unit: str) -> Break:
    return Break(
        id=check_id, name="disabled", broken=f"systemctl -q disable {unit}", heal=f"systemctl -q enable {unit}"
    )


def listens_too(check_id: str, address: str, port: int) -> Break:
    return Break(id=check_id, broken=f"listen_too {address} {port}", heal="systemctl stop kw-break")


def refused(check_id: str, address: str, port: int, *also: str) -> Break:
    return Break(id=check_id, broken=f"refuse {address} {port}", heal="nft delete table inet kwbreak", also=also)


def mode(check_id: str, path: str, wrong: str, right: str) -> Break:
    return Break(id=check_id, broken=f"chmod {wrong} {path}", heal=f"chmod {right} {path}")


def shimmed(check_id: str, binary: str, case: str) -> Break:
    """`case` is a case of a shell's `case " $* "`: what the program's stand-in does itself."""
    return Break(id=check_id, broken=f"shim {binary} '{case}'", heal=f"mv -f {binary}.kw {binary}")


def edited(check_id: str, path: str, edit: str, after: str = "", *also: str) -> Break:
    return Break(
        id=check_id,
        broken=f"cp -p {path} {path}.kw; sed -i '{edit}' {path}; {after}",
        heal=f"mv -f {path}.kw {path}; {after}",
        also=also,
    )


def other_certificate(check_id: str, name: str) -> Break:
    """The CA's own certificate in place of the node's: signed by the CA, but nobody's."""
    return Break(
        id=check_id,
        broken=f"cd /etc/kubernetes/cert; mv {name} kw.pem; cp ca.pem {name}; chmod 600 {name}",
        heal=f"cd /etc/kubernetes/cert; mv -f kw.pem {name}",
    )


def image(reference: str) -> Break:
    images = "/opt/k8s/bin/ctr --namespace k8s.io images"
    return Break(
        id=f"containerd.image.{reference}",
        broken=f"{images} tag {reference} kw.invalid/kept:1; {images} rm --sync {reference}",
        heal=f"{images} tag --force kw.invalid/kept:1 {reference}; {images} rm kw.invalid/kept:1",
        also=POD,
        slow=True,
    )


POLICY = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: kw-break-$NODE}
spec:
  matchConstraints:
    resourceRules:
      - {apiGroups: [""], apiVersions: [v1], operations: [UPDATE], resources: [nodes/status]}
  validations: [{expression: request.userInfo.username != "system:node:$NODE"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: kw-break-$NODE}
spec: {policyName: kw-break-$NODE, validationActions: [Deny]}
"""


def claimed(check_id: str, field: str, value: str, *also: str) -> Break:
    """The API holds something else of the Node than its kubelet says, which may not correct it meanwhile."""
    pointer = field.replace(".", "/")
    change = f"""kubectl patch node $NODE --subresource=status --type=json \
  -p "[{{\\"op\\": \\"replace\\", \\"path\\": \\"{pointer}\\", \\"value\\": $value}}]" """
    return Break(
        id=check_id,
        control="node",
        broken=f"""
cat > $TMP/policy.yaml <<END
{POLICY}
END
kubectl create -f $TMP/policy.yaml
denied() {{ ! kubectl --server="$1" --as=system:node:$NODE --as-group=system:nodes patch node $NODE \
  --subresource=status --dry-run=server -p '{{"status": {{"phase": "kw"}}}}'; }}
for server in $SERVERS; do until_true denied $server; done
kubectl get node $NODE -o 'jsonpath-as-json={{{field}}}' | sed '1d;$d' > $TMP/before
value='{value}'
{change}""",
        heal=f"kubectl delete -f $TMP/policy.yaml; value=$(cat $TMP/before)\n{change}",
        also=also,
    )


KUBELET_CONFIG = "/etc/kubernetes/kubelet-config.yaml"
PROXY_CONFIG = "/etc/kubernetes/kube-proxy-config.yaml"
PROXY_KUBECONFIG = "/etc/kubernetes/kube-proxy.kubeconfig"
RULES = (
    '[{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","watch","proxy"]},'
    '{"apiGroups":[""],"resources":["nodes/proxy","nodes/log","nodes/stats"],"verbs":["*"]}]'
)

REQUEST_SERVING_CERT = (
    "kubectl create -f $TMP/csr.yaml --as=system:node:$NODE --as-group=system:nodes --as-group=system:authenticated"
)

BREAKS = (
    disabled("kube_nginx.unit", "kube-nginx"),
    listens_too("kube_nginx.listen", "$ADDRESS", 8443),
    refused("kube_nginx.apiserver.{APISERVER}", "$APISERVER", 6443),
    refused("kube_nginx.proxy", "127.0.0.1", 8443),
    disabled("kube_nginx.probe", "kube-nginx-probe"),
    Break(
        id="kube_nginx.probe_asks",
        broken="systemctl kill -s STOP kube-nginx-probe; touch -d '1 minute ago' /run/kube-nginx/.answer.*",
        heal="systemctl kill -s CONT kube-nginx-probe",
    ),
    disabled("containerd.unit", "containerd"),
    shimmed("containerd.ctr", "/opt/k8s/bin/ctr", "*\\ version\\ *) echo v0.0.0; exit;;"),
    edited("containerd.cri", "/etc/crictl.yaml", "s/containerd.sock/nothing.sock/"),
    shimmed("containerd.runc", "/opt/k8s/bin/runc", "*\\ --version\\ *) echo runc version 0.0.0; exit;;"),
    Break(
        id="containerd.nerdctl",
        broken="cd /etc/nerdctl; mv nerdctl.toml nerdctl.toml.kw; echo 'address = \"unix:///nothing\"' > nerdctl.toml",
        heal="cd /etc/nerdctl; mv -f nerdctl.toml.kw nerdctl.toml",
    ),
    image("registry.k8s.io/pause:3.10"),
    image("docker.io/library/busybox:lab"),
    disabled("kubelet.unit", "kubelet"),
    listens_too("kubelet.listen", "127.0.0.1", 10250),
    listens_too("kubelet.read_only_port", "127.0.0.1", 10255),
    refused("kubelet.healthz", "127.0.0.1", 10248),
    edited(
        "kubelet.anonymous", KUBELET_CONFIG, "/anonymous:/,/enabled:/s/enabled: false/enabled: true/", "restart_kubelet"
    ),
    # Who shows the administrator's certificate is nobody then: not for metrics, nor for what the API server asks.
    edited(
        "kubelet.client_certificate",
        KUBELET_CONFIG,
        "s,clientCAFile: .*,clientCAFile: /etc/kubernetes/cert/kubelet-server-current.pem,",
        "restart_kubelet",
        "kubelet.cadvisor",
        "pod.logs",
        "pod.exec",
    ),
    edited(
        "kubelet.cadvisor",
        KUBELET_CONFIG,
        "s,clientCAFile: .*,clientCAFile: /etc/kubernetes/cert/kubelet-server-current.pem,",
        "restart_kubelet",
        "kubelet.client_certificate",
        "pod.logs",
        "pod.exec",
    ),
    Break(
        id="kubelet.token",
        control="cluster",
        broken=(
            "kubectl get clusterrole system:kubelet-api-admin -o 'jsonpath={.rules}' > $TMP/rules;"
            "kubectl patch clusterrole system:kubelet-api-admin --type=json "
            f"""-p '[{{"op":"replace","path":"/rules","value":{RULES}}}]'"""
        ),
        heal=(
            "kubectl patch clusterrole system:kubelet-api-admin --type=json "
            """-p "[{\\"op\\":\\"replace\\",\\"path\\":\\"/rules\\",\\"value\\":$(cat $TMP/rules)}]\""""
        ),
    ),
    Break(
        id="kubelet.token_forbidden",
        control="cluster",
        broken="kubectl create clusterrolebinding kw-break --clusterrole=system:kubelet-api-admin "
        "--group=system:serviceaccounts",
        heal="kubectl delete clusterrolebinding kw-break",
    ),
    mode("kubelet.ca_mode", "/etc/kubernetes/cert/ca.pem", "600", "644"),
    mode("kubelet.kubeconfig_mode", "/etc/kubernetes/kubelet.kubeconfig", "644", "600"),
    mode("kubelet.cert_mode", "/etc/kubernetes/cert/kubelet-client-current.pem", "640", "600"),
    mode("kubelet.serving_cert_mode", "/etc/kubernetes/cert/kubelet-server-current.pem", "604", "600"),
    other_certificate("kubelet.client_cert", "kubelet-client-current.pem"),
    other_certificate("kubelet.serving_cert", "kubelet-server-current.pem"),
    Break(
        id="kubelet.serving_cert_in_use",
        control="node",
        broken=f"{REQUEST_SERVING_CERT}; kubectl certificate approve kw-break-$NODE;"
        "kubectl wait --for=jsonpath='{.status.certificate}' csr/kw-break-$NODE --timeout=20s",
        heal="kubectl delete csr kw-break-$NODE",
    ),
    # The API server reaches a kubelet by the address that is registered.
    claimed(
        "node.registered",
        ".status.addresses",
        '[{"type": "InternalIP", "address": "192.0.2.1"}]',
        "pod.logs",
        "pod.exec",
    ),
    claimed("node.version", ".status.nodeInfo.kubeletVersion", '"v1.20.0"'),
    Break(
        id="node.ready",
        control="node",
        broken="on_node 'mv /etc/cni/net.d/10-kubeworker.conflist /etc/cni/net.d/kw';"
        "kubectl wait --for=condition=Ready=False node/$NODE --timeout=30s",
        heal="on_node 'mv /etc/cni/net.d/kw /etc/cni/net.d/10-kubeworker.conflist';"
        "kubectl wait --for=condition=Ready node/$NODE --timeout=30s",
        also=POD,
        slow=True,
    ),
    Break(
        id="node.csr",
        control="node",
        broken=REQUEST_SERVING_CERT,
        heal="kubectl delete csr kw-break-$NODE",
    ),
    Break(
        id="pod.run",
        broken="mv /opt/cni/bin/host-local /opt/cni/bin/kw",
        heal="mv /opt/cni/bin/kw /opt/cni/bin/host-local",
        also=("pod.logs", "pod.exec"),
        slow=True,
    ),
    shimmed("pod.logs", "/opt/k8s/bin/runc", '*\\ create\\ *) exec "$0.kw" "$@" > /dev/null;;'),
    shimmed("pod.exec", "/opt/k8s/bin/runc", "*\\ exec\\ *) echo no exec here >&2; exit 1;;"),
    disabled("bridge_cni.unit", "kubeworker-routes"),
    Break(
        id="bridge_cni.route.{PEER}",
        broken='ip route del $(ip route show | sed -n "s/ via $PEER_ADDRESS .*//p")',
        heal="systemctl restart kubeworker-routes",
    ),
    disabled("kube_proxy.unit", "kube-proxy"),
    listens_too("kube_proxy.healthz_listen", "127.0.0.1", 10256),
    listens_too("kube_proxy.metrics_listen", "$ADDRESS", 10249),
    refused("kube_proxy.healthz", "$ADDRESS", 10256),
    refused("kube_proxy.metrics", "127.0.0.1", 10249, "kube_proxy.mode"),
    Break(
        id="kube_proxy.mode",
        broken=f"cp -p {PROXY_CONFIG} {PROXY_CONFIG}.kw\n"
        f"sed -i 's/^mode: .*/mode: iptables/' {PROXY_CONFIG}; restart_proxy",
        heal=f"mv -f {PROXY_CONFIG}.kw {PROXY_CONFIG}; restart_proxy; until_true has_rules; drop_canaries",
        # The other mode's rules are not left over then, but nobody asked for that mode.
        also=("kube_proxy.rules",),
    ),
    Break(
        id="kube_proxy.rules",
        broken="iptables -w 5 -t nat -N KUBE-SVC-BROKEN",
        heal="iptables -w 5 -t nat -X KUBE-SVC-BROKEN",
    ),
    mode("kube_proxy.kubeconfig_mode", PROXY_KUBECONFIG, "644", "600"),
    edited(
        "kube_proxy.client_cert",
        PROXY_KUBECONFIG,
        "s,client-certificate-data: .*,client-certificate-data: '$(base64 -w0 /etc/kubernetes/cert/ca.pem)',",
    ),
    Break(
        id="service.kubernetes",
        # After a restart healthz answers before the first rules are written.
        broken="until_true has_rules; nft delete table ip kube-proxy",
        heal="restart_proxy",
    ),
    # The same checks once more by what an outage is like: a stopped unit takes what it serves with it, nothing else.
    Break(
        id="kube_proxy.unit",
        name="stopped",
        broken="systemctl stop kube-proxy",
        heal="restart_proxy",
        also=(
            "kube_proxy.healthz_listen",
            "kube_proxy.metrics_listen",
            "kube_proxy.healthz",
            "kube_proxy.metrics",
            "kube_proxy.mode",
        ),
    ),
    Break(
        id="kubelet.unit",
        name="stopped",
        broken="systemctl stop kubelet",
        heal="restart_kubelet",
        also=(
            "kubelet.listen",
            "kubelet.healthz",
            "kubelet.anonymous",
            "kubelet.client_certificate",
            "kubelet.token",
            "kubelet.token_forbidden",
            "kubelet.cadvisor",
            "kubelet.serving_cert_in_use",
            *POD,
        ),
        slow=True,
    ),
)
