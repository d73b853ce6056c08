"""Ports, short folders and certificates for tests that use real sockets. Loopback only."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LOOPBACK", "Certificate", "accepts", "certificate", "free_port", "free_ports", "short_dir"]

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """`count` TCP ports on loopback that nobody listens on now, all different."""
    held = [socket.socket() for _ in range(count)]
    try:
        for sock in held:
            sock.bind((LOOPBACK, 0))
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


def accepts(port: int) -> bool:
    """Whether someone takes connections at the port; a connection is made and closed."""
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """One TCP port on loopback that nobody listens on now."""
    return free_ports(1)[0]


@contextmanager
def short_dir() -> Iterator[Path]:
    """A new folder with a short path (a Unix socket's address holds 107 bytes), removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="td", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Certificate:
    """Paths of a self-signed certificate for 127.0.0.1, ::1 and localhost; it is its own CA file."""

    cert: Path
    key: Path


def certificate(folder: Path, *addresses: str) -> Certificate:
    """Make a self-signed certificate with openssl in `folder` (P-256, two days), for these IP addresses too."""
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    names = ",".join(
        ["subjectAltName=DNS:localhost,DNS:*.localhost,IP:127.0.0.1,IP:::1", *(f"IP:{each}" for each in addresses)]
    )
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    extensions = ["-addext", names, "-addext", "basicConstraints=critical,CA:TRUE"]
    files = ["-keyout", str(made.key), "-out", str(made.cert)]
    subprocess.run([*command.split(), *extensions, *files], check=True, capture_output=True)
    made.key.chmod(0o600)
    return made
