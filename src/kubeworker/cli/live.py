"""The live view, as lines of text that fit the terminal: pure, drawn from a `Progress` at one moment.

A line for each node that moves and a summary below; of a fleet that does not fit, the nodes are counted by state first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from kubeworker.cli.progress import Progress, Row, duration, size, summary
from kubeworker.cli.styles import STYLES

NAME_MOST, STATE_WIDE, CLOCK_WIDE, BAR_MOST = 24, 11, 9, 16
"""Columns: of a name at most, of a state, of the seconds at the right, of a bar at most."""

_FRAMES, _ASCII_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_ORDER = ("failed", "unreachable", "skipped")
_LATER = ("queued", "seen", "done")
_COUNTED = frozenset({"connect", "observe", "waits"})
"""States that a number says enough of, where there are many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is drawn on, and when."""

    width: int = 80
    height: int = 24
    now: float = 0.0
    """On the clock that the events were folded with."""
    began: float = 0.0
    ascii: bool = False
    """Only ASCII: the terminal's encoding has nothing else."""


def drawn(progress: Progress, view: View) -> tuple[Text, ...]:
    """The lines, the summary last; none is wider than the terminal, and there are not more than it has rows."""
    if not progress.rows:
        return ()
    others = [row for row in progress.rows.values() if row.kind != "node" and row.moves]
    room = max(3, view.height - 2)
    nodes = progress.nodes
    if len(nodes) + len(others) <= room:
        lines = list(_rows([*others, *nodes], view))
    else:
        groups = list(_groups(progress, view))[:room]
        moving = [*others, *(row for row in nodes if row.moves and row.state not in _COUNTED)]
        # Fewer lines than there are nodes: those that a step has taken longest stand first.
        moving.sort(key=lambda row: row.since)
        lines = [*groups, *_rows(moving[: room - len(groups)], view)]
    seconds = view.now - view.began
    mark = f"{_frame(view)} "
    total = Text(mark, style="cyan").append(summary(progress, seconds, width=view.width - len(mark)), style="bold")
    return tuple(_fitted(line, view) for line in (*lines, total))


def _fitted(line: Text, view: View) -> Text:
    line.truncate(view.width, overflow="crop" if view.ascii else "ellipsis")
    line.no_wrap = True
    return line


def _frame(view: View) -> str:
    frames = _ASCII_FRAMES if view.ascii else _FRAMES
    return frames[int(view.now * 8) % len(frames)]


def _rows(rows: Sequence[Row], view: View) -> Iterator[Text]:
    wide = min(max((len(row.name) for row in rows), default=0), NAME_MOST)
    return (_row(row, wide, view) for row in rows)


def _row(row: Row, wide: int, view: View) -> Text:
    name = Text(row.name)
    name.truncate(wide, overflow="ellipsis", pad=True)
    left = Text.assemble(
        (name.plain, "bold"), "  ", _mark(row, view), " ", (row.state.ljust(STATE_WIDE), _style(row)), " "
    )
    clock = duration(max(0.0, view.now - row.since)).rjust(CLOCK_WIDE) if row.moves else ""
    room = view.width - left.cell_len - len(clock)
    body = _body(row, room, view)
    body.truncate(max(room, 0), overflow="crop" if view.ascii else "ellipsis", pad=True)
    return Text.assemble(left, body, (clock, "dim"))


def _style(row: Row) -> str:
    return STYLES.get(row.state, STYLES["running"] if row.moves else "dim")


def _mark(row: Row, view: View) -> tuple[str, str]:
    if row.moves:
        return _frame(view), _style(row)
    good, bad, later = ("+", "x", ".") if view.ascii else ("✓", "✗", "·")
    match row.status:
        case "ok":
            return good, "green"
        case "queued":
            return later, "dim"
        case _:
            return bad, _style(row)


def _body(row: Row, room: int, view: View) -> Text:
    """What is done, how far, or what it waits for."""
    if not row.moves:
        return Text(row.detail or _count(row), style=STYLES["failed"] if row.status == "failed" else "dim")
    if row.waits:
        return Text(row.waits)
    if row.total or row.done:
        return _transfer(row, room, view)
    count = f"{row.actions}/{row.steps}" if row.steps else ""
    bad = f"{row.failures} failed" if row.failures else ""
    return Text("  ".join(filter(None, (count, bad, row.last))))


def _count(row: Row) -> str:
    if row.status == "queued":
        return f"{row.steps - row.actions} changes"
    return f"{row.actions} {'changes' if row.actions != 1 else 'change'}" if row.actions else ""


def _transfer(row: Row, room: int, view: View) -> Text:
    """`━━━━━━╸───── 120/214 MB  31 MB/s`: the bar has what the numbers leave of the line."""
    numbers = f"{size(row.done)} of {size(row.total)}" if row.total else size(row.done)
    seconds = view.now - row.since
    if row.done and seconds >= 1:
        numbers += f"  {size(int(row.done / seconds))}/s"
    width = min(BAR_MOST, room - len(numbers) - 2)
    if not row.total or width < 4:
        return Text(numbers)
    return Text.assemble(*_bar(row.done / row.total, width, view), "  ", numbers)


def _bar(share: float, width: int, view: View) -> tuple[tuple[str, str], tuple[str, str]]:
    """The done and the left part of a bar."""
    done = min(width, int(share * width))
    full, rest = ("#", ".") if view.ascii else ("━", "─")
    return (full * done, "cyan"), (rest * (width - done), "dim")


def _groups(progress: Progress, view: View) -> Iterator[Text]:
    """A fleet by state: how many nodes, and the first of them; what went wrong first, what is done last."""
    states: dict[str, list[Row]] = {}
    for row in progress.nodes:
        states.setdefault(row.state, []).append(row)
    working = sorted(states.keys() - {*_ORDER, *_LATER}, key=lambda state: (-len(states[state]), state))
    for state in (*_ORDER, *working, *_LATER):
        if rows := states.get(state):
            yield _group(state, rows, view)


def _group(state: str, rows: Sequence[Row], view: View) -> Text:
    head = Text.assemble((state.ljust(STATE_WIDE), _style(rows[0])), f" {len(rows):4}  ")
    room = view.width - head.cell_len
    if state == "waits":
        for what in dict.fromkeys(row.waits for row in rows):
            number = sum(row.waits == what for row in rows)
            head.append(f"{what}{f' ({number})' if number != len(rows) else ''}  ")
        return head
    done, total = sum(row.done for row in rows), sum(row.total for row in rows)
    if total:
        numbers = f"{size(done)} of {size(total)}  "
        room -= len(numbers)
        head.append(numbers)
    if state in _LATER:
        return head
    return head.append(_names([row.name for row in rows], room), style="dim")


def _names(names: Sequence[str], room: int) -> str:
    """As many names as fit, and how many more there are."""
    best, text = "", ""
    for number, name in enumerate(names, start=1):
        text += f", {name}" if text else name
        left = len(names) - number
        said = f"{text} and {left} more" if left else text
        if len(said) <= room:
            best = said
        if len(text) > room:
            break
    return best
