"""``tunnelctl doctor``: looks at everything between a service and its visitors, and says what to do."""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunnelctl.client import Client
from tunnelctl.doctor import bundle, here, stream, there, units
from tunnelctl.doctor.browsers import tabs
from tunnelctl.doctor.findings import Finding, fail, report
from tunnelctl.render import Screen, clean, parse_duration, to_json
from tunneld.errors import TunneldError, UsageError

if TYPE_CHECKING:
    from tunneld.control.models.doctor import DoctorReport

__all__ = ["add_arguments", "run"]

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red"), "skip": ("-", "dim")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument(
        "--config", metavar="FILE", help=f"the agent's file; default: the agent's own, else {here.DEFAULT_FILE}"
    )
    parser.add_argument("--sse", metavar="URL", help="measure this event stream: buffered on the way? cut when quiet?")
    parser.add_argument("--for", dest="seconds", metavar="TIME", help="how long to measure it; default: 70s")
    parser.add_argument(
        "--bundle", metavar="FILE", help="write what a report of a defect needs (.tar.gz), without secrets"
    )


def run(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Look, tell, and return 0, or 1 when something does not work."""
    show: Callable[[Finding], None] = (lambda _: None) if args.json else (lambda finding: _print(finding, screen))
    findings: list[Finding] = []

    def add(found: list[Finding]) -> None:
        for finding in found:
            show(finding)
        findings.extend(found)

    files: dict[str, dict[str, Any]] = {}
    if args.sse is not None:
        seconds = parse_duration(args.seconds or "70s")
        add(_measured(client, args.sse, seconds))
    if args.sse is None or args.bundle is not None:
        files = _all(client, args, add)
    told = report(findings)
    if args.bundle is not None:
        _write(args.bundle, told, client, files, quiet=args.json)
    if args.json:
        print(to_json(told))
    return 1 if told["status"] == "fail" else 0


def _all(client: Client, args: argparse.Namespace, add: Callable[[list[Finding]], None]) -> dict[str, dict[str, Any]]:
    """Everything but a stream; returns the file as it was read and, behind it, its tunnels.d, by their paths."""
    add([here.control_socket(client.path)])
    found, status = here.agent(client)
    path = args.config or (status or {}).get("config_file") or here.DEFAULT_FILE
    add(here.config(path))
    add(found)
    unit = units.unit_of(client.path)
    add([units.systemd(unit, status, path), *units.server()])
    config = here.read_config(path)
    server = _section(config, "server")
    url = (status or {}).get("server") or server.get("url")
    dropins = here.dropins(path, units.state(unit))
    tunnels = [one for each in (config, *dropins.values()) for one in _tunnels(each)]
    if url:
        token = _token(server, unit, path, str(url))
        add(
            there.look(
                there.Server(
                    str(url),
                    token=token,
                    ca_file=_text(server, "ca_file"),
                    proxy=_text(server, "proxy"),
                    tunnel=str(tunnels[0].get("name")) if tunnels else "doctor",
                    version=_first(status, "server_version"),
                    token_left=_first(status, "token_expires_s"),
                    taken=any(one["state"] in ("online", "degraded") for one in (status or {}).get("tunnels", ())),
                )
            )
        )
    else:
        add([fail("server", "No server is known.", "Write `server: {url: wss://…}` into the file.")])
    public = [str(one["public_url"]) for one in (status or {}).get("tunnels", ()) if one.get("public_url")]
    if public:
        add([tabs(public[0], ca_file=_text(server, "ca_file"))])
    add(here.services(_with_others(tunnels, status)))
    return {path: config, **dropins}


def _with_others(tunnels: list[dict[str, Any]], status: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Those of the files, and those that the agent has besides."""
    known = [one.get("name") for one in tunnels]
    return tunnels + [one for one in (status or {}).get("tunnels", ()) if one["name"] not in known]


def _first(status: dict[str, Any] | None, key: str) -> Any:
    """What the first tunnel that knows says."""
    return next((one[key] for one in (status or {}).get("tunnels", ()) if one.get(key) is not None), None)


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _text(section: dict[str, Any], key: str) -> str | None:
    found = section.get(key)
    return found if isinstance(found, str) else None


def _tunnels(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the file that are some; what else stands there, the finding about the file tells."""
    found = config.get("tunnels")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _token(server: dict[str, Any], unit: str, config: str, url: str) -> str | None:
    """The credential to show at `url`, where we may read one: the file's, its unit's, or the environment's.

    In the daemon's own order. What the file and its unit hold goes to the server that this file names and to no other,
    and a unit's credential with the unit's own file alone: any other file may name a server of anybody's.

    Args:
        server: the file's section.
        unit: of the agent whose socket is looked at.
        config: the file that is looked at.
        url: of the server that is looked at; the agent's own, where one answers.
    """
    path = server.get("token_file")
    places: list[str] = []
    if _same(server.get("url"), url):
        if isinstance(path, str):
            places = [path]
        elif os.path.realpath(config) == os.path.realpath(units.settings(unit)):
            places = units.token_places(unit)
    for place in places:
        try:
            return Path(place).expanduser().read_text(encoding="ascii").strip() or None
        except (OSError, ValueError, RuntimeError):  # not there, no path or no text, of a user whom nobody knows
            continue
    return None if isinstance(path, str) else os.environ.get("TUNNELD_TOKEN", "").strip() or None


def _same(one: object, other: str) -> bool:
    """Two addresses of servers that differ in nothing but how they are written."""
    return str(one).strip().rstrip("/").lower() == other.strip().rstrip("/").lower()


def _measured(client: Client, url: str, seconds: float) -> list[Finding]:
    def ask(request_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = client.call("GET", f"/v1/streams/{request_id}")
        except TunneldError:
            return None
        return found

    try:
        return stream.judge(stream.measure(url, seconds, ask))
    except UsageError:
        raise
    except ssl.SSLCertVerificationError as error:
        said = f"Its certificate is not trusted: {error.verify_message.rstrip('.')}."
        return [
            fail("sse", said, "Mend it; of a private root, name its file: SSL_CERT_FILE=FILE tunnelctl doctor --sse …")
        ]
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return [fail("sse", f"There is no answer: {why}.", "See whether the address is right, and the server up.")]


def _write(path: str, told: DoctorReport, client: Client, files: dict[str, dict[str, Any]], *, quiet: bool) -> None:
    try:
        names = bundle.write(path, told, client, files, units.unit_of(client.path))
    except OSError as error:
        raise TunneldError(f"--bundle: {path}: {(error.strerror or str(error)).lower()}") from None
    if not quiet:
        print(f"{path}: {', '.join(names)}; read it before you pass it on")


def _print(finding: Finding, screen: Screen) -> None:
    mark, colour = _MARKS[finding.status]
    print(f"{screen.paint(mark, colour)} {clean(finding.check)}: {clean(finding.detail)}", flush=True)
    if finding.advice and finding.status in ("warn", "fail"):
        print(f"  → {clean(finding.advice)}", flush=True)
