"""What is written is what is read: each format against its readers' own rules."""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.formats import nginx, toml, unit, yaml
from kubeworker.core.formats.nginx import Block
from kubeworker.core.merge import merge, stacked

# No surrogates (no UTF-8 for them) and no control characters, which no file here has a use for.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff"), max_size=20)
LINES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff") | st.sampled_from("\n\t\r"))
WORDS = TEXT | st.sampled_from(["y", "No", "on", "~", "null", "1e3", "0x1F", "0o17", "1_000", "12:30:45", "2026-01-01"])


def documents(strings: st.SearchStrategy[str], *, null: bool) -> st.SearchStrategy[dict[str, Any]]:
    scalars: st.SearchStrategy[Any] = strings | st.booleans() | st.integers(-(2**53), 2**53)
    if null:
        scalars |= st.none()
    values = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3), max_leaves=8
    )
    return st.dictionaries(strings, values, max_size=4)


@given(documents(WORDS, null=True))
def test_yaml_reads_back_as_it_was(document: dict[str, Any]) -> None:
    text = yaml.dump(document)
    assert pyyaml.safe_load(text) == document
    assert list(pyyaml.safe_load(text)) == list(document)


@pytest.mark.parametrize("word", ["y", "N", "yes", "Off", "TRUE", "null", "~", "1e3", "017", "1_000", "1:30", ".5", ""])
def test_yaml_quotes_strings_that_some_reader_takes_for_something_else(word: str) -> None:
    assert yaml.dump({"key": word}) == f'key: "{word}"\n'


@pytest.mark.parametrize("word", ["10s", "100Mi", "85%", "127.0.0.1", "10.0.0.1:6443", "172.30.0.0/16", "/etc/x.pem"])
def test_yaml_leaves_plain_what_the_guide_leaves_plain(word: str) -> None:
    assert yaml.dump({"key": word}) == f"key: {word}\n"


@given(documents(TEXT, null=False))
def test_toml_reads_back_as_it_was(document: dict[str, Any]) -> None:
    assert tomllib.loads(toml.dump(document)) == document


# ---------------------------------------------------------------------------------------------------------------


def systemd_words(line: str) -> list[str]:
    """An Exec line as systemd splits it (systemd.service(5), "Command lines"; systemd.syntax(7), "Quoting")."""
    words: list[str] = []
    word, quoted, began = "", False, False
    escapes = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}
    characters = iter(line.replace("\\\n", " "))
    for character in characters:
        if character == "\\":
            escape = next(characters)
            word += chr(int(next(characters) + next(characters), 16)) if escape == "x" else escapes[escape]
        elif character == '"':
            quoted, began = not quoted, True
        elif character == " " and not quoted:
            if began or word:
                words.append(word)
            word, began = "", False
        else:
            word += character
    words.append(word)
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


@given(st.lists(LINES, min_size=1, max_size=5))
def test_every_argument_of_a_unit_reaches_the_process_as_it_is(arguments: list[str]) -> None:
    text = unit.dump({"Service": {"ExecStart": unit.Command(arguments=("/bin/x", *arguments))}})
    header, line = text.split("\n", 1)
    assert header == "[Service]"
    assert line.count("\n") == 1 + line.count("\\\n")
    assert "\r" not in line
    assert systemd_words(line.removesuffix("\n").removeprefix("ExecStart=")) == ["/bin/x", *arguments]


@given(st.lists(LINES.map("--option={}".format), min_size=2, max_size=4))
def test_long_options_stand_on_lines_of_their_own(arguments: list[str]) -> None:
    text = unit.dump({"Service": {"ExecStart": unit.Command(arguments=("/bin/x", *arguments))}})
    lines = text.split("\n", 1)[1].removesuffix("\n").removeprefix("ExecStart=")
    assert systemd_words(lines) == ["/bin/x", *arguments]
    assert len(lines.split("\\\n")) == len(arguments) + 1


def test_a_key_with_several_values_is_written_once_for_each() -> None:
    assert unit.dump({"Unit": {"After": ("a.target", "b.target")}, "Service": {"Type": "simple"}}) == (
        "[Unit]\nAfter=a.target\nAfter=b.target\n\n[Service]\nType=simple\n"
    )


# ---------------------------------------------------------------------------------------------------------------


def nginx_words(text: str) -> Iterator[str]:
    """Tokens as ngx_conf_read_token finds them (nginx, src/core/ngx_conf_file.c)."""
    position = 0
    while position < len(text):
        character = text[position]
        if character in " \t\n":
            position += 1
        elif character in ";{}":
            yield character
            position += 1
        elif character == '"':
            word, position = "", position + 1
            while text[position] != '"':
                if text[position] == "\\":
                    position += 1
                    known = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "'": "'"}
                    word += known.get(text[position], "\\" + text[position])
                else:
                    word += text[position]
                position += 1
            yield f"={word}"
            position += 1
        else:
            word = ""
            while text[position] not in " \t\n;{":
                word += text[position]
                position += 1
            yield f"={word}"


