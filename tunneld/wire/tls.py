"""TLS contexts of both ends, and plain words for what is wrong with the files they are made of."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from tunneld.errors import ConfigError

__all__ = ["Certificate", "client_context", "peer_certificate", "server_context"]

StrPath = str | os.PathLike[str]

_ALPN = ["http/1.1"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A client certificate that the listener's `client_ca` vouches for.

    Attributes:
        fingerprint: SHA-256 of its DER form, lower-case hex.
        subject: its common name; empty when it has none.
    """

    fingerprint: str
    subject: str


def peer_certificate(transport: asyncio.BaseTransport) -> Certificate | None:
    """The certificate that a TLS peer showed and that was verified; None when there is none."""
    found = transport.get_extra_info("ssl_object")
    octets = found.getpeercert(binary_form=True) if found is not None else None
    if not octets:
        return None
    names = [value for pairs in found.getpeercert().get("subject", ()) for key, value in pairs if key == "commonName"]
    return Certificate(hashlib.sha256(octets).hexdigest(), names[0] if len(names) == 1 else "")


def server_context(
    cert: StrPath, key: StrPath, *, client_ca: StrPath | None = None, where: str = "tls"
) -> ssl.SSLContext:
    """The context of a listener: TLS 1.2 and 1.3, the suites that Python's ``ssl`` holds good, HTTP/1.1 only.

    Args:
        cert: PEM file of the certificate, with the chain behind it.
        key: PEM file of its private key, not encrypted.
        client_ca: PEM file of the roots that vouch for clients' certificates. A client may come without one; who
            comes with another's is refused in the handshake. None: none is asked for.
        where: the configuration key above ``cert`` and ``key``, for the words of an error.

    Raises:
        ConfigError: a file is missing, unreadable or not PEM, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load_pair(context, cert, key, f"{where}.cert", f"{where}.key")
    if client_ca is not None:
        _load_roots(context, client_ca, f"{where}.client_ca")
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(
    *,
    ca_file: StrPath | None = None,
    also: StrPath | None = None,
    client_cert: StrPath | None = None,
    client_key: StrPath | None = None,
    where: str = "server",
) -> ssl.SSLContext:
    """The context of a connection that verifies its server's certificate and name.

    Args:
        ca_file: PEM file of the roots that are trusted; None trusts the system's.
        also: PEM file of roots that are trusted besides.
        client_cert: PEM file of a certificate of our own, for mutual TLS.
        client_key: PEM file of its private key; None when ``client_cert`` holds it too.
        where: the configuration key above these, for the words of an error.

    Raises:
        ConfigError: a file is missing, unreadable or not PEM, the key is not the certificate's, or is there
            without it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if ca_file is None:
        context.load_default_certs()
    for roots in (ca_file, also):
        if roots is not None:
            _load_roots(context, roots, f"{where}.ca_file")
    if client_cert is not None:
        _load_pair(context, client_cert, client_key, f"{where}.client_cert", f"{where}.client_key")
    elif client_key is not None:
        raise ConfigError([f"{where}.client_key: is of no use without {where}.client_cert"])
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_ALPN)


def _load_roots(context: ssl.SSLContext, path: StrPath, name: str) -> None:
    _check_readable(path, name)
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError):
        raise ConfigError([f"{name}: {path} holds no certificate in PEM form"]) from None
    if not context.cert_store_stats()["x509"]:
        raise ConfigError([f"{name}: {path} holds no certificate in PEM form"])


def _check_readable(path: StrPath, name: str) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a path of any kind
            file.read(1)
    except OSError as error:
        raise ConfigError([f"{name}: {path} cannot be read: {error.strerror}"]) from None


def _load_pair(context: ssl.SSLContext, cert: StrPath, key: StrPath | None, cert_name: str, key_name: str) -> None:
    faults = []
    for path, name in ((cert, cert_name), (key, key_name)):
        if path is not None:
            try:
                _check_readable(path, name)
            except ConfigError as error:
                faults += error.faults
    if faults:
        raise ConfigError(faults)
    try:
        # the certificate alone first: only so can it be told which of the two files is wrong
        _probe(cert, cert_name)
        context.load_cert_chain(cert, key, password=_encrypted(key_name))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError([f"{key_name}: {key} is not the key of the certificate {cert}"]) from None
        shown = cert if key is None else key
        raise ConfigError([f"{key_name}: {shown} holds no private key in PEM form"]) from None


def _probe(cert: StrPath, name: str) -> None:
    """Whether a file begins with a certificate. `ssl` loads no certificate without its key: look for PEM."""
    with open(cert, "rb") as file:  # noqa: PTH123 - a path of any kind
        text = file.read(1 << 20).decode("latin-1")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = text.find(begin)
    stop = text.find(end, start)
    try:
        if start < 0 or stop < 0:
            raise ValueError("no block")
        der = ssl.PEM_cert_to_DER_cert(text[start : stop + len(end)])
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ValueError, ssl.SSLError):
        raise ConfigError([f"{name}: {cert} holds no certificate in PEM form"]) from None


def _encrypted(name: str) -> Callable[[], str]:
    def refuse() -> str:
        raise ConfigError([f"{name}: the private key is encrypted; give one without a passphrase"])

    return refuse


def peer_certificate_end(transport: asyncio.BaseTransport) -> float | None:
    """When the certificate at the other end ends, seconds of the epoch; None without TLS, or when not verified."""
    found = transport.get_extra_info("ssl_object")
    shown = found.getpeercert() if found is not None else None
    return ssl.cert_time_to_seconds(shown["notAfter"]) if shown else None
