"""What `kubeworker explain` knows: reasons and sources, by path, key, unit, check, action. Pure.

The knowledge lies in `kubeworker/explanations/*.yaml`, a file for each component, so that it is edited beside nothing
else. A document has `component` and, under `paths`, `checks`, `preflight` and `actions`, what is explained by name:

    what, why    one line each; a key needs no `what`
    made_by      the function of the component's file that makes it
    option       the field of cluster.yaml that moves it
    guide        what the guide has, where that is no key of one of its files
    source       a manual page, KEP-N, OWNER/REPOSITORY#N or URL that says so; a key has its file's where it has none
    names        other words that it is found by
    keys         of a path: its settings by key (core/settings.py)

In names `*` stands for what varies. `{bin_dir}` and the like are the places of `paths:` in cluster.yaml. `shared` holds
keys that all files with an end of name have in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from kubeworker.core.nearest import nearest
from kubeworker.core.spec import Paths
from kubeworker.errors import KubeworkerError, UsageError, tree

Kind: TypeAlias = Literal["path", "unit", "key", "check", "preflight", "action", "error"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_TEXTS: Mapping[Kind, str] = {
    "path": "files, directories and binaries on nodes",
    "unit": "systemd units",
    "key": "settings in files, by key: as KEY, or FILE:KEY",
    "check": "what `verify` proves",
    "preflight": "what `preflight` looks at",
    "action": "the kinds of action in a plan",
    "error": "the ids in brackets behind error messages",
}

_SYSTEM = "/etc/systemd/system/"
GUIDE_HAS_NONE = "nothing of the kind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that is explained."""

    kind: Kind
    name: str
    """As it is asked for, with `*` for what varies: a path, a key, an id."""
    file: str = ""
    """Of a key: the path that it stands in; of a shared one the end of the file's name."""
    what: str = ""
    why: str = ""
    component: str = ""
    made_by: str = ""
    option: str = ""
    guide: str = ""
    source: str = ""
    way_out: str = ""
    """Of an error: what to do."""
    names: tuple[str, ...] = ()

    @property
    def shared(self) -> bool:
        """It holds for several files."""
        return self.file.startswith(".")

    @property
    def title(self) -> str:
        """How it is asked for without a second meaning."""
        return f"{self.file.removeprefix(_SYSTEM)}:{self.name}" if self.file and not self.shared else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """Everything that can be explained, for the places of one cluster file."""

    entries: tuple[Entry, ...]
    guide: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The guide's files: value by path and key."""

    def of(self, kind: Kind) -> tuple[Entry, ...]:
        """All of one kind."""
        return tuple(entry for entry in self.entries if entry.kind == kind)

    def path(self, path: str) -> Entry | None:
        """What is known of a path or a unit file."""
        return _best(entry for entry in self.entries if entry.kind in {"path", "unit"} and _covers(entry.name, path))

    def key(self, path: str, key: str) -> Entry | None:
        """What is known of a key of this file; a file's own entry comes before a shared one."""
        mine = [entry for entry in self.of("key") if _covers(entry.name, key)]
        own = _best(entry for entry in mine if not entry.shared and _covers(entry.file, path))
        if own is not None:
            return replace(own, file=path, name=key)
        shared = _best(entry for entry in mine if entry.shared and path.endswith(entry.file))
        if shared is None:
            return None
        around = self.path(path)
        return replace(
            shared,
            file=path,
            name=key,
            component=around.component if around else "",
            made_by=around.made_by if around else "",
        )

    def id(self, kind: Kind, name: str) -> Entry | None:
        """What is known of a check, a row of preflight, an action or an error."""
        return _best(entry for entry in self.of(kind) if _covers(entry.name, name))

    def find(self, text: str) -> tuple[Entry, ...]:
        """What is meant by a word: by its full name, FILE:KEY, or the end of either. UsageError: by nothing."""
        for look in (self._exact, self._in_file, self._word, self._loose, self._varying):
            found = look(text)
            if found:
                return found
        close = nearest(text, self.words(), count=4)
        hint = f"did you mean {', '.join(close)}?" if close else "kubeworker explain lists what there is"
        raise UsageError(f"nothing is known of {text!r}", subject="kubeworker explain", hint=hint)

    def words(self) -> tuple[str, ...]:
        """Every word that finds something."""
        return tuple(dict.fromkeys(word for entry in self.entries for word in _words(entry)))

    def guides(self, entry: Entry) -> str:
        """What the guide has for it, in words; empty where that is no question (an error)."""
        if entry.guide:
            return entry.guide
        match entry.kind:
            case "error" | "action":
                return ""
            case "key":
                return self._guides_key(entry)
            case "path" | "unit" if entry.name in self.guide:
                return "has this file"
            case _:
                return GUIDE_HAS_NONE

    def _guides_key(self, entry: Entry) -> str:
        found = {
            path: value
            for path, keys in self.guide.items()
            for key, value in keys.items()
            if _stands_in(entry, path) and _covers(entry.name, key)
        }
        if not found:
            return "no such setting"
        if len(set(found.values())) == 1:
            return next(iter(found.values())) or "there"
        return "; ".join(f"{value} ({path.rpartition('/')[2]})" for path, value in found.items())

    def _exact(self, text: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if text in {entry.name, entry.title})

    def _in_file(self, text: str) -> tuple[Entry, ...]:
        """FILE:KEY, the file by its path or the end of it."""
        for match in re.finditer(":", text):
            file, key = text[: match.start()], text[match.end() :]
            paths = [entry.name for entry in self.entries if entry.kind in {"path", "unit"} and _ends(entry.name, file)]
            if file.startswith("/"):
                paths.append(file)
            found = [self._key_by_end(path, key) for path in dict.fromkeys(paths)]
            if any(found):
                return tuple(dict.fromkeys(entry for each in found for entry in each))
        return ()

    def _key_by_end(self, path: str, key: str) -> tuple[Entry, ...]:
        exact = self.key(path, key)
        if exact is not None:
            return (exact,)
        keys = (entry for entry in self.of("key") if _stands_in(entry, path))
        names = dict.fromkeys(entry.name for entry in keys if key.casefold() in {w.casefold() for w in _words(entry)})
        return tuple(found for name in names if (found := self.key(path, name)) is not None)

    def _word(self, text: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if text in _words(entry))

    def _loose(self, text: str) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if text.casefold() in {word.casefold() for word in _words(entry)})

    def _varying(self, text: str) -> tuple[Entry, ...]:
        found = (
            self.path(text) if text.startswith("/") else None,
            *(self.id(kind, text) for kind in ("check", "preflight", "action")),
        )
        return tuple(replace(entry, name=text) for entry in found if entry is not None)


