"""``tunnelctl alerts``: what the alerts of an agent, or of a server, say, and whether its receivers can be reached."""

from __future__ import annotations

import argparse
from typing import Any

from tunnelctl.client import Client
from tunnelctl.render import Column, Screen, clean, duration, table, to_json
from tunneld.errors import UsageError

__all__ = ["add_arguments", "run"]


_COLUMNS = [
    Column("ALERT", least=8),
    Column("OF", least=8),
    Column("STATE"),
    Column("SINCE", drop=1),
    Column("WHY", least=20),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("what", nargs="?", metavar="test", help="send a test message to the receivers")
    parser.add_argument("name", nargs="?", metavar="ALERT", help="to those of this rule only")


def run(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """Show what holds; with `test` try the receivers: 1 when one was not reached."""
    if args.what is None:
        return _show(client, args, screen)
    if args.what != "test":
        raise UsageError(f"alerts: {clean(args.what)!r} is not known; there is `alerts` and `alerts test [ALERT]`")
    answer = client.call("POST", "/v1/alerts/test", {"alert": args.name} if args.name else {})
    told: list[dict[str, Any]] = answer["told"]
    if args.json:
        print(to_json(answer))
    elif not told:
        print("No rule has a receiver: alerts are told in the log alone.")
    else:
        for one in told:
            well = one["fault"] is None
            mark = screen.paint("✓" if well else "✗", "green" if well else "red")
            print(f"{mark} {clean(one['receiver'])}: {'arrived' if well else clean(one['fault'])}")
    return 1 if any(one["fault"] is not None for one in told) else 0


def _named(rule: dict[str, Any]) -> str:
    return f"{clean(rule['name'])} (for {duration(rule['for_s'])})" if rule["for_s"] else clean(rule["name"])


def _show(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    answer = client.call("GET", "/v1/alerts")
    if args.json:
        print(to_json(answer))
        return 0
    if not answer["rules"]:
        print("There are no rules: see `alerts:` in the configuration.")
        return 0
    if answer["alerts"]:
        rows = [[one["alert"], one["subject"], one["state"], one["since"], one["message"]] for one in answer["alerts"]]
        for line in table(_COLUMNS, rows, screen):
            print(line)
    else:
        held = ", ".join(map(_named, answer["rules"]))
        print(f"Nothing holds of: {held}.")
    for one in answer["receivers"]:
        error = f", last error: {clean(one['last_error'])}" if one["last_error"] else ""
        print(f"{clean(one['name'])}: {one['sent']} sent, {one['failed']} failed, {one['queued']} waiting{error}")
    return 0
