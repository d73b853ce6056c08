"""What the doctor looks at on the way to the server: DNS, proxy, TCP, MTU, TLS, the server's dialect, token, clock."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from tunnelctl.doctor.findings import Finding, fail, ok, skip, warn, without_secrets
from tunneld import __version__

__all__ = ["Server", "look"]

_PATIENCE = 10.0
"""Seconds for each step."""
_SKEW = 30.0
"""Seconds that two clocks may differ."""
_SOON = 14
"""Days before the end of a certificate from which on it is told."""
_IP_MTU, _IPV6_MTU = 14, 24  # Linux's numbers of the options; the socket module has no names for them
_LEAST_MTU = 1280


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
    """

    url: str
    token: str | None = None
    ca_file: str | None = None
    proxy: str | None = None
    tunnel: str = "doctor"
    version: str | None = None
    token_left: float | None = None


def look(server: Server) -> list[Finding]:
    """Go the way step by step, as far as it leads."""
    parts = urlsplit(server.url)
    try:
        port = parts.port or (443 if parts.scheme == "wss" else 80)
    except ValueError:
        port = 0
    if parts.scheme not in ("ws", "wss") or not parts.hostname or not port:
        return [
            fail(
                "server",
                f"{without_secrets(server.url)} is no address.",
                "server.url: give wss://HOST or ws://HOST:PORT.",
            )
        ]
    found: list[Finding] = []
    proxy = _proxy(server, parts)
    host = parts.hostname
    if proxy is None:
        found.append(skip("proxy", "None is set: the server is dialled straight."))
        first = (host, port)
    else:
        found.append(ok("proxy", f"{without_secrets(proxy)} is dialled first."))
        through = urlsplit(proxy)
        first = (
            through.hostname or "",
            through.port or (443 if through.scheme == "https" else 1080 if "socks" in proxy else 3128),
        )
    found.append(_dns(first[0]))
    if found[-1].status == "fail":
        return found
    sock, finding = _tcp(*first)
    found.append(finding)
    if sock is None:
        return found
    found.append(_mtu(sock))
    if proxy is not None:
        through = urlsplit(proxy)
        if through.scheme != "http":
            sock.close()
            found.append(
                skip("tls", f"Behind a {through.scheme} proxy the rest is not looked at; the agent's own dial tells.")
            )
            return found
        sock, finding = _connect(sock, through, host, port)
        found.append(finding)
        if sock is None:
            return found
    return found + _over(sock, server, parts, port)


def _over(sock: socket.socket, server: Server, parts: SplitResult, port: int) -> list[Finding]:
    host = parts.hostname or ""
    found: list[Finding] = []
    try:
        if parts.scheme == "wss":
            secured, finding = _tls(sock, host, server.ca_file)
            found.append(finding)
            if secured is None:
                return found
            sock = secured
        elif host not in ("localhost", "127.0.0.1", "::1"):
            found.append(
                warn("tls", f"{host} is dialled without TLS: the token can be read on the way.", "Use wss://.")
            )
        else:
            found.append(skip("tls", "The server is on this machine, without TLS."))
        found += _dialect(sock, server, f"{host}:{port}")
    finally:
        sock.close()
    return found


def _proxy(server: Server, parts: SplitResult) -> str | None:
    if server.proxy:
        return server.proxy
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1", "::1") or proxy_bypass(host):
        return None
    proxies = getproxies_environment()
    return proxies.get("https" if parts.scheme == "wss" else "http") or proxies.get("all")


def _dns(host: str) -> Finding:
    began = time.monotonic()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return fail(
            "dns",
            f"{host} has no address: {error.strerror or error}.",
            "Correct server.url, or this machine's resolver.",
        )
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    took = (time.monotonic() - began) * 1000
    said = f"{host} is {', '.join(addresses[:4])} ({took:.0f} ms)."
    return warn("dns", said, "The resolver is slow: each reconnect waits for it.") if took > 1000 else ok("dns", said)


def _tcp(host: str, port: int) -> tuple[socket.socket | None, Finding]:
    began = time.monotonic()
    try:
        sock = socket.create_connection((host, port), timeout=_PATIENCE)
    except TimeoutError:
        return None, fail(
            "tcp", f"{host}:{port} does not answer within {_PATIENCE:g} s.", "A firewall drops it: let it out."
        )
    except ConnectionRefusedError:
        return None, fail(
            "tcp", f"Nothing listens at {host}:{port}.", "Start the server, or correct the port in server.url."
        )
    except OSError as error:
        return None, fail(
            "tcp", f"{host}:{port} cannot be reached: {error.strerror or error}.", "Look at this machine's network."
        )
    return sock, ok("tcp", f"{host}:{port} took the connection in {(time.monotonic() - began) * 1000:.1f} ms.")


def _mtu(sock: socket.socket) -> Finding:
    try:
        if sock.family == socket.AF_INET6:
            mtu = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        else:
            mtu = sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        segment = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    except OSError as error:
        return skip("mtu", f"The kernel does not say: {error.strerror}.")
    said = f"The way takes packets of {mtu} bytes, segments of {segment}."
    if mtu < _LEAST_MTU:
        return warn("mtu", said, "A tunnel or VPN on the way makes them small: let ICMP pass, or raise its MTU.")
    return ok("mtu", said)


