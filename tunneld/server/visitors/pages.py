"""The few pages of signing out."""

from __future__ import annotations

import html

from tunneld.protocol.headers import Headers

__all__ = ["HEADERS", "SIGN_IN", "SIGN_OUT", "ask_sign_out", "denied", "signed_out"]

SIGN_IN = "/.tunnel/sign-in"
"""Of a tunnel's own, below its address: begins a sign-in, or ends one with the code that the server handed over."""
SIGN_OUT = "/.tunnel/sign-out"
"""The same: asks, and with POST does it."""

HEADERS: Headers = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),  # with `no-referrer` the form's own Origin would be null
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
]
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:38rem;margin:15vh auto;padding:0 1rem;color:#222}}
h1{{font-size:1.3rem}}button{{font:inherit;padding:.4rem 1rem}}
@media(prefers-color-scheme:dark){{body{{background:#181818;color:#ddd}}a{{color:#9cf}}}}</style></head>
<body><main><h1>{title}</h1>{body}</main></body></html>
"""


def ask_sign_out(tunnel: str, email: str | None, prefix: str) -> bytes:
    """Whether whoever is signed in really wants to go; a link alone does nothing."""
    if email is None:
        body = f'<p>You are not signed in.</p><p><a href="{_safe(prefix + SIGN_IN)}">Sign in</a></p>'
    else:
        body = (
            f"<p>You are signed in as {_safe(email)}.</p>"
            f'<form method="post" action="{_safe(prefix + SIGN_OUT)}"><button>Sign out</button></form>'
        )
    return _page(f"Sign out of {tunnel}", body)


def denied(tunnel: str, email: str, prefix: str) -> bytes:
    """Somebody is signed in who may not come."""
    body = (
        f"<p>{_safe(email)} may not visit it. Its owner can let that address in.</p>"
        f'<p><a href="{_safe(prefix + SIGN_IN)}">Sign in with another address</a></p>'
    )
    return _page(f"No access to {tunnel}", body)


def signed_out(tunnel: str, issuer_page: str | None, prefix: str) -> bytes:
    """Done; the issuer's own session is its own."""
    body = f'<p><a href="{_safe(prefix + SIGN_IN)}">Sign in again</a></p>'
    if issuer_page is not None:
        body += (
            "<p>Where you sign in you may be signed in still: "
            f'<a href="{_safe(issuer_page)}" rel="noreferrer">sign out there too</a>.</p>'
        )
    return _page(f"Signed out of {tunnel}", body)


def _page(title: str, body: str) -> bytes:
    return _PAGE.format(title=_safe(title), body=body).encode()


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
