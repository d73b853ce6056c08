"""What is told of a browser by its request, and where it is sent. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tunneld.protocol.headers import Headers, get, lower, prefers_html
from tunneld.server.visitors.cookies import names_of

if TYPE_CHECKING:
    from tunneld.server.visitors.reception import Visited
    from tunneld.wire.http1 import RequestHead

__all__ = ["cookie_names", "home", "is_navigation", "origin", "same_origin", "values_of"]


def cookie_names(tunnel: Visited, prefix: str) -> tuple[str, str, str]:
    """As `cookies.names_of`, for a tunnel."""
    return names_of(secure=tunnel.public_url.startswith("https:"), prefix=prefix)


def origin(url: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def home(tunnel: Visited, prefix: str) -> str:
    """Where the tunnel's visitors are, without a slash at its end: never taken from what they sent."""
    return tunnel.public_url if prefix or tunnel.host_url is None else tunnel.host_url


def values_of(headers: Headers, name: str) -> list[str]:
    """Every value of a header, its name in lower case."""
    return [value for found, value in headers if lower(found) == name]


def is_navigation(head: RequestHead) -> bool:
    """A browser that shows a page in a window of its own: it can follow to the issuer."""
    if head.method != "GET" or head.upgrade:
        return False
    mode = get(head.headers, "sec-fetch-mode")
    if mode is not None:
        return mode == "navigate" and get(head.headers, "sec-fetch-dest") in (None, "document")
    return prefers_html(get(head.headers, "accept") or "")


def same_origin(head: RequestHead) -> bool:
    """Whether the browser sends the cookie for a page of this very host, or because somebody follows a link.

    Neighbouring tunnels are the same site to a browser, which sends them the cookie whatever its SameSite says.
    """
    site = origin = None
    for name, value in head.headers:
        size = len(name)
        if size == 14 and lower(name) == "sec-fetch-site":
            site = value
        elif size == 6 and lower(name) == "origin":
            origin = value
    if origin is not None and origin.partition("://")[2].lower() != head.host.lower():
        return False
    if site is None or site in ("same-origin", "none"):
        return True
    return (
        head.method in ("GET", "HEAD")
        and get(head.headers, "sec-fetch-mode") == "navigate"
        and get(head.headers, "sec-fetch-dest") == "document"
    )
