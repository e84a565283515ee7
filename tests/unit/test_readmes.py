"""README.md and README.ko.md: the same commands, the same sample, and links that lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.ko.md")


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def commands(name: str) -> list[str]:
    """Its shell blocks without their comments, which are in its own language."""
    blocks = re.findall(r"```sh\n(.*?)```", text(name), re.DOTALL)
    return [re.sub(r" *#.*", "", block) for block in blocks]


def test_both_readmes_have_the_same_commands() -> None:
    assert commands("README.md") == commands("README.ko.md")
    assert len(commands("README.md")) >= 6


@pytest.mark.parametrize("kind", ["yaml", ""])
def test_both_readmes_have_the_same_files_and_outputs(kind: str) -> None:
    english, korean = (re.findall(rf"```{kind}\n(.*?)```", text(name), re.DOTALL) for name in READMES)
    assert [re.sub(r" *#.*", "", block) for block in english] == [re.sub(r" *#.*", "", block) for block in korean]


def test_both_readmes_cite_the_same_sources() -> None:
    english, korean = (sorted(re.findall(r"\]\((https://[^)]+)\)", text(name))) for name in READMES)
    assert english == korean
    assert english


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md"])
def test_a_link_to_a_file_leads_to_it(name: str) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", text(name))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