def knowledge(
    documents: Iterable[Mapping[str, Any]], guide: Mapping[str, Mapping[str, str]], paths: Paths
) -> Knowledge:
    """The documents for a cluster with these places, and the errors as their classes have it."""
    found = (entry for document in documents for entry in _entries(document, places(paths)))
    return Knowledge(entries=(*found, *_errors()), guide=guide)


def places(paths: Paths) -> dict[str, str]:
    """What stands for `{bin_dir}` and the like."""
    nginx_dir = f"{paths.bin_dir.rpartition('/')[0]}/kube-nginx"
    return paths.model_dump() | {"nginx_dir": nginx_dir}


def _entries(document: Mapping[str, Any], where: Mapping[str, str]) -> Iterator[Entry]:
    component = str(document.get("component", ""))
    for pattern, given in document.get("paths", {}).items():
        path = re.sub(r"\{(\w+)\}", lambda found: where[found[1]], pattern)
        keys = given.get("keys", {})
        yield _entry("unit" if path.startswith(_SYSTEM) else "path", path, given, component=component)
        around = {name: given[name] for name in ("made_by", "option", "source") if name in given}
        for key, own in keys.items():
            yield _entry("key", key, _moved(key, around) | own, component=component, file=path)
    for end, given in document.get("shared", {}).items():
        for key, own in given["keys"].items():
            yield _entry("key", key, {"source": given["source"]} | own, file=end)
    sections: tuple[tuple[Kind, str], ...] = (("check", "checks"), ("preflight", "preflight"), ("action", "actions"))
    for kind, section in sections:
        for name, given in document.get(section, {}).items():
            made_by = {"made_by": "_checks"} if kind == "check" else {}
            yield _entry(kind, name, made_by | given, component=component)


def _moved(key: str, around: Mapping[str, Any]) -> dict[str, Any]:
    """What a key takes from its file: of a `config` that is merged over the file, the place in it."""
    option = str(around.get("option", ""))
    if not option.endswith(".config"):
        return dict(around)
    return {**around, "option": f"{option}: {nested(key)}"}


def nested(key: str) -> str:
    """A dotted key as YAML in one line: {a: {b: ...}}"""
    parts = re.findall(r'"[^"]+"|[^.]+', key)
    text = "..."
    for part in reversed(parts):
        text = f"{{{part}: {text}}}"
    return text


def _entry(kind: Kind, name: str, given: Mapping[str, Any], *, component: str = "", file: str = "") -> Entry:
    rest = {each: str(given[each]) for each in ("what", "why", "made_by", "option", "guide", "source") if each in given}
    return Entry(kind=kind, name=name, component=component, file=file, names=tuple(given.get("names", ())), **rest)


def _errors() -> Iterator[Entry]:
    for error in tree(KubeworkerError):
        yield Entry(
            kind="error",
            name=error.id,
            what=error.what(),
            why=error.why,
            way_out=error.way_out,
            source="docs/errors.md",
            names=(error.__name__,),
        )


# ---------------------------------------------------------------------------------------------------------------
# Names


def _covers(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def _best(entries: Iterable[Entry]) -> Entry | None:
    """The one that says most: without anything that varies, else with the most that does not."""
    found: Sequence[Entry] = sorted(entries, key=lambda entry: ("*" in entry.name, -len(entry.name)))
    return found[0] if found else None


def _stands_in(key: Entry, path: str) -> bool:
    return path.endswith(key.file) if key.shared else _covers(key.file, path)


def _ends(path: str, end: str) -> bool:
    """`kubelet.service`, `conf/kube-nginx.conf`; a unit also without its .service."""
    folded, end = path.casefold(), end.casefold()
    return folded == end or folded.endswith((f"/{end}", f"/{end}.service"))


def _words(entry: Entry) -> tuple[str, ...]:
    if entry.kind in {"path", "unit"}:
        last = entry.name.rpartition("/")[2]
        stem = (last.removesuffix(".service"),) if last.endswith(".service") else ()
        return (entry.name, last, *stem, *entry.names)
    if entry.kind == "key":
        return (entry.name, *(_last(entry.name),), *entry.names)
    return (entry.name, *entry.names)


def _last(key: str) -> str:
    """The last part of a dotted key, or the option of a command line."""
    if " --" in key:
        return key.rpartition(" ")[2]
    parts = re.findall(r'"[^"]+"|[^."]+', key)
    return str(parts[-1]).strip('"') if parts else key
