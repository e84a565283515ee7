"""The error tree: every error names its subject (a node, file, unit or field) and a way out.

A class is a kind of error: its docstring's first line says what has happened, `why` how that comes, `way_out` what to
do where the error itself knows nothing better. `kubeworker explain ID` and docs/errors.md are made of these.

* KubeworkerError            exit code 1
  * InternalError            a fault of this program
  * InputError               wrong input from the operator: exit code 3
    + UsageError             the command line
    + FileError              a file on the control host that can't be read or written
    + GuideFileError         environment.sh or kube-nginx.conf of the guide
    + SpecError              cluster.yaml: a field, with file and line
    + LockfileError          kubeworker.lock
    + ChartError             a Helm chart and its values
    + CredentialsError       CA, kubeconfig, certificates
    + ArtifactError          an artifact that is missing, altered or of the wrong kind: exit code 1
      - ArtifactMissing      one source does not have it; another may
      - ArtifactChanged      it has another sha256 than it is pinned to
      - BlobDamaged          a file in the cache is not what it was
      - BundleError          a bundle of artifacts
  * NodeError                one node; never stops the others
    + NodeUnreachable        no SSH connection: exit code 4
    + ProbeError             the node's answer was not understood
    + PreflightFailed        the node lacks something; nothing was changed
    + ActionFailed           an action failed; what was swapped in was put back
      - JoinFailed           the node's files and units are right, and it has not become Ready
  * ApiError                 the Kubernetes API refused or did not answer
    + ApiUnreachable         no kube-apiserver answered
    + ApiNotFound            the object does not exist
    + ApiConflict            the object exists already, or was changed since it was read
    + ApiRefused             the object is not accepted, and the API says which of its fields are why
    + LockHeld               another run works on this cluster, or took its lock over
  * LabError                 the local lab could not be brought up or down
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar


def reason(error: OSError) -> str:
    """The system's words for what is wrong, as the end of a line: `permission denied`."""
    return (error.strerror or str(error)).lower()


class KubeworkerError(Exception):
    """Something went wrong.

    Base of all errors that a user is meant to read.
    """

    exit_code: ClassVar[int] = 1
    id: ClassVar[str] = "error"
    """Stable; printed in brackets, and in the machine-readable form."""
    why: ClassVar[str] = "No kind of error that has a name of its own."
    way_out: ClassVar[str] = "run it again with KUBEWORKER_DEBUG=1 to see where it came from"
    """The hint where the error has none of its own."""

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

    @property
    def tagged(self) -> str:
        """The message with the id behind its first line, as people are shown it."""
        return tagged(self.message, self.id)

    @classmethod
    def what(cls) -> str:
        """What has happened, in one line: the docstring's first."""
        return (cls.__doc__ or "").partition("\n")[0]

    def as_json(self) -> dict[str, str]:
        """The value of `error` in the machine-readable form (design: `{"error": {...}}`)."""
        return {
            "id": self.id,
            "type": type(self).__name__,
            "subject": self.subject,
            "message": self.message,
            "hint": self.hint or self.way_out,
        }


def tagged(message: str, error_id: str) -> str:
    """A message with its error's id behind the first line."""
    first, newline, others = message.partition("\n")
    return f"{first} [{error_id}]{newline}{others}"


def tree(root: type[KubeworkerError] = KubeworkerError) -> Iterator[type[KubeworkerError]]:
    """Every kind of error, each before its own kinds."""
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


class InternalError(KubeworkerError):
    """kubeworker met something that it was not made for."""

    id = "internal"
    why = "A fault of this program and not of your input."
    way_out = "run it again with KUBEWORKER_DEBUG=1 and report what it prints"


class InputError(KubeworkerError):
    """The input can't be used as it is."""

    exit_code = 3
    id = "input"
    why = "Input is looked at as a whole before anything is done, so that a mistake in it changes nothing."
    way_out = "correct what the message names, and run the command again"


class UsageError(InputError):
    """The command line is wrong."""

    id = "usage"
    why = "There is no such command, option or node, or its value is not one that it takes."
    way_out = "add --help to the command to see what there is"


class FileError(InputError):
    """A file on this machine can't be read or written."""

    id = "file"
    why = "It is not there, its mode or its folder's forbids it, the disk is full, or it holds something else."
    way_out = "check the path, its mode and the free space: ls -ld PATH; df PATH"


class GuideFileError(InputError):
    """The guide's environment.sh or kube-nginx.conf can't be taken over."""

    id = "guide-file"
    why = "`init --from-env` reads what bash and nginx would make of the files, and refuses what it can't be sure of."
    way_out = "correct the file, or write cluster.yaml with `kubeworker init` and fill it in by hand"


class SpecError(InputError):
    """cluster.yaml is wrong; the subject is `FILE:LINE: field`."""

    id = "cluster-file"
    why = "Unknown fields and values that don't fit together are refused, since a typo would silently do nothing."
    way_out = "docs/reference.md has every field; `kubeworker init` writes them all with a comment each"


class LockfileError(InputError):
    """kubeworker.lock can't be used."""

    id = "lockfile"
    why = "It pins what every binary must hash to; a damaged one would pin nothing."
    way_out = "get it back from version control, or remove it and look at what `kubeworker artifacts fetch` pins anew"


class ChartError(InputError):
    """The network plugin's Helm chart can't be rendered or taken over."""

    id = "chart"
    why = "The values, yours merged over the computed ones, do not fit the chart, or somebody else's objects are there."
    way_out = "look at components.cilium in cluster.yaml; `kubeworker render` shows what comes of it"


