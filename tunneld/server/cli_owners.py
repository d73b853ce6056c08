"""``tunneld server owner …``: whose tokens, tunnels and names are together, and what they may have."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from tunneld.errors import TunneldError, UsageError
from tunneld.server.cli import Arguments, count, find_owner, note, on_store, size, when

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig
    from tunneld.server.store.interface import Store
    from tunneld.server.store.records import Owner, Token

__all__ = ["create", "create_arguments", "list_arguments", "owner_list", "remove", "remove_arguments"]


def create_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("name", metavar="NAME", help="the owner's name, unlike any other's")
    parser.add_argument("--names", metavar="N", type=count, default=0, help="tunnels' names that they may own")
    parser.add_argument("--streams", metavar="N", type=count, default=0, help="their streams at a time, over all")
    parser.add_argument("--bytes", metavar="SIZE", type=size, default=0, help="their bytes a second, such as 10MiB")
    parser.add_argument("--requests", metavar="N", type=count, default=0, help="their requests a second")


def list_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("--all", action="store_true", help="those that were removed too")
    parser.add_argument("--json", action="store_true", help="as JSON")


def remove_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("owner", metavar="OWNER", help="id or name, as `owner list` shows it")


def create(config: ServerConfig, arguments: Arguments) -> int:
    """Print a new owner's id, alone, on stdout."""
    from time import time

    from tunneld.server.keys import new_owner
    from tunneld.server.principals import Limits

    try:
        limits = Limits(arguments.streams, arguments.bytes, float(arguments.requests))
        owner = new_owner(arguments.name, now=time(), limits=limits, tunnels=arguments.names)
    except ValueError as error:
        raise UsageError(str(error)) from None

    async def add(store: Store) -> None:
        if not await store.add_owner(owner):
            raise TunneldError(f"there is an owner {owner.name!r} already, or was one")
        await note(config, store, "owner.create", f"created owner {owner.id} ({owner.name})")

    on_store(config, add)
    print(owner.id)
    print(f"`tunneld server token create NAME --owner {owner.id}` makes a token of theirs", file=sys.stderr)
    return 0


def owner_list(config: ServerConfig, arguments: Arguments) -> int:
    """Print a line for each: id, name, tokens that are good, what they may have."""
    from time import time

    async def read(store: Store) -> tuple[list[Owner], list[Token]]:
        return await store.owners(), await store.tokens()

    owners, tokens = on_store(config, read)
    now = time()
    owners = [owner for owner in owners if arguments.all or owner.removed is None]
    good = {owner.id: sum(one.owner == owner.id and one.state(now) == "live" for one in tokens) for owner in owners}
    if arguments.json:
        shown = [_shown(owner) | {"tokens": good[owner.id]} for owner in owners]
        print(json.dumps({"owners": shown}, ensure_ascii=False, indent=2))
        return 0
    width = max((len(owner.name) for owner in owners), default=0)
    for owner in owners:
        print(f"{owner.id}  {owner.name:<{width}}  {', '.join(_words(owner, good[owner.id]))}")
    if not owners:
        print("no owners; `tunneld server owner create NAME` makes one", file=sys.stderr)
    return 0


def remove(config: ServerConfig, arguments: Arguments) -> int:
    """End an owner and their tokens; their tunnels close within a second."""
    from time import time

    async def end(store: Store) -> Owner:
        owner = find_owner(await store.owners(), arguments.owner)
        await store.remove_owner(owner.id, time())
        await note(config, store, "owner.remove", f"removed owner {owner.id} ({owner.name})")
        return owner

    owner = on_store(config, end)
    print(f"removed owner {owner.id} ({owner.name}) and their tokens", file=sys.stderr)
    return 0


def _words(owner: Owner, tokens: int) -> list[str]:
    limits = owner.limits
    words = [f"removed {when(owner.removed)}" if owner.removed is not None else f"{tokens} tokens"]
    bounds = (owner.tunnels, "names"), (limits.streams, "streams"), (limits.bytes_per_s, "B/s")
    return words + [f"{value:g} {unit}" for value, unit in (*bounds, (limits.requests_per_s, "req/s")) if value]


def _shown(owner: Owner) -> dict[str, object]:
    limits = owner.limits
    return {
        "id": owner.id,
        "name": owner.name,
        "created": when(owner.created),
        "removed": when(owner.removed),
        "limits": {
            "names": owner.tunnels,
            "streams": limits.streams,
            "bytes_per_s": limits.bytes_per_s,
            "requests_per_s": limits.requests_per_s,
        },
    }
