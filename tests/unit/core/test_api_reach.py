"""What a node is told to ask the API servers, and what it may not say."""

from __future__ import annotations

import base64
import shutil
import subprocess

import pytest
from tests.unit.shells import SHELLS

from kubeworker.core.preflight.row import Row
from kubeworker.core.reachability import api_reach
from kubeworker.core.reachability.api_reach import Answer, Caller

CALLERS: tuple[Caller, ...] = ("token", "certificate", "nobody")


def script(caller: Caller) -> str:
    servers = ("192.0.2.1:6443", "[2001:db8::1]:6443")
    return api_reach.script(servers, ca=b"-----CERTIFICATE-----\n", caller=caller, certificate="/etc/k/c.pem")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("caller", CALLERS)
def test_the_script_is_sound(shell: str, caller: Caller) -> None:
    done = subprocess.run([shell, "-n"], input=script(caller), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("caller", CALLERS)
def test_shellcheck_finds_nothing(caller: Caller) -> None:
    assert shutil.which("shellcheck"), "scripts/setup installs it"
    done = subprocess.run(
        ["shellcheck", "--shell=sh", "--severity=style", "-"],
        input=script(caller),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_only_a_joined_node_shows_its_certificate_and_only_a_joining_one_reads_a_token() -> None:
    assert ["--cert /etc/k/c.pem" in script(caller) for caller in CALLERS] == [False, True, False]
    assert ["read -r token" in script(caller) for caller in CALLERS] == [True, False, False]


def line(apiserver: str, status: int, said: str, why: str = "") -> str:
    encoded = (base64.b64encode(text.encode()).decode() for text in (said, why))
    return "\t".join(("api", apiserver, str(status), *encoded))


def judged(*answers: Answer, caller: Caller = "token") -> list[tuple[str, str, str]]:
    found: list[Row] = list(
        api_reach.rows("w", answers, caller, asked=[each.apiserver for each in answers], no_token="")
    )
    return [(row.id, row.status, row.message) for row in found]


def test_no_route() -> None:
    said = "curl: (7) Failed to connect to 192.0.2.1 port 6443 after 3066 ms: Couldn't connect to server\n000 0"
    (answer,) = api_reach.parse(line("192.0.2.1:6443", 7, said, "No route to host\n"))
    assert judged(answer) == [("api", "failed", "w -> 192.0.2.1:6443: no way there: No route to host")]


@pytest.mark.parametrize(
    "text",
    [
        "curl: (28) Connection timeout after 4001 ms",
        "curl: (28) Failed to connect to 192.0.2.1 port 6443 after 4001 ms: Timeout was reached",
        "curl: (28) Connection timed out after 4001 milliseconds",
    ],
)
def test_a_connection_that_is_not_made_in_time_in_the_words_of_each_curl(text: str) -> None:
    (answer,) = api_reach.parse(line("192.0.2.1:6443", 28, f"{text}\n000 0"))
    assert judged(answer)[0][2] == "w -> 192.0.2.1:6443: no answer within 4 s (dropped by a firewall?)"


def test_api_servers_with_the_same_trouble_share_a_row_and_stand_in_the_files_order() -> None:
    late = [Answer(apiserver=f"192.0.2.{n}:6443", status=28, http=0, verify=0, text="", why="") for n in (2, 3)]
    good = Answer(apiserver="192.0.2.1:6443", status=0, http=200, verify=0, text="", why="")
    found = list(
        api_reach.rows(
            "w",
            (late[1], good, late[0]),
            "certificate",
            asked=["192.0.2.1:6443", "192.0.2.2:6443", "192.0.2.3:6443"],
            no_token="",
        )
    )
    assert [(row.id, row.status) for row in found] == [("api", "failed"), ("api-token", "ok")]
    assert found[0].message.startswith("w -> 192.0.2.2:6443, 192.0.2.3:6443: no answer")
    assert found[0].fix == "let w connect to 192.0.2.2:6443, 192.0.2.3:6443"


def test_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match="the node answered"):
        api_reach.parse("bash: fork: no memory")