class CredentialsError(InputError):
    """A CA, certificate, key or kubeconfig is missing, expired, or does not belong together."""

    id = "credentials"
    why = "Nodes would join with certificates that nobody accepts, or the API would refuse this tool."
    way_out = "check cluster.ca and cluster.kubeconfig in cluster.yaml, and that the files belong to this cluster"


class ArtifactError(InputError):
    """An artifact can't be had, was altered, or is for another architecture."""

    exit_code = 1
    id = "artifact"
    why = "Every binary is checked before it goes to a node: format, architecture, libraries, version, sha256."
    way_out = "look at `kubeworker artifacts list`; artifacts.sources in cluster.yaml says where they come from"


class ArtifactMissing(ArtifactError):
    """This source can't give the artifact (404, no compiler, no recipe); the next one in order may."""

    id = "artifact-missing"
    why = "No source in artifacts.sources has it in this version: no network, a wrong number, or nothing to build with."
    way_out = "add a source to artifacts.sources, or `kubeworker artifacts import BUNDLE`"


class ArtifactChanged(ArtifactError):
    """An artifact has another sha256 than it is pinned to."""

    id = "artifact-changed"
    why = "A mirror, a proxy or the publisher gives other bytes than before; who changed them is not known."
    way_out = "find out why it changed before you pin it anew"


class BlobDamaged(ArtifactError):
    """A file in the cache is not what it was."""

    id = "artifact-damaged"
    why = "Its bytes no longer have its name's sha256: a disk fault, or somebody has written to it."
    way_out = "it was dropped and is fetched again; look at the disk if this repeats"


class BundleError(ArtifactError):
    """A bundle of artifacts can't be read or written."""

    id = "bundle"
    why = "It is not whole, holds something else than its index says, or there is no room for it."
    way_out = "copy it again and compare the sha256, or make it again with `kubeworker artifacts bundle`"


class NodeError(KubeworkerError):
    """Something is wrong with one node; the subject is its name."""

    id = "node"
    why = "A command on the node did not end as it should; the other nodes go on."
    way_out = "look at the node itself, then run the command again for it: --node NAME"


class NodeUnreachable(NodeError):
    """The node can't be reached over SSH: down, key refused, or another host key."""

    exit_code = 4
    id = "node-unreachable"
    why = "No connection, no login, or no root there. Nothing was done on it; the other nodes go on."
    way_out = "try it by hand: ssh USER@HOST sudo -n true; `ssh:` in cluster.yaml says how nodes are reached"


class ProbeError(NodeError):
    """The node's answer was not understood."""

    id = "probe"
    why = "One script asks for all that there is to know; something else was in its output, or a tool of it is missing."
    way_out = "a login script that prints, or a shell that is not POSIX? ssh USER@HOST true must print nothing"


class PreflightFailed(NodeError):
    """The node does not meet a requirement; nothing on it was changed."""

    id = "preflight"
    why = "It would not work, so it was not begun. All faults are named at once."
    way_out = "mend what is named; `kubeworker preflight` looks again and changes nothing"


class ActionFailed(NodeError):
    """An action on the node failed; what it had swapped in was put back."""

    id = "action"
    why = "A config check refused the new configuration, a unit did not come up, or a command of the action failed."
    way_out = "look at the unit's journal on the node, mend it, and run apply again: it goes on where this run ended"


class JoinFailed(ActionFailed):
    """The node's units run, and it has not become a Ready member of the cluster."""

    id = "join"
    why = "Its certificate request waits, its network plugin is not up, or kubelet or this tool do not reach the API."
    way_out = "kubeworker csr list; kubectl describe node NAME; journalctl -u kubelet on the node"


class ApiError(KubeworkerError):
    """The Kubernetes API refused a request or could not be reached."""

    id = "api"
    why = "What it answered stands in the message."
    way_out = "try it by hand with the same kubeconfig: kubectl --kubeconfig FILE get nodes"


class ApiUnreachable(ApiError):
    """No kube-apiserver answered; the message names each one tried and what happened."""

    id = "api-unreachable"
    why = "The servers are down, a firewall is in between, or cluster.apiservers and the kubeconfig name others."
    way_out = (
        "check cluster.apiservers and cluster.kubeconfig, and that the servers run: curl -k https://HOST:PORT/readyz"
    )


class ApiNotFound(ApiError):
    """The object does not exist."""

    id = "api-not-found"
    why = "Somebody deleted it, or the cluster does not know its kind."
    way_out = "run the command again: it looks at what there is now"


class ApiConflict(ApiError):
    """The object exists already, or was changed since it was read."""

    id = "api-conflict"
    why = "Somebody changed it at the same time; their change was not overwritten."
    way_out = "run the command again: it looks at what there is now"


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

    id = "api-refused"
    why = "A field of it is not valid in this version, is somebody else's, or an admission webhook objects."
    way_out = "the message names the field; where it comes from cluster.yaml, change it there"

    def __init__(self, message: str, *, subject: str = "", hint: str = "", causes: tuple[Cause, ...] = ()) -> None:
        """`causes` are the API's own, one for each field."""
        super().__init__(message, subject=subject, hint=hint)
        self.causes = causes


class LockHeld(ApiError):
    """Another run works on this cluster, or took over the lock of this one."""

    id = "lock-held"
    why = "Two runs at once would undo each other's work. A dead run's lock is taken over after a minute."
    way_out = "wait until the other run is done, and run the command again"


class LabError(KubeworkerError):
    """The lab could not do what was asked."""

    id = "lab"
    why = "It needs root, systemd-nspawn and free kernel resources of this machine."
    way_out = "look at `kubeworker lab status`; `kubeworker lab down` and `up` begin anew"
