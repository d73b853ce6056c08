"""The verbs about one tunnel: open, close, info. Each returns an exit status."""

from __future__ import annotations

import argparse
import secrets
import sys
import textwrap
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tunnelctl.client import Client
from tunnelctl.render import Screen, clean, duration, parse_duration, plural, size, to_json
from tunneld.errors import TunneldError, UsageError

if TYPE_CHECKING:
    from tunneld.control.models.agent import Status
    from tunneld.control.models.tunnels import Link, TunnelStatus

__all__ = ["close", "info", "open_", "share"]


def _path(name: str) -> str:
    return f"/v1/tunnels/{quote(name, safe='')}"


def open_(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Open a tunnel at run time; exit 1 when it is not up yet."""
    wanted: dict[str, Any] = {"name": args.name, "service": _service(args.service)}
    if args.lifetime is not None:
        if args.save:
            raise UsageError("--for and --save: a tunnel is kept over restarts, or goes by itself")
        wanted["for_s"] = parse_duration(args.lifetime)
    if args.save:
        wanted["save"] = True
    if args.heartbeat is not None:
        wanted["heartbeat"] = {"interval": parse_duration(args.heartbeat)}
    if args.keepalive is not None:
        wanted["sse"] = {"keepalive": parse_duration(args.keepalive)}
    key = None
    if args.access is not None:
        wanted["access"], key = _access(args.access)
    opened: TunnelStatus = client.call("POST", "/v1/tunnels", wanted)
    if key is not None:
        print(f"visitors need this key, which is shown only now: {key}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(to_json(opened))
    elif opened["public_url"]:
        print(f"{clean(opened['public_url'])}/ -> {clean(opened['service'])}")
    if args.save and not args.json:
        print(f"saved in {clean(opened.get('file') or '?')}")
    up = opened["state"] in ("online", "degraded")
    if not args.json and opened["state"] == "degraded":
        print(f"its service does not answer yet: {clean(opened['last_error'])}")
    if not up:
        raise TunneldError(
            f"the tunnel {opened['name']} is {opened['state']}: {opened['last_error'] or 'no answer yet'}; "
            f"the agent goes on trying, `tunnelctl close {opened['name']}` ends that"
        )
    return 0


def _access(text: str) -> tuple[dict[str, Any], str | None]:
    """The `access` section that ``--access`` asks for, and the key that was made for it."""
    mode, colon, file = text.partition(":")
    if text == "open":
        return {"mode": "open"}, None
    if text == "key":
        key = secrets.token_urlsafe(24)
        return {"mode": "key", "keys": [{"name": "visitor", "hash": sha256(key.encode()).hexdigest()}]}, key
    if mode == "basic" and colon and file:
        return {"mode": "basic", "users_file": str(Path(file).absolute())}, None
    if mode == "login" and colon and file:
        who = [one for one in file.split(",") if one]
        emails, domains = [one for one in who if "@" in one[1:]], [one for one in who if "@" not in one[1:]]
        return {"mode": "login", "emails": emails, "domains": domains}, None
    raise UsageError("--access: open, key (one is made), basic:HTPASSWD-FILE, or login:WHO[,WHO…]")


def share(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Print an address that works for one path of a protected tunnel until a time."""
    wanted = {"path": args.path, "for_s": parse_duration(args.lifetime)}
    made: Link = client.call("POST", f"{_path(args.name)}/links", wanted)
    print(to_json(made) if args.json else made["url"])
    return 0


def _service(text: str) -> str:
    return f"http://127.0.0.1:{text}" if text.isascii() and text.isdigit() else text


def close(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Close a tunnel that was opened at run time, or all of them."""
    if bool(args.name) == args.all:
        raise UsageError("say which: NAME or --all")
    names = [args.name]
    if args.all:
        found: Status = client.call("GET", "/v1/status")
        main = found["config_file"]
        at_run_time = [one for one in found["tunnels"] if not one.get("configured", True)]
        saved = [one for one in found["tunnels"] if one.get("configured", True) and one.get("file", main) != main]
        names = [one["name"] for one in at_run_time + saved]
    answers = [client.call("DELETE", _path(name)) for name in names]
    if args.json:
        print(to_json(answers if args.all else answers[0]))
        return 0
    for answer in answers:
        print(f"closed {clean(answer['closed'])}, {answer['streams']} streams ended")
    if not answers:
        print("no tunnel was opened at run time")
    return 0


def info(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Show all that is known of one tunnel."""
    if not args.name:
        raise UsageError("give the tunnel's name")
    found: TunnelStatus = client.call("GET", _path(args.name))
    if args.json:
        print(to_json(found))
        return 0
    for key, value in _rows(found):
        print(_folded(f"{key:<12} ", clean(value), screen))
    return 0


def _folded(head: str, text: str, screen: Screen) -> str:
    """A row of a terminal's width; an address stays whole, to be copied."""
    if screen.width is None:
        return head + text
    indent = " " * len(head)
    return textwrap.fill(
        text,
        screen.width,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _rows(found: TunnelStatus) -> list[tuple[str, str]]:
    quality, beat = found["quality"], found["heartbeat"]
    rows = [
        ("tunnel", found["name"]),
        ("state", found["state"] + (f": {found['last_error']}" if found["last_error"] else "")),
        ("address", f"{found['public_url']}/" if found["public_url"] else "-"),
        ("by host", found["host_url"] or "-"),
        ("service", found["service"]),
        ("registered", f"as {found['tunnel_id']}" if found["tunnel_id"] else "not yet"),
        ("since", _since(found["connected_s"], found["reconnects"])),
        ("streams", str(found["active_streams"])),
        ("heartbeat", f"every {duration(beat['interval_s'])}, {_heard(beat)}"),
        ("quality", _quality(quality)),
        ("kernel", _kernel(quality.get("tcp"))),
        ("throughput", _throughput(found)),
        ("outages", _outages(found.get("outages"))),
    ]
    if found.get("file"):
        rows.append(("stands in", str(found["file"])))
    if not found.get("configured", True):
        left = found.get("expires_s")
        rows.append(("opened", "at run time" + (f", for {duration(left)} more" if left is not None else "")))
    return rows


def _since(seconds: float | None, reconnects: int) -> str:
    """When the connection that stands began, by this machine's clock."""
    if seconds is None:
        return f"not connected, {reconnects} reconnects"
    began = datetime.now().astimezone() - timedelta(seconds=seconds)
    return f"{began:%Y-%m-%d %H:%M:%S} ({duration(seconds)} ago), {reconnects} reconnects"


def _quality(quality: Any) -> str:
    if quality["grade"] is None:
        return "not known yet"
    trips = quality["rtt_ms"]
    words = [quality["grade"] + (f" ({quality['reason']})" if quality.get("reason") else "")]
    words += [f"rtt {trips[key]:.1f} ms {key}" for key in ("last", "p50", "p95") if trips[key] is not None]
    if quality["jitter_ms"] is not None:
        words.append(f"jitter {quality['jitter_ms']:.1f} ms")
    if quality.get("queue_ms") is not None:
        words.append(f"queueing {quality['queue_ms']:.1f} ms")
    if quality["loss"] is not None:
        words.append(f"loss {quality['loss']:.1%}")
    return ", ".join(words)


def _kernel(tcp: Any) -> str:
    """What the kernel knows of the connection."""
    if tcp is None:
        return "knows nothing of the connection"
    words = [f"rtt {tcp['rtt_ms']:.1f} ms smoothed", f"{tcp['least_rtt_ms']:.1f} ms least"]
    words.append(f"{tcp['retransmitted']} of {tcp['segments']} segments sent again")
    if tcp["delivery_rate"]:
        words.append(f"delivers {size(tcp['delivery_rate'])}/s")
    return ", ".join(words)


def _throughput(found: TunnelStatus) -> str:
    whole = f"{size(found.get('bytes_in', 0))} from visitors and {size(found.get('bytes_out', 0))} to them in sum"
    if (rates := found.get("throughput")) is None:
        return whole
    return f"{size(rates['in_bytes_s'])}/s from visitors, {size(rates['out_bytes_s'])}/s to them; {whole}"


def _outages(outages: Any) -> str:
    if not outages or not outages["count"]:
        return "none"
    lost = plural(outages["streams_lost"], "stream")
    words = [f"{outages['count']}, {duration(outages['seconds'])} in sum, {lost} lost"]
    if last := outages["last"]:
        how = "resumed" if last["resumed"] else "not resumed"
        words.append(f"the last at {last['at']} for {duration(last['seconds'])}, {how}")
    return "; ".join(words)


def _heard(beat: Any) -> str:
    """When the last answer came, and the last byte of any kind."""
    told = (("the last answer", beat["last_pong_s"]), ("the last byte", beat.get("last_byte_s")))
    return ", ".join(f"{what} {duration(ago)} ago" for what, ago in told if ago is not None) or "no answer yet"
