"""TLS on the way to the server: whether its certificate is trusted, whose it is, and until when."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from typing import Any

from tunnelctl.doctor.bounds import secured
from tunnelctl.doctor.findings import Finding, fail, ok, warn

__all__ = ["SOON", "UNTRUSTED", "tls"]

_PATIENCE = 10.0
"""Seconds for the handshake."""

UNTRUSTED = "The certificate of "
"""How a finding begins that tells of one that is not trusted."""
_CHAIN = (
    "The server must send the whole chain: put the intermediate certificates behind its own in tls.cert (often "
    "fullchain.pem). A private root goes into server.ca_file."
)
_ROOT = "A private root goes into server.ca_file. A proxy that opens TLS shows its own: trust that, or go past it."
_NAME = "Give the name that the certificate has in server.url, or have it made for this one too."
_ADVICE = {
    9: "Set this machine's clock, or the certificate's begin.",
    10: "Renew it, the server reads the new file by itself; or set this machine's clock, if that is wrong.",
    **dict.fromkeys((2, 20, 21), _CHAIN),
    **dict.fromkeys((18, 19), _ROOT),
    **dict.fromkeys((62, 64), _NAME),
}
"""What to do, by OpenSSL's number of what is wrong."""

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
        made = secured(sock, context, host, _PATIENCE)
    except TimeoutError:
        return None, fail(
            "tls",
            f"{host} took the connection, but began no TLS within {_PATIENCE:g} s.",
            "Is it another service's port, or ws:// instead of wss:// there?",
        )
    except ssl.SSLCertVerificationError as error:
        return None, fail(
            "tls",
            f"{UNTRUSTED}{host} is not trusted: {error.verify_message.rstrip('.')}.",
            _ADVICE.get(error.verify_code, _ROOT),
        )
    except (OSError, ssl.SSLError) as error:
        return None, fail(
            "tls",
            f"{host} does not speak TLS here: {getattr(error, 'reason', None) or error}.",
            "Is it another service's port, or ws:// instead of wss:// there?",
        )
    return made, _certificate(made, host)


def _certificate(made: ssl.SSLSocket, host: str) -> Finding:
    shown = made.getpeercert() or {}
    names: Any = shown.get("issuer", ())
    issuer: dict[str, str] = {key: value for pair in names for key, value in pair}
    by = issuer.get("organizationName") or issuer.get("commonName") or "an unnamed authority"
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    said = f"{made.version()}, certificate of {host} by {by}, good until {ends:%Y-%m-%d} ({days} days)."
    if days < SOON:
        return warn("tls", said, "Renew it; the server reads the new file by itself.")
    return ok("tls", said)
