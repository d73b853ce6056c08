"""What the verbs of an operator have in common: the store, the audit, and the words of their arguments."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tunneld.errors import ConfigError, TunneldError

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig
    from tunneld.server.principals import Limits
    from tunneld.server.store.interface import Store
    from tunneld.server.store.records import Owner, Token

__all__ = [
    "Arguments",
    "bounds",
    "bounds_shown",
    "count",
    "find_owner",
    "find_token",
    "limit_arguments",
    "list_arguments",
    "note",
    "on_store",
    "print_json",
    "print_table",
    "size",
    "span",
    "when",
]

Arguments = argparse.Namespace
_T = TypeVar("_T")


def limit_arguments(parser: argparse.ArgumentParser, whose: str) -> None:
    """What a token, or an owner, may have; `whose`: the word for them."""
    parser.add_argument("--streams", metavar="N", type=count, default=0, help=f"{whose} streams at a time, over all")
    parser.add_argument("--bytes", metavar="SIZE", type=size, default=0, help=f"{whose} bytes a second, such as 10MiB")
    parser.add_argument("--requests", metavar="N", type=count, default=0, help=f"{whose} requests a second")


def list_arguments(parser: argparse.ArgumentParser, over: str) -> None:
    """How a list is shown; `over`: the word for those that are past."""
    parser.add_argument("--all", action="store_true", help=f"those that were {over} too")
    parser.add_argument("--json", action="store_true", help="as JSON")


def span(text: str) -> float:
    """For argparse: seconds."""
    from tunneld.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size(text: str) -> int:
    """For argparse: bytes."""
    from tunneld.config.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """For argparse: a number from 0 on."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a whole number, not {text[:40]!r}")
    return int(text)


def on_store(config: ServerConfig, call: Callable[[Store], Awaitable[_T]]) -> _T:
    """Do something with the store that the configuration names."""
    if config.store == "memory:":
        raise ConfigError(["store: memory: keeps nothing beyond the server itself; set store: sqlite:////path.db"])
    from tunneld.server.store.service import SqlStore

    async def run() -> _T:
        store: Store = SqlStore(config.store)
        try:
            await store.open()
            return await call(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def note(config: ServerConfig, store: Store, action: str, detail: str) -> None:
    """Put a change into the audit."""
    import getpass
    from time import time

    from tunneld.server.store.records import AuditEntry
    from tunneld.telemetry.trail import Trail

    try:
        who = getpass.getuser()
    except (KeyError, OSError):
        who = "?"
    actor = f"command line ({who})"
    await store.add_audit(AuditEntry(time(), actor, action, detail), most=config.limits.audit_entries)
    await Trail(lambda: config.log.audit).note(actor, action, detail)


def find_owner(owners: list[Owner], wanted: str) -> Owner:
    """The owner of an id or a name; raises TunneldError."""
    from tunneld.server import keys

    try:
        return keys.find_owner(owners, wanted)
    except ValueError as error:
        raise TunneldError(f"{error}; `tunneld server owner list` shows them") from None


def find_token(tokens: list[Token], wanted: str) -> Token:
    """The token of an id, or of its beginning; raises TunneldError."""
    from tunneld.server.keys import find

    try:
        return find(tokens, wanted)
    except ValueError as error:
        raise TunneldError(f"{error}; `tunneld server token list` shows them") from None


def print_json(key: str, rows: list[dict[str, Any]]) -> None:
    """The rows of a list, as JSON."""
    print(json.dumps({key: rows}, ensure_ascii=False, indent=2))


def print_table(rows: Sequence[Sequence[str]], *, none: str) -> None:
    """A line a row, columns below each other; `none` goes to stderr where there is no row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if not rows:
        print(none, file=sys.stderr)


def bounds(limits: Limits) -> list[str]:
    """The limits that are set, in words."""
    found = (limits.streams, "streams"), (limits.bytes_per_s, "B/s"), (limits.requests_per_s, "req/s")
    return [f"{value:g} {unit}" for value, unit in found if value]


def bounds_shown(limits: Limits) -> dict[str, float]:
    """All of them, as JSON has them."""
    return {
        "streams": limits.streams,
        "bytes_per_s": limits.bytes_per_s,
        "requests_per_s": limits.requests_per_s,
    }


def when(at: float | None) -> str | None:
    """ISO 8601, UTC, whole seconds."""
    import datetime

    if at is None:
        return None
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
