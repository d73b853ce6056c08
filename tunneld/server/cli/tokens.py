"""``tunneld server token …``: credentials of agents and of the admin API."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunneld.errors import TunneldError, UsageError
from tunneld.server.cli import desk
from tunneld.server.cli.desk import (
    Arguments,
    bounds,
    bounds_shown,
    find_owner,
    find_token,
    limit_arguments,
    note,
    on_store,
    print_json,
    print_table,
    span,
    when,
)

if TYPE_CHECKING:
    from tunneld.config.server import ServerConfig
    from tunneld.server.store.interface import Store
    from tunneld.server.store.records import Token

__all__ = [
    "create",
    "create_arguments",
    "list_all",
    "list_arguments",
    "revoke",
    "revoke_arguments",
    "rotate",
    "rotate_arguments",
]


def create_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("name", metavar="NAME", help="the credential's name")
    globs = "tunnels that it opens (default: just NAME)"
    parser.add_argument("--tunnels", metavar="GLOB", nargs="+", action="extend", help=globs)
    parser.add_argument("--expires", metavar="TIME", type=_lifetime, help="how long it is good for, such as 90d")
    limit_arguments(parser, "its")
    parser.add_argument(
        "--scope",
        metavar="SCOPE",
        nargs="+",
        action="extend",
        help="what it is good for: agent (default), read, write (the admin API)",
    )
    parser.add_argument("--owner", metavar="OWNER", help="whose it is, by id or name (default: its own)")
    parser.add_argument("--certificate", metavar="FILE", help="no secret: the agent shows this certificate (PEM)")
    parser.add_argument("--subject", metavar="CN", help="no secret: the agent shows a certificate of that common name")


def list_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    desk.list_arguments(parser, "revoked")


def revoke_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    parser.add_argument("id", metavar="ID", help="as `token list` shows it, or its beginning")


def rotate_arguments(parser: argparse.ArgumentParser) -> None:  # noqa: D103
    revoke_arguments(parser)
    parser.add_argument(
        "--overlap", metavar="TIME", type=span, default=0.0, help="how long the old secret stays good (default: not)"
    )


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
                scopes=arguments.scope or ["agent"],
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


def list_all(config: ServerConfig, arguments: Arguments) -> int:
    """Print a line for each."""
    from time import time

    now = time()
    tokens = [one for one in on_store(config, lambda store: store.tokens()) if arguments.all or one.revoked is None]
    if arguments.json:
        print_json("tokens", [_shown(token, now) for token in tokens])
        return 0
    rows = [(token.id, token.name, _globs(token) or "-", _state(token, now)) for token in tokens]
    print_table(rows, none="no tokens; `tunneld server token create NAME` makes one")
    return 0


def revoke(config: ServerConfig, arguments: Arguments) -> int:
    """End a credential; its tunnels close within a second."""
    from time import time

    async def end(store: Store) -> Token:
        token = find_token(await store.tokens(), arguments.id)
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
        token = find_token(await store.tokens(), arguments.id)
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


def _lifetime(text: str) -> float:
    seconds = span(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError("expected a duration above 0")
    return seconds


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
    words += bounds(token.limits)
    return ", ".join(words)


def _shown(token: Token, now: float) -> dict[str, Any]:
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
        "limits": bounds_shown(token.limits),
    }
