"""The agent's control API, from outside: one connection over its Unix socket.

http.client, where the rest of the house uses httpx: a whole ``tunnelctl status`` has 250 ms on a slow core, and on
this one importing httpx takes 115 ms of it, http.client 20 (Python 3.11).
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import socket
import stat
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

from tunneld.errors import CODES, TunneldError

__all__ = ["Client", "Refused", "Unreachable"]

EVENTS_SILENCE = 45.0
"""Seconds without a byte after which the agent is taken for gone: three of its keepalives."""

_ADVISED = frozenset(
    (
        "no_such_request",
        "no_such_stream",
        "no_such_tunnel",
        "not_inspected",
        "not_protected",
        "tunnel_configured",
        "tunnel_exists",
    )
)
"""Codes of refusals that say what is so; what to do about it stands in their advice."""


class Unreachable(TunneldError):
    """No agent answers on that socket, or the socket is not ours to use."""

    exit_status = 3


class Refused(TunneldError):
    """The agent answered that it did not do it.

    Attributes:
        code: the stable word of the problem.
        faults: one line each, where the agent names several.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code", ""))
        self.faults = [str(fault) for fault in problem.get("faults") or ()]
        if self.code == "bad_argument":
            self.exit_status = 2  # as where it is found out here
        text = str(problem.get("detail") or problem.get("title") or f"the agent answered {status}")
        if self.code in _ADVISED and (advice := CODES[self.code].advice) not in text:
            text = f"{text.rstrip('.')}. {advice}"
        super().__init__(text)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the Unix socket instead of a host."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class Client:
    """Calls of the control API.

    Args:
        path: of the socket.
        timeout: seconds that the agent has for each answer.
    """

    #: What the daemon at the other end is called.
    daemon = "agent"

    def __init__(self, path: str, *, timeout: float = 10.0) -> None:
        self.path = path
        self._timeout = timeout
        self._connection: http.client.HTTPConnection = _Connection(path, timeout)
        self._prefix = ""
        self._headers: dict[str, str] = {}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def abort(self) -> None:
        """Break the connection from another thread: a read under way ends."""
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def call(self, method: str, target: str, body: object = None) -> Any:
        """Return the JSON of the answer.

        Raises:
            Refused: the agent answered with a problem.
            Unreachable: there is no agent, or it does not answer.
        """
        answer = self._send(method, target, body)
        try:
            return self._parsed(answer)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def text(self, target: str) -> str:
        """Return an answer that is plain text; raises as `call`."""
        answer = self._send("GET", target, None)
        try:
            if answer.status != http.client.OK:
                self._parsed(answer)
            return answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def events(self, since: str | None = None, query: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
        """Yield the JSON text of each event, until the agent ends the stream.

        Args:
            since: id of the last event that was seen; those that came after it are told first.
            query: (``type`` or ``tunnel``, its name) for each that is wanted; none: all. An older agent sends all.

        Raises:
            Refused: as for `call`.
            Unreachable: the agent is gone or was silent for `EVENTS_SILENCE`.
        """
        target = f"/v1/events?{urlencode(query)}" if query else "/v1/events"
        yield from self.lines(target, {"Last-Event-ID": since} if since else None)

    def lines(self, target: str, headers: dict[str, str] | None = None) -> Iterator[str]:
        """Yield the data of each event of a stream of the agent's; raises as `events`."""
        answer = self._send("GET", target, None, headers)
        try:
            if answer.status != http.client.OK:
                self._parsed(answer)
            if self._connection.sock is not None:
                self._connection.sock.settimeout(EVENTS_SILENCE)
            while line := answer.readline():
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _send(
        self, method: str, target: str, body: object, more: dict[str, str] | None = None
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "*/*", **self._headers, **(more or {})}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, self._prefix + target, data, headers)
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._unreachable(error) from None

    def _parsed(self, answer: http.client.HTTPResponse) -> Any:
        raw = answer.read()
        kind = answer.headers.get_content_type()
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
        if kind == "application/json" and value is not None:
            return value
        if isinstance(value, dict) and kind == "application/problem+json":
            raise Refused(answer.status, value)
        self._connection.close()
        what = f"is not a tunneld {self.daemon} (status {answer.status}, {kind})"
        raise Unreachable(f"what answers at {self.path} {what}")

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(_advice(self.path, error, self._timeout))


def _unit(path: str) -> str:
    """The unit whose agent has that socket, by the folder that systemd makes for it."""
    instance = re.fullmatch(r"/run/tunneld-([^/]+)/.*", path)
    return f"tunneld@{instance[1]}" if instance else "tunneld"


def _advice(path: str, error: Exception, timeout: float) -> str:
    """Say what to do about a failed call, in one line."""
    if isinstance(error, TimeoutError):
        return f"the agent at {path} does not answer within {timeout:g} s; its log may say why"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return (
            f"no agent at {path}: is it running (systemctl status {_unit(path)})? "
            "For another socket give --socket PATH or --instance NAME, or set TUNNELD_SOCKET"
        )
    if isinstance(error, ConnectionRefusedError):
        if not _is_socket(path):
            return f"{path} is not a socket; give the agent's with --socket PATH"
        return (
            f"no agent at {path}: the socket is left from one that has ended; start it (systemctl start {_unit(path)})"
        )
    if isinstance(error, PermissionError):
        return f"{path} is not yours to use: {_join(path)}"
    if isinstance(error, ConnectionError | http.client.IncompleteRead):
        return f"the agent at {path} ended the connection; it may be stopping"
    if isinstance(error, http.client.HTTPException):
        return f"what answers at {path} is not a tunneld agent"
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return f"cannot reach the agent at {path}: {reason}"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True


def _join(path: str) -> str:
    """Name the group that may use the socket, and how to join it."""
    import grp
    import pwd

    place = path
    while True:
        try:
            gid = os.stat(place).st_gid
            break
        except OSError as error:
            parent = os.path.dirname(place)
            if error.errno not in (errno.EACCES, errno.ENOENT) or parent == place:
                return "ask its owner"
            place = parent
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        return f"it belongs to group {gid}, which has no name; run this as root or as the agent's user"
    if gid == 0:
        return "it belongs to group root; run this as root, or set control.group in the agent's configuration"
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return f"join group {group} (sudo usermod -aG {group} {user}) and log in again"
