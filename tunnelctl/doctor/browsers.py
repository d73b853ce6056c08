"""What browsers make of the public address: over HTTP/1.1 they open six connections to a host, and no more."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from tunnelctl.doctor.bounds import dial, secured
from tunnelctl.doctor.findings import Finding, ok, skip, warn

__all__ = ["tabs"]

_PATIENCE = 5.0
_SIX = "a browser opens six connections to it, and six tabs with an open event stream block the seventh"
_ADVICE = "Put a proxy that speaks HTTP/2 before the server: packaging/proxies has configurations of Caddy and nginx."


def tabs(public_url: str, *, ca_file: str | None = None) -> Finding:
    """Whether many tabs of one browser can hold an event stream of this address at a time.

    Args:
        public_url: of a tunnel.
        ca_file: who vouches for its host beside the system's authorities; None: nobody.
    """
    parts = urlsplit(public_url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        said = f"{host} speaks HTTP/1.1: {_SIX}."
        local = host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1"
        return ok("browsers", said) if local else warn("browsers", said, _ADVICE)
    try:
        context = ssl.create_default_context(cafile=ca_file)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            dial(host, parts.port or 443, _PATIENCE) as plain,
            secured(plain, context, host, _PATIENCE) as made,
        ):
            agreed = made.selected_alpn_protocol()
    except OSError as error:
        return skip("browsers", f"{host} could not be asked which HTTP it speaks: {error}.")
    if agreed == "h2":
        return ok("browsers", f"{host} speaks HTTP/2: tabs share one connection.")
    return warn("browsers", f"{host} speaks HTTP/1.1: {_SIX}.", _ADVICE)
