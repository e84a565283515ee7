from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
CODE = ("preflight", "preflight_fleet", "preflight_survey")


def shape(key: str) -> str:
    """An id with what varies left out."""
    return re.sub(r"\{[^}]*\}|[A-Z]{2,}", "*", key)


def test_the_page_names_the_checks_of_the_code() -> None:
    page = (ROOT / "docs/preflight.md").read_text("utf-8")
    told = {
        shape(key)
        for row in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
        for key in re.findall(r"`([^`]+)`", row)
    }
    source = "".join((ROOT / f"src/kubeworker/core/{name}.py").read_text("utf-8") for name in CODE)
    made = {shape(key) for key in re.findall(r'\.(?:judge|judge_host|row)\(\s*f?"([^"]+)"', source)}
    assert made <= told
    assert len(told) > 25
