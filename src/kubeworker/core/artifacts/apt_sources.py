"""Where a Debian or Ubuntu host gets its packages from, turned into where their sources lie (sources.list(5))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_ONE_LINE = re.compile(r"^\s*deb(?:-src)?\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+?)\s*(?:#.*)?$")


def source_lines(files: Iterable[str], codename: str) -> tuple[str, ...]:
    """`deb-src` lines for the distribution's own suites (bookworm, bookworm-security, ...) in the host's files.

    Other vendors' repositories are left out: nothing is wanted from them, and many have no sources. Both forms are
    read: one-line entries and deb822 stanzas. Options but Signed-By and Trusted are dropped.
    """
    found: dict[str, None] = {}
    for text in files:
        reader = _stanzas if re.search(r"(?mi)^types:", text) else _one_lines
        for options, uri, suite, components in reader(text):
            if suite == codename or suite.startswith(f"{codename}-"):
                kept = " ".join(option for option in options if re.match(r"(?i)(signed-by|trusted)=", option))
                found[f"deb-src {f'[{kept}] ' if kept else ''}{uri} {suite} {components}"] = None
    return tuple(found)


def _one_lines(text: str) -> Iterator[tuple[tuple[str, ...], str, str, str]]:
    for line in text.splitlines():
        if match := _ONE_LINE.match(line):
            options, uri, suite, components = match.groups()
            yield tuple((options or "").strip(" []\t").split()), uri, suite, " ".join(components.split())


def _stanzas(text: str) -> Iterator[tuple[tuple[str, ...], str, str, str]]:
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields = {
            name.lower(): " ".join(value.split())
            for name, value in re.findall(r"(?m)^([A-Za-z-]+):((?:.*(?:\n[ \t].*)*))", stanza)
        }
        if "uris" not in fields or fields.get("enabled", "yes").lower() == "no":
            continue
        # An inline key (a Signed-By that is no path) can't stand in a one-line entry.
        key = fields.get("signed-by", "")
        options = (f"signed-by={key}",) if key.startswith("/") else ()
        for uri in fields["uris"].split():
            for suite in fields.get("suites", "").split():
                yield options, uri, suite, fields.get("components", "")
