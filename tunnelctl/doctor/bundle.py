"""``tunnelctl doctor --bundle FILE``: what a report of a defect needs, in one file, without secrets."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
from importlib import metadata
from typing import Any

from tunnelctl.client import Client
from tunnelctl.doctor.findings import without_secrets
from tunneld import __version__
from tunneld.errors import TunneldError

__all__ = ["masked", "write"]

_SECRET_KEY = re.compile(r"token|password|passwd|secret|key|cookie|credential|auth|webhook", re.IGNORECASE)
_PLAIN_KEY = re.compile(r"_file$|_cert$|^(client_)?key$|^keepalive$", re.IGNORECASE)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{4,}")
_LINES = 500
_QUIET: dict[str, Any] = {
    "capture_output": True,
    "text": True,
    "timeout": 15,
    "check": False,
    "stdin": subprocess.DEVNULL,
}


def write(path: str, report: dict[str, Any], client: Client, config: dict[str, Any]) -> list[str]:
    """Write the bundle, for its owner alone; returns the names in it.

    Args:
        path: of the file, which is made.
        report: of the doctor.
        client: of the agent, which need not be there.
        config: the agent's file as it was read.

    Raises:
        OSError: it cannot be written, or is there already.
    """
    parts: dict[str, str] = {
        "doctor.json": _json(report),
        "versions.json": _json(_versions()),
        "config.json": _json(masked(config)),
    }
    for name, target in (("status.json", "/v1/status"), ("health.json", "/v1/health"), ("streams.json", "/v1/streams")):
        try:
            parts[name] = _json(_without_visitors(client.call("GET", target)))
        except TunneldError as error:
            parts[name] = _json({"error": str(error)})
    try:
        parts["metrics.txt"] = client.text("/metrics")
    except TunneldError as error:
        parts["metrics.txt"] = f"# {error}\n"
    if (lines := _journal()) is not None:
        parts["journal.txt"] = lines
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in parts.items():
            data = _BEARER.sub(r"\1 …", without_secrets(text)).encode(errors="replace")
            entry = tarfile.TarInfo(f"tunneld-bundle/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return list(parts)


def masked(value: Any, key: str = "") -> Any:
    """A configuration without its secrets: values below such a key, and of every header, are hidden."""
    if isinstance(value, dict):
        if key == "headers":
            return dict.fromkeys(value, "…")
        return {name: masked(one, str(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [masked(one, key) for one in value]
    if isinstance(value, str) and _SECRET_KEY.search(key) and not _PLAIN_KEY.search(key):
        return "…"
    return without_secrets(value) if isinstance(value, str) else value


def _without_visitors(value: Any) -> Any:
    """What the agent tells, without visitors' addresses and what they send in queries."""
    if isinstance(value, dict):
        return {
            key: "…" if key in ("client", "last_event_id") and one else _without_visitors(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_without_visitors(one) for one in value]
    return value


def _versions() -> dict[str, Any]:
    packages: dict[str, str | None] = {}
    for name in ("uvloop", "websockets", "httptools", "msgspec", "pydantic", "fastapi", "uvicorn", "prometheus-client"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "tunneld": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "packages": packages,
    }


def _journal() -> str | None:
    """The agent's last lines; None where there is no journal that we may read."""
    program = shutil.which("journalctl")
    if program is None:
        return None
    command = [program, "--unit=tunneld", f"--lines={_LINES}", "--no-pager", "--output=short-iso", "--quiet"]
    try:
        done = subprocess.run(command, **_QUIET)  # noqa: S603 - journalctl with our own words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 and done.stdout else None


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"