def words_of(statements: tuple[nginx.Statement, ...]) -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, Block):
            yield from (f"={word}" for word in (statement.name, *statement.arguments))
            yield "{"
            yield from words_of(statement.body)
            yield "}"
        else:
            yield from (f"={word}" for word in statement)
            yield ";"


NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
DIRECTIVES = st.tuples(NAMES) | st.tuples(NAMES, LINES) | st.tuples(NAMES, LINES, LINES)
STATEMENTS: st.SearchStrategy[tuple[nginx.Statement, ...]] = st.recursive(
    st.lists(DIRECTIVES, max_size=3).map(tuple),
    lambda inner: st.lists(
        DIRECTIVES
        | st.builds(
            lambda name, words, body: Block(name=name, arguments=words, body=body), NAMES, st.tuples(LINES), inner
        ),
        max_size=3,
    ).map(tuple),
    max_leaves=6,
)


@given(STATEMENTS)
def test_nginx_reads_the_words_that_were_meant(statements: tuple[nginx.Statement, ...]) -> None:
    assert list(nginx_words(nginx.dump(statements))) == list(words_of(statements))


def test_nginx_text_is_laid_out_as_in_the_guide() -> None:
    server = ("server", "10.0.0.1:6443", "max_fails=3")
    block = Block(name="upstream", arguments=("backend",), body=(("hash", "$remote_addr"), server))
    assert nginx.dump((("pid", "x.pid"), block)) == (
        "pid x.pid;\nupstream backend {\n    hash $remote_addr;\n    server 10.0.0.1:6443 max_fails=3;\n}\n"
    )


# ---------------------------------------------------------------------------------------------------------------

MAPS = documents(TEXT, null=False)
PATCHES = documents(TEXT, null=True)


@given(MAPS)
def test_merging_nothing_changes_nothing(base: dict[str, Any]) -> None:
    assert merge(base, {}) == base


@given(MAPS, PATCHES)
def test_merging_twice_is_merging_once(base: dict[str, Any], over: dict[str, Any]) -> None:
    once = merge(base, over)
    assert merge(once, over) == once


def test_maps_merge_lists_and_values_replace_and_null_removes() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": [1, 2], "c": "old", "d": 1}
    over = {"a": {"y": 3, "z": {"new": None, "kept": 1}}, "b": [9], "c": None, "d": {"now": "a map"}}
    assert merge(base, over) == {"a": {"x": 1, "y": 3, "z": {"kept": 1}}, "b": [9], "d": {"now": "a map"}}
    assert base["a"] == {"x": 1, "y": 2}


FLAT = st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(0, 3), max_size=3)
NESTED = st.dictionaries(st.sampled_from("xyz"), FLAT, max_size=3)


@given(NESTED, NESTED, NESTED)
def test_settings_merged_over_settings_say_what_the_two_say_after_one_another(
    base: dict[str, Any], one: dict[str, Any], two: dict[str, Any]
) -> None:
    assert merge(base, stacked(one, two)) == merge(merge(base, one), two)


@given(STATEMENTS)
def test_an_nginx_file_reads_back_as_it_was(statements: tuple[nginx.Statement, ...]) -> None:
    assert nginx.parse(nginx.dump(statements)) == statements


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("a b; # c;\n", (("a", "b"),)),
        ("log_format x '$a \"$b\"';", (("log_format", "x", '$a "$b"'),)),
        ("set ${a}b 'it\\'s';", (("set", "${a}b", "it's"),)),
        ("events{}", (Block(name="events", body=()),)),
        ("a{b;c d{e;}}", (Block(name="a", body=(("b",), Block(name="c", arguments=("d",), body=(("e",),)))),)),
    ],
)
def test_an_nginx_file_of_somebody_elses_is_read(text: str, statements: tuple[nginx.Statement, ...]) -> None:
    assert nginx.parse(text) == statements


@pytest.mark.parametrize(
    ("text", "says"),
    [("a {\n b;", "line 2: the file ends inside a block"), ("a", "line 1: the file ends inside a directive"),
     ("a;\n}", "line 2: unexpected }"), (";", "unexpected ;"), ("a 'b;", "line 1: a quote"), ("{}", "unexpected {")],
)  # fmt: skip
def test_a_broken_nginx_file_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        nginx.parse(text)
