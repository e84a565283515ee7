"""Settings read from a shell file that is never run. tests/contract has the same against bash itself."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeworker.core.guide.environment_sh import Environment, read

GUIDE = Path(__file__).parents[2] / "guide"


def values(text: str) -> dict[str, str | tuple[str, ...]]:
    return {name: variable.value for name, variable in read(text).variables.items()}


def why(text: str, name: str = "A") -> str:
    found = read(text)
    assert name not in found.variables
    doubt = found.doubt(name)
    assert doubt is not None
    return f"{doubt.line}: {doubt.what}: {doubt.why}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=plain", "plain"),
        ("export A=exported # a comment", "exported"),
        ("A='single $B'", "single $B"),
        ('A="double \\$x \\"q\\" \\a"', 'double $x "q" \\a'),
        ("A=a\\ b", "a b"),
        ("A=one\\\ntwo", "onetwo"),
        ("A=\\\n(1 2)", ("1", "2")),
        ("A=", ""),
        ("A=1; A=2", "2"),
        ("A=a A=b", "b"),
        ("A=a\nA+=b", "ab"),
        ("B=x\nA=$B/y", "x/y"),
        ('B=x\nA="${B}y"', "xy"),
        ("B=(x y)\nA=${B[1]}", "y"),
        ("B=(x y)\nA=$B", "x"),
        ("A=*", "*"),
        ("readonly A=1", "1"),
        ("declare -x A=1", "1"),
        ("A=https://127.0.0.1:8443", "https://127.0.0.1:8443"),
        ("A=(1 2 3)", ("1", "2", "3")),
        ("A=(\n  1 # one\n\n  '2 2'\n  \"3\"\n)", ("1", "2 2", "3")),
        ("export A=(1 2)", ("1", "2")),
        ("declare -a A=(1 2)", ("1", "2")),
        ("A=()", ()),
        ("A=(1)\nA+=(2)", ("1", "2")),
        ("B='1 2'\nA=($B 3)", ("1", "2", "3")),
        ("B='1 2'\nA=(\"$B\" 3)", ("1 2", "3")),
        ("B=(1 2)\nA=(${B[@]} 3)", ("1", "2", "3")),
        ("B=('1 1' 2)\nA=(\"${B[@]}\")", ("1 1", "2")),
        ("B=(1 2)\nC=(3)\nA=(${B[@]} ${C[@]})", ("1", "2", "3")),
        ("set -eu\nA=1\necho $A\nmkdir -p $A", "1"),
        ("A=1\nif true; then B=2; fi", "1"),
        ("A=1 && B=2", "1"),
        ("[ -d /x ] || exit 1\nA=1", "1"),
        ("source ./other.sh\nA=1", "1"),
        ("A=1\nreturn\nA=2", "1"),
        ("A=1\ncat <<EOF\nA=2\nEOF", "1"),
        ("A=$(x)\nA=1", "1"),
    ],
)
def test_plain_settings_are_read(text: str, value: str | tuple[str, ...]) -> None:
    assert values(text)["A"] == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A=$(date)", "1: A: a command substitution"),
        ("\nA=`date`", "2: A: a command substitution"),
        ("A=$((1 + 1))", "arithmetic"),
        ("A=${B:-x}", "a ${...} with more than a name"),
        ("A=$B", "it uses $B, which is not set by this file"),
        ("B=$(x)\nA=$B", "it uses $B, which could not be read"),
        ("A=~/x", "a tilde"),
        ("A=(*.pem)", "a pattern of file names"),
        ("A=({1,2})", "a brace"),
        ("A=$'x'", "a $'...' string"),
        ("A=$1", "$1"),
        ("A+=x", "it is added to what the file does not set"),
        ("if [ -f x ]; then A=1; fi", "it is set under a condition"),
        ("A=1\nif [ -f x ]; then A=2; fi", "2: A: it is set under a condition"),
        ("[ -f x ] && A=1", "it is set under a condition"),
        ("A=1 | cat", "it is set under a condition"),
        ("for A in 1 2; do echo; done", "a loop sets it"),
        ("A=1\nsource ./other.sh", "2: source: it may set variables"),
        ("A=1\n. ./other.sh", "2: .: it may set variables"),
        ("A=1\neval 'A=2'", "2: eval: it may set variables"),
        ("f() { A=2; }\nA=1\nf", "3: f: it may set variables"),
        ("A=1\nread A < file", "2: read: it may set variables"),
        ("A=1\nunset A", "2: A: it is unset"),
        ("A=1\n: ${A:=2}", "2: a command: an expansion in it may set variables"),
        ("A=1\n(( A += 1 ))", "2: a command: an expansion in it may set variables"),
        ("A=(1)\nA=2", "a plain value for an array"),
        ("A=(1)\nA[0]=2", "one element of an array"),
        ("declare -i A=1+1", "declare with an option that changes what a value means"),
        ("readonly A=1\nA=2", "2: A: it is readonly, and bash stops here"),
        ("readonly B=1\nA=0\nB=2 A=1", "3: B: it is readonly, and bash stops here"),
        ("B=b\nA=$B\\\nc", "a name that goes on in the next line"),
        ('B=b\nA="$B\\\nc"', "a name that goes on in the next line"),
        ("A=$\\\n0", "an expansion that goes on in the next line"),
        ("export B=1 A=$B", "sets it and uses it"),
        ("A=1\nB='no end", "2: a quote without an end: nothing from here on can be read"),
        ("A=1\nfi", "2: fi: it is out of place"),
        ("A=1\nif true; then", "2: if: it has no end"),
    ],
)
def test_what_can_not_be_told_is_named_with_its_line(text: str, says: str) -> None:
    assert says in why(text)


def test_what_is_not_mentioned_is_not_in_doubt() -> None:
    assert read("B=1").doubt("A") is None
    assert read("B=1\nif true; then C=2; fi").doubt("A") is None


def test_a_doubt_never_holds_a_value() -> None:
    found = read('TOKEN="hush-$(x)"\nexport KEY="hush"$(x)\neval "P=hush"\nsource hush')
    assert found.variables == {}
    assert "hush" not in repr(found)


def test_the_guides_file_is_read() -> None:
    found = read((GUIDE / "environment.sh").read_text())
    assert found.variables["NODE_NAMES"].value == ("k8s-01", "k8s-02")
    assert found.variables["ETCD_ENDPOINTS"].value == "https://172.31.39.151:2379,https://172.31.32.72:2379"
    assert found.variables["CONTAINERD_DIR"].value == "/data/k8s/containerd"
    assert [(doubt.line, doubt.what) for doubt in found.doubts] == [(5, "ENCRYPTION_KEY"), (37, "PATH")]


@given(st.text(max_size=60))
def test_any_text_is_taken(text: str) -> None:
    assert isinstance(read(text), Environment)
