"""cluster.yaml from disk: YAML with positions, so that each error names file, line and field, all of them at once.

The models in `core/spec.py` and the components' own `Config` decide what is right; this file finds the line that is
wrong, says what was meant, and turns paths of the control host into absolute ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kubeworker.core.desired import Registry, validate_components
from kubeworker.core.merge import stacked
from kubeworker.core.nearest import meant
from kubeworker.core.spec import ClusterFile, ControlHostPath
from kubeworker.errors import SpecError, reason
from kubeworker.io.field_texts import field_texts

FieldPath: TypeAlias = tuple[int | str, ...]

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in the file."""

    line: int
    """Counted from 1."""
    path: FieldPath
    message: str
    hint: str = ""


def load(path: Path, registry: Registry = ()) -> ClusterFile:
    """Read cluster.yaml. With a registry, the configs under `components:` are checked too.

    SpecError: the file can't be read, is not YAML, or holds wrong values; its subject is `FILE:LINE: FIELD`.
    """
    root, data = _parse(path, _read(path))
    try:
        cluster = ClusterFile.model_validate(data)
    except ValidationError as error:
        found = tuple(_problems(root, error, ClusterFile, ()))
        raise _error(path, (*found, *_component_problems(root, data, registry))) from error
    found = tuple(_component_problems(root, data, registry))
    if found:
        raise _error(path, found)
    if registry:
        try:
            validate_components(cluster, registry)
        except SpecError as error:
            raise _error(path, (_from_component(root, error),)) from error
    return _with_absolute_paths(cluster, registry, path.absolute().parent)


def document(path: Path) -> dict[str, Any]:
    """The file's own content, paths as they stand there; SpecError as by `load`."""
    return _parse(path, _read(path))[1]


# ---------------------------------------------------------------------------------------------------------------
# YAML


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        hint = "write one with `kubeworker init`, or name it: kubeworker COMMAND -f FILE"
        raise SpecError("no such file", subject=str(path), hint=hint) from error
    except UnicodeDecodeError as error:
        raise SpecError("not a UTF-8 text file", subject=str(path), hint="save it as UTF-8") from error
    except OSError as error:
        hint = "check the path and its mode"
        raise SpecError(f"can't be read: {reason(error)}", subject=str(path), hint=hint) from error


def _parse(path: Path, text: str) -> tuple[yaml.Node, dict[str, Any]]:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None or not isinstance(root, yaml.MappingNode):
            message = "is empty" if root is None else "must be a map of fields at the top level"
            hint = "`kubeworker init` writes a commented example"
            raise SpecError(message, subject=f"{path}:1" if root is not None else str(path), hint=hint)
        _refuse_loops(path, root, ())
        duplicates = tuple(_duplicates(root))
        if duplicates:
            raise _error(path, duplicates)
        # construct_document also puts `<<: *merge` keys in place, after which the tree and the data agree.
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        # What the parser was about ("while parsing a flow node") is no help.
        context = "" if (error.context or "").startswith("while ") else error.context
        message = " ".join(part for part in (context, error.problem) if part)
        raise SpecError(f"not valid YAML: {message}", subject=where, hint=_yaml_hint(message)) from error
    except yaml.YAMLError as error:
        raise SpecError(f"not valid YAML: {error}", subject=str(path), hint="save it as plain UTF-8 text") from error
    finally:
        loader.dispose()


def _yaml_hint(message: str) -> str:
    if "\\t" in message or "tab character" in message or "cannot start any token" in message:
        return "indent with spaces, and quote values that begin with @, ` or a tab"
    if "mapping values are not allowed" in message:
        return "quote a value that holds `: `, and check the indentation of this line"
    return "check indentation, quotes and brackets on this line and the one before"


def _refuse_loops(path: Path, node: yaml.Node, above: tuple[int, ...]) -> None:
    if id(node) in above:
        where = f"{path}:{node.start_mark.line + 1}"
        raise SpecError("not valid YAML here: an alias inside its own anchor", subject=where, hint="write it out")
    if isinstance(node, yaml.CollectionNode):
        for child in _children(node):
            _refuse_loops(path, child, (*above, id(node)))


def _children(node: yaml.CollectionNode) -> Iterator[yaml.Node]:
    for item in node.value:
        if isinstance(item, tuple):
            yield item[1]
        else:
            yield item


