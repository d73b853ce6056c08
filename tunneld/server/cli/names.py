"""``tunneld server names …``: which tunnel's name belongs to whom."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tunneld.errors import TunneldError, UsageError
from tunneld.server.cli.desk import Arguments, find_token, note, on_store, when

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig
    from tunneld.server.store.interface import Store
    from tunneld.server.store.records import Owner, Token

__all__ = [
    "list_all",
    "release",
    "release_arguments",
    "reserve",
    "reserve_arguments",
]


def reserve_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("name", metavar="NAME", help="the tunnel's name")
    parser.add_argument("--for", dest="owner", metavar="ID", help="the token or owner that may have it (none may)")


def release_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("name", metavar="NAME", help="the tunnel's name")


def list_all(config: ServerConfig, arguments: Arguments) -> int:
    """Print a line for each name that belongs to somebody: name, owner's id and name, what holds."""
    from time import time

    async def read(store: Store) -> tuple[list[Any], dict[str, Token | Owner]]:
        holders: list[Token | Owner] = [*await store.tokens(), *await store.owners()]
        return await store.names(), {one.id: one for one in holders}

    names, holders = on_store(config, read)
    now = time()
    width = max((len(name.name) for name in names), default=0)
    for name in names:
        owner = holders.get(name.owner) if name.owner is not None else None
        who = f"{name.owner or '-':<8}  {owner.name if owner is not None else '-'}"
        gone = owner.gone_since(now) if owner is not None else name.since
        what = "owned" if gone is None else f"free from {when(gone + config.auth.name_rest)}"
        what = "reserved" if name.reserved else what
        print(f"{name.name:<{width}}  {who}  {what}")
    if not names:
        print("no tunnel's name belongs to anybody yet", file=sys.stderr)
    return 0


def reserve(config: ServerConfig, arguments: Arguments) -> int:
    """Keep a name for one token, or from everybody."""
    from time import time

    from tunneld.server.store.records import Name

    name = _label(arguments.name)

    async def keep(store: Store) -> str | None:
        owner = await _holder(store, arguments.owner) if arguments.owner is not None else None
        await store.reserve_name(Name(name, owner, time(), True))
        await note(config, store, "name.reserve", f"reserved {name} for {owner or 'nobody'}")
        return owner

    owner = on_store(config, keep)
    print(f"{name} is reserved{f' for {owner}' if owner else ': no token opens it'}", file=sys.stderr)
    return 0


def release(config: ServerConfig, arguments: Arguments) -> int:
    """Make a name free."""
    name = _label(arguments.name)

    async def free(store: Store) -> None:
        if not await store.release_name(name):
            raise TunneldError(f"the name {name} belongs to nobody")
        await note(config, store, "name.release", f"released {name}")

    on_store(config, free)
    print(f"{name} is free", file=sys.stderr)
    return 0


async def _holder(store: Store, wanted: str) -> str:
    """The id of an owner, or of a token that is its own; of another token, its owner's."""
    from tunneld.server import keys

    try:
        return keys.find_owner(await store.owners(), wanted).id
    except ValueError:
        token = find_token(await store.tokens(), wanted)
        return token.owner or token.id


def _label(name: str) -> str:
    from tunneld.server.keys import LABEL

    if not LABEL.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no tunnel's name: use a-z, 0-9 and '-', at most 63 characters")
    return name
