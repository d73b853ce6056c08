"""One dial of the server: a WebSocket that speaks our protocol, or what its failure means."""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
from dataclasses import dataclass

from tunneld import __version__
from tunneld.agent.reconnect import Failed, Retry, Verdict, of_error_code, of_refusal
from tunneld.config.link import ServerLink
from tunneld.config.proxies import Proxy, proxy_for
from tunneld.config.secrets import agent_token
from tunneld.errors import CODES, ConfigError, ProtocolError
from tunneld.protocol.frames import max_message
from tunneld.wire.proxy import ProxyFailed
from tunneld.wire.tls import client_context
from tunneld.wire.ws_connect import ConnectTimeout, SubprotocolRemoved, UpgradeFailed, UpgradeRefused, connect
from tunneld.wire.ws_protocol import WebSocket

__all__ = ["DIAL_ERRORS", "DIAL_TIMEOUT", "MAX_HEADER", "SUBPROTOCOL", "Dial", "dial_to", "of_dial", "open_pipe"]

SUBPROTOCOL = "tunneld.v3"
#: Seconds for TCP, TLS and the upgrade, and again for `connected`.
DIAL_TIMEOUT = 10.0
#: A server's `max_header` may be larger than ours: what it says in `connected` holds, up to this.
MAX_HEADER = 1024 * 1024
#: What `open_pipe` raises, for `of_dial`.
DIAL_ERRORS = (UpgradeFailed, ProxyFailed, OSError, TimeoutError, ValueError, ProtocolError)
#: Who answers so has looked at the credential, whoever it is.
_JUDGED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Dial:
    """How the server is reached.

    Attributes:
        url: ``ws://HOST:PORT`` or ``wss://…``.
        token: the credential; None: none is sent.
        tls: None for ``ws://``.
        proxy: None: directly.
        proxy_tls: for a proxy that speaks TLS itself.
    """

    url: str
    token: str | None
    tls: ssl.SSLContext | None
    proxy: Proxy | None = None
    proxy_tls: ssl.SSLContext | None = None


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
        proxy=dial.proxy,
        proxy_context=dial.proxy_tls,
    )


def of_dial(error: Exception, *, known: bool = False) -> Verdict:
    """What a dial that did not become a WebSocket means, and what to do about it.

    Args:
        known: the server was met at this address before. What answers there now and is not it stands before it, as a
            proxy does that has no route to a server which restarts: that passes by itself.
    """
    if isinstance(error, UpgradeRefused):
        verdict = of_refusal(error.status, error.code, _detail(error), error.retry_after)
        stranger = known and error.code not in CODES and error.status not in _JUDGED
        return _of_stranger(verdict) if stranger else verdict
    if isinstance(error, SubprotocolRemoved):
        return of_error_code("subprotocol_removed", str(error), None)
    if isinstance(error, ProxyFailed):
        return _of_proxy(error)
    if isinstance(error, ssl.SSLError):
        return _of_tls(error)
    if isinstance(error, TimeoutError) and not error.errno:
        step = error.step if isinstance(error, ConnectTimeout) else "connecting"
        advice = "Something on the way drops it silently: look for a firewall, or set server.proxy."
        return Retry(f"no connection within {DIAL_TIMEOUT:.0f} s ({step})", advice=advice)
    if isinstance(error, UpgradeFailed | ValueError | ProtocolError):
        verdict = Failed(str(error), "Check server.url: something other than a tunneld server answers there.")
        return _of_stranger(verdict) if known else verdict
    return Retry(f"cannot reach the server: {_reason(error)}", advice=_advice(error))


def _of_stranger(verdict: Verdict) -> Verdict:
    """The same where the server was met before."""
    if isinstance(verdict, Retry):
        return verdict
    advice = "It is no tunneld server that answers: if it stays so, look at what stands before the server."
    return Retry(verdict.why, advice=advice)


