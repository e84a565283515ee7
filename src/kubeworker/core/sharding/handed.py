"""What a control host hands over to runs elsewhere that must not have its keys and files: one JSON document.

Beside it lie the CA's certificate and kube-proxy's finished client certificate. The CA's key stays behind, and such a
run makes no tokens: it has those that were made for it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kubeworker.core.cluster.bootstrap_token import BootstrapToken
from kubeworker.core.component import Archive
from kubeworker.core.model import Blob
from kubeworker.errors import CredentialsError

NAME = "handed-over.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """The document as a value."""

    tokens: tuple[BootstrapToken, ...] = field(default=(), repr=False)
    """For the nodes that had not joined."""
    archives: tuple[Archive, ...] = ()
    """What the image archives hold that cluster.yaml names, in its order: a mirror has the bytes."""
    local_files: tuple[bytes, ...] = field(default=(), repr=False)
    """The content of the other local files that cluster.yaml names, in its order."""


def render(handed: Handed) -> str:
    """The document; it holds secrets."""
    return json.dumps(
        {
            "tokens": [
                {"id": each.id, "secret": each.secret, "node": each.node, "expires": each.expires.isoformat()}
                for each in handed.tokens
            ],
            "archives": [
                {"references": list(each.references), "sha256": each.blob.sha256, "size": each.blob.size}
                for each in handed.archives
            ],
            "local_files": [base64.b64encode(each).decode() for each in handed.local_files],
        }
    )


def parse(text: str, *, subject: str) -> Handed:
    """The value; CredentialsError, which never quotes it, for anything else."""
    try:
        found: Mapping[str, Any] = json.loads(text)
        return Handed(
            tokens=tuple(
                BootstrapToken(
                    id=each["id"],
                    secret=each["secret"],
                    node=each["node"],
                    expires=datetime.fromisoformat(each["expires"]),
                )
                for each in found["tokens"]
            ),
            archives=tuple(
                Archive(
                    references=tuple(each["references"]), blob=Blob(sha256=str(each["sha256"]), size=int(each["size"]))
                )
                for each in found["archives"]
            ),
            local_files=tuple(base64.b64decode(each) for each in found["local_files"]),
        )
    except (ValueError, KeyError, TypeError):
        raise CredentialsError(
            "is not what `kubeworker job` writes", subject=subject, hint="render the Job again"
        ) from None
