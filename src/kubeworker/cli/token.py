"""`kubeworker token`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from kubeworker.cli.options import DEFAULT_FILE, File, Flag, Json, Yes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kubeworker.core.cluster.token_listing import Chosen

app = App(name="token", help="Bootstrap tokens: list them, take them back. Their secrets are never shown.")

DECLINED = 2
"""Exit code when the answer was no, as of `apply`."""


@app.command(name="list")
async def list_(*, file: File = DEFAULT_FILE, json: Json = False) -> int:
    """Show every bootstrap token in the cluster, whoever made it: its node, what time it has left, and its state.

    Args:
        file: The cluster file; paths in it are relative to it.
        json: Print the list as one JSON document.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report_token import print_tokens
    from kubeworker.cli.spec import load_cluster
    from kubeworker.flow import csr, tokens

    async with await csr.connect(load_cluster(file)) as kube:
        listed = await tokens.listing(kube)
    if json:
        print_document({"tokens": [each.as_json() for each in listed]})
    else:
        print_tokens(console(), listed)
    return 0


@app.command
async def revoke(
    *names: Annotated[str, Parameter(help="Ids of tokens (the six characters before the dot), or nodes.")],
    every: Annotated[Flag, Parameter(name="--all")] = False,
    file: File = DEFAULT_FILE,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Delete bootstrap tokens, so that nobody joins with them any more; nodes that have joined don't need theirs.

    A node's name means the tokens that this tool made for it. Tokens that others made (kubeadm, ...) go by id only, and
    are asked about. What is gone already is no error.

    Args:
        every: Every token that this tool made.
        file: The cluster file; paths in it are relative to it.
        yes: Don't ask. Needed for others' tokens where there is no terminal.
        json: Print what was done as one JSON document.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report_token import print_revoked
    from kubeworker.cli.spec import load_cluster
    from kubeworker.flow import csr, tokens

    cluster = load_cluster(file)
    async with await csr.connect(cluster) as kube:
        done = await tokens.revoke(kube, cluster, names, every=every, confirm=_confirm(yes=yes, can_ask=not json))
    if json:
        print_document(done.as_json())
    elif done.confirmed:
        print_revoked(console(), done)
    return 0 if done.confirmed else DECLINED


def _confirm(*, yes: bool, can_ask: bool) -> Callable[[Chosen], Awaitable[bool]]:
    from kubeworker.cli.output import ask, is_interactive
    from kubeworker.errors import UsageError

    async def confirm(chosen: Chosen) -> bool:
        if yes:
            return True
        foreign = ", ".join(f"{token.id} (made by {token.maker or 'somebody else'})" for token in chosen.foreign)
        if not can_ask or not is_interactive():
            hint = "if you mean it, run it again with --yes"
            raise UsageError(f"not made by this tool: {foreign}", subject="kubeworker token revoke", hint=hint)
        return await ask(f"Not made by this tool: {foreign}. Delete all the same?")

    return confirm
