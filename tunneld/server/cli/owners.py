"""``tunneld server owner …``: whose tokens, tunnels and names are together, and what they may have."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tunneld.errors import TunneldError, UsageError
from tunneld.server.cli import desk
from tunneld.server.cli.desk import (
    Arguments,
    bounds,
    bounds_shown,
    count,
    find_owner,
    limit_arguments,
    note,
    on_store,
    print_json,
    print_table,
    when,
)

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig
    from tunneld.server.store.interface import Store
    from tunneld.server.store.records import Owner, Token

__all__ = ["create", "create_arguments", "list_all", "list_arguments", "remove", "remove_arguments"]


def create_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("name", metavar="NAME", help="the owner's name, unlike any other's")
    parser.add_argument("--names", metavar="N", type=count, default=0, help="tunnels' names that they may own")
    limit_arguments(parser, "their")


def list_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    desk.list_arguments(parser, "removed")


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


def list_all(config: ServerConfig, arguments: Arguments) -> int:
    """Print a line for each: id, name, tokens that are good, what they may have."""
    from time import time

    async def read(store: Store) -> tuple[list[Owner], list[Token]]:
        return await store.owners(), await store.tokens()

    owners, tokens = on_store(config, read)
    now = time()
    owners = [owner for owner in owners if arguments.all or owner.removed is None]
    good = {owner.id: sum(one.owner == owner.id and one.state(now) == "live" for one in tokens) for owner in owners}
    if arguments.json:
        print_json("owners", [_shown(owner) | {"tokens": good[owner.id]} for owner in owners])
        return 0
    rows = [(owner.id, owner.name, _words(owner, good[owner.id])) for owner in owners]
    print_table(rows, none="no owners; `tunneld server owner create NAME` makes one")
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


def _words(owner: Owner, tokens: int) -> str:
    words = [f"removed {when(owner.removed)}" if owner.removed is not None else f"{tokens} tokens"]
    names = [f"{owner.tunnels} names"] if owner.tunnels else []
    return ", ".join(words + names + bounds(owner.limits))


def _shown(owner: Owner) -> dict[str, Any]:
    return {
        "id": owner.id,
        "name": owner.name,
        "created": when(owner.created),
        "removed": when(owner.removed),
        "limits": {"names": owner.tunnels, **bounds_shown(owner.limits)},
    }
