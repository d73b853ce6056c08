"""Making a credential: what may stand in it, for the command line and the admin API alike. Pure but for chance."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from tunneld.server.principals import AGENT, READ, WRITE, Limits
from tunneld.server.store.records import Owner, Token
from tunneld.server.tokens import digest, mint

__all__ = ["LABEL", "find", "find_owner", "new_owner", "new_token"]

LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A tunnel's name: a DNS label."""
_GLOB = re.compile(r"[a-z0-9*?-]{1,63}")
_CERTIFICATE = re.compile(r"sha256:[0-9a-f]{64}|subject:[^\x00-\x1f\x7f]{1,200}")
_MAX_NAME = 64
_MAX_GLOBS = 100
_SCOPES = (AGENT, READ, WRITE)


def new_token(
    name: str,
    *,
    now: float,
    tunnels: Sequence[str] | None = None,
    scopes: Sequence[str] = (AGENT,),
    lifetime: float | None = None,
    limits: Limits | None = None,
    certificate: str | None = None,
    owner: str | None = None,
) -> tuple[Token, str | None]:
    """A new credential and its secret, which is nowhere else; None with a certificate, which needs none.

    Args:
        now: seconds since the epoch.
        tunnels: globs of the names that it opens; None: just `name`.
        lifetime: seconds; None: for ever.
        certificate: ``sha256:HEX`` or ``subject:CN``, instead of a secret.
        owner: id of whose it is; None: its own.

    Raises:
        ValueError: with what is wrong, a sentence.
    """
    if not name or len(name) > _MAX_NAME or not name.isprintable() or " " in name:
        raise ValueError(f"the name is 1 to {_MAX_NAME} printable characters without a blank")
    wrong = sorted(set(scopes) - set(_SCOPES))
    if wrong or not scopes:
        raise ValueError(f"scopes are {', '.join(_SCOPES)}" + (f", not {wrong[0]!r}" if wrong else ""))
    globs = _globs(name, tunnels, opens=AGENT in scopes)
    if certificate is not None and not _CERTIFICATE.fullmatch(certificate):
        raise ValueError("a certificate is told by sha256:HEX, or by subject:COMMON-NAME")
    if certificate is not None and tuple(scopes) != (AGENT,):
        raise ValueError("a certificate opens tunnels, not the admin API")
    secret = mint() if certificate is None else None
    token = Token(
        secrets.token_hex(4),
        name,
        tuple(dict.fromkeys(globs)),
        now,
        scopes=tuple(scope for scope in _SCOPES if scope in scopes),
        digest=None if secret is None else digest(secret),
        certificate=certificate,
        expires=None if lifetime is None else now + lifetime,
        limits=limits or Limits(),
        owner=owner,
    )
    return token, secret


def _globs(name: str, tunnels: Sequence[str] | None, *, opens: bool) -> Sequence[str]:
    """Of the names that a credential opens, where it `opens` any; raises ValueError."""
    if tunnels is None:
        if opens and not LABEL.fullmatch(name):
            raise ValueError(
                f"{name!r} is no tunnel's name (a-z, 0-9 and '-', at most 63): name the tunnels that it opens"
            )
        return [name] if opens else []
    if len(tunnels) > _MAX_GLOBS:
        raise ValueError(f"at most {_MAX_GLOBS} globs of tunnels")
    for glob in tunnels:
        if not _GLOB.fullmatch(glob):
            raise ValueError(f"{glob!r} fits no tunnel's name: use a-z, 0-9, '-', '*' and '?'")
    return tunnels


def new_owner(name: str, *, now: float, limits: Limits | None = None, tunnels: int = 0) -> Owner:
    """Somebody to whom tokens may belong; raises ValueError with what is wrong, a sentence."""
    if not name or len(name) > _MAX_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(f"the name is 1 to {_MAX_NAME} printable characters")
    return Owner(secrets.token_hex(4), name, now, limits or Limits(), tunnels)


def find_owner(owners: Sequence[Owner], wanted: str) -> Owner:
    """The owner of an id or a name who was not removed; raises ValueError with what is wrong, a sentence."""
    live = [owner for owner in owners if owner.removed is None]
    found = [owner for owner in live if wanted in (owner.id, owner.name)]
    if not found:
        raise ValueError(f"there is no owner {wanted[:80]!r}")
    if len(found) > 1:  # one's name is another's id
        found = [owner for owner in found if owner.id == wanted]
    return found[0]


def find(tokens: Sequence[Token], wanted: str) -> Token:
    """The token of an id, or of the beginning of one that fits no other.

    Raises:
        ValueError: with what is wrong, a sentence.
    """
    found = [token for token in tokens if token.id == wanted]
    if not found and len(wanted) >= 3:
        found = [token for token in tokens if token.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{wanted!r} fits {len(found)} tokens: write more of the id")
    named = [token.id for token in tokens if token.name == wanted]
    hint = f"; the token {wanted} has the id {' or '.join(named[:3])}" if named else ""
    raise ValueError(f"there is no token with the id {wanted!r}{hint}")
