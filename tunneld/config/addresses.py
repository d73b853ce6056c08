"""The kinds of address that stand in the files; each reader raises `ValueError` with the form that was expected."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

from tunneld.config.units import shown

__all__ = ["domain", "http_url", "network", "proxy_url", "public_url", "server_url", "store"]

_DOMAIN = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII
)


def server_url(value: object) -> str:
    """A ``ws://`` or ``wss://`` address without path, user or query."""
    if isinstance(value, str) and "@" in value:  # what was found is not shown: it may hold a password
        raise ValueError("expected no user or password in the address; put the token into server.token_file")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value.strip():
        raise ValueError(f"expected an address such as wss://tunnel.example.org, not {shown(value)}")
    scheme, _, rest = value.strip().partition("://")
    right = {"http": "ws", "https": "wss"}.get(scheme.lower())
    if right is not None:
        raise ValueError(f"expected ws:// or wss://; write {right}://{rest} for this server")
    if scheme.lower() not in ("ws", "wss") or not rest:
        raise ValueError(f"expected an address such as wss://tunnel.example.org, not {shown(value)}")
    try:
        parts = urlsplit(value.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"expected an address such as wss://tunnel.example.org ({error})") from None
    if not host or port == 0:
        raise ValueError(f"expected an address such as wss://tunnel.example.org, not {shown(value)}")
    if parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError("expected only a scheme, a host and a port; the agent adds the path itself")
    return f"{parts.scheme}://{parts.netloc}"


def proxy_url(value: object) -> str:
    """A forward proxy; what was found is never shown, it may hold a password."""
    wanted = "expected a proxy such as http://proxy:3128 or socks5://proxy:1080"
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, not {shown(value)}")
    try:
        parts = urlsplit(value.strip())
        usable = parts.scheme in ("http", "https", "socks5", "socks5h") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable or not value.isprintable() or " " in value.strip():
        raise ValueError(wanted)  # what was found is not shown: it may hold a password
    return value.strip()


def http_url(value: object) -> str:
    """An ``http://`` or ``https://`` address."""
    if isinstance(value, str) and "@" in value:
        raise ValueError("expected no user or password in the address")
    if isinstance(value, str) and re.fullmatch(r"https?://[!-~]+", value):
        return value
    raise ValueError(f"expected an address such as http://127.0.0.1:4318, not {shown(value)}")


def public_url(value: object) -> str:
    """The address that visitors use: scheme, host and port, no slash at its end."""
    wanted = "expected the address that visitors use, such as https://tunnel.example.org"
    if isinstance(value, str) and "@" in value:  # not shown: it may hold a password
        raise ValueError(f"{wanted}, with no user or password")
    if not isinstance(value, str) or not value.isprintable() or not value.isascii() or " " in value.strip():
        raise ValueError(f"{wanted}, not {shown(value)}")
    try:
        parts = urlsplit(value.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable:
        raise ValueError(f"{wanted}, not {shown(value)}")
    if parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError("expected only a scheme, a host and a port: tunnels live at /t/NAME/ under it")
    return f"{parts.scheme}://{parts.netloc}"


def domain(value: object) -> str:
    """A DNS name, in lower case, no dot at its end."""
    text = value.strip().lower().removesuffix(".") if isinstance(value, str) else ""
    if not _DOMAIN.fullmatch(text):
        raise ValueError(f"expected a domain such as tunnel.example.org, not {shown(value)}")
    return text


def network(value: object) -> IPv4Network | IPv6Network:
    """An address or a CIDR range."""
    if isinstance(value, (IPv4Network, IPv6Network)):
        return value
    wanted = "expected an address or a range such as 10.0.0.0/8 or ::1"
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, not {shown(value)}")
    try:
        return ip_network(value.strip())
    except ValueError:
        pass
    try:
        meant = ip_network(value.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{wanted}, not {shown(value)}") from None
    raise ValueError(f"{wanted}; {shown(value)} has bits beyond its prefix (did you mean {meant}?)")


def store(value: object) -> str:
    """``sqlite:///PATH`` or ``memory:``."""
    if value == "memory:" or (isinstance(value, str) and value.isprintable() and re.match(r"sqlite:///.", value)):
        return str(value)
    raise ValueError(f"expected sqlite:////absolute/path.db or memory:, not {shown(value)}")
