"""The sha256 files that publishers put beside their releases."""

from __future__ import annotations

import re

_DIGEST = re.compile(r"^[0-9a-fA-F]{64}$")


def find(text: str, name: str) -> str:
    """The digest of the file `name` in a publisher's checksum file, lower case; empty when it has none.

    Two forms are in use: a bare digest (dl.k8s.io's kubelet.sha256), and sha256sum(1) lines, `DIGEST  NAME` or
    `DIGEST *NAME`, of one file or of many.
    """
    for line in text.splitlines():
        words = line.split()
        if not words or not _DIGEST.match(words[0]):
            continue
        if len(words) == 1 or words[1].removeprefix("*").rpartition("/")[2] == name:
            return words[0].lower()
    return ""
