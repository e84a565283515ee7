"""A gate on a machine: the tool's own scripts stop there before a chosen action, exactly, and know nothing of it.

sshd runs the gate in place of every command (ForceCommand, sshd_config(5)). It takes the script that comes on standard
input, puts a call before each of its actions, and runs it as the tool's own shell would have.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.operate import sh

from kubeworker.lab import LabState, kinds

End = Literal["tool", "node"]
"""Who is killed at the boundary: the command on the control host, or its script on the node."""

_GATE = r"""#!/bin/sh
case ${SSH_ORIGINAL_COMMAND-} in
"sh -c 'eval \"\$(head -c "*) ;;
*) exec /bin/sh -c "${SSH_ORIGINAL_COMMAND-}" ;;
esac
[ -e /run/lab-gate/armed ] || exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
gate_length=${SSH_ORIGINAL_COMMAND#*head -c }
gate_text=$(head -c "${gate_length%%)*}"; echo .)
gate_text=$(printf '%s' "${gate_text%.}" | sed -e 's/^begin [0-9]*$/gate; &/' -e 's/^commit$/gate; commit/')
gate() {
  read -r gate_passed < /run/lab-gate/passed
  gate_passed=$((gate_passed + 1))
  echo "$gate_passed" > /run/lab-gate/passed
  read -r gate_number gate_end < /run/lab-gate/armed
  [ "$gate_passed" = "$gate_number" ] || return 0
  : > /run/lab-gate/reached
  case $gate_end in
  node) kill -9 $$ ;;
  tool) read -r gate_word < /run/lab-gate/go || : ;;
  esac
}
eval "$gate_text"
"""

_INSTALL = f"""set -e
mkdir -p /run/lab-gate
cat > /run/lab-gate/gate <<'GATE'
{_GATE}GATE
chmod 755 /run/lab-gate/gate
mkfifo /run/lab-gate/go
echo 'ForceCommand /run/lab-gate/gate' > /etc/ssh/sshd_config.d/lab-gate.conf
systemctl reload ssh
"""

REMOVE = """rm -f /etc/ssh/sshd_config.d/lab-gate.conf
systemctl reload ssh
rm -rf /run/lab-gate
"""


def root(lab: LabState, name: str) -> Path:
    """The machine's root folder, as this host sees it."""
    machine = lab.machine(name)
    pid = kinds.driver(machine).pid(lab, machine)
    assert pid is not None, f"{name} is off"
    return Path(f"/proc/{pid}/root")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The gate of one machine."""

    lab: LabState
    machine: str
    folder: Path

    def arm(self, number: int, end: End) -> None:
        """Stop before boundary `number`, counted from 1 over the whole run; 0 stops nowhere and only counts."""
        (self.folder / "passed").write_text("0\n")
        (self.folder / "reached").unlink(missing_ok=True)
        (self.folder / "armed").write_text(f"{number} {end}\n")

    @property
    def passed(self) -> int:
        """Boundaries since it was armed."""
        return int((self.folder / "passed").read_text())

    @property
    def reached(self) -> bool:
        """Whether the boundary is reached."""
        return (self.folder / "reached").exists()

    def disarm(self) -> None:
        """From the next script on, nothing is stopped or counted."""
        (self.folder / "armed").unlink(missing_ok=True)

    def release(self, *, seconds: float = 10) -> None:
        """Let the script that waits go on."""
        self.disarm()
        end = time.monotonic() + seconds
        while True:
            try:
                writer = os.open(self.folder / "go", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # ENXIO: it has not got as far as to read
                assert time.monotonic() < end, f"nothing waits at the gate of {self.machine}"
                time.sleep(0.01)
                continue
            os.write(writer, b"on\n")
            os.close(writer)
            return


def install(lab: LabState, name: str) -> Gate:
    """Put a gate up; `REMOVE` takes it down."""
    sh(lab, name, _INSTALL)
    return Gate(lab=lab, machine=name, folder=root(lab, name) / "run/lab-gate")
