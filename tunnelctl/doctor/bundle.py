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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunnelctl.client import Client
from tunnelctl.doctor.masking import HIDDEN, Mask, masked, shown_address
from tunnelctl.doctor.units import token_places
from tunneld import __version__
from tunneld.errors import TunneldError

if TYPE_CHECKING:
    from tunneld.control.models.doctor import DoctorReport

__all__ = ["MOST", "write"]

MOST = 1 << 20
"""Bytes of each file in it."""
_ENTRIES = 1000
_VISITORS = re.compile(r"((?:\"(?:path|client)\": ?|\b(?:path|client)=))(?:\"(?:[^\"\\]|\\.)*\"|\S+)")
"""A visitor's address, or what they ask for, as fields of a line of the log, in JSON or as text."""
_LINES = 500
_LONGEST = 16 << 10
"""Characters of a line of the journal; a longer one is left out whole, for the half of a secret is not known as one."""
_QUIET: dict[str, Any] = {
    "capture_output": True,
    "text": True,
    "timeout": 15,
    "check": False,
    "stdin": subprocess.DEVNULL,
}


def write(path: str, report: DoctorReport, client: Client, files: dict[str, dict[str, Any]], unit: str) -> list[str]:
    """Write the bundle, for its owner alone; returns the names in it.

    Args:
        path: of the file, which is made.
        report: of the doctor.
        client: of the agent, which need not be there.
        files: the agent's file as it was read, and behind it those of its tunnels.d, by their paths.
        unit: of the agent, whose journal goes in.

    Raises:
        OSError: it cannot be written, or is there already; nothing is left of it.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            parts = _parts(report, client, files, unit)
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, text in parts.items():
                    data = _bounded(text)
                    entry = tarfile.TarInfo(f"tunneld-bundle/{name}")
                    entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                    archive.addfile(entry, io.BytesIO(data))
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return list(parts)


def _parts(report: DoctorReport, client: Client, files: dict[str, dict[str, Any]], unit: str) -> dict[str, str]:
    """Each file of the bundle, without secrets."""
    config, *others = list(files.values()) or [{}]
    mask = Mask([config, *others, _at_run_time(client)], os.environ, token_places(unit))
    parts: dict[str, str] = {
        "doctor.json": _json(mask.value(report)),
        "versions.json": _json(_versions()),
        "config.json": _json(mask.value(masked(config))),
    }
    if others:
        shown = dict(list(files.items())[1 : _ENTRIES + 1])
        parts["tunnels.d.json"] = _json({mask.text(path): mask.value(masked(one)) for path, one in shown.items()})
    for name, target in (("status.json", "/v1/status"), ("health.json", "/v1/health"), ("streams.json", "/v1/streams")):
        try:
            found = _few(_without_visitors(client.call("GET", target)))
        except TunneldError as error:
            found = {"error": str(error)}
        parts[name] = _json(mask.value(found))
    try:
        parts["metrics.txt"] = mask.text(client.text("/metrics"))
    except TunneldError as error:
        parts["metrics.txt"] = mask.text(f"# {error}\n")
    if (lines := _journal(unit)) is not None:
        parts["journal.txt"] = mask.text(_VISITORS.sub(rf"\1{HIDDEN}", lines))
    return parts


def _at_run_time(client: Client) -> dict[str, Any]:
    """What a file might say of the tunnels that the agent has: those that were opened at run time stand in none."""
    try:
        tunnels = client.call("GET", "/v1/status")["tunnels"]
    except (TunneldError, KeyError, TypeError):  # no agent, or none that we know the answers of
        return {}
    return {"tunnels": [{"service": one.get("service")} for one in tunnels if isinstance(one, dict)]}


def _bounded(text: str) -> bytes:
    """At most `MOST` bytes of a text: its begin and its end."""
    data = text.encode(errors="replace")
    if len(data) <= MOST:
        return data
    half = MOST // 2 - 64
    return data[:half] + f"\n… {len(data) - 2 * half} bytes are left out …\n".encode() + data[-half:]


def _few(value: Any) -> Any:
    """An answer of the agent with at most `_ENTRIES` of each list, the others counted in `left_off`."""
    if not isinstance(value, dict):
        return value
    cut = {key: one[:_ENTRIES] for key, one in value.items() if isinstance(one, list) and len(one) > _ENTRIES}
    left = sum(len(value[key]) - _ENTRIES for key in cut)
    return {**value, **cut, **({"left_off": left} if left else {})}


def _without_visitors(value: Any) -> Any:
    """What the agent tells, without visitors' addresses, what they ask for, and more of a service than where it is."""
    if isinstance(value, dict):
        return {key: _told(key, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_visitors(one) for one in value]
    return value


def _told(key: str, value: Any) -> Any:
    if key in ("client", "last_event_id", "path") and value:
        return HIDDEN
    return shown_address(value) if key == "service" and isinstance(value, str) else _without_visitors(value)


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


def _journal(unit: str) -> str | None:
    """The agent's last lines; None where there is no journal that we may read."""
    program = shutil.which("journalctl")
    if program is None:
        return None
    command = [program, f"--unit={unit}", f"--lines={_LINES}", "--no-pager", "--output=short-iso", "--quiet"]
    try:
        done = subprocess.run(command, **_QUIET)  # noqa: S603 - journalctl with our own words and a unit's name
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0 or not done.stdout:
        return None
    return "".join(
        line if len(line) <= _LONGEST else f"… a line of {len(line)} characters is left out …\n"
        for line in done.stdout.splitlines(keepends=True)
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"