def _connect(sock: socket.socket, proxy: SplitResult, host: str, port: int) -> tuple[socket.socket | None, Finding]:
    """Through an HTTP proxy."""
    where = without_secrets(proxy.geturl())
    lines = [f"CONNECT {host}:{port} HTTP/1.1", f"Host: {host}:{port}"]
    if proxy.username:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(pair.encode()).decode())
    try:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        status, _ = _head(sock)
    except (OSError, ValueError) as error:
        sock.close()
        return None, fail("proxy", f"{where} broke the connection: {error}.", "Ask who runs the proxy.")
    if status != 200:
        sock.close()
        advice = "Put USER:PASSWORD@ into server.proxy." if status == 407 else "The proxy must allow CONNECT to it."
        return None, fail("proxy", f"{where} answers {status} to CONNECT {host}:{port}.", advice)
    return sock, ok("proxy", f"{where} lets us through to {host}:{port}.")


def _tls(sock: socket.socket, host: str, ca_file: str | None) -> tuple[ssl.SSLSocket | None, Finding]:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        return None, fail(
            "tls", f"server.ca_file {ca_file}: {error.strerror or error}.", "Give a PEM file of certificates."
        )
    try:
        secured = context.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return None, fail(
            "tls",
            f"The certificate of {host} is not trusted: {error.verify_message}.",
            "Its chain must be whole and lead to a known root; a private one goes into server.ca_file. A proxy that "
            "opens TLS shows its own.",
        )
    except (OSError, ssl.SSLError) as error:
        return None, fail(
            "tls", f"{host} does not speak TLS here: {getattr(error, 'reason', None) or error}.", "Is it ws:// there?"
        )
    return secured, _certificate(secured, host)


def _certificate(secured: ssl.SSLSocket, host: str) -> Finding:
    shown = secured.getpeercert() or {}
    names: Any = shown.get("issuer", ())
    issuer: dict[str, str] = {key: value for pair in names for key, value in pair}
    by = issuer.get("organizationName") or issuer.get("commonName") or "an unnamed authority"
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    said = f"{secured.version()}, certificate of {host} by {by}, good until {ends:%Y-%m-%d} ({days} days)."
    if days < _SOON:
        return warn("tls", said, "Renew it; the server reads the new file by itself.")
    return ok("tls", said)


def _dialect(sock: socket.socket, server: Server, host: str) -> list[Finding]:
    """Ask for an upgrade and say no hello: that owns nothing and replaces nobody (PROTOCOL.md, connecting)."""
    key = base64.b64encode(os.urandom(16)).decode()
    path = urlsplit(server.url).path.rstrip("/")
    lines = [
        f"GET {path}/tunnel/connect?name={server.tunnel} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: tunneld.v3",
    ]
    if server.token:
        lines.append(f"Authorization: Bearer {server.token}")
    try:
        sock.settimeout(_PATIENCE)
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        status, headers, body = _answer(sock)
    except TimeoutError:
        return [
            fail(
                "server",
                f"No answer within {_PATIENCE:g} s.",
                "Is that address a tunneld server, or a proxy before it?",
            )
        ]
    except (OSError, ValueError) as error:
        return [fail("server", f"It does not answer as HTTP: {error}.", "Is it the right port, and ws:// or wss://?")]
    found = [_judged(status, headers, server)]
    found.append(_token(status, headers.get("x-tunnel-error", ""), _detail(body), server))
    found.append(_clock(headers.get("date"), server, host))
    return found


def _judged(status: int, headers: dict[str, str], server: Server) -> Finding:
    code = headers.get("x-tunnel-error", "")
    if status == 101:
        if headers.get("sec-websocket-protocol") != "tunneld.v3":
            return fail(
                "server", "It upgrades, but tunneld.v3 is gone from its answer.", "A proxy on the way removed it."
            )
        return _versions(server)
    if code in ("unauthorized", "token_invalid", "token_expired", "token_revoked") or status in (401, 403, 409):
        return ok("server", f"It is a tunneld server ({status} {code}).")
    if status == 426:
        return fail("server", "It knows no dialect that this agent speaks.", "Bring server and agent to one version.")
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
    if left < _SOON * 86400:
        return warn("token", said, "Make a new one in time: tunneld server token create NAME --expires 90d.")
    return ok("token", said)


def _token(status: int, code: str, detail: str, server: Server) -> Finding:
    if status == 101:
        return _accepted(server)
    if status == 401:
        if not server.token:
            return fail(
                "token",
                "The server asks for one, and none was found here.",
                "Set server.token_file, or run as its user.",
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


def _clock(stamp: str | None, server: Server, host: str) -> Finding:
    stamp = stamp or _date_of(server, host)
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


def _date_of(server: Server, host: str) -> str | None:
    """The time that the server puts into an ordinary answer; an upgrade's has none."""
    name, _, port = host.rpartition(":")
    try:
        connection: http.client.HTTPConnection
        if server.url.startswith("wss:"):
            context = ssl.create_default_context(cafile=server.ca_file)
            connection = http.client.HTTPSConnection(name, int(port), timeout=_PATIENCE, context=context)
        else:
            connection = http.client.HTTPConnection(name, int(port), timeout=_PATIENCE)
        try:
            connection.request("GET", "/tunnel/doctor")
            return connection.getresponse().headers.get("Date")
        finally:
            connection.close()
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


def _answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """As `_head`, with the body of a refusal."""
    status, headers, body = _received(sock)
    length = headers.get("content-length", "0")
    while status != 101 and length.isdecimal() and len(body) < min(int(length), 65536):
        part = sock.recv(4096)
        if not part:
            break
        body += part
    return status, headers, body


def _head(sock: socket.socket) -> tuple[int, dict[str, str]]:
    """Status and headers (lower case) of an answer; raises OSError, ValueError."""
    status, headers, _ = _received(sock)
    return status, headers


def _received(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, and what came behind them."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(4096)
        if not part:
            raise ValueError("it closed the connection")
        data += part
        if len(data) > 65536:
            raise ValueError("its head has no end")
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise ValueError(f"it says {lines[0][:60]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(words[1]), headers, body