def _duplicates(node: yaml.Node, path: FieldPath = ()) -> Iterator[Problem]:
    """Keys that stand twice in one map: YAML forbids them, and PyYAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in seen:
                message = f"is already set on line {seen[name]}"
                yield Problem(line=line, path=(*path, name), message=message, hint="keep one of the two")
            seen.setdefault(name, line)
            yield from _duplicates(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicates(value, (*path, index))


def _line(root: yaml.Node, path: FieldPath) -> int:
    """The line of the field, or of the nearest thing around it that is in the file."""
    node, line = root, root.start_mark.line
    for part in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            # Merged-in keys come first and the map's own ones win: look from the end.
            pairs = [(key, value) for key, value in reversed(node.value) if str(key.value) == str(part)]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line, pairs[0][1]
        else:
            break
    return line + 1


# ---------------------------------------------------------------------------------------------------------------
# From pydantic's errors to ours


def _component_problems(root: yaml.Node, data: Mapping[str, Any], registry: Registry) -> Iterator[Problem]:
    """What the components' own models say of `components`, and of each node's own, taken over these."""
    common = data.get("components", {})
    if not registry or not isinstance(common, dict):
        return
    yield from _config_problems(root, common, {}, registry, ("components",))
    nodes = data.get("nodes", ())
    for index, node in enumerate(nodes if isinstance(nodes, list) else ()):
        own = node.get("components", {}) if isinstance(node, dict) else {}
        if isinstance(own, dict):
            yield from _config_problems(root, own, common, registry, ("nodes", index, "components"))


def _config_problems(
    root: yaml.Node, configs: Mapping[str, Any], common: Mapping[str, Any], registry: Registry, prefix: FieldPath
) -> Iterator[Problem]:
    known = {component.name: component for component in registry}
    for name, config in configs.items():
        path: FieldPath = (*prefix, name)
        if name not in known:
            hint = meant(str(name), known)
            yield Problem(line=_line(root, path), path=path, message="there is no such component", hint=hint)
        elif isinstance(config, dict):
            base = common.get(name, {})
            try:
                known[name].config.model_validate(stacked(base, config) if isinstance(base, dict) else config)
            except ValidationError as error:
                for problem in _problems(root, error, known[name].config, path):
                    # What is wrong for everybody is said where it stands.
                    if not common or _stands(config, problem.path[len(path) :]):
                        yield problem


def _stands(config: Any, path: FieldPath) -> bool:
    """Whether the field, or a value that should have been a map with it, is in these settings."""
    for part in path:
        if not isinstance(config, dict):
            return True
        if part not in config:
            return False
        config = config[part]
    return True


def _from_component(root: yaml.Node, error: SpecError) -> Problem:
    """What a component says of its own settings: the subject is the field, `components.kubelet.max_pods`."""
    field: FieldPath = tuple(int(part) if part.isdigit() else part for part in error.subject.split("."))
    return Problem(line=_line(root, field), path=field, message=error.message, hint=error.hint)


def _problems(root: yaml.Node, error: ValidationError, model: type[BaseModel], prefix: FieldPath) -> Iterator[Problem]:
    errors = error.errors()
    for details in errors:
        path = details["loc"]
        # A list whose items are all wrong counts as too short as well: the items' own errors say it better.
        inside = any(len(each["loc"]) > len(path) and each["loc"][: len(path)] == path for each in errors)
        if not (details["type"] == "too_short" and inside):
            yield from _problem(root, details, model, prefix)


def _problem(root: yaml.Node, details: ErrorDetails, model: type[BaseModel], prefix: FieldPath) -> Iterator[Problem]:
    path: FieldPath = (*prefix, *details["loc"])
    match details["type"]:
        case "extra_forbidden":
            fields = _fields_at(model, details["loc"][:-1])
            hint = meant(str(path[-1]), fields)
            yield Problem(line=_line(root, path), path=path, message=_UNKNOWN, hint=hint)
        case "missing":
            text = _text_at(model, details["loc"][:-1], str(path[-1]))
            hint = f"add `{path[-1]}`: {text}" if text else ""
            yield Problem(line=_line(root, path), path=path, message=_MISSING, hint=hint)
        case "value_error":
            for line in str(details["ctx"]["error"]).splitlines():
                yield _from_validator(root, path, line, _about(model, details["loc"]))
        case _:
            message, hint = _explained(path, details)
            hint = hint or _about(model, details["loc"])
            yield Problem(line=_line(root, path), path=path, message=message, hint=hint)


_NAMED = re.compile(r"(?P<field>[a-z][\w-]*(\.[\w-]+)*): (?P<message>.+)")


def _from_validator(root: yaml.Node, path: FieldPath, line: str, about: str = "") -> Problem:
    """A model's own message; a whole-file validator begins it with the field that is wrong."""
    named = _NAMED.fullmatch(line)
    if named:
        path = (*path, *(int(part) if part.isdigit() else part for part in named["field"].split(".")))
        line = named["message"]
    return Problem(line=_line(root, path), path=path, message=line, hint=_way_out(path, line) or about)


