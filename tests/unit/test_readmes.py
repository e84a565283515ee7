"""README.md and README.ko.md: the same commands, the same sample, and links that lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

from kubeworker.components import discover
from kubeworker.core import desired
from kubeworker.core.spec import ClusterFile
from kubeworker.flow.init import template

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.ko.md")


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and content of each, without comments, which are in the reader's own language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text(name), re.DOTALL | re.MULTILINE)
    return [(language, re.sub(r" *#.*", "", content)) for language, content in found]


def test_both_readmes_have_the_same_commands_files_and_outputs() -> None:
    assert blocks("README.md") == blocks("README.ko.md")
    assert [language for language, _content in blocks("README.md")].count("sh") >= 6


def test_what_a_reader_is_told_to_write_is_a_cluster_file() -> None:
    (edit,) = (content for language, content in blocks("README.md") if language == "yaml")
    document = yaml.safe_load(template(discover())) | yaml.safe_load(edit)
    desired.validate_components(ClusterFile.model_validate(document), discover())


def test_both_readmes_cite_the_same_sources() -> None:
    english, korean = (sorted(re.findall(r"\]\((https://[^)]+)\)", text(name))) for name in READMES)
    assert english == korean
    assert english


def test_both_readmes_lead_to_the_same_pages() -> None:
    english, korean = (set(re.findall(r"\]\((docs/[^)#]+\.md)", text(name))) for name in READMES)
    assert english == korean


def test_the_sites_navigation_has_every_page_once() -> None:
    named = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", text("mkdocs.yml"), re.MULTILINE)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    decisions = {page for page in pages if page.startswith("adr/0")}  # scripts/docs_hooks.py adds them
    assert sorted(named) == sorted(pages - decisions)


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md"])
def test_a_link_to_a_file_leads_to_it(name: str) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", text(name))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
