"""The error tree: every error names its subject (a node, file, unit or field) and a way out.

* KubeworkerError            exit code 1
  * InputError               wrong input from the operator: exit code 3
    + SpecError              cluster.yaml: a field, with file and line
    + CredentialsError       CA, kubeconfig, certificates
    + ArtifactError          an artifact that is missing, altered or of the wrong kind
      - ArtifactMissing      one source does not have it; another may
  * NodeError                one node; never stops the others
    + NodeUnreachable        no SSH connection: exit code 4
    + PreflightFailed        the node lacks something; nothing was changed
    + ActionFailed           an action failed; what was swapped in was put back
  * ApiError                 the Kubernetes API refused or did not answer
    + ApiUnreachable         no kube-apiserver answered
    + ApiNotFound            the object does not exist
    + ApiConflict            the object exists already, or was changed since it was read
    + ApiRefused             the object is not accepted, and the API says which of its fields are why
    + LockHeld               another run works on this cluster, or took its lock over
  * LabError                 the local lab could not be brought up or down
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class KubeworkerError(Exception):
    """Base of all errors that a user is meant to read."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, subject: str = "", hint: str = "") -> None:
        """Say what happened (`message`), to what (`subject`), and what the reader can do about it (`hint`)."""
        super().__init__(message)
        self.message = message
        self.subject = subject
        self.hint = hint

    def __str__(self) -> str:
        """One line, subject first, as a terminal shows it; the hint follows on a line of its own."""
        line = f"{self.subject}: {self.message}" if self.subject else self.message
        return f"{line}\n  {self.hint}" if self.hint else line

    def as_json(self) -> dict[str, str]:
        """The value of `error` in the machine-readable form (design: `{"error": {...}}`)."""
        return {"type": type(self).__name__, "subject": self.subject, "message": self.message, "hint": self.hint}


class InputError(KubeworkerError):
    """The operator's input can't be used as it is."""

    exit_code = 3


class SpecError(InputError):
    """cluster.yaml is wrong; the subject is `FILE:LINE: field`."""


class CredentialsError(InputError):
    """A CA, certificate, key or kubeconfig is missing, expired, or does not belong together."""


class ArtifactError(InputError):
    """An artifact can't be had, was altered, or is for another architecture."""

    exit_code = 1


class ArtifactMissing(ArtifactError):
    """This source can't give the artifact (404, no compiler, no recipe); the next one in order may."""


class NodeError(KubeworkerError):
    """Something is wrong with one node; the subject is its name."""


class NodeUnreachable(NodeError):
    """The node can't be reached over SSH: down, key refused, or another host key."""

    exit_code = 4


class PreflightFailed(NodeError):
    """The node does not meet a requirement; nothing on it was changed."""


class ActionFailed(NodeError):
    """An action on the node failed; what it had swapped in was put back."""


class ApiError(KubeworkerError):
    """The Kubernetes API refused a request or could not be reached."""


class ApiUnreachable(ApiError):
    """No kube-apiserver answered; the message names each one tried and what happened."""


class ApiNotFound(ApiError):
    """The object does not exist."""


class ApiConflict(ApiError):
    """The object exists already, or was changed since it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One of the API's reasons (metav1.StatusCause)."""

    reason: str
    """FieldManagerConflict, FieldValueInvalid, ..."""
    message: str
    field: str
    """.spec.selector"""


class ApiRefused(ApiError):
    """The object is not accepted as it is."""

    def __init__(self, message: str, *, subject: str = "", hint: str = "", causes: tuple[Cause, ...] = ()) -> None:
        """`causes` are the API's own, one for each field."""
        super().__init__(message, subject=subject, hint=hint)
        self.causes = causes


class LockHeld(ApiError):
    """Another run works on this cluster, or took over the lock of this one."""


class LabError(KubeworkerError):
    """The lab could not do what was asked."""
