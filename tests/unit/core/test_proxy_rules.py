"""Rules of kube-proxy's modes: clean shell, and what it makes of tables as iptables-save prints them (kernels: lab)."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.unit.core.engine_states import state
from tests.unit.shells import SHELLS

from kubeworker.core.model import Leftover, Stage
from kubeworker.core.node import probe, proxy_rules
from kubeworker.core.node.observed import parse
from kubeworker.core.node.proxy_rules import Mode

MODES: tuple[Mode | None, ...] = ("ipvs", "iptables", "nftables", None)

SAVED = {
    "nat": """\
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A CNI-HOSTPORT-SETMARK -m comment --comment "hostport mark" -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.254.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y -j KUBE-SEP-AAAAAAAAAAAAAAAA
COMMIT
""",
    "filter": """\
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-FIREWALL
COMMIT
""",
    "mangle": "*mangle\n:KUBE-PROXY-CANARY - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n",
}


def leftovers(mode: Mode | None) -> dict[str, Leftover]:
    several = proxy_rules.leftovers(mode, kube_proxy="/opt/k8s/bin/kube-proxy", service_cidr="10.254.0.0/16", reason="")
    return {each.name: each for each in several}


@pytest.mark.parametrize("mode", MODES)
def test_the_text_is_clean_shell(mode: Mode | None) -> None:
    for each in leftovers(mode).values():
        for text in filter(None, (each.present, each.remove, each.keep, each.unkeep)):
            done = subprocess.run(
                ["shellcheck", "--shell=sh", "--severity=warning", "-"],
                input=text,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Commands in the place of iptables' own: one family, whose save prints SAVED and whose restore notes its input."""
    for table, text in SAVED.items():
        (tmp_path / table).write_text(text)
    commands = {
        "iptables-save": f'cat "{tmp_path}/$2"',
        "iptables-restore": f'cat >> "{tmp_path}/restored"',
        "nft": "exit 1",
    }
    for name, text in commands.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(0o755)
    return tmp_path


