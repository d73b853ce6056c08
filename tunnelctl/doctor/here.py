"""What the doctor looks at on this machine: file, socket, agent, and the services themselves."""

from __future__ import annotations

import grp
import http.client
import json
import os
import pwd
import socket
import ssl
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunnelctl.client import Client
from tunnelctl.doctor.bounds import at_most, connected
from tunnelctl.doctor.findings import Finding, fail, ok, warn, without_secrets
from tunneld.errors import TunneldError

__all__ = ["DEFAULT_FILE", "agent", "config", "control_socket", "read_config", "services"]

DEFAULT_FILE = "/etc/tunneld/tunneld.yaml"
_PATIENCE = 5.0
"""Seconds for each thing that is asked."""
_AT_ONCE = 16
"""Services that are asked at a time."""
_CHECK = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from tunneld.__main__ import main; sys.exit(main())"
)
"""Runs `tunneld` out of where this program is, whatever else lies in the working directory."""


def config(path: str) -> list[Finding]:
    """What ``tunneld check`` says of the file."""
    if not os.path.exists(path):
        return [
            fail("config", f"{path} does not exist.", "Write one (see config/tunneld.yaml), or give --config FILE.")
        ]
    if not (os.path.isfile(path) or os.path.isdir(path)):
        return [fail("config", f"{path} is no ordinary file.", "Give the path of the agent's file.")]
    command = [sys.executable, "-I", "-c", _CHECK, json.dumps(sys.path), "check", "--role", "agent", "--config", path]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            command, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return [fail("config", f"{path} could not be read within 30 s.", "Is it on a disk that does not answer?")]
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if done.returncode == 0:
        return [ok("config", f"{path} is valid.")]
    if not said:
        return [fail("config", f"`tunneld check` ended with {done.returncode}.", f"Run tunneld check --config {path}.")]
    return [fail("config", line, "Correct that line, then `tunnelctl reload`.") for line in said[:20]]


def read_config(path: str) -> dict[str, Any]:
    """The file as a mapping, as far as it can be read; faults in it are `config`'s to tell."""
    import yaml

    if not os.path.isfile(path):  # a pipe would be waited for
        return {}
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # no text, no path, no such day, too deep
        return {}
    return found if isinstance(found, dict) else {}


