"""``tunneld server token …``, ``names …`` and ``backup``: what an operator does to the store beside the server.

A running server notices within a second. What a verb needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunneld.errors import ConfigError, TunneldError, UsageError

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig
    from tunneld.server.store.interface import Store
    from tunneld.server.store.records import Owner, Token

__all__ = [
    "Arguments",
    "backup",
    "backup_arguments",
    "count",
    "create",
    "create_arguments",
    "find_owner",
    "list_arguments",
    "names_list",
    "names_release",
    "names_reserve",
    "note",
    "on_store",
    "release_arguments",
    "reserve_arguments",
    "revoke",
    "revoke_arguments",
    "rotate",
    "rotate_arguments",
    "size",
    "token_list",
    "when",
]

Arguments = argparse.Namespace
_T = TypeVar("_T")


# -- arguments ---------------------------------------------------------------------------------------------------------


def create_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("name", metavar="NAME", help="the credential's name")
    parser.add_argument("--tunnels", metavar="GLOB", nargs="+", help="tunnels that it opens (default: just NAME)")
    parser.add_argument("--expires", metavar="TIME", type=_lifetime, help="how long it is good for, such as 90d")
    parser.add_argument("--streams", metavar="N", type=count, default=0, help="its streams at a time, over all")
    parser.add_argument("--bytes", metavar="SIZE", type=size, default=0, help="its bytes a second, such as 10MiB")
    parser.add_argument("--requests", metavar="N", type=count, default=0, help="its requests a second")
    parser.add_argument(
        "--scope",
        metavar="SCOPE",
        nargs="+",
        default=["agent"],
        help="what it is good for: agent (default), read, write (the admin API)",
    )
    parser.add_argument("--owner", metavar="OWNER", help="whose it is, by id or name (default: its own)")
    parser.add_argument("--certificate", metavar="FILE", help="no secret: the agent shows this certificate (PEM)")
    parser.add_argument("--subject", metavar="CN", help="no secret: the agent shows a certificate of that common name")


def list_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("--all", action="store_true", help="those that were revoked too")
    parser.add_argument("--json", action="store_true", help="as JSON")


def revoke_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("id", metavar="ID", help="as `token list` shows it, or its beginning")


def rotate_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    revoke_arguments(parser)
    parser.add_argument(
        "--overlap", metavar="TIME", type=_span, default=0.0, help="how long the old secret stays good (default: not)"
    )


def reserve_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("name", metavar="NAME", help="the tunnel's name")
    parser.add_argument("--for", dest="owner", metavar="ID", help="the token or owner that may have it (none may)")


def release_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("name", metavar="NAME", help="the tunnel's name")


def backup_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("file", metavar="FILE", help="where the copy goes; a file that is there is replaced")


def _span(text: str) -> float:
    from tunneld.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _lifetime(text: str) -> float:
    seconds = _span(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError("expected a duration above 0")
    return seconds


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


# -- verbs -------------------------------------------------------------------------------------------------------------


def create(config: ServerConfig, arguments: Arguments) -> int:
    """Print a new token, alone, on stdout."""
    from time import time

    from tunneld.server.keys import new_token
    from tunneld.server.principals import Limits

    async def add(store: Store) -> tuple[Token, str | None]:
        owner = find_owner(await store.owners(), arguments.owner).id if arguments.owner is not None else None
        try:
            token, secret = new_token(
                arguments.name,
                now=time(),
                tunnels=arguments.tunnels,
                scopes=arguments.scope,
                lifetime=arguments.expires,
                limits=Limits(arguments.streams, arguments.bytes, float(arguments.requests)),
                certificate=_certificate(arguments),
                owner=owner,
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        await store.add_token(token)
        await note(config, store, "token.create", f"created token {token.id} ({token.name})")
        return token, secret

    token, secret = on_store(config, add)
    print(secret if secret is not None else token.certificate)
    opens = f"opens {_globs(token)}" if token.tunnels else f"is good for {' and '.join(token.scopes)}"
    until = f" until {when(token.expires)}" if token.expires is not None else ""
    print(f"token {token.id} ({token.name}) {opens}{until}", file=sys.stderr)
    if secret is not None:
        print("It is kept as a hash only: store it now, it cannot be shown again.", file=sys.stderr)
    return 0


def token_list(config: ServerConfig, arguments: Arguments) -> int:
    """Print a line for each."""
    from time import time

    now = time()
    tokens = [one for one in on_store(config, lambda store: store.tokens()) if arguments.all or one.revoked is None]
    if arguments.json:
        print(json.dumps({"tokens": [_shown(token, now) for token in tokens]}, ensure_ascii=False, indent=2))
        return 0
    width = max((len(token.name) for token in tokens), default=0)
    globs = max((len(_globs(token)) for token in tokens), default=0)
    for token in tokens:
        print(f"{token.id}  {token.name:<{width}}  {_globs(token) or '-':<{globs}}  {_state(token, now)}".rstrip())
    if not tokens:
        print("no tokens; `tunneld server token create NAME` makes one", file=sys.stderr)
    return 0


def revoke(config: ServerConfig, arguments: Arguments) -> int:
    """End a credential; its tunnels close within a second."""
    from time import time

    async def end(store: Store) -> Token:
        token = _find(await store.tokens(), arguments.id)
        if not await store.revoke_token(token.id, time()):
            raise TunneldError(f"the token {token.id} ({token.name}) was revoked already")
        await note(config, store, "token.revoke", f"revoked token {token.id} ({token.name})")
        return token

    token = on_store(config, end)
    print(f"revoked token {token.id} ({token.name})", file=sys.stderr)
    return 0


def rotate(config: ServerConfig, arguments: Arguments) -> int:
    """Print another secret for a credential, alone, on stdout; it keeps its id, its rights and its names."""
    from time import time

    from tunneld.server.tokens import digest, mint

    secret = mint()

    async def change(store: Store) -> Token:
        token = _find(await store.tokens(), arguments.id)
        if token.digest is None:
            raise UsageError(f"the token {token.id} ({token.name}) has no secret: it is a certificate's")
        if not await store.rotate_token(token.id, digest(secret), old_until=time() + arguments.overlap):
            raise TunneldError(f"the token {token.id} ({token.name}) was revoked: create a new one")
        await note(config, store, "token.rotate", f"gave token {token.id} ({token.name}) another secret")
        return token

    token = on_store(config, change)
    print(secret)
    old = f"is good for {arguments.overlap:g} s more" if arguments.overlap else "is good no longer"
    print(f"token {token.id} ({token.name}) has another secret; the old one {old}", file=sys.stderr)
    return 0


def names_list(config: ServerConfig, arguments: Arguments) -> int:
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


def names_reserve(config: ServerConfig, arguments: Arguments) -> int:
    """Keep a name for one token, or from everybody."""
    from time import time

    from tunneld.server.store.records import Name

    name = _label(arguments.name)

    async def reserve(store: Store) -> str | None:
        owner = await _holder(store, arguments.owner) if arguments.owner is not None else None
        await store.reserve_name(Name(name, owner, time(), True))
        await note(config, store, "name.reserve", f"reserved {name} for {owner or 'nobody'}")
        return owner

    owner = on_store(config, reserve)
    print(f"{name} is reserved{f' for {owner}' if owner else ': no token opens it'}", file=sys.stderr)
    return 0


def names_release(config: ServerConfig, arguments: Arguments) -> int:
    """Make a name free."""
    name = _label(arguments.name)

    async def release(store: Store) -> None:
        if not await store.release_name(name):
            raise TunneldError(f"the name {name} belongs to nobody")
        await note(config, store, "name.release", f"released {name}")

    on_store(config, release)
    print(f"{name} is free", file=sys.stderr)
    return 0


def backup(config: ServerConfig, arguments: Arguments) -> int:
    """Copy the store, while the server runs or not."""
    from tunneld.server.store.files import path_of

    path = path_of(config.store)
    if path is not None and not Path(path).exists():
        raise ConfigError([f"store: {path}: there is none yet, so nothing to back up"])
    on_store(config, lambda store: store.backup(arguments.file))
    print(f"copied {path} to {arguments.file}", file=sys.stderr)
    return 0


# -- inside ------------------------------------------------------------------------------------------------------------


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


def _find(tokens: list[Token], wanted: str) -> Token:
    from tunneld.server.keys import find

    try:
        return find(tokens, wanted)
    except ValueError as error:
        raise TunneldError(f"{error}; `tunneld server token list` shows them") from None


async def _holder(store: Store, wanted: str) -> str:
    """The id of an owner, or of a token that is its own; of another token, its owner's."""
    from tunneld.server import keys

    try:
        return keys.find_owner(await store.owners(), wanted).id
    except ValueError:
        token = _find(await store.tokens(), wanted)
        return token.owner or token.id


