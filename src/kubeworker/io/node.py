"""One node over SSH. With io/known_hosts.py the only file that knows asyncssh; its errors are NodeUnreachable and such.

A connection is made once per node and run; each `run` is one channel on it. Host keys are always checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import os
import random
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import asyncssh

from kubeworker.core import limit
from kubeworker.core.spec import NodeSpec, Ssh
from kubeworker.errors import CredentialsError, NodeError, NodeUnreachable
from kubeworker.io import known_hosts
from kubeworker.io.fleet import Slots

UNANSWERED_KEEPALIVES = 3
"""After so many the connection counts as lost."""

FIRST_LOGINS = 16
"""How many logins are under way at once before any has succeeded; each success makes room for one more."""

# AES-GCM runs on the CPU's own instructions and needs no MAC of its own: an upload is not bound by the cipher.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr")
# No post-quantum exchange first: it costs a connection some milliseconds and guards nothing that outlives the run.
_KEY_EXCHANGES = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group14-sha256",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a script on a node left: its output, and its exit status."""

    stdout: str
    stderr: str
    status: int


class Node(Protocol):
    """A machine that scripts can be run on as root."""

    @property
    def name(self) -> str:
        """The node's name in cluster.yaml."""
        ...

    async def run(
        self,
        script: str,
        *,
        stdin: bytes | AsyncIterable[bytes] = b"",
        timeout: float = 300,
        on_line: Callable[[str], None] | None = None,
    ) -> Result:
        """Run the script as root by sh, over one channel; it finds `stdin` on its standard input.

        `on_line` gets each line of standard output as it arrives. Raises NodeUnreachable when the connection is lost
        or sudo refuses, NodeError after `timeout` seconds. A script whose caller is gone goes on to its end.
        """
        ...

    def forward(self, host: str, port: int) -> AbstractAsyncContextManager[int]:
        """A TCP port on 127.0.0.1 that leads to host:port as the node sees it, while the context lasts."""
        ...

    async def close(self) -> None:
        """End the connection."""
        ...


def login_slots(ssh: Ssh) -> Slots:
    """Places for a run's logins, its nodes and jump hosts together. Once logged in, a connection needs none."""
    return Slots(limit.starting(ceiling=ssh.concurrency, first=FIRST_LOGINS))


async def connect(
    node: NodeSpec,
    ssh: Ssh,
    *,
    accept_new_host_keys: bool = False,
    jump_hosts: JumpHosts | None = None,
    logins: Slots | None = None,
) -> Node:
    """Log in to a node; NodeUnreachable says what is in the way.

    cluster.yaml comes before ~/.ssh/config, the node's own `ssh` before the common one. A host key that is in no
    known_hosts file is accepted (and written there) only with `accept_new_host_keys`; a changed one never.
    `jump_hosts` shares the connections to jump hosts between nodes; the caller closes it after the nodes. `logins`
    holds them to what the other ends bear: a login that is dropped is tried again, and lowers it.
    """
    own = node.ssh
    way = _Way(
        subject=node.name,
        host=own.host or node.address,
        port=own.port or ssh.port,
        user=own.user or ssh.user,
        identity=own.identity or ssh.identity,
        jump=own.jump or ssh.jump,
        ssh=ssh,
        accept_new=accept_new_host_keys,
        logins=logins or login_slots(ssh),
    )
    own_jumps = JumpHosts()
    try:
        connection = await _open(way, jump_hosts or own_jumps)
    except BaseException:
        await own_jumps.aclose()
        raise
    return _SshNode(node.name, connection, own_jumps)


