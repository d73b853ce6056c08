"""The way to the server, below HTTP: names, connections, and a proxy that lets through."""

from __future__ import annotations

import base64
import socket
import time
from urllib.parse import SplitResult, unquote

from tunnelctl.doctor.answers import read_head
from tunnelctl.doctor.bounds import addresses, at_most, authority, dial
from tunnelctl.doctor.findings import Finding, fail, ok, warn, without_secrets

__all__ = ["PATIENCE", "connect", "dns", "tcp"]

PATIENCE = 10.0
"""Seconds for each step."""


def dns(host: str, where: str = "server.url") -> Finding:
    """Whether a name has an address, and how soon that is known; `where`: what names the host."""
    began = time.monotonic()
    try:
        found = addresses(host, 0, PATIENCE)
    except TimeoutError:
        return fail(
            "dns",
            f"The resolver says nothing of {host} within {PATIENCE:g} s.",
            "See whether the name servers of this machine are reached (resolvectl status, /etc/resolv.conf).",
        )
    except OSError as error:
        return fail(
            "dns", f"{host} has no address: {error.strerror or error}.", f"Correct {where}, or this machine's resolver."
        )
    known = list(dict.fromkeys(str(address[0]) for _, address in found))
    took = (time.monotonic() - began) * 1000
    said = f"{host} is {', '.join(known[:4])} ({took:.0f} ms)."
    return warn("dns", said, "The resolver is slow: each reconnect waits for it.") if took > 1000 else ok("dns", said)


def tcp(
    host: str, port: int, who: str = "server", where: str = "server.url", *, segment: int | None = None
) -> tuple[socket.socket | None, Finding]:
    """A connection, or None where there is none; `who` listens there, `where` names it; `segment`: as of `dial`."""
    began = time.monotonic()
    there = authority(host, port)
    try:
        sock = dial(host, port, PATIENCE, segment=segment)
    except TimeoutError:
        return None, fail("tcp", f"{there} does not answer within {PATIENCE:g} s.", "A firewall drops it: let it out.")
    except ConnectionRefusedError:
        return None, fail("tcp", f"Nothing listens at {there}.", f"Start the {who}, or correct the port in {where}.")
    except OSError as error:
        return None, fail(
            "tcp", f"{there} cannot be reached: {error.strerror or error}.", "Look at this machine's network."
        )
    return sock, ok("tcp", f"{there} took the connection in {(time.monotonic() - began) * 1000:.1f} ms.")


def connect(sock: socket.socket, proxy: SplitResult, host: str, port: int) -> tuple[socket.socket | None, Finding]:
    """Through an HTTP proxy; the connection is closed where it does not let through."""
    where, there = without_secrets(proxy.geturl()), authority(host, port)
    lines = [f"CONNECT {there} HTTP/1.1", f"Host: {there}"]
    if proxy.username:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(pair.encode()).decode())
    try:
        with at_most(PATIENCE, sock):
            sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            status, _ = read_head(sock)
    except TimeoutError:
        sock.close()
        return None, fail(
            "proxy", f"{where} does not answer CONNECT {there} within {PATIENCE:g} s.", "Ask who runs the proxy."
        )
    except (OSError, ValueError) as error:
        sock.close()
        return None, fail("proxy", f"{where} broke the connection: {error}.", "Ask who runs the proxy.")
    if status != 200:
        sock.close()
        advice = "Put USER:PASSWORD@ into server.proxy." if status == 407 else "The proxy must allow CONNECT to it."
        return None, fail("proxy", f"{where} answers {status} to CONNECT {there}.", advice)
    return sock, ok("proxy", f"{where} lets us through to {there}.")
