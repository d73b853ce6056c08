"""A server's admin API, from outside: ``tunnelctl --server URL --token-file F``."""

from __future__ import annotations

import http.client
import os
import ssl
import stat
from pathlib import Path
from urllib.parse import urlsplit

from tunnelctl.client import Client, Unreachable
from tunneld.errors import UsageError

__all__ = ["ServerClient", "read_token"]


class ServerClient(Client):
    """Calls of a server's admin API, which has the same ones below ``/api``.

    Args:
        url: ``http://HOST:PORT`` or ``https://…`` of the admin listener.
        token: bearer token; None sends none, which only the server's own machine may.
        ca_file: PEM file of the roots that are trusted; None: the system's.

    Raises:
        UsageError: the address cannot be one.
    """

    daemon = "server"

    def __init__(self, url: str, *, token: str | None, ca_file: str | None = None, timeout: float = 10.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.username:
            raise UsageError(f"--server: {url[:200]!r} is no address such as https://admin.example.org:8441")
        super().__init__(f"{parts.scheme}://{parts.netloc}", timeout=timeout)
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(parts.hostname, port, timeout=timeout, context=_tls(ca_file))
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout)
        self._prefix = parts.path.rstrip("/") + "/api"
        self._headers = {"X-Tunneld-Request": "tunnelctl"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def _unreachable(self, error: Exception) -> Unreachable:
        where = f"the server's admin API at {self.path}"
        if isinstance(error, TimeoutError):
            return Unreachable(f"{where} does not answer within {self._timeout:g} s")
        if isinstance(error, ssl.SSLCertVerificationError):
            return Unreachable(
                f"{where} shows a certificate that is not trusted: {error.verify_message}; see --ca-file"
            )
        if isinstance(error, ssl.SSLError):
            return Unreachable(f"{where} does not speak TLS as expected: {error.reason or error}")
        if isinstance(error, ConnectionRefusedError):
            return Unreachable(f"nothing listens at {self.path}: give the address of admin.listen")
        if isinstance(error, http.client.HTTPException):
            return Unreachable(f"what answers at {self.path} is no admin API; is it https?")
        return Unreachable(f"cannot reach {where}: {error.strerror if isinstance(error, OSError) else error}")


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise UsageError(f"--ca-file: {ca_file}: {(error.strerror or str(error)).lower()}") from None


def read_token(path: str) -> str:
    """The bearer token in a file that nobody else can read; raises UsageError."""
    try:
        with Path(path).open("rb") as file:
            if stat.S_ISREG((status := os.fstat(file.fileno())).st_mode) and status.st_mode & 0o006:
                raise UsageError(f"--token-file: others can read {path}; run `chmod 600 {path}`")
            text = file.read(64 << 10).decode("ascii", "replace").strip()
    except OSError as error:
        raise UsageError(f"--token-file: {path}: {(error.strerror or str(error)).lower()}") from None
    if not text or not all("!" <= one <= "~" for one in text):
        raise UsageError(f"--token-file: {path}: expected one token on one line")
    return text
