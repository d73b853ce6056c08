"""The page and its files: where they are, how they are sent, and the answer that needs no framework.

A daemon loads what serves its API at the first connection, which takes a second or two. The page does not wait for
it: `early` answers for its files from the bytes of the request alone, and the page stands when its feed begins.

The page carries its style in itself, under a policy that names the style's hash: with a style of its own address the
first paint waits for a second connection, a tenth of a second in a browser that was just started.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

__all__ = ["FILES", "PAGE", "content", "early", "fields", "is_file", "is_known"]

PAGE: Final = "/dashboard"
_SCRIPTS: Final = (
    *("alerts", "app", "changes", "curves", "details", "feed", "figures", "known", "looking", "start"),
    *("table", "tables", "timeline", "words", "uPlot.iife.min"),
)
FILES: Final = {
    "index.html": "text/html; charset=utf-8",
    **{f"{name}.js": "text/javascript; charset=utf-8" for name in _SCRIPTS},
    "uPlot.min.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_FIELD = re.compile(rb"[!#-'*+\-.0-9A-Z^_`a-z|~]+:[^\x00-\x08\x0a-\x1f\x7f]*")
_FOLDER = Path(__file__).with_name("static")


_STYLE: Final = '<link rel="stylesheet" href="dashboard/style.css">'
"""What stands in index.html for the style that the page is sent with."""


def content(name: str) -> bytes:
    """One of `FILES` as it is sent."""
    data = (_FOLDER / name).read_bytes()
    if name == "index.html":
        data = data.replace(_STYLE.encode(), b"<style>%s</style>" % _style())
    return data


def _style() -> bytes:
    return (_FOLDER / "style.css").read_bytes()


@cache
def fields(name: str) -> Mapping[str, str]:
    """The header fields that one of `FILES` is sent with, its length and status apart. It does not change."""
    style = b64encode(sha256(_style()).digest()).decode()
    return {
        "Content-Type": FILES[name],
        "ETag": f'"{sha256(content(name)).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",  # kept, and asked for again with its tag: no version meets another's files
        "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
        f"style-src 'self' 'sha256-{style}'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


def is_known(name: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the caller has one of `FILES` already as it is (RFC 9110, 13.1.2): the answer is 304 then."""
    tags = [value for key, value in headers if key == b"if-none-match"]
    own = fields(name)["ETag"].encode()
    return any(tag.strip().removeprefix(b"W/") in (own, b"*") for value in tags for tag in value.split(b","))


def is_file(path: str) -> bool:
    """Whether the address is the page or one of its files: these hold nothing of anybody's and need no token."""
    return path in (PAGE, f"{PAGE}/") or path.removeprefix(f"{PAGE}/") in FILES


def early(data: bytes, peer: object, allowed: Callable[[Mapping[str, Any]], int | None]) -> bytes | None:
    """The whole answer to a plain request for the page or one of its files; None: somebody else answers.

    Args:
        data: that came on the connection so far.
        peer: its other end, as the transport's `peername`.
        allowed: given a request (the keys of an ASGI scope that a guard reads) the status, or None.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ")
    if not end or rest or len(words) != 3 or words[0] != b"GET" or words[2] != b"HTTP/1.1":
        return None
    path = words[1].decode("latin-1")
    name = "index.html" if path == PAGE else path.removeprefix(f"{PAGE}/")
    if name not in FILES or not all(_FIELD.fullmatch(line) for line in lines):
        return None
    pairs = [line.partition(b":") for line in lines]
    headers = [(key.lower(), value.strip()) for key, _, value in pairs]
    names = [key for key, _ in headers]
    if names.count(b"host") != 1 or {b"content-length", b"transfer-encoding", b"upgrade", b"expect"} & set(names):
        return None
    client = (peer[0], peer[1]) if isinstance(peer, tuple) and len(peer) >= 2 else None
    status = allowed({"type": "http", "method": "GET", "path": path, "headers": headers, "client": client})
    if status == HTTPStatus.OK and is_known(name, headers):
        status = HTTPStatus.NOT_MODIFIED
    return None if status is None else _answer(status, name)


def _answer(status: int, name: str) -> bytes:
    body = b"" if status == HTTPStatus.NOT_MODIFIED else content(name)
    sent = {**fields(name), "Connection": "close"}
    if body:
        sent["Content-Length"] = str(len(body))
    if status == HTTPStatus.UNAUTHORIZED:
        sent["WWW-Authenticate"] = "Bearer"
    head = "".join(f"{key}: {value}\r\n" for key, value in sent.items())
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode() + body
