"""Our own errors as answers to visitors: RFC 9457 documents, or a small page for people."""

from __future__ import annotations

import html
import json
import re

from tunneld.errors import CODES, VisitorError
from tunneld.protocol.headers import Headers, get, prefers_html

__all__ = ["Problem", "common", "problem"]

#: (status, headers with Content-Type and Content-Length, body)
Problem = tuple[int, Headers, bytes]

# A page cannot show its reader a header.
_HEADER = re.compile("(?:after Retry-After|as Retry-After says)")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{status} {title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:38rem;margin:15vh auto;padding:0 1rem;color:#222}}
h1{{font-size:1.3rem}}code,small{{color:#666}}
@media(prefers-color-scheme:dark){{body{{background:#181818;color:#ddd}}code,small{{color:#999}}}}</style></head>
<body><h1>{title}</h1><p>{detail}</p><p>{advice}</p>
<small>{status} <code>{code}</code> · request <code>{request_id}</code></small></body></html>
"""


def problem(error: VisitorError, request_id: str, asked: Headers, *, extra: Headers | None = None) -> Problem:
    """The answer that says `error`.

    A page of another origin may read it (it says nothing that the visitor does not know), so that a script sees
    the code and not merely that something failed.

    Args:
        asked: the request's headers; empty when it could not be read.
        extra: more headers of the answer.
    """
    meaning = CODES[error.code]
    detail = error.detail or meaning.title
    if prefers_html(get(asked, "accept") or ""):
        kind = "text/html; charset=utf-8"
        when = "later" if error.retry_after is None else f"in {error.retry_after} s"
        fields = {
            "title": meaning.title,
            "detail": "" if detail == meaning.title else detail,
            "advice": _HEADER.sub(when, meaning.advice),
            "code": error.code,
            "request_id": request_id,
        }
        text = _PAGE.format(status=error.status, **{key: html.escape(value) for key, value in fields.items()})
    else:
        kind = "application/problem+json"
        text = json.dumps(
            {
                "type": f"urn:tunneld:error:{error.code}",
                "title": meaning.title,
                "status": error.status,
                "detail": detail,
                "code": error.code,
                "advice": meaning.advice,
                "request_id": request_id,
            },
            ensure_ascii=False,
        )
    body = text.encode()
    headers: Headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("X-Tunnel-Error", error.code),
        ("X-Tunnel-Request-Id", request_id),
        ("Cache-Control", "no-store"),
    ]
    headers += common(asked)
    if kind.startswith("text/html"):
        headers.append(("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"))
    if error.retry_after is not None:
        headers.append(("Retry-After", str(error.retry_after)))
    return error.status, headers + (extra or []), body


def common(asked: Headers) -> Headers:
    """What every problem carries, an agent's own too; a script of another origin may read which one it is."""
    headers: Headers = [("X-Content-Type-Options", "nosniff"), ("Vary", "Accept, Origin")]
    if get(asked, "origin") is not None:
        headers.append(("Access-Control-Allow-Origin", "*"))
        exposed = "Retry-After, WWW-Authenticate, X-Tunnel-Error, X-Tunnel-Request-Id"
        headers.append(("Access-Control-Expose-Headers", exposed))
    return headers
