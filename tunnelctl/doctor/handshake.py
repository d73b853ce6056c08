"""What the server says when it is asked for a tunnel: its dialect, its version, the token, the time."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from tunnelctl.doctor.answers import read_answer
from tunnelctl.doctor.bounds import at_most, authority, dial, secured
from tunnelctl.doctor.certificate import SOON
from tunnelctl.doctor.findings import Finding, fail, ok, skip, warn
from tunnelctl.doctor.packets import SMALL
from tunnelctl.doctor.way import PATIENCE
from tunneld import __version__

__all__ = ["Server", "ask"]

_ONE_VERSION = (
    "Bring server and agent to one version; if they are, a proxy before the server must pass on Sec-WebSocket-Protocol."
)
_AT_ONCE = 2.0
"""Seconds for what a server says by itself."""
_SKEW = 30.0
"""Seconds that two clocks may differ."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where an agent dials, from its file.

    Attributes:
        url: ``ws://`` or ``wss://``.
        token: None: none is known here.
        ca_file: roots instead of the system's; None: the system's.
        proxy: of the file; None: the environment's.
        tunnel: a name that the token should open.
        version: of the server, as it told the agent; None: it did not.
        token_left: seconds that the agent's token is still good, as the server told; None: for ever, or not known.
        taken: the server has taken the agent's credential: a tunnel of it stands.
    """

    url: str
    token: str | None = None
    ca_file: str | None = None
    proxy: str | None = None
    tunnel: str = "doctor"
    version: str | None = None
    token_left: float | None = None
    taken: bool = False


def ask(sock: socket.socket, server: Server, host: str, port: int) -> list[Finding]:
    """Ask for an upgrade and say no hello: that owns nothing and replaces nobody (PROTOCOL.md, connecting)."""
    key = base64.b64encode(os.urandom(16)).decode()
    path = urlsplit(server.url).path.rstrip("/")
    lines = [
        f"GET {path}/tunnel/connect?name={server.tunnel} HTTP/1.1",
        f"Host: {authority(host, port)}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: tunneld.v3",
    ]
    if server.token:
        lines.append(f"Authorization: Bearer {server.token}")
    try:
        with at_most(PATIENCE, sock):
            sock.settimeout(PATIENCE)
            sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            status, headers, body = read_answer(sock)
            if status == 101 and "sec-websocket-protocol" not in headers:
                body += _first_words(sock)
    except TimeoutError:
        return [
            fail(
                "server",
                f"No answer within {PATIENCE:g} s.",
                "Is that address a tunneld server, or a proxy before it?",
            )
        ]
    except (OSError, ValueError) as error:
        return [fail("server", f"It does not answer as HTTP: {error}.", "Is it the right port, and ws:// or wss://?")]
    found = [_judged(status, headers, body, server)]
    found.append(_token(status, headers.get("x-tunnel-error", ""), _detail(body), server))
    found.append(clock(server, host, port, headers.get("date")))
    return found


def _first_words(sock: socket.socket) -> bytes:
    """What a server of the older dialect says at once; empty: it waits for us."""
    sock.settimeout(_AT_ONCE)
    try:
        return sock.recv(4096)
    except TimeoutError:
        return b""


def _judged(status: int, headers: dict[str, str], body: bytes, server: Server) -> Finding:
    code = headers.get("x-tunnel-error", "")
    if status == 101:
        if headers.get("sec-websocket-protocol") == "tunneld.v3":
            return _versions(server)
        if b'"connected"' in body:
            return fail(
                "server",
                "It answers in the older dialect alone, which this agent does not speak.",
                _ONE_VERSION,
            )
        return fail("server", "It upgrades, but tunneld.v3 is gone from its answer.", "A proxy on the way removed it.")
    if code in ("unauthorized", "token_invalid", "token_expired", "token_revoked") or status in (401, 403, 409):
        return ok("server", f"It is a tunneld server ({status} {code}).")
    if status == 426:
        return fail("server", "It knows no dialect that this agent speaks.", _ONE_VERSION)
    if code:
        return warn("server", f"It answers {status} {code}.", f"`tunneld explain {code}` says what that means.")
    where = headers.get("server", "something that does not say what it is")
    return fail(
        "server", f"{where} answers {status} instead of upgrading.", "A proxy before it must pass on Upgrade, HTTP/1.1."
    )


def _versions(server: Server) -> Finding:
    said = "It speaks tunneld.v3 and takes the tunnel"
    if server.version is None:
        return ok("server", f"{said}; this is tunneld {__version__}.")
    if server.version != __version__:
        return warn(
            "server",
            f"{said}; it is tunneld {server.version}, this is {__version__}.",
            "They work together; bring the older one to the newer's version for all that that can do.",
        )
    return ok("server", f"{said}; it is tunneld {server.version}, as this is.")


def _accepted(server: Server) -> Finding:
    if not server.token:
        return ok("token", "The server asks for none.")
    left = server.token_left
    if left is None:
        return ok("token", "It is accepted.")
    said = f"It is accepted, and ends in {left / 86400:.0f} days."
    if left < SOON * 86400:
        return warn("token", said, "Make a new one in time: tunneld server token create NAME --expires 90d.")
    return ok("token", said)


def _token(status: int, code: str, detail: str, server: Server) -> Finding:
    if status == 101:
        return _accepted(server)
    if status == 401:
        if not server.token and server.taken:
            return skip("token", "The server takes the agent's; it is not ours to read, and so not tried.")
        if not server.token:
            return fail(
                "token",
                "The server asks for one, and none was found here.",
                "Set server.token_file, or run as root: the agent's may be a credential of systemd's.",
            )
        return fail(
            "token",
            f"The server refuses it ({code or 401}){f': {detail}' if detail else '.'}",
            "Make a new one: tunneld server token create NAME.",
        )
    if status == 403:
        return fail("token", f"It does not open the name {server.tunnel}.", "Make one with --tunnels that covers it.")
    if status == 409:
        return fail("token", f"Another owner has the name {server.tunnel}.", "Choose another name for the tunnel.")
    return skip("token", "The server did not come to look at it.")


def clock(server: Server, host: str, port: int, stamp: str | None = None) -> Finding:
    """How far apart the clocks are; `stamp`: the time that the server has told. Nothing secret is sent for it."""
    stamp = stamp or _date_of(server, host, port)
    if stamp is None:
        return skip("clock", "The server tells no time.")
    try:
        skew = (datetime.now(UTC) - parsedate_to_datetime(stamp)).total_seconds()
    except (TypeError, ValueError):
        return skip("clock", "The server's time cannot be read.")
    said = f"This machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's."
    if abs(skew) > _SKEW:
        return warn(
            "clock", said, "Let systemd-timesyncd or chrony set it: certificates and tokens have times in them."
        )
    return ok("clock", said)


def _date_of(server: Server, host: str, port: int) -> str | None:
    """The time that the server puts into an ordinary answer; an upgrade's has none."""
    try:
        sock = dial(host, port, PATIENCE, segment=SMALL)  # whatever becomes of large ones
        if server.url.startswith("wss:"):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it may be the clock that is not
            sock = secured(sock, context, host, PATIENCE)
        with sock, at_most(PATIENCE, sock):
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            connection.request("GET", "/tunnel/doctor")
            return connection.getresponse().headers.get("Date")
    except (OSError, http.client.HTTPException):
        return None


def _detail(body: bytes) -> str:
    """The sentence of a problem (RFC 9457); empty where there is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    detail = found.get("detail") if isinstance(found, dict) else None
    return str(detail)[:500] if detail else ""