def dropins(path: str, state: str) -> dict[str, dict[str, Any]]:
    """The files of `tunnels.d` of an agent, by their paths, as far as they can be read.

    Args:
        path: the agent's file, which one folder stands beside.
        state: the folder that the other stands in.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in (
        Path(path).absolute().parent,
        Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or state),
    ):
        try:
            names = sorted(one for one in os.listdir(folder / "tunnels.d") if one.endswith(".yaml"))
        except (OSError, ValueError):
            continue
        found |= {str(folder / "tunnels.d" / one): read_config(str(folder / "tunnels.d" / one)) for one in names}
    return found


def control_socket(path: str) -> Finding:
    """Whether the socket is there, and ours to use."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return fail(
            "socket",
            f"{path} does not exist: no agent runs, or it has another.",
            "Start it (`systemctl start tunneld`), or give --socket PATH or --instance NAME.",
        )
    except PermissionError:
        return _not_ours(path)
    except OSError as error:
        return fail("socket", f"{path} cannot be reached: {error.strerror}.", "Run this as root, or as a user who may.")
    if not stat.S_ISSOCK(found.st_mode):
        return fail("socket", f"{path} is no socket.", "Give the path of `control.socket`.")
    mode = f"mode {stat.S_IMODE(found.st_mode):04o}, group {_group(found.st_gid)}"
    if found.st_mode & stat.S_IWOTH:
        return warn(
            "socket",
            f"{path} is open to every user ({mode}).",
            'Set control.mode to "0660"; who may use it is its group.',
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(path)
        except PermissionError:
            return fail("socket", f"{path} is not ours to use ({mode}).", _join(found.st_gid))
        except OSError as error:
            return fail(
                "socket",
                f"{path} is there, but nobody answers: {error.strerror}.",
                "The agent was killed: start it again.",
            )
    return ok("socket", f"{path} answers ({mode}).")


def _not_ours(path: str) -> Finding:
    """Of a socket in a folder that is closed to us: the folder has the group."""
    folder = os.path.dirname(path)
    try:
        found = os.stat(folder)
    except OSError:
        return fail("socket", f"{path} is not ours to use.", "Run this as root, or as a user who may.")
    mode = f"mode {stat.S_IMODE(found.st_mode):04o}, group {_group(found.st_gid)}"
    return fail("socket", f"{path} is not ours to use: {folder} is closed ({mode}).", _join(found.st_gid))


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _join(gid: int) -> str:
    """How this user comes to be in a group."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
        if user in grp.getgrgid(gid).gr_mem and gid not in os.getgroups():
            return f"{user} was put into the group {_group(gid)} after this login: log in anew."
    except KeyError:
        user = "$USER"
    return f"sudo usermod -aG {_group(gid)} {user}, then log in anew."


def agent(client: Client) -> tuple[list[Finding], dict[str, Any] | None]:
    """How the agent does, and its status; None when there is none."""
    try:
        status: dict[str, Any] = client.call("GET", "/v1/status")
    except TunneldError as error:
        return [fail("agent", f"The agent does not answer: {error}.", "See its log: journalctl -u tunneld -e.")], None
    found = [ok("agent", f"tunneld {status['version']}, pid {status['pid']}, up for {status['uptime_s']:.0f} s.")]
    for tunnel in status["tunnels"]:
        found.append(_tunnel(tunnel))
    if not status["tunnels"]:
        found.append(
            warn("tunnel", "It has no tunnels.", "Add one under `tunnels:`, or `tunnelctl open NAME SERVICE`.")
        )
    return found, status


def _tunnel(tunnel: dict[str, Any]) -> Finding:
    name, state, why = (
        f"tunnel {tunnel['name']}",
        tunnel["state"],
        (tunnel["last_error"] or "no reason given").rstrip("."),
    )
    quality = tunnel.get("quality") or {}
    if state == "online":
        grade, reason = quality.get("grade"), quality.get("reason", "")
        if grade in ("poor", "down"):
            return warn(
                name, f"online, but its connection is {grade}: {reason}.", "Look at the network between both ends."
            )
        return ok(name, f"online at {tunnel['public_url']}, connection {grade or 'not measured yet'}.")
    if state == "degraded":
        return fail(name, f"connected, but {why}.", "Start or mend the service; the checks below say how it answers.")
    if state in ("connecting", "resuming", "draining"):
        return warn(name, f"{state}: {why}.", "Wait a moment and look again; the checks below say where it waits.")
    return fail(name, f"{state}: {why}.", "The checks of the server below say where it fails.")


def services(tunnels: list[dict[str, Any]]) -> list[Finding]:
    """How each tunnel's service answers a request for events, asked straight.

    Args:
        tunnels: `name`, `service` and, maybe, `service_check`.
    """

    def look(one: dict[str, Any]) -> Finding:
        return _service(str(one.get("name")), str(one.get("service", "")), one.get("service_check"))

    with ThreadPoolExecutor(_AT_ONCE) as pool:  # each that hangs takes its time: not one after the other
        return list(pool.map(look, tunnels))


def _service(name: str, address: str, check: object) -> Finding:
    what = f"service {name}"
    path = str(check.get("path") or "/") if isinstance(check, dict) else "/"
    headers = {"Accept": "text/event-stream, */*", "Accept-Encoding": "gzip"}
    connection = None
    try:
        connection = _connection(address)
        with at_most(_PATIENCE, connection.sock):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
        return _answered(what, path, answer)
    except ssl.SSLCertVerificationError as error:
        return warn(
            what, f"It shows a certificate that is not trusted here: {error.verify_message}.", "See that of its CA."
        )
    except ValueError:
        return fail(
            what, f"{without_secrets(address)} is no address.", "Give http://HOST:PORT, https://… or unix:/path."
        )
    except TimeoutError:
        return fail(
            what,
            f"No head of an answer to GET {path} within {_PATIENCE:g} s.",
            "See why the service hangs; its own log says.",
        )
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
        return fail(
            what, f"{without_secrets(address)} does not answer: {why}.", "Start the service, or correct `service:`."
        )
    finally:
        if connection is not None:
            connection.close()


def _connection(address: str) -> http.client.HTTPConnection:
    """To a service, connected; raises ValueError where that is no address, and OSError."""
    if address.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=_PATIENCE)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(address.removeprefix("unix:"))
        except OSError:
            sock.close()
            raise
        connection.sock = sock
        return connection
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return connected(parts.scheme, parts.hostname, port, _PATIENCE)


def _answered(what: str, path: str, answer: http.client.HTTPResponse) -> Finding:
    kind = answer.headers.get_content_type()
    encoding = (answer.headers.get("Content-Encoding") or "").lower()
    said = f"GET {path} is answered {answer.status} {kind}"
    if answer.status >= 500:
        return fail(what, f"{said}.", "The service fails by itself: see its log.")
    if kind == "text/event-stream":
        if encoding not in ("", "identity"):
            return warn(
                what,
                f"{said}, encoded by {encoding}: events cannot be told apart on the way.",
                "Leave sse.identity on, and do not compress event streams.",
            )
        return ok(what, f"{said}: it speaks SSE.")
    return ok(what, f"{said}; SSE is at another path, or not spoken (give --sse URL to measure a stream).")
