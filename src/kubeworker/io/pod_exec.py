"""Run a command in a container through the Kubernetes API (hides websockets).

lightkube's client has an exec of its own, but it needs an optional dependency and gives no exit status on failure.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from kubeworker.errors import ApiError, ApiNotFound, ApiUnreachable
from kubeworker.io.kube import Endpoint, Kube

CHANNELS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""Kubernetes' subprotocols (k8s.io/apimachinery/pkg/util/remotecommand): the first byte of a frame names its stream."""
STDOUT, STDERR, ERROR = 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """What the command said and how it ended."""

    stdout: str
    stderr: str = field(repr=False)
    status: int
    """Exit status."""


async def pod_exec(
    kube: Kube, namespace: str, pod: str, command: Sequence[str], *, container: str = "", timeout: float = 30
) -> tuple[str, int]:
    """Standard output and exit status of `command` (no shell) in the pod.

    ApiError where it could not be started or did not end in time.
    """
    result = await exec_at(await kube.endpoint(), namespace, pod, command, container=container, timeout=timeout)
    return result.stdout, result.status


async def exec_at(
    endpoint: Endpoint, namespace: str, pod: str, command: Sequence[str], *, container: str = "", timeout: float = 30
) -> ExecResult:
    """As `pod_exec`, at one known kube-apiserver; standard error comes along."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus, WebSocketException
    from websockets.typing import Subprotocol

    query = [("stdout", "true"), ("stderr", "true"), *(("command", word) for word in command)]
    query += [("container", container)] if container else []
    server = endpoint.server.replace("http", "ws", 1)
    subject = f"exec in Pod {namespace}/{pod}"
    try:
        async with (
            asyncio.timeout(timeout),
            connect(
                f"{server}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{urlencode(query)}",
                ssl=endpoint.tls if server.startswith("wss") else None,
                subprotocols=[Subprotocol(each) for each in CHANNELS],
                additional_headers={"Authorization": endpoint.authorization} if endpoint.authorization else {},
                compression=None,
                max_size=None,
                # The API server is reached directly, as everywhere else.
                proxy=None,
            ) as socket,
        ):
            streams: dict[int, bytearray] = {STDOUT: bytearray(), STDERR: bytearray(), ERROR: bytearray()}
            async for frame in socket:
                data = frame.encode() if isinstance(frame, str) else frame
                if data and data[0] in streams:
                    streams[data[0]] += data[1:]
    except InvalidStatus as error:
        raise _refused(subject, error.response.status_code, bytes(error.response.body or b"")) from error
    except TimeoutError as error:
        raise ApiError(f"it did not end within {timeout:.0f} s", subject=subject) from error
    except (OSError, WebSocketException) as error:
        raise ApiUnreachable(f"{endpoint.server}: {error}", subject=subject) from error
    return ExecResult(
        stdout=streams[STDOUT].decode(errors="replace"),
        stderr=streams[STDERR].decode(errors="replace"),
        status=_status(bytes(streams[ERROR]), subject),
    )


def _status(text: bytes, subject: str) -> int:
    """The exit status that the error stream's Status object tells."""
    try:
        status = json.loads(text)
    except ValueError as error:
        raise ApiError("the connection ended before the command did", subject=subject) from error
    if status.get("status") == "Success":
        return 0
    if status.get("reason") == "NonZeroExitCode":
        causes = (status.get("details") or {}).get("causes") or ()
        codes = [each.get("message", "") for each in causes if each.get("reason") == "ExitCode"]
        if codes and codes[0].isdigit():
            return int(codes[0])
    raise ApiError(str(status.get("message") or "it could not be started"), subject=subject)


def _refused(subject: str, status: int, body: bytes) -> ApiError:
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace").strip() or "the connection was not accepted"
    return (ApiNotFound if status == 404 else ApiError)(f"{message} ({status})", subject=subject)