class _SshNode:
    """A Node over an asyncssh connection; the jump hosts that are its own are closed with it."""

    def __init__(self, name: str, connection: asyncssh.SSHClientConnection, jump_hosts: JumpHosts) -> None:
        self._name = name
        self._connection = connection
        self._jump_hosts = jump_hosts
        self._user: str = connection.get_extra_info("username")

    @property
    def name(self) -> str:
        return self._name

    async def run(
        self,
        script: str,
        *,
        stdin: bytes | AsyncIterable[bytes] = b"",
        timeout: float = 300,
        on_line: Callable[[str], None] | None = None,
    ) -> Result:
        text = script.encode()
        # The script comes by standard input: the process list shows neither it nor what it holds. head takes exactly
        # its bytes and leaves the rest to the script.
        shell = f"sh -c 'eval \"$(head -c {len(text)})\"'"
        command = shell if self._user == "root" else f"sudo -n {shell}"
        try:
            async with asyncio.timeout(timeout):
                result = await self._run(command, text, stdin, on_line)
        except TimeoutError as error:
            raise NodeError(
                f"a script did not end within {timeout:g} s", subject=self._name, hint="it goes on to its own end"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise self._lost(str(error)) from error
        if self._user != "root" and result.status == 1 and result.stderr.startswith("sudo:"):
            raise NodeUnreachable(
                f"sudo refuses user {self._user}: {result.stderr.strip().splitlines()[0]}",
                subject=self._name,
                hint=f"allow it without a password: echo '{self._user} ALL=(ALL) NOPASSWD:ALL' > "
                f"/etc/sudoers.d/{self._user}",
            )
        return result

    async def _run(
        self,
        command: str,
        text: bytes,
        stdin: bytes | AsyncIterable[bytes],
        on_line: Callable[[str], None] | None,
    ) -> Result:
        process: asyncssh.SSHClientProcess[bytes] = await self._connection.create_process(command, encoding=None)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_feed(process.stdin, text, stdin))
                output = group.create_task(_collect(process.stdout, on_line))
                errors = group.create_task(process.stderr.read())
            await process.wait_closed()
        except ExceptionGroup as failed:
            # A lost connection fails all of them, for the same reason.
            first = failed.exceptions[0]
            raise first from first.__cause__
        finally:
            process.close()
        if process.returncode is None:
            raise self._lost("the channel was closed")
        return Result(
            stdout=output.result().decode("utf-8", "surrogateescape"),
            stderr=errors.result().decode("utf-8", "replace"),
            status=process.returncode,
        )

    def _lost(self, reason: str) -> NodeUnreachable:
        return NodeUnreachable(
            f"the connection was lost: {reason}",
            subject=self._name,
            hint="what ran on the node finishes or rolls back on its own; run the command again",
        )

    @asynccontextmanager
    async def forward(self, host: str, port: int) -> AsyncIterator[int]:
        listener = await self._connection.forward_local_port("127.0.0.1", 0, host, port)
        try:
            yield listener.get_port()
        finally:
            listener.close()
            await listener.wait_closed()

    async def close(self) -> None:
        self._connection.close()
        await self._connection.wait_closed()
        await self._jump_hosts.aclose()


async def _feed(writer: asyncssh.SSHWriter[bytes], text: bytes, stdin: bytes | AsyncIterable[bytes]) -> None:
    # A script that ends before it has read everything closes the channel; its exit status tells the rest.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, asyncssh.ConnectionLost):
        writer.write(text)
        if isinstance(stdin, bytes):
            writer.write(stdin)
        else:
            async for chunk in stdin:
                writer.write(chunk)
                await writer.drain()
        writer.write_eof()


async def _collect(reader: asyncssh.SSHReader[bytes], on_line: Callable[[str], None] | None) -> bytes:
    if on_line is None:
        return await reader.read()
    lines = []
    while line := await reader.readline():
        lines.append(line)
        on_line(line.decode("utf-8", "replace").rstrip("\n"))
    return b"".join(lines)


# ---------------------------------------------------------------------------------------------------------------
# Logging in


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How one machine (a node, or a jump host on the way to it) is reached."""

    subject: str
    host: str
    port: int | None
    user: str
    identity: str
    jump: str
    ssh: Ssh
    accept_new: bool
    logins: Slots = field(compare=False, repr=False)

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


class JumpHosts:
    """Connections to jump hosts: one to each, however many nodes lie behind it.

    A jump host's sshd turns down logins at random when more than ten are under way (MaxStartups 10:30:100,
    sshd_config(5)), so that a connection of its own for each node would lose some of a fleet.
    """

    def __init__(self) -> None:
        """Nothing is connected before the first node needs it."""
        self._locks: dict[_Way, asyncio.Lock] = {}
        self._known: dict[_Way, asyncssh.SSHClientConnection | NodeUnreachable] = {}

    async def connection(self, way: _Way) -> asyncssh.SSHClientConnection:
        """The connection to that jump host; what keeps it from being made is every node's error behind it."""
        key = replace(way, subject="")
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._known:
                try:
                    self._known[key] = await _open(way, self)
                except NodeUnreachable as error:
                    self._known[key] = error
        known = self._known[key]
        if isinstance(known, NodeUnreachable):
            raise NodeUnreachable(f"jump host: {known.message}", subject=way.subject, hint=known.hint) from known
        return known

    async def aclose(self) -> None:
        """End them, the ones reached through others first."""
        for known in reversed(self._known.values()):
            if not isinstance(known, NodeUnreachable):
                known.close()
                await known.wait_closed()
        self._known.clear()


async def _open(way: _Way, jump_hosts: JumpHosts) -> asyncssh.SSHClientConnection:
    given, options = _options(way)
    jump = way.jump or _configured(options, "ProxyJump")
    if jump and jump != "none":
        given["tunnel"] = await jump_hosts.connection(_jump_way(way, jump))
    return await _login(way, given, options)