def restored(tools: Path, text: str) -> list[str]:
    path = f"{tools}:/usr/bin:/bin"
    done = subprocess.run(["sh", "-c", text], env={"PATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    found = tools / "restored"
    return found.read_text().splitlines() if found.exists() else []


def test_every_chain_goes_in_one_go_but_kubelets_and_one_that_others_use(tools: Path) -> None:
    lines = restored(tools, leftovers(None)["kube-proxy's iptables rules"].remove)
    nat = lines[: lines.index("COMMIT")]
    assert nat[0] == "*nat"
    gone = {"KUBE-POSTROUTING", "KUBE-SEP-AAAAAAAAAAAAAAAA", "KUBE-SERVICES", "KUBE-SVC-NPX46M4PTMTKRN6Y"}
    assert {line.split()[0][1:] for line in nat if line.startswith(":")} == gone
    assert {line.split()[1] for line in nat if line.startswith("-X")} == gone
    assert [line for line in nat if line.startswith("-D")] == [
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-D OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-D POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    ]
    # The whole of it is undone by deletions in the order flush, jumps, chains.
    assert [line[0:2] for line in nat[1:]] == [":K"] * 4 + ["-D"] * 3 + ["-X"] * 4
    assert ":KUBE-PROXY-FIREWALL - [0:0]" in lines
    assert "-X KUBE-PROXY-CANARY" in lines
    assert not [line for line in lines if "KUBELET" in line or "KUBE-FIREWALL" in line or "MARK-MASQ" in line]


def test_ipvs_mode_keeps_the_chains_that_both_have(tools: Path) -> None:
    text = leftovers("ipvs")["kube-proxy's iptables rules"].remove
    waiting, _, removing = text.partition("chains() {")
    assert "--match-set KUBE-CLUSTER-IP dst,dst" in waiting
    lines = restored(tools, f"chains() {{{removing}")
    assert {line.split()[0][1:] for line in lines if line.startswith(":")} == {
        "KUBE-SEP-AAAAAAAAAAAAAAAA",
        "KUBE-SVC-NPX46M4PTMTKRN6Y",
        "KUBE-PROXY-CANARY",
    }
    # Of a chain that both modes have, the jump in the other mode's form goes.
    (jump,) = (line for line in lines if "FIREWALL" in line)
    assert jump.startswith(
        '-D INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall"'
    )


def test_a_copy_of_the_chains_goes_by_other_names_with_jumps_of_its_own(tools: Path) -> None:
    lines = restored(tools, leftovers("nftables")["kube-proxy's iptables rules"].keep)
    assert lines[0] == "*nat"
    assert '-A OUTPUT -m comment --comment "kubernetes service portals" -j KW-SERVICES' in lines
    assert "-A KW-SVC-NPX46M4PTMTKRN6Y -j KW-SEP-AAAAAAAAAAAAAAAA" in lines
    assert not [line for line in lines if "KUBE-" in line]
    assert not [line for line in lines if line.startswith("-A INPUT -j")]


@pytest.mark.parametrize("mode", MODES)
def test_only_what_kube_proxy_itself_would_remove_too_early_is_copied(mode: Mode | None) -> None:
    copied = {name for name, each in leftovers(mode).items() if each.keep}
    assert (
        copied
        == {
            "nftables": {"kube-proxy's iptables rules"},
            "iptables": {"kube-proxy's nftables rules"},
            "ipvs": {"kube-proxy's nftables rules"},
            None: set(),
        }[mode]
    )
    assert "copies of kube-proxy's former rules" in leftovers(mode)


@pytest.mark.parametrize(
    ("mode", "sign"),
    [
        ("ipvs", "--match-set KUBE-6-CLUSTER-IP dst,dst"),
        ("nftables", "'fd00::1 '"),
        ("iptables", "ip6tables-save"),
    ],
)
def test_the_new_rules_are_awaited_in_the_services_own_family(mode: Mode, sign: str) -> None:
    several = proxy_rules.leftovers(mode, kube_proxy="/k", service_cidr="fd00::/112", reason="")
    assert all(sign in each.remove for each in several)


CHAINS = """table ip nat {
	chain KUBE-KUBELET-CANARY {
	}
}
table ip6 filter {
	chain KUBE-FIREWALL {
	}
}
"""
"""As `nft list chains` prints kubelet's own: kube-proxy has left nothing."""

LEGACY_IN_USE = any(
    path.exists() and path.read_text()
    for path in map(Path, ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"))
)


@dataclass(frozen=True)
class Kernel:
    """Commands in the place of nft's and iptables' own, in a folder that also notes how often each was asked."""

    tools: Path

    def seen(self, mode: Mode | None, *, nft: str | None, saved: str = "", shell: str = "sh") -> frozenset[str]:
        """What a probe finds left where nft lists these chains (None: it fails) and iptables-save prints this."""
        (self.tools / "chains").write_text(nft or "")
        (self.tools / "saved").write_text(saved)
        self._command("nft", "exit 1" if nft is None else self._nft())
        self._command("iptables-save", 'cat "$here/saved"')
        for name in ("ip6tables-save", "iptables", "ip6tables", "ipset"):
            self._command(name, "exit 1" if "save" not in name else "")
        wanted = state(Stage(component="kube_proxy", leftovers=tuple(leftovers(mode).values())))
        text = probe.script(wanted, home=str(self.tools)).replace(" PATH=", f" PATH={self.tools}:", 1)
        done = subprocess.run([shell, "-c", text], capture_output=True, text=True, check=True)
        return parse("n1", done.stdout).leftovers

    def asked(self, name: str) -> int:
        """How often the command was run by now."""
        notes = self.tools / f"{name}.asked"
        return len(notes.read_text().splitlines()) if notes.exists() else 0

    def _nft(self) -> str:
        table = 'list\\ table*) grep -q "^table $3 $4 {" "$here/chains" ;;'
        return f'case $* in {table} list\\ chains) cat "$here/chains" ;; *) cat "$here/chains"; cat > /dev/null ;; esac'

    def _command(self, name: str, text: str) -> None:
        command = self.tools / name
        command.write_text(f"#!/bin/sh\nhere={self.tools}\necho >> $here/{name}.asked\n{text}\n")
        command.chmod(0o755)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_node_without_anything_left_is_asked_for_its_chains_once(shell: str, kernel: Kernel) -> None:
    assert kernel.seen("nftables", nft=CHAINS, shell=shell) == frozenset()
    assert kernel.asked("nft") == 1
    assert LEGACY_IN_USE or kernel.asked("iptables-save") + kernel.asked("iptables") == 0


@pytest.mark.parametrize("shell", SHELLS)
def test_what_the_list_of_chains_hints_at_is_looked_at_by_the_tool_that_would_remove_it(
    shell: str, kernel: Kernel
) -> None:
    listed = CHAINS + "table ip mangle {\n\tchain KUBE-PROXY-CANARY {\n\t}\n\tchain KW-SERVICES {\n\t}\n}\n"
    saved = SAVED["mangle"] + ":KW-SERVICES - [0:0]\n"
    rules = {"kube-proxy's iptables rules", "copies of kube-proxy's former rules"}
    assert kernel.seen("nftables", nft=listed, saved=saved, shell=shell) == rules
    assert kernel.asked("iptables-save") == kernel.asked("ip6tables-save") == 1
    # Another iptables than the one that made them (update-alternatives) would not find them to remove.
    assert kernel.seen("nftables", nft=listed, saved="", shell=shell) == frozenset()


@pytest.mark.parametrize("shell", SHELLS)
def test_without_an_answer_of_nft_iptables_is_asked(shell: str, kernel: Kernel) -> None:
    assert kernel.seen("ipvs", nft=None, saved=SAVED["nat"], shell=shell) == {"kube-proxy's iptables rules"}
    assert kernel.seen("ipvs", nft=None, saved=SAVED["filter"], shell=shell) == frozenset(), "ipvs has these too"
    assert kernel.seen("nftables", nft=None, saved=SAVED["filter"], shell=shell) == {"kube-proxy's iptables rules"}


@pytest.mark.parametrize("shell", SHELLS)
def test_tables_of_nft_are_found_by_their_names(shell: str, kernel: Kernel) -> None:
    listed = CHAINS + "table ip6 kube-proxy {\n}\n"
    assert kernel.seen("iptables", nft=listed, shell=shell) == {"kube-proxy's nftables rules"}
    listed = CHAINS + "table ip kubeworker-former {\n}\ntable ip kube-proxy-of-another {\n}\n"
    assert kernel.seen("iptables", nft=listed, shell=shell) == {"copies of kube-proxy's former rules"}
