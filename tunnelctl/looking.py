"""``tunnelctl tail``, ``requests`` and ``replay``: looking into the streams of tunnels with `inspect: true`."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote, urlencode

from tunnelctl.client import Client
from tunnelctl.render import Column, Screen, clean, safe_json, table, to_json

__all__ = ["replay", "requests", "tail"]

_SEEN = [
    Column("ID", least=8),
    Column("TUNNEL"),
    Column("AT", drop=1),
    Column("METHOD"),
    Column("PATH", least=12),
    Column("STATUS", right=True),
    Column("REASON"),
    Column("TOOK", right=True),
]


def tail(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Print what passes on a stream until it ends, or Ctrl-C."""
    found = _whole_id(client, args.id)
    try:
        for text in client.lines(f"/v1/streams/{quote(found, safe='')}/tail"):
            event: dict[str, Any] = json.loads(text)
            print(safe_json(text) if args.json else _line(event, screen), flush=True)
    except KeyboardInterrupt:
        pass
    return 0


def _whole_id(client: Client, prefix: str) -> str:
    """The id that an unambiguous prefix means; the prefix itself when none fits, for the agent to judge."""
    found = [one["request_id"] for one in client.call("GET", "/v1/streams")["streams"]]
    fitting = [one for one in found if one.startswith(prefix)]
    return fitting[0] if len(fitting) == 1 else prefix


def _line(event: dict[str, Any], screen: Screen) -> str:
    kind = event.get("type")
    if kind == "event":
        head = " ".join(f"{key}={clean(event[key])}" for key in ("id", "event", "retry") if key in event)
        cut = f" … {event['cut']} more" if "cut" in event else ""
        return f"{screen.paint(head, 'dim')}{' ' if head else ''}{clean(event.get('data', ''))}{cut}"
    if kind == "comment":
        return screen.paint(f": {clean(event.get('data', ''))}", "dim")
    if kind == "skipped":
        return screen.paint(f"({event['events']} events more than are shown a second)", "yellow")
    if kind == "end":
        return screen.paint(f"(ended: {clean(event.get('reason', ''))})", "dim")
    if kind == "frame":
        more = "" if event.get("final", True) else " …"
        head = f"{event.get('from', '')} {event.get('kind', '')} ({event.get('bytes', 0)} bytes)"
        return f"{screen.paint(clean(head), 'dim')} {clean(event.get('text', ''))}{more}".rstrip()
    if event.get("encoding"):
        return screen.paint(f"{event.get('bytes', 0)} bytes, packed: {clean(event['encoding'])}", "dim")
    return f"{event.get('bytes', 0)} bytes: {clean(event.get('text', ''))}"


def requests(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """The last requests, newest first."""
    target = "/v1/requests" + (f"?{urlencode({'tunnel': args.tunnel})}" if args.tunnel else "")
    answer = client.call("GET", target)
    if args.json:
        print(to_json(answer))
        return 0
    rows = [
        [
            one["request_id"],
            one["tunnel"],
            one["at"].partition("T")[2].rstrip("Z"),
            one["method"],
            one["path"],
            one["status"] or "-",
            one["reason"] or "open",
            f"{one['seconds']:.3f}s",
        ]
        for one in answer["requests"]
    ]
    for line in (
        table(_SEEN, rows, screen) if rows else ["no requests were seen; only tunnels with `inspect: true` are"]
    ):
        print(line)
    return 0


def replay(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Send one again, and show what the service answers."""
    found = [one["request_id"] for one in client.call("GET", "/v1/requests")["requests"]]
    fitting = [one for one in found if one.startswith(args.id)]
    wanted = fitting[0] if len(fitting) == 1 else args.id
    answer = client.call("POST", f"/v1/requests/{quote(wanted, safe='')}/replay")
    if args.json:
        print(to_json(answer))
        return 0
    print(screen.paint(f"{answer['status']} in {answer['seconds']:.3f} s", "bold"))
    for name, value in answer["headers"]:
        print(f"{clean(name)}: {clean(value)}")
    print()
    for line in answer["body"].splitlines():
        print(clean(line))
    if not answer["whole"]:
        print(screen.paint("(there was more)", "dim"))
    return 0