def _of_proxy(error: ProxyFailed) -> Verdict:
    why = str(error)
    if error.kind == "credentials":
        if error.sent:
            return Failed(why, "Correct the user name and the password of the proxy.")
        return Failed(why, "Give it a user name and a password: server.proxy: http://USER:PASSWORD@HOST:PORT.")
    if error.kind == "forbidden":
        return Failed(why, "Ask who runs the proxy to allow the server's host and port.")
    if error.kind == "no_proxy":
        return Failed(why, "Check the proxy's address and its scheme: http, https, socks5 or socks5h.")
    if error.kind == "unreachable":
        return Retry(
            why, advice="Start it, or correct server.proxy (else HTTPS_PROXY, ALL_PROXY); NO_PROXY excepts hosts."
        )
    return Retry(why, advice="Check server.url; the proxy is there, the server behind it is not.")


def _of_tls(error: ssl.SSLError) -> Verdict:
    if isinstance(error, ssl.SSLCertVerificationError):
        found = _CERTIFICATES.get(error.verify_code)
        why, advice = found or (error.verify_message, _TRUST)
        return Failed(f"the server's certificate is not trusted: {why or error.verify_message}", advice)
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return Failed("the server does not speak TLS on that port", "Write ws:// in server.url, or its TLS port.")
    if "ALERT" in reason and any(word in reason for word in _ABOUT_OURS):
        words = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return Failed(
            f"the server refused this agent in the TLS handshake: {words}",
            "Set server.client_cert and server.client_key to a certificate that the server trusts and that is valid.",
        )
    return Retry(f"cannot reach the server: TLS failed: {_reason(error)}", advice="Check server.url and its port.")


_TRUST = "Set server.ca_file to the authority that signed it, or correct server.url."
_CLOCK = "If the server's operator says that it is valid, look at this machine's clock."
#: X509_V_ERR_… of OpenSSL -> (what is wrong, None for its own words; what to do).
_CERTIFICATES: dict[int, tuple[str | None, str]] = {
    9: ("it is not valid yet", _CLOCK),
    10: ("it has expired", f"The server's operator has to renew it. {_CLOCK}"),
    18: ("it is self-signed and unknown here", "Set server.ca_file to that certificate itself."),
    19: ("an authority that is unknown here signed it", _TRUST),
    20: ("an authority that is unknown here signed it, or the server leaves out a certificate of the chain", _TRUST),
    21: ("an authority that is unknown here signed it, or the server leaves out a certificate of the chain", _TRUST),
    23: ("it was revoked", "The server's operator has to replace it."),
    62: (None, "Write into server.url a name that stands in the certificate."),
    64: (None, "Write into server.url a name or an address that stands in the certificate."),
}
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
_ABOUT_OURS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")


def _advice(error: Exception) -> str:
    """What to do where the system did not let us connect."""
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return "The resolver does not answer: look at this machine's DNS and its network."
        return "The name does not resolve: check server.url and this machine's DNS."
    if isinstance(error, ConnectionRefusedError):
        return "Nothing listens there: start the server, or correct the port in server.url."
    if isinstance(error, ConnectionResetError):
        return "Check scheme and port in server.url (wss:// with TLS), and whether it asks for server.client_cert."
    if isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return "Look at this machine's network and routes."
    if isinstance(error, TimeoutError):
        return "Something on the way drops it silently: look for a firewall, or set server.proxy."
    return ""


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


def dial_to(server: ServerLink) -> Dial:
    """How to reach that server; raises ConfigError when the credential, a certificate or a proxy cannot be used."""
    secure = server.url.startswith("wss:")
    context = None
    if secure or server.ca_file or server.client_cert:
        context = client_context(ca_file=server.ca_file, client_cert=server.client_cert, client_key=server.client_key)
    try:
        proxy = proxy_for(server.url, server.proxy, os.environ)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    proxy_tls = None
    if (
        proxy is not None and proxy.scheme == "https"
    ):  # the system's roots too: a proxy is seldom of one's own authority
        proxy_tls = client_context(also=server.ca_file)
    return Dial(server.url, agent_token(server), context if secure else None, proxy, proxy_tls)
