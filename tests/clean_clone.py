"""The files of this checkout that git knows, elsewhere: what somebody has who clones it, the changes of this work tree
included and its leftovers not."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def clean_clone(target: Path) -> Path:
    """Copies them to a new directory, which it returns."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target
