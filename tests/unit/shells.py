"""The shells that scripts for nodes must run under: `sh`, whatever it is here, and what it is on Debian and on RHEL."""

from __future__ import annotations

import shutil
from pathlib import Path

SHELLS = tuple({Path(shutil.which(name) or name).resolve(): name for name in ("sh", "dash", "bash")}.values())
"""Each program once: where sh is dash it is not tried again as sh."""