def _label(name: str) -> str:
    from tunneld.server.keys import LABEL

    if not LABEL.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no tunnel's name: use a-z, 0-9 and '-', at most 63 characters")
    return name


def _certificate(arguments: Arguments) -> str | None:
    """What tells the certificate that stands for the secret; None: a secret does."""
    if arguments.certificate is None and arguments.subject is None:
        return None
    if arguments.certificate is not None and arguments.subject is not None:
        raise UsageError("give --certificate or --subject, not both")
    if arguments.subject is not None:
        return f"subject:{arguments.subject}"
    import hashlib
    import ssl

    try:
        text = Path(arguments.certificate).read_text("ascii")
        end = "-----END CERTIFICATE-----"
        octets = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE-----") : text.index(end) + len(end)])
    except OSError as error:
        raise UsageError(f"{arguments.certificate}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise UsageError(f"{arguments.certificate}: holds no certificate in PEM form") from None
    return f"sha256:{hashlib.sha256(octets).hexdigest()}"


def _globs(token: Token) -> str:
    return ",".join(token.tunnels)


def _state(token: Token, now: float) -> str:
    words = []
    state = token.state(now)
    if state == "revoked":
        words.append(f"revoked {when(token.revoked)}")
    elif state == "expired":
        words.append(f"expired {when(token.expires)}")
    else:
        words.append("for ever" if token.expires is None else f"until {when(token.expires)}")
    if token.certificate is not None:
        words.append(token.certificate)
    if token.scopes != ("agent",):
        words.append(f"scope {' '.join(token.scopes)}")
    if token.owner is not None:
        words.append(f"owner {token.owner}")
    limits = token.limits
    for value, unit in ((limits.streams, "streams"), (limits.bytes_per_s, "B/s"), (limits.requests_per_s, "req/s")):
        if value:
            words.append(f"{value:g} {unit}")
    return ", ".join(words)


def _shown(token: Token, now: float) -> dict[str, Any]:
    limits = token.limits
    return {
        "id": token.id,
        "name": token.name,
        "tunnels": list(token.tunnels),
        "scopes": list(token.scopes),
        "state": token.state(now),
        "certificate": token.certificate,
        "owner": token.owner,
        "created": when(token.created),
        "expires": when(token.expires),
        "revoked": when(token.revoked),
        "limits": {
            "streams": limits.streams,
            "bytes_per_s": limits.bytes_per_s,
            "requests_per_s": limits.requests_per_s,
        },
    }


def when(at: float | None) -> str | None:
    """ISO 8601, UTC, whole seconds."""
    import datetime

    if at is None:
        return None
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