def _jump_way(way: _Way, jump: str) -> _Way:
    """The last of `[USER@]HOST[:PORT],...`, reached through those before it."""
    before, _, last = jump.rpartition(",")
    user, _, place = last.rpartition("@")
    host, colon, port = place.rpartition(":")
    return _Way(
        subject=way.subject,
        host=(host if colon else place).strip("[]"),
        port=int(port) if colon else None,
        user=user,
        identity=way.identity,
        jump=before or "none",
        ssh=way.ssh,
        accept_new=way.accept_new,
        logins=way.logins,
    )


def _options(way: _Way) -> tuple[dict[str, Any], asyncssh.SSHClientConnectionOptions | None]:
    """What asyncssh is given, and what it makes of that and the configuration file; None: there is nothing to ask it.

    It works that out for itself once more.
    """
    config = Path(way.ssh.config).expanduser()
    given: dict[str, Any] = {
        "config": [str(config)] if config.exists() else None,
        # The jump host is connected to by `_open`, with the same keys and known hosts; asyncssh's own would not.
        "tunnel": None,
        "gss_kex": False,
        "gss_auth": False,
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "request_pty": False,
        "kex_algs": _KEY_EXCHANGES,
        "encryption_algs": _CIPHERS,
        "compression_algs": ("none",),
        "connect_timeout": way.ssh.connect_timeout,
        "keepalive_interval": way.ssh.keepalive,
        "keepalive_count_max": UNANSWERED_KEEPALIVES,
    }
    if way.port is not None:
        given["port"] = way.port
    if way.user:
        given["username"] = way.user
    try:
        given |= _identity(way)
        # With keys that were read in and no file, there is nothing left in it that could be wrong.
        if given["config"] is None and given.get("client_keys"):
            return given, None
        return given, asyncssh.SSHClientConnectionOptions(host=way.host, **given)
    except (asyncssh.ConfigParseError, asyncssh.KeyImportError, OSError, ValueError) as error:
        raise CredentialsError(
            f"can't be used for SSH: {error}", subject=way.identity or str(config), hint="check `ssh:` in cluster.yaml"
        ) from error


def _identity(way: _Way) -> dict[str, Any]:
    if not way.identity:
        return {}
    path = Path(way.identity).expanduser()
    if pairs := _keys(path):
        # Copies: asyncssh notes in a pair how the one node at hand wants it to sign.
        return {"client_keys": [copy.copy(pair) for pair in pairs], "agent_path": None}
    # A key with a passphrase works where the agent holds it.
    if not os.environ.get("SSH_AUTH_SOCK"):
        raise CredentialsError(
            "the key has a passphrase, and no agent runs that could hold it", subject=str(path), hint=f"ssh-add {path}"
        )
    return {"client_keys": [], "agent_identities": [str(path.with_name(path.name + ".pub"))]}


