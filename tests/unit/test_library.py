"""`import kubeworker`: what is promised is there, typed, and costs nothing before it is used."""

import inspect
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import kubeworker
from kubeworker.errors import ActionFailed, ApiError, InputError, KubeworkerError, SpecError, UsageError
from kubeworker.library import only_error

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", kubeworker.__all__)
def test_every_promised_name_is_there(name: str) -> None:
    value = getattr(kubeworker, name)
    assert not inspect.isroutine(value) or value.__doc__
    assert name in dir(kubeworker)


def test_every_promised_name_is_one_for_type_checkers_too() -> None:
    listed = (ROOT / "src/kubeworker/__init__.py").read_text().partition("__all__")[0]
    assert [name for name in kubeworker.__all__ if name not in listed] == []


def test_another_name_is_an_error_as_usual() -> None:
    with pytest.raises(AttributeError, match="module 'kubeworker' has no attribute 'aply'"):
        kubeworker.aply  # type: ignore[attr-defined]  # noqa: B018


def test_the_import_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import kubeworker; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['kubeworker']\n"


@pytest.mark.parametrize("verb", [kubeworker.spec, kubeworker.plan, kubeworker.apply, kubeworker.verify])
async def test_a_wrong_file_is_one_error_that_names_the_line(
    verb: Callable[[Path], Awaitable[Any]], tmp_path: Path
) -> None:
    assert "return" in get_type_hints(verb)
    file = tmp_path / "cluster.yaml"
    with pytest.raises(InputError, match=r"cluster\.yaml"):
        await verb(file)
    file.write_text("cluster:\n  apiserver: [10.0.0.1:6443]\nnodes: []\n")
    with pytest.raises(SpecError) as caught:
        await verb(file)
    assert caught.value.subject.startswith(f"{file}:")


@pytest.mark.parametrize("verb", [kubeworker.plan, kubeworker.apply])
async def test_a_part_of_the_fleet_is_asked_for_as_on_the_command_line(
    verb: Callable[..., Awaitable[Any]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"'4/4' is no part of a fleet"):
        await verb(tmp_path / "cluster.yaml", shard="4/4")


def test_every_parameter_that_verbs_share_is_documented_once() -> None:
    verbs = (kubeworker.plan, kubeworker.apply, kubeworker.verify)
    once = inspect.getdoc(inspect.getmodule(kubeworker.plan)) or ""
    for verb in verbs:
        own = inspect.getdoc(verb) or ""
        for name in inspect.signature(verb).parameters:
            assert (f"    {name}: " in own) != (f"    {name}: " in once), (verb.__name__, name)


async def test_a_spec_is_typed_values(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "cluster: {apiservers: ['10.0.0.1:6443'], cluster_cidr: 172.30.0.0/16, service_cidr: 10.254.0.0/16,\n"
        "  dns_service_ip: 10.254.0.2}\nnodes: [{name: k8s-01, address: 10.0.0.11}]\n"
    )
    cluster = await kubeworker.spec(str(file))
    assert [node.name for node in cluster.nodes] == ["k8s-01"]


def test_an_error_that_comes_alone_comes_as_itself() -> None:
    alone = ActionFailed("x", subject="w1")
    with pytest.raises(ActionFailed), only_error():
        raise ExceptionGroup("tasks", [ExceptionGroup("tasks", [alone])])
    with pytest.raises(ExceptionGroup) as caught, only_error():
        raise ExceptionGroup("tasks", [alone, ApiError("y")])
    assert caught.value.subgroup(KubeworkerError) is not None
    with pytest.raises(ExceptionGroup), only_error():
        raise ExceptionGroup("tasks", [ValueError("a fault of the program stays what it is")])


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs/library.md").read_text()
    assert f"```python\n{(ROOT / 'examples/roll_out.py').read_text()}```\n" in page
    assert [
        name
        for name in kubeworker.__all__
        if name.islower() and f"`{name}`" not in page and f"await {name}(" not in page
    ] == []
