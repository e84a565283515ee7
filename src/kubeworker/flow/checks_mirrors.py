"""verify's downloads of an image through a registry's mirrors, made on the node."""

from __future__ import annotations

from kubeworker.core.model import MirrorPull
from kubeworker.core.verify import mirror_pull
from kubeworker.core.verify.checks import Verdict, failed
from kubeworker.core.verify.mirror_pull import Fetched
from kubeworker.io.fleet import Ok, fan_out
from kubeworker.io.node import Node

PARALLEL = 3
"""Downloads at once on one node: sshd allows ten sessions on a connection (MaxSessions), other checks need some too."""


async def pulls(checks: tuple[MirrorPull, ...], node: Node) -> tuple[Verdict, ...]:
    """The verdicts of these checks, in their order."""
    outcomes = await fan_out(checks, lambda check: pull(check, node), limit=PARALLEL)
    return tuple(
        outcome.value if isinstance(outcome, Ok) else failed(check, f"not tried: {outcome.error.message}")
        for check, outcome in outcomes.items()
    )


async def pull(check: MirrorPull, node: Node) -> Verdict:
    """The verdict of a MirrorPull check: manifest, config and layers are asked for as a pull does, and dropped."""
    if not check.image:
        field = f"components.containerd.mirrors.{check.id.removeprefix('containerd.registry.')}.probe"
        return failed(check, f"no image to pull is known: name one in {field}")
    try:
        return await _pull(check, node)
    except ValueError as error:
        return failed(check, f"{check.image}: {error}")


async def _pull(check: MirrorPull, node: Node) -> Verdict:
    reference = check.image
    if not check.resolves:
        _, resolved = await _manifest(check, node, reference, only_mirror=False)
        if resolved.status != 0:
            return mirror_pull.judge(check, (resolved,))
        reference = mirror_pull.by_digest(check.image, resolved.digest)
    architecture, manifest = await _manifest(check, node, reference)
    if manifest.status != 0:
        return mirror_pull.judge(check, (manifest,))
    downloads = [manifest]
    digest = mirror_pull.of_machine(mirror_pull.document(manifest), architecture)
    if digest:
        _, manifest = await _manifest(check, node, mirror_pull.by_digest(check.image, digest))
        downloads.append(manifest)
        if manifest.status != 0:
            return mirror_pull.judge(check, downloads)
    wanted = mirror_pull.blobs(mirror_pull.document(manifest))
    answer = await node.run(mirror_pull.blobs_script(check, wanted), timeout=mirror_pull.blobs_seconds(wanted))
    _, blobs = mirror_pull.parse(answer.stdout)
    for each, got in zip(wanted, blobs, strict=True):
        if wrong := mirror_pull.other_bytes(check, each, got):
            return wrong
    return mirror_pull.judge(check, (*downloads, *blobs))


async def _manifest(check: MirrorPull, node: Node, reference: str, *, only_mirror: bool = True) -> tuple[str, Fetched]:
    """The node's architecture, and the manifest of that name."""
    script = mirror_pull.manifest_script(check, reference, only_mirror=only_mirror)
    answer = await node.run(script, timeout=mirror_pull.FETCH_SECONDS + 10)
    architecture, fetched = mirror_pull.parse(answer.stdout)
    if len(fetched) != 1:
        raise ValueError(f"not tried: {answer.stderr.strip()[-300:]}")
    return architecture, fetched[0]
