"""One dial of the server: a WebSocket that speaks our protocol, or what its failure means."""

from __future__ import annotations

import json
import os
import socket
import ssl
from dataclasses import dataclass

from tunneld import __version__
from tunneld.agent.reconnect import Failed, Retry, Verdict, of_error_code, of_refusal
from tunneld.errors import ProtocolError
from tunneld.protocol.frames import max_message
from tunneld.wire.ws_connect import SubprotocolRemoved, UpgradeFailed, UpgradeRefused, connect
from tunneld.wire.ws_protocol import WebSocket

__all__ = ["DIAL_ERRORS", "DIAL_TIMEOUT", "MAX_HEADER", "SUBPROTOCOL", "Dial", "of_dial", "open_pipe"]

SUBPROTOCOL = "tunneld.v3"
#: Seconds for TCP, TLS and the upgrade, and again for `connected`.
DIAL_TIMEOUT = 10.0
#: A server's `max_header` may be larger than ours: what it says in `connected` holds, up to this.
MAX_HEADER = 1024 * 1024
#: What `open_pipe` raises, for `of_dial`.
DIAL_ERRORS = (UpgradeFailed, OSError, TimeoutError, ValueError, ProtocolError)


@dataclass(frozen=True, slots=True)
class Dial:
    """How the server is reached.

    Attributes:
        url: ``ws://HOST:PORT`` or ``wss://…``.
        token: the credential; None: none is sent.
        tls: None for ``ws://``.
    """

    url: str
    token: str | None
    tls: ssl.SSLContext | None


async def open_pipe(dial: Dial, name: str) -> WebSocket:
    """Open the connection of the tunnel `name`; raises one of `DIAL_ERRORS`. Set its handler at once."""
    headers = [("Authorization", f"Bearer {dial.token}")] if dial.token else []
    return await connect(
        f"{dial.url}/tunnel/connect?name={name}",
        headers=[*headers, ("User-Agent", f"tunneld/{__version__}")],
        subprotocols=[SUBPROTOCOL],
        max_message=max_message(MAX_HEADER),
        ssl_context=dial.tls,
        timeout=DIAL_TIMEOUT,
    )


def of_dial(error: Exception) -> Verdict:
    """What a dial that did not become a WebSocket means."""
    if isinstance(error, UpgradeRefused):
        return of_refusal(error.status, error.code, _detail(error), error.retry_after)
    if isinstance(error, SubprotocolRemoved):
        return of_error_code("subprotocol_removed", str(error), None)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failed(
            f"the server's certificate is not trusted: {error.verify_message}",
            "Set server.ca_file to the authority that signed it, or correct server.url.",
        )
    if isinstance(error, TimeoutError):
        return Retry(f"no connection within {DIAL_TIMEOUT:.0f} s")
    if isinstance(error, UpgradeFailed | ValueError | ProtocolError):
        return Failed(str(error), "Check server.url: something other than a tunneld server answers there.")
    return Retry(f"cannot reach the server: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Why a connect failed, as the system says it: asyncio's own words name the call and the address."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _detail(refused: UpgradeRefused) -> str:
    """What the server's problem document says, if that is what it sent."""
    try:
        document = json.loads(refused.body)
    except (ValueError, RecursionError):
        return ""
    detail = document.get("detail") if isinstance(document, dict) else None
    return " ".join(detail[:500].split()) if isinstance(detail, str) else ""