_WAYS_OUT = {
    "overlaps": "choose two networks that share no address",
    "is not inside": "take an address of the service network; the guide uses the second one (10.254.0.2)",
    "lies inside": "node addresses belong to the machines' own network: change the address or the network",
    "has host bits set": "write the network's first address",
    "is not a CIDR block": "write ADDRESS/BITS, such as 172.30.0.0/16",
    "is not HOST:PORT": "write both, such as 10.0.0.1:6443 or [fd00::1]:6443",
    "is not a node name": "use lower-case letters, digits, hyphens and dots",
    "is not key=value:Effect": "write it like dedicated=gpu:NoSchedule",
    "is not an absolute path": "begin it with /, and without .. in it",
    "is not a loopback address": "give a loopback address such as 127.0.0.1:8443, the default",
    "listens on an IP address": "give a loopback address such as 127.0.0.1:8443, the default",
    "must be a URL": "write it like https://mirror.example or http://10.0.0.5:5000/path",
    "must not hold a user": "take it out, and give header_files: {Authorization: FILE}",
}
"""By words of the message."""


def _way_out(path: FieldPath, message: str) -> str:
    if "is also the" in message:
        return f"each node needs its own {path[-1]}"
    if "is not an IP address" in message:
        named = "; a name to connect to goes into `ssh: {host: NAME}`" if path[-1] == "address" else ""
        return f"write the address itself, such as 10.0.0.11{named}"
    return next((hint for words, hint in _WAYS_OUT.items() if words in message), "")


def _explained(path: FieldPath, details: ErrorDetails) -> tuple[str, str]:
    """Message and hint for pydantic's remaining kinds of error, in the words of a YAML file."""
    given = details["input"]
    expected = str(details.get("ctx", {}).get("expected", "")).replace("'", "")
    match details["type"]:
        case "literal_error":
            return f"{given!r} is not one of: {expected}", meant(str(given), re.split(r", | or ", expected))
        case "string_type" if isinstance(given, int | float):
            shown = str(given).lower() if isinstance(given, bool) else str(given)
            return f"must be text, and YAML reads {shown} as {_kind(given)}", f'quote it: "{shown}"'
        case "string_type" if given is None:
            return "has no value", "give it one, or take the line out"
        case "string_pattern_mismatch" if "version" in ".".join(map(str, path)):
            return f"{given!r} is not a version such as 1.33.3", "write three numbers, without a leading v"
        case "tuple_type" | "list_type":
            return f"must be a list, not {_kind(given)}", "write [a, b], or one `- item` a line"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"must be a map of fields, not {_kind(given)}", "write {field: value}, or one `field: value` a line"
        case "too_short":
            return "must hold at least one item", "write [a, b], or one `- item` a line"
    wanted = _WANTED.get(details["type"])
    if wanted:
        return f"must be {wanted}, not {_shown(given)}", ""
    bound = _BOUNDS.get(details["type"])
    if bound:
        return f"must be {bound[0]} {details.get('ctx', {}).get(bound[1])}, not {given}", ""
    message = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{message} (it is {given!r})" if isinstance(given, str | int | float) else message, ""


_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
}
_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}
"""pydantic's kinds of error, in the words that the command line has too."""


def _shown(given: object) -> str:
    return repr(given) if isinstance(given, str) else str(given) if isinstance(given, int | float) else _kind(given)


