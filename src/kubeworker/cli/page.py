"""The frame of an HTML report: one file that needs nothing else: no script, no font, no picture, no network.

Light or dark as the reader's system is; wide tables scroll in a box of their own, so that a phone shows the page whole.
What goes into a page is escaped unless it is `Html`, which only this file's functions make.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from html import escape
from typing import NewType

Html = NewType("Html", str)
"""Text that is markup already."""


class Text(str):
    """Text as somebody wrote it, a node for one: it is escaped."""

    __slots__ = ()


_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2128; --dim: #59636e; --line: #d5dae0;
  --ok: #116329; --ok-back: #dafbe1; --bad: #b3202c; --bad-back: #ffe4e1; --late: #7d4e00; --late-back: #fff1c9;
  --link: #0757b8; --mono: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1318; --card: #171c23; --text: #e4e8ed; --dim: #98a3af;
  --line: #303842; --ok: #5ed47a; --ok-back: #12301c; --bad: #ff8f87; --bad-back: #421a1a; --late: #eebc4a;
  --late-back: #3a2c0c; --link: #7ab4ff; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1rem 0 .3rem; } p { margin: .3rem 0; } a { color: var(--link); }
.dim { color: var(--dim); } .about { color: var(--dim); overflow-wrap: anywhere; }
code, pre, .mono { font-family: var(--mono); font-size: .87em; overflow-wrap: anywhere; }
.verdict { display: block; margin: 1rem 0; padding: .7rem 1rem; border-radius: 8px; font-weight: 600;
  overflow-wrap: anywhere; }
.ok { color: var(--ok); } .bad { color: var(--bad); } .late { color: var(--late); }
.verdict.ok, .badge.ok { background: var(--ok-back); } .verdict.bad, .badge.bad { background: var(--bad-back); }
.verdict.late, .badge.late { background: var(--late-back); }
.badge { display: inline-block; padding: 0 .5em; border-radius: 1em; font-size: .82rem; font-weight: 600;
  white-space: nowrap; background: var(--page); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem 1rem;
  margin: .5rem 0; }
.card.bad { color: inherit; border-left: 4px solid var(--bad); } .card.late { border-left: 4px solid var(--late);
  color: inherit; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; } thead th { color: var(--dim); font-size: .82rem; font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.matrix td, .matrix thead th + th { text-align: center; }
.matrix th:first-child { position: sticky; left: 0; background: var(--card); border-right: 1px solid var(--line); }
.matrix td.ok { background: var(--ok-back); } .matrix td.bad { background: var(--bad-back); font-weight: 700; }
.matrix td { border-right: 1px solid var(--line); font-variant-numeric: tabular-nums; }
details.card { padding: 0; } details.card > summary { padding: .6rem 1rem; font-weight: 600; overflow-wrap: anywhere; }
details.card > div { padding: 0 1rem .8rem; } details h3:first-child { margin-top: 0; }
summary { cursor: pointer; } summary .badge { margin-left: .4em; }
ul { list-style: none; margin: 0; padding: 0; }
.rows li { padding: .3rem 0; border-top: 1px solid var(--line); display: grid; column-gap: .8rem;
  grid-template-columns: 1.2em minmax(0, 19rem) minmax(0, 1fr); }
.actions > li { grid-template-columns: 8.5rem minmax(0, 1fr); } .actions > li > * { min-width: 0; }
.detail { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--dim); }
.rows li { color: inherit; } li.bad > .detail { color: inherit; } li.bad > code { color: var(--bad); }
pre { margin: .3rem 0; padding: .6rem .8rem; background: var(--page); border-radius: 6px; white-space: pre-wrap;
  line-height: 1.4; }
pre .add { color: var(--ok); } pre .del { color: var(--bad); } pre .at { color: var(--link); }
@media (max-width: 40rem) {
  table { font-size: .92rem; } th, td { padding: .3rem .35rem; }
  tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 6.4rem; }
  .matrix td { padding: .3rem .15rem; font-size: .9rem; }
  .matrix thead th + th { writing-mode: vertical-rl; transform: rotate(180deg); padding: .4rem .2rem; }
  .rows li { grid-template-columns: 1.2em minmax(0, 1fr); } .rows li > .detail { grid-column: 2; }
  .actions > li { grid-template-columns: minmax(0, 1fr); }
}
"""


def element(tag: str, *content: Html | Text, **attributes: str | bool) -> Html:
    """`<tag attribute="value">content</tag>`. `class_` is class; True is an attribute without a value, False none."""
    given = "".join(
        f" {name.rstrip('_')}" + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not False
    )
    inner = "".join(escape(each, quote=False) if isinstance(each, Text) else each for each in content)
    return Html(f"<{tag}{given}>{inner}</{tag}>")


def joined(parts: Iterable[Html], between: str = "\n") -> Html:
    """Several elements as one, a line each."""
    return Html(between.join(parts))


def badge(text: str, tone: str = "") -> Html:
    """A word in a coloured pill; the tone is ok, bad, late or none."""
    return element("span", Text(text), class_=f"badge {tone}".strip())


def table(
    head: Iterable[str], rows: Iterable[Html], *, class_: str = "", numbers: frozenset[str] = frozenset()
) -> Html:
    """A table in a box of its own that scrolls sideways; columns named in `numbers` stand to the right."""
    cells = (element("th", Text(each), scope="col", class_="number" if each in numbers else False) for each in head)
    top = element("thead", element("tr", *cells))
    inner = element("table", top, element("tbody", Html("\n"), joined(rows)), class_=class_ or False)
    # tabindex: what scrolls must be reachable without a mouse.
    return element("div", inner, class_="scroll", tabindex="0")


def folded(head: Html, body: Html, *, is_open: bool = False) -> Html:
    """A card that shows its head, and on a click the rest."""
    return element("details", element("summary", head), element("div", body), class_="card", open=is_open)


def page(*, verb: str, subject: str, at: datetime, verdict: tuple[str, str], body: Iterable[Html]) -> str:
    """The whole document. The verdict is its tone (ok, bad, late) and its line."""
    tone, said = verdict
    title = f"kubeworker {verb}: {said}"
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is fetched and nothing is run, whatever a node's text might hold.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="robots" content="noindex">\n'
    )
    main = element(
        "main",
        element("h1", Text(f"kubeworker {verb}")),
        element("p", element("code", Text(subject)), Text(f", {at:%Y-%m-%d %H:%M:%S %Z}"), class_="about"),
        element("strong", Text(said), class_=f"verdict {tone}"),
        Html("\n"),
        joined(body),
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>\n{head}{element("title", Text(title))}\n'
        f"<style>{_STYLE}</style>\n</head><body>\n{main}\n</body></html>\n"
    )
