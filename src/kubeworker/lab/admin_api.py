"""The Kubernetes API of one of a lab's kube-apiservers, as its administrator; never another one's, unlike kubectl with
a kubeconfig or `io/kube`.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any

from kubeworker.errors import LabError
from kubeworker.lab.state import LabState, Machine

LIMIT = 3.0
"""Seconds for an answer."""


class AdminApi:
    """Requests to the kube-apiserver of one machine."""

    def __init__(self, lab: LabState, machine: Machine) -> None:
        """Connects with each request."""
        self.machine = machine
        self._tls = ssl.create_default_context(cafile=str(lab.ca))
        folder = lab.folder / "pki"
        self._tls.load_cert_chain(folder / "admin.pem", folder / "admin-key.pem")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """The status and the document that it answers; LabError where it does not within LIMIT seconds."""
        connection = http.client.HTTPSConnection(self.machine.address, 6443, timeout=LIMIT, context=self._tls)
        try:
            headers = {"Accept": "application/json", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            document: dict[str, Any] = json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise LabError(f"its kube-apiserver does not answer: {reason}", subject=self.machine.name) from error
        else:
            return answer.status, document
        finally:
            connection.close()

    def items(self, path: str) -> list[dict[str, Any]]:
        """The objects of a list; LabError where it can't be read."""
        status, document = self.ask("GET", path)
        if status != http.client.OK:
            raise LabError(f"{path}: {document.get('message', status)}", subject=self.machine.name)
        found: list[dict[str, Any]] = document["items"]
        return found
