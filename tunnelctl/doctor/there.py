"""What the doctor looks at on the way to the server, step by step: DNS, proxy, TCP, MTU, TLS, and what it answers."""

from __future__ import annotations

import socket
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from tunnelctl.doctor import certificate, handshake, packets, way
from tunnelctl.doctor.findings import Finding, fail, ok, skip, warn, without_secrets
from tunnelctl.doctor.handshake import Server

__all__ = ["Server", "look"]


def look(server: Server) -> list[Finding]:
    """Go the way step by step, as far as it leads."""
    try:
        parts = urlsplit(server.url)
        port = parts.port or (443 if parts.scheme == "wss" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
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
    who, where = "server", "server.url"
    if proxy is None:
        found.append(skip("proxy", "None is set: the server is dialled straight."))
        first = (host, port)
    else:
        who, where = "proxy", "server.proxy" if server.proxy else "HTTPS_PROXY or ALL_PROXY"
        first = _first(proxy)
        if not all(first):
            said = f"{without_secrets(proxy)} is no address of a proxy."
            return [fail("proxy", said, f"{where}: give http://HOST:PORT or socks5://HOST:PORT.")]
        found.append(ok("proxy", f"{without_secrets(proxy)} is dialled first."))
    found.append(way.dns(first[0], where))
    if found[-1].status == "fail":
        return found
    tls = parts.scheme == "wss" if proxy is None else proxy.startswith("https:")
    sock, more = _dialled(first, who, where, tls=tls, path=parts.path.rstrip("/") if proxy is None else "")
    found += more
    if sock is None:
        return found
    if proxy is not None:
        through = urlsplit(proxy)
        if through.scheme != "http":
            sock.close()
            found.append(
                skip("tls", f"Behind a {through.scheme} proxy the rest is not looked at; the agent's own dial tells.")
            )
            return found
        sock, finding = way.connect(sock, through, host, port)
        found.append(finding)
        if sock is None:
            return found
    return found + _over(sock, server, parts, port)


def _dialled(
    first: tuple[str, int], who: str, where: str, *, tls: bool, path: str
) -> tuple[socket.socket | None, list[Finding]]:
    """A connection whose packets get through, and what was found on the way to it; None: there can be none."""
    sock, taken = way.tcp(*first, who, where)
    if sock is None:
        return None, [taken]
    large = packets.mtu(*first, tls=tls, path=path)
    if large.segment is not None:  # the rest is looked at all the same, in packets of that size
        sock.close()
        sock, taken = way.tcp(*first, who, where, segment=large.segment)
    return sock, [taken, large.finding]


def _over(sock: socket.socket, server: Server, parts: SplitResult, port: int) -> list[Finding]:
    host = parts.hostname or ""
    found: list[Finding] = []
    try:
        if parts.scheme == "wss":
            secured, finding = certificate.tls(sock, host, server.ca_file)
            found.append(finding)
            if secured is None:
                if finding.detail.startswith(certificate.UNTRUSTED):  # is it too old, or this machine's clock?
                    found.append(handshake.clock(server, host, port))
                return found
            sock = secured
        elif host not in ("localhost", "127.0.0.1", "::1"):
            found.append(
                warn("tls", f"{host} is dialled without TLS: the token can be read on the way.", "Use wss://.")
            )
        else:
            found.append(skip("tls", "The server is on this machine, without TLS."))
        found += handshake.ask(sock, server, host, port)
    finally:
        sock.close()
    return found


def _first(proxy: str) -> tuple[str, int]:
    """Host and port of a proxy; empty where that is none."""
    try:
        parts = urlsplit(proxy)
        usual = 443 if parts.scheme == "https" else 1080 if parts.scheme.startswith("socks") else 3128
        return parts.hostname or "", parts.port or usual
    except ValueError:
        return "", 0


def _proxy(server: Server, parts: SplitResult) -> str | None:
    if server.proxy:
        return server.proxy
    host = parts.hostname or ""
    if host in ("localhost", "127.0.0.1", "::1") or proxy_bypass(host):
        return None
    proxies = getproxies_environment()
    return proxies.get("https" if parts.scheme == "wss" else "http") or proxies.get("all")
