"""`kubeworker job`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import App, Parameter, validators

from kubeworker.cli.options import DEFAULT_FILE, File, Json, Quiet

if TYPE_CHECKING:
    from kubeworker.cli.report_apply import ApplyDocument

app = App(name="job")  # its help is what `render` says


@app.default
async def render(
    *,
    image: str,
    shards: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=1000))],
    file: File = DEFAULT_FILE,
    out: Annotated[Path | None, Parameter(name="--out", negative="")] = None,
) -> int:
    """Print the objects of a Job whose pods each run `apply --shard I/N`, for `kubectl apply --server-side -f -`.

    They hold secrets: an SSH key, kube-proxy's client certificate, a bootstrap token for each node that has not joined
    (it lives minutes: apply them at once). The CA's key stays here. The pods may do what they do and no more, by name.
    Nodes fetch their artifacts from a mirror: `artifacts: {delivery: pull}`.

    Args:
        image: An image that has kubeworker on its PATH (packaging/Containerfile).
        shards: Into how many parts the fleet is cut; each is one pod.
        file: The cluster file; paths in it are relative to it.
        out: Write them into this file, readable by its owner only.
    """
    import sys

    from kubeworker.cli.output import check_writable
    from kubeworker.errors import UsageError
    from kubeworker.flow import job
    from kubeworker.io.whole_file import write_atomically

    if out is None and sys.stdout.isatty():
        hint = "pipe it: kubeworker job ... | kubectl apply --server-side -f -; or name a file: --out FILE"
        raise UsageError("it holds secrets, which do not belong on a terminal", subject="kubeworker job", hint=hint)
    if out:
        check_writable(out)
    text = await job.render(file, image=image, shards=shards)
    if out is None:
        sys.stdout.write(text)
    else:
        write_atomically(out, text.encode(), mode=0o600)
    return 0


@app.command
async def report(*, file: File = DEFAULT_FILE, quiet: Quiet = False, json: Json = False) -> int:
    """Show what the Job's pods have done, as one apply of the whole fleet shows it.

    Exit code as that of apply; 1 also while a part is at work or has ended without a report.

    Args:
        file: The cluster file; paths in it are relative to it.
        quiet: For cron: nothing where all is well, else what is not.
        json: Print it as one JSON document.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report_apply import print_result
    from kubeworker.cli.spec import load_cluster
    from kubeworker.errors import ApiUnreachable
    from kubeworker.flow import job
    from kubeworker.flow.session import connect_kube

    reached = await connect_kube(load_cluster(file))
    if isinstance(reached, ApiUnreachable):
        raise reached
    async with reached as kube:
        found = await job.report(kube)
    if json:
        print_document(found.as_json())
        return found.exit_code
    if quiet and not found.exit_code:
        return 0
    for part in found.parts:
        error = part.document.get("error")
        why = f": {error['message']}" if error else f": {part.last}" if part.last else ""
        console().print(f"part {part.index}: {part.phase} ({part.pod}){why}", highlight=False, markup=False)
    print_result(console(), cast("ApplyDocument", found.as_json()))
    return found.exit_code