def _kind(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a map"
        case None:
            return "nothing"
        case _:
            return type(value).__name__


def _about(model: type[BaseModel], path: FieldPath) -> str:
    """What the field is for, of which nothing better is known to say."""
    names = tuple(part for part in path if isinstance(part, str))
    for end in range(len(names), 0, -1):
        if text := _text_at(model, names[: end - 1], names[end - 1]):
            return f"{names[end - 1]}: {text}"
    return ""


def _text_at(model: type[BaseModel], path: FieldPath, field: str) -> str:
    """The first sentence of what is written of a field of the model at this path; empty where nothing is."""
    here = _model_at(model, path)
    text = field_texts(here).get(field, "") if here else ""
    return text.partition(". ")[0].removesuffix(".")


def _fields_at(model: type[BaseModel], path: FieldPath) -> Mapping[str, FieldInfo]:
    """The fields of the model that lies at this path below `model`; none where no model lies there."""
    here = _model_at(model, path)
    return here.model_fields if here else {}


def _model_at(model: type[BaseModel], path: FieldPath) -> type[BaseModel] | None:
    here: type[BaseModel] | None = model
    key = False
    for part in path:
        # What follows a map's field is one of its keys, the operator's own word.
        if isinstance(part, int) or key:
            key = False
            continue
        field = here.model_fields.get(part) if here else None
        here = _model_in(field.annotation) if field else None
        key = field is not None and _is_map(field.annotation)
    return here


def _is_map(annotation: Any) -> bool:
    return get_origin(annotation) is dict or (
        get_origin(annotation) in {Union, UnionType, Annotated} and any(map(_is_map, get_args(annotation)))
    )


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


def _error(path: Path, problems: Sequence[Problem]) -> SpecError:
    """One error for all problems: the first is its subject, the others follow a line each."""
    first, *others = sorted(_causes(problems), key=lambda problem: problem.line)
    if not others:
        return SpecError(first.message, subject=_where(path, first), hint=first.hint)
    lines = (f"  {_where(path, each)}: {_with_hint(each)}" for each in others)
    message = "\n".join((_with_hint(first), f"and {len(others)} more:", *lines))
    return SpecError(message, subject=_where(path, first), hint="correct them all: nothing was done yet")


def _causes(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Each once, and no field as missing that stands there with a typing error."""
    mistyped = {
        (*each.path[:-1], each.hint.removeprefix(_MEANT).removesuffix("?"))
        for each in problems
        if each.message == _UNKNOWN and each.hint.startswith(_MEANT)
    }
    return tuple(dict.fromkeys(each for each in problems if each.message != _MISSING or each.path not in mistyped))


def _with_hint(problem: Problem) -> str:
    return f"{problem.message} ({problem.hint})" if problem.hint else problem.message


_UNKNOWN, _MISSING, _MEANT = "there is no such field", "is required and missing", "did you mean "


def _where(path: Path, problem: Problem) -> str:
    field = ".".join(map(str, problem.path))
    return f"{path}:{problem.line}: {field}" if field else f"{path}:{problem.line}"


# ---------------------------------------------------------------------------------------------------------------
# Paths


def _with_absolute_paths(cluster: ClusterFile, registry: Registry, base: Path) -> ClusterFile:
    resolved = _resolved(cluster, base)
    nodes = tuple(
        node.model_copy(
            update={"components": _component_paths(cluster.as_seen_by(node), node.components, registry, base)}
        )
        if node.components
        else node
        for node in resolved.nodes
    )
    components = _component_paths(cluster, cluster.components, registry, base)
    return resolved.model_copy(update={"components": components, "nodes": nodes})


def _component_paths(
    seen: ClusterFile, given: Mapping[str, Any], registry: Registry, base: Path
) -> dict[str, dict[str, Any]]:
    """The settings with absolute paths: a node's come with the paths of everybody's that they are merged over."""
    components = dict(given)
    for component in registry:
        if component.name in given:
            settings = given[component.name]
            changes = _changes(component.config.model_validate(seen.components[component.name]), base)
            components[component.name] = settings | changes
    return components


ModelT = TypeVar("ModelT", bound=BaseModel)


def _resolved(model: ModelT, base: Path) -> ModelT:
    changes = _changes(model, base)
    return model.model_copy(update=changes) if changes else model


def _changes(model: BaseModel, base: Path) -> dict[str, Any]:
    """The fields of a model that hold control-host paths not yet absolute, with their absolute values."""
    changes: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        before = getattr(model, name)
        # pydantic takes a field's own Annotated apart and keeps its marks in `metadata`.
        path = any(isinstance(each, ControlHostPath) for each in field.metadata) or _is_path(field.annotation)
        after = _value(before, base, path=path)
        if after != before:
            changes[name] = after
    return changes


def _is_path(annotation: Any) -> bool:
    """Whether an annotation is `LocalPath`, or a collection of them."""
    if any(isinstance(each, ControlHostPath) for each in getattr(annotation, "__metadata__", ())):
        return True
    return any(_is_path(each) for each in get_args(annotation))


def _value(value: Any, base: Path, *, path: bool) -> Any:
    match value:
        case BaseModel():
            return _resolved(value, base)
        case tuple():
            return tuple(_value(each, base, path=path) for each in value)
        case dict():
            return {key: _value(each, base, path=path) for key, each in value.items()}
        case str() if path and value:
            return str(base / _expanded(value))
        case _:
            return value


def _expanded(value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:  # no such user, or no home directory: whoever opens the path names it
        return Path(value)
