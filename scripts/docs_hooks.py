"""What `make docs` does beyond mkdocs.yml: a page that the navigation does not name gets a place in it."""

from pathlib import Path

ASIDE = "More"
"""Pages that nobody has put anywhere."""


def on_config(config):
    """Drop pages that are not there (yet), and add those that are there and not named."""
    docs = Path(config["docs_dir"])
    there = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    named = set()
    nav = _existing(config["nav"], there, named)
    decisions = sorted(page for page in there - named if page.startswith("adr/"))
    _group(_group(nav, "Working on it"), "Decisions").extend(decisions)
    rest = sorted(there - named - set(decisions))
    config["nav"] = [*nav, {ASIDE: rest}] if rest else nav
    return config


def _group(entries, title):
    return next(entry[title] for entry in entries if isinstance(entry, dict) and title in entry)


def _existing(entries, there, named):
    kept = []
    for entry in entries:
        title, target = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        if isinstance(target, list):
            kept.append({title: _existing(target, there, named)})
        elif target in there:
            named.add(target)
            kept.append(entry)
    return kept
