"""``service:`` of a tunnel, read once into a small frozen object."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Literal
from urllib.parse import urlsplit

from tunneld.config.common import MAX_SOCKET_PATH
from tunneld.config.units import shown

__all__ = ["Service", "parse_service"]

_WANTED = "expected http://HOST:PORT, https://HOST:PORT or unix:/path/of.sock"
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}", re.ASCII)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Service:
    """Where a tunnel's requests go.

    Attributes:
        scheme: ``unix`` is plain HTTP over a Unix socket.
        host: name or address, IPv6 without brackets; "" for ``unix``.
        port: 0 for ``unix``.
        path: of the socket; "" for TCP.
        authority: what the service's own ``Host`` header says.
    """

    scheme: Literal["http", "https", "unix"]
    host: str
    port: int
    path: str
    authority: str

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.authority}"


def parse_service(value: object) -> Service:
    """Read ``http://HOST[:PORT]``, ``https://HOST[:PORT]`` or ``unix:/path``.

    Raises:
        ValueError: anything else; the text shows the form that was likely meant.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{_WANTED}, not {shown(value)}")
    text = value.strip()
    if "@" in text and not text.lower().startswith("unix:"):  # not shown: it may hold a password
        raise ValueError("expected no user or password in the address; set an Authorization under headers instead")
    if text.lower().startswith("unix:"):
        return _unix(text)
    scheme, colon, _ = text.partition("://")
    if not colon or scheme.lower() not in _PORTS:
        raise ValueError(f"{_WANTED}, not {shown(text)}{_advice(text)}")
    return _tcp(text)


def _advice(text: str) -> str:
    """The form that was likely meant by a bare port or HOST:PORT, as the end of a fault; "" when there is none."""
    if text.isascii() and text.isdigit():
        return f" (did you mean http://127.0.0.1:{text}?)"
    if re.fullmatch(r"[A-Za-z0-9_.-]+:[0-9]+", text):
        return f" (did you mean http://{text}?)"
    if text.startswith("/"):
        return f" (did you mean unix:{text}?)"
    return ""


def _unix(text: str) -> Service:
    path = text[5:]
    if path.startswith("///"):
        path = path[2:]
    if not path.startswith("/") or path.startswith("//") or path.endswith("/"):
        raise ValueError(f"expected unix: and an absolute path, such as unix:/run/app.sock, not {shown(text)}")
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"expected a socket path of at most {MAX_SOCKET_PATH} bytes, not {len(path.encode())}")
    return Service("unix", "", 0, path, "localhost")


def _tcp(text: str) -> Service:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"{_WANTED}, not {shown(text)}") from None
    if parts.path not in ("", "/") or parts.query or parts.fragment or text.endswith(("?", "#")):
        raise ValueError(
            f"expected only a scheme, a host and a port; paths of visitors are passed as they are, not {shown(text)}"
        )
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    if parts.netloc.startswith("["):
        try:
            host = str(IPv6Address(host))
        except ValueError:
            raise ValueError(f"expected an IPv6 address in the brackets, not {shown(host)}") from None
    elif not _HOST.fullmatch(host):
        raise ValueError(f"{_WANTED}, not {shown(text)}")
    if port == 0:
        raise ValueError("expected a port from 1 to 65535, not 0")
    number = _PORTS[scheme] if port is None else port
    shown_host = f"[{host}]" if ":" in host else host
    authority = shown_host if number == _PORTS[scheme] else f"{shown_host}:{number}"
    return Service(scheme, host, number, "", authority)
