"""Our reading of a shell file against bash's own: what we say is set, bash sets, to the same; the rest is named.

Scripts are put together from fragments, plain and awkward ones, by hypothesis; bash runs each in a clean environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeworker.core.guide.environment_sh import Environment, read

NAMES = ("A", "B", "C", "NODE_IPS")

# For each name: how many elements, whether an array, and the elements; all ended by NUL.
_DUMP = r"""
set +euk
IFS=$' \t\n'
for _n in A B C NODE_IPS; do
  [[ ${!_n@a} == *a* ]] && _kind=array || _kind=plain
  declare -n _r=$_n
  printf '%s\0' "$_n" "$_kind" "${#_r[@]}" "${_r[@]}"
  declare +n _r
  unset -n _r
done
"""


Values = dict[str, str | tuple[str, ...] | None]


def bash(script: str, folder: Path) -> Values | None:
    """What bash has set after sourcing the script; None where it did not run to its end (a syntax error, `set -e`)."""
    (folder / "environment.sh").write_bytes(script.encode())
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-c", f"source ./environment.sh > /dev/null\n{_DUMP}"],
        cwd=folder,
        # However a function calls itself, also through subshells, it ends after a few rounds.
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "FUNCNEST": "5"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = bash.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        # With all that it started: it has a process group of its own.
        os.killpg(bash.pid, signal.SIGKILL)
        bash.wait()
        raise
    if bash.returncode or b"syntax error" in errors or b"unexpected EOF" in errors:
        return None
    fields = iter(output.decode().split("\0")[:-1])
    values: Values = {}
    for name in fields:
        kind, count = next(fields), int(next(fields))
        elements = tuple(next(fields) for _ in range(count))
        values[name] = elements if kind == "array" else elements[0] if elements else None
    return values


def differences(found: Environment, real: Values | None) -> list[str]:
    wrong: list[str] = []
    if real is None:
        return wrong
    for name in NAMES:
        if name in found.variables:
            if found.variables[name].value != real[name]:
                wrong.append(f"{name}: read {found.variables[name].value!r}, bash has {real[name]!r}")
        elif real[name] is not None and found.doubt(name) is None:
            wrong.append(f"{name}: bash has {real[name]!r}, and nothing says that it was not read")
    return wrong


_name = st.sampled_from(NAMES)
_text = st.text(alphabet="abzé019._-/:,@%+^!=", min_size=1, max_size=5)
_spaced = st.text(alphabet="ab \t\n#;&|()<>*?[]{}~$'é", max_size=6).map(lambda text: text.replace("$", ""))
_reference = st.one_of(
    _name.map("${}".format),
    _name.map("${{{}}}".format),
    _name.map("${{{}[0]}}".format),
    _name.map("${{{}[1]}}".format),
)
_all = _name.map("${{{}[@]}}".format)
_piece = st.one_of(
    _text,
    _spaced.map(lambda text: "'" + text.replace("'", "") + "'"),
    _spaced.map(lambda text: '"' + text.replace('"', "") + '"'),
    st.sampled_from(
        ["\\ ", "\\$", "\\\\", "\\\n", "$A\\\nb", '"$B\\\n0"', '""', "''", '"\\$A"', '"\\a"', '"\\\n"', "$", "a#b"]
    ),
    _reference,
    _reference.map('"{}"'.format),
    st.tuples(_text, _reference, _text).map(lambda parts: '"{} {}{}"'.format(*parts)),
)
_awkward = st.sampled_from([
    "$(echo x)", "`echo x`", "$((1 + 2))", "${A:-x}", "${B:=y}", "$((C = 3))", "~", "a:~", "*", "{a,b}", "$'a\\tb'",
    '$"a"', "$1", "$#", '"$(echo ")")"', "$(echo '(' \"$(echo b)\")", "${A#*(}", '"${A:-"q"}"', "$RANDOM", "$HOME",
    "[x]=y", "?", "${NODE_IPS[*]}", "${#A}", "$[1]",
])  # fmt: skip
_value = st.one_of(
    st.lists(_piece, max_size=4).map("".join),
    st.lists(st.one_of(_piece, _piece, _piece, _awkward), max_size=3).map("".join),
)
_blank = st.sampled_from([" ", "\n", "  # a comment\n  ", "\t", " \\\n "])
_element = st.one_of(_value, _value, _all, _all.map('"{}"'.format))
_array = st.lists(st.tuples(_element, _blank).map("".join), max_size=4).map(lambda words: f"({''.join(words)})")
_assignment = st.tuples(_name, st.sampled_from(["=", "=", "=", "+="]), st.one_of(_value, _value, _array)).map("".join)
_plain = st.one_of(
    _assignment,
    _assignment.map("export {}".format),
    st.lists(_assignment, min_size=2, max_size=3).map(" ".join),
    st.tuples(st.sampled_from(["export ", "declare ", "declare -x "]), _assignment, st.just(" "), _assignment).map(
        "".join
    ),
    _name.map("export {}".format),
    _name.map("unset {}".format),
    st.sampled_from(["", "# a comment", "set -e", "set -uo pipefail", "echo $A done fi }", ": ${A}", "#!/bin/bash"]),
)
_condition = st.sampled_from(["true", "false", '[ -n "$A" ]', "[[ $A == a && $B ]]", "! false"])
_hard = st.one_of(
    _assignment.map("readonly {}".format),
    st.tuples(st.sampled_from(["declare -a ", "declare -i ", "declare -u ", "typeset -r "]), _assignment).map("".join),
    _name.map("declare -a {}".format),
    _name.map("declare -i {}".format),
    st.tuples(_condition, st.sampled_from([" && ", " || ", " &&\n", " ; "]), _assignment).map("".join),
    st.tuples(_assignment, st.sampled_from([" && ", " || ", " | ", " & ", " ; "]), _assignment).map("".join),
    st.tuples(_condition, _assignment, _assignment).map(
        lambda parts: "if {}; then\n  {}\nelse\n  {}\nfi".format(*parts)
    ),
    _assignment.map("f() {{\n{}\n}}\nf".format),
    # No expansions in this one: `$(echo x)` inside would call it again and again, a process each time.
    st.tuples(_name, _text).map(lambda parts: "function echo {{ {}={}; }}\necho hello".format(*parts)),
    _assignment.map("({})".format),
    _assignment.map("{{ {}; }}".format),
    st.tuples(_name, _assignment).map(lambda parts: "for {} in 1 2; do {}; done".format(*parts)),
    st.tuples(_value, _assignment).map(lambda parts: "case x{} in x|y) {} ;; *) : ;; esac".format(*parts)),
    _assignment.map("while false; do {}; done < /dev/null".format),
    st.tuples(_name, _text).map(lambda parts: "eval '{}={}'".format(*parts)),
    _assignment.map("cat <<EOF\n{}\nEOF".format),
    _assignment.map("cat <<'EOF'\n{}\nEOF\nA=1".format),
    _assignment.map("{} > /dev/null".format),
    _assignment.map("{} true".format),
    _assignment.map("return\n{}".format),
    _name.map("read {} <<< hello".format),
    _name.map("printf -v {} hello".format),
    _name.map("{}[0]=x".format),
    _name.map("{}[1]+=x".format),
    st.sampled_from(["IFS=,", "IFS=a", "source /dev/null", "((A = 5))", "let B=2", "shopt -s nullglob", "unset IFS"]),
)  # fmt: skip
_end = st.sampled_from(["\n", "\n", "\n", "; ", " \n", "  # end\n", "\n\n"])


def _scripts(fragment: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(fragment, _end).map("".join), min_size=1, max_size=6).map("".join)


_settings = settings(
    max_examples=300,
    deadline=None,
    # The same scripts at each run; a search for new ones takes more of them: 40,000 were tried while this was written.
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_settings
@given(script=_scripts(_plain))
def test_what_is_read_of_plain_settings_is_what_bash_sets(script: str, tmp_path: Path) -> None:
    assert not differences(read(script), bash(script, tmp_path)), script


@_settings
@given(script=_scripts(st.one_of(_plain, _hard)))
def test_whatever_else_a_file_does_is_never_misread(script: str, tmp_path: Path) -> None:
    assert not differences(read(script), bash(script, tmp_path)), script


@_settings
@given(script=st.text(alphabet="AB=()[]{}$\"'`\\ \n;&|<>#!+-~*a1", max_size=30))
def test_noise_is_never_misread(script: str, tmp_path: Path) -> None:
    # Files that such noise may write stay in the test's folder.
    assert not differences(read(script), bash(script, tmp_path)), script


def test_every_name_of_the_guides_file_is_what_bash_has(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "guide/environment.sh").read_text()
    (tmp_path / "environment.sh").write_text(text)
    variables = read(text).variables
    assert len(variables) > 10
    for name, variable in variables.items():
        done = subprocess.run(
            ["bash", "--norc", "--noprofile", "-c", f'source ./environment.sh; printf "%s\\0" "${{{name}[@]}}"'],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=True,
        )
        expected = (variable.value,) if isinstance(variable.value, str) else variable.value
        assert tuple(done.stdout.decode().split("\0")[:-1]) == expected, name
