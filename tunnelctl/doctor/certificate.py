"""TLS on the way to the server: whether its certificate is trusted, whose it is, and until when."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from typing import Any

from tunnelctl.doctor.findings import Finding, fail, ok, warn

__all__ = ["SOON", "tls"]

SOON = 14
"""Days before the end of a certificate, or of a token, from which on it is told."""


def tls(sock: socket.socket, host: str, ca_file: str | None) -> tuple[ssl.SSLSocket | None, Finding]:
    """The connection over TLS; None where there can be none."""
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
    if days < SOON:
        return warn("tls", said, "Renew it; the server reads the new file by itself.")
    return ok("tls", said)
