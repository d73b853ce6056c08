"""``tunnelctl access``: who may visit a tunnel, by e-mail address. Returns an exit status."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tunnelctl.client import Client
from tunnelctl.render import Column, Screen, clean, parse_duration, table, to_json
from tunneld.errors import UsageError

if TYPE_CHECKING:
    from tunneld.control.models.permissions import PermissionInfo

__all__ = ["access", "add_arguments"]

_COLUMNS = (
    Column("EMAIL", least=16),
    Column("STATUS"),
    Column("LEVEL"),
    Column("SINCE", drop=2),
    Column("UNTIL", drop=1),
    Column("NOTES", least=8, drop=3),
)
_COLOURS = {"active": "green", "pending": "yellow", "revoked": "red", "expired": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("action", metavar="list|grant|revoke", choices=("list", "grant", "revoke"), help="what to do")
    parser.add_argument("name", metavar="NAME", help="the tunnel")
    parser.add_argument("emails", nargs="*", metavar="EMAIL", help="with grant and revoke: whose")
    levels = ("read_only", "read_write", "admin")
    parser.add_argument("--level", choices=levels, help="with grant: what they may do (default: read_write)")
    parser.add_argument(
        "--for", dest="lifetime", metavar="TIME", help="with grant: for 30m, 2h, 90d (default: for ever)"
    )
    parser.add_argument("--notes", metavar="TEXT", help="with grant: for people")


def access(client: Client, args: argparse.Namespace, screen: Screen) -> int:
    """List, give or take back permissions to visit a tunnel."""
    path = f"/v1/tunnels/{quote(args.name, safe='')}/permissions"
    if (args.action == "list") != (not args.emails):
        raise UsageError(f"access {args.action}: " + ("takes no EMAIL" if args.emails else "give at least one EMAIL"))
    if args.action != "grant" and (args.level or args.lifetime or args.notes is not None):
        raise UsageError("--level, --for and --notes go with grant")
    if args.action == "list":
        found: list[PermissionInfo] = client.call("GET", path)["permissions"]
    elif args.action == "grant":
        found = client.call("POST", path, _wanted(args))["permissions"]
    else:
        found = []
        for email in args.emails:
            found += client.call("DELETE", f"{path}/{quote(email, safe='@')}")["permissions"]
    if args.json:
        print(to_json({"permissions": found}))
        return 0
    if args.action == "list":
        rows = [_row(one) for one in found]
        lines = table(_COLUMNS, rows, screen, paint=_COLOURS) if rows else [f"nobody was given access to {args.name}"]
        for line in lines:
            print(line)
        return 0
    for one in found:
        until = f" until {clean(one['expires_at'])}" if one["expires_at"] else ""
        words = f"may visit {args.name}, {one['access_level']}{until}"
        if args.action == "revoke":
            words = f"may visit {args.name} no longer"
        print(f"{clean(one['allowed_email'])} {words}")
    return 0


def _wanted(args: argparse.Namespace) -> dict[str, Any]:
    wanted: dict[str, Any] = {"emails": args.emails}
    if args.level:
        wanted["access_level"] = args.level
    if args.lifetime:
        wanted["expires_s"] = parse_duration(args.lifetime)
    if args.notes is not None:
        wanted["notes"] = args.notes
    return wanted


def _row(one: PermissionInfo) -> tuple[Any, ...]:
    since = one["activated_at"] or one["granted_at"] or "-"
    until = one["revoked_at"] or one["expires_at"] or "-"
    return one["allowed_email"], one["status"], one["access_level"], since[:19], until[:19], one["notes"] or "-"