def _keys(path: Path) -> Sequence[asyncssh.SSHKeyPair]:
    """The file's key, with the certificate beside it, read in once for the whole fleet while neither is changed."""
    stamp = tuple(
        (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for each in (path, path.with_name(path.name + "-cert.pub"), path.with_name(path.name + ".pub"))
        if each.exists()
        for stat in (each.stat(),)
    )
    known = _kept_keys.get(path)
    if known is None or known[0] != stamp:
        known = _kept_keys[path] = (stamp, asyncssh.load_keypairs(str(path), ignore_encrypted=True))
    return known[1]


_kept_keys: dict[Path, tuple[tuple[tuple[int, ...], ...], Sequence[asyncssh.SSHKeyPair]]] = {}


def _configured(options: asyncssh.SSHClientConnectionOptions | None, key: str) -> Any:
    return options.config.get(key) if options is not None else None


async def _login(
    way: _Way, given: Mapping[str, Any], options: asyncssh.SSHClientConnectionOptions | None
) -> asyncssh.SSHClientConnection:
    user = way.user or _configured(options, "User") or "root"
    keys = _KnownHosts(way, options)
    blamed, tries, waits, gains = False, 0, 0, 0
    while True:
        async with way.logins.slot() as slot:
            try:
                connection = await asyncssh.connect(
                    way.host,
                    **{**given, "username": user, "known_hosts": keys.match, "client_factory": lambda: _Client(keys)},
                )
            except (TimeoutError, asyncssh.Error, OSError) as error:
                # While others get in, patience is all it takes: such a try does not count.
                tries, gains = tries + (way.logins.gains == gains or not tries), way.logins.gains
                if not isinstance(error, _DROPPED) or tries == limit.TRIES:
                    raise _unreachable(way, user, keys, error) from error
                # One that drops every login, whatever the reason, must not slow down all others: it counts once.
                if not blamed and not slot.alone:
                    slot.lost()
                    blamed = True
            else:
                slot.gained()
                return connection
        waits += 1
        await asyncio.sleep(limit.wait(waits, random.random()))  # noqa: S311 (spread, not secrecy)


# What sshd does with a connection too many (sshd_config(5), MaxStartups; since 9.8 PerSourcePenalties too): it closes
# it before it has said its version. Data of ours that it had not read makes that a reset.
_DROPPED = (asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError)


def _unreachable(way: _Way, user: str, keys: _KnownHosts, error: Exception) -> NodeUnreachable:
    match error:
        case asyncssh.HostKeyNotVerifiable():
            message, hint = keys.refusal or f"its host key was refused: {error}", keys.hint
        case asyncssh.PermissionDenied():
            message = f"{way.place} refuses the key for user {user}"
            hint = "check `ssh.user` and `ssh.identity`, or the agent (ssh-add -l)"
        case TimeoutError() if keys.connected:
            message = f"{way.place} accepts the connection, and then does not finish the login"
            message += f" within {way.ssh.connect_timeout:g} s"
            hint = "does sshd hang, or the whole machine? Is it sshd that listens there? See the machine's console."
        case TimeoutError():
            message = f"{way.place} does not answer within {way.ssh.connect_timeout:g} s"
            hint = "is the machine up, and the address right? A firewall may drop packets to this port."
        case ConnectionRefusedError():
            message, hint = f"{way.place} refuses connections", "is sshd running, and on this port?"
        case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH as number):
            # Not strerror: asyncio puts its own "Connect call failed" there.
            message, hint = (
                f"there is no way to {way.place}: {os.strerror(number).lower()}",
                "is the machine up, and the route there?",
            )
        case socket.gaierror():
            message, hint = f"the name {way.host} is not known: {error}", "check `ssh.host`, DNS and /etc/hosts"
        case asyncssh.ChannelOpenError():
            message = f"the jump host can't reach {way.place}: {error.reason}"
            hint = "check the address as the jump host sees it, and AllowTcpForwarding there"
        case asyncssh.ConnectionLost() | ConnectionResetError() | BrokenPipeError():
            message = f"{way.place} closed the connection during the login, each time"
            hint = "is it sshd that listens there? It may be kept busy by others: see MaxStartups in its sshd_config(5)"
        case _:
            message, hint = f"{way.place}: {error}", f"try: ssh {user}@{way.host}"
    return NodeUnreachable(message, subject=way.subject, hint=hint)


class _Client(asyncssh.SSHClient):
    """Asked about a host key that no known_hosts file holds."""

    def __init__(self, keys: _KnownHosts) -> None:
        self._keys = keys

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:  # noqa: ARG002 (asyncssh's signature)
        self._keys.connected = True

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return self._keys.accepts(host, addr, port, key)


class _KnownHosts:
    """The known_hosts files that count for one machine, and the decision about a key that is not in them."""

    def __init__(self, way: _Way, options: asyncssh.SSHClientConnectionOptions | None) -> None:
        configured = _configured(options, "UserKnownHostsFile")
        # cluster.yaml's own word comes first, then ~/.ssh/config's, then the default. "none" there does not switch
        # the check off.
        own = "known_hosts" in way.ssh.model_fields_set or not configured
        self._files = tuple(Path(name).expanduser() for name in ((way.ssh.known_hosts,) if own else configured))
        self._alias = _configured(options, "HostKeyAlias") or ""
        self._accept_new = way.accept_new
        self.refusal = ""
        self.hint = ""
        self.connected = False
        """Somebody took the connection; a machine that is down or behind a firewall does not."""

    def match(self, host: str, addr: str, port: int | None) -> Any:
        """What asyncssh takes for the host's keys."""
        return known_hosts.match(self._files, host, addr, port)

    def accepts(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        name = self._alias or host
        known, authorities, *_ = self.match(name, "" if self._alias else addr, port if port != 22 else None)
        entry = name if port == 22 else f"[{name}]:{port}"
        file = self._files[0]
        if known or authorities:
            self.refusal = f"{entry} shows another host key ({key.get_fingerprint()}) than the one in {file}"
            self.hint = f"somebody may be in between; if the machine was reinstalled: ssh-keygen -f {file} -R '{entry}'"
            return False
        if not self._accept_new:
            self.refusal = f"the host key of {entry} ({key.get_fingerprint()}) is not in {file}"
            self.hint = "compare the fingerprint and add it with ssh-keyscan, or use --accept-new-host-keys"
            return False
        known_hosts.add(self._files, entry, key)
        return True
